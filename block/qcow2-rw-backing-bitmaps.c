/*
 * qcow2 RW backing: bitmaps of a shell
 *
 * A bitmap that misses a write is worse than none, but no trouble with bitmaps
 * may cost the guest its disk.  So the bitmaps of a shell become inconsistent,
 * or are left out, where those of other images are trusted or keep the image
 * from being opened.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing.h"

/* A message is of no use if it does not end */
#define NAMES_REPORTED              10

/* Guard */

uint32_t qcow2_rw_backing_bitmap_flags(BlockDriverState *bs, uint32_t flags,
                                       uint32_t in_use)
{
    BDRVQcow2State *s = bs->opaque;

    if (!s->rw_backing || (flags & in_use)) {
        return flags;
    }
    s->rw_backing->bitmaps_unused = true;
    return s->rw_backing->bitmaps_stale ? flags | in_use : flags;
}

bool qcow2_rw_backing_must_mark_bitmaps(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    return s->rw_backing && s->rw_backing->bitmaps_stale &&
           s->rw_backing->bitmaps_unused;
}

void qcow2_rw_backing_report_stale_bitmaps(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    g_autoptr(GString) names = g_string_new(NULL);
    BdrvDirtyBitmap *bitmap;
    unsigned int count = 0;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap) &&
            bdrv_dirty_bitmap_inconsistent(bitmap) &&
            count++ < NAMES_REPORTED) {
            g_string_append_printf(names, "%s'%s'", names->len ? ", " : "",
                                   bdrv_dirty_bitmap_name(bitmap));
        }
    }
    if (count > NAMES_REPORTED) {
        g_string_append_printf(names, " and %u more", count - NAMES_REPORTED);
    }
    if (s->rw_backing->guard_state == QCOW2_RW_BACKING_GUARD_STATE_NONE) {
        warn_report("'%s' has no record of what its RW backing looked like",
                    bs->filename);
    }
    warn_report("Persistent dirty bitmaps of '%s' are out of date: %s",
                bs->filename, names->str);
}

void qcow2_rw_backing_store_begin(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    Error *local_err = NULL;

    if (!rwb) {
        return;
    }
    rwb->bitmaps_checksum = 0;

    /* Without its RW backing, the image keeps the guard that it has */
    if (!rwb->child) {
        return;
    }

    if (!qcow2_rw_backing_guard_take(&rwb->guard, &rwb->file, rwb->child,
                                     &local_err)) {
        warn_reportf_err(local_err, "State of the RW backing of '%s' is not "
                         "recorded, its bitmaps will be inconsistent: ",
                         bs->filename);
        return;
    }
    rwb->guard_state = QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED;
    rwb->guard_may_miss_writes = qcow2_rw_backing_guard_may_miss(rwb);
    g_clear_pointer(&rwb->guard_reason, g_free);
}

void qcow2_rw_backing_store_end(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing) {
        s->rw_backing->guard.bitmaps_checksum =
            s->rw_backing->bitmaps_checksum;
    }
}

/* Damage */

int qcow2_rw_backing_tolerate(BlockDriverState *bs, int ret, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;

    if (!rwb || rwb->pointer_damaged) {
        return ret;
    }

    warn_reportf_err(*errp, "Metadata of '%s' is damaged: ", bs->filename);
    *errp = NULL;
    rwb->damaged = true;
    rwb->header_stale = true;
    /* What could not be read may be there */
    rwb->bitmaps_unused = true;
    if (!rwb->header_read && rwb->pointer.format && !rwb->guard_found) {
        rwb->guard_may_miss_writes = true;
    }
    return 0;
}

bool qcow2_rw_backing_outlives_corruption(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing) {
        s->rw_backing->damaged = true;
    }
    return s->rw_backing;
}

bool qcow2_rw_backing_distrust_bitmap(BlockDriverState *bs, const char *name,
                                      Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;

    if (!s->rw_backing) {
        return false;
    }
    warn_reportf_err(*errp, "Bitmap '%s' in '%s' is inconsistent: ", name,
                     bs->filename);
    *errp = NULL;
    s->rw_backing->damaged = true;
    return true;
}

bool qcow2_rw_backing_drop_bitmaps(BlockDriverState *bs, bool *update_header,
                                   Error **errp)
{
    BDRVQcow2State *s = bs->opaque;

    if (qcow2_rw_backing_tolerate(bs, -EINVAL, errp) < 0) {
        return false;
    }
    warn_report("Bitmaps lost with '%s': %" PRIu32, bs->filename,
                s->nb_bitmaps);
    s->nb_bitmaps = 0;
    s->bitmap_directory_offset = 0;
    s->bitmap_directory_size = 0;
    s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    s->rw_backing->bitmaps_stale = false;
    *update_header = bdrv_is_writable(bs);
    return true;
}

void qcow2_rw_backing_report_lost_bitmaps(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (s->rw_backing && bdrv_dirty_bitmap_get_persistence(bitmap) &&
            !bdrv_dirty_bitmap_readonly(bitmap) &&
            !bdrv_dirty_bitmap_inconsistent(bitmap)) {
            error_report("Bitmap '%s' is not stored in '%s'",
                         bdrv_dirty_bitmap_name(bitmap), bs->filename);
        }
    }
}

bool qcow2_rw_backing_hides_bitmaps(BlockDriverState *bs, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing) {
        error_free(*errp);
        *errp = NULL;
    }
    return s->rw_backing;
}

int coroutine_fn qcow2_rw_backing_header_updated(BlockDriverState *bs, int ret)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;

    bool at_risk = rwb && rwb->bitmaps_unused && rwb->guard_may_miss_writes;

    if (at_risk && ret == 0) {
        ret = bdrv_co_flush(bs->file->bs);
    }
    if (!rwb || ret == 0) {
        return ret;
    }
    if (at_risk) {
        error_report("Bitmaps in '%s' can neither be updated nor be marked as "
                     "out of date: %s", bs->filename, strerror(-ret));
        return ret;
    }
    warn_report("Could not update the header of '%s': %s", bs->filename,
                strerror(-ret));
    rwb->damaged = true;
    rwb->header_stale = true;
    return 0;
}

/* New bitmaps */

/* Bytes that one copy of all persistent bitmaps takes up in the image */
static uint64_t copy_size(BlockDriverState *bs, const char *name,
                          uint32_t granularity)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t length = bs->total_sectors * BDRV_SECTOR_SIZE;
    uint64_t bytes = DIV_ROUND_UP(DIV_ROUND_UP(length, granularity), 8);
    uint64_t clusters = DIV_ROUND_UP(bytes, s->cluster_size);
    /* See "Bitmap directory" in the specification of qcow2 */
    uint64_t dir_entry_len = ROUND_UP(24 + strlen(name), 8);

    return qcow2_get_persistent_dirty_bitmap_size(bs, s->cluster_size) +
        clusters * s->cluster_size +
        ROUND_UP(clusters * sizeof(uint64_t), s->cluster_size) +
        ROUND_UP(dir_entry_len, s->cluster_size);
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
reserve_space(BlockDriverState *bs, const char *name, uint32_t granularity,
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
        s->rw_backing->damaged = true;
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
qcow2_rw_backing_co_can_store_new_dirty_bitmap(BlockDriverState *bs,
                                               const char *name,
                                               uint32_t granularity,
                                               Error **errp)
{
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing->damaged) {
        set_damaged_error(bs, name, errp);
        return false;
    }
    if (!bdrv_is_writable(bs)) {
        error_setg(errp, "Image '%s' is not writable, it cannot store bitmap "
                   "'%s'", bs->filename, name);
        return false;
    }
    return bdrv_qcow2.bdrv_co_can_store_new_dirty_bitmap(bs, name, granularity,
                                                         errp) &&
           reserve_space(bs, name, granularity, errp);
}

static void qcow2_rw_backing_bitmaps_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing;

    drv->bdrv_supports_persistent_dirty_bitmap =
        bdrv_qcow2.bdrv_supports_persistent_dirty_bitmap;
    drv->bdrv_co_can_store_new_dirty_bitmap =
        qcow2_rw_backing_co_can_store_new_dirty_bitmap;
    drv->bdrv_co_remove_persistent_dirty_bitmap =
        bdrv_qcow2.bdrv_co_remove_persistent_dirty_bitmap;
}

block_init(qcow2_rw_backing_bitmaps_init);
