/*
 * qcow2 RW backing: bitmaps of a shell, from and to the image
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_BITMAPS_H
#define BLOCK_QCOW2_RW_BACKING_BITMAPS_H

#include "qcow2-rw-backing-int.h"

/**
 * qcow2_shell_load_bitmaps:
 *
 * Loads all bitmaps of the image; those that are not to be believed are
 * inconsistent, or left out if not even their names are known.  Bitmaps that
 * are in memory already, since the node was inactive, are brought together with
 * those of the image.
 */
void coroutine_fn GRAPH_RDLOCK qcow2_shell_load_bitmaps(BlockDriverState *bs);

/**
 * qcow2_shell_verify_bitmaps:
 *
 * Looks at all that would be loaded, and takes no memory for it.  Without the
 * RW backing, it cannot be told whether the bitmaps are right; if they are
 * damaged, they are distrusted.
 */
void coroutine_fn GRAPH_RDLOCK qcow2_shell_verify_bitmaps(BlockDriverState *bs);

/* Is there any bitmap in memory that can be wrong? */
bool qcow2_shell_has_bitmaps(BlockDriverState *bs, bool only_persistent);

/* Removes all bitmaps from memory that are in the image now. */
void qcow2_shell_release_bitmaps(BlockDriverState *bs);

/* Removes those that were loaded last, and were not in memory before. */
void qcow2_shell_release_loaded(BlockDriverState *bs);

/*
 * Makes bitmaps in memory that the last load has neither loaded nor brought up
 * to date say that everything has changed.  Returns true if there are any.
 */
bool qcow2_shell_fill_left_behind(BlockDriverState *bs);

/* What was loaded last is of no interest any more. */
void qcow2_shell_forget_loaded(BlockDriverState *bs);

void qcow2_shell_set_bitmaps_readonly(BlockDriverState *bs, bool readonly);

#endif
