# What must be right about the series as text, whatever QEMU it goes on:
# subjects, bodies and sign-offs, and that patches/, its adaptations and our
# own files name each other completely.  Used by scripts/validate.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import re
from collections import Counter
from pathlib import Path
from typing import Iterator

from common import Failure, bases
from series.patches import Patch, Series, is_pattern

WIDTH = 76
# Where a file of ours enters QEMU, so that one patch must list it
OWN_DIRECTORIES = ('block', 'include', 'qapi', 'docs/devel', 'docs/interop',
                   'tests/unit', 'tests/qemu-iotests')
NOT_PATCHES = ('series', 'cover-letter', 'adapt')


def lint(series: Series) -> list[str]:
    """Everything that is wrong with @series."""
    names = series.names()
    if not names:
        return ['patches/series is empty: there is no series to work on']
    problems = [f'patches/series: {name} is there twice'
                for name, count in Counter(names).items() if count > 1]
    patches = []
    for name in dict.fromkeys(names):
        try:
            patches.append(series.load_one(name))
        except Failure as failure:
            problems.append(str(failure))
    problems += _orphans(series, names)
    problems += _adaptations(series, names)
    for patch in patches:
        problems += (f'patches/{patch.name}: {text}'
                     for text in _patch(patch))
    problems += _own_files(series, patches)
    return problems


def _orphans(series: Series, names: list[str]) -> Iterator[str]:
    for path in sorted(series.dir.iterdir()):
        if path.name not in NOT_PATCHES and path.name not in names:
            yield (f'patches/{path.name} is not in patches/series: add it '
                   'there, or remove it')


def _adaptations(series: Series, names: list[str]) -> Iterator[str]:
    known = [base.name for base in bases()]
    for path in sorted(series.dir.glob('adapt/*/*')):
        where = path.relative_to(series.root)
        if path.parent.name not in known:
            yield f'{where}: base.conf has no base {path.parent.name}'
        stem = path.name.removesuffix('.patch').removesuffix('.hunks')
        if f'{stem}.patch' not in names:
            yield f'{where}: the series has no {stem}.patch to adapt'
        reason = path.read_text().partition('diff --git ')[0]
        if f'{stem}.patch' not in reason or len(reason.split()) < 5:
            yield (f'{where} must begin with a text that says that it adapts '
                   f'{stem}.patch, and why')


def _patch(patch: Patch) -> Iterator[str]:
    if re.match(r'\d+[-_]', patch.name):
        yield 'names carry no number: patches/series has the order'
    if not re.match(r'[^\s:\[][^:]*: \S', patch.subject):
        yield f'subject "{patch.subject}" is not "subsystem: summary"'
    if len(patch.subject) > WIDTH:
        yield f'subject has {len(patch.subject)} columns, more than {WIDTH}'
    if patch.subject.endswith('.'):
        yield 'subject ends in a full stop'
    lines = patch.body.split('\n')
    trailers = [line for line in lines if re.match(r'[A-Z][\w-]+: ', line)]
    if f'Signed-off-by: {patch.author}' not in trailers:
        yield f'there is no "Signed-off-by: {patch.author}"'
    prose = [line for line in lines if line not in trailers]
    if not any(prose):
        yield 'the message has no body'
    for line in prose:
        # what is quoted, or has no place to break, may be longer
        if len(line) > WIDTH and ' ' in line.strip() and line[0] != ' ':
            yield f'"{line[:30]}..." has more than {WIDTH} columns'
    if not patch.own_lines and not patch.hunks:
        yield 'it changes nothing'
    if patch.own_lines != sorted(set(patch.own_lines)):
        yield 'its Own-file lines are not sorted and each there once'
    for path in re.findall(r'^diff --git a/(\S+) .*\nnew file mode',
                           patch.hunks, re.MULTILINE):
        yield (f'{path} is new: it belongs in the repository as a file, and '
               'in an Own-file line')


def _own_files(series: Series, patches: list[Patch]) -> Iterator[str]:
    listed: dict[str, str] = {}
    for name, paths in series.own_files(patches).items():
        for path in paths:
            if path in listed:
                yield (f'patches/{name}: {path} is listed by '
                       f'patches/{listed[path]} already')
            listed[path] = name
            if is_pattern(path):
                yield f'patches/{name}: {path} matches no file of its own'
            elif not (series.root / path).is_file():
                yield (f'patches/{name}: {path} is listed, and is not '
                       'in the repository')
    for path in _present(series.root):
        if path not in listed:
            yield f'{path} is listed by no patch: no commit would have it'


def _present(root: Path) -> Iterator[str]:
    for directory in OWN_DIRECTORIES:
        for path in sorted((root / directory).rglob('*')):
            if path.is_file() and '__pycache__' not in path.parts:
                yield str(path.relative_to(root))


def added_lines(patches: list[Patch]) -> Counter[str]:
    """How many lines the hooks add to each of QEMU's files."""
    count: Counter[str] = Counter()
    for patch in patches:
        path = ''
        for line in patch.hunks.split('\n'):
            if line.startswith('diff --git '):
                path = line.rpartition(' b/')[2]
            elif line.startswith('+') and not line.startswith('+++ '):
                count[path] += 1
    return count
