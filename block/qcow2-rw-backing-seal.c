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
#include "qcow2-rw-backing-checkpoint.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-log-commit.h"
#include "qcow2-rw-backing-log-lease.h"
#include "qcow2-rw-backing-seal.h"
#include "qcow2-rw-backing-store.h"

/* Time between two attempts of writes to enter, if it is no use, in ns */
#define RETRY_INTERVAL      NANOSECONDS_PER_SECOND

/* Entering */

int coroutine_mixed_fn qcow2_shell_enter(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = 0, marks_ret = 0;

    /* Nobody waits for what was to be stored */
    qcow2_log_stop(bs);
    qcow2_shell_forget_pending(bs);
    /* The header first: it says which directory is to be marked */
    rwb->guard = (Qcow2RwBackingGuard) { };
    rwb->pointer.log_armed = false;
    if (rwb->state.headers != QCOW2_SHELL_HEADER_BARE || rwb->header_outdated) {
        ret = qcow2_update_header(bs);
    }
    /* Whatever has become of it, marks are good for those who find it sealed */
    if (rwb->state.marks != QCOW2_SHELL_MARKS_IN_USE) {
        qcow2_shell_event(bs, QCOW2_SHELL_MARKING);
        marks_ret = qcow2_shell_directory_mark(bs);
        if (marks_ret == 0) {
            qcow2_shell_event(bs, QCOW2_SHELL_MARKED);
        }
    }
    return ret < 0 ? ret : marks_ret;
}

/* Does any header that may be there make bitmaps believed by itself? */
static bool is_believed(const Qcow2RwBacking *rwb)
{
    /* Marks say nothing to readers who have the log */
    return (rwb->state.headers & QCOW2_SHELL_HEADER_LOGGED) ||
           ((rwb->state.headers & QCOW2_SHELL_HEADERS_SEALED) &&
            rwb->state.marks != QCOW2_SHELL_MARKS_IN_USE);
}

/* Would a write to the RW backing make all seals void that may be there? */
static bool can_break_seal(const Qcow2RwBacking *rwb)
{
    return !is_believed(rwb) ||
           (!(rwb->state.headers & QCOW2_SHELL_HEADER_SAMPLED) &&
            qcow2_rw_backing_file_is_exact(&rwb->file));
}

/* With a log, bitmaps go on to be believed; otherwise, they are not */
static int coroutine_mixed_fn GRAPH_RDLOCK begin_log(BlockDriverState *bs)
{
    Error *local_err = NULL;
    int ret;

    if (!qcow2_shell(bs)->pointer.log || qcow2_shell(bs)->state.needs_repair ||
        !qcow2_shell_can_be_covered(bs)) {
        return -ENOTSUP;
    }
    ret = qcow2_shell_checkpoint_quiesced(bs, &local_err);
    if (local_err) {
        warn_report_err(local_err);
    }
    return ret;
}

int coroutine_mixed_fn qcow2_shell_begin(BlockDriverState *bs)
{
    int ret = begin_log(bs);

    /* It was about a header that is not there any more */
    qcow2_log_recovery_free(g_steal_pointer(&qcow2_shell(bs)->recovery));
    if (ret < 0) {
        ret = qcow2_shell_enter(bs);
    }
    if (qcow2_shell(bs)->pointer.log &&
        (qcow2_shell(bs)->map || bdrv_has_named_bitmaps(bs))) {
        qcow2_shell_start_checkpoints(bs);
    }
    return ret;
}

int coroutine_mixed_fn
qcow2_shell_enter_or_wait(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = qcow2_shell_begin(bs);

    if (ret == 0) {
        return 0;
    }
    rwb->header_outdated = true;
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

int coroutine_mixed_fn
qcow2_shell_enter_loaded(BlockDriverState *bs, Error **errp)
{
    int ret = bdrv_is_writable(bs) ? qcow2_shell_enter_or_wait(bs, errp) : 0;

    if (ret == -EAGAIN) {
        /* Those that came by migration are as good as before */
        qcow2_shell_release_loaded(bs);
        ret = 0;
    }
    return ret;
}

/*
 * Without a seal, marks are missing and nothing else; with marks, the seal is
 * one too many.  Otherwise a file with exact evidence is made to look otherwise
 * than in any seal, durably: whatever of the next writes arrives before the
 * host crashes, no seal fits.  For a log, this takes until its lease has ended.
 */
static bool coroutine_fn break_seal(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    if (!can_break_seal(rwb)) {
        return false;
    }
    if (is_believed(rwb)) {
        if ((rwb->state.headers & QCOW2_SHELL_HEADER_LOGGED) &&
            !qcow2_log_lease_outlive(rwb->log)) {
            return false;
        }
        if (!qcow2_rw_backing_file_touch(&rwb->file)) {
            return false;
        }
    }
    qcow2_shell_event(bs, QCOW2_SHELL_BROKE_SEAL);
    return true;
}

static int coroutine_fn GRAPH_RDLOCK
enter_or_break(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = qcow2_shell_enter(bs);

    if (ret == 0 || qcow2_shell_state_may_write(&rwb->state)) {
        return 0;
    }
    rwb->header_outdated = true;
    if (break_seal(bs)) {
        return 0;
    }
    error_setg_errno(errp, -ret, "Bitmaps in '%s' can neither be updated nor "
                     "be marked as out of date", bs->filename);
    return ret;
}

/*
 * The log does not count, or the image may be believed by others although it is
 * still here.  Several requests may come here at once, each of them waits until
 * it is clear what becomes of it.
 */
static int coroutine_fn GRAPH_RDLOCK enter_by_write(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    bool strict = rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT;
    int64_t now = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    Error *local_err = NULL;

    QEMU_LOCK_GUARD(&s->lock);

    if (rwb->log->phase != QCOW2_LOG_IDLE) {
        return -EAGAIN;
    }
    if (qcow2_shell_state_may_write(&rwb->state)) {
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

int coroutine_fn qcow2_shell_open_gate(BlockDriverState *bs, uint64_t offset,
                                       uint64_t bytes)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret;

    do {
        ret = qcow2_log_touch(bs, offset, bytes);
        if (ret == 0) {
            return 0;
        }
        if (qatomic_read(&rwb->log->failed)) {
            qcow2_log_give_up(bs);
        }
        ret = enter_by_write(bs);
    } while (ret == -EAGAIN);
    return ret;
}

/* Leaving */

/* Steps 1 to 4 of the comment at the top */
static int GRAPH_RDLOCK seal(BlockDriverState *bs, bool closing, Error **errp)
{
    ERRP_GUARD();
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    bool is_known = rwb->log->phase == QCOW2_LOG_STEADY &&
                    !rwb->log->pending.directory;
    Qcow2ShellStoreMode mode = {
        .closing = true,
        .partly  = closing,
        .written = is_known ? rwb->log->marks : NULL,
    };
    Qcow2RwBackingGuard guard;
    int ret = qcow2_shell_flush_disk(bs);

    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not flush the RW backing of '%s'",
                         bs->filename);
        return ret;
    }
    if (rwb->map && qcow2_rw_backing_file_is_exchanged(&rwb->file,
                                                       rwb->child->bs)) {
        /* It has no proof about the disk that is about to be recorded */
        qcow2_map_doubt(rwb->map);
    }
    if (!qcow2_rw_backing_guard_take(&guard, &rwb->file, rwb->child, errp)) {
        error_prepend(errp, "State of the RW backing of '%s' is not recorded: ",
                      bs->filename);
        return -EIO;
    }
    guard.shrunk = rwb->shrunk;
    ret = qcow2_shell_store_bitmaps(bs, &guard, &mode, errp);
    if (ret < 0) {
        return ret;
    }
    qcow2_log_stop(bs);
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
    bool may_write = qcow2_shell_state_may_write(&rwb->state) ||
                     qcow2_shell_state_may_write_marked(&rwb->state);
    int ret = 0, refcounts_ret;

    if (!bdrv_is_writable(bs)) {
        return 0;
    }
    qcow2_shell_stop_checkpoints(bs);
    if (rwb->child && (rwb->map || qcow2_shell_has_bitmaps(bs, closing))) {
        ret = seal(bs, closing, errp);
    } else if (rwb->child &&
               (rwb->header_outdated ||
                (rwb->state.headers & QCOW2_SHELL_HEADER_LOGGED))) {
        /*
         * What could not be written before may be possible by now, and bitmaps
         * that are handed over in another way must not be believed here
         */
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
        if (!closing && rwb->pointer.log) {
            qcow2_shell_start_checkpoints(bs);
        }
    }
    qcow2_shell_forget_pending(bs);
    return ret;
}
