# Makes BUILD/libvirt, a directory with the libvirt of the newest Debian release
# that base.conf names, for tests with a libvirt that the machine's own Debian
# may not have.  Packages come as configure's do, and nothing of this machine
# changes.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import shutil
from pathlib import Path

from common import Failure, bases
from machine.debian import Apt
from machine.fetch_guest import run

PACKAGES = ['libvirt-daemon', 'libvirt-daemon-driver-qemu']


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch the libvirt of the default base's Debian.")
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir.resolve()
    libvirt = build_dir / 'libvirt'
    if libvirt.exists():
        return
    if os.geteuid():
        raise Failure('only root can install Debian in a directory: run '
                      f'"sudo scripts/fetch-libvirt {build_dir}"')
    partial = build_dir / 'libvirt.partial'
    shutil.rmtree(partial, ignore_errors=True)
    suite = bases()[0].suite
    apt = Apt(build_dir / 'apt')
    apt.use('deb', [suite])
    print(f'fetch-libvirt: making a directory with libvirt of {suite}',
          flush=True)
    run('mmdebstrap', '--quiet', '--mode=root', '--variant=minbase',
        f'--include={",".join(PACKAGES)}', suite, partial,
        apt.directory / f'sources.list.d/deb-{suite}.sources')
    partial.rename(libvirt)
