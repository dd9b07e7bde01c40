/*
 * qcow2 RW backing: new bitmaps of a shell
 *
 * A bitmap is stored long after it was added.  What can stand against that is
 * found out before, and space is reserved.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmap-data.h"
#include "qcow2-rw-backing-checkpoint.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-new-bitmaps.h"
#include "qcow2-rw-backing-perm.h"

/* Bytes that a bitmap with its table and its name takes up in the image */
static uint64_t bitmap_size(BlockDriverState *bs, const char *name,
                            uint64_t granularity)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t length = bs->total_sectors * BDRV_SECTOR_SIZE;
    uint64_t clusters = qcow2_shell_table_size(bs, length, granularity);
    /* See "Bitmap directory" in the specification of qcow2 */
    uint64_t dir_entry_len = ROUND_UP(24 + strlen(name), 8);

    return clusters * s->cluster_size +
        ROUND_UP(clusters * sizeof(uint64_t), s->cluster_size) +
        ROUND_UP(dir_entry_len, s->cluster_size);
}

/* Bytes that one copy of all that is stored takes up, with a new bitmap */
static uint64_t copy_size(BlockDriverState *bs, const char *name,
                          uint64_t granularity)
{
    BDRVQcow2State *s = bs->opaque;
    const Qcow2Map *map = s->rw_backing->map;
    uint64_t size = qcow2_get_persistent_dirty_bitmap_size(bs,
                                                           s->cluster_size);

    if (!s->rw_backing->pointer.log_offset) {
        size += ROUND_UP(QCOW2_LOG_LEN, s->cluster_size);
    }
    if (map) {
        size += bitmap_size(bs, QCOW2_RW_BACKING_MAP_NAME,
                            UINT64_C(1) << map->granularity_bits);
    }
    return size + bitmap_size(bs, name, granularity);
}

static void set_damaged_error(BlockDriverState *bs, const char *name,
                              Error **errp)
{
    error_setg(errp, "Metadata of '%s' is damaged, it has to be repaired with "
               "'qemu-img check -r all' before it can store bitmap '%s'",
               bs->filename, name);
}

/*
 * Bitmaps are stored when the image is closed, which is too late to find out
 * that there is no space for them.  While they are stored, the old copies are
 * still there.  What exists in the file already, used or not, may be used by
 * bitmaps that are not stored yet.
 */
static bool coroutine_fn GRAPH_RDLOCK
reserve_space(BlockDriverState *bs, const char *name, uint64_t granularity,
              Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t needed = 2 * copy_size(bs, name, granularity);
    Error *local_err = NULL;
    int64_t length, last;
    int ret;

    QEMU_LOCK_GUARD(&s->lock);

    length = bdrv_co_getlength(bs->file->bs);
    if (length < 0) {
        error_setg_errno(errp, -length, "Could not get the size of '%s'",
                         bs->filename);
        return false;
    }
    last = qcow2_get_last_cluster(bs, length);
    if (last < 0) {
        s->rw_backing->state.needs_repair = true;
        set_damaged_error(bs, name, errp);
        return false;
    }

    needed += (last + 1) * s->cluster_size;
    needed += qcow2_refcount_metadata_size(needed / s->cluster_size,
                                           s->cluster_size, s->refcount_order,
                                           false, NULL);
    if (needed <= length) {
        return true;
    }

    ret = bdrv_co_truncate(bs->file, needed, false, PREALLOC_MODE_FALLOC, 0,
                           &local_err);
    if (ret < 0 && ret != -ENOSPC && ret != -EFBIG && ret != -EDQUOT) {
        /* Not every protocol can reserve space, but the file has to grow */
        error_free(local_err);
        local_err = NULL;
        ret = bdrv_co_truncate(bs->file, needed, false, PREALLOC_MODE_OFF, 0,
                               &local_err);
    }
    if (ret < 0) {
        error_propagate_prepend(errp, local_err, "No space for bitmap '%s' in "
                                "'%s', which may need %" PRIu64 " bytes: ",
                                name, bs->filename, needed);
        return false;
    }
    return true;
}

static bool coroutine_fn GRAPH_RDLOCK
co_can_store_new_dirty_bitmap(BlockDriverState *bs, const char *name,
                              uint32_t granularity, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;

    /* Or it could not be written, and still cannot, as far as is known */
    if (s->rw_backing->state.needs_repair || s->rw_backing->header_outdated) {
        set_damaged_error(bs, name, errp);
        return false;
    }
    if (!bdrv_is_writable(bs)) {
        error_setg(errp, "Image '%s' is not writable, it cannot store bitmap "
                   "'%s'", bs->filename, name);
        return false;
    }
    if (qcow2_shell_is_map(name)) {
        error_setg(errp, "'%s' is the name of the allocation map of '%s', a "
                   "bitmap needs another one", name, bs->filename);
        return false;
    }
    return bdrv_qcow2.bdrv_co_can_store_new_dirty_bitmap(bs, name, granularity,
                                                         errp) &&
           reserve_space(bs, name, granularity, errp);
}

bool coroutine_fn qcow2_shell_reserve_map(BlockDriverState *bs, Error **errp)
{
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    unsigned int bits =
        qcow2_map_granularity_bits(size, QCOW2_SHELL_BITMAP_MAX_CONTENT);

    return reserve_space(bs, QCOW2_RW_BACKING_MAP_NAME, UINT64_C(1) << bits,
                         errp);
}

/*
 * With a log, a bitmap goes when the next checkpoint stores what is left, which
 * the command waits for.
 */
static int coroutine_fn GRAPH_RDLOCK
co_remove_persistent_dirty_bitmap(BlockDriverState *bs, const char *name,
                                  Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2ShellEntry *entry = qcow2_shell_directory_find(rwb->directory, name);
    int ret;

    if (rwb->pointer.log && !rwb->state.needs_repair && bdrv_is_writable(bs)) {
        if (entry) {
            entry->removed = true;
        }
        return 0;
    }
    ret = bdrv_qcow2.bdrv_co_remove_persistent_dirty_bitmap(bs, name, errp);
    if (ret == 0 && entry) {
        g_ptr_array_remove(rwb->directory, entry);
    }
    return ret;
}

static void dirty_bitmaps_changed(BlockDriverState *bs)
{
    qcow2_shell_bitmaps_changed(bs);
    qcow2_shell_share_disk(bs);
}

static void qcow2_rw_backing_new_bitmaps_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing;

    drv->bdrv_supports_persistent_dirty_bitmap =
        bdrv_qcow2.bdrv_supports_persistent_dirty_bitmap;
    drv->bdrv_co_can_store_new_dirty_bitmap =
        co_can_store_new_dirty_bitmap;
    drv->bdrv_co_remove_persistent_dirty_bitmap =
        co_remove_persistent_dirty_bitmap;
    drv->bdrv_dirty_bitmaps_changed = dirty_bitmaps_changed;
}

block_init(qcow2_rw_backing_new_bitmaps_init);
