/*
 * qcow2 RW backing: are the bitmaps to be believed?
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_JUDGE_H
#define BLOCK_QCOW2_RW_BACKING_JUDGE_H

#include "qcow2-rw-backing-int.h"

/**
 * qcow2_shell_take_over_size:
 *
 * The virtual size becomes that of the RW backing.  For a node that is
 * inactive, whose RW backing others may still be writing to.
 *
 * Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK qcow2_shell_take_over_size(BlockDriverState *bs,
                                                         Error **errp);

/**
 * qcow2_shell_judge:
 *
 * Takes over the size of the RW backing, and decides by what is recorded of it
 * whether the bitmaps in the image are to be believed.  If
 * the RW backing has only grown, sets rwb->grown_size.
 *
 * Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK qcow2_shell_judge(BlockDriverState *bs,
                                                Error **errp);

/* The same once more, for an image that was trusted while it was read-only. */
void GRAPH_RDLOCK qcow2_shell_judge_again(BlockDriverState *bs);

/* Stored bitmaps are out of date, and will be inconsistent once loaded. */
void qcow2_shell_distrust(BlockDriverState *bs);

/* Names the bitmaps in memory that are inconsistent. */
void qcow2_shell_report_stale_bitmaps(BlockDriverState *bs);

/*
 * Metadata was found to be damaged: reports @err, with @format before it.  What
 * it means for bitmaps is for the caller to say.
 */
void G_GNUC_PRINTF(3, 4)
qcow2_shell_report_damage(BlockDriverState *bs, Error *err,
                          const char *format, ...);

#endif
