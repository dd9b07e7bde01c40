/*
 * qcow2 RW backing: the driver of a shell
 *
 * Forwards all guest I/O to the RW backing.  What a shell does with its
 * metadata, bitmaps above all, it shares with plain qcow2; what it cannot do
 * (backing files, internal snapshots, VM state, compression) is absent from
 * its driver table, so that the generic block layer refuses it.
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
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-info.h"
#include "qcow2-rw-backing-map-look.h"
#include "qcow2-rw-backing-map-watch.h"
#include "qcow2-rw-backing-reopen.h"
#include "qcow2-rw-backing-seal.h"
#include "qcow2-rw-backing-store.h"

static inline BdrvChild *rw_backing_child(BlockDriverState *bs)
{
    return qcow2_shell(bs)->child;
}

/*
 * Before each request that writes: the log has to have marks for it, which are
 * durable, or bitmaps are not believed after a crash.
 */
static inline int coroutine_fn GRAPH_RDLOCK
write_gate(BlockDriverState *bs, const Qcow2RwBacking *rwb, uint64_t offset,
           uint64_t bytes)
{
    if (likely(qcow2_log_gate_passes(qatomic_load_acquire(&rwb->gate),
                                     offset, bytes))) {
        return 0;
    }
    return qcow2_shell_open_gate(bs, offset, bytes);
}

/* The same, and what is written is no zeroes, as far as the map knows */
static inline int coroutine_fn GRAPH_RDLOCK
begin_write(BlockDriverState *bs, const Qcow2RwBacking *rwb, uint64_t offset,
            uint64_t bytes)
{
    int ret = write_gate(bs, rwb, offset, bytes);

    if (ret == 0) {
        qcow2_map_before_write(bs, rwb, offset, bytes);
    }
    return ret;
}

static void GRAPH_RDLOCK set_supported_flags(BlockDriverState *bs)
{
    BlockDriverState *child_bs = rw_backing_child(bs)->bs;

    bs->supported_write_flags = BDRV_REQ_WRITE_UNCHANGED |
        BDRV_REQ_REGISTERED_BUF |
        (BDRV_REQ_FUA & child_bs->supported_write_flags);
    bs->supported_zero_flags = BDRV_REQ_WRITE_UNCHANGED |
        ((BDRV_REQ_FUA | BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK) &
         child_bs->supported_zero_flags);
    bs->supported_truncate_flags = BDRV_REQ_ZERO_WRITE &
        child_bs->supported_truncate_flags;
}

/*
 * A flush that has failed, also one that was part of a write, may have lost
 * data that a bitmap does not know any more, since it was backed up: the disk
 * is older than its backup then, wherever it was written to, and whether the
 * next flush succeeds or not.
 */
static inline int after_flush(BlockDriverState *bs, int ret, bool flushed)
{
    if (unlikely(ret < 0) && flushed && ret != -ENOTSUP) {
        qcow2_shell_flush_failed(bs);
    }
    return ret;
}

/* I/O; debug events go to bs->file, where blkdebug is with any qcow2 image */

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_preadv_part(BlockDriverState *bs, int64_t offset,
                                int64_t bytes, QEMUIOVector *qiov,
                                size_t qiov_offset, BdrvRequestFlags flags)
{
    BLKDBG_CO_EVENT(bs->file, BLKDBG_READ_AIO);
    return bdrv_co_preadv_part(rw_backing_child(bs), offset, bytes, qiov,
                               qiov_offset, flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pwritev_part(BlockDriverState *bs, int64_t offset,
                                 int64_t bytes, QEMUIOVector *qiov,
                                 size_t qiov_offset, BdrvRequestFlags flags)
{
    const Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = begin_write(bs, rwb, offset, bytes);

    if (ret < 0) {
        return ret;
    }
    BLKDBG_CO_EVENT(bs->file, BLKDBG_WRITE_AIO);
    ret = bdrv_co_pwritev_part(rwb->child, offset, bytes, qiov, qiov_offset,
                               flags);
    return after_flush(bs, ret, flags & BDRV_REQ_FUA);
}

/*
 * After zeroes were written, the map says so, unless somebody else has written.
 * If it fails, there is what was there before, or zeroes.
 */
static int coroutine_fn GRAPH_RDLOCK
write_zeroes(BlockDriverState *bs, int64_t offset, int64_t bytes,
             BdrvRequestFlags flags)
{
    Qcow2Map *map = qcow2_shell_map(bs);
    Qcow2MapWatch watch;
    int ret;

    if (!map) {
        return bdrv_co_pwrite_zeroes(rw_backing_child(bs), offset, bytes,
                                     flags);
    }
    qcow2_map_watch_begin(bs, map, &watch, offset, bytes);
    ret = bdrv_co_pwrite_zeroes(rw_backing_child(bs), offset, bytes, flags);
    if (ret < 0) {
        qcow2_map_watch_cancel(bs, &watch);
    } else {
        qcow2_map_watch_end(bs, &watch, offset, bytes, NULL);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset,
                                  int64_t bytes, BdrvRequestFlags flags)
{
    int ret = write_gate(bs, qcow2_shell(bs), offset, bytes);

    if (ret < 0) {
        return ret;
    }
    ret = write_zeroes(bs, offset, bytes, flags);
    return after_flush(bs, ret, flags & BDRV_REQ_FUA);
}

/* If one of them does not discard, it might allocate what is to be zero */
static bool GRAPH_RDLOCK discards(BlockDriverState *bs)
{
    while (bs) {
        if (!(bs->open_flags & BDRV_O_UNMAP)) {
            return false;
        }
        bs = bdrv_primary_bs(bs);
    }
    return true;
}

/*
 * What was discarded may read as anything.  Where it is as cheap to make zeroes
 * of it, the map knows what there is.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pdiscard(BlockDriverState *bs, int64_t offset,
                             int64_t bytes)
{
    int ret = write_gate(bs, qcow2_shell(bs), offset, bytes);

    if (ret < 0) {
        return ret;
    }
    if (qcow2_shell_map(bs) && discards(rw_backing_child(bs)->bs)) {
        ret = write_zeroes(bs, offset, bytes,
                           BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK);
        if (ret != -ENOTSUP) {
            return ret;
        }
    }
    qcow2_map_before_write(bs, qcow2_shell(bs), offset, bytes);
    return bdrv_co_pdiscard(rw_backing_child(bs), offset, bytes);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_copy_range_from(BlockDriverState *bs,
                                    BdrvChild *src, int64_t src_offset,
                                    BdrvChild *dst, int64_t dst_offset,
                                    int64_t bytes, BdrvRequestFlags read_flags,
                                    BdrvRequestFlags write_flags)
{
    return bdrv_co_copy_range_from(rw_backing_child(bs), src_offset,
                                   dst, dst_offset, bytes,
                                   read_flags, write_flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_copy_range_to(BlockDriverState *bs,
                                  BdrvChild *src, int64_t src_offset,
                                  BdrvChild *dst, int64_t dst_offset,
                                  int64_t bytes, BdrvRequestFlags read_flags,
                                  BdrvRequestFlags write_flags)
{
    int ret = begin_write(bs, qcow2_shell(bs), dst_offset, bytes);

    if (ret < 0) {
        return ret;
    }
    return bdrv_co_copy_range_to(src, src_offset,
                                 rw_backing_child(bs), dst_offset, bytes,
                                 read_flags, write_flags);
}

/*
 * Guests, whose data is in the RW backing, must not suffer from a shell that
 * cannot be written.  Metadata that refers to other metadata is flushed by
 * those who write it.  If writes went on although the gate is closed, it is
 * tried again, even if they are the last ones.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_flush(BlockDriverState *bs)
{
    if (unlikely(qcow2_shell(bs)->gate_reported) && bdrv_is_writable(bs)) {
        write_gate(bs, qcow2_shell(bs), 0, 1);
    }
    return after_flush(bs, bdrv_co_flush(rw_backing_child(bs)->bs), true);
}

/*
 * Asked for each request: without this, the generic layer would ask the shell's
 * file as well.
 */
static bool coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_is_inserted(BlockDriverState *bs)
{
    return bdrv_co_is_inserted(rw_backing_child(bs)->bs);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_block_status(BlockDriverState *bs, bool want_zero,
                                 int64_t offset, int64_t bytes, int64_t *pnum,
                                 int64_t *map, BlockDriverState **file)
{
    BlockDriverState *child_bs = rw_backing_child(bs)->bs;
    int ret;

    if (want_zero && qcow2_map_status(bs, offset, bytes, &bytes)) {
        *pnum = bytes;
        *map = offset;
        *file = child_bs;
        return BDRV_BLOCK_ZERO | BDRV_BLOCK_OFFSET_VALID;
    }
    if (!bdrv_filter_or_cow_bs(child_bs)) {
        *pnum = bytes;
        *map = offset;
        *file = child_bs;
        return BDRV_BLOCK_RAW | BDRV_BLOCK_OFFSET_VALID;
    }

    /*
     * The RW backing has a backing chain of its own.  To the users of the
     * shell, which has none, everything in that chain is data of the shell.
     */
    ret = bdrv_co_block_status_above(child_bs, NULL, offset, bytes, pnum, map,
                                     file);
    if (ret < 0) {
        return ret;
    }
    if (!(ret & BDRV_BLOCK_ZERO)) {
        ret |= BDRV_BLOCK_DATA;
    }
    /* @bytes may have been aligned to beyond the end of the disk */
    *pnum = ROUND_UP(*pnum, bs->bl.request_alignment);
    return ret & (BDRV_BLOCK_DATA | BDRV_BLOCK_ZERO |
                  BDRV_BLOCK_OFFSET_VALID | BDRV_BLOCK_COMPRESSED);
}

static void qcow2_rw_backing_cancel_in_flight(BlockDriverState *bs)
{
    bdrv_cancel_in_flight(rw_backing_child(bs)->bs);
}

/* Size, limits and permissions */

static int64_t coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_getlength(BlockDriverState *bs)
{
    return bdrv_co_getlength(rw_backing_child(bs)->bs);
}

static void coroutine_fn GRAPH_RDLOCK write_size(BlockDriverState *bs)
{
    int ret = qcow2_update_header(bs);

    if (ret == 0) {
        ret = bdrv_co_flush(bs->file->bs);
    }
    if (ret < 0) {
        warn_report("Could not write the new size to the header of '%s': %s",
                    bs->filename, strerror(-ret));
    }
}

/*
 * A backup that ends where the disk did has zeroes behind its end.  The new
 * part of a disk has zeroes, too, unless it lies where other data was (a
 * volume), or is made up from it (LUKS).  But if the disk was larger before,
 * and was backed up then, there is something else in the backup.
 */
static void coroutine_fn GRAPH_RDLOCK
set_new_part_dirty(BlockDriverState *bs, int64_t offset, int64_t bytes)
{
    BlockDriverState *child_bs = rw_backing_child(bs)->bs;
    bool shrunk = qcow2_shell(bs)->shrunk;

    while (bytes) {
        int64_t count = bytes;
        int ret = shrunk ? 0 : bdrv_co_block_status_above(child_bs, NULL,
                                                          offset, bytes, &count,
                                                          NULL, NULL);

        if (ret < 0 || count == 0) {
            count = bytes;
        }
        if (ret < 0 || !(ret & BDRV_BLOCK_ZERO)) {
            bdrv_set_dirty(bs, offset, count);
        }
        offset += count;
        bytes -= count;
    }
}

static void coroutine_fn GRAPH_RDLOCK
take_over_new_size(BlockDriverState *bs, int64_t size)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int64_t old_size = bs->total_sectors * BDRV_SECTOR_SIZE;

    qcow2_map_take_over_size(bs, size);
    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    rwb->stored_size = size;
    if (size < old_size) {
        /* If there are no bitmaps by then, nobody will ask */
        rwb->shrunk = bdrv_dirty_bitmap_first(bs);
    } else if (size > old_size) {
        bdrv_dirty_bitmap_truncate(bs, size);
        set_new_part_dirty(bs, old_size, size - old_size);
        qcow2_shell_report_too_large(bs);
    }
}

/*
 * The RW backing was asked to become smaller, which has failed on the way, or
 * nobody knows whether it has.  What lies behind @offset may be gone already:
 * qcow2 discards it first.
 */
static void coroutine_fn GRAPH_RDLOCK
set_lost_part_dirty(BlockDriverState *bs, int64_t offset)
{
    int64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;

    if (offset < size) {
        bdrv_set_dirty(bs, offset, size - offset);
        qcow2_shell(bs)->shrunk = bdrv_dirty_bitmap_first(bs);
    }
}

/* Only bitmaps in memory can get another size */
static bool check_bitmaps(BlockDriverState *bs, Error **errp)
{
    const GPtrArray *directory = qcow2_shell(bs)->directory;
    guint i;

    for (i = 0; i < directory->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);
        BdrvDirtyBitmap *bitmap = bdrv_find_dirty_bitmap(bs, entry->name);

        if (entry->removed || qcow2_shell_is_map(entry->name)) {
            continue;
        }
        if (!bitmap) {
            error_setg(errp, "Bitmap '%s' in '%s' is not in memory, so the "
                       "disk cannot be resized", entry->name, bs->filename);
            return false;
        }
        if (bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_DEFAULT, errp)) {
            return false;
        }
    }
    return true;
}

/*
 * Resizes the RW backing; the metadata follows.  A crash in between leaves a
 * header with another size than that of the RW backing, which
 * qcow2_shell_judge() deals with, and bitmaps that are in use anyway.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                             PreallocMode prealloc, BdrvRequestFlags flags,
                             Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const Qcow2RwBacking *rwb = qcow2_shell(bs);
    int64_t size, old_size;
    int ret;

    if (!QEMU_IS_ALIGNED(offset, BDRV_SECTOR_SIZE)) {
        error_setg(errp, "The new size must be a multiple of %u",
                   (unsigned) BDRV_SECTOR_SIZE);
        return -EINVAL;
    }
    /*
     * What is cut off will have other content once it has come back.  What is
     * new has no marks, but the end of what is old gets one.
     */
    old_size = bs->total_sectors * BDRV_SECTOR_SIZE;
    ret = write_gate(bs, rwb, offset, MAX(old_size - offset, 1));
    if (ret < 0) {
        error_setg_errno(errp, -ret, "'%s' cannot be written to", bs->filename);
        return ret;
    }

    QEMU_LOCK_GUARD(&s->lock);

    if (!check_bitmaps(bs, errp)) {
        return -ENOTSUP;
    }
    if (offset < old_size) {
        qcow2_map_before_write(bs, rwb, offset, old_size - offset);
    }
    ret = bdrv_co_truncate(rw_backing_child(bs), offset, exact, prealloc,
                           flags, errp);
    if (ret < 0) {
        if (ret != -ENOTSUP) {
            set_lost_part_dirty(bs, offset);
        }
        return ret;
    }

    /* A device may be larger than asked for */
    size = bdrv_co_getlength(rw_backing_child(bs)->bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the new size of the RW "
                         "backing of '%s'", bs->filename);
        set_lost_part_dirty(bs, offset);
        return size;
    }
    take_over_new_size(bs, size);

    /* The disk has its new size, whether the header knows it yet or not */
    write_size(bs);
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    BDRVQcow2State *s = bs->opaque;
    /* Clusters of the shell mean nothing to those who copy its data */
    int ret = bdrv_co_get_info(rw_backing_child(bs)->bs, bdi);

    bdi->vm_state_offset = 0;
    bdi->is_dirty |= s->incompatible_features & QCOW2_INCOMPAT_DIRTY;
    return ret == -ENOTSUP ? 0 : ret;
}

static void GRAPH_RDLOCK
qcow2_rw_backing_refresh_limits(BlockDriverState *bs, Error **errp)
{
    /* The limits themselves come from the only child with data */
    set_supported_flags(bs);
}

static int GRAPH_RDLOCK
qcow2_rw_backing_probe_blocksizes(BlockDriverState *bs, BlockSizes *bsz)
{
    return bdrv_probe_blocksizes(rw_backing_child(bs)->bs, bsz);
}

static int GRAPH_RDLOCK
qcow2_rw_backing_probe_geometry(BlockDriverState *bs, HDGeometry *geo)
{
    return bdrv_probe_geometry(rw_backing_child(bs)->bs, geo);
}

BlockDriver bdrv_qcow2_rw_backing = {
    .format_name                        = "qcow2",
    .instance_size                      = sizeof(BDRVQcow2State),
    .is_format                          = true,

    .bdrv_refresh_limits                = qcow2_rw_backing_refresh_limits,
    .bdrv_reopen_keeps_child            = qcow2_shell_reopen_keeps_child,
    .bdrv_reopen_prepare                = qcow2_shell_reopen_prepare,
    .bdrv_reopen_commit                 = qcow2_shell_reopen_commit,
    .bdrv_reopen_commit_post            = qcow2_shell_reopen_commit_post,
    .bdrv_reopen_abort                  = qcow2_shell_reopen_abort,
    .bdrv_co_getlength                  = qcow2_rw_backing_co_getlength,
    .bdrv_co_truncate                   = qcow2_rw_backing_co_truncate,
    .bdrv_co_get_info                   = qcow2_rw_backing_co_get_info,
    .bdrv_co_check                      = qcow2_shell_co_check,
    .bdrv_get_specific_info             = qcow2_shell_get_specific_info,
    .bdrv_probe_blocksizes              = qcow2_rw_backing_probe_blocksizes,
    .bdrv_probe_geometry                = qcow2_rw_backing_probe_geometry,

    .bdrv_co_preadv_part                = qcow2_rw_backing_co_preadv_part,
    .bdrv_co_pwritev_part               = qcow2_rw_backing_co_pwritev_part,
    .bdrv_co_pwrite_zeroes              = qcow2_rw_backing_co_pwrite_zeroes,
    .bdrv_co_pdiscard                   = qcow2_rw_backing_co_pdiscard,
    .bdrv_co_copy_range_from            = qcow2_rw_backing_co_copy_range_from,
    .bdrv_co_copy_range_to              = qcow2_rw_backing_co_copy_range_to,
    .bdrv_co_flush                      = qcow2_rw_backing_co_flush,
    .bdrv_co_block_status               = qcow2_rw_backing_co_block_status,
    .bdrv_co_is_inserted                = qcow2_rw_backing_co_is_inserted,
    .bdrv_cancel_in_flight              = qcow2_rw_backing_cancel_in_flight,
};

/* What a shell does like any qcow2 image */
static void qcow2_rw_backing_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing;

    drv->bdrv_join_options = bdrv_qcow2.bdrv_join_options;
    drv->mutable_opts = bdrv_qcow2.mutable_opts;

    drv->create_opts = bdrv_qcow2.create_opts;
    drv->bdrv_detach_aio_context = bdrv_qcow2.bdrv_detach_aio_context;
    drv->bdrv_attach_aio_context = bdrv_qcow2.bdrv_attach_aio_context;
}

block_init(qcow2_rw_backing_init);
