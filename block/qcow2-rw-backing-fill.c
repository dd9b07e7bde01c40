/*
 * qcow2 RW backing: everything has changed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-fill.h"
#include "qcow2-rw-backing-map-watch.h"

/*
 * Bits that are set here have no marks in the log: it is a change that whoever
 * stores bitmaps has to notice.
 */
void qcow2_shell_fill_bitmaps(BlockDriverState *bs, bool all)
{
    BdrvDirtyBitmap *bitmap;

    QEMU_LOCK_GUARD(&bs->dirty_bitmap_mutex);

    for (bitmap = bdrv_dirty_bitmap_first(bs); bitmap;
         bitmap = bdrv_dirty_bitmap_next(bitmap)) {
        if ((all || bdrv_dirty_bitmap_enabled(bitmap)) &&
            !bdrv_dirty_bitmap_inconsistent(bitmap) &&
            !bdrv_dirty_bitmap_readonly(bitmap)) {
            bdrv_set_dirty_bitmap_locked(bitmap, 0,
                                         bdrv_dirty_bitmap_size(bitmap));
            bs->dirty_bitmap_changes++;
        }
    }
}

void qcow2_shell_fill_all(BlockDriverState *bs, bool all)
{
    if (qcow2_shell_map(bs)) {
        qcow2_map_fill(bs);
        WITH_QEMU_LOCK_GUARD(&bs->dirty_bitmap_mutex) {
            bs->dirty_bitmap_changes++;
        }
    }
    qcow2_shell_fill_bitmaps(bs, all);
}
