# Runs QEMU's own tests of the block layer: its iotests with qcow2 images,
# with raw images and with shells, and its unit tests; and compares with what
# an unpatched QEMU does, which tests/upstream/ has.  The exit status is 0
# only if every difference is explained there.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import json
import os
import shutil
import subprocess
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from common import Failure, ROOT
from tests.iotest import (EXCEPTIONS, Exceptions, Outcome, RW_BACKING,
                          run_iotest)

BASELINE = ROOT / 'tests/upstream'


@dataclass(frozen=True)
class Suite:
    """A way to run QEMU's tests."""
    name: str
    arguments: list[str]    # of check; none for the unit tests
    baseline: str           # the file with what an unpatched QEMU does
    exceptions: Path = Path(os.devnull)


SUITES = [
    Suite('qcow2', ['-qcow2'], 'qcow2'),
    Suite('raw', ['-raw'], 'raw'),
    Suite('rw-backing', RW_BACKING, 'qcow2', EXCEPTIONS),
    Suite('unit', [], 'unit'),
]
# Only to be recorded: how far images with external data files get
DATA_FILE = Suite('data-file', ['-qcow2', '-o', 'data_file=$TEST_IMG.ext'],
                  'data-file')


def say(text: str) -> None:
    print(f'check-upstream: {text}', flush=True)


def read_baseline(name: str) -> dict[str, Outcome]:
    """What an unpatched QEMU does, by test."""
    result = {}
    for line in (BASELINE / f'{name}.tsv').read_text().splitlines():
        if line and not line.startswith('#'):
            test, outcome, seconds, why = line.split('\t')
            result[test] = Outcome(test, outcome, float(seconds), why)
    return result


def write(path: Path, outcomes: list[Outcome], header: str) -> None:
    """Write @outcomes to @path in the form of a baseline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'# {line}'.rstrip() for line in header.splitlines()]
    lines += [f'{it.test}\t{it.result}\t{it.seconds:.1f}\t{it.why}'
              for it in outcomes]
    path.write_text('\n'.join(lines) + '\n')


class Iotests:
    """One run of the iotests in @build, as @suite wants them."""

    def __init__(self, build: Path, suite: Suite):
        self.build = build
        self.suite = suite
        self.exceptions = Exceptions(suite.exceptions)
        self.place = build / 'upstream' / suite.name

    def tests(self) -> list[str]:
        """The names of QEMU's tests, without those of this project."""
        qemu = self.build / 'qemu'
        names = subprocess.run(
            [qemu / 'pyvenv/bin/python3', qemu / 'tests/qemu-iotests/check',
             '-n', *self.suite.arguments], cwd=qemu / 'tests/qemu-iotests',
            env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'}, check=True,
            text=True, stdout=subprocess.PIPE).stdout.split()
        ours = ROOT / 'tests/qemu-iotests/tests'
        return [name for name in names if not (ours / name).exists()]

    def one(self, test: str) -> Outcome:
        """Run @test, and keep what it says if it fails."""
        if test in self.exceptions.endless:
            return Outcome(test, 'notrun', why=self.exceptions.endless[test])
        outcome = run_iotest(self.build, test, self.suite.arguments,
                             self.place / 'scratch' / test,
                             self.exceptions.plain.get(test, ''))
        if outcome.result in ('fail', 'timeout'):
            (self.place / f'{test}.log').write_text(outcome.log)
        return outcome

    def all(self, tests: list[str], jobs: int) -> list[Outcome]:
        """Run @tests, @jobs at a time."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir(parents=True)
        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(self.one, tests))

    def again(self, outcome: Outcome) -> Outcome:
        """Run a test alone that has failed among others."""
        second = self.one(outcome.test)
        if second.result == 'pass':
            second.result = 'flaky'
            second.why = f'passes alone; among others: {outcome.why}'
        return second


def unit_tests(build: Path) -> list[Outcome]:
    """Build and run QEMU's unit tests."""
    qemu = build / 'qemu'
    result = subprocess.run(
        [qemu / 'pyvenv/bin/meson', 'test', '--suite', 'unit', '-t', '3',
         '--num-processes', '2'], cwd=qemu, check=False, text=True,
        errors='replace', stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    log = qemu / 'meson-logs/testlog.json'
    if 'Summary of Failures' not in result.stdout and result.returncode:
        raise Failure(f'QEMU\'s unit tests do not build:\n{result.stdout}')
    words = {'OK': 'pass', 'SKIP': 'notrun', 'TIMEOUT': 'timeout'}
    tests = map(json.loads, log.read_text().splitlines())
    return sorted((Outcome(test['name'].rpartition(' / ')[2],
                           words.get(test['result'], 'fail'),
                           test['duration'], log=test.get('stdout', ''))
                   for test in tests), key=lambda it: it.test)


class Comparison:
    """What is different in @suite from an unpatched QEMU."""

    def __init__(self, suite: Suite):
        self.suite = suite
        self.stock = read_baseline(suite.baseline)
        self.exceptions = Exceptions(suite.exceptions)

    def judge(self, outcome: Outcome) -> str:
        """What nothing explains about @outcome; empty if all is well."""
        if outcome.result == 'notrun':
            before = self.stock.get(outcome.test)
            if outcome.test in self.exceptions.endless or not (
                    before and before.good):
                return ''
            return f'not run: {outcome.why}'
        if outcome.test not in self.exceptions.tests() \
                and self.fails_on_stock(outcome):
            return ''
        return self.exceptions.judge(outcome)

    def fails_on_stock(self, outcome: Outcome) -> bool:
        """Whether @outcome is the failure that an unpatched QEMU has."""
        before = self.stock.get(outcome.test)
        return bool(before and not outcome.crash
                    and outcome.result == before.result == 'fail')

    def report(self, outcomes: list[Outcome]) -> list[str]:
        """Print what is different and explained, and return what is not."""
        name = self.suite.name
        problems = []
        for outcome in outcomes:
            before = self.stock.get(outcome.test)
            text = self.judge(outcome)
            if text:
                problems.append(f'{name} {outcome.test}: {text}')
            elif outcome.result == 'flaky':
                say(f'{name} {outcome.test}: {outcome.why}')
            elif before and outcome.good and not before.good:
                say(f'{name} {outcome.test}: passes, unlike on an unpatched '
                    f'QEMU ({before.result}: {before.why})')
        return problems

    def missing(self, outcomes: list[Outcome]) -> list[str]:
        """Tests that tests/upstream/ knows, but QEMU does not."""
        known = {*self.stock, *self.exceptions.tests(),
                 *self.exceptions.plain}
        return [f'{self.suite.name} {test}: QEMU has no such test any more'
                for test in sorted(known - {it.test for it in outcomes})]

    def line(self, outcomes: list[Outcome]) -> str:
        """The counts, in one line."""
        failed = [it for it in outcomes if it.result in ('fail', 'timeout')]
        known = [it for it in failed if not self.judge(it)]
        excepted = [it for it in known
                    if it.test in self.exceptions.tests()]
        parts = [f'{sum(it.good for it in outcomes)} passed',
                 f'{len(failed) - len(known)} failed',
                 f'{len(known) - len(excepted)} failed as on stock',
                 f'{sum(it.result == "notrun" for it in outcomes)} not run']
        if self.exceptions.tests():
            parts.insert(2, f'{len(excepted)} failed as listed')
        return f'{self.suite.name}: {", ".join(parts)}'

    @staticmethod
    def data_file_line(outcomes: list[Outcome]) -> str:
        """How @outcomes compare to images with an external data file."""
        passed = {test for test, it in read_baseline('data-file').items()
                  if it.good}
        both = sum(it.good for it in outcomes if it.test in passed)
        more = sum(it.good for it in outcomes if it.test not in passed)
        return (f'of the {len(passed)} tests that pass with an external data '
                f'file on stock, {both} pass with an RW backing, and '
                f'{more} others')


def run(build: Path, suite: Suite, jobs: int, only: list[str],
        judge: Callable[[Outcome], str]) -> list[Outcome]:
    """
    Run @suite, or @only some of its tests.  Those that fail, and @judge does
    not know why, are tried again alone.
    """
    say(f'running {suite.name}')
    if not suite.arguments:
        return unit_tests(build)
    iotests = Iotests(build, suite)
    tests = [test for test in iotests.tests() if not only or test in only]
    outcomes = iotests.all(tests, jobs)
    return [iotests.again(it)
            if it.result in ('fail', 'timeout') and judge(it) else it
            for it in outcomes]


def record(build: Path, suite: Suite, outcomes: list[Outcome]) -> None:
    """Make @outcomes the baseline of @suite."""
    version = (build / 'qemu-src/VERSION').read_text().strip()
    arguments = [it for it in
                 (build / 'qemu/configured-with').read_text().split('\n')
                 if it.startswith(('--target', '--without', '--enable',
                                   '--disable'))]
    header = (f"What an unpatched QEMU {version} does, Debian's source "
              'package, configured with '
              + ' '.join(arguments).replace('-', '\N{NON-BREAKING HYPHEN}')
              + '.  Written by scripts/check-upstream; tab-separated: test, '
              'result, seconds, reason')
    write(BASELINE / f'{suite.baseline}.tsv', outcomes,
          textwrap.fill(header, 74).replace('\N{NON-BREAKING HYPHEN}', '-'))


def main() -> int:
    parser = argparse.ArgumentParser(description="Run QEMU's own tests.")
    parser.add_argument('--suite', metavar='NAME', action='append',
                        choices=[it.name for it in (*SUITES, DATA_FILE)],
                        help='only this one; may be repeated')
    parser.add_argument('--jobs', metavar='N', type=int, default=2)
    parser.add_argument('--record', action='store_true',
                        help='BUILD is one of an unpatched QEMU: write '
                        'tests/upstream/')
    parser.add_argument('build', metavar='BUILD', type=Path)
    parser.add_argument('only', metavar='TEST', nargs='*')
    args = parser.parse_args()
    build = args.build.resolve()
    chosen = [it for it in (*SUITES, DATA_FILE)
              if it.name in (args.suite or [it.name for it in SUITES])]
    problems: list[str] = []
    lines: list[str] = []
    for suite in chosen:
        if args.record:
            record(build, suite, run(build, suite, args.jobs, args.only,
                                     lambda outcome: outcome.why))
            continue
        comparison = Comparison(suite)
        outcomes = run(build, suite, args.jobs, args.only, comparison.judge)
        write(build / f'upstream/{suite.name}.tsv', outcomes, suite.name)
        problems += comparison.report(outcomes)
        lines.append(comparison.line(outcomes))
        if not args.only:
            problems += comparison.missing(outcomes)
            if suite.exceptions == EXCEPTIONS:
                lines.append(comparison.data_file_line(outcomes))
    for text in problems:
        say(f'PROBLEM: {text}')
    for line in lines:
        say(line)
    if args.record:
        return 0
    say(f'{len(problems)} differences that nothing explains' if problems
        else 'no difference that is not explained')
    return 1 if problems else 0
