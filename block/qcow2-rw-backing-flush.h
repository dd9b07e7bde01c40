/*
 * qcow2 RW backing: flushes that can be relied on
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_FLUSH_H
#define BLOCK_QCOW2_RW_BACKING_FLUSH_H

#include "qcow2-rw-backing-int.h"

/**
 * qcow2_shell_flush_file:
 * @since: get_clock() from before the first of the writes in question
 *
 * Makes durable what was written to the file of the shell.  Fails as well if
 * somebody else's flush has failed since: it may have lost these writes, and
 * storage reports that only once.
 *
 * Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_flush_file(BlockDriverState *bs, uint64_t since);

/**
 * qcow2_shell_flush_disk:
 *
 * Makes durable what was written to the RW backing, by whomever.  If this
 * fails, or if another flush of it has failed since the last call, data may be
 * lost that a bitmap does not know any more, since it was backed up: all
 * bitmaps that record say that everything has changed.
 *
 * Returns 0, or -errno if this flush has failed.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_flush_disk(BlockDriverState *bs);

/**
 * qcow2_shell_flush_failed:
 *
 * To be called after somebody's flush of the RW backing has failed: the same
 * happens to bitmaps.  May be called in any thread.
 */
void qcow2_shell_flush_failed(BlockDriverState *bs);

/**
 * qcow2_shell_find_failed_flush:
 *
 * The same if a flush has failed that somebody else has asked for, of the RW
 * backing or of a node below.
 */
void GRAPH_RDLOCK qcow2_shell_find_failed_flush(BlockDriverState *bs);

#endif
