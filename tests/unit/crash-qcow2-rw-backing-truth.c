/*
 * States that a crash can leave: what bitmaps have to say in each
 *
 * A truth is about a time, which is counted in events.  A command changes it at
 * some moment between its start and its end, so there is one for the time in
 * between, which is what holds in either case, and one for the time after it.
 *
 * The truth does not say how QEMU comes to know what is dirty.  It says that a
 * block must be dirty if the disk differs from what the last backup has copied,
 * whatever the reason: also if it is older, since the power has failed.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "crash-qcow2-rw-backing.h"

GPtrArray *crash_bitmaps;

/* What truths point to */
static GPtrArray *arena;

/* Events from which on chunks of the disk may be dirty, INT64_MAX for never */
static int64_t touched[CRASH_DISK_MAX / CRASH_CHUNK];

static void bitmap_free(void *opaque)
{
    CrashBitmap *bitmap = opaque;

    g_array_unref(bitmap->truths);
    g_free(bitmap->name);
    g_free(bitmap);
}

static void forget_touched(void)
{
    for (int i = 0; i < ARRAY_SIZE(touched); i++) {
        touched[i] = INT64_MAX;
    }
}

void crash_truth_init(void)
{
    crash_bitmaps = g_ptr_array_new_with_free_func(bitmap_free);
    arena = g_ptr_array_new_with_free_func(g_free);
}

void crash_truth_clear(void)
{
    g_ptr_array_set_size(crash_bitmaps, 0);
    g_ptr_array_set_size(arena, 0);
    forget_touched();
}

void crash_truth_touch(uint64_t offset, uint64_t bytes)
{
    for (uint64_t i = offset / CRASH_CHUNK;
         i < DIV_ROUND_UP(offset + bytes, CRASH_CHUNK); i++) {
        touched[i] = MIN(touched[i], crash_now());
    }
}

/* Then bitmaps may say that more has changed */
static bool flush_has_failed(void)
{
    return crash_shell.flush_has_failed || crash_disk.flush_has_failed;
}

/* May a bitmap be dirty here, after @number events? */
static bool may_be_dirty(const CrashFound *found, uint64_t block,
                         int64_t number)
{
    int64_t chunk = block * found->granularity / CRASH_CHUNK;

    for (int i = 0; i <= CRASH_CHUNKS_AHEAD && i <= chunk; i++) {
        if (touched[chunk - i] <= number) {
            return true;
        }
    }
    return flush_has_failed() || crash_left_shell.image.torn ||
           crash_shell.image.torn;
}

CrashBitmap *crash_bitmap_new(const char *name, uint32_t granularity)
{
    CrashBitmap *bitmap = g_new0(CrashBitmap, 1);
    CrashTruth truth = { .from = crash_now(), .recording = -1 };

    bitmap->name = g_strdup(name);
    bitmap->granularity = granularity;
    bitmap->truths = g_array_new(false, true, sizeof(CrashTruth));
    g_array_append_val(bitmap->truths, truth);
    g_ptr_array_add(crash_bitmaps, bitmap);
    return bitmap;
}

CrashBitmap *crash_bitmap_find(const char *name, int64_t now)
{
    for (int i = crash_bitmaps->len - 1; i >= 0; i--) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];

        if (!strcmp(bitmap->name, name) && crash_truth_at(bitmap, now)) {
            return bitmap;
        }
    }
    return NULL;
}

CrashTruth *crash_truth_last(CrashBitmap *bitmap)
{
    return &g_array_index(bitmap->truths, CrashTruth, bitmap->truths->len - 1);
}

CrashTruth *crash_truth_next(CrashBitmap *bitmap)
{
    CrashTruth truth = *crash_truth_last(bitmap);

    truth.from = crash_now();
    truth.sealed = false;
    truth.or_before = false;
    truth.other = NULL;
    g_array_append_val(bitmap->truths, truth);
    return crash_truth_last(bitmap);
}

static int truth_index(const CrashBitmap *bitmap, int64_t number)
{
    int i = bitmap->truths->len - 1;

    while (i >= 0 &&
           g_array_index(bitmap->truths, CrashTruth, i).from > number) {
        i--;
    }
    return i;
}

const CrashTruth *crash_truth_at(const CrashBitmap *bitmap, int64_t number)
{
    int i = truth_index(bitmap, number);

    return i < 0 ? NULL : &g_array_index(bitmap->truths, CrashTruth, i);
}

uint32_t *crash_truth_base_copy(const uint32_t *stamps)
{
    uint32_t *copy = g_memdup2(stamps,
                               CRASH_DISK_MAX / SECTOR * sizeof(*stamps));

    g_ptr_array_add(arena, copy);
    return copy;
}

/* Behind the end of the disk, a backup has zeroes */
uint32_t *crash_truth_base_now(void)
{
    uint32_t *base = crash_truth_base_copy(crash_disk.image.stamps);

    for (uint64_t i = crash_disk.image.len / SECTOR;
         i < CRASH_DISK_MAX / SECTOR; i++) {
        base[i] = STAMP_ZERO;
    }
    crash_disk_mark_doubtful(base, true);
    return base;
}

unsigned long *crash_truth_bits_new(void)
{
    unsigned long *bits = bitmap_new(CRASH_DISK_MAX / SECTOR);

    g_ptr_array_add(arena, bits);
    return bits;
}

unsigned long *crash_truth_bits_or(const unsigned long *a,
                                   const unsigned long *b, uint64_t blocks)
{
    unsigned long *bits = crash_truth_bits_new();

    if (b) {
        bitmap_copy(bits, b, blocks);
    }
    if (a) {
        bitmap_or(bits, bits, a, CRASH_DISK_MAX / SECTOR);
    }
    return bits;
}

/* Comparison */

static bool block_differs(const CrashTruth *truth, const CrashImage *disk,
                          uint64_t block, uint32_t granularity)
{
    uint64_t first = block * (granularity / SECTOR);
    uint64_t end = MIN(first + granularity / SECTOR, disk->len / SECTOR);

    if (!truth->base) {
        return false;
    }
    for (uint64_t i = first; i < end; i++) {
        if (disk->stamps[i] != truth->base[i] &&
            truth->base[i] != STAMP_ANY) {
            return true;
        }
    }
    return false;
}

/* Compares a consistent bitmap with one truth */
static char *compare_bits(const CrashFound *found, const CrashTruth *truth,
                          const CrashImage *disk, int64_t number)
{
    uint64_t blocks = DIV_ROUND_UP(found->size, found->granularity);

    if (truth->recording != -1 && found->recording != truth->recording) {
        return g_strdup_printf("'%s' is %s", found->name,
                               found->recording ? "enabled" : "disabled");
    }
    for (uint64_t i = 0; i < blocks; i++) {
        bool dirty = test_bit(i, found->bits);

        if (truth->exact && i < truth->exact_blocks &&
            dirty != !!test_bit(i, truth->exact) &&
            !(dirty && flush_has_failed())) {
            return g_strdup_printf("'%s', block %" PRIu64 " is %s, unlike at "
                                   "the time when it was stored", found->name,
                                   i, dirty ? "dirty" : "clean");
        }
        if (dirty && !may_be_dirty(found, i, number)) {
            return g_strdup_printf("'%s', block %" PRIu64 " of %u bytes is "
                                   "dirty, and nothing was written near it",
                                   found->name, i, found->granularity);
        }
        if (dirty) {
            continue;
        }
        if (truth->must && test_bit(i, truth->must)) {
            return g_strdup_printf("'%s', block %" PRIu64 " is clean, and was "
                                   "dirty", found->name, i);
        }
        if (block_differs(truth, disk, i, found->granularity)) {
            return g_strdup_printf("'%s', block %" PRIu64 " of %u bytes is "
                                   "clean, and the disk differs from the "
                                   "backup", found->name, i,
                                   found->granularity);
        }
    }
    return NULL;
}

/* Is the truth that @other has after its present one right? */
static bool next_is_right(const CrashBitmap *other, GPtrArray *all,
                          const CrashImage *disk, int64_t number)
{
    const CrashFound *found = crash_found(all, other->name);
    int i = truth_index(other, number) + 1;
    g_autofree char *wrong = NULL;

    if (!found || found->inconsistent || i >= other->truths->len) {
        return false;
    }
    wrong = compare_bits(found, &g_array_index(other->truths, CrashTruth, i),
                         disk, number);
    return !wrong;
}

static char *compare_consistent(const CrashBitmap *bitmap,
                                const CrashFound *found, GPtrArray *all,
                                const CrashImage *disk, int64_t number)
{
    int i = truth_index(bitmap, number);
    const CrashTruth *truth = &g_array_index(bitmap->truths, CrashTruth, i);
    char *wrong;

    if (truth->presence == CRASH_ABSENT) {
        return g_strdup_printf("'%s' was removed", bitmap->name);
    }
    if (found->granularity != bitmap->granularity) {
        return g_strdup_printf("'%s' has another granularity", bitmap->name);
    }
    if (found->size != disk->len) {
        return g_strdup_printf("'%s' has the wrong size", bitmap->name);
    }
    wrong = compare_bits(found, truth, disk, number);
    while (wrong && truth->or_before) {
        g_free(wrong);
        truth = &g_array_index(bitmap->truths, CrashTruth, --i);
        wrong = compare_bits(found, truth, disk, number);
    }
    if (wrong && truth->other &&
        next_is_right(truth->other, all, disk, number)) {
        g_clear_pointer(&wrong, g_free);
    }
    return wrong;
}

/* The truth that @found agrees with, NULL if it is that of another bitmap */
static const CrashTruth *truth_that_holds(const CrashBitmap *bitmap,
                                          const CrashFound *found,
                                          const CrashImage *disk,
                                          int64_t number)
{
    int i = truth_index(bitmap, number);

    for (;; i--) {
        const CrashTruth *truth = &g_array_index(bitmap->truths, CrashTruth,
                                                 i);
        g_autofree char *wrong = compare_bits(found, truth, disk, number);

        if (!wrong) {
            return truth;
        }
        if (!truth->or_before) {
            return NULL;
        }
    }
}

static void continue_one(CrashBitmap *bitmap, const CrashFound *found,
                         const CrashImage *disk, int64_t number)
{
    uint64_t blocks = DIV_ROUND_UP(found->size, found->granularity);
    const CrashTruth *before = truth_that_holds(bitmap, found, disk, number);
    unsigned long *bits = crash_truth_bits_or(NULL, found->bits, blocks);
    CrashTruth truth = {
        .presence = CRASH_PRESENT,
        .recording = found->recording,
    };

    if (before && before->base) {
        truth.base = before->base;
        truth.must = before->must;
    } else {
        truth.base = crash_truth_base_copy(disk->stamps);
        truth.must = bits;
    }
    if (!found->recording) {
        truth.base = NULL;
        truth.exact = bits;
        truth.exact_blocks = blocks;
    }
    for (uint64_t i = 0; i < blocks; i++) {
        if (test_bit(i, bits)) {
            touched[i * found->granularity / CRASH_CHUNK] = 0;
        }
    }
    g_array_set_size(bitmap->truths, 0);
    g_array_append_val(bitmap->truths, truth);
}

void crash_truth_continue(GPtrArray *found, const CrashImage *disk,
                          int64_t number)
{
    forget_touched();
    for (int i = 0; i < crash_bitmaps->len; ) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];
        const CrashFound *f = crash_found(found, bitmap->name);

        if (!f || f->inconsistent ||
            crash_bitmap_find(bitmap->name, number) != bitmap) {
            g_ptr_array_remove_index(crash_bitmaps, i);
            continue;
        }
        continue_one(bitmap, f, disk, number);
        i++;
    }
}

static char *compare_one(const CrashBitmap *bitmap, GPtrArray *all,
                         const CrashImage *disk, int64_t number, bool usable,
                         CrashVerdict *verdict)
{
    const CrashTruth *truth = crash_truth_at(bitmap, number);
    const CrashFound *found = crash_found(all, bitmap->name);
    bool needed = truth->sealed ||
                  (usable && truth->presence == CRASH_PRESENT);

    if (!found) {
        verdict->missing += truth->presence == CRASH_PRESENT;
        return needed && truth->presence == CRASH_PRESENT
            ? g_strdup_printf("'%s' is missing", bitmap->name) : NULL;
    }
    if (found->inconsistent) {
        verdict->inconsistent++;
        if (needed) {
            return g_strdup_printf("'%s' is inconsistent", bitmap->name);
        }
        return usable && truth->presence == CRASH_ABSENT
            ? g_strdup_printf("'%s' was removed", bitmap->name) : NULL;
    }
    verdict->consistent++;
    return compare_consistent(bitmap, found, all, disk, number);
}

/* What is said to read as zeroes has to, whatever has happened */
static char *compare_map(const CrashFound *found, const CrashImage *disk,
                         CrashVerdict *verdict)
{
    uint64_t blocks = DIV_ROUND_UP(found->size, found->granularity);
    uint64_t sectors = found->granularity / SECTOR;

    if (found->size != disk->len) {
        return g_strdup("The allocation map has the wrong size");
    }
    for (uint64_t i = 0; i < blocks; i++) {
        if (test_bit(i, found->bits)) {
            continue;
        }
        verdict->zeroes++;
        for (uint64_t j = i * sectors;
             j < MIN((i + 1) * sectors, disk->len / SECTOR); j++) {
            if (disk->stamps[j] != STAMP_ZERO) {
                return g_strdup_printf("Granule %" PRIu64 " of the allocation "
                                       "map is clear, and the disk has data in "
                                       "sector %" PRIu64, i, j);
            }
        }
    }
    return NULL;
}

char *crash_compare(GPtrArray *found, const CrashImage *disk, int64_t number,
                    bool usable, CrashVerdict *verdict)
{
    for (int i = 0; i < found->len; i++) {
        const CrashFound *f = found->pdata[i];

        if (f->is_map) {
            char *wrong = compare_map(f, disk, verdict);

            if (wrong) {
                return wrong;
            }
            continue;
        }
        /* One that became inconsistent in a life before is nobody's */
        if (!crash_bitmap_find(f->name, number) &&
            (usable || !f->inconsistent)) {
            return g_strdup_printf("'%s' was never added", f->name);
        }
    }
    for (int i = 0; i < crash_bitmaps->len; i++) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];
        char *wrong;

        /* Later ones have taken the names of those that were removed */
        if (crash_bitmap_find(bitmap->name, number) != bitmap) {
            continue;
        }
        wrong = compare_one(bitmap, found, disk, number, usable, verdict);
        if (wrong) {
            return wrong;
        }
    }
    return NULL;
}
