/*
 * qcow2 RW backing: reopening a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_REOPEN_H
#define BLOCK_QCOW2_RW_BACKING_REOPEN_H

#include "qcow2-rw-backing-int.h"

/* Entries of the driver table, see block_int-common.h */

bool qcow2_shell_reopen_keeps_child(BlockDriverState *bs, BdrvChild *child,
                                    QDict *options);
int GRAPH_UNLOCKED
qcow2_shell_reopen_prepare(BDRVReopenState *state, BlockReopenQueue *queue,
                           Error **errp);
void GRAPH_UNLOCKED qcow2_shell_reopen_commit(BDRVReopenState *state);
void GRAPH_UNLOCKED qcow2_shell_reopen_commit_post(BDRVReopenState *state);
void GRAPH_UNLOCKED qcow2_shell_reopen_abort(BDRVReopenState *state);

#endif
