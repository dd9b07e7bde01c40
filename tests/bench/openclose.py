# How long opening and closing an image takes that has persistent bitmaps, and
# how much processor time and memory; what the guard costs, by kind.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import os
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from client import talk
from subjects import (FILE, GIB, KIB, MIB, NULL, Options, Place, QCOW2, SHELL,
                      TIB)

GRANULARITY = 64 * KIB
# Every which bit is set: evenly, so that every cluster of the bitmap has one
DIRTY = {'0.1 %': 1000, '10 %': 10, '100 %': 1}
COMPARED = [SHELL, QCOW2]
# More bytes of bitmaps than this take as much memory and, for each of two
# images, three times as much disk: only where there is enough
LARGE = GIB
MEMORY_NEEDED = 8 * GIB
DISK_NEEDED = 24 * GIB


@dataclass(frozen=True)
class Setting:
    """An image with bitmaps."""
    size: int
    bitmaps: int
    dirty: str

    @property
    def stored(self) -> int:
        """Bytes of bitmaps in an image."""
        return self.bitmaps * self.size // GRANULARITY // 8


    @property
    def rounds(self) -> int:
        """How often to open both images twice."""
        if self.stored > LARGE:
            return 0
        return 2 if self.stored > 100 * MIB else 5


def settings(quick: bool) -> list[Setting]:
    """All that are measured where there is room."""
    # The largest file of ext4 is a little smaller than 16 TiB
    sizes = [TIB] if quick else [TIB, 16 * TIB - MIB]
    return [Setting(size, bitmaps, dirty)
            for size in sizes for bitmaps in (0, 1, 10, 100)
            for dirty in DIRTY if bitmaps or dirty == '100 %']


def fits(setting: Setting, scratch: Path) -> bool:
    """Whether there is room for an image."""
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return setting.stored < LARGE or (
        memory >= MEMORY_NEEDED
        and shutil.disk_usage(scratch).free >= DISK_NEEDED)


def opening(options: Options) -> list[str]:
    """What the client has to do to be measured."""
    return [f'open {json.dumps(options)}', 'close']


def options_of(place: Place, subject: str,
               storage: str = FILE) -> Options:
    """The options that open the image of @subject, which is not flushed: the
    time of that is the disk's."""
    options = {**place.options(subject, storage), 'file.cache.no-flush': 'on'}
    if storage == NULL:
        # Else it reads as what happens to be in memory
        options['rw-backing.read-zeroes'] = 'on'
    return options


def fill(client: Path, place: Place, subject: str, setting: Setting,
         storage: str = FILE) -> None:
    """Make the image of @subject, with bitmaps."""
    place.create(subject, allocated=False)
    if setting.bitmaps:
        open_image, close_image = opening(options_of(place, subject,
                                                      storage))
        talk([client], [open_image,
                        f'bitmaps {setting.bitmaps} {GRANULARITY}',
                        f'dirty {DIRTY[setting.dirty]}', close_image])


def open_and_close(client: Path, options: Options) -> dict[str, float]:
    """The milliseconds of opening and closing, of processor time for both,
    and the peak of memory."""
    opened, closed = talk([client], opening(options))
    return {'open_ms': opened['microseconds'] / 1000,
            'close_ms': closed['microseconds'] / 1000,
            'cpu_ms': (opened['cpu_microseconds']
                       + closed['cpu_microseconds']) / 1000,
            'peak_mib': closed['peak_kib'] / 1024}


def medians(samples: list[dict[str, float]]) -> dict[str, float]:
    """The median of each of the figures."""
    return {name: round(statistics.median(sample[name]
                                          for sample in samples), 3)
            for name in samples[0]}


def speed_up(ours: list[dict[str, float]], theirs: list[dict[str, float]],
             figures: list[str]) -> float:
    """How many times less @ours take, the median of pairs."""
    return round(statistics.median(
        sum(other[figure] for figure in figures)
        / sum(one[figure] for figure in figures)
        for one, other in zip(ours, theirs)), 3)


def order(rounds: int) -> list[str]:
    """What to open, so that what changes in the meantime hits both; even
    without @rounds there is one pair."""
    return rounds * [*COMPARED, *reversed(COMPARED)] or COMPARED


def measure_one(client: Path, place: Place,
                setting: Setting) -> dict[str, Any]:
    """A row: shell and qcow2 in turn."""
    samples: dict[str, list[dict[str, float]]] = {
        subject: [] for subject in COMPARED}
    place.make_disk()
    for subject in COMPARED:
        fill(client, place, subject, setting)
    for subject in order(setting.rounds):
        samples[subject].append(open_and_close(
            client, options_of(place, subject)))
    row: dict[str, Any] = {
        'size': setting.size, 'bitmaps': setting.bitmaps,
        'dirty': setting.dirty if setting.bitmaps else '-',
        'stored_mib': setting.stored // MIB}
    row.update({subject: medians(samples[subject]) for subject in COMPARED})
    for name, figures in (('times_faster', ['open_ms', 'close_ms']),
                          ('times_less_cpu', ['cpu_ms'])):
        row[name] = speed_up(samples[SHELL], samples[QCOW2], figures)
    return row


def measure(client: Path, build: Path, scratch: Path,
            quick: bool) -> list[dict[str, Any]]:
    """A row for each image."""
    rows = []
    for setting in settings(quick):
        if fits(setting, scratch):
            with tempfile.TemporaryDirectory(dir=scratch) as name:
                place = Place(build, Path(name), setting.size)
                rows.append(measure_one(client, place, setting))
    return rows


def measure_guard(client: Path, build: Path,
                  scratch: Path) -> list[dict[str, Any]]:
    """A row for each kind of guard: what a shell with one bitmap takes."""
    rows = []
    setting = Setting(TIB, 1, '10 %')
    # What is not a local file has no modification time to go by, and may be
    # far away
    for kind, storage, latency in (('mtime', FILE, 0), ('samples', NULL, 0),
                                   ('samples, 5 ms', NULL, 5000000)):
        with tempfile.TemporaryDirectory(dir=scratch) as name:
            place = Place(build, Path(name), setting.size)
            place.make_disk()
            fill(client, place, SHELL, setting, storage)
            samples: dict[str, list[dict[str, float]]] = {'auto': [],
                                                          'off': []}
            for guard in 5 * ['auto', 'off', 'off', 'auto']:
                options = {**options_of(place, SHELL, storage),
                           'rw-backing-guard': guard}
                if latency:
                    options['rw-backing.latency-ns'] = str(latency)
                samples[guard].append(open_and_close(client, options))
            row: dict[str, Any] = {'kind': kind}
            row.update({guard: medians(found)
                        for guard, found in samples.items()})
            rows.append(row)
    return rows
