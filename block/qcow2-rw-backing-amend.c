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
#include "qapi/qapi-types-block-core.h"
#include "qapi/util.h"
#include "qemu/lockable.h"
#include "qemu/error-report.h"
#include "qemu/module.h"
#include "qemu/option.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-fill.h"
#include "qcow2-rw-backing-inspect.h"
#include "qcow2-rw-backing-map-option.h"

#define BLOCK_OPT_RW_BACKING_CHANGED    "rw-backing-changed"

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

/*
 * Says what is known of the disk at the new place.  A copy may have another
 * modification time, or be on another kind of storage, but what is known to
 * have another content cannot be the disk that the bitmaps are about.
 *
 * Returns false with @errp set in that case.
 */
static bool GRAPH_RDLOCK
judge_new_place(BlockDriverState *bs, BdrvChild *child,
                const char *rw_filename, Qcow2RwBackingFile *file, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;
    const Qcow2RwBackingGuard *guard = &s->rw_backing->guard;
    Qcow2RwBackingGuardState state;
    Error *why = NULL;
    bool grown;

    state = guard->kind == QCOW2_RW_BACKING_GUARD_FILE
        ? qcow2_rw_backing_guard_compare(guard, file, child, &grown, &why)
        : qcow2_rw_backing_guard_compare_samples(guard, child, &why);
    if (state == QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED ||
        state == QCOW2_RW_BACKING_GUARD_STATE_SAMPLED) {
        error_free(why);
        return true;
    }
    if (state != QCOW2_RW_BACKING_GUARD_STATE_MODIFIED ||
        guard->kind == QCOW2_RW_BACKING_GUARD_FILE) {
        warn_reportf_err(why, "Bitmaps are kept although '%s' does not look "
                         "as the RW backing did when they were stored, and "
                         "its content could not be compared: ", rw_filename);
        return true;
    }
    if (!s->nb_bitmaps) {
        warn_reportf_err(why, "'%s' does not look as the RW backing did: ",
                         rw_filename);
        return true;
    }
    error_propagate_prepend(errp, why, "'%s' is not the RW backing of '%s', "
                            "whose bitmaps would be wrong for it: ",
                            rw_filename, bs->filename);
    error_append_hint(errp, "'qemu-img create -o rw-backing=FILE' makes a new "
                      "image for it.\n");
    return false;
}

/*
 * The user vouches for the disk at the new place, so what it looks like there
 * is what it has to look like when the image is opened again.
 */
static bool GRAPH_RDLOCK
renew_guard(BlockDriverState *bs, BlockDriverState *rw_bs,
            const char *rw_filename, Qcow2RwBackingGuard *guard, Error **errp)
{
    ERRP_GUARD();
    uint32_t bitmaps_checksum = guard->bitmaps_checksum;
    bool shrunk = guard->shrunk;
    Qcow2RwBackingFile file;
    BlockBackend *blk;
    BdrvChild *child;
    bool ok;

    if (guard->kind == QCOW2_RW_BACKING_GUARD_NONE) {
        /* Bitmaps that are not trusted are not to be trusted now */
        return true;
    }
    blk = blk_new_with_bs(rw_bs, BLK_PERM_CONSISTENT_READ, BLK_PERM_ALL, errp);
    if (!blk) {
        return false;
    }
    child = QLIST_FIRST(&rw_bs->parents);
    qcow2_rw_backing_file_init(&file);

    ok = judge_new_place(bs, child, rw_filename, &file, errp);
    if (ok) {
        ok = qcow2_rw_backing_guard_take(guard, &file, child, errp);
        guard->bitmaps_checksum = bitmaps_checksum;
        guard->shrunk = shrunk;
        if (!ok) {
            error_prepend(errp, "Could not record the state of '%s': ",
                          rw_filename);
        }
    }

    qcow2_rw_backing_file_close(&file);
    blk_unref(blk);
    return ok;
}

/*
 * The disk that @ptr names must be the one that the metadata is about.  @guard
 * is brought up to date, unless it is NULL.
 */
static bool GRAPH_RDLOCK
check_new_place(BlockDriverState *bs, const Qcow2RwBackingPointer *ptr,
                const char *name, Qcow2RwBackingGuard *guard, Error **errp)
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
    if (!qcow2_rw_backing_check_file(bs->filename, rw_filename, errp)) {
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
    if (!ok || !guard) {
        return ok;
    }

    /* Now that it is known not to be the image itself: look at the content */
    options = qcow2_rw_backing_inspect_options(ptr->format, &flags);
    rw_bs = bdrv_open(rw_filename, NULL, options, flags & ~BDRV_O_NO_IO, errp);
    if (!rw_bs) {
        return false;
    }
    ok = renew_guard(bs, rw_bs, rw_filename, guard, errp);
    bdrv_unref(rw_bs);
    return ok;
}

/* Takes over @ptr on success */
static int GRAPH_RDLOCK
store_pointer(BlockDriverState *bs, Qcow2RwBackingPointer *ptr, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingPointer old = s->rw_backing->pointer;
    int ret;

    ptr->log = old.log;
    ptr->log_offset = old.log_offset;
    ptr->log_armed = old.log_armed;
    /* Here, the user's word that it is the same disk is not enough */
    ptr->map = ptr->map_unproven = old.map;
    s->rw_backing->pointer = *ptr;
    ret = qcow2_update_header(bs);
    if (ret < 0) {
        s->rw_backing->pointer = old;
        if (ret == -ENOSPC) {
            error_setg(errp, "RW backing file name '%s' does not fit into the "
                       "header of '%s'", ptr->filename ?: "", bs->filename);
        } else {
            error_setg_errno(errp, -ret, "Could not update the header of '%s'",
                             bs->filename);
        }
        return ret;
    }
    qcow2_rw_backing_pointer_destroy(&old);
    *ptr = (Qcow2RwBackingPointer) { };
    return 0;
}

/* An image that is open goes on as it is; the next one to open it sees this */
static int GRAPH_RDLOCK
store_log_option(BlockDriverState *bs, bool log, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    bool old = rwb->pointer.log;
    int ret;

    rwb->pointer.log = log;
    ret = qcow2_update_header(bs);
    if (ret < 0) {
        rwb->pointer.log = old;
        error_setg_errno(errp, -ret, "Could not update the header of '%s'",
                         bs->filename);
    }
    return ret;
}

/*
 * Fills in @ptr and @guard with what the user wants to be stored.  Returns
 * false with @errp set if that is not possible.
 */
static bool GRAPH_RDLOCK
prepare_pointer(BlockDriverState *bs, const char *name, const char *format,
                Qcow2RwBackingPointer *ptr, Qcow2RwBackingGuard *guard,
                Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const Qcow2RwBackingPointer *old = &s->rw_backing->pointer;

    *guard = s->rw_backing->guard;
    *ptr = (Qcow2RwBackingPointer) {
        .format = g_strdup(format ?: old->format),
        .filename = g_strdup(name ?: old->filename),
    };

    if (ptr->filename &&
        !check_new_place(bs, ptr, ptr->filename, name ? guard : NULL, errp)) {
        return false;
    }
    if (ptr->filename && !qcow2_rw_backing_is_local_path(ptr->filename)) {
        g_clear_pointer(&ptr->filename, g_free);
    }
    if (!qcow2_rw_backing_pointer_validate(ptr, errp)) {
        return false;
    }
    if (!bdrv_find_format(ptr->format)) {
        error_setg(errp, "Unknown RW backing format '%s'", ptr->format);
        return false;
    }
    return true;
}

/* The disk belongs to the user, who might not expect amend to cut it */
static bool GRAPH_RDLOCK
check_new_size(BlockDriverState *bs, QemuOpts *opts, Error **errp)
{
    int64_t size = bdrv_getlength(bs);

    if (size >= 0 && qemu_opt_get_size(opts, BLOCK_OPT_SIZE, size) < size) {
        error_setg(errp, "Use 'qemu-img resize --shrink' to make '%s' and its "
                   "RW backing smaller", bs->filename);
        return false;
    }
    return true;
}

/*
 * Where the disk is can be told at any time.  Everything else relies on
 * metadata that must not be damaged.
 */
static bool check_not_damaged(BlockDriverState *bs, QemuOpts *opts,
                              Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const QemuOptDesc *desc;

    for (desc = bdrv_qcow2.amend_opts->desc; desc->name; desc++) {
        if (s->rw_backing->state.needs_repair &&
            qemu_opt_find(opts, desc->name)) {
            error_setg(errp, "Metadata of '%s' is damaged, option '%s' cannot "
                       "be amended", bs->filename, desc->name);
            error_append_hint(errp, "'qemu-img check -r all' repairs it.\n");
            return false;
        }
    }
    return true;
}

static bool parse_map(BlockDriverState *bs, const char *map, int *option,
                      bool moves, Error **errp)
{
    ERRP_GUARD();

    *option = qapi_enum_parse(&BlockdevQcow2RwBackingMap_lookup, map, 0, errp);
    if (*errp) {
        return false;
    }
    if (moves) {
        error_setg(errp, "Place and allocation map of the RW backing cannot be "
                   "amended at the same time");
        return false;
    }
    return true;
}

/* What amend options need to tell their progress */
typedef struct Progress {
    BlockDriverState *bs;
    BlockDriverAmendStatusCB *status_cb;
    void *opaque;
} Progress;

static void scan_progress(void *opaque, uint64_t done, uint64_t total)
{
    Progress *progress = opaque;

    progress->status_cb(progress->bs, done, total, progress->opaque);
}

static int GRAPH_RDLOCK
qcow2_rw_backing_amend_options(BlockDriverState *bs, QemuOpts *opts,
                               BlockDriverAmendStatusCB *status_cb,
                               void *cb_opaque, bool force, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    g_autofree char *name = qemu_opt_get_del(opts, BLOCK_OPT_RW_BACKING);
    g_autofree char *format = qemu_opt_get_del(opts, BLOCK_OPT_RW_BACKING_FMT);
    bool changed = qemu_opt_get_bool_del(opts, BLOCK_OPT_RW_BACKING_CHANGED,
                                         false);
    bool has_log = qemu_opt_find(opts, BLOCK_OPT_RW_BACKING_LOG);
    bool log = qemu_opt_get_bool_del(opts, BLOCK_OPT_RW_BACKING_LOG, true);
    g_autofree char *map = qemu_opt_get_del(opts, BLOCK_OPT_RW_BACKING_MAP);
    int map_option = 0;
    Qcow2RwBackingPointer ptr = { };
    Qcow2RwBackingGuard old_guard = s->rw_backing->guard, guard;
    int ret = -EINVAL;

    if ((name || format) && qemu_opt_find(opts, BLOCK_OPT_SIZE)) {
        error_setg(errp, "Size and RW backing cannot be amended at the same "
                   "time");
        return -EINVAL;
    }
    if ((name || format) && changed) {
        error_setg(errp, "Place and content of the RW backing cannot be "
                   "amended at the same time");
        return -EINVAL;
    }
    if (map && !parse_map(bs, map, &map_option, name || format, errp)) {
        return -EINVAL;
    }
    if (has_log && !log && s->rw_backing->pointer.map &&
        !(map && map_option == BLOCKDEV_QCOW2_RW_BACKING_MAP_OFF)) {
        error_setg(errp, "'%s' keeps an allocation map, which requires the "
                   "write-intent log", bs->filename);
        return -EINVAL;
    }
    if (!check_not_damaged(bs, opts, errp) ||
        !check_new_size(bs, opts, errp)) {
        return -EINVAL;
    }

    /* If anything is refused, nothing is changed */
    if ((name || format) &&
        !prepare_pointer(bs, name, format, &ptr, &guard, errp)) {
        goto out;
    }
    ret = bdrv_qcow2.bdrv_amend_options(bs, opts, status_cb, cb_opaque, force,
                                        errp);
    if (ret == 0 && (name || format)) {
        s->rw_backing->guard = guard;
        ret = store_pointer(bs, &ptr, errp);
        if (ret < 0) {
            s->rw_backing->guard = old_guard;
        }
    }
    if (ret == 0 && map) {
        Progress progress = { bs, status_cb, cb_opaque };

        ret = qcow2_shell_set_map_sync(bs, map_option,
                                       status_cb ? scan_progress : NULL,
                                       &progress, errp);
    }
    if (ret == 0 && has_log) {
        ret = store_log_option(bs, log, errp);
    }
    if (ret == 0 && changed) {
        /* Perhaps unnoticed: the next backup gets everything */
        qcow2_shell_fill_all(bs, true);
    }
out:
    qcow2_rw_backing_pointer_destroy(&ptr);
    return ret;
}

/*
 * The image is in use, and so is its RW backing: all there is to be changed is
 * the name under which it will be found next time.  To be called in the main
 * thread, where file names are kept.
 */
static bool GRAPH_RDLOCK
prepare_name(BlockDriverState *bs, const char *name,
             Qcow2RwBackingPointer *ptr, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    BlockDriverState *rw_bs = s->rw_backing->child->bs;
    g_autofree char *rw_filename = NULL;

    qcow2_rw_backing_pointer_from_node(rw_bs, ptr);
    if (name) {
        rw_filename = qcow2_rw_backing_resolve(bs->filename, name, errp);
        if (!rw_filename) {
            return false;
        }
        if (!ptr->filename || !qcow2_rw_backing_is_local_path(name) ||
            !qcow2_rw_backing_is_same_file(rw_filename, ptr->filename)) {
            error_setg(errp, "'%s' is not the file of node '%s', the RW "
                       "backing of '%s'", name, bdrv_get_node_name(rw_bs),
                       bs->filename);
            return false;
        }
    }
    g_free(ptr->filename);
    ptr->filename = g_strdup(name);
    return qcow2_rw_backing_pointer_validate(ptr, errp);
}

static int coroutine_fn GRAPH_RDLOCK
amend_name(BlockDriverState *bs, const char *name, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    AioContext *ctx = qemu_get_current_aio_context();
    Qcow2RwBackingPointer ptr = { };
    int ret = -EINVAL;
    bool ok;

    aio_co_reschedule_self(qemu_get_aio_context());
    ok = prepare_name(bs, name, &ptr, errp);
    aio_co_reschedule_self(ctx);

    if (ok) {
        QEMU_LOCK_GUARD(&s->lock);
        ret = store_pointer(bs, &ptr, errp);
    }
    qcow2_rw_backing_pointer_destroy(&ptr);
    return ret;
}

/* The image is in use */
static int coroutine_fn GRAPH_RDLOCK
amend_map(BlockDriverState *bs, BlockdevQcow2RwBackingMap option, Error **errp)
{
    AioContext *ctx = qemu_get_current_aio_context();
    int ret;

    aio_co_reschedule_self(qemu_get_aio_context());
    ret = qcow2_shell_set_map(bs, option, NULL, NULL, errp);
    aio_co_reschedule_self(ctx);
    return ret;
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_amend(BlockDriverState *bs, BlockdevAmendOptions *opts,
                          bool force, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    StrOrNull *name = opts->u.qcow2.rw_backing;

    if (opts->u.qcow2.encrypt) {
        error_setg(errp, "Image with an RW backing must not have: encryption");
        return -EINVAL;
    }
    if (opts->u.qcow2.has_rw_backing_map) {
        int ret = amend_map(bs, opts->u.qcow2.rw_backing_map, errp);

        if (ret < 0) {
            return ret;
        }
    }
    if (!name) {
        return 0;
    }
    if (!bdrv_is_writable(bs) || !s->rw_backing->child) {
        error_setg(errp, "Image '%s' is not writable", bs->filename);
        return -EACCES;
    }
    return amend_name(bs, name->type == QTYPE_QNULL ? NULL : name->u.s, errp);
}

static QemuOptsList qcow2_rw_backing_amend_opts = {
    .name = "qcow2-rw-backing-amend-opts",
    .head = QTAILQ_HEAD_INITIALIZER(qcow2_rw_backing_amend_opts.head),
    .desc = {
        QCOW2_RW_BACKING_OPT,
        QCOW2_RW_BACKING_FMT_OPT,
        QCOW2_RW_BACKING_LOG_OPT,
        QCOW2_RW_BACKING_MAP_OPT,
        {
            .name = BLOCK_OPT_RW_BACKING_CHANGED,
            .type = QEMU_OPT_BOOL,
            .help = "That disk was changed: all bitmaps are to be dirty"
        },
        { /* end of list */ }
    }
};

/* A shell knows the options of qcow2, if only to refuse them, and its own */
static void qcow2_rw_backing_amend_init(void)
{
    QemuOptsList *opts = qemu_opts_append(NULL, bdrv_qcow2.amend_opts);

    opts = qemu_opts_append(opts, &qcow2_rw_backing_amend_opts);
    bdrv_qcow2_rw_backing.bdrv_co_amend = qcow2_rw_backing_co_amend;
    bdrv_qcow2_rw_backing.bdrv_amend_options = qcow2_rw_backing_amend_options;
    bdrv_qcow2_rw_backing.amend_opts = opts;
    bdrv_qcow2_rw_backing_inspected.bdrv_amend_options =
        qcow2_rw_backing_amend_options;
    bdrv_qcow2_rw_backing_inspected.amend_opts = opts;
}

block_init(qcow2_rw_backing_amend_init);
