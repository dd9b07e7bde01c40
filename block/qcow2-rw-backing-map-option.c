/*
 * qcow2 RW backing: beginning and ending to keep an allocation map
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-checkpoint.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-map-option.h"
#include "qcow2-rw-backing-map-watch.h"
#include "qcow2-rw-backing-new-bitmaps.h"
#include "qcow2-rw-backing-perm.h"

static bool GRAPH_RDLOCK can_begin(BlockDriverState *bs, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    if (!rwb->pointer.log) {
        error_setg(errp, "An allocation map requires a write-intent log, which "
                   "'%s' does not keep", bs->filename);
        return false;
    }
    if (bdrv_find_dirty_bitmap(bs, QCOW2_RW_BACKING_MAP_NAME)) {
        error_setg(errp, "'%s' has a bitmap '%s', which is the name of the "
                   "allocation map", bs->filename, QCOW2_RW_BACKING_MAP_NAME);
        return false;
    }
    if (qcow2_shell_may_others_write(bs)) {
        error_setg(errp, "An allocation map of '%s' would miss what is written "
                   "to the RW backing without using the image",
                   bdrv_get_device_or_node_name(bs));
        return false;
    }
    return true;
}

/* All of the disk may hold data, until something else turns out */
static void begin(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    Qcow2Map *map;

    map = qcow2_map_new(size, qcow2_map_granularity_bits(
                                  size, QCOW2_SHELL_BITMAP_MAX_CONTENT));
    qcow2_map_set_all(map);
    qatomic_inc(&map->changes);
    rwb->pointer.map = true;
    qcow2_map_publish(bs, map);
}

/* Requests may be using it, so it is freed later on */
static void end(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Map *map = rwb->map;

    rwb->pointer.map = false;
    if (map) {
        qcow2_map_publish(bs, NULL);
        rwb->old_maps = g_slist_prepend(rwb->old_maps, map);
    }
    /* To be stored without it */
    bs->dirty_bitmap_changes++;
}

int coroutine_fn
qcow2_shell_set_map(BlockDriverState *bs, BlockdevQcow2RwBackingMap option,
                    Qcow2MapProgress *progress, void *opaque, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    if (!rwb->child || !bdrv_is_writable(bs)) {
        error_setg(errp, "Image '%s' is not writable", bs->filename);
        return -EACCES;
    }
    if (rwb->state.needs_repair) {
        error_setg(errp, "Metadata of '%s' is damaged, it has to be repaired "
                   "with 'qemu-img check -r all' before its allocation map can "
                   "be changed", bs->filename);
        return -EINVAL;
    }
    if (option == BLOCKDEV_QCOW2_RW_BACKING_MAP_OFF) {
        end(bs);
        qcow2_shell_start_checkpoints(bs);
        return 0;
    }
    if (!rwb->map) {
        if (!can_begin(bs, errp) || !qcow2_shell_reserve_map(bs, errp)) {
            return -EINVAL;
        }
        begin(bs);
        qcow2_shell_start_checkpoints(bs);
    }
    if (qatomic_read(&rwb->disk_lost_data)) {
        error_setg(errp, "A flush of the RW backing of '%s' has failed: what "
                   "it reads may not be what it has, so that nobody can look "
                   "for zeroes until it was closed and caches were dropped",
                   bs->filename);
        return -EIO;
    }
    return qcow2_map_scan(bs, option == BLOCKDEV_QCOW2_RW_BACKING_MAP_SCAN,
                          progress, opaque, errp);
}

typedef struct SetMap {
    BlockDriverState *bs;
    BlockdevQcow2RwBackingMap option;
    Qcow2MapProgress *progress;
    void *opaque;
    Error **errp;
    int ret;
} SetMap;

static void coroutine_fn set_map_entry(void *opaque)
{
    SetMap *data = opaque;

    WITH_GRAPH_RDLOCK_GUARD() {
        data->ret = qcow2_shell_set_map(data->bs, data->option, data->progress,
                                        data->opaque, data->errp);
    }
    aio_wait_kick();
}

int qcow2_shell_set_map_sync(BlockDriverState *bs,
                             BlockdevQcow2RwBackingMap option,
                             Qcow2MapProgress *progress, void *opaque,
                             Error **errp)
{
    SetMap data = {
        .bs       = bs,
        .option   = option,
        .progress = progress,
        .opaque   = opaque,
        .errp     = errp,
        .ret      = -EINPROGRESS,
    };

    qemu_coroutine_enter(qemu_coroutine_create(set_map_entry, &data));
    BDRV_POLL_WHILE(bs, data.ret == -EINPROGRESS);
    if (data.ret == 0 && option == BLOCKDEV_QCOW2_RW_BACKING_MAP_OFF) {
        qcow2_shell_bitmaps_changed(bs);
    }
    return data.ret;
}
