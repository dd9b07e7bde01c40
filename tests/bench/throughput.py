# Requests per second, latency and processor time, as ratios to those of raw.
# A machine that does other things must not decide them: runs are short, and
# each round has them in an order and then in the opposite one, so that what
# changes in the meantime hits all the same; programs are started anew several
# times, since where one has its memory also matters; the medians count.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import json
import socket
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Iterator

from common import Failure
from client import Client, talk
from subjects import (DATA_FILE, FILE, KIB, MIB, Options, Place, QCOW2, RAW,
                      SHELL, SUBJECTS, TIB)

SIZE = TIB
REQUEST = 4 * KIB
# Random requests are aligned to this, so that they fill no sparse file
ALIGNMENT = 16 * MIB
START_SECONDS = 30
LIMIT = 120     # seconds that fio may take besides
CALIBRATION = 2000      # requests

# Each is a round
OURS = [RAW, SHELL, SHELL, RAW]
OTHERS = [RAW, DATA_FILE, QCOW2, QCOW2, DATA_FILE, RAW]


@dataclass(frozen=True)
class Cell:
    """A kind of load."""
    client: str         # "block layer" for the client, or "NBD" for fio
    pattern: str        # as fio calls it
    depth: int
    connections: int = 1


BLOCK_LAYER = [Cell('block layer', pattern, depth)
               for pattern in ('randread', 'randwrite') for depth in (1, 32)]
NBD = [Cell('NBD', pattern, depth)
       for pattern in ('randread', 'randwrite', 'randrw')
       for depth in (1, 32)] + [Cell('NBD', 'randrw', 32, connections=4)]


@dataclass(frozen=True)
class Plan:
    """How much to measure."""
    sittings: int       # how often the programs are started
    rounds: int         # of each cell, each time
    seconds: float      # of one run of the client
    fio_rounds: int
    fio_seconds: float


FULL = Plan(sittings=5, rounds=8, seconds=0.04, fio_rounds=6, fio_seconds=0.2)
QUICK = Plan(sittings=2, rounds=4, seconds=0.04, fio_rounds=2,
             fio_seconds=0.2)


@dataclass
class Sample:
    """What one run gives, in microseconds, so that less is better."""
    request_us: float                   # the time divided by the requests
    cpu_us: float | None = None         # of the program that has the image
    latency_us: float | None = None     # mean
    p99_us: float | None = None


FIGURES = [field.name for field in fields(Sample)]
Rounds = dict[Cell, list[dict[str, Sample]]]


def options_of(place: Place, subject: str) -> Options:
    """The options that open the image of @subject, which is not flushed: the
    time of that is the disk's."""
    return {**place.options(subject, FILE), 'cache.no-flush': 'on'}


def touch(client: Path, place: Place) -> None:
    """Write what is going to be read and written, so that no file grows."""
    with place.disk.open('r+b') as stream:
        for offset in range(0, SIZE, ALIGNMENT):
            stream.seek(offset)
            stream.write(b'\xa5' * REQUEST)
    count = 2 * SIZE // ALIGNMENT
    talk([client], [f'open {json.dumps(options_of(place, QCOW2))}',
                    f'run write {REQUEST} {count} 32 random', 'close'])


# The client

@contextlib.contextmanager
def opened(client: Path, place: Place) -> Iterator[dict[str, Client]]:
    """A client for each kind of image."""
    with contextlib.ExitStack() as stack:
        clients = {}
        for subject in SUBJECTS:
            clients[subject] = stack.enter_context(Client([client]))
            clients[subject].ask(
                f'open {json.dumps(options_of(place, subject))}')
        yield clients


def run_client(client: Client, cell: Cell, count: int) -> Sample:
    """Let @client do @count requests."""
    kind = cell.pattern.removeprefix('rand')
    done = client.ask(f'run {kind} {REQUEST} {count} {cell.depth} random')
    return Sample(done['microseconds'] / count,
                  done['cpu_microseconds'] / count)


def requests_in(clients: dict[str, Client], cell: Cell,
                seconds: float) -> int:
    """How many requests raw does in @seconds; warms the others up."""
    speeds = {subject: run_client(client, cell, CALIBRATION)
              for subject, client in clients.items()}
    return int(seconds * 1e6 / speeds[RAW].request_us) + 1


def client_round(clients: dict[str, Client], cell: Cell, count: int,
                 order: list[str]) -> dict[str, Sample]:
    """Run the clients of @order; the means of each."""
    samples: dict[str, list[Sample]] = {subject: [] for subject in order}
    for subject in order:
        samples[subject].append(run_client(clients[subject], cell, count))
    return {subject: mean(some) for subject, some in samples.items()}


# fio

class Daemon:
    """qemu-storage-daemon that exports the image of @subject with NBD, from a
    thread of its own; use it in a with statement."""

    def __init__(self, place: Place, subject: str):
        path = str(place.directory / f'{subject}.sock')
        node = daemon_option({**options_of(place, subject),
                              'node-name': 'disk'})
        self.uri = f'nbd+unix:///disk?socket={path}'
        # pylint: disable-next=consider-using-with
        self._process = subprocess.Popen(
            [place.build / 'qemu-storage-daemon', '--object',
             'iothread,id=thread,poll-max-ns=0', '--blockdev', node,
             '--nbd-server', f'addr.type=unix,addr.path={path}', '--export',
             'type=nbd,id=export,node-name=disk,name=disk,writable=on,'
             'iothread=thread'], stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        try:
            wait_for(self._process, path)
        except Failure:
            self._stop()
            raise

    def __enter__(self) -> 'Daemon':
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """The processor time of all its threads, also of those that have
        ended: clock_getcpuclockid(3)."""
        return time.clock_gettime((~self._process.pid << 3) | 2)


def daemon_option(options: Options) -> str:
    """@options in the form of the command line, where commas are doubled."""
    return ','.join(f'{name}={value.replace(",", ",,")}'
                    for name, value in options.items())


def wait_for(daemon: subprocess.Popen[Any], path: str) -> None:
    """Wait until @daemon listens to @path."""
    deadline = time.monotonic() + START_SECONDS
    while daemon.poll() is None and time.monotonic() < deadline:
        with socket.socket(socket.AF_UNIX) as probe:
            if not probe.connect_ex(path):
                return
        time.sleep(0.02)
    raise Failure(f'qemu-storage-daemon does not listen to {path}')


def read_fio(text: str) -> list[tuple[Sample, int]]:
    """What fio's JSON says of the reads and writes of each job together; how
    many there were."""
    result = []
    for job in json.loads(text[text.index('{'):])['jobs']:
        both = [job[way] for way in ('read', 'write')
                if job[way]['total_ios']]
        total = sum(way['total_ios'] for way in both)
        result.append((Sample(
            request_us=1e6 / sum(way['iops'] for way in both),
            latency_us=sum(way['clat_ns']['mean'] * way['total_ios']
                           for way in both) / total / 1000,
            p99_us=max(way['clat_ns']['percentile']['99.000000']
                       for way in both) / 1000), total))
    return result


def fio_command(cell: Cell, seconds: float, seed: int,
                uris: list[str]) -> list[str]:
    """What runs fio for @seconds with each of @uris, one after the other."""
    command = [
        'fio', '--output-format=json', '--name=global', '--ioengine=nbd',
        f'--rw={cell.pattern}', f'--bs={REQUEST}',
        f'--blockalign={ALIGNMENT}', f'--iodepth={cell.depth}',
        f'--size={SIZE}', '--norandommap', f'--randseed={seed}',
        '--random_generator=tausworthe64', '--time_based',
        f'--runtime={int(seconds * 1000)}ms', '--group_reporting', '--thread',
        f'--numjobs={cell.connections}']
    for uri in uris:
        command += ['--name=job', '--stonewall', f'--uri={uri}']
    return command


def run_fio(command: list[str], limit: float) -> str:
    """Run fio, for no longer than @limit; what it prints."""
    try:
        result = subprocess.run(command, check=False, text=True,
                                stdin=subprocess.DEVNULL, capture_output=True,
                                timeout=limit)
    except subprocess.TimeoutExpired:
        raise Failure(f'fio takes more than {limit} s') from None
    if result.returncode:
        raise Failure(f'{" ".join(command)}:\n{result.stderr}')
    return result.stdout


def fio_round(daemons: dict[str, Daemon], cell: Cell, seconds: float,
              seed: int, order: list[str]) -> dict[str, Sample]:
    """Run fio with the images of @order; the means of each."""
    command = fio_command(cell, seconds, seed,
                          [daemons[subject].uri for subject in order])
    before = {subject: daemons[subject].cpu_seconds() for subject in order}
    output = run_fio(command, len(order) * seconds + LIMIT)
    samples: dict[str, list[Sample]] = {subject: [] for subject in order}
    requests = dict.fromkeys(order, 0)
    for subject, (sample, count) in zip(order, read_fio(output)):
        samples[subject].append(sample)
        requests[subject] += count
    means = {subject: mean(some) for subject, some in samples.items()}
    for subject, found in means.items():
        used = daemons[subject].cpu_seconds() - before[subject]
        found.cpu_us = used * 1e6 / requests[subject]
    return means


# Rounds

def mean(samples: list[Sample]) -> Sample:
    """The mean of each figure."""
    values: dict[str, Any] = {}
    for name in FIGURES:
        each = [getattr(sample, name) for sample in samples]
        values[name] = None if None in each else statistics.mean(each)
    return Sample(**values)


def ratios(rounds: list[dict[str, Sample]], subject: str,
           name: str) -> list[float]:
    """Raw to @subject: what is above 1 is better than raw."""
    return [getattr(found[RAW], name) / getattr(found[subject], name)
            for found in rounds if subject in found
            and getattr(found[RAW], name)]


def summary(cell: Cell, rounds: list[dict[str, Sample]]) -> dict[str, Any]:
    """The row of @cell."""
    row: dict[str, Any] = {
        'client': cell.client, 'pattern': cell.pattern, 'depth': cell.depth,
        'connections': cell.connections}
    for name in FIGURES:
        some = [value for found in rounds
                if (value := getattr(found[RAW], name)) is not None]
        if some:
            row[f'raw_{name}'] = round(statistics.median(some), 2)
            row[name] = {subject: round(statistics.median(each), 3)
                         for subject in SUBJECTS if subject != RAW
                         and (each := ratios(rounds, subject, name))}
    ours = sorted(ratios(rounds, SHELL, 'request_us'))
    row['quartiles'] = [round(ours[len(ours) * part // 4], 3)
                        for part in (1, 3)]
    row['rounds'] = len(ours)
    return row


def measure(client: Path, build: Path, scratch: Path,
            quick: bool) -> list[dict[str, Any]]:
    """A row for each cell."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        place = Place(build, Path(name), SIZE)
        place.make_disk()
        for subject in SUBJECTS:
            place.create(subject)
        touch(client, place)
        found: Rounds = {cell: [] for cell in BLOCK_LAYER + NBD}
        plan = QUICK if quick else FULL
        for number in range(1, plan.sittings + 1):
            sit_with_clients(client, place, plan, found)
            sit_with_daemons(place, plan, number, found)
    return [summary(cell, rounds) for cell, rounds in found.items()]


def sit_with_clients(client: Path, place: Place, plan: Plan,
                     found: Rounds) -> None:
    """Start the clients, add to @found what they say, and end them."""
    with opened(client, place) as clients:
        for cell in BLOCK_LAYER:
            count = requests_in(clients, cell, plan.seconds)
            for order in plan.rounds * [OURS] + [OTHERS]:
                found[cell].append(client_round(clients, cell, count, order))


def sit_with_daemons(place: Place, plan: Plan, seed: int,
                     found: Rounds) -> None:
    """Start the daemons, add to @found what fio says of them, and end
    them."""
    with contextlib.ExitStack() as stack:
        daemons = {subject: stack.enter_context(Daemon(place, subject))
                   for subject in SUBJECTS}
        for cell in NBD:
            for order in plan.fio_rounds * [OURS] + [OTHERS]:
                found[cell].append(fio_round(daemons, cell, plan.fio_seconds,
                                             seed, order))
