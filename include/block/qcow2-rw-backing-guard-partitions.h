/*
 * qcow2 RW backing: where partitions are
 *
 * Knows partition tables as they are on disk and nothing else: no block
 * device, no I/O.  The content of a disk comes from its guest, which can write
 * anything there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_GUARD_PARTITIONS_H
#define BLOCK_QCOW2_RW_BACKING_GUARD_PARTITIONS_H

/* Partitions that count, see "Samples" in the specification */
#define QCOW2_RW_BACKING_MAX_PARTITIONS     128

/* Logical partitions among them */
#define QCOW2_RW_BACKING_MAX_LOGICAL        16

/* Bytes of the sectors that an MBR and its chain consist of */
#define QCOW2_RW_BACKING_MBR_LEN            512

/* Offsets, in bytes, at which partitions start, in the order of the table */
typedef struct Qcow2RwBackingPartitions {
    unsigned int count;
    uint64_t start[QCOW2_RW_BACKING_MAX_PARTITIONS];

    /* Where the extended partition of an MBR starts, 0 if there is none */
    uint64_t extended;
} Qcow2RwBackingPartitions;

/**
 * qcow2_rw_backing_partitions_parse:
 * @head: start of the disk
 * @len: bytes in @head
 * @size: of the disk, in bytes
 * @partitions: filled in; empty if there is no partition table
 *
 * Finds the partitions of a GPT in @head, or else those of the MBR.  Logical
 * partitions are left to qcow2_rw_backing_partitions_add_logical().
 */
void qcow2_rw_backing_partitions_parse(const uint8_t *head, size_t len,
                                       uint64_t size,
                                       Qcow2RwBackingPartitions *partitions);

/**
 * qcow2_rw_backing_partitions_add_logical:
 * @ebr: 512 bytes from offset @ebr_start of the disk on
 * @size: of the disk, in bytes
 *
 * Adds the logical partition that @ebr describes.
 *
 * Returns the offset of the next such sector in bytes, 0 if there is none.
 */
uint64_t
qcow2_rw_backing_partitions_add_logical(const uint8_t *ebr, uint64_t ebr_start,
                                        uint64_t size,
                                        Qcow2RwBackingPartitions *partitions);

#endif
