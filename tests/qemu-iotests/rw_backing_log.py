# Shells with a write-intent log, whose user is killed
#
# SPDX-License-Identifier: GPL-2.0-or-later

from typing import Any, Dict, List, Set

from rw_backing import BLOCK, MIB
from rw_backing_daemon import Daemon
from rw_backing_testcase import ShellTestCase

# The size of a chunk of the log, for a disk of this size
CHUNK = MIB


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
