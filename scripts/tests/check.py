# Runs every test: sees that the series applies to the newest of the optional bases
# that can be fetched, then meson runs what meson.build lists.  Tells what failed and why, and
# ends with one line that counts the results.  A skip that
# tests/expected-skips does not know makes the check fail.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import fnmatch
import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from common import Base, Failure, ROOT, bases

# meson's words for outcomes; any other is a failure
OUTCOMES = {'OK': 'passed', 'SKIP': 'skipped'}
TAP_LINE = re.compile(r'^(?P<failed>not )?ok \d+ ?(?:- )?(?P<name>.*?)'
                      r'(?:# SKIP *(?P<why>.*))?$', re.MULTILINE)


@dataclass
class Result:
    """The outcome of one test, or of one case of a test that speaks TAP."""
    name: str
    outcome: str    # "passed", "failed" or "skipped"
    log: str        # all it said, or why it was skipped


def say(text: str) -> None:
    print(f'check: {text}', flush=True)


def run(*command: str | Path, seconds: int) -> tuple[int, str]:
    """Run @command in the repository; its exit status and output."""
    try:
        result = subprocess.run(
            command, cwd=ROOT, check=False, text=True, errors='replace',
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, timeout=seconds)
    except subprocess.TimeoutExpired:
        return 1, f'{command[0]} took more than {seconds} s'
    return result.returncode, result.stdout


def prepare(base: Base, build: Path, compile_it: bool) -> Result:
    """Fetch an optional @base, and build it in @build or only get it ready."""
    name = f'base-{base.name}'
    say(f'preparing {name}')
    status, output = run('./configure', f'--base={base.name}',
                         f'--build-dir={build}', seconds=600)
    if status == 77:
        return Result(name, 'skipped', '\n' + output.strip())
    if not status and compile_it:
        status, output = run('make', f'BUILD={build}', seconds=1500)
    return Result(name, 'failed' if status else 'passed', output)


def prepare_bases(build: Path, all_bases: bool) -> tuple[list[Path],
                                                         list[Result]]:
    """
    Let the newest optional base that can be fetched get the series, or build all
    of them, beside @build; returns what was built, and what came out.
    """
    builds, results = [], []
    for base in reversed(bases()[1:]):
        other = Path(f'{build}-{base.name}')
        results.append(prepare(base, other, all_bases))
        if results[-1].outcome == 'passed' and all_bases:
            builds.append(other)
        if results[-1].outcome != 'skipped' and not all_bases:
            break
    return builds, results


def build_unit_tests(build: Path) -> Result:
    """Build our unit tests, which make does not."""
    targets = [f'tests/unit/{path.stem}'
               for path in (ROOT / 'tests/unit').glob('test-*.c')]
    status, output = run('ninja', '-C', build / 'qemu', *targets, seconds=900)
    return Result('unit tests build', 'failed' if status else 'passed',
                  output)


def run_meson(builds: list[Path]) -> list[Result]:
    """Run what meson.build lists."""
    directory = builds[0] / 'meson'
    shutil.rmtree(directory, ignore_errors=True)
    status, output = run('meson', 'setup', directory,
                         f'-Dbuilds={",".join(map(str, builds))}', seconds=120)
    if status:
        raise Failure(f'meson cannot set up the tests:\n{output}')
    subprocess.run(['meson', 'test', '-C', directory, '--no-rebuild',
                    '--num-processes', '2'], check=False,
                   stdin=subprocess.DEVNULL)
    log = directory / 'meson-logs/testlog.json'
    return [result for line in log.read_text().splitlines()
            for result in read_results(json.loads(line))]


def read_results(test: dict[str, str]) -> list[Result]:
    """The results of a @test as meson tells it."""
    log = test.get('stdout', '') + test.get('stderr', '')
    outcome = OUTCOMES.get(test['result'], 'failed')
    cases = []
    if re.search(r'^1\.\.\d', log, re.MULTILINE):
        for case in TAP_LINE.finditer(test['stdout']):
            name = f'{test["name"]}: {case["name"].strip()}'
            if case['failed']:
                cases.append(Result(name, 'failed', log))
            elif case['why'] is not None:
                cases.append(Result(name, 'skipped', case['why']))
            else:
                cases.append(Result(name, 'passed', ''))
    said = outcome != 'failed' or any(case.outcome == 'failed'
                                      for case in cases)
    if cases and said:
        return cases
    text = f'{test["result"]} after {test["duration"]:.0f} s\n{log}'
    if outcome == 'skipped':
        text = (log.strip().splitlines() or ['no reason given'])[-1]
    return cases + [Result(test['name'], outcome, text)]


def expected_skips() -> dict[str, str]:
    """Patterns of names to reasons."""
    lines = (ROOT / 'tests/expected-skips').read_text().splitlines()
    return {pattern.strip(): reason.strip() for pattern, _, reason in
            (line.rpartition(': ') for line in lines
             if line and not line.startswith('#'))}


def report(results: list[Result]) -> int:
    """Print what did not pass, and the counts; the exit status."""
    expected = expected_skips()
    unexpected = []
    for result in results:
        if result.outcome == 'failed':
            print(f'\n===== FAILED: {result.name}\n{result.log.rstrip()}')
    print()
    for result in results:
        if result.outcome == 'skipped':
            known = any(fnmatch.fnmatch(result.name, pattern)
                        for pattern in expected)
            say(f'skipped{"" if known else ", unexpectedly"}: {result.name}: '
                f'{result.log}')
            if not known:
                unexpected.append(result.name)
    for result in results:
        if result.outcome == 'failed':
            say(f'failed: {result.name}')
    counts = {outcome: sum(result.outcome == outcome for result in results)
              for outcome in ('passed', 'failed', 'skipped')}
    print(', '.join(f'{count} {outcome}'
                    for outcome, count in counts.items()), flush=True)
    return 1 if counts['failed'] or unexpected or not counts['passed'] else 0


def main() -> int:
    parser = argparse.ArgumentParser(description='Run every test.')
    parser.add_argument('--all-bases', action='store_true',
                        help='build all optional bases that can be fetched, '
                             'and run the iotests with them')
    parser.add_argument('build', metavar='BUILD', type=Path,
                        help='a build directory, built')
    args = parser.parse_args()
    build = args.build.resolve()
    results = [build_unit_tests(build)]
    builds, prepared = prepare_bases(build, args.all_bases)
    results += prepared
    return report(results + run_meson([build, *builds]))
