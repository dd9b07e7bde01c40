/*
 * qcow2 RW backing: content of the bitmaps of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_BITMAP_DATA_H
#define BLOCK_QCOW2_RW_BACKING_BITMAP_DATA_H

#include "block/block_int.h"

/**
 * qcow2_shell_store_data:
 * @name: of the stored bitmap, which @bitmap need not have
 * @bitmap: has to fit in a bitmap table
 * @table: a bitmap table of zeroes in host byte order; filled in
 * @checksum: what is stored is added (see "Checksum of bitmaps" in the
 *            specification)
 *
 * Writes the content of @bitmap to new clusters.
 *
 * Returns 0, or -errno; what @table refers to then is to be freed by the
 * caller.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_store_data(BlockDriverState *bs, const char *name,
                       BdrvDirtyBitmap *bitmap, uint64_t *table,
                       uint32_t *checksum);

/**
 * qcow2_shell_co_load_data:
 * @name: of the stored bitmap, which @bitmap need not have
 * @table: a valid bitmap table in host byte order
 * @table_size: number of its entries, just enough for @bitmap
 * @bitmap: a bitmap without any bits set; filled in.  NULL if nobody needs it,
 *          but it shall be read all the same
 * @checksum: what is read is added
 *
 * Returns 0, or -errno; @bitmap is not usable then.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_shell_co_load_data(BlockDriverState *bs, const char *name,
                         const uint64_t *table, uint32_t table_size,
                         BdrvDirtyBitmap *bitmap, uint32_t *checksum);

/*
 * Number of entries of the table of a bitmap for @size bytes, with a
 * granularity in bytes
 */
uint64_t qcow2_shell_table_size(BlockDriverState *bs, uint64_t size,
                                uint64_t granularity);

/*
 * What the directory says about a bitmap, for the checksum.  @granularity is in
 * bytes.
 */
uint32_t qcow2_shell_sum_bitmap(const char *name, uint32_t granularity,
                                bool autoload);

#endif
