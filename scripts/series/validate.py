# Checks the whole series: as text, on every base that is at hand, mail by
# mail with QEMU's checkpatch.pl, and that "git am" of the mails gives the
# tree that is built here.  With --compile-prefixes it builds the tools at
# each commit, which takes long.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from common import Base, Failure, ROOT, bases
from series.gittree import GitError, GitTree
from series.lint import added_lines, lint
from series.patches import Series

TOOLS = ['qemu-img', 'qemu-io', 'qemu-nbd',
         'storage-daemon/qemu-storage-daemon']
# What checkpatch may say, and why
ALLOWED = {
    r'added, moved or deleted file\(s\), does MAINTAINERS need updating':
        'our section in MAINTAINERS covers our files by patterns',
    r"Does new file '\S+\.out' need 'SPDX-License-Identifier'":
        'the expected output of a test has no place for a comment',
}


def say(text: str) -> None:
    print(f'validate: {text}', flush=True)


class Validation:
    """One run over the series, with the trees that are at hand."""

    def __init__(self, series: Series, build: Path):
        self.series = series
        self.build = build
        self.tree = GitTree(build / 'qemu-src')
        self.problems: list[str] = []

    def complain(self, text: str) -> None:
        self.problems.append(text)
        print(f'validate: PROBLEM: {text}', flush=True)

    def as_text(self) -> bool:
        """Lint the series; whether it is worth going on."""
        problems = lint(self.series)
        for problem in problems:
            self.complain(problem)
        if problems:
            return False
        patches = self.series.load()
        own_files = self.series.own_files(patches)
        say(f'{len(patches)} patches, '
            f'{sum(map(len, own_files.values()))} files of ours')
        for path, count in sorted(added_lines(patches).items()):
            say(f'{count:4} lines added to {path}')
        return True

    def on_base(self, base: Base) -> bool:
        """Apply the series to @base, if its source is here."""
        tree = self.tree
        if base != bases()[0]:
            tree = GitTree(Path(f'{self.build}-{base.name}') / 'qemu-src')
        if not tree.state:
            if base == bases()[0]:
                raise Failure(f'{tree.path} is missing: run ./configure')
            say(f'base {base.name}: not at hand; ./configure '
                f'--base={base.name} fetches it')
            return True
        version = tree.git('show', '-s', '--format=%s', 'base').strip()
        try:
            tree.commit_series(self.series, base)
        except Failure as failure:
            self.complain(f'base {base.name}: {failure}')
            return False
        say(f'base {base.name}: applies to {version}')
        return True

    def as_mails(self, directory: Path) -> None:
        """Export the series; check the mails, and what they give."""
        result = subprocess.run(
            [sys.executable, ROOT / 'scripts/export', '--tree',
             self.tree.path, directory / 'mails'],
            check=False, text=True, capture_output=True)
        if result.returncode:
            raise Failure(result.stderr.strip())
        mails = result.stdout.splitlines()[1:]
        for mail in mails:
            self.checkpatch(mail)
        self.git_am(mails, directory / 'am')

    def checkpatch(self, mail: str) -> None:
        """Run QEMU's own checkpatch.pl on @mail."""
        result = subprocess.run(
            ['perl', 'scripts/checkpatch.pl', '--no-color', '--no-summary',
             mail], cwd=self.tree.path, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT)
        reports = re.findall(r'^(?:ERROR|WARNING): .*\n(?:#.*\n)?',
                             result.stdout, re.MULTILINE)
        if result.returncode and not reports:
            raise Failure(f"QEMU's checkpatch.pl failed:\n{result.stdout}")
        for report in reports:
            if not any(re.search(text, report) for text in ALLOWED):
                self.complain(f'checkpatch, {os.path.basename(mail)}: '
                              + ' '.join(report.split()))

    def git_am(self, mails: list[str], directory: Path) -> None:
        """Apply @mails to pristine source, and compare."""
        commit = self.tree.commit_series(self.series, bases()[0])
        expected = self.tree.git('rev-parse', f'{commit}^{{tree}}')
        self.tree.git('worktree', 'add', '--quiet', '--detach',
                      str(directory), 'base')
        copy = GitTree(directory)
        copy.git_dir = Path((directory / '.git').read_text().split()[1])
        ident = {f'GIT_COMMITTER_{what}': 'am@localhost'
                 for what in ('NAME', 'EMAIL')}
        try:
            copy.git('am', '--quiet', *mails, env=ident)
            if copy.git('rev-parse', 'HEAD^{tree}') != expected:
                self.complain('git am of the exported series gives another '
                              'tree')
            else:
                say('git am of the exported series gives the same tree')
        except GitError as error:
            self.complain(f'git am of the exported series fails:\n{error}')
        finally:
            self.tree.git('worktree', 'remove', '--force', str(directory))

    def prefixes(self) -> None:
        """Build the tools at every commit of the series."""
        last = self.tree.commit_series(self.series, bases()[0])
        commits = self.tree.git('rev-list', '--reverse',
                                f'base..{last}').split()
        place = self.build / 'prefixes'
        source, build = place / 'qemu-src', place / 'qemu'
        self.tree.git('worktree', 'prune')
        if not source.exists():
            self.tree.git('worktree', 'add', '--quiet', '--detach',
                          str(source.resolve()), 'base')
        copy = GitTree(source)
        copy.git_dir = Path((source / '.git').read_text().split()[1])
        copy.git('checkout', '--quiet', '--force', '--detach', commits[0])
        if not (build / 'build.ninja').exists():
            arguments = (self.build / 'qemu/configured-with').read_text()
            self.compile('configuring the prefixes', build,
                         '../qemu-src/configure', *arguments.splitlines())
        for number, commit in enumerate(commits, 1):
            copy.git('checkout', '--quiet', '--force', '--detach', commit)
            subject = copy.git('show', '-s', '--format=%s').strip()
            units = [f'tests/unit/{path.stem}' for path in
                     (ROOT / 'tests/unit').glob('test-*.c')
                     if (source / 'tests/unit' / path.name).exists()]
            self.compile(f'compiling {number}/{len(commits)} {subject}',
                         build, 'ninja', *TOOLS, *units)

    def compile(self, what: str, build: Path, *command: str) -> None:
        """Run @command in @build; a failure is a problem of the series."""
        build.mkdir(parents=True, exist_ok=True)
        result = subprocess.run(
            command, cwd=build, check=False, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'CCACHE_BASEDIR': str(build.parent.resolve()),
                 'CCACHE_NOHASHDIR': '1'})
        if result.returncode:
            self.complain(f'{what}: failed:\n'
                          + '\n'.join(result.stdout.splitlines()[-20:]))
        else:
            say(f'{what}: done')


def main() -> int:
    parser = argparse.ArgumentParser(description='Check the whole series.')
    parser.add_argument('--compile-prefixes', action='store_true',
                        help='build the tools at every commit (slow)')
    parser.add_argument('build', metavar='BUILD', nargs='?', type=Path,
                        default=ROOT / 'build', help='default: build')
    args = parser.parse_args()
    job = Validation(Series(ROOT), args.build)
    if job.as_text():
        applied = [job.on_base(base) for base in bases()]
        if applied[0]:
            with tempfile.TemporaryDirectory() as directory:
                job.as_mails(Path(directory))
            if args.compile_prefixes:
                job.prefixes()
    if job.problems:
        say(f'{len(job.problems)} problems')
        return 1
    say('the series is in order')
    return 0
