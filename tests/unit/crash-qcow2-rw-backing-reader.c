/*
 * States that a crash can leave: what a reader believes
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "crash-qcow2-rw-backing.h"
#include "../../block/qcow2-rw-backing-int.h"

static void found_free(void *opaque)
{
    CrashFound *found = opaque;

    g_free(found->name);
    g_free(found->bits);
    g_free(found);
}

const CrashFound *crash_found(GPtrArray *found, const char *name)
{
    for (int i = 0; i < found->len; i++) {
        const CrashFound *f = found->pdata[i];

        if (!strcmp(f->name, name)) {
            return f;
        }
    }
    return NULL;
}

static void read_bits(BdrvDirtyBitmap *bitmap, CrashFound *found)
{
    int64_t offset = 0, bytes;

    found->bits = bitmap_new(MAX(found->size / found->granularity + 1, 1));
    while (bdrv_dirty_bitmap_next_dirty_area(bitmap, offset, found->size,
                                             INT64_MAX, &offset, &bytes)) {
        bitmap_set(found->bits, offset / found->granularity,
                   DIV_ROUND_UP(bytes, found->granularity));
        offset += bytes;
    }
}

/* The allocation map is like a bitmap: what is clear has to be zero */
static CrashFound *read_map(Qcow2Map *map)
{
    CrashFound *found = g_new0(CrashFound, 1);
    uint64_t i;

    *found = (CrashFound) {
        .name = g_strdup(QCOW2_RW_BACKING_MAP_NAME),
        .granularity = 1U << map->granularity_bits,
        .size = map->size,
        .recording = true,
        .is_map = true,
    };
    found->bits = bitmap_new(MAX(found->size / found->granularity + 1, 1));
    for (i = 0; i * found->granularity < found->size; i++) {
        if (qcow2_map_holds_data(map, i)) {
            set_bit(i, found->bits);
        }
    }
    return found;
}

GPtrArray *crash_read_node(BlockDriverState *bs)
{
    GPtrArray *all = g_ptr_array_new_with_free_func(found_free);
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        CrashFound *found;

        if (!bdrv_dirty_bitmap_get_persistence(bitmap)) {
            continue;
        }
        found = g_new0(CrashFound, 1);
        found->name = g_strdup(bdrv_dirty_bitmap_name(bitmap));
        found->granularity = bdrv_dirty_bitmap_granularity(bitmap);
        found->size = bdrv_dirty_bitmap_size(bitmap);
        found->inconsistent = bdrv_dirty_bitmap_inconsistent(bitmap);
        found->recording = bdrv_dirty_bitmap_enabled(bitmap);
        if (!found->inconsistent) {
            read_bits(bitmap, found);
        }
        g_ptr_array_add(all, found);
    }
    if (qcow2_shell_map(bs)) {
        g_ptr_array_add(all, read_map(qcow2_shell_map(bs)));
    }
    return all;
}

static BlockDriverState *open_memory(const char *name, Error **errp)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "crash-memory");
    qdict_put_str(options, "name", name);
    qdict_put_str(options, "node-name", name);
    return bdrv_open(NULL, NULL, options, BDRV_O_RDWR, errp);
}

GPtrArray *crash_read_state(bool writable, const char *guard, Error **errp)
{
    QDict *options = qdict_new();
    BlockDriverState *disk = open_memory("left-disk", &error_abort);
    BlockDriverState *bs;
    GPtrArray *found = NULL;

    qdict_put_str(options, "driver", "qcow2");
    qdict_put_str(options, "file.driver", "crash-memory");
    qdict_put_str(options, "file.name", "left-shell");
    qdict_put_str(options, "rw-backing", "left-disk");
    qdict_put_str(options, "rw-backing-guard", guard);
    bs = bdrv_open(NULL, NULL, options, writable ? BDRV_O_RDWR : 0, errp);
    if (bs) {
        found = crash_read_node(bs);
        bdrv_unref(bs);
    }
    bdrv_unref(disk);
    return found;
}
