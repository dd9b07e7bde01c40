# A qemu-storage-daemon for tests, which exports nodes and remembers what it
# has said
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import signal
import subprocess
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from qemu.qmp.legacy import QEMUMonitorProtocol

import iotests
from iotests import qemu_img_map, qemu_io

# Offset and length in bytes
Extents = List[Tuple[int, int]]


def nbd_extents(sock: str, context: str, export: str = '') -> Extents:
    """What a metadata context says, apart from what it says of nothing."""
    name = f',export={export}' if export else ''
    extents = qemu_img_map('--image-opts', 'driver=nbd,server.type=unix,'
                           f'server.path={sock}{name},x-dirty-bitmap='
                           f'{context}')
    return [(e['start'], e['length']) for e in extents if not e['data']]


class Daemon:
    """
    Runs from the time when it is made until shutdown() or kill(); cmd(),
    qmp() and get_log() are as those of iotests.VM.  Several at a time have
    different names.
    """
    def __init__(self, *args: str, name: str = 'daemon') -> None:
        self.sock = os.path.join(iotests.sock_dir, f'{name}-nbd.sock')
        self._log = os.path.join(iotests.test_dir, f'{name}.log')
        self._said = ''
        monitor = os.path.join(iotests.sock_dir, f'{name}-qmp.sock')
        pid_file = os.path.join(iotests.test_dir, f'{name}.pid')
        self._files = [self.sock, self._log, monitor, pid_file]
        self._serves = False
        self._monitor = QEMUMonitorProtocol(monitor, server=True)
        # pylint: disable=consider-using-with
        with open(self._log, 'wb') as log:
            self._process: Optional['subprocess.Popen[bytes]'] = \
                subprocess.Popen([iotests.qsd_prog, '--chardev',
                                  f'socket,id=monitor,path={monitor}',
                                  '--monitor', 'monitor', *args,
                                  '--pidfile', pid_file],
                                 stdout=log, stderr=subprocess.STDOUT)
        try:
            self._monitor.accept()
            while not os.path.exists(pid_file):
                assert self._process.poll() is None
                time.sleep(0.01)
        except BaseException as exc:
            self.kill()
            raise RuntimeError(f'qemu-storage-daemon: {self._said}') from exc

    def __enter__(self) -> 'Daemon':
        return self

    def __exit__(self, *args: object) -> None:
        self.kill()

    # QMP

    def qmp(self, command: str, arguments: Optional[Dict[str, Any]] = None,
            **options: Any) -> Dict[str, Any]:
        """The answer, be it an error or not."""
        options = {key.replace('_', '-'): value
                   for key, value in options.items()}
        return self._monitor.cmd_raw(command, {**(arguments or {}), **options})

    def cmd(self, command: str, arguments: Optional[Dict[str, Any]] = None,
            **options: Any) -> Any:
        """Returns what has to be a success."""
        answer = self.qmp(command, arguments, **options)
        assert 'error' not in answer, answer
        return answer['return']

    def event_wait(self, name: str, timeout: float = 60.0) -> Any:
        while True:
            event = self._monitor.pull_event(wait=timeout)
            if event and event['event'] == name:
                return event

    # NBD

    def export(self, node: str = 'shell', *, bitmaps: Sequence[Any] = (),
               writable: bool = True, **options: Any) -> str:
        """
        Export a node under its name; returns what qemu-img and qemu-io take
        for the image.
        """
        if not self._serves:
            self.cmd('nbd-server-start', addr={
                'type': 'unix', 'data': {'path': self.sock}})
            self._serves = True
        self.cmd('block-export-add', type='nbd', id=f'export-{node}',
                 node_name=node, name=node, writable=writable,
                 bitmaps=list(bitmaps), **options)
        return self.client(node)

    def unexport(self) -> None:
        """Also goes away what clients have open."""
        self.cmd('nbd-server-stop')
        self._serves = False

    def client(self, node: str = 'shell') -> str:
        return f'nbd+unix:///{node}?socket={self.sock}'

    def io(self, *commands: str, node: str = 'shell',
           check: bool = True) -> str:
        """Let a client execute commands of qemu-io."""
        args = [arg for command in commands for arg in ('-c', command)]
        return qemu_io('-f', 'raw', *args, self.client(node),
                       check=check).stdout

    def dirty(self, bitmap: str = 'b', node: str = 'shell') -> Extents:
        """What a client is told of a bitmap that is exported."""
        return nbd_extents(self.sock, f'qemu:dirty-bitmap:{bitmap}', node)

    # What clients wait for

    def freeze(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    # The end

    def get_log(self) -> str:
        """What it has said so far, or had said when it ended."""
        if self._process:
            with open(self._log, encoding='utf-8', errors='replace') as file:
                self._said = file.read()
        return self._said

    def shutdown(self) -> None:
        """In peace: everything is stored.  Fails if the daemon does."""
        if self._process:
            self._process.terminate()
            code = self._process.wait(timeout=60)
            self._end()
            assert not code, f'exit code {code}: {self._said}'

    def kill(self) -> None:
        """As if the power failed, apart from what Linux has in its cache."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._end()

    def _end(self) -> None:
        self.get_log()
        self._process = None
        self._monitor.close()
        for path in self._files:
            iotests.try_remove(path)
