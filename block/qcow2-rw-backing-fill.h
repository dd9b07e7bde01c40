/*
 * qcow2 RW backing: everything has changed
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_FILL_H
#define BLOCK_QCOW2_RW_BACKING_FILL_H

#include "block/block_int.h"

/**
 * qcow2_shell_fill_bitmaps:
 * @all: also bitmaps that do not record at the moment
 *
 * Makes bitmaps in memory say that everything has changed: what they miss
 * cannot be known, and this is never wrong.  May be called in any thread.
 */
void qcow2_shell_fill_bitmaps(BlockDriverState *bs, bool all);

/* Also the allocation map, which says that all of the disk may hold data. */
void qcow2_shell_fill_all(BlockDriverState *bs, bool all);

#endif
