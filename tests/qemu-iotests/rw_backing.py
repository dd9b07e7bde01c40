# What tests of qcow2 images with an RW backing do to images and their bytes
# while no QEMU has them open
#
# SPDX-License-Identifier: GPL-2.0-or-later

import hashlib
import os
from typing import Any, Dict, List

import iotests
from iotests import qemu_img, qemu_img_create, qemu_img_info, qemu_io
from rw_backing_daemon import Daemon, Extents, nbd_extents

KIB = 1024
MIB = 1024 * KIB

# Granularity of the bitmaps in these tests, in bytes
BLOCK = 64 * KIB

# Where "virtio-blk,id=device" takes commands of qemu-io, with qdev=True
DEVICE = '/machine/peripheral/device/virtio-backend'


def read_file(path: str) -> bytes:
    with open(path, 'rb') as file:
        return file.read()


def write_file(path: str, data: bytes) -> None:
    with open(path, 'wb') as file:
        file.write(data)


def make_sparse(path: str, size: int) -> None:
    with open(path, 'wb') as file:
        file.truncate(size)


def peek(path: str, offset: int, length: int) -> bytes:
    """A part of a file."""
    with open(path, 'rb') as file:
        file.seek(offset)
        return file.read(length)


def poke(path: str, offset: int, data: bytes) -> None:
    """Overwrite a part of a file."""
    with open(path, 'r+b') as file:
        file.seek(offset)
        file.write(data)


def digest(path: str) -> str:
    return hashlib.sha256(read_file(path)).hexdigest()


def fill(data: bytearray, pattern: int, *blocks: int) -> None:
    for block in blocks:
        data[block * BLOCK:(block + 1) * BLOCK] = bytes([pattern]) * BLOCK


def make_patchy(path: str, size: int, *blocks: int) -> bytearray:
    """
    A sparse file in which each of these blocks is full of its number; returns
    what is in it.
    """
    make_sparse(path, size)
    data = bytearray(size)
    for block in blocks:
        fill(data, block, block)
        poke(path, block * BLOCK, bytes([block]) * BLOCK)
    return data


def wrap_disk(shell: str, disk: str = 'disk.raw', fmt: str = '',
              options: str = '', size: int = 0) -> None:
    """
    Create a shell for a disk, which is made, too, if a size is given.
    """
    if fmt:
        options = f',rw-backing-fmt={fmt}{options}'
    qemu_img_create('-f', 'qcow2', '-o', f'rw-backing={disk}{options}', shell,
                    *([str(size)] if size else []))


def qemu_io_args(*commands: str) -> List[str]:
    return [arg for command in commands for arg in ('-c', command)]


def shell_io(shell: str, *commands: str) -> str:
    """What qemu-io says that has written or read an image."""
    return qemu_io('-f', 'qcow2', *qemu_io_args(*commands), shell).stdout


def bitmap_command(*args: str, check: bool = True) -> str:
    """What qemu-img bitmap says."""
    return qemu_img('bitmap', '-f', 'qcow2', *args, check=check).stdout


def add_bitmap(image: str, name: str = 'b', granularity: str = '',
               disabled: bool = False) -> None:
    bitmap_command('--add', *(['-g', granularity] if granularity else []),
                   *(['--disable'] if disabled else []), image, name)


def drop_log(image: str) -> None:
    """From now on, a crash costs bitmaps."""
    qemu_img('amend', '-f', 'qcow2', '-o', 'rw-backing-log=off', image)


def start_bitmap_over(image: str, name: str = 'b') -> None:
    """What the user does who has lost it."""
    bitmap_command('--remove', image, name)
    add_bitmap(image, name)


def shell_info(shell: str, *options: str) -> Any:
    """What qemu-img info says that is specific to the format."""
    info = qemu_img_info(*options, '-f', 'qcow2', shell)
    return info['format-specific']['data']


def stored_flags(image: str, *options: str) -> Dict[str, List[str]]:
    """Sorted flags by name of the bitmaps that are stored."""
    return {bitmap['name']: sorted(bitmap['flags'])
            for bitmap in shell_info(image, *options).get('bitmaps', [])}


def dirty_extents(image: str, bitmap: str = 'b') -> Extents:
    """What a bitmap has that is stored in an image; leaves it alone."""
    sock = os.path.join(iotests.sock_dir, 'dirty.sock')
    with iotests.qemu_nbd_popen('-r', '-f', 'qcow2', '-B', bitmap, '-k', sock,
                                image):
        return nbd_extents(sock, f'qemu:dirty-bitmap:{bitmap}')


def whole_blocks(extents: Extents) -> List[int]:
    return [block for offset, length in extents
            for block in range(offset // BLOCK, (offset + length) // BLOCK)]


def dirty_blocks(image: str, bitmap: str = 'b') -> List[int]:
    """Which blocks a bitmap that is stored in an image has."""
    with Daemon('--blockdev', 'qcow2,node-name=shell,file.driver=file,'
                f'file.filename={image}', name='dirty-blocks') as daemon:
        daemon.export(bitmaps=[bitmap])
        result = whole_blocks(daemon.dirty(bitmap))
        daemon.shutdown()
    return result
