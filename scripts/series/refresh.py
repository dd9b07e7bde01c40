# Takes the commits of the scratch git tree, which a developer has made or
# changed there with ordinary git, back to patches/.  A file that a commit
# adds is one of ours: it is listed, and lives in the repository; changes of
# QEMU's files become hunks.  Right after scripts/import nothing changes.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import re
from dataclasses import replace
from pathlib import Path

from common import Failure, ROOT, bases
from series.gittree import Commit, GitTree, digest
from series.patches import Patch, Series, is_pattern, matches


def slug(subject: str) -> str:
    """The file name for a patch with this subject."""
    words = re.sub(r'[^a-z0-9.]+', '-', subject.lower())
    return words.strip('-.')[:60].rstrip('-.') + '.patch'


class Refresh:
    """One run over the commits of @tree."""

    def __init__(self, tree: GitTree, series: Series):
        self.tree = tree
        self.series = series
        self.imported = tree.require_state().commit
        self.old_names = ([*series.names()]
                          if (series.dir / 'series').exists() else [])
        self.old = [series.load_one(name) for name in self.old_names]
        self.name_of = {patch.subject: patch.name for patch in self.old}
        self.added_by: dict[str, Commit] = {}

    def patch(self, commit: Commit) -> Patch:
        """The entry of the series that @commit becomes."""
        subject, _, body = commit.message.partition('\n')
        body = body.strip('\n')
        if not body or '\n---\n' in f'\n{body}\n':
            raise Failure(f'{commit} must have a body, without a line "---": '
                          'amend its message')
        hooked = []
        for path, kind in commit.changes.items():
            if path in self.added_by:
                raise Failure(
                    f'{commit} changes {path}, which enters with '
                    f'{self.added_by[path]}: a file of ours enters whole, in '
                    'one commit; squash the change into that one')
            if kind == 'A' and not self.tree.has('base', path):
                self.added_by[path] = commit
            else:
                hooked.append(path)
        own = [path for path, adder in self.added_by.items()
               if adder is commit]
        return Patch(self.name_of.get(subject, slug(subject)), commit.author,
                     subject, body, sorted(own),
                     self.tree.hunks(commit.id, hooked))

    def put_patterns_back(self, patches: list[Patch]) -> None:
        """
        Replace names in @patches by the patterns that are in patches/.  A
        pattern goes to the patch that has most of what it matches, and names
        that another patch has stay there, where they have precedence.
        """
        old_lines = {line for patch in self.old for line in patch.own_lines}
        for pattern in sorted(filter(is_pattern, old_lines)):
            found = [{line for line in patch.own_lines
                      if line not in old_lines and matches(pattern, line)}
                     for patch in patches]
            most: set[str] = max(found, key=len, default=set())
            if most:
                patch = patches[found.index(most)]
                patch.own_lines = sorted({*patch.own_lines, pattern} - most)

    def take_new_files(self) -> None:
        """
        Copy the files that only the tree has to the repository; refuse to
        choose between two versions of a file.
        """
        for path in sorted(self.added_by):
            data = self.tree.read('HEAD', path)
            ours = self.series.root / path
            if not ours.exists():
                ours.parent.mkdir(parents=True, exist_ok=True)
                ours.write_bytes(data)
                if self.tree.is_executable('HEAD', path):
                    ours.chmod(0o755)
                print(f'refresh: new file {path}')
            elif data != ours.read_bytes() and not self._is_older(path, data):
                raise Failure(
                    f'{path} differs between {self.tree.path} and the '
                    'repository: files of ours are edited in the repository; '
                    'copy there what you want to keep, and amend '
                    f'{self.added_by[path]} to have the same')

    def _is_older(self, path: str, data: bytes) -> bool:
        """Whether @data came from the repository with the last import."""
        return (self.tree.has(self.imported, path)
                and self.tree.read(self.imported, path) == data)

    def write(self, patches: list[Patch]) -> None:
        """Make patches/ hold @patches, and touch only what changes."""
        new = {patch.name: patch.format() for patch in patches}
        if len(new) < len(patches):
            raise Failure('two commits have the same subject: patches need '
                          'different ones')
        if [*new] != self.old_names:
            new['series'] = ''.join(f'{name}\n' for name in new)
        self.series.dir.mkdir(exist_ok=True)
        for name, text in new.items():
            path = self.series.dir / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                print(f'refresh: wrote patches/{name}')
        for name in set(self.old_names).difference(new):
            (self.series.dir / name).unlink()
            print(f'refresh: removed patches/{name}')


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write the commits of TREE back to patches/.')
    parser.add_argument('tree', metavar='TREE', nargs='?', type=Path,
                        default=ROOT / 'build/qemu-src',
                        help='default: build/qemu-src')
    tree = GitTree(parser.parse_args().tree)
    state = tree.require_state()
    if state.base != bases()[0].name:
        raise Failure(f'{tree.path} is a tree of base {state.base}: patches/ '
                      f'are made on the default base, {bases()[0].name}; an '
                      f'adaptation goes to patches/adapt/{state.base}/')
    tree.check_idle()
    series = Series(ROOT)
    job = Refresh(tree, series)
    patches = [job.patch(commit) for commit in tree.commits()]
    job.put_patterns_back(patches)
    edited = tree.edited(but_not=list(job.added_by))
    if edited:
        raise Failure(f'{tree.path} has uncommitted edits of '
                      f'{", ".join(edited)}: commit them first')
    job.take_new_files()
    job.write(patches)
    patch_digest = digest(ROOT, series.inputs(state.base))
    tree.state = replace(state, patches=patch_digest, own='',
                         commit=tree.rev('HEAD'))
