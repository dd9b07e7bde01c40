# Makes BUILD/libvirt, a directory with the libvirt of the Debian release that the
# default base is from, for tests with a libvirt that the machine's own Debian
# may not have.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
from pathlib import Path

from common import bases
from machine.debian import Apt
from machine.tree import install, make_once

PACKAGES = ['libvirt-daemon', 'libvirt-daemon-driver-qemu']


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch the libvirt of the default base's Debian.")
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir.resolve()
    suite = bases()[0].suite

    def make(partial: Path) -> None:
        apt = Apt(build_dir / 'apt')
        apt.use('deb', [suite])
        print(f'fetch-libvirt: making a directory with libvirt of {suite}',
              flush=True)
        install(apt, suite, PACKAGES, partial)

    make_once(build_dir / 'libvirt', 'scripts/fetch-libvirt', make)
