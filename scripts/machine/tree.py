# Directories with a Debian of their own, which nothing of this machine changes
# for.  Packages come as configure's do.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

from common import Failure
from machine.debian import Apt


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


def install(apt: Apt, suite: str, packages: list[str], tree: Path) -> None:
    """A minimal Debian with @packages; apt has to use @suite."""
    run('mmdebstrap', '--quiet', '--mode=root', '--variant=minbase',
        f'--include={",".join(packages)}', suite, tree,
        apt.directory / f'sources.list.d/deb-{suite}.sources')


def make_once(directory: Path, script: str,
              make: Callable[[Path], None]) -> None:
    """
    Let @make fill a directory that becomes @directory, unless there is one; it
    needs root, to run @script.
    """
    if directory.exists():
        return
    if os.geteuid():
        raise Failure('only root can install Debian in a directory: run '
                      f'"sudo {script} {directory.parent}"')
    partial = directory.with_name(f'{directory.name}.partial')
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    partial.rename(directory)
