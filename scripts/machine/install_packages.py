# Sees to the packages of packages.list: installs what is missing, as root or
# through sudo, or with --no-install only lists it.  Takes meson from the
# release's backports where the release's own is too old.  On systems other
# than Debian it looks for programs, and lists what it does not find.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from common import Failure, minimum_meson
from machine.debian import Apt, at_least, is_debian, machine_release

PACKAGES = Path(__file__).with_name('packages.list')
# Groups of packages that are only wanted where an option says so
OPTIONAL = ['fuzz', 'bench', 'guest']


def say(text: str) -> None:
    print(f'install-packages: {text}', flush=True)


def wanted() -> list[tuple[str, str, str]]:
    """Group, package and program of each line of packages.list."""
    text = PACKAGES.read_text(encoding='ascii')
    found = []
    for line in text.splitlines():
        if line and not line.startswith('#'):
            group, package, program = line.split()
            found.append((group, package, program))
    return found


def installed() -> dict[str, str]:
    """The version of every package that the machine has."""
    listing = subprocess.run(
        ['dpkg-query', '-W', '-f',
         '${db:Status-Status} ${Package} ${Version}\n'],
        check=True, capture_output=True, text=True).stdout
    return dict(line.split()[1:] for line in listing.splitlines()
                if line.startswith('installed '))


def missing(groups: list[str]) -> dict[str, list[str]]:
    """The packages of @groups that are not here, by group."""
    if is_debian():
        here = installed()
        found = set(here)
        has_meson = at_least(here.get('meson', '0'), minimum_meson())
    else:
        found = {package for _, package, program in wanted()
                 if program == '-' or shutil.which(program)}
        has_meson = bool(shutil.which('meson'))
    lacking: dict[str, list[str]] = {group: [] for group in groups}
    for group, package, _ in wanted():
        if group in groups and package not in found:
            lacking[group].append(package)
    if 'build' in groups and not has_meson:
        lacking['build'].append('meson')
    return lacking


def meson_version(apt: Apt) -> str:
    """A version of meson to install that is new enough."""
    suites = [apt.mirrors.codename, f'{apt.mirrors.codename}-backports']
    for suite in suites:
        if suite != suites[0]:
            say(f'meson is taken from {suite}: {suites[0]} has none that is '
                f'{minimum_meson()} or later')
            apt.use('deb', [suite], besides=True)
        for version in apt.versions('meson', 'deb'):
            if at_least(version, minimum_meson()):
                return version
    raise Failure(f'neither {suites[0]} nor {suites[1]} has meson '
                  f'{minimum_meson()} or later: install it by hand')


def as_root(packages: list[str]) -> list[str]:
    """What to put before a command that only root may run."""
    if os.geteuid() == 0:
        return []
    if shutil.which('sudo'):
        return ['sudo', '--']
    raise Failure('installing packages needs root, and there is no sudo: run '
                  f'"apt-get install {" ".join(packages)}" as root, then '
                  'configure again')


def install(packages: list[str], build_dir: Path) -> None:
    """Install @packages, saying so."""
    root = as_root(packages)
    apt = Apt(build_dir / 'apt')
    say('reading package lists')
    apt.use_own_release()
    packages = [f'meson={meson_version(apt)}' if package == 'meson'
                else package for package in packages]
    say(f'installing {" ".join(packages)}{" through sudo" if root else ""}')
    if subprocess.run(
            [*root, 'env', f'APT_CONFIG={apt.directory}/apt.conf',
             'DEBIAN_FRONTEND=noninteractive', 'apt-get', 'install', '--yes',
             '--quiet', '--no-install-recommends', *packages],
            check=False, stdin=subprocess.DEVNULL).returncode:
        raise Failure(f'apt could not install {" ".join(packages)}: mend '
                      'what it says above, and run configure again')


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Install the packages that a build and its tests need.')
    parser.add_argument('--no-install', action='store_true',
                        help='only list what is missing')
    for group in OPTIONAL:
        parser.add_argument(f'--{group}', action='store_true',
                            help=f'also see to the packages of the group "{group}"')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    args = parser.parse_args()
    groups = ['build', 'test'] + [group for group in OPTIONAL
                                  if getattr(args, group)]
    lacking = missing(groups)
    if not any(lacking.values()):
        return
    if args.no_install or not is_debian():
        if not is_debian():
            say(f'this is {machine_release()[0] or "not Debian"}: packages '
                "are given by Debian's names, find your system's")
        for group, packages in lacking.items():
            if packages:
                say(f'missing for the {group}: {" ".join(packages)}')
        if lacking['build']:
            raise Failure('install what the build needs, then run configure '
                          'again')
        return
    install([package for group in groups for package in lacking[group]],
            args.build_dir)
