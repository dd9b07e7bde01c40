/*
 * qcow2 RW backing: codec of the write-intent log
 *
 * Turns sectors of the log into what they say and back.  Each has a checksum of
 * its own, since a crash may leave any part of what was written last; what a
 * reader makes of a sector that is damaged is in the specification
 * (docs/interop/qcow2-rw-backing.rst).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <zlib.h>
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "block/qcow2-rw-backing-log-format.h"

#define UNIT_MAGIC      0x52574c55  /* "RWLU" */
#define SUPER_MAGIC     0x52574c53  /* "RWLS" */
#define LEASE_MAGIC     0x52574c4c  /* "RWLL" */

#define SUPER_SHRUNK    1
#define LEASE_IS_FILE   1

/* Sectors as they are stored, in big endian */

typedef struct QEMU_PACKED StoredUnit {
    uint32_t magic;
    uint32_t crc;               /* of the sector, as if this was 0 */
    uint64_t nonce;
    uint64_t generation;
    uint32_t index;
    uint32_t chunk_bits;
    uint8_t marks[QCOW2_LOG_UNIT_CHUNKS / 8];
} StoredUnit;

typedef struct QEMU_PACKED StoredSuper {
    uint32_t magic;
    uint32_t crc;
    uint64_t nonce;
    uint64_t generation;
    uint32_t flags;             /* SUPER_SHRUNK or 0 */
    uint32_t chunk_bits;
    uint64_t size;
    uint64_t directory_offset;
    uint64_t directory_size;
    uint32_t nb_bitmaps;
    uint32_t directory_crc;
    uint32_t nb_covered;
    uint32_t bitmaps_checksum;
    uint8_t reserved[440];      /* must be zero */
} StoredSuper;

typedef struct QEMU_PACKED StoredTime {
    uint64_t sec;               /* signed */
    uint32_t nsec;
} StoredTime;

typedef struct QEMU_PACKED StoredLease {
    uint32_t magic;
    uint32_t crc;
    uint64_t nonce;
    uint64_t number;
    uint32_t flags;             /* LEASE_IS_FILE or 0 */
    StoredTime seen;
    StoredTime until;
    StoredTime durable;
    uint64_t inode;
    uint8_t boot_id[16];
    uint8_t reserved[424];      /* must be zero */
} StoredLease;

QEMU_BUILD_BUG_ON(sizeof(StoredUnit) != QCOW2_LOG_UNIT_LEN);
QEMU_BUILD_BUG_ON(sizeof(StoredSuper) != QCOW2_LOG_UNIT_LEN);
QEMU_BUILD_BUG_ON(sizeof(StoredLease) != QCOW2_LOG_UNIT_LEN);

unsigned int qcow2_log_chunk_bits(uint64_t size)
{
    unsigned int bits = QCOW2_LOG_MIN_CHUNK_BITS;

    while (size > (uint64_t)QCOW2_LOG_MAX_CHUNKS << bits) {
        bits++;
    }
    return bits;
}

/* All sectors start with a magic number and a checksum */

static uint32_t sector_crc(const uint8_t *buf)
{
    static const uint8_t no_crc[4];
    uint32_t crc = crc32(0, buf, 4);

    crc = crc32(crc, no_crc, sizeof(no_crc));
    return crc32(crc, buf + 8, QCOW2_LOG_UNIT_LEN - 8);
}

static void seal_sector(uint8_t *buf)
{
    stl_be_p(buf + 4, sector_crc(buf));
}

static bool sector_is_whole(const uint8_t *buf, uint32_t magic)
{
    return ldl_be_p(buf) == magic && ldl_be_p(buf + 4) == sector_crc(buf);
}

static bool chunk_bits_are_valid(uint32_t chunk_bits)
{
    return chunk_bits >= QCOW2_LOG_MIN_CHUNK_BITS &&
           chunk_bits <= QCOW2_LOG_MAX_CHUNK_BITS;
}

void qcow2_log_unit_serialize(uint8_t *buf, const Qcow2LogId *id,
                              uint32_t index, unsigned int chunk_bits,
                              const uint8_t *marks)
{
    StoredUnit *unit = (StoredUnit *)buf;

    *unit = (StoredUnit) {
        .magic      = cpu_to_be32(UNIT_MAGIC),
        .nonce      = cpu_to_be64(id->nonce),
        .generation = cpu_to_be64(id->generation),
        .index      = cpu_to_be32(index),
        .chunk_bits = cpu_to_be32(chunk_bits),
    };
    memcpy(unit->marks, marks, sizeof(unit->marks));
    seal_sector(buf);
}

Qcow2LogUnitState qcow2_log_unit_parse(const uint8_t *buf, uint32_t index,
                                       Qcow2LogId *id,
                                       unsigned int *chunk_bits)
{
    const StoredUnit *unit = (const StoredUnit *)buf;

    if (!sector_is_whole(buf, UNIT_MAGIC) ||
        be32_to_cpu(unit->index) != index ||
        !chunk_bits_are_valid(be32_to_cpu(unit->chunk_bits))) {
        return QCOW2_LOG_UNIT_TORN;
    }
    id->nonce = be64_to_cpu(unit->nonce);
    id->generation = be64_to_cpu(unit->generation);
    *chunk_bits = be32_to_cpu(unit->chunk_bits);
    return QCOW2_LOG_UNIT_VALID;
}

const uint8_t *qcow2_log_unit_marks(const uint8_t *buf)
{
    return buf + offsetof(StoredUnit, marks);
}

void qcow2_log_super_serialize(const Qcow2LogSuper *super, uint8_t *buf)
{
    StoredSuper *stored = (StoredSuper *)buf;

    *stored = (StoredSuper) {
        .magic            = cpu_to_be32(SUPER_MAGIC),
        .nonce            = cpu_to_be64(super->id.nonce),
        .generation       = cpu_to_be64(super->id.generation),
        .flags            = cpu_to_be32(super->shrunk ? SUPER_SHRUNK : 0),
        .chunk_bits       = cpu_to_be32(super->chunk_bits),
        .size             = cpu_to_be64(super->size),
        .directory_offset = cpu_to_be64(super->directory_offset),
        .directory_size   = cpu_to_be64(super->directory_size),
        .nb_bitmaps       = cpu_to_be32(super->nb_bitmaps),
        .directory_crc    = cpu_to_be32(super->directory_crc),
        .nb_covered       = cpu_to_be32(super->nb_covered),
        .bitmaps_checksum = cpu_to_be32(super->bitmaps_checksum),
    };
    seal_sector(buf);
}

bool qcow2_log_super_parse(Qcow2LogSuper *super, const uint8_t *buf)
{
    const StoredSuper *stored = (const StoredSuper *)buf;

    *super = (Qcow2LogSuper) { };
    if (!sector_is_whole(buf, SUPER_MAGIC) ||
        (be32_to_cpu(stored->flags) & ~SUPER_SHRUNK) ||
        !chunk_bits_are_valid(be32_to_cpu(stored->chunk_bits)) ||
        be32_to_cpu(stored->nb_covered) > be32_to_cpu(stored->nb_bitmaps) ||
        !buffer_is_zero(stored->reserved, sizeof(stored->reserved))) {
        return false;
    }
    *super = (Qcow2LogSuper) {
        .id.nonce         = be64_to_cpu(stored->nonce),
        .id.generation    = be64_to_cpu(stored->generation),
        .chunk_bits       = be32_to_cpu(stored->chunk_bits),
        .size             = be64_to_cpu(stored->size),
        .shrunk           = stored->flags != 0,
        .directory_offset = be64_to_cpu(stored->directory_offset),
        .directory_size   = be64_to_cpu(stored->directory_size),
        .nb_bitmaps       = be32_to_cpu(stored->nb_bitmaps),
        .directory_crc    = be32_to_cpu(stored->directory_crc),
        .nb_covered       = be32_to_cpu(stored->nb_covered),
        .bitmaps_checksum = be32_to_cpu(stored->bitmaps_checksum),
    };
    return QEMU_IS_ALIGNED(super->size, 512) && super->size <= INT64_MAX &&
           super->chunk_bits >= qcow2_log_chunk_bits(super->size);
}

static StoredTime time_to_be(Qcow2LogTime time)
{
    return (StoredTime) {
        .sec  = cpu_to_be64(time.sec),
        .nsec = cpu_to_be32(time.nsec),
    };
}

/* Returns false if it is no time */
static bool time_from_be(Qcow2LogTime *time, const StoredTime *stored)
{
    time->sec = be64_to_cpu(stored->sec);
    time->nsec = be32_to_cpu(stored->nsec);
    return time->nsec < NANOSECONDS_PER_SECOND;
}

void qcow2_log_lease_serialize(const Qcow2LogLease *lease, uint8_t *buf)
{
    StoredLease *stored = (StoredLease *)buf;

    *stored = (StoredLease) {
        .magic   = cpu_to_be32(LEASE_MAGIC),
        .nonce   = cpu_to_be64(lease->nonce),
        .number  = cpu_to_be64(lease->number),
        .flags   = cpu_to_be32(lease->is_file ? LEASE_IS_FILE : 0),
        .seen    = time_to_be(lease->seen),
        .until   = time_to_be(lease->until),
        .durable = time_to_be(lease->durable),
        .inode   = cpu_to_be64(lease->inode),
    };
    memcpy(stored->boot_id, lease->boot_id, sizeof(stored->boot_id));
    seal_sector(buf);
}

bool qcow2_log_lease_parse(Qcow2LogLease *lease, const uint8_t *buf)
{
    const StoredLease *stored = (const StoredLease *)buf;

    *lease = (Qcow2LogLease) { };
    if (!sector_is_whole(buf, LEASE_MAGIC) ||
        (be32_to_cpu(stored->flags) & ~LEASE_IS_FILE) ||
        !buffer_is_zero(stored->reserved, sizeof(stored->reserved)) ||
        !time_from_be(&lease->seen, &stored->seen) ||
        !time_from_be(&lease->until, &stored->until) ||
        !time_from_be(&lease->durable, &stored->durable)) {
        return false;
    }
    lease->nonce = be64_to_cpu(stored->nonce);
    lease->number = be64_to_cpu(stored->number);
    lease->is_file = stored->flags != 0;
    lease->inode = be64_to_cpu(stored->inode);
    memcpy(lease->boot_id, stored->boot_id, sizeof(lease->boot_id));
    return true;
}
