/*
 * qcow2 RW backing: layout of the write-intent log and its codec
 *
 * Knows the bytes of section "Write-intent log" of the specification and
 * nothing else: no block device, no I/O.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_LOG_FORMAT_H
#define BLOCK_QCOW2_RW_BACKING_LOG_FORMAT_H

/*
 * A log has two leases, used in turn, and two areas, for odd and even
 * generations.  An area has a superblock, and units with marks.  It is written
 * in pages; nothing but a unit, or a superblock, or a lease is atomic.
 */
#define QCOW2_LOG_PAGE_LEN          4096
#define QCOW2_LOG_UNIT_LEN          512
#define QCOW2_LOG_UNIT_CHUNKS       3840
#define QCOW2_LOG_MAX_CHUNKS        (1 << 19)
#define QCOW2_LOG_UNITS             DIV_ROUND_UP(QCOW2_LOG_MAX_CHUNKS, \
                                                 QCOW2_LOG_UNIT_CHUNKS)
#define QCOW2_LOG_UNITS_PER_PAGE    (QCOW2_LOG_PAGE_LEN / QCOW2_LOG_UNIT_LEN)
#define QCOW2_LOG_PAGES             DIV_ROUND_UP(QCOW2_LOG_UNITS, \
                                                 QCOW2_LOG_UNITS_PER_PAGE)
#define QCOW2_LOG_AREA_LEN          ((1 + QCOW2_LOG_PAGES) * QCOW2_LOG_PAGE_LEN)
#define QCOW2_LOG_LEN               (2 * QCOW2_LOG_PAGE_LEN + \
                                     2 * QCOW2_LOG_AREA_LEN)

/* Offsets in the log in bytes; @which is 0 or 1 */
#define QCOW2_LOG_LEASE_OFFSET(which)   ((which) * QCOW2_LOG_PAGE_LEN)
#define QCOW2_LOG_AREA_OFFSET(which)    (2 * QCOW2_LOG_PAGE_LEN + \
                                         (which) * QCOW2_LOG_AREA_LEN)

#define QCOW2_LOG_MIN_CHUNK_BITS    20
#define QCOW2_LOG_MAX_CHUNK_BITS    44

/* A life of the log: nonce, and a number that counts checkpoints */
typedef struct Qcow2LogId {
    uint64_t nonce;
    uint64_t generation;
} Qcow2LogId;

/* What a superblock says: which directory the marks of its area belong to */
typedef struct Qcow2LogSuper {
    Qcow2LogId id;
    uint8_t chunk_bits;

    /* Size of the disk in bytes when the bitmaps were stored */
    uint64_t size;

    /* It has been larger since they were added, see the guard extension */
    bool shrunk;

    /* Bitmap directory: place, length in bytes, entries, CRC-32 */
    uint64_t directory_offset;
    uint64_t directory_size;
    uint32_t nb_bitmaps;
    uint32_t directory_crc;

    /* So many entries at the start of the directory are covered by the log */
    uint32_t nb_covered;

    /* Of their bitmaps, as in the guard extension */
    uint32_t bitmaps_checksum;
} Qcow2LogSuper;

/* A point in time, as times of files are: since the epoch */
typedef struct Qcow2LogTime {
    int64_t sec;
    uint32_t nsec;
} Qcow2LogTime;

/* Until when the program that uses the log may write to the RW backing */
typedef struct Qcow2LogLease {
    uint64_t nonce;

    /* Counts leases; the one with the higher number is valid */
    uint64_t number;

    /*
     * The RW backing is a file whose time tells.  Otherwise nothing but
     * @nonce and @number is of interest.
     */
    bool is_file;

    /* The time of the file before the lease, and the latest one after it */
    Qcow2LogTime seen;
    Qcow2LogTime until;

    /* The time of the file that was durable by then */
    Qcow2LogTime durable;

    uint64_t inode;
    uint8_t boot_id[16];
} Qcow2LogLease;

/* What is known of the chunks of a unit */
typedef enum Qcow2LogUnitState {
    /* It belongs to the life and generation that is returned */
    QCOW2_LOG_UNIT_VALID,
    /* It was written when it was not to be interrupted: all are marked */
    QCOW2_LOG_UNIT_TORN,
} Qcow2LogUnitState;

/*
 * Returns the size of chunks as a number of bits for a disk of @size bytes, so
 * that there are at most QCOW2_LOG_MAX_CHUNKS.
 */
unsigned int qcow2_log_chunk_bits(uint64_t size);

/**
 * qcow2_log_unit_serialize:
 * @buf: QCOW2_LOG_UNIT_LEN bytes, filled in
 * @index: number of the unit
 * @marks: QCOW2_LOG_UNIT_CHUNKS bits, the lowest of each byte first
 */
void qcow2_log_unit_serialize(uint8_t *buf, const Qcow2LogId *id,
                              uint32_t index, unsigned int chunk_bits,
                              const uint8_t *marks);

/**
 * qcow2_log_unit_parse:
 * @id: set to what the unit belongs to
 * @chunk_bits: set to its size of chunks
 *
 * Returns whether what @buf has was written for unit @index, whenever it was.
 * Its marks are at qcow2_log_unit_marks(@buf).
 */
Qcow2LogUnitState qcow2_log_unit_parse(const uint8_t *buf, uint32_t index,
                                       Qcow2LogId *id,
                                       unsigned int *chunk_bits);

const uint8_t *qcow2_log_unit_marks(const uint8_t *buf);

/* @buf has QCOW2_LOG_UNIT_LEN bytes. */
void qcow2_log_super_serialize(const Qcow2LogSuper *super, uint8_t *buf);

/* Returns false if @buf breaks a rule of the specification. */
bool qcow2_log_super_parse(Qcow2LogSuper *super, const uint8_t *buf);

/* The same for a lease. */
void qcow2_log_lease_serialize(const Qcow2LogLease *lease, uint8_t *buf);
bool qcow2_log_lease_parse(Qcow2LogLease *lease, const uint8_t *buf);

#endif
