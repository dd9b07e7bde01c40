/*
 * qcow2 RW backing: what users are told of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_INFO_H
#define BLOCK_QCOW2_RW_BACKING_INFO_H

#include "qcow2-rw-backing-int.h"

ImageInfoSpecific * GRAPH_RDLOCK
qcow2_shell_get_specific_info(BlockDriverState *bs, Error **errp);
int coroutine_fn GRAPH_RDLOCK
qcow2_shell_co_check(BlockDriverState *bs, BdrvCheckResult *result,
                     BdrvCheckMode fix);

#endif
