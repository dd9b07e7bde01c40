/*
 * qcow2 RW backing: header of a shell
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_HEADER_H
#define BLOCK_QCOW2_RW_BACKING_HEADER_H

#include "qcow2-rw-backing-int.h"

/**
 * qcow2_shell_read_header:
 * @header: header of the image in host byte order
 * @flags: BDRV_O_* flags
 *
 * Allocates the state of a shell, and fills it and BDRVQcow2State in with what
 * the header says ("Header fields" and the extensions in the specification).
 *
 * Returns 0, also if there is damage that does not concern the pointer to the
 * RW backing, or -errno with @errp set.
 */
int coroutine_fn GRAPH_RDLOCK
qcow2_shell_read_header(BlockDriverState *bs, const QCowHeader *header,
                        int flags, Error **errp);

/**
 * qcow2_shell_put_extensions:
 * @ptr: a valid pointer
 * @buf: where to write the header extensions that every shell has
 * @buflen: room left in @buf in bytes
 *
 * Returns the number of bytes written, or -ENOSPC.
 */
ssize_t qcow2_shell_put_extensions(const Qcow2RwBackingPointer *ptr,
                                   char *buf, size_t buflen);

/*
 * Where programs look that ignore the feature bits, to find no table: aligned,
 * and behind the end of any file, even if bits are masked out or it is taken
 * for a signed number.
 */
#define QCOW2_SHELL_L1_OFFSET   UINT64_C(0x8080000000000000)

/* The number of entries that goes with it, for a disk of @size bytes */
uint32_t qcow2_shell_l1_size(uint64_t size, unsigned int cluster_bits);

/* What a header that is written now is for its readers */
Qcow2ShellHeader qcow2_shell_header(const Qcow2RwBacking *rwb);

/* Says how to go on with a disk whose shell does not tell where it is. */
void qcow2_shell_hint_new_image(Error *const *errp);

/* Frees the state of a shell; the RW backing stays attached. */
void qcow2_shell_free(BlockDriverState *bs);

#endif
