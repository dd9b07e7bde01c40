# Shells with an allocation map, which know what of their disk reads as zeroes
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import subprocess
from typing import List, Tuple

import iotests
from iotests import qemu_img_map
from rw_backing import BLOCK, MIB, peek, wrap_disk, write_file
from rw_backing_daemon import nbd_extents
from rw_backing_testcase import ShellTestCase

# What reads as zeroes and what does not, in bytes
Parts = List[Tuple[int, int]]


def bytes_read(*command: str) -> int:
    """What a program has read from files until it ended, in bytes."""
    with subprocess.Popen(command, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        count = bytes_read_by(process.pid)
        said = process.communicate()[0]
    assert process.returncode == 0, said
    return count


def bytes_read_by(pid: int) -> int:
    """The same of a process that may go on."""
    with open(f'/proc/{pid}/io', encoding='ascii') as file:
        return int(dict(line.split(': ') for line in file)['rchar'])


class ZeroesTestCase(ShellTestCase):
    """
    The disk is full of zeroes that were written, so that nobody knows what
    they are but a map.
    """
    size = 16 * MIB
    bitmaps = ()
    # Of which map there is in the beginning
    map_option = 'scan'

    def create_disk(self) -> None:
        self.data[:] = bytes(self.size)
        write_file(self.disk, self.data)

    def create(self) -> None:
        self.create_disk()
        option = f',rw-backing-map={self.map_option}'
        wrap_disk(self.shell,
                  options=self.options + (option if self.map_option else ''))

    def img_parts(self, image: str = '') -> Parts:
        """What of the image reads as zeroes, as qemu-img map says."""
        return [(e['start'], e['length'])
                for e in qemu_img_map('-f', 'qcow2', image or self.shell)
                if e['zero']]

    def nbd_parts(self, sock: str, node: str = 'shell') -> Parts:
        """The same as NBD clients are told."""
        name = f',export={node}' if node else ''
        return [(e['start'], e['length']) for e in
                qemu_img_map('--image-opts', 'driver=nbd,server.type=unix,'
                             f'server.path={sock}{name}') if e['zero']]

    def assert_true(self, parts: Parts, disk: str = '') -> None:
        """Whatever else is the case: these parts of the disk are zero."""
        for offset, length in parts:
            self.assertFalse(any(peek(disk or self.disk, offset, length)),
                             f'data in {length} bytes from {offset} on')

    def assert_data(self, parts: Parts, *blocks: int) -> None:
        """These blocks are data, the rest is known to be zero."""
        size = os.path.getsize(self.disk)
        known = {block for offset, length in parts
                 for block in range(-(-offset // BLOCK),
                                    (size if offset + length == size
                                     else offset + length) // BLOCK +
                                    (1 if offset + length == size and
                                     size % BLOCK else 0))}
        self.assertEqual(sorted(set(range(-(-size // BLOCK))) - known),
                         sorted(blocks))
        self.assert_true(parts)

    def assert_nothing_known(self, parts: Parts) -> None:
        self.assertEqual(parts, [])


__all__ = ['ZeroesTestCase', 'bytes_read', 'bytes_read_by', 'iotests',
           'nbd_extents']
