#!/usr/bin/env python3
#
# scripts/check counts each case of a test once, takes a crash for a failure,
# and lets no unexpected skip pass.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import io
import unittest
from pathlib import Path
from unittest import mock

import support
# pylint: disable=wrong-import-order
import common
from tests import check


def meson_says(result, stdout='', stderr=''):
    """What meson's log says of a test."""
    return {'name': 'a', 'result': result, 'stdout': stdout,
            'stderr': stderr, 'duration': 1.5}


class ReadResults(unittest.TestCase):
    def outcomes(self, *args):
        return [(result.name, result.outcome)
                for result in check.read_results(meson_says(*args))]

    def test_plain(self):
        self.assertEqual(self.outcomes('OK'), [('a', 'passed')])
        self.assertEqual(self.outcomes('FAIL'), [('a', 'failed')])
        self.assertEqual(self.outcomes('TIMEOUT'), [('a', 'failed')])
        self.assertEqual(self.outcomes('ERROR'), [('a', 'failed')])

    def test_plain_skip_tells_why(self):
        skip, = check.read_results(meson_says('SKIP', 'trying\nno network\n'))
        self.assertEqual((skip.outcome, skip.log), ('skipped', 'no network'))

    def test_cases(self):
        self.assertEqual(
            self.outcomes('FAIL', 'TAP version 13\n1..3\nok 1 /x/y\n'
                          'not ok 2 - z\n# why\nok 3 w # SKIP no fuse\n'),
            [('a: /x/y', 'passed'), ('a: z', 'failed'),
             ('a: w', 'skipped')])

    def test_reason_of_a_skipped_case(self):
        _, skip = check.read_results(
            meson_says('OK', '1..2\nok 1 x\nok 2 w # SKIP no fuse\n'))
        self.assertEqual(skip.log, 'no fuse')

    def test_crash_after_good_cases(self):
        self.assertEqual(self.outcomes('ERROR', '1..2\nok 1 x\n'),
                         [('a: x', 'passed'), ('a', 'failed')])

    def test_everything_skipped(self):
        self.assertEqual(self.outcomes('SKIP', '1..0 # SKIP no data\n'),
                         [('a', 'skipped')])


class Bases(unittest.TestCase):
    """The newest one that is there, or all of them, which are built then."""

    def prepare(self, outcomes, all_bases=False):
        """What is built, and what is reported, with bases 1 to 3."""
        known = [common.Base(name, f'{name}.', 'sid', role) for name, role in
                 (('1', 'default'), ('2', 'optional'), ('3', 'optional'))]
        with mock.patch.object(check, 'bases', lambda: known), \
                mock.patch.object(check, 'prepare', lambda base, *_:
                                  check.Result(base.name, outcomes[base.name],
                                               '')):
            builds, results = check.prepare_bases(Path('build'), all_bases)
        return ([str(build) for build in builds],
                [result.name for result in results])

    def test_newest(self):
        self.assertEqual(self.prepare({'3': 'passed'}), ([], ['3']))

    def test_newest_is_not_there(self):
        self.assertEqual(self.prepare({'3': 'skipped', '2': 'passed'}),
                         ([], ['3', '2']))
        self.assertEqual(self.prepare({'3': 'skipped', '2': 'skipped'}),
                         ([], ['3', '2']))

    def test_newest_fails(self):
        self.assertEqual(self.prepare({'3': 'failed'}), ([], ['3']))

    def test_all(self):
        self.assertEqual(self.prepare({'3': 'failed', '2': 'passed'}, True),
                         (['build-2'], ['3', '2']))


class Report(unittest.TestCase):
    def report(self, *results):
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            status = check.report([check.Result(*result)
                                   for result in results])
        return status, output.getvalue()

    def test_all_passed(self):
        status, output = self.report(('a', 'passed', ''), ('b', 'passed', ''))
        self.assertEqual(status, 0)
        self.assertEqual(output.splitlines()[-1],
                         '2 passed, 0 failed, 0 skipped')

    def test_failure_is_shown_before_the_last_line(self):
        status, output = self.report(('a', 'passed', ''),
                                     ('b', 'failed', 'it broke'))
        self.assertEqual(status, 1)
        self.assertIn('FAILED: b\nit broke\n', output)
        self.assertEqual(output.splitlines()[-1],
                         '1 passed, 1 failed, 0 skipped')

    def test_unexpected_skip_fails(self):
        status, output = self.report(('a', 'passed', ''),
                                     ('b', 'skipped', 'no tool'))
        self.assertEqual(status, 1)
        self.assertIn('skipped, unexpectedly: b: no tool', output)

    def test_expected_skip_passes(self):
        status, output = self.report(('a', 'passed', ''),
                                     ('base-10.2', 'skipped', 'no network'))
        self.assertEqual(status, 0)
        self.assertIn('skipped: base-10.2: no network', output)

    def test_nothing_run_fails(self):
        self.assertEqual(self.report()[0], 1)


if __name__ == '__main__':
    support.main()
