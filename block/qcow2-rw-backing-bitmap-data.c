/*
 * qcow2 RW backing: content of the bitmaps of a shell
 *
 * The bitmaps of a large disk take up many clusters, all of which are read when
 * the image is opened, and written when it is closed.  So clusters that follow
 * each other in the file are moved at once, and those with all bits set are not
 * stored at all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <zlib.h>
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/bitmap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmap-data.h"
#include "qcow2-rw-backing-directory.h"

/* Enough for requests to cost little, and small enough for a CPU's cache */
#define RUN_MAX                     (512 * KiB)

/* See "Checksum of bitmaps" in the specification of the RW backing */
#define CHECKSUM_COLUMNS            16

/* Clusters of a bitmap that follow each other in the file */
typedef struct Run {
    uint64_t offset;            /* in bs->file */
    uint64_t length;            /* in bytes, 0 if there are none */
    uint64_t capacity;          /* room in @data, in bytes */
    uint8_t *data;
} Run;

static bool run_init(BlockDriverState *bs, Run *run)
{
    BDRVQcow2State *s = bs->opaque;

    *run = (Run) { .capacity = MAX(s->cluster_size, RUN_MAX) };
    run->data = qemu_try_blockalign(bs->file->bs, run->capacity);
    return run->data;
}

/* Checksum: the sum does not depend on the order of its parts */

static uint32_t crc_name(const char *name)
{
    return crc32(0, (const Bytef *)name, strlen(name));
}

static uint32_t crc_be64(uint32_t crc, uint64_t value)
{
    uint8_t buf[8];

    stq_be_p(buf, value);
    return crc32(crc, buf, sizeof(buf));
}

uint32_t qcow2_shell_sum_bitmap(const char *name, uint32_t granularity,
                                bool autoload)
{
    return crc_be64(crc_be64(crc_name(name), granularity), autoload);
}

/*
 * For each column of @data, the sum of its numbers, and the sum of the sums.
 * With a cluster of numbers of 32 bits, nothing wraps around: bits that are
 * missing always make a difference.
 */
static void sum_columns(const uint8_t *data, size_t len,
                        uint64_t sums[2 * CHECKSUM_COLUMNS])
{
    uint64_t first[CHECKSUM_COLUMNS] = { };
    uint64_t second[CHECKSUM_COLUMNS] = { };
    size_t i;
    int j;

    for (i = 0; i < len; i += CHECKSUM_COLUMNS * sizeof(uint32_t)) {
        for (j = 0; j < CHECKSUM_COLUMNS; j++) {
            first[j] += (uint32_t)ldl_le_p(data + i + j * sizeof(uint32_t));
            second[j] += first[j];
        }
    }
    memcpy(sums, first, sizeof(first));
    memcpy(sums + CHECKSUM_COLUMNS, second, sizeof(second));
}

/* @data is NULL if the entry @index of the bitmap table says "all ones" */
static uint32_t sum_cluster(BlockDriverState *bs, const char *name,
                            uint64_t index, const uint8_t *data)
{
    BDRVQcow2State *s = bs->opaque;
    uint32_t crc = crc_be64(crc_name(name), index);
    uint64_t sums[2 * CHECKSUM_COLUMNS];
    size_t i;

    if (data) {
        sum_columns(data, s->cluster_size, sums);
        for (i = 0; i < ARRAY_SIZE(sums); i++) {
            crc = crc_be64(crc, sums[i]);
        }
    }
    return crc;
}

uint64_t qcow2_shell_table_size(BlockDriverState *bs, uint64_t size,
                                uint64_t granularity)
{
    BDRVQcow2State *s = bs->opaque;

    return size_to_clusters(s, DIV_ROUND_UP(DIV_ROUND_UP(size, granularity),
                                            8));
}

/* Storing */

static int coroutine_mixed_fn GRAPH_RDLOCK
write_run(BlockDriverState *bs, Run *run)
{
    int ret;

    if (!run->length) {
        return 0;
    }
    ret = qcow2_pre_write_overlap_check(bs, 0, run->offset, run->length, false);
    if (ret == 0) {
        ret = bdrv_pwrite(bs->file, run->offset, run->length, run->data, 0);
    }
    run->length = 0;
    return ret;
}

/* Adds a new cluster to @run, writing what it has before if need be */
static int coroutine_mixed_fn GRAPH_RDLOCK
extend_run(BlockDriverState *bs, Run *run, uint64_t *table_entry)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t offset = qcow2_alloc_clusters(bs, s->cluster_size);
    int ret;

    if (offset < 0) {
        return offset;
    }
    *table_entry = offset;
    if (run->length == run->capacity || offset != run->offset + run->length) {
        ret = write_run(bs, run);
        if (ret < 0) {
            return ret;
        }
        run->offset = offset;
    }
    run->length += s->cluster_size;
    return 0;
}

/* Bits that are being stored, and what was true of them at the start */
typedef struct Source {
    const Qcow2ShellBits *bits;
    BdrvDirtyBitmap *successor; /* of the bitmap, NULL if there is none */
    unsigned int changes;
    int64_t size;               /* in bytes of the disk */
    int64_t coverage;           /* of a cluster, likewise */
    uint8_t *spare;             /* a cluster */
} Source;

/* What a cluster of a bitmap has */
typedef enum Content {
    CONTENT_CHANGED,            /* the bitmap is not what it was */
    CONTENT_ZEROES,
    CONTENT_ONES,
    CONTENT_DATA,
} Content;

static void add_successor(BlockDriverState *bs, const Source *source,
                          int64_t offset, int64_t bytes, uint8_t *data,
                          uint64_t size)
{
    uint64_t i;

    bdrv_dirty_bitmap_serialize_part(source->successor, source->spare, offset,
                                     bytes);
    for (i = 0; i < size; i++) {
        data[i] |= source->spare[i];
    }
}

static bool is_dirty(BdrvDirtyBitmap *bitmap, int64_t offset, int64_t bytes)
{
    return bitmap && bdrv_dirty_bitmap_next_dirty(bitmap, offset, bytes) >= 0;
}

/* With bs->dirty_bitmap_mutex held */
static Content read_bitmap(BlockDriverState *bs, const Source *source,
                           int64_t offset, int64_t bytes, uint8_t *data)
{
    BDRVQcow2State *s = bs->opaque;
    BdrvDirtyBitmap *bitmap = source->bits->bitmap;
    uint64_t size;

    if (!is_dirty(bitmap, offset, bytes) &&
        !is_dirty(source->successor, offset, bytes)) {
        return CONTENT_ZEROES;
    }
    /* A last cluster would have ones behind the end of the bitmap */
    if (bytes == source->coverage &&
        bdrv_dirty_bitmap_next_zero(bitmap, offset, bytes) < 0) {
        return CONTENT_ONES;
    }
    size = bdrv_dirty_bitmap_serialization_size(bitmap, offset, bytes);
    assert(size <= s->cluster_size);
    bdrv_dirty_bitmap_serialize_part(bitmap, data, offset, bytes);
    if (source->successor) {
        add_successor(bs, source, offset, bytes, data, size);
    }
    memset(data + size, 0, s->cluster_size - size);
    return CONTENT_DATA;
}

static Content read_map(BlockDriverState *bs, const Source *source,
                        uint64_t index, uint8_t *data)
{
    size_t len = ((BDRVQcow2State *)bs->opaque)->cluster_size;

    qcow2_map_serialize(source->bits->map, index * len * 8, data, len);
    if (buffer_is_zero(data, len)) {
        return CONTENT_ZEROES;
    }
    if (data[0] == 0xff && !memcmp(data, data + 1, len - 1)) {
        return CONTENT_ONES;
    }
    return CONTENT_DATA;
}

/*
 * Reads cluster @index.  The bitmap itself may be gone once something else had
 * the chance to run, which is noticed by the number of changes.
 */
static Content read_cluster(BlockDriverState *bs, const Source *source,
                            uint64_t index, uint8_t *data)
{
    int64_t offset = index * source->coverage;
    int64_t bytes = MIN(source->coverage, source->size - offset);

    QEMU_LOCK_GUARD(&bs->dirty_bitmap_mutex);

    if (bs->dirty_bitmap_changes != source->changes) {
        return CONTENT_CHANGED;
    }
    return source->bits->map ? read_map(bs, source, index, data)
                             : read_bitmap(bs, source, offset, bytes, data);
}

/* @data has room for a cluster */
static int coroutine_mixed_fn GRAPH_RDLOCK
store_cluster(BlockDriverState *bs, const Source *source, uint64_t index,
              uint8_t *data, Run *run, uint64_t *table, uint32_t *sums)
{
    BDRVQcow2State *s = bs->opaque;
    int ret;

    switch (read_cluster(bs, source, index, data)) {
    case CONTENT_CHANGED:
        return -EAGAIN;
    case CONTENT_ZEROES:
        return 0;
    case CONTENT_ONES:
        table[index] = QCOW2_SHELL_TABLE_ALL_ONES;
        data = NULL;
        break;
    case CONTENT_DATA:
        break;
    }
    sums[index] = sum_cluster(bs, source->bits->name, index, data);
    if (data) {
        ret = extend_run(bs, run, &table[index]);
        if (ret < 0) {
            return ret;
        }
        memcpy(run->data + run->length - s->cluster_size, data,
               s->cluster_size);
    }
    return 0;
}

int64_t qcow2_shell_coverage(BlockDriverState *bs, const Qcow2ShellBits *bits)
{
    BDRVQcow2State *s = bs->opaque;

    return bits->map
        ? (int64_t)s->cluster_size * 8 << bits->map->granularity_bits
        : bdrv_dirty_bitmap_serialization_coverage(s->cluster_size,
                                                   bits->bitmap);
}

int coroutine_mixed_fn
qcow2_shell_store_data(BlockDriverState *bs, const Qcow2ShellBits *bits,
                       const unsigned long *keep, uint64_t *table,
                       uint32_t *sums)
{
    BDRVQcow2State *s = bs->opaque;
    Source source = {
        .bits      = bits,
        .successor = bits->map ? NULL
                               : bdrv_dirty_bitmap_successor(bits->bitmap),
        .changes   = bs->dirty_bitmap_changes,
        .size      = bits->map ? bits->map->size
                               : bdrv_dirty_bitmap_size(bits->bitmap),
        .coverage  = qcow2_shell_coverage(bs, bits),
    };
    uint64_t table_size = DIV_ROUND_UP(source.size, source.coverage);
    g_autofree uint8_t *data = g_try_malloc(s->cluster_size);
    g_autofree uint8_t *spare = g_try_malloc(s->cluster_size);
    uint64_t i;
    Run run;
    int ret = 0;

    if (!data || !spare || !run_init(bs, &run)) {
        return -ENOMEM;
    }
    source.spare = spare;
    for (i = 0; i < table_size && ret == 0; i++) {
        if (!test_bit(i, keep)) {
            ret = store_cluster(bs, &source, i, data, &run, table, sums);
        }
    }
    if (ret == 0) {
        ret = write_run(bs, &run);
    }
    qemu_vfree(run.data);
    return ret;
}

/* Loading */

/* Reads the cluster of entry @index of @table, and those that follow it */
static int coroutine_fn GRAPH_RDLOCK
read_run(BlockDriverState *bs, const uint64_t *table, uint32_t table_size,
         uint32_t index, Run *run)
{
    BDRVQcow2State *s = bs->opaque;

    run->offset = table[index] & QCOW2_SHELL_TABLE_OFFSET_MASK;
    run->length = 0;
    for (; index < table_size && run->length < run->capacity; index++) {
        uint64_t offset = table[index] & QCOW2_SHELL_TABLE_OFFSET_MASK;

        if (offset == run->offset + run->length) {
            run->length += s->cluster_size;
        } else if (offset) {
            break;
        }
    }
    return bdrv_co_pread(bs->file, run->offset, run->length, run->data, 0);
}

/* Takes what an entry of the table refers to over into @bits */
static void deserialize_cluster(BlockDriverState *bs,
                                const Qcow2ShellBits *bits, uint64_t index,
                                const uint8_t *data)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t start, bytes;

    if (bits->map) {
        qcow2_map_deserialize(bits->map, index * s->cluster_size * 8, data,
                              s->cluster_size);
        return;
    }
    start = index * qcow2_shell_coverage(bs, bits);
    bytes = MIN(qcow2_shell_coverage(bs, bits),
                bdrv_dirty_bitmap_size(bits->bitmap) - start);
    if (data) {
        bdrv_dirty_bitmap_deserialize_part(bits->bitmap, (uint8_t *)data, start,
                                           bytes, false);
    } else {
        bdrv_dirty_bitmap_deserialize_ones(bits->bitmap, start, bytes, false);
    }
}

int coroutine_fn
qcow2_shell_co_load_data(BlockDriverState *bs, const Qcow2ShellBits *bits,
                         const uint64_t *table, uint32_t table_size,
                         uint32_t *sums)
{
    Run run;
    uint32_t i;
    int ret = 0;

    if (!run_init(bs, &run)) {
        return -ENOMEM;
    }

    for (i = 0; i < table_size; i++) {
        uint64_t cluster = table[i] & QCOW2_SHELL_TABLE_OFFSET_MASK;
        const uint8_t *data = NULL;

        if (!table[i]) {
            continue;
        }
        if (cluster) {
            if (cluster < run.offset || cluster >= run.offset + run.length) {
                ret = read_run(bs, table, table_size, i, &run);
                if (ret < 0) {
                    break;
                }
            }
            data = run.data + (cluster - run.offset);
        }
        if (bits->map || bits->bitmap) {
            deserialize_cluster(bs, bits, i, data);
        }
        sums[i] = sum_cluster(bs, bits->name, i, data);
    }
    if (ret == 0 && bits->bitmap) {
        bdrv_dirty_bitmap_deserialize_finish(bits->bitmap);
    }

    qemu_vfree(run.data);
    return ret;
}
