"""
A shell and its disk go through several lives, each of which ends by a kill at
some moment or in a proper way; what is left is compared with the model.

SPDX-License-Identifier: GPL-2.0-or-later
"""

import os
import random
import re
import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import nbd_client
from model import SECTOR, Model
from nbd_client import Client
from programs import (KILLED, Daemon, Failure, Img, KillAt, Killed, QmpError,
                      Skip)

KIB = 1024
MIB = 1024 * KIB
PAGE = 4 * KIB

# The moments of a kill, and how many modifications of the shell's file each of
# them has at most, about; 0 where the kill comes after a random time
MOMENTS = {
    'idle': 0, 'writes': 0, 'write': 10, 'close': 14, 'close by time': 0,
    'open': 7, 'open by time': 0, 'add': 1, 'remove': 6, 'clear': 0,
    'merge': 0, 'disable': 0, 'read-only': 12, 'writable': 7, 'inactive': 12,
    'active': 7, 'resize': 2, 'img add': 20, 'img clear': 20,
    'img remove': 16, 'img repair': 16, 'img resize': 18,
}
# What a disk of a fixed size does not have
RESIZING = ('resize', 'img resize')

LOST = re.compile('bitmaps (must now be|are now) considered inconsistent')


class Shell:
    """A shell, the model of it, and what happens to it."""

    # pylint: disable=too-many-instance-attributes

    # Creation options, each with a comma before it
    options = ',rw-backing-log=off'
    moments = MOMENTS
    # Is a bitmap in the image when a command has added it?
    durable = False

    def __init__(self, build: Path, directory: Path, kill_at: KillAt,
                 rng: random.Random, stats: Counter[str]) -> None:
        self._build = build
        self._directory = directory
        self._kill_at = kill_at
        self._rng = rng
        self._stats = stats
        self.img = Img(build, kill_at)
        self.path = directory / 'shell.qcow2'
        self.disk = directory / 'disk.raw'
        self.loop: Optional[Path] = None
        self.log: List[str] = []
        self._daemon: Optional[Daemon] = None
        self._names = 0
        self._read_only = False
        # Warnings and errors since bitmaps were verified
        self._said = ''
        # Ended in a proper way: every bitmap has to be there
        self._clean = True
        size = rng.choice((1, 2, 3)) * MIB + rng.choice((0, 7)) * SECTOR
        self.model = Model(rng.randbytes(size))
        self.disk.write_bytes(self.model.disk)

    def _say(self, text: str) -> None:
        self.log.append(text)

    # The disk

    def use_loop(self) -> None:
        """The disk becomes a block device."""
        result = subprocess.run(
            ['losetup', '--find', '--show', str(self.disk)], check=False,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if result.returncode:
            raise Skip(f'no loop device: {result.stderr.strip()}')
        self.loop = Path(result.stdout.strip())

    def release(self) -> None:
        """Leave nothing behind."""
        if self._daemon:
            self._daemon.end()
        if self.loop:
            subprocess.run(['losetup', '--detach', str(self.loop)],
                           check=True)

    def _read_disk(self) -> bytes:
        return (self.loop or self.disk).read_bytes()

    def foreign_write(self) -> None:
        """Somebody writes to the disk, and knows of no shell."""
        rng = self._rng
        path = self.loop or self.disk
        length = rng.choice((1, 8, 128)) * SECTOR
        offset = rng.randrange(len(self.model.disk) // SECTOR) * SECTOR
        data = rng.randbytes(min(length, len(self.model.disk) - offset))
        self._say(f'foreign write of {len(data)} bytes at {offset}')
        before = os.stat(path).st_mtime_ns
        while True:
            with open(path, 'r+b', buffering=0) as file:
                file.seek(offset)
                file.write(data)
            # Some systems have modification times in units of some ms
            if self.loop or os.stat(path).st_mtime_ns != before:
                break
        self.model.foreign_write(offset, data)
        self._stats['foreign writes'] += 1

    # Kills

    @contextmanager
    def _perhaps_killed(self, moment: str, victim: str,
                        path: Optional[Path] = None) -> Iterator[None]:
        """If @moment is the chosen one, the process is killed in here."""
        if moment != victim:
            yield
            return
        rng = self._rng
        countdown = rng.randint(1, self.moments[moment])
        partial = rng.choice((0, -1, PAGE, rng.randrange(1, 16) * PAGE))
        self._say(f'kill at {moment}, modification {countdown}, '
                  f'after {partial} bytes')
        self._kill_at.arm(path or self.path, countdown, partial)
        try:
            yield
        except Killed:
            self._stats[f'killed: {moment}'] += 1
            raise
        finally:
            self._kill_at.disarm()
        self._stats[f'survived: {moment}'] += 1

    def _kill_by_time(self, moment: str, daemon: Daemon, longest: float
                      ) -> None:
        """After a random time, unless it has ended before."""
        delay = self._rng.uniform(0, longest)
        self._say(f'kill {delay * 1000:.1f} ms after {moment}')
        time.sleep(delay)
        daemon.process.kill()
        status = daemon.ended()
        self._stats[f'{"killed" if status else "survived"}: {moment}'] += 1
        if status:
            raise Killed

    # Setup

    def create(self) -> None:
        """A shell with some bitmaps."""
        rng = self._rng
        cluster_size = rng.choice((512, 4096, 65536, 65536))
        self.img('create', '-f', 'qcow2', '-o',
                 f'rw-backing={self.loop or self.disk.name},'
                 f'cluster_size={cluster_size}{self.options}', self.path)
        for _ in range(rng.randint(1, 3)):
            granularity = rng.choice((512, 4096, 65536, MIB))
            name = self._new_name()
            recording = rng.random() < 0.8
            self.img('bitmap', '--add', *([] if recording else ['--disable']),
                     '-g', granularity, '-f', 'qcow2', self.path, name)
            self.model.add(name, granularity, recording)

    def _new_name(self) -> str:
        self._names += 1
        return f'{"n" * self._rng.choice((1, 200))}{self._names}'

    # A life

    def live(self, victim: str) -> None:
        """Open, look at what is there, change it, come to an end."""
        self._say(f'--- {victim}')
        self._daemon = Daemon(self._build, self._kill_at,
                              self._directory / 'log')
        try:
            self._live(self._daemon, victim)
            self._clean = True
        except Killed:
            self._clean = False
            self._crashed()
        except (QmpError, nbd_client.ServerError) as error:
            raise Failure(f'QEMU refuses what it should do: {error}\n'
                          f'{self._daemon.said()}') from None
        finally:
            self._daemon.end()
            self._said += self._daemon.said()
            self._daemon = None
        self._between(victim)

    def _crashed(self) -> None:
        self.model.crashed()

    def _may_be_lost(self) -> bool:
        """Bitmaps of the life before."""
        return not self._clean

    def _notices_foreign_writes(self) -> bool:
        """Between two lives."""
        return True

    def _live(self, daemon: Daemon, victim: str) -> None:
        self._open(daemon, victim)
        self._verify(daemon)
        if not self.model.bitmaps:
            self._add(daemon, '')
        for action in self._plan(victim):
            self._say(action.__name__)
            action(daemon, victim)
        if victim in ('idle', 'writes'):
            if victim == 'writes':
                self._writes_in_flight()
            daemon.kill()
            self._stats[f'killed: {victim}'] += 1
            raise Killed
        self._close(daemon, victim)

    def _plan(self, victim: str) -> List[Callable[[Daemon, str], None]]:
        """What is done in a life, so that the chosen moment comes."""
        actions: List[Callable[[Daemon, str], None]] = [
            self._write, self._write, self._write, self._add, self._remove,
            self._clear, self._merge, self._disable, self._reopen,
            self._inactivate]
        if not self.loop:
            actions.append(self._resize)
        plan = [self._rng.choice(actions)
                for _ in range(self._rng.randint(2, 7))]
        last = {'write': self._write, 'add': self._add,
                'remove': self._remove, 'clear': self._clear,
                'merge': self._merge, 'disable': self._disable,
                'read-only': self._reopen, 'writable': self._reopen,
                'inactive': self._inactivate, 'active': self._inactivate,
                'resize': self._resize,
                # Possible whatever has happened before
                '': self._add}
        return plan + [last[victim]] if victim in last else plan

    def _node(self, **options: Any) -> Dict[str, Any]:
        return {'driver': 'qcow2', 'node-name': 'shell', 'file': 'file',
                'rw-backing': 'disk', 'discard': 'unmap', **options}

    def _open(self, daemon: Daemon, victim: str) -> None:
        daemon.cmd('blockdev-add', driver='file', node_name='file',
                   filename=str(self.path),
                   discard=self._rng.choice(('unmap', 'ignore')))
        daemon.cmd('blockdev-add', node_name='disk', discard='unmap',
                   driver='host_device' if self.loop else 'file',
                   filename=str(self.loop or self.disk))
        read_only = self._rng.random() < 0.2
        if victim == 'open by time':
            daemon.send('blockdev-add', **self._node())
            self._kill_by_time(victim, daemon, 0.02)
        with self._perhaps_killed('open', victim):
            daemon.cmd('blockdev-add', **self._node(**{
                'read-only': read_only}))
        if read_only:
            self._say('read-only at first')
            with self._perhaps_killed('writable', victim):
                daemon.cmd('blockdev-reopen', options=[self._node()])

    def _close(self, daemon: Daemon, victim: str) -> None:
        self._unexport(daemon)
        if victim == 'close by time':
            daemon.send('quit')
            self._kill_by_time(victim, daemon, 0.02)
        else:
            with self._perhaps_killed('close', victim):
                daemon.cmd('quit')
                if daemon.ended() == KILLED:
                    raise Killed
        said = daemon.said()
        if 'Lost' in said:
            raise Failure(f'bitmaps lost at the end:\n{said}')

    # NBD

    @property
    def _socket(self) -> str:
        return str(self._directory / 'nbd')

    def _export(self, daemon: Daemon, bitmaps: List[str]) -> None:
        try:
            daemon.cmd('nbd-server-start', addr={
                'type': 'unix', 'data': {'path': self._socket}})
        except QmpError:
            pass    # there is one already
        self._unexport(daemon)
        daemon.cmd('block-export-add', type='nbd', id='export',
                   node_name='shell', name='disk', writable=True,
                   bitmaps=bitmaps)

    @staticmethod
    def _unexport(daemon: Daemon) -> None:
        try:
            daemon.cmd('block-export-del', id='export', mode='hard')
        except QmpError:
            return
        daemon.event('BLOCK_EXPORT_DELETED')

    # Verification

    def _verify(self, daemon: Daemon) -> None:
        """The disk and all bitmaps; removes those that are no longer good."""
        self.model.check_disk(self._read_disk())
        node = next(node for node in
                    daemon.cmd('query-named-block-nodes', flat=True)
                    if node['node-name'] == 'shell')
        if node['image']['virtual-size'] != len(self.model.disk):
            raise Failure('wrong size of the shell')
        found = {bitmap['name']: bitmap
                 for bitmap in node.get('dirty-bitmaps', [])}
        said = self._said + self.img.said + daemon.said()
        self._said = self.img.said = ''
        for name in set(self.model.bitmaps) - set(found):
            if self._clean or not (self.model.bitmaps[name].optional or
                                   (self._may_be_lost() and
                                    LOST.search(said))):
                raise Failure(f"bitmap '{name}' is gone without a message:\n"
                              f'{said}')
            self._stats['bitmaps gone while added or removed'
                        if self.model.bitmaps[name].optional else
                        'bitmaps gone with a message'] += 1
            del self.model.bitmaps[name]
        for name in set(found) - set(self.model.bitmaps):
            raise Failure(f"there is a bitmap '{name}'")
        consistent = [name for name, bitmap in found.items()
                      if not bitmap.get('inconsistent')]
        for name in set(found) - set(consistent):
            if not self._may_be_lost() and \
                    not self.model.bitmaps[name].outdated:
                raise Failure(f"bitmap '{name}' is inconsistent:\n{said}")
            daemon.cmd('block-dirty-bitmap-remove', node='shell', name=name)
            del self.model.bitmaps[name]
            self._stats['bitmaps inconsistent'] += 1
        self._verify_consistent(daemon, consistent, found)

    def _verify_consistent(self, daemon: Daemon, names: List[str],
                           found: Dict[str, Any]) -> None:
        self._export(daemon, names)
        for name in names:
            bitmap = self.model.bitmaps[name]
            if found[name]['granularity'] != bitmap.granularity:
                raise Failure(f"wrong granularity of bitmap '{name}'")
            if found[name]['recording'] != bitmap.recording:
                if not bitmap.maybe_flipped:
                    raise Failure(f"wrong state of bitmap '{name}'")
                bitmap.recording = not bitmap.recording
                bitmap.gap = True
            bitmap.maybe_flipped = False
            client = Client(self._socket, 'disk', f'qemu:dirty-bitmap:{name}')
            bits = bytearray(len(self.model.disk) // SECTOR)
            for offset, length, flags in client.block_status(
                    len(self.model.disk)):
                if flags:
                    bitmap.mark(bits, offset, length)
            client.close()
            self.model.check_bits(name, bits)
            bitmap.optional = False
            self._stats['bitmaps right'
                        if self._clean else 'bitmaps right after a kill'] += 1
        self._unexport(daemon)
        if names:
            self._verify_backup(daemon, self._rng.choice(names))

    def _verify_backup(self, daemon: Daemon, name: str) -> None:
        """An increment on top of the copy gives the disk."""
        copy = self.model.backup_source(name)
        if copy is None:
            return
        target = self._directory / 'copy.raw'
        target.write_bytes(copy)
        daemon.cmd('blockdev-add', driver='file', node_name='target',
                   filename=str(target))
        daemon.cmd('blockdev-backup', job_id='job', device='shell',
                   target='target', sync='bitmap', bitmap=name,
                   bitmap_mode='never')
        while daemon.event('JOB_STATUS_CHANGE')['status'] != 'null':
            pass
        daemon.cmd('blockdev-del', node_name='target')
        if target.read_bytes() != self.model.disk:
            raise Failure(f"backup with bitmap '{name}' differs from the disk")
        self._stats['backups'] += 1

    # What is done in a life

    def _send_write(self, client: Client, taken: List[range]
                    ) -> Optional[int]:
        rng = self._rng
        count = len(self.model.disk) // SECTOR
        length = min(rng.choice((1, 3, 8, 100, 300)), count)
        first = rng.randrange(count - length + 1)
        if any(first < r.stop and r.start < first + length for r in taken):
            return None
        taken.append(range(first, first + length))
        offset, length = first * SECTOR, length * SECTOR
        if rng.random() < 0.7:
            data = rng.randbytes(length)
            request = client.send(nbd_client.WRITE, offset, data=data)
        else:
            data = bytes(length)
            request = client.send(
                nbd_client.WRITE_ZEROES, offset, length,
                flags=rng.choice((0, nbd_client.FLAG_NO_HOLE)))
        self.model.sent(request, offset, data)
        return request

    def _write(self, daemon: Daemon, victim: str) -> None:
        """Several at a time, perhaps a flush."""
        with self._perhaps_killed('write', victim, self.loop or self.disk):
            try:
                self._export(daemon, [])
                client = Client(self._socket, 'disk')
                self._write_and_wait(client)
                client.close()
            except OSError:
                daemon.ended()
                raise Killed from None

    def _write_and_wait(self, client: Client) -> None:
        taken: List[range] = []
        requests = {self._send_write(client, taken)
                    for _ in range(self._rng.randint(1, 12))} - {None}
        while requests:
            request = client.reply()
            self.model.answered(request)
            requests.remove(request)
        if self._rng.random() < 0.4:
            client.send(nbd_client.FLUSH)
            client.reply()
        if self._rng.random() < 0.3:
            self._discard(client)
        self._stats['write phases'] += 1

    def _discard(self, client: Client) -> None:
        count = len(self.model.disk) // SECTOR
        first = self._rng.randrange(count)
        length = min(count - first, 64)
        request = client.send(nbd_client.TRIM, first * SECTOR, length * SECTOR)
        self.model.sent(request, first * SECTOR, bytes(length * SECTOR))
        client.reply()
        self.model.answered(request, or_unchanged=True)
        self.model.check_disk(self._read_disk())

    def _writes_in_flight(self) -> None:
        """Writes of which some are not answered when the end comes."""
        assert self._daemon
        self._export(self._daemon, [])
        client = Client(self._socket, 'disk')
        taken: List[range] = []
        requests = [request for request in
                    (self._send_write(client, taken) for _ in range(16))
                    if request]
        for _ in range(self._rng.randint(0, len(requests))):
            self.model.answered(client.reply())

    def _choose(self) -> Optional[str]:
        names = list(self.model.bitmaps)
        return self._rng.choice(names) if names else None

    def _add(self, daemon: Daemon, victim: str) -> None:
        if len(self.model.bitmaps) > 5:
            return
        name = self._new_name()
        granularity = self._rng.choice((512, 4096, 65536, MIB))
        recording = self._rng.random() < 0.8
        self.model.add(name, granularity, recording).optional = True
        with self._perhaps_killed('add', victim):
            daemon.cmd('block-dirty-bitmap-add', node='shell', name=name,
                       granularity=granularity, persistent=True,
                       disabled=not recording)
        self.model.bitmaps[name].optional = not self.durable

    def _stored(self) -> None:
        """All bitmaps are in the image now."""
        for bitmap in self.model.bitmaps.values():
            bitmap.optional = False

    def _remove(self, daemon: Daemon, victim: str) -> None:
        name = self._choose()
        if name is None:
            return
        self.model.bitmaps[name].optional = True
        with self._perhaps_killed('remove', victim):
            daemon.cmd('block-dirty-bitmap-remove', node='shell', name=name)
        del self.model.bitmaps[name]

    def _cmd_killed(self, daemon: Daemon, victim: bool, command: str,
                    **arguments: Any) -> None:
        """A command that does not modify the shell's file."""
        name = f'block-dirty-bitmap-{command}'
        if victim:
            daemon.send(name, **arguments)
            self._kill_by_time(command, daemon, 0.002)
        daemon.cmd(name, **arguments)

    def _clear(self, daemon: Daemon, victim: str) -> None:
        name = self._choose()
        if name is None:
            return
        self.model.bitmaps[name].maybe_cleared = True
        self._cmd_killed(daemon, victim == 'clear', 'clear', node='shell',
                         name=name)
        self.model.bitmaps[name].clear(bytes(self.model.disk))

    def _merge(self, daemon: Daemon, victim: str) -> None:
        target, source = self._choose(), self._choose()
        if target is None or source is None or target == source:
            return
        self.model.may_merge(target, source)
        self._cmd_killed(daemon, victim == 'merge', 'merge', node='shell',
                         target=target, bitmaps=[source])
        self.model.merge(target, source)

    def _disable(self, daemon: Daemon, victim: str) -> None:
        name = self._choose()
        if name is None:
            return
        bitmap = self.model.bitmaps[name]
        command = 'disable' if bitmap.recording else 'enable'
        bitmap.maybe_flipped = True
        self._cmd_killed(daemon, victim == 'disable', command, node='shell',
                         name=name)
        bitmap.maybe_flipped = False
        bitmap.recording = not bitmap.recording
        bitmap.gap = True

    def _reopen(self, daemon: Daemon, victim: str) -> None:
        self._unexport(daemon)
        with self._perhaps_killed('read-only', victim):
            daemon.cmd('blockdev-reopen', options=[
                self._node(**{'read-only': True})])
        self._stored()
        foreign = self._rng.random() < 0.2
        if foreign:
            self.foreign_write()
        with self._perhaps_killed('writable', victim):
            daemon.cmd('blockdev-reopen', options=[self._node()])
        if foreign:
            self._verify_again(daemon)
        self._stats['reopened'] += 1

    def _inactivate(self, daemon: Daemon, victim: str) -> None:
        self._unexport(daemon)
        with self._perhaps_killed('inactive', victim):
            daemon.cmd('blockdev-set-active', node_name='shell', active=False)
        self._stored()
        foreign = self._rng.random() < 0.2
        if foreign:
            self.foreign_write()
        with self._perhaps_killed('active', victim):
            daemon.cmd('blockdev-set-active', node_name='disk', active=True)
            daemon.cmd('blockdev-set-active', node_name='shell', active=True)
        self._verify_again(daemon)
        self._stats['inactivated'] += 1

    def _verify_again(self, daemon: Daemon) -> None:
        """After something that may have been no less than an end."""
        self._clean = True
        self._verify(daemon)

    def _resize(self, daemon: Daemon, victim: str) -> None:
        self._unexport(daemon)
        size = len(self.model.disk) + self._rng.choice((1, 100, 2048)) * SECTOR
        try:
            with self._perhaps_killed('resize', victim):
                daemon.cmd('block_resize', node_name='shell', size=size)
        except Killed:
            if self.disk.stat().st_size == size:
                self.model.resize(size)
            raise
        self.model.resize(size)

    # Between two lives

    def _between(self, victim: str) -> None:
        rng = self._rng
        if victim.startswith('img '):
            try:
                self._use_img(victim)
            except Killed:
                self._clean = False
                self._crashed()
        if rng.random() < 0.2 and self._notices_foreign_writes():
            self.foreign_write()
        result = self.img('check', '-f', 'qcow2', self.path, fails=3)
        if result.returncode:
            self._stats['leaks'] += 1
        if rng.random() < 0.5:
            self._repair('')

    def _repair(self, victim: str) -> None:
        with self._perhaps_killed('img repair', victim):
            self.img('check', '-r', 'all', '-f', 'qcow2', self.path)
        self.img('check', '-f', 'qcow2', self.path)
        self._stats['repaired'] += 1

    def _img_usable(self) -> List[str]:
        """Bitmaps that qemu-img has to find consistent."""
        if not self._clean:
            return []
        return [name for name, bitmap in self.model.bitmaps.items()
                if not bitmap.outdated]

    def _use_img(self, victim: str) -> None:
        names = self._img_usable()
        name = self._rng.choice(names) if names else None
        if victim == 'img repair':
            self._repair(victim)
        elif victim == 'img resize' and not self.loop:
            self._img_resize(victim)
        elif victim == 'img add':
            name = self._new_name()
            self.model.add(name, 65536, True).optional = True
            with self._perhaps_killed(victim, victim):
                self.img('bitmap', '--add', '-f', 'qcow2', self.path, name)
            self.model.bitmaps[name].optional = False
        elif name and victim == 'img remove':
            self.model.bitmaps[name].optional = True
            with self._perhaps_killed(victim, victim):
                self.img('bitmap', '--remove', '-f', 'qcow2', self.path, name)
            del self.model.bitmaps[name]
        elif name and victim == 'img clear':
            self.model.bitmaps[name].maybe_cleared = True
            with self._perhaps_killed(victim, victim):
                self.img('bitmap', '--clear', '-f', 'qcow2', self.path, name)
            self.model.bitmaps[name].clear(bytes(self.model.disk))

    def _img_resize(self, victim: str) -> None:
        size = len(self.model.disk) + 300 * SECTOR
        if any(bitmap.outdated for bitmap in self.model.bitmaps.values()) or \
                not self._clean:
            return
        try:
            with self._perhaps_killed(victim, victim):
                self.img('resize', '-f', 'qcow2', self.path, size)
        except Killed:
            if self.disk.stat().st_size == size:
                self.model.resize(size)
            raise
        self.model.resize(size)
