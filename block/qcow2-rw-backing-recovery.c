/*
 * qcow2 RW backing: bitmaps after a crash
 *
 * A bitmap is what was stored together with all marks of its generation and of
 * later ones.  The generation is the one whose superblock names the directory
 * that the header refers to; see "Recovery" in the specification.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/memalign.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-log-area.h"
#include "qcow2-rw-backing-recovery.h"
#include "trace.h"

static const uint8_t *get_unit(const uint8_t *log, int area, uint32_t index)
{
    return log + QCOW2_LOG_AREA_OFFSET(area) + QCOW2_LOG_PAGE_LEN +
           index * QCOW2_LOG_UNIT_LEN;
}

/* Reading */

/* Does the header refer to the directory that @super names? */
static bool matches_directory(const BDRVQcow2State *s, uint32_t crc,
                              const Qcow2LogSuper *super)
{
    return super->directory_offset == s->bitmap_directory_offset &&
           super->directory_size == s->bitmap_directory_size &&
           super->nb_bitmaps == s->nb_bitmaps && super->directory_crc == crc;
}

/* Returns false if there is none, or more than one: nobody writes such a log */
static bool coroutine_mixed_fn GRAPH_RDLOCK
find_super(BlockDriverState *bs, const uint8_t *log, Qcow2LogSuper *super)
{
    Qcow2LogSuper found;
    int i, count = 0;
    uint32_t crc;

    if (qcow2_shell_directory_crc(bs, &crc) < 0) {
        return false;
    }
    for (i = 0; i < 2; i++) {
        if (qcow2_log_super_parse(&found, log + QCOW2_LOG_AREA_OFFSET(i)) &&
            (found.id.generation & 1) == i &&
            matches_directory(bs->opaque, crc, &found)) {
            *super = found;
            count++;
        }
    }
    return count == 1;
}

/* The one with the higher number, of this life of the log */
static Qcow2LogLease find_lease(const uint8_t *log, uint64_t nonce)
{
    Qcow2LogLease best = { }, lease;
    int i;

    for (i = 0; i < 2; i++) {
        if (qcow2_log_lease_parse(&lease, log + QCOW2_LOG_LEASE_OFFSET(i)) &&
            lease.nonce == nonce && lease.number > best.number) {
            best = lease;
        }
    }
    return best;
}

/* Returns the marks of @area, which are there if it has a unit that counts */
static Qcow2LogMarks *get_marks(Qcow2LogRecovery *recovery, int area,
                                const Qcow2LogId *id, unsigned int chunk_bits)
{
    Qcow2LogMarks *marks = recovery->areas[area];

    if (!marks) {
        marks = recovery->areas[area] = g_new(Qcow2LogMarks, 1);
        qcow2_log_marks_init(marks, id, recovery->super.size, chunk_bits);
    }
    if (marks->id.generation != id->generation ||
        marks->chunk_bits != chunk_bits) {
        /* No program writes such a thing */
        recovery->everything = true;
    }
    return marks;
}

static void add_unit(Qcow2LogRecovery *recovery, int area, uint32_t index,
                     const uint8_t *unit)
{
    const Qcow2LogSuper *super = &recovery->super;
    unsigned int chunk_bits;
    Qcow2LogMarks *marks;
    Qcow2LogId id;

    if (qcow2_log_unit_parse(unit, index, &id, &chunk_bits) !=
        QCOW2_LOG_UNIT_VALID || id.nonce != super->id.nonce ||
        id.generation < super->id.generation) {
        return;
    }
    if ((id.generation & 1) != area ||
        id.generation > super->id.generation + 1) {
        recovery->everything = true;
        return;
    }
    marks = get_marks(recovery, area, &id, chunk_bits);
    memcpy(marks->bits + index * (QCOW2_LOG_UNIT_CHUNKS / 8),
           qcow2_log_unit_marks(unit), QCOW2_LOG_UNIT_CHUNKS / 8);
}

/*
 * It can have been written in the generation that counts, or in the next one;
 * what it had before is lost.
 */
static void add_torn_unit(Qcow2LogRecovery *recovery, int area, uint32_t index)
{
    const Qcow2LogSuper *super = &recovery->super;
    Qcow2LogMarks *marks = recovery->areas[area];

    if (!marks && area == (super->id.generation & 1)) {
        marks = get_marks(recovery, area, &super->id, super->chunk_bits);
    }
    if (!marks) {
        /* How large its chunks are is not known */
        recovery->everything = true;
        return;
    }
    memset(marks->bits + index * (QCOW2_LOG_UNIT_CHUNKS / 8), 0xff,
           QCOW2_LOG_UNIT_CHUNKS / 8);
}

static bool is_torn(const uint8_t *log, int area, uint32_t index)
{
    unsigned int chunk_bits;
    Qcow2LogId id;

    return qcow2_log_unit_parse(get_unit(log, area, index), index, &id,
                                &chunk_bits) == QCOW2_LOG_UNIT_TORN;
}

static void add_marks(Qcow2LogRecovery *recovery, const uint8_t *log)
{
    uint32_t i;
    int area;

    for (area = 0; area < 2; area++) {
        for (i = 0; i < QCOW2_LOG_UNITS; i++) {
            add_unit(recovery, area, i, get_unit(log, area, i));
        }
        for (i = 0; i < QCOW2_LOG_UNITS; i++) {
            if (is_torn(log, area, i)) {
                add_torn_unit(recovery, area, i);
            }
        }
    }
}

Qcow2LogRecovery *qcow2_log_recover(BlockDriverState *bs, Error **errp)
{
    uint8_t *log = qemu_try_blockalign(bs->file->bs, QCOW2_LOG_LEN);
    Qcow2LogRecovery *recovery = NULL;
    Qcow2LogSuper super;

    if (!log) {
        error_setg(errp, "Not enough memory");
        return NULL;
    }
    if (qcow2_log_area_read(bs, log) < 0) {
        error_setg(errp, "It is not inside of the file");
    } else if (!find_super(bs, log, &super)) {
        error_setg(errp, "It does not belong to the bitmaps of the image");
    } else {
        recovery = g_new0(Qcow2LogRecovery, 1);
        recovery->super = super;
        recovery->lease = find_lease(log, super.id.nonce);
        add_marks(recovery, log);
        trace_qcow2_log_recover(bs, super.id.generation,
                                qcow2_log_recovery_bytes(recovery),
                                recovery->everything);
    }
    qemu_vfree(log);
    return recovery;
}

void coroutine_mixed_fn qcow2_log_find_torn_pages(BlockDriverState *bs)
{
    Qcow2Log *log = qcow2_shell(bs)->log;
    uint8_t *buf = qemu_blockalign(bs->file->bs, QCOW2_LOG_LEN);
    uint32_t i;
    int area;

    qcow2_log_area_read(bs, buf);
    for (area = 0; area < 2; area++) {
        bitmap_zero(log->torn_pages[area], QCOW2_LOG_PAGES);
        for (i = 0; i < QCOW2_LOG_UNITS; i++) {
            if (is_torn(buf, area, i)) {
                set_bit(i / QCOW2_LOG_UNITS_PER_PAGE, log->torn_pages[area]);
            }
        }
    }
    qemu_vfree(buf);
}

/* Making use of it */

static void set_bits(const Qcow2ShellBits *bits, uint64_t offset,
                     uint64_t bytes)
{
    if (bits->map) {
        qcow2_map_set(bits->map, offset, bytes);
    } else {
        bdrv_set_dirty_bitmap(bits->bitmap, offset, bytes);
    }
}

static void apply_marks(const Qcow2LogMarks *marks, const Qcow2ShellBits *bits,
                        uint64_t size)
{
    uint32_t first = 0, last;

    while (marks && qcow2_log_marks_next_run(marks, &first, &last)) {
        uint64_t start = (uint64_t)first << marks->chunk_bits;
        uint64_t end = (uint64_t)(last + 1) << marks->chunk_bits;

        if (start < size) {
            set_bits(bits, start, MIN(end, size) - start);
        }
        first = last + 1;
    }
}

void qcow2_log_recovery_apply(const Qcow2LogRecovery *recovery,
                              const Qcow2ShellBits *bits)
{
    uint64_t size = bits->map ? bits->map->size
                              : bdrv_dirty_bitmap_size(bits->bitmap);

    if (recovery->everything) {
        set_bits(bits, 0, size);
        return;
    }
    apply_marks(recovery->areas[0], bits, size);
    apply_marks(recovery->areas[1], bits, size);
}

static uint64_t marked_bytes(const Qcow2LogMarks *marks)
{
    return marks ? (uint64_t)qcow2_log_marks_count(marks) << marks->chunk_bits
                 : 0;
}

uint64_t qcow2_log_recovery_bytes(const Qcow2LogRecovery *recovery)
{
    uint64_t bytes = recovery->everything
        ? UINT64_MAX
        : marked_bytes(recovery->areas[0]) + marked_bytes(recovery->areas[1]);

    return MIN(bytes, recovery->super.size);
}

Qcow2LogMarks *qcow2_log_recovery_next_marks(BlockDriverState *bs)
{
    const Qcow2LogRecovery *recovery = qcow2_shell(bs)->recovery;
    Qcow2LogId id = {
        .nonce      = recovery->super.id.nonce,
        .generation = recovery->super.id.generation + 1,
    };
    const Qcow2LogMarks *old = recovery->areas[id.generation & 1];
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    unsigned int chunk_bits = qcow2_log_chunk_bits(MAX(size,
                                                       recovery->super.size));
    bool keep = old && old->chunk_bits >= chunk_bits && !recovery->everything;
    Qcow2LogMarks *marks = g_new(Qcow2LogMarks, 1);

    qcow2_log_marks_init(marks, &id, MAX(size, recovery->super.size),
                         keep ? old->chunk_bits : chunk_bits);
    if (keep) {
        memcpy(marks->bits, old->bits, sizeof(marks->bits));
    } else if (old || recovery->everything) {
        /* Until the header is another one, nothing must be lost */
        memset(marks->bits, 0xff, sizeof(marks->bits));
    }
    qcow2_log_marks_set_all_dirty(marks);
    return marks;
}
