/*
 * QMP command x-blockdev-replace-node
 *
 * Puts a node over another one that is in use, or takes it away again.  Where
 * both are in one chain, they have the same data, so users need not notice.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-block-core.h"
#include "block/block.h"
#include "block/block_int.h"

/*
 * Returns false with @errp set if the users of @bs might find other data, or
 * another size, in @new_bs.
 */
static bool GRAPH_RDLOCK
can_replace(BlockDriverState *bs, BlockDriverState *new_bs, Error **errp)
{
    const char *name = bdrv_get_node_name(bs);
    const char *new_name = bdrv_get_node_name(new_bs);
    int64_t length, new_length;

    if (bs == new_bs || (!bdrv_recurse_can_replace(new_bs, bs) &&
                         !bdrv_recurse_can_replace(bs, new_bs))) {
        error_setg(errp, "Node '%s' has its data neither from node '%s' nor "
                   "the other way round", new_name, name);
        return false;
    }
    if (bdrv_op_is_blocked(bs, BLOCK_OP_TYPE_REPLACE, errp)) {
        return false;
    }
    if (bdrv_get_aio_context(bs) != bdrv_get_aio_context(new_bs)) {
        error_setg(errp, "Node '%s' is not in the iothread of node '%s'",
                   new_name, name);
        return false;
    }
    length = bdrv_getlength(bs);
    new_length = bdrv_getlength(new_bs);
    if (length < 0 || new_length < 0) {
        error_setg_errno(errp, length < 0 ? -length : -new_length,
                         "Could not get the size of node '%s'",
                         length < 0 ? name : new_name);
        return false;
    }
    if (length != new_length) {
        error_setg(errp, "Node '%s' has a size of %" PRId64 " bytes, and node "
                   "'%s' has %" PRId64, new_name, new_length, name, length);
        return false;
    }
    return true;
}

void qmp_x_blockdev_replace_node(const char *node, const char *new_node,
                                 Error **errp)
{
    BlockDriverState *bs = bdrv_lookup_bs(NULL, node, errp);
    BlockDriverState *new_bs = bs ? bdrv_lookup_bs(NULL, new_node, errp) : NULL;

    if (!new_bs) {
        return;
    }
    bdrv_graph_rdlock_main_loop();
    if (!can_replace(bs, new_bs, errp)) {
        bdrv_graph_rdunlock_main_loop();
        return;
    }
    bdrv_graph_rdunlock_main_loop();

    bdrv_ref(bs);
    bdrv_ref(new_bs);
    bdrv_drained_begin(bs);
    bdrv_drained_begin(new_bs);
    bdrv_graph_wrlock();
    bdrv_replace_node(bs, new_bs, errp);
    bdrv_graph_wrunlock();
    bdrv_drained_end(new_bs);
    bdrv_drained_end(bs);
    bdrv_unref(new_bs);
    bdrv_unref(bs);
}
