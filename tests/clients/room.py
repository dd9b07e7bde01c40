# Goes on in a room of its own, see room.sh: the machine as it is, and Debian's
# packages in BUILD/room as if they were installed.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List

from remote_disk import SKIP, Failure, Skip

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'scripts/machine/room.sh'


def obstacle() -> str:
    """Why there can be no room; empty if there can."""
    trial = subprocess.run(['unshare', '--mount', '--pid', '--net', '--fork',
                            'true'],
                           check=False, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
    return f'no room without root and namespaces: {trial.stdout.strip()}' \
        if trial.returncode else ''


def command(build: Path, *words: object) -> List[str]:
    """What runs @words with Python in a room that shares @build."""
    return [str(word) for word in
            (SCRIPT, '/', build / 'room', build, ROOT, '--', sys.executable,
             *words)]


def enter() -> None:
    """Returns in the room; outside, the program ends as it does inside."""
    # Whose files a test overwrites had better be certain
    if SCRIPT.name in Path('/proc/1/cmdline').read_text(encoding='utf-8'):
        return
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument('--build', type=Path, default=os.environ.get('BUILD'))
    args = parser.parse_known_args()[0]
    if not args.build:
        return
    build = Path(args.build).resolve()
    why = obstacle()
    if why:
        print(why)
        sys.exit(SKIP)
    result = subprocess.run(command(build, Path(sys.argv[0]).resolve(),
                                    '--build', build), check=False)
    sys.exit(result.returncode)


def need_programs(*programs: str) -> None:
    """Debian's packages of all of them are in a room, or it is not whole."""
    for program in programs:
        if not shutil.which(program):
            why = f'{program} is missing: "scripts/fetch-servers" fetches it'
            raise Failure(why) if Path('/etc/debian_version').exists() \
                else Skip(why)
