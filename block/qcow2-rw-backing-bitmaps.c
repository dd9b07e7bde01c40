/*
 * qcow2 RW backing: bitmaps of a shell, from and to the image
 *
 * A bitmap that misses a write is worse than none, but no trouble with bitmaps
 * may cost the guest its disk.  So a bitmap of a shell becomes inconsistent, or
 * is left out, where that of another image is trusted or keeps the image from
 * being opened.  One that cannot be stored does not take its neighbours along;
 * one that cannot be loaded does, if there is a checksum, which is that of all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-types-block-core.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmap-data.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-judge.h"
#include "qcow2-rw-backing-map-watch.h"
#include "qcow2-rw-backing-recovery.h"
#include "qcow2-rw-backing-store.h"

/* The most memory for all bitmaps that are there only to be removed */
#define INCONSISTENT_MAX            (16 * MiB)

/* Loading */

/* Returns false with @errp set if the content is not usable */
static bool coroutine_fn GRAPH_RDLOCK
load_content(BlockDriverState *bs, Qcow2ShellEntry *entry,
             const Qcow2ShellBits *bits, uint32_t *checksum, Error **errp)
{
    uint64_t granularity = UINT64_C(1) << entry->granularity_bits;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    g_autofree uint64_t *table = NULL;
    g_autofree uint32_t *sums = NULL;
    uint32_t i;
    int ret;

    if (entry->table_size != qcow2_shell_table_size(bs, size, granularity)) {
        error_setg(errp, "Its table has %" PRIu32 " entries, but a disk of "
                   "%" PRIu64 " bytes needs %" PRIu64, entry->table_size, size,
                   qcow2_shell_table_size(bs, size, granularity));
        return false;
    }
    ret = qcow2_shell_table_read(bs, entry, &table);
    if (ret == 0) {
        sums = g_try_new0(uint32_t, entry->table_size);
        ret = sums ? qcow2_shell_co_load_data(bs, bits, table,
                                              entry->table_size, sums)
                   : -ENOMEM;
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not load its content");
        return false;
    }
    *checksum += qcow2_shell_sum_bitmap(entry->name, granularity,
                                        entry->flags &
                                        QCOW2_SHELL_BITMAP_AUTO);
    for (i = 0; i < entry->table_size; i++) {
        *checksum += sums[i];
    }
    if (bits->bitmap || bits->map) {
        entry->table = g_steal_pointer(&table);
        entry->sums = g_steal_pointer(&sums);
    }
    return true;
}

/*
 * Nobody asks for the granularity of a bitmap that says nothing.  There may be
 * many of them in an image that nobody has reason to trust.
 */
static uint32_t limit_granularity(BlockDriverState *bs, uint32_t granularity)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;

    while (granularity < 1U << 31 &&
           size / granularity / 8 > INCONSISTENT_MAX / s->nb_bitmaps) {
        granularity <<= 1;
    }
    return granularity;
}

static void coroutine_fn GRAPH_RDLOCK
load_bitmap(BlockDriverState *bs, Qcow2ShellEntry *entry, bool believed,
            uint32_t *checksum)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint32_t granularity = UINT32_C(1) << entry->granularity_bits;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    Qcow2ShellBits bits = { .name = entry->name };
    Error *local_err = NULL;
    BdrvDirtyBitmap *bitmap;

    if (!believed ||
        entry->table_size != qcow2_shell_table_size(bs, size, granularity)) {
        granularity = limit_granularity(bs, granularity);
    }
    bitmap = bdrv_create_dirty_bitmap(bs, granularity, entry->name,
                                      &local_err);
    if (!bitmap) {
        warn_reportf_err(local_err, "Bitmap '%s' in '%s' is left out: ",
                         entry->name, bs->filename);
        return;
    }
    bits.bitmap = bitmap;
    rwb->loaded = g_slist_prepend(rwb->loaded, bitmap);
    bdrv_dirty_bitmap_set_persistence(bitmap, true);
    if (believed &&
        !load_content(bs, entry, &bits, checksum, &local_err)) {
        qcow2_shell_report_damage(bs, local_err, "Bitmap '%s' in '%s' is "
                                  "inconsistent: ", entry->name, bs->filename);
        believed = false;
    }
    if (!(entry->flags & QCOW2_SHELL_BITMAP_AUTO)) {
        bdrv_disable_dirty_bitmap(bitmap);
    } else if (believed && rwb->recovery) {
        qcow2_log_recovery_apply(rwb->recovery, &bits);
    }
    if (!believed) {
        bdrv_dirty_bitmap_set_inconsistent(bitmap);
    }
}

/*
 * The node was inactive, and has a bitmap that is in the image, too.  Where it
 * came by migration, it is the image that may be out of date; where this is the
 * source of a migration and the destination has written, it is the bitmap in
 * memory.  Whatever one of them has counts.
 */
static void coroutine_fn GRAPH_RDLOCK
merge_bitmap(BlockDriverState *bs, Qcow2ShellEntry *entry,
             BdrvDirtyBitmap *bitmap, uint32_t *checksum)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2ShellBits bits = { .name = entry->name };
    BdrvDirtyBitmap *stored;
    Error *local_err = NULL;
    bool ok;

    bits.bitmap = stored = bdrv_create_dirty_bitmap(bs,
                                      UINT32_C(1) << entry->granularity_bits,
                                      NULL, &local_err);
    ok = stored && load_content(bs, entry, &bits, checksum, &local_err);
    if (ok && rwb->recovery && (entry->flags & QCOW2_SHELL_BITMAP_AUTO)) {
        qcow2_log_recovery_apply(rwb->recovery, &bits);
    }
    /* The bitmap in memory is another one than that in the image */
    g_clear_pointer(&entry->table, g_free);
    g_clear_pointer(&entry->sums, g_free);

    if (!qcow2_shell_is_persistent(bs, entry->name)) {
        warn_report("Bitmap '%s' in '%s' is inconsistent: there is another "
                    "bitmap of this name in memory", entry->name, bs->filename);
        error_free(local_err);
    } else if (ok) {
        bdrv_dirty_bitmap_merge_internal(bitmap, stored, NULL, true);
        rwb->merged = g_slist_prepend(rwb->merged, bitmap);
        if ((entry->flags & QCOW2_SHELL_BITMAP_AUTO) &&
            !bdrv_dirty_bitmap_enabled(bitmap) &&
            !bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_BUSY, NULL)) {
            bdrv_enable_dirty_bitmap(bitmap);
        }
    } else {
        warn_reportf_err(local_err, "Bitmap '%s' says that all of '%s' has "
                         "changed: ", entry->name, bs->filename);
        bdrv_set_dirty_bitmap(bitmap, 0, bdrv_dirty_bitmap_size(bitmap));
    }
    if (stored) {
        bdrv_release_dirty_bitmap(stored);
    }
}

/*
 * Returns the allocation map, for the size of the disk when it was stored, or
 * NULL if it cannot be used.  One that was not removed when the image ceased to
 * keep one is only read.
 */
static Qcow2Map * coroutine_fn GRAPH_RDLOCK
load_map(BlockDriverState *bs, Qcow2ShellEntry *entry, uint32_t *checksum)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    Qcow2ShellBits bits = { .name = entry->name };
    Error *local_err = NULL;

    if (rwb->pointer.map && (entry->flags & QCOW2_SHELL_BITMAP_AUTO) &&
        entry->granularity_bits >= QCOW2_MAP_MIN_GRANULARITY_BITS) {
        bits.map = qcow2_map_new(size, entry->granularity_bits);
    }
    if (!load_content(bs, entry, &bits, checksum, &local_err)) {
        qcow2_shell_report_damage(bs, local_err, "Allocation map of '%s' "
                                  "cannot be used: ", bs->filename);
        g_clear_pointer(&bits.map, qcow2_map_free);
    }
    if (bits.map && rwb->recovery) {
        qcow2_log_recovery_apply(rwb->recovery, &bits);
    }
    return bits.map;
}

/*
 * Takes over @map, which is NULL if there is none that can be used: all of the
 * disk may hold data then.  What was stored is not enough where a lie would
 * make full backups wrong: the user has no evidence that nobody else has
 * written.
 */
static void settle_map(BlockDriverState *bs, Qcow2Map *map, bool stale)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;

    if (rwb->state.verdict == QCOW2_SHELL_DISTRUSTED) {
        g_clear_pointer(&map, qcow2_map_free);
    }
    if (!rwb->pointer.map) {
        return;
    }
    if (!map) {
        if (stale) {
            warn_report("Allocation map of '%s' is out of date: all of its "
                        "disk counts as data", bs->filename);
        }
        map = qcow2_map_new(size,
                            qcow2_map_granularity_bits(
                                size, QCOW2_SHELL_BITMAP_MAX_CONTENT));
        qcow2_map_set_all(map);
        qatomic_inc(&map->changes);
    } else if (rwb->guard_state != QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED ||
               rwb->pointer.map_unproven) {
        qcow2_map_doubt(map);
    }
    qcow2_map_publish(bs, map);
}

/* Others have written to what is new, or nobody knows */
static void grow_map(BlockDriverState *bs, uint64_t old_size, uint64_t size)
{
    Qcow2Map *map = qcow2_shell(bs)->map;

    if (map) {
        qcow2_map_resize(map, size);
        qcow2_map_update_gate(bs);
        if (size > old_size) {
            qcow2_map_set(map, old_size, size - old_size);
        }
        qatomic_inc(&map->changes);
    }
}

/* Nobody knows which of the bitmaps is not what was stored */
static void check_checksum(BlockDriverState *bs, uint32_t checksum)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    BdrvDirtyBitmap *bitmap;

    if (!rwb->has_stored_checksum ||
        rwb->state.verdict == QCOW2_SHELL_DISTRUSTED ||
        rwb->stored_checksum == checksum) {
        return;
    }
    if (bs->open_flags & BDRV_O_CHECK) {
        /* To be counted */
        rwb->state.needs_repair = true;
    }
    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap) &&
            !bdrv_dirty_bitmap_inconsistent(bitmap)) {
            warn_report("Bitmap '%s' in '%s' is inconsistent: stored bitmaps "
                        "do not match their checksum",
                        bdrv_dirty_bitmap_name(bitmap), bs->filename);
            bdrv_dirty_bitmap_set_inconsistent(bitmap);
        }
    }
    qcow2_shell_distrust(bs);
}

/* The directory cannot be used, so there is nothing that could be written */
static void drop_directory(BlockDriverState *bs, Error *err)
{
    BDRVQcow2State *s = bs->opaque;

    qcow2_shell_report_damage(bs, err, "Bitmaps lost with '%s': %" PRIu32 ": ",
                              bs->filename, s->nb_bitmaps);
    s->nb_bitmaps = 0;
    s->bitmap_directory_offset = 0;
    s->bitmap_directory_size = 0;
    s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
}

/* Returns NULL if there is none that can be used */
static GPtrArray * coroutine_fn GRAPH_RDLOCK
directory_read_or_drop(BlockDriverState *bs)
{
    Error *local_err = NULL;
    GPtrArray *directory = qcow2_shell_directory_read(bs, &local_err);

    if (!directory) {
        drop_directory(bs, local_err);
    }
    return directory;
}

/*
 * The disk has only grown since the bitmaps were stored: they become longer.
 * The new part may have any content, and is dirty in all of them.
 */
static void grow_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t size = rwb->grown_size;
    BdrvDirtyBitmap *bitmap;

    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    grow_map(bs, rwb->stored_size, size);
    bdrv_dirty_bitmap_truncate(bs, size);
    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        /* Through the shell, those that do not record get nothing to record */
        if (!bdrv_dirty_bitmap_inconsistent(bitmap) &&
            !(rwb->recovery && !bdrv_dirty_bitmap_enabled(bitmap))) {
            bdrv_set_dirty_bitmap(bitmap, rwb->stored_size,
                                  size - rwb->stored_size);
        }
    }
    rwb->grown_size = 0;
}

/*
 * What was in memory while the node was inactive becomes what it would be if it
 * was active all the time.  That none that is in use has another size than the
 * disk was made sure of before.
 */
static void adopt_bitmaps(BlockDriverState *bs)
{
    int64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    BdrvDirtyBitmap *bitmap = bdrv_dirty_bitmap_first(bs);
    bool fits = true;

    while (bitmap) {
        BdrvDirtyBitmap *next = bdrv_dirty_bitmap_next(bitmap);

        bdrv_dirty_bitmap_set_readonly(bitmap, false);
        if (bdrv_dirty_bitmap_inconsistent(bitmap) &&
            !bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_BUSY, NULL)) {
            /* If it is still there, it is loaded again */
            bdrv_release_dirty_bitmap(bitmap);
        } else {
            fits &= bdrv_dirty_bitmap_size(bitmap) == size;
        }
        bitmap = next;
    }
    if (!fits) {
        bdrv_dirty_bitmap_truncate(bs, size);
    }
}

/* After a crash, bitmaps are in use, and can be used all the same */
static bool is_in_use(const Qcow2RwBacking *rwb, const Qcow2ShellEntry *entry,
                      guint index)
{
    return (entry->flags & QCOW2_SHELL_BITMAP_IN_USE) &&
           !(rwb->recovery && index < rwb->recovery->super.nb_covered);
}

/* The disk has become smaller, and the program that has done it has crashed */
static void shrink_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t size = rwb->shrunk_size;

    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    grow_map(bs, rwb->stored_size, size);
    bdrv_dirty_bitmap_truncate(bs, size);
    rwb->shrunk = true;
    rwb->shrunk_size = 0;
}

static void report_recovery(BlockDriverState *bs, bool with_map)
{
    const Qcow2LogRecovery *recovery = qcow2_shell(bs)->recovery;
    g_autofree char *added = size_to_str(qcow2_log_recovery_bytes(recovery));

    info_report("Bitmaps of '%s' recovered after a crash: %" PRIu32 "%s, with "
                "up to %s added that may have been written to", bs->filename,
                recovery->super.nb_covered - (with_map ? 1 : 0),
                with_map ? " and the allocation map" : "", added);
}

void coroutine_fn qcow2_shell_load_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    bool trusted = rwb->state.verdict != QCOW2_SHELL_DISTRUSTED;
    GPtrArray *directory = directory_read_or_drop(bs);
    uint32_t checksum = 0;
    bool stale = false, stale_map = false;
    Qcow2Map *map = NULL;
    guint i;

    if (rwb->grown_size || rwb->shrunk_size) {
        /* They are as long as the disk was */
        bs->total_sectors = rwb->stored_size / BDRV_SECTOR_SIZE;
    }
    adopt_bitmaps(bs);
    for (i = 0; directory && i < directory->len; i++) {
        Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);
        bool in_use = is_in_use(rwb, entry, i);
        BdrvDirtyBitmap *bitmap = bdrv_find_dirty_bitmap(bs, entry->name);

        entry->loaded = true;
        if (qcow2_shell_is_map(entry->name)) {
            stale_map = !in_use;
            if (trusted && !in_use) {
                map = load_map(bs, entry, &checksum);
            }
            continue;
        }
        stale |= !in_use;
        if (!bitmap) {
            load_bitmap(bs, entry, trusted && !in_use, &checksum);
        } else if (trusted && !in_use) {
            merge_bitmap(bs, entry, bitmap, &checksum);
        }
    }
    if (directory) {
        g_ptr_array_unref(rwb->directory);
        rwb->directory = directory;
    }
    rwb->stored_changes = bs->dirty_bitmap_changes;
    rwb->stored_map_changes = 0;
    check_checksum(bs, checksum);
    if (!trusted && stale) {
        qcow2_shell_report_stale_bitmaps(bs);
    } else if (rwb->recovery &&
               rwb->state.verdict != QCOW2_SHELL_DISTRUSTED) {
        report_recovery(bs, map);
    }
    settle_map(bs, map, stale_map);
    if (rwb->grown_size) {
        grow_bitmaps(bs);
    } else if (rwb->shrunk_size) {
        shrink_bitmaps(bs);
    }
    if (!bdrv_is_writable(bs)) {
        qcow2_shell_set_bitmaps_readonly(bs, true);
    }
}

/* After a crash, the log says what the bitmaps are, and for which size */
static void coroutine_fn GRAPH_RDLOCK verify_log(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Error *reason = NULL;

    rwb->recovery = qcow2_log_recover(bs, &reason);
    if (!rwb->recovery) {
        qcow2_shell_report_damage(bs, reason, "Write-intent log of '%s' cannot "
                                  "be used: ", bs->filename);
        qcow2_shell_distrust(bs);
        return;
    }
    bs->total_sectors = rwb->recovery->super.size / BDRV_SECTOR_SIZE;
    rwb->has_stored_checksum = true;
    rwb->stored_checksum = rwb->recovery->super.bitmaps_checksum;
}

static void coroutine_fn GRAPH_RDLOCK verify_content(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    g_autoptr(GPtrArray) directory = directory_read_or_drop(bs);
    Error *local_err = NULL;
    uint32_t checksum = 0;
    guint i;

    for (i = 0; directory && i < directory->len; i++) {
        Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);
        Qcow2ShellBits bits = { .name = entry->name };

        if (!is_in_use(rwb, entry, i) &&
            !load_content(bs, entry, &bits, &checksum, &local_err)) {
            qcow2_shell_report_damage(bs, local_err, "Bitmap '%s' in '%s' is "
                                      "inconsistent: ", entry->name,
                                      bs->filename);
            local_err = NULL;
            qcow2_shell_distrust(bs);
        }
    }
    if (!directory) {
        qcow2_shell_distrust(bs);
    } else if (rwb->state.verdict != QCOW2_SHELL_DISTRUSTED &&
               rwb->has_stored_checksum && rwb->stored_checksum != checksum) {
        error_setg(&local_err, "They do not match their checksum");
        qcow2_shell_report_damage(bs, local_err, "Bitmaps in '%s' are "
                                  "inconsistent: ", bs->filename);
        qcow2_shell_distrust(bs);
    }
}

void coroutine_fn qcow2_shell_verify_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    int64_t total_sectors = bs->total_sectors;

    /* While others may use the image, the log says nothing */
    if (rwb->state.headers == QCOW2_SHELL_HEADER_LOGGED && !bs->force_share) {
        verify_log(bs);
    }
    verify_content(bs);
    qcow2_log_recovery_free(g_steal_pointer(&rwb->recovery));
    bs->total_sectors = total_sectors;
}

/* In memory */

bool qcow2_shell_has_bitmaps(BlockDriverState *bs, bool only_persistent)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (only_persistent
            ? qcow2_shell_is_to_be_stored(bitmap)
            : bdrv_dirty_bitmap_name(bitmap) &&
              !bdrv_dirty_bitmap_inconsistent(bitmap)) {
            return true;
        }
    }
    return false;
}

/* Unless it is in use by an export: then it is brought together later on */
static void release_if_possible(BdrvDirtyBitmap *bitmap)
{
    if (!bdrv_dirty_bitmap_has_successor(bitmap) &&
        !bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_BUSY, NULL)) {
        bdrv_release_dirty_bitmap(bitmap);
    }
}

void qcow2_shell_release_bitmaps(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap = bdrv_dirty_bitmap_first(bs);

    while (bitmap) {
        BdrvDirtyBitmap *next = bdrv_dirty_bitmap_next(bitmap);

        if (bdrv_dirty_bitmap_get_persistence(bitmap) &&
            !bdrv_dirty_bitmap_inconsistent(bitmap)) {
            release_if_possible(bitmap);
        }
        bitmap = next;
    }
}

void qcow2_shell_release_loaded(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    GSList *item;

    for (item = rwb->loaded; item; item = item->next) {
        release_if_possible(item->data);
    }
    g_clear_pointer(&rwb->loaded, g_slist_free);
}

static bool is_up_to_date(const Qcow2RwBacking *rwb, BdrvDirtyBitmap *bitmap)
{
    return g_slist_find(rwb->loaded, bitmap) ||
           g_slist_find(rwb->merged, bitmap);
}

bool qcow2_shell_fill_left_behind(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    BdrvDirtyBitmap *bitmap;
    bool any = false;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (!is_up_to_date(rwb, bitmap) &&
            !bdrv_dirty_bitmap_inconsistent(bitmap) &&
            !bdrv_dirty_bitmap_readonly(bitmap)) {
            bdrv_set_dirty_bitmap(bitmap, 0, bdrv_dirty_bitmap_size(bitmap));
            bs->dirty_bitmap_changes++;
            any = true;
        }
    }
    return any;
}

void qcow2_shell_forget_loaded(BlockDriverState *bs)
{
    g_clear_pointer(&qcow2_shell(bs)->loaded, g_slist_free);
    g_clear_pointer(&qcow2_shell(bs)->merged, g_slist_free);
}

void qcow2_shell_set_bitmaps_readonly(BlockDriverState *bs, bool readonly)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap)) {
            bdrv_dirty_bitmap_set_readonly(bitmap, readonly);
        }
    }
}
