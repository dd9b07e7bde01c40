/*
 * qcow2 RW backing: what the rooms of the guard know of each other
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_GUARD_INT_H
#define BLOCK_QCOW2_RW_BACKING_GUARD_INT_H

#include "block/block_int.h"
#include "block/qcow2-rw-backing-format.h"
#include "qcow2-rw-backing-guard.h"

/* Bytes that are digested of each file but the first, see "Files" there */
#define QCOW2_RW_BACKING_FILE_RECORD_LEN    28

/* Files and devices under an RW backing, qcow2-rw-backing-guard-file.c */

/**
 * qcow2_rw_backing_file_get_times:
 * @file: with at least one file or device under the RW backing
 * @guard: its fields that are about files are filled in
 *
 * Returns true, or false with @errp set if something under the RW backing is
 * not a regular file on a file system whose times tell of each write.
 */
bool qcow2_rw_backing_file_get_times(const Qcow2RwBackingFile *file,
                                     Qcow2RwBackingGuard *guard,
                                     Error **errp);

/**
 * qcow2_rw_backing_file_get_remote_time:
 *
 * Fills in the size and the time of a file on another file system, of which
 * at least a change tells something.  Returns false if there are none.
 */
bool qcow2_rw_backing_file_get_remote_time(const Qcow2RwBackingFile *file,
                                           Qcow2RwBackingFileTime *time);

/* Lets the clock of all files tick, so that a later write has a later time. */
void qcow2_rw_backing_file_wait(const Qcow2RwBackingFile *file);

/**
 * qcow2_rw_backing_file_check_names:
 *
 * A node that becomes writable may open its file by name once more.  Returns
 * false with @errp set if that would be another file than the one compared.
 */
bool qcow2_rw_backing_file_check_names(const Qcow2RwBackingFile *file,
                                       Error **errp);

/* Returns a descriptor of the only device under the RW backing, or -1. */
int qcow2_rw_backing_file_device(const Qcow2RwBackingFile *file);

/* Returns where the RW backing starts in its first file, in bytes. */
uint64_t qcow2_rw_backing_file_offset(const Qcow2RwBackingFile *file);

/* Returns what kind of thing the RW backing is part of, as it is. */
Qcow2RwBackingPlace qcow2_rw_backing_file_place(const Qcow2RwBackingFile *file);

/* Block devices, qcow2-rw-backing-guard-device.c */

/**
 * qcow2_rw_backing_device_get:
 * @fd: descriptor of a local block device
 * @device: filled in
 * @start: set to the offset in bytes at which the device starts on its disk
 *
 * Returns true, or false with @errp set if the host does not count what is
 * written to the device.
 */
bool qcow2_rw_backing_device_get(int fd, Qcow2RwBackingDevice *device,
                                 uint64_t *start, Error **errp);

/* Samples, qcow2-rw-backing-guard-samples.c */

/**
 * qcow2_rw_backing_samples_digest:
 * @size: of the part of the RW backing to look at, in bytes
 * @seed: selects the samples
 * @digest: filled in
 *
 * Returns true, or false with @errp set.
 */
bool coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_samples_digest(BdrvChild *rw_backing, uint64_t size,
                                uint64_t seed,
                                uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN],
                                Error **errp);

/* Returns true, or false with @errp set. */
bool qcow2_rw_backing_sha256(const void *data, size_t len,
                             uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN],
                             Error **errp);

#endif
