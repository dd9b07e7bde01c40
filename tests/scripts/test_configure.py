#!/usr/bin/env python3
#
# ./configure takes each step once, passes arguments on, and says in one
# message what is missing and what to do.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import shutil
from pathlib import Path

import support

QEMU_CONFIGURE = """#!/bin/sh
echo run >>../runs
printf '%s\\n' "$@"
for argument; do
    [ "$argument" != --broken ] || { echo ERROR: glib is missing; exit 1; }
done
"""


class Configure(support.Workshop):
    def setUp(self):
        super().setUp()
        self.write(self.source / 'configure', QEMU_CONFIGURE)
        (self.source / 'configure').chmod(0o755)
        self.build = self.repo / 'build'

    def configure(self, *args, status=0):
        return self.run_command('./configure', '--no-install', *args,
                                status=status)

    def from_source(self, *args, status=0):
        return self.configure(f'--qemu-src={self.source}', *args,
                              status=status)

    def runs(self):
        """How often QEMU's configure has run."""
        return (self.build / 'runs').read_text().count('run')

    def test_from_a_directory(self):
        self.assertIn('now: make\n', self.from_source())
        self.assertIn('first hook', self.in_tree('block/a.c'))
        self.assertIn('--target-list=x86_64-softmmu\n',
                      (self.build / 'configure.log').read_text())
        self.assertTrue((self.build / 'configured').exists())

    def test_each_step_once(self):
        self.from_source()
        self.from_source()
        self.assertEqual(self.runs(), 1)

    def test_further_arguments_go_through(self):
        self.from_source('--enable-debug')
        self.assertIn('--enable-debug\n',
                      (self.build / 'configure.log').read_text())
        self.from_source('--', '--enable-debug')
        self.assertEqual(self.runs(), 1)
        self.from_source()
        self.assertEqual(self.runs(), 2)

    def test_half_done_run_is_repaired(self):
        output = self.from_source('--broken', status=1)
        self.assertIn('ERROR: glib is missing', output)
        self.assertIn('build/configure.log', output)
        self.assertFalse((self.build / 'configured').exists())
        self.write(self.build / 'qemu/leftover', '')
        self.from_source()
        self.assertFalse((self.build / 'qemu/leftover').exists())

    def test_build_directory(self):
        output = self.run_command(
            self.repo / 'configure', '--no-install', '--build-dir=other',
            f'--qemu-src={self.source.name}', cwd=self.place)
        self.assertIn(f'make BUILD={self.place}/other', output)
        self.assertTrue((self.place / 'other/qemu-src/VERSION').exists())

    def test_build_directory_of_another_base(self):
        self.write(self.source / 'VERSION', '10.2.3\n')
        self.from_source('--base=10.2')
        self.assertTrue((self.repo / 'build-10.2/qemu-src').exists())
        self.assertFalse(self.build.exists())

    def test_unknown_base(self):
        self.assertIn('no base 9.9', self.configure('--base=9.9', status=1))

    def test_missing_source(self):
        output = self.configure('--qemu-src=/nowhere', status=1)
        self.assertIn('/nowhere: no such file or directory', output)

    def test_series_that_does_not_apply(self):
        self.replace(self.source / 'block/a.c', 'line 8\n', 'changed\n')
        self.assertIn('does not apply without fuzz',
                      self.from_source(status=1))
        self.assertFalse((self.build / 'qemu').exists())

    def test_missing_package_for_the_build(self):
        with (self.repo / 'scripts/machine/packages.list').open(
                'a') as stream:
            stream.write('build no-such-package no-such-program\n')
        output = self.from_source(status=1)
        self.assertIn('missing for the build: no-such-package', output)
        self.assertFalse(self.tree.exists())

    def test_missing_package_for_the_tests(self):
        with (self.repo / 'scripts/machine/packages.list').open(
                'a') as stream:
            stream.write('test no-such-package no-such-program\n')
        output = self.from_source()
        self.assertIn('missing for the test: no-such-package', output)
        self.assertTrue((self.build / 'configured').exists())

    def test_standard_input_may_be_closed(self):
        self.run_command('sh', '-c', 'exec "$@" <&-', 'sh', './configure',
                         '--no-install', f'--qemu-src={self.source}')

    def test_help(self):
        self.assertIn('--qemu-src=PATH', self.configure('--help'))
        self.assertFalse(self.build.exists())

    def test_firmware_links(self):
        """In the build tree, each firmware directory is where QEMU looks."""
        self.from_source()
        share = self.build / 'qemu/qemu-bundle/usr/share'
        self.assertEqual((share / 'seabios').readlink(),
                         Path('/usr/share/seabios'))
        shutil.rmtree(share)
        self.from_source()
        self.assertTrue((share / 'seabios').is_symlink())
        arguments = (self.build / 'qemu/configured-with').read_text()
        self.assertIn('--firmwarepath=/usr/share/qemu:/usr/share/seabios',
                      arguments)


if __name__ == '__main__':
    support.main()
