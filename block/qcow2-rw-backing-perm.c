/*
 * qcow2 RW backing: who else may write to the disk
 *
 * A bitmap misses what others write to the RW backing, so nobody else may as
 * long as there is one.  A shell without bitmaps that nobody uses has nothing
 * to miss: it can be opened over the disk of a running machine, which goes on
 * to write until the shell takes its place.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-perm.h"

/* Whose first bitmap is about to be added; in the main thread only */
static BlockDriverState *claiming;

/* Is there a bitmap, in memory, in the image, or on its way?  Or a map? */
static bool has_bitmaps(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    return s->nb_bitmaps || (s->rw_backing && s->rw_backing->pointer.map) ||
           bdrv_has_named_bitmaps(bs) || claiming == bs;
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

    if (bs->open_flags & BDRV_O_INACTIVE) {
        return;
    }
    *nshared &= ~BLK_PERM_RESIZE;
    if (QLIST_EMPTY(&bs->parents) && !has_bitmaps(bs)) {
        *nshared |= BLK_PERM_WRITE;
    } else {
        *nshared &= ~BLK_PERM_WRITE;
    }
}

bool qcow2_shell_may_others_write(BlockDriverState *bs)
{
    return qcow2_shell(bs)->child->shared_perm & BLK_PERM_WRITE;
}

/* A file may be opened anew for it, which must not be in use meanwhile */
static int refresh_perms(BlockDriverState *bs, Error **errp)
{
    BlockDriverState *child_bs = qcow2_shell(bs)->child->bs;
    int ret;

    bdrv_drained_begin(child_bs);
    bdrv_graph_rdlock_main_loop();
    ret = bdrv_child_refresh_perms(bs, qcow2_shell(bs)->child, errp);
    bdrv_graph_rdunlock_main_loop();
    bdrv_drained_end(child_bs);
    return ret;
}

/* Both have the same data, so users of one can go on with the other */
static bool GRAPH_RDLOCK recurse_can_replace(BlockDriverState *bs,
                                             BlockDriverState *to_replace)
{
    return bdrv_recurse_can_replace(qcow2_shell(bs)->child->bs, to_replace);
}

/* Takes the RW backing for itself until permissions are found out anew */
static bool before_dirty_bitmap_add(BlockDriverState *bs, const char *name,
                                    Error **errp)
{
    int ret;

    if ((bs->open_flags & BDRV_O_INACTIVE) ||
        !qcow2_shell_may_others_write(bs)) {
        return true;
    }
    claiming = bs;
    ret = refresh_perms(bs, errp);
    claiming = NULL;
    if (ret < 0) {
        error_prepend(errp, "Bitmap '%s' would miss what is written to the RW "
                      "backing of '%s' without using the image: ", name,
                      bdrv_get_device_or_node_name(bs));
    }
    return ret == 0;
}

int coroutine_fn qcow2_shell_claim_disk(BlockDriverState *bs, Error **errp)
{
    BlockDriverState *child_bs = qcow2_shell(bs)->child->bs;
    int ret;

    if (!has_bitmaps(bs) || !qcow2_shell_may_others_write(bs)) {
        return 0;
    }
    bdrv_graph_co_rdunlock();
    bdrv_drained_begin(child_bs);
    bdrv_graph_co_rdlock();
    ret = bdrv_child_refresh_perms(bs, qcow2_shell(bs)->child, errp);
    bdrv_graph_co_rdunlock();
    bdrv_drained_end(child_bs);
    bdrv_graph_co_rdlock();
    return ret;
}

void qcow2_shell_share_disk(BlockDriverState *bs)
{
    if (QLIST_EMPTY(&bs->parents) && !has_bitmaps(bs) &&
        !qcow2_shell_may_others_write(bs)) {
        /* If it fails, others have to go on without */
        refresh_perms(bs, NULL);
    }
}

/* The allocation map would not know of another content */
static bool knows_content(BlockDriverState *bs)
{
    return qcow2_shell(bs)->map;
}

static void qcow2_rw_backing_perm_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing;

    drv->bdrv_child_perm = qcow2_rw_backing_child_perm;
    drv->bdrv_before_dirty_bitmap_add = before_dirty_bitmap_add;
    drv->bdrv_recurse_can_replace = recurse_can_replace;
    drv->bdrv_knows_content = knows_content;
}

block_init(qcow2_rw_backing_perm_init);
