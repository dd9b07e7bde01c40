/*
 * qcow2 RW backing: sealing a shell, and breaking the seal
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_SEAL_H
#define BLOCK_QCOW2_RW_BACKING_SEAL_H

#include "qcow2-rw-backing-int.h"

/**
 * qcow2_shell_enter:
 *
 * Makes the image say that its bitmaps are not to be believed, so that the RW
 * backing may be written to.  Durable on success.
 *
 * Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK qcow2_shell_enter(BlockDriverState *bs);

/**
 * qcow2_shell_begin:
 *
 * Arms the write-intent log if the image keeps one and has bitmaps; otherwise,
 * or if that fails, enters the image.  The node must be quiesced, or known to
 * nobody yet.
 *
 * Returns 0, or -errno.
 */
int coroutine_mixed_fn GRAPH_RDLOCK qcow2_shell_begin(BlockDriverState *bs);

/**
 * qcow2_shell_enter_or_wait:
 *
 * The same for an image that may be on failing storage, so that its guest gets
 * its disk whenever that is possible without a lie.
 *
 * Returns 0, or -EAGAIN if the first write has to try again and will find a
 * way: the bitmaps are not to be used then, so that nothing is lost without a
 * write. Otherwise returns -errno with @errp set: a later reader might believe
 * bitmaps that miss what is written from now on.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_enter_or_wait(BlockDriverState *bs, Error **errp);

/**
 * qcow2_shell_enter_loaded:
 *
 * The same, if the node is writable, right after bitmaps were loaded: those are
 * gone if the first write has to try again.  Returns 0, or -errno with @errp
 * set.
 */
int coroutine_mixed_fn GRAPH_RDLOCK
qcow2_shell_enter_loaded(BlockDriverState *bs, Error **errp);

/**
 * qcow2_shell_leave:
 * @closing: nothing will be written after this, so that as many bitmaps as
 *           possible are stored; otherwise all or none
 * @errp: what went wrong
 *
 * The one way to give the image out of our hands: flushes the RW backing,
 * records what it looks like, stores the bitmaps, and writes a header that says
 * so.  If anything fails, the image does not say so, or it is unknown whether
 * it does; whoever goes on to write has to enter again.  The node must be
 * quiesced.  Does nothing if the node is not writable.
 *
 * Returns 0, or -errno with @errp set.
 */
int GRAPH_RDLOCK qcow2_shell_leave(BlockDriverState *bs, bool closing,
                                   Error **errp);

/**
 * qcow2_shell_open_gate:
 *
 * To be called before a request that writes to the RW backing if the gate does
 * not let it pass: the log has no durable mark for it, or an earlier attempt to
 * leave has failed.
 *
 * Returns 0 if the request may go on, or -errno.
 */
int coroutine_fn GRAPH_RDLOCK qcow2_shell_open_gate(BlockDriverState *bs,
                                                    uint64_t offset,
                                                    uint64_t bytes);

#endif
