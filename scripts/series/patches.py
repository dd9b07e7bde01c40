# The patch series as files: reads and writes patches/series, the patches
# that it names and their adaptations to other bases.  Knows the format, and
# nothing of git or of QEMU's source.
#
# A patch is an unnumbered mail patch.  Between "---" and the hunks it lists
# the files of this repository that enter QEMU whole with the same commit:
#
#     From: A. Developer <dev@example.org>
#     Subject: block: summary
#
#     Body
#
#     Signed-off-by: A. Developer <dev@example.org>
#     ---
#     Own-file: block/new.c
#     Own-file: tests/qemu-iotests/tests/new-*
#
#     diff --git a/block/meson.build b/block/meson.build
#     ...
#
# A listed name may be a shell pattern, so that a new test needs no new line.
# A file that one patch lists by its name and another one's pattern matches
# enters with the first.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from common import Failure, bases

_PATCH = re.compile(r'From: (?P<author>[^\n]+ <[^\n<>]+>)\n'
                    r'Subject: (?P<subject>[^\n]+)\n'
                    r'\n'
                    r'(?P<body>.+?)\n'
                    r'---\n'
                    r'(?P<rest>.*)', re.DOTALL)
_HUNKS = re.compile(r'^diff --git ', re.MULTILINE)
# What editors and patch(1) leave behind, which no pattern means
_LEFTOVERS = ('.*', '*~', '*.orig', '*.rej', '*.pyc')


@dataclass
class Patch:
    """One entry of the series, one commit of the mailed series."""
    name: str               # file name in patches/
    author: str             # "Name <address>"
    subject: str
    body: str               # without a newline at its end
    own_lines: list[str] = field(default_factory=list)  # names and patterns
    hunks: str = ''         # what changes in QEMU's files; may be empty

    @property
    def message(self) -> str:
        """The commit message."""
        return f'{self.subject}\n\n{self.body}\n'

    def format(self) -> str:
        """The patch as patches/ holds it."""
        own = ''.join(f'Own-file: {line}\n' for line in self.own_lines)
        blank = '\n' if own and self.hunks else ''
        return (f'From: {self.author}\nSubject: {self.subject}\n\n'
                f'{self.body}\n---\n{own}{blank}{self.hunks}')


def _split_hunks(text: str) -> tuple[str, str]:
    """What stands before the first hunk of @text, and the hunks."""
    match = _HUNKS.search(text)
    start = match.start() if match else len(text)
    return text[:start], text[start:]


def parse(name: str, text: str) -> Patch:
    """Parse patches/@name, whose contents are @text."""
    match = _PATCH.fullmatch(text)
    if not match:
        raise Failure(f'patches/{name}: does not parse; it must have the '
                      'lines "From: NAME <ADDRESS>" and "Subject: ...", a '
                      'blank line, a body, and the line "---"')
    listing, hunks = _split_hunks(match['rest'])
    own_lines = []
    for line in filter(None, listing.split('\n')):
        key, _, path = line.partition(': ')
        if key != 'Own-file' or not path:
            raise Failure(f'patches/{name}: "{line}": only "Own-file: PATH" '
                          'may stand between "---" and the first "diff --git"')
        own_lines.append(path)
    return Patch(name, match['author'], match['subject'], match['body'],
                 own_lines, hunks)


def is_pattern(line: str) -> bool:
    """Whether an Own-file line is a pattern, and not a name."""
    return any(character in line for character in '*?[')


def matches(pattern: str, path: str) -> bool:
    """Whether @pattern means the file @path, directory by directory."""
    patterns, parts = PurePath(pattern).parts, PurePath(path).parts
    return (len(patterns) == len(parts)
            and all(map(fnmatchcase, parts, patterns))
            and not any(fnmatchcase(parts[-1], leftover)
                        for leftover in _LEFTOVERS))


class Series:
    """The directory patches/ of the repository at @root."""

    def __init__(self, root: Path):
        self.root = root
        self.dir = root / 'patches'

    def names(self) -> list[str]:
        """The entries of patches/series, in order."""
        try:
            lines = (self.dir / 'series').read_text().splitlines()
        except FileNotFoundError:
            raise Failure('patches/series is missing: there is no series '
                          'to work on') from None
        return [line.strip() for line in lines
                if line.strip() and not line.startswith('#')]

    def load(self) -> list[Patch]:
        """Every patch of the series, in order."""
        return [self.load_one(name) for name in self.names()]

    def load_one(self, name: str) -> Patch:
        """The patch that the entry @name stands for."""
        try:
            return parse(name, (self.dir / name).read_text())
        except FileNotFoundError:
            raise Failure(f'patches/series names {name}, but there is no '
                          f'patches/{name}') from None

    def own_files(self, patches: Iterable[Patch]) -> dict[str, list[str]]:
        """
        The files of ours that enter with each of @patches, which is the whole
        series: patch names to sorted paths.  As in a shell, a pattern that
        matches nothing stands for itself, and is missed like any file.
        """
        patches = list(patches)
        names = {line for patch in patches for line in patch.own_lines
                 if not is_pattern(line)}

        def expand(line: str) -> Iterable[str]:
            if not is_pattern(line):
                return [line]
            found = (path.relative_to(self.root).as_posix()
                     for path in self.root.glob(line) if path.is_file())
            return ({path for path in found if matches(line, path)} - names
                    or [line])

        return {patch.name: sorted({path for line in patch.own_lines
                                    for path in expand(line)})
                for patch in patches}

    def adaptations(self, base: str) -> dict[str, Path]:
        """
        Every adaptation to @base by its name: its own, and those of the bases
        between it and the default one, the newest of a name.
        """
        optional = [other.name for other in bases()[1:]]
        names = optional[:optional.index(base) + 1] if base in optional else []
        return {path.name: path for name in names
                for path in sorted((self.dir / 'adapt' / name).glob('*.patch'))}

    def hunks_for(self, patch: Patch, base: str) -> list[tuple[str, str]]:
        """
        What to apply to QEMU's files for @patch on @base: pairs of the file
        that the hunks come from, for messages, and the hunks.

        patches/adapt/BASE/NAME.hunks.patch replaces the hunks of NAME.patch,
        patches/adapt/BASE/NAME.patch is applied on top.
        """
        found = self.adaptations(base)
        stem = patch.name.removesuffix('.patch')
        replacement = found.get(f'{stem}.hunks.patch')
        fixup = found.get(patch.name)

        def read(path: Path) -> tuple[str, str]:
            return (str(path.relative_to(self.root)),
                    _split_hunks(path.read_text())[1])

        parts = [read(replacement) if replacement
                 else (f'patches/{patch.name}', patch.hunks)]
        if fixup:
            parts.append(read(fixup))
        return [part for part in parts if part[1]]

    def inputs(self, base: str) -> list[Path]:
        """Every file under patches/ that decides the commits on @base."""
        return [self.dir / 'series',
                *(self.dir / name for name in self.names()),
                *self.adaptations(base).values()]
