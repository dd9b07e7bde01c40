# Goes on in a room of its own, see room.sh: the machine as it is, and Debian's
# packages in BUILD/room as if they were installed.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import subprocess
import sys
from pathlib import Path

from remote_disk import SKIP

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tests/clients/room.sh'
INSIDE = 'INSIDE_ROOM'


def skip(why: str) -> None:
    print(why)
    sys.exit(SKIP)


def enter() -> None:
    """Returns in the room; outside, the program ends as it does inside."""
    if os.environ.get(INSIDE):
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--build', type=Path, default=os.environ.get('BUILD'))
    args = parser.parse_known_args()[0]
    if not args.build:
        return
    build = Path(args.build).resolve()
    empty = subprocess.run([SCRIPT, '/nonexistent', '--', 'true'], check=False,
                           text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
    if empty.returncode:
        skip('a room needs root, namespaces and overlayfs: '
             f'{" ".join(empty.stdout.split())}')
    result = subprocess.run(
        [SCRIPT, build / 'room', build, ROOT, '--', sys.executable,
         Path(sys.argv[0]).resolve(), '--build', build],
        check=False, env={**os.environ, INSIDE: '1'})
    sys.exit(result.returncode)
