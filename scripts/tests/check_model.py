# Runs the model of the write-intent log, tests/model/write-intent-log.pml,
# through spin: the protocol as it is must hold in all states of each variant,
# and each rule that is taken out must let spin find an error.  --quick only
# looks at what takes some seconds, and says so.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import Failure, ROOT, Unavailable

MODEL = ROOT / 'tests/model/write-intent-log.pml'
MEBIBYTES = 3900    # for each of two that run at the same time
DEPTH = 8000000


@dataclass(frozen=True)
class Variant:
    """What the model has in it, as macros of its own."""
    name: str
    macros: tuple[str, ...]
    mutations: tuple[str, ...]  # rules that matter here, without "M_"
    quick: bool                 # seconds are enough for all states
    one_life: bool = True       # all states: up to the first crash, the only one


@dataclass(frozen=True)
class Run:
    """One variant, or one with a rule taken out."""
    variant: Variant
    mutation: str   # '' for the protocol as it is

    @property
    def name(self) -> str:
        """What reports call it."""
        return ' without '.join(filter(None, (self.variant.name,
                                              self.mutation)))


VARIANTS = (
    Variant('writers', ('WRITERS=2', ), (
        'GATE_KEPT_1', 'NO_WAIT', 'WAIT_CALLBACK', 'GATE_EARLY',
        'GATE_UNTOUCHED', 'GATE_NEW_4', 'NO_COMMIT_FLUSH', 'NEXT_LOST',
        'NO_DISK_FLUSH', 'DISK_FLUSH_EARLY', 'FREED_EARLY', 'NO_FLUSH_4',
        'NO_FLUSH_5', 'NEWEST_WINS', 'ONE_GENERATION', 'NO_FLUSH_OPEN',
        'NO_FLUSH_BEGIN', 'NO_DISK_FLUSH_LEAVE'), False),
    Variant('one-writer', ('WRITERS=1', ), (), True, one_life=False),
    Variant('failures', ('WRITERS=1', 'FAILURES=1'), (
        'NO_FILL', 'NEW_MARKS_LOST', 'ERRORS_ONCE', 'FLUSHES_CROSS',
        'RETRY_NEW_DIRECTORY'),
        False),
    Variant('merge', ('WRITERS=1', 'COMMANDS=1'), (), False),
    Variant('enable', ('WRITERS=1', 'COMMANDS=2'),
            ('RETURN_EARLY', 'NO_SEQUENCE'), False),
    Variant('transaction', ('WRITERS=1', 'COMMANDS=4'),
            ('READ_IN_TRANSACTION', ), False),
    Variant('job', ('WRITERS=1', 'COMMANDS=8'),
            ('PARENT_ONLY', 'FROZEN_DISABLED'), False),
)
# Mutations that spin finds within a second or two
QUICK = ('GATE_KEPT_1', 'NO_WAIT', 'GATE_EARLY', 'GATE_UNTOUCHED',
         'GATE_NEW_4', 'NO_COMMIT_FLUSH', 'NEXT_LOST', 'FREED_EARLY',
         'NO_FLUSH_4', 'NO_FLUSH_5', 'NEWEST_WINS', 'ONE_GENERATION',
         'NO_FLUSH_OPEN', 'NO_FLUSH_BEGIN', 'NO_DISK_FLUSH_LEAVE',
         'RETURN_EARLY', 'NO_SEQUENCE', 'PARENT_ONLY')


def say(text: str) -> None:
    print(f'check-model: {text}', flush=True)


def verifier(run: Run, directory: Path) -> Path:
    """Have spin write the program that looks at all states, and build it."""
    macros = [f'-D{macro}' for macro in run.variant.macros]
    if run.mutation:
        macros.append(f'-DM_{run.mutation}')
    elif run.variant.one_life:
        # With crashes after crashes, the search would not end
        macros.append('-DONE_LIFE')
    directory.mkdir(parents=True)
    made = subprocess.run(
        ['spin', '-a', *macros, MODEL], cwd=directory, check=False, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    if made.returncode or not (directory / 'pan.c').exists():
        raise Failure(f'spin does not take the model:\n{made.stdout}')
    # Hash-compact: 64 bits tell states apart.  To optimise takes longer than
    # to find an error.
    subprocess.run(
        ['gcc', '-O0' if run.mutation in QUICK else '-O2', '-w',
         '-DSAFETY', '-DNOFAIR', '-DHC4',
         f'-DMEMLIM={MEBIBYTES}', '-o', 'pan', 'pan.c'], cwd=directory,
        check=True, stdin=subprocess.DEVNULL)
    return directory / 'pan'


def explore(run: Run, directory: Path, seconds: int) -> tuple[bool, str]:
    """Look at all states of @run; whether it went as it must, and a line."""
    started = time.monotonic()
    program = verifier(run, directory)
    depth = DEPTH if not run.mutation else 20000
    log = directory / 'log'
    with log.open('w') as output:
        try:
            subprocess.run([program, '-E', f'-m{depth}', '-w24'],
                           cwd=directory,
                           check=False, stdin=subprocess.DEVNULL,
                           stdout=output, stderr=subprocess.STDOUT,
                           timeout=seconds)
        except subprocess.TimeoutExpired:
            pass
    took = f'{time.monotonic() - started:.0f} s'
    text = log.read_text(errors='replace')
    errors = re.search(r'errors: (\d+)', text)
    stored = re.search(r'(\d+) states, stored', text)
    if not errors or not stored:
        last = re.findall(r'States=\s*(\S+)', text) or ['0']
        return False, (f'not finished after {took}, {float(last[-1]):.0f} '
                       'states and no error')
    states = f'{int(stored[1])} states, {took}'
    if run.mutation:
        if int(errors[1]):
            return True, f'error found, as it must be ({states})'
        return False, f'no error is found ({states}), see {directory}'
    if int(errors[1]):
        return False, (f'wrong ({states}): "spin -k {MODEL.name}.trail -p -g '
                       f'{MODEL}" in {directory} tells the story')
    if re.search('max search depth too small|out of memory|memory limit',
                 text, re.IGNORECASE):
        return False, f'the search was cut short ({states}), see {log}'
    return True, f'holds in all of {states}'


def chosen(quick: bool) -> list[Run]:
    """The runs, the longest first."""
    whole = [Run(variant, '') for variant in VARIANTS
             if variant.quick or not quick]
    without = [Run(variant, mutation) for variant in VARIANTS
               for mutation in variant.mutations
               if mutation in QUICK or not quick]
    return whole + without


def main() -> int:
    parser = argparse.ArgumentParser(
        description='Check the model of the write-intent log.')
    parser.add_argument('--quick', action='store_true',
                        help='only what takes seconds; speak TAP')
    parser.add_argument('--seconds', type=int, default=1200,
                        help='for one variant at most (default: 1200)')
    parser.add_argument('directory', metavar='DIR', type=Path,
                        help='where to build and to keep what was found')
    args = parser.parse_args()
    missing = [program for program in ('spin', 'gcc')
               if not shutil.which(program)]
    if missing and args.quick:
        print(f'1..0 # SKIP {", ".join(missing)} is missing')
        return 0
    if missing:
        raise Unavailable(f'{", ".join(missing)} is missing')
    directory = args.directory.resolve()
    shutil.rmtree(directory, ignore_errors=True)
    runs = chosen(args.quick)
    if args.quick:
        print(f'TAP version 13\n1..{len(runs)}', flush=True)
    with ThreadPoolExecutor(max_workers=2) as pool:
        results = pool.map(
            lambda run: explore(run, directory / run.name.replace(' ', '-'),
                                args.seconds), runs)
        failed = 0
        for number, (run, (good, text)) in enumerate(zip(runs, results), 1):
            failed += not good
            if args.quick:
                print(f'{"" if good else "not "}ok {number} - {run.name}\n'
                      f'# {text}', flush=True)
            else:
                say(f'{run.name}: {text}')
    if not args.quick:
        print(f'{len(runs) - failed} passed, {failed} failed')
    return 1 if failed else 0
