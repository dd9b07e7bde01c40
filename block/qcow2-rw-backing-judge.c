/*
 * qcow2 RW backing: are the bitmaps to be believed?
 *
 * Compares the RW backing with what the image knows of it.  Whatever speaks
 * against the bitmaps makes them inconsistent and nothing else: the guest gets
 * its disk, unless its user wants to be strict.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-fill.h"
#include "qcow2-rw-backing-judge.h"
#include "qcow2-rw-backing-log-lease.h"
#include "qcow2-rw-backing-recovery.h"

/* A message is of no use if it does not end */
#define NAMES_REPORTED              10

void qcow2_shell_distrust(BlockDriverState *bs)
{
    qcow2_shell_state_judge(&qcow2_shell(bs)->state, QCOW2_SHELL_DISTRUSTED);
}

void qcow2_shell_report_damage(BlockDriverState *bs, Error *err,
                               const char *format, ...)
{
    g_autofree char *what = NULL;
    va_list ap;

    va_start(ap, format);
    what = g_strdup_vprintf(format, ap);
    va_end(ap);

    warn_reportf_err(err, "%s", what);
    qcow2_shell(bs)->state.needs_repair = true;
    qcow2_shell(bs)->header_outdated = true;
}

void qcow2_shell_report_stale_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
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
    if (!count) {
        return;
    }
    if (count > NAMES_REPORTED) {
        g_string_append_printf(names, " and %u more", count - NAMES_REPORTED);
    }
    if (rwb->guard_state == QCOW2_RW_BACKING_GUARD_STATE_NONE) {
        warn_report("'%s' has no record of what its RW backing looked like",
                    bs->filename);
    }
    warn_report("Persistent dirty bitmaps of '%s' are out of date: %s",
                bs->filename, names->str);
}

/* Begins a message that goes on with the reason */
static const char *complaint(Qcow2RwBackingGuardState state)
{
    switch (state) {
    case QCOW2_RW_BACKING_GUARD_STATE_MODIFIED:
        return "RW backing of '%s' was modified by another program: ";
    case QCOW2_RW_BACKING_GUARD_STATE_SAMPLED:
        return "There is no proof that the RW backing of '%s' is unchanged: ";
    default:
        return "Could not find out whether the RW backing of '%s' was "
               "modified: ";
    }
}

/* Consumes @reason, which may be NULL */
static void set_guard_state(BlockDriverState *bs,
                            Qcow2RwBackingGuardState state, Error *reason)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    rwb->guard_state = state;
    g_free(rwb->guard_reason);
    rwb->guard_reason = reason ? g_strdup(error_get_pretty(reason)) : NULL;
    error_free(reason);
}

/* Consumes @reason */
static void mismatch(BlockDriverState *bs, Qcow2RwBackingGuardState state,
                     Error *reason)
{
    warn_reportf_err(error_copy(reason), complaint(state), bs->filename);
    set_guard_state(bs, state, reason);
    qcow2_shell_distrust(bs);
}

/* Returns true if a bitmap in the image does not say that it is in use */
static bool coroutine_mixed_fn GRAPH_RDLOCK
has_usable_bitmaps(BlockDriverState *bs)
{
    g_autoptr(GPtrArray) directory = qcow2_shell_directory_read(bs, NULL);
    guint i;

    for (i = 0; directory && i < directory->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);

        /* Who has no proof looks at the disk before believing the map */
        if (!(entry->flags & QCOW2_SHELL_BITMAP_IN_USE) &&
            !qcow2_shell_is_map(entry->name)) {
            return true;
        }
    }
    return false;
}

/* Samples are no proof, but without bitmaps, nobody asks for one */
static bool coroutine_mixed_fn GRAPH_RDLOCK
is_good(BlockDriverState *bs, Qcow2RwBackingGuardState state)
{
    bool strict = qcow2_shell(bs)->guard_mode ==
                  BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT;

    return state == QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED ||
           (state == QCOW2_RW_BACKING_GUARD_STATE_SAMPLED &&
            (!strict || !has_usable_bitmaps(bs)));
}

static void hint_auto(Error *const *errp)
{
    error_append_hint(errp, "With rw-backing-guard=auto, the image opens "
                      "and bitmaps that may be wrong become inconsistent.\n");
}

int coroutine_fn qcow2_shell_take_over_size(BlockDriverState *bs, Error **errp)
{
    int64_t size = bdrv_co_getlength(qcow2_shell(bs)->child->bs);

    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of the RW "
                         "backing of '%s'", bs->filename);
        return size;
    }
    /* bdrv_co_getlength() counts whole sectors */
    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    return 0;
}

/*
 * If the size has changed since the header was written, somebody else has
 * written to the disk, and what the bitmaps say about it cannot be trusted,
 * unless it has only grown: @grown is what comparing the guard has told.
 */
static void judge_size(BlockDriverState *bs, bool grown, bool reported)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;

    if (size == rwb->stored_size) {
        return;
    }
    rwb->header_outdated = true;
    if (grown && s->nb_bitmaps && rwb->guard.size == rwb->stored_size) {
        rwb->grown_size = size;
        warn_report("RW backing of '%s' was enlarged from %" PRIu64 " to %"
                    PRIu64 " bytes by another program: the new part is dirty "
                    "in its bitmaps", bs->filename, rwb->stored_size, size);
        return;
    }
    if (!reported) {
        warn_report("RW backing of '%s' was resized from %" PRIu64 " to %"
                    PRIu64 " bytes by another program", bs->filename,
                    rwb->stored_size, size);
    }
    qcow2_shell_distrust(bs);
}

/* Nobody knows what has happened since the bitmaps were stored */
static int coroutine_fn GRAPH_RDLOCK
judge_without_guard(BlockDriverState *bs, Error **errp)
{
    ERRP_GUARD();

    if (qcow2_shell(bs)->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT &&
        has_usable_bitmaps(bs)) {
        error_setg(errp, "There is no record of the RW backing of '%s', whose "
                   "bitmaps are said to be usable", bs->filename);
        hint_auto(errp);
        return -EINVAL;
    }
    qcow2_shell_distrust(bs);
    return 0;
}

/* With the node option in its default setting, only bitmaps are at stake */
static int coroutine_fn GRAPH_RDLOCK
judge_by_guard(BlockDriverState *bs, bool *grown, bool *reported, Error **errp)
{
    ERRP_GUARD();
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2RwBackingGuardState state;
    Error *local_err = NULL;

    state = qcow2_rw_backing_guard_compare(&rwb->guard, &rwb->file, rwb->child,
                                           grown, &local_err);
    if (is_good(bs, state)) {
        set_guard_state(bs, state, local_err);
        return 0;
    }
    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT) {
        error_propagate_prepend(errp, local_err, complaint(state),
                                bs->filename);
        hint_auto(errp);
        return -EINVAL;
    }
    mismatch(bs, state, local_err);
    *reported = true;
    return 0;
}

static void forget_recovery(Qcow2RwBacking *rwb)
{
    qcow2_log_recovery_free(g_steal_pointer(&rwb->recovery));
}

/* The log does not say anything that counts, and @reason is why */
static int reject_log(BlockDriverState *bs, Error *reason, Error **errp)
{
    ERRP_GUARD();
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    forget_recovery(rwb);
    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT) {
        error_propagate_prepend(errp, reason, "Bitmaps of '%s' cannot be "
                                "recovered after a crash: ", bs->filename);
        hint_auto(errp);
        return -EINVAL;
    }
    warn_reportf_err(error_copy(reason), "Bitmaps of '%s' cannot be recovered "
                     "after a crash: ", bs->filename);
    set_guard_state(bs, QCOW2_RW_BACKING_GUARD_STATE_UNCHECKED, reason);
    qcow2_shell_distrust(bs);
    return 0;
}

/* What the lease says; the user may not want to know */
static int judge_lease(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2LogLeaseVerdict verdict;
    Error *reason = NULL;

    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF) {
        return 0;
    }
    if (!rwb->recovery->lease.number) {
        error_setg(&reason, "Until when it may have been written to is not "
                   "known");
        return reject_log(bs, reason, errp);
    }
    verdict = qcow2_log_lease_judge(&rwb->recovery->lease, &rwb->file, &reason);
    if (verdict == QCOW2_LOG_LEASE_BROKEN ||
        (verdict == QCOW2_LOG_LEASE_NO_EVIDENCE &&
         rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT)) {
        return reject_log(bs, reason, errp);
    }
    set_guard_state(bs, QCOW2_RW_BACKING_GUARD_STATE_RECOVERED, reason);
    return 0;
}

/* The size for which bitmaps were stored is not always that of the header */
static void judge_recovered_size(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;

    rwb->stored_size = rwb->recovery->super.size;
    if (size > rwb->stored_size) {
        rwb->grown_size = size;
    } else if (size < rwb->stored_size) {
        rwb->shrunk_size = size;
    }
    rwb->shrunk |= rwb->recovery->super.shrunk;
    rwb->has_stored_checksum = true;
    rwb->stored_checksum = rwb->recovery->super.bitmaps_checksum;
}

/*
 * The program that has used the image has crashed.  Whoever does not have it
 * alone may be reading while it is being written to.
 */
static int coroutine_fn GRAPH_RDLOCK
judge_by_log(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Error *reason = NULL;
    int ret;

    if (bs->force_share) {
        qcow2_shell_distrust(bs);
        return 0;
    }
    rwb->recovery = qcow2_log_recover(bs, &reason);
    if (!rwb->recovery) {
        error_prepend(&reason, "Its write-intent log cannot be used: ");
        return reject_log(bs, reason, errp);
    }
    ret = judge_lease(bs, errp);
    if (rwb->recovery) {
        judge_recovered_size(bs);
        qcow2_shell_state_judge(&rwb->state, QCOW2_SHELL_TRUSTED);
    }
    return ret;
}

int coroutine_fn qcow2_shell_judge(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    bool grown = false, reported = false;
    int ret = qcow2_shell_take_over_size(bs, errp);

    if (rwb->state.headers & QCOW2_SHELL_HEADER_LOGGED) {
        qcow2_log_lease_assume(rwb->log);
    }
    if (ret == 0 && rwb->state.headers == QCOW2_SHELL_HEADER_LOGGED) {
        ret = judge_by_log(bs, errp);
        if (ret < 0 || rwb->recovery) {
            return ret;
        }
    } else if (ret == 0 &&
               rwb->guard_mode != BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF) {
        ret = rwb->guard.kind == QCOW2_RW_BACKING_GUARD_NONE
            ? judge_without_guard(bs, errp)
            : judge_by_guard(bs, &grown, &reported, errp);
    }
    if (ret < 0) {
        return ret;
    }
    judge_size(bs, grown, reported);
    qcow2_shell_state_judge(&rwb->state, QCOW2_SHELL_TRUSTED);
    return 0;
}

/* Does what was found when the bitmaps were recovered still hold? */
static bool is_lease_good(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Error *reason = NULL;

    if (qcow2_log_lease_judge(&rwb->recovery->lease, &rwb->file, &reason) ==
        QCOW2_LOG_LEASE_BROKEN) {
        error_propagate(errp, reason);
        return false;
    }
    error_free(reason);
    return true;
}

/* The same for those that were closed; @state is what is found now */
static bool GRAPH_RDLOCK
is_guard_good(BlockDriverState *bs, Qcow2RwBackingGuardState *state,
              Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Error *reason = NULL;
    bool grown;

    *state = qcow2_rw_backing_guard_compare(&rwb->guard, &rwb->file, rwb->child,
                                            &grown, &reason);
    if (is_good(bs, *state) && !grown) {
        set_guard_state(bs, *state, reason);
        return true;
    }
    if (grown) {
        error_free(reason);
        error_setg(errp, "It has grown while it was in use");
        *state = QCOW2_RW_BACKING_GUARD_STATE_MODIFIED;
    } else {
        error_propagate(errp, reason);
    }
    return false;
}

/* Those that nobody could change since they were loaded or stored */
static void give_up_readonly_bitmaps(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap) &&
            bdrv_dirty_bitmap_readonly(bitmap)) {
            bdrv_dirty_bitmap_set_inconsistent(bitmap);
        }
    }
}

void qcow2_shell_judge_again(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2RwBackingGuardState state = QCOW2_RW_BACKING_GUARD_STATE_MODIFIED;
    Error *local_err = NULL;

    if (rwb->state.verdict == QCOW2_SHELL_DISTRUSTED) {
        /* The allocation map was found to be wrong meanwhile */
        forget_recovery(rwb);
        give_up_readonly_bitmaps(bs);
        return;
    }
    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF ||
        rwb->state.verdict != QCOW2_SHELL_TRUSTED ||
        (rwb->guard.kind == QCOW2_RW_BACKING_GUARD_NONE && !rwb->recovery)) {
        return;
    }
    if (rwb->recovery ? is_lease_good(bs, &local_err)
                      : is_guard_good(bs, &state, &local_err)) {
        return;
    }

    forget_recovery(rwb);
    mismatch(bs, state, local_err);
    give_up_readonly_bitmaps(bs);
    /* Those that are not persistent, and the successors of those that are */
    qcow2_shell_fill_all(bs, false);
    rwb->shrunk = true;
    qcow2_shell_report_stale_bitmaps(bs);
}

bool qcow2_rw_backing_outlives_corruption(BlockDriverState *bs)
{
    if (!qcow2_shell(bs)) {
        return false;
    }
    qcow2_shell(bs)->state.needs_repair = true;
    return true;
}
