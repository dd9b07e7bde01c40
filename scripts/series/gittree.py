# The scratch git tree that QEMU is built from: pristine source as one commit
# tagged "base", then one commit per entry of patches/series.  Commits are
# made in a temporary index and are the same for the same input everywhere;
# the work tree then moves to them touching only files that differ.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import hashlib
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator

from common import Base, Failure
from series.patches import Patch, Series

# No commit here depends on when, where or by whom it is made.
_DATE = 1735689600              # 2025-01-01, a minute more for each commit
_IMPORTER = 'import <import@localhost>'

_GIT_CONFIG = ['-c', 'gc.auto=0', '-c', 'core.autocrlf=false',
               '-c', 'core.quotePath=false', '-c', 'core.looseCompression=1',
               '-c', 'advice.detachedHead=false']
# So must a diff that goes into patches/: no blob names, which a point release
# would change; everything else that git lets a user set is fixed.
_DIFF = ['--no-ext-diff', '--no-textconv', '--no-renames', '--no-color',
         '--unified=3', '--inter-hunk-context=0', '--diff-algorithm=myers',
         '--indent-heuristic', '--src-prefix=a/', '--dst-prefix=b/',
         '--submodule=short', '--full-index']


class GitError(Exception):
    """git failed; the text is what it said."""


def _git_env() -> dict[str, str]:
    """An environment in which git does not see the user's configuration."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith('GIT_')}
    return {**kept, 'GIT_CONFIG_GLOBAL': os.devnull,
            'GIT_CONFIG_NOSYSTEM': '1', 'LC_ALL': 'C'}


@dataclass
class State:
    """What the last import put into the tree."""
    source: str     # identifies the pristine source
    base: str       # name of the base
    patches: str    # digest of patches/
    own: str        # digest of our own files
    commit: str     # where the tree was left


@dataclass
class Commit:
    """A commit of the tree as scripts/refresh looks at it."""
    id: str
    author: str
    message: str
    changes: dict[str, str]     # path to A, M, D or T

    def __str__(self) -> str:
        subject = self.message.partition('\n')[0]
        return f'{self.id[:12]} ("{subject}")'


class GitTree:
    """The scratch git tree at @path."""

    def __init__(self, path: Path):
        self.path = path
        self.git_dir = path / '.git'

    # Plumbing

    def git(self, *args: str, stdin: str | None = None,
            env: dict[str, str] | None = None) -> str:
        """Run git in the tree and return what it prints."""
        result = subprocess.run(
            ['git', *_GIT_CONFIG, *args], cwd=self.path, text=True,
            input='' if stdin is None else stdin, capture_output=True,
            check=False,
            env={**_git_env(), 'GIT_DIR': str(self.git_dir.resolve()),
                 **(env or {})})
        if result.returncode:
            raise GitError(result.stderr.strip() or f'git {args[0]} failed')
        return result.stdout

    def rev(self, name: str) -> str:
        """The commit that @name stands for."""
        return self.git('rev-parse', '--verify', f'{name}^{{commit}}').strip()

    @contextlib.contextmanager
    def _temporary_index(self) -> Iterator[dict[str, str]]:
        with tempfile.TemporaryDirectory(dir=self.git_dir) as name:
            yield {'GIT_INDEX_FILE': f'{Path(name).resolve()}/index'}

    def _commit(self, env: dict[str, str], message: str, author: str,
                number: int, parent: str | None = None) -> str:
        """Commit the index given by @env as commit @number of the tree."""
        name, _, address = author[:-1].rpartition(' <')
        ident = {'NAME': name, 'EMAIL': address,
                 'DATE': f'@{_DATE + 60 * number} +0000'}
        tree = self.git('write-tree', env=env).strip()
        return self.git(
            'commit-tree', tree, *(['-p', parent] if parent else []),
            stdin=message,
            env={f'GIT_{who}_{what}': value for what, value in ident.items()
                 for who in ('AUTHOR', 'COMMITTER')}).strip()

    # State

    @property
    def state(self) -> State | None:
        """What the last import put here, None before the first one."""
        try:
            return State(**json.loads(
                (self.git_dir / 'rw-backing').read_text()))
        except FileNotFoundError:
            return None

    @state.setter
    def state(self, state: State) -> None:
        new = self.git_dir / 'rw-backing.new'
        new.write_text(json.dumps(asdict(state), indent=1) + '\n')
        new.replace(self.git_dir / 'rw-backing')

    def require_state(self) -> State:
        """The state of a tree that must have been imported."""
        state = self.state
        if not state:
            raise Failure(f'{self.path} is not a tree made by '
                          'scripts/import: run ./configure first')
        return state

    def has_own_commits(self) -> bool:
        """Whether a developer has committed here since the last import."""
        return self.rev('HEAD') != self.require_state().commit

    # Making commits

    def init(self) -> None:
        """Make an empty repository."""
        self.path.mkdir(parents=True, exist_ok=True)
        subprocess.run(['git', 'init', '--quiet', '--template=',
                        '--initial-branch=rw-backing', str(self.path)],
                       check=True, env=_git_env())
        self.git('config', 'gc.auto', '0')

    def commit_source(self, source: Path, version: str) -> str:
        """Commit the files in @source, and return the commit."""
        with self._temporary_index() as env:
            # QEMU's own .gitignore names files that Debian's source has
            self.git('add', '--all', '--force', '.',
                     env={**env, 'GIT_WORK_TREE': str(source.resolve())})
            return self._commit(env, f'QEMU {version}\n', _IMPORTER, 0)

    def commit_series(self, series: Series, base: Base,
                      start: str = 'base') -> str:
        """
        Commit @series on top of the commit @start and return the last
        commit; neither the work tree nor any branch changes.
        """
        commit = self.rev(start)
        patches = series.load()
        own_files = series.own_files(patches)
        if not patches:
            raise Failure('patches/series is empty: there is no series to '
                          'work on')
        source = self.git('show', '-s', '--format=%s', commit).strip()
        with self._temporary_index() as env:
            self.git('read-tree', commit, env=env)
            for number, patch in enumerate(patches, 1):
                self._add_own_files(patch, own_files[patch.name],
                                    series.root, env)
                for origin, hunks in series.hunks_for(patch, base.name):
                    self._apply(origin, hunks, base, source, env)
                commit = self._commit(env, patch.message, patch.author,
                                      number, commit)
        return commit

    def _add_own_files(self, patch: Patch, paths: list[str], root: Path,
                       env: dict[str, str]) -> None:
        if not paths:
            return
        for path in paths:
            if not (root / path).is_file():
                raise Failure(f'patches/{patch.name} lists {path}, which the '
                              'repository does not have: add the file or '
                              'remove the line')
        present = self.git('ls-files', '--', *paths, env=env).split('\n')[0]
        if present:
            raise Failure(f'patches/{patch.name} lists {present} as a file '
                          'of ours, but it is there already, in QEMU or from '
                          'an earlier patch: change it by a hunk instead')
        blobs = self.git('hash-object', '-w', '--no-filters', '--stdin-paths',
                         stdin=''.join(f'{root / path}\n' for path in paths))
        lines = []
        for path, blob in zip(paths, blobs.split()):
            mode = '100755' if os.access(root / path, os.X_OK) else '100644'
            lines.append(f'{mode} {blob}\t{path}\n')
        self.git('update-index', '--add', '--index-info',
                 stdin=''.join(lines), env=env)

    def _apply(self, origin: str, hunks: str, base: Base, source: str,
               env: dict[str, str]) -> None:
        try:
            # git apply takes offsets, and never fuzz
            self.git('apply', '--cached', '--whitespace=nowarn',
                     stdin=hunks, env=env)
        except GitError as error:
            where = re.findall(r'^error: (?:patch failed: )?(.*)$',
                               str(error), re.MULTILINE)
            raise Failure(
                f'{origin} does not apply without fuzz to {source} at '
                f'{where[0] if where else error}\nRemedy: mend the patch for '
                'the default base, or give another base an adaptation in '
                f'patches/adapt/{base.name}/') from None

    # Moving the work tree

    def check_idle(self) -> None:
        """Refuse to work while the developer is in the middle of something."""
        for name in ('rebase-merge', 'rebase-apply', 'CHERRY_PICK_HEAD'):
            if (self.git_dir / name).exists():
                raise Failure(f'a rebase or cherry-pick is under way in '
                              f'{self.path}: finish or abort it first')

    def edited(self, but_not: list[str]) -> list[str]:
        """Tracked files with uncommitted edits, those in @but_not left out."""
        names = self.git('diff', '--name-only', '-z', 'HEAD').split('\0')
        return sorted(set(filter(None, names)) - set(but_not))

    def move_to(self, commit: str, own_files: list[str]) -> None:
        """
        Take branch, index and work tree to @commit.  Uncommitted edits stay
        where they do not conflict, and are an error where they do.
        """
        if self.rev('HEAD') != commit:
            self.put_back('HEAD', own_files)
            # The index has to know that the files are what they were
            self.git('status', '--porcelain', '--untracked-files=no')
            try:
                self.git('reset', '--quiet', '--keep', commit)
            except GitError as error:
                raise Failure(
                    f'{self.path} has uncommitted edits where the series '
                    f'changes:\n{error}\nRemedy: commit them there and run '
                    'scripts/refresh, or discard them with "git checkout '
                    'FILE" there') from None
        self.put_back(commit, own_files)

    def put_back(self, commit: str, paths: list[str]) -> None:
        """Make @paths in the work tree what they are in @commit."""
        if not paths:
            return
        known = self.git('ls-tree', '-r', '-z', '--name-only', commit, '--',
                         *paths).split('\0')
        for path in set(paths).difference(known):
            (self.path / path).unlink(missing_ok=True)
        changed = self.git('diff', '--name-only', '--no-renames', '-z',
                           commit, '--', *paths).split('\0')
        changed = [path for path in changed if path in known and path]
        if changed:
            self.git('restore', f'--source={commit}', '--worktree', '--',
                     *changed)

    # Looking at commits

    def commits(self) -> list[Commit]:
        """The commits after "base", oldest first."""
        if self.git('rev-list', '--merges', 'base..HEAD'):
            raise Failure(f'{self.path} has a merge after "base": the series '
                          'must be a line of commits')
        ids = self.git('rev-list', '--reverse', 'base..HEAD').split()
        return [self._read_commit(commit) for commit in ids]

    def _read_commit(self, commit: str) -> Commit:
        author, _, message = self.git('show', '-s', '--format=%an <%ae>%n%B',
                                      commit).partition('\n')
        fields = self.git('diff-tree', '-r', '-z', '--name-status',
                          '--no-renames', f'{commit}^', commit).split('\0')
        return Commit(commit, author, message.strip('\n') + '\n',
                      dict(zip(fields[1::2], fields[0::2])))

    def hunks(self, commit: str, paths: list[str]) -> str:
        """What @commit changes in @paths, in the form patches/ has it."""
        if not paths:
            return ''
        text = self.git('diff-tree', '-p', *_DIFF, f'{commit}^', commit, '--',
                        *paths)
        return re.sub(r'^index [0-9a-f]+\.\.[0-9a-f]+.*\n', '', text,
                      flags=re.MULTILINE)

    def read(self, commit: str, path: str) -> bytes:
        """The contents of @path in @commit."""
        return subprocess.run(
            ['git', 'cat-file', 'blob', f'{commit}:{path}'], cwd=self.path,
            check=True, capture_output=True, env=_git_env()).stdout

    def has(self, commit: str, path: str) -> bool:
        """Whether @commit has the file @path."""
        return bool(self.git('ls-tree', '--name-only', commit, '--', path))

    def is_executable(self, commit: str, path: str) -> bool:
        """Whether @path has the mode of a program in @commit."""
        return self.git('ls-tree', commit, '--', path).startswith('100755')


def digest(root: Path, paths: list[Path]) -> str:
    """One name for the names, modes and contents of @paths."""
    result = hashlib.sha256()
    for path in paths:
        if not path.exists():
            continue
        data = path.read_bytes()
        result.update(f'{path.relative_to(root)} {os.access(path, os.X_OK)} '
                      f'{len(data)}\n'.encode())
        result.update(data)
    return result.hexdigest()
