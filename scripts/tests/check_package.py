# Lets the packages that make-package has built take the place of Debian's, in a
# directory with the Debian that they are for, and tests them there.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import subprocess
from pathlib import Path

from common import Failure, ROOT, bases
from machine.debian import Apt
from machine.tree import install, make_once

# Of the distribution's, to begin and to end with
REPLACED = ['qemu-block-extra', 'qemu-system-common', 'qemu-system-x86',
            'qemu-utils']
PACKAGES = [*REPLACED, 'libvirt-clients', 'libvirt-daemon',
            'libvirt-daemon-driver-qemu', 'virtnbdbackup']


def make_machine(package: Path, suite: str, partial: Path) -> None:
    """The machine of a user, and Debian's packages to go back to."""
    apt = Apt(package.parent / 'apt')
    apt.use('deb', [suite])
    print(f'check-package: making a directory with libvirt and QEMU of {suite}',
          flush=True)
    install(apt, suite, PACKAGES, partial / 'system')
    (partial / 'debian').mkdir()
    apt.run('apt-get', 'download', *REPLACED, cwd=partial / 'debian')


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Install and test the packages of make-package.')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    package = parser.parse_args().build_dir.resolve() / 'package'
    if not any(package.glob('*.deb')):
        raise Failure(f'{package} has no packages: "make package" builds them')
    machine = package / 'machine'
    make_once(machine, 'scripts/check-package',
              lambda partial: make_machine(package, bases()[0].suite, partial))
    return subprocess.run(
        [ROOT / 'scripts/machine/room.sh', machine / 'system', '', package,
         ROOT, '--', ROOT / 'tests/clients/package.sh', package,
         machine / 'debian'], check=False).returncode
