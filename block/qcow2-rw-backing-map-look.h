/*
 * qcow2 RW backing: looking at the disk for its allocation map
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_MAP_LOOK_H
#define BLOCK_QCOW2_RW_BACKING_MAP_LOOK_H

#include "qcow2-rw-backing-int.h"

/* Told from time to time, in bytes of the disk */
typedef void Qcow2MapProgress(void *opaque, uint64_t done, uint64_t total);

/**
 * qcow2_map_status:
 * @count: set to how many bytes from @offset on, up to @bytes, have this state
 *
 * What the allocation map says for sure, for which it may have to read the
 * disk: true if the part reads as zeroes, false if that is not known.  For a
 * shell with a map; offsets are those of its block status.
 */
bool coroutine_fn GRAPH_RDLOCK
qcow2_map_status(BlockDriverState *bs, int64_t offset, int64_t bytes,
                 int64_t *count);

/**
 * qcow2_map_scan:
 * @read: also where the RW backing does not say that there are zeroes
 * @progress: NULL if nobody wants to know
 *
 * Clears granules that read as zeroes.  Others may use the node.  Returns 0, or
 * -errno with @errp set, and what was found until then.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_map_scan(BlockDriverState *bs, bool read, Qcow2MapProgress *progress,
               void *opaque, Error **errp);

/**
 * qcow2_map_take_over_size:
 *
 * The disk has got another size in bytes than the map knows.  Its new part may
 * hold data, unless the RW backing says that there are zeroes.  Before the node
 * has its new size.
 */
void coroutine_fn GRAPH_RDLOCK
qcow2_map_take_over_size(BlockDriverState *bs, uint64_t size);

#endif
