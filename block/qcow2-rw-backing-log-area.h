/*
 * qcow2 RW backing: the write-intent log in the file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_LOG_AREA_H
#define BLOCK_QCOW2_RW_BACKING_LOG_AREA_H

#include "qcow2-rw-backing-int.h"

/**
 * qcow2_log_area_ensure:
 *
 * Makes sure that the image has a log of its own: allocates one, with no marks,
 * if it has none, or one that lies where something else is.  The header does
 * not refer to a new one yet.  With BDRVQcow2State.lock held, or while the node
 * is quiesced.
 *
 * Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK qcow2_log_area_ensure(BlockDriverState *bs);

/**
 * qcow2_log_area_write_pages:
 * @generation: says which area
 * @buf: QCOW2_LOG_PAGES pages
 * @pages: bitmap of those to write
 *
 * Not durable when it returns.  Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_area_write_pages(BlockDriverState *bs, uint64_t generation,
                           const uint8_t *buf, const unsigned long *pages);

/* Writes a superblock to the area of its generation, likewise. */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_area_write_super(BlockDriverState *bs, const Qcow2LogSuper *super);

/*
 * Makes the superblock of the other area than that of @generation, which is of
 * another life of the log, name nothing, likewise.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_area_wipe_other_super(BlockDriverState *bs, uint64_t generation);

/* Writes a lease, likewise. */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_area_write_lease(BlockDriverState *bs, const Qcow2LogLease *lease);

/**
 * qcow2_log_area_read:
 * @buf: QCOW2_LOG_LEN bytes, filled in; what cannot be read is zero, and so
 *       breaks a rule
 *
 * Returns 0, or -EINVAL if the header refers to no log, or to something outside
 * of the file.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_area_read(BlockDriverState *bs, uint8_t *buf);

#endif
