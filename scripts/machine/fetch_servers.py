# Unpacks in BUILD/servers the servers that tests have disks on, and that this
# machine lacks: Debian's packages of them would start services if they were
# installed.  Tests start them from there, and end them.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import shutil
from pathlib import Path

from machine.debian import Apt, is_debian
from machine.install_packages import missing


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Fetch and unpack the servers that tests have disks on.')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir
    servers = build_dir / 'servers'
    packages = missing(['unpack'])['unpack']
    if servers.exists() or not packages:
        return
    if not is_debian():
        print('fetch-servers: tests that need one of these are skipped: '
              f'{" ".join(packages)}')
        return
    partial = build_dir / 'servers.partial'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    apt = Apt(build_dir / 'apt')
    apt.use_own_release()
    print(f'fetch-servers: unpacking {" ".join(packages)}', flush=True)
    apt.unpack(packages, partial)
    partial.rename(servers)
