/*
 * qcow2 RW backing: marks of the write-intent log become durable
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_LOG_COMMIT_H
#define BLOCK_QCOW2_RW_BACKING_LOG_COMMIT_H

#include "qcow2-rw-backing-log.h"

/**
 * qcow2_log_touch:
 *
 * To be called for a request that the gate has not let pass, and that is in
 * bs->tracked_requests.  When this returns 0, the request may go on: all of its
 * chunks have marks that are durable.
 *
 * Returns 0, or -EAGAIN if the log does not count any more, or -errno if marks
 * could not be written.
 */
int coroutine_fn GRAPH_RDLOCK qcow2_log_touch(BlockDriverState *bs,
                                              uint64_t offset, uint64_t bytes);

/**
 * qcow2_log_commit:
 * @renew: whether to write a lease as well
 *
 * Makes all marks durable.  With log->commit_lock held, or while the node is
 * quiesced.  Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK qcow2_log_commit(BlockDriverState *bs,
                                                     bool renew);

/* Gives up a log that could not be written; others may be waiting for it. */
void coroutine_fn qcow2_log_give_up(BlockDriverState *bs);

#endif
