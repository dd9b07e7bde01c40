# Makes a disk with a small Debian of this machine's release, for tests with a
# guest that is more than a kernel: BUILD/guest/disk.raw, an ext4 file system.
# The packages come as configure's do, and nothing of this machine changes.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import shutil
from pathlib import Path

from machine.debian import Apt
from machine.tree import install, make_once, run

SIZE = '1G'
# What a minimal Debian lacks that boots by itself
PACKAGES = ['systemd-sysv']
# Not needed by a guest
UNUSED = ['usr/share/doc', 'usr/share/locale', 'usr/share/man', 'var/cache/apt',
          'var/lib/apt/lists']


def make_disk(apt: Apt, partial: Path) -> None:
    """Debian in a directory, and that in a disk."""
    tree = partial / 'tree'
    install(apt, apt.mirrors.codename, PACKAGES, tree)
    for path in UNUSED:
        shutil.rmtree(tree / path, ignore_errors=True)
    # It would be made at each boot otherwise
    (tree / 'etc/machine-id').write_text('0123456789abcdef' * 2 + '\n')
    run('mke2fs', '-q', '-t', 'ext4', '-d', tree, '-E',
        'root_owner=0:0,lazy_itable_init=0', partial / 'disk.raw', SIZE)
    shutil.rmtree(tree)


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Make a disk with a small Debian.')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir.resolve()

    def make(partial: Path) -> None:
        apt = Apt(build_dir / 'apt')
        apt.use_own_release()
        print(f'fetch-guest: making a disk with {apt.mirrors.codename}',
              flush=True)
        make_disk(apt, partial)

    make_once(build_dir / 'guest', 'scripts/fetch-guest', make)
