# Writes the series as mails: a cover letter, whose text is
# patches/cover-letter (first line: its subject), and one "git format-patch"
# file per entry, our own files included.  "git am" on pristine source gives
# the very tree that is built here.
#
# SPDX-License-Identifier: GPL-2.0-or-later

import argparse
from pathlib import Path

from common import Failure, ROOT, find_base
from series.gittree import GitTree
from series.patches import Series


def cover_letter(series: Series, template: str) -> str:
    """git's @template of a cover letter, filled in."""
    try:
        text = (series.dir / 'cover-letter').read_text()
    except FileNotFoundError:
        return template
    subject, _, body = text.partition('\n')
    return (template.replace('*** SUBJECT HERE ***', subject)
            .replace('*** BLURB HERE ***', body.strip('\n')))


def export(series: Series, tree: GitTree, directory: Path,
           reroll: int | None) -> list[Path]:
    """Write the mails to @directory, and return them in order."""
    base = find_base(tree.require_state().base)
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise Failure(f'{directory} is not empty: give a new directory')
    author = series.load()[0].author
    name, _, address = author[:-1].rpartition(' <')
    commit = tree.commit_series(series, base)
    last = tree.git('show', '-s', '--format=%ct', commit).strip()
    names = tree.git(
        'format-patch', '--cover-letter', '--no-signature', '--no-renames',
        '--diff-algorithm=myers', '--output-directory',
        str(directory.resolve()), *([f'-v{reroll}'] if reroll else []),
        f'base..{commit}',
        env={'GIT_COMMITTER_NAME': name, 'GIT_COMMITTER_EMAIL': address,
             'GIT_COMMITTER_DATE': f'@{last} +0000'})
    mails = [Path(name) for name in names.splitlines()]
    mails[0].write_text(cover_letter(series, mails[0].read_text()))
    return mails


def main() -> None:
    parser = argparse.ArgumentParser(
        description='Write the series to OUTDIR, ready to mail.')
    parser.add_argument('--tree', metavar='TREE', type=Path,
                        default=ROOT / 'build/qemu-src',
                        help="the base's tree (default: build/qemu-src)")
    parser.add_argument('-v', metavar='N', dest='reroll', type=int,
                        help='mark it as the Nth version')
    parser.add_argument('outdir', metavar='OUTDIR', type=Path)
    args = parser.parse_args()
    for mail in export(Series(ROOT), GitTree(args.tree), args.outdir,
                       args.reroll):
        print(mail)
