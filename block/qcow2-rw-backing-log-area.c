/*
 * qcow2 RW backing: the write-intent log in the file
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-log-area.h"

static uint64_t log_offset(BlockDriverState *bs)
{
    return qcow2_shell(bs)->pointer.log_offset;
}

/*
 * Is the log where nothing else is?  The header can be damaged, or made to look
 * like this by somebody.
 */
static bool coroutine_mixed_fn GRAPH_RDLOCK
has_place_of_its_own(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t offset = log_offset(bs);
    uint64_t i, refcount;

    if (!offset || offset_into_cluster(s, offset) ||
        qcow2_check_metadata_overlap(bs, 0, offset, QCOW2_LOG_LEN)) {
        return false;
    }
    for (i = 0; i < size_to_clusters(s, QCOW2_LOG_LEN); i++) {
        if (qcow2_get_refcount(bs, (offset >> s->cluster_bits) + i,
                               &refcount) < 0 || refcount != 1) {
            return false;
        }
    }
    return true;
}

/* Units without marks, of no life of the log that will ever be */
static uint8_t *build_empty_log(BlockDriverState *bs)
{
    static const uint8_t no_marks[QCOW2_LOG_UNIT_CHUNKS / 8];
    uint8_t *buf = qemu_blockalign0(bs->file->bs, QCOW2_LOG_LEN);
    Qcow2LogId id = { };
    int area, i;

    for (area = 0; area < 2; area++) {
        uint8_t *units = buf + QCOW2_LOG_AREA_OFFSET(area) + QCOW2_LOG_PAGE_LEN;

        for (i = 0; i < QCOW2_LOG_UNITS; i++) {
            qcow2_log_unit_serialize(units + i * QCOW2_LOG_UNIT_LEN, &id, i,
                                     QCOW2_LOG_MIN_CHUNK_BITS, no_marks);
        }
    }
    return buf;
}

int coroutine_mixed_fn qcow2_log_area_ensure(BlockDriverState *bs)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    uint64_t since = get_clock();
    int64_t offset;
    uint8_t *buf;
    int ret;

    if (has_place_of_its_own(bs)) {
        return 0;
    }
    offset = qcow2_alloc_clusters(bs, QCOW2_LOG_LEN);
    if (offset < 0) {
        return offset;
    }
    buf = build_empty_log(bs);
    ret = qcow2_pre_write_overlap_check(bs, 0, offset, QCOW2_LOG_LEN, false);
    if (ret == 0) {
        ret = bdrv_pwrite(bs->file, offset, QCOW2_LOG_LEN, buf, 0);
    }
    qemu_vfree(buf);
    if (ret == 0) {
        ret = qcow2_write_caches(bs);
    }
    if (ret == 0) {
        ret = qcow2_shell_flush_file(bs, since);
    }
    if (ret < 0) {
        qcow2_free_clusters(bs, offset, QCOW2_LOG_LEN, QCOW2_DISCARD_OTHER);
        return ret;
    }
    rwb->pointer.log_offset = offset;
    return 0;
}

int coroutine_mixed_fn
qcow2_log_area_write_pages(BlockDriverState *bs, uint64_t generation,
                           const uint8_t *buf, const unsigned long *pages)
{
    uint64_t offset = log_offset(bs) + QCOW2_LOG_AREA_OFFSET(generation & 1) +
                      QCOW2_LOG_PAGE_LEN;
    unsigned long first = find_first_bit(pages, QCOW2_LOG_PAGES), end;
    int ret = 0;

    while (first < QCOW2_LOG_PAGES && ret == 0) {
        end = find_next_zero_bit(pages, QCOW2_LOG_PAGES, first);
        ret = bdrv_pwrite(bs->file, offset + first * QCOW2_LOG_PAGE_LEN,
                          (end - first) * QCOW2_LOG_PAGE_LEN,
                          buf + first * QCOW2_LOG_PAGE_LEN, 0);
        first = find_next_bit(pages, QCOW2_LOG_PAGES, end);
    }
    return ret;
}

/* A sector, and zeroes in the rest of its page */
static int coroutine_mixed_fn GRAPH_RDLOCK
write_sector(BlockDriverState *bs, uint64_t offset, const uint8_t *sector)
{
    uint8_t *buf = qemu_blockalign0(bs->file->bs, QCOW2_LOG_PAGE_LEN);
    int ret;

    memcpy(buf, sector, QCOW2_LOG_UNIT_LEN);
    ret = bdrv_pwrite(bs->file, log_offset(bs) + offset, QCOW2_LOG_PAGE_LEN,
                      buf, 0);
    qemu_vfree(buf);
    return ret;
}

int coroutine_mixed_fn
qcow2_log_area_write_super(BlockDriverState *bs, const Qcow2LogSuper *super)
{
    uint8_t sector[QCOW2_LOG_UNIT_LEN];

    qcow2_log_super_serialize(super, sector);
    return write_sector(bs, QCOW2_LOG_AREA_OFFSET(super->id.generation & 1),
                        sector);
}

int coroutine_mixed_fn
qcow2_log_area_wipe_other_super(BlockDriverState *bs, uint64_t generation)
{
    static const uint8_t nothing[QCOW2_LOG_UNIT_LEN];

    return write_sector(bs, QCOW2_LOG_AREA_OFFSET(!(generation & 1)), nothing);
}

int coroutine_mixed_fn
qcow2_log_area_write_lease(BlockDriverState *bs, const Qcow2LogLease *lease)
{
    uint8_t sector[QCOW2_LOG_UNIT_LEN];

    qcow2_log_lease_serialize(lease, sector);
    return write_sector(bs, QCOW2_LOG_LEASE_OFFSET(lease->number & 1), sector);
}

int coroutine_mixed_fn qcow2_log_area_read(BlockDriverState *bs, uint8_t *buf)
{
    int64_t length = bdrv_getlength(bs->file->bs);
    uint64_t offset = log_offset(bs);
    int i;

    memset(buf, 0, QCOW2_LOG_LEN);
    if (!offset || length < 0 || offset > length ||
        QCOW2_LOG_LEN > length - offset) {
        return -EINVAL;
    }
    if (bdrv_pread(bs->file, offset, QCOW2_LOG_LEN, buf, 0) == 0) {
        return 0;
    }
    /* Part of it may be readable */
    for (i = 0; i < QCOW2_LOG_LEN; i += QCOW2_LOG_UNIT_LEN) {
        if (bdrv_pread(bs->file, offset + i, QCOW2_LOG_UNIT_LEN, buf + i,
                       0) < 0) {
            memset(buf + i, 0, QCOW2_LOG_UNIT_LEN);
        }
    }
    return 0;
}

int coroutine_fn
qcow2_rw_backing_check_refcounts(BlockDriverState *bs, BdrvCheckResult *res,
                                 void **refcount_table,
                                 int64_t *refcount_table_size)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t length = bdrv_co_getlength(bs->file->bs);
    uint64_t offset;

    if (!s->rw_backing || !s->rw_backing->pointer.log_offset) {
        return 0;
    }
    offset = log_offset(bs);
    if (length < 0 || offset_into_cluster(s, offset) || offset > length ||
        QCOW2_LOG_LEN > ROUND_UP(length, s->cluster_size) - offset) {
        /* Nobody will make use of it */
        return 0;
    }
    return qcow2_inc_refcounts_imrt(bs, res, refcount_table,
                                    refcount_table_size, offset,
                                    QCOW2_LOG_LEN);
}
