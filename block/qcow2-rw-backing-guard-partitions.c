/*
 * qcow2 RW backing: where partitions are
 *
 * Finds the partitions in the content of a disk, for samples that are taken
 * where partitions start.  Whatever the guest has written there gives a
 * bounded number of places inside of the disk, and the same ones each time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "block/qcow2-rw-backing-guard-partitions.h"

#define MBR_SECTOR              QCOW2_RW_BACKING_MBR_LEN
#define MBR_ENTRIES             446
#define MBR_ENTRY_LEN           16
#define MBR_ENTRY_TYPE          4
#define MBR_ENTRY_START         8
#define MBR_ENTRY_SECTORS       12
#define MBR_SIGNATURE           510

#define GPT_ENTRIES_LBA         72
#define GPT_ENTRY_COUNT         80
#define GPT_ENTRY_LEN           84
#define GPT_MIN_ENTRY_LEN       128
#define GPT_MAX_ENTRY_LEN       4096
#define GPT_TYPE_LEN            16
#define GPT_ENTRY_START         32

static bool add_partition(Qcow2RwBackingPartitions *partitions,
                          uint64_t start, uint64_t size)
{
    if (start == 0 || start >= size ||
        partitions->count == QCOW2_RW_BACKING_MAX_PARTITIONS) {
        return false;
    }
    partitions->start[partitions->count++] = start;
    return true;
}

/* GPT: @sector is the size of a sector in bytes */

/* Returns false if there is none, which is another thing than an empty one */
static bool gpt_parse(const uint8_t *head, size_t len, uint64_t size,
                      uint32_t sector, Qcow2RwBackingPartitions *partitions)
{
    const uint8_t *header = head + sector;
    uint64_t table, start;
    uint32_t count, entry_len, i;

    if (len < 2 * sector || memcmp(header, "EFI PART", 8)) {
        return false;
    }
    table = ldq_le_p(header + GPT_ENTRIES_LBA);
    count = ldl_le_p(header + GPT_ENTRY_COUNT);
    entry_len = ldl_le_p(header + GPT_ENTRY_LEN);
    if (entry_len < GPT_MIN_ENTRY_LEN || entry_len > GPT_MAX_ENTRY_LEN ||
        table > len / sector) {
        return true;
    }

    table *= sector;
    for (i = 0; i < count && len - table >= entry_len; i++) {
        const uint8_t *entry = head + table;

        start = ldq_le_p(entry + GPT_ENTRY_START);
        if (!buffer_is_zero(entry, GPT_TYPE_LEN) && start <= size / sector) {
            add_partition(partitions, start * sector, size);
        }
        table += entry_len;
    }
    return true;
}

/* MBR: sectors have 512 bytes */

static bool mbr_is_valid(const uint8_t *sector)
{
    return sector[MBR_SIGNATURE] == 0x55 && sector[MBR_SIGNATURE + 1] == 0xaa;
}

static const uint8_t *mbr_entry(const uint8_t *sector, int i)
{
    return sector + MBR_ENTRIES + i * MBR_ENTRY_LEN;
}

static bool mbr_entry_is_used(const uint8_t *entry)
{
    return entry[MBR_ENTRY_TYPE] && ldl_le_p(entry + MBR_ENTRY_SECTORS);
}

static bool mbr_entry_is_extended(const uint8_t *entry)
{
    uint8_t type = entry[MBR_ENTRY_TYPE];

    return type == 0x05 || type == 0x0f || type == 0x85;
}

static uint64_t mbr_entry_start(const uint8_t *entry)
{
    return (uint64_t)ldl_le_p(entry + MBR_ENTRY_START) * MBR_SECTOR;
}

static void mbr_parse(const uint8_t *head, size_t len, uint64_t size,
                      Qcow2RwBackingPartitions *partitions)
{
    int i;

    if (len < MBR_SECTOR || !mbr_is_valid(head)) {
        return;
    }
    for (i = 0; i < 4; i++) {
        const uint8_t *entry = mbr_entry(head, i);

        if (mbr_entry_is_used(entry) &&
            add_partition(partitions, mbr_entry_start(entry), size) &&
            mbr_entry_is_extended(entry) && !partitions->extended) {
            partitions->extended = mbr_entry_start(entry);
        }
    }
}

void qcow2_rw_backing_partitions_parse(const uint8_t *head, size_t len,
                                       uint64_t size,
                                       Qcow2RwBackingPartitions *partitions)
{
    *partitions = (Qcow2RwBackingPartitions) { };

    if (!gpt_parse(head, len, size, 512, partitions) &&
        !gpt_parse(head, len, size, 4096, partitions)) {
        mbr_parse(head, len, size, partitions);
    }
}

uint64_t
qcow2_rw_backing_partitions_add_logical(const uint8_t *ebr, uint64_t ebr_start,
                                        uint64_t size,
                                        Qcow2RwBackingPartitions *partitions)
{
    const uint8_t *logical = mbr_entry(ebr, 0);
    const uint8_t *next = mbr_entry(ebr, 1);
    uint64_t next_start;

    if (!mbr_is_valid(ebr)) {
        return 0;
    }
    /* A partition is given from its own sector on, the next sector is not */
    if (mbr_entry_is_used(logical)) {
        add_partition(partitions, ebr_start + mbr_entry_start(logical), size);
    }
    next_start = partitions->extended + mbr_entry_start(next);
    return mbr_entry_is_used(next) && mbr_entry_is_extended(next) &&
           next_start > ebr_start && next_start < size ? next_start : 0;
}
