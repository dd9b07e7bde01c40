# Runs single tests of QEMU's iotests, with a time limit, which QEMU's check
# lacks, and says what came of them: what passed, what failed in which cases,
# and whether a list of exceptions explains it.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import fnmatch
import os
import re
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping

from common import Failure, ROOT

# Options of check: images are shells, unless a test makes them otherwise
RW_BACKING = ['-qcow2', '-o', 'rw-backing=$TEST_IMG.rwb']
LIMIT = 300     # seconds for one test
EXCEPTIONS = ROOT / 'tests/upstream/rw-backing-exceptions'

_LINE = re.compile(r'^(?P<test>\S+) +(?P<result>pass|fail|not run) +'
                   r'\[[\d:]+\] (?:\[[\d:]+\])? *(?P<time>[\d.]+s|\.\.\.) *'
                   r'(?:\(last: [\d.]+s\))? *(?P<why>.*)$', re.MULTILINE)
_CASE = re.compile(r'^\+(?:ERROR|FAIL): (\w+) \(__main__\.(\w+)',
                   re.MULTILINE)
# A listed test may fail, but no program may crash in it
_CRASH = re.compile(r'^\+.*(?:\bAborted\b|\bAssertion\b.*\bfailed\b|'
                    r'Segmentation fault|core dumped|killed by signal|'
                    r'received signal -?(?:4|6|7|8|11)\b|SIG(?:ABRT|SEGV)).*$',
                    re.MULTILINE)


@dataclass
class Outcome:
    """What came of one test."""
    test: str
    result: str         # "pass", "fail", "notrun", "timeout" or "flaky"
    seconds: float = 0
    why: str = ''       # in a few words
    log: str = ''       # all that check said
    cases: list[str] = field(default_factory=list)  # failed, "Class.test_x"
    crash: str = ''     # the line that tells of a crash

    @property
    def good(self) -> bool:
        """Whether the test has passed, in one way or another."""
        return self.result in ('pass', 'flaky')


def read_outcome(test: str, log: str) -> Outcome:
    """What came of @test according to all that check said."""
    lines = [line for line in _LINE.finditer(log.replace('\r', '\n'))
             if line['test'] == test]
    if not lines:
        return Outcome(test, 'fail', why='check gave no result', log=log)
    line = lines[-1]
    result = line['result'].replace(' ', '')
    # A path says nothing about the test
    why = re.sub(r' *\(see \S+\)|(?<!\w)/\S*/', '', line['why']).strip()
    outcome = Outcome(test, result, why=why, log=log)
    if line['time'] != '...':
        outcome.seconds = float(line['time'][:-1])
    if result == 'fail':
        outcome.cases = [f'{name}.{case}'
                         for case, name in _CASE.findall(log)]
        crash = _CRASH.search(log)
        outcome.crash = crash[0][1:] if crash else ''
    return outcome


def run_iotest(build: Path, test: str, arguments: list[str], scratch: Path,
               plain: str = '', env: Mapping[str, str] = os.environ,
               limit: int | None = None) -> Outcome:
    """
    Run @test with the QEMU of @build and with @arguments of check, in the
    directory @scratch, which is made, and removed unless the test fails.
    Images whose names match @plain are not made shells.  After @limit
    seconds (default: LIMIT), the test is killed.
    """
    limit = LIMIT if limit is None else limit
    qemu = build / 'qemu'
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    env = {**env, 'TEST_DIR': str(scratch),
           'PYTHONDONTWRITEBYTECODE': '1', 'PLAIN_IMAGES': plain}
    with (scratch / 'log').open('w+', errors='replace') as log, \
            subprocess.Popen(
                [qemu / 'pyvenv/bin/python3',
                 qemu / 'tests/qemu-iotests/check', *arguments, test],
                cwd=scratch, env=env, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True) as process:
        try:
            process.wait(timeout=limit)
            late = False
        except subprocess.TimeoutExpired:
            late = True
        # Tests that fail may leave programs behind
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        log.seek(0)
        text = log.read()
    if late:
        return Outcome(test, 'timeout', limit, f'killed after {limit} s',
                       text)
    outcome = read_outcome(test, text)
    if outcome.result != 'fail':
        shutil.rmtree(scratch, ignore_errors=True)
    return outcome


class Exceptions:
    """
    Why tests cannot pass, as a file says it in lines of these forms:

        TEST: reason                the test fails
        TEST CASE...: reason        it fails in these cases, and only there;
                                    they are patterns of "Class.test_x"
        TEST endless: reason        it does not end, and is not even run
        TEST plain=REGEX: reason    it passes if images with these names have
                                    no RW backing
    """

    def __init__(self, path: Path):
        self.whole: dict[str, str] = {}
        self.cases: dict[str, dict[str, str]] = {}
        self.endless: dict[str, str] = {}
        self.plain: dict[str, str] = {}
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line or line.startswith('#'):
                continue
            name, _, reason = line.partition(': ')
            test, *words = name.split()
            if not reason.strip() or self._contradicts(test, words):
                raise Failure(f'{path}:{number}: no reason, or {test} is '
                              'there twice')
            self._add(test, words, reason.strip())

    def _contradicts(self, test: str, words: list[str]) -> bool:
        """Whether a line of the form "@test @words" cannot be added."""
        if words and words[0].startswith('plain='):
            return test in self.plain
        if test in self.whole or test in self.endless:
            return True
        return test in self.cases and words in ([], ['endless'])

    def _add(self, test: str, words: list[str], reason: str) -> None:
        if not words:
            self.whole[test] = reason
        elif words == ['endless']:
            self.endless[test] = reason
        elif words[0].startswith('plain='):
            self.plain[test] = words[0].removeprefix('plain=')
        else:
            cases = self.cases.setdefault(test, {})
            cases.update({word: reason for word in words})

    def tests(self) -> set[str]:
        """The tests that the file says do not pass."""
        return {*self.whole, *self.cases, *self.endless}

    def judge(self, outcome: Outcome) -> str:
        """
        What is wrong about @outcome, of a test that is expected to pass
        unless the file says otherwise; empty if nothing is.
        """
        cases = self.cases.get(outcome.test, {})
        if outcome.good:
            if outcome.test in self.tests():
                return ('passes, and is listed as an exception: shorten the '
                        'list')
            return ''
        if outcome.crash:
            return f'a program crashes: {outcome.crash}'
        if outcome.result == 'fail' and outcome.test in self.whole:
            return ''
        if outcome.result != 'fail' or not cases or not outcome.cases:
            return f'{outcome.result}: {outcome.why}'
        return self._judge_cases(outcome, [*cases])

    @staticmethod
    def _judge_cases(outcome: Outcome, patterns: list[str]) -> str:
        new = [case for case in outcome.cases
               if not any(fnmatch.fnmatchcase(case, pattern)
                          for pattern in patterns)]
        if new:
            return f'fails in {", ".join(new)}'
        passed = [pattern for pattern in patterns
                  if not fnmatch.filter(outcome.cases, pattern)]
        if passed:
            return (f'{", ".join(passed)} passes, and is listed as an '
                    'exception: shorten the list')
        return ''
