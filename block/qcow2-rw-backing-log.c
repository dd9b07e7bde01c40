/*
 * qcow2 RW backing: the write-intent log in memory
 *
 * Which generation is in force, and what requests may do without asking.  No
 * I/O is done here; the order of what is written to the file is that of
 * qcow2-rw-backing-log-commit.c and qcow2-rw-backing-checkpoint.c.
 *
 * A request looks at the gate, a pointer that it reads once.  It was entered
 * into bs->tracked_requests before, under bs->reqs_lock; so if the gate is
 * exchanged under this lock, each request that uses the old one is in the list,
 * and whoever has exchanged it can wait for them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-log.h"

Qcow2Log *qcow2_log_new(void)
{
    Qcow2Log *log = g_new0(Qcow2Log, 1);

    qemu_mutex_init(&log->lock);
    qemu_co_mutex_init(&log->commit_lock);
    qemu_co_mutex_init(&log->checkpoint_lock);
    return log;
}

void qcow2_log_free(Qcow2Log *log)
{
    if (log) {
        timer_free(log->timer);
        qemu_mutex_destroy(&log->lock);
        g_free(log->marks);
        g_free(log->next);
        g_free(log->gate);
        g_slist_free_full(log->old_gates, g_free);
        if (log->pending.directory) {
            g_ptr_array_unref(log->pending.directory);
        }
        g_free(log);
    }
}

void qcow2_log_recovery_free(Qcow2LogRecovery *recovery)
{
    if (recovery) {
        g_free(recovery->areas[0]);
        g_free(recovery->areas[1]);
        g_free(recovery);
    }
}

/* With log->lock held */
static const Qcow2LogGate *choose_gate(const Qcow2RwBacking *rwb)
{
    const Qcow2Log *log = rwb->log;

    if (log->phase == QCOW2_LOG_IDLE) {
        return qcow2_shell_state_may_write(&rwb->state)
            ? &qcow2_log_gate_open : &qcow2_log_gate_closed;
    }
    if (log->marks ? qcow2_shell_state_may_write_marked(&rwb->state)
                   : qcow2_shell_state_may_write(&rwb->state)) {
        return log->gate;
    }
    return &qcow2_log_gate_closed;
}

static void update_gate_locked(Qcow2RwBacking *rwb)
{
    qatomic_store_release(&rwb->gate, choose_gate(rwb));
}

void qcow2_shell_update_gate(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    WITH_QEMU_LOCK_GUARD(&rwb->log->lock) {
        update_gate_locked(rwb);
    }
}

void qcow2_shell_event(BlockDriverState *bs, Qcow2ShellEvent event)
{
    qcow2_shell_state_event(&qcow2_shell(bs)->state, event);
    qcow2_shell_update_gate(bs);
}

/* With log->lock held; returns the old gate */
static Qcow2LogGate *exchange_gate(BlockDriverState *bs, uint64_t size,
                                   unsigned int chunk_bits)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2LogGate *old = rwb->log->gate;

    QEMU_LOCK_GUARD(&bs->reqs_lock);
    rwb->log->gate = qcow2_log_gate_new(size, chunk_bits);
    update_gate_locked(rwb);
    return old;
}

static uint64_t disk_size(BlockDriverState *bs)
{
    return bs->total_sectors * BDRV_SECTOR_SIZE;
}

Qcow2LogGate *qcow2_log_begin_overlap(BlockDriverState *bs,
                                      Qcow2LogMarks *next)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    assert(log->phase == QCOW2_LOG_IDLE || log->phase == QCOW2_LOG_STEADY);
    log->phase = QCOW2_LOG_OVERLAP;
    log->next = next;
    return exchange_gate(bs, disk_size(bs), next->chunk_bits);
}

void qcow2_log_cancel_overlap(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    assert(log->phase == QCOW2_LOG_OVERLAP);
    log->phase = log->marks ? QCOW2_LOG_STEADY : QCOW2_LOG_IDLE;
    g_clear_pointer(&log->next, g_free);
    update_gate_locked(qcow2_shell(bs));
}

Qcow2LogMarks *qcow2_log_switch(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    Qcow2LogMarks *old = log->marks;

    QEMU_LOCK_GUARD(&log->lock);
    assert(log->phase == QCOW2_LOG_OVERLAP);
    log->phase = QCOW2_LOG_SWITCHING;
    log->marks = g_steal_pointer(&log->next);
    qcow2_log_marks_set_all_dirty(log->marks);
    return old;
}

void qcow2_log_switch_back(BlockDriverState *bs, Qcow2LogMarks *old)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    assert(log->phase == QCOW2_LOG_SWITCHING);
    g_free(log->marks);
    log->marks = old;
    log->phase = old ? QCOW2_LOG_STEADY : QCOW2_LOG_IDLE;
    update_gate_locked(qcow2_shell(bs));
}

void qcow2_log_settle(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    assert(log->phase == QCOW2_LOG_SWITCHING);
    log->phase = QCOW2_LOG_STEADY;
    update_gate_locked(qcow2_shell(bs));
}

void qcow2_log_resume(BlockDriverState *bs, Qcow2LogMarks *marks)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    assert(log->phase == QCOW2_LOG_IDLE);
    log->phase = QCOW2_LOG_SWITCHING;
    log->marks = marks;
    /* Nobody looks at it */
    g_free(exchange_gate(bs, disk_size(bs), marks->chunk_bits));
}

void qcow2_log_stop(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    log->phase = QCOW2_LOG_IDLE;
    g_clear_pointer(&log->marks, g_free);
    g_clear_pointer(&log->next, g_free);
    log->ahead = 0;
    update_gate_locked(qcow2_shell(bs));
}

Qcow2LogGate *qcow2_log_empty_gate(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    QEMU_LOCK_GUARD(&log->lock);
    if (!log->marks) {
        return NULL;
    }
    return exchange_gate(bs, disk_size(bs), log->marks->chunk_bits);
}
