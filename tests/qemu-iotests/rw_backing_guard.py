# What several tests of the guard of qcow2 images with an RW backing need
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import os
import random
import subprocess
import tempfile
from typing import Any, Dict, List, NamedTuple, Optional

import iotests
from iotests import (qemu_img, qemu_img_check, qemu_img_create, qemu_img_info,
                     qemu_io)
from rw_backing import BLOCK, dirty_blocks
from rw_backing_shell import Guard, ShellImage

MIB = 1024 * 1024


def json_option(options: Dict[str, Any]) -> str:
    """For a list of options, in which commas are doubled."""
    return 'json:' + json.dumps(options).replace(',', ',,')


class Opened(NamedTuple):
    """How an image presented itself while it was open."""
    guard: str
    reason: Optional[str]
    bitmaps: Dict[str, Optional[int]]   # dirty blocks, None: inconsistent
    log: str                            # all that QEMU said


def losetup(*args: str) -> str:
    return subprocess.run(['losetup', *args], check=True, text=True,
                          stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE).stdout.strip()


class GuardTestCase(iotests.QMPTestCase):
    """
    A shell over @disk, whose content is also in @data, with a bitmap "b" that
    has the blocks in @dirty.  The image is closed.
    """
    size = 8 * MIB
    fmt = 'raw'
    fmt_options: List[str] = []

    # Creation options of the shell, each with a comma before it
    shell_options = ''

    # How the guard calls a disk that nobody has touched
    quiet = 'unchanged'

    def setUp(self) -> None:
        # pylint: disable=consider-using-with
        directory = tempfile.TemporaryDirectory(dir=iotests.test_dir)
        self.addCleanup(directory.cleanup)
        self.dir = directory.name
        self.disk = os.path.join(self.dir, 'disk')
        self.shell = os.path.join(self.dir, 'shell.qcow2')
        self.data = bytearray(random.Random(1).randbytes(self.size))
        self.dirty: List[int] = []
        self.open_options: Dict[str, Any] = {}
        self.create()
        self.add_bitmap()
        self.write(3)

    def create(self) -> None:
        self.create_disk()
        qemu_img_create('-f', 'qcow2', '-o',
                        f'rw-backing={self.disk},rw-backing-fmt={self.fmt}'
                        f'{self.shell_options}', self.shell)

    def create_disk(self) -> None:
        """The data as it is now, in an image of the format."""
        raw = os.path.join(self.dir, 'data')
        with open(raw, 'wb') as file:
            file.write(self.data)
        qemu_img('convert', '-f', 'raw', '-O', self.fmt, *self.fmt_options,
                 raw, self.disk)
        os.remove(raw)

    def add_bitmap(self) -> None:
        qemu_img('bitmap', '--add', '-f', 'qcow2', self.shell, 'b')

    def fill(self, block: int, byte: int = 0) -> str:
        """What to tell qemu-io to fill a block with its number."""
        byte = byte or block
        self.data[block * BLOCK:(block + 1) * BLOCK] = bytes([byte]) * BLOCK
        return f'write -P {byte} {block * BLOCK} {BLOCK}'

    def write(self, block: int) -> None:
        """Through the shell."""
        command = self.fill(block)
        self.dirty.append(block)
        result = self.open(command)
        self.assertIn(f'wrote {BLOCK}/{BLOCK}', result.log)

    def open(self, *commands: str, **options: Any) -> Opened:
        """Open the image, let it execute @commands, close it."""
        with iotests.VM() as vm:
            vm.launch()
            self.add(vm, **options)
            result = self.look(vm)
            for command in commands:
                self.assert_qmp(vm.hmp_qemu_io('shell', command), 'return', '')
            vm.shutdown()
            return result._replace(log=vm.get_log() or '')

    def node(self, **options: Any) -> Dict[str, Any]:
        return {'driver': 'qcow2', 'node-name': 'shell',
                'file': {'driver': 'file', 'filename': self.shell},
                **self.open_options,
                **{key.replace('_', '-'): value
                   for key, value in options.items()}}

    def add(self, vm: iotests.VM, **options: Any) -> None:
        vm.cmd('blockdev-add', self.node(**options))

    def look_into(self, vm: iotests.VM, **options: Any) -> Opened:
        """Open and close, where there is no time for another QEMU."""
        self.add(vm, **options)
        result = self.look(vm)
        vm.cmd('blockdev-del', node_name='shell')
        return result

    @staticmethod
    def look(vm: iotests.VM) -> Opened:
        info = vm.node_info('shell')['image']['format-specific']['data']
        bitmaps = {b['name']: None if b.get('inconsistent') else
                   b['count'] // BLOCK
                   for b in vm.query_bitmaps().get('shell', [])}
        return Opened(info['rw-backing']['guard'],
                      info['rw-backing'].get('guard-reason'), bitmaps, '')

    def read_all(self) -> str:
        """What to tell qemu-io to read everything."""
        return f'read 0 {len(self.data)}'

    def assert_data(self) -> None:
        """Through the shell, in another process that does not write."""
        copy = os.path.join(self.dir, 'copy')
        source: Dict[str, Any] = self.node(read_only=True)
        source.pop('node-name')
        qemu_img('convert', '-O', 'raw', 'json:' + json.dumps(source),
                 copy)
        with open(copy, 'rb') as file:
            self.assertTrue(file.read() == self.data, 'wrong data')
        os.remove(copy)

    def assert_no_complaint(self, log: str) -> None:
        for text in ('modified', 'out of date', 'inconsistent', 'damaged',
                     'warning', 'checksum', 'Pattern verification failed'):
            self.assertNotIn(text, log)

    def assert_quiet(self, opened: Opened, quiet: str = '') -> None:
        """The disk is as it was left, and so is the bitmap."""
        self.assert_no_complaint(opened.log)
        self.assertEqual(opened.guard, quiet or self.quiet)
        if opened.guard == 'unchanged':
            self.assertIsNone(opened.reason)
        self.assertEqual(opened.bitmaps, {'b': len(self.dirty)})

    def assert_alarm(self, opened: Opened, reason: str,
                     readable: bool = True) -> None:
        guard = 'modified' if readable else 'unchecked'
        complaint = (f"RW backing of '{self.shell}' was modified by another "
                     'program' if readable else 'Could not find out whether '
                     f"the RW backing of '{self.shell}' was modified")
        self.assertEqual(opened.guard, guard)
        self.assertIn(reason, opened.reason or '')
        self.assertIn(f'{complaint}: {opened.reason}', opened.log)
        self.assertIn(f"Persistent dirty bitmaps of '{self.shell}' are out of "
                      "date: 'b'", opened.log)
        self.assertEqual(opened.bitmaps, {'b': None})

    def assert_sound(self) -> None:
        """The bitmap is all right and is what it should be."""
        self.assertEqual(self.flags(), [['auto']])
        check = qemu_img_check('-f', 'qcow2', self.shell)
        self.assertEqual(check['check-errors'], 0)
        self.assertNotIn('corruptions', check)
        self.assertNotIn('leaks', check)
        if not self.open_options:
            self.assertEqual(dirty_blocks(self.shell), sorted(self.dirty))
        self.assert_data()

    def assert_lost(self) -> None:
        """The bitmap says that it is not to be trusted; the data is right."""
        self.assertEqual(self.flags(), [['auto', 'in-use']])
        self.assert_data()

    def flags(self) -> List[List[str]]:
        info = qemu_img_info('-f', 'qcow2', self.shell)
        bitmaps = info['format-specific']['data'].get('bitmaps', [])
        return sorted(sorted(b['flags']) for b in bitmaps)

    def stored_guard(self) -> Optional[Guard]:
        return ShellImage(self.shell).guard

    def refuse(self, message: str, **options: Any) -> None:
        """The image does not open, and is not touched."""
        with open(self.shell, 'rb') as file:
            before = file.read()
        with iotests.VM() as vm:
            vm.launch()
            result = vm.qmp('blockdev-add', self.node(**options))
            self.assertIn(message, self.dictpath(result, 'error/desc'))
        with open(self.shell, 'rb') as file:
            self.assertTrue(file.read() == before, 'the image has changed')

    def refuse_strictly(self, reason: str = '', **options: Any) -> None:
        """Asked for proof, QEMU has to say that there is none."""
        self.refuse("There is no proof that the RW backing of "
                    f"'{self.shell}' is unchanged: {reason}",
                    rw_backing_guard='strict', **options)

    def stored_kind(self) -> int:
        guard = self.stored_guard()
        return guard.kind if guard else 0

    def start_over(self) -> None:
        self.start_over_with(self.quiet)

    def start_over_with(self, quiet: str) -> None:
        """What the user does who has lost the bitmap."""
        qemu_img('bitmap', '--remove', '-f', 'qcow2', self.shell, 'b')
        qemu_img('bitmap', '--add', '-f', 'qcow2', self.shell, 'b')
        self.dirty = []
        result = qemu_io('-f', 'qcow2', '-c', self.fill(5), self.shell)
        self.assert_no_complaint(result.stdout)
        self.dirty.append(5)
        self.assert_quiet(self.open(), quiet)

    def poke(self, offset: int, data: bytes, path: str = '') -> None:
        """As another program does."""
        with open(path or self.disk, 'r+b') as file:
            file.seek(offset)
            file.write(data)
        self.data[offset:offset + len(data)] = data

    def loop_device(self, path: str, *options: str) -> str:
        """Skips the case if there is none."""
        try:
            device = losetup('--find', '--show', *options, path)
        except (OSError, subprocess.CalledProcessError) as exc:
            reason = getattr(exc, 'stderr', None) or str(exc)
            self.case_skip(f'no loop devices: {reason.strip()}')
        self.addCleanup(losetup, '--detach', device)
        return device
