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
#include "qcow2.h"
#include "qcow2-rw-backing.h"

static inline BdrvChild *rw_backing_child(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    return s->rw_backing->child;
}

/* Has to be repeated whenever the RW backing is replaced */
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
 * The block layer asks the users of a node last.  If one of them refuses, the
 * node stays active, and must not have stored its bitmaps and lost them.
 */
static int GRAPH_RDLOCK inactivate_parents(BlockDriverState *bs)
{
    uint64_t perm, shared;
    BdrvChild *parent;
    int ret;

    QLIST_FOREACH(parent, &bs->parents, next_parent) {
        if (parent->klass->inactivate) {
            ret = parent->klass->inactivate(parent);
            if (ret < 0) {
                return ret;
            }
        }
    }
    bdrv_get_cumulative_perm(bs, &perm, &shared);
    return perm & (BLK_PERM_WRITE | BLK_PERM_WRITE_UNCHANGED) ? -EPERM : 0;
}

static int GRAPH_RDLOCK qcow2_rw_backing_inactivate(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    int ret = inactivate_parents(bs);

    if (ret < 0) {
        return ret;
    }
    ret = bdrv_qcow2.bdrv_inactivate(bs);
    if (ret < 0 && rw_backing_child(bs)) {
        /* The node stays active: nobody may trust what was stored */
        s->rw_backing->guard.kind = QCOW2_RW_BACKING_GUARD_NONE;
        if (bdrv_is_writable(bs) && qcow2_update_header(bs) < 0) {
            warn_report("Bitmaps in '%s' may miss what is written from now on",
                        bs->filename);
        }
    }
    return ret;
}

static void coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_invalidate_cache(BlockDriverState *bs, Error **errp)
{
    bdrv_qcow2.bdrv_co_invalidate_cache(bs, errp);

    /* On failure, there is no driver any more */
    if (bs->drv == &bdrv_qcow2_rw_backing && rw_backing_child(bs)) {
        set_supported_flags(bs);
    }
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
    BLKDBG_CO_EVENT(bs->file, BLKDBG_WRITE_AIO);
    return bdrv_co_pwritev_part(rw_backing_child(bs), offset, bytes, qiov,
                                qiov_offset, flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset,
                                  int64_t bytes, BdrvRequestFlags flags)
{
    return bdrv_co_pwrite_zeroes(rw_backing_child(bs), offset, bytes, flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pdiscard(BlockDriverState *bs, int64_t offset,
                             int64_t bytes)
{
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
    return bdrv_co_copy_range_to(src, src_offset,
                                 rw_backing_child(bs), dst_offset, bytes,
                                 read_flags, write_flags);
}

/*
 * Guests, whose data is in the RW backing, must not suffer from a shell that
 * cannot be written.  Metadata that refers to other metadata is flushed by
 * those who write it.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_flush(BlockDriverState *bs)
{
    int ret;

    if (rw_backing_child(bs)) {
        return bdrv_co_flush(rw_backing_child(bs)->bs);
    }
    ret = bdrv_qcow2.bdrv_co_flush_to_os(bs);
    return ret < 0 ? ret : bdrv_co_flush(bs->file->bs);
}

/*
 * Asked for each request: without this, the generic layer would ask the shell's
 * file as well.
 */
static bool coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_is_inserted(BlockDriverState *bs)
{
    return bdrv_co_is_inserted(rw_backing_child(bs) ? rw_backing_child(bs)->bs
                                                    : bs->file->bs);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_block_status(BlockDriverState *bs, bool want_zero,
                                 int64_t offset, int64_t bytes, int64_t *pnum,
                                 int64_t *map, BlockDriverState **file)
{
    BlockDriverState *child_bs = rw_backing_child(bs)->bs;
    int ret;

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
    BDRVQcow2State *s = bs->opaque;

    if (!rw_backing_child(bs)) {
        return s->rw_backing->stored_size;
    }
    return bdrv_co_getlength(rw_backing_child(bs)->bs);
}

/*
 * Resizes the RW backing; the metadata follows.  A crash in between leaves a
 * header with another size than that of the RW backing, which
 * take_over_size() deals with, and bitmaps that are in use anyway.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                             PreallocMode prealloc, BdrvRequestFlags flags,
                             Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t size;
    int ret;

    if (!QEMU_IS_ALIGNED(offset, BDRV_SECTOR_SIZE)) {
        error_setg(errp, "The new size must be a multiple of %u",
                   (unsigned) BDRV_SECTOR_SIZE);
        return -EINVAL;
    }

    if (!rw_backing_child(bs)) {
        error_setg(errp, "Image '%s' was opened without its RW backing, which "
                   "is needed to resize it", bs->filename);
        return -EINVAL;
    }

    QEMU_LOCK_GUARD(&s->lock);

    if (qcow2_truncate_bitmaps_check(bs, errp)) {
        return -ENOTSUP;
    }
    ret = bdrv_co_truncate(rw_backing_child(bs), offset, exact, prealloc,
                           flags, errp);
    if (ret < 0) {
        return ret;
    }

    /* A device may be larger than asked for */
    size = bdrv_co_getlength(rw_backing_child(bs)->bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the new size of the RW "
                         "backing of '%s'", bs->filename);
        return size;
    }
    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    s->rw_backing->stored_size = size;

    /* The disk has its new size, whether the header knows it yet or not */
    ret = qcow2_update_header(bs);
    if (ret == 0) {
        ret = bdrv_co_flush(bs->file->bs);
    }
    if (ret < 0) {
        warn_report("Could not write the new size to the header of '%s': %s",
                    bs->filename, strerror(-ret));
    }
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    BDRVQcow2State *s = bs->opaque;
    int ret = 0;

    if (rw_backing_child(bs)) {
        /* Clusters of the shell mean nothing to those who copy its data */
        ret = bdrv_co_get_info(rw_backing_child(bs)->bs, bdi);
        if (ret == -ENOTSUP) {
            ret = 0;
        }
    }
    bdi->vm_state_offset = 0;
    bdi->is_dirty |= s->incompatible_features & QCOW2_INCOMPAT_DIRTY;
    return ret;
}

static void GRAPH_RDLOCK
qcow2_rw_backing_refresh_limits(BlockDriverState *bs, Error **errp)
{
    /* The limits themselves come from the only child with data */
    if (rw_backing_child(bs)) {
        set_supported_flags(bs);
    }
}

/*
 * What was wrong with the metadata when the image was opened does not count
 * as sound because it was put aside.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_check(BlockDriverState *bs, BdrvCheckResult *result,
                          BdrvCheckMode fix)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    int ret = bdrv_qcow2.bdrv_co_check(bs, result, fix);

    if (!rwb->damaged) {
        return ret;
    }
    if ((fix & BDRV_FIX_ERRORS) && ret == 0 && !result->corruptions &&
        !result->check_errors && !rwb->header_stale) {
        rwb->damaged = false;
        result->corruptions_fixed++;
    } else {
        result->corruptions++;
    }
    return ret;
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

static void qcow2_rw_backing_child_perm(BlockDriverState *bs, BdrvChild *c,
                                        BdrvChildRole role,
                                        BlockReopenQueue *reopen_queue,
                                        uint64_t perm, uint64_t shared,
                                        uint64_t *nperm, uint64_t *nshared)
{
    bdrv_default_perms(bs, c, role, reopen_queue, perm, shared,
                       nperm, nshared);
    if (role & BDRV_CHILD_METADATA) {
        return;
    }

    /*
     * The default for data children provides for copy-on-write and growth,
     * which a shell does not do: ask for what the parents ask for.
     */
    *nperm &= ~(BLK_PERM_WRITE | BLK_PERM_RESIZE);
    *nperm |= perm & (BLK_PERM_WRITE | BLK_PERM_RESIZE);

    /* Dirty bitmaps would miss what others write to the RW backing */
    if (!(bs->open_flags & BDRV_O_INACTIVE)) {
        *nshared &= ~(BLK_PERM_WRITE | BLK_PERM_RESIZE);
    }
}

BlockDriver bdrv_qcow2_rw_backing = {
    .format_name                        = "qcow2",
    .instance_size                      = sizeof(BDRVQcow2State),
    .is_format                          = true,

    .bdrv_child_perm                    = qcow2_rw_backing_child_perm,
    .bdrv_inactivate                    = qcow2_rw_backing_inactivate,
    .bdrv_refresh_limits                = qcow2_rw_backing_refresh_limits,
    .bdrv_reopen_prepare                = qcow2_rw_backing_reopen_prepare,
    .bdrv_reopen_abort                  = qcow2_rw_backing_reopen_abort,
    .bdrv_reopen_commit_post            = qcow2_rw_backing_reopen_commit_post,
    .bdrv_co_invalidate_cache           = qcow2_rw_backing_co_invalidate_cache,
    .bdrv_co_getlength                  = qcow2_rw_backing_co_getlength,
    .bdrv_co_truncate                   = qcow2_rw_backing_co_truncate,
    .bdrv_co_get_info                   = qcow2_rw_backing_co_get_info,
    .bdrv_co_check                      = qcow2_rw_backing_co_check,
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

    drv->bdrv_close = bdrv_qcow2.bdrv_close;
    drv->bdrv_reopen_commit = bdrv_qcow2.bdrv_reopen_commit;
    drv->bdrv_join_options = bdrv_qcow2.bdrv_join_options;
    drv->mutable_opts = bdrv_qcow2.mutable_opts;

    drv->bdrv_get_specific_info = bdrv_qcow2.bdrv_get_specific_info;
    drv->create_opts = bdrv_qcow2.create_opts;
    drv->bdrv_detach_aio_context = bdrv_qcow2.bdrv_detach_aio_context;
    drv->bdrv_attach_aio_context = bdrv_qcow2.bdrv_attach_aio_context;
}

block_init(qcow2_rw_backing_init);
