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
# The bitmap that is none
ALLOCATION_MAP = 'rw-backing-allocation-map'

MIB = 1024 * 1024
GUARD_FORMAT = '>IBB2sQIIQQ32s56s'
FILE_FORMAT = '>QqI36s'
DEVICE_FORMAT = '>16sQQQQQ'

# Kinds of guards, and places that samples are of
FILE = 1
SAMPLES = 2
DEVICE = 3
REMOTE_FILE_PLACE = 1
DEVICE_PLACE = 2
LOCAL_FILE_PLACE = 3


class FileTime(NamedTuple):
    size: int = 0
    mtime_sec: int = 0
    mtime_nsec: int = 0
    reserved: bytes = bytes(36)

    @classmethod
    def of(cls, path: str) -> 'FileTime':
        stat = os.stat(path)
        return cls(stat.st_size, stat.st_mtime_ns // 10 ** 9,
                   stat.st_mtime_ns % 10 ** 9)


class Device(NamedTuple):
    boot_id: bytes
    diskseq: int
    written: int
    discarded: int
    disk_written: int
    disk_discarded: int


class Guard(NamedTuple):
    """Data of a guard extension, field by field."""
    flags: int = 0
    kind: int = 0
    place: int = 0
    reserved: bytes = bytes(2)
    size: int = 0
    bitmaps_checksum: int = 0
    other_files: int = 0
    offset: int = 0
    seed: int = 0
    digest: bytes = bytes(32)
    rest: bytes = bytes(56)

    def pack(self) -> bytes:
        return struct.pack(
            GUARD_FORMAT, self.flags, self.kind, self.place, self.reserved,
            self.size, self.bitmaps_checksum, self.other_files, self.offset,
            self.seed, self.digest, self.rest)

    @classmethod
    def unpack(cls, data: bytes) -> 'Guard':
        return cls(*struct.unpack(GUARD_FORMAT, data))

    @property
    def file(self) -> FileTime:
        return FileTime(*struct.unpack(FILE_FORMAT, self.rest))

    @property
    def device(self) -> Device:
        return Device(*struct.unpack(DEVICE_FORMAT, self.rest))

    def with_file(self, file: FileTime) -> 'Guard':
        return self._with(struct.pack(FILE_FORMAT, *file))

    def with_device(self, device: Device) -> 'Guard':
        return self._with(struct.pack(DEVICE_FORMAT, *device))

    def _with(self, rest: bytes) -> 'Guard':
        return Guard.unpack(self.pack()[:-len(rest)] + rest)


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


def gpt_partitions(head: bytes, sector: int) -> Optional[List[int]]:
    """Where the partitions of a GPT start, None if there is none."""
    header = head[sector:2 * sector]
    if header[:8] != b'EFI PART':
        return None
    table, = struct.unpack_from('<Q', header, 72)
    count, length = struct.unpack_from('<II', header, 80)
    result: List[int] = []
    if not 128 <= length <= 4096:
        return []
    for offset in range(table * sector, table * sector + count * length,
                        length):
        entry = head[offset:offset + length]
        if len(entry) == length and any(entry[:16]):
            result.append(struct.unpack_from('<Q', entry, 32)[0] * sector)
    return result


def mbr_entries(sector: bytes) -> List[Tuple[int, int]]:
    """Type and start of each entry in use, the type is 0 otherwise."""
    entries = [struct.unpack_from('<4xB3xII', sector, 446 + 16 * i)
               for i in range(4)]
    if sector[510:512] != b'\x55\xaa':
        return [(0, 0)] * 4
    return [(kind if sectors else 0, start * 512)
            for kind, start, sectors in entries]


# Length of a random sample
SAMPLE = 16384


def random_indexes(seed: int, size: int) -> List[int]:
    """Places of random samples, in units of their length."""
    places = [hashlib.sha256(struct.pack('>QQ', seed, i)).digest()
              for i in range(30)]
    return [int.from_bytes(place[:8], 'big') % ((size + SAMPLE - 1) // SAMPLE)
            for place in places]


class Disk:
    """Samples of a file whose bytes are the disk, as they are specified."""
    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.hash = hashlib.sha256()

    def read(self, offset: int, length: int) -> bytes:
        with open(self.path, 'rb') as file:
            file.seek(offset)
            return file.read(min(length, self.size - offset))

    def sample(self, offset: int, length: int) -> bytes:
        data = self.read(offset, length)
        self.hash.update(data)
        return data

    def mbr_partitions(self, head: bytes) -> List[int]:
        """Reads the chain of logical partitions as samples."""
        entries = [entry for entry in mbr_entries(head)
                   if entry[0] and 0 < entry[1] < self.size]
        result = [start for _, start in entries]
        extended = next((start for kind, start in entries
                         if kind in (5, 15, 0x85)), 0)
        start = extended
        for _ in range(16):
            if not start or self.size - start < 512:
                break
            logical, following, _, _ = mbr_entries(self.sample(start, 512))
            if logical[0]:
                result.append(start + logical[1])
            last = start
            start = extended + following[1]
            if following[0] not in (5, 15, 0x85) or start <= last:
                break
        return result

    def samples_digest(self, seed: int) -> bytes:
        if self.size <= 4 * MIB:
            self.sample(0, self.size)
            return self.hash.digest()
        head = self.sample(0, 1310720)
        self.sample(self.size - 131072, 131072)
        for index in random_indexes(seed, self.size):
            self.sample(SAMPLE * index, SAMPLE)
        partitions = gpt_partitions(head, 512)
        if partitions is None:
            partitions = gpt_partitions(head, 4096)
        if partitions is None:
            partitions = self.mbr_partitions(head)
        partitions = [start for start in partitions if 0 < start < self.size]
        for start in partitions[:128]:
            self.sample(start, 131072)
        return self.hash.digest()


def samples_digest(path: str, seed: int, size: int = -1) -> bytes:
    """Section "Samples", for a file whose bytes are the disk."""
    disk = Disk(path, os.path.getsize(path) if size < 0 else size)
    return disk.samples_digest(seed)


def file_guard(path: str, size: int = -1) -> Guard:
    """A guard of kind 1 for a raw file, without the checksum."""
    size = os.path.getsize(path) if size < 0 else size
    return Guard(kind=FILE, size=size).with_file(FileTime.of(path))


def samples_guard(path: str, seed: int,
                  place: int = LOCAL_FILE_PLACE) -> Guard:
    """A guard of kind 2 for a file whose bytes are the disk."""
    return Guard(kind=SAMPLES, place=place, size=os.path.getsize(path),
                 seed=seed, digest=samples_digest(path, seed))


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
    data += bytes(-len(data) % 8)
    with open(image, 'r+b') as file:
        file.seek(file.read(65536).index(b'RWBK'))
        file.write(struct.pack('>4sI', b'RWBK', len(data)) + data + bytes(8))


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
