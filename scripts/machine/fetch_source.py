# Fetches a base's QEMU as Debian's source package, which apt verifies by the
# archive's signature, and leaves BUILD/dl/source.dsc as a link to it.  Takes
# the highest version of the suite that is one of the base; a package that is
# there already is kept.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
from pathlib import Path

from common import Base, Unavailable, find_base
from machine.debian import Apt


def say(text: str) -> None:
    print(f'fetch-source: {text}', flush=True)


def fetch(base: Base, apt: Apt, directory: Path) -> str:
    """Fetch the source package into @directory; return the .dsc's name."""
    expired = base.role != 'default'
    if expired:
        say(f'the lists of {base.suite} are taken even past their date, for '
            'this base is only tested; their signature is checked')
    suites = [base.suite]
    if apt.mirrors.uri(f'{base.suite}-security') and not expired:
        suites.append(f'{base.suite}-security')
    apt.use('deb-src', suites, expired)
    versions = [version for version in apt.versions('qemu', 'deb-src')
                if version.partition(':')[2].startswith(base.versions)]
    if not versions:
        raise Unavailable(f'{" and ".join(suites)} have no qemu '
                          f'{base.versions}x: give --qemu-src=DIR|TARBALL|DSC')
    directory.mkdir(parents=True, exist_ok=True)
    for version in versions:
        say(f'fetching qemu {version}')
        try:
            apt.run('apt-get', 'source', '--download-only', '--only-source',
                    f'qemu={version}', cwd=directory)
            return f'qemu_{version.partition(":")[2]}.dsc'
        except Unavailable as failure:
            last = failure
    raise last


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Fetch a base's QEMU as Debian's source package.")
    parser.add_argument('--base', metavar='NAME',
                        help='a base of base.conf (default: the first)')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    args = parser.parse_args()
    directory = args.build_dir / 'dl'
    link = directory / 'source.dsc'
    if not link.exists():
        name = fetch(find_base(args.base), Apt(args.build_dir / 'apt'),
                     directory)
        link.unlink(missing_ok=True)
        link.symlink_to(name)
