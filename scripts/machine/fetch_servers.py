# Unpacks the servers and clients that tests use, and that this machine lacks:
# Debian's packages of them would start services if they were installed.  Tests
# start from BUILD/servers what disks are on, and what wants to be installed in a
# room that has BUILD/room, and end it.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import shutil
from pathlib import Path

from machine.debian import Apt, is_debian
from machine.install_packages import missing

# Groups of packages.list, and directories
GROUPS = {'unpack': 'servers', 'room': 'room'}
# Which packages there are
LIST = '.packages'


def fetch(build_dir: Path, directory: Path, packages: list[str]) -> None:
    partial = directory.with_name(f'{directory.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    apt = Apt(build_dir / 'apt')
    apt.use_own_release()
    print(f'fetch-servers: unpacking {" ".join(packages)}', flush=True)
    apt.unpack(packages, partial)
    (partial / LIST).write_text('\n'.join(packages), encoding='ascii')
    shutil.rmtree(directory, ignore_errors=True)
    partial.rename(directory)


def is_fetched(directory: Path, packages: list[str]) -> bool:
    names = directory / LIST
    return names.exists() and \
        names.read_text(encoding='ascii').split() == packages


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Fetch and unpack servers and clients that tests use.')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir
    for group, name in GROUPS.items():
        packages = missing([group])[group]
        if not packages or is_fetched(build_dir / name, packages):
            continue
        if is_debian():
            fetch(build_dir, build_dir / name, packages)
        else:
            print('fetch-servers: tests that need one of these are skipped: '
                  f'{" ".join(packages)}')
