/*
 * qcow2 RW backing: opening a shell
 *
 * Finds and attaches the RW backing that the header or the user names, takes
 * over its size, and compares it with what is recorded of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-types-block-core.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/qdict.h"
#include "qobject/qdict.h"
#include "qcow2.h"
#include "qcow2-rw-backing.h"

/*
 * The shell whose RW backing is being opened right now by its stored name or
 * by an inline definition, NULL if there is none.  Images are opened in the
 * main thread only.  Stops the recursion where shells name each other.
 */
static BlockDriverState *opening_shell;

BlockDriverState *qcow2_rw_backing_protocol_node(BlockDriverState *bs)
{
    while (bdrv_primary_bs(bs)) {
        bs = bdrv_primary_bs(bs);
    }
    return bs;
}

bool qcow2_rw_backing_contains_shell(BlockDriverState *bs)
{
    BdrvChild *child;

    if (bs->drv == &bdrv_qcow2_rw_backing) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (qcow2_rw_backing_contains_shell(child->bs)) {
            return true;
        }
    }
    return false;
}

/* The RW backing */

static bool has_option(QDict *options, const char *key)
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

const char *qcow2_rw_backing_local_filename(BlockDriverState *bs)
{
    BlockDriverState *file_bs = bdrv_primary_bs(bs) ?: bs;

    bdrv_refresh_filename(bs);
    if (!bs->exact_filename[0] || bs->drv->is_filter ||
        strstart(bs->exact_filename, QCOW2_RW_BACKING_FDSET_PREFIX, NULL) ||
        (strcmp(file_bs->drv->format_name, "file") &&
         strcmp(file_bs->drv->format_name, "host_device"))) {
        return NULL;
    }
    return bs->exact_filename;
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

    file_bs = qcow2_rw_backing_protocol_node(bs->file->bs);
    shell = qcow2_rw_backing_local_filename(file_bs);
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

    *filename = NULL;
    if (qdict_haskey(options, "rw-backing") ||
        qdict_haskey(options, "rw-backing.driver")) {
        return true;
    }

    /* A raw RW backing is opened without a format node: nothing to do there */
    if (!is_raw || has_option(options, "rw-backing.file")) {
        qdict_put_str(options, "rw-backing.driver", ptr->format);
    }
    if (has_option(options, "rw-backing.file") ||
        qdict_haskey(options, "rw-backing.filename")) {
        return true;
    }

    if (!ptr->filename) {
        error_setg(errp, "Image '%s' does not name its RW backing, use the "
                   "option 'rw-backing' to open it", bs->filename);
        return false;
    }
    *filename = stored_filename_resolve(bs, errp);
    return *filename != NULL;
}

static BdrvChild * coroutine_fn GRAPH_RDLOCK
open_child_node(BlockDriverState *bs, QDict *options, Error **errp)
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
                              "the image, or use the option 'rw-backing'.\n");
        }
    }
    return child;
}

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

/* Size and guard */

/* Stored bitmaps are out of date, and will be inconsistent once loaded */
static void distrust_stored_bitmaps(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    s->rw_backing->bitmaps_stale |= s->nb_bitmaps > 0;
}

/*
 * The virtual size is the size of the RW backing.  If that has changed since
 * the header was written, somebody else has written to the disk, and what the
 * bitmaps say about it cannot be trusted.
 */
static int coroutine_fn GRAPH_RDLOCK
take_over_size(BlockDriverState *bs, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t size = bdrv_co_getlength(s->rw_backing->child->bs);

    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of the RW "
                         "backing of '%s'", bs->filename);
        return size;
    }

    /* bdrv_co_getlength() counts whole sectors */
    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    if (size == s->rw_backing->stored_size) {
        return 0;
    }

    warn_report("RW backing of '%s' was resized from %" PRIu64 " to %" PRId64
                " bytes by another program", bs->filename,
                s->rw_backing->stored_size, size);
    s->rw_backing->header_stale = true;
    distrust_stored_bitmaps(bs);
    return 0;
}

/* Begins a message that goes on with the reason */
static const char *guard_complaint(Qcow2RwBackingGuardState state)
{
    return state == QCOW2_RW_BACKING_GUARD_STATE_MODIFIED
        ? "RW backing of '%s' was modified by another program: "
        : "Could not find out whether the RW backing of '%s' was modified: ";
}

/* Consumes @reason */
static void guard_mismatch(BlockDriverState *bs,
                           Qcow2RwBackingGuardState state, Error *reason)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;

    rwb->guard_state = state;
    g_free(rwb->guard_reason);
    rwb->guard_reason = g_strdup(error_get_pretty(reason));
    warn_reportf_err(reason, guard_complaint(state), bs->filename);
    distrust_stored_bitmaps(bs);
}

/*
 * Compares the RW backing with what is recorded of it.  With the node option
 * in its default setting, a difference costs the bitmaps and nothing else.
 */
static int coroutine_fn GRAPH_RDLOCK
check_guard(BlockDriverState *bs, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    Qcow2RwBackingGuardState state;
    Error *local_err = NULL;

    if (rwb->guard.kind == QCOW2_RW_BACKING_GUARD_NONE) {
        /* Nobody knows what has happened since the bitmaps were stored */
        if (rwb->guard_mode != BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF) {
            distrust_stored_bitmaps(bs);
        }
        return 0;
    }
    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF) {
        return 0;
    }

    state = qcow2_rw_backing_guard_compare(&rwb->guard, &rwb->file, rwb->child,
                                           &local_err);
    if (state == QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED) {
        rwb->guard_state = state;
        return 0;
    }
    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_STRICT) {
        error_propagate_prepend(errp, local_err, guard_complaint(state),
                                bs->filename);
        error_append_hint(errp, "With rw-backing-guard=auto, the image opens "
                          "and its bitmaps become inconsistent.\n");
        return -EINVAL;
    }

    guard_mismatch(bs, state, local_err);
    return 0;
}

/* The image was read-only; if it was trusted then, it need not be now */
static void GRAPH_RDLOCK check_guard_again(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    Qcow2RwBackingGuardState state;
    Error *local_err = NULL;
    BdrvDirtyBitmap *bitmap;

    if (rwb->guard_mode == BLOCKDEV_QCOW2_RW_BACKING_GUARD_OFF ||
        rwb->guard_state != QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED ||
        rwb->guard.kind == QCOW2_RW_BACKING_GUARD_NONE) {
        return;
    }
    state = qcow2_rw_backing_guard_compare(&rwb->guard, &rwb->file, rwb->child,
                                           &local_err);
    if (state == QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED) {
        return;
    }

    guard_mismatch(bs, state, local_err);
    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap) &&
            bdrv_dirty_bitmap_readonly(bitmap)) {
            bdrv_dirty_bitmap_set_inconsistent(bitmap);
        }
    }
    if (s->nb_bitmaps) {
        qcow2_rw_backing_report_stale_bitmaps(bs);
    }
}

/*
 * From now on, the image may be written to.  A guard that is still there after
 * a crash must not accuse other programs.
 */
static void drop_guard(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;

    rwb->guard.kind = QCOW2_RW_BACKING_GUARD_NONE;
}

/* Open */

/* What can be said of a shell without looking at its RW backing */
static void init_state(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;

    bs->drv = &bdrv_qcow2_rw_backing;

    rwb->header_read = true;
    rwb->guard_may_miss_writes |= qcow2_rw_backing_guard_may_miss(rwb);
    rwb->damaged |= s->incompatible_features & QCOW2_INCOMPAT_CORRUPT;
    rwb->bitmaps_stale = rwb->damaged && s->nb_bitmaps;

    if (!s->nb_bitmaps && (s->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS)) {
        warn_report("Bitmaps of '%s' are lost: their header extension is "
                    "missing", bs->filename);
        /* Overlap checks would protect a directory that is not there */
        s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
        rwb->header_stale = true;
    }
    if (rwb->guard.kind != QCOW2_RW_BACKING_GUARD_NONE) {
        rwb->guard_state = QCOW2_RW_BACKING_GUARD_STATE_UNCHECKED;
        rwb->checksum_known = true;
        rwb->stored_checksum = rwb->guard.bitmaps_checksum;
    }
}

/* In any format: a guest must not write to the header of its shell */
static bool GRAPH_RDLOCK leads_to_itself(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    BlockDriverState *file_bs = qcow2_rw_backing_protocol_node(bs->file->bs);

    bdrv_refresh_filename(file_bs);
    return qcow2_rw_backing_contains_file(s->rw_backing->child->bs, file_bs);
}

static int coroutine_fn GRAPH_RDLOCK
attach_child(BlockDriverState *bs, QDict *options, bool open_child,
             Error **errp)
{
    BDRVQcow2State *s = bs->opaque;

    if (open_child) {
        s->rw_backing->child = open_child_node(bs, options, errp);
        if (!s->rw_backing->child) {
            return -EINVAL;
        }
    } else {
        s->rw_backing->child = find_child_node(bs);
        assert(s->rw_backing->child);
    }
    if (qcow2_rw_backing_contains_shell(s->rw_backing->child->bs)) {
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
    }
    qcow2_rw_backing_file_find(&s->rw_backing->file, s->rw_backing->child->bs);
    return 0;
}

/* Returns false with @errp set if the option has an invalid value */
static bool take_guard_mode(QDict *options, BlockdevQcow2RwBackingGuard *mode,
                            Error **errp)
{
    ERRP_GUARD();

    *mode = qapi_enum_parse(&BlockdevQcow2RwBackingGuard_lookup,
                            qdict_get_try_str(options, "rw-backing-guard"),
                            BLOCKDEV_QCOW2_RW_BACKING_GUARD_AUTO, errp);
    qdict_del(options, "rw-backing-guard");
    return !*errp;
}

int coroutine_fn
qcow2_rw_backing_open(BlockDriverState *bs, QDict *options, int flags,
                      bool open_child, bool *update_header, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;
    int ret;

    if (!open_child &&
        (bs->drv == &bdrv_qcow2_rw_backing) != (s->rw_backing != NULL)) {
        error_setg(errp, "Image '%s' was replaced by one %s an RW backing",
                   bs->filename, s->rw_backing ? "with" : "without");
        return -EINVAL;
    }
    if (!s->rw_backing) {
        if (has_option(options, "rw-backing")) {
            error_setg(errp, "'rw-backing' can only be set for images with an "
                       "RW backing");
            return -EINVAL;
        }
        return 0;
    }
    if (!qcow2_rw_backing_check_feature(true, s->rw_backing->pointer.format,
                                        errp)) {
        qcow2_rw_backing_hint_new_image(errp);
        return -EINVAL;
    }
    if (!take_guard_mode(options, &s->rw_backing->guard_mode, errp)) {
        return -EINVAL;
    }

    /* From here on, permissions and limits are those of a shell */
    init_state(bs);

    if (flags & BDRV_O_CHECK) {
        /* A repair may have to put new structures where damaged ones are */
        s->overlap_check = 0;
    }

    if ((flags & BDRV_O_NO_IO) ||
        ((flags & BDRV_O_CHECK) && !has_option(options, "rw-backing"))) {
        /* The user only inspects the shell, which may not be trustworthy */
        qdict_extract_subqdict(options, NULL, "rw-backing.");
        qdict_del(options, "rw-backing");
        bs->total_sectors = s->rw_backing->stored_size / BDRV_SECTOR_SIZE;
        *update_header |= s->rw_backing->header_stale;
        return 0;
    }

    ret = attach_child(bs, options, open_child, errp);
    if (ret < 0) {
        return ret;
    }
    ret = take_over_size(bs, errp);
    if (ret < 0) {
        return ret;
    }
    if (!(flags & BDRV_O_INACTIVE)) {
        /* Until then, another process may still be writing */
        ret = check_guard(bs, errp);
        if (ret < 0) {
            return ret;
        }
    }
    if (bdrv_is_writable(bs)) {
        drop_guard(bs);
    }
    *update_header |= s->rw_backing->header_stale;
    return 0;
}

/* Reopen */

bool qcow2_rw_backing_keeps_child(BlockDriverState *bs, BdrvChild *child,
                                  QDict *options)
{
    BDRVQcow2State *s = bs->opaque;

    return bs->drv == &bdrv_qcow2_rw_backing && child == s->rw_backing->child &&
           !has_option(options, "rw-backing");
}

/* The user vouches for another RW backing; all that can be checked is size */
static bool check_new_child(BlockDriverState *bs, BlockDriverState *new_bs,
                            Error **errp)
{
    int64_t old_size = bs->total_sectors * BDRV_SECTOR_SIZE;
    int64_t size;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (!qcow2_rw_backing_check_no_loop(bs->file->bs, bs->filename, new_bs,
                                        bdrv_get_node_name(new_bs), errp)) {
        return false;
    }
    size = bdrv_getlength(new_bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of node '%s'",
                         bdrv_get_node_name(new_bs));
        return false;
    }
    if (size != old_size) {
        error_setg(errp, "Node '%s' has a size of %" PRId64 " bytes, but the "
                   "RW backing of '%s' has %" PRId64,
                   bdrv_get_node_name(new_bs), size, bs->filename, old_size);
        return false;
    }
    return true;
}

/* What is recorded is about the old RW backing */
static void GRAPH_UNLOCKED check_guard_before_leaving(BlockDriverState *bs)
{
    GRAPH_RDLOCK_GUARD_MAINLOOP();
    check_guard_again(bs);
}

/* If the options name another node, makes it the RW backing */
static bool GRAPH_UNLOCKED
replace_child(BDRVReopenState *state, Error **errp)
{
    BDRVQcow2State *s = state->bs->opaque;
    BdrvChild *child = s->rw_backing->child;
    const char *name = qdict_get_try_str(state->options, "rw-backing");
    BlockDriverState *old_bs, *new_bs;

    if (!child || !name || !strcmp(name, bdrv_get_node_name(child->bs))) {
        return true;
    }
    new_bs = bdrv_find_node(name);
    if (!new_bs) {
        error_setg(errp, "Cannot find node '%s' for the RW backing of '%s'",
                   name, state->bs->filename);
        return false;
    }
    if (!check_new_child(state->bs, new_bs, errp)) {
        return false;
    }

    old_bs = child->bs;
    check_guard_before_leaving(state->bs);
    if (bdrv_try_change_aio_context(new_bs, bdrv_get_aio_context(old_bs), NULL,
                                    errp) < 0) {
        return false;
    }
    bdrv_ref(old_bs);
    if (bdrv_replace_child_bs(child, new_bs, errp) < 0) {
        bdrv_unref(old_bs);
        return false;
    }
    s->rw_backing->reopen_old_bs = old_bs;
    return true;
}

/* Other than with qcow2, flushing the node does not write its metadata */
static bool GRAPH_UNLOCKED flush_metadata(BlockDriverState *bs, Error **errp)
{
    int ret;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    ret = qcow2_flush_caches(bs);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write the metadata of '%s'",
                         bs->filename);
    }
    return ret == 0;
}

/*
 * Read-only bitmaps keep the guest from writing.  They are given up if the
 * image could not be told that they are in use, as long as the guard makes
 * sure that they are not trusted later.
 */
static void GRAPH_RDLOCK give_up_read_only_bitmaps(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (!s->rw_backing->guard_may_miss_writes &&
            bdrv_dirty_bitmap_readonly(bitmap) &&
            bdrv_dirty_bitmap_get_persistence(bitmap)) {
            warn_report("Bitmap '%s' in '%s' is inconsistent: it could not be "
                        "marked as in use", bdrv_dirty_bitmap_name(bitmap),
                        bs->filename);
            bdrv_dirty_bitmap_set_inconsistent(bitmap);
            bdrv_dirty_bitmap_set_readonly(bitmap, false);
            s->rw_backing->bitmaps_stale = true;
            s->rw_backing->damaged = true;
            s->rw_backing->header_stale = true;
        }
    }
}

static void GRAPH_UNLOCKED undo_reopen(BDRVReopenState *state)
{
    BlockDriverState *bs = state->bs;
    BDRVQcow2State *s = bs->opaque;
    BlockDriverState *old_bs = g_steal_pointer(&s->rw_backing->reopen_old_bs);
    Error *local_err = NULL;

    if (old_bs) {
        if (bdrv_replace_child_bs(s->rw_backing->child, old_bs,
                                  &local_err) < 0) {
            error_reportf_err(local_err, "Could not go back to node '%s' as "
                              "RW backing of '%s': ",
                              bdrv_get_node_name(old_bs), bs->filename);
            local_err = NULL;
        }
        bdrv_unref(old_bs);
    }

    if ((state->flags & BDRV_O_RDWR) || !bdrv_is_writable(bs)) {
        return;
    }

    /* Preparing to become read-only has made the bitmaps read-only, too */
    GRAPH_RDLOCK_GUARD_MAINLOOP();
    if (s->rw_backing->child) {
        drop_guard(bs);
    }
    if (qcow2_reopen_bitmaps_rw(bs, &local_err) < 0) {
        error_reportf_err(local_err, "Could not use the bitmaps of '%s' any "
                          "longer: ", bs->filename);
        give_up_read_only_bitmaps(bs);
    }
}

int qcow2_rw_backing_reopen_prepare(BDRVReopenState *state,
                                    BlockReopenQueue *queue, Error **errp)
{
    int ret;

    if (!replace_child(state, errp)) {
        return -EINVAL;
    }
    ret = bdrv_qcow2.bdrv_reopen_prepare(state, queue, errp);
    if (ret == 0 && !(state->flags & BDRV_O_RDWR) &&
        !flush_metadata(state->bs, errp)) {
        ret = -EIO;
        bdrv_qcow2.bdrv_reopen_abort(state);
    }
    if (ret < 0) {
        undo_reopen(state);
    }
    return ret;
}

void qcow2_rw_backing_reopen_abort(BDRVReopenState *state)
{
    bdrv_qcow2.bdrv_reopen_abort(state);
    undo_reopen(state);
}

/*
 * The RW backing was replaced while the bitmaps are stored: what was recorded
 * is about the old one.
 */
static void GRAPH_RDLOCK renew_guard(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingGuard *guard = &s->rw_backing->guard;
    uint32_t bitmaps_checksum = guard->bitmaps_checksum;

    if (guard->kind != QCOW2_RW_BACKING_GUARD_NONE) {
        qcow2_rw_backing_guard_take(guard, &s->rw_backing->file,
                                    s->rw_backing->child, NULL);
        guard->bitmaps_checksum = bitmaps_checksum;
    }
}

/* What could not be done while the image was read-only */
void qcow2_rw_backing_reopen_commit_post(BDRVReopenState *state)
{
    BlockDriverState *bs = state->bs;
    BDRVQcow2State *s = bs->opaque;
    int ret;

    if (s->rw_backing->reopen_old_bs) {
        bdrv_unref(g_steal_pointer(&s->rw_backing->reopen_old_bs));
        GRAPH_RDLOCK_GUARD_MAINLOOP();
        renew_guard(bs);
    }
    if (bdrv_is_writable(bs) && s->rw_backing->child) {
        GRAPH_RDLOCK_GUARD_MAINLOOP();
        check_guard_again(bs);
        drop_guard(bs);
    }
    if (!bdrv_is_writable(bs)) {
        return;
    }
    bdrv_qcow2.bdrv_reopen_commit_post(state);

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    give_up_read_only_bitmaps(bs);

    if (s->rw_backing->header_stale) {
        ret = qcow2_update_header(bs);
        if (ret < 0) {
            warn_report("Could not update the header of '%s': %s",
                        bs->filename, strerror(-ret));
        }
    }
}
