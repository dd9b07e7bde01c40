/*
 * qcow2 RW backing: codec and marks of the write-intent log
 *
 * What is written can be read again, whatever is damaged is noticed, and no
 * chunk of a request is forgotten.  No I/O.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/atomic.h"
#include "qemu/units.h"
#include "../../block/qcow2-rw-backing-log-marks.h"

static const Qcow2LogId id = { .nonce = 0x1122334455667788, .generation = 7 };

/* Any other value of any byte that counts */
static void flip_each_byte(uint8_t *buf, bool (*is_good)(const uint8_t *buf))
{
    int i, bit;

    for (i = 0; i < QCOW2_LOG_UNIT_LEN; i++) {
        for (bit = 0; bit < 8; bit++) {
            buf[i] ^= 1 << bit;
            g_assert_false(is_good(buf));
            buf[i] ^= 1 << bit;
        }
    }
    g_assert_true(is_good(buf));
}

static bool unit_is_good(const uint8_t *buf)
{
    unsigned int chunk_bits;
    Qcow2LogId found;

    return qcow2_log_unit_parse(buf, 5, &found, &chunk_bits) ==
           QCOW2_LOG_UNIT_VALID;
}

static void test_unit(void)
{
    uint8_t marks[QCOW2_LOG_UNIT_CHUNKS / 8], buf[QCOW2_LOG_UNIT_LEN];
    unsigned int chunk_bits;
    Qcow2LogId found;
    int i;

    for (i = 0; i < sizeof(marks); i++) {
        marks[i] = i * 37;
    }
    qcow2_log_unit_serialize(buf, &id, 5, 21, marks);
    g_assert_cmpint(qcow2_log_unit_parse(buf, 5, &found, &chunk_bits), ==,
                    QCOW2_LOG_UNIT_VALID);
    g_assert_cmpuint(found.nonce, ==, id.nonce);
    g_assert_cmpuint(found.generation, ==, id.generation);
    g_assert_cmpuint(chunk_bits, ==, 21);
    g_assert_cmpmem(qcow2_log_unit_marks(buf), sizeof(marks), marks,
                    sizeof(marks));

    flip_each_byte(buf, unit_is_good);
    /* One that has got to another place */
    g_assert_cmpint(qcow2_log_unit_parse(buf, 6, &found, &chunk_bits), ==,
                    QCOW2_LOG_UNIT_TORN);
    memset(buf, 0, sizeof(buf));
    g_assert_false(unit_is_good(buf));
    qcow2_log_unit_serialize(buf, &id, 5, QCOW2_LOG_MIN_CHUNK_BITS - 1, marks);
    g_assert_false(unit_is_good(buf));
    qcow2_log_unit_serialize(buf, &id, 5, QCOW2_LOG_MAX_CHUNK_BITS + 1, marks);
    g_assert_false(unit_is_good(buf));
}

static const Qcow2LogSuper good_super = {
    .id               = { .nonce = 1, .generation = 2 },
    .chunk_bits       = 20,
    .size             = 3 * GiB,
    .shrunk           = true,
    .directory_offset = 65536,
    .directory_size   = 32,
    .nb_bitmaps       = 4,
    .directory_crc    = 5,
    .nb_covered       = 3,
    .bitmaps_checksum = 6,
};

static bool super_is_good(const uint8_t *buf)
{
    Qcow2LogSuper super;

    return qcow2_log_super_parse(&super, buf);
}

static void assert_bad_super(Qcow2LogSuper super)
{
    uint8_t buf[QCOW2_LOG_UNIT_LEN];

    qcow2_log_super_serialize(&super, buf);
    g_assert_false(super_is_good(buf));
}

static void test_super(void)
{
    uint8_t buf[QCOW2_LOG_UNIT_LEN], again[QCOW2_LOG_UNIT_LEN];
    Qcow2LogSuper super;

    qcow2_log_super_serialize(&good_super, buf);
    g_assert_true(qcow2_log_super_parse(&super, buf));
    qcow2_log_super_serialize(&super, again);
    g_assert_cmpmem(buf, sizeof(buf), again, sizeof(again));
    g_assert_cmpuint(super.size, ==, good_super.size);
    g_assert_true(super.shrunk);
    g_assert_cmpuint(super.nb_covered, ==, 3);
    flip_each_byte(buf, super_is_good);

    super = good_super;
    super.nb_covered = 5;
    assert_bad_super(super);
    super = good_super;
    super.size++;
    assert_bad_super(super);
    super = good_super;
    super.chunk_bits = 45;
    assert_bad_super(super);
    /* More chunks than fit into the log */
    super = good_super;
    super.size = 2 * TiB;
    assert_bad_super(super);
}

static bool lease_is_good(const uint8_t *buf)
{
    Qcow2LogLease lease;

    return qcow2_log_lease_parse(&lease, buf);
}

static void test_lease(void)
{
    uint8_t buf[QCOW2_LOG_UNIT_LEN], again[QCOW2_LOG_UNIT_LEN];
    Qcow2LogLease lease = {
        .nonce   = 1,
        .number  = 2,
        .is_file = true,
        .seen    = { .sec = -3, .nsec = 999999999 },
        .until   = { .sec = 4, .nsec = 5 },
        .durable = { .sec = 6 },
        .inode   = 7,
        .boot_id = { 8, 9 },
    }, found;

    qcow2_log_lease_serialize(&lease, buf);
    g_assert_true(qcow2_log_lease_parse(&found, buf));
    qcow2_log_lease_serialize(&found, again);
    g_assert_cmpmem(buf, sizeof(buf), again, sizeof(again));
    g_assert_cmpint(found.seen.sec, ==, -3);
    flip_each_byte(buf, lease_is_good);

    lease.until.nsec = 1000000000;
    qcow2_log_lease_serialize(&lease, buf);
    g_assert_false(lease_is_good(buf));
}

static void test_chunk_bits(void)
{
    g_assert_cmpuint(qcow2_log_chunk_bits(0), ==, 20);
    g_assert_cmpuint(qcow2_log_chunk_bits(512 * GiB), ==, 20);
    g_assert_cmpuint(qcow2_log_chunk_bits(512 * GiB + 512), ==, 21);
    g_assert_cmpuint(qcow2_log_chunk_bits(1 * TiB), ==, 21);
    g_assert_cmpuint(qcow2_log_chunk_bits(INT64_MAX), ==,
                     QCOW2_LOG_MAX_CHUNK_BITS);
}

/* A log that is larger than said would be a change of the format */
static void test_layout(void)
{
    g_assert_cmpuint(QCOW2_LOG_UNITS, ==, 137);
    g_assert_cmpuint(QCOW2_LOG_LEN, ==, 163840);
    g_assert_cmpuint(QCOW2_LOG_LEASE_OFFSET(1), ==, 4096);
    g_assert_cmpuint(QCOW2_LOG_AREA_OFFSET(0), ==, 8192);
    g_assert_cmpuint(QCOW2_LOG_AREA_OFFSET(1), ==, 86016);
}

static Qcow2LogMarks *make_marks(uint64_t size)
{
    Qcow2LogMarks *marks = g_new(Qcow2LogMarks, 1);

    qcow2_log_marks_init(marks, &id, size, qcow2_log_chunk_bits(size));
    return marks;
}

static void test_marks(void)
{
    g_autofree Qcow2LogMarks *marks = make_marks(16 * GiB + 512);
    uint32_t first, last;

    g_assert_cmpuint(marks->chunks, ==, 16385);
    qcow2_log_marks_range(marks, 1 * MiB - 1, 2, &first, &last);
    g_assert_cmpuint(first, ==, 0);
    g_assert_cmpuint(last, ==, 1);
    g_assert_false(qcow2_log_marks_test(marks, first, last));
    g_assert_true(qcow2_log_marks_are_clean(marks, first, last));

    qcow2_log_marks_set(marks, first, last);
    g_assert_true(qcow2_log_marks_test(marks, first, last));
    g_assert_false(qcow2_log_marks_test(marks, first, last + 1));
    g_assert_false(qcow2_log_marks_are_clean(marks, first, last));
    g_assert_cmpuint(qcow2_log_marks_count(marks), ==, 2);
    g_assert_true(qcow2_log_marks_any(marks, 0, 1));
    g_assert_false(qcow2_log_marks_any(marks, 2 * MiB, 1 * GiB));

    /* The last chunk, from the last byte of the disk and from behind it */
    qcow2_log_marks_range(marks, 16 * GiB, 512, &first, &last);
    g_assert_cmpuint(first, ==, 16384);
    qcow2_log_marks_range(marks, 17 * GiB, 1 * GiB, &first, &last);
    g_assert_cmpuint(first, ==, 16384);
    g_assert_cmpuint(last, ==, 16384);
    qcow2_log_marks_set(marks, first, last);

    first = 0;
    g_assert_true(qcow2_log_marks_next_run(marks, &first, &last));
    g_assert_cmpuint(first, ==, 0);
    g_assert_cmpuint(last, ==, 1);
    first = last + 1;
    g_assert_true(qcow2_log_marks_next_run(marks, &first, &last));
    g_assert_cmpuint(first, ==, 16384);
    g_assert_cmpuint(last, ==, 16384);
    first = last + 1;
    g_assert_false(qcow2_log_marks_next_run(marks, &first, &last));
}

/* All pages together have exactly the marks, and each knows when it is dirty */
static void test_pages(void)
{
    g_autofree Qcow2LogMarks *marks = make_marks(512 * GiB);
    uint8_t buf[QCOW2_LOG_PAGE_LEN];
    uint32_t chunk, count = 0, i, page;

    for (chunk = 3; chunk < marks->chunks; chunk += 7919) {
        qcow2_log_marks_set(marks, chunk, chunk);
    }
    for (page = 0; page < QCOW2_LOG_PAGES; page++) {
        g_assert_true(test_bit(page, marks->dirty_pages));
        qcow2_log_marks_serialize_page(marks, page, buf);
        for (i = 0; i < QCOW2_LOG_UNITS_PER_PAGE; i++) {
            uint32_t index = page * QCOW2_LOG_UNITS_PER_PAGE + i;
            const uint8_t *unit = buf + i * QCOW2_LOG_UNIT_LEN;
            unsigned int chunk_bits;
            Qcow2LogId found;
            int bit;

            if (index >= QCOW2_LOG_UNITS) {
                continue;
            }
            g_assert_cmpint(qcow2_log_unit_parse(unit, index, &found,
                                                 &chunk_bits), ==,
                            QCOW2_LOG_UNIT_VALID);
            for (bit = 0; bit < QCOW2_LOG_UNIT_CHUNKS; bit++) {
                if (qcow2_log_unit_marks(unit)[bit / 8] & (1 << bit % 8)) {
                    chunk = index * QCOW2_LOG_UNIT_CHUNKS + bit;
                    g_assert_cmpuint(chunk % 7919, ==, 3);
                    count++;
                }
            }
        }
    }
    g_assert_cmpuint(count, ==, qcow2_log_marks_count(marks));

    bitmap_zero(marks->dirty_pages, QCOW2_LOG_PAGES);
    qcow2_log_marks_set(marks, 3, 3);
    g_assert_true(qcow2_log_marks_are_clean(marks, 0, marks->chunks - 1));
    qcow2_log_marks_set_all_dirty(marks);
    g_assert_false(qcow2_log_marks_are_clean(marks, 3, 3));
}

static void test_gate(void)
{
    g_autofree Qcow2LogGate *gate = qcow2_log_gate_new(10 * MiB, 20);

    g_assert_true(qcow2_log_gate_passes(&qcow2_log_gate_open, 0, 1));
    g_assert_true(qcow2_log_gate_passes(&qcow2_log_gate_open, INT64_MAX - 1,
                                        1));
    g_assert_false(qcow2_log_gate_passes(&qcow2_log_gate_closed, 0, 1));
    g_assert_false(qcow2_log_gate_passes(&qcow2_log_gate_closed, INT64_MAX - 1,
                                         1));

    g_assert_false(qcow2_log_gate_passes(gate, 3 * MiB, 1));
    qcow2_log_gate_set(gate, 3, 4);
    g_assert_true(qcow2_log_gate_passes(gate, 3 * MiB, 2 * MiB));
    g_assert_false(qcow2_log_gate_passes(gate, 3 * MiB, 2 * MiB + 1));
    g_assert_false(qcow2_log_gate_passes(gate, 3 * MiB - 1, 2));

    /* The disk has grown */
    g_assert_false(qcow2_log_gate_passes(gate, 20 * MiB, 1 * MiB));
    qcow2_log_gate_set(gate, 9, 100);
    g_assert_true(qcow2_log_gate_passes(gate, 20 * MiB, 1 * MiB));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/qcow2-rw-backing-log/layout", test_layout);
    g_test_add_func("/qcow2-rw-backing-log/unit", test_unit);
    g_test_add_func("/qcow2-rw-backing-log/superblock", test_super);
    g_test_add_func("/qcow2-rw-backing-log/lease", test_lease);
    g_test_add_func("/qcow2-rw-backing-log/chunk-bits", test_chunk_bits);
    g_test_add_func("/qcow2-rw-backing-log/marks", test_marks);
    g_test_add_func("/qcow2-rw-backing-log/pages", test_pages);
    g_test_add_func("/qcow2-rw-backing-log/gate", test_gate);

    return g_test_run();
}
