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


@dataclass(frozen=True)
class Base:
    """A QEMU version that the series supports."""
    name: str       # "10.0"
    versions: str   # what its version numbers begin with: "10.0."
    suite: str      # the Debian suite that has its source package
    role: str       # "default" or "optional"


def bases() -> list[Base]:
    """The bases of base.conf, the default one first."""
    lines = (line.split() for line in
             (ROOT / 'base.conf').read_text().splitlines())
    found = [Base(*words[1:]) for words in lines if words[:1] == ['base']]
    return sorted(found, key=lambda base: base.role != 'default')


def find_base(name: str | None) -> Base:
    """The base called @name; the default one if @name is None."""
    for base in bases():
        if name in (None, base.name):
            return base
    known = ', '.join(base.name for base in bases())
    raise Failure(f'no base {name} in base.conf; it has {known}')


def script_main(main: Callable[[], int | None]) -> None:
    """Run @main and exit; a Failure is one message and exit status 1."""
    try:
        sys.exit(main())
    except Failure as failure:
        sys.stdout.flush()
        sys.exit(f'{os.path.basename(sys.argv[0])}: {failure}')
    except KeyboardInterrupt:
        sys.exit(130)
