#!/usr/bin/env python3
#
# tests/COVERAGE.md names every test of shells, and no test that is not there.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import fnmatch
import re
import unittest

import support

TESTS = support.ROOT / 'tests'


def table() -> set[str]:
    """What the last column of each row names."""
    rows = [line.strip('|').split('|') for line in
            (TESTS / 'COVERAGE.md').read_text().splitlines()
            if line.startswith('| ')]
    return {name for row in rows if row[-1].strip() != 'test'
            for name in re.split(r',\s*', row[-1].strip())}


class Coverage(unittest.TestCase):
    def test_named_tests_exist(self) -> None:
        for name in table():
            path = name if '/' in name else \
                f'qemu-iotests/tests/rw-backing-{name}'
            with self.subTest(name):
                self.assertTrue(list(TESTS.glob(path)))

    def test_every_test_is_named(self) -> None:
        iotests = {path.stem.removeprefix('rw-backing-') for path in
                   (TESTS / 'qemu-iotests/tests').glob('*.out')}
        clients = {f'clients/{path.name}' for path in
                   (TESTS / 'clients').iterdir()
                   if path.is_file() and not path.suffix}
        named = table()
        for name in sorted(iotests | clients):
            with self.subTest(name):
                self.assertTrue(any(fnmatch.fnmatch(name, pattern)
                                    for pattern in named))


if __name__ == '__main__':
    support.main()
