# A Ceph cluster in a room, see room.py: a real one, with one monitor and one
# OSD that keeps its objects in memory.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import contextlib
import json
import subprocess
import uuid
from pathlib import Path
from typing import Iterator

import room
from remote_disk import call, free_port, run, terminated, wait_for

PROGRAMS = ('ceph', 'ceph-mon', 'ceph-osd', 'monmaptool', 'rbd')
CONFIG = '''
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]
auth cluster required = none
auth service required = none
auth client required = none
mon allow pool size one = true
osd pool default size = 1
osd pool default min size = 1
osd crush chooseleaf type = 0
osd crush initial weight = 1
osd objectstore = memstore
osd fast shutdown = false
osd client watch timeout = 5
[client]
client mount timeout = 5
rados mon op timeout = 40
rados osd op timeout = 40
[mon.m]
mon data = {directory}/mon
[osd.0]
osd data = {directory}/osd
'''
IMAGE = 'rbd/disk'


class Image:
    """The image in the cluster, as if it was a file."""

    def __init__(self, directory: Path) -> None:
        self.copy = directory / 'image'

    def write_bytes(self, data: bytes) -> None:
        """What it begins with, before there is a cluster."""
        self.copy.write_bytes(data)

    def read_bytes(self) -> bytes:
        self.copy.unlink(missing_ok=True)
        run('rbd', 'export', '--no-progress', IMAGE, self.copy)
        return self.copy.read_bytes()


class Cluster:
    """Keeps what it has while it does not run."""

    def __init__(self, directory: Path) -> None:
        room.need_programs(*PROGRAMS)
        self.directory = directory
        self.image = Image(directory)
        self.is_new = True
        fsid, v2, v1 = uuid.uuid4(), free_port(), free_port()
        config = Path('/etc/ceph/ceph.conf')
        config.parent.mkdir(exist_ok=True)
        config.write_text(CONFIG.format(fsid=fsid, v2=v2, v1=v1,
                                        directory=directory), 'ascii')
        for name in ('mon', 'osd', '/var/log/ceph', '/run/ceph'):
            (directory / name).mkdir(parents=True, exist_ok=True)
        monmap = directory / 'monmap'
        run('monmaptool', '--create', '--fsid', fsid, '--addv', 'm',
            f'[v2:127.0.0.1:{v2},v1:127.0.0.1:{v1}]', monmap)
        run('ceph-mon', '--mkfs', '-i', 'm', '--monmap', monmap)

    @contextlib.contextmanager
    def daemon(self, *command: str) -> Iterator['subprocess.Popen[bytes]']:
        with open(self.directory / f'{command[0]}.log', 'ab') as log, \
                subprocess.Popen([*command, '-f'], stdout=log,
                                 stderr=log) as process, terminated(process):
            yield process

    @contextlib.contextmanager
    def serve(self) -> Iterator[None]:
        with self.daemon('ceph-mon', '-i', 'm') as mon:
            wait_for('ceph-mon', mon,
                     lambda: call('ceph', '--connect-timeout', '5',
                                  'quorum_status').returncode == 0)
            if self.is_new:
                osd_id = uuid.uuid4()
                run('ceph', 'osd', 'new', osd_id)
                run('ceph-osd', '--mkfs', '-i', '0', '--osd-uuid', osd_id)
            with self.daemon('ceph-osd', '-i', '0') as osd:
                wait_for('ceph-osd', osd, self.has_osd)
                if self.is_new:
                    run('ceph', 'osd', 'pool', 'create', 'rbd', '8')
                    run('rbd', 'pool', 'init', 'rbd')
                    run('rbd', 'import', '--no-progress', self.image.copy,
                        IMAGE)
                    self.is_new = False
                yield

    @staticmethod
    def has_osd() -> bool:
        stat = json.loads(run('ceph', 'osd', 'stat', '--format=json'))
        return bool(stat['num_up_osds'] == 1)
