# What every script shares: where the repository is, how a failure is told to
# the user, and the bases named by base.conf.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """Something the user can mend; the text names the thing and the remedy."""
    status = 1


class Unavailable(Failure):
    """What is needed cannot be had from here: no network, no such package."""
    status = 77


@dataclass(frozen=True)
class Base:
    """A QEMU version that the series supports."""
    name: str       # "10.0"
    versions: str   # what its version numbers begin with: "10.0."
    suite: str      # the Debian suite that has its source package
    role: str       # "default" or "optional"


def _configuration(keyword: str) -> list[list[str]]:
    """What follows @keyword in the lines of base.conf that begin with it."""
    lines = (line.split() for line in
             (ROOT / 'base.conf').read_text().splitlines())
    return [words[1:] for words in lines if words[:1] == [keyword]]


def bases() -> list[Base]:
    """The bases of base.conf, the default one first."""
    return sorted((Base(*words) for words in _configuration('base')),
                  key=lambda base: base.role != 'default')


def minimum_meson() -> str:
    """The oldest version of meson that builds QEMU."""
    return _configuration('meson')[0][0]


def find_base(name: str | None) -> Base:
    """The base called @name; the default one if @name is None."""
    for base in bases():
        if name in (None, base.name):
            return base
    known = ', '.join(base.name for base in bases())
    raise Failure(f'no base {name} in base.conf; it has {known}')


def script_main(main: Callable[[], int | None]) -> None:
    """Run @main and exit; a Failure becomes one message and its status."""
    try:
        sys.exit(main())
    except Failure as failure:
        sys.stdout.flush()
        name = os.path.basename(sys.argv[0])
        print(f'{name}: {failure}', file=sys.stderr)
        sys.exit(failure.status)
    except KeyboardInterrupt:
        sys.exit(130)
