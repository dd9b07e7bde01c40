# A small file system of its own for an image, which can be full or fail, and
# what tests of images need whose storage does
#
# SPDX-License-Identifier: GPL-2.0-or-later

import errno
import fcntl
import os
import struct
import subprocess
from typing import List

import iotests
from rw_backing import BLOCK, MIB, add_bitmap, stored_flags, wrap_disk
from rw_backing_testcase import ShellTestCase

# Of the disk
SIZE = 16 * BLOCK

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


def losetup(*args: str) -> str:
    return subprocess.run(['losetup', *args], check=True, text=True,
                          stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE).stdout.strip()


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


class StorageTestCase(ShellTestCase):
    """A guest with a shell whose file is about to come to harm."""
    size = SIZE

    def create(self) -> None:
        self.create_disk()
        wrap_disk(self.shell, self.disk)
        add_bitmap(self.shell)

    def write(self, block: int) -> None:
        self.vm_io(f'write -P {block} {block * BLOCK} {BLOCK}')

    @staticmethod
    def flags(shell: str) -> List[List[str]]:
        return list(stored_flags(shell).values())
