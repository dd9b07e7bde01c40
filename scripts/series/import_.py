# Makes the scratch git tree that QEMU is built from, or brings it up to date:
# pristine source tagged "base", then one commit per entry of patches/series,
# with our own files laid in.  Nothing is done when nothing has changed, files
# that stay the same keep their time stamps, and edits of QEMU's files that
# scripts/refresh has not seen yet are never thrown away.
#
# Our own files go one way, from the repository to the tree: edit them here,
# an edit there is overwritten.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
import shutil
import tempfile
from pathlib import Path

from common import Base, Failure, ROOT, find_base
from series import qemusource
from series.gittree import GitTree, State, digest
from series.patches import Series


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Make or update the scratch git tree TREE.')
    parser.add_argument('--base', metavar='NAME',
                        help='a base of base.conf (default: the first)')
    parser.add_argument('--sync', action='store_true',
                        help='update TREE with the source that it has')
    parser.add_argument('source', metavar='SOURCE', nargs='?', type=Path,
                        help="QEMU's source: a directory, tarball or .dsc")
    parser.add_argument('tree', metavar='TREE', type=Path)
    args = parser.parse_args()
    if bool(args.source) == args.sync:
        parser.error('give either SOURCE or --sync')
    return args


def say(text: str) -> None:
    print(f'import: {text}', flush=True)


class Import:
    """One import of the series, as it is now, for @base."""

    def __init__(self, series: Series, base: Base):
        self.series = series
        self.base = base
        own_files = series.own_files(series.load())
        self.own_files = [path for paths in own_files.values()
                          for path in paths]

    def state(self, source: str, commit: str = '') -> State:
        """The state of a tree that this import has made."""
        root = self.series.root
        return State(source, self.base.name,
                     digest(root, self.series.inputs(self.base.name)),
                     digest(root, [root / path for path in self.own_files]),
                     commit)

    def new(self, source: Path, path: Path) -> None:
        """Make the tree @path; it has its name only when it is complete."""
        partial = path.with_name(f'{path.name}.partial')
        shutil.rmtree(partial, ignore_errors=True)
        identity = qemusource.identify(source)
        say(f'unpacking {source}')
        version = qemusource.unpack(source, partial, self.base)
        tree = GitTree(partial)
        tree.init()
        start = tree.commit_source(partial, version)
        tree.git('reset', '--quiet', start)
        self.move(tree, identity, start)
        partial.rename(path)
        say(f'{path} is QEMU {version} with the series applied')

    def commit_source(self, source: Path, tree: GitTree) -> str:
        """Commit the new @source to @tree, beside what is there."""
        say(f'unpacking {source}')
        with tempfile.TemporaryDirectory(dir=tree.path.parent,
                                         prefix='unpack-') as name:
            directory = Path(name) / 'qemu'
            version = qemusource.unpack(source, directory, self.base)
            return tree.commit_source(directory, version)

    def move(self, tree: GitTree, source: str, start: str = 'base') -> None:
        """Take @tree to the series as it is now, on top of @start."""
        commit = tree.commit_series(self.series, self.base, start)
        tree.move_to(commit, self.own_files)
        tree.git('tag', '--force', 'base', start)
        tree.state = self.state(source, commit)

    def follow(self, tree: GitTree) -> None:
        """
        Bring our own files up to date under a developer's commits, which
        stay until scripts/refresh has put them into patches/.
        """
        commit = tree.commit_series(self.series, self.base)
        tree.put_back(commit, self.own_files)
        say(f'{tree.path} has commits that patches/ has not: only our own '
            'files are brought up to date')

    def update(self, tree: GitTree, source: Path | None) -> None:
        """Bring @tree up to date, touching only what changes."""
        tree.check_idle()
        old = tree.require_state()
        new = self.state(qemusource.identify(source) if source
                         else old.source, old.commit)
        if tree.has_own_commits():
            if (new.patches, new.source) != (old.patches, old.source):
                raise Failure(
                    f'{tree.path} has commits that patches/ has not, and '
                    'patches/ or the source changed meanwhile\nRemedy: run '
                    'scripts/refresh, or discard the commits with '
                    f'"git -C {tree.path} reset --keep {old.commit[:12]}"')
            self.follow(tree)
            return
        if new == old:
            tree.put_back('HEAD', self.own_files)
            return
        start = 'base'
        if source and new.source != old.source:
            start = self.commit_source(source, tree)
        self.move(tree, new.source, start)
        say(f'{tree.path} is up to date with the series')


def main() -> None:
    args = parse_arguments()
    tree = GitTree(args.tree)
    state = tree.state
    if args.sync:
        state = tree.require_state()
    base = find_base(args.base or (state.base if state else None))
    if state and state.base != base.name:
        raise Failure(f'{args.tree} is a tree of base {state.base}: give '
                      'another directory')
    job = Import(Series(ROOT), base)
    if state:
        job.update(tree, args.source)
    elif args.tree.exists():
        raise Failure(f'{args.tree} exists, but was not made by '
                      'scripts/import: remove it')
    else:
        args.tree.parent.mkdir(parents=True, exist_ok=True)
        job.new(args.source, args.tree)
