/*
 * qcow2 RW backing: the allocation map in memory
 *
 * One bit for each granule of the disk: clear if it is known to read as zeroes,
 * set if it may hold data.  A bit that is set costs time, one that is clear and
 * should not be costs data.  Knows nothing of requests, and does no I/O.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_MAP_H
#define BLOCK_QCOW2_RW_BACKING_MAP_H

#include "qemu/atomic.h"
#include "qemu/bitmap.h"
#include "qemu/queue.h"
#include "qemu/thread.h"

/* Granules have 64 KiB, or more if the disk is too large for that */
#define QCOW2_MAP_MIN_GRANULARITY_BITS  16

/* Granules of the disk that may hold data, for those who have no lock */
typedef struct Qcow2MapTable {
    unsigned int granularity_bits;
    uint64_t capacity;          /* bits, of which some may be behind the end */
    unsigned long data[];
} Qcow2MapTable;

/* Looks out for writes, see qcow2-rw-backing-map-watch.h */
typedef struct Qcow2MapWatch Qcow2MapWatch;

typedef struct Qcow2Map {
    unsigned int granularity_bits;

    /* Of all that follows but the watches; bits behind the end are clear */
    QemuMutex lock;
    uint64_t size;              /* of the disk in bytes; also read without it */
    Qcow2MapTable *table;
    GSList *old_tables;         /* at which others may look */

    /*
     * Granules of which it is not known for sure that they read as zeroes, if
     * they do not hold data: they have to be read before anybody is told
     */
    unsigned long *unproven;

    /* Under bs->reqs_lock */
    QLIST_HEAD(, Qcow2MapWatch) watches;

    /* Changes that no request has made which has a mark in the log */
    unsigned long changes;
} Qcow2Map;

typedef enum Qcow2MapState {
    QCOW2_MAP_DATA,
    QCOW2_MAP_ZERO,
    QCOW2_MAP_UNPROVEN,         /* zeroes, if the map is right */
} Qcow2MapState;

/*
 * The size of granules, log2 of bytes, with which the map of a disk of @size
 * bytes takes up at most @max_content bytes.
 */
unsigned int qcow2_map_granularity_bits(uint64_t size, uint64_t max_content);

/*
 * All of it reads as zeroes, for sure; size in bytes.  All functions but
 * qcow2_map_free() can be called in any thread, at any time.
 */
Qcow2Map *qcow2_map_new(uint64_t size, unsigned int granularity_bits);

void qcow2_map_free(Qcow2Map *map);

/*
 * The disk gets another size.  New granules are clear; what of them is not
 * known to read as zeroes is to be set before anybody can ask.
 */
void qcow2_map_resize(Qcow2Map *map, uint64_t size);

/* Nothing is set in it, and nothing can be */
extern const Qcow2MapTable qcow2_map_table_closed;

/*
 * Lies what is about to be written in a granule that may hold data?  The answer
 * is also no if it is not inside of one, or behind the end.
 */
static inline bool qcow2_map_table_has(const Qcow2MapTable *table,
                                       uint64_t offset, uint64_t bytes)
{
    uint64_t i = offset >> table->granularity_bits;

    return i == (offset + bytes - 1) >> table->granularity_bits &&
           i < table->capacity &&
           (qatomic_read(&table->data[BIT_WORD(i)]) & BIT_MASK(i));
}

/* What is not empty, and about to be written, may hold data from now on. */
void qcow2_map_set(Qcow2Map *map, uint64_t offset, uint64_t bytes);

/* The first granule that lies inside, and the one behind the last of them */
uint64_t qcow2_map_first_inside(const Qcow2Map *map, uint64_t offset);
uint64_t qcow2_map_end_inside(Qcow2Map *map, uint64_t offset, uint64_t bytes);

/*
 * Granule @granule reads as zeroes, for sure, and nobody is writing to it.
 * Returns true if it was said to hold data before.
 */
bool qcow2_map_clear(Qcow2Map *map, uint64_t granule);

bool qcow2_map_holds_data(Qcow2Map *map, uint64_t granule);

/* Everything may hold data. */
void qcow2_map_set_all(Qcow2Map *map);

/* What is said to read as zeroes has to be looked at. */
void qcow2_map_doubt(Qcow2Map *map);

/* Is nothing left to be looked at? */
bool qcow2_map_is_proven(Qcow2Map *map);

/*
 * What is known of @offset, and of so many bytes (@count) that follow it, up to
 * @bytes, which is not 0.
 */
Qcow2MapState qcow2_map_get(Qcow2Map *map, uint64_t offset, uint64_t bytes,
                            uint64_t *count);

/* Bytes that may hold data */
uint64_t qcow2_map_count(Qcow2Map *map);

/*
 * Part of the map as it is stored: @len bytes with 8 granules each, from
 * granule @first on, both multiples of 64.  What lies behind the end is 0, and
 * ignored.
 */
void qcow2_map_serialize(Qcow2Map *map, uint64_t first, uint8_t *buf,
                         size_t len);

/* Adds the bits of @buf, or all of them if it is NULL. */
void qcow2_map_deserialize(Qcow2Map *map, uint64_t first, const uint8_t *buf,
                           size_t len);

#endif
