/*
 * qcow2 RW backing: looking at a disk before it becomes an RW backing
 *
 * What creating a shell and pointing it elsewhere have in common: finding the
 * disk that the user names, opening it without touching its data, and making
 * sure that it does not lead back to the shell.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "block/block_int.h"
#include "qobject/qdict.h"
#include "qcow2.h"
#include "qcow2-rw-backing.h"

bool qcow2_rw_backing_is_local_path(const char *filename)
{
    return !path_has_protocol(filename) && !strstart(filename, "json:", NULL);
}

bool qcow2_rw_backing_is_missing(const char *rw_filename)
{
    return qcow2_rw_backing_is_local_path(rw_filename) &&
           access(rw_filename, F_OK) < 0 && errno == ENOENT;
}

char *qcow2_rw_backing_resolve(const char *filename, const char *rw_filename,
                               Error **errp)
{
    if (!rw_filename[0]) {
        error_setg(errp, "Expected RW backing file name, got empty string");
        return NULL;
    }
    if (!qcow2_rw_backing_is_local_path(rw_filename)) {
        return g_strdup(rw_filename);
    }
    return bdrv_get_full_backing_filename_from_filename(filename, rw_filename,
                                                        errp);
}

QDict *qcow2_rw_backing_inspect_options(const char *format, int *flags)
{
    QDict *options = qdict_new();

    *flags = BDRV_O_NO_IO;
    if (!strcmp(format, "raw")) {
        *flags |= BDRV_O_PROTOCOL;
    } else {
        qdict_put_str(options, "driver", format);
    }
    return options;
}

static bool GRAPH_RDLOCK contains_shell(BlockDriverState *bs)
{
    BdrvChild *child;

    if (bs->drv == &bdrv_qcow2_rw_backing) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (contains_shell(child->bs)) {
            return true;
        }
    }
    return false;
}

static bool GRAPH_RDLOCK
contains_node(BlockDriverState *bs, BlockDriverState *searched)
{
    BdrvChild *child;

    if (bs == searched) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (contains_node(child->bs, searched)) {
            return true;
        }
    }
    return false;
}

static bool is_file(const char *filename, const struct stat *st)
{
    struct stat other;

    return stat(filename, &other) == 0 && other.st_dev == st->st_dev &&
           other.st_ino == st->st_ino;
}

/*
 * Is one of the nodes below @bs, or @bs itself, the local file @st?  External
 * data files need a look of their own, for a node that was opened with
 * BDRV_O_NO_IO has no child for its data file.
 */
static bool GRAPH_RDLOCK
contains_file(BlockDriverState *bs, const struct stat *st)
{
    BdrvChild *child;

    bdrv_refresh_filename(bs);
    if (bs->drv->protocol_name && bs->exact_filename[0] &&
        is_file(bs->exact_filename, st)) {
        return true;
    }
    if (bs->drv == &bdrv_qcow2) {
        BDRVQcow2State *s = bs->opaque;

        if (s->image_data_file && is_file(s->image_data_file, st)) {
            return true;
        }
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (contains_file(child->bs, st)) {
            return true;
        }
    }
    return false;
}

bool GRAPH_RDLOCK
qcow2_rw_backing_check_no_loop(const char *filename,
                               BlockDriverState *file_bs,
                               BlockDriverState *rw_bs, const char *rw_name,
                               Error **errp)
{
    struct stat st;

    strstart(filename, "file:", &filename);
    if ((file_bs && contains_node(rw_bs, file_bs)) ||
        (stat(filename, &st) == 0 && contains_file(rw_bs, &st))) {
        error_setg(errp, "RW backing '%s' is or needs the file '%s', the "
                   "image that is to point to it", rw_name, filename);
        return false;
    }
    if (contains_shell(rw_bs)) {
        error_setg(errp, "RW backing '%s' is or needs an image that has an RW "
                   "backing itself", rw_name);
        return false;
    }
    return true;
}
