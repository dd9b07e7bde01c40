# What all tests of qcow2 images with an RW backing start from
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import tempfile
from typing import Any, Dict, Optional, Sequence, Union

import iotests
from iotests import qemu_img, qemu_img_check
from rw_backing import (BLOCK, DEVICE, MIB, add_bitmap, digest, fill,
                        make_sparse, read_file, wrap_disk, write_file)
from rw_backing_daemon import Daemon

Machine = Union[iotests.VM, Daemon]


class ShellTestCase(iotests.QMPTestCase):
    """
    The image @shell over the raw file @disk in a directory of their own, which
    is removed in the end; @data is what @disk is to have.  Nothing has them
    open: the machine @vm is not launched yet.  Class attributes say what disk
    and shell are like; who needs more overrides create_disk() or create().
    """
    size = 4 * MIB
    # The disk is full of this; None: qemu-img makes it along with the shell
    pattern: Optional[bytes] = bytes(1)
    # Creation options of the shell, each with a comma before it
    options = ''
    # Bitmaps that are added to the shell
    bitmaps: Sequence[str] = ('b',)

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory(dir=iotests.test_dir)
        self.addCleanup(directory.cleanup)
        self.dir = directory.name
        self.disk = self.path('disk.raw')
        self.shell = self.path('shell.qcow2')
        self.data = bytearray()
        self.vm = iotests.VM()
        self.addCleanup(self._stop_vm)
        self.create()

    def create(self) -> None:
        """Disk, shell and bitmaps."""
        self.create_disk()
        wrap_disk(self.shell, options=self.options,
                  size=0 if os.path.exists(self.disk) else self.size)
        for name in self.bitmaps:
            add_bitmap(self.shell, name)

    def create_disk(self) -> None:
        pattern = self.pattern or bytes(1)
        self.data[:] = pattern * (self.size // len(pattern))
        if any(pattern):
            write_file(self.disk, self.data)
        elif self.pattern is not None:
            make_sparse(self.disk, self.size)

    def _stop_vm(self) -> None:
        """Whichever it is in the end."""
        self.vm.shutdown()

    def path(self, *names: str) -> str:
        return os.path.join(self.dir, *names)

    def wrap(self, disk: str, shell: str = 'shell.qcow2', fmt: str = '',
             options: str = '') -> str:
        """Create a shell; both names are in the directory."""
        wrap_disk(self.path(shell), disk, fmt, options)
        return self.path(shell)

    # A machine that has the shell

    def node(self, **options: Any) -> Dict[str, Any]:
        """Arguments of blockdev-add."""
        return {'driver': 'qcow2', 'node-name': 'shell',
                'file': {'driver': 'file', 'filename': self.shell},
                **{key.replace('_', '-'): value
                   for key, value in options.items()}}

    def blockdev(self, shell: str = '', node: str = 'shell') -> str:
        """Argument of --blockdev; more options can be appended."""
        return (f'driver=qcow2,node-name={node},file.driver=file,'
                f'file.filename={shell or self.shell}')

    def add_node(self, node: str = 'shell', image: str = '',
                 **options: Any) -> None:
        """Add the shell, or another qcow2 image, to the machine."""
        self.vm.cmd('blockdev-add', driver='qcow2', node_name=node,
                    file={'driver': 'file', 'filename': image or self.shell},
                    **options)

    def attach(self, node: str = 'shell') -> None:
        """The guest gets its device while it is running."""
        self.vm.cmd('device_add', driver='virtio-blk', id='device',
                    drive=node)

    def boot(self, options: str = '', *,
             device: Optional[str] = None) -> None:
        """
        Let a new machine have the shell, with these options appended, and a
        guest's device for it if there are options for that, be they empty.
        """
        self.vm = iotests.VM()
        self.vm.add_blockdev(self.blockdev() + options)
        if device is not None:
            self.vm.add_device('virtio-blk,id=device,drive=shell' + device)
        self.vm.launch()

    def crash(self, shell: str = '') -> None:
        """A machine has the shell, or another image, and is killed."""
        with iotests.VM() as vm:
            vm.add_blockdev(self.blockdev(shell))
            vm.launch()
            vm.kill()

    def daemon(self, name: str = 'daemon', options: str = '') -> Daemon:
        """A storage daemon with the shell."""
        daemon = Daemon('--blockdev', self.blockdev() + options, name=name)
        self.addCleanup(daemon.kill)
        return daemon

    def vm_io(self, *commands: str, node: str = 'shell') -> None:
        """Commands of qemu-io; whether reads match is in the log."""
        for command in commands:
            self.assert_qmp(self.vm.hmp_qemu_io(node, command), 'return', '')

    def guest_io(self, *commands: str) -> None:
        """The same by the guest, wherever its device has its data now."""
        for command in commands:
            self.assert_qmp(self.vm.hmp_qemu_io(DEVICE, command, qdev=True),
                            'return', '')

    def guest_write(self, pattern: int, *blocks: int) -> None:
        """Also into @data."""
        for block in blocks:
            self.guest_io(f'write -P {pattern} {block * BLOCK} {BLOCK}')
        self.expect(pattern, *blocks)

    def dirty_bytes(self, bitmap: str = 'b', node: str = 'shell') -> int:
        count = self.vm.get_bitmap(node, bitmap)['count']
        assert isinstance(count, int)
        return count

    # What has to be

    def expect(self, pattern: int, *blocks: int) -> None:
        """That the disk has these blocks full of a pattern."""
        fill(self.data, pattern, *blocks)

    def assert_refused(self, message: str, command: str,
                       arguments: Any = None, *,
                       machine: Optional[Machine] = None,
                       **options: Any) -> None:
        """A QMP command fails, and @message is part of what it says."""
        result = (machine or self.vm).qmp(command, arguments, **options)
        self.assertIn(message, self.dictpath(result, 'error/desc'))

    def assert_img_fails(self, message: str, *args: str) -> str:
        """qemu-img fails; returns all that it says."""
        result = qemu_img(*args, check=False)
        self.assertEqual(result.returncode, 1, result.stdout)
        self.assertIn(message, result.stdout)
        return result.stdout

    def assert_disk(self, path: str = '', data: Optional[bytes] = None
                    ) -> None:
        """The bytes of the disk, or of another file in the directory."""
        path = self.path(path or self.disk)
        self.assertTrue(read_file(path) ==
                        (self.data if data is None else data),
                        f'wrong data in {path}')

    def assert_blocks(self, *blocks: int) -> None:
        """Zeroes but for these blocks, each of which is full of its number."""
        data = bytearray(self.size)
        for block in blocks:
            fill(data, block, block)
        self.assert_disk(data=data)

    def assert_patterns_matched(self) -> None:
        """Of all reads that the machine did before it was shut down."""
        self.assertNotIn('Pattern verification failed',
                         self.vm.get_log() or '')

    def assert_clean(self, *images: str, leaks: bool = False) -> None:
        """
        qemu-img check finds nothing in the shell, or in other images; @leaks
        says whether there may be some.
        """
        for image in images or [self.shell]:
            check = qemu_img_check('-f', 'qcow2', image)
            self.assertEqual(check['check-errors'], 0)
            self.assertNotIn('corruptions', check)
            if not leaks:
                self.assertNotIn('leaks', check)

    def digests(self) -> Dict[str, str]:
        """Of all files in the directory."""
        return {name: digest(self.path(name)) for name in os.listdir(self.dir)}


def main(**options: Any) -> None:
    """As iotests.main(), for tests that make all images themselves."""
    iotests.main(supported_fmts=['qcow2'], supported_protocols=['file'],
                 unsupported_imgopts=['='], **options)
