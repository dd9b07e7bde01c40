/*
 * qcow2 RW backing: what users are told of a shell
 *
 * For 'qemu-img info', query-named-block-nodes and 'qemu-img check'.  Nothing
 * here changes what is known.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-types-block-core.h"
#include "qemu/lockable.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-info.h"
#include "qcow2-rw-backing-log.h"

static Qcow2RwBackingLogInfo *log_info(Qcow2RwBacking *rwb)
{
    Qcow2RwBackingLogInfo *info = g_new0(Qcow2RwBackingLogInfo, 1);
    Qcow2Log *log = rwb->log;

    info->active = rwb->pointer.log_armed;
    QEMU_LOCK_GUARD(&log->lock);
    if (log->marks) {
        info->has_generation = true;
        info->generation = log->marks->id.generation;
        info->has_chunk_size = true;
        info->chunk_size = UINT64_C(1) << log->marks->chunk_bits;
        info->has_marked = true;
        info->marked = (uint64_t)qcow2_log_marks_count(log->marks)
                       << log->marks->chunk_bits;
    }
    return info;
}

/*
 * Bytes of the disk that may hold data, as the image says that nobody uses;
 * returns -errno if it does not say
 */
static int64_t GRAPH_RDLOCK stored_map_bytes(BlockDriverState *bs,
                                             const Qcow2ShellEntry *entry)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    g_autofree uint64_t *table = NULL;
    g_autofree uint8_t *buf = g_malloc(s->cluster_size);
    uint64_t granules = 0;
    uint32_t i, j;
    int ret;

    ret = qcow2_shell_table_read(bs, entry, &table);
    for (i = 0; ret == 0 && i < entry->table_size; i++) {
        uint64_t offset = table[i] & QCOW2_SHELL_TABLE_OFFSET_MASK;

        if (table[i] & QCOW2_SHELL_TABLE_ALL_ONES) {
            granules += s->cluster_size * 8;
        } else if (offset) {
            ret = bdrv_pread(bs->file, offset, s->cluster_size, buf, 0);
            for (j = 0; ret == 0 && j < s->cluster_size; j++) {
                granules += ctpop8(buf[j]);
            }
        }
    }
    return ret < 0 ? ret : MIN(granules << entry->granularity_bits, size);
}

static Qcow2RwBackingMapInfo * GRAPH_RDLOCK map_info(BlockDriverState *bs)
{
    Qcow2RwBackingMapInfo *info = g_new0(Qcow2RwBackingMapInfo, 1);
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2Map *map = qcow2_shell_map(bs);
    g_autoptr(GPtrArray) directory = NULL;
    const Qcow2ShellEntry *entry;
    int64_t allocated;

    if (map) {
        info->has_allocated = true;
        info->allocated = qcow2_map_count(map);
        info->proven = qcow2_map_is_proven(map);
        info->granularity = UINT64_C(1) << map->granularity_bits;
        info->has_granularity = true;
        return info;
    }
    directory = qcow2_shell_directory_read(bs, NULL);
    entry = directory ? qcow2_shell_directory_find(directory,
                                                   QCOW2_RW_BACKING_MAP_NAME)
                      : NULL;
    if (!entry || (entry->flags & QCOW2_SHELL_BITMAP_IN_USE) ||
        rwb->state.verdict == QCOW2_SHELL_DISTRUSTED) {
        return info;
    }
    allocated = stored_map_bytes(bs, entry);
    if (allocated >= 0) {
        info->has_allocated = true;
        info->allocated = allocated;
        info->has_granularity = true;
        info->granularity = UINT64_C(1) << entry->granularity_bits;
    }
    return info;
}

static ImageInfoSpecificQCow2RwBacking * GRAPH_RDLOCK
rw_backing_info(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    ImageInfoSpecificQCow2RwBacking *info;

    info = g_new(ImageInfoSpecificQCow2RwBacking, 1);
    *info = (ImageInfoSpecificQCow2RwBacking) {
        .format       = g_strdup(rwb->pointer.format),
        .filename     = g_strdup(rwb->pointer.filename),
        .name_stored  = rwb->pointer.filename != NULL,
        .guard        = rwb->guard_state,
        .guard_reason = g_strdup(rwb->guard_reason),
        .log          = rwb->pointer.log ? log_info(rwb) : NULL,
        .allocation_map = rwb->pointer.map ? map_info(bs) : NULL,
    };
    return info;
}

/*
 * Without bitmaps if the directory cannot be read: the question is about a disk
 * that works.
 */
static Qcow2BitmapInfoList * GRAPH_RDLOCK bitmaps_info(BlockDriverState *bs)
{
    g_autoptr(GPtrArray) directory = qcow2_shell_directory_read(bs, NULL);
    bool distrusted =
        qcow2_shell(bs)->state.verdict == QCOW2_SHELL_DISTRUSTED;
    Qcow2BitmapInfoList *list = NULL, **tail = &list;
    guint i;

    for (i = 0; directory && i < directory->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);
        Qcow2BitmapInfoFlagsList **flags;
        Qcow2BitmapInfo *info;

        if (qcow2_shell_is_map(entry->name)) {
            continue;
        }
        info = g_new0(Qcow2BitmapInfo, 1);
        flags = &info->flags;
        info->name = g_strdup(entry->name);
        info->granularity = UINT32_C(1) << entry->granularity_bits;
        if (distrusted || (entry->flags & QCOW2_SHELL_BITMAP_IN_USE)) {
            QAPI_LIST_APPEND(flags, QCOW2_BITMAP_INFO_FLAGS_IN_USE);
        }
        if (entry->flags & QCOW2_SHELL_BITMAP_AUTO) {
            QAPI_LIST_APPEND(flags, QCOW2_BITMAP_INFO_FLAGS_AUTO);
        }
        QAPI_LIST_APPEND(tail, info);
    }
    return list;
}

ImageInfoSpecific *qcow2_shell_get_specific_info(BlockDriverState *bs,
                                                 Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    ImageInfoSpecificQCow2 *data = g_new0(ImageInfoSpecificQCow2, 1);
    ImageInfoSpecific *info = g_new0(ImageInfoSpecific, 1);

    *data = (ImageInfoSpecificQCow2) {
        .compat             = g_strdup("1.1"),
        .has_extended_l2    = true,
        .has_lazy_refcounts = true,
        .lazy_refcounts     =
            s->compatible_features & QCOW2_COMPAT_LAZY_REFCOUNTS,
        .has_corrupt        = true,
        .corrupt            =
            s->incompatible_features & QCOW2_INCOMPAT_CORRUPT,
        .refcount_bits      = s->refcount_bits,
        .compression_type   = s->compression_type,
        .rw_backing         = rw_backing_info(bs),
        .bitmaps            = bitmaps_info(bs),
    };
    data->has_bitmaps = data->bitmaps;

    info->type = IMAGE_INFO_SPECIFIC_KIND_QCOW2;
    info->u.qcow2.data = data;
    return info;
}

/*
 * What was wrong with the metadata when the image was opened does not count as
 * sound because it was put aside.
 */
int coroutine_fn qcow2_shell_co_check(BlockDriverState *bs,
                                      BdrvCheckResult *result,
                                      BdrvCheckMode fix)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int ret = bdrv_qcow2.bdrv_co_check(bs, result, fix);

    if (!rwb->state.needs_repair) {
        return ret;
    }
    if ((fix & BDRV_FIX_ERRORS) && ret == 0 && !result->corruptions &&
        !result->check_errors && !rwb->header_outdated) {
        rwb->state.needs_repair = false;
        result->corruptions_fixed++;
    } else if (!result->corruptions) {
        result->corruptions++;
    }
    return ret;
}
