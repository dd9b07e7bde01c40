/*
 * qcow2 RW backing: storing the bitmaps of a shell
 *
 * In two steps: everything that is new goes to clusters that nothing refers to,
 * then a header refers to it.  A crash in between leaves the old bitmaps as
 * they were.  What has not changed is shared by the old and the new directory:
 * clusters of a bitmap, or a bitmap as a whole.
 *
 * One that cannot be stored does not take its neighbours along.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-types-block-core.h"
#include "qemu/bitmap.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmap-data.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-store.h"

/* Which bitmaps */

static bool is_usable(BdrvDirtyBitmap *bitmap)
{
    return !bdrv_dirty_bitmap_readonly(bitmap) &&
           !bdrv_dirty_bitmap_inconsistent(bitmap) &&
           !bdrv_dirty_bitmap_loading(bitmap);
}

bool qcow2_shell_is_to_be_stored(BdrvDirtyBitmap *bitmap)
{
    return bdrv_dirty_bitmap_get_persistence(bitmap) && is_usable(bitmap);
}

bool qcow2_shell_is_persistent(BlockDriverState *bs, const char *name)
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

static uint64_t content_size(BlockDriverState *bs, uint64_t size,
                             uint64_t granularity)
{
    BDRVQcow2State *s = bs->opaque;

    return qcow2_shell_table_size(bs, size, granularity) * s->cluster_size;
}

/* The disk has grown since it was added */
static bool is_too_large(BlockDriverState *bs, BdrvDirtyBitmap *bitmap)
{
    return content_size(bs, bdrv_dirty_bitmap_size(bitmap),
                        bdrv_dirty_bitmap_granularity(bitmap)) >
           QCOW2_SHELL_BITMAP_MAX_CONTENT;
}

void qcow2_shell_report_too_large(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (qcow2_shell_is_to_be_stored(bitmap) && is_too_large(bs, bitmap)) {
            warn_report("Bitmap '%s' in '%s' will be lost when the image is "
                        "closed: with a granularity of %" PRIu32 " bytes, it "
                        "is too large for a disk of %" PRId64 " bytes",
                        bdrv_dirty_bitmap_name(bitmap), bs->filename,
                        bdrv_dirty_bitmap_granularity(bitmap),
                        bdrv_dirty_bitmap_size(bitmap));
        }
    }
}

static bool is_chosen(BlockDriverState *bs, const BlockDirtyInfo *info,
                      bool closing)
{
    BdrvDirtyBitmap *bitmap = info->name
        ? bdrv_find_dirty_bitmap(bs, info->name) : NULL;

    /* A migration that has not ended may come to nothing */
    return bitmap && info->persistent && is_usable(bitmap) &&
           !qcow2_shell_is_map(info->name) &&
           (closing ? bdrv_dirty_bitmap_get_persistence(bitmap)
                    : !is_too_large(bs, bitmap));
}

/*
 * The names of what is to be stored: commands may change that meanwhile.  Those
 * that were stored before keep their order, new ones come after them.
 */
static GPtrArray *choose_names(BlockDriverState *bs, bool closing)
{
    g_autoptr(GHashTable) chosen = g_hash_table_new(g_str_hash, g_str_equal);
    GPtrArray *names = g_ptr_array_new_with_free_func(g_free);
    BlockDirtyInfoList *list = bdrv_query_dirty_bitmaps(bs);
    GPtrArray *old = qcow2_shell(bs)->directory;
    BlockDirtyInfoList *item;
    guint i;

    for (item = list; item; item = item->next) {
        if (is_chosen(bs, item->value, closing)) {
            g_hash_table_add(chosen, item->value->name);
        }
    }
    for (i = 0; i < old->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(old, i);

        if (g_hash_table_remove(chosen, entry->name)) {
            g_ptr_array_add(names, g_strdup(entry->name));
        }
    }
    for (item = list; item; item = item->next) {
        if (item->value->name &&
            g_hash_table_contains(chosen, item->value->name)) {
            g_ptr_array_add(names, g_strdup(item->value->name));
        }
    }
    qapi_free_BlockDirtyInfoList(list);
    return names;
}

/* A new one with larger granules takes its place when the image is opened */
static bool can_store_map(BlockDriverState *bs)
{
    const Qcow2Map *map = qcow2_shell(bs)->map;

    return map && map->size &&
           content_size(bs, map->size,
                        UINT64_C(1) << map->granularity_bits) <=
           QCOW2_SHELL_BITMAP_MAX_CONTENT;
}

bool qcow2_shell_can_be_covered(BlockDriverState *bs)
{
    g_autoptr(GPtrArray) names = choose_names(bs, false);

    return names->len || can_store_map(bs);
}

/* One bitmap */

static void copy_entry(Qcow2ShellEntry *entry, const Qcow2ShellEntry *old)
{
    entry->flags = old->flags;
    entry->loaded = old->loaded;
    entry->granularity_bits = old->granularity_bits;
    entry->table_offset = old->table_offset;
    entry->table_size = old->table_size;
    if (old->table) {
        entry->table = g_memdup2(old->table,
                                 old->table_size * sizeof(uint64_t));
        entry->sums = g_memdup2(old->sums, old->table_size * sizeof(uint32_t));
    }
}

/* Has anything changed in another way than by requests that have marks? */
static bool has_changed(BlockDriverState *bs, const Qcow2ShellBits *bits)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);

    return rwb->stored_changes != bs->dirty_bitmap_changes ||
           (bits->map &&
            rwb->stored_map_changes != qatomic_read(&bits->map->changes));
}

void qcow2_shell_forget_stored(BlockDriverState *bs)
{
    QEMU_LOCK_GUARD(&bs->dirty_bitmap_mutex);
    bs->dirty_bitmap_changes++;
}

/*
 * Takes over from @old what cannot have changed, and says so in @keep.  Returns
 * true if that is everything.
 */
static bool keep_clusters(BlockDriverState *bs, const Qcow2ShellBits *bits,
                          const Qcow2ShellEntry *old,
                          const Qcow2LogMarks *written, Qcow2ShellEntry *entry,
                          unsigned long *keep)
{
    int64_t coverage = qcow2_shell_coverage(bs, bits);
    bool all = true;
    uint32_t i;

    if (!written || !old || !old->table || has_changed(bs, bits) ||
        old->table_size != entry->table_size ||
        old->granularity_bits != entry->granularity_bits) {
        return false;
    }
    for (i = 0; i < entry->table_size; i++) {
        if (qcow2_log_marks_any(written, i * coverage, coverage)) {
            all = false;
        } else {
            set_bit(i, keep);
            entry->table[i] = old->table[i];
            entry->sums[i] = old->sums[i];
        }
    }
    return all;
}

/* Frees what @entry refers to, and @other, if it is not NULL, does not */
static void coroutine_mixed_fn GRAPH_RDLOCK
free_clusters(BlockDriverState *bs, const Qcow2ShellEntry *entry,
              const Qcow2ShellEntry *other)
{
    g_autofree uint64_t *table = NULL;
    uint32_t i;

    if (other && other->table_offset == entry->table_offset) {
        return;
    }
    if (entry->table) {
        table = g_memdup2(entry->table, entry->table_size * sizeof(uint64_t));
    } else if (qcow2_shell_table_read(bs, entry, &table) < 0) {
        return;
    }
    if (other && other->table) {
        for (i = 0; i < MIN(entry->table_size, other->table_size); i++) {
            table[i] = table[i] == other->table[i] ? 0 : table[i];
        }
    }
    qcow2_shell_table_free_data(bs, table, entry->table_size);
    if (entry->table_offset) {
        qcow2_free_clusters(bs, entry->table_offset,
                            entry->table_size * sizeof(uint64_t),
                            QCOW2_DISCARD_OTHER);
    }
}

/*
 * Writes @bits to new clusters as far as they have changed since @old, which
 * may be NULL.  Of @entry, flags and granularity are filled in.  Returns 0, or
 * -errno with no new clusters left.
 */
static int coroutine_mixed_fn GRAPH_RDLOCK
store_bits(BlockDriverState *bs, const Qcow2ShellBits *bits, uint64_t size,
           const Qcow2ShellEntry *old, const Qcow2ShellStoreMode *mode,
           Qcow2ShellEntry *entry)
{
    uint32_t table_size =
        qcow2_shell_table_size(bs, size,
                               UINT64_C(1) << entry->granularity_bits);
    g_autofree unsigned long *keep = bitmap_new(table_size);
    g_autofree uint64_t *table = NULL;
    int ret;

    entry->flags |= mode->closing ? 0 : QCOW2_SHELL_BITMAP_IN_USE;
    entry->loaded = old && old->loaded;
    entry->table_size = table_size;
    entry->table = g_try_new0(uint64_t, table_size);
    entry->sums = g_try_new0(uint32_t, table_size);
    if (!entry->table || !entry->sums) {
        return -ENOMEM;
    }
    if (keep_clusters(bs, bits, old, mode->written, entry, keep)) {
        entry->table_offset = old->table_offset;
        return 0;
    }

    ret = qcow2_shell_store_data(bs, bits, keep, entry->table, entry->sums);
    if (ret == 0) {
        table = g_memdup2(entry->table, table_size * sizeof(uint64_t));
        ret = qcow2_shell_table_write(bs, entry, table, table_size);
    }
    if (ret < 0) {
        free_clusters(bs, entry, old);
    }
    return ret;
}

static int coroutine_mixed_fn GRAPH_RDLOCK
store_bitmap(BlockDriverState *bs, const char *name,
             const Qcow2ShellEntry *old, const Qcow2ShellStoreMode *mode,
             Qcow2ShellEntry *entry)
{
    BdrvDirtyBitmap *bitmap = bdrv_find_dirty_bitmap(bs, name);
    Qcow2ShellBits bits = { .name = name, .bitmap = bitmap };
    /* A bitmap that a job has recorded until then, and will go on */
    bool recording = bdrv_dirty_bitmap_enabled(bitmap) ||
                     bdrv_dirty_bitmap_has_successor(bitmap);

    if (is_too_large(bs, bitmap)) {
        return -EFBIG;
    }
    entry->flags = recording ? QCOW2_SHELL_BITMAP_AUTO : 0;
    entry->granularity_bits = ctz32(bdrv_dirty_bitmap_granularity(bitmap));
    return store_bits(bs, &bits, bdrv_dirty_bitmap_size(bitmap), old, mode,
                      entry);
}

/* The allocation map always records */
static int coroutine_mixed_fn GRAPH_RDLOCK
store_map(BlockDriverState *bs, const Qcow2ShellEntry *old,
          const Qcow2ShellStoreMode *mode, Qcow2ShellEntry *entry)
{
    Qcow2Map *map = qcow2_shell(bs)->map;
    Qcow2ShellBits bits = { .name = QCOW2_RW_BACKING_MAP_NAME, .map = map };

    entry->flags = QCOW2_SHELL_BITMAP_AUTO;
    entry->granularity_bits = map->granularity_bits;
    return store_bits(bs, &bits, map->size, old, mode, entry);
}

static uint32_t sum_entry(const Qcow2ShellEntry *entry)
{
    uint32_t granularity = UINT32_C(1) << entry->granularity_bits;
    uint32_t sum = qcow2_shell_sum_bitmap(entry->name, granularity,
                                          entry->flags &
                                          QCOW2_SHELL_BITMAP_AUTO);
    uint32_t i;

    for (i = 0; i < entry->table_size; i++) {
        sum += entry->sums[i];
    }
    return sum;
}

/* All of them */

static void coroutine_mixed_fn GRAPH_RDLOCK
free_new_clusters(BlockDriverState *bs, const Qcow2ShellStore *store)
{
    guint i;

    for (i = 0; i < store->nb_usable; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(store->directory, i);

        free_clusters(bs, entry,
                      qcow2_shell_directory_find(qcow2_shell(bs)->directory,
                                                 entry->name));
    }
    if (store->offset) {
        qcow2_free_clusters(bs, store->offset, store->size,
                            QCOW2_DISCARD_OTHER);
    }
}

/* Returns 0, or -errno with @errp set, or -EAGAIN without */
static int coroutine_mixed_fn GRAPH_RDLOCK
store_all(BlockDriverState *bs, const Qcow2ShellStoreMode *mode,
          Qcow2ShellStore *store, Error **errp)
{
    g_autoptr(GPtrArray) names = choose_names(bs, mode->closing);
    GPtrArray *old = qcow2_shell(bs)->directory;
    int ret, first_ret = 0;
    guint i;

    if (can_store_map(bs)) {
        g_ptr_array_add(names, g_strdup(QCOW2_RW_BACKING_MAP_NAME));
    }
    for (i = 0; i < names->len; i++) {
        const char *name = g_ptr_array_index(names, i);
        const Qcow2ShellEntry *old_entry = qcow2_shell_directory_find(old,
                                                                      name);
        Qcow2ShellEntry *entry;
        Error *local_err = NULL;

        if (qcow2_shell_store_is_outdated(bs, store)) {
            return -EAGAIN;
        }
        entry = qcow2_shell_directory_add(store->directory, name);
        ret = qcow2_shell_is_map(name)
            ? store_map(bs, old_entry, mode, entry)
            : store_bitmap(bs, name, old_entry, mode, entry);
        if (ret == 0) {
            store->checksum += sum_entry(entry);
            store->nb_usable++;
            continue;
        }
        g_ptr_array_remove(store->directory, entry);
        if (ret == -EAGAIN) {
            return ret;
        }
        error_setg_errno(&local_err, -ret, "Bitmap '%s' is not stored in '%s'",
                         name, bs->filename);
        if (first_ret < 0) {
            error_report_err(local_err);
        } else {
            first_ret = ret;
            error_propagate(errp, local_err);
        }
        if (!mode->partly) {
            return first_ret;
        }
    }
    return first_ret;
}

/* Migration takes it elsewhere, so that the image is not to have it any more */
static bool is_handed_over(BlockDriverState *bs, const char *name)
{
    BdrvDirtyBitmap *bitmap = bdrv_find_dirty_bitmap(bs, name);

    return bitmap && is_usable(bitmap) &&
           !bdrv_dirty_bitmap_get_persistence(bitmap) &&
           qcow2_shell_is_persistent(bs, name);
}

/* Bitmaps that are not stored stay in the directory, so that all know them */
static void keep_others(BlockDriverState *bs, const Qcow2ShellStoreMode *mode,
                        Qcow2ShellStore *store)
{
    bool inactivating = mode->closing && !mode->partly;
    const GPtrArray *old = qcow2_shell(bs)->directory;
    guint i;

    for (i = 0; i < old->len; i++) {
        const Qcow2ShellEntry *old_entry = g_ptr_array_index(old, i);
        Qcow2ShellEntry *entry;

        if (old_entry->removed || qcow2_shell_is_map(old_entry->name) ||
            (inactivating && is_handed_over(bs, old_entry->name)) ||
            qcow2_shell_directory_find(store->directory, old_entry->name)) {
            continue;
        }
        entry = qcow2_shell_directory_add(store->directory, old_entry->name);
        copy_entry(entry, old_entry);
        entry->flags |= QCOW2_SHELL_BITMAP_IN_USE;
    }
}

/*
 * As users know them: where the log does not count, any order will do.  Those
 * that have come since the image was opened come last, the newest one first.
 */
static GPtrArray *in_old_order(BlockDriverState *bs, GPtrArray *directory)
{
    const GPtrArray *old = qcow2_shell(bs)->directory;
    GPtrArray *sorted = g_ptr_array_new();
    guint i;

    for (i = 0; i < old->len; i++) {
        const Qcow2ShellEntry *old_entry = g_ptr_array_index(old, i);
        Qcow2ShellEntry *entry = qcow2_shell_directory_find(directory,
                                                            old_entry->name);

        if (entry && old_entry->loaded) {
            g_ptr_array_add(sorted, entry);
        }
    }
    for (i = directory->len; i-- > 0;) {
        Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);

        if (!g_ptr_array_find(sorted, entry, NULL)) {
            g_ptr_array_add(sorted, entry);
        }
    }
    return sorted;
}

static int coroutine_mixed_fn GRAPH_RDLOCK
write_directory(BlockDriverState *bs, bool closing, Qcow2ShellStore *store)
{
    g_autoptr(GPtrArray) sorted =
        closing ? in_old_order(bs, store->directory)
                : g_ptr_array_ref(store->directory);

    if (!sorted->len) {
        return 0;
    }
    return qcow2_shell_directory_write(bs, sorted, &store->offset,
                                       &store->size, &store->crc);
}

int coroutine_mixed_fn
qcow2_shell_store_begin(BlockDriverState *bs, const Qcow2ShellStoreMode *mode,
                        Qcow2ShellStore *store, Error **errp)
{
    Qcow2Map *map = qcow2_shell(bs)->map;
    uint64_t since;
    int ret, bitmap_ret;

    *store = (Qcow2ShellStore) {
        .directory   = qcow2_shell_directory_new(),
        .changes     = bs->dirty_bitmap_changes,
        .map_changes = map ? qatomic_read(&map->changes) : 0,
    };
    since = get_clock();
    if (!mode->closing && bdrv_dirty_bitmap_transaction_active()) {
        /* What would be read may be undone */
        qcow2_shell_store_abort(bs, store);
        return -EAGAIN;
    }

    bitmap_ret = store_all(bs, mode, store, errp);
    ret = mode->partly && bitmap_ret != -EAGAIN ? 0 : bitmap_ret;
    if (ret == 0) {
        keep_others(bs, mode, store);
        ret = write_directory(bs, mode->closing, store);
        if (ret == 0) {
            ret = qcow2_write_caches(bs);
        }
        if (ret == 0) {
            ret = qcow2_shell_flush_file(bs, since);
        }
        if (ret < 0 && bitmap_ret == 0) {
            error_setg_errno(errp, -ret, "Could not write the bitmap directory "
                             "of '%s'", bs->filename);
        }
    }
    if (ret < 0) {
        qcow2_shell_store_abort(bs, store);
        return ret;
    }
    return bitmap_ret;
}

bool qcow2_shell_store_is_outdated(BlockDriverState *bs,
                                   const Qcow2ShellStore *store)
{
    return bs->dirty_bitmap_changes != store->changes;
}

void coroutine_mixed_fn
qcow2_shell_store_abort(BlockDriverState *bs, Qcow2ShellStore *store)
{
    if (!store->in_doubt) {
        free_new_clusters(bs, store);
    }
    g_clear_pointer(&store->directory, g_ptr_array_unref);
}

static void coroutine_mixed_fn GRAPH_RDLOCK
free_old_clusters(BlockDriverState *bs, const GPtrArray *old, GPtrArray *new)
{
    guint i;

    for (i = 0; i < old->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(old, i);

        free_clusters(bs, entry, qcow2_shell_directory_find(new, entry->name));
    }
}

/* What was removed while the new directory was on its way is in it, too */
static void pass_on_removals(BlockDriverState *bs, const GPtrArray *old,
                             GPtrArray *new)
{
    guint i;

    for (i = 0; i < old->len; i++) {
        const Qcow2ShellEntry *old_entry = g_ptr_array_index(old, i);
        Qcow2ShellEntry *entry = qcow2_shell_directory_find(new,
                                                            old_entry->name);

        if (entry && old_entry->removed &&
            !bdrv_find_dirty_bitmap(bs, entry->name)) {
            entry->removed = true;
        }
    }
}

int coroutine_mixed_fn
qcow2_shell_store_finish(BlockDriverState *bs, Qcow2ShellStore *store)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    uint64_t old_offset = s->bitmap_directory_offset;
    uint64_t old_size = s->bitmap_directory_size;
    uint64_t old_autoclear = s->autoclear_features;
    uint32_t old_count = s->nb_bitmaps;
    uint64_t since = get_clock();
    int ret;

    s->bitmap_directory_offset = store->offset;
    s->bitmap_directory_size = store->size;
    s->nb_bitmaps = store->directory->len;
    s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    if (store->directory->len) {
        s->autoclear_features |= QCOW2_AUTOCLEAR_BITMAPS;
    }
    rwb->pointer.map_unproven = rwb->map && !qcow2_map_is_proven(rwb->map);
    store->in_doubt = true;
    ret = qcow2_update_header(bs);
    if (ret == 0) {
        /* If it said the same before, the directory is another one */
        ret = qcow2_shell_flush_file(bs, since);
    }
    if (ret < 0) {
        s->bitmap_directory_offset = old_offset;
        s->bitmap_directory_size = old_size;
        s->autoclear_features = old_autoclear;
        s->nb_bitmaps = old_count;
        return ret;
    }

    if (old_size) {
        qcow2_free_clusters(bs, old_offset, old_size, QCOW2_DISCARD_OTHER);
    }
    free_old_clusters(bs, rwb->directory, store->directory);
    pass_on_removals(bs, rwb->directory, store->directory);
    g_ptr_array_unref(rwb->directory);
    rwb->directory = g_steal_pointer(&store->directory);
    rwb->stored_changes = store->changes;
    rwb->stored_map_changes = store->map_changes;
    /* If this fails, or a crash comes before it, clusters are leaked */
    qcow2_write_caches(bs);
    return 0;
}

static void report_lost_bitmaps(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (qcow2_shell_is_to_be_stored(bitmap)) {
            error_report("Bitmap '%s' is not stored in '%s'",
                         bdrv_dirty_bitmap_name(bitmap), bs->filename);
        }
    }
}

int qcow2_shell_store_bitmaps(BlockDriverState *bs, Qcow2RwBackingGuard *guard,
                              const Qcow2ShellStoreMode *mode, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    Qcow2RwBackingGuard old_guard = rwb->guard;
    bool was_armed = rwb->pointer.log_armed;
    Qcow2ShellStore store;
    int ret, finish_ret;

    ret = qcow2_shell_store_begin(bs, mode, &store, errp);
    if (!store.directory) {
        return ret;
    }
    guard->bitmaps_checksum = store.checksum;
    rwb->guard = *guard;
    rwb->pointer.log_armed = false;
    finish_ret = qcow2_shell_store_finish(bs, &store);
    if (finish_ret == 0) {
        return ret;
    }

    rwb->guard = old_guard;
    rwb->pointer.log_armed = was_armed;
    qcow2_shell_store_abort(bs, &store);
    if (ret < 0) {
        /* Some were reported, the others are lost, too */
        error_report("Could not update the bitmap directory of '%s': %s",
                     bs->filename, strerror(-finish_ret));
        return ret;
    }
    if (mode->partly) {
        report_lost_bitmaps(bs);
    }
    error_setg_errno(errp, -finish_ret, "Could not update the bitmap directory "
                     "of '%s'", bs->filename);
    return finish_ret;
}
