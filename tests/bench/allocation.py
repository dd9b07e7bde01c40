# What the allocation map costs and what it saves: shells that have one against
# shells that have none.  Instructions and bytes are counted; times are of runs
# that take turns.  Full copies are made by qemu-img convert, blockdev-backup and
# nbdcopy.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator

from common import Failure
from log import HOT, count_instructions
from subjects import GIB, KIB, MIB, Options, Place, SHELL, human
from throughput import wait_for

WITH, WITHOUT = 'map', 'no-map'
GOAL = 15
# Of a disk that is backed up, one hundredth of which holds data
FILE_SIZE, DEVICE_SIZE = 2 * GIB, 16 * GIB
PARTS = 64


@dataclass(frozen=True)
class MapPlace(Place):
    """Where shells with a map and without one are; the names of subjects are
    WITH and WITHOUT.  The disk is a file, a device over it, or what an NBD server
    has at a socket."""
    device: str = ''
    socket: str = ''

    @property
    def data(self) -> str:
        """What the shells are over."""
        if self.socket:
            return f'nbd+unix:///?socket={self.socket}'
        return self.device or str(self.disk)

    def node(self, subject: str) -> str:
        """Options to open it with."""
        node = f'driver=qcow2,file.driver=file,' \
            f'file.filename={self.image(subject)}'
        if self.socket:
            node += ',rw-backing.driver=nbd,rw-backing.server.type=unix,' \
                f'rw-backing.server.path={self.socket}'
        return node

    def create(self, subject: str, allocated: bool = True,
               disk_format: str = 'raw', log: bool = True) -> None:
        self.image(subject).unlink(missing_ok=True)
        self.qemu_img('create', '-q', '-f', 'qcow2', '-o',
                      f'rw-backing={self.data},rw-backing-map='
                      f'{"scan" if subject == WITH else "off"}',
                      self.image(subject))

    def options(self, subject: str, storage: str) -> Options:
        options = super().options(SHELL, storage)
        options['file.filename'] = str(self.image(subject))
        # What is written through one shell is foreign to the other
        options['rw-backing-guard'] = 'off'
        options['rw-backing-checkpoint-interval'] = '3600'
        return options


def row(what: str, unit: str, found: dict[str, float],
        goal: str = '', met: bool | None = None) -> dict[str, Any]:
    """@found has a figure for each of WITH and WITHOUT."""
    return {'what': what, 'unit': unit, WITH: round(found[WITH], 3),
            WITHOUT: round(found[WITHOUT], 3), 'goal': goal, 'met': met}


def measure_instructions(client: Path, build: Path,
                         scratch: Path) -> list[dict[str, Any]]:
    """For a write to a granule that holds data, over a disk that does
    nothing."""
    result = []
    for pattern in ('sequential', 'random'):
        directory = scratch / f'map-{pattern}'
        directory.mkdir()
        place = MapPlace(build, directory, HOT)
        place.make_disk()
        found = {}
        for subject in (WITH, WITHOUT):
            place.create(subject)
            # A shell without bitmaps and without a map has no log at work
            place.qemu_img('bitmap', '--add', '-f', 'qcow2',
                           place.image(subject), 'b')
            found[subject] = count_instructions(client, place, subject,
                                                pattern)
        result.append(row(f'write 4 KiB, {pattern}', 'instructions', found,
                          f'+{GOAL} at most',
                          found[WITH] - found[WITHOUT] <= GOAL))
    return result


def use_some(path: Path, size: int) -> None:
    """Parts of the file get data."""
    with path.open('r+b') as stream:
        for part in range(PARTS):
            stream.seek(size // PARTS * part & -MIB)
            stream.write(os.urandom(used(size) // PARTS))


def used(size: int) -> int:
    """How many bytes of a disk hold data, in whole granules of the map."""
    return size // 100 // PARTS // (64 * KIB) * (64 * KIB) * PARTS


@contextmanager
def device_over(path: Path) -> Iterator[str]:
    """A loop device, '' if there can be none."""
    losetup = shutil.which('losetup')
    result = subprocess.run([losetup or 'false', '--find', '--show', path],
                            check=False, text=True, capture_output=True)
    device = result.stdout.strip()
    try:
        yield device
    finally:
        if device:
            subprocess.run(['losetup', '--detach', device], check=False)


def bytes_read(process: subprocess.Popen[Any]) -> int:
    """From files, up to now or until it ended."""
    text = Path(f'/proc/{process.pid}/io').read_text()
    return int(dict(line.split(': ') for line in text.splitlines())['rchar'])


def convert(place: MapPlace, subject: str) -> int:
    """By qemu-img; what it reads, in bytes."""
    target = place.directory / 'copy.raw'
    with subprocess.Popen([place.build / 'qemu-img', 'convert', '-O', 'raw',
                           '--image-opts', place.node(subject), target],
                          stdin=subprocess.DEVNULL) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        count = bytes_read(process)
    if process.returncode:
        raise Failure(f'qemu-img convert of {place.image(subject)} fails')
    target.unlink()
    return count


@contextmanager
def daemon(place: MapPlace, subject: str,
           *args: str) -> Iterator[subprocess.Popen[str]]:
    """qemu-storage-daemon with the node "shell" and a monitor."""
    with subprocess.Popen(
            [place.build / 'qemu-storage-daemon', '--chardev',
             'stdio,id=monitor', '--monitor', 'monitor', '--blockdev',
             f'{place.node(subject)},node-name=shell,read-only=on', *args],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


@contextmanager
def daemon_with_target(place: MapPlace,
                       subject: str) -> Iterator[subprocess.Popen[str]]:
    """It has a node "target" for backups, too, a sparse file; what cannot
    write zeroes, such as null-co, would be what takes the time."""
    with tempfile.NamedTemporaryFile(dir=place.directory) as target:
        target.truncate(place.size)
        with daemon(place, subject, '--blockdev',
                    f'driver=file,node-name=target,filename={target.name},'
                    'discard=unmap,detect-zeroes=unmap') as process:
            assert process.stdin
            process.stdin.write('{"execute": "qmp_capabilities"}\n')
            yield process


def run_backup(process: subprocess.Popen[str]) -> None:
    """The whole shell to the target."""
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(
        {'execute': 'blockdev-backup', 'arguments': {
            'job-id': 'backup', 'device': 'shell', 'target': 'target',
            'sync': 'full'}}) + '\n')
    process.stdin.flush()
    for line in process.stdout:
        message = json.loads(line)
        if 'error' in message or 'error' in message.get('data', {}):
            raise Failure(f'blockdev-backup fails: {line}')
        if message.get('data', {}).get('status') == 'null':
            return
    raise Failure('qemu-storage-daemon ends')


def blockdev_backup(place: MapPlace, subject: str) -> int:
    """What QEMU reads, in bytes."""
    with daemon_with_target(place, subject) as process:
        run_backup(process)
        return bytes_read(process)


def nbdcopy(place: MapPlace, subject: str) -> int:
    """To nowhere; what the server reads, in bytes."""
    path = place.directory / 'nbd.sock'
    with daemon(place, subject, '--nbd-server', f'addr.type=unix,addr.path='
                f'{path}', '--export', 'type=nbd,id=export,node-name=shell,'
                'name=') as process:
        wait_for(process, str(path))
        subprocess.run(['nbdcopy', f'nbd+unix:///?socket={path}', 'null:'],
                       check=True)
        return bytes_read(process)


PROGRAMS = {'qemu-img convert': convert, 'blockdev-backup': blockdev_backup,
            'nbdcopy': nbdcopy}


def measure_copies(place: MapPlace, name: str, program: str,
                   rounds: int) -> list[dict[str, Any]]:
    """A full copy of a disk of which little holds data."""
    read: dict[str, float] = {}
    times: dict[str, list[float]] = {WITH: [], WITHOUT: []}
    for _ in range(rounds):
        for subject in (WITHOUT, WITH):
            start = time.monotonic()
            read[subject] = PROGRAMS[program](place, subject) / MIB
            times[subject].append(time.monotonic() - start)
    what = f'{program}: {name}, {human(place.size)}'
    # One hundredth more, and what QEMU reads to find out what it has
    goal = round(used(place.size) / MIB * 1.01 + 1, 1)
    return [row(what, 'MiB read', read, f'{goal} at most',
                read[WITH] <= goal),
            row(what, 's', {subject: statistics.median(some)
                            for subject, some in times.items()})]


def measure_backups(build: Path, scratch: Path,
                    quick: bool) -> list[dict[str, Any]]:
    """Of a file that is full of zeroes, and of a device."""
    result = []
    directory = scratch / 'file'
    directory.mkdir()
    place = MapPlace(build, directory, FILE_SIZE)
    with place.disk.open('wb') as stream:
        for _ in range(FILE_SIZE // (16 * MIB)):
            stream.write(bytes(16 * MIB))
    use_some(place.disk, place.size)
    for subject in (WITH, WITHOUT):
        place.create(subject)
    for program in PROGRAMS:
        result += measure_copies(place, 'a file', program, 1 if quick else 3)
    place.disk.unlink()

    directory = scratch / 'device'
    directory.mkdir()
    size = DEVICE_SIZE // 2 if quick else DEVICE_SIZE
    sparse = Place(build, directory, size)
    sparse.make_disk()
    use_some(sparse.disk, size)
    with device_over(sparse.disk) as device:
        if device:
            place = MapPlace(build, directory, size, device)
            for subject in (WITH, WITHOUT):
                place.create(subject)
            for program in PROGRAMS:
                result += measure_copies(place, 'a loop device', program, 1)
    return result


def measure_server(build: Path, directory: Path) -> dict[str, Any]:
    """What a server reads for a second backup of a shell over its disk."""
    directory.mkdir()
    place = MapPlace(build, directory, FILE_SIZE,
                     socket=str(directory / 'disk.sock'))
    place.make_disk()
    use_some(place.disk, place.size)
    read: dict[str, float] = {}
    # It sees no holes in a device
    with device_over(place.disk) as device, subprocess.Popen(
            [build / 'qemu-nbd', '--persistent', '--shared=0', '--format=raw',
             f'--socket={place.socket}', device or place.disk]) as server:
        try:
            wait_for(server, place.socket)
            for subject in (WITHOUT, WITH):
                place.create(subject)
                with daemon_with_target(place, subject) as process:
                    run_backup(process)
                    before = bytes_read(server)
                    run_backup(process)
                    read[subject] = (bytes_read(server) - before) / MIB
        finally:
            server.terminate()
    goal = round(used(place.size) / MIB * 1.01 + 1, 1)
    return row(f'second blockdev-backup: NBD, {human(place.size)}', 'MiB read',
               read, f'{goal} at most', read[WITH] <= goal)


def measure(client: Path, build: Path, scratch: Path,
            quick: bool) -> list[dict[str, Any]]:
    """A row for each figure."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        return [*measure_instructions(client, build, Path(name)),
                *measure_backups(build, Path(name), quick),
                measure_server(build, Path(name) / 'server')]


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """The goals that are missed, of those that do not depend on time."""
    return [f'{line["what"]}: {line[WITH]} {line["unit"]}, not {line["goal"]}'
            for line in rows if line['met'] is False]
