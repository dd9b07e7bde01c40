/*
 * qcow2 RW backing: the allocation map in memory
 *
 * Bits are in pages, so that a map can grow while requests set some: a larger
 * table has the same pages and more.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qcow2-rw-backing-map.h"

#define PAGE_GRANULES   (UINT64_C(1) << QCOW2_MAP_PAGE_BITS)

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

static uint64_t count_pages(uint64_t granules)
{
    return DIV_ROUND_UP(granules, PAGE_GRANULES);
}

static unsigned long index_in_page(uint64_t granule)
{
    return granule & (PAGE_GRANULES - 1);
}

/* A table with the pages of @old, which may be NULL, and new ones */
static Qcow2MapTable *new_table(const Qcow2MapTable *old, uint64_t granules,
                                unsigned int granularity_bits)
{
    uint64_t old_pages = old ? count_pages(old->granules) : 0;
    uint64_t pages = MAX(count_pages(granules), old_pages);
    Qcow2MapTable *table = g_malloc(sizeof(*table) +
                                    pages * sizeof(table->pages[0]));
    uint64_t i;

    table->granularity_bits = granularity_bits;
    table->granules = granules;
    for (i = 0; i < pages; i++) {
        table->pages[i] = i < old_pages ? old->pages[i]
                                        : g_new0(Qcow2MapPage, 1);
    }
    return table;
}

Qcow2Map *qcow2_map_new(uint64_t size, unsigned int granularity_bits)
{
    Qcow2Map *map = g_new0(Qcow2Map, 1);

    map->granularity_bits = granularity_bits;
    map->size = size;
    map->table = new_table(NULL, count_granules(size, granularity_bits),
                           granularity_bits);
    QLIST_INIT(&map->watches);
    return map;
}

void qcow2_map_free(Qcow2Map *map)
{
    uint64_t i;

    if (map) {
        for (i = 0; i < count_pages(map->table->granules); i++) {
            g_free(map->table->pages[i]);
        }
        g_free(map->table);
        g_slist_free_full(map->old_tables, g_free);
        g_free(map);
    }
}

/*
 * Makes granules from @first on what they are in a new map.  Requests may be
 * setting bits before it in the same word.
 */
static void forget_from(const Qcow2MapTable *table, uint64_t first)
{
    uint64_t end = count_pages(table->granules) * PAGE_GRANULES;

    while (first < end) {
        Qcow2MapPage *page = qcow2_map_page(table, first);
        unsigned long i = index_in_page(first);
        unsigned long mask = BITMAP_FIRST_WORD_MASK(i);

        qatomic_and(&page->data[BIT_WORD(i)], ~mask);
        qatomic_and(&page->unproven[BIT_WORD(i)], ~mask);
        first += BITS_PER_LONG - i % BITS_PER_LONG;
    }
}

void qcow2_map_resize(Qcow2Map *map, uint64_t size)
{
    Qcow2MapTable *old = map->table, *table;
    uint64_t granules = count_granules(size, map->granularity_bits);
    uint64_t i, pages = count_pages(granules);

    /* What has been set behind the end by those who were too late */
    forget_from(old, MIN(granules, old->granules));
    map->size = size;
    if (granules == old->granules) {
        return;
    }
    table = new_table(old, granules, map->granularity_bits);
    /* Those that are not needed stay until the map is freed */
    for (i = pages; i < count_pages(old->granules); i++) {
        map->old_tables = g_slist_prepend(map->old_tables, old->pages[i]);
    }
    map->old_tables = g_slist_prepend(map->old_tables, old);
    qatomic_store_release(&map->table, table);
}

void qcow2_map_set(Qcow2Map *map, uint64_t offset, uint64_t bytes)
{
    const Qcow2MapTable *table = qatomic_load_acquire(&map->table);
    uint64_t last = (offset + bytes - 1) >> map->granularity_bits;
    uint64_t i = offset >> map->granularity_bits;

    /* What lies behind the end, since the disk grows, counts as the last one */
    last = MIN(last, table->granules - 1);
    for (i = MIN(i, last); i <= last; i++) {
        unsigned long j = index_in_page(i);
        unsigned long *word = &qcow2_map_page(table, i)->data[BIT_WORD(j)];

        if (!(qatomic_read(word) & BIT_MASK(j))) {
            qatomic_or(word, BIT_MASK(j));
        }
    }
}

uint64_t qcow2_map_first_inside(const Qcow2Map *map, uint64_t offset)
{
    return DIV_ROUND_UP(offset, UINT64_C(1) << map->granularity_bits);
}

uint64_t qcow2_map_end_inside(const Qcow2Map *map, uint64_t offset,
                              uint64_t bytes)
{
    /* The last one may be shorter than the others */
    return offset + bytes >= map->size
        ? map->table->granules
        : (offset + bytes) >> map->granularity_bits;
}

bool qcow2_map_clear(Qcow2Map *map, uint64_t granule)
{
    Qcow2MapPage *page = qcow2_map_page(map->table, granule);
    unsigned long i = index_in_page(granule);
    bool changed = test_bit(i, page->data);

    if (changed) {
        qatomic_and(&page->data[BIT_WORD(i)], ~BIT_MASK(i));
    }
    if (test_bit(i, page->unproven)) {
        qatomic_and(&page->unproven[BIT_WORD(i)], ~BIT_MASK(i));
    }
    return changed;
}

bool qcow2_map_holds_data(const Qcow2Map *map, uint64_t granule)
{
    const Qcow2MapTable *table = qatomic_load_acquire(&map->table);

    return test_bit(index_in_page(granule),
                    qcow2_map_page(table, granule)->data);
}

/* Granules of page @page that there are */
static unsigned long page_len(const Qcow2MapTable *table, uint64_t page)
{
    return MIN(table->granules - page * PAGE_GRANULES, PAGE_GRANULES);
}

void qcow2_map_set_all(Qcow2Map *map)
{
    uint64_t i;

    for (i = 0; i < count_pages(map->table->granules); i++) {
        bitmap_set_atomic(map->table->pages[i]->data, 0,
                          page_len(map->table, i));
    }
}

void qcow2_map_doubt(Qcow2Map *map)
{
    uint64_t i;

    for (i = 0; i < count_pages(map->table->granules); i++) {
        bitmap_set_atomic(map->table->pages[i]->unproven, 0,
                          page_len(map->table, i));
    }
}

bool qcow2_map_is_proven(const Qcow2Map *map)
{
    const Qcow2MapTable *table = qatomic_load_acquire(&map->table);
    uint64_t i;
    unsigned long j;

    for (i = 0; i < count_pages(table->granules); i++) {
        const Qcow2MapPage *page = table->pages[i];
        unsigned long len = page_len(table, i);

        for (j = find_first_bit(page->unproven, len); j < len;
             j = find_next_bit(page->unproven, len, j + 1)) {
            if (!test_bit(j, page->data)) {
                return false;
            }
        }
    }
    return true;
}

static Qcow2MapState state_of(const Qcow2MapPage *page, unsigned long i)
{
    return test_bit(i, page->data) ? QCOW2_MAP_DATA :
           test_bit(i, page->unproven) ? QCOW2_MAP_UNPROVEN : QCOW2_MAP_ZERO;
}

/* The first one behind @i, up to @end, that may have another state */
static unsigned long next_other(const Qcow2MapPage *page, Qcow2MapState state,
                                unsigned long i, unsigned long end)
{
    if (state == QCOW2_MAP_DATA) {
        return find_next_zero_bit(page->data, end, i + 1);
    }
    end = find_next_bit(page->data, end, i + 1);
    return state == QCOW2_MAP_ZERO
        ? find_next_bit(page->unproven, end, i + 1)
        : find_next_zero_bit(page->unproven, end, i + 1);
}

Qcow2MapState qcow2_map_get(const Qcow2Map *map, uint64_t offset,
                            uint64_t bytes, uint64_t *count)
{
    const Qcow2MapTable *table = qatomic_load_acquire(&map->table);
    unsigned int bits = map->granularity_bits;
    uint64_t last = MIN((offset + bytes - 1) >> bits, table->granules - 1);
    uint64_t i = MIN(offset >> bits, last);
    Qcow2MapState state = state_of(qcow2_map_page(table, i), index_in_page(i));
    bool ended;

    do {
        unsigned long first = index_in_page(i);
        unsigned long end = MIN(PAGE_GRANULES, first + (last - i) + 1);
        unsigned long next = next_other(qcow2_map_page(table, i), state, first,
                                        end);

        i += next - first;
        ended = next < end || i > last;
    } while (!ended && state_of(qcow2_map_page(table, i), 0) == state);

    *count = i > last ? bytes : (i << bits) - offset;
    return state;
}

uint64_t qcow2_map_count(const Qcow2Map *map)
{
    const Qcow2MapTable *table = qatomic_load_acquire(&map->table);
    uint64_t i, granules = 0;

    for (i = 0; i < count_pages(table->granules); i++) {
        granules += bitmap_count_one(table->pages[i]->data, page_len(table, i));
    }
    return MIN(granules << map->granularity_bits, map->size);
}

/* Calls to bitmap_{to,from}_le() cover at most what is left of a page */
static unsigned long part_len(uint64_t granule, size_t len)
{
    return MIN(PAGE_GRANULES - index_in_page(granule), (uint64_t)len * 8);
}

void qcow2_map_serialize(const Qcow2Map *map, uint64_t first, uint8_t *buf,
                         size_t len)
{
    const Qcow2MapTable *table = qatomic_load_acquire(&map->table);

    while (len) {
        unsigned long n = part_len(first, len);
        unsigned long there = first >= table->granules
            ? 0 : MIN(n, table->granules - first);

        if (there) {
            bitmap_to_le((unsigned long *)buf,
                         qcow2_map_page(table, first)->data +
                         BIT_WORD(index_in_page(first)), n);
        }
        if (there < n) {
            buf[there / 8] &= (1 << (there % 8)) - 1;
            memset(buf + DIV_ROUND_UP(there, 8), 0,
                   n / 8 - DIV_ROUND_UP(there, 8));
        }
        first += n;
        buf += n / 8;
        len -= n / 8;
    }
}

void qcow2_map_deserialize(Qcow2Map *map, uint64_t first, const uint8_t *buf,
                           size_t len)
{
    g_autofree unsigned long *part = bitmap_new(PAGE_GRANULES);

    while (len && first < map->table->granules) {
        unsigned long *data = qcow2_map_page(map->table, first)->data +
                              BIT_WORD(index_in_page(first));
        unsigned long n = part_len(first, len);
        unsigned long there = MIN(n, map->table->granules - first);

        if (buf) {
            bitmap_from_le(part, (const unsigned long *)buf, n);
            bitmap_clear(part, there, n - there);
            bitmap_or(data, data, part, n);
            buf += n / 8;
        } else {
            bitmap_set(data, 0, there);
        }
        first += n;
        len -= n / 8;
    }
}
