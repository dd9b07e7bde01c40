/*
 * qcow2 RW backing: noticing modifications by others
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_GUARD_H
#define BLOCK_QCOW2_RW_BACKING_GUARD_H

#include "qapi/qapi-types-block-core.h"
#include "block/block_int.h"
#include "block/qcow2-rw-backing-format.h"

/*
 * The local file under an RW backing.  It is found by name while the image is
 * opened, and by file descriptor afterwards: QEMU may change its directory,
 * and the name may come to mean another file.
 */
typedef struct Qcow2RwBackingFile {
    /* O_PATH descriptor, -1 if the RW backing is not a local regular file */
    int fd;

    /* The node that @fd is about; compared, but never dereferenced */
    const BlockDriverState *bs;
    char *node_name;
} Qcow2RwBackingFile;

void qcow2_rw_backing_file_init(Qcow2RwBackingFile *file);
void qcow2_rw_backing_file_close(Qcow2RwBackingFile *file);

/**
 * qcow2_rw_backing_file_find:
 * @file: updated if the RW backing has changed since the last call
 * @rw_bs: node of the RW backing
 *
 * Makes sure that the file under @rw_bs is known from now on.
 */
void GRAPH_RDLOCK qcow2_rw_backing_file_find(Qcow2RwBackingFile *file,
                                             BlockDriverState *rw_bs);

/**
 * qcow2_rw_backing_guard_take:
 * @guard: filled in; of kind QCOW2_RW_BACKING_GUARD_NONE on failure
 * @file: the file under the RW backing, if it has one
 * @rw_backing: the RW backing, with no request in flight
 *
 * Records what the RW backing looks like (section "Guard extension" of the
 * specification).  At most 4 MiB are read.
 *
 * Returns true, or false with @errp set.
 */
bool coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_guard_take(Qcow2RwBackingGuard *guard,
                            Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                            Error **errp);

/**
 * qcow2_rw_backing_guard_compare:
 * @guard: as recorded, not of kind QCOW2_RW_BACKING_GUARD_NONE
 *
 * Returns QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED if the RW backing looks as it
 * did, _MODIFIED with @errp set to what is different, or _UNCHECKED with @errp
 * set to why that could not be found out.
 */
Qcow2RwBackingGuardState coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_guard_compare(const Qcow2RwBackingGuard *guard,
                               Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                               Error **errp);

#endif
