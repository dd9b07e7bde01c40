# What tests need whose machines hand a qcow2 image with an RW backing over to
# each other
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
from typing import Any, List, Optional, Sequence

import iotests
from rw_backing import BLOCK, DEVICE
from rw_backing_testcase import ShellTestCase


class MigrationTestCase(ShellTestCase):
    """Machines are in @machines until they end; @blocks is for write()."""
    size = 64 * BLOCK
    pattern = None
    bitmaps: Sequence[str] = ()

    def setUp(self) -> None:
        super().setUp()
        self.machines: List[iotests.VM] = []
        self.number = 0
        self.blocks: List[int] = []
        self.migration_sock = os.path.join(iotests.sock_dir, 'migration')
        self.addCleanup(iotests.try_remove, self.migration_sock)

    def tearDown(self) -> None:
        for machine in self.machines:
            machine.shutdown()

    def new_machine(self, incoming: bool = False, node: str = 'shell',
                    device: str = '') -> iotests.VM:
        """With a guest's device on a node that is to be added still."""
        machine = iotests.VM(path_suffix=str(self.number))
        self.number += 1
        self.machines.append(machine)
        machine.add_device(f'virtio-blk,id=device,drive={node},bus=pci.0,'
                           f'addr=4{device}')
        if incoming:
            machine.add_incoming('defer')
        return machine

    @staticmethod
    def set_capabilities(machine: iotests.VM, *names: str) -> None:
        machine.cmd('migrate-set-capabilities', capabilities=[
            {'capability': name, 'state': True}
            for name in ('events', *names)])

    def launch(self, machine: iotests.VM, *capabilities: str) -> None:
        machine.launch()
        self.set_capabilities(machine, *capabilities)

    def write(self, machine: iotests.VM, block: int,
              pattern: Optional[int] = None) -> None:
        """By the guest: the block's own number unless a pattern is given."""
        if pattern is None:
            pattern = block
        self.assert_qmp(machine.hmp_qemu_io(
            DEVICE, f'write -P {pattern} {block * BLOCK} {BLOCK}', qdev=True),
                        'return', '')
        self.expect(pattern, block)
        self.blocks.append(block)

    @staticmethod
    def add_bitmap(machine: iotests.VM, name: str, persistent: bool = True,
                   node: str = 'shell') -> None:
        machine.cmd('block-dirty-bitmap-add', node=node, name=name,
                    persistent=persistent)

    def bitmap_digest(self, machine: iotests.VM, node: str, name: str) -> Any:
        return self.dictpath(machine.qmp('x-debug-block-dirty-bitmap-sha256',
                                         node=node, name=name),
                             'return/sha256')

    def assert_dirty(self, machine: iotests.VM, name: str, *blocks: int,
                     node: str = 'shell') -> None:
        """The machine has a node "reference" to tell what is expected."""
        machine.cmd('block-dirty-bitmap-add', node='reference', name='r')
        for block in blocks:
            self.assert_qmp(machine.hmp_qemu_io(
                'reference', f'write {block * BLOCK} {BLOCK}'), 'return', '')
        self.assertEqual(self.bitmap_digest(machine, node, name),
                         self.bitmap_digest(machine, 'reference', 'r'), name)
        machine.cmd('block-dirty-bitmap-remove', node='reference', name='r')

    # The migration

    def start_migration(self, source: iotests.VM, target: iotests.VM) -> None:
        target.cmd('migrate-incoming', uri=f'unix:{self.migration_sock}')
        source.cmd('migrate', uri=f'unix:{self.migration_sock}')

    @staticmethod
    def wait(machine: iotests.VM, status: str) -> None:
        machine.event_wait('MIGRATION', match={'data': {'status': status}})

    def status(self, machine: iotests.VM,
               command: str = 'query-status') -> Any:
        return self.dictpath(machine.qmp(command), 'return/status')

    def wait_until_running(self, machine: iotests.VM) -> None:
        while self.status(machine) != 'running':
            machine.event_wait('RESUME')

    def complete(self, source: iotests.VM, target: iotests.VM) -> None:
        self.wait(source, 'completed')
        self.wait(target, 'completed')
        self.wait_until_running(target)
        iotests.try_remove(self.migration_sock)
