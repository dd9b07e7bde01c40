/*
 * qcow2 RW backing: flushes that can be relied on
 *
 * Storage reports once that it has lost data, to whoever has flushed, and the
 * next flush succeeds.  So a flush that succeeds proves something about earlier
 * writes only if none has failed in between; nodes remember when one has.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/error-report.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-fill.h"
#include "qcow2-rw-backing-flush.h"

/*
 * A node that nobody writes to at the moment does not pass a flush on to its
 * children, although a guest that has gone since may have written.
 */
static int coroutine_mixed_fn GRAPH_RDLOCK flush_tree(BlockDriverState *bs)
{
    int ret = bdrv_flush(bs);
    BdrvChild *child;

    QLIST_FOREACH(child, &bs->children, next) {
        int child_ret = flush_tree(child->bs);

        ret = ret < 0 ? ret : child_ret;
    }
    return ret;
}

static bool GRAPH_RDLOCK
flush_has_failed(BlockDriverState *bs, uint64_t since)
{
    BdrvChild *child;

    if (stat64_get(&bs->flush_failed_at) >= since) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (flush_has_failed(child->bs, since)) {
            return true;
        }
    }
    return false;
}

int coroutine_mixed_fn
qcow2_shell_flush_file(BlockDriverState *bs, uint64_t since)
{
    int ret = bdrv_flush(bs->file->bs);

    return ret < 0 ? ret : flush_has_failed(bs->file->bs, since) ? -EIO : 0;
}

void qcow2_shell_flush_failed(BlockDriverState *bs)
{
    /* In this order: a failure in between is found later */
    stat64_max(&qcow2_shell(bs)->flush_failures_seen, get_clock());
    qatomic_set(&qcow2_shell(bs)->disk_lost_data, true);
    qcow2_shell_fill_all(bs, false);
}

void qcow2_shell_find_failed_flush(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    if (flush_has_failed(rwb->child->bs,
                         stat64_get(&rwb->flush_failures_seen))) {
        warn_report("A flush of the RW backing of '%s' has failed: its bitmaps "
                    "say that everything has changed", bs->filename);
        qcow2_shell_flush_failed(bs);
    }
}

int coroutine_mixed_fn qcow2_shell_flush_disk(BlockDriverState *bs)
{
    int ret = flush_tree(qcow2_shell(bs)->child->bs);

    /* Also if it was another one, and this one succeeds over a loss */
    qcow2_shell_find_failed_flush(bs);
    return ret;
}
