# apt in a room of its own: package lists and sources in a directory of the
# build, so that nothing in the machine's configuration changes.  The mirrors
# are those that the machine uses already, and Debian's archive keyring
# vouches for what they send.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import Failure, Unavailable

KEYRING = '/usr/share/keyrings/debian-archive-keyring.gpg'


@dataclass(frozen=True)
class Entry:
    """A place that the machine gets packages from."""
    kind: str       # "deb" or "deb-src"
    uri: str
    suite: str
    signed_by: str  # '' if the entry does not say


def parse_deb822(text: str) -> list[Entry]:
    """The entries of a *.sources file."""
    entries = []
    text = re.sub(r'^#.*\n', '', text, flags=re.MULTILINE)
    for stanza in re.split(r'\n\s*\n', text):
        fields = {key.lower(): value.split() for key, value in
                  re.findall(r'^([\w-]+):((?:.*)(?:\n[ \t].*)*)', stanza,
                             re.MULTILINE)}
        if (fields.get('enabled') == ['no']
                or 'main' not in fields.get('components', [])):
            continue
        signed_by = ' '.join(fields.get('signed-by', []))
        entries += [Entry(kind, uri, suite, signed_by)
                    for kind in fields.get('types', [])
                    for uri in fields.get('uris', [])
                    for suite in fields.get('suites', [])]
    return entries


def parse_one_line(text: str) -> list[Entry]:
    """The entries of a sources.list file."""
    entries = []
    for line in text.splitlines():
        match = re.match(r'\s*(deb|deb-src)\s+(?:\[([^]]*)\]\s*)?(\S+)\s+'
                         r'(\S+)\s+([^#]*)', line)
        if match and 'main' in match[5].split():
            signed_by = re.search(r'signed-by=(\S+)', match[2] or '')
            entries.append(Entry(match[1], match[3], match[4],
                                 signed_by[1] if signed_by else ''))
    return entries


def machine_entries(etc: Path = Path('/etc/apt')) -> list[Entry]:
    """What the machine's own apt configuration says."""
    parts = etc / 'sources.list.d'
    entries = []
    for path in [etc / 'sources.list', *sorted(parts.glob('*.list'))]:
        if path.is_file():
            entries += parse_one_line(path.read_text())
    for path in sorted(parts.glob('*.sources')):
        entries += parse_deb822(path.read_text())
    return entries


def machine_release(path: Path = Path('/etc/os-release')) -> tuple[str, str]:
    """The ID of the distribution and its code name; '' where unknown."""
    try:
        fields = dict(re.findall(r'^(\w+)="?([^"\n]*)',
                                 path.read_text('utf-8'), re.MULTILINE))
    except FileNotFoundError:
        return '', ''
    return fields.get('ID', ''), fields.get('VERSION_CODENAME', '')


def is_debian() -> bool:
    """Whether this is Debian itself, with apt."""
    return machine_release()[0] == 'debian' and bool(shutil.which('apt-get'))


class Mirrors:
    """Debian's own mirrors among @entries, for a machine of @codename."""

    def __init__(self, entries: list[Entry], codename: str):
        self.codename = codename
        self.debian = [entry for entry in entries
                       if entry.suite.partition('-')[0] == codename
                       and not entry.uri.startswith('cdrom:')
                       and self._debian_signs(entry)]

    @staticmethod
    def _debian_signs(entry: Entry) -> bool:
        """A vendor's packages for Debian come with a key of their own."""
        return (not entry.signed_by
                or 'debian-archive' in os.path.basename(entry.signed_by))

    def uri(self, suite: str) -> str | None:
        """Where @suite is, seen from where the machine's own suites are."""
        ours = self.codename
        if suite.endswith('-security'):
            ours += '-security'
        # An entry that names Debian's key beats one that names none
        found = sorted((entry for entry in self.debian if entry.suite == ours),
                       key=lambda entry: not entry.signed_by)
        return found[0].uri if found else None


class Apt:
    """apt with lists and sources in @directory, and the machine's mirrors."""

    def __init__(self, directory: Path):
        if not is_debian():
            raise Failure('this is not Debian, so its source packages cannot '
                          "be fetched: get QEMU's source yourself and give "
                          '--qemu-src=DIR|TARBALL|DSC')
        self.directory = directory.resolve()
        self.mirrors = Mirrors(machine_entries(), machine_release()[1])
        self._write_configuration()

    def _write_configuration(self) -> None:
        here = self.directory
        for name in ('lists/partial', 'sources.list.d'):
            (here / name).mkdir(parents=True, exist_ok=True)
        # Proxies, credentials and pins stay the machine's own
        (here / 'apt.conf').write_text(
            'Dir::Etc::sourcelist "/dev/null";\n'
            f'Dir::Etc::sourceparts "{here}/sources.list.d";\n'
            f'Dir::State::lists "{here}/lists";\n'
            f'Dir::Cache::pkgcache "{here}/pkgcache.bin";\n'
            f'Dir::Cache::srcpkgcache "{here}/srcpkgcache.bin";\n'
            'APT::Sandbox::User "root";\n'
            'Acquire::Languages "none";\n'
            'Acquire::Retries "2";\n')

    def use(self, kind: str, suites: list[str], expired: bool = False,
            besides: bool = False) -> None:
        """
        Read the lists of @suites, packages or sources as @kind says, in place
        of others or @besides them.  With @expired they may be older than their
        publisher meant them to get; the signature is checked all the same.
        """
        stanzas = []
        for suite in suites:
            uri = self.mirrors.uri(suite)
            if uri:
                stanzas.append(
                    f'Types: {kind}\nURIs: {uri}\nSuites: {suite}\n'
                    f'Components: main\nSigned-By: {KEYRING}\n'
                    + ('Check-Valid-Until: no\n' if expired else ''))
        if not stanzas:
            raise Unavailable(
                "the machine's apt sources name no Debian mirror for "
                f'{self.mirrors.codename or "this release"}, so '
                f'{suites[0]} cannot be reached from them\nRemedy: mend '
                '/etc/apt, or give --qemu-src=DIR|TARBALL|DSC')
        # Or the packages of one release would be installed on another
        directory = self.directory / 'sources.list.d'
        if not besides:
            for other in directory.iterdir():
                other.unlink()
        path = directory / f'{kind}-{suites[0]}.sources'
        path.write_text('\n'.join(stanzas))
        try:
            self.run('apt-get', 'update', '--error-on=any')
        except Unavailable:
            path.unlink()
            raise

    def use_own_release(self) -> None:
        """Read the lists of the release that the machine runs."""
        ours = self.mirrors.codename
        suites = {entry.suite for entry in self.mirrors.debian}
        extra = {f'{ours}-updates', f'{ours}-security'} & suites
        self.use('deb', [ours, *sorted(extra)])

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Run an apt command in this room, and return what it prints."""
        result = subprocess.run(
            command, cwd=cwd, text=True, capture_output=True, check=False,
            stdin=subprocess.DEVNULL, env=self.environment())
        if result.returncode:
            said = re.findall(r'^[EW]: .*$', result.stderr, re.MULTILINE)
            raise Unavailable(
                f'"{" ".join(command)}" failed:\n'
                + '\n'.join(said or [result.stderr.strip()])
                + '\nRemedy: see that the network and the machine\'s own apt '
                'sources work, and run configure again')
        return result.stdout

    def environment(self) -> dict[str, str]:
        """The environment in which apt works in this room."""
        return {**os.environ, 'APT_CONFIG': f'{self.directory}/apt.conf',
                'DEBIAN_FRONTEND': 'noninteractive', 'LC_ALL': 'C'}

    def unpack(self, packages: list[str], directory: Path) -> None:
        """
        Unpack @packages in @directory, with all they depend on that this
        machine lacks.  Nothing is installed, no script of theirs runs.
        """
        with tempfile.TemporaryDirectory(dir=directory) as name:
            archives = Path(name).resolve()
            (archives / 'partial').mkdir()
            # Locks are for those who install, and want root
            self.run('apt-get', 'install', '--download-only', '--yes',
                     '--no-install-recommends',
                     '-o', f'Dir::Cache::archives={archives}',
                     '-o', 'Debug::NoLocking=1', *packages)
            for archive in sorted(archives.glob('*.deb')):
                subprocess.run(['dpkg-deb', '-x', archive, directory],
                               check=True)

    def versions(self, package: str, kind: str) -> list[str]:
        """The versions of @package to be had, the highest first."""
        listing = self.run('apt-cache', 'madison', package)
        found = []
        for line in listing.splitlines():
            _, version, origin = (part.strip() for part in line.split('|'))
            is_source = origin.endswith('Sources')
            if is_source == (kind == 'deb-src') and version not in found:
                found.append(version)
        return highest_first(found)


def at_least(version: str, minimum: str) -> bool:
    """Whether Debian version @version is @minimum or later."""
    return not subprocess.run(['dpkg', '--compare-versions', version, 'ge',
                               minimum], check=False).returncode


def highest_first(versions: list[str]) -> list[str]:
    """@versions in Debian's order, the highest first."""
    result: list[str] = []
    for version in versions:
        place = sum(not at_least(version, other) for other in result)
        result.insert(place, version)
    return result
