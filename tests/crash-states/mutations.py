"""
Mistakes that the states after a crash have to show: each takes a rule out of
the code.

SPDX-License-Identifier: GPL-2.0-or-later
"""

from typing import List, NamedTuple


class Change(NamedTuple):
    """In a file, @old, which is there once, becomes @new."""
    file: str
    old: str
    new: str


class Mutation(NamedTuple):
    """A mistake: what is forgotten."""
    name: str
    changes: List[Change]


MUTATIONS = [
    # Whoever closes an image flushes it, whoever samples a disk does, too
    Mutation('the disk is not flushed before the image is sealed', [
        Change('block/qcow2-rw-backing-guard.c',
               'ret = bdrv_flush(rw_backing->bs);',
               'ret = 0;'),
        Change('block/qcow2-rw-backing-seal.c',
               'int ret = bdrv_flush(bs);',
               'int ret = 0;'),
        Change('block/qcow2-rw-backing.c',
               'after_flush(bs, bdrv_co_flush(rw_backing_child(bs)->bs), '
               'true)',
               'after_flush(bs, 0, true)')]),
    Mutation('no flush between the directory and the header', [
        Change('block/qcow2-rw-backing-bitmaps.c',
               'ret = qcow2_flush_caches(bs);',
               'ret = qcow2_write_caches(bs);')]),
    Mutation('no flush after bitmaps were marked as in use', [
        Change('block/qcow2-rw-backing-directory.c',
               'return ret < 0 ? ret : bdrv_flush(bs->file->bs);',
               'return ret < 0 ? ret : 0;')]),
    Mutation('bitmaps are not marked as in use', [
        Change('block/qcow2-rw-backing-directory.c',
               '        entry->flags |= QCOW2_SHELL_BITMAP_IN_USE;\n',
               '')]),
    Mutation('a failed flush is forgotten', [
        Change('block/qcow2-rw-backing-seal.c',
               '    qcow2_shell_fill_bitmaps(bs, false);\n',
               '')]),
    Mutation('a disk that was made smaller grows, and nothing is dirty', [
        Change('block/qcow2-rw-backing.c',
               'if (ret < 0 || !(ret & BDRV_BLOCK_ZERO)) {',
               'if (ret < 0) {')]),
]
