#!/usr/bin/env python3
#
# scripts/tests/iotest.py reads what check says of a test, and lets a list of
# exceptions excuse what it names and nothing else, least of all a crash.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import support
# pylint: disable=wrong-import-order
from common import Failure
from tests.iotest import (EXCEPTIONS, Exceptions, Outcome, read_outcome,
                          run_iotest)

HEADER = 'QEMU          -- "/b/qemu-system-x86_64"\n\n'
RUNNING = '165   ...        [19:24:16]              ...                  '
FAILED = HEADER + RUNNING + '''\
\r165   fail       [19:24:16] [19:24:17]   1.5s   (last: 0.4s)  failed, exit \
status 1
--- /s/165.out
+++ /t/165.out.bad
@@ -1,5 +1,41 @@
-..
+.EF
+======================================================================
+ERROR: test_reopen_rw (__main__.Bitmap.test_reopen_rw)
+----------------------------------------------------------------------
+FAIL: test_old (__main__.Other)
'''


class ReadOutcome(unittest.TestCase):
    def test_pass(self):
        outcome = read_outcome(
            '165', HEADER + RUNNING +
            '\n165   pass       [19:24:16] [19:24:17]   0.9s        \n')
        self.assertEqual((outcome.result, outcome.seconds, outcome.good),
                         ('pass', 0.9, True))

    def test_not_run(self):
        outcome = read_outcome(
            '165', RUNNING + '\n165   not run    [19:24:16] [19:24:17]   '
            '...    not suitable for this image format: qcow2\n')
        self.assertEqual((outcome.result, outcome.why, outcome.good),
                         ('notrun', 'not suitable for this image format: '
                          'qcow2', False))

    def test_failed_cases(self):
        outcome = read_outcome('165', FAILED)
        self.assertEqual((outcome.result, outcome.seconds, outcome.why),
                         ('fail', 1.5, 'failed, exit status 1'))
        self.assertEqual(outcome.cases,
                         ['Bitmap.test_reopen_rw', 'Other.test_old'])
        self.assertEqual(outcome.crash, '')

    def test_crash(self):
        for text in ('./common.rc: line 9: 99 Aborted    (core dumped) ( x',
                     'qemu-img: block.c:7: f: Assertion `x\' failed.',
                     'WARNING: qemu received signal 6; command: "x"'):
            self.assertTrue(read_outcome('165', f'{FAILED}+{text}\n').crash)
            self.assertFalse(read_outcome('165', f'{FAILED}-{text}\n').crash)

    def test_no_result(self):
        for log in ('', RUNNING,
                    '166   pass       [19:24:16] [19:24:17]   0.9s  \n'):
            self.assertEqual(read_outcome('165', log).result, 'fail')


class RunIotest(unittest.TestCase):
    """What a program in place of QEMU's check does."""

    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix='rw-backing-')
        self.addCleanup(holder.cleanup)
        self.build = Path(holder.name)
        (self.build / 'qemu/pyvenv/bin').mkdir(parents=True)
        (self.build / 'qemu/pyvenv/bin/python3').symlink_to('/bin/sh')
        self.check = self.build / 'qemu/tests/qemu-iotests/check'
        self.check.parent.mkdir(parents=True)
        self.scratch = self.build / 'scratch'

    def run_check(self, script, limit=60):
        self.check.write_text(script)
        with mock.patch('tests.iotest.LIMIT', limit):
            return run_iotest(self.build, '165', ['-raw'], self.scratch,
                              'a|b')

    def test_arguments_and_directory(self):
        outcome = self.run_check('echo "$@" "$PLAIN_IMAGES"; touch '
                                 '"$TEST_DIR/used"; echo '
                                 '"165  pass  [1:2] [1:3]  0.1s"')
        self.assertEqual((outcome.result, outcome.log.split('\n')[0]),
                         ('pass', '-raw 165 a|b'))
        self.assertFalse(self.scratch.exists())

    def test_failure_keeps_files(self):
        self.run_check('touch "$TEST_DIR/used"')
        self.assertTrue((self.scratch / 'used').exists())

    def test_time_limit(self):
        outcome = self.run_check('echo started; sleep 60', limit=1)
        self.assertEqual((outcome.result, outcome.log),
                         ('timeout', 'started\n'))

    def test_nothing_is_left_running(self):
        os.mkfifo(self.build / 'fifo')
        reader = os.open(self.build / 'fifo', os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reader)
        self.run_check(f'sleep 600 >{self.build}/fifo & echo started')
        os.set_blocking(reader, True)
        self.assertEqual(os.read(reader, 1), b'', 'not the end of file')


class Judge(unittest.TestCase):
    LIST = ('# why\n\n020: blkdebug: it has no data\n'
            '165 B.test_a C.*: no such thing\n'
            '165 B.test_c: another thing\n'
            '108 endless: looks for ever\n'
            '030 plain=^top: becomes an overlay\n'
            '165 plain=^top: becomes an overlay\n')

    def setUp(self):
        with tempfile.NamedTemporaryFile('w') as file:
            file.write(self.LIST)
            file.flush()
            self.exceptions = Exceptions(Path(file.name))

    def judge(self, test, result, *cases, crash=''):
        return self.exceptions.judge(Outcome(test, result, cases=[*cases],
                                             why='why', crash=crash))

    def test_not_listed(self):
        self.assertEqual(self.judge('001', 'pass'), '')
        self.assertEqual(self.judge('001', 'flaky'), '')
        for result in ('fail', 'timeout'):
            self.assertIn(result, self.judge('001', result))

    def test_whole(self):
        self.assertEqual(self.judge('020', 'fail'), '')
        self.assertIn('timeout', self.judge('020', 'timeout'))
        self.assertIn('shorten', self.judge('020', 'pass'))

    def test_cases(self):
        self.assertEqual(self.judge('165', 'fail', 'B.test_a', 'B.test_c',
                                    'C.test_x'), '')
        self.assertIn('shorten', self.judge('165', 'pass'))
        self.assertIn('C.* passes', self.judge('165', 'fail', 'B.test_a',
                                               'B.test_c'))
        self.assertIn('B.test_b', self.judge(
            '165', 'fail', 'B.test_a', 'B.test_b', 'B.test_c', 'C.test_x'))
        # A failure that is not in a case is not one of the listed cases
        self.assertIn('fail', self.judge('165', 'fail'))
        self.assertIn('timeout', self.judge('165', 'timeout'))

    def test_crash_is_never_excused(self):
        self.assertIn('Aborted', self.judge('020', 'fail', crash='Aborted'))
        self.assertIn('Aborted', self.judge('165', 'fail', 'B.test_a',
                                            'B.test_c', 'C.test_x',
                                            crash='Aborted'))

    def test_plain(self):
        self.assertEqual(self.exceptions.plain, {'030': '^top',
                                                 '165': '^top'})
        self.assertEqual(self.judge('030', 'pass'), '')
        self.assertIn('fail', self.judge('030', 'fail'))

    def test_every_listed_test_is_known(self):
        self.assertEqual(self.exceptions.tests(), {'020', '165', '108'})
        self.assertEqual([*self.exceptions.endless], ['108'])

    def test_malformed(self):
        for text in ('020\n', '020:\n', '020: a\n020: b\n',
                     '020 A.b: a\n020: b\n', '020: a\n020 A.b: b\n',
                     '020 endless: a\n020: b\n',
                     '020 plain=a: b\n020 plain=c: d\n'):
            with self.subTest(text), tempfile.NamedTemporaryFile('w') as file:
                file.write(text)
                file.flush()
                with self.assertRaises(Failure):
                    Exceptions(Path(file.name))

    def test_our_list(self):
        self.assertTrue(Exceptions(EXCEPTIONS).tests())


if __name__ == '__main__':
    support.main()
