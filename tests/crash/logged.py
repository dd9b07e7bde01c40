"""
A shell with a write-intent log: no bitmap is lost by a kill, and each has every
change; those that record may have whole chunks of the log in addition, which
are larger than most of the disks here.  Every other one has an allocation map,
too: what that says to be zero is zero.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from typing import Any, Callable, Dict, List

from crash import KIB, MOMENTS, Shell
from nbd_client import STATE_ZERO, Client
from programs import Daemon, Failure

GRANULE = 64 * KIB

# More happens to the shell's file, and commands are durable when they return
LOG_MOMENTS = {
    **MOMENTS, 'open': 16, 'write': 14, 'add': 12, 'remove': 14, 'clear': 12,
    'merge': 12, 'disable': 12, 'writable': 16, 'active': 16, 'resize': 14,
    'backup': 12,
}


class LoggedShell(Shell):
    """A shell, the model of it, and what happens to it."""
    options = ',rw-backing-log=on'
    moments = LOG_MOMENTS
    durable = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._has_map = self._rng.random() < 0.5
        if self._has_map:
            self.options += ',rw-backing-map=scan'
            for offset in range(0, len(self.model.disk), 2 * GRANULE):
                end = min(offset + GRANULE, len(self.model.disk))
                self.model.disk[offset:end] = bytes(end - offset)
            self.disk.write_bytes(self.model.disk)

    def _may_be_lost(self) -> bool:
        return False

    def _notices_foreign_writes(self) -> bool:
        """Not before the lease has ended, nor on a device."""
        return self._clean

    def _crashed(self) -> None:
        super()._crashed()
        for bitmap in self.model.bitmaps.values():
            if bitmap.recording or bitmap.maybe_flipped:
                bitmap.maybe = bytearray(b'\1' * len(bitmap.maybe))

    def _verify_consistent(self, daemon: Daemon, names: List[str],
                           found: Dict[str, Any]) -> None:
        super()._verify_consistent(daemon, names, found)
        if self._has_map:
            self._verify_map(daemon)

    def _verify_map(self, daemon: Daemon) -> None:
        """The disk has no holes: nobody but the map says anything of zeroes."""
        self._export(daemon, [])
        client = Client(self._socket, 'disk', 'base:allocation')
        for offset, length, flags in client.block_status(len(self.model.disk)):
            if flags & STATE_ZERO:
                if any(self.model.disk[offset:offset + length]):
                    raise Failure(f'data in {length} bytes from {offset} on, '
                                  'which are said to be zeroes')
                self._stats['KiB known to be zero'
                            if self._clean else
                            'KiB known to be zero after a kill'] += \
                    length // KIB
        client.close()
        self._unexport(daemon)

    def _node(self, **options: Any) -> Any:
        return super()._node(**{'rw-backing-checkpoint-interval': 1,
                                **options})

    def _cmd_killed(self, daemon: Daemon, victim: bool, command: str,
                    **arguments: Any) -> None:
        moment = 'disable' if command == 'enable' else command
        with self._perhaps_killed(moment, moment if victim else ''):
            daemon.cmd(f'block-dirty-bitmap-{command}', **arguments)

    def _plan(self, victim: str) -> List[Callable[[Daemon, str], None]]:
        plan = super()._plan(victim)
        plan.insert(self._rng.randrange(len(plan)), self._backup)
        return plan + [self._backup] if victim == 'backup' else plan

    def _backup(self, daemon: Daemon, victim: str) -> None:
        """An incremental backup, which empties the bitmap if it succeeds."""
        names = [name for name, bitmap in self.model.bitmaps.items()
                 if bitmap.recording and not bitmap.gap]
        if not names:
            return
        name = self._rng.choice(names)
        target = self._directory / 'backup.raw'
        target.write_bytes(self.model.bitmaps[name].start)
        daemon.cmd('blockdev-add', driver='file', node_name='backup',
                   filename=str(target))
        self.model.bitmaps[name].maybe_cleared = True
        with self._perhaps_killed('backup', victim):
            daemon.cmd('blockdev-backup', job_id='backup', device='shell',
                       target='backup', sync='incremental', bitmap=name)
            while daemon.event('JOB_STATUS_CHANGE')['status'] != 'null':
                pass
            # It is stored soon after the end, or by the next command
            daemon.cmd('block-dirty-bitmap-enable', node='shell', name=name)
        daemon.cmd('blockdev-del', node_name='backup')
        if target.read_bytes() != self.model.disk:
            raise Failure(f"backup with bitmap '{name}' differs from the disk")
        self.model.bitmaps[name].clear(bytes(self.model.disk))
        self._stats['backups that empty a bitmap'] += 1
