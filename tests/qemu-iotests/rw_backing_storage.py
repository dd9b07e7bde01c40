# A small file system of its own for an image, which can be full or fail, and
# what tests of images need whose storage does
#
# SPDX-License-Identifier: GPL-2.0-or-later

import errno
import fcntl
import os
import struct
import subprocess
from typing import Any, List

import iotests
from iotests import qemu_img, qemu_img_create, qemu_img_info
from rw_backing import BLOCK

MIB = 1024 * 1024
# Of the disk
SIZE = 16 * BLOCK

disk = os.path.join(iotests.test_dir, 'disk.raw')

# FS_IOC_SHUTDOWN of Linux, and EXT4_GOING_FLAGS_NOLOGFLUSH
SHUTDOWN = 0x8004587d
SHUTDOWN_NOW = 2

# As root sees it; other users may not have them in $PATH
SBIN = {**os.environ, 'PATH': os.environ['PATH'] + ':/usr/sbin:/sbin'}


def _run(*words: str) -> str:
    """What the program says if it fails, or an empty string."""
    try:
        result = subprocess.run(words, check=False, text=True, env=SBIN,
                                stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
    except FileNotFoundError:
        return f'{words[0]} is missing'
    return (result.stdout.strip() or f'{words[0]} failed') \
        if result.returncode else ''


class FileSystem:
    """
    An ext4 file system that is mounted on a directory, @path; @options are
    for mkfs.ext4.
    """

    def __init__(self, name: str, size: int, *options: str) -> None:
        self.path = os.path.join(iotests.test_dir, name)
        self._image = self.path + '.img'
        with open(self._image, 'wb') as file:
            file.truncate(size)
        os.mkdir(self.path)
        self._mounted = False
        why = _run('mkfs.ext4', '-q', '-F', '-m', '0', *options,
                   self._image) or self.mount()
        if why:
            self.remove()
            iotests.notrun(f'no file system can be mounted: {why}')

    def mount(self, *options: str) -> str:
        """Returns why it is not possible, or an empty string."""
        why = _run('mount', '-o', ','.join(('loop', *options)), self._image,
                   self.path)
        self._mounted = not why
        return why

    def unmount(self) -> None:
        if self._mounted:
            why = _run('umount', self.path)
            assert not why, why
            self._mounted = False

    def remove(self) -> None:
        self.unmount()
        os.rmdir(self.path)
        os.remove(self._image)

    def file(self, name: str) -> str:
        return os.path.join(self.path, name)

    def fill(self) -> None:
        """Not a byte is left for others."""
        with open(self.file('filler'), 'ab', buffering=0) as file:
            for size in (MIB, 4096, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError as error:
                    assert error.errno == errno.ENOSPC

    def free(self) -> None:
        os.remove(self.file('filler'))

    def remount_read_only(self) -> None:
        """As Linux does by itself when it finds damage (option -e of mkfs)."""
        major, minor = (os.major(os.stat(self.path).st_dev),
                        os.minor(os.stat(self.path).st_dev))
        device = os.path.basename(os.readlink(f'/sys/dev/block/{major}:'
                                              f'{minor}'))
        with open(f'/sys/fs/ext4/{device}/trigger_fs_error', 'w',
                  encoding='ascii') as file:
            file.write('1')

    def shut_down(self) -> None:
        """From now on, everything fails, until it is mounted again."""
        file = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(file, SHUTDOWN, struct.pack('=I', SHUTDOWN_NOW))
        finally:
            os.close(file)


def lost(log: str) -> List[str]:
    """Lines that say that bitmaps could not be stored."""
    return [line for line in log.splitlines() if 'Lost persistent' in line]


class StorageTestCase(iotests.QMPTestCase):
    """A guest with a shell whose file is about to come to harm."""
    shell = ''

    def create(self, shell: str) -> None:
        self.shell = shell
        with open(disk, 'wb') as file:
            file.truncate(SIZE)
        self.addCleanup(iotests.try_remove, disk)
        qemu_img_create('-f', 'qcow2', '-o', f'rw-backing={disk}', shell)
        qemu_img('bitmap', '--add', '-f', 'qcow2', shell, 'b')
        self.vm = iotests.VM()
        self.addCleanup(self.stop)

    def stop(self) -> None:
        self.vm.shutdown()

    def launch(self, options: str = '') -> None:
        self.vm = iotests.VM()
        self.vm.add_blockdev('driver=qcow2,node-name=shell,file.driver=file,'
                             f'file.filename={self.shell}{options}')
        self.vm.launch()

    def write(self, block: int) -> None:
        self.assert_qmp(self.vm.hmp_qemu_io(
            'shell', f'write -P {block} {block * BLOCK} {BLOCK}'),
            'return', '')

    def assert_disk(self, *blocks: int) -> None:
        data = bytearray(SIZE)
        for block in blocks:
            data[block * BLOCK:(block + 1) * BLOCK] = bytes([block]) * BLOCK
        with open(disk, 'rb') as file:
            self.assertTrue(file.read() == data, 'wrong data')

    def flags(self, shell: str) -> Any:
        info = qemu_img_info('-f', 'qcow2', shell)
        return [sorted(b['flags']) for b in
                info['format-specific']['data'].get('bitmaps', [])]
