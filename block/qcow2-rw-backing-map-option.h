/*
 * qcow2 RW backing: beginning and ending to keep an allocation map
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_MAP_OPTION_H
#define BLOCK_QCOW2_RW_BACKING_MAP_OPTION_H

#include "qapi/qapi-types-block-core.h"
#include "qcow2-rw-backing-map-look.h"

/**
 * qcow2_shell_set_map:
 * @progress: told how much of the RW backing was looked at, may be NULL
 *
 * Makes the shell keep an allocation map, finds out what of its RW backing
 * reads as zeroes, or makes it keep none.  Others may use the node.  In the
 * main thread.  If it is interrupted, there is the map that was there before,
 * or one that knows less.
 *
 * Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_shell_set_map(BlockDriverState *bs, BlockdevQcow2RwBackingMap option,
                    Qcow2MapProgress *progress, void *opaque, Error **errp);

/* The same, for those who are not in a coroutine and wait for it. */
int GRAPH_RDLOCK
qcow2_shell_set_map_sync(BlockDriverState *bs, BlockdevQcow2RwBackingMap option,
                         Qcow2MapProgress *progress, void *opaque,
                         Error **errp);

#endif
