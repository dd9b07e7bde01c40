/*
 * qcow2 RW backing: amending a shell
 *
 * Points a shell to the place that its RW backing has moved to.  The old place
 * may be gone; the new one is opened for its size and nothing else.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qobject/qdict.h"
#include "qcow2.h"
#include "qcow2-rw-backing.h"

int qcow2_rw_backing_amend_flags(const char *options)
{
    static QemuOptsList any_opts = {
        .name = "amend-opts",
        .head = QTAILQ_HEAD_INITIALIZER(any_opts.head),
        .desc = { { /* all names are accepted */ } },
    };
    QemuOpts *opts = qemu_opts_create(&any_opts, NULL, 0, &error_abort);
    int flags = 0;

    /* If the options are malformed, the one who needs them will say so */
    if (qemu_opts_do_parse(opts, options, NULL, NULL) &&
        (qemu_opt_get(opts, BLOCK_OPT_RW_BACKING) ||
         qemu_opt_get(opts, BLOCK_OPT_RW_BACKING_FMT))) {
        flags = BDRV_O_NO_IO;
    }
    qemu_opts_del(opts);
    return flags;
}

/* The disk that @ptr names must be the one that the metadata is about */
static bool GRAPH_RDLOCK
check_new_place(BlockDriverState *bs, const Qcow2RwBackingPointer *ptr,
                const char *name, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    g_autofree char *rw_filename = NULL;
    BlockDriverState *rw_bs;
    QDict *options;
    int64_t size;
    int flags;
    bool ok = false;

    rw_filename = qcow2_rw_backing_resolve(bs->filename, name, errp);
    if (!rw_filename) {
        return false;
    }
    options = qcow2_rw_backing_inspect_options(ptr->format, &flags);
    rw_bs = bdrv_open(rw_filename, NULL, options, flags, errp);
    if (!rw_bs) {
        return false;
    }

    size = bdrv_getlength(rw_bs);
    if (!qcow2_rw_backing_check_no_loop(bs->file->bs, bs->filename, rw_bs,
                                        name, errp)) {
        /* @errp says why */
    } else if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of '%s'",
                         rw_filename);
    } else if (size != s->rw_backing->stored_size) {
        error_setg(errp, "'%s' has a size of %" PRId64 " bytes, but the RW "
                   "backing of '%s' has %" PRIu64, name, size, bs->filename,
                   s->rw_backing->stored_size);
    } else {
        ok = true;
    }
    bdrv_unref(rw_bs);
    return ok;
}

static int GRAPH_RDLOCK
amend_pointer(BlockDriverState *bs, const char *name, const char *format,
              Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingPointer old = s->rw_backing->pointer;
    Qcow2RwBackingPointer new = {
        .format = g_strdup(format ?: old.format),
        .filename = g_strdup(name ?: old.filename),
    };
    int ret = -EINVAL;

    if (new.filename && !check_new_place(bs, &new, new.filename, errp)) {
        goto fail;
    }
    if (new.filename && !qcow2_rw_backing_is_local_path(new.filename)) {
        g_clear_pointer(&new.filename, g_free);
    }
    if (!qcow2_rw_backing_pointer_validate(&new, errp)) {
        goto fail;
    }
    if (!bdrv_find_format(new.format)) {
        error_setg(errp, "Unknown RW backing format '%s'", new.format);
        goto fail;
    }

    s->rw_backing->pointer = new;
    ret = qcow2_update_header(bs);
    if (ret < 0) {
        s->rw_backing->pointer = old;
        if (ret == -ENOSPC) {
            error_setg(errp, "RW backing file name '%s' does not fit into the "
                       "header of '%s'", name, bs->filename);
        } else {
            error_setg_errno(errp, -ret, "Could not update the header of '%s'",
                             bs->filename);
        }
        goto fail;
    }
    qcow2_rw_backing_pointer_destroy(&old);
    return 0;

fail:
    qcow2_rw_backing_pointer_destroy(&new);
    return ret;
}

static int GRAPH_RDLOCK
qcow2_rw_backing_amend_options(BlockDriverState *bs, QemuOpts *opts,
                               BlockDriverAmendStatusCB *status_cb,
                               void *cb_opaque, bool force, Error **errp)
{
    g_autofree char *name = qemu_opt_get_del(opts, BLOCK_OPT_RW_BACKING);
    g_autofree char *format = qemu_opt_get_del(opts, BLOCK_OPT_RW_BACKING_FMT);
    int ret;

    if ((name || format) && qemu_opt_find(opts, BLOCK_OPT_SIZE)) {
        error_setg(errp, "Size and RW backing cannot be amended at the same "
                   "time");
        return -EINVAL;
    }

    /* Everything else first: if it is refused, the pointer stays as it is */
    ret = bdrv_qcow2.bdrv_amend_options(bs, opts, status_cb, cb_opaque, force,
                                        errp);
    if (ret < 0 || (!name && !format)) {
        return ret;
    }
    return amend_pointer(bs, name, format, errp);
}

static QemuOptsList qcow2_rw_backing_amend_opts = {
    .name = "qcow2-rw-backing-amend-opts",
    .head = QTAILQ_HEAD_INITIALIZER(qcow2_rw_backing_amend_opts.head),
    .desc = {
        QCOW2_RW_BACKING_OPT,
        QCOW2_RW_BACKING_FMT_OPT,
        { /* end of list */ }
    }
};

/* A shell knows the options of qcow2, if only to refuse them, and its own */
static void qcow2_rw_backing_amend_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing;

    drv->bdrv_amend_options = qcow2_rw_backing_amend_options;
    drv->amend_opts = qemu_opts_append(NULL, bdrv_qcow2.amend_opts);
    drv->amend_opts = qemu_opts_append(drv->amend_opts,
                                       &qcow2_rw_backing_amend_opts);
}

block_init(qcow2_rw_backing_amend_init);
