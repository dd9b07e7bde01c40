/*
 * qcow2 RW backing: requests and the allocation map
 *
 * A granule becomes clear when a request has written zeroes to it, or when
 * somebody has read it and seen nothing else.  Neither says anything if another
 * request has written to it at any time between begin and end: storage may do
 * both in any order.  Looking at the end is not enough, since that other one
 * may have ended before, nor is looking at the begin.  So whoever may clear
 * granules watches them: requests that are in flight when this begins are in
 * bs->tracked_requests, and those that come later tell.
 *
 * That something was cleared is stored by a checkpoint, or when the image is
 * closed, which flush the RW backing after they have read the map.  A request
 * that writes zeroes has marks in the log, so the chunk is stored anew; for
 * those who only read, Qcow2Map.changes says that all of it has to be.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/coroutine.h"
#include "qemu/lockable.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-map-watch.h"

static bool overlap(uint64_t offset, uint64_t bytes, uint64_t other_offset,
                    uint64_t other_bytes)
{
    return offset < other_offset + other_bytes && other_offset < offset + bytes;
}

/* With bs->reqs_lock held; resizing is about everything */
static bool is_being_written(BlockDriverState *bs, const Qcow2MapWatch *watch)
{
    Coroutine *self = qemu_coroutine_self();
    BdrvTrackedRequest *req;

    QLIST_FOREACH(req, &bs->tracked_requests, list) {
        if (req->type != BDRV_TRACKED_READ && req->co != self &&
            (req->type == BDRV_TRACKED_TRUNCATE ||
             overlap(req->offset, req->bytes, watch->offset, watch->bytes))) {
            return true;
        }
    }
    return false;
}

/*
 * With bs->reqs_lock held.  As long as somebody watches, all requests have to
 * tell.  After granules were cleared, that is to be seen by those who pass.
 */
static void update_gate(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Map *map = rwb->map;

    qatomic_store_release(&rwb->map_gate,
                          !map ? NULL :
                          QLIST_EMPTY(&map->watches)
                          ? qatomic_load_acquire(&map->table)
                          : &qcow2_map_table_closed);
}

void coroutine_fn qcow2_map_watch_begin(BlockDriverState *bs, Qcow2Map *map,
                                        Qcow2MapWatch *watch, uint64_t offset,
                                        uint64_t bytes)
{
    *watch = (Qcow2MapWatch) {
        .map    = map,
        .offset = offset,
        .bytes  = bytes,
    };

    QEMU_LOCK_GUARD(&bs->reqs_lock);
    watch->disturbed = is_being_written(bs, watch);
    QLIST_INSERT_HEAD(&map->watches, watch, next);
    update_gate(bs);
}

void qcow2_map_update_gate(BlockDriverState *bs)
{
    QEMU_LOCK_GUARD(&bs->reqs_lock);
    update_gate(bs);
}

void qcow2_map_publish(BlockDriverState *bs, Qcow2Map *map)
{
    QEMU_LOCK_GUARD(&bs->reqs_lock);
    qatomic_store_release(&qcow2_shell(bs)->map, map);
    update_gate(bs);
}

/* With bs->reqs_lock held */
static void remove_watch(BlockDriverState *bs, Qcow2MapWatch *watch)
{
    QLIST_REMOVE(watch, next);
    update_gate(bs);
}

void qcow2_map_watch_cancel(BlockDriverState *bs, Qcow2MapWatch *watch)
{
    QEMU_LOCK_GUARD(&bs->reqs_lock);
    remove_watch(bs, watch);
}

/* With bs->reqs_lock held, when nobody has written */
static Qcow2MapFinding take_over(Qcow2Map *map, uint64_t first, uint64_t end,
                                 const unsigned long *zero)
{
    Qcow2MapFinding finding = QCOW2_MAP_FOUND;
    uint64_t i;

    if (zero) {
        /* Before the first bit: a map that is stored meanwhile has it or not */
        qatomic_inc(&map->changes);
    }
    for (i = first; i < end; i++) {
        if (!zero || test_bit(i - first, zero)) {
            qcow2_map_clear(map, i);
        } else if (!qcow2_map_holds_data(map, i)) {
            qcow2_map_set(map, i << map->granularity_bits, 1);
            finding = QCOW2_MAP_IS_WRONG;
        }
    }
    return finding;
}

Qcow2MapFinding qcow2_map_watch_end(BlockDriverState *bs,
                                    Qcow2MapWatch *watch, uint64_t offset,
                                    uint64_t bytes, const unsigned long *zero)
{
    Qcow2Map *map = watch->map;
    Qcow2MapFinding finding = QCOW2_MAP_DISTURBED;

    QEMU_LOCK_GUARD(&bs->reqs_lock);
    if (!watch->disturbed &&
        !(zero && qatomic_read(&qcow2_shell(bs)->disk_lost_data))) {
        finding = take_over(map, qcow2_map_first_inside(map, offset),
                            qcow2_map_end_inside(map, offset, bytes), zero);
    }
    remove_watch(bs, watch);
    return finding;
}

static void disturb_locked(Qcow2Map *map, uint64_t offset, uint64_t bytes)
{
    Qcow2MapWatch *watch;

    QLIST_FOREACH(watch, &map->watches, next) {
        watch->disturbed |= overlap(offset, bytes, watch->offset,
                                    watch->bytes);
    }
}

void qcow2_map_disturb(BlockDriverState *bs, Qcow2Map *map, uint64_t offset,
                       uint64_t bytes)
{
    QEMU_LOCK_GUARD(&bs->reqs_lock);
    disturb_locked(map, offset, bytes);
}

void qcow2_map_write(BlockDriverState *bs, const Qcow2MapTable *gate,
                     uint64_t offset, uint64_t bytes)
{
    Qcow2Map *map = qcow2_shell_map(bs);

    if (!map) {
        return;
    }
    if (gate == &qcow2_map_table_closed) {
        qcow2_map_disturb(bs, map, offset, bytes);
    }
    qcow2_map_set(map, offset, bytes);
}

void qcow2_map_fill(BlockDriverState *bs)
{
    Qcow2Map *map = qcow2_shell_map(bs);

    if (map) {
        QEMU_LOCK_GUARD(&bs->reqs_lock);
        disturb_locked(map, 0, INT64_MAX);
        qatomic_inc(&map->changes);
        qcow2_map_set_all(map);
    }
}
