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

/* The most that qcow2 stores of a bitmap, in bytes */
#define CONTENT_MAX                 0x20000000

/* The most memory for all bitmaps that are there only to be removed */
#define INCONSISTENT_MAX            (16 * MiB)

/* Loading */

/*
 * @bitmap is NULL if the content shall only be looked at.  Returns false with
 * @errp set if it is not usable.
 */
static bool coroutine_fn GRAPH_RDLOCK
load_content(BlockDriverState *bs, const Qcow2ShellEntry *entry,
             BdrvDirtyBitmap *bitmap, uint32_t *checksum, Error **errp)
{
    uint64_t granularity = UINT64_C(1) << entry->granularity_bits;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    g_autofree uint64_t *table = NULL;
    int ret;

    if (entry->table_size != qcow2_shell_table_size(bs, size, granularity)) {
        error_setg(errp, "Its table has %" PRIu32 " entries, but a disk of "
                   "%" PRIu64 " bytes needs %" PRIu64, entry->table_size, size,
                   qcow2_shell_table_size(bs, size, granularity));
        return false;
    }
    ret = qcow2_shell_table_read(bs, entry, &table);
    if (ret == 0) {
        ret = qcow2_shell_co_load_data(bs, entry->name, table,
                                       entry->table_size, bitmap, checksum);
    }
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not load its content");
        return false;
    }
    *checksum += qcow2_shell_sum_bitmap(entry->name, granularity,
                                        entry->flags &
                                        QCOW2_SHELL_BITMAP_AUTO);
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
load_bitmap(BlockDriverState *bs, const Qcow2ShellEntry *entry, bool believed,
            uint32_t *checksum)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint32_t granularity = UINT32_C(1) << entry->granularity_bits;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
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
    rwb->loaded = g_slist_prepend(rwb->loaded, bitmap);
    bdrv_dirty_bitmap_set_persistence(bitmap, true);
    if (believed &&
        !load_content(bs, entry, bitmap, checksum, &local_err)) {
        qcow2_shell_report_damage(bs, local_err, "Bitmap '%s' in '%s' is "
                                  "inconsistent: ", entry->name, bs->filename);
        believed = false;
    }
    if (!(entry->flags & QCOW2_SHELL_BITMAP_AUTO)) {
        bdrv_disable_dirty_bitmap(bitmap);
    }
    if (!believed) {
        bdrv_dirty_bitmap_set_inconsistent(bitmap);
    }
}

/* A bitmap of this name is in memory, whether it is persistent or not */
static bool is_persistent_in_memory(BlockDriverState *bs, const char *name)
{
    BlockDirtyInfoList *list = bdrv_query_dirty_bitmaps(bs);
    BlockDirtyInfoList *item;
    bool persistent = false;

    for (item = list; item; item = item->next) {
        if (item->value->name && !strcmp(item->value->name, name)) {
            persistent = item->value->persistent;
        }
    }
    qapi_free_BlockDirtyInfoList(list);
    return persistent;
}

/*
 * The node was inactive, and has a bitmap that is in the image, too.  Where it
 * came by migration, it is the image that may be out of date; where this is the
 * source of a migration and the destination has written, it is the bitmap in
 * memory.  Whatever one of them has counts.
 */
static void coroutine_fn GRAPH_RDLOCK
merge_bitmap(BlockDriverState *bs, const Qcow2ShellEntry *entry,
             BdrvDirtyBitmap *bitmap, uint32_t *checksum)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    BdrvDirtyBitmap *stored;
    Error *local_err = NULL;
    bool ok;

    stored = bdrv_create_dirty_bitmap(bs,
                                      UINT32_C(1) << entry->granularity_bits,
                                      NULL, &local_err);
    ok = stored && load_content(bs, entry, stored, checksum, &local_err);

    if (!is_persistent_in_memory(bs, entry->name)) {
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
    bdrv_dirty_bitmap_truncate(bs, size);
    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (!bdrv_dirty_bitmap_inconsistent(bitmap)) {
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

void coroutine_fn qcow2_shell_load_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    bool trusted = rwb->state.verdict != QCOW2_SHELL_DISTRUSTED;
    g_autoptr(GPtrArray) directory = directory_read_or_drop(bs);
    uint32_t checksum = 0;
    bool stale = false;
    guint i;

    if (rwb->grown_size) {
        /* They are as long as the disk was */
        bs->total_sectors = rwb->stored_size / BDRV_SECTOR_SIZE;
    }
    adopt_bitmaps(bs);
    for (i = 0; directory && i < directory->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);
        bool in_use = entry->flags & QCOW2_SHELL_BITMAP_IN_USE;
        BdrvDirtyBitmap *bitmap = bdrv_find_dirty_bitmap(bs, entry->name);

        stale |= !in_use;
        if (!bitmap) {
            load_bitmap(bs, entry, trusted && !in_use, &checksum);
        } else if (trusted && !in_use) {
            merge_bitmap(bs, entry, bitmap, &checksum);
        }
    }
    check_checksum(bs, checksum);
    if (!trusted && stale) {
        qcow2_shell_report_stale_bitmaps(bs);
    }
    if (rwb->grown_size) {
        grow_bitmaps(bs);
    }
    if (!bdrv_is_writable(bs)) {
        qcow2_shell_set_bitmaps_readonly(bs, true);
    }
}

void coroutine_fn qcow2_shell_verify_bitmaps(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    g_autoptr(GPtrArray) directory = directory_read_or_drop(bs);
    Error *local_err = NULL;
    uint32_t checksum = 0;
    guint i;

    for (i = 0; directory && i < directory->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);

        if (!(entry->flags & QCOW2_SHELL_BITMAP_IN_USE) &&
            !load_content(bs, entry, NULL, &checksum, &local_err)) {
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

/* Storing */

/* A bitmap that is on its way to the image */
typedef struct NewContent {
    Qcow2ShellEntry entry;      /* without a name */
    uint32_t checksum;
} NewContent;

static bool is_to_be_stored(BdrvDirtyBitmap *bitmap)
{
    return bdrv_dirty_bitmap_get_persistence(bitmap) &&
           !bdrv_dirty_bitmap_readonly(bitmap) &&
           !bdrv_dirty_bitmap_inconsistent(bitmap);
}

/*
 * A block job has the bitmap, and what is written meanwhile goes to another one
 * that has no name.  Which one is not known here, so all of them are added.
 */
static BdrvDirtyBitmap *with_successor(BlockDriverState *bs,
                                       BdrvDirtyBitmap *bitmap, Error **errp)
{
    BdrvDirtyBitmap *sum, *other;

    sum = bdrv_create_dirty_bitmap(bs, bdrv_dirty_bitmap_granularity(bitmap),
                                   NULL, errp);
    if (!sum) {
        return NULL;
    }
    bdrv_disable_dirty_bitmap(sum);
    bdrv_dirty_bitmap_merge_internal(sum, bitmap, NULL, true);
    FOR_EACH_DIRTY_BITMAP(bs, other) {
        if (other != sum && !bdrv_dirty_bitmap_name(other)) {
            bdrv_dirty_bitmap_merge_internal(sum, other, NULL, true);
        }
    }
    return sum;
}

/* Writes @bitmap to new clusters; on failure, none are left */
static bool GRAPH_RDLOCK
store_content(BlockDriverState *bs, BdrvDirtyBitmap *bitmap,
              NewContent *content, Error **errp)
{
    bool has_successor = bdrv_dirty_bitmap_has_successor(bitmap);
    BdrvDirtyBitmap *all = has_successor ? with_successor(bs, bitmap, errp)
                                         : bitmap;
    const char *name = bdrv_dirty_bitmap_name(bitmap);
    /* A bitmap that a job has recorded until then, and will go on */
    bool autoload = bdrv_dirty_bitmap_enabled(bitmap) || has_successor;
    BDRVQcow2State *s = bs->opaque;
    uint32_t granularity = bdrv_dirty_bitmap_granularity(bitmap);
    uint64_t table_size = qcow2_shell_table_size(bs,
                                                 bdrv_dirty_bitmap_size(bitmap),
                                                 granularity);
    g_autofree uint64_t *table = NULL;
    int ret = -EFBIG;

    if (!all) {
        return false;
    }
    *content = (NewContent) {
        .entry.granularity_bits = ctz32(granularity),
        .entry.flags = autoload ? QCOW2_SHELL_BITMAP_AUTO : 0,
        .checksum = qcow2_shell_sum_bitmap(name, granularity, autoload),
    };
    if (table_size * s->cluster_size <= CONTENT_MAX) {
        table = g_try_new0(uint64_t, table_size);
        ret = table ? qcow2_shell_store_data(bs, name, all, table,
                                             &content->checksum) : -ENOMEM;
    }
    if (has_successor) {
        bdrv_release_dirty_bitmap(all);
    }
    if (ret == 0) {
        ret = qcow2_shell_table_write(bs, &content->entry, table, table_size);
    }
    if (ret < 0) {
        if (table) {
            qcow2_shell_table_free_data(bs, table, table_size);
        }
        error_setg_errno(errp, -ret, "Bitmap '%s' is not stored in '%s'", name,
                         bs->filename);
    }
    return ret == 0;
}

static void add_copy(GPtrArray *directory, const Qcow2ShellEntry *entry)
{
    Qcow2ShellEntry *copy = qcow2_shell_directory_add(directory, entry->name);

    copy->flags = entry->flags;
    copy->granularity_bits = entry->granularity_bits;
    copy->table_offset = entry->table_offset;
    copy->table_size = entry->table_size;
}

static void GRAPH_RDLOCK
free_contents(BlockDriverState *bs, const GPtrArray *directory)
{
    guint i;

    for (i = 0; i < directory->len; i++) {
        qcow2_shell_entry_free_clusters(bs, g_ptr_array_index(directory, i));
    }
}

/*
 * Puts what is to be stored into @directory, which has what the image has: its
 * place there before goes to @replaced, where it is now to @stored.  Goes on
 * after a failure only if @partly is true.
 */
static int GRAPH_RDLOCK
store_contents(BlockDriverState *bs, GPtrArray *directory, GPtrArray *replaced,
               GPtrArray *stored, bool partly, uint32_t *checksum,
               Error **errp)
{
    BdrvDirtyBitmap *bitmap;
    int ret = 0;

    *checksum = 0;
    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        const char *name = bdrv_dirty_bitmap_name(bitmap);
        Error *local_err = NULL;
        Qcow2ShellEntry *entry;
        NewContent content;

        if (!is_to_be_stored(bitmap)) {
            continue;
        }
        if (!store_content(bs, bitmap, &content, &local_err)) {
            if (ret < 0) {
                error_report_err(local_err);
                continue;
            }
            ret = -EIO;
            error_propagate(errp, local_err);
            if (!partly) {
                return ret;
            }
            continue;
        }

        entry = qcow2_shell_directory_find(directory, name);
        if (entry) {
            add_copy(replaced, entry);
        } else {
            entry = qcow2_shell_directory_add(directory, name);
        }
        entry->flags = content.entry.flags;
        entry->granularity_bits = content.entry.granularity_bits;
        entry->table_offset = content.entry.table_offset;
        entry->table_size = content.entry.table_size;
        add_copy(stored, entry);
        *checksum += content.checksum;
    }
    return ret;
}

/*
 * Writes @directory and a header that refers to it, and has @guard.  No header
 * that is written until then, for whatever reason, may have it.  If the header
 * was written but perhaps did not arrive, what the old and the new one refer to
 * must stay: it is leaked.
 */
static int GRAPH_RDLOCK
commit_directory(BlockDriverState *bs, const GPtrArray *directory,
                 const Qcow2RwBackingGuard *guard, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingGuard old_guard = s->rw_backing->guard;
    uint64_t old_offset = s->bitmap_directory_offset;
    uint64_t old_size = s->bitmap_directory_size;
    uint64_t old_autoclear = s->autoclear_features;
    uint32_t old_count = s->nb_bitmaps;
    uint64_t offset = 0, size = 0;
    int ret = 0;

    if (directory->len) {
        ret = qcow2_shell_directory_write(bs, directory, &offset, &size);
    }
    if (ret == 0) {
        ret = qcow2_flush_caches(bs);
    }
    if (ret == 0) {
        s->bitmap_directory_offset = offset;
        s->bitmap_directory_size = size;
        s->nb_bitmaps = directory->len;
        if (directory->len) {
            s->autoclear_features |= QCOW2_AUTOCLEAR_BITMAPS;
        }
        s->rw_backing->guard = *guard;
        ret = qcow2_update_header(bs);
    }
    if (ret == 0) {
        /* If it had a seal before, the directory is another one all the same */
        ret = bdrv_flush(bs->file->bs);
    }
    if (ret == 0) {
        if (old_size) {
            qcow2_free_clusters(bs, old_offset, old_size, QCOW2_DISCARD_OTHER);
        }
        return 0;
    }

    error_setg_errno(errp, -ret, "Could not update the bitmap directory of "
                     "'%s'", bs->filename);
    s->bitmap_directory_offset = old_offset;
    s->bitmap_directory_size = old_size;
    s->autoclear_features = old_autoclear;
    s->nb_bitmaps = old_count;
    s->rw_backing->guard = old_guard;
    if (size && qcow2_shell(bs)->state.seal == QCOW2_SHELL_SEAL_NONE) {
        qcow2_free_clusters(bs, offset, size, QCOW2_DISCARD_OTHER);
    }
    return ret;
}

static void report_lost_bitmaps(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (is_to_be_stored(bitmap)) {
            error_report("Bitmap '%s' is not stored in '%s'",
                         bdrv_dirty_bitmap_name(bitmap), bs->filename);
        }
    }
}

int qcow2_shell_store_bitmaps(BlockDriverState *bs, Qcow2RwBackingGuard *guard,
                              bool partly, Error **errp)
{
    g_autoptr(GPtrArray) directory = qcow2_shell_directory_read(bs, errp);
    g_autoptr(GPtrArray) replaced = qcow2_shell_directory_new();
    g_autoptr(GPtrArray) stored = qcow2_shell_directory_new();
    Error *local_err = NULL;
    int ret, commit_ret;
    guint i;

    if (!directory) {
        return -EIO;
    }
    for (i = 0; i < directory->len; i++) {
        Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);

        entry->flags |= QCOW2_SHELL_BITMAP_IN_USE;
    }

    ret = store_contents(bs, directory, replaced, stored, partly,
                         &guard->bitmaps_checksum, errp);
    if (ret < 0 && !partly) {
        free_contents(bs, stored);
        return ret;
    }
    commit_ret = commit_directory(bs, directory, guard, &local_err);
    if (commit_ret == 0) {
        free_contents(bs, replaced);
        return ret;
    }
    if (qcow2_shell(bs)->state.seal == QCOW2_SHELL_SEAL_NONE) {
        free_contents(bs, stored);
    }
    if (ret < 0) {
        /* Some were reported, the others are lost, too */
        error_report_err(local_err);
        return ret;
    }
    if (partly) {
        report_lost_bitmaps(bs);
    }
    error_propagate(errp, local_err);
    return commit_ret;
}

/* In memory */

bool qcow2_shell_has_bitmaps(BlockDriverState *bs, bool only_persistent)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (only_persistent
            ? is_to_be_stored(bitmap)
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

void qcow2_shell_fill_bitmaps(BlockDriverState *bs, bool all)
{
    BdrvDirtyBitmap *bitmap;

    qemu_mutex_lock(&bs->dirty_bitmap_mutex);
    for (bitmap = bdrv_dirty_bitmap_first(bs); bitmap;
         bitmap = bdrv_dirty_bitmap_next(bitmap)) {
        if ((all || bdrv_dirty_bitmap_enabled(bitmap)) &&
            !bdrv_dirty_bitmap_inconsistent(bitmap) &&
            !bdrv_dirty_bitmap_readonly(bitmap)) {
            bdrv_set_dirty_bitmap_locked(bitmap, 0,
                                         bdrv_dirty_bitmap_size(bitmap));
        }
    }
    qemu_mutex_unlock(&bs->dirty_bitmap_mutex);
}
