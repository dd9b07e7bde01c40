/*
 * qcow2 RW backing: what our files share
 *
 * The state of a shell.  What the rooms do is in headers of their own; the map
 * in docs/devel/qcow2-rw-backing.rst says what each of them is for.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_INT_H
#define BLOCK_QCOW2_RW_BACKING_INT_H

#include "block/qcow2-rw-backing-format.h"
#include "qcow2-rw-backing.h"
#include "qcow2-rw-backing-guard.h"
#include "qcow2-rw-backing-log-marks.h"
#include "qcow2-rw-backing-map.h"
#include "qcow2-rw-backing-state.h"

typedef struct Qcow2Log Qcow2Log;
typedef struct Qcow2LogRecovery Qcow2LogRecovery;

/* Names that QEMU takes for file descriptors which were passed to it */
#define QCOW2_RW_BACKING_FDSET_PREFIX   "/dev/fdset/"

/*
 * A shell.  Written in the main thread while the node is quiesced, or under
 * BDRVQcow2State.lock; constant for the I/O path.
 */
typedef struct Qcow2RwBacking {
    /* NULL if the user only inspects the image */
    BdrvChild *child;

    /*
     * While the image is reopened: with another child, the one it had; and
     * whether nothing can have been written before
     */
    BlockDriverState *reopen_old_bs;
    bool reopen_was_readonly;

    /* As stored in the header, whatever node the user chose at open time */
    Qcow2RwBackingPointer pointer;

    /* Size of the RW backing in bytes as stored in the header */
    uint64_t stored_size;

    /*
     * If it has only grown since the bitmaps were stored, the size in bytes
     * that it has now; 0 otherwise, or once the bitmaps are loaded
     */
    uint64_t grown_size;

    /*
     * If it was made smaller since, by a program that has crashed, the size in
     * bytes that it has now; likewise
     */
    uint64_t shrunk_size;

    /*
     * Since its bitmaps were added, the disk may have been larger than it is:
     * what it reads in a new part is not what it did there
     */
    bool shrunk;

    /* The local file under the RW backing */
    Qcow2RwBackingFile file;

    /*
     * The record that goes to the header when it is written next, of kind
     * QCOW2_RW_BACKING_GUARD_NONE for a header without a seal.  What is in the
     * file is in @state.
     */
    Qcow2RwBackingGuard guard;

    /* What was found in the header when the image was opened */
    Qcow2RwBackingGuard read_guard;

    /*
     * Bitmaps in memory that have all that the image knows, since they were
     * just loaded from it (they were not there before) or brought together with
     * it
     */
    GSList *loaded;
    GSList *merged;

    /*
     * The bitmap directory in the file, GPtrArray of Qcow2ShellEntry; and
     * bs->dirty_bitmap_changes when its bitmaps were stored or loaded
     */
    GPtrArray *directory;
    unsigned int stored_changes;

    /* Checksum of the bitmaps in the image, if it is known */
    bool has_stored_checksum;
    uint32_t stored_checksum;

    Qcow2ShellState state;

    /*
     * What the path of a write looks at, in any thread.  Follows from @state
     * and @log, see qcow2_shell_update_gate().
     */
    const Qcow2LogGate *gate;
    Qcow2Log *log;

    /*
     * NULL if the image keeps none, or others may be writing; and what it was
     * when it was stored last.  One that is not kept any more stays until the
     * image is closed, requests may be using it.
     */
    Qcow2Map *map;
    GSList *old_maps;

    /*
     * What the path of a write looks at: the table of the map, or one in which
     * nothing is set while somebody watches.  NULL if there is no map.
     */
    const Qcow2MapTable *map_gate;
    unsigned long stored_map_changes;

    /* Time between two checkpoints in seconds */
    uint32_t checkpoint_interval;

    /* What the log says of bitmaps in the file, until they are loaded */
    Qcow2LogRecovery *recovery;

    /* When to compare the RW backing, what came out, and why */
    BlockdevQcow2RwBackingGuard guard_mode;
    Qcow2RwBackingGuardState guard_state;
    char *guard_reason;

    /*
     * All bitmaps know of flushes that have failed before (get_clock()); under
     * bs->reqs_lock
     */
    uint64_t flush_failures_seen;

    /*
     * There was one.  What the disk reads may be in a cache only, and something
     * else after a crash, whether later flushes succeed or not: who looks for
     * zeroes learns nothing.
     */
    bool disk_lost_data;

    /* The header has to be written as soon as the node is writable */
    bool header_outdated;

    /*
     * The gate for writes: when to try again (QEMU_CLOCK_REALTIME, in ns), and
     * was the user told that it cannot be opened?
     */
    int64_t retry_time;
    bool gate_reported;
} Qcow2RwBacking;

/* Driver tables of a shell; never registered, see qcow2_rw_backing_open() */
extern BlockDriver bdrv_qcow2_rw_backing;
extern BlockDriver bdrv_qcow2_rw_backing_inspected;

static inline Qcow2RwBacking *qcow2_shell(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    return s->rw_backing;
}

/* In any thread */
static inline Qcow2Map *qcow2_shell_map(BlockDriverState *bs)
{
    return qatomic_load_acquire(&qcow2_shell(bs)->map);
}

static inline bool qcow2_is_shell(BlockDriverState *bs)
{
    return bs->drv == &bdrv_qcow2_rw_backing ||
           bs->drv == &bdrv_qcow2_rw_backing_inspected;
}

#endif
