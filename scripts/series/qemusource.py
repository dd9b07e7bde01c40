# QEMU's source as it comes: a directory, a tarball or a Debian source
# package (.dsc).  Says which version it is, and unpacks it.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from common import Base, Failure

# What is not source: Debian's record of its patches, a clone's history, and
# the directory that QEMU's documentation builds in
_NOT_SOURCE = ('.pc', '.git', 'build')


def identify(source: Path) -> str:
    """A name for @source that changes when its contents do."""
    result = hashlib.sha256()
    if source.is_file():
        with source.open('rb') as stream:
            while block := stream.read(1 << 20):
                result.update(block)
    elif source.is_dir():
        for place, directories, files in os.walk(source):
            if place == str(source):
                directories[:] = set(directories).difference(_NOT_SOURCE)
            directories.sort()
            for name in sorted(files):
                info = os.lstat(os.path.join(place, name))
                result.update(f'{place}/{name} {info.st_size} '
                              f'{info.st_mtime_ns}\n'.encode())
    else:
        raise Failure(f'{source}: no such file or directory; QEMU\'s source '
                      'may be a directory, a tarball or a .dsc')
    return result.hexdigest()


def unpack(source: Path, directory: Path, base: Base) -> str:
    """
    Unpack @source into @directory, which is made, and return the version of
    QEMU, which must be one of @base.
    """
    if source.is_dir():
        if not (source / 'VERSION').is_file():
            raise Failure(f'{source} has no file VERSION: it is not the top '
                          'of QEMU\'s source')
        shutil.copytree(source, directory, symlinks=True, ignore=lambda at, _:
                        _NOT_SOURCE if at == str(source) else ())
    elif source.suffix == '.dsc':
        _run(source, 'dpkg-source', '--no-copy', '-x', str(source),
             str(directory))
        shutil.rmtree(directory / '.pc', ignore_errors=True)
    else:
        directory.mkdir()
        _run(source, 'tar', '-xf', str(source), '-C', str(directory),
             '--strip-components=1')
    return _version(source, directory, base)


def _version(source: Path, directory: Path, base: Base) -> str:
    try:
        version = (directory / 'VERSION').read_text().strip()
    except FileNotFoundError:
        raise Failure(f'{source} is not QEMU\'s source: it has no file '
                      'VERSION') from None
    if not version.startswith(base.versions):
        raise Failure(f'{source} is QEMU {version}, and base {base.name} is '
                      f'{base.versions}x: give --base=NAME, with a name from '
                      'base.conf, or another source')
    return version


def _run(source: Path, *command: str) -> None:
    try:
        subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE,
                       stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    except FileNotFoundError:
        raise Failure(f'{command[0]} is needed to unpack {source}: install '
                      'it (Debian: dpkg-dev, tar)') from None
    except subprocess.CalledProcessError as error:
        raise Failure(f'{source} cannot be unpacked; {command[0]} says:\n'
                      f'{error.stdout.strip()}\nRemedy: remove it and fetch '
                      'it again') from None
