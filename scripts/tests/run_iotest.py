# Runs one iotest with the QEMU of a build directory, in a directory of its
# own so that several can run at a time: one of ours, or with --rw-backing
# one of QEMU's own, whose images are shells then.  Exit status 77 means that
# the test was not run; the last line says why.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
from pathlib import Path

from tests.iotest import EXCEPTIONS, Exceptions, RW_BACKING, run_iotest


def main() -> int:
    parser = argparse.ArgumentParser(description='Run one iotest.')
    parser.add_argument('--rw-backing', action='store_true',
                        help='one of QEMU\'s own, with shells; cases that '
                        'tests/upstream/ lists as exceptions have to fail')
    parser.add_argument('build', metavar='BUILD', type=Path)
    parser.add_argument('test', metavar='TEST')
    args = parser.parse_args()
    place = 'check-upstream' if args.rw_backing else 'check'
    exceptions = Exceptions(EXCEPTIONS)
    outcome = run_iotest(
        args.build.resolve(), args.test,
        RW_BACKING if args.rw_backing else ['-qcow2'],
        args.build.resolve() / place / args.test,
        exceptions.plain.get(args.test, '') if args.rw_backing else '')
    print(outcome.log)
    if outcome.result == 'notrun':
        print(outcome.why)
        return 77
    if args.rw_backing:
        problem = exceptions.judge(outcome)
        print(problem)
        return 1 if problem else 0
    return 0 if outcome.good else 1
