#!/usr/bin/env python3
#
# scripts/check-upstream takes for explained what an unpatched QEMU does and
# what the list of exceptions says, and nothing else.
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
from tests import check_upstream as upstream
Outcome = upstream.Outcome

STOCK = [Outcome('001', 'pass'), Outcome('002', 'pass'),
         Outcome('003', 'fail', why='a message differs'),
         Outcome('004', 'notrun', why='no ssh'),
         Outcome('005', 'pass'), Outcome('006', 'pass')]
EXCEPTIONS = ('002: reads L2 tables\n005 endless: waits for ever\n'
              '006 plain=top: becomes an overlay\n')


class Compare(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix='rw-backing-')
        self.addCleanup(holder.cleanup)
        place = Path(holder.name)
        patch = mock.patch.object(upstream, 'BASELINE', place)
        patch.start()
        self.addCleanup(patch.stop)
        upstream.write(place / 'stock.tsv', STOCK, 'QEMU 10\nof today')
        upstream.write(place / 'data-file.tsv', STOCK[:3], 'QEMU 10')
        (place / 'list').write_text(EXCEPTIONS)
        self.plain = upstream.Comparison(
            upstream.Suite('plain', ['-raw'], 'stock'))
        self.shells = upstream.Comparison(
            upstream.Suite('shells', ['-raw'], 'stock', place / 'list'))

    def report(self, comparison, *outcomes):
        """The problems, and what is said of the rest."""
        with contextlib.redirect_stdout(io.StringIO()) as output:
            problems = comparison.report([*outcomes])
        return problems, output.getvalue()

    def test_baseline_is_read_as_written(self):
        self.assertEqual([*upstream.read_baseline('stock').values()], STOCK)

    def test_all_as_before(self):
        self.assertEqual(self.report(self.plain, *STOCK), ([], ''))

    def test_regressions(self):
        for outcome in (Outcome('001', 'fail', why='output mismatch'),
                        Outcome('001', 'timeout', why='killed'),
                        Outcome('001', 'notrun', why='no qemu-nbd'),
                        Outcome('003', 'timeout', why='killed'),
                        Outcome('003', 'fail', crash='Aborted'),
                        Outcome('004', 'fail', why='output mismatch'),
                        Outcome('999', 'fail', why='output mismatch')):
            with self.subTest(outcome):
                problems, _ = self.report(self.plain, outcome)
                self.assertEqual(len(problems), 1)
                self.assertIn(f'plain {outcome.test}: ', problems[0])

    def test_improvements_are_told(self):
        problems, said = self.report(
            self.plain, Outcome('003', 'pass'), Outcome('004', 'pass'),
            Outcome('001', 'flaky', why='passes alone'))
        self.assertEqual(problems, [])
        self.assertIn('003: passes, unlike on an unpatched QEMU (fail: a '
                      'message differs)', said)
        self.assertIn('001: passes alone', said)

    def test_exceptions(self):
        self.assertEqual(self.report(
            self.shells, Outcome('002', 'fail'), Outcome('005', 'notrun'),
            Outcome('006', 'pass'))[0], [])
        problems, _ = self.report(self.shells, Outcome('002', 'pass'),
                                  Outcome('005', 'pass'),
                                  Outcome('006', 'fail'))
        self.assertEqual([text.split(':')[0] for text in problems],
                         ['shells 002', 'shells 005', 'shells 006'])
        self.assertIn('shorten', problems[0])

    def test_missing(self):
        self.assertEqual(self.plain.missing(STOCK), [])
        self.assertEqual(len(self.plain.missing(STOCK[1:])), 1)
        self.assertIn('001', self.plain.missing(STOCK[1:])[0])

    def test_lines(self):
        outcomes = [Outcome('001', 'pass'), Outcome('002', 'fail'),
                    Outcome('003', 'fail'), Outcome('004', 'notrun'),
                    Outcome('006', 'timeout')]
        self.assertEqual(
            self.shells.line(outcomes),
            'shells: 1 passed, 1 failed, 1 failed as listed, '
            '1 failed as on stock, 1 not run')
        self.assertEqual(
            self.plain.line(outcomes),
            'plain: 1 passed, 2 failed, 1 failed as on stock, 1 not run')
        self.assertIn('of the 2 tests that pass with an external data file '
                      'on stock, 1 pass', self.shells.data_file_line(outcomes))


if __name__ == '__main__':
    support.main()
