/*
 * qcow2 RW backing: what qcow2.c needs to know of it
 *
 * A qcow2 image with an RW backing is a shell: it has metadata of its own
 * (persistent dirty bitmaps), while all guest data lives in the RW backing, a
 * child node of any driver.  qcow2.c calls the functions below when it reads
 * and writes the header; a node that turns out to be a shell gets a driver
 * table of its own, so that plain qcow2 images never meet this code again.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_H
#define BLOCK_QCOW2_RW_BACKING_H

#include "qcow2.h"
#include "block/qcow2-rw-backing-format.h"
#include "qcow2-rw-backing-guard.h"

#define BLOCK_OPT_RW_BACKING            "rw-backing"
#define BLOCK_OPT_RW_BACKING_FMT        "rw-backing-fmt"

/* Names that QEMU takes for file descriptors which were passed to it */
#define QCOW2_RW_BACKING_FDSET_PREFIX   "/dev/fdset/"

/* Entries of lists of creation and amend options */
#define QCOW2_RW_BACKING_OPT                                        \
    {                                                               \
        .name = BLOCK_OPT_RW_BACKING,                               \
        .type = QEMU_OPT_STRING,                                    \
        .help = "File name of the disk that keeps all data"         \
    }
#define QCOW2_RW_BACKING_FMT_OPT                                    \
    {                                                               \
        .name = BLOCK_OPT_RW_BACKING_FMT,                           \
        .type = QEMU_OPT_STRING,                                    \
        .help = "Image format of that disk (default: raw)"          \
    }

/*
 * State of a shell.  Written under BDRVQcow2State.lock while the image is
 * opened or amended, constant for the I/O path.
 */
typedef struct Qcow2RwBacking {
    /* NULL if the user only inspects the image, see qcow2_rw_backing_open() */
    BdrvChild *child;

    /* While the image is reopened with another child, the one it had */
    BlockDriverState *reopen_old_bs;

    /* As stored in the header, whatever node the user chose at open time */
    Qcow2RwBackingPointer pointer;
    bool pointer_damaged;

    /* Size of the RW backing in bytes as stored in the header */
    uint64_t stored_size;

    /* The local file under the RW backing */
    Qcow2RwBackingFile file;

    /* What goes to the header when it is written next */
    Qcow2RwBackingGuard guard;
    bool guard_found;

    /* When to compare it, what came out, and why */
    BlockdevQcow2RwBackingGuard guard_mode;
    Qcow2RwBackingGuardState guard_state;
    char *guard_reason;

    /* Checksum of all bitmaps as they are being stored or loaded */
    uint32_t bitmaps_checksum;

    /* What it was when the image was opened, if it had a guard */
    uint32_t stored_checksum;
    bool checksum_known;

    /* The header has to be written as soon as the node is writable */
    bool header_stale;

    /*
     * The bitmaps in the image cannot be trusted, but do not say so yet.
     * Until the next header update.
     */
    bool bitmaps_stale;

    /* There may be a bitmap in the image that is not marked as in use */
    bool bitmaps_unused;

    /*
     * If the header cannot be written now, the guard in it may stay, and need
     * not notice what is written to the RW backing.
     */
    bool guard_may_miss_writes;

    /* The header was read, as far as that was possible */
    bool header_read;

    /* Part of the metadata was not usable, no new bitmaps are stored */
    bool damaged;
} Qcow2RwBacking;

/* Driver table of a shell; never registered, see qcow2_rw_backing_open() */
extern BlockDriver bdrv_qcow2_rw_backing;

/**
 * qcow2_rw_backing_read_header:
 * @header: header of the image in host byte order
 *
 * For a shell, checks section "Header fields" of the specification, allocates
 * the shell's state and takes the virtual size out of @header: qcow2 has
 * nothing to map.  Does nothing for other images.
 *
 * Returns 0, or -errno with @errp set.
 */
int qcow2_rw_backing_read_header(BlockDriverState *bs, QCowHeader *header,
                                 Error **errp);

/**
 * qcow2_rw_backing_read_extension:
 * @magic: QCOW2_EXT_MAGIC_RW_BACKING or QCOW2_EXT_MAGIC_RW_BACKING_GUARD
 * @offset: where the data of the extension starts in bs->file
 * @len: its length in bytes
 *
 * Returns 0, or -errno with @errp set if the RW backing extension is
 * malformed, comes twice, or belongs to an image that is not a shell.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_read_extension(BlockDriverState *bs, uint32_t magic,
                                uint64_t offset, uint32_t len, Error **errp);

/* Says how to go on with a disk whose shell does not tell where it is. */
void qcow2_rw_backing_hint_new_image(Error *const *errp);

/**
 * qcow2_rw_backing_put_extensions:
 * @ptr: a valid pointer
 * @buf: where to write the header extensions of a shell
 * @buflen: room left in @buf in bytes
 *
 * Returns the number of bytes written, or -ENOSPC.
 */
ssize_t qcow2_rw_backing_put_extensions(const Qcow2RwBackingPointer *ptr,
                                        char *buf, size_t buflen);

/**
 * qcow2_rw_backing_write_extensions:
 * @buf: where to write the header extensions of @bs
 * @buflen: room left in @buf in bytes
 *
 * Called whenever the header is about to be written, after which nothing in
 * it is stale.  Returns the number of bytes written (0 for an image that is
 * not a shell), or -ENOSPC.
 */
ssize_t qcow2_rw_backing_write_extensions(BlockDriverState *bs, char *buf,
                                          size_t buflen);

/**
 * qcow2_rw_backing_open:
 * @options: options of the node; those for the RW backing are removed
 * @flags: BDRV_O_* flags; with BDRV_O_NO_IO, the RW backing is not opened, with
 *         BDRV_O_CHECK only if the user gives it in @options
 * @open_child: false if the node keeps its children (cache invalidation)
 * @update_header: set to true if the header no longer matches the RW backing
 *
 * Makes @bs a shell: opens the RW backing, takes over its size and replaces
 * the driver table.  Does nothing for other images except for refusing the
 * option.  To be called with the header and all of its extensions read, but
 * before dirty bitmaps are loaded, since these depend on the size.  Children
 * opened here are closed by bdrv_close(), also when opening the image fails
 * later on.
 *
 * Called with BDRVQcow2State.lock held.  Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_open(BlockDriverState *bs, QDict *options, int flags,
                      bool open_child, bool *update_header, Error **errp);

/**
 * qcow2_rw_backing_keeps_child:
 * @child: a child of @bs
 * @options: options that @bs is about to be reopened with
 *
 * Returns true if @child is the RW backing of a shell, and @options say
 * nothing about it: it stays as it is.
 */
bool qcow2_rw_backing_keeps_child(BlockDriverState *bs, BdrvChild *child,
                                  QDict *options);

/* Entries of the driver table that reopen a shell */
int GRAPH_UNLOCKED
qcow2_rw_backing_reopen_prepare(BDRVReopenState *state,
                                BlockReopenQueue *queue, Error **errp);
void GRAPH_UNLOCKED qcow2_rw_backing_reopen_commit_post(BDRVReopenState *state);
void GRAPH_UNLOCKED qcow2_rw_backing_reopen_abort(BDRVReopenState *state);

/**
 * qcow2_rw_backing_co_create:
 *
 * Creates a shell in @create_options->u.qcow2.file for the existing node
 * @create_options->u.qcow2.rw_backing, whose data is neither read nor written.
 * The node's file name is stored if it is a plain local file.
 *
 * Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_UNLOCKED
qcow2_rw_backing_co_create(BlockdevCreateOptions *create_options,
                           Error **errp);

/**
 * qcow2_rw_backing_co_create_opts:
 * @filename: file name of the shell; created, or overwritten if it exists
 * @opts: creation options as given on the command line
 * @qdict: the same with the names they have in QMP; modified
 *
 * Creates a shell for an existing RW backing, or for a new one if there is
 * none of this name.  An existing RW backing is never changed; files created
 * here are deleted again on failure.
 *
 * Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_UNLOCKED
qcow2_rw_backing_co_create_opts(const char *filename, QemuOpts *opts,
                                QDict *qdict, Error **errp);

/**
 * qcow2_rw_backing_measure:
 * @opts: creation options
 * @in_bs: image whose data is to be copied, NULL if there is none
 *
 * Returns how large a new shell will be, to be freed with
 * qapi_free_BlockMeasureInfo(), or NULL with @errp set.
 */
BlockMeasureInfo * GRAPH_RDLOCK
qcow2_rw_backing_measure(QemuOpts *opts, BlockDriverState *in_bs, Error **errp);

/**
 * qcow2_rw_backing_set_create_size:
 * @filename: file name of the shell to be created
 * @opts: creation options
 *
 * If @opts have an RW backing, but no size (that is, UINT64_MAX), gives them
 * the size of the RW backing in bytes.
 *
 * Returns false with @errp set if the RW backing cannot be opened.
 */
bool GRAPH_UNLOCKED
qcow2_rw_backing_set_create_size(const char *filename, QemuOpts *opts,
                                 Error **errp);

/* Returns true if not every write will be noticed with the current guard. */
static inline bool qcow2_rw_backing_guard_may_miss(const Qcow2RwBacking *rwb)
{
    return rwb->guard.kind == QCOW2_RW_BACKING_GUARD_SAMPLES ||
           rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF;
}

/* Bitmaps; all of these do nothing for images that are not shells */

/**
 * qcow2_rw_backing_bitmap_flags:
 * @flags: flags of a bitmap as the bitmap directory has them
 * @in_use: the one that says that the bitmap is not to be trusted
 *
 * Returns the flags to go by.
 */
uint32_t qcow2_rw_backing_bitmap_flags(BlockDriverState *bs, uint32_t flags,
                                       uint32_t in_use);

/**
 * qcow2_rw_backing_must_mark_bitmaps:
 *
 * Returns true if the image has bitmaps that cannot be trusted, but does not
 * say so.  Only known after the bitmap directory was read.
 */
bool qcow2_rw_backing_must_mark_bitmaps(BlockDriverState *bs);

/* Names the bitmaps of a shell that were found to be out of date. */
void qcow2_rw_backing_report_stale_bitmaps(BlockDriverState *bs);

/**
 * qcow2_rw_backing_store_begin:
 *
 * To be called before bitmaps are stored.  Records what the RW backing looks
 * like, to be written with the next header update.  No request may be in
 * flight, nor follow before the image is opened or activated again.
 */
void GRAPH_RDLOCK qcow2_rw_backing_store_begin(BlockDriverState *bs);

/* To be called between storing the last bitmap and the header update. */
void qcow2_rw_backing_store_end(BlockDriverState *bs);

/* To be called before bitmaps are loaded. */
void qcow2_rw_backing_load_begin(BlockDriverState *bs);

/**
 * qcow2_rw_backing_load_end:
 * @loaded: BdrvDirtyBitmap's that were loaded
 *
 * Marks all of @loaded inconsistent if they are not what was stored.  Reports
 * bitmaps that are not usable.
 */
void qcow2_rw_backing_load_end(BlockDriverState *bs, GSList *loaded);

/**
 * qcow2_rw_backing_store_data:
 * @bitmap: has to fit in a bitmap table
 * @table: a bitmap table of zeroes in host byte order; filled in
 *
 * Writes the content of @bitmap to new clusters, and adds it to the checksum
 * (see "Checksum of bitmaps" in the specification).
 *
 * Returns 0, or -errno; what @table refers to then is to be freed by the
 * caller.
 */
int GRAPH_RDLOCK
qcow2_rw_backing_store_data(BlockDriverState *bs, BdrvDirtyBitmap *bitmap,
                            uint64_t *table);

/**
 * qcow2_rw_backing_co_load_data:
 * @table: a valid bitmap table in host byte order
 * @table_size: number of its entries, just enough for @bitmap
 * @bitmap: a bitmap without any bits set; filled in
 *
 * Reads the content of @bitmap, and adds it to the checksum.
 *
 * Returns 0, or -errno; @bitmap is not usable then.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_load_data(BlockDriverState *bs, const uint64_t *table,
                              uint32_t table_size, BdrvDirtyBitmap *bitmap);

/* Adds what the directory says about @bitmap, unless it is inconsistent. */
void qcow2_rw_backing_sum_bitmap(BlockDriverState *bs, BdrvDirtyBitmap *bitmap);

/* Damaged metadata */

/**
 * qcow2_rw_backing_tolerate:
 * @ret: -errno
 * @errp: the error that goes with @ret
 *
 * To be called for an error that must not keep the guest from its disk.
 * Returns 0 with @errp reported and cleared for a shell, @ret otherwise.
 */
int qcow2_rw_backing_tolerate(BlockDriverState *bs, int ret, Error **errp);

/**
 * qcow2_rw_backing_outlives_corruption:
 *
 * To be called when metadata was found to be corrupt at run time.  Returns
 * true if the node can go on.
 */
bool qcow2_rw_backing_outlives_corruption(BlockDriverState *bs);

/**
 * qcow2_rw_backing_distrust_bitmap:
 * @name: name of a bitmap that could not be loaded
 * @errp: why
 *
 * Returns true with @errp reported and cleared if the bitmap is to become
 * inconsistent, false if the image must not be opened.
 */
bool qcow2_rw_backing_distrust_bitmap(BlockDriverState *bs, const char *name,
                                      Error **errp);

/**
 * qcow2_rw_backing_drop_bitmaps:
 * @update_header: set to true if the header has to be written
 * @errp: why bitmaps could not be loaded
 *
 * Returns true with @errp reported and cleared if the image is to be opened
 * without its bitmaps, false if it must not be opened.
 */
bool qcow2_rw_backing_drop_bitmaps(BlockDriverState *bs, bool *update_header,
                                   Error **errp);

/* To be called when storing bitmaps has failed: names those concerned. */
void qcow2_rw_backing_report_lost_bitmaps(BlockDriverState *bs);

/**
 * qcow2_rw_backing_hides_bitmaps:
 * @errp: why the bitmap directory could not be read for a query
 *
 * Returns true with @errp cleared if the query has to do without: it is about
 * a disk that works.
 */
bool qcow2_rw_backing_hides_bitmaps(BlockDriverState *bs, Error **errp);

/**
 * qcow2_rw_backing_header_updated:
 * @ret: result of the header update that ends opening an image
 *
 * Returns 0 if the image is usable, @ret otherwise: bitmaps that are not
 * marked as in use must not miss a write.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_header_updated(BlockDriverState *bs, int ret);

/* Finding and inspecting a disk that the user names */

/*
 * Returns false for names with a protocol prefix, or of file descriptors that
 * were passed to QEMU: these are the user's to give, but must not be stored.
 */
bool qcow2_rw_backing_is_local_path(const char *filename);

/* Returns true if both names are those of the same file or device. */
bool qcow2_rw_backing_is_same_file(const char *filename,
                                   const char *other_filename);

/**
 * qcow2_rw_backing_pointer_from_node:
 * @ptr: what the header can say about the existing node @bs; free with
 *       qcow2_rw_backing_pointer_destroy()
 *
 * A file name is set only if opening it with the format gives the same node
 * again.
 */
void GRAPH_RDLOCK
qcow2_rw_backing_pointer_from_node(BlockDriverState *bs,
                                   Qcow2RwBackingPointer *ptr);

/* Returns true if there is nothing yet at the local path @rw_filename. */
bool qcow2_rw_backing_is_missing(const char *rw_filename);

/**
 * qcow2_rw_backing_resolve:
 * @filename: file name of the shell
 * @rw_filename: what the user calls the RW backing
 *
 * Returns the name under which QEMU finds the RW backing, to be freed with
 * g_free(), or NULL with @errp set.
 */
char *qcow2_rw_backing_resolve(const char *filename, const char *rw_filename,
                               Error **errp);

/**
 * qcow2_rw_backing_inspect_options:
 * @format: format of the RW backing
 * @flags: set to the BDRV_O_* flags to go with the result
 *
 * Returns options for bdrv_open() that open an RW backing without touching
 * its data.
 */
QDict *qcow2_rw_backing_inspect_options(const char *format, int *flags);

/**
 * qcow2_rw_backing_contains_file:
 * @bs: any node
 * @file_bs: a protocol node whose filename is up to date
 *
 * Returns true if @file_bs, or the file that it stands for, is part of the
 * tree below @bs.
 */
bool GRAPH_RDLOCK qcow2_rw_backing_contains_file(BlockDriverState *bs,
                                                 BlockDriverState *file_bs);

/**
 * qcow2_rw_backing_check_no_loop:
 * @file_bs: node of the shell's file, or NULL if there is no such file yet
 * @filename: what the user calls that file
 * @rw_bs: node of the disk that is to be its RW backing
 * @rw_name: what the user calls that disk
 *
 * Returns false with @errp set if @rw_bs is or needs @file_bs or the file that
 * it stands for, or any image with an RW backing.
 */
bool GRAPH_RDLOCK
qcow2_rw_backing_check_no_loop(BlockDriverState *file_bs, const char *filename,
                               BlockDriverState *rw_bs, const char *rw_name,
                               Error **errp);

/* Amending */

/**
 * qcow2_rw_backing_amend_flags:
 * @options: what the user wants to be amended, as on the command line
 *
 * Returns the BDRV_O_* flags needed to open the image: one that is to be
 * pointed to another RW backing is opened without the old one.
 */
int qcow2_rw_backing_amend_flags(const char *options);

/* Frees the state of a shell; the RW backing stays attached. */
void qcow2_rw_backing_free(BlockDriverState *bs);

/* Returns the node at the end of the chain of primary children. */
BlockDriverState * GRAPH_RDLOCK
qcow2_rw_backing_protocol_node(BlockDriverState *bs);

/* Returns true if @bs or any node below it is a shell. */
bool GRAPH_RDLOCK qcow2_rw_backing_contains_shell(BlockDriverState *bs);

/**
 * qcow2_rw_backing_local_filename:
 *
 * Returns the literal path of a node that is a local file or device, or is
 * nothing more than the default view of one in some format.  Returns NULL for
 * all other nodes.  The string belongs to a node.
 */
const char * GRAPH_RDLOCK
qcow2_rw_backing_local_filename(BlockDriverState *bs);

/* Returns what 'qemu-img info' shows of a shell, NULL for other images. */
ImageInfoSpecificQCow2RwBacking *
qcow2_rw_backing_get_info(BlockDriverState *bs);

#endif
