#!/usr/bin/env python3
#
# scripts/machine/debian.py finds Debian's mirrors among whatever apt sources a
# machine has, in both of apt's formats, and orders versions as Debian does.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import support
# pylint: disable=wrong-import-order
from common import Unavailable
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


FAKE_APT_GET = """#!/bin/sh
case "$*" in
*fails*) echo 'E: Unable to locate package fails' >&2; exit 100 ;;
esac
for argument; do
    case $argument in
    Dir::Cache::archives=*) cp "$DEB" "${argument#*=}/server.deb" ;;
    esac
done
"""


@unittest.skipUnless(debian.is_debian(), 'this is not Debian')
class Unpack(unittest.TestCase):
    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix='rw-backing-')
        self.addCleanup(holder.cleanup)
        place = Path(holder.name)
        package = place / 'package'
        (package / 'DEBIAN').mkdir(parents=True)
        (package / 'DEBIAN/control').write_text(
            'Package: server\nVersion: 1\nArchitecture: all\n'
            'Maintainer: A. Developer <dev@example.org>\nDescription: none\n')
        (package / 'DEBIAN/postinst').write_text(
            f'#!/bin/sh\ntouch {place}/started\n')
        (package / 'DEBIAN/postinst').chmod(0o755)
        (package / 'usr/sbin').mkdir(parents=True)
        (package / 'usr/sbin/serverd').write_text('serve\n')
        subprocess.run(['dpkg-deb', '--root-owner-group', '-b', package,
                        place / 'a.deb'], check=True, capture_output=True)
        (place / 'bin').mkdir()
        (place / 'bin/apt-get').write_text(FAKE_APT_GET)
        (place / 'bin/apt-get').chmod(0o755)
        self.place = place
        self.directory = place / 'servers'
        self.directory.mkdir()
        patch = mock.patch.dict(os.environ, {
            'DEB': str(place / 'a.deb'),
            'PATH': f'{place}/bin:{os.environ["PATH"]}'})
        patch.start()
        self.addCleanup(patch.stop)
        self.apt = debian.Apt(place / 'apt')

    def test_files_are_there_and_nothing_has_run(self):
        self.apt.unpack(['server'], self.directory)
        self.assertEqual(
            (self.directory / 'usr/sbin/serverd').read_text(), 'serve\n')
        self.assertEqual([path.name for path in self.directory.iterdir()],
                         ['usr'])
        self.assertFalse((self.place / 'started').exists())

    def test_package_that_cannot_be_had(self):
        with self.assertRaisesRegex(Unavailable, 'Unable to locate package'):
            self.apt.unpack(['fails'], self.directory)
        self.assertEqual(list(self.directory.iterdir()), [])


@unittest.skipUnless(debian.is_debian(), 'this is not Debian')
class Use(unittest.TestCase):
    """Packages of another release must not get on the machine."""

    def setUp(self):
        holder = tempfile.TemporaryDirectory(prefix='rw-backing-')
        self.addCleanup(holder.cleanup)
        self.apt = debian.Apt(Path(holder.name))
        self.apt.mirrors = debian.Mirrors(debian.parse_deb822(DEB822),
                                          'bookworm')
        patch = mock.patch.object(self.apt, 'run')
        patch.start()
        self.addCleanup(patch.stop)

    def suites(self):
        """What apt reads the lists of, from now on."""
        return {entry.suite for path in
                (self.apt.directory / 'sources.list.d').iterdir()
                for entry in debian.parse_deb822(path.read_text())}

    def test_only_what_was_asked_for_last(self):
        self.apt.use('deb', ['trixie'])
        self.assertEqual(self.suites(), {'trixie'})
        self.apt.use('deb-src', ['sid'])
        self.assertEqual(self.suites(), {'sid'})
        again = debian.Apt(self.apt.directory)
        again.mirrors = self.apt.mirrors
        with mock.patch.object(again, 'run'):
            again.use_own_release()
        self.assertEqual(self.suites(), {'bookworm', 'bookworm-updates',
                                         'bookworm-security'})

    def test_besides(self):
        self.apt.use('deb', ['bookworm'])
        self.apt.use('deb', ['bookworm-backports'], besides=True)
        self.assertEqual(self.suites(), {'bookworm', 'bookworm-backports'})


if __name__ == '__main__':
    support.main()
