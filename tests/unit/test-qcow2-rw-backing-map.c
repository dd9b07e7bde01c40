/*
 * Tests of the allocation map in memory, next to an array that says the same
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "../../block/qcow2-rw-backing-map.h"

#define BITS        QCOW2_MAP_MIN_GRANULARITY_BITS
#define GRANULE     (UINT64_C(1) << BITS)

static void test_granularity(void)
{
    g_assert_cmpuint(qcow2_map_granularity_bits(0, 512 * MiB), ==, BITS);
    g_assert_cmpuint(qcow2_map_granularity_bits(256 * TiB, 512 * MiB), ==,
                     BITS);
    g_assert_cmpuint(qcow2_map_granularity_bits(256 * TiB + 1, 512 * MiB), ==,
                     BITS + 1);
}

static void assert_state(Qcow2Map *map, uint64_t offset, uint64_t bytes,
                         Qcow2MapState state, uint64_t count)
{
    uint64_t found;

    g_assert_cmpint(qcow2_map_get(map, offset, bytes, &found), ==, state);
    g_assert_cmpuint(found, ==, count);
}

static void test_states(void)
{
    Qcow2Map *map = qcow2_map_new(10 * GRANULE + 512, BITS);

    assert_state(map, 0, 10 * GRANULE + 512, QCOW2_MAP_ZERO,
                 10 * GRANULE + 512);
    qcow2_map_set(map, 3 * GRANULE - 1, 2);
    assert_state(map, 512, 10 * GRANULE, QCOW2_MAP_ZERO, 2 * GRANULE - 512);
    assert_state(map, 2 * GRANULE + 1024, 512, QCOW2_MAP_DATA, 512);
    assert_state(map, 2 * GRANULE, 8 * GRANULE, QCOW2_MAP_DATA, 2 * GRANULE);
    g_assert_cmpuint(qcow2_map_count(map), ==, 2 * GRANULE);

    qcow2_map_doubt(map);
    g_assert_false(qcow2_map_is_proven(map));
    assert_state(map, 0, 10 * GRANULE, QCOW2_MAP_UNPROVEN, 2 * GRANULE);
    assert_state(map, 2 * GRANULE, 8 * GRANULE, QCOW2_MAP_DATA, 2 * GRANULE);
    g_assert_false(qcow2_map_clear(map, 0));
    assert_state(map, 0, 10 * GRANULE, QCOW2_MAP_ZERO, GRANULE);
    g_assert_true(qcow2_map_clear(map, 2));
    assert_state(map, 2 * GRANULE, 8 * GRANULE, QCOW2_MAP_ZERO, GRANULE);

    qcow2_map_set_all(map);
    g_assert_true(qcow2_map_is_proven(map));
    g_assert_cmpuint(qcow2_map_count(map), ==, 10 * GRANULE + 512);
    assert_state(map, 0, 10 * GRANULE + 512, QCOW2_MAP_DATA,
                 10 * GRANULE + 512);
    qcow2_map_free(map);
}

/* Only what lies inside wholly, but the last one is shorter than the others */
static void test_inside(void)
{
    Qcow2Map *map = qcow2_map_new(4 * GRANULE + 512, BITS);

    g_assert_cmpuint(qcow2_map_first_inside(map, 0), ==, 0);
    g_assert_cmpuint(qcow2_map_first_inside(map, 1), ==, 1);
    g_assert_cmpuint(qcow2_map_end_inside(map, 0, GRANULE - 1), ==, 0);
    g_assert_cmpuint(qcow2_map_end_inside(map, 512, GRANULE), ==, 1);
    g_assert_cmpuint(qcow2_map_end_inside(map, 0, 4 * GRANULE + 511), ==, 4);
    g_assert_cmpuint(qcow2_map_end_inside(map, 0, 4 * GRANULE + 512), ==, 5);
    qcow2_map_free(map);
}

static void test_resize(void)
{
    Qcow2Map *map = qcow2_map_new(3 * GRANULE, BITS);

    qcow2_map_set_all(map);
    qcow2_map_resize(map, 300 * GRANULE);
    assert_state(map, 0, 300 * GRANULE, QCOW2_MAP_DATA, 3 * GRANULE);
    assert_state(map, 3 * GRANULE, 297 * GRANULE, QCOW2_MAP_ZERO,
                 297 * GRANULE);
    qcow2_map_set(map, 299 * GRANULE, GRANULE);
    qcow2_map_set(map, 99 * GRANULE, 2 * GRANULE);
    g_assert_cmpuint(qcow2_map_count(map), ==, 6 * GRANULE);

    /* What was cut off does not come back, not even a doubt */
    qcow2_map_doubt(map);
    qcow2_map_resize(map, 100 * GRANULE);
    g_assert_cmpuint(qcow2_map_count(map), ==, 4 * GRANULE);
    qcow2_map_set(map, 105 * GRANULE, GRANULE);
    qcow2_map_resize(map, 300 * GRANULE);
    g_assert_cmpuint(qcow2_map_count(map), ==, 4 * GRANULE);
    assert_state(map, 100 * GRANULE, 200 * GRANULE, QCOW2_MAP_ZERO,
                 200 * GRANULE);
    assert_state(map, 98 * GRANULE, GRANULE, QCOW2_MAP_UNPROVEN, GRANULE);
    qcow2_map_free(map);
}

/* What requests may see, which look at what there was when they began */
static void test_table(void)
{
    Qcow2Map *map = qcow2_map_new(3 * GRANULE, BITS);
    const Qcow2MapTable *table = map->table;

    g_assert_false(qcow2_map_table_has(table, GRANULE, GRANULE));
    qcow2_map_set(map, GRANULE, 2 * GRANULE);
    g_assert_true(qcow2_map_table_has(table, GRANULE, GRANULE));
    g_assert_false(qcow2_map_table_has(table, GRANULE - 1, 2));
    /* Of more than one, nothing is said, nor of what lies behind the end */
    g_assert_false(qcow2_map_table_has(table, 2 * GRANULE - 1, 2));
    g_assert_false(qcow2_map_table_has(table, 3 * GRANULE, 1));
    g_assert_false(qcow2_map_table_has(table, table->capacity * GRANULE, 1));

    qcow2_map_resize(map, 2 * table->capacity * GRANULE);
    g_assert(map->table != table);
    qcow2_map_set(map, 0, 1);
    g_assert_true(qcow2_map_table_has(table, GRANULE, GRANULE));
    g_assert_false(qcow2_map_table_has(table, 0, 1));
    g_assert_true(qcow2_map_table_has(map->table, 0, 3 * 512));
    g_assert_true(qcow2_map_table_has(map->table, 2 * GRANULE, GRANULE));
    g_assert_false(qcow2_map_table_has(map->table, 3 * GRANULE, GRANULE));

    g_assert_false(qcow2_map_table_has(&qcow2_map_table_closed, 0, 1));
    qcow2_map_free(map);
}

/* Random events; what is stored and loaded again is the same */
static void test_random(void)
{
    const uint64_t granules = (1 << 18) + 1000;
    const uint64_t size = granules * GRANULE - 512;
    const size_t len = ROUND_UP(granules, 512 * 8) / 8;
    Qcow2Map *map = qcow2_map_new(size, BITS);
    Qcow2Map *loaded = qcow2_map_new(size, BITS);
    g_autofree bool *model = g_new0(bool, granules);
    g_autofree uint8_t *buf = g_malloc(len);
    uint64_t i, j, count = 0;
    size_t part;

    for (i = 0; i < 3000; i++) {
        uint64_t first = g_test_rand_int_range(0, granules);
        uint64_t n = g_test_rand_int_range(1, MIN(granules - first, 600) + 1);

        if (g_test_rand_bit()) {
            qcow2_map_set(map, first * GRANULE + 512,
                          MIN(n * GRANULE - 1024,
                              size - first * GRANULE - 512));
            memset(model + first, true, n * sizeof(bool));
        } else {
            for (j = first; j < first + n; j++) {
                g_assert(qcow2_map_clear(map, j) == model[j]);
                model[j] = false;
            }
        }
    }
    memset(buf, 0xff, len);
    for (part = 0; part < len; part += 512) {
        qcow2_map_serialize(map, part * 8, buf + part, 512);
    }
    for (i = 0; i < len * 8; i++) {
        g_assert(!!(buf[i / 8] & (1 << (i % 8))) ==
                 (i < granules && model[i]));
        count += i < granules && model[i];
    }
    for (part = 0; part < len; part += 512) {
        qcow2_map_deserialize(loaded, part * 8, buf + part, 512);
    }
    for (i = 0; i < granules; i = j) {
        uint64_t bytes;

        for (j = i; j < granules && model[j] == model[i]; j++) {
            /* The end of the run */
        }
        assert_state(map, i * GRANULE, size - i * GRANULE,
                     model[i] ? QCOW2_MAP_DATA : QCOW2_MAP_ZERO,
                     MIN(j * GRANULE, size) - i * GRANULE);
        qcow2_map_get(loaded, i * GRANULE, size - i * GRANULE, &bytes);
        g_assert_cmpuint(bytes, ==, MIN(j * GRANULE, size) - i * GRANULE);
        g_assert(qcow2_map_holds_data(loaded, i) == model[i]);
    }
    /* The last granule is shorter, which counts if all hold data */
    g_assert_cmpuint(qcow2_map_count(map), ==, MIN(count * GRANULE, size));
    qcow2_map_free(map);
    qcow2_map_free(loaded);
}

/* All ones, also behind the end, where nothing is */
static void test_ones(void)
{
    Qcow2Map *map = qcow2_map_new(5 * GRANULE, BITS);
    uint8_t buf[512];

    memset(buf, 0xff, sizeof(buf));
    qcow2_map_deserialize(map, 0, buf, sizeof(buf));
    qcow2_map_serialize(map, 0, buf, sizeof(buf));
    g_assert_cmphex(buf[0], ==, 0x1f);
    g_assert_cmphex(buf[1], ==, 0);
    qcow2_map_resize(map, 100 * GRANULE);
    g_assert_cmpuint(qcow2_map_count(map), ==, 5 * GRANULE);
    qcow2_map_deserialize(map, 0, NULL, 64);
    g_assert_cmpuint(qcow2_map_count(map), ==, 100 * GRANULE);
    qcow2_map_free(map);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qcow2-rw-backing/map/granularity", test_granularity);
    g_test_add_func("/qcow2-rw-backing/map/states", test_states);
    g_test_add_func("/qcow2-rw-backing/map/inside", test_inside);
    g_test_add_func("/qcow2-rw-backing/map/resize", test_resize);
    g_test_add_func("/qcow2-rw-backing/map/table", test_table);
    g_test_add_func("/qcow2-rw-backing/map/random", test_random);
    g_test_add_func("/qcow2-rw-backing/map/ones", test_ones);
    return g_test_run();
}
