/*
 * qcow2 RW backing: the allocation map in memory
 *
 * Who changes bits or looks at several has the lock.  Requests look at one
 * without it, and only at a table that was published: it has a fixed length,
 * and when the disk grows beyond that, a larger one takes its place.  Some may
 * go on to look at the old one, which is as good for them: a bit is only
 * cleared when there are no requests that could have seen it (map-watch).
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/lockable.h"
#include "qcow2-rw-backing-map.h"

const Qcow2MapTable qcow2_map_table_closed = { .granularity_bits = 63 };

unsigned int qcow2_map_granularity_bits(uint64_t size, uint64_t max_content)
{
    unsigned int bits = QCOW2_MAP_MIN_GRANULARITY_BITS;

    while (DIV_ROUND_UP(DIV_ROUND_UP(size, UINT64_C(1) << bits), 8) >
           max_content) {
        bits++;
    }
    return bits;
}

/* A disk without any bytes has a granule all the same */
static uint64_t count_granules(uint64_t size, unsigned int granularity_bits)
{
    return MAX(DIV_ROUND_UP(size, UINT64_C(1) << granularity_bits), 1);
}

static uint64_t granules_of(const Qcow2Map *map)
{
    return count_granules(map->size, map->granularity_bits);
}

/* With all bits clear; the system provides memory where some are set */
static Qcow2MapTable *new_table(uint64_t granules,
                                unsigned int granularity_bits)
{
    uint64_t words = BITS_TO_LONGS(granules);
    Qcow2MapTable *table = g_malloc0(sizeof(*table) +
                                     words * sizeof(table->data[0]));

    table->granularity_bits = granularity_bits;
    table->capacity = words * BITS_PER_LONG;
    return table;
}

Qcow2Map *qcow2_map_new(uint64_t size, unsigned int granularity_bits)
{
    Qcow2Map *map = g_new0(Qcow2Map, 1);

    qemu_mutex_init(&map->lock);
    map->granularity_bits = granularity_bits;
    map->size = size;
    map->table = new_table(granules_of(map), granularity_bits);
    map->unproven = bitmap_new(map->table->capacity);
    QLIST_INIT(&map->watches);
    return map;
}

void qcow2_map_free(Qcow2Map *map)
{
    if (map) {
        qemu_mutex_destroy(&map->lock);
        g_free(map->table);
        g_slist_free_full(map->old_tables, g_free);
        g_free(map->unproven);
        g_free(map);
    }
}

/*
 * A table of twice the length, so that all old ones together are no larger
 * than that.
 */
static void enlarge(Qcow2Map *map, uint64_t granules)
{
    Qcow2MapTable *old = map->table, *table;

    table = new_table(MAX(granules, 2 * old->capacity), map->granularity_bits);
    bitmap_copy(table->data, old->data, old->capacity);
    map->unproven = bitmap_zero_extend(map->unproven, old->capacity,
                                       table->capacity);
    map->old_tables = g_slist_prepend(map->old_tables, old);
    qatomic_store_release(&map->table, table);
}

void qcow2_map_resize(Qcow2Map *map, uint64_t size)
{
    uint64_t old_granules, granules;

    QEMU_LOCK_GUARD(&map->lock);
    old_granules = granules_of(map);
    map->size = size;
    granules = granules_of(map);
    if (granules > map->table->capacity) {
        enlarge(map, granules);
    } else if (granules < old_granules) {
        /* Those that come back are as in a new map */
        bitmap_test_and_clear_atomic(map->table->data, granules,
                                     old_granules - granules);
        bitmap_clear(map->unproven, granules, old_granules - granules);
    }
}

void qcow2_map_set(Qcow2Map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> map->granularity_bits;
    uint64_t i = offset >> map->granularity_bits;

    QEMU_LOCK_GUARD(&map->lock);
    /* What lies behind the end, since the disk grows, counts as the last one */
    last = MIN(last, granules_of(map) - 1);
    i = MIN(i, last);
    bitmap_set_atomic(map->table->data, i, last - i + 1);
}

uint64_t qcow2_map_first_inside(const Qcow2Map *map, uint64_t offset)
{
    return DIV_ROUND_UP(offset, UINT64_C(1) << map->granularity_bits);
}

uint64_t qcow2_map_end_inside(Qcow2Map *map, uint64_t offset, uint64_t bytes)
{
    QEMU_LOCK_GUARD(&map->lock);
    /* The last one may be shorter than the others */
    return offset + bytes >= map->size
        ? granules_of(map)
        : (offset + bytes) >> map->granularity_bits;
}

bool qcow2_map_clear(Qcow2Map *map, uint64_t granule)
{
    QEMU_LOCK_GUARD(&map->lock);
    clear_bit(granule, map->unproven);
    return bitmap_test_and_clear_atomic(map->table->data, granule, 1);
}

bool qcow2_map_holds_data(Qcow2Map *map, uint64_t granule)
{
    QEMU_LOCK_GUARD(&map->lock);
    return test_bit(granule, map->table->data);
}

void qcow2_map_set_all(Qcow2Map *map)
{
    QEMU_LOCK_GUARD(&map->lock);
    bitmap_set_atomic(map->table->data, 0, granules_of(map));
}

void qcow2_map_doubt(Qcow2Map *map)
{
    QEMU_LOCK_GUARD(&map->lock);
    bitmap_set(map->unproven, 0, granules_of(map));
}

bool qcow2_map_is_proven(Qcow2Map *map)
{
    uint64_t i, words;

    QEMU_LOCK_GUARD(&map->lock);
    words = BITS_TO_LONGS(granules_of(map));
    for (i = 0; i < words; i++) {
        if (map->unproven[i] & ~map->table->data[i]) {
            return false;
        }
    }
    return true;
}

static Qcow2MapState state_of(const Qcow2Map *map, uint64_t granule)
{
    return test_bit(granule, map->table->data) ? QCOW2_MAP_DATA :
           test_bit(granule, map->unproven) ? QCOW2_MAP_UNPROVEN
                                            : QCOW2_MAP_ZERO;
}

/* The first one from @i on that has not state @state, or @end */
static uint64_t next_other(const Qcow2Map *map, Qcow2MapState state,
                           uint64_t i, uint64_t end)
{
    if (state == QCOW2_MAP_DATA) {
        return find_next_zero_bit(map->table->data, end, i);
    }
    end = find_next_bit(map->table->data, end, i);
    return state == QCOW2_MAP_ZERO
        ? find_next_bit(map->unproven, end, i)
        : find_next_zero_bit(map->unproven, end, i);
}

Qcow2MapState qcow2_map_get(Qcow2Map *map, uint64_t offset, uint64_t bytes,
                            uint64_t *count)
{
    unsigned int bits = map->granularity_bits;
    uint64_t first, end, next;
    Qcow2MapState state;

    QEMU_LOCK_GUARD(&map->lock);
    end = MIN(((offset + bytes - 1) >> bits) + 1, granules_of(map));
    first = MIN(offset >> bits, end - 1);
    state = state_of(map, first);
    next = next_other(map, state, first, end);
    *count = next == end ? bytes : (next << bits) - offset;
    return state;
}

uint64_t qcow2_map_count(Qcow2Map *map)
{
    uint64_t granules;

    QEMU_LOCK_GUARD(&map->lock);
    granules = bitmap_count_one(map->table->data, granules_of(map));
    return MIN(granules << map->granularity_bits, map->size);
}

/* How many of @len bytes, from granule @first on, there is space for */
static size_t stored_len(const Qcow2Map *map, uint64_t first, size_t len)
{
    uint64_t capacity = map->table->capacity;

    return first < capacity ? MIN(len, (capacity - first) / 8) : 0;
}

void qcow2_map_serialize(Qcow2Map *map, uint64_t first, uint8_t *buf,
                         size_t len)
{
    size_t there;

    QEMU_LOCK_GUARD(&map->lock);
    there = stored_len(map, first, len);
    if (there) {
        bitmap_to_le((unsigned long *)buf,
                     map->table->data + BIT_WORD(first), there * 8);
    }
    memset(buf + there, 0, len - there);
}

void qcow2_map_deserialize(Qcow2Map *map, uint64_t first, const uint8_t *buf,
                           size_t len)
{
    size_t there;
    unsigned long *data;
    uint64_t granules;

    QEMU_LOCK_GUARD(&map->lock);
    there = stored_len(map, first, len);
    if (!there) {
        return;
    }
    data = map->table->data + BIT_WORD(first);
    granules = granules_of(map);
    if (buf) {
        g_autofree unsigned long *part = bitmap_new(there * 8);

        bitmap_from_le(part, (const unsigned long *)buf, there * 8);
        bitmap_or(data, data, part, there * 8);
    } else {
        bitmap_fill(data, there * 8);
    }
    if (first + there * 8 > granules) {
        /* Behind the end is nothing */
        bitmap_clear(map->table->data, granules, first + there * 8 - granules);
    }
}
