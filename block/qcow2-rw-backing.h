/*
 * qcow2 RW backing: the door for QEMU's files
 *
 * A qcow2 image with an RW backing is a shell: it has metadata of its own
 * (persistent dirty bitmaps), while all guest data lives in the RW backing, a
 * child node of any driver.  What QEMU's files call is here; what our files
 * call of each other is in qcow2-rw-backing-int.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_H
#define BLOCK_QCOW2_RW_BACKING_H

#include "block/qcow2-rw-backing-format.h"
#include "qcow2.h"

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

#define BLOCK_OPT_RW_BACKING_LOG    "rw-backing-log"
#define QCOW2_RW_BACKING_LOG_OPT                                    \
    {                                                               \
        .name = BLOCK_OPT_RW_BACKING_LOG,                           \
        .type = QEMU_OPT_BOOL,                                      \
        .help = "Bitmaps survive crashes (default: on)"            \
    }

#define BLOCK_OPT_RW_BACKING_MAP    "rw-backing-map"
#define QCOW2_RW_BACKING_MAP_OPT                                    \
    {                                                               \
        .name = BLOCK_OPT_RW_BACKING_MAP,                           \
        .type = QEMU_OPT_STRING,                                    \
        .help = "Know what reads as zeroes (off, on, scan; "        \
                "default: off)"                                     \
    }

/**
 * qcow2_rw_backing_open:
 * @header: header of the image in host byte order, with the RW backing bit
 * @options: options of the node; those of qcow2 and of a shell are removed
 * @flags: BDRV_O_* flags; with BDRV_O_NO_IO, the RW backing is not opened, with
 *         BDRV_O_CHECK only if the user gives it in @options
 * @open_child: false if the node keeps its children (cache invalidation)
 *
 * Makes @bs a shell: all that is left of opening the image once its header was
 * read, and the driver table.  Children opened here are closed by bdrv_close(),
 * also on failure; the rest is as the caller leaves it.
 *
 * Called with BDRVQcow2State.lock held.  Returns 0, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_open(BlockDriverState *bs, const QCowHeader *header,
                      QDict *options, int flags, bool open_child,
                      Error **errp);

/**
 * qcow2_rw_backing_write_header:
 *
 * Writes the header of a shell, see qcow2_update_header().  A header with a
 * seal that is not there yet, or without one that may be there, is durable when
 * this returns 0.
 *
 * Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_rw_backing_write_header(BlockDriverState *bs);

/**
 * qcow2_rw_backing_outlives_corruption:
 *
 * To be called when metadata was found to be corrupt at run time.  Returns
 * true if the node can go on.
 */
bool qcow2_rw_backing_outlives_corruption(BlockDriverState *bs);

/**
 * qcow2_rw_backing_check_refcounts:
 *
 * Counts the clusters of @bs, if it is a shell, that only a shell has; see
 * qcow2_check_bitmaps_refcounts().  Returns 0, or -errno.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_check_refcounts(BlockDriverState *bs, BdrvCheckResult *res,
                                 void **refcount_table,
                                 int64_t *refcount_table_size);

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
 * @filename: file name of the image to be created
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

/**
 * qcow2_rw_backing_amend_flags:
 * @options: what the user wants to be amended, as on the command line
 *
 * Returns the BDRV_O_* flags needed to open the image: one that is to be
 * pointed to another RW backing is opened without the old one.
 */
int qcow2_rw_backing_amend_flags(const char *options);

#endif
