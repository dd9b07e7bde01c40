/*
 * qcow2 RW backing: sealing a shell, and breaking the seal
 *
 * A shell that is closed vouches for its bitmaps: it is sealed.  As long as
 * guests write, it must not be.  Whoever closes, inactivates or reopens an
 * image leaves through qcow2_shell_leave(), whoever goes on to write comes in
 * through qcow2_shell_enter().
 *
 * The order while leaving, and the crash that each step has in mind:
 *
 * 1. Flush the RW backing.  A power failure must not take back what a bitmap
 *    that is believed does not know any more, because it was backed up.  If the
 *    flush fails, data may be lost already: no seal.
 * 2. Record what the RW backing looks like, when all data has arrived.
 * 3. Store the bitmaps in new clusters, flush: until step 4, a crash leaves the
 *    old ones, which are in use.
 * 4. Write the header, flush.  It has the record and the place of the new
 *    directory, so that there is never one without the other.
 *
 * If step 4 fails, either header may be there.  While the image is closed, both
 * are true.  If the node stays in use (the other programs did not agree to
 * become inactive, say), the next write has to enter first, and waits for it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-seal.h"

/* Time between two attempts of writes to enter, if it is no use, in ns */
#define RETRY_INTERVAL      NANOSECONDS_PER_SECOND

/* Entering */

int coroutine_mixed_fn qcow2_shell_enter(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = 0, marks_ret = 0;

    /* The header first: it says which directory is to be marked */
    rwb->guard = (Qcow2RwBackingGuard) { };
    if (rwb->state.seal != QCOW2_SHELL_SEAL_NONE || rwb->header_outdated) {
        ret = qcow2_update_header(bs);
    }
    /* Whatever has become of it, marks are good for those who find it sealed */
    if (rwb->state.marks != QCOW2_SHELL_MARKS_IN_USE) {
        qcow2_shell_state_event(&rwb->state, QCOW2_SHELL_MARKING);
        marks_ret = qcow2_shell_directory_mark(bs);
        if (marks_ret == 0) {
            qcow2_shell_state_event(&rwb->state, QCOW2_SHELL_MARKED);
        }
    }
    return ret < 0 ? ret : marks_ret;
}

/* Would a write to the RW backing make all seals void that may be there? */
static bool can_break_seal(const Qcow2RwBacking *rwb)
{
    return rwb->state.seal == QCOW2_SHELL_SEAL_NONE ||
           rwb->state.marks == QCOW2_SHELL_MARKS_IN_USE ||
           ((rwb->state.seal == QCOW2_SHELL_SEAL_EXACT ||
             rwb->state.seal == QCOW2_SHELL_SEAL_NONE_OR_EXACT) &&
            qcow2_rw_backing_file_is_exact(&rwb->file));
}

int coroutine_mixed_fn
qcow2_shell_enter_or_wait(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = qcow2_shell_enter(bs);

    if (ret == 0) {
        return 0;
    }
    rwb->header_outdated = true;
    rwb->state.needs_repair = true;
    if (!can_break_seal(rwb)) {
        error_setg_errno(errp, -ret, "Bitmaps in '%s' can neither be updated "
                         "nor be marked as out of date", bs->filename);
        return ret;
    }
    warn_report("Could not update the header of '%s': %s; its bitmaps cannot "
                "be used, and are lost with the first write", bs->filename,
                strerror(-ret));
    return -EAGAIN;
}

/*
 * Without a seal, marks are missing and nothing else; with marks, the seal is
 * one too many.  Otherwise a file with exact evidence is made to look otherwise
 * than in any seal, durably: whatever of the next writes arrives before the
 * host crashes, no seal fits.
 */
static bool break_seal(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    if (!can_break_seal(rwb) ||
        (rwb->state.seal != QCOW2_SHELL_SEAL_NONE &&
         rwb->state.marks != QCOW2_SHELL_MARKS_IN_USE &&
         !qcow2_rw_backing_file_touch(&rwb->file))) {
        return false;
    }
    qcow2_shell_state_event(&rwb->state, QCOW2_SHELL_BROKE_SEAL);
    return true;
}

static int coroutine_mixed_fn GRAPH_RDLOCK
enter_or_break(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = qcow2_shell_enter(bs);

    if (ret == 0 || rwb->state.may_write) {
        return 0;
    }
    rwb->header_outdated = true;
    rwb->state.needs_repair = true;
    if (break_seal(bs)) {
        return 0;
    }
    error_setg_errno(errp, -ret, "Bitmaps in '%s' can neither be updated nor "
                     "be marked as out of date", bs->filename);
    return ret;
}

/*
 * Several requests may come here at once, each of them waits until it is clear
 * what becomes of it.
 */
int coroutine_fn qcow2_shell_open_gate(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    bool strict = rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    Error *local_err = NULL;

    QEMU_LOCK_GUARD(&s->lock);

    if (rwb->state.may_write) {
        return 0;
    }
    if (now < rwb->retry_time) {
        return strict ? -EIO : 0;
    }
    if (enter_or_break(bs, &local_err) == 0) {
        rwb->gate_reported = false;
        return 0;
    }

    rwb->retry_time = now + RETRY_INTERVAL;
    if (rwb->gate_reported) {
        error_free(local_err);
    } else if (strict) {
        error_append_hint(&local_err, "Writes fail until it is possible.\n");
        error_report_err(local_err);
    } else {
        error_append_hint(&local_err, "Writes go on; if QEMU does not get to "
                          "store its bitmaps, remove them.\n");
        error_report_err(local_err);
    }
    rwb->gate_reported = true;
    return strict ? -EIO : 0;
}

/* Leaving */

/*
 * A node that nobody writes to at the moment does not pass a flush on to its
 * children, although a guest that has gone since may have written.
 */
static int GRAPH_RDLOCK flush_tree(BlockDriverState *bs)
{
    int ret = bdrv_flush(bs);
    BdrvChild *child;

    QLIST_FOREACH(child, &bs->children, next) {
        int child_ret = flush_tree(child->bs);

        ret = ret < 0 ? ret : child_ret;
    }
    return ret;
}

static bool GRAPH_RDLOCK
flush_has_failed(BlockDriverState *bs, uint64_t since)
{
    BdrvChild *child;

    if (stat64_get(&bs->flush_failed_at) >= since) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (flush_has_failed(child->bs, since)) {
            return true;
        }
    }
    return false;
}

void qcow2_shell_flush_failed(BlockDriverState *bs)
{
    /* In this order: a failure in between is found later */
    stat64_max(&qcow2_shell(bs)->flush_failures_seen, get_clock());
    qcow2_shell_fill_bitmaps(bs, false);
}

void qcow2_shell_find_failed_flush(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    if (flush_has_failed(rwb->child->bs,
                         stat64_get(&rwb->flush_failures_seen))) {
        warn_report("A flush of the RW backing of '%s' has failed: its bitmaps "
                    "say that everything has changed", bs->filename);
        qcow2_shell_flush_failed(bs);
    }
}

/* Steps 1 to 4 of the comment at the top */
static int GRAPH_RDLOCK seal(BlockDriverState *bs, bool closing, Error **errp)
{
    ERRP_GUARD();
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2RwBackingGuard guard;
    int ret = flush_tree(rwb->child->bs);

    /* Also if it was another one, and this one succeeds over a loss */
    qcow2_shell_find_failed_flush(bs);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not flush the RW backing of '%s'",
                         bs->filename);
        return ret;
    }
    if (!qcow2_rw_backing_guard_take(&guard, &rwb->file, rwb->child, errp)) {
        error_prepend(errp, "State of the RW backing of '%s' is not recorded: ",
                      bs->filename);
        return -EIO;
    }
    guard.shrunk = rwb->shrunk;
    ret = qcow2_shell_store_bitmaps(bs, &guard, closing, errp);
    if (ret < 0) {
        return ret;
    }
    rwb->guard_state = qcow2_rw_backing_guard_fresh_state(&rwb->guard);
    g_clear_pointer(&rwb->guard_reason, g_free);
    return 0;
}

/* Refcounts; with lazy ones, the image is clean when they have arrived */
static int GRAPH_RDLOCK write_refcounts(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int ret = qcow2_flush_caches(bs);

    if (ret == 0 && (s->incompatible_features & QCOW2_INCOMPAT_DIRTY)) {
        s->incompatible_features &= ~(uint64_t)QCOW2_INCOMPAT_DIRTY;
        ret = qcow2_update_header(bs);
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write the metadata of '%s'",
                         bs->filename);
    }
    return ret;
}

int qcow2_shell_leave(BlockDriverState *bs, bool closing, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    bool may_write = rwb->state.may_write;
    int ret = 0, refcounts_ret;

    if (!bdrv_is_writable(bs)) {
        return 0;
    }
    if (rwb->child && qcow2_shell_has_bitmaps(bs, closing)) {
        ret = seal(bs, closing, errp);
    } else if (rwb->child && rwb->header_outdated) {
        /* What could not be written before may be possible by now */
        qcow2_shell_enter(bs);
    }
    /* Also if only some bitmaps are stored */
    refcounts_ret = write_refcounts(bs, ret < 0 ? NULL : errp);
    ret = ret < 0 ? ret : refcounts_ret;
    if (ret < 0 && rwb->child && !(closing && may_write)) {
        /*
         * Others than a closed image go on, and the next write tries again.
         * For a closed one, both headers are true, unless it was not entered.
         */
        rwb->guard = (Qcow2RwBackingGuard) { };
        qcow2_shell_enter(bs);
    }
    return ret;
}
