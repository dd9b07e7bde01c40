/*
 * qcow2 RW backing: bitmap directory and bitmap tables of a shell
 *
 * The layout is that of qcow2.  What qcow2-bitmap.c does with it in many steps,
 * each with a header update of its own, has to be one step for a shell: a
 * header with a seal refers to a directory that is complete, and the other way
 * round, or neither is there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <zlib.h>
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/qcow2-rw-backing-format.h"
#include "qcow2.h"
#include "qcow2-rw-backing-directory.h"

/* An entry of the bitmap directory as it is stored, in big endian */
typedef struct QEMU_PACKED StoredEntry {
    uint64_t table_offset;
    uint32_t table_size;
    uint32_t flags;
    uint8_t type;
    uint8_t granularity_bits;
    uint16_t name_size;
    uint32_t extra_data_size;
    /* extra data follows, then the name, then padding to 8 bytes */
} StoredEntry;

QEMU_BUILD_BUG_ON(sizeof(StoredEntry) != 24);

#define TYPE_DIRTY_TRACKING     1
#define KNOWN_FLAGS             (QCOW2_SHELL_BITMAP_IN_USE | \
                                 QCOW2_SHELL_BITMAP_AUTO)
#define TABLE_RESERVED_MASK     0xff000000000001feULL

/* Limits that qcow2-bitmap.c has, too */
#define NAME_MAX_LEN            1023
#define GRANULARITY_BITS_MIN    9
#define GRANULARITY_BITS_MAX    31

bool qcow2_shell_is_map(const char *name)
{
    return !strcmp(name, QCOW2_RW_BACKING_MAP_NAME);
}

static void free_entry(void *opaque)
{
    Qcow2ShellEntry *entry = opaque;

    g_free(entry->name);
    g_free(entry->table);
    g_free(entry->sums);
    g_free(entry);
}

GPtrArray *qcow2_shell_directory_new(void)
{
    return g_ptr_array_new_with_free_func(free_entry);
}

Qcow2ShellEntry *qcow2_shell_directory_add(GPtrArray *directory,
                                           const char *name)
{
    Qcow2ShellEntry *entry = g_new0(Qcow2ShellEntry, 1);

    entry->name = g_strdup(name);
    g_ptr_array_add(directory, entry);
    return entry;
}

Qcow2ShellEntry *qcow2_shell_directory_find(GPtrArray *directory,
                                            const char *name)
{
    guint i;

    for (i = 0; i < directory->len; i++) {
        Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);

        if (!strcmp(entry->name, name)) {
            return entry;
        }
    }
    return NULL;
}

/* Reading */

/*
 * Returns false if what an entry says of its bitmap cannot be.  Whether the
 * bitmap fits the disk is another question, and none for its neighbours.
 */
static bool check_entry(BlockDriverState *bs, const Qcow2ShellEntry *entry)
{
    BDRVQcow2State *s = bs->opaque;

    return entry->table_size &&
           (uint64_t)entry->table_size * s->cluster_size <=
           QCOW2_SHELL_BITMAP_MAX_CONTENT &&
           entry->table_offset &&
           !offset_into_cluster(s, entry->table_offset) &&
           entry->granularity_bits >= GRANULARITY_BITS_MIN &&
           entry->granularity_bits <= GRANULARITY_BITS_MAX &&
           !(entry->flags & ~KNOWN_FLAGS);
}

/*
 * Takes an entry from the start of @buf, with @len bytes left there.  Returns
 * its length, or 0 with @errp set.
 */
static size_t parse_entry(BlockDriverState *bs, GPtrArray *directory,
                          GHashTable *names, const uint8_t *buf, uint64_t len,
                          Error **errp)
{
    g_autofree char *name = NULL;
    Qcow2ShellEntry *entry;
    StoredEntry stored;
    uint64_t name_size, total;

    if (len < sizeof(stored)) {
        error_setg(errp, "Bitmap directory is malformed");
        return 0;
    }
    memcpy(&stored, buf, sizeof(stored));
    name_size = be16_to_cpu(stored.name_size);
    total = ROUND_UP(sizeof(stored) + name_size +
                     be32_to_cpu(stored.extra_data_size), 8);
    if (total > len) {
        error_setg(errp, "Bitmap directory is malformed");
        return 0;
    }
    if (stored.extra_data_size) {
        error_setg(errp, "Bitmap directory has extra data, which is not known");
        return 0;
    }

    name = g_strndup((const char *)buf + sizeof(stored), name_size);
    if (!name_size || name_size > NAME_MAX_LEN || strlen(name) != name_size ||
        stored.type != TYPE_DIRTY_TRACKING ||
        g_hash_table_contains(names, name)) {
        error_setg(errp, "Entry of bitmap '%s' is invalid", name);
        return 0;
    }

    entry = qcow2_shell_directory_add(directory, name);
    g_hash_table_add(names, entry->name);
    entry->flags = be32_to_cpu(stored.flags);
    entry->granularity_bits = stored.granularity_bits;
    entry->table_offset = be64_to_cpu(stored.table_offset);
    entry->table_size = be32_to_cpu(stored.table_size);
    if (!check_entry(bs, entry)) {
        error_setg(errp, "Entry of bitmap '%s' is invalid", name);
        return 0;
    }
    return total;
}

/* Returns the bytes of the directory, or NULL with @errp set */
static uint8_t * coroutine_mixed_fn GRAPH_RDLOCK
read_bytes(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t size = s->bitmap_directory_size;
    int64_t length = bdrv_getlength(bs->file->bs);
    g_autofree uint8_t *buf = NULL;
    int ret;

    if (length < 0 || !size || s->bitmap_directory_offset > length ||
        size > ROUND_UP(length, BDRV_SECTOR_SIZE) -
               s->bitmap_directory_offset) {
        error_setg(errp, "Bitmap directory is not inside of the file");
        return NULL;
    }

    buf = g_malloc(size);
    ret = bdrv_pread(bs->file, s->bitmap_directory_offset, size, buf, 0);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the bitmap directory");
        return NULL;
    }
    return g_steal_pointer(&buf);
}

GPtrArray * coroutine_mixed_fn
qcow2_shell_directory_read(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    g_autoptr(GPtrArray) directory = qcow2_shell_directory_new();
    g_autoptr(GHashTable) names = g_hash_table_new(g_str_hash, g_str_equal);
    g_autofree uint8_t *buf = NULL;
    uint64_t offset = 0;
    uint32_t i;

    if (!s->nb_bitmaps) {
        return g_steal_pointer(&directory);
    }
    buf = read_bytes(bs, errp);
    if (!buf) {
        return NULL;
    }

    for (i = 0; i < s->nb_bitmaps; i++) {
        size_t len = parse_entry(bs, directory, names, buf + offset,
                                 s->bitmap_directory_size - offset, errp);

        if (!len) {
            return NULL;
        }
        offset += len;
    }
    if (offset != s->bitmap_directory_size) {
        error_setg(errp, "Bitmap directory is malformed");
        return NULL;
    }
    return g_steal_pointer(&directory);
}

/* Writing */

static uint64_t entry_len(const Qcow2ShellEntry *entry)
{
    return ROUND_UP(sizeof(StoredEntry) + strlen(entry->name), 8);
}

/* Returns the bytes of @directory, with their number in @size */
static uint8_t *serialize(const GPtrArray *directory, uint64_t *size)
{
    uint64_t offset = 0;
    uint8_t *buf;
    guint i;

    *size = 0;
    for (i = 0; i < directory->len; i++) {
        *size += entry_len(g_ptr_array_index(directory, i));
    }

    buf = g_malloc0(*size);
    for (i = 0; i < directory->len; i++) {
        const Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);
        StoredEntry stored = {
            .table_offset     = cpu_to_be64(entry->table_offset),
            .table_size       = cpu_to_be32(entry->table_size),
            .flags            = cpu_to_be32(entry->flags),
            .type             = TYPE_DIRTY_TRACKING,
            .granularity_bits = entry->granularity_bits,
            .name_size        = cpu_to_be16(strlen(entry->name)),
        };

        memcpy(buf + offset, &stored, sizeof(stored));
        memcpy(buf + offset + sizeof(stored), entry->name,
               strlen(entry->name));
        offset += entry_len(entry);
    }
    return buf;
}

/* Allocates clusters and writes @buf to them; returns their offset or -errno */
static int64_t coroutine_mixed_fn GRAPH_RDLOCK
write_new(BlockDriverState *bs, const void *buf, uint64_t size)
{
    int64_t offset = qcow2_alloc_clusters(bs, size);
    int ret;

    if (offset < 0) {
        return offset;
    }
    ret = qcow2_pre_write_overlap_check(bs, 0, offset, size, false);
    if (ret == 0) {
        ret = bdrv_pwrite(bs->file, offset, size, buf, 0);
    }
    if (ret < 0) {
        qcow2_free_clusters(bs, offset, size, QCOW2_DISCARD_OTHER);
        return ret;
    }
    return offset;
}

int coroutine_mixed_fn
qcow2_shell_directory_write(BlockDriverState *bs, const GPtrArray *directory,
                            uint64_t *offset, uint64_t *size, uint32_t *crc)
{
    g_autofree uint8_t *buf = serialize(directory, size);
    int64_t ret;

    if (directory->len > QCOW2_MAX_BITMAPS ||
        *size > QCOW2_MAX_BITMAP_DIRECTORY_SIZE) {
        return -EFBIG;
    }
    ret = write_new(bs, buf, *size);
    if (ret < 0) {
        return ret;
    }
    *offset = ret;
    *crc = crc32(0, buf, *size);
    return 0;
}

int coroutine_mixed_fn
qcow2_shell_directory_crc(BlockDriverState *bs, uint32_t *crc)
{
    BDRVQcow2State *s = bs->opaque;
    g_autofree uint8_t *buf = read_bytes(bs, NULL);

    if (!buf) {
        return -EIO;
    }
    *crc = crc32(0, buf, s->bitmap_directory_size);
    return 0;
}

int coroutine_mixed_fn qcow2_shell_directory_mark(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    g_autoptr(GPtrArray) directory = qcow2_shell_directory_read(bs, NULL);
    g_autofree uint8_t *buf = NULL;
    bool marked = true;
    uint64_t size;
    guint i;
    int ret;

    if (!directory) {
        return -EIO;
    }
    for (i = 0; i < directory->len; i++) {
        Qcow2ShellEntry *entry = g_ptr_array_index(directory, i);

        marked &= entry->flags & QCOW2_SHELL_BITMAP_IN_USE;
        entry->flags |= QCOW2_SHELL_BITMAP_IN_USE;
    }
    if (marked) {
        /* Who has marked them may not have known that it succeeded */
        return directory->len ? bdrv_flush(bs->file->bs) : 0;
    }

    buf = serialize(directory, &size);
    assert(size == s->bitmap_directory_size);
    ret = qcow2_pre_write_overlap_check(bs, QCOW2_OL_BITMAP_DIRECTORY,
                                        s->bitmap_directory_offset, size,
                                        false);
    if (ret == 0) {
        ret = bdrv_pwrite(bs->file, s->bitmap_directory_offset, size, buf, 0);
    }
    return ret < 0 ? ret : bdrv_flush(bs->file->bs);
}

/* Tables */

static bool check_table_entry(BDRVQcow2State *s, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_SHELL_TABLE_OFFSET_MASK;

    return !(entry & TABLE_RESERVED_MASK) && !offset_into_cluster(s, offset) &&
           !(offset && (entry & QCOW2_SHELL_TABLE_ALL_ONES));
}

int coroutine_mixed_fn
qcow2_shell_table_read(BlockDriverState *bs, const Qcow2ShellEntry *entry,
                       uint64_t **table)
{
    BDRVQcow2State *s = bs->opaque;
    uint64_t size = entry->table_size * sizeof(uint64_t);
    int64_t length = bdrv_getlength(bs->file->bs);
    g_autofree uint64_t *buf = NULL;
    uint32_t i;
    int ret;

    if (length < 0) {
        return length;
    }
    /* Before memory is allocated for what somebody wrote into an image */
    if (entry->table_offset > length ||
        size > ROUND_UP(length, BDRV_SECTOR_SIZE) - entry->table_offset) {
        return -EINVAL;
    }

    buf = g_try_malloc(size);
    if (!buf) {
        return -ENOMEM;
    }
    ret = bdrv_pread(bs->file, entry->table_offset, size, buf, 0);
    if (ret < 0) {
        return ret;
    }
    for (i = 0; i < entry->table_size; i++) {
        buf[i] = be64_to_cpu(buf[i]);
        if (!check_table_entry(s, buf[i])) {
            return -EINVAL;
        }
    }
    *table = g_steal_pointer(&buf);
    return 0;
}

int coroutine_mixed_fn
qcow2_shell_table_write(BlockDriverState *bs, Qcow2ShellEntry *entry,
                        uint64_t *table, uint32_t table_size)
{
    int64_t offset;
    uint32_t i;

    for (i = 0; i < table_size; i++) {
        table[i] = cpu_to_be64(table[i]);
    }
    offset = write_new(bs, table, table_size * sizeof(uint64_t));
    if (offset < 0) {
        for (i = 0; i < table_size; i++) {
            table[i] = be64_to_cpu(table[i]);
        }
        return offset;
    }
    entry->table_offset = offset;
    entry->table_size = table_size;
    return 0;
}

void qcow2_shell_table_free_data(BlockDriverState *bs, const uint64_t *table,
                                 uint32_t table_size)
{
    BDRVQcow2State *s = bs->opaque;
    uint32_t i;

    for (i = 0; i < table_size; i++) {
        uint64_t offset = table[i] & QCOW2_SHELL_TABLE_OFFSET_MASK;

        if (offset) {
            qcow2_free_clusters(bs, offset, s->cluster_size,
                                QCOW2_DISCARD_ALWAYS);
        }
    }
}

void coroutine_mixed_fn
qcow2_shell_entry_free_clusters(BlockDriverState *bs,
                                const Qcow2ShellEntry *entry)
{
    g_autofree uint64_t *table = NULL;

    if (qcow2_shell_table_read(bs, entry, &table) == 0) {
        qcow2_shell_table_free_data(bs, table, entry->table_size);
        qcow2_free_clusters(bs, entry->table_offset,
                            entry->table_size * sizeof(uint64_t),
                            QCOW2_DISCARD_OTHER);
    }
}
