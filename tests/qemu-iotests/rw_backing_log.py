# Shells with a write-intent log, whose user is killed
#
# SPDX-License-Identifier: GPL-2.0-or-later

import struct
import zlib
from typing import Any, Dict, List, Set

from rw_backing import BLOCK, MIB, peek, poke
from rw_backing_daemon import Daemon
from rw_backing_shell import RW_BACKING, ShellImage
from rw_backing_testcase import ShellTestCase

# The size of a chunk of the log, for disks of the sizes that tests have
CHUNK = MIB

# Layout of the log, see "Write-intent log" in the specification
PAGE = 4096
UNIT = 512
AREAS = (2 * PAGE, 21 * PAGE)
LOG_SIZE = 40 * PAGE
UNIT_CHUNKS = 480 * 8
SUPERBLOCK = b'RWLS'
LEASE = b'RWLL'
UNIT_MAGIC = b'RWLU'


class LogTestCase(ShellTestCase):
    size = 16 * MIB
    options = ',rw-backing-log=on'
    machine: Daemon

    def start(self, options: str = '') -> None:
        """A storage daemon with the shell, which is exported."""
        self.machine = self.daemon(options=options)
        self.machine.export()

    def restart(self, options: str = '') -> None:
        """After SIGKILL."""
        self.machine.kill()
        self.start(options)

    def write(self, pattern: int, *blocks: int) -> None:
        for block in blocks:
            self.machine.io(f'write -P {pattern} {block * BLOCK} {BLOCK}')
        self.expect(pattern, *blocks)

    def names(self) -> List[str]:
        return sorted(bitmap['name'] for bitmap in self.infos())

    def shell_info(self) -> Dict[str, Any]:
        """What query-named-block-nodes says of the RW backing."""
        nodes = self.machine.cmd('query-named-block-nodes', flat=True)
        info = next(node for node in nodes if node['node-name'] == 'shell')
        data: Dict[str, Any] = \
            info['image']['format-specific']['data']['rw-backing']
        return data

    def infos(self) -> List[Dict[str, Any]]:
        nodes = self.machine.cmd('query-named-block-nodes', flat=True)
        return [bitmap for node in nodes if node['node-name'] == 'shell'
                for bitmap in node.get('dirty-bitmaps', [])]

    def dirty(self, bitmap: str = 'b') -> Set[int]:
        """The blocks that are dirty, asked of a copy of the bitmap."""
        machine = self.machine
        machine.cmd('block-dirty-bitmap-add', node='shell', name='copy',
                    disabled=True)
        machine.cmd('block-dirty-bitmap-merge', node='shell', target='copy',
                    bitmaps=[bitmap])
        machine.cmd('block-export-add', type='nbd', id='dirty',
                    node_name='shell', name='dirty', bitmaps=['copy'])
        extents = machine.dirty('copy', 'dirty')
        machine.cmd('block-export-del', id='dirty', mode='hard')
        machine.event_wait('BLOCK_EXPORT_DELETED')
        machine.cmd('block-dirty-bitmap-remove', node='shell', name='copy')
        return {block for start, length in extents
                for block in range(start // BLOCK,
                                   (start + length) // BLOCK)}

    def assert_inconsistent(self) -> None:
        for bitmap in self.infos():
            self.assertTrue(bitmap.get('inconsistent'))

    def assert_usable(self) -> None:
        for bitmap in self.infos():
            self.assertNotIn('inconsistent', bitmap)

    def assert_dirty(self, *blocks: int, bitmap: str = 'b') -> None:
        """These blocks, and nothing but the rest of their chunks."""
        per_chunk = CHUNK // BLOCK
        chunks = {block // per_chunk for block in blocks}
        dirty = self.dirty(bitmap)
        self.assertLessEqual(set(blocks), dirty)
        self.assertLessEqual({block // per_chunk for block in dirty}, chunks)


class LogImageTestCase(LogTestCase):
    """Reads and writes the log in the image, while nobody has it open."""

    def log_offset(self) -> int:
        data = ShellImage(self.shell).get(RW_BACKING)
        assert data is not None
        return int.from_bytes(data[8:16], 'big')

    def find_area(self) -> int:
        """Offset of the area that counts, in the log."""
        areas = [area for area in AREAS
                 if self.sector(area)[:4] == SUPERBLOCK]
        return max(areas, key=lambda area: self.sector(area)[8:24])

    def sector(self, offset: int) -> bytes:
        return peek(self.shell, self.log_offset() + offset, UNIT)

    def put(self, offset: int, sector: bytes) -> None:
        """With the right checksum."""
        sector = sector[:4] + bytes(4) + sector[8:]
        crc = struct.pack('>I', zlib.crc32(sector))
        poke(self.shell, self.log_offset() + offset,
             sector[:4] + crc + sector[8:])

    def tear(self, offset: int) -> None:
        byte = self.sector(offset)[100:101]
        poke(self.shell, self.log_offset() + offset + 100,
             bytes([byte[0] ^ 1]))
