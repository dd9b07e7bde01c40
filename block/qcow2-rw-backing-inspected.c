/*
 * qcow2 RW backing: the driver of a shell that is only looked at
 *
 * For 'qemu-img info', 'check' and 'amend', which do not open the RW backing:
 * the image may come from anywhere, or the disk may be gone.  There is metadata
 * and a size, and no data.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-info.h"

static int64_t coroutine_fn GRAPH_RDLOCK
inspected_co_getlength(BlockDriverState *bs)
{
    return qcow2_shell(bs)->stored_size;
}

static int coroutine_fn GRAPH_RDLOCK
inspected_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                      PreallocMode prealloc, BdrvRequestFlags flags,
                      Error **errp)
{
    error_setg(errp, "Image '%s' was opened without its RW backing, which is "
               "needed to resize it", bs->filename);
    return -EINVAL;
}

static int coroutine_fn GRAPH_RDLOCK
inspected_co_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    BDRVQcow2State *s = bs->opaque;

    bdi->is_dirty = s->incompatible_features & QCOW2_INCOMPAT_DIRTY;
    /* Nobody copies from here, but backup tools create images like this one */
    bdi->cluster_size = s->cluster_size;
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
inspected_co_flush(BlockDriverState *bs)
{
    int ret = bdrv_qcow2.bdrv_co_flush_to_os(bs);

    return ret < 0 ? ret : bdrv_co_flush(bs->file->bs);
}

BlockDriver bdrv_qcow2_rw_backing_inspected = {
    .format_name                = "qcow2",
    .instance_size              = sizeof(BDRVQcow2State),
    .is_format                  = true,

    .bdrv_child_perm            = bdrv_default_perms,
    .bdrv_co_getlength          = inspected_co_getlength,
    .bdrv_co_truncate           = inspected_co_truncate,
    .bdrv_co_get_info           = inspected_co_get_info,
    .bdrv_co_check              = qcow2_shell_co_check,
    .bdrv_get_specific_info     = qcow2_shell_get_specific_info,
    .bdrv_co_flush              = inspected_co_flush,
};

static void qcow2_rw_backing_inspected_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing_inspected;

    drv->bdrv_join_options = bdrv_qcow2.bdrv_join_options;
    drv->mutable_opts = bdrv_qcow2.mutable_opts;
    drv->create_opts = bdrv_qcow2.create_opts;
    drv->bdrv_detach_aio_context = bdrv_qcow2.bdrv_detach_aio_context;
    drv->bdrv_attach_aio_context = bdrv_qcow2.bdrv_attach_aio_context;
}

block_init(qcow2_rw_backing_inspected_init);
