# The results as text: tables that are readable as they are, and are simple
# tables of reStructuredText too.
#
# SPDX-License-Identifier: GPL-2.0-or-later

from statistics import median
from typing import Any, Callable

import allocation
import creation
import instructions
import log
from subjects import (DATA_FILE, FILE, NULL, QCOW2, RAW, SHELL, SUBJECTS,
                      human)

Row = dict[str, Any]
Rows = list[Row]
Results = dict[str, Any]

THROUGHPUT_GOAL = 0.98
FASTER_GOAL = 1.0


def table(header: list[str], rows: list[list[str]]) -> str:
    """A table; the columns are as wide as they need to be."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    rule = ['=' * width for width in widths]
    return '\n'.join('  '.join(cell.ljust(width) for cell, width
                               in zip(line, widths)).rstrip()
                     for line in [rule, header, rule, *rows, rule])


def figure(value: float | None, digits: int = 0) -> str:
    """@value as text; nothing where there is none."""
    return '' if value is None else f'{value:.{digits}f}'


def instructions_table(rows: Rows) -> str:
    """Instructions per request, over one storage."""
    subjects = [subject for subject in SUBJECTS if subject in rows[0]]
    exact = instructions.is_exact(rows[0])
    return table(
        ['request', 'pattern', 'depth', 'bitmaps', *subjects, 'shell/raw',
         *(['goal'] if exact else [])],
        [[row['request'], row['pattern'], str(row['depth']),
          str(row['bitmaps']),
          *(figure(row[subject]) for subject in subjects),
          figure(row[SHELL] / row[RAW], 3),
          *([figure(instructions.goal(row), 2)] if exact else [])]
         for row in rows])


def throughput_table(rows: Rows) -> str:
    """Requests per second."""
    return table(
        ['client', 'pattern', 'depth', 'conn.', 'raw, 1/s',
         'shell', 'quartiles', 'CPU time', 'latency', 'p99',
         'data_file_raw', 'qcow2'],
        [[row['client'], row['pattern'], str(row['depth']),
          str(row['connections']), figure(1e6 / row['raw_request_us']),
          figure(row['request_us'][SHELL], 3),
          '-'.join(figure(value, 2) for value in row['quartiles']),
          *(figure(row.get(name, {}).get(SHELL), 3)
            for name in ('cpu_us', 'latency_us', 'p99_us')),
          *(figure(row['request_us'][subject], 3)
            for subject in (DATA_FILE, QCOW2))] for row in rows])


def rbd_table(rows: Rows) -> str:
    """Requests per second over a server of Ceph."""
    return table(
        ['pattern', 'depth', 'raw, 1/s', 'shell', 'quartiles', 'CPU time'],
        [[row['pattern'], str(row['depth']),
          figure(1e6 / row['raw_request_us']),
          figure(row['request_us'][SHELL], 3),
          '-'.join(figure(value, 2) for value in row['quartiles']),
          figure(row['cpu_us'][SHELL], 3)] for row in rows])


def creation_table(rows: Rows) -> str:
    """Creation and growth."""
    return table(
        ['size', 'over', 'image', 'create, ms', 'KiB', 'grow, ms',
         'KiB then'],
        [[human(row['size']), row['storage'], row['subject'],
          figure(row['create_ms'], 1), figure(row['created_kib']),
          figure(row['grow_ms'], 1), figure(row['grown_kib'])]
         for row in rows])


def openclose_table(rows: Rows) -> str:
    """Opening and closing."""
    names = ('open_ms', 'close_ms', 'cpu_ms', 'peak_mib')
    return table(
        ['size', 'bitmaps', 'dirty', 'MiB', 'shell: open, ms', 'close, ms',
         'CPU, ms', 'peak, MiB', 'qcow2: open, ms', 'close, ms', 'CPU, ms',
         'peak, MiB', 'times faster', 'CPU'],
        [[human(row['size']), str(row['bitmaps']), row['dirty'],
          str(row['stored_mib']),
          *(figure(row[subject][name], 2) for subject in (SHELL, QCOW2)
            for name in names),
          figure(row['times_faster'], 2), figure(row['times_less_cpu'], 2)]
         for row in rows])


def _pair_table(rows: Rows, without: str, having: str) -> str:
    """Figures of two kinds of shells."""
    return table(
        ['what', 'unit', without, having, 'goal', 'met'],
        [[row['what'], row['unit'], figure(row[without], 2),
          figure(row[having], 2), row['goal'],
          {True: 'yes', False: 'no', None: ''}[row['met']]] for row in rows])


def log_table(rows: Rows) -> str:
    """What the write-intent log costs."""
    return _pair_table(rows, log.WITHOUT, log.WITH)


def map_table(rows: Rows) -> str:
    """What the allocation map costs and saves."""
    return _pair_table(rows, allocation.WITHOUT, allocation.WITH)


def guard_table(rows: Rows) -> str:
    """What the guard costs."""
    names = ('open_ms', 'close_ms', 'cpu_ms')
    return table(
        ['guard', 'open, ms', 'close, ms', 'CPU, ms', 'off: open, ms',
         'close, ms', 'CPU, ms'],
        [[row['kind'], *(figure(row[guard][name], 2)
                         for guard in ('auto', 'off') for name in names)]
         for row in rows])


def over(storage: str) -> Callable[[Rows], Rows]:
    """Selects the rows that are about @storage."""
    return lambda rows: [row for row in rows if row['storage'] == storage]


def every(rows: Rows) -> Rows:
    """Selects all rows."""
    return rows


# By name: the section of the results, its rows, a title and what makes a table
TABLES = {
    'instructions-null': ('instructions', over(NULL),
                          'Instructions per request, null-co',
                          instructions_table),
    'instructions-file': ('instructions', over(FILE),
                          'Instructions per request, file',
                          instructions_table),
    'throughput': ('throughput', every,
                   'Requests per second, against raw', throughput_table),
    'rbd': ('rbd', every, 'Requests per second over Ceph RBD, against raw',
            rbd_table),
    'creation': ('creation', every, 'Creation and growth', creation_table),
    'openclose': ('openclose', every, 'Opening and closing with bitmaps',
                  openclose_table),
    'log': ('log', every, 'The write-intent log', log_table),
    'map': ('map', every, 'The allocation map', map_table),
    'guard': ('guard', every, 'The guard', guard_table),
}
SECTIONS = list(dict.fromkeys(section for section, *_ in TABLES.values()))


def make_table(results: Results, name: str) -> str | None:
    """The table @name, if @results have it."""
    section, select, _, make = TABLES[name]
    rows = select(results.get(section, {}).get('rows', []))
    return make(rows) if rows else None


def about(results: Results, section: str) -> str:
    """What the results of @section are of."""
    facts = results[section]['about']
    return (f'``{facts["command"]}``, {facts["version"]}, {facts["machine"]}, '
            f'{facts["date"]}, {facts["took"]}')


# Goals

def _instruction_goals(rows: Rows) -> list[list[str]]:
    exact = list(filter(instructions.is_exact, rows))
    kinds = [
        ('4 KiB read and write, no bitmap, 64 at a time, at most 0.97',
         instructions.is_small),
        ('other requests, no bitmap, at most 1.00',
         lambda row: not row['bitmaps'] and not instructions.is_small(row)),
        ('N persistent bitmaps, against N on raw, at most 1.00',
         lambda row: row['bitmaps']),
    ]
    result = []
    for kind, belongs in kinds:
        some = list(filter(belongs, exact))
        if some:
            result.append(_goal(
                f'instructions: {kind}',
                max(row[SHELL] / row[RAW] for row in some),
                all(instructions.reaches(row) for row in some)))
    if exact:
        worst = max(row[SHELL] / row[DATA_FILE] for row in exact)
        result.append(_goal('instructions against data_file_raw, at most '
                            '1.00', worst, worst <= 1))
    return result


def _throughput_goals(rows: Rows) -> list[list[str]]:
    result = []
    for name, what in (('request_us', 'requests per second'),
                       ('cpu_us', 'requests per CPU time')):
        worst = min(row[name][SHELL] for row in rows)
        result.append(_goal(f'{what} against raw, at least '
                            f'{THROUGHPUT_GOAL}, worst cell', worst,
                            worst >= THROUGHPUT_GOAL))
    worst = min(row['request_us'][SHELL] / row['request_us'][DATA_FILE]
                for row in rows)
    return result + [_goal('requests per second against data_file_raw, at '
                           'least 1.00, worst cell', worst, worst >= 1)]


def _creation_goals(rows: Rows) -> list[list[str]]:
    shells = [row for row in rows if row['subject'] == SHELL]
    some = [row for row in shells if row['storage'] == creation.SPARSE]
    small, large = some[0], some[-1]
    result = []
    for name in ('create', 'grow'):
        ratio = large[f'{name}_ms'] / small[f'{name}_ms']
        result.append(_goal(
            f'time to {name} a shell of {human(large["size"])}, against '
            f'{human(small["size"])}, at most {creation.SAME}', ratio,
            ratio < creation.SAME))
    size = max(max(row['created_kib'], row['grown_kib']) for row in shells)
    return result + [_goal('KiB of a shell without bitmaps, at most 256',
                           size, not creation.missed(rows))]


def _openclose_goals(rows: Rows) -> list[list[str]]:
    some = [row for row in rows if row['bitmaps']]
    worst = min(row['times_faster'] for row in some)
    # Where all bits are set, there is nothing to store
    stored = [row['times_faster'] for row in some
              if row['stored_mib'] >= 20 and row['dirty'] != '100 %']
    unstored = [row['times_faster'] for row in some
                if row['stored_mib'] >= 20 and row['dirty'] == '100 %']
    cpu = min(row['times_less_cpu'] for row in some)
    return [_goal('opening and closing against qcow2, at least 1 times as '
                  'fast', worst, worst >= FASTER_GOAL),
            _goal('the same in CPU time', cpu, cpu >= FASTER_GOAL),
            *(_goal(f'20 MiB or more, {bits}, aim 3 times as fast, median',
                    median(times), median(times) >= 3)
              for bits, times in (('some bits set', stored),
                                  ('all bits set', unstored)) if times)]


def _pair_goals(rows: Rows, without: str, having: str) -> list[list[str]]:
    return [[f'{having}: {row["what"]}, {row["goal"]}',
             f'{row[without]:g} -> {row[having]:g} {row["unit"]}',
             'yes' if row['met'] else 'no']
            for row in rows if row['goal']]


def _log_goals(rows: Rows) -> list[list[str]]:
    return _pair_goals(rows, log.WITHOUT, log.WITH)


def _map_goals(rows: Rows) -> list[list[str]]:
    return _pair_goals(rows, allocation.WITHOUT, allocation.WITH)


def _goal(what: str, value: float, met: bool) -> list[str]:
    return [what, f'{value:.3f}'.rstrip('0').rstrip('.'),
            'yes' if met else 'no']


GOALS = {'instructions': _instruction_goals, 'throughput': _throughput_goals,
         'creation': _creation_goals, 'openclose': _openclose_goals,
         'log': _log_goals, 'map': _map_goals}


def goals_table(results: Results) -> str:
    """All goals, what was measured, and whether they are met."""
    return table(['goal', 'measured', 'met'],
                 [line for section, make in GOALS.items()
                  if section in results
                  for line in make(results[section]['rows'])])


def text(results: Results) -> str:
    """All of @results."""
    parts = []
    for name, (section, _, title, _) in TABLES.items():
        found = make_table(results, name)
        if found:
            parts.append(f'{title}\n{about(results, section)}\n\n{found}')
    if set(GOALS) & set(results):
        parts.append(f'Goals\n\n{goals_table(results)}')
    return '\n\n\n'.join(parts) + '\n'


def missed(results: Results) -> list[str]:
    """The goals that are missed, of those that do not depend on the machine
    and what else it does."""
    result = []
    for section, find in (('instructions', instructions.missed),
                          ('creation', creation.missed),
                          ('log', log.missed),
                          ('map', allocation.missed)):
        result += find(results.get(section, {}).get('rows', []))
    return result
