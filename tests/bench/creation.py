# How long creating and growing an image takes, and how large its qcow2 file
# is then, at several virtual sizes.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subjects import (DATA_FILE, FILE, GIB, Place, QCOW2, SHELL, TIB,
                      human)

GROWTH = GIB
# A file of ext4 cannot be larger than 16 TiB; a qcow2 image with such clusters
# can, has small tables, and needs no larger one to grow to a whole TiB
SPARSE = 'qcow2, 2 MiB clusters'
SIZES = {FILE: [GIB, TIB, 15 * TIB],
         SPARSE: [GIB, TIB - GROWTH, 64 * TIB - GROWTH, 1024 * TIB - GROWTH]}
LARGEST_DATA_FILE = TIB     # its tables take 128 MiB for each TiB
SHELL_GOAL = 256 << 10
ROUNDS = 9
# Times that differ by less are the same: most is starting qemu-img
SAME = 1.5


@dataclass(frozen=True)
class Setting:
    """What is created."""
    size: int
    storage: str
    subject: str

    @property
    def rounds(self) -> int:
        """How often to measure: not for minutes."""
        large = self.subject == DATA_FILE and self.size >= LARGEST_DATA_FILE
        return 1 if large else ROUNDS


def settings() -> list[Setting]:
    """All that are measured."""
    found = [Setting(size, FILE, subject) for size in SIZES[FILE]
             for subject in (SHELL, DATA_FILE, QCOW2)
             if subject != DATA_FILE or size <= LARGEST_DATA_FILE]
    return found + [Setting(size, SPARSE, SHELL) for size in SIZES[SPARSE]]


def occupied(path: Path) -> int:
    """Bytes that @path takes up on the disk."""
    return path.stat().st_blocks * 512


def make_disk(place: Place, setting: Setting) -> str:
    """Make what has the data; its format."""
    if setting.storage == FILE:
        place.make_disk()
        return 'raw'
    place.qemu_img('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M',
                   place.disk, str(setting.size))
    return 'qcow2'


def measure_round(place: Place, setting: Setting) -> dict[str, float]:
    """Create and grow an image."""
    disk_format = make_disk(place, setting)
    image = place.image(setting.subject)
    start = time.monotonic()
    place.create(setting.subject, allocated=False, disk_format=disk_format)
    created = time.monotonic()
    size = occupied(image)
    place.qemu_img('resize', '-q', image, str(place.size + GROWTH))
    return {'create_ms': (created - start) * 1000,
            'created_kib': size >> 10,
            'grow_ms': (time.monotonic() - created) * 1000,
            'grown_kib': occupied(image) >> 10}


def measure(build: Path, scratch: Path) -> list[dict[str, Any]]:
    """A row for each size and kind of image: the shortest times, since
    whatever else the machine does can only make them longer."""
    samples: dict[Setting, list[dict[str, float]]] = {
        setting: [] for setting in settings()}
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        for number in range(ROUNDS):
            for setting, found in samples.items():
                if number < setting.rounds:
                    place = Place(build, Path(name), setting.size)
                    found.append(measure_round(place, setting))
    return [{'size': setting.size, 'storage': setting.storage,
             'subject': setting.subject,
             **{figure: round(min(sample[figure] for sample in found), 1)
                for figure in found[0]}}
            for setting, found in samples.items()]


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """Shells without bitmaps that are larger than they should be."""
    return [f'the shell of a disk of {human(row["size"])} takes '
            f'{size:.0f} KiB' for row in rows if row['subject'] == SHELL
            and (size := max(row['created_kib'], row['grown_kib']))
            > SHELL_GOAL >> 10]
