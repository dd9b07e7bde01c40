# Makes a disk with a small Debian of this machine's release, for tests with a
# guest that is more than a kernel: BUILD/guest/disk.raw, an ext4 file system.
# The packages come as configure's do, and nothing of this machine changes.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from common import Failure
from machine.debian import Apt

SIZE = '1G'
# What a minimal Debian lacks that boots by itself
PACKAGES = ['systemd-sysv']
# Not needed by a guest
UNUSED = ['usr/share/doc', 'usr/share/locale', 'usr/share/man', 'var/cache/apt',
          'var/lib/apt/lists']


def run(*command: str | Path) -> None:
    """Run @command; what it says is only of interest if it fails."""
    try:
        result = subprocess.run(
            command, check=False, text=True, errors='replace',
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'PATH': f'{os.environ["PATH"]}:/usr/sbin:/sbin'})
    except FileNotFoundError as exc:
        raise Failure(f'{command[0]} is missing: install the packages of the '
                      'groups "test" and "guest" of '
                      'scripts/machine/packages.list') from exc
    if result.returncode:
        raise Failure(f'{command[0]} failed:\n{result.stdout}')


def make_disk(apt: Apt, partial: Path) -> None:
    """Debian in a directory, and that in a disk."""
    tree = partial / 'tree'
    run('mmdebstrap', '--quiet', '--mode=root', '--variant=minbase',
        f'--include={",".join(PACKAGES)}',
        apt.mirrors.codename, tree,
        apt.directory / f'sources.list.d/deb-{apt.mirrors.codename}.sources')
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
    guest = build_dir / 'guest'
    if guest.exists():
        return
    if os.geteuid():
        raise Failure('only root can install Debian in a directory: run '
                      f'"sudo scripts/fetch-guest {build_dir}"')
    partial = build_dir / 'guest.partial'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    apt = Apt(build_dir / 'apt')
    apt.use_own_release()
    print(f'fetch-guest: making a disk with {apt.mirrors.codename}',
          flush=True)
    make_disk(apt, partial)
    partial.rename(guest)
