/*
 * qcow2 RW backing: reopening a shell
 *
 * Read-only and back, which is leaving and entering, and with another node as
 * RW backing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/qdict.h"
#include "qobject/qdict.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-child.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-inspect.h"
#include "qcow2-rw-backing-judge.h"
#include "qcow2-rw-backing-log-lease.h"
#include "qcow2-rw-backing-reopen.h"
#include "qcow2-rw-backing-seal.h"
#include "qcow2-rw-backing-store.h"

bool qcow2_shell_reopen_keeps_child(BlockDriverState *bs, BdrvChild *child,
                                    QDict *options)
{
    /* If both are given, qcow2_shell_reopen_prepare() says so */
    qcow2_shell_take_alias(options, NULL);
    return child == qcow2_shell(bs)->child &&
           !qcow2_shell_has_option(options, "rw-backing");
}

/* The user vouches for another RW backing; all that can be checked is size */
static bool check_new_child(BlockDriverState *bs, BlockDriverState *new_bs,
                            Error **errp)
{
    int64_t old_size = bs->total_sectors * BDRV_SECTOR_SIZE;
    int64_t size;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (!qcow2_rw_backing_check_no_loop(bs->file->bs, bs->filename, new_bs,
                                        bdrv_get_node_name(new_bs), errp)) {
        return false;
    }
    size = bdrv_getlength(new_bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of node '%s'",
                         bdrv_get_node_name(new_bs));
        return false;
    }
    if (size != old_size) {
        error_setg(errp, "Node '%s' has a size of %" PRId64 " bytes, but the "
                   "RW backing of '%s' has %" PRId64,
                   bdrv_get_node_name(new_bs), size, bs->filename, old_size);
        return false;
    }
    return true;
}

/* What is recorded is about the old RW backing */
static void GRAPH_UNLOCKED judge_before_replacing(BlockDriverState *bs)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();
    qcow2_shell_judge_again(bs);
    qcow2_shell_find_failed_flush(bs);
}

/*
 * The node is not below the shell any more.  As when a child is removed, it
 * leaves the iothread, which may be deleted before it is.
 */
static void GRAPH_UNLOCKED release_node(BlockDriverState *bs)
{
    bdrv_try_change_aio_context(bs, qemu_get_aio_context(), NULL, NULL);
    bdrv_unref(bs);
}

/* If the options name another node, makes it the RW backing */
static bool GRAPH_UNLOCKED
replace_child(BDRVReopenState *state, Error **errp)
{
    BDRVQcow2State *s = state->bs->opaque;
    BdrvChild *child = s->rw_backing->child;
    const char *name = qdict_get_try_str(state->options, "rw-backing");
    BlockDriverState *old_bs, *new_bs;

    if (!child || !name || !strcmp(name, bdrv_get_node_name(child->bs))) {
        return true;
    }
    new_bs = bdrv_find_node(name);
    if (!new_bs) {
        error_setg(errp, "Cannot find node '%s' for the RW backing of '%s'",
                   name, state->bs->filename);
        return false;
    }
    if (!check_new_child(state->bs, new_bs, errp)) {
        return false;
    }

    old_bs = child->bs;
    judge_before_replacing(state->bs);
    if (bdrv_try_change_aio_context(new_bs, bdrv_get_aio_context(old_bs), NULL,
                                    errp) < 0) {
        return false;
    }
    bdrv_ref(old_bs);
    bdrv_ref(new_bs);
    if (bdrv_replace_child_bs(child, new_bs, errp) < 0) {
        release_node(new_bs);
        bdrv_unref(old_bs);
        return false;
    }
    bdrv_unref(new_bs);
    s->rw_backing->reopen_old_bs = old_bs;
    return true;
}

/*
 * The node stays writable: a reopen has failed that would have changed this.
 * Bitmaps go on as they are; if the image cannot be entered now, the next write
 * tries again.  If they could not be stored, marks are gone that said in what
 * they are not what is stored.
 */
static void GRAPH_UNLOCKED stay_writable(BlockDriverState *bs)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    qcow2_shell_set_bitmaps_readonly(bs, false);
    qcow2_shell_forget_stored(bs);
    qcow2_shell_begin(bs);
}

/* Makes @old_bs the RW backing that it was, and drops a reference to it */
static void GRAPH_UNLOCKED go_back(BlockDriverState *bs,
                                   BlockDriverState *old_bs)
{
    BdrvChild *child = qcow2_shell(bs)->child;
    BlockDriverState *new_bs = child->bs;
    Error *local_err = NULL;

    bdrv_ref(new_bs);
    if (bdrv_replace_child_bs(child, old_bs, &local_err) < 0) {
        error_reportf_err(local_err, "Could not go back to node '%s' as "
                          "RW backing of '%s': ",
                          bdrv_get_node_name(old_bs), bs->filename);
        bdrv_unref(new_bs);
    } else {
        release_node(new_bs);
    }
    bdrv_unref(old_bs);
}

static void GRAPH_UNLOCKED undo_reopen(BDRVReopenState *state)
{
    BlockDriverState *bs = state->bs;
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    BlockDriverState *old_bs = g_steal_pointer(&rwb->reopen_old_bs);

    if (old_bs) {
        go_back(bs, old_bs);
    }
    if (!(state->flags & BDRV_O_RDWR) && bdrv_is_writable(bs) && rwb->child) {
        stay_writable(bs);
    }
}

/* The node is drained while it is reopened */
static int GRAPH_UNLOCKED leave(BlockDriverState *bs, Error **errp)
{
    int ret;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    ret = qcow2_shell_leave(bs, false, errp);
    if (ret == 0) {
        qcow2_shell_set_bitmaps_readonly(bs, true);
    }
    return ret;
}

int qcow2_shell_reopen_prepare(BDRVReopenState *state,
                               BlockReopenQueue *queue, Error **errp)
{
    int ret = 0;

    if (!qcow2_shell_take_alias(state->options, errp) ||
        !replace_child(state, errp)) {
        return -EINVAL;
    }
    qdict_set_default_str(state->options, "cache-clean-interval", "0");
    qcow2_shell(state->bs)->reopen_was_readonly = !bdrv_is_writable(state->bs);
    if (!(state->flags & BDRV_O_RDWR)) {
        ret = leave(state->bs, errp);
    }
    if (ret == 0) {
        ret = bdrv_qcow2.bdrv_reopen_prepare(state, queue, errp);
    }
    if (ret < 0) {
        undo_reopen(state);
    }
    return ret;
}

void qcow2_shell_reopen_commit(BDRVReopenState *state)
{
    BDRVQcow2State *s = state->bs->opaque;

    bdrv_qcow2.bdrv_reopen_commit(state);
    memset(s->discard_passthrough, 0, sizeof(s->discard_passthrough));
}

void qcow2_shell_reopen_abort(BDRVReopenState *state)
{
    bdrv_qcow2.bdrv_reopen_abort(state);
    undo_reopen(state);
}

/*
 * The RW backing was replaced while the bitmaps are stored, or have been
 * recovered: what was recorded is about the old one.
 */
static void GRAPH_RDLOCK renew_guard(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingGuard *guard = &s->rw_backing->guard;
    uint32_t bitmaps_checksum = guard->bitmaps_checksum;
    bool shrunk = guard->shrunk;

    if (s->rw_backing->map) {
        /* Here, it need not take the user's word that it is the same disk */
        qcow2_map_doubt(s->rw_backing->map);
    }
    if (s->rw_backing->recovery) {
        qcow2_rw_backing_file_find(&s->rw_backing->file,
                                   s->rw_backing->child->bs);
        qcow2_log_lease_vouch(s->rw_backing);
    } else if (guard->kind != QCOW2_RW_BACKING_GUARD_NONE) {
        qcow2_rw_backing_guard_take(guard, &s->rw_backing->file,
                                    s->rw_backing->child, NULL);
        guard->bitmaps_checksum = bitmaps_checksum;
        guard->shrunk = shrunk;
    }
}

/* Bitmaps that became writable although the image could not be entered */
static void GRAPH_RDLOCK give_up_bitmaps(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap)) {
            bdrv_dirty_bitmap_set_inconsistent(bitmap);
        }
    }
}

/* What could not be done while the image was read-only */
void qcow2_shell_reopen_commit_post(BDRVReopenState *state)
{
    BlockDriverState *bs = state->bs;
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    BlockDriverState *old_bs = g_steal_pointer(&rwb->reopen_old_bs);
    Error *local_err = NULL;

    if (old_bs) {
        release_node(old_bs);
    }
    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (old_bs) {
        renew_guard(bs);
        qcow2_log_end_lease(bs);
    }
    if (!rwb->reopen_was_readonly || !bdrv_is_writable(bs) || !rwb->child) {
        return;
    }
    qcow2_shell_judge_again(bs);
    if (rwb->map &&
        rwb->guard_state != QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED) {
        /* What was seen while others could write is not known any more */
        qcow2_map_doubt(rwb->map);
    }
    qcow2_shell_set_bitmaps_readonly(bs, false);
    if (qcow2_shell_enter_or_wait(bs, &local_err) < 0) {
        /* Too late to refuse: the next write tries again */
        if (local_err) {
            error_report_err(local_err);
        }
        give_up_bitmaps(bs);
    }
}
