# Builds of QEMU that look for mistakes at run time, with sanitizers, apart
# from the ordinary build, of which they use the source tree.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import shutil
import subprocess
from pathlib import Path

from common import Failure, ROOT

SANITIZERS = ['--enable-asan', '--enable-ubsan']
# Leaks of QEMU or of libraries, not of ours; the file says why
SUPPRESSIONS = ROOT / 'tests/leaks-elsewhere'


def configured_with(directory: Path) -> list[str]:
    """The arguments that QEMU was configured with in @directory."""
    try:
        return (directory / 'qemu/configured-with').read_text().splitlines()
    except FileNotFoundError:
        return []


def make(build: Path, directory: Path, arguments: list[str],
         targets: list[str]) -> None:
    """
    Build @targets of the source tree of @build in @directory, configured with
    @arguments.
    """
    if configured_with(directory) != arguments:
        shutil.rmtree(directory / 'qemu', ignore_errors=True)
        (directory / 'qemu').mkdir(parents=True)
        _run(directory, f'{build}/qemu-src/configure', *arguments)
        (directory / 'qemu/configured-with').write_text(
            '\n'.join(arguments) + '\n')
    _link_firmware(directory / 'qemu', arguments)
    _run(directory, 'ninja', *targets)


def _link_firmware(qemu: Path, arguments: list[str]) -> None:
    """As the configure script does, which see."""
    for argument in arguments:
        name, _, value = argument.partition('=')
        if name == '--firmwarepath':
            for directory in value.split(':'):
                link = qemu / f'qemu-bundle{directory}'
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                link.symlink_to(directory)


def _run(directory: Path, *command: str) -> None:
    log = directory / 'build.log'
    with log.open('w') as output:
        result = subprocess.run(
            command, cwd=directory / 'qemu', check=False,
            stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, 'CCACHE_BASEDIR': str(directory.parent),
                 'CCACHE_NOHASHDIR': '1'})
    if result.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-20:])
        raise Failure(f'{os.path.basename(command[0])} failed; all it said '
                      f'is in {log}:\n{tail}')


def environment(reports: Path | None = None,
                leaks: bool = True) -> dict[str, str]:
    """
    Environment for programs with sanitizers.  With @reports, what these have
    to say goes to files in that directory, so that the output of a program is
    what it is without them, and a leak does not change its exit status.
    """
    options = {
        # QEMU may try to allocate what a damaged image asks for
        'ASAN': ['allocator_may_return_null=1', f'detect_leaks={leaks:d}'],
        'LSAN': [f'suppressions={SUPPRESSIONS}', 'print_suppressions=0'],
        'UBSAN': ['print_stacktrace=1'],
    }
    if leaks:
        # GLib has no frame pointers: the fast way ends in g_malloc0()
        options['ASAN'] += ['fast_unwind_on_malloc=0',
                            'malloc_context_size=12']
    if not reports:
        options['UBSAN'].append('halt_on_error=1')
    else:
        options['LSAN'].append('exitcode=0')
        for name, values in options.items():
            values.append(f'log_path={reports}/{name.lower()}')
    return {**os.environ, **{f'{name}_OPTIONS': ':'.join(values)
                             for name, values in options.items()}}
