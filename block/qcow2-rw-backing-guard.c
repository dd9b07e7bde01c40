/*
 * qcow2 RW backing: noticing modifications by others
 *
 * Dirty bitmaps miss what another program writes to the RW backing.  So the
 * shell remembers what the RW backing looked like when the bitmaps were
 * stored, and compares when it is opened again.
 *
 * There is proof that nobody has written if the times of local files are the
 * same, or the counters of a local block device, as long as the host is up.
 * For everything else the content of some places has to do, which proves
 * nothing if it is the same.  What is recorded in one way is only compared in
 * that way: a file that has become a device is not known to be modified.
 *
 * Rooms: -guard-file.c finds files, and knows their times; -guard-device.c
 * reads the counters of devices; -guard-samples.c reads content.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/block-io.h"
#include "crypto/random.h"
#include "qcow2-rw-backing-guard-int.h"

#define UNCHANGED   QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED
#define SAMPLED     QCOW2_RW_BACKING_GUARD_STATE_SAMPLED
#define MODIFIED    QCOW2_RW_BACKING_GUARD_STATE_MODIFIED
#define UNCHECKED   QCOW2_RW_BACKING_GUARD_STATE_UNCHECKED

/* Of a device below the RW backing, and where that starts on its disk */
static bool get_device(const Qcow2RwBackingFile *file,
                       Qcow2RwBackingDevice *device, uint64_t *offset,
                       Error **errp)
{
    int fd = qcow2_rw_backing_file_device(file);
    uint64_t start;

    if (fd < 0) {
        error_setg(errp, "It is not a local block device");
        return false;
    }
    if (!qcow2_rw_backing_device_get(fd, device, &start, errp)) {
        return false;
    }
    *offset = start + qcow2_rw_backing_file_offset(file);
    return true;
}

/* Taking it */

static bool coroutine_mixed_fn GRAPH_RDLOCK
take_samples(Qcow2RwBackingGuard *guard, BdrvChild *rw_backing, Error **errp)
{
    return qcrypto_random_bytes(&guard->seed, sizeof(guard->seed), errp) == 0 &&
           qcow2_rw_backing_samples_digest(rw_backing, guard->size,
                                           guard->seed, guard->digest, errp);
}

/* @guard has samples; adds what else there is */
static void take_place(Qcow2RwBackingGuard *guard,
                       const Qcow2RwBackingFile *file)
{
    guard->kind = QCOW2_RW_BACKING_GUARD_SAMPLES;
    if (file->quiet &&
        get_device(file, &guard->device, &guard->offset, NULL)) {
        guard->kind = QCOW2_RW_BACKING_GUARD_DEVICE;
        return;
    }
    guard->device = (Qcow2RwBackingDevice) { };
    guard->place = qcow2_rw_backing_file_place(file);
    guard->offset = guard->place == QCOW2_RW_BACKING_PLACE_OTHER
        ? 0 : qcow2_rw_backing_file_offset(file);
    if (guard->place == QCOW2_RW_BACKING_PLACE_REMOTE_FILE && file->quiet) {
        qcow2_rw_backing_file_get_remote_time(file, &guard->file);
    }
}

bool coroutine_mixed_fn
qcow2_rw_backing_guard_take(Qcow2RwBackingGuard *guard,
                            Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                            Error **errp)
{
    Qcow2RwBackingGuard new = { };
    int64_t size;
    int ret;

    *guard = (Qcow2RwBackingGuard) { };

    /* What is still to be written would count as a modification later */
    ret = bdrv_flush(rw_backing->bs);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not flush it");
        return false;
    }
    size = bdrv_getlength(rw_backing->bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get its size");
        return false;
    }
    new.size = size;

    qcow2_rw_backing_file_find(file, rw_backing->bs);
    if (file->quiet && qcow2_rw_backing_file_get_times(file, &new, NULL)) {
        new.kind = QCOW2_RW_BACKING_GUARD_FILE;
        qcow2_rw_backing_file_wait(file);
        *guard = new;
        return true;
    }

    new = (Qcow2RwBackingGuard) { .size = size };
    if (!take_samples(&new, rw_backing, errp)) {
        return false;
    }
    take_place(&new, file);
    *guard = new;
    return true;
}

/* Comparing it */

static bool is_same_time(const Qcow2RwBackingFileTime *then,
                         const Qcow2RwBackingFileTime *now, Error **errp)
{
    if (now->size != then->size) {
        error_setg(errp, "The size of its file has changed from %" PRIu64
                   " to %" PRIu64 " bytes", then->size, now->size);
        return false;
    }
    if (now->mtime_sec != then->mtime_sec ||
        now->mtime_nsec != then->mtime_nsec) {
        error_setg(errp, "Its modification time has changed from %" PRId64
                   ".%09" PRIu32 " to %" PRId64 ".%09" PRIu32,
                   then->mtime_sec, then->mtime_nsec,
                   now->mtime_sec, now->mtime_nsec);
        return false;
    }
    return true;
}

static bool is_same_offset(const Qcow2RwBackingGuard *guard, uint64_t offset,
                           Error **errp)
{
    if (offset != guard->offset) {
        error_setg(errp, "It starts at byte %" PRIu64 " of another part of the "
                   "same file or disk, and not at byte %" PRIu64, offset,
                   guard->offset);
        return false;
    }
    return true;
}

/* Nobody makes a file larger without a trace in its times */
static bool is_possible_size(const Qcow2RwBackingGuard *guard, uint64_t size,
                             Error **errp)
{
    if (size < guard->size || (size > guard->size &&
                               guard->kind == QCOW2_RW_BACKING_GUARD_FILE)) {
        error_setg(errp, "It was resized from %" PRIu64 " to %" PRIu64
                   " bytes", guard->size, size);
        return false;
    }
    return true;
}

static Qcow2RwBackingGuardState
compare_files(const Qcow2RwBackingGuard *guard, const Qcow2RwBackingFile *file,
              uint64_t size, Error **errp)
{
    ERRP_GUARD();
    Qcow2RwBackingGuard now = { };

    if (!qcow2_rw_backing_file_get_times(file, &now, errp)) {
        error_prepend(errp, "It has no modification time to be compared "
                      "with: ");
        return UNCHECKED;
    }
    if (!is_possible_size(guard, size, errp) ||
        !qcow2_rw_backing_file_check_names(file, errp) ||
        !is_same_offset(guard, now.offset, errp) ||
        !is_same_time(&guard->file, &now.file, errp)) {
        return MODIFIED;
    }
    if (now.other_files != guard->other_files) {
        error_setg(errp, "It consists of %" PRIu32 " files, and not of %"
                   PRIu32, now.other_files + 1, guard->other_files + 1);
        return MODIFIED;
    }
    if (memcmp(now.digest, guard->digest, sizeof(now.digest))) {
        error_setg(errp, "Size or modification time of one of its %" PRIu32
                   " other files has changed", now.other_files);
        return MODIFIED;
    }
    return UNCHANGED;
}

static bool are_same_counters(const Qcow2RwBackingCounters *a,
                              const Qcow2RwBackingCounters *b)
{
    return a->written == b->written && a->discarded == b->discarded;
}

/* Returns SAMPLED with @errp set to why if the counters do not tell */
static Qcow2RwBackingGuardState
compare_device(const Qcow2RwBackingGuard *guard, const Qcow2RwBackingFile *file,
               uint64_t size, Error **errp)
{
    const Qcow2RwBackingDevice *then = &guard->device;
    Qcow2RwBackingDevice now;
    uint64_t offset;

    if (qcow2_rw_backing_file_place(file) ==
        QCOW2_RW_BACKING_PLACE_LOCAL_FILE) {
        error_setg(errp, "It is a local file, and what is recorded is about a "
                   "block device");
        return UNCHECKED;
    }
    if (!is_possible_size(guard, size, errp)) {
        return MODIFIED;
    }

    if (!get_device(file, &now, &offset, errp)) {
        return SAMPLED;
    }
    if (memcmp(now.boot_id, then->boot_id, sizeof(now.boot_id))) {
        error_setg(errp, "The host has booted since then, or it is another "
                   "host");
        return SAMPLED;
    }
    if (now.diskseq != then->diskseq) {
        error_setg(errp, "Its block device is another one, or was removed and "
                   "has come back");
        return SAMPLED;
    }
    if (!is_same_offset(guard, offset, errp)) {
        return MODIFIED;
    }
    if (now.self.written < then->self.written ||
        now.self.discarded < then->self.discarded) {
        error_setg(errp, "The counters of its partition have started anew");
        return SAMPLED;
    }
    if (!are_same_counters(&now.self, &then->self)) {
        error_setg(errp, "%" PRIu64 " sectors were written to its block device "
                   "and %" PRIu64 " discarded",
                   now.self.written - then->self.written,
                   now.self.discarded - then->self.discarded);
        return MODIFIED;
    }
    if (!are_same_counters(&now.disk, &then->disk)) {
        error_setg(errp, "The whole disk of its partition was written to");
        return SAMPLED;
    }
    return UNCHANGED;
}

Qcow2RwBackingGuardState coroutine_mixed_fn
qcow2_rw_backing_guard_compare_samples(const Qcow2RwBackingGuard *guard,
                                       BdrvChild *rw_backing, Error **errp)
{
    uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN];

    if (!qcow2_rw_backing_samples_digest(rw_backing, guard->size, guard->seed,
                                         digest, errp)) {
        return UNCHECKED;
    }
    if (memcmp(digest, guard->digest, sizeof(digest))) {
        error_setg(errp, "Its content has changed");
        return MODIFIED;
    }
    return SAMPLED;
}

/*
 * What would have left proof, had the record been made of it, is not the disk
 * that the record is about; it may be one that this disk was copied from.
 */
static bool is_possible_place(const Qcow2RwBackingGuard *guard,
                              const Qcow2RwBackingFile *file, Error **errp)
{
    Qcow2RwBackingPlace place = qcow2_rw_backing_file_place(file);
    Qcow2RwBackingDevice device;
    uint64_t offset;

    if (place == QCOW2_RW_BACKING_PLACE_OTHER) {
        return true;
    }
    if (place == guard->place) {
        return is_same_offset(guard, qcow2_rw_backing_file_offset(file), errp);
    }
    if (place == QCOW2_RW_BACKING_PLACE_LOCAL_FILE) {
        error_setg(errp, "It is a local file, and what is recorded is not "
                   "about one");
        return false;
    }
    if (place == QCOW2_RW_BACKING_PLACE_DEVICE &&
        get_device(file, &device, &offset, NULL)) {
        error_setg(errp, "It is a local block device, and what is recorded is "
                   "not about one");
        return false;
    }
    return true;
}

/* Returns SAMPLED if only samples can tell */
static Qcow2RwBackingGuardState
compare_place(const Qcow2RwBackingGuard *guard, const Qcow2RwBackingFile *file,
              uint64_t size, Error **errp)
{
    Qcow2RwBackingFileTime now;

    if (!is_possible_size(guard, size, errp) ||
        !is_possible_place(guard, file, errp)) {
        return MODIFIED;
    }
    if ((guard->file.mtime_sec || guard->file.mtime_nsec) &&
        qcow2_rw_backing_file_get_remote_time(file, &now) &&
        !is_same_time(&guard->file, &now, errp)) {
        return MODIFIED;
    }
    error_setg(errp, "It is neither a local file nor a local block device");
    return SAMPLED;
}

/* Returns SAMPLED with @errp set to why if there is no proof */
static Qcow2RwBackingGuardState
compare_exactly(const Qcow2RwBackingGuard *guard,
                const Qcow2RwBackingFile *file, uint64_t size, Error **errp)
{
    switch (guard->kind) {
    case QCOW2_RW_BACKING_GUARD_FILE:
        return compare_files(guard, file, size, errp);
    case QCOW2_RW_BACKING_GUARD_DEVICE:
        return compare_device(guard, file, size, errp);
    case QCOW2_RW_BACKING_GUARD_SAMPLES:
        return compare_place(guard, file, size, errp);
    default:
        g_assert_not_reached();
    }
}

Qcow2RwBackingGuardState coroutine_mixed_fn
qcow2_rw_backing_guard_compare(const Qcow2RwBackingGuard *guard,
                               Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                               bool *grown, Error **errp)
{
    int64_t size = bdrv_getlength(rw_backing->bs);
    Qcow2RwBackingGuardState state;
    Error *why = NULL;

    *grown = false;
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get its size");
        return UNCHECKED;
    }

    qcow2_rw_backing_file_find(file, rw_backing->bs);
    state = compare_exactly(guard, file, size, &why);
    if (state != SAMPLED) {
        error_propagate(errp, why);
    } else {
        state = qcow2_rw_backing_guard_compare_samples(guard, rw_backing, errp);
        if (state == SAMPLED) {
            error_propagate(errp, why);
        } else {
            error_free(why);
        }
    }
    *grown = size > guard->size &&
             (state == UNCHANGED || state == SAMPLED);
    return state;
}
