# What is compared: four kinds of image over the same storage, how each is
# made, and the options that open it.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import Failure

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

RAW = 'raw'
DATA_FILE = 'data_file_raw'
SHELL = 'shell'
QCOW2 = 'qcow2'
SUBJECTS = [RAW, DATA_FILE, SHELL, QCOW2]

# The storage: nothing at all, or a sparse file
NULL = 'null-co'
FILE = 'file'

Options = dict[str, str]


@dataclass(frozen=True)
class Place:
    """Where images of one virtual size are: a directory, and QEMU's
    programs."""
    build: Path
    directory: Path
    size: int

    @property
    def disk(self) -> Path:
        """The sparse file that has the data."""
        return self.directory / 'disk.raw'

    def image(self, subject: str) -> Path:
        """The qcow2 file of @subject."""
        return self.directory / f'{subject}.qcow2'

    def qemu_img(self, *arguments: str | Path) -> str:
        """Run qemu-img; what it prints."""
        command = [self.build / 'qemu-img', *arguments]
        result = subprocess.run(command, check=False, text=True,
                                stdin=subprocess.DEVNULL, capture_output=True)
        if result.returncode:
            raise Failure(f'{" ".join(map(str, command))}:\n{result.stderr}')
        return result.stdout

    def make_disk(self) -> None:
        """Make the sparse file, or empty it."""
        with self.disk.open('wb') as stream:
            stream.truncate(self.size)

    def create(self, subject: str, allocated: bool = True,
               disk_format: str = RAW, log: bool = True) -> None:
        """
        Make the image of @subject anew; the sparse file must be there, of
        @disk_format.  The metadata of a qcow2 image are complete if it is to
        be @allocated; a shell has a write-intent @log or not.
        """
        if subject == RAW:
            return
        image = self.image(subject)
        image.unlink(missing_ok=True)
        options = {SHELL: f'rw-backing={self.disk},'
                          f'rw-backing-fmt={disk_format},'
                          f'rw-backing-log={"on" if log else "off"}',
                   DATA_FILE: f'data_file={self.disk},data_file_raw=on',
                   QCOW2: 'preallocation=' + ('metadata' if allocated
                                              else 'off')}[subject]
        self.qemu_img('create', '-q', '-f', 'qcow2', '-o', options, image,
                      str(self.size))

    def stored_bitmaps(self, subject: str) -> int:
        """How many bitmaps the image of @subject has stored."""
        if subject == RAW:
            return 0
        info = json.loads(self.qemu_img('info', '--output=json',
                                        self.image(subject)))
        return len(info['format-specific']['data'].get('bitmaps', []))

    def storage(self, storage: str) -> Options:
        """The options of the protocol node that has the data."""
        if storage == NULL:
            return {'driver': 'null-co', 'size': str(self.size)}
        return {'driver': 'file', 'filename': str(self.disk),
                'aio': 'io_uring', 'locking': 'off', 'discard': 'unmap'}

    def options(self, subject: str, storage: str) -> Options:
        """The options that open the image of @subject."""
        data = self.storage(storage)
        image = {'file.driver': 'file', 'discard': 'unmap',
                 'file.filename': str(self.image(subject)),
                 'file.aio': 'io_uring'}
        if subject == RAW:
            return {'driver': 'raw', 'discard': 'unmap',
                    **below('file', data)}
        if subject == SHELL:
            return {'driver': 'qcow2', **image, **below('rw-backing', data)}
        if subject == DATA_FILE:
            return {'driver': 'qcow2', **image, **below('data-file', data)}
        return {'driver': 'qcow2', **image}


def human(size: int) -> str:
    """A size in TiB or GiB."""
    return (f'{size / TIB:.0f} TiB' if size >= TIB else
            f'{size / GIB:.0f} GiB')


def below(child: str, options: Options) -> Options:
    """@options as they are given for the node @child of another one."""
    return {f'{child}.{name}': value for name, value in options.items()}


def has_storage(subject: str, storage: str) -> bool:
    """A plain qcow2 image cannot keep its metadata where nothing is kept."""
    return subject != QCOW2 or storage == FILE
