/*
 * qcow2 RW backing: the write-intent log in memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_LOG_H
#define BLOCK_QCOW2_RW_BACKING_LOG_H

#include "qemu/coroutine.h"
#include "qcow2-rw-backing-int.h"
#include "qcow2-rw-backing-store.h"

/* How far is the change from one generation to the next? */
typedef enum Qcow2LogPhase {
    /* Marks do not count, and none are made */
    QCOW2_LOG_IDLE,
    /* They belong to one generation */
    QCOW2_LOG_STEADY,
    /*
     * A checkpoint is being made: marks belong to the old generation, and are
     * remembered for the new one.  If the log does not count yet, there is no
     * old one.
     */
    QCOW2_LOG_OVERLAP,
    /* Marks belong to the new one, although the header may not say so yet */
    QCOW2_LOG_SWITCHING,
} Qcow2LogPhase;

struct Qcow2Log {
    /*
     * Protects what follows up to the next lock.  May be taken with
     * bs->reqs_lock held after it, and nothing else.
     */
    QemuMutex lock;

    Qcow2LogPhase phase;

    /* Of the generation in force; NULL if there is none */
    Qcow2LogMarks *marks;

    /* In QCOW2_LOG_OVERLAP, what is remembered for the new one */
    Qcow2LogMarks *next;

    /*
     * A chunk is set in it if its mark is durable in @marks, and, in
     * QCOW2_LOG_OVERLAP, is in @next as well.
     */
    Qcow2LogGate *gate;

    /*
     * How often marks were taken to be written, and the last time that this has
     * succeeded, with marks of which generation: all of its marks are durable
     * that were entered before.
     */
    uint64_t batches;
    uint64_t good_batch;
    Qcow2LogId good_id;

    /* A sequential writer: last chunk that it has marked, and how far ahead */
    uint32_t ahead_last;
    uint32_t ahead;

    /*
     * Held by the one who writes marks or leases.  A request waits for it while
     * another one makes marks durable, in all likelihood its own as well.
     */
    CoMutex commit_lock;

    /* The last lease that may be in the file, and the latest end of them all */
    Qcow2LogLease lease;
    Qcow2LogTime latest_until;

    /* When it ends for us, QEMU_CLOCK_REALTIME in ns; 0 if there is none */
    int64_t lease_end;

    /*
     * Marks or leases could not be written.  Nobody waits for a checkpoint that
     * waits for requests: it ends when it sees this.
     */
    bool failed;

    /* Pages that were torn by a crash, until a generation has written them */
    DECLARE_BITMAP(torn_pages[2], QCOW2_LOG_PAGES);

    /* Held during a checkpoint, before BDRVQcow2State.lock */
    CoMutex checkpoint_lock;

    /*
     * A header with it was written, but may not have arrived: nothing else can
     * be stored before it has
     */
    Qcow2ShellStore pending;

    /* Main thread only: gates that somebody may still be looking at */
    GSList *old_gates;

    QEMUTimer *timer;
    int64_t checkpoint_time;    /* of the last one, QEMU_CLOCK_REALTIME in ns */
    int64_t retry_time;         /* not before, likewise */
    unsigned int write_gen;     /* bs->write_gen when the lease was renewed */
    bool reported;              /* the user knows that a checkpoint failed */
};

/* What the log in the file says of the bitmaps that the header refers to */
struct Qcow2LogRecovery {
    Qcow2LogSuper super;

    /* Of kind "no file" and with number 0 if there is none that is whole */
    Qcow2LogLease lease;

    /* Marks of its generation and of the next one, in the order of the areas */
    Qcow2LogMarks *areas[2];

    /* Something is damaged that could be anywhere: everything is marked */
    bool everything;
};

void qcow2_log_recovery_free(Qcow2LogRecovery *recovery);

Qcow2Log *qcow2_log_new(void);
void qcow2_log_free(Qcow2Log *log);

/**
 * qcow2_shell_update_gate:
 *
 * To be called when the state of the shell or the phase of the log has changed,
 * with BDRVQcow2State.lock held or while the node is quiesced.
 */
void qcow2_shell_update_gate(BlockDriverState *bs);

/* Tells the state of the shell about @event, with the same locking. */
void qcow2_shell_event(BlockDriverState *bs, Qcow2ShellEvent event);

/**
 * qcow2_log_begin_overlap:
 * @next: empty; taken over
 *
 * Requests that begin after this have to be remembered in @next.  Those that
 * have begun before need not, and can be using the old gate, which is returned:
 * to be freed when they have ended.
 */
Qcow2LogGate *qcow2_log_begin_overlap(BlockDriverState *bs,
                                      Qcow2LogMarks *next);

/* Gives up the new generation: the old one, if there is one, is in force. */
void qcow2_log_cancel_overlap(BlockDriverState *bs);

/**
 * qcow2_log_switch:
 *
 * The new generation is in force from now on, with commit_lock held.  Returns
 * the old marks, which may be NULL, for qcow2_log_switch_back() or to be freed.
 */
Qcow2LogMarks *qcow2_log_switch(BlockDriverState *bs);

/* Back to the old generation, with commit_lock still held. */
void qcow2_log_switch_back(BlockDriverState *bs, Qcow2LogMarks *old);

/* The header is durable: there is nothing but the new generation. */
void qcow2_log_settle(BlockDriverState *bs);

/*
 * Begins with a generation that is in force, while the node is quiesced.
 * @marks is taken over.
 */
void qcow2_log_resume(BlockDriverState *bs, Qcow2LogMarks *marks);

/* Marks do not count any more, which the caller has made durable. */
void qcow2_log_stop(BlockDriverState *bs);

/* Requests have to ask again before they write, although marks stay. */
Qcow2LogGate *qcow2_log_empty_gate(BlockDriverState *bs);

#endif
