/*
 * qcow2 RW backing: new bitmaps of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_NEW_BITMAPS_H
#define BLOCK_QCOW2_RW_BACKING_NEW_BITMAPS_H

#include "block/block_int.h"

/*
 * Reserves space in the image for an allocation map.  Returns false with @errp
 * set if there is none.
 */
bool coroutine_fn GRAPH_RDLOCK
qcow2_shell_reserve_map(BlockDriverState *bs, Error **errp);

#endif
