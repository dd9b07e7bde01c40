# What the tests of the scripts share: a small repository with copies of the
# scripts and a two-patch series, a small "QEMU" that it applies to, and a
# unittest runner that speaks TAP.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a test imports of the scripts comes after this module
sys.path.insert(0, str(ROOT / 'scripts'))
AUTHOR = 'Ann Developer <ann@example.org>'
MESSAGE = f'From: {AUTHOR}\nSubject: %s\n\nWhy it is so.\n\n' \
          f'Signed-off-by: {AUTHOR}\n---\n'
CHECKPATCH = """
while (<>) { print "ERROR: bad word\\n#1: FILE: x\\n" if /BAD/; }
"""


def numbered(count: int) -> str:
    """@count lines that are all different."""
    return ''.join(f'line {number}\n' for number in range(1, count + 1))


def add_after(path: str, number: int, text: str) -> str:
    """A patch that adds the line @text to @path after "line @number"."""
    before = ''.join(f' line {n}\n' for n in range(number - 2, number + 1))
    after = ''.join(f' line {n}\n' for n in range(number + 1, number + 4))
    return (f'diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n'
            f'@@ -{number - 2},6 +{number - 2},7 @@\n{before}+{text}\n{after}')


class Workshop(unittest.TestCase):
    """Tests that work on a repository and a "QEMU" of their own."""

    def setUp(self) -> None:
        holder = tempfile.TemporaryDirectory(prefix='rw-backing-')
        self.addCleanup(holder.cleanup)
        self.place = Path(holder.name)
        self.repo = self.place / 'repo'
        self.source = self.place / 'qemu-10.0.9'
        self.tree = self.repo / 'build/qemu-src'
        self._make_source()
        self._make_repository()

    def _make_source(self) -> None:
        self.write(self.source / 'VERSION', '10.0.9\n')
        self.write(self.source / '.gitignore', '*.patch\n')
        self.write(self.source / 'debian/a.patch', 'ignored by git\n')
        self.write(self.source / 'scripts/checkpatch.pl', CHECKPATCH)
        for name in ('block/a.c', 'block/b.c'):
            self.write(self.source / name, numbered(40))

    def _make_repository(self) -> None:
        shutil.copytree(ROOT / 'scripts', self.repo / 'scripts',
                        ignore=shutil.ignore_patterns('__pycache__'))
        for name in ('base.conf', 'configure', 'Makefile'):
            shutil.copy(ROOT / name, self.repo / name)
        self.write(self.repo / 'block/ours.c', 'ours\n')
        self.write(self.repo / 'tests/unit/test-ours.c', 'test\n')
        self.patches = self.repo / 'patches'
        self.write(self.patches / 'series', 'one.patch\ntwo.patch\n')
        self.one = self.patches / 'one.patch'
        self.two = self.patches / 'two.patch'
        self.write(self.one, MESSAGE % 'block: add the first hook'
                   + 'Own-file: block/ours.c\n\n'
                   + add_after('block/a.c', 10, 'first hook'))
        self.write(self.two, MESSAGE % 'tests: add the second hook'
                   + 'Own-file: tests/unit/test-ours.c\n\n'
                   + add_after('block/a.c', 20, 'second hook')
                   + add_after('block/b.c', 20, 'third hook'))

    @staticmethod
    def write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def replace(path: Path, old: str, new: str) -> None:
        """Replace @old, which must be there, in the file @path."""
        text = path.read_text()
        assert old in text, f'{path} has no {old!r}'
        path.write_text(text.replace(old, new))

    def run_command(self, *command: object, status: int = 0,
                    cwd: Path | None = None,
                    env: dict[str, str] | None = None) -> str:
        """Run @command, which must exit with @status; what it printed."""
        result = subprocess.run(
            list(map(str, command)), cwd=cwd or self.repo, text=True,
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**os.environ, **(env or {})})
        self.assertEqual(result.returncode, status,
                         f'{command}\n{result.stdout}')
        return result.stdout

    def script(self, name: str, *args: object, status: int = 0) -> str:
        """Run scripts/@name of the repository."""
        return self.run_command(sys.executable, self.repo / 'scripts' / name,
                                *args, status=status)

    def import_tree(self, status: int = 0) -> str:
        """Run scripts/import as configure does."""
        return self.script('import', self.source, self.tree, status=status)

    def git(self, *args: object) -> str:
        """Run git as a developer does in the tree."""
        environment = {'GIT_CONFIG_GLOBAL': os.devnull,
                       'GIT_AUTHOR_NAME': 'Bob', 'GIT_AUTHOR_EMAIL': 'b@o',
                       'GIT_COMMITTER_NAME': 'Bob',
                       'GIT_COMMITTER_EMAIL': 'b@o'}
        return self.run_command('git', *args, cwd=self.tree, env=environment)

    def in_tree(self, path: str) -> str:
        """The contents of @path in the tree."""
        return (self.tree / path).read_text()

    def all_patches(self) -> dict[str, str]:
        """The contents of patches/."""
        return {path.name: path.read_text()
                for path in self.patches.glob('*') if path.is_file()}


class _TapResult(unittest.TestResult):
    """Prints each result as a line of TAP."""

    def _line(self, test: unittest.TestCase, text: str, why: str = '') -> None:
        print(f'{text} {self.testsRun} - {test.id().split(".", 1)[1]}{why}',
              flush=True)

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._line(test, 'ok')

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._line(test, 'ok', f' # SKIP {reason}')

    def addFailure(self, test: unittest.TestCase, err: object) -> None:
        super().addFailure(test, err)
        self._line(test, 'not ok')
        print('# ' + self.failures[-1][1].replace('\n', '\n# '))

    def addError(self, test: unittest.TestCase, err: object) -> None:
        super().addError(test, err)
        self._line(test, 'not ok')
        print('# ' + self.errors[-1][1].replace('\n', '\n# '))

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase,
                   err: object) -> None:
        """One line for a test, however many of its parts fail."""
        bad = self.failures + self.errors
        super().addSubTest(test, subtest, err)
        if err is not None:
            if not any(other.test_case is test for other, _ in bad
                       if hasattr(other, 'test_case')):
                self._line(test, 'not ok')
            for other, text in self.failures + self.errors:
                if other is subtest:
                    print(f'# {subtest.id()}\n# ' +
                          text.replace('\n', '\n# '))


def main() -> None:
    """Run the tests of the program, or those named on its command line."""
    loader = unittest.defaultTestLoader
    module = sys.modules['__main__']
    suite = (loader.loadTestsFromNames(sys.argv[1:], module)
             if sys.argv[1:] else loader.loadTestsFromModule(module))
    print(f'TAP version 13\n1..{suite.countTestCases()}')
    result = _TapResult()
    suite.run(result)
    sys.exit(not result.wasSuccessful())
