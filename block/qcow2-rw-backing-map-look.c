/*
 * qcow2 RW backing: looking at the disk for its allocation map
 *
 * A map that has not seen all writes for sure (after a crash, on another host)
 * is unproven: before anybody is told that a granule reads as zeroes, it is
 * read.  What holds has not to be read again.  A scan does the same with all of
 * the disk.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/units.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing-fill.h"
#include "qcow2-rw-backing-judge.h"
#include "qcow2-rw-backing-map-look.h"
#include "qcow2-rw-backing-map-watch.h"

/* The most that is read at once, unless a granule is larger */
#define LOOK_BYTES      (2 * MiB)

/* The most that is asked at once */
#define ASK_BYTES       (64 * MiB)

static void report_wrong(BlockDriverState *bs, uint64_t offset)
{
    warn_report("Allocation map of '%s' is wrong: there is data near offset %"
                PRIu64 " of its RW backing, which others must have written; "
                "its bitmaps %s", bs->filename, offset,
                bdrv_is_writable(bs) ? "say that everything has changed"
                                     : "cannot be relied on");
    if (!bdrv_is_writable(bs)) {
        /* Those in the image cannot be filled */
        qcow2_shell_distrust(bs);
    }
    qcow2_shell_fill_bitmaps(bs, true);
}

/*
 * Reads whole granules, @bytes from @offset on; the last one may be shorter.
 * Returns 0, or -errno.
 */
static int coroutine_fn GRAPH_RDLOCK
look(BlockDriverState *bs, Qcow2Map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t granularity = UINT64_C(1) << map->granularity_bits;
    uint64_t granules = DIV_ROUND_UP(bytes, granularity);
    g_autofree unsigned long *zero = bitmap_new(granules);
    uint8_t *buf = qemu_try_blockalign(qcow2_shell(bs)->child->bs, bytes);
    Qcow2MapWatch watch;
    uint64_t i;
    int ret;

    if (!buf) {
        return -ENOMEM;
    }
    qcow2_map_watch_begin(bs, map, &watch, offset, bytes);
    ret = bdrv_co_pread(qcow2_shell(bs)->child, offset, bytes, buf, 0);
    if (ret < 0) {
        qcow2_map_watch_cancel(bs, &watch);
    } else {
        for (i = 0; i < granules; i++) {
            if (buffer_is_zero(buf + i * granularity,
                               MIN(granularity, bytes - i * granularity))) {
                set_bit(i, zero);
            }
        }
        if (qcow2_map_watch_end(bs, &watch, offset, bytes, zero) ==
            QCOW2_MAP_IS_WRONG) {
            report_wrong(bs, offset);
        }
    }
    qemu_vfree(buf);
    return ret;
}

/* Whole granules around a part of the disk */
static uint64_t align_to_granules(const Qcow2Map *map, uint64_t offset,
                                  uint64_t bytes, uint64_t *aligned_bytes)
{
    uint64_t granularity = UINT64_C(1) << map->granularity_bits;
    uint64_t start = ROUND_DOWN(offset, granularity);

    *aligned_bytes = MIN(ROUND_UP(offset + bytes, granularity), map->size) -
                     start;
    return start;
}

static uint64_t look_bytes(const Qcow2Map *map)
{
    return MAX(LOOK_BYTES, UINT64_C(1) << map->granularity_bits);
}

bool coroutine_fn qcow2_map_status(BlockDriverState *bs, int64_t offset,
                                   int64_t bytes, int64_t *count)
{
    Qcow2Map *map = qcow2_shell_map(bs);
    uint32_t align = bs->bl.request_alignment;
    uint64_t n = bytes;
    Qcow2MapState state;

    *count = bytes;
    if (!map || offset >= map->size ||
        align > UINT64_C(1) << map->granularity_bits) {
        return false;
    }
    state = qcow2_map_get(map, offset, bytes, &n);
    if (state == QCOW2_MAP_UNPROVEN) {
        uint64_t start, len;

        start = align_to_granules(map, offset, MIN(n, look_bytes(map)), &len);
        len = MIN(len, look_bytes(map));
        n = MIN(n, start + len - offset);
        if (look(bs, map, start, len) < 0) {
            *count = n;
            return false;
        }
        state = qcow2_map_get(map, offset, n, &n);
    }
    *count = n;
    return state == QCOW2_MAP_ZERO;
}

/* Scans */

/* Returns the number of bytes that were looked at, or -errno */
static int64_t coroutine_fn GRAPH_RDLOCK
ask(BlockDriverState *bs, Qcow2Map *map, uint64_t offset, bool *zero)
{
    uint64_t bytes = MIN(map->size - offset, ASK_BYTES);
    g_autofree unsigned long *all = NULL;
    Qcow2MapWatch watch;
    int64_t count = 0;
    int ret;

    qcow2_map_watch_begin(bs, map, &watch, offset, bytes);
    ret = bdrv_co_block_status_above(qcow2_shell(bs)->child->bs, NULL, offset,
                                     bytes, &count, NULL, NULL);
    *zero = ret >= 0 && (ret & BDRV_BLOCK_ZERO);
    if (!*zero) {
        qcow2_map_watch_cancel(bs, &watch);
    } else {
        uint64_t granules = (bytes >> map->granularity_bits) + 1;

        /* They are that already, and no request has made them so */
        all = bitmap_new(granules);
        bitmap_fill(all, granules);
        qcow2_map_watch_end(bs, &watch, offset, count, all);
    }
    return ret < 0 ? ret : count ?: bytes;
}

/* Whole granules around a part; returns the end of what it has looked at */
static int64_t coroutine_fn GRAPH_RDLOCK
look_around(BlockDriverState *bs, Qcow2Map *map, uint64_t offset,
            uint64_t bytes)
{
    uint64_t start = align_to_granules(map, offset, bytes, &bytes);
    uint64_t n = MIN(bytes, look_bytes(map));
    int ret = look(bs, map, start, n);

    return ret < 0 ? ret : start + n;
}

int coroutine_fn qcow2_map_scan(BlockDriverState *bs, bool read,
                                Qcow2MapProgress *progress, void *opaque,
                                Error **errp)
{
    Qcow2Map *map = qcow2_shell_map(bs);
    uint64_t offset = 0;

    while (offset < map->size) {
        bool zero;
        int64_t count = ask(bs, map, offset, &zero);
        int64_t end = count < 0 ? count : offset + count;

        if (count >= 0 && read && !zero) {
            /* What is left of it is asked for again */
            end = look_around(bs, map, offset, count);
        }
        if (end < 0) {
            error_setg_errno(errp, -end, "Could not scan the RW backing of "
                             "'%s' at offset %" PRIu64, bs->filename, offset);
            return end;
        }
        offset = end;
        if (progress) {
            progress(opaque, MIN(offset, map->size), map->size);
        }
    }
    return 0;
}

/* Resizing */

void coroutine_fn qcow2_map_take_over_size(BlockDriverState *bs, uint64_t size)
{
    Qcow2Map *map = qcow2_shell_map(bs);
    uint64_t offset;

    if (!map || map->size == size) {
        return;
    }
    offset = map->size;
    qcow2_map_disturb(bs, map, 0, INT64_MAX);
    qatomic_inc(&map->changes);
    qcow2_map_resize(map, size);
    qcow2_map_update_gate(bs);
    while (offset < size) {
        int64_t count = 0;
        int ret = bdrv_co_block_status_above(qcow2_shell(bs)->child->bs, NULL,
                                             offset, size - offset, &count,
                                             NULL, NULL);

        count = count ?: size - offset;
        if (ret < 0 || !(ret & BDRV_BLOCK_ZERO)) {
            qcow2_map_set(map, offset, count);
        }
        offset += count;
    }
}
