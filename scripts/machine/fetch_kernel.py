# Fetches Debian's kernel package for the guests of demo and tests and
# unpacks it in BUILD/kernel, with the links vmlinuz and modules that do not
# depend on its version.  It is never installed: this machine's boot stays as
# it is.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import re
import shutil
import subprocess
from pathlib import Path

from common import Unavailable
from machine.debian import Apt

METAPACKAGE = 'linux-image-amd64'


def kernel_package(apt: Apt) -> str:
    """The package of the release's own kernel."""
    depends = apt.run('apt-cache', 'depends', METAPACKAGE)
    match = re.search(r'Depends: (linux-image-\d\S+)', depends)
    if not match:
        raise Unavailable(f'{METAPACKAGE} names no kernel: demo and guest '
                          'tests need BUILD/kernel/vmlinuz and modules')
    return match[1]


def only(directory: Path, pattern: str) -> Path:
    """The one path in @directory that fits @pattern."""
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise Unavailable(f'the kernel package has no {pattern}')
    return found[0].relative_to(directory)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch and unpack the guests' kernel.")
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir
    kernel = build_dir / 'kernel'
    if (kernel / 'modules').exists():
        return
    partial = build_dir / 'kernel.partial'
    for path in (kernel, partial):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir(parents=True)
    apt = Apt(build_dir / 'apt')
    apt.use_own_release()
    package = kernel_package(apt)
    print(f'fetch-kernel: fetching {package}', flush=True)
    apt.run('apt-get', 'download', package, cwd=partial)
    archive = partial / only(partial, '*.deb')
    subprocess.run(['dpkg-deb', '-x', str(archive), str(partial)], check=True)
    archive.unlink()
    (partial / 'vmlinuz').symlink_to(only(partial, 'boot/vmlinuz-*'))
    modules = 'usr/lib/modules' if (partial / 'usr/lib/modules').is_dir() \
        else 'lib/modules'
    (partial / 'modules').symlink_to(only(partial, f'{modules}/*'))
    partial.rename(kernel)
