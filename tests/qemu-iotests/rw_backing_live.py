# A shell that is put over the disk of a running guest, and taken away again,
# while the storage of the shell's image fails
#
# SPDX-License-Identifier: GPL-2.0-or-later

import time
from typing import Any, Dict, List

import iotests
from rw_backing import BLOCK, dirty_blocks
from rw_backing_testcase import ShellTestCase

BITMAP = {'node': 'shell', 'name': 'b'}
# What a user does
STEPS = ('open', 'insert', 'add', 'remove', 'leave', 'close')


class LiveFailureTestCase(ShellTestCase):
    """
    Subclasses open what the shell is in as node "image", and can let that
    fail.  @since are blocks that the guest has written since a bitmap was
    asked for, be it there or not: nobody may believe one that lacks them.
    @said has the reasons why steps were refused.
    """
    bitmaps = ()
    size = 64 * BLOCK

    def setUp(self) -> None:
        super().setUp()
        self.writes = 0
        self.since: List[int] = []
        self.recording = False
        self.said: Dict[str, str] = {}

    def add_image(self) -> None:
        raise NotImplementedError

    def break_storage(self) -> None:
        raise NotImplementedError

    def launch(self) -> None:
        self.vm = iotests.VM()
        self.vm.add_object('throttle-group,id=group')
        self.vm.launch()
        self.vm.cmd('blockdev-add', driver='file', node_name='disk',
                    filename=self.disk)
        self.attach('disk')
        self.add_image()

    def write(self) -> None:
        """The guest never gets an error, whatever has failed."""
        block = self.writes % (self.size // BLOCK)
        self.writes += 1
        self.guest_write(1 + self.writes % 250, block)
        self.guest_io('flush')
        if self.recording:
            self.since.append(block)

    def qmp_step(self, name: str) -> Dict[str, Any]:
        options: Dict[str, Any]
        command, options = {
            'open': ('blockdev-add', self.node(rw_backing='disk',
                                               file='image')),
            'insert': ('x-blockdev-replace-node',
                       {'node': 'disk', 'new-node': 'shell'}),
            'add': ('block-dirty-bitmap-add', {**BITMAP, 'persistent': True}),
            'remove': ('block-dirty-bitmap-remove', BITMAP),
            'leave': ('x-blockdev-replace-node',
                      {'node': 'shell', 'new-node': 'disk'}),
            'close': ('blockdev-del', {'node-name': 'shell'}),
        }[name]
        return self.vm.qmp(command, options)

    def step(self, name: str) -> None:
        if name == 'add':
            self.recording = True
        result = self.qmp_step(name)
        if 'error' in result:
            self.said[name] = result['error']['desc']
        self.write()

    def steps_until_broken(self, broken: str, last: str) -> None:
        """The storage fails before step @broken."""
        self.since = []
        self.recording = False
        self.said = {}
        self.create()
        self.launch()
        for name in STEPS[:STEPS.index(last) + 1]:
            if name == broken:
                self.assertEqual(self.said, {})
                self.break_storage()
            self.step(name)

    def steps_again(self) -> None:
        """What was refused is done when storage has recovered."""
        deadline = time.monotonic() + 60
        for name in self.said:
            while 'error' in self.qmp_step(name):
                self.assertLess(time.monotonic(), deadline, name)
                time.sleep(0.2)
            self.write()

    def believed(self) -> List[List[int]]:
        """The dirty blocks of each bitmap that a new machine believes."""
        self.vm.shutdown()
        self.assert_disk()
        self.boot()
        found = self.vm.query_bitmaps().get('shell', [])
        self.vm.shutdown()
        self.assert_clean(leaks=True)
        return [dirty_blocks(self.shell, bitmap['name']) for bitmap in found
                if not bitmap.get('inconsistent', False)]

    def assert_no_lie(self) -> None:
        for blocks in self.believed():
            self.assertLessEqual(set(self.since), set(blocks))
