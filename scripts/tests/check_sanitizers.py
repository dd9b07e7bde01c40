# Runs our unit tests and our iotests with a QEMU that was built with
# AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer.  What these
# report goes to files, and fails the check whatever the test itself says.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import Failure, ROOT
from tests.instrument import (SANITIZERS, configured_with, environment,
                              make)
from tests.iotest import Outcome, run_iotest

PROGRAMS = ['qemu-img', 'qemu-io', 'qemu-nbd', 'qemu-system-x86_64',
            'storage-daemon/qemu-storage-daemon', 'modules']
REPORT = re.compile(r'^(?:==\d+==)?(.*(?:ERROR: (?:Address|Leak)Sanitizer|'
                    r'runtime error:).*)$', re.MULTILINE)
LEAK = re.compile(r'^Direct leak of .*\n((?: +#.*\n)+)', re.MULTILINE)
# What an iotest may take, in seconds; without sanitizers it is LIMIT
SLOW_LIMIT = 900
FUNCTION = re.compile(r'#\d+ 0x[0-9a-f]+ (?:in )?(\S+)')


def say(text: str) -> None:
    print(f'check-sanitizers: {text}', flush=True)


def findings(text: str) -> list[str]:
    """What a sanitizer says in @text, in a line for each."""
    return [*REPORT.findall(text),
            *(f'leak of {" < ".join(FUNCTION.findall(stack)[:8])}'
              for stack in LEAK.findall(text))]


def all_findings(reports: Path) -> list[str]:
    """What sanitizers say in the files of the directory @reports."""
    return [line for path in sorted(reports.iterdir())
            for line in findings(path.read_text(errors='replace'))]


class Check:
    """One run, with a QEMU that is built in @directory."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.failed: list[str] = []
        self.counts = {'passed': 0, 'failed': 0, 'skipped': 0}

    def reports(self, test: str) -> Path:
        """Where sanitizers put what they find in @test; a new directory."""
        path = self.directory / 'reports' / test
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        return path

    def judge(self, test: str, outcome: Outcome, reports: Path) -> None:
        """Tell and count what came of @test."""
        found = all_findings(reports)
        if found or not (outcome.good or outcome.result == 'notrun'):
            self.counts['failed'] += 1
            say(f'FAILED {test}: {outcome.result} {outcome.why}')
            for line in dict.fromkeys(found):
                print(f'    {line}')
            if found:
                print(f'    see {reports}')
            else:
                print(outcome.log)
        elif outcome.result == 'notrun':
            self.counts['skipped'] += 1
            say(f'skipped {test}: {outcome.why}')
        else:
            self.counts['passed'] += 1
            shutil.rmtree(reports)

    def unit_test(self, test: str) -> None:
        """Run the unit test @test."""
        reports = self.reports(test)
        result = subprocess.run(
            [self.directory / 'qemu/tests/unit' / test, '--tap', '-k'],
            cwd=self.directory, env=environment(reports), check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors='replace')
        self.judge(test, Outcome(test, 'fail' if result.returncode else 'pass',
                                 log=result.stdout), reports)

    def iotest(self, test: str) -> None:
        """
        Run the iotest @test, and once more if it hangs: where a program with
        several threads forks, as "qemu-nbd --fork" does, the child may wait
        for ever for a lock of AddressSanitizer's allocator, which another
        thread held.  What hangs twice, or has left a report, has failed.
        """
        outcome, reports = self.try_iotest(test)
        if outcome.result == 'timeout' and not all_findings(reports):
            say(f'{test}: {outcome.why}, tried once more')
            outcome, reports = self.try_iotest(test)
        self.judge(test, outcome, reports)

    def try_iotest(self, test: str) -> tuple[Outcome, Path]:
        """Run the iotest @test once; what came of it, and the reports."""
        reports = self.reports(test)
        return run_iotest(self.directory, test, ['-qcow2'],
                          self.directory / 'scratch' / test,
                          env=environment(reports), limit=SLOW_LIMIT), reports


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Run our tests with sanitizers.')
    parser.add_argument('build', metavar='BUILD', type=Path,
                        help='a build directory, for the source tree')
    parser.add_argument('directory', metavar='DIR', type=Path,
                        help='where to build QEMU with sanitizers')
    parser.add_argument('tests', metavar='TEST', nargs='*',
                        help='only these')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(),
                        help='tests at a time (default: one for each CPU)')
    args = parser.parse_args()
    build, directory = args.build.resolve(), args.directory.resolve()
    units = [path.stem for path in
             sorted((ROOT / 'tests/unit').glob('test-*.c'))]
    iotests = [path.stem for path in
               sorted((ROOT / 'tests/qemu-iotests/tests').glob('*.out'))]
    unknown = set(args.tests).difference(units, iotests)
    if unknown:
        raise Failure(f'no such test: {", ".join(sorted(unknown))}')
    say(f'building in {directory}')
    make(build, directory, [*configured_with(build), *SANITIZERS],
         [*PROGRAMS, *(f'tests/unit/{name}' for name in units)])

    check = Check(directory)
    with ThreadPoolExecutor(args.jobs) as pool:
        runs = [pool.submit(run, name) for run, names in
                ((check.unit_test, units), (check.iotest, iotests))
                for name in names if not args.tests or name in args.tests]
    for run in runs:
        # An exception is not to be lost with its thread
        run.result()
    print(', '.join(f'{count} {outcome}'
                    for outcome, count in check.counts.items()))
    return 1 if check.counts['failed'] or not check.counts['passed'] else 0
