# Builds and runs the client that requests, opens and closes are measured
# with, tests/bench/client.c.  It is linked like QEMU's qemu-io, with the
# objects of a build of QEMU that is there anyway.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import json
import shlex
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any

from common import Failure

LIMIT = 600     # seconds; a program that has stopped must not be waited for
SOURCE = Path(__file__).resolve().parent / 'client.c'


def build_commands(listing: str, source: Path,
                   program: Path) -> list[list[str]]:
    """
    What compiles and links @program from @source, given the @listing of the
    commands that build qemu-io.
    """
    commands = [shlex.split(line) for line in listing.splitlines()]
    compile_object = next(words for words in commands
                          if words[-1].endswith('/qemu-io.c'))
    link = next(words for words in commands
                if 'qemu-io' in words and words[words.index('-o') + 1]
                == 'qemu-io')
    old = compile_object[compile_object.index('-o') + 1]
    new = str(program.with_suffix('.o'))
    compile_object = [word.replace(old, new) for word in compile_object]
    compile_object[-1] = str(source)
    link = [{old: new, 'qemu-io': str(program)}.get(word, word)
            for word in link]
    return [compile_object, link]


def build_client(build: Path, directory: Path) -> Path:
    """Build the client in @directory against the QEMU of @build."""
    qemu = build / 'qemu'
    program = directory / 'client'
    listing = _run(qemu, 'ninja', '-t', 'commands', 'qemu-io')
    for command in build_commands(listing, SOURCE, program):
        _run(qemu, *command)
    return program


def _run(directory: Path, *command: str) -> str:
    result = subprocess.run(command, cwd=directory, check=False, text=True,
                            stdin=subprocess.DEVNULL, capture_output=True)
    if result.returncode:
        raise Failure(f'{command[0]} failed:\n{result.stderr.strip()}')
    return result.stdout


class Client:
    """A client that runs; use it in a with statement."""

    def __init__(self, command: list[str | Path]):
        self.name = ' '.join(map(str, command))
        # pylint: disable=consider-using-with
        self._errors = tempfile.TemporaryFile('w+')
        self._process = subprocess.Popen(
            command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._errors)
        self._late = False

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def ask(self, line: str) -> Any:
        """Give a command to the client; what it answers."""
        watch = threading.Timer(LIMIT, self._stop)
        watch.start()
        try:
            assert self._process.stdin and self._process.stdout
            self._process.stdin.write(f'{line}\n')
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ''
        finally:
            watch.cancel()
        if not answer:
            raise self._failure(line)
        return json.loads(answer)

    def _stop(self) -> None:
        self._late = True
        self._process.kill()

    def _failure(self, line: str) -> Failure:
        if self._late:
            return Failure(f'{self.name} takes more than {LIMIT} s for '
                           f'"{line}"')
        self._process.wait()
        self._errors.seek(0)
        return Failure(f'{self.name} failed at "{line}":\n'
                       f'{self._errors.read().strip()}')


def talk(command: list[str | Path], script: list[str]) -> list[Any]:
    """Give the lines of @script to the client that @command runs; the
    answers."""
    with Client(command) as client:
        return [client.ask(line) for line in script]
