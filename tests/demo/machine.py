"""
One QEMU process of the demo: QMP on its standard input and output, and the
guest's serial console, both as sockets with a deadline.  QEMU's own Python
library for QMP moves between the versions this project supports, and the demo
needs little of it, so that it has a client of its own.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import json
import socket
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional


Json = Dict[str, Any]

# How long a machine may live.  On two idle cores it takes less than ten.
SECONDS = 180


class MachineError(Exception):
    """The machine, its monitor or its guest did not do what was asked."""


class Lines:
    """Lines of text over a socket, each read before a common deadline."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._deadline = deadline
        self._pending = b''

    def read(self, waiting_for: str) -> str:
        """Return the next line without its end; @waiting_for is for the
        error message."""
        while b'\n' not in self._pending:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise MachineError(f'time is up, waiting for {waiting_for}')
            self._sock.settimeout(left)
            try:
                data = self._sock.recv(65536)
            except TimeoutError:
                continue
            except ConnectionError:
                data = b''
            if not data:
                raise MachineError(f'QEMU is gone, waiting for {waiting_for}')
            self._pending += data
        line, self._pending = self._pending.split(b'\n', 1)
        return line.decode(errors='replace').rstrip('\r')

    def write(self, line: str) -> None:
        """Send one line."""
        self._sock.sendall(line.encode() + b'\n')

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class Machine:
    """
    A context manager around a QEMU process, which it kills if need be.

    :param qemu: the program
    :param args: its arguments, without monitor and console
    :param console_log: where QEMU copies the serial console to
    :param on_command: is given each QMP command before it is sent
    :param seconds: how long it may live
    """

    # pylint: disable=too-many-instance-attributes

    def __init__(self, qemu: Path, args: List[str], console_log: Path,
                 on_command: Callable[[str, Json], None],
                 seconds: int = SECONDS) -> None:
        # pylint: disable=too-many-arguments,too-many-positional-arguments
        self._deadline = time.monotonic() + seconds
        self._on_command = on_command
        self._events: List[Json] = []
        self._process: subprocess.Popen[bytes]

        qmp, self._qmp_peer = socket.socketpair()
        console, self._console_peer = socket.socketpair()
        self._qmp = Lines(qmp, self._deadline)
        self._console = Lines(console, self._deadline)
        number = self._console_peer.fileno()
        self.command = [
            str(qemu), *args,
            '-chardev',
            f'socket,id=console,fd={number},logfile={console_log}',
            '-serial', 'chardev:console', '-qmp', 'stdio',
        ]

    def __enter__(self) -> 'Machine':
        # The peers are closed here, so that the end of QEMU ends our reading.
        with self._qmp_peer as monitor, self._console_peer as console:
            # pylint: disable=consider-using-with
            self._process = subprocess.Popen(
                self.command, stdin=monitor.fileno(),
                stdout=monitor.fileno(),
                pass_fds=(console.fileno(),))
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._qmp.close()
        self._console.close()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def greet(self) -> None:
        """Take QEMU's greeting, and have the monitor accept commands."""
        if 'QMP' not in self._read_qmp("QEMU's greeting"):
            raise MachineError('QEMU does not greet')
        self._execute('qmp_capabilities', {})

    def cmd(self, command: str, arguments: Optional[Json] = None) -> Any:
        """Execute a QMP command and return its result."""
        arguments = arguments or {}
        self._on_command(command, arguments)
        return self._execute(command, arguments)

    def _execute(self, command: str, arguments: Json) -> Any:
        message = json.dumps({'execute': command, 'arguments': arguments})
        self._qmp.write(message)
        while True:
            reply = self._read_qmp(f'the answer to {command}')
            if 'event' in reply:
                self._events.append(reply)
            elif 'error' in reply:
                raise MachineError(f'QMP command failed: {message}\n'
                                   f'{reply["error"]["desc"]}')
            else:
                return reply['return']

    def _read_qmp(self, waiting_for: str) -> Json:
        reply = json.loads(self._qmp.read(waiting_for))
        assert isinstance(reply, dict)
        return reply

    def event(self, name: str, **data: str) -> Json:
        """Wait for an event whose data has at least @data; return its data.
        Events before it are dropped."""
        while True:
            if not self._events:
                self._events.append(self._read_qmp(f'event {name}'))
            event = self._events.pop(0)
            found: Json = event.get('data', {})
            if event.get('event') == name and data.items() <= found.items():
                return found

    def finish_job(self, job: str) -> None:
        """Wait for the end of a block job, which must be a good one."""
        end = self.event('BLOCK_JOB_COMPLETED', device=job)
        if 'error' in end:
            raise MachineError(f'block job {job} failed: {end["error"]}')

    def guest_line(self) -> str:
        """Return the guest's next line for the host."""
        while True:
            line = self._console.read('the guest')
            # The kernel may have left its cursor in mid-line.
            _, found, said = line.partition('guest: ')
            if found and said.startswith('FAILED'):
                raise MachineError(f'the guest {said}')
            if found:
                return said

    def tell_guest(self, line: str) -> None:
        """Type a line on the serial console."""
        self._console.write(line)

    def wait(self) -> None:
        """Wait for the process to end by itself, and well."""
        left = max(self._deadline - time.monotonic(), 0)
        try:
            status = self._process.wait(left)
        except subprocess.TimeoutExpired as exc:
            raise MachineError('time is up, waiting for QEMU') from exc
        if status:
            raise MachineError(f'QEMU ended with status {status}')
