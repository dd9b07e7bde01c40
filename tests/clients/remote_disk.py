# What every disk on a server has to go through as the RW backing of a shell,
# whatever protocol it is reached by: created, written to, backed up with a
# bitmap over a restart, and always compared with what the server really has.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import contextlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Tuple

SKIP = 77
SECONDS = 60
KIB = 1024
MIB = 1024 * KIB
SIZE = 16 * MIB
GRANULARITY = 64 * KIB

# Offset, length and pattern of what changes between two backups; 0 is
# written as zeroes
WRITES = ((0, 512, 1), (1000 * KIB, 300 * KIB, 2), (8 * MIB, MIB, 0),
          (SIZE - 512, 512, 4))
DIRTY = sorted({block for offset, length, _ in WRITES
                for block in range(offset // GRANULARITY,
                                   -(-(offset + length) // GRANULARITY))})


class Failure(Exception):
    """What is wrong, in one sentence."""


class Skip(Exception):
    """What is missing."""


def call(*command: object) -> 'subprocess.CompletedProcess[str]':
    """Run a program that may fail."""
    return subprocess.run([str(word) for word in command], check=False,
                          text=True, timeout=SECONDS,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)


def run(*command: object) -> str:
    """Run a program that has to succeed; return what it says."""
    result = call(*command)
    if result.returncode:
        raise Failure(f'{result.args} failed:\n{result.stdout}')
    return result.stdout


def must(what: str, condition: bool) -> None:
    if not condition:
        raise Failure(what)


def wait_for(what: str, process: 'subprocess.Popen[Any]',
             condition: Callable[[], bool]) -> None:
    """Until a server that was started is ready."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if process.poll() is not None:
            raise Failure(f'{what} exits with {process.returncode}')
        if time.monotonic() > deadline:
            raise Failure(f'{what} does not start')
        time.sleep(0.01)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        port = server.getsockname()[1]
        assert isinstance(port, int)
        return port


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(('127.0.0.1', port)) == 0


class Daemon:
    """qemu-storage-daemon with its monitor on standard input and output."""

    def __init__(self, build: Path, blockdevs: List[Dict[str, Any]]):
        # pylint: disable=consider-using-with
        self._process = subprocess.Popen(
            [str(build / 'qemu-storage-daemon'),
             '--chardev', 'stdio,id=monitor', '--monitor', 'monitor',
             *(word for blockdev in blockdevs
               for word in ('--blockdev', json.dumps(blockdev)))],
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._events: List[Dict[str, Any]] = []
        self.message()
        self.cmd('qmp_capabilities')

    def message(self) -> Dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Failure('qemu-storage-daemon is gone')
        message = json.loads(line)
        assert isinstance(message, dict)
        return message

    def cmd(self, command: str, **arguments: Any) -> Any:
        assert self._process.stdin
        json.dump({'execute': command, 'arguments': arguments},
                  self._process.stdin)
        self._process.stdin.write('\n')
        self._process.stdin.flush()
        while True:
            message = self.message()
            if 'error' in message:
                raise Failure(f'{command}: {message["error"]["desc"]}')
            if 'return' in message:
                return message['return']
            self._events.append(message)

    def kill(self) -> None:
        """As if the power failed."""
        self._process.kill()
        self._process.communicate(timeout=SECONDS)

    def wait_for_job(self, name: str) -> None:
        """It may have ended before the answer to its command was here."""
        while True:
            message = self._events.pop(0) if self._events else self.message()
            if message.get('event') == 'BLOCK_JOB_COMPLETED' and \
                    message['data']['device'] == name:
                must(f'{name}: {message["data"].get("error")}',
                     'error' not in message['data'])
                return

    def __enter__(self) -> 'Daemon':
        return self

    def __exit__(self, kind: object, *args: object) -> None:
        if kind:
            self.kill()
        else:
            self.cmd('quit')
            self._process.communicate(timeout=SECONDS)


@dataclass
class RemoteDisk:
    """A disk on a server: how QEMU finds it, and what the server has."""
    serve: Callable[[], ContextManager[None]]   # in which the server runs
    path: Any                                   # a Path, or read like one
    uri: Callable[[], str]                      # may change with its port
    options: Callable[[], Dict[str, Any]]       # of blockdev-add, likewise
    grows: bool                                 # can be resized by a client


class Check:
    """One remote disk goes through everything."""

    def __init__(self, build: Path, directory: Path, disk: RemoteDisk):
        self.build = build
        self.directory = directory
        self.disk = disk
        self.shell = directory / 'shell.qcow2'

    def img(self, command: str, *args: object) -> str:
        return run(self.build / 'qemu-img', command, *args)

    def options(self) -> str:
        return 'json:' + json.dumps(self.blockdev())

    def blockdev(self) -> Dict[str, Any]:
        return {'driver': 'qcow2', 'node-name': 'shell',
                'file': {'driver': 'file', 'filename': str(self.shell)},
                'rw-backing': self.disk.options()}

    def create(self) -> None:
        before = self.disk.path.read_bytes()
        self.img('create', '-f', 'qcow2', '-o',
                 f'rw-backing={self.disk.uri().replace(",", ",,")}',
                 self.shell)
        must('creating a shell changed the disk',
             self.disk.path.read_bytes() == before)
        info = json.loads(self.img('info', '--output=json', '-f', 'qcow2',
                                   self.shell))
        must(f'virtual size is {info["virtual-size"]}',
             info['virtual-size'] == SIZE)
        must('a name is stored that is not a local path',
             info['format-specific']['data']['rw-backing'] ==
             {'format': 'raw', 'name-stored': False, 'guard': 'none',
              'log': {'active': False}})
        result = call(self.build / 'qemu-io', '-f', 'qcow2', '-c',
                      'read 0 512', self.shell)
        must(f'opened without its RW backing:\n{result.stdout}',
             result.returncode == 1 and
             'does not name its RW backing' in result.stdout)

    def write(self) -> None:
        expected = bytearray(self.disk.path.read_bytes())
        commands: List[str] = []
        for offset, length, pattern in WRITES:
            kind = f'-P {pattern}' if pattern else '-z'
            commands += ['-c', f'write {kind} {offset} {length}',
                         '-c', f'read -P {pattern} {offset} {length}']
            expected[offset:offset + length] = bytes([pattern]) * length
        output = run(self.build / 'qemu-io', *commands, '-c', 'flush',
                     self.options())
        must(f'read back something else:\n{output}',
             'verification failed' not in output)
        must('the disk is not as written',
             self.disk.path.read_bytes() == expected)

    def full_backup(self) -> Path:
        backup = self.directory / 'full.qcow2'
        self.img('bitmap', '--add', '-g', GRANULARITY, self.options(),
                 'changes')
        self.img('convert', '-O', 'qcow2', self.options(), backup)
        return backup

    def incremental_backup(self, full: Path) -> None:
        increment = self.directory / 'increment.qcow2'
        self.img('create', '-f', 'qcow2', '-b', full, '-F', 'qcow2',
                 increment)
        target = {'driver': 'qcow2', 'node-name': 'target', 'backing': None,
                  'file': {'driver': 'file', 'filename': str(increment)}}
        with Daemon(self.build, [self.blockdev(), target]) as daemon:
            daemon.cmd('blockdev-backup', **{
                'job-id': 'backup', 'device': 'shell', 'target': 'target',
                'sync': 'incremental', 'bitmap': 'changes'})
            daemon.wait_for_job('backup')
        extents = json.loads(self.img('map', '--output=json', increment))
        blocks = {block for extent in extents
                  if extent['depth'] == 0 and extent['present']
                  for block in range(extent['start'] // GRANULARITY,
                                     (extent['start'] + extent['length']) //
                                     GRANULARITY)}
        must(f'the backup has {sorted(blocks)} instead of {DIRTY}',
             sorted(blocks) == DIRTY)
        restored = self.directory / 'restored.raw'
        self.img('convert', '-O', 'raw', increment, restored)
        must('restored is not what the server has',
             restored.read_bytes() == self.disk.path.read_bytes())

    def resize(self) -> None:
        size = SIZE + MIB
        before = self.disk.path.read_bytes()
        result = call(self.build / 'qemu-img', 'resize', self.options(), size)
        after = self.disk.path.read_bytes()
        if self.disk.grows:
            must(f'resize failed:\n{result.stdout}', result.returncode == 0)
            must('resized to something else', after == before + bytes(MIB))
        else:
            must(f'resized, although it cannot be:\n{result.stdout}',
                 result.returncode == 1 and after == before)
        info = json.loads(self.img('info', '--output=json', '-f', 'qcow2',
                                   self.shell))
        must('the header does not follow',
             info['virtual-size'] == len(after))
        bitmaps = info['format-specific']['data']['bitmaps']
        must(f'bitmaps after resize: {bitmaps}',
             bitmaps == [{'name': 'changes', 'flags': ['auto'],
                          'granularity': GRANULARITY}])

    def server_gone(self) -> None:
        result = call(self.build / 'qemu-io', '-c', 'read 0 512',
                      self.options())
        must(f'opened without a server:\n{result.stdout}',
             result.returncode == 1 and
             'Could not open the RW backing' in result.stdout)
        self.img('check', '-f', 'qcow2', self.shell)

    def run(self) -> None:
        self.disk.path.write_bytes(random.Random(1).randbytes(SIZE))
        with self.disk.serve():
            self.create()
            full = self.full_backup()
            self.write()
        self.server_gone()
        # Neither side knows more than what is in its files
        with self.disk.serve():
            self.incremental_backup(full)
            self.resize()
        self.img('check', '-f', 'qcow2', self.shell)


@contextlib.contextmanager
def terminated(process: 'subprocess.Popen[Any]', kill: bool = False
               ) -> Iterator[None]:
    """End a server that was started, when the context ends."""
    try:
        yield
    finally:
        if kill:
            process.kill()
        else:
            process.terminate()
        process.wait(timeout=SECONDS)


def find_servers(unpacked: Path) -> None:
    """Where servers are: in @unpacked, or installed."""
    paths = [*(str(unpacked / name) for name in
               ('usr/sbin', 'usr/bin', 'sbin', 'bin')),
             os.environ['PATH'], '/usr/sbin', '/sbin']
    os.environ['PATH'] = ':'.join(paths)
    libraries = [*unpacked.glob('usr/lib/*-linux-gnu*'),
                 *unpacked.glob('lib/*-linux-gnu*')]
    if libraries:
        os.environ['LD_LIBRARY_PATH'] = ':'.join(map(str, libraries))


def need_programs(*programs: Tuple[str, str]) -> None:
    """Programs and Debian's packages of them."""
    for program, package in programs:
        if not shutil.which(program):
            raise Skip(f'{program} is missing (Debian: package {package})')


def need_protocol(build: Path, name: str) -> None:
    result = call(build / 'qemu-io', '-c', 'quit',
                  'json:' + json.dumps({'driver': name}))
    if 'Unknown driver' in result.stdout:
        raise Skip(f'this QEMU is built without the driver {name}')


def main(check: Callable[[Path, Path], str]) -> None:
    """Run @check(build, directory), which returns what it has found."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--build', type=Path, default=os.environ.get('BUILD'),
                        help='build directory (default: $BUILD)')
    args = parser.parse_args()
    if not args.build:
        parser.error('no build directory')
    find_servers(Path(args.build).resolve() / 'servers')
    with tempfile.TemporaryDirectory() as directory:
        try:
            print(check(Path(args.build).resolve(), Path(directory)))
        except Skip as skip:
            print(skip)
            sys.exit(SKIP)
        except Failure as failure:
            sys.exit(f'{Path(sys.argv[0]).name}: {failure}')
