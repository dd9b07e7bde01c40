# Builds the fuzz targets with clang, libFuzzer and sanitizers, and lets them
# look for inputs that break a promise.  They start from seeds that they make
# themselves, and keep what they have found worth keeping for the next time.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import re
import shutil
import subprocess
from pathlib import Path

from common import Failure, ROOT
from tests.instrument import SANITIZERS, environment, make

# The files whose branches the fuzzers are to find
COVERAGE = 'src:*block/qcow2*\nfun:*\n'
PROGRAM = 'test-qcow2-rw-backing-fuzz-'
# Inputs beyond this only take time
MAX_LEN = {'codec': 2048, 'image': 16384}


def say(text: str) -> None:
    print(f'fuzz: {text}', flush=True)


def libfuzzer() -> str:
    """The library to link with, which has no main function of its own."""
    if shutil.which('clang'):
        path = subprocess.run(
            ['clang', '-print-file-name=libclang_rt.fuzzer_no_main-x86_64.a'],
            check=True, capture_output=True, text=True).stdout.strip()
        if Path(path).is_absolute():
            return path
    raise Failure('clang with its run time libraries is needed: install them '
                  '(Debian: apt-get install clang libclang-rt-dev llvm)')


def arguments(directory: Path) -> list[str]:
    """What to configure QEMU with."""
    coverage = directory / 'coverage'
    coverage.write_text(COVERAGE)
    cc = 'ccache clang' if shutil.which('ccache') else 'clang'
    cflags = ['-fsanitize=fuzzer-no-link',
              f'-fsanitize-coverage-allowlist={coverage}',
              '-DFUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION']
    return ['--python=/usr/bin/python3', f'--cc={cc}', '--cxx=clang++',
            '--target-list=x86_64-softmmu', '--without-default-features',
            '--enable-tools', '--enable-tcg', '--disable-docs',
            '--disable-download', '--disable-install-blobs',
            '--disable-werror', *SANITIZERS,
            f'--extra-cflags={" ".join(cflags)}',
            f'--extra-ldflags={libfuzzer()} -lstdc++']


class Fuzzer:
    """One fuzz target, running."""

    def __init__(self, name: str, directory: Path, seconds: int):
        self.name = name
        self.place = directory / name
        program = directory / 'qemu/tests/unit' / f'{PROGRAM}{name}'
        for sub in ('seeds', 'corpus', 'found'):
            (self.place / sub).mkdir(parents=True, exist_ok=True)
        self.log = self.place / 'log'
        self.log.unlink(missing_ok=True)
        subprocess.run([program, '--seeds', self.place / 'seeds'], check=True,
                       stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)
        self.program = program
        # To look for leaks after each input makes it three times as slow
        self.process = self._start(f'-max_total_time={seconds}', leaks=False)

    def _start(self, option: str, leaks: bool) -> subprocess.Popen[bytes]:
        """Run the target with @option of libFuzzer."""
        # A disk in a file is flushed often
        memory = {'TMPDIR': '/dev/shm'} if Path('/dev/shm').is_dir() else {}
        with self.log.open('a') as log:
            # Standard error has a line for each damaged image
            return subprocess.Popen(
                [self.program, 'corpus', 'seeds', '-close_fd_mask=3',
                 '-artifact_prefix=found/', f'-max_len={MAX_LEN[self.name]}',
                 '-timeout=60', '-rss_limit_mb=4096', '-print_final_stats=1',
                 f'-detect_leaks={leaks:d}', option],
                cwd=self.place, env=environment(leaks=leaks) | memory,
                stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT)

    def wait(self) -> bool:
        """Wait for the end and tell what came of it; whether all is well."""
        status = self.process.wait()
        if status == 0:
            # All inputs that were worth keeping once more, for leaks
            status = self._start('-runs=0', leaks=True).wait()
        log = self.log.read_text(errors='replace')
        runs = re.search(r'number_of_executed_units: (\d+)', log)
        branches = re.findall(r' cov: (\d+)', log)
        say(f'{self.name}: {runs[1] if runs else "?"} executions, '
            f'{branches[-1] if branches else "?"} branches')
        found = re.search(r'Test unit written to \./(\S+)|'
                          r'Test unit written to (\S+)', log)
        if status == 0:
            return True
        say(f'{self.name}: failed with status {status}, see {self.log}')
        if found:
            say('again with: '
                f'{self.program} {self.place / (found[1] or found[2])}')
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description='Run the fuzz targets.')
    parser.add_argument('--seconds', type=int, default=600,
                        help='for each target (default: 600)')
    parser.add_argument('build', metavar='BUILD', type=Path,
                        help='a build directory, for the source tree')
    parser.add_argument('directory', metavar='DIR', type=Path,
                        help='where to build the targets and to keep inputs')
    parser.add_argument('targets', metavar='TARGET', nargs='*',
                        help='only these, such as "codec"')
    args = parser.parse_args()
    directory = args.directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    names = [path.stem.removeprefix(PROGRAM) for path in
             sorted((ROOT / 'tests/unit').glob(f'{PROGRAM}*.c'))]
    unknown = set(args.targets).difference(names)
    if unknown:
        raise Failure(f'no such target: {", ".join(sorted(unknown))}')
    names = args.targets or names
    say(f'building in {directory}')
    make(args.build.resolve(), directory, arguments(directory),
         [f'tests/unit/{PROGRAM}{name}' for name in names])
    say(f'running {", ".join(names)} for {args.seconds} s')
    fuzzers = [Fuzzer(name, directory, args.seconds) for name in names]
    results = [fuzzer.wait() for fuzzer in fuzzers]
    return 0 if all(results) else 1
