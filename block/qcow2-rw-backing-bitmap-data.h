/*
 * qcow2 RW backing: content of the bitmaps of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_BITMAP_DATA_H
#define BLOCK_QCOW2_RW_BACKING_BITMAP_DATA_H

#include "block/block_int.h"
#include "qcow2-rw-backing-map.h"

/*
 * What is stored or loaded: a bitmap or the allocation map; neither of them if
 * nobody needs what was stored, but it shall be read all the same
 */
typedef struct Qcow2ShellBits {
    const char *name;           /* in the image, a bitmap may have another */
    BdrvDirtyBitmap *bitmap;
    Qcow2Map *map;
} Qcow2ShellBits;

/* Bytes of the disk that a cluster of @bits is about */
int64_t qcow2_shell_coverage(BlockDriverState *bs, const Qcow2ShellBits *bits);

/**
 * qcow2_shell_store_data:
 * @bits: has to fit in a bitmap table; the successor of a bitmap is added
 * @keep: the entries of @table that stay as they are
 * @table: a bitmap table in host byte order; entries that do not stay are 0,
 *         and filled in
 * @sums: for each entry, what it adds to the checksum (see "Checksum of
 *        bitmaps" in the specification); filled in likewise
 *
 * Writes the content of @bits to new clusters.  Bits may be set meanwhile,
 * and are stored or not.
 *
 * Returns 0, or -EAGAIN if bitmaps have changed in another way, or -errno; new
 * clusters that @table refers to then are to be freed by the caller.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_store_data(BlockDriverState *bs, const Qcow2ShellBits *bits,
                       const unsigned long *keep, uint64_t *table,
                       uint32_t *sums);

/**
 * qcow2_shell_co_load_data:
 * @bits: without any that are set; filled in
 * @table: a valid bitmap table in host byte order
 * @table_size: number of its entries, just enough for @bits
 * @sums: for each entry, what it adds to the checksum; filled in
 *
 * Returns 0, or -errno; @bits are not usable then.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_shell_co_load_data(BlockDriverState *bs, const Qcow2ShellBits *bits,
                         const uint64_t *table, uint32_t table_size,
                         uint32_t *sums);

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
