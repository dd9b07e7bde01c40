#!/usr/bin/env python3
#
# scripts/check-sanitizers fails a test for what a sanitizer reports, and tries
# again one that hangs, once, and none that does anything else.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import io
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import support
# pylint: disable=wrong-import-order
from tests import check_sanitizers
from tests.iotest import Outcome

PASS = Outcome('a', 'pass')
HANGS = Outcome('a', 'timeout', 900, 'killed after 900 s')
FAILS = Outcome('a', 'fail', why='output mismatch', log='-1\n+2')
REPORT = ('==7==ERROR: AddressSanitizer: heap-use-after-free on address 0x1\n'
          '    #0 0x1 in f\n')


class Iotest(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix='rw-backing-')
        self.addCleanup(holder.cleanup)
        self.directory = Path(holder.name)

    def check(self, *outcomes, reports=()):
        """
        Run a test that has these @outcomes, and leaves these @reports, one
        after the other, all of them; the counts, and what is said.
        """
        left = list(reports)

        def run_iotest(*args, env, **kwargs):
            del args, kwargs
            text = left.pop(0) if left else ''
            if text:
                # "log_path=" is where a sanitizer writes
                path = env['ASAN_OPTIONS'].partition('log_path=')[2]
                Path(f'{path.split(":")[0]}.7').write_text(
                    text, encoding='ascii')
            return waiting.pop(0)

        waiting = list(outcomes)
        check = check_sanitizers.Check(self.directory)
        output = io.StringIO()
        with mock.patch.object(check_sanitizers, 'run_iotest', run_iotest), \
                contextlib.redirect_stdout(output):
            check.iotest('a')
        self.assertEqual(waiting, [])
        return check.counts, output.getvalue()

    def test_pass(self):
        counts, output = self.check(PASS)
        self.assertEqual(counts, {'passed': 1, 'failed': 0, 'skipped': 0})
        self.assertEqual(output, '')

    def test_report_of_a_test_that_passes(self):
        counts, output = self.check(PASS, reports=[REPORT])
        self.assertEqual(counts, {'passed': 0, 'failed': 1, 'skipped': 0})
        self.assertIn('heap-use-after-free', output)

    def test_failure_is_not_tried_again(self):
        counts, output = self.check(FAILS)
        self.assertEqual(counts, {'passed': 0, 'failed': 1, 'skipped': 0})
        self.assertIn('FAILED a: fail output mismatch\n-1\n+2', output)

    def test_hang_is_tried_once_more(self):
        counts, output = self.check(HANGS, PASS)
        self.assertEqual(counts, {'passed': 1, 'failed': 0, 'skipped': 0})
        self.assertIn('a: killed after 900 s, tried once more', output)

    def test_second_hang_is_a_failure(self):
        counts, output = self.check(HANGS, HANGS)
        self.assertEqual(counts, {'passed': 0, 'failed': 1, 'skipped': 0})
        self.assertIn('FAILED a: timeout', output)

    def test_hang_with_a_report_is_a_failure(self):
        counts, output = self.check(HANGS, reports=[REPORT])
        self.assertEqual(counts, {'passed': 0, 'failed': 1, 'skipped': 0})
        self.assertIn('heap-use-after-free', output)

    def test_failure_after_a_hang(self):
        counts, _ = self.check(HANGS, FAILS)
        self.assertEqual(counts, {'passed': 0, 'failed': 1, 'skipped': 0})

    def test_report_after_a_hang(self):
        counts, _ = self.check(HANGS, PASS, reports=['', REPORT])
        self.assertEqual(counts, {'passed': 0, 'failed': 1, 'skipped': 0})


if __name__ == '__main__':
    support.main()
