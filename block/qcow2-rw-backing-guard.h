/*
 * qcow2 RW backing: noticing modifications by others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_GUARD_H
#define BLOCK_QCOW2_RW_BACKING_GUARD_H

#include "qapi/qapi-types-qcow2-rw-backing.h"
#include "block/block_int.h"
#include "block/qcow2-rw-backing-format.h"
#include "block/qcow2-rw-backing-log-format.h"

/*
 * The local files and devices under an RW backing.  They are found by name
 * while the image is opened, and by file descriptor afterwards: QEMU may
 * change its directory, and a name may come to mean another file.
 */
typedef struct Qcow2RwBackingFile {
    /* In the order of the graph, with private elements; NULL if empty */
    GArray *leaves;

    /* Apart from @leaves, the RW backing consists of nothing else */
    bool complete;

    /* It is a part of a single file or device, as it is */
    bool raw;

    /* Closing the RW backing writes nothing to its files */
    bool quiet;

    /* The nodes that were looked at; others have been there before */
    char *nodes;
    bool exchanged;
} Qcow2RwBackingFile;

void qcow2_rw_backing_file_init(Qcow2RwBackingFile *file);
void qcow2_rw_backing_file_close(Qcow2RwBackingFile *file);

/* Are times of files evidence of each write to the RW backing? */
bool qcow2_rw_backing_file_is_exact(const Qcow2RwBackingFile *file);

/**
 * qcow2_rw_backing_file_get_evidence:
 * @time: set to the modification time of the one file under the RW backing
 * @inode: set to its number
 *
 * Returns false with @errp set if there is no such file, or if its time does
 * not tell of each write.
 */
bool qcow2_rw_backing_file_get_evidence(const Qcow2RwBackingFile *file,
                                        Qcow2LogTime *time, uint64_t *inode,
                                        Error **errp);

/* Sets @id to the host since it was booted; false if that is not known. */
bool qcow2_rw_backing_get_boot_id(uint8_t id[16]);

/* Makes the time of this file durable.  Returns false if it cannot. */
bool qcow2_rw_backing_file_sync_time(const Qcow2RwBackingFile *file);

/**
 * qcow2_rw_backing_file_touch:
 *
 * Gives the first file under the RW backing another modification time, durably,
 * so that no record of files fits any more.  Returns false if that is not
 * possible.
 */
bool qcow2_rw_backing_file_touch(const Qcow2RwBackingFile *file);

/**
 * qcow2_rw_backing_file_find:
 * @file: updated if the RW backing has changed since the last call
 * @rw_bs: node of the RW backing
 *
 * Makes sure that the files under @rw_bs are known from now on.
 */
void GRAPH_RDLOCK qcow2_rw_backing_file_find(Qcow2RwBackingFile *file,
                                             BlockDriverState *rw_bs);

/* Are there other nodes now, in the place of @rw_bs or anywhere below it? */
bool GRAPH_RDLOCK
qcow2_rw_backing_file_is_exchanged(const Qcow2RwBackingFile *file,
                                   BlockDriverState *rw_bs);

/**
 * qcow2_rw_backing_guard_take:
 * @guard: filled in; of kind QCOW2_RW_BACKING_GUARD_NONE on failure
 * @file: the files under the RW backing, if it has any
 * @rw_backing: the RW backing, with no request in flight; flushed first
 *
 * Records what the RW backing looks like (section "Guard extension" of the
 * specification).  If files and their times do not tell, up to 18 MiB are
 * read, 2 MiB as a rule.
 *
 * Returns true, or false with @errp set.
 */
bool coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_guard_take(Qcow2RwBackingGuard *guard,
                            Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                            Error **errp);

/* Returns what comparing @guard gives right after it was taken. */
static inline Qcow2RwBackingGuardState
qcow2_rw_backing_guard_fresh_state(const Qcow2RwBackingGuard *guard)
{
    return guard->kind == QCOW2_RW_BACKING_GUARD_SAMPLES
        ? QCOW2_RW_BACKING_GUARD_STATE_SAMPLED
        : QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED;
}

/**
 * qcow2_rw_backing_guard_compare:
 * @guard: as recorded, not of kind QCOW2_RW_BACKING_GUARD_NONE
 * @grown: set to true if the RW backing is larger than recorded, and what is
 *         returned is about its first @guard->size bytes
 *
 * Returns QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED if there is proof that nobody
 * has written to the RW backing, _SAMPLED with @errp set to why there is none
 * if its samples look as they did, _MODIFIED with @errp set to what is
 * different, or _UNCHECKED with @errp set to why that could not be found out.
 */
Qcow2RwBackingGuardState coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_guard_compare(const Qcow2RwBackingGuard *guard,
                               Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                               bool *grown, Error **errp);

/**
 * qcow2_rw_backing_guard_compare_samples:
 * @guard: as recorded, of a kind that has samples
 *
 * Compares nothing but content, for a disk that may have moved to another kind
 * of storage.  Returns _SAMPLED, or _MODIFIED or _UNCHECKED with @errp set.
 */
Qcow2RwBackingGuardState coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_guard_compare_samples(const Qcow2RwBackingGuard *guard,
                                       BdrvChild *rw_backing, Error **errp);

#endif
