/*
 * qcow2 RW backing: shells that change hands
 *
 * A shell is closed, or becomes inactive so that another process can use it, or
 * active again after another process did.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-header.h"
#include "qcow2-rw-backing-map-watch.h"
#include "qcow2-rw-backing-seal.h"

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

/* They have given up what they need to write, and the node stays active */
static void GRAPH_RDLOCK activate_parents(BlockDriverState *bs)
{
    BdrvChild *parent;

    QLIST_FOREACH(parent, &bs->parents, next_parent) {
        Error *local_err = NULL;

        if (parent->klass->activate) {
            parent->klass->activate(parent, &local_err);
        }
        if (local_err) {
            error_reportf_err(local_err, "A user of '%s' cannot go on: ",
                              bs->filename);
        }
    }
}

static int GRAPH_RDLOCK shell_inactivate(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Error *local_err = NULL;
    Qcow2Map *map;
    int ret = inactivate_parents(bs);

    if (ret == 0) {
        ret = qcow2_shell_leave(bs, false, &local_err);
    }
    if (ret < 0) {
        if (local_err) {
            error_reportf_err(local_err, "'%s' stays active: ", bs->filename);
        }
        activate_parents(bs);
        return ret;
    }
    qcow2_shell_release_bitmaps(bs);
    /* Others may write, and it is read anew afterwards */
    map = qcow2_shell(bs)->map;
    qcow2_map_publish(bs, NULL);
    qcow2_map_free(map);
    /* So that activation does not leave once more */
    s->flags |= BDRV_O_INACTIVE;
    return 0;
}

/* Has the file become another kind of image?  That is the user's mistake. */
static bool coroutine_fn GRAPH_RDLOCK
is_still_shell(BlockDriverState *bs, Error **errp)
{
    QCowHeader header;
    int ret = bdrv_co_pread(bs->file, 0, sizeof(header), &header, 0);

    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the header of '%s'",
                         bs->filename);
        return false;
    }
    if (be32_to_cpu(header.magic) != QCOW_MAGIC ||
        be32_to_cpu(header.version) != 3 ||
        !(be64_to_cpu(header.incompatible_features) &
          QCOW2_INCOMPAT_RW_BACKING)) {
        error_setg(errp, "Image '%s' was replaced by one without an RW backing",
                   bs->filename);
        return false;
    }
    return true;
}

/*
 * A bitmap that is in use cannot be made larger or smaller.  Returns false with
 * @errp set if there is one, and the disk has another size by now.
 */
static bool coroutine_fn GRAPH_RDLOCK
check_sizes(BlockDriverState *bs, Error **errp)
{
    int64_t size = bdrv_co_getlength(qcow2_shell(bs)->child->bs);
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (size >= 0 && bdrv_dirty_bitmap_size(bitmap) != size &&
            (bdrv_dirty_bitmap_has_successor(bitmap) ||
             bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_BUSY, errp))) {
            error_prepend(errp, "The RW backing of '%s' has another size now: ",
                          bs->filename);
            return false;
        }
    }
    return true;
}

/*
 * Bitmaps in memory are right if nobody has written meanwhile.  That is so if
 * the image has the very seal with which it was left here, and it fits.  With
 * another one, or with none, somebody has had it open for writing.  An image
 * that was never left here may have had no seal at all.
 */
static void GRAPH_RDLOCK
doubt_bitmaps(BlockDriverState *bs, const Qcow2RwBackingGuard *left,
              bool shrunk)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    bool was_left = left->kind != QCOW2_RW_BACKING_GUARD_NONE;
    bool trusted = rwb->state.verdict == QCOW2_SHELL_TRUSTED;
    bool doubt;

    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF) {
        doubt = false;
    } else if (was_left) {
        doubt = !trusted ||
                !qcow2_rw_backing_guard_is_equal(left, &rwb->read_guard);
    } else {
        doubt = !trusted && (s->nb_bitmaps || rwb->has_stored_checksum);
    }
    rwb->shrunk |= shrunk;
    if (doubt && qcow2_shell_fill_left_behind(bs)) {
        warn_report("'%s' may have been written to while it was inactive here: "
                    "bitmaps that are in memory only say that everything has "
                    "changed", bs->filename);
        rwb->shrunk = true;
    }
}

static void coroutine_fn GRAPH_RDLOCK
shell_co_invalidate_cache(BlockDriverState *bs, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingGuard left = { };
    bool shrunk = s->rw_backing->shrunk;
    bool lost_data = s->rw_backing->disk_lost_data;

    if (!is_still_shell(bs, errp) || !check_sizes(bs, errp)) {
        return;
    }

    if (s->rw_backing->state.verdict == QCOW2_SHELL_TRUSTED) {
        left = s->rw_backing->guard;
    }
    /* qcow2 forgets all it knows, and reads the image again */
    qcow2_shell_free(bs);
    s->flags |= BDRV_O_INACTIVE;
    bdrv_qcow2.bdrv_co_invalidate_cache(bs, errp);
    if (*errp) {
        return;
    }
    qcow2_shell(bs)->disk_lost_data = lost_data;
    doubt_bitmaps(bs, &left, shrunk);
    if (qcow2_shell_enter_loaded(bs, errp) < 0) {
        /* Nobody has left what was not entered */
        s->flags |= BDRV_O_INACTIVE;
    }
    qcow2_shell_forget_loaded(bs);
}

/* What was not stored may be in the log */
static void report_not_left(BlockDriverState *bs, Error *err)
{
    unsigned int headers = qcow2_shell(bs)->state.headers;

    if ((headers & QCOW2_SHELL_HEADER_LOGGED) &&
        !(headers & QCOW2_SHELL_HEADER_BARE)) {
        error_reportf_err(err, "Bitmaps of '%s' have to be recovered as after "
                          "a crash: ", bs->filename);
    } else {
        error_reportf_err(err, "Lost persistent bitmaps of '%s': ",
                          bs->filename);
    }
}

static void GRAPH_UNLOCKED shell_close(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Error *local_err = NULL;

    GLOBAL_STATE_CODE();

    if (!(s->flags & BDRV_O_INACTIVE)) {
        GRAPH_RDLOCK_GUARD_MAINLOOP();
        if (qcow2_shell_leave(bs, true, &local_err) < 0) {
            report_not_left(bs, local_err);
        }
    }
    qcow2_shell_free(bs);
    /* We have left */
    s->flags |= BDRV_O_INACTIVE;
    bdrv_qcow2.bdrv_close(bs);
}

static void qcow2_rw_backing_handover_init(void)
{
    bdrv_qcow2_rw_backing.bdrv_inactivate = shell_inactivate;
    bdrv_qcow2_rw_backing.bdrv_co_invalidate_cache = shell_co_invalidate_cache;
    bdrv_qcow2_rw_backing.bdrv_close = shell_close;
    bdrv_qcow2_rw_backing_inspected.bdrv_close = shell_close;
}

block_init(qcow2_rw_backing_handover_init);
