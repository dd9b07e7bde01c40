# Builds Debian packages of QEMU with the series, BUILD/package/*.deb: Debian's own
# packaging of the default base, with the series among its patches, built in a
# directory with that Debian.  They take the place of Debian's packages of the
# same names, which is all of QEMU for x86.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import re
import shutil
import subprocess
from pathlib import Path

from common import Base, Failure, ROOT, bases
from machine.debian import Apt
from machine.tree import install, make_once, run
from series.export import export
from series.gittree import GitTree
from series.patches import Series

SUFFIX = '+rwbacking1'
# "qemu-system" is empty, but Debian's rules go by it
PACKAGES = ['qemu-block-extra', 'qemu-guest-agent', 'qemu-system',
            'qemu-system-common', 'qemu-system-gui', 'qemu-system-modules-opengl',
            'qemu-system-modules-spice', 'qemu-system-x86', 'qemu-utils']
ROOM = ROOT / 'scripts/machine/room.sh'


def say(text: str) -> None:
    print(f'make-package: {text}', flush=True)


def build_dependencies(apt: Apt, source: Path) -> list[str]:
    """All packages of a Debian that can build @source, as apt finds them."""
    plan = apt.run('apt-get', '--simulate', '--no-install-recommends',
                   '-o', 'Dir::State::status=/dev/null', '--arch-only',
                   'build-dep', str(source))
    return re.findall(r'^Inst (\S+)', plan, re.MULTILINE)


def make_system(base: Base, build_dir: Path, source: Path,
                partial: Path) -> None:
    apt = Apt(build_dir / 'apt')
    apt.use('deb', [base.suite])
    say(f'making a directory with what building takes on {base.suite}')
    install(apt, base.suite, build_dependencies(apt, source), partial)


def add_series(mails: list[Path], directory: Path) -> None:
    """Append the series to Debian's patches, but its cover letter."""
    patches = directory / 'debian/patches'
    (patches / 'rw-backing').mkdir()
    with open(patches / 'series', 'a', encoding='ascii') as file:
        for mail in mails[1:]:
            shutil.copy(mail, patches / 'rw-backing')
            file.write(f'rw-backing/{mail.name}\n')


def add_version(author: str, directory: Path) -> str:
    """The package gets a version of its own, as of Debian's date."""
    path = directory / 'debian/changelog'
    text = path.read_text('utf-8')
    head = re.match(r'(\S+) \(([^)]+)\) (\S+); (.+)\n', text)
    date = re.search(r'^ -- .* <.*>  (.+)$', text, re.MULTILINE)
    if not head or not date:
        raise Failure(f'{path} begins with no entry')
    version = head[2] + SUFFIX
    path.write_text(f'{head[1]} ({version}) UNRELEASED; {head[4]}\n\n'
                    '  * Persistent dirty bitmaps for disks of any format '
                    '(RW backing).\n\n'
                    f' -- {author}  {date[1]}\n\n{text}', 'utf-8')
    return version


def unpack(build_dir: Path, source: Path, work: Path) -> Path:
    """Debian's source with the series, in @work; returns its directory."""
    series = Series(ROOT)
    directory = work / 'qemu'
    run('dpkg-source', '--no-copy', '-x', source, directory)
    mails = export(series, GitTree(build_dir / 'qemu-src'), work / 'mails',
                   None)
    add_series(mails, directory)
    version = add_version(series.load()[0].author, directory)
    say(f'building qemu {version}; what it says is in {work}/log')
    return directory


def compile_packages(system: Path, work: Path, directory: Path) -> None:
    control = (directory / 'debian/control').read_text('utf-8')
    others = set(re.findall(r'^Package: (\S+)', control, re.MULTILINE))
    others -= set(PACKAGES)
    environment = {
        **os.environ,
        'DEB_BUILD_OPTIONS': f'nocheck noautodbgsym parallel={os.cpu_count()}',
        'DEB_BUILD_PROFILES': 'nocheck',
        'DH_OPTIONS': ' '.join(f'-N{name}' for name in sorted(others)),
        'MAKEFLAGS': 'system-packages=x86',
        'QEMU_CONFIGURE_OPTIONS':
            '--target-list=i386-softmmu,x86_64-softmmu',
        'LC_ALL': 'C.UTF-8', 'HOME': '/root',
        'PATH': '/usr/sbin:/usr/bin:/sbin:/bin'}
    command = 'cd "$1" && dpkg-buildpackage --build=any --no-sign'
    with open(work / 'log', 'wb') as log:
        result = subprocess.run(
            [ROOM, system, '', work, '--', 'bash', '-c', command, 'bash',
             directory], check=False, stdin=subprocess.DEVNULL, stdout=log,
            stderr=subprocess.STDOUT, env=environment)
    if result.returncode:
        end = (work / 'log').read_text('utf-8', 'replace').splitlines()[-20:]
        raise Failure('\n'.join(end) + f'\n{work}/log has all of it')


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Build Debian packages of QEMU with the series.')
    parser.add_argument('build_dir', metavar='BUILD', type=Path)
    build_dir = parser.parse_args().build_dir.resolve()
    base = bases()[0]
    source = build_dir / 'dl/source.dsc'
    if not source.exists():
        raise Failure(f'{source} is missing: "scripts/fetch-source '
                      f'{build_dir}" fetches it')
    source = source.resolve()
    package = build_dir / 'package'
    system = package / 'system'
    make_once(system, 'scripts/make-package',
              lambda partial: make_system(base, build_dir, source, partial))

    work = package / 'work'
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    directory = unpack(build_dir, source, work)
    compile_packages(system, work, directory)
    for old in package.glob('*.deb'):
        old.unlink()
    for name in PACKAGES:
        for deb in work.glob(f'{name}_*.deb'):
            if name != 'qemu-system':
                deb.rename(package / deb.name)
                print(package / deb.name)
    shutil.rmtree(directory)
