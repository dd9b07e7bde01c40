/*
 * qcow2 RW backing: bitmaps after a crash
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_RECOVERY_H
#define BLOCK_QCOW2_RW_BACKING_RECOVERY_H

#include "qcow2-rw-backing-bitmap-data.h"
#include "qcow2-rw-backing-log.h"

/**
 * qcow2_log_recover:
 *
 * Reads the log, for an image whose header says that it counts.  Returns NULL
 * with @errp set if it does not belong to the bitmaps of the image, or is
 * damaged so that it cannot be told.  To be freed with
 * qcow2_log_recovery_free().
 */
Qcow2LogRecovery * coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_recover(BlockDriverState *bs, Error **errp);

/* Sets in @bits what may have been written since they were stored. */
void qcow2_log_recovery_apply(const Qcow2LogRecovery *recovery,
                              const Qcow2ShellBits *bits);

/* Number of bytes of the disk that may have been written to. */
uint64_t qcow2_log_recovery_bytes(const Qcow2LogRecovery *recovery);

/*
 * Returns the marks of the next generation, which go on to count, to be freed
 * with g_free().
 */
Qcow2LogMarks *qcow2_log_recovery_next_marks(BlockDriverState *bs);

/**
 * qcow2_log_find_torn_pages:
 *
 * Notes the pages of the log that have units which were being written when the
 * host crashed: the next generation in their area has to write them.
 */
void coroutine_mixed_fn GRAPH_RDLOCK
qcow2_log_find_torn_pages(BlockDriverState *bs);

#endif
