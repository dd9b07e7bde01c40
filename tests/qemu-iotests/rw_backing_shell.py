# The bytes of a qcow2 image with an RW backing, read and written as its
# specification tells them: nothing here asks QEMU
#
# SPDX-License-Identifier: GPL-2.0-or-later

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, List, NamedTuple, Optional, Tuple

from rw_backing import peek, poke

RW_BACKING = 0x5257424b
GUARD = 0x52574247
FEATURE_NAMES = 0x6803f857
BITMAPS = 0x23852875

IN_USE = 1
AUTO = 2

MIB = 1024 * 1024
GUARD_FORMAT = '>IB3sQqIIQ32s'


class Guard(NamedTuple):
    """Data of a guard extension, field by field."""
    flags: int = 0
    kind: int = 0
    reserved: bytes = bytes(3)
    size: int = 0
    mtime_sec: int = 0
    mtime_nsec: int = 0
    bitmaps_checksum: int = 0
    seed: int = 0
    digest: bytes = bytes(32)

    def pack(self) -> bytes:
        return struct.pack(
            GUARD_FORMAT, self.flags, self.kind, self.reserved, self.size,
            self.mtime_sec, self.mtime_nsec, self.bitmaps_checksum, self.seed,
            self.digest)

    @classmethod
    def unpack(cls, data: bytes) -> 'Guard':
        return cls(*struct.unpack(GUARD_FORMAT, data))


@dataclass
class Extension:
    magic: int
    offset: int     # of the data
    length: int     # of the data, without padding


@dataclass
class Bitmap:
    offset: int     # of the directory entry
    name: bytes
    flags: int
    granularity: int
    table_offset: int
    table: List[int]


def samples_digest(path: str, seed: int, size: int = -1) -> bytes:
    """Section "Samples", for a file whose bytes are the disk."""
    unit = 16384
    if size < 0:
        size = os.path.getsize(path)
    with open(path, 'rb') as file:
        def read(offset: int, length: int) -> bytes:
            file.seek(offset)
            return file.read(min(length, size - offset))

        if size <= 4 * MIB:
            return hashlib.sha256(read(0, size)).digest()
        digest = hashlib.sha256(read(0, 1310720) +
                                read(size - 131072, 131072))
        for i in range(64):
            place = hashlib.sha256(struct.pack('>QQ', seed, i)).digest()
            index = int.from_bytes(place[:8], 'big') % ((size + unit - 1)
                                                        // unit)
            digest.update(read(unit * index, unit))
    return digest.digest()


def mtime_guard(path: str) -> Guard:
    """A guard of kind 1, without the checksum."""
    stat = os.stat(path)
    return Guard(kind=1, size=stat.st_size,
                 mtime_sec=stat.st_mtime_ns // 10 ** 9,
                 mtime_nsec=stat.st_mtime_ns % 10 ** 9)


def samples_guard(path: str, seed: int) -> Guard:
    """A guard of kind 2 for a file whose bytes are the disk."""
    return Guard(kind=2, size=os.path.getsize(path), seed=seed,
                 digest=samples_digest(path, seed))


def column_sums(data: bytes) -> bytes:
    """What the checksum of bitmaps takes of the content of a cluster."""
    numbers = struct.unpack(f'<{len(data) // 4}I', data)
    columns = [list(accumulate(numbers[i::16])) for i in range(16)]
    sums = [column[-1] for column in columns] + [sum(c) for c in columns]
    return struct.pack('>32Q', *sums)


def read_struct(path: str, offset: int, fmt: str) -> Tuple[Any, ...]:
    """Big-endian numbers in an image, by a format of struct."""
    return struct.unpack('>' + fmt, peek(path, offset, struct.calcsize(fmt)))


def write_struct(path: str, offset: int, fmt: str, *values: Any) -> None:
    poke(path, offset, struct.pack('>' + fmt, *values))


def point_to(image: str, name: bytes, fmt: bytes = b'qcow2') -> None:
    """Let @image, created a moment ago, name its RW backing."""
    data = struct.pack('>IHH32x', 0, len(fmt), len(name)) + fmt + name
    with open(image, 'r+b') as file:
        file.seek(file.read(65536).index(b'RWBK'))
        file.write(struct.pack('>4sI', b'RWBK', len(data)) + data)
        file.write(bytes(-len(data) % 8 + 8))


class ShellImage:
    """The image, as it was when the object was made or written back."""
    def __init__(self, path: str) -> None:
        self.path = path
        with open(path, 'rb') as file:
            self.data = bytearray(file.read())

    def write(self) -> None:
        with open(self.path, 'wb') as file:
            file.write(self.data)

    def uint(self, offset: int, length: int) -> int:
        return int.from_bytes(self.data[offset:offset + length], 'big')

    @property
    def cluster_size(self) -> int:
        return 1 << self.uint(20, 4)

    @property
    def header_length(self) -> int:
        return self.uint(100, 4)

    @property
    def refcount_table(self) -> int:
        return self.uint(48, 8)

    @property
    def refcount_block(self) -> int:
        return self.uint(self.refcount_table, 8)

    def extensions(self) -> List[Extension]:
        result: List[Extension] = []
        offset = self.header_length
        while self.uint(offset, 4):
            found = Extension(self.uint(offset, 4), offset + 8,
                              self.uint(offset + 4, 4))
            result.append(found)
            offset = found.offset + (found.length + 7) // 8 * 8
        return result

    def extension(self, magic: int) -> Optional[Extension]:
        return next((ext for ext in self.extensions() if ext.magic == magic),
                    None)

    def existing_extension(self, magic: int) -> Extension:
        found = self.extension(magic)
        assert found, f'no extension {magic:#x}'
        return found

    def get(self, magic: int) -> Optional[bytes]:
        """Data of an extension."""
        ext = self.extension(magic)
        if not ext:
            return None
        return bytes(self.data[ext.offset:ext.offset + ext.length])

    def put(self, magic: int, *contents: bytes) -> None:
        """
        Gives the header as many extensions of this type as there are
        @contents, behind all others.
        """
        header = b''
        others = [(ext.magic, self.data[ext.offset:ext.offset + ext.length])
                  for ext in self.extensions() if ext.magic != magic]
        for number, data in [*others, *((magic, data) for data in contents)]:
            header += struct.pack('>II', number, len(data)) + data
            header += bytes(-len(data) % 8)
        end = self.header_length + len(header)
        assert end + 8 <= self.cluster_size
        self.data[self.header_length:end] = header
        self.data[end:self.cluster_size] = bytes(self.cluster_size - end)

    @property
    def guard(self) -> Optional[Guard]:
        data = self.get(GUARD)
        return Guard.unpack(data) if data else None

    def bitmaps(self) -> List[Bitmap]:
        """The bitmap directory with all tables."""
        ext = self.extension(BITMAPS)
        if not ext:
            return []
        result: List[Bitmap] = []
        offset = self.uint(ext.offset + 16, 8)
        for _ in range(self.uint(ext.offset, 4)):
            table, size, flags, _, bits, name_len, extra = struct.unpack_from(
                '>QIIBBHI', self.data, offset)
            name = offset + 24 + extra
            # There may be no table at all in a damaged image
            entries = self.data[table:table + 8 * size]
            result.append(Bitmap(
                offset, bytes(self.data[name:name + name_len]), flags,
                1 << bits, table,
                list(struct.unpack(f'>{len(entries) // 8}Q', entries))))
            offset = (name + name_len + 7) // 8 * 8
        return result

    def bitmaps_checksum(self) -> int:
        """Section "Checksum of bitmaps"."""
        total = 0
        for bitmap in self.bitmaps():
            if bitmap.flags & IN_USE:
                continue
            total += zlib.crc32(bitmap.name + struct.pack(
                '>QQ', bitmap.granularity, bool(bitmap.flags & AUTO)))
            for number, entry in enumerate(bitmap.table):
                if entry:
                    offset = entry & 0x00fffffffffffe00
                    data = b''
                    if offset:
                        data = self.data[offset:offset + self.cluster_size]
                        # The file may end inside of it
                        data += bytes(self.cluster_size - len(data))
                        data = column_sums(data)
                    total += zlib.crc32(bitmap.name +
                                        struct.pack('>Q', number) + data)
        return total % 2 ** 32

    def use_guard(self, guard: Guard) -> None:
        """As another program does that has stored the bitmaps."""
        checksum = self.bitmaps_checksum()
        self.put(GUARD, guard._replace(bitmaps_checksum=checksum).pack())
        self.write()
