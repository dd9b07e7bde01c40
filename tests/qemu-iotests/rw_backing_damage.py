# Damage to the metadata of qcow2 images with an RW backing, and what becomes
# of disk and bitmaps: the promise that several tests check, one cell of a
# table of structures and kinds of damage after the other
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import random
from typing import (Callable, Dict, Iterator, List, NamedTuple, Sequence, Set,
                    Tuple)

import iotests
from iotests import qemu_img, qemu_io
from rw_backing import (BLOCK, add_bitmap, bitmap_command, read_file,
                        write_file)
from rw_backing_shell import ALLOCATION_MAP, ShellImage
from rw_backing_testcase import ShellTestCase

BLOCKS = 32
COMPLAINT = r'(?i)damaged|inconsistent|lost|out of date|corrupt'
CLUSTER = 64 * 1024


class Place(NamedTuple):
    """A structure in the image."""
    offset: int
    length: int


class Original(NamedTuple):
    """Image and disk before any damage."""
    image: bytes
    data: bytes
    mtime_ns: int


class Cell(NamedTuple):
    """What has become of each bitmap, and what it takes to have new ones."""
    bitmaps: Dict[str, str]     # "right", "inconsistent" or "gone"
    repair: str                 # "nothing", "check", ...

    def __str__(self) -> str:
        bitmaps = ', '.join(f'{name} {state}' for name, state
                            in sorted(self.bitmaps.items()))
        return f'{bitmaps}; before a new one: {self.repair}'


Damage = Callable[[bytearray, Place], None]


def flip(bit: int) -> Damage:
    def damage(data: bytearray, place: Place) -> None:
        at = bit if bit >= 0 else 8 * place.length + bit
        data[place.offset + at // 8] ^= 0x80 >> at % 8
    return damage


def truncate(data: bytearray, place: Place) -> None:
    del data[place.offset:]


def fill(byte: int) -> Damage:
    def damage(data: bytearray, place: Place) -> None:
        data[place.offset:place.offset + place.length] = \
            bytes([byte]) * place.length
    return damage


def randomise(seed: int) -> Damage:
    def damage(data: bytearray, place: Place) -> None:
        data[place.offset:place.offset + place.length] = \
            random.Random(seed).randbytes(place.length)
    return damage


KINDS: List[Tuple[str, Damage]] = [
    ('first bit', flip(0)), ('last bit', flip(-1)), ('truncated', truncate),
    ('zeroes', fill(0)), ('ones', fill(0xff)), ('random', randomise(1))]


class DamageTestCase(ShellTestCase):
    """An image with the bitmaps "b" and "c" of a disk; both are closed."""
    size = BLOCK * BLOCKS
    pattern = b'\xaa'
    bitmaps: Sequence[str] = ()

    def setUp(self) -> None:
        super().setUp()
        self.dirty: Dict[str, Set[int]] = {}
        for name, block in (('b', 3), ('c', 20)):
            add_bitmap(self.shell, name)
            self.dirty[name] = set()
            self.write_block(block)
        self.original = Original(read_file(self.shell), bytes(self.data),
                                 os.stat(self.disk).st_mtime_ns)
        self.vm.launch()

    def restore(self) -> None:
        """As if nothing had happened; nor has the disk been modified."""
        write_file(self.shell, self.original.image)
        self.data[:] = self.original.data
        write_file(self.disk, self.data)
        os.utime(self.disk, ns=(0, self.original.mtime_ns))
        self.dirty = {'b': {3, 20}, 'c': {20}}

    def io_commands(self, block: int) -> List[str]:
        """Write a block; then the whole disk has to be right."""
        self.expect(block, block)
        for blocks in self.dirty.values():
            blocks.add(block)
        return ['-c', f'write -P {block} {block * BLOCK} {BLOCK}']

    def read_commands(self) -> Iterator[str]:
        for block in range(BLOCKS):
            yield '-c'
            yield f'read -P {self.data[block * BLOCK]} {block * BLOCK} {BLOCK}'

    def write_block(self, block: int) -> str:
        """In a process of its own; returns what it said."""
        output = qemu_io('-f', 'qcow2', *self.io_commands(block),
                         *self.read_commands(), self.shell).stdout
        self.assertIn(f'wrote {BLOCK}/{BLOCK}', output)
        self.assertEqual(output.count('\nread 65536/65536'), BLOCKS, output)
        self.assert_disk()
        return output

    def inspect(self) -> None:
        """Without the disk, which is not there at all: no crash."""
        os.rename(self.disk, self.disk + '.away')
        before = read_file(self.shell)
        for command in ('info', 'check'):
            result = qemu_img(command, '-f', 'qcow2', self.shell, check=False)
            self.assertIn(result.returncode, (0, 1, 2, 3), result.stdout)
            self.assertNotIn('No such file', result.stdout)
            if command == 'info':
                self.assertEqual(result.returncode, 0, result.stdout)
                self.assertIn('filename: disk.raw', result.stdout)
        self.assertTrue(read_file(self.shell) == before,
                        'the image has changed')
        self.assertFalse(os.path.exists(self.disk))
        os.rename(self.disk + '.away', self.disk)

    def read(self) -> None:
        before = read_file(self.shell)
        output = qemu_io('-r', '-f', 'qcow2', *self.read_commands(),
                         self.shell).stdout
        self.assertEqual(output.count('read 65536/65536'), BLOCKS, output)
        self.assertNotIn('verification failed', output)
        self.assertTrue(read_file(self.shell) == before,
                        'the image has changed')

    def stored_bitmaps(self) -> Dict[str, str]:
        """
        What somebody is told who opens the image, for writing, and closes it
        again: "right", "inconsistent", or what is missing.
        """
        result: Dict[str, str] = {}
        self.add_node()
        for bitmap in self.vm.query_bitmaps().get('shell', []):
            if bitmap.get('inconsistent'):
                result[bitmap['name']] = 'inconsistent'
            else:
                result[bitmap['name']] = f'{bitmap["count"] // BLOCK} blocks'
        self.vm.cmd('blockdev-del', node_name='shell')
        image = ShellImage(self.shell)
        for bitmap in image.bitmaps():
            name = bitmap.name.decode(errors='replace')
            if not bitmap.flags & 1 and name != ALLOCATION_MAP:
                blocks = self.blocks_in(image, bitmap.table)
                self.assertEqual(result.get(name), f'{len(blocks)} blocks')
                self.assertLessEqual(self.dirty.get(name, set()), blocks,
                                     'a bitmap is silently wrong')
                result[name] = 'right'
        return result

    @staticmethod
    def blocks_in(image: ShellImage, table: List[int]) -> Set[int]:
        """What a bitmap says, as it is stored in a closed image."""
        entry, = table
        if entry < 512:
            return set(range(BLOCKS)) if entry else set()
        bits = image.data[entry:entry + BLOCKS // 8]
        return {block for block in range(BLOCKS)
                if bits[block // 8] >> block % 8 & 1}

    def check_and_repair(self) -> str:
        """What cannot be done at once is done by the second attempt."""
        command = ('check', '-r', 'all', '-f', 'qcow2', self.shell)
        if not qemu_img(*command, check=False).returncode:
            return 'check'
        qemu_img(*command)
        return 'check twice'

    def extension(self, magic: int) -> Place:
        found = ShellImage(self.shell).existing_extension(magic)
        return Place(found.offset, found.length)

    def extension_head(self, magic: int) -> Place:
        """Type and length of an extension."""
        return Place(self.extension(magic).offset - 8, 8)

    def new_bitmap(self) -> str:
        """
        Add one, by no more than what the user is told to do; returns what it
        takes.
        """
        repair = 'nothing'
        add = ('bitmap', '--add', '-f', 'qcow2', self.shell, 'new')
        result = qemu_img(*add, check=False)
        if result.returncode:
            self.assertIn('check -r all', result.stdout)
            repair = self.check_and_repair()
            # A repair makes no bitmap better
            qemu_img(*add)
        self.dirty['new'] = set()
        self.write_block(9)
        state = self.stored_bitmaps()
        self.assertEqual(state.pop('new'), 'right')
        for name in state:
            bitmap_command('--remove', self.shell, name)
            self.dirty.pop(name, None)
        self.write_block(10)
        self.assertEqual(self.stored_bitmaps(), {'new': 'right'})
        return repair

    def try_damage(self, place: Place, damage: Damage) -> Cell:
        """One cell of the table: everything that has to be true."""
        self.restore()
        image = ShellImage(self.shell)
        damage(image.data, place)
        image.write()
        self.inspect()
        self.read()

        output = self.write_block(7)
        bitmaps = {'b': 'gone', 'c': 'gone', **self.stored_bitmaps()}
        if set(bitmaps.values()) != {'right'}:
            self.assertRegex(output, COMPLAINT)
        # Nobody heals a bitmap afterwards
        self.write_block(8)
        after = {'b': 'gone', 'c': 'gone', **self.stored_bitmaps()}
        self.assertEqual(after, bitmaps)
        repair = self.new_bitmap()
        check = ('check', '-f', 'qcow2', self.shell)
        if qemu_img(*check, check=False).returncode not in (0, 3):
            repair = self.check_and_repair() + ' afterwards'
            self.assertEqual(self.stored_bitmaps(), {'new': 'right'})
            self.assertEqual(qemu_img(*check).returncode, 0)
        return Cell(bitmaps, repair)

    def try_all(self, name: str, place: Place, allowed: Set[str]) -> None:
        """
        A row of the table; @allowed is what may become of bitmaps, which are
        always gone if the image ends before them.
        """
        for kind, damage in KINDS:
            with self.subTest(structure=name, damage=kind):
                cell = self.try_damage(place, damage)
                iotests.logger.debug('damage: %s | %s | %s', name, kind, cell)
                gone = {'gone'} if damage is truncate else set()
                self.assertLessEqual(set(cell.bitmaps.values()),
                                     allowed | gone)
