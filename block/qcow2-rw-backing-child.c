/*
 * qcow2 RW backing: the child node of a shell
 *
 * Finds and attaches the RW backing that the header or the user names.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "qobject/qdict.h"
#include "qcow2.h"
#include "qcow2-rw-backing-child.h"
#include "qcow2-rw-backing-inspect.h"
#include "qcow2-rw-backing-perm.h"

/*
 * The shell whose RW backing is being opened right now by its stored name or
 * by an inline definition, NULL if there is none.  Images are opened in the
 * main thread only.  Stops the recursion where shells name each other.
 */
static BlockDriverState *opening_shell;

bool qcow2_shell_has_option(QDict *options, const char *key)
{
    g_autofree char *prefix = g_strdup_printf("%s.", key);
    const QDictEntry *e;

    for (e = qdict_first(options); e; e = qdict_next(options, e)) {
        if (!strcmp(qdict_entry_key(e), key) ||
            g_str_has_prefix(qdict_entry_key(e), prefix)) {
            return true;
        }
    }
    return false;
}

bool qcow2_shell_take_alias(QDict *options, Error **errp)
{
    g_autoptr(QDict) sub = NULL;
    QObject *whole = qdict_get(options, "data-file");
    const QDictEntry *e;

    if (!qcow2_shell_has_option(options, "data-file")) {
        return true;
    }
    if (qcow2_shell_has_option(options, "rw-backing")) {
        error_setg(errp, "'rw-backing' and its alias 'data-file' cannot be "
                   "used at the same time");
        return false;
    }
    if (whole) {
        qdict_put_obj(options, "rw-backing", qobject_ref(whole));
        qdict_del(options, "data-file");
    }
    qdict_extract_subqdict(options, &sub, "data-file.");
    for (e = qdict_first(sub); e; e = qdict_next(sub, e)) {
        g_autofree char *key = g_strdup_printf("rw-backing.%s",
                                               qdict_entry_key(e));

        qdict_put_obj(options, key, qobject_ref(qdict_entry_value(e)));
    }
    return true;
}

/*
 * Resolves the stored file name against the directory of the shell.  The
 * result names a local file whatever it looks like: a header must not be able
 * to make QEMU connect anywhere (see "Security considerations" in the
 * specification).
 */
static GRAPH_RDLOCK
char *stored_filename_resolve(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const char *filename = s->rw_backing->pointer.filename;
    g_autofree char *dirname = NULL;
    g_autofree char *full = NULL;
    BlockDriverState *file_bs;
    const char *shell;

    if (g_str_has_prefix(filename, QCOW2_RW_BACKING_FDSET_PREFIX)) {
        error_setg(errp, "RW backing '%s' of '%s' is not a file", filename,
                   bs->filename);
        return NULL;
    }
    if (g_path_is_absolute(filename)) {
        return g_strdup(filename);
    }

    file_bs = qcow2_shell_protocol_node(bs->file->bs);
    shell = qcow2_shell_local_filename(file_bs);
    if (!shell) {
        error_setg(errp, "Cannot resolve the relative name '%s' of the RW "
                   "backing, since '%s' is not a local file", filename,
                   bs->filename);
        return NULL;
    }

    dirname = g_path_get_dirname(shell);
    full = strcmp(dirname, ".") ? g_build_filename(dirname, filename, NULL)
                                : g_strdup(filename);
    if (path_has_protocol(full)) {
        return g_strconcat("./", full, NULL);
    }
    return g_steal_pointer(&full);
}

/*
 * Completes the user's options with what the header says.  A reference or a
 * driver describe a node completely; without them, the header fills in format
 * and file name, so that options like rw-backing.key-secret can be given for
 * a stored name.  The format is never left to probing.
 *
 * Returns false with @errp set on failure.  *filename is what remains to be
 * passed as a file name, or NULL.
 */
static bool GRAPH_RDLOCK
complete_child_options(BlockDriverState *bs, QDict *options, char **filename,
                       Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingPointer *ptr = &s->rw_backing->pointer;
    bool is_raw = !strcmp(ptr->format, "raw");
    const char *shell;

    *filename = NULL;
    if (qdict_haskey(options, "rw-backing") ||
        qdict_haskey(options, "rw-backing.driver")) {
        return true;
    }

    /* A raw RW backing is opened without a format node: nothing to do there */
    if (!is_raw || qcow2_shell_has_option(options, "rw-backing.file")) {
        qdict_put_str(options, "rw-backing.driver", ptr->format);
    }
    if (qcow2_shell_has_option(options, "rw-backing.file") ||
        qdict_haskey(options, "rw-backing.filename")) {
        return true;
    }

    if (!ptr->filename) {
        error_setg(errp, "Image '%s' does not name its RW backing, use the "
                   "option 'rw-backing' to open it", bs->filename);
        return false;
    }
    *filename = stored_filename_resolve(bs, errp);
    if (*filename) {
        shell = qcow2_shell_local_filename(
            qcow2_shell_protocol_node(bs->file->bs));
        if (is_raw && shell &&
            qcow2_rw_backing_is_same_file(shell, *filename)) {
            /* Its locks would be in the way, and not say why */
            error_setg(errp, "RW backing of '%s' is or needs the file of this "
                       "image itself", bs->filename);
            g_clear_pointer(filename, g_free);
        } else if (!qcow2_rw_backing_check_file("", *filename, errp)) {
            g_clear_pointer(filename, g_free);
        }
    }
    return *filename != NULL;
}

static coroutine_fn GRAPH_RDLOCK
BdrvChild *open_child_node(BlockDriverState *bs, QDict *options, Error **errp)
{
    ERRP_GUARD();
    g_autofree char *filename = NULL;
    BdrvChild *child;

    if (opening_shell) {
        error_setg(errp, "RW backing of '%s' leads to '%s', which has an RW "
                   "backing itself", opening_shell->filename, bs->filename);
        return NULL;
    }
    if (!complete_child_options(bs, options, &filename, errp)) {
        return NULL;
    }

    opening_shell = bs;
    bdrv_graph_co_rdunlock();
    child = bdrv_co_open_child(filename, options, "rw-backing", bs,
                               &child_of_bds, BDRV_CHILD_DATA, false, errp);
    bdrv_graph_co_rdlock();
    opening_shell = NULL;

    if (!child) {
        error_prepend(errp, "Could not open the RW backing of '%s': ",
                      bs->filename);
        if (filename && access(filename, F_OK) < 0) {
            error_append_hint(errp, "If it has moved, 'qemu-img amend' tells "
                              "the image, or use the option 'rw-backing'; or "
                              "it is not visible to this process.\n");
        }
    }
    return child;
}

/* The RW backing of a node that was a shell before */
static BdrvChild * GRAPH_RDLOCK find_child_node(BlockDriverState *bs)
{
    BdrvChild *child;

    QLIST_FOREACH(child, &bs->children, next) {
        if (!strcmp(child->name, "rw-backing")) {
            return child;
        }
    }
    return NULL;
}

/* In any format: a guest must not write to the header of its shell */
static bool GRAPH_RDLOCK leads_to_itself(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    BlockDriverState *file_bs = qcow2_shell_protocol_node(bs->file->bs);

    bdrv_refresh_filename(file_bs);
    return qcow2_rw_backing_contains_file(s->rw_backing->child->bs, file_bs);
}

typedef struct Move {
    BlockDriverState *bs;
    AioContext *ctx;
    Coroutine *co;
} Move;

/* Coroutines cannot do that.  If it fails, attaching the child says why */
static void move_image(void *opaque)
{
    Move *move = opaque;

    bdrv_try_change_aio_context(move->bs, move->ctx, NULL, NULL);
    aio_co_wake(move->co);
}

/*
 * Moves the image, which nobody uses yet, to the iothread of the node that is
 * to be its RW backing: that one has users, which may insist on theirs.
 */
static void coroutine_fn GRAPH_RDLOCK
follow_named_node(BlockDriverState *bs, QDict *options)
{
    BDRVQcow2State *s = bs->opaque;
    const char *name = qdict_get_try_str(options, "rw-backing");
    BlockDriverState *child_bs = name ? bdrv_find_node(name) : NULL;
    Move move = {
        .bs = bs,
        .ctx = child_bs ? bdrv_get_aio_context(child_bs) : NULL,
        .co = qemu_coroutine_self(),
    };

    if (move.ctx && move.ctx != bdrv_get_aio_context(bs)) {
        bdrv_graph_co_rdunlock();
        /* What cleans the caches has to end first, which takes the lock */
        qemu_co_mutex_unlock(&s->lock);
        aio_bh_schedule_oneshot(qemu_get_aio_context(), move_image, &move);
        qemu_coroutine_yield();
        qemu_co_mutex_lock(&s->lock);
        bdrv_graph_co_rdlock();
    }
}

/* File names are kept in the main thread */
static int coroutine_fn GRAPH_RDLOCK
attach_child(BlockDriverState *bs, QDict *options, bool open_child,
             Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int ret;

    if (open_child) {
        follow_named_node(bs, options);
        s->rw_backing->child = open_child_node(bs, options, errp);
        if (!s->rw_backing->child) {
            return -EINVAL;
        }
    } else {
        s->rw_backing->child = find_child_node(bs);
        assert(s->rw_backing->child);
    }
    if (qcow2_shell_is_below(s->rw_backing->child->bs)) {
        error_setg(errp, "RW backing of '%s' is or needs an image that has an "
                   "RW backing itself", bs->filename);
        return -EINVAL;
    }

    if (open_child && leads_to_itself(bs)) {
        error_setg(errp, "RW backing of '%s' is or needs the file of this "
                   "image itself", bs->filename);
        return -EINVAL;
    }

    bs->file->role &= ~BDRV_CHILD_DATA;
    if (open_child) {
        /* Must succeed because we only give up permissions */
        bdrv_child_refresh_perms(bs, bs->file, &error_abort);
    } else {
        ret = qcow2_shell_claim_disk(bs, errp);
        if (ret < 0) {
            return ret;
        }
    }
    qcow2_rw_backing_file_find(&s->rw_backing->file, s->rw_backing->child->bs);
    return 0;
}

int coroutine_fn
qcow2_shell_attach_child(BlockDriverState *bs, QDict *options, bool open_child,
                         Error **errp)
{
    AioContext *ctx = qemu_get_current_aio_context();
    int ret;

    aio_co_reschedule_self(qemu_get_aio_context());
    ret = attach_child(bs, options, open_child, errp);
    aio_co_reschedule_self(ctx);
    return ret;
}
