/*
 * qcow2 RW backing: checkpoints of the write-intent log
 *
 * A checkpoint stores the bitmaps as they are, and a new generation of marks
 * takes over, while requests go on.  After a crash, a bitmap is what was stored
 * together with the marks of its generation and later ones.  The steps:
 *
 * 1. A new gate.  From now on, each request that writes is remembered for the
 *    new generation, and has a mark of the old one that is durable.
 * 2. Wait for the requests that are older.  When they have ended, all that they
 *    wrote is in the bitmaps.
 * 3. Store the bitmaps.  A bit that is set meanwhile is stored, or belongs to a
 *    request that step 1 remembers.  Then flush the RW backing: a bitmap lacks
 *    what was backed up, and a power failure must not take that back.  If a
 *    command has changed bitmaps until then, or a flush that failed, again: all
 *    bitmaps in a directory show one moment.
 * 4. Write the marks that were remembered, and the superblock that names the
 *    new directory, flush.  From now on, marks go to the new generation,
 *    whether the old one has them or not.  A crash leaves the old header, to
 *    which the old generation and the new one belong.
 * 5. Write the header with the new directory, flush.  Only then is the old
 *    generation of no use, and what only the old directory refers to free.
 *
 * If something fails before step 5, the old generation stays in force.  If step
 * 5 fails, either header may be there: both are right, as marks go to the new
 * generation, which belongs to both.  The old area stays as it is, and nothing
 * else is stored, until this header has been written once more, durably.
 *
 * A checkpoint counts as a request in flight, and ends early when the node is
 * being quiesced.  So whoever has quiesced the node finds none.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/error-report.h"
#include "qemu/guest-random.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-checkpoint.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-log-area.h"
#include "qcow2-rw-backing-log-commit.h"
#include "qcow2-rw-backing-log-lease.h"
#include "qcow2-rw-backing-recovery.h"
#include "qcow2-rw-backing-store.h"
#include "trace.h"

/* Between two looks at leases, and at whether bitmaps have changed */
#define TICK_NS             NANOSECONDS_PER_SECOND
/* After a checkpoint that has failed */
#define RETRY_NS            (10 * NANOSECONDS_PER_SECOND)
/* How often commands may get in between */
#define MAX_TRIES           16
/* How long a command waits if the node is being drained, in ms */
#define MAX_WAITS           2000

/* What was not usual about a checkpoint that was not made */
#define NOT_NOW             (-EAGAIN)

static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
}

static bool has_to_end(BlockDriverState *bs)
{
    return qatomic_read(&bs->quiesce_counter) ||
           qatomic_read(&qcow2_shell(bs)->log->failed);
}

/* Step 1 */

static Qcow2LogMarks *new_marks(BlockDriverState *bs)
{
    const Qcow2Log *log = qcow2_shell(bs)->log;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    Qcow2LogMarks *marks = g_new(Qcow2LogMarks, 1);
    Qcow2LogId id;

    if (log->marks) {
        id = log->marks->id;
        id.generation++;
    } else {
        qemu_guest_getrandom_nofail(&id.nonce, sizeof(id.nonce));
        id.generation = 1;
    }
    qcow2_log_marks_init(marks, &id, size, qcow2_log_chunk_bits(size));
    return marks;
}

/* Step 2 */

/* With bs->reqs_lock held: the list has the newest first */
static bool has_older_writes(const BdrvTrackedRequest *marker)
{
    const BdrvTrackedRequest *req;

    for (req = QLIST_NEXT(marker, list); req; req = QLIST_NEXT(req, list)) {
        if (req->type != BDRV_TRACKED_READ) {
            return true;
        }
    }
    return false;
}

/*
 * Waits for all requests that write and were there when the gate was exchanged.
 * Not for ever: the one who is waited for may wait for us to give up.
 */
static int coroutine_fn wait_for_older_writes(BlockDriverState *bs)
{
    BdrvTrackedRequest marker = {
        .bs   = bs,
        .type = BDRV_TRACKED_READ,
        .co   = qemu_coroutine_self(),
    };
    int64_t delay = 50 * SCALE_US;
    int ret = 0;

    qemu_co_queue_init(&marker.wait_queue);
    qemu_mutex_lock(&bs->reqs_lock);
    QLIST_INSERT_HEAD(&bs->tracked_requests, &marker, list);
    while (has_older_writes(&marker)) {
        qemu_mutex_unlock(&bs->reqs_lock);
        if (has_to_end(bs)) {
            ret = NOT_NOW;
        } else {
            qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, delay);
            delay = MIN(delay * 2, 5 * SCALE_MS);
        }
        qemu_mutex_lock(&bs->reqs_lock);
        if (ret < 0) {
            break;
        }
    }
    QLIST_REMOVE(&marker, list);
    qemu_mutex_unlock(&bs->reqs_lock);
    return ret;
}

/* Step 3 */

/* Returns 0 with @store filled in, or -errno with @errp set, or NOT_NOW */
static int coroutine_mixed_fn GRAPH_RDLOCK
store_and_flush(BlockDriverState *bs, const Qcow2LogMarks *written,
                Qcow2ShellStore *store, Error **errp)
{
    Qcow2ShellStoreMode mode = { .written = written };
    int ret = qcow2_shell_store_begin(bs, &mode, store, errp);

    if (ret < 0) {
        return ret;
    }
    ret = qcow2_shell_flush_disk(bs);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not flush the RW backing of '%s'",
                         bs->filename);
    } else if (qcow2_shell_store_is_outdated(bs, store)) {
        ret = NOT_NOW;
    }
    if (ret < 0) {
        qcow2_shell_store_abort(bs, store);
    }
    return ret;
}

/* Step 4 */

/* The marks have to be in the file at least once, and torn pages with them */
static void mark_torn_pages_dirty(Qcow2Log *log)
{
    unsigned long *torn = log->torn_pages[log->marks->id.generation & 1];

    QEMU_LOCK_GUARD(&log->lock);
    bitmap_or(log->marks->dirty_pages, log->marks->dirty_pages, torn,
              QCOW2_LOG_PAGES);
}

/*
 * With the first generation of a life, and of a session, comes a lease.  It
 * announces writes if there may be some: requests that were remembered in
 * QCOW2_LOG_OVERLAP, when there was no old generation, do not ask for one.
 */
static int coroutine_mixed_fn GRAPH_RDLOCK
write_generation(BlockDriverState *bs, const Qcow2ShellStore *store,
                 bool quiesced)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Log *log = rwb->log;
    Qcow2LogSuper super = {
        .id               = log->marks->id,
        .chunk_bits       = log->marks->chunk_bits,
        .size             = bs->total_sectors * BDRV_SECTOR_SIZE,
        .shrunk           = rwb->shrunk,
        .directory_offset = store->offset,
        .directory_size   = store->size,
        .nb_bitmaps       = store->directory->len,
        .directory_crc    = store->crc,
        .nb_covered       = store->nb_usable,
        .bitmaps_checksum = store->checksum,
    };
    uint64_t since = get_clock();
    int ret = qcow2_log_area_write_super(bs, &super);

    if (ret == 0 && super.id.generation == 1) {
        /* A directory of another life may have been the same */
        ret = qcow2_log_area_wipe_other_super(bs, super.id.generation);
    }
    if (ret == 0 && (quiesced || log->lease.nonce != super.id.nonce)) {
        log->lease = qcow2_log_lease_make(rwb, super.id.nonce, !quiesced);
        qatomic_set(&log->lease_end, qcow2_log_lease_make_end(&log->lease));
        ret = qcow2_log_area_write_lease(bs, &log->lease);
    }
    if (ret == 0) {
        mark_torn_pages_dirty(log);
        ret = qcow2_log_commit(bs, false);
    }
    if (ret == 0) {
        ret = qcow2_shell_flush_file(bs, since);
    }
    if (ret == 0) {
        bitmap_zero(log->torn_pages[super.id.generation & 1], QCOW2_LOG_PAGES);
    }
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
switch_generation(BlockDriverState *bs, const Qcow2ShellStore *store)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    Qcow2LogMarks *old;
    int ret;

    qemu_co_mutex_lock(&log->commit_lock);
    old = qcow2_log_switch(bs);
    ret = write_generation(bs, store, false);
    if (ret < 0) {
        qcow2_log_switch_back(bs, old);
    } else {
        g_free(old);
    }
    qemu_co_mutex_unlock(&log->commit_lock);
    return ret;
}

/* Step 5 */

/* Returns 0, or -errno: the next checkpoint has to try again */
static int coroutine_mixed_fn GRAPH_RDLOCK finish(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Log *log = rwb->log;
    bool was_armed = rwb->pointer.log_armed;
    int ret;

    rwb->guard = (Qcow2RwBackingGuard) { };
    rwb->pointer.log_armed = log->pending.nb_usable > 0;
    ret = qcow2_shell_store_finish(bs, &log->pending);
    if (ret < 0) {
        rwb->pointer.log_armed = was_armed;
        return ret;
    }
    /* Not for the header to tell: after a crash it was one like this before */
    qcow2_shell_event(bs, QCOW2_SHELL_MARKED);
    if (log->phase == QCOW2_LOG_SWITCHING) {
        qcow2_log_settle(bs);
    } else if (!rwb->pointer.log_armed) {
        qcow2_log_stop(bs);
    }
    return 0;
}

/* All steps */

static void set_write_error(BlockDriverState *bs, int ret, Error **errp)
{
    error_setg_errno(errp, -ret, "Could not write bitmaps to '%s'",
                     bs->filename);
}

/* Steps 3 to 5, with BDRVQcow2State.lock held, in QCOW2_LOG_OVERLAP */
static int coroutine_fn GRAPH_RDLOCK
store_and_switch(BlockDriverState *bs, Error **errp)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    Qcow2ShellStore store;
    int i, ret = 0;

    if (!log->marks) {
        /* Otherwise the header refers to the one that is there */
        ret = qcow2_log_area_ensure(bs);
    }
    if (ret < 0) {
        set_write_error(bs, ret, errp);
        return ret;
    }
    ret = NOT_NOW;
    for (i = 0; i < MAX_TRIES && ret == NOT_NOW && !has_to_end(bs); i++) {
        ret = store_and_flush(bs, log->marks, &store, errp);
    }
    if (ret < 0) {
        return ret;
    }
    if (store.nb_usable) {
        ret = switch_generation(bs, &store);
    }
    if (ret < 0) {
        set_write_error(bs, ret, errp);
        qcow2_shell_store_abort(bs, &store);
        return ret;
    }
    log->pending = store;
    ret = finish(bs);
    if (ret < 0) {
        set_write_error(bs, ret, errp);
    }
    return ret;
}

/* A gate that somebody may be looking at */
static void retire_gate(Qcow2Log *log, Qcow2LogGate *gate)
{
    log->old_gates = g_slist_prepend(log->old_gates, gate);
}

static int coroutine_fn GRAPH_RDLOCK
make_checkpoint(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2Log *log = s->rw_backing->log;
    int64_t size = bs->total_sectors;
    GSList *old_gates;
    int ret;

    /* Whoever looks at one that is in the list now is waited for */
    retire_gate(log, qcow2_log_begin_overlap(bs, new_marks(bs)));
    trace_qcow2_checkpoint_begin(bs, log->next->id.generation);
    old_gates = g_steal_pointer(&log->old_gates);
    ret = wait_for_older_writes(bs);
    if (ret < 0) {
        log->old_gates = g_slist_concat(old_gates, log->old_gates);
    } else {
        g_slist_free_full(old_gates, g_free);
        qemu_co_mutex_lock(&s->lock);
        /* Chunks are those of the disk as it was */
        ret = size == bs->total_sectors ? store_and_switch(bs, errp) : NOT_NOW;
        qemu_co_mutex_unlock(&s->lock);
    }
    if (log->phase == QCOW2_LOG_OVERLAP) {
        qcow2_log_cancel_overlap(bs);
    }
    trace_qcow2_checkpoint_end(bs, qcow2_shell(bs)->directory->len, ret);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK finish_pending(BlockDriverState *bs,
                                                    Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int ret;

    QEMU_LOCK_GUARD(&s->lock);
    ret = finish(bs);
    if (ret < 0) {
        set_write_error(bs, ret, errp);
    }
    return ret;
}

static bool has_work(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    return rwb->pointer.log && bdrv_is_writable(bs) &&
           (rwb->log->phase != QCOW2_LOG_IDLE ||
            (!rwb->state.needs_repair &&
             (rwb->directory->len || rwb->map || bdrv_has_named_bitmaps(bs))));
}

static bool GRAPH_RDLOCK is_exchanged(BlockDriverState *bs)
{
    return qcow2_rw_backing_file_is_exchanged(&qcow2_shell(bs)->file,
                                              qcow2_shell(bs)->child->bs);
}

/*
 * Others have put another node in the place of the RW backing, or of one below
 * it, a snapshot for example.  What bitmaps lose from now on is about that one,
 * and so has to be what the log says of the file.
 */
static void coroutine_fn GRAPH_RDLOCK find_exchanged_disk(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Log *log = rwb->log;

    QEMU_LOCK_GUARD(&log->commit_lock);

    qcow2_rw_backing_file_find(&rwb->file, rwb->child->bs);
    qatomic_set(&log->lease_end, 0);
    /* The next generation comes with a new one */
    log->lease.nonce = 0;
    log->lease.durable = (Qcow2LogTime) { };
    if (rwb->map) {
        qcow2_map_doubt(rwb->map);
    }
    retire_gate(log, qcow2_log_empty_gate(bs));
}

/* While the node is in flight */
static int coroutine_fn GRAPH_RDLOCK checkpoint(BlockDriverState *bs,
                                                Error **errp)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    int ret = 0;

    QEMU_LOCK_GUARD(&log->checkpoint_lock);

    if (!has_work(bs)) {
        return 0;
    }
    if (log->phase == QCOW2_LOG_IDLE &&
        !qcow2_shell_state_may_write(&qcow2_shell(bs)->state)) {
        error_setg(errp, "The header of '%s' is not up to date, which the next "
                   "write has to change first", bs->filename);
        ret = -EIO;
    } else if (qcow2_shell(bs)->state.needs_repair) {
        error_setg(errp, "Its metadata was found to be damaged");
        ret = -EIO;
    }
    if (is_exchanged(bs)) {
        find_exchanged_disk(bs);
    }
    if (ret == 0 && log->pending.directory) {
        ret = finish_pending(bs, errp);
    }
    if (ret == 0) {
        ret = has_to_end(bs) ? NOT_NOW : make_checkpoint(bs, errp);
    }
    if (ret == 0) {
        log->checkpoint_time = now_ns();
        log->reported = false;
    } else if (ret != NOT_NOW) {
        log->retry_time = now_ns() + RETRY_NS;
    }
    return ret;
}

/* Consumes @err; says it once */
static void report_failure(BlockDriverState *bs, Error *err)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    if (err && !log->reported) {
        warn_reportf_err(err, "Bitmaps of '%s' would not survive a crash as "
                         "they are: ", bs->filename);
        log->reported = true;
    } else {
        error_free(err);
    }
}

int coroutine_mixed_fn
qcow2_shell_checkpoint_quiesced(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Log *log = rwb->log;
    g_autofree Qcow2LogMarks *marks =
        rwb->recovery ? qcow2_log_recovery_next_marks(bs) : new_marks(bs);
    uint64_t since = get_clock();
    Qcow2ShellStore store;
    int ret;

    /* What was read may be newer than what is durable, but nothing older is */
    ret = qcow2_update_header(bs);
    if (ret == 0) {
        ret = qcow2_shell_flush_file(bs, since);
    }
    if (ret == 0) {
        ret = qcow2_log_area_ensure(bs);
    }
    if (ret < 0) {
        set_write_error(bs, ret, errp);
        return ret;
    }
    qcow2_log_find_torn_pages(bs);
    if (rwb->recovery) {
        log->lease = rwb->recovery->lease;
    }
    /* What was recovered is not what is stored; otherwise nothing is marked */
    ret = store_and_flush(bs, rwb->recovery ? NULL : marks, &store, errp);
    if (ret < 0) {
        return ret;
    }
    if (store.nb_usable) {
        qcow2_log_resume(bs, g_steal_pointer(&marks));
        ret = write_generation(bs, &store, true);
    }
    log->pending = store;
    if (ret == 0) {
        ret = finish(bs);
    }
    if (ret < 0) {
        set_write_error(bs, ret, errp);
        qcow2_log_stop(bs);
        qcow2_shell_forget_pending(bs);
        return ret;
    }
    log->checkpoint_time = now_ns();
    return 0;
}

void coroutine_mixed_fn qcow2_shell_forget_pending(BlockDriverState *bs)
{
    Qcow2ShellStore *pending = &qcow2_shell(bs)->log->pending;

    if (pending->directory) {
        qcow2_shell_store_abort(bs, pending);
    }
}

/* Commands */

typedef struct SyncCheckpoint {
    BlockDriverState *bs;
    Error *err;
    bool done;
} SyncCheckpoint;

/*
 * What the file says of a bitmap that was enabled, for example, is wrong with
 * the next write.  So if it cannot be stored, the log does not count any more,
 * which the next write makes durable.
 */
static void coroutine_fn sync_checkpoint(BlockDriverState *bs, Error **errp)
{
    int ret, i;

    for (i = 0; i < MAX_WAITS; i++) {
        bdrv_inc_in_flight(bs);
        WITH_GRAPH_RDLOCK_GUARD() {
            ret = checkpoint(bs, errp);
        }
        bdrv_dec_in_flight(bs);
        if (ret != NOT_NOW) {
            break;
        }
        /* Whoever drains the node, a job that ends for example, goes first */
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, SCALE_MS);
    }
    if (ret < 0 && qcow2_shell(bs)->log->phase != QCOW2_LOG_IDLE) {
        qatomic_set(&qcow2_shell(bs)->log->failed, true);
        WITH_GRAPH_RDLOCK_GUARD() {
            qcow2_log_give_up(bs);
        }
    }
}

static void coroutine_fn sync_checkpoint_entry(void *opaque)
{
    SyncCheckpoint *data = opaque;

    sync_checkpoint(data->bs, &data->err);
    data->done = true;
    aio_wait_kick();
}

void qcow2_shell_bitmaps_changed(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    SyncCheckpoint data = { .bs = bs };
    Coroutine *co;

    GLOBAL_STATE_CODE();

    if (!has_work(bs) || rwb->stored_changes == bs->dirty_bitmap_changes) {
        return;
    }
    qcow2_shell_start_checkpoints(bs);
    if (bs->quiesce_counter) {
        /* Not before requests come again, the first of which sees this */
        rwb->pointer.log_armed = false;
        qcow2_log_stop(bs);
        return;
    }
    bdrv_ref(bs);
    co = qemu_coroutine_create(sync_checkpoint_entry, &data);
    qemu_coroutine_enter(co);
    BDRV_POLL_WHILE(bs, !data.done);
    report_failure(bs, data.err);
    bdrv_unref(bs);
}

/* As time goes by */

static bool has_writes(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    unsigned int write_gen = qatomic_read(&bs->write_gen);
    BdrvTrackedRequest *req;

    if (write_gen != log->write_gen) {
        log->write_gen = write_gen;
        return true;
    }
    QEMU_LOCK_GUARD(&bs->reqs_lock);
    QLIST_FOREACH(req, &bs->tracked_requests, list) {
        if (req->type != BDRV_TRACKED_READ) {
            return true;
        }
    }
    return false;
}

/*
 * As long as there are writes, the lease is renewed before it ends.  If this
 * fails, requests will have to ask for it, and find out that it does.
 */
static void coroutine_fn GRAPH_RDLOCK look_after_lease(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->commit_lock);

    if (!log->marks || log->failed || !log->lease_end ||
        !qcow2_log_lease_is_due(log)) {
        return;
    }
    if (has_writes(bs)) {
        qcow2_log_commit(bs, true);
    }
    if (qcow2_log_lease_has_ended(log)) {
        qatomic_set(&log->lease_end, 0);
        retire_gate(log, qcow2_log_empty_gate(bs));
    }
}

/* A request may be giving the log up in another thread */
static bool has_marks(Qcow2Log *log)
{
    QEMU_LOCK_GUARD(&log->lock);

    return log->marks && qcow2_log_marks_count(log->marks);
}

/* Without a mark: somebody has looked at the disk */
static bool has_new_zeroes(const Qcow2RwBacking *rwb)
{
    return rwb->map &&
           rwb->stored_map_changes != qatomic_read(&rwb->map->changes);
}

static bool GRAPH_RDLOCK is_due(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Log *log = rwb->log;
    int64_t interval = rwb->checkpoint_interval * NANOSECONDS_PER_SECOND;
    int64_t now = now_ns();

    if (!has_work(bs) || rwb->state.needs_repair || now < log->retry_time) {
        return false;
    }
    return log->pending.directory || is_exchanged(bs) ||
           rwb->stored_changes != bs->dirty_bitmap_changes ||
           (log->phase == QCOW2_LOG_IDLE && qcow2_shell_can_be_covered(bs)) ||
           (now - log->checkpoint_time >= interval &&
            (has_marks(log) || has_new_zeroes(rwb)));
}

static void coroutine_fn tick_entry(void *opaque)
{
    BlockDriverState *bs = opaque;
    Error *local_err = NULL;

    WITH_GRAPH_RDLOCK_GUARD() {
        look_after_lease(bs);
        if (is_due(bs)) {
            checkpoint(bs, &local_err);
            report_failure(bs, local_err);
        }
    }
    if (qcow2_shell(bs)->log->timer) {
        timer_mod(qcow2_shell(bs)->log->timer, now_ns() + TICK_NS);
    }
    bdrv_dec_in_flight(bs);
}

static void tick(void *opaque)
{
    BlockDriverState *bs = opaque;

    if (qatomic_read(&bs->quiesce_counter)) {
        timer_mod(qcow2_shell(bs)->log->timer, now_ns() + TICK_NS);
        return;
    }
    bdrv_inc_in_flight(bs);
    qemu_coroutine_enter(qemu_coroutine_create(tick_entry, bs));
}

void qcow2_shell_start_checkpoints(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    if (!log->timer) {
        log->timer = timer_new_ns(QEMU_CLOCK_REALTIME, tick, bs);
        timer_mod(log->timer, now_ns() + TICK_NS);
    }
}

void qcow2_shell_stop_checkpoints(BlockDriverState *bs)
{
    g_clear_pointer(&qcow2_shell(bs)->log->timer, timer_free);
}
