/*
 * qcow2 RW backing: leases of the write-intent log
 *
 * While the image is in use, the RW backing changes all the time, and nothing
 * is recorded of what it looks like.  So the log says until when its user may
 * write, and what the time of the file was before that: if the time is a later
 * one after a crash, somebody else has written.  What somebody else writes
 * between the crash and the end of the lease, a few seconds, is not noticed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/timer.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-log-lease.h"

/*
 * Long enough for a flush each few seconds to be nothing, and for a main loop
 * that is late; short enough to be waited for if the image cannot be written.
 */
#define LEASE_NS        (10 * NANOSECONDS_PER_SECOND)
/* To be renewed when so much is left, and not to be used any more */
#define RENEW_NS        (7 * NANOSECONDS_PER_SECOND)
#define MARGIN_NS       (2 * NANOSECONDS_PER_SECOND)

static Qcow2LogTime from_ns(int64_t ns)
{
    return (Qcow2LogTime) {
        .sec  = ns / NANOSECONDS_PER_SECOND,
        .nsec = ns % NANOSECONDS_PER_SECOND,
    };
}

static int compare_times(Qcow2LogTime a, Qcow2LogTime b)
{
    return a.sec != b.sec ? (a.sec > b.sec ? 1 : -1)
                          : (a.nsec > b.nsec) - (a.nsec < b.nsec);
}

/* The clock that times of files come from */
static int64_t now_ns(void)
{
    return qemu_clock_get_ns(QEMU_CLOCK_HOST);
}

/* What a lease is about; returns false with @errp set if there is nothing */
static bool get_evidence(const Qcow2RwBackingFile *file, Qcow2LogTime *time,
                         uint64_t *inode, uint8_t *boot_id, Error **errp)
{
    if (!qcow2_rw_backing_get_boot_id(boot_id)) {
        error_setg(errp, "The host cannot be told from one that was booted "
                   "anew");
        return false;
    }
    return qcow2_rw_backing_file_get_evidence(file, time, inode, errp);
}

Qcow2LogLease qcow2_log_lease_make(Qcow2RwBacking *rwb, uint64_t nonce,
                                   bool announce)
{
    Qcow2Log *log = rwb->log;
    Qcow2LogLease lease = {
        .nonce   = nonce,
        .number  = log->lease.number + 1,
        .durable = log->lease.durable,
    };

    lease.is_file = get_evidence(&rwb->file, &lease.seen, &lease.inode,
                                 lease.boot_id, NULL);
    if (!lease.is_file) {
        lease = (Qcow2LogLease) { .nonce = nonce, .number = lease.number };
        if (!rwb->file.exchanged) {
            return lease;
        }
        /* By its stored name, the image would find the disk before: no file */
        lease.is_file = true;
    }
    if (announce && compare_times(lease.seen, from_ns(now_ns())) > 0 &&
        qcow2_rw_backing_file_touch(&rwb->file)) {
        /* The clock was set back: the next write would give an earlier time */
        qcow2_rw_backing_file_get_evidence(&rwb->file, &lease.seen,
                                           &lease.inode, NULL);
    }
    if (announce) {
        lease.until = from_ns(now_ns() + LEASE_NS);
    } else if (qcow2_rw_backing_file_sync_time(&rwb->file)) {
        lease.durable = lease.seen;
    }
    if (compare_times(log->latest_until, lease.until) < 0) {
        log->latest_until = lease.until;
    }
    return lease;
}

int64_t qcow2_log_lease_make_end(const Qcow2LogLease *lease)
{
    if (!lease->is_file) {
        return INT64_MAX;
    }
    return lease->until.sec
        ? qemu_clock_get_ns(QEMU_CLOCK_REALTIME) + LEASE_NS - MARGIN_NS : 0;
}

bool qcow2_log_lease_has_ended(const Qcow2Log *log)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME) >=
           qatomic_read(&log->lease_end);
}

bool qcow2_log_lease_is_due(const Qcow2Log *log)
{
    int64_t now = now_ns();

    return log->lease.is_file &&
           (compare_times(log->lease.until, from_ns(now + RENEW_NS)) < 0 ||
            compare_times(log->lease.until, from_ns(now + LEASE_NS)) > 0);
}

void qcow2_log_end_lease(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;

    qatomic_set(&log->lease_end, 0);
    log->lease.durable = (Qcow2LogTime) { };
    /* Nobody looks at it */
    g_free(qcow2_log_empty_gate(bs));
}

/* Returns true if it fits, or false with @errp set */
static bool fits(const Qcow2LogLease *lease, Qcow2LogTime time, uint64_t inode,
                 const uint8_t *boot_id, Error **errp)
{
    bool same_boot = !memcmp(boot_id, lease->boot_id, sizeof(lease->boot_id));
    /* What was written is durable, its time need not be */
    Qcow2LogTime first = same_boot ? lease->seen : lease->durable;

    if (inode != lease->inode) {
        error_setg(errp, "It is another file");
        return false;
    }
    if (compare_times(time, lease->seen) == 0) {
        return true;
    }
    if (compare_times(time, first) < 0) {
        error_setg(errp, "Its modification time is earlier than before the "
                   "crash");
        return false;
    }
    if (compare_times(time, lease->until) > 0 &&
        compare_times(time, lease->seen) > 0) {
        error_setg(errp, "It was written to after the crash");
        return false;
    }
    return true;
}

Qcow2LogLeaseVerdict
qcow2_log_lease_judge(const Qcow2LogLease *lease,
                      const Qcow2RwBackingFile *file, Error **errp)
{
    uint8_t boot_id[sizeof(lease->boot_id)];
    Qcow2LogTime time;
    uint64_t inode;
    bool is_file = get_evidence(file, &time, &inode, boot_id,
                                lease->is_file ? errp : NULL);

    if (!lease->is_file && !is_file) {
        error_setg(errp, "Nothing tells whether it was written to by others "
                   "since the crash");
        return QCOW2_LOG_LEASE_NO_EVIDENCE;
    }
    if (!lease->is_file) {
        /* The image was opened over another disk than the one it names, say */
        error_setg(errp, "It is a local file, which the disk before the crash "
                   "was not");
        return QCOW2_LOG_LEASE_BROKEN;
    }
    return is_file && fits(lease, time, inode, boot_id, errp)
        ? QCOW2_LOG_LEASE_FITS : QCOW2_LOG_LEASE_BROKEN;
}

void qcow2_log_lease_vouch(Qcow2RwBacking *rwb)
{
    Qcow2LogLease *lease = &rwb->recovery->lease;
    Qcow2LogLease new = { .nonce = lease->nonce, .number = lease->number };

    new.is_file = get_evidence(&rwb->file, &new.seen, &new.inode, new.boot_id,
                               NULL);
    *lease = new;
}

void qcow2_log_lease_assume(Qcow2Log *log)
{
    log->latest_until = from_ns(now_ns() + LEASE_NS);
}

/* In ns; times of files may have whole seconds, every other one */
static int64_t time_left(const Qcow2Log *log)
{
    Qcow2LogTime until = log->latest_until;

    return until.sec * NANOSECONDS_PER_SECOND + until.nsec +
           3 * NANOSECONDS_PER_SECOND - now_ns();
}

bool coroutine_fn qcow2_log_lease_outlive(const Qcow2Log *log)
{
    int64_t left = time_left(log);

    if (left > 0) {
        qemu_co_sleep_ns(QEMU_CLOCK_REALTIME, MIN(left, 2 * LEASE_NS));
    }
    return time_left(log) <= 0;
}
