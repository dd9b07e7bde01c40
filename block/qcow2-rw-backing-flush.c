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
#include "qemu/lockable.h"
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

    WITH_QEMU_LOCK_GUARD(&bs->reqs_lock) {
        if (bs->flush_failed_at >= since) {
            return true;
        }
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
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    /* In this order: a failure in between is found later */
    WITH_QEMU_LOCK_GUARD(&bs->reqs_lock) {
        rwb->flush_failures_seen = get_clock();
    }
    qatomic_set(&rwb->disk_lost_data, true);
    qcow2_shell_fill_all(bs, false);
}

void qcow2_shell_find_failed_flush(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t since;

    WITH_QEMU_LOCK_GUARD(&bs->reqs_lock) {
        since = rwb->flush_failures_seen;
    }
    if (flush_has_failed(rwb->child->bs, since)) {
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
