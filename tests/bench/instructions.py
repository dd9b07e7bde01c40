# Instructions per request, by kind of request and kind of image: what
# callgrind counts for many requests less what it counts for half as many, so
# that all is left out that is not done for each.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import os
import re
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Iterable, Iterator

from common import Failure
from client import talk
from subjects import (DATA_FILE, FILE, KIB, NULL, Place, RAW, SHELL, SUBJECTS,
                      TIB, has_storage)

SIZE = TIB
WARM_UP = 1000
REQUESTS = 1000
GRANULARITY = 64 * KIB
PATTERNS = ['sequential', 'random']
BITMAPS = [0, 1, 8]
DEEP = 64       # as that of qemu-img bench
# Kind and bytes; those come last that free clusters of qcow2 images
KINDS = {
    'read 4 KiB': ('read', 4 * KIB),
    'write 4 KiB': ('write', 4 * KIB),
    'read 64 KiB': ('read', 64 * KIB),
    'write 64 KiB': ('write', 64 * KIB),
    'flush': ('flush', 0),
    'write zeroes 64 KiB': ('zero', 64 * KIB),
    'discard 64 KiB': ('discard', 64 * KIB),
}
COMPARED = [RAW, SHELL]
SMALL = ['read 4 KiB', 'write 4 KiB']
SMALL_GOAL = 0.97
GOAL = 1.0
TOLERANCE = 0.0005
# null-co has no such request, and QEMU writes buffers that it allocates
TOLERANCES = {'write zeroes 64 KiB': 0.002}


@dataclass(frozen=True)
class Setting:
    """What one run of the client is about."""
    storage: str
    pattern: str
    depth: int
    bitmaps: int
    subject: str

    @property
    def repeats(self) -> int:
        """How often to measure: over a file no two counts are the same, and
        what is compared there is raw and shell."""
        return 3 if self.storage == FILE and self.subject in COMPARED else 1


def settings(quick: bool) -> Iterable[Setting]:
    """All that are measured."""
    loads = [(storage, pattern, DEEP, bitmaps)
             for storage in ((NULL,) if quick else (NULL, FILE))
             for pattern in (PATTERNS[:1] if quick else PATTERNS)
             for bitmaps in BITMAPS]
    loads.append((NULL, PATTERNS[0], 1, 0))
    for load in loads:
        for subject in SUBJECTS:
            if has_storage(subject, load[0]):
                yield Setting(*load, subject)


def phases(setting: Setting) -> Iterator[tuple[str, int]]:
    """What to count, and how many requests that is."""
    yield 'warm-up', WARM_UP
    for number in range(setting.repeats):
        yield f'some{number}', REQUESTS
        yield f'twice{number}', 2 * REQUESTS


def script(setting: Setting, options: dict[str, str]) -> list[str]:
    """What the client has to do; its second answer counts the bitmaps."""
    lines = [f'open {json.dumps(options)}',
             f'bitmaps {setting.bitmaps} {GRANULARITY}']
    for name, (kind, size) in KINDS.items():
        label = name.replace(' ', '_')
        for phase, count in phases(setting):
            lines += [f'run {kind} {size} {count} {setting.depth} '
                      f'{setting.pattern}', f'profile {label}:{phase}']
    return [*lines, 'close']


def read_profile(text: str) -> tuple[str, int] | None:
    """The label and the instructions of a file that callgrind has written;
    None if it is none that the client has asked for."""
    label = re.search(r'^desc: Trigger: Client Request: (\S+)$', text,
                      re.MULTILINE)
    total = re.search(r'^(?:summary|totals): (\d+)', text, re.MULTILINE)
    return (label[1], int(total[1])) if label and total else None


def slopes(counts: dict[str, int], repeats: int) -> dict[str, float]:
    """Instructions per request by kind, from @counts by label."""
    result = {}
    for name in KINDS:
        label = name.replace(' ', '_')
        more = [counts[f'{label}:twice{number}']
                - counts[f'{label}:some{number}'] for number in range(repeats)]
        result[name] = statistics.median(more) / REQUESTS
    return result


def check_bitmaps(place: Place, setting: Setting, persistent: int) -> None:
    """Bitmaps of qcow2 images must have been @persistent, and stored."""
    expected = 0 if setting.subject == RAW else setting.bitmaps
    stored = place.stored_bitmaps(setting.subject)
    if (persistent, stored) != (expected, expected):
        raise Failure(f'{setting} had {persistent} persistent bitmaps and '
                      f'stored {stored}')


def measure_one(client: Path, build: Path, scratch: Path,
                setting: Setting) -> dict[str, float]:
    """Instructions per request, by kind."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        place = Place(build, Path(name), SIZE)
        place.make_disk()
        # What a log adds to that has a table of its own
        place.create(setting.subject, log=False)
        output = place.directory / 'callgrind'
        options = place.options(setting.subject, setting.storage)
        answers = talk(['valgrind', '--tool=callgrind',
                        f'--callgrind-out-file={output}', client],
                       script(setting, options))
        check_bitmaps(place, setting, answers[1]['persistent'])
        profiles = (read_profile(path.read_text())
                    for path in place.directory.glob('callgrind.*'))
        return slopes(dict(filter(None, profiles)), setting.repeats)


def measure(client: Path, build: Path, scratch: Path,
            quick: bool) -> list[dict[str, Any]]:
    """A row for each storage, pattern, depth, number of bitmaps and kind."""
    every = list(settings(quick))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda setting: measure_one(
            client, build, scratch, setting), every))
    return merge(zip(every, found))


def merge(found: Iterable[tuple[Setting, dict[str, float]]]
          ) -> list[dict[str, Any]]:
    """One row for what differs only in the kind of image."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    for setting, counts in found:
        about = asdict(setting)
        subject = about.pop('subject')
        for kind, count in counts.items():
            row = rows.setdefault((*about.values(), kind),
                                  {**about, 'request': kind})
            row[subject] = round(count, 2)
    return list(rows.values())


def is_small(row: dict[str, Any]) -> bool:
    """The requests that have a goal of their own."""
    return (row['request'] in SMALL and not row['bitmaps']
            and row['depth'] == DEEP)


def goal(row: dict[str, Any]) -> float:
    """How many instructions a shell may take for each one of raw."""
    return SMALL_GOAL if is_small(row) else GOAL


def reaches(row: dict[str, Any]) -> bool:
    """Whether a row is as the goal wants it, but for what an allocator does
    with other addresses."""
    tolerance = TOLERANCES.get(row['request'], TOLERANCE)
    return bool(row[SHELL] / row[RAW] <= goal(row) + tolerance)


def is_exact(row: dict[str, Any]) -> bool:
    """Over a file, counts depend on how requests happen to be completed."""
    return bool(row['storage'] == NULL)


def missed(rows: list[dict[str, Any]]) -> list[str]:
    """The goals that are missed, of those that exact counts decide."""
    result = []
    for row in filter(is_exact, rows):
        where = (f'{row["request"]}, {row["pattern"]}, '
                 f'{row["bitmaps"]} bitmaps, depth {row["depth"]}')
        if not reaches(row):
            result.append(f'{where}: {row[SHELL] / row[RAW]:.4f} of raw, not '
                          f'{goal(row):.2f}')
        if row[SHELL] > row[DATA_FILE]:
            result.append(f'{where}: more than data_file_raw')
    return result
