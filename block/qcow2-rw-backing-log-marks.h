/*
 * qcow2 RW backing: marks of the write-intent log in memory
 *
 * Knows chunks, not requests, and does no I/O.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_LOG_MARKS_H
#define BLOCK_QCOW2_RW_BACKING_LOG_MARKS_H

#include "qemu/bitmap.h"
#include "block/qcow2-rw-backing-log-format.h"

/*
 * What a request may do without asking: one bit for each chunk.  Requests only
 * read it, in any thread and without a lock.  Bits are set when what they say
 * has become true, and never cleared: a new gate takes the place of an old one.
 */
typedef struct Qcow2LogGate {
    unsigned int chunk_bits;
    uint32_t last;              /* number of the last chunk */
    unsigned long bits[];
} Qcow2LogGate;

/* May everything be written, or nothing?  To be freed by nobody. */
extern const Qcow2LogGate qcow2_log_gate_open;
extern const Qcow2LogGate qcow2_log_gate_closed;

/* To be freed with g_free() when nobody can be looking at it any more. */
Qcow2LogGate *qcow2_log_gate_new(uint64_t size, unsigned int chunk_bits);

/* Sets the bits of chunks @first to @last, of marks of the same chunk_bits. */
void qcow2_log_gate_set(Qcow2LogGate *gate, uint32_t first, uint32_t last);

/* Are all chunks of a request set that is not empty? */
static inline bool qcow2_log_gate_passes(const Qcow2LogGate *gate,
                                         uint64_t offset, uint64_t bytes)
{
    uint64_t i = offset >> gate->chunk_bits;
    uint64_t last = (offset + bytes - 1) >> gate->chunk_bits;

    /* A disk that has just grown has more chunks than the gate */
    last = MIN(last, gate->last);
    i = MIN(i, last);
    do {
        if (!(qatomic_load_acquire(&gate->bits[BIT_WORD(i)]) & BIT_MASK(i))) {
            return false;
        }
    } while (i++ < last);
    return true;
}

/*
 * The marks of a generation, as they are in its area or will be.  For whoever
 * holds Qcow2Log.lock.
 */
typedef struct Qcow2LogMarks {
    Qcow2LogId id;
    unsigned int chunk_bits;
    uint32_t chunks;

    /* In the order of the units */
    uint8_t bits[QCOW2_LOG_UNITS * QCOW2_LOG_UNIT_CHUNKS / 8];

    /* Pages in which there are marks that are not in the area */
    DECLARE_BITMAP(dirty_pages, QCOW2_LOG_PAGES);
} Qcow2LogMarks;

/* Begins with none, for a disk of @size bytes. */
void qcow2_log_marks_init(Qcow2LogMarks *marks, const Qcow2LogId *id,
                          uint64_t size, unsigned int chunk_bits);

/*
 * The chunks of a request that is not empty.  What lies behind the end, since
 * the disk has grown, counts as the last one.
 */
void qcow2_log_marks_range(const Qcow2LogMarks *marks, uint64_t offset,
                           uint64_t bytes, uint32_t *first, uint32_t *last);

/* Are all of them marked? */
bool qcow2_log_marks_test(const Qcow2LogMarks *marks, uint32_t first,
                          uint32_t last);

/* Marks them.  Returns false if they were marked before. */
bool qcow2_log_marks_set(Qcow2LogMarks *marks, uint32_t first, uint32_t last);

/* Are they, as far as they are marked, in the area? */
bool qcow2_log_marks_are_clean(const Qcow2LogMarks *marks, uint32_t first,
                               uint32_t last);

/* All pages that have marks have to be written (once more). */
void qcow2_log_marks_set_all_dirty(Qcow2LogMarks *marks);

/* Is anything in these bytes of the disk marked? */
bool qcow2_log_marks_any(const Qcow2LogMarks *marks, uint64_t offset,
                         uint64_t bytes);

/* Number of marks. */
uint32_t qcow2_log_marks_count(const Qcow2LogMarks *marks);

/*
 * Finds the next run of marks from chunk @first on.  Returns false if there is
 * none.
 */
bool qcow2_log_marks_next_run(const Qcow2LogMarks *marks, uint32_t *first,
                              uint32_t *last);

/* Makes page @page of the area, QCOW2_LOG_PAGE_LEN bytes. */
void qcow2_log_marks_serialize_page(const Qcow2LogMarks *marks,
                                    unsigned int page, uint8_t *buf);

#endif
