"""
QEMU's programs under the threat of being killed: qemu-storage-daemon with its
monitor, and qemu-img.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

SECONDS = 120
KILLED = -9


class Failure(Exception):
    """What is wrong, in one sentence."""


class Skip(Exception):
    """What is missing."""


class Killed(Exception):
    """The process is no longer there."""


class QmpError(Exception):
    """What QEMU says why it does not do what it was asked for."""


class KillAt:
    """Kills processes at a modification of a file, see kill-at.c."""

    FORMAT = '=QQqq'

    def __init__(self, directory: Path) -> None:
        source = Path(__file__).with_name('kill-at.c')
        library = directory / 'kill-at.so'
        try:
            subprocess.run(['cc', '-O', '-Wall', '-shared', '-fPIC', '-o',
                            str(library), str(source), '-ldl'], check=True)
        except FileNotFoundError:
            raise Skip('cc is missing (Debian: package gcc)') from None
        control = directory / 'kill-at'
        control.write_bytes(bytes(struct.calcsize(self.FORMAT)))
        with open(control, 'r+b') as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.environment = {**os.environ, 'LD_PRELOAD': str(library),
                            'KILL_AT': str(control)}

    def arm(self, path: Path, countdown: int, partial: int) -> None:
        """
        Kill at modification number @countdown from now on, after the first
        @partial bytes of it; -1 means all.
        """
        st = os.stat(path)
        struct.pack_into(self.FORMAT, self._map, 0, st.st_dev, st.st_ino,
                         countdown, partial)

    def disarm(self) -> None:
        """Kill nobody."""
        struct.pack_into(self.FORMAT, self._map, 0, 0, 0, 0, 0)


class Daemon:
    """A qemu-storage-daemon that serves nothing yet."""

    def __init__(self, build: Path, kill_at: KillAt, log: Path) -> None:
        self._log = log
        with open(log, 'w', encoding='utf-8') as stderr:
            # pylint: disable=consider-using-with
            self.process = subprocess.Popen(
                [str(build / 'qemu-storage-daemon'),
                 '--chardev', 'stdio,id=monitor', '--monitor', 'monitor'],
                text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=stderr, env=kill_at.environment)
        self._events: List[Dict[str, Any]] = []
        self._message()
        self.cmd('qmp_capabilities')

    def said(self) -> str:
        """Warnings and errors up to now."""
        return self._log.read_text(encoding='utf-8', errors='replace')

    def _message(self) -> Dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        try:
            message = json.loads(line)
        except ValueError:
            self.ended()
            raise Killed from None
        assert isinstance(message, dict)
        return message

    def ended(self) -> int:
        """
        The exit status; another one than 0 or that of a process that was
        killed is a failure.
        """
        status = self.process.wait(SECONDS)
        if status not in (0, KILLED):
            raise Failure(f'qemu-storage-daemon: exit status {status}\n'
                          f'{self.said()}')
        return status

    def send(self, command: str, **arguments: Any) -> None:
        """Send a command, do not wait."""
        assert self.process.stdin
        try:
            self.process.stdin.write(json.dumps({
                'execute': command,
                'arguments': {key.replace('_', '-'): value
                              for key, value in arguments.items()}}) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            self.ended()
            raise Killed from None

    def cmd(self, command: str, **arguments: Any) -> Any:
        """What the command returns."""
        self.send(command, **arguments)
        while True:
            message = self._message()
            if 'error' in message:
                raise QmpError(message['error']['desc'])
            if 'return' in message:
                return message['return']
            self._events.append(message)

    def event(self, name: str) -> Dict[str, Any]:
        """Wait for an event, forget those before it."""
        while True:
            message = self._events.pop(0) if self._events else self._message()
            if message.get('event') == name:
                data = message['data']
                assert isinstance(data, dict)
                return data

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.ended()

    def end(self) -> None:
        """Leave nothing behind, whatever has happened."""
        self.process.kill()
        self.process.wait(SECONDS)
        for stream in (self.process.stdin, self.process.stdout):
            try:
                if stream:
                    stream.close()
            except BrokenPipeError:
                pass


class Img:
    """qemu-img, with all it has said until somebody looks."""

    def __init__(self, build: Path, kill_at: KillAt) -> None:
        self._program = str(build / 'qemu-img')
        self._kill_at = kill_at
        self.said = ''

    def __call__(self, *words: object, fails: Optional[int] = None
                 ) -> 'subprocess.CompletedProcess[str]':
        """
        Run a command that ends well, or with exit status @fails; or is
        killed.
        """
        result = subprocess.run(
            [self._program, *map(str, words)], check=False, text=True,
            timeout=SECONDS, env=self._kill_at.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE)
        self.said += result.stderr
        if result.returncode == KILLED:
            raise Killed
        if result.returncode not in (0, fails):
            raise Failure(f'{result.args}: exit status {result.returncode}\n'
                          f'{result.stdout}{result.stderr}')
        return result
