/*
 * qcow2 RW backing: bitmap directory and bitmap tables of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_DIRECTORY_H
#define BLOCK_QCOW2_RW_BACKING_DIRECTORY_H

#include "block/block_int.h"

/* See "Bitmap directory" in the specification of qcow2 */
#define QCOW2_SHELL_BITMAP_IN_USE       (1U << 0)
#define QCOW2_SHELL_BITMAP_AUTO         (1U << 1)

/* See "Bitmap table" there: entries of the table in host byte order */
#define QCOW2_SHELL_TABLE_OFFSET_MASK   0x00fffffffffffe00ULL
#define QCOW2_SHELL_TABLE_ALL_ONES      1ULL

/* The most that qcow2 stores of a bitmap, in bytes */
#define QCOW2_SHELL_BITMAP_MAX_CONTENT      0x20000000

/* A stored bitmap */
typedef struct Qcow2ShellEntry {
    char *name;
    uint32_t flags;             /* QCOW2_SHELL_BITMAP_* */
    bool loaded;                /* it was there when the image was opened */
    uint8_t granularity_bits;
    uint64_t table_offset;      /* in bs->file */
    uint32_t table_size;        /* number of entries of 8 bytes */

    /*
     * The table in host byte order, and what each of its entries adds to the
     * checksum of bitmaps; both NULL if they are not known
     */
    uint64_t *table;
    uint32_t *sums;

    /* The user has removed it, which the file does not say yet */
    bool removed;
} Qcow2ShellEntry;

/* Is the bitmap of this name the allocation map? */
bool qcow2_shell_is_map(const char *name);

/* GPtrArray of Qcow2ShellEntry, which it frees */
GPtrArray *qcow2_shell_directory_new(void);

/* Adds an entry, whose fields are for the caller to fill in. */
Qcow2ShellEntry *qcow2_shell_directory_add(GPtrArray *directory,
                                           const char *name);

/* Returns the entry of this name, or NULL. */
Qcow2ShellEntry *qcow2_shell_directory_find(GPtrArray *directory,
                                            const char *name);

/**
 * qcow2_shell_directory_read:
 *
 * Returns the directory that the header refers to, empty if there is none, or
 * NULL with @errp set if it breaks a rule of the specification of qcow2.  To be
 * freed with g_ptr_array_unref().
 */
GPtrArray * coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_directory_read(BlockDriverState *bs, Error **errp);

/**
 * qcow2_shell_directory_write:
 * @directory: not empty
 * @offset: set to where it is, in clusters that nothing refers to yet
 * @size: set to its length in bytes
 * @crc: set to the CRC-32 of its bytes
 *
 * Returns 0, or -errno with nothing allocated.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_directory_write(BlockDriverState *bs, const GPtrArray *directory,
                            uint64_t *offset, uint64_t *size, uint32_t *crc);

/* Sets @crc to that of the directory in the file.  Returns 0, or -errno. */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_directory_crc(BlockDriverState *bs, uint32_t *crc);

/**
 * qcow2_shell_directory_mark:
 *
 * Makes the directory say that all of its bitmaps are in use, where it is.
 * Durable on success.  A crash leaves some of them marked, which is safe.
 * Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_directory_mark(BlockDriverState *bs);

/**
 * qcow2_shell_table_read:
 * @table: set to the bitmap table of @entry in host byte order
 *
 * Returns 0, or -errno if it cannot be read, breaks a rule, or is not inside
 * of the file.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_table_read(BlockDriverState *bs, const Qcow2ShellEntry *entry,
                       uint64_t **table);

/**
 * qcow2_shell_table_write:
 * @entry: table_offset and table_size are filled in
 * @table: in host byte order; converted
 * @table_size: number of its entries
 *
 * Writes @table to new clusters.  Returns 0, or -errno with none allocated.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_table_write(BlockDriverState *bs, Qcow2ShellEntry *entry,
                        uint64_t *table, uint32_t table_size);

/* Frees the clusters of the content of a bitmap; @table is as above. */
void GRAPH_RDLOCK
qcow2_shell_table_free_data(BlockDriverState *bs, const uint64_t *table,
                            uint32_t table_size);

/* Frees all clusters of a bitmap, as far as they are known. */
void coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_entry_free_clusters(BlockDriverState *bs,
                                const Qcow2ShellEntry *entry);

#endif
