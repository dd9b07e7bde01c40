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
#include "qcow2-rw-backing-inspect.h"

/* Nodes */

BlockDriverState *qcow2_shell_protocol_node(BlockDriverState *bs)
{
    while (bdrv_primary_bs(bs)) {
        bs = bdrv_primary_bs(bs);
    }
    return bs;
}

bool qcow2_shell_is_below(BlockDriverState *bs)
{
    BdrvChild *child;

    if (qcow2_is_shell(bs)) {
        return true;
    }
    QLIST_FOREACH(child, &bs->children, next) {
        if (qcow2_shell_is_below(child->bs)) {
            return true;
        }
    }
    return false;
}

const char *qcow2_shell_local_filename(BlockDriverState *bs)
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

/* Names */

bool qcow2_rw_backing_is_local_path(const char *filename)
{
    return !path_has_protocol(filename) &&
           !strstart(filename, QCOW2_RW_BACKING_FDSET_PREFIX, NULL);
}

/*
 * Returns the path in a file name that is sure to lead to a local file or
 * device, NULL for all others
 */
static const char *local_path(const char *filename)
{
    if (strstart(filename, "file:", &filename) ||
        strstart(filename, "host_device:", &filename)) {
        return filename;
    }
    return qcow2_rw_backing_is_local_path(filename) ? filename : NULL;
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
    if (!path_is_absolute(rw_filename) && path_has_protocol(filename) &&
        !local_path(filename)) {
        error_setg(errp, "Cannot resolve the relative name '%s' of the RW "
                   "backing, since '%s' is not a local file", rw_filename,
                   filename);
        return NULL;
    }
    return bdrv_get_full_backing_filename_from_filename(filename, rw_filename,
                                                        errp);
}

bool qcow2_rw_backing_check_file(const char *filename, const char *rw_filename,
                                 Error **errp)
{
    const char *path = local_path(rw_filename);
    const char *shell = local_path(filename);
    const char *kind = NULL;
    struct stat st;

    if (!path || stat(path, &st) < 0) {
        return true;
    }

    if (S_ISFIFO(st.st_mode)) {
        kind = "a FIFO";
    } else if (S_ISSOCK(st.st_mode)) {
        kind = "a socket";
    } else if (S_ISDIR(st.st_mode)) {
        kind = "a directory";
    }
    if (kind) {
        error_setg(errp, "RW backing '%s' is %s, not a file or device",
                   rw_filename, kind);
        return false;
    }
    if (shell && qcow2_rw_backing_is_same_file(shell, path)) {
        error_setg(errp, "RW backing '%s' is or needs the file '%s', the "
                   "image that is to point to it", rw_filename, filename);
        return false;
    }
    return true;
}

void qcow2_rw_backing_pointer_from_node(BlockDriverState *bs,
                                        Qcow2RwBackingPointer *ptr)
{
    BlockDriverState *data_bs = bdrv_skip_filters(bs);
    const char *filename = qcow2_shell_local_filename(bs);
    g_autofree char *cwd = g_get_current_dir();

    *ptr = (Qcow2RwBackingPointer) {
        .format = g_strdup(data_bs->drv->protocol_name
                           ? "raw" : data_bs->drv->format_name),
    };
    if (filename) {
        ptr->filename = g_path_is_absolute(filename)
            ? g_strdup(filename) : g_build_filename(cwd, filename, NULL);
    }
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

bool qcow2_rw_backing_is_same_file(const char *filename,
                                   const char *other_filename)
{
    struct stat st, other;

    if (!strcmp(filename, other_filename)) {
        return true;
    }
    if (stat(filename, &st) < 0 || stat(other_filename, &other) < 0) {
        return false;
    }
    /* A device may have several names that are not links to each other */
    if ((S_ISBLK(st.st_mode) && S_ISBLK(other.st_mode)) ||
        (S_ISCHR(st.st_mode) && S_ISCHR(other.st_mode))) {
        return st.st_rdev == other.st_rdev;
    }
    return st.st_dev == other.st_dev && st.st_ino == other.st_ino;
}

/*
 * External data files need a look of their own, for a node that was opened
 * with BDRV_O_NO_IO has no child for its data file.
 */
bool qcow2_rw_backing_contains_file(BlockDriverState *bs,
                                    BlockDriverState *file_bs)
{
    const char *filename = file_bs->exact_filename;
    BdrvChild *child;

    if (bs == file_bs) {
        return true;
    }

    bdrv_refresh_filename(bs);
    if (filename[0] && bs->drv->protocol_name && bs->exact_filename[0] &&
        qcow2_rw_backing_is_same_file(filename, bs->exact_filename)) {
        return true;
    }
    if (filename[0] && bs->drv == &bdrv_qcow2) {
        BDRVQcow2State *s = bs->opaque;

        if (s->image_data_file &&
            qcow2_rw_backing_is_same_file(filename, s->image_data_file)) {
            return true;
        }
    }

    QLIST_FOREACH(child, &bs->children, next) {
        if (qcow2_rw_backing_contains_file(child->bs, file_bs)) {
            return true;
        }
    }
    return false;
}

bool qcow2_rw_backing_check_no_loop(BlockDriverState *file_bs,
                                    const char *filename,
                                    BlockDriverState *rw_bs,
                                    const char *rw_name, Error **errp)
{
    if (file_bs) {
        file_bs = qcow2_shell_protocol_node(file_bs);
        bdrv_refresh_filename(file_bs);
        if (qcow2_rw_backing_contains_file(rw_bs, file_bs)) {
            error_setg(errp, "RW backing '%s' is or needs the file '%s', the "
                       "image that is to point to it", rw_name, filename);
            return false;
        }
    }
    if (qcow2_shell_is_below(rw_bs)) {
        error_setg(errp, "RW backing '%s' is or needs an image that has an RW "
                   "backing itself", rw_name);
        return false;
    }
    return true;
}
