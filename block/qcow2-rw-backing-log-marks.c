/*
 * qcow2 RW backing: marks of the write-intent log in memory
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qcow2-rw-backing-log-marks.h"

/* With one chunk that is larger than any disk */
const Qcow2LogGate qcow2_log_gate_open = {
    .chunk_bits = 63,
    .bits       = { 1 },
};

const Qcow2LogGate qcow2_log_gate_closed = {
    .chunk_bits = 63,
    .bits       = { 0 },
};

static uint32_t count_chunks(uint64_t size, unsigned int chunk_bits)
{
    uint64_t chunks = DIV_ROUND_UP(size, UINT64_C(1) << chunk_bits);

    return MIN(MAX(chunks, 1), QCOW2_LOG_MAX_CHUNKS);
}

Qcow2LogGate *qcow2_log_gate_new(uint64_t size, unsigned int chunk_bits)
{
    uint32_t chunks = count_chunks(size, chunk_bits);
    Qcow2LogGate *gate = g_malloc0(sizeof(*gate) +
                                   BITS_TO_LONGS(chunks) *
                                   sizeof(unsigned long));

    gate->chunk_bits = chunk_bits;
    gate->last = chunks - 1;
    return gate;
}

void qcow2_log_gate_set(Qcow2LogGate *gate, uint32_t first, uint32_t last)
{
    uint32_t i;

    for (i = first; i <= MIN(last, gate->last); i++) {
        qatomic_or(&gate->bits[BIT_WORD(i)], BIT_MASK(i));
    }
}

void qcow2_log_marks_init(Qcow2LogMarks *marks, const Qcow2LogId *id,
                          uint64_t size, unsigned int chunk_bits)
{
    *marks = (Qcow2LogMarks) {
        .id         = *id,
        .chunk_bits = chunk_bits,
        .chunks     = count_chunks(size, chunk_bits),
    };
}

void qcow2_log_marks_range(const Qcow2LogMarks *marks, uint64_t offset,
                           uint64_t bytes, uint32_t *first, uint32_t *last)
{
    *first = MIN(offset >> marks->chunk_bits, marks->chunks - 1);
    *last = MIN((offset + bytes - 1) >> marks->chunk_bits, marks->chunks - 1);
}

static bool test_mark(const Qcow2LogMarks *marks, uint32_t chunk)
{
    return marks->bits[chunk / 8] & (1 << (chunk % 8));
}

bool qcow2_log_marks_test(const Qcow2LogMarks *marks, uint32_t first,
                          uint32_t last)
{
    uint32_t i;

    for (i = first; i <= last; i++) {
        if (!test_mark(marks, i)) {
            return false;
        }
    }
    return true;
}

static unsigned int page_of(uint32_t chunk)
{
    return chunk / QCOW2_LOG_UNIT_CHUNKS / QCOW2_LOG_UNITS_PER_PAGE;
}

bool qcow2_log_marks_set(Qcow2LogMarks *marks, uint32_t first, uint32_t last)
{
    bool changed = false;
    uint32_t i;

    for (i = first; i <= last; i++) {
        if (!test_mark(marks, i)) {
            marks->bits[i / 8] |= 1 << (i % 8);
            set_bit(page_of(i), marks->dirty_pages);
            changed = true;
        }
    }
    return changed;
}

bool qcow2_log_marks_are_clean(const Qcow2LogMarks *marks, uint32_t first,
                               uint32_t last)
{
    return find_next_bit(marks->dirty_pages, page_of(last) + 1,
                         page_of(first)) > page_of(last);
}

bool qcow2_log_marks_next_run(const Qcow2LogMarks *marks, uint32_t *first,
                              uint32_t *last)
{
    uint32_t i = *first;

    while (i < marks->chunks && !test_mark(marks, i)) {
        /* Most bytes are 0 */
        i = marks->bits[i / 8] ? i + 1 : ROUND_UP(i + 1, 8);
    }
    if (i >= marks->chunks) {
        return false;
    }
    *first = i;
    while (i + 1 < marks->chunks && test_mark(marks, i + 1)) {
        i++;
    }
    *last = i;
    return true;
}

void qcow2_log_marks_set_all_dirty(Qcow2LogMarks *marks)
{
    uint32_t first = 0, last;

    while (qcow2_log_marks_next_run(marks, &first, &last)) {
        bitmap_set(marks->dirty_pages, page_of(first),
                   page_of(last) - page_of(first) + 1);
        first = last + 1;
    }
}

bool qcow2_log_marks_any(const Qcow2LogMarks *marks, uint64_t offset,
                         uint64_t bytes)
{
    uint32_t first, last, run_last;

    qcow2_log_marks_range(marks, offset, bytes, &first, &last);
    return qcow2_log_marks_next_run(marks, &first, &run_last) && first <= last;
}

uint32_t qcow2_log_marks_count(const Qcow2LogMarks *marks)
{
    uint32_t count = 0;
    size_t i;

    for (i = 0; i < sizeof(marks->bits); i++) {
        count += ctpop8(marks->bits[i]);
    }
    return count;
}

void qcow2_log_marks_serialize_page(const Qcow2LogMarks *marks,
                                    unsigned int page, uint8_t *buf)
{
    uint32_t index = page * QCOW2_LOG_UNITS_PER_PAGE;
    int i;

    memset(buf, 0, QCOW2_LOG_PAGE_LEN);
    for (i = 0; i < QCOW2_LOG_UNITS_PER_PAGE && index < QCOW2_LOG_UNITS;
         i++, index++) {
        qcow2_log_unit_serialize(buf + i * QCOW2_LOG_UNIT_LEN, &marks->id,
                                 index, marks->chunk_bits,
                                 marks->bits +
                                 index * (QCOW2_LOG_UNIT_CHUNKS / 8));
    }
}
