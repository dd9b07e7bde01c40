"""
What a disk and the dirty bitmaps of its shell have to be after everything that
was done to them.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

from programs import Failure

SECTOR = 512


def sectors(data: bytes) -> List[bytes]:
    """The sectors of a disk."""
    return [data[i:i + SECTOR] for i in range(0, len(data), SECTOR)]


@dataclass
class Bitmap:
    """
    A persistent bitmap.  Bits are kept as one byte for each sector, 0 or 1.
    """
    # pylint: disable=too-many-instance-attributes

    granularity: int
    recording: bool
    # The disk when the bitmap was created or cleared
    start: bytes
    # What has to be set, and what may be set
    dirty: bytearray
    maybe: bytearray
    # Not always recording since: other changes than recorded ones are fine
    gap: bool = False
    # It is all right if it is not there, because it was being created or
    # removed
    optional: bool = False
    # The recorded bits may have been cleared
    maybe_cleared: bool = False
    # Recording may have become the opposite
    maybe_flipped: bool = False
    # Somebody else has modified the disk: must not be consistent
    outdated: bool = False

    def mark(self, bits: bytearray, offset: int, length: int) -> None:
        """Set bits for a part of the disk."""
        first = offset // self.granularity * self.granularity // SECTOR
        end = -(-(offset + length) // self.granularity) * self.granularity
        end = min(end // SECTOR, len(bits))
        bits[first:end] = b'\1' * (end - first)

    def grow(self, count: int) -> None:
        """
        The disk has @count new sectors, with zeroes.  They may be set, and with
        them what is in the same bit.
        """
        self.start += bytes(count * SECTOR)
        self.dirty += bytes(count)
        self.maybe += bytes(count)
        self.mark(self.maybe, len(self.start) - count * SECTOR, count * SECTOR)

    def clear(self, disk: bytes) -> None:
        """No bits."""
        self.start = bytes(disk)
        self.dirty = bytearray(len(self.dirty))
        self.maybe = bytearray(len(self.dirty))
        self.gap = not self.recording
        self.maybe_cleared = False


class Model:
    """A disk and its bitmaps."""

    def __init__(self, disk: bytes) -> None:
        self.disk = bytearray(disk)
        self.bitmaps: Dict[str, Bitmap] = {}
        # Requests that were not answered: what may be there instead
        self._in_flight: Dict[int, Tuple[int, bytes]] = {}
        # Sectors to all contents that they may have
        self._doubts: Dict[int, List[bytes]] = {}

    def add(self, name: str, granularity: int, recording: bool) -> Bitmap:
        """A new bitmap."""
        count = len(self.disk) // SECTOR
        self.bitmaps[name] = Bitmap(granularity, recording, bytes(self.disk),
                                    bytearray(count), bytearray(count),
                                    gap=not recording)
        return self.bitmaps[name]

    def sent(self, request: int, offset: int, data: bytes) -> None:
        """A write is on its way; it overlaps no other."""
        self._in_flight[request] = (offset, data)
        for bitmap in self.bitmaps.values():
            if bitmap.recording:
                bitmap.mark(bitmap.maybe, offset, len(data))

    def answered(self, request: int, or_unchanged: bool = False) -> None:
        """That write has arrived, or perhaps it was ignored."""
        offset, data = self._in_flight.pop(request)
        for bitmap in self.bitmaps.values():
            if bitmap.recording:
                bitmap.mark(bitmap.dirty, offset, len(data))
        if or_unchanged:
            self._doubt(offset, data)
            return
        for sector in range(offset // SECTOR, (offset + len(data)) // SECTOR):
            self._doubts.pop(sector, None)
        self.disk[offset:offset + len(data)] = data

    def _doubt(self, offset: int, data: bytes) -> None:
        for i, new in enumerate(sectors(data)):
            sector = offset // SECTOR + i
            old = bytes(self.disk[sector * SECTOR:(sector + 1) * SECTOR])
            self._doubts.setdefault(sector, [old]).append(new)

    def crashed(self) -> None:
        """No request will be answered any more."""
        for offset, data in self._in_flight.values():
            self._doubt(offset, data)
        self._in_flight.clear()

    def may_merge(self, target: str, source: str) -> None:
        """It is on its way."""
        into, other = self.bitmaps[target], self.bitmaps[source]
        for sector, bit in enumerate(other.maybe):
            if bit:
                into.mark(into.maybe, sector * SECTOR, SECTOR)

    def merge(self, target: str, source: str) -> None:
        """Also bits of another granularity; after may_merge()."""
        into, other = self.bitmaps[target], self.bitmaps[source]
        for sector, bit in enumerate(other.dirty):
            if bit:
                into.mark(into.dirty, sector * SECTOR, SECTOR)

    def resize(self, size: int) -> None:
        """The disk has grown."""
        count = (size - len(self.disk)) // SECTOR
        self.disk += bytes(count * SECTOR)
        for bitmap in self.bitmaps.values():
            bitmap.grow(count)

    def foreign_write(self, offset: int, data: bytes) -> None:
        """By somebody else."""
        for sector in range(offset // SECTOR, (offset + len(data)) // SECTOR):
            self._doubts.pop(sector, None)
        self.disk[offset:offset + len(data)] = data
        for bitmap in self.bitmaps.values():
            bitmap.outdated = True

    def check_disk(self, data: bytes) -> None:
        """These are the bytes that are really there."""
        if len(data) != len(self.disk):
            raise Failure(f'disk has {len(data)} bytes instead of '
                          f'{len(self.disk)}')
        if data != self.disk:
            expected = sectors(bytes(self.disk))
            for i, sector in enumerate(sectors(data)):
                if sector != expected[i] and \
                        sector not in self._doubts.get(i, ()):
                    raise Failure(f'wrong data in sector {i}')
        self.disk = bytearray(data)
        self._doubts.clear()

    def check_bits(self, name: str, bits: bytearray) -> None:
        """These are the bits of a bitmap that QEMU thinks is consistent."""
        bitmap = self.bitmaps[name]
        if bitmap.outdated:
            raise Failure(f"bitmap '{name}' is consistent, but others have "
                          "written to the disk")
        if bitmap.maybe_cleared and not any(bits):
            bitmap.clear(bytes(self.disk))
        bitmap.maybe_cleared = False
        for sector, bit in enumerate(bits):
            if bitmap.dirty[sector] and not bit:
                raise Failure(f"bitmap '{name}' misses sector {sector}")
            if bit and not bitmap.dirty[sector] and not bitmap.maybe[sector]:
                raise Failure(f"bitmap '{name}' has sector {sector}, which "
                              "nobody has written to")
        bitmap.dirty = bytearray(bits)
        bitmap.maybe = bytearray(bits)
        if not bitmap.gap:
            # Does not depend on what the model says of requests
            now, then = sectors(bytes(self.disk)), sectors(bitmap.start)
            for sector, bit in enumerate(bits):
                if not bit and now[sector] != then[sector]:
                    raise Failure(f"sector {sector} has changed, but bitmap "
                                  f"'{name}' does not say so")

    def backup_source(self, name: str) -> Optional[bytes]:
        """The copy to which an incremental backup can be added."""
        bitmap = self.bitmaps[name]
        return None if bitmap.gap else bitmap.start
