# What the write-intent log costs: shells that have one against shells that
# have none, each with one bitmap.  Instructions and flushes are counted; times
# are ratios, of runs that take turns.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from common import Failure
from client import Client, talk
from instructions import read_profile
from subjects import (FILE, GIB, KIB, MIB, NULL, Options, Place, SHELL, TIB,
                      human)
from throughput import Daemon, run_fio

WITH, WITHOUT = 'log', 'no-log'
GRANULARITY = 64 * KIB
REQUEST = 4 * KIB
# All of its chunks are marked after some hundred writes
HOT = 64 * MIB
# Each request is in another chunk, none of which follows the one before
STRIDE = 74 * MIB
TOUCHES = 4096
WARM_UP, REQUESTS = 2 * HOT // REQUEST, 2000
# Less than what any other thing that happens once makes
HOT_GOAL = 15


@dataclass(frozen=True)
class LogPlace(Place):
    """Where shells with a log and without one are; the names of subjects are
    WITH and WITHOUT."""
    interval: int = 3600

    def create(self, subject: str, allocated: bool = True,
               disk_format: str = 'raw', log: bool = True) -> None:
        self.image(subject).unlink(missing_ok=True)
        self.qemu_img('create', '-q', '-f', 'qcow2', '-o',
                      f'rw-backing={self.disk},'
                      f'rw-backing-log={"on" if subject == WITH else "off"}',
                      self.image(subject))
        self.qemu_img('bitmap', '--add', '-g', str(GRANULARITY), '-f', 'qcow2',
                      self.image(subject), 'b')

    def options(self, subject: str, storage: str) -> Options:
        options = super().options(SHELL, storage)
        options['file.filename'] = str(self.image(subject))
        # What is written through one shell is foreign to the other
        options['rw-backing-guard'] = 'off'
        options['rw-backing-checkpoint-interval'] = str(self.interval)
        return options


def make_place(build: Path, scratch: Path, name: str, size: int,
               interval: int = 3600) -> LogPlace:
    """With a disk and both shells."""
    directory = scratch / name
    directory.mkdir()
    place = LogPlace(build, directory, size, interval)
    place.make_disk()
    for subject in (WITH, WITHOUT):
        place.create(subject)
    return place


def row(what: str, unit: str, found: dict[str, float],
        goal: str = '', met: bool | None = None) -> dict[str, Any]:
    """@found has a figure for each of WITH and WITHOUT."""
    return {'what': what, 'unit': unit, WITH: round(found[WITH], 3),
            WITHOUT: round(found[WITHOUT], 3), 'goal': goal, 'met': met}


# Instructions

def count_instructions(client: Path, place: LogPlace, subject: str,
                       pattern: str) -> float:
    """For a write whose chunk is marked."""
    output = place.directory / f'callgrind-{subject}'
    lines = [f'open {json.dumps(place.options(subject, NULL))}']
    for label, count in (('warm-up', WARM_UP), ('some', REQUESTS),
                         ('twice', 2 * REQUESTS)):
        lines += [f'run write {REQUEST} {count} 64 {pattern}',
                  f'profile {label}']
    talk(['valgrind', '--tool=callgrind', f'--callgrind-out-file={output}',
          client], [*lines, 'close'])
    counts = dict(filter(None, (
        read_profile(path.read_text())
        for path in place.directory.glob(f'{output.name}.*'))))
    return (counts['twice'] - counts['some']) / REQUESTS


def measure_instructions(client: Path, build: Path, scratch: Path,
                         _: bool) -> list[dict[str, Any]]:
    """Over a disk that does nothing."""
    result = []
    for pattern in ('sequential', 'random'):
        place = make_place(build, scratch, f'hot-{pattern}', HOT)
        found = {subject: count_instructions(client, place, subject, pattern)
                 for subject in (WITH, WITHOUT)}
        result.append(row(
            f'write 4 KiB where there is a mark, {pattern}', 'instructions',
            found, f'+{HOT_GOAL} at most',
            found[WITH] - found[WITHOUT] <= HOT_GOAL))
    return result


# Flushes

def count_commits(place: LogPlace, depth: int) -> tuple[int, dict[str, float]]:
    """Flushes of the log for TOUCHES first writes to as many chunks, and the
    time of one in microseconds, with and without a log."""
    times = {}
    commits = 0
    for subject in (WITH, WITHOUT):
        start = time.monotonic()
        result = subprocess.run(
            [place.build / 'qemu-img', '--trace', 'qcow2_log_commit', 'bench',
             '-q', '-w', '-c', str(TOUCHES), '-d', str(depth), '-s',
             str(REQUEST), '-S', str(STRIDE), '-f', 'qcow2',
             place.image(subject)], check=False, text=True,
            stdin=subprocess.DEVNULL, capture_output=True)
        if result.returncode:
            raise Failure(result.stderr)
        times[subject] = (time.monotonic() - start) * 1e6 / TOUCHES
        if subject == WITH:
            commits = result.stderr.count('qcow2_log_commit')
    return commits, times


def measure_touches(_: Path, build: Path, scratch: Path,
                    __: bool) -> list[dict[str, Any]]:
    """The worst that a guest can do."""
    result = []
    for depth in (32, 1):
        place = make_place(build, scratch, f'touch-{depth}', TIB)
        commits, times = count_commits(place, depth)
        share = commits / TOUCHES
        result += [
            row(f'flushes of the shell for a first write, {depth} at a time',
                'flushes', {WITH: share, WITHOUT: 0},
                '1/8 at most' if depth > 1 else '',
                share <= 1 / 8 if depth > 1 else None),
            row(f'first write to a chunk, {depth} at a time', 'us', times)]
    return result


# Times

def take_turns(rounds: int, run: Callable[[str], float]) -> dict[str, float]:
    """Medians of what @run gives for each."""
    found: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    for _ in range(rounds):
        for subject in (WITHOUT, WITH, WITH, WITHOUT):
            found[subject].append(run(subject))
    return {subject: statistics.median(some)
            for subject, some in found.items()}


def measure_hot(client: Path, build: Path, scratch: Path,
                quick: bool) -> list[dict[str, Any]]:
    """Writes to chunks that are marked, with a checkpoint each second."""
    place = make_place(build, scratch, 'hot', HOT, interval=1)
    options = {subject: json.dumps({**place.options(subject, FILE),
                                    'rw-backing.locking': 'off'})
               for subject in (WITH, WITHOUT)}
    with Client([client]) as one, Client([client]) as other:
        clients = {WITH: one, WITHOUT: other}
        for subject, some in clients.items():
            some.ask(f'open {options[subject]}')

        def run(subject: str) -> float:
            done = clients[subject].ask(
                f'run write {REQUEST} {20000 if quick else 100000} 32 random')
            return done['microseconds'] / (20000 if quick else 100000)

        run(WITH)
        run(WITHOUT)
        found = take_turns(3 if quick else 8, run)
    return [row('write 4 KiB, 64 MiB that are hot, a checkpoint each second',
                'us', found, 'speed 0.99 at least',
                found[WITHOUT] / found[WITH] >= 0.99)]


def measure_fill(client: Path, build: Path, scratch: Path,
                 quick: bool) -> list[dict[str, Any]]:
    """A fresh disk, from its start to its end."""
    size = (GIB if quick else 4 * GIB)

    def fill(subject: str, direct: str) -> float:
        place = make_place(build, scratch, 'fill', size)
        options = place.options(subject, FILE)
        options['rw-backing.cache.direct'] = direct
        answers = talk([client], [
            f'open {json.dumps(options)}',
            f'run write {MIB} {size // MIB} 8 sequential', 'close'])
        shutil.rmtree(place.directory)
        return float(answers[1]['microseconds']) / 1e6

    rounds = 1 if quick else 3
    what = f'sequential writes to a fresh disk, {human(size)}'
    # A memory that takes gigabytes a second is no disk: told, and not judged
    cached = take_turns(rounds, lambda subject: fill(subject, 'off'))
    direct = take_turns(rounds, lambda subject: fill(subject, 'on'))
    return [row(f'{what}, to the page cache', 's', cached),
            row(f'{what}, past it', 's', direct, 'speed 0.98 at least',
                direct[WITHOUT] / direct[WITH] >= 0.98)]


def measure_latency(_: Path, build: Path, scratch: Path,
                    quick: bool) -> list[dict[str, Any]]:
    """Of a guest, during checkpoints that have something to store."""
    place = make_place(build, scratch, 'latency', HOT, interval=1)
    found: dict[str, dict[str, float]] = {}
    for figure in ('p50', 'p99'):
        found[figure] = {}
    with Daemon(place, WITH) as one, Daemon(place, WITHOUT) as other:
        uris = {WITH: one.uri, WITHOUT: other.uri}
        samples: dict[str, dict[str, list[float]]] = {
            WITH: {'p50': [], 'p99': []}, WITHOUT: {'p50': [], 'p99': []}}
        for _ in range(1 if quick else 4):
            for subject in (WITHOUT, WITH, WITH, WITHOUT):
                text = run_fio([
                    'fio', '--output-format=json', '--name=job',
                    '--ioengine=nbd', f'--uri={uris[subject]}',
                    '--rw=randwrite', f'--bs={REQUEST}', '--iodepth=1',
                    f'--size={HOT}', '--time_based', '--runtime=4s',
                    '--norandommap', '--thread'], 120)
                # It may say something before
                output = json.loads(text[text.index('{'):])
                percentiles = output['jobs'][0]['write']['clat_ns'][
                    'percentile']
                samples[subject]['p50'].append(percentiles['50.000000'] / 1e3)
                samples[subject]['p99'].append(percentiles['99.000000'] / 1e3)
        for subject, figures in samples.items():
            for figure, values in figures.items():
                found[figure][subject] = statistics.median(values)
    return [row('latency of writes during checkpoints, median', 'us',
                found['p50']),
            row('latency of writes during checkpoints, p99', 'us',
                found['p99'], '1.1 times at most',
                found['p99'][WITH] <= 1.1 * found['p99'][WITHOUT])]


# Recovery

def run_qemu_io(place: LogPlace, subject: str, *commands: str,
                crash: bool = False) -> float:
    """The time of opening, @commands and closing, in milliseconds."""
    words = [word for each in (*commands, *(['sigraise 9'] if crash else []))
             for word in ('-c', each)]
    start = time.monotonic()
    result = subprocess.run(
        [place.build / 'qemu-io', '-f', 'qcow2', *words, place.image(subject)],
        check=False, text=True, stdin=subprocess.DEVNULL, capture_output=True)
    if result.returncode != (-9 if crash else 0):
        raise Failure(result.stdout + result.stderr)
    return (time.monotonic() - start) * 1e3


def measure_recovery(_: Path, build: Path, scratch: Path,
                     quick: bool) -> list[dict[str, Any]]:
    """Opening and closing after a crash, against without one."""
    result = []
    # ext4 has no larger files
    for size in (TIB, 15 * TIB):
        place = make_place(build, scratch, f'crash-{size // TIB}', size)
        writes = [f'write -q {size // 100 * part & -MIB} 4k'
                  for part in range(100)]
        times: dict[str, list[float]] = {WITH: [], WITHOUT: []}
        for _ in range(2 if quick else 5):
            run_qemu_io(place, WITH, *writes, crash=True)
            times[WITH].append(run_qemu_io(place, WITH, 'length'))
            times[WITHOUT].append(run_qemu_io(place, WITH, 'length'))
        result.append(row(
            f'recovery, {human(size)}; against opening that shell after a '
            'proper end', 'ms', {subject: statistics.median(some)
                                 for subject, some in times.items()}))
    return result


MEASUREMENTS = (measure_instructions, measure_touches, measure_hot,
                measure_fill, measure_latency, measure_recovery)


def measure(client: Path, build: Path, scratch: Path,
            quick: bool) -> list[dict[str, Any]]:
    """A row for each figure."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        return [line for function in MEASUREMENTS
                for line in function(client, build, Path(name), quick)]


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """The goals that are missed, of those that do not depend on time."""
    return [f'{line["what"]}: {line[WITH]} {line["unit"]}, not {line["goal"]}'
            for line in rows
            if line['unit'] in ('instructions', 'flushes')
            and line['met'] is False]
