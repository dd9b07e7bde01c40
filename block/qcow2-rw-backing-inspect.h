/*
 * qcow2 RW backing: nodes, and disks that the user names
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_INSPECT_H
#define BLOCK_QCOW2_RW_BACKING_INSPECT_H

#include "qcow2-rw-backing-int.h"

/* Returns the node at the end of the chain of primary children. */
BlockDriverState * GRAPH_RDLOCK
qcow2_shell_protocol_node(BlockDriverState *bs);

/* Returns true if @bs or any node below it is a shell. */
bool GRAPH_RDLOCK qcow2_shell_is_below(BlockDriverState *bs);

/**
 * qcow2_shell_local_filename:
 *
 * Returns the literal path of a node that is a local file or device, or is
 * nothing more than the default view of one in some format.  Returns NULL for
 * all other nodes.  The string belongs to a node.  Main thread only.
 */
const char * GRAPH_RDLOCK qcow2_shell_local_filename(BlockDriverState *bs);

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

/**
 * qcow2_rw_backing_check_file:
 * @filename: local path of the shell, or anything else that QEMU takes for a
 *            file name
 * @rw_filename: the same of its RW backing
 *
 * To be called before @rw_filename is opened: opening a FIFO waits for
 * somebody at its other end, and opening the shell once more fails for its
 * lock, which does not tell that the shell leads to itself.
 *
 * Returns false with @errp set for what can never be an RW backing.  A file
 * that does not exist is none of this function's business.
 */
bool qcow2_rw_backing_check_file(const char *filename, const char *rw_filename,
                                 Error **errp);

#endif
