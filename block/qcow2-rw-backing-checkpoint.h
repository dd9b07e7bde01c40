/*
 * qcow2 RW backing: checkpoints of the write-intent log
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_CHECKPOINT_H
#define BLOCK_QCOW2_RW_BACKING_CHECKPOINT_H

#include "qcow2-rw-backing-log.h"

/**
 * qcow2_shell_checkpoint_quiesced:
 * @errp: what went wrong
 *
 * Stores all bitmaps, and makes the header refer to them and let the log count,
 * whatever it says before; or makes it bare, if there are none that can be
 * stored.  While the node is quiesced, or nobody knows it yet.  Unless
 * qcow2_shell_forget_stored() was called, nothing may have been written since
 * bitmaps were stored or loaded.
 *
 * Returns 0, or -errno with @errp set: then the header is what it was, or that.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_checkpoint_quiesced(BlockDriverState *bs, Error **errp);

/*
 * Gives up what a checkpoint could not finish.  Its clusters are lost to the
 * image if a header may refer to them.
 */
void coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_forget_pending(BlockDriverState *bs);

/* The callback BlockDriver.bdrv_dirty_bitmaps_changed. */
void qcow2_shell_bitmaps_changed(BlockDriverState *bs);

/*
 * Makes checkpoints and renews leases from now on, or not any more.  Main
 * thread; the node must be quiesced to stop.
 */
void qcow2_shell_start_checkpoints(BlockDriverState *bs);
void qcow2_shell_stop_checkpoints(BlockDriverState *bs);

#endif
