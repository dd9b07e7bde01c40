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
    # What finds it: shells with a write-intent log, no bitmap of which may be
    # lost, or those without one
    log: bool = True
    # Flushes fail
    faults: bool = False
    # What finds it if the states cannot: disks there are small
    iotest: str = ''


def change(room: str, old: str, new: str) -> Change:
    """In one of our files."""
    name = f'-{room}' if room else ''
    return Change(f'block/qcow2-rw-backing{name}.c', old, new)


CLOSED = [
    # Whoever closes an image flushes it, whoever samples a disk does, too
    Mutation('the disk is not flushed before the image is sealed', [
        change('guard', 'ret = bdrv_flush(rw_backing->bs);', 'ret = 0;'),
        change('flush', 'int ret = flush_tree(',
               'int ret = 0 && flush_tree('),
        change('', 'after_flush(bs, bdrv_co_flush(rw_backing_child(bs)->bs), '
               'true)', 'after_flush(bs, 0, true)')], log=False),
    Mutation('no flush between the directory and the header', [
        change('store',
               '            ret = qcow2_shell_flush_file(bs, since);\n'
               '        }\n'
               '        if (ret < 0 && bitmap_ret == 0) {',
               '            ret = since ? 0 : -EIO;\n'
               '        }\n'
               '        if (ret < 0 && bitmap_ret == 0) {')], log=False),
    Mutation('no flush after bitmaps were marked as in use', [
        change('directory',
               'return ret < 0 ? ret : bdrv_flush(bs->file->bs);',
               'return ret < 0 ? ret : 0;')], log=False),
    Mutation('bitmaps are not marked as in use', [
        change('directory',
               '        entry->flags |= QCOW2_SHELL_BITMAP_IN_USE;\n', '')],
             log=False),
    Mutation('a failed flush is forgotten', [
        change('flush', '    qcow2_shell_fill_bitmaps(bs, false);\n', '')],
             log=False),
    Mutation('a disk that was made smaller grows, and nothing is dirty', [
        change('', 'if (ret < 0 || !(ret & BDRV_BLOCK_ZERO)) {',
               'if (ret < 0) {')], log=False),
]

MARKS = [
    Mutation('marks are not flushed', [
        change('log-commit',
               '        ret = qcow2_shell_flush_file(bs, since);',
               '        ret = since ? 0 : -EIO;')]),
    Mutation('a write does not wait for its mark', [
        change('log-commit', 'if (!durable || renew) {',
               'if ((!durable && 0) || renew) {')]),
    Mutation('a write is not remembered for the next generation', [
        change('log-commit', 'if (log->next) {', 'if (log->next && 0) {')]),
    Mutation('a request that began before a checkpoint is not remembered '
             'after it', [
                 change('log-commit',
                        '    /* A checkpoint may have begun, which has to know '
                        'what the gate says */\n    mark(log, touch);\n',
                        '')]),
    Mutation('what is cut off gets no mark', [
        change('', 'ret = write_gate(bs, offset, MAX(old_size - offset, 1));',
               'ret = old_size < 0 ? write_gate(bs, offset, 1) : 0;')]),
]

CHECKPOINT = [
    Mutation('a checkpoint does not wait for older writes', [
        change('checkpoint', 'ret = wait_for_older_writes(bs);',
               'ret = 0 && wait_for_older_writes(bs);')]),
    Mutation('bitmaps become durable before what was backed up', [
        change('checkpoint', 'ret = qcow2_shell_flush_disk(bs);', 'ret = 0;')]),
    Mutation('what changes bitmaps during a checkpoint is not noticed', [
        change('store', 'return bs->dirty_bitmap_changes != store->changes;',
               'return false;')], faults=True),
    Mutation('what a command has changed is taken for stored', [
        change('store', '        qcow2_shell(bs)->stored_changes != '
               'bs->dirty_bitmap_changes ||\n', '')]),
    Mutation('what a guest has changed is taken for stored', [
        change('store', 'if (qcow2_log_marks_any(written, ',
               'if (0 && qcow2_log_marks_any(written, ')]),
    Mutation('clusters are freed that both directories refer to', [
        change('store', 'table[i] = table[i] == other->table[i] ? 0 : '
               'table[i];', 'table[i] = table[i];')]),
    Mutation('a bitmap that a job uses does not count as recording', [
        change('store', 'bool recording = bdrv_dirty_bitmap_enabled(bitmap) ||'
               '\n                     '
               'bdrv_dirty_bitmap_has_successor(bitmap);',
               'bool recording = bdrv_dirty_bitmap_enabled(bitmap);')]),
    Mutation('a removal during a checkpoint is forgotten', [
        change('store', 'if (entry && old_entry->removed &&',
               'if (0 && entry && old_entry->removed &&')]),
    Mutation('what is written while a transaction is undone is forgotten', [
        Change('block/dirty-bitmap.c', '    if (recorder) {\n        '
               'hbitmap_merge', '    if (0) {\n        hbitmap_merge')]),
    Mutation('the superblock comes with the next one', [
        change('checkpoint',
               'int ret = qcow2_log_area_write_super(bs, &super);',
               'int ret = 0;')]),
]

RECOVERY = [
    Mutation('marks of the next generation are ignored', [
        change('recovery', 'id.generation < super->id.generation) {',
               'id.generation != super->id.generation) {')]),
    Mutation('torn units are ignored', [
        change('recovery', '            if (is_torn(log, area, i)) {\n'
               '                add_torn_unit',
               '            if (0) {\n                add_torn_unit')]),
    Mutation('marks are not added', [
        change('bitmaps', '} else if (believed && rwb->recovery) {',
               '} else if (0) {')]),
    Mutation('what was recovered is taken for stored', [
        change('checkpoint', 'store_and_flush(bs, rwb->recovery ? NULL : '
               'marks,', 'store_and_flush(bs, marks,')]),
    Mutation('the next generation begins without the marks that it has', [
        change('recovery', '        memcpy(marks->bits, old->bits, '
               'sizeof(marks->bits));\n', '')],
             # It takes a page of which two units are in use
             iotest='rw-backing-log-crash-again'),
    Mutation('the part by which a disk has grown is not dirty', [
        change('bitmaps', '            bdrv_set_dirty_bitmap(bitmap, '
               'rwb->stored_size,\n                                  '
               'size - rwb->stored_size);\n', ''),
        change('', '        set_new_part_dirty(bs, old_size, size - ',
               '        if (0) set_new_part_dirty(bs, old_size, size - ')]),
]

MAP = [
    Mutation('the allocation map does not know of a write', [
        change('', '        qcow2_map_before_write(bs, rwb, offset, bytes);\n',
               '')]),
    Mutation('marks say nothing to the allocation map', [
        change('recovery', '        qcow2_map_set(bits->map, offset, bytes);\n',
               '')]),
    Mutation('who looks for zeroes does not see requests in flight', [
        change('map-watch', 'watch->disturbed = is_being_written(bs, watch);',
               'watch->disturbed = is_being_written(bs, watch) && false;')],
             iotest='rw-backing-zeroes-events'),
    Mutation('a new part of the disk is taken for zeroes', [
        change('map-look', 'if (ret < 0 || !(ret & BDRV_BLOCK_ZERO)) {',
               'if (ret < 0) {')], iotest='rw-backing-resize-device'),
    Mutation('a map is believed although nothing vouches for it', [
        change('bitmaps', '        qcow2_map_doubt(map);\n', '')],
             iotest='rw-backing-zeroes-crash'),
]

MUTATIONS = CLOSED + MARKS + CHECKPOINT + RECOVERY + MAP
