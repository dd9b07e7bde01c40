/*
 * qcow2 RW backing: opening a shell
 *
 * What is left of opening a qcow2 image when its header says that it has an RW
 * backing.  Each step is in a file of its own; here is their order.
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
#include "block/qdict.h"
#include "qobject/qdict.h"
#include "qobject/qnum.h"
#include "qcow2.h"
#include "qcow2-rw-backing-bitmaps.h"
#include "qcow2-rw-backing-child.h"
#include "qcow2-rw-backing-header.h"
#include "qcow2-rw-backing-judge.h"
#include "qcow2-rw-backing-seal.h"

/* Time between two checkpoints in seconds, unless the user says otherwise */
#define CHECKPOINT_INTERVAL     60

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

static bool take_checkpoint_interval(QDict *options, uint32_t *interval,
                                     Error **errp)
{
    const char *key = "rw-backing-checkpoint-interval";
    int64_t value = CHECKPOINT_INTERVAL;
    QObject *obj = qdict_get(options, key);
    const char *str = qdict_get_try_str(options, key);

    if ((str && qemu_strtoi64(str, NULL, 10, &value) < 0) ||
        (obj && !str && !qnum_get_try_int(qobject_to(QNum, obj), &value)) ||
        value < 1 || value > UINT32_MAX) {
        error_setg(errp, "Invalid value of '%s': it is a number of seconds, at "
                   "least 1", key);
        return false;
    }
    *interval = value;
    qdict_del(options, key);
    return true;
}

/* Options of qcow2, with defaults for an image without L2 tables */
static int coroutine_fn GRAPH_RDLOCK
take_qcow2_options(BlockDriverState *bs, QDict *options, int flags,
                   Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int ret;

    /* A timer would keep the main loop from its fast path */
    qdict_set_default_str(options, "cache-clean-interval", "0");
    ret = qcow2_update_options(bs, options, flags, errp);
    if (ret < 0) {
        return ret;
    }
    s->flags = flags;
    /* Space reserved for bitmaps stays with the image */
    memset(s->discard_passthrough, 0, sizeof(s->discard_passthrough));
    if (flags & BDRV_O_CHECK) {
        /* A repair may have to put new structures where damaged ones are */
        s->overlap_check = 0;
    }
    return 0;
}

/* Metadata that may be damaged, without which there are no new bitmaps */
static void coroutine_fn GRAPH_RDLOCK
read_refcounts(BlockDriverState *bs, int flags)
{
    BDRVQcow2State *s = bs->opaque;
    Error *local_err = NULL;
    int ret = qcow2_refcount_init(bs);

    if (ret < 0) {
        error_setg_errno(&local_err, -ret, "Could not read the refcount table");
        qcow2_shell_report_damage(bs, local_err, "Metadata of '%s' is "
                                  "damaged: ", bs->filename);
        /* Empty: nothing can be allocated until the image is repaired */
        g_free(s->refcount_table);
        s->refcount_table = g_new0(uint64_t, s->refcount_table_size);
    }
    if (s->incompatible_features & QCOW2_INCOMPAT_CORRUPT) {
        if ((flags & BDRV_O_RDWR) && !(flags & BDRV_O_CHECK)) {
            warn_report("Metadata of '%s' is damaged: it is marked as corrupt",
                        bs->filename);
        }
        qcow2_shell(bs)->state.needs_repair = true;
    }
    if (!s->nb_bitmaps && (s->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS)) {
        warn_report("Bitmaps of '%s' are lost: their header extension is "
                    "missing", bs->filename);
        /* Overlap checks would protect a directory that is not there */
        s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
        qcow2_shell(bs)->header_outdated = true;
    }
    if (s->autoclear_features & ~QCOW2_AUTOCLEAR_MASK) {
        /* Whoever writes, and does not know what they mean, clears them */
        s->autoclear_features &= QCOW2_AUTOCLEAR_MASK;
        qcow2_shell(bs)->header_outdated = true;
    }
    if (qcow2_shell(bs)->state.needs_repair) {
        qcow2_shell_distrust(bs);
    }
}

/* The user only looks at the shell, which may not be trustworthy */
static int coroutine_fn GRAPH_RDLOCK
open_inspected(BlockDriverState *bs, QDict *options, int flags)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;

    qdict_extract_subqdict(options, NULL, "rw-backing.");
    qdict_del(options, "rw-backing");
    bs->total_sectors = rwb->stored_size / BDRV_SECTOR_SIZE;

    if (s->nb_bitmaps && rwb->state.headers == QCOW2_SHELL_HEADER_BARE) {
        /* Nobody vouches for them, marked or not */
        qcow2_shell_distrust(bs);
    }
    if (flags & BDRV_O_CHECK) {
        qcow2_shell_verify_bitmaps(bs);
    }
    if (!bdrv_is_writable(bs)) {
        return 0;
    }
    if (rwb->state.verdict == QCOW2_SHELL_DISTRUSTED) {
        /* Before a repair makes it look trustworthy; if it fails, no harm */
        qcow2_shell_enter(bs);
    } else if (rwb->header_outdated) {
        qcow2_update_header(bs);
    }
    return 0;
}

/* After a crash, with lazy refcounts */
static void coroutine_fn GRAPH_RDLOCK repair_dirty(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    BdrvCheckResult result = { };
    Error *local_err = NULL;
    int ret;

    if (!(s->incompatible_features & QCOW2_INCOMPAT_DIRTY) ||
        !bdrv_is_writable(bs)) {
        return;
    }
    /* Nobody else knows the node yet */
    qemu_co_mutex_unlock(&s->lock);
    ret = bdrv_qcow2.bdrv_co_check(bs, &result,
                                   BDRV_FIX_ERRORS | BDRV_FIX_LEAKS);
    qemu_co_mutex_lock(&s->lock);
    if (ret < 0 || result.check_errors) {
        error_setg_errno(&local_err, ret < 0 ? -ret : EIO,
                         "Could not repair dirty image");
        qcow2_shell_report_damage(bs, local_err, "Metadata of '%s' is "
                                  "damaged: ", bs->filename);
    }
}

static int coroutine_fn GRAPH_RDLOCK
open_with_child(BlockDriverState *bs, QDict *options, int flags,
                bool open_child, Error **errp)
{
    int ret = qcow2_shell_attach_child(bs, options, open_child, errp);

    if (ret < 0) {
        return ret;
    }
    if (flags & BDRV_O_INACTIVE) {
        /* Another process may still be writing */
        return qcow2_shell_take_over_size(bs, errp);
    }
    ret = qcow2_shell_judge(bs, errp);
    if (ret < 0) {
        return ret;
    }
    qcow2_shell_load_bitmaps(bs);
    if (!open_child) {
        /* A node that becomes active has bitmaps that may be in doubt */
        return 0;
    }
    if (!(flags & BDRV_O_CHECK)) {
        /* Before anything is allocated */
        repair_dirty(bs);
    }
    return qcow2_shell_enter_loaded(bs, errp);
}

static int coroutine_fn GRAPH_RDLOCK
open_shell(BlockDriverState *bs, const QCowHeader *header, QDict *options,
           int flags, bool open_child, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    bool inspect;
    int ret;

    ret = qcow2_shell_read_header(bs, header, flags, errp);
    if (ret < 0) {
        return ret;
    }
    if (!qcow2_shell_take_alias(options, errp)) {
        return -EINVAL;
    }
    /* These are what a reopen compares with */
    qcow2_shell_take_alias(bs->options, &error_abort);
    qcow2_shell_take_alias(bs->explicit_options, &error_abort);
    inspect = (flags & BDRV_O_NO_IO) ||
        ((flags & BDRV_O_CHECK) &&
         !qcow2_shell_has_option(options, "rw-backing"));
    if (qcow2_shell_has_option(options, "backing")) {
        error_setg(errp, "Image '%s' has an RW backing, and so cannot have a "
                   "backing file (option 'backing')", bs->filename);
        return -EINVAL;
    }
    if (!take_guard_mode(options, &qcow2_shell(bs)->guard_mode, errp)) {
        return -EINVAL;
    }
    if (!take_checkpoint_interval(options,
                                  &qcow2_shell(bs)->checkpoint_interval,
                                  errp)) {
        return -EINVAL;
    }
    bs->total_sectors = 0;
    ret = take_qcow2_options(bs, options, flags, errp);
    if (ret < 0) {
        return ret;
    }
    read_refcounts(bs, flags);

    /* From here on, permissions and limits are those of a shell */
    bs->drv = inspect ? &bdrv_qcow2_rw_backing_inspected
                      : &bdrv_qcow2_rw_backing;
    ret = inspect ? open_inspected(bs, options, flags)
                  : open_with_child(bs, options, flags, open_child, errp);
    if (ret < 0) {
        return ret;
    }
    if (open_child) {
        qcow2_shell_forget_loaded(bs);
    }
    if (!(flags & BDRV_O_CHECK)) {
        repair_dirty(bs);
    }
    qemu_co_queue_init(&s->thread_task_queue);
    return 0;
}

int coroutine_fn
qcow2_rw_backing_open(BlockDriverState *bs, const QCowHeader *header,
                      QDict *options, int flags, bool open_child, Error **errp)
{
    int ret;

    if (!open_child && !qcow2_is_shell(bs)) {
        error_setg(errp, "Image '%s' was replaced by one with an RW backing",
                   bs->filename);
        return -EINVAL;
    }
    ret = open_shell(bs, header, options, flags, open_child, errp);
    if (ret < 0) {
        qcow2_shell_free(bs);
    }
    return ret;
}
