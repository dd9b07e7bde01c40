/*
 * qcow2 RW backing: who else may write to the disk
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_PERM_H
#define BLOCK_QCOW2_RW_BACKING_PERM_H

#include "qcow2-rw-backing-int.h"

/*
 * To be called when bitmaps may have come, in a coroutine of the main thread.
 * Returns 0 if nobody else may write to the RW backing from now on, or -errno
 * with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK qcow2_shell_claim_disk(BlockDriverState *bs,
                                                     Error **errp);

/* To be called when a bitmap may have been the last one, by the main thread. */
void qcow2_shell_share_disk(BlockDriverState *bs);

/* Have others the right to write to the RW backing without the image? */
bool qcow2_shell_may_others_write(BlockDriverState *bs);

#endif
