/*
 * qcow2 RW backing: storing the bitmaps of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_STORE_H
#define BLOCK_QCOW2_RW_BACKING_STORE_H

#include "qcow2-rw-backing-int.h"
#include "qcow2-rw-backing-log-marks.h"

/* How bitmaps are stored */
typedef struct Qcow2ShellStoreMode {
    /*
     * The image goes out of our hands, and they can be used by others.
     * Otherwise they are in use, and those that are handed over in another way
     * at the end, as in the stream of a migration, are stored as well.
     */
    bool closing;

    /* On closing: if one of them cannot be stored, the others are */
    bool partly;

    /*
     * Where bits can have been set since the bitmaps were stored or loaded
     * last.  NULL if that is not known: everything is written.
     */
    const Qcow2LogMarks *written;
} Qcow2ShellStoreMode;

/* Bitmaps that are written, but that nothing in the image refers to yet */
typedef struct Qcow2ShellStore {
    GPtrArray *directory;           /* of Qcow2ShellEntry */
    uint64_t offset;                /* of the directory, 0 if it is empty */
    uint64_t size;
    uint32_t crc;

    /* Usable bitmaps come first in the directory; so many there are */
    uint32_t nb_usable;
    uint32_t checksum;              /* of these */

    /* bs->dirty_bitmap_changes, and Qcow2Map.changes, when they were read */
    unsigned int changes;
    unsigned long map_changes;

    /* A header may refer to it: clusters must not be used again */
    bool in_doubt;
} Qcow2ShellStore;

/**
 * qcow2_shell_store_begin:
 * @errp: why a bitmap could not be stored
 *
 * Writes all persistent bitmaps, and a directory, to clusters that nothing
 * refers to.  With BDRVQcow2State.lock held, or while the node is quiesced.
 *
 * Returns 0 with @store filled in, which is to be given to either of the
 * following functions; or -EAGAIN if bitmaps have changed meanwhile in another
 * way than by writes, or are about to; or -errno with @errp set.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_store_begin(BlockDriverState *bs, const Qcow2ShellStoreMode *mode,
                        Qcow2ShellStore *store, Error **errp);

/* Have bitmaps changed since in another way than by writes? */
bool qcow2_shell_store_is_outdated(BlockDriverState *bs,
                                   const Qcow2ShellStore *store);

/**
 * qcow2_shell_store_finish:
 *
 * Makes the header refer to @store, with what rwb->guard and rwb->pointer say.
 * What @store was written with must be durable; the header is when this
 * returns 0.  May be called again if it fails, and must be before anything else
 * is stored.
 *
 * Returns 0 with @store gone and old clusters free, or -errno: any of the two
 * directories may be the one in the file then.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_store_finish(BlockDriverState *bs, Qcow2ShellStore *store);

/* Frees @store, and its clusters unless they may be in use. */
void coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_store_abort(BlockDriverState *bs, Qcow2ShellStore *store);

/**
 * qcow2_shell_store_bitmaps:
 * @guard: describes the RW backing; its checksum is filled in
 * @errp: why a bitmap could not be stored
 *
 * All of it for an image that goes out of our hands, with a header that has
 * @guard, which becomes rwb->guard.  The node must be quiesced.
 *
 * Returns 0, or -errno with @errp set.
 */
int GRAPH_RDLOCK
qcow2_shell_store_bitmaps(BlockDriverState *bs, Qcow2RwBackingGuard *guard,
                          const Qcow2ShellStoreMode *mode, Error **errp);

/*
 * Bitmaps and the map are not what is stored, and no marks say where: the next
 * time, all of them are stored anew.
 */
void qcow2_shell_forget_stored(BlockDriverState *bs);

/* Warns of bitmaps that cannot be stored since the disk has grown too much. */
void qcow2_shell_report_too_large(BlockDriverState *bs);

/* Is there something that the log can cover while the image is in use? */
bool qcow2_shell_can_be_covered(BlockDriverState *bs);

/*
 * Is the bitmap of this name in memory persistent, whether it is to be stored
 * or migrated?
 */
bool qcow2_shell_is_persistent(BlockDriverState *bs, const char *name);

/* Would this bitmap be stored by an image that is closed? */
bool qcow2_shell_is_to_be_stored(BdrvDirtyBitmap *bitmap);

#endif
