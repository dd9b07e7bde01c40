/*
 * qcow2 RW backing: the child node of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_CHILD_H
#define BLOCK_QCOW2_RW_BACKING_CHILD_H

#include "qcow2-rw-backing-int.h"

/* Returns true if @options have @key, or something below it. */
bool qcow2_shell_has_option(QDict *options, const char *key);

/**
 * qcow2_shell_take_alias:
 *
 * Management tools know "data-file", the option for qcow2's external data file,
 * and give it for images of which they know that the data is elsewhere.  Makes
 * it "rw-backing".  Returns false with @errp set if that is there, too.
 */
bool qcow2_shell_take_alias(QDict *options, Error **errp);

/**
 * qcow2_shell_attach_child:
 * @options: those for the RW backing are removed
 * @open_child: false if @bs has it already
 *
 * Finds or opens the RW backing.  Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_shell_attach_child(BlockDriverState *bs, QDict *options, bool open_child,
                         Error **errp);

#endif
