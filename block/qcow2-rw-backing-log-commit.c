/*
 * qcow2 RW backing: marks of the write-intent log become durable
 *
 * A request enters its marks, and then waits for the lock of the committer.
 * The one who gets it writes all marks that are there by then, flushes once,
 * and the others find theirs durable when it is their turn.  Nobody goes on
 * with a mark that is not durable, nor with one that somebody else has under
 * way.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-log-area.h"
#include "qcow2-rw-backing-log-commit.h"
#include "qcow2-rw-backing-log-lease.h"
#include "trace.h"

/*
 * The most chunks that a sequential writer marks ahead; never more than it has
 * written before.  With 2 GB/s, a flush for each 64 would be felt.
 */
#define AHEAD_MAX       512

/* Pages on their way to the file */
typedef struct Batch {
    Qcow2LogId id;
    uint64_t number;
    uint8_t *buf;
    DECLARE_BITMAP(pages, QCOW2_LOG_PAGES);
} Batch;

/* With log->lock held: they count as written, unless they are put back */
static void take_dirty_pages(Qcow2Log *log, Batch *batch)
{
    Qcow2LogMarks *marks = log->marks;
    unsigned long page;

    batch->id = marks->id;
    batch->number = ++log->batches;
    bitmap_copy(batch->pages, marks->dirty_pages, QCOW2_LOG_PAGES);
    for (page = find_first_bit(batch->pages, QCOW2_LOG_PAGES);
         page < QCOW2_LOG_PAGES;
         page = find_next_bit(batch->pages, QCOW2_LOG_PAGES, page + 1)) {
        qcow2_log_marks_serialize_page(marks, page,
                                       batch->buf + page * QCOW2_LOG_PAGE_LEN);
    }
    bitmap_zero(marks->dirty_pages, QCOW2_LOG_PAGES);
}

static void put_back(Qcow2Log *log, const Batch *batch)
{
    QEMU_LOCK_GUARD(&log->lock);

    if (log->marks && log->marks->id.nonce == batch->id.nonce &&
        log->marks->id.generation == batch->id.generation) {
        bitmap_or(log->marks->dirty_pages, log->marks->dirty_pages,
                  batch->pages, QCOW2_LOG_PAGES);
    }
}

int coroutine_mixed_fn qcow2_log_commit(BlockDriverState *bs, bool renew)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Log *log = rwb->log;
    uint64_t since = get_clock();
    Qcow2LogLease lease;
    Batch batch = { };
    int64_t end = 0;
    int ret;

    batch.buf = qemu_try_blockalign(bs->file->bs,
                                    QCOW2_LOG_PAGES * QCOW2_LOG_PAGE_LEN);
    if (!batch.buf) {
        return -ENOMEM;
    }
    WITH_QEMU_LOCK_GUARD(&log->lock) {
        take_dirty_pages(log, &batch);
    }
    ret = qcow2_log_area_write_pages(bs, batch.id.generation, batch.buf,
                                     batch.pages);
    if (ret == 0 && renew) {
        lease = qcow2_log_lease_make(rwb, batch.id.nonce, true);
        end = qcow2_log_lease_make_end(&lease);
        /* Whether it arrives or not, the next one needs another number */
        log->lease = lease;
        ret = qcow2_log_area_write_lease(bs, &lease);
    }
    if (ret == 0) {
        ret = qcow2_shell_flush_file(bs, since);
    }
    if (ret < 0) {
        put_back(log, &batch);
    } else {
        WITH_QEMU_LOCK_GUARD(&log->lock) {
            log->good_batch = batch.number;
            log->good_id = batch.id;
        }
        if (renew) {
            qatomic_set(&log->lease_end, end);
        }
    }
    trace_qcow2_log_commit(bs, batch.id.generation,
                           bitmap_count_one(batch.pages, QCOW2_LOG_PAGES),
                           renew, ret);
    qemu_vfree(batch.buf);
    return ret;
}

/* A request, in chunks of the gate, with what is marked ahead */
typedef struct Touch {
    unsigned int chunk_bits;
    uint64_t offset;
    uint64_t bytes;

    /* When it was entered: how many batches had been taken, which generation */
    uint64_t batches;
    Qcow2LogId id;
    /* and this one was about to follow it */
    Qcow2LogId next_id;
} Touch;

/* With log->lock held */
static Touch extend_to_chunks(BlockDriverState *bs, Qcow2Log *log,
                              uint64_t offset, uint64_t bytes)
{
    unsigned int chunk_bits = log->gate->chunk_bits;
    uint32_t first = offset >> chunk_bits;
    uint32_t last = (offset + bytes - 1) >> chunk_bits;

    if (first == log->ahead_last + 1) {
        log->ahead = MIN(MAX(log->ahead * 2, 1), AHEAD_MAX);
        last = MIN((uint64_t)last + log->ahead, MAX(last, log->gate->last));
        log->ahead_last = last;
    } else if (first != log->ahead_last) {
        log->ahead = 0;
        log->ahead_last = last;
    }
    return (Touch) {
        .chunk_bits = chunk_bits,
        .offset     = (uint64_t)first << chunk_bits,
        .bytes      = (uint64_t)(last - first + 1) << chunk_bits,
        .batches    = log->batches,
        .id         = log->marks ? log->marks->id : (Qcow2LogId) { },
        .next_id    = log->next ? log->next->id : (Qcow2LogId) { },
    };
}

static bool is_same_id(Qcow2LogId a, Qcow2LogId b)
{
    return a.nonce == b.nonce && a.generation == b.generation;
}

/* Have all marks that were entered before @touch been written since? */
static bool is_written(const Qcow2Log *log, const Touch *touch)
{
    return log->good_batch > touch->batches &&
           is_same_id(log->good_id, log->marks->id) &&
           (is_same_id(log->marks->id, touch->id) ||
            is_same_id(log->marks->id, touch->next_id));
}

/*
 * Marks all chunks, in each generation that needs them.  With log->lock held.
 * Returns true if they are durable where this is asked for: nothing of their
 * pages is left to be written, or they were written, and what is left is of
 * others.
 */
static bool mark(Qcow2Log *log, const Touch *touch)
{
    uint32_t first, last;
    bool changed;

    if (log->next) {
        qcow2_log_marks_range(log->next, touch->offset, touch->bytes, &first,
                              &last);
        qcow2_log_marks_set(log->next, first, last);
    }
    if (!log->marks) {
        return true;
    }
    qcow2_log_marks_range(log->marks, touch->offset, touch->bytes, &first,
                          &last);
    changed = qcow2_log_marks_set(log->marks, first, last);
    return qcow2_log_marks_are_clean(log->marks, first, last) ||
           (!changed && is_written(log, touch));
}

/* With log->commit_lock held */
static int coroutine_fn GRAPH_RDLOCK
make_durable(BlockDriverState *bs, const Touch *touch)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    bool durable, renew;
    int ret;

    WITH_QEMU_LOCK_GUARD(&log->lock) {
        if (log->phase == QCOW2_LOG_IDLE || log->failed) {
            return -EAGAIN;
        }
        /* Again: the marks may be those of another generation by now */
        durable = mark(log, touch);
        renew = log->marks && qcow2_log_lease_has_ended(log);
    }
    if (!durable || renew) {
        ret = qcow2_log_commit(bs, renew);
        if (ret < 0) {
            return ret;
        }
    }

    QEMU_LOCK_GUARD(&log->lock);
    if (log->phase == QCOW2_LOG_IDLE) {
        return -EAGAIN;
    }
    /* A checkpoint may have begun, which has to know what the gate says */
    mark(log, touch);
    if (log->gate->chunk_bits == touch->chunk_bits) {
        qcow2_log_gate_set(log->gate, touch->offset >> touch->chunk_bits,
                           (touch->offset + touch->bytes - 1) >>
                           touch->chunk_bits);
    }
    return 0;
}

int coroutine_fn qcow2_log_touch(BlockDriverState *bs, uint64_t offset,
                                 uint64_t bytes)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    Touch touch;
    int ret;

    WITH_QEMU_LOCK_GUARD(&log->lock) {
        if (log->phase == QCOW2_LOG_IDLE || log->failed) {
            return -EAGAIN;
        }
        touch = extend_to_chunks(bs, log, offset, bytes);
        mark(log, &touch);
    }
    trace_qcow2_log_mark(bs, touch.offset, touch.bytes);

    qemu_co_mutex_lock(&log->commit_lock);
    ret = make_durable(bs, &touch);
    if (ret < 0 && ret != -EAGAIN) {
        qatomic_set(&log->failed, true);
    }
    qemu_co_mutex_unlock(&log->commit_lock);
    return ret;
}

void coroutine_fn qcow2_log_give_up(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2Log *log = s->rw_backing->log;

    /* A checkpoint ends when it sees that the log has failed */
    qemu_co_mutex_lock(&log->checkpoint_lock);
    qemu_co_mutex_lock(&s->lock);
    qemu_co_mutex_lock(&log->commit_lock);
    if (log->failed) {
        trace_qcow2_log_give_up(bs);
        s->rw_backing->pointer.log_armed = false;
        qcow2_log_stop(bs);
        qatomic_set(&log->failed, false);
    }
    qemu_co_mutex_unlock(&log->commit_lock);
    qemu_co_mutex_unlock(&s->lock);
    qemu_co_mutex_unlock(&log->checkpoint_lock);
}
