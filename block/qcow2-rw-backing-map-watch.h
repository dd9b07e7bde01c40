/*
 * qcow2 RW backing: requests and the allocation map
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_MAP_WATCH_H
#define BLOCK_QCOW2_RW_BACKING_MAP_WATCH_H

#include "qcow2-rw-backing-int.h"
#include "qcow2-rw-backing-map.h"

/*
 * Somebody finds out, or sees to it, that part of the disk reads as zeroes: was
 * it written to meanwhile?
 */
struct Qcow2MapWatch {
    Qcow2Map *map;
    uint64_t offset;
    uint64_t bytes;
    bool disturbed;
    QLIST_ENTRY(Qcow2MapWatch) next;
};

/* What qcow2_map_watch_end() found out */
typedef enum Qcow2MapFinding {
    /* Somebody may have written: nothing is known */
    QCOW2_MAP_DISTURBED,
    QCOW2_MAP_FOUND,
    /* Also that one holds data, which is set now, where the map had zeroes */
    QCOW2_MAP_IS_WRONG,
} Qcow2MapFinding;

/* Begins to watch; in any thread, also while the coroutine's request writes. */
void coroutine_fn qcow2_map_watch_begin(BlockDriverState *bs, Qcow2Map *map,
                                        Qcow2MapWatch *watch, uint64_t offset,
                                        uint64_t bytes);

/* Ends it, and nothing else. */
void qcow2_map_watch_cancel(BlockDriverState *bs, Qcow2MapWatch *watch);

/**
 * qcow2_map_watch_end:
 * @offset, @bytes: part of what was watched
 * @zero: for each granule that lies inside of that: does it read as zeroes?
 *        NULL if all of them do because the request has made them so
 *
 * Ends @watch.  If nobody else has written, granules that read as zeroes are
 * clear from now on, for sure.
 */
Qcow2MapFinding qcow2_map_watch_end(BlockDriverState *bs,
                                    Qcow2MapWatch *watch, uint64_t offset,
                                    uint64_t bytes, const unsigned long *zero);

/* Tells all who watch a part of these bytes, in any thread. */
void qcow2_map_disturb(BlockDriverState *bs, Qcow2Map *map, uint64_t offset,
                       uint64_t bytes);

/*
 * The shell keeps @map from now on, or none if it is NULL; what was there
 * before is still in use by requests that have begun.
 */
void qcow2_map_publish(BlockDriverState *bs, Qcow2Map *map);

/* The map has another table. */
void qcow2_map_update_gate(BlockDriverState *bs);

/* The slow way of qcow2_map_before_write(), which has found @gate. */
void qcow2_map_write(BlockDriverState *bs, const Qcow2MapTable *gate,
                     uint64_t offset, uint64_t bytes);

/*
 * Everything may hold data, since storage has lost some, or others have
 * written.  In any thread.
 */
void qcow2_map_fill(BlockDriverState *bs);

/*
 * To be called by each request that writes something else than zeroes, once it
 * was entered into bs->tracked_requests and has its marks, before it is
 * submitted.
 *
 * Watches first: one that has ended before this has cleared its granules, which
 * are set now; one that begins after this finds the request in the list.
 */
static inline void qcow2_map_before_write(BlockDriverState *bs,
                                          const Qcow2RwBacking *rwb,
                                          uint64_t offset, uint64_t bytes)
{
    const Qcow2MapTable *gate = qatomic_load_acquire(&rwb->map_gate);

    if (gate && unlikely(!qcow2_map_table_has(gate, offset, bytes))) {
        qcow2_map_write(bs, gate, offset, bytes);
    }
}

#endif
