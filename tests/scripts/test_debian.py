#!/usr/bin/env python3
#
# scripts/machine/debian.py finds Debian's mirrors among whatever apt sources a
# machine has, in both of apt's formats, and orders versions as Debian does.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import shutil
import tempfile
import unittest
from pathlib import Path

import support
# pylint: disable=wrong-import-order
from machine import debian

DEB822 = """
# the usual mirror
Types: deb deb-src
# an older one
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs:
 http://mirror.test/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.test/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """
deb cdrom:[Debian 12]/ bookworm main
# deb http://commented.test/debian bookworm main
deb http://vendor.test/apt bookworm stable
deb [arch=amd64 signed-by=/etc/apt/keyrings/v.gpg] http://v.test bookworm main
deb http://mirror.test/debian bookworm main contrib  # with a remark
deb-src\thttp://mirror.test/debian\tbookworm\tmain
deb http://mirror.test/security bookworm-security main
"""


class Parsing(unittest.TestCase):
    def test_deb822(self):
        key = '/usr/share/keyrings/debian-archive-keyring.gpg'
        uri = 'http://mirror.test/debian'
        self.assertEqual(debian.parse_deb822(DEB822), [
            debian.Entry('deb', uri, 'bookworm', key),
            debian.Entry('deb', uri, 'bookworm-updates', key),
            debian.Entry('deb-src', uri, 'bookworm', key),
            debian.Entry('deb-src', uri, 'bookworm-updates', key),
            debian.Entry('deb', 'http://mirror.test/security',
                         'bookworm-security', '')])

    def test_one_line(self):
        found = [(entry.kind, entry.uri, entry.suite, entry.signed_by)
                 for entry in debian.parse_one_line(ONE_LINE)]
        self.assertEqual(found[-4:], [
            ('deb', 'http://v.test', 'bookworm', '/etc/apt/keyrings/v.gpg'),
            ('deb', 'http://mirror.test/debian', 'bookworm', ''),
            ('deb-src', 'http://mirror.test/debian', 'bookworm', ''),
            ('deb', 'http://mirror.test/security', 'bookworm-security', '')])
        self.assertNotIn('http://commented.test/debian',
                         [uri for _, uri, _, _ in found])
        self.assertNotIn('http://vendor.test/apt',
                         [uri for _, uri, _, _ in found])

    def test_machine_entries_reads_both(self):
        with tempfile.TemporaryDirectory() as name:
            etc = Path(name)
            (etc / 'sources.list.d').mkdir()
            (etc / 'sources.list').write_text('deb http://a.test b main\n')
            (etc / 'sources.list.d/c.list').write_text(
                'deb http://c.test b main\n')
            (etc / 'sources.list.d/d.sources').write_text(DEB822)
            (etc / 'sources.list.d/e.sources.off').write_text(DEB822)
            uris = [entry.uri for entry in debian.machine_entries(etc)]
        self.assertEqual(uris[:2], ['http://a.test', 'http://c.test'])
        self.assertEqual(len(uris), 7)

    def test_machine_release(self):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / 'os-release'
            self.assertEqual(debian.machine_release(path), ('', ''))
            path.write_text('NAME="Debian GNU/Linux"\nID=debian\n'
                            'VERSION_CODENAME=trixie\n')
            self.assertEqual(debian.machine_release(path),
                             ('debian', 'trixie'))


class Mirrors(unittest.TestCase):
    def test_suites_of_both_formats(self):
        for entries in (debian.parse_deb822(DEB822),
                        debian.parse_one_line(ONE_LINE)):
            mirrors = debian.Mirrors(entries, 'bookworm')
            self.assertEqual(mirrors.uri('trixie'),
                             'http://mirror.test/debian')
            self.assertEqual(mirrors.uri('bookworm-backports'),
                             'http://mirror.test/debian')
            self.assertEqual(mirrors.uri('trixie-security'),
                             'http://mirror.test/security')

    def test_key_of_debian_comes_first(self):
        entries = (debian.parse_one_line('deb http://x.test bookworm main')
                   + debian.parse_deb822(DEB822))
        self.assertEqual(debian.Mirrors(entries, 'bookworm').uri('trixie'),
                         'http://mirror.test/debian')

    def test_nothing_that_serves_the_release(self):
        mirrors = debian.Mirrors(debian.parse_deb822(DEB822), 'trixie')
        self.assertIsNone(mirrors.uri('trixie'))


@unittest.skipUnless(shutil.which('dpkg'), 'dpkg is missing')
class Versions(unittest.TestCase):
    def test_highest_first(self):
        versions = ['1:10.0.2+ds-2', '1:10.0.13+ds-0+deb13u1',
                    '1:10.0.13~rc1', '1:10.0.9+ds-1']
        self.assertEqual(debian.highest_first(versions), [
            '1:10.0.13+ds-0+deb13u1', '1:10.0.13~rc1', '1:10.0.9+ds-1',
            '1:10.0.2+ds-2'])

    def test_at_least(self):
        self.assertTrue(debian.at_least('1.7.0-1~bpo12+1', '1.5.0'))
        self.assertFalse(debian.at_least('1.0.1-5', '1.5.0'))


if __name__ == '__main__':
    support.main()
