# Prints a table of what becomes of a shell: each structure, each kind of
# damage to it, what is left of two bitmaps, and what it takes until new ones
# can be had.  The disk is the guest's in every row, or a test has failed.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import re
import shutil
from pathlib import Path

from common import Failure, ROOT
from tests.iotest import run_iotest

ROW = re.compile(r'\bdamage: (.+) \| (.+) \| (.+); before a new one: (.+)$',
                 re.MULTILINE)


def rows(build: Path, test: str) -> list[tuple[str, ...]]:
    """What @test, one of rw-backing-damage-*, has found out."""
    scratch = build / 'damage-table' / test
    # What it says with -d is not what it is expected to say
    outcome = run_iotest(build, test, ['-d', '-qcow2'], scratch)
    found = [match.groups() for match in ROW.finditer(outcome.log)]
    if outcome.cases or outcome.crash or outcome.result == 'timeout':
        raise Failure(f'{test} fails, see {scratch}')
    if not found:
        raise Failure(f'{test} tells of no damage ({outcome.result}), see '
                      f'{scratch}')
    shutil.rmtree(scratch, ignore_errors=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description='Print what damage does.')
    parser.add_argument('build', metavar='BUILD', type=Path)
    build = parser.parse_args().build.resolve()
    tests = sorted(path.stem for path in
                   (ROOT / 'tests/qemu-iotests/tests').glob(
                       'rw-backing-damage-*.out'))
    print('| structure | damage | bitmaps | before new ones |')
    print('|---|---|---|---|')
    count = 0
    for test in tests:
        for row in rows(build, test):
            print(f'| {" | ".join(row)} |', flush=True)
            count += 1
    print(f'\n{count} cases, the disk is right in all of them')
    return 0
