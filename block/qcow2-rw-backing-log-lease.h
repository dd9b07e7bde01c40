/*
 * qcow2 RW backing: leases of the write-intent log
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_LOG_LEASE_H
#define BLOCK_QCOW2_RW_BACKING_LOG_LEASE_H

#include "qcow2-rw-backing-log.h"

/* What the RW backing says of a lease that was found in the file */
typedef enum Qcow2LogLeaseVerdict {
    /* It was written to by nobody else, as far as its time tells */
    QCOW2_LOG_LEASE_FITS,
    /* Somebody else has written to it */
    QCOW2_LOG_LEASE_BROKEN,
    /* It cannot be told whether somebody else has written to it */
    QCOW2_LOG_LEASE_NO_EVIDENCE,
} Qcow2LogLeaseVerdict;

/**
 * qcow2_log_lease_make:
 * @nonce: life of the log
 * @announce: whether writes are to come; false for a lease that says that
 *            there were none
 *
 * Returns the next lease of @rwb.
 */
Qcow2LogLease qcow2_log_lease_make(Qcow2RwBacking *rwb, uint64_t nonce,
                                   bool announce);

/* Time in ns (QEMU_CLOCK_REALTIME) at which a lease that is made now ends. */
int64_t qcow2_log_lease_make_end(const Qcow2LogLease *lease);

/* Has the lease to be renewed before something is written? */
bool qcow2_log_lease_has_ended(const Qcow2Log *log);

/*
 * Is it time to renew it, or does the clock of files stand where it should not?
 * With log->commit_lock held.
 */
bool qcow2_log_lease_is_due(const Qcow2Log *log);

/*
 * The RW backing is another one, of which no lease says anything: the next
 * request that writes waits for one.  The node must be quiesced.
 */
void qcow2_log_end_lease(BlockDriverState *bs);

/**
 * qcow2_log_lease_judge:
 * @lease: as found in the file
 * @errp: why the bitmaps are not to be believed, or why there is no evidence
 */
Qcow2LogLeaseVerdict
qcow2_log_lease_judge(const Qcow2LogLease *lease,
                      const Qcow2RwBackingFile *file, Error **errp);

/*
 * The user has put another disk in the place of the one that was judged, and
 * vouches for it: what was recovered is about what that looks like now.
 */
void qcow2_log_lease_vouch(Qcow2RwBacking *rwb);

/*
 * The file may have leases that are not known yet, which were made just before:
 * to be called when a header is found that lets the log count.
 */
void qcow2_log_lease_assume(Qcow2Log *log);

/*
 * Sleeps until no lease that may be in the file allows to write any more.
 * Returns false if that takes too long, since the clock was set back.
 */
bool coroutine_fn qcow2_log_lease_outlive(const Qcow2Log *log);

#endif
