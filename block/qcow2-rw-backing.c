/*
 * qcow2 RW backing: the driver of a shell
 *
 * Opens the RW backing that a qcow2 header points to and forwards all guest
 * I/O to it.  What a shell does with its metadata, bitmaps above all, it
 * shares with plain qcow2; what it cannot do (backing files, internal
 * snapshots, VM state, compression) is absent from its driver table, so that
 * the generic block layer refuses it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/module.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "qobject/qdict.h"
#include "qcow2.h"
#include "qcow2-rw-backing.h"

/* Magic number of the feature name table, which qcow2.c keeps to itself */
#define QCOW2_EXT_MAGIC_FEATURE_NAMES 0x6803f857

/* Features that make sense for an image without data clusters */
#define QCOW2_RW_BACKING_INCOMPAT_MASK (QCOW2_INCOMPAT_DIRTY | \
                                        QCOW2_INCOMPAT_CORRUPT | \
                                        QCOW2_INCOMPAT_RW_BACKING)

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

static inline BdrvChild *rw_backing_child(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    return s->rw_backing->child;
}

/* Header */

int qcow2_rw_backing_read_header(BlockDriverState *bs, QCowHeader *header,
                                 Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const char *surplus = NULL;
    uint64_t features;

    if (!(s->incompatible_features & QCOW2_INCOMPAT_RW_BACKING)) {
        return 0;
    }

    features = s->incompatible_features & ~QCOW2_RW_BACKING_INCOMPAT_MASK;
    if (features) {
        error_setg(errp, "Incompatible features 0x%" PRIx64 " cannot be "
                   "combined with an RW backing", features);
        return -EINVAL;
    }

    if (header->backing_file_offset) {
        surplus = "backing file";
    } else if (header->crypt_method) {
        surplus = "encryption";
    } else if (header->l1_size || header->l1_table_offset) {
        surplus = "L1 table";
    } else if (header->nb_snapshots) {
        surplus = "internal snapshots";
    }
    if (surplus) {
        error_setg(errp, "Image with an RW backing must not have: %s",
                   surplus);
        return -EINVAL;
    }

    if (header->size > BDRV_MAX_LENGTH ||
        !QEMU_IS_ALIGNED(header->size, BDRV_SECTOR_SIZE)) {
        error_setg(errp, "Invalid size of the RW backing: %" PRIu64,
                   header->size);
        return -EINVAL;
    }

    s->rw_backing = g_new0(Qcow2RwBacking, 1);
    s->rw_backing->stored_size = header->size;
    header->size = 0;
    return 0;
}

int coroutine_fn
qcow2_rw_backing_read_extension(BlockDriverState *bs, uint32_t magic,
                                uint64_t offset, uint32_t len, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    bool feature = s->incompatible_features & QCOW2_INCOMPAT_RW_BACKING;
    g_autofree uint8_t *buf = NULL;
    int ret;

    if (magic == QCOW2_EXT_MAGIC_RW_BACKING_GUARD) {
        if (s->rw_backing) {
            s->rw_backing->header_stale = true;
        }
        return 0;
    }
    if (!qcow2_rw_backing_check_feature(feature, true, errp)) {
        return -EINVAL;
    }
    if (!s->rw_backing) {
        /* Image has unknown features too, only their names are wanted */
        return 0;
    }
    if (s->rw_backing->pointer.format) {
        error_setg(errp, "Duplicate RW backing extension");
        return -EINVAL;
    }

    buf = g_malloc(len);
    ret = bdrv_co_pread(bs->file, offset, len, buf, 0);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read RW backing extension");
        return ret;
    }
    if (!qcow2_rw_backing_pointer_parse(&s->rw_backing->pointer, buf, len,
                                        errp)) {
        return -EINVAL;
    }
    return 0;
}

/* Returns the number of bytes written to @buf, or -ENOSPC */
static ssize_t write_extension(char *buf, size_t buflen, uint32_t magic,
                               const void *data, size_t len)
{
    size_t padded_len = ROUND_UP(len, 8);

    if (buflen < 8 || buflen - 8 < padded_len) {
        return -ENOSPC;
    }

    stl_be_p(buf, magic);
    stl_be_p(buf + 4, len);
    memcpy(buf + 8, data, len);
    memset(buf + 8 + len, 0, padded_len - len);
    return 8 + padded_len;
}

/*
 * The feature name table of a shell has the one name that programs need which
 * refuse it.  It is there whatever the cluster size, unlike that of other
 * images, which leave it out where space is scarce.
 */
static ssize_t write_feature_name(char *buf, size_t buflen)
{
    static const Qcow2Feature feature = {
        .type = QCOW2_FEAT_TYPE_INCOMPATIBLE,
        .bit  = QCOW2_INCOMPAT_RW_BACKING_BITNR,
        .name = QCOW2_RW_BACKING_FEATURE_NAME,
    };

    return write_extension(buf, buflen, QCOW2_EXT_MAGIC_FEATURE_NAMES,
                           &feature, sizeof(feature));
}

ssize_t qcow2_rw_backing_put_extensions(const Qcow2RwBackingPointer *ptr,
                                        char *buf, size_t buflen)
{
    g_autofree uint8_t *data = NULL;
    ssize_t name_len, ret;
    size_t len;

    name_len = write_feature_name(buf, buflen);
    if (name_len < 0) {
        return name_len;
    }

    data = qcow2_rw_backing_pointer_serialize(ptr, &len, &error_abort);
    ret = write_extension(buf + name_len, buflen - name_len,
                          QCOW2_EXT_MAGIC_RW_BACKING, data, len);
    return ret < 0 ? ret : name_len + ret;
}

ssize_t qcow2_rw_backing_write_extensions(BlockDriverState *bs, char *buf,
                                          size_t buflen)
{
    BDRVQcow2State *s = bs->opaque;

    if (!s->rw_backing) {
        return 0;
    }

    /*
     * The header with the new size is on its way.  What still has to be done
     * for stale bitmaps is protected by the autoclear bit, see
     * update_ext_header_and_dir_in_place().
     */
    s->rw_backing->header_stale = false;
    s->rw_backing->bitmaps_stale = false;
    return qcow2_rw_backing_put_extensions(&s->rw_backing->pointer, buf,
                                           buflen);
}

bool qcow2_rw_backing_bitmaps_stale(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    return s->rw_backing && s->rw_backing->bitmaps_stale;
}

void qcow2_rw_backing_free(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing) {
        qcow2_rw_backing_pointer_destroy(&s->rw_backing->pointer);
        g_clear_pointer(&s->rw_backing, g_free);
    }
}

ImageInfoSpecificQCow2RwBacking *qcow2_rw_backing_get_info(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    ImageInfoSpecificQCow2RwBacking *info;

    if (!s->rw_backing) {
        return NULL;
    }

    info = g_new(ImageInfoSpecificQCow2RwBacking, 1);
    *info = (ImageInfoSpecificQCow2RwBacking) {
        .format      = g_strdup(s->rw_backing->pointer.format),
        .filename    = g_strdup(s->rw_backing->pointer.filename),
        .name_stored = s->rw_backing->pointer.filename != NULL,
    };
    return info;
}

/* Open */

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
    if (!s->nb_bitmaps) {
        return 0;
    }

    warn_report("Persistent dirty bitmaps of '%s' are out of date: %" PRIu32,
                bs->filename, s->nb_bitmaps);
    if (bdrv_is_writable(bs)) {
        s->rw_backing->bitmaps_stale = true;
    } else {
        /* Since nothing can be written, nobody must see them */
        s->nb_bitmaps = 0;
        s->bitmap_directory_offset = 0;
        s->bitmap_directory_size = 0;
        s->autoclear_features &= ~QCOW2_AUTOCLEAR_BITMAPS;
    }
    return 0;
}

/* Has to be repeated whenever the RW backing is replaced */
static void GRAPH_RDLOCK set_supported_flags(BlockDriverState *bs)
{
    BlockDriverState *child_bs = rw_backing_child(bs)->bs;

    bs->supported_write_flags = BDRV_REQ_WRITE_UNCHANGED |
        BDRV_REQ_REGISTERED_BUF |
        (BDRV_REQ_FUA & child_bs->supported_write_flags);
    bs->supported_zero_flags = BDRV_REQ_WRITE_UNCHANGED |
        ((BDRV_REQ_FUA | BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK) &
         child_bs->supported_zero_flags);
    bs->supported_truncate_flags = BDRV_REQ_ZERO_WRITE &
        child_bs->supported_truncate_flags;
}

int coroutine_fn
qcow2_rw_backing_open(BlockDriverState *bs, QDict *options, int flags,
                      bool open_child, bool *update_header, Error **errp)
{
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
        return -EINVAL;
    }

    if (flags & (BDRV_O_NO_IO | BDRV_O_CHECK)) {
        /* The user only inspects the shell, which may not be trustworthy */
        qdict_extract_subqdict(options, NULL, "rw-backing.");
        qdict_del(options, "rw-backing");
        bs->total_sectors = s->rw_backing->stored_size / BDRV_SECTOR_SIZE;
        bs->drv = &bdrv_qcow2_rw_backing;
        return 0;
    }

    /* From here on, permissions and limits are those of a shell */
    bs->drv = &bdrv_qcow2_rw_backing;

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

    bs->file->role &= ~BDRV_CHILD_DATA;
    if (open_child) {
        /* Must succeed because we only give up permissions */
        bdrv_child_refresh_perms(bs, bs->file, &error_abort);
    }

    ret = take_over_size(bs, errp);
    if (ret < 0) {
        return ret;
    }
    *update_header |= s->rw_backing->header_stale;
    return 0;
}

/* What could not be written while the image was read-only */
static void GRAPH_UNLOCKED
qcow2_rw_backing_reopen_commit_post(BDRVReopenState *state)
{
    BlockDriverState *bs = state->bs;
    BDRVQcow2State *s = bs->opaque;
    int ret;

    bdrv_qcow2.bdrv_reopen_commit_post(state);

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    if (s->rw_backing->header_stale && bdrv_is_writable(bs)) {
        ret = qcow2_update_header(bs);
        if (ret < 0) {
            warn_report("Could not update the header of '%s': %s",
                        bs->filename, strerror(-ret));
        }
    }
}

static void coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_invalidate_cache(BlockDriverState *bs, Error **errp)
{
    bdrv_qcow2.bdrv_co_invalidate_cache(bs, errp);

    /* On failure, there is no driver any more */
    if (bs->drv == &bdrv_qcow2_rw_backing && rw_backing_child(bs)) {
        set_supported_flags(bs);
    }
}

/* I/O; debug events go to bs->file, where blkdebug is with any qcow2 image */

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_preadv_part(BlockDriverState *bs, int64_t offset,
                                int64_t bytes, QEMUIOVector *qiov,
                                size_t qiov_offset, BdrvRequestFlags flags)
{
    BLKDBG_CO_EVENT(bs->file, BLKDBG_READ_AIO);
    return bdrv_co_preadv_part(rw_backing_child(bs), offset, bytes, qiov,
                               qiov_offset, flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pwritev_part(BlockDriverState *bs, int64_t offset,
                                 int64_t bytes, QEMUIOVector *qiov,
                                 size_t qiov_offset, BdrvRequestFlags flags)
{
    BLKDBG_CO_EVENT(bs->file, BLKDBG_WRITE_AIO);
    return bdrv_co_pwritev_part(rw_backing_child(bs), offset, bytes, qiov,
                                qiov_offset, flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pwrite_zeroes(BlockDriverState *bs, int64_t offset,
                                  int64_t bytes, BdrvRequestFlags flags)
{
    return bdrv_co_pwrite_zeroes(rw_backing_child(bs), offset, bytes, flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_pdiscard(BlockDriverState *bs, int64_t offset,
                             int64_t bytes)
{
    return bdrv_co_pdiscard(rw_backing_child(bs), offset, bytes);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_copy_range_from(BlockDriverState *bs,
                                    BdrvChild *src, int64_t src_offset,
                                    BdrvChild *dst, int64_t dst_offset,
                                    int64_t bytes, BdrvRequestFlags read_flags,
                                    BdrvRequestFlags write_flags)
{
    return bdrv_co_copy_range_from(rw_backing_child(bs), src_offset,
                                   dst, dst_offset, bytes,
                                   read_flags, write_flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_copy_range_to(BlockDriverState *bs,
                                  BdrvChild *src, int64_t src_offset,
                                  BdrvChild *dst, int64_t dst_offset,
                                  int64_t bytes, BdrvRequestFlags read_flags,
                                  BdrvRequestFlags write_flags)
{
    return bdrv_co_copy_range_to(src, src_offset,
                                 rw_backing_child(bs), dst_offset, bytes,
                                 read_flags, write_flags);
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_block_status(BlockDriverState *bs, bool want_zero,
                                 int64_t offset, int64_t bytes, int64_t *pnum,
                                 int64_t *map, BlockDriverState **file)
{
    BlockDriverState *child_bs = rw_backing_child(bs)->bs;
    int ret;

    if (!bdrv_filter_or_cow_bs(child_bs)) {
        *pnum = bytes;
        *map = offset;
        *file = child_bs;
        return BDRV_BLOCK_RAW | BDRV_BLOCK_OFFSET_VALID;
    }

    /*
     * The RW backing has a backing chain of its own.  To the users of the
     * shell, which has none, everything in that chain is data of the shell.
     */
    ret = bdrv_co_block_status_above(child_bs, NULL, offset, bytes, pnum, map,
                                     file);
    if (ret < 0) {
        return ret;
    }
    if (!(ret & BDRV_BLOCK_ZERO)) {
        ret |= BDRV_BLOCK_DATA;
    }
    /* @bytes may have been aligned to beyond the end of the disk */
    *pnum = ROUND_UP(*pnum, bs->bl.request_alignment);
    return ret & (BDRV_BLOCK_DATA | BDRV_BLOCK_ZERO |
                  BDRV_BLOCK_OFFSET_VALID | BDRV_BLOCK_COMPRESSED);
}

static void qcow2_rw_backing_cancel_in_flight(BlockDriverState *bs)
{
    bdrv_cancel_in_flight(rw_backing_child(bs)->bs);
}

/* Size, limits and permissions */

static int64_t coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_getlength(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    if (!rw_backing_child(bs)) {
        return s->rw_backing->stored_size;
    }
    return bdrv_co_getlength(rw_backing_child(bs)->bs);
}

/*
 * Resizes the RW backing; the metadata follows.  A crash in between leaves a
 * header with another size than that of the RW backing, which
 * take_over_size() deals with, and bitmaps that are in use anyway.
 */
static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                             PreallocMode prealloc, BdrvRequestFlags flags,
                             Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    int64_t size;
    int ret;

    if (!QEMU_IS_ALIGNED(offset, BDRV_SECTOR_SIZE)) {
        error_setg(errp, "The new size must be a multiple of %u",
                   (unsigned) BDRV_SECTOR_SIZE);
        return -EINVAL;
    }

    if (!rw_backing_child(bs)) {
        error_setg(errp, "Image '%s' was opened without its RW backing, which "
                   "is needed to resize it", bs->filename);
        return -EINVAL;
    }

    QEMU_LOCK_GUARD(&s->lock);

    if (qcow2_truncate_bitmaps_check(bs, errp)) {
        return -ENOTSUP;
    }
    ret = bdrv_co_truncate(rw_backing_child(bs), offset, exact, prealloc,
                           flags, errp);
    if (ret < 0) {
        return ret;
    }

    /* A device may be larger than asked for */
    size = bdrv_co_getlength(rw_backing_child(bs)->bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the new size of the RW "
                         "backing of '%s'", bs->filename);
        return size;
    }
    bs->total_sectors = size / BDRV_SECTOR_SIZE;
    s->rw_backing->stored_size = size;

    /* The disk has its new size, whether the header knows it yet or not */
    ret = qcow2_update_header(bs);
    if (ret < 0) {
        warn_report("Could not write the new size to the header of '%s': %s",
                    bs->filename, strerror(-ret));
    }
    return 0;
}

static int coroutine_fn GRAPH_RDLOCK
qcow2_rw_backing_co_get_info(BlockDriverState *bs, BlockDriverInfo *bdi)
{
    BDRVQcow2State *s = bs->opaque;
    int ret = 0;

    if (rw_backing_child(bs)) {
        /* Clusters of the shell mean nothing to those who copy its data */
        ret = bdrv_co_get_info(rw_backing_child(bs)->bs, bdi);
        if (ret == -ENOTSUP) {
            ret = 0;
        }
    }
    bdi->vm_state_offset = 0;
    bdi->is_dirty |= s->incompatible_features & QCOW2_INCOMPAT_DIRTY;
    return ret;
}

static void GRAPH_RDLOCK
qcow2_rw_backing_refresh_limits(BlockDriverState *bs, Error **errp)
{
    /* The limits themselves come from the only child with data */
    if (rw_backing_child(bs)) {
        set_supported_flags(bs);
    }
}

static int GRAPH_RDLOCK
qcow2_rw_backing_probe_blocksizes(BlockDriverState *bs, BlockSizes *bsz)
{
    return bdrv_probe_blocksizes(rw_backing_child(bs)->bs, bsz);
}

static int GRAPH_RDLOCK
qcow2_rw_backing_probe_geometry(BlockDriverState *bs, HDGeometry *geo)
{
    return bdrv_probe_geometry(rw_backing_child(bs)->bs, geo);
}

static void qcow2_rw_backing_child_perm(BlockDriverState *bs, BdrvChild *c,
                                        BdrvChildRole role,
                                        BlockReopenQueue *reopen_queue,
                                        uint64_t perm, uint64_t shared,
                                        uint64_t *nperm, uint64_t *nshared)
{
    bdrv_default_perms(bs, c, role, reopen_queue, perm, shared,
                       nperm, nshared);
    if (role & BDRV_CHILD_METADATA) {
        return;
    }

    /*
     * The default for data children provides for copy-on-write and growth,
     * which a shell does not do: ask for what the parents ask for.
     */
    *nperm &= ~(BLK_PERM_WRITE | BLK_PERM_RESIZE);
    *nperm |= perm & (BLK_PERM_WRITE | BLK_PERM_RESIZE);

    /* Dirty bitmaps would miss what others write to the RW backing */
    if (!(bs->open_flags & BDRV_O_INACTIVE)) {
        *nshared &= ~(BLK_PERM_WRITE | BLK_PERM_RESIZE);
    }
}

BlockDriver bdrv_qcow2_rw_backing = {
    .format_name                        = "qcow2",
    .instance_size                      = sizeof(BDRVQcow2State),
    .is_format                          = true,

    .bdrv_child_perm                    = qcow2_rw_backing_child_perm,
    .bdrv_refresh_limits                = qcow2_rw_backing_refresh_limits,
    .bdrv_reopen_commit_post            = qcow2_rw_backing_reopen_commit_post,
    .bdrv_co_invalidate_cache           = qcow2_rw_backing_co_invalidate_cache,
    .bdrv_co_getlength                  = qcow2_rw_backing_co_getlength,
    .bdrv_co_truncate                   = qcow2_rw_backing_co_truncate,
    .bdrv_co_get_info                   = qcow2_rw_backing_co_get_info,
    .bdrv_probe_blocksizes              = qcow2_rw_backing_probe_blocksizes,
    .bdrv_probe_geometry                = qcow2_rw_backing_probe_geometry,

    .bdrv_co_preadv_part                = qcow2_rw_backing_co_preadv_part,
    .bdrv_co_pwritev_part               = qcow2_rw_backing_co_pwritev_part,
    .bdrv_co_pwrite_zeroes              = qcow2_rw_backing_co_pwrite_zeroes,
    .bdrv_co_pdiscard                   = qcow2_rw_backing_co_pdiscard,
    .bdrv_co_copy_range_from            = qcow2_rw_backing_co_copy_range_from,
    .bdrv_co_copy_range_to              = qcow2_rw_backing_co_copy_range_to,
    .bdrv_co_block_status               = qcow2_rw_backing_co_block_status,
    .bdrv_cancel_in_flight              = qcow2_rw_backing_cancel_in_flight,
};

/* What a shell does like any qcow2 image */
static void qcow2_rw_backing_init(void)
{
    BlockDriver *drv = &bdrv_qcow2_rw_backing;

    drv->bdrv_close = bdrv_qcow2.bdrv_close;
    drv->bdrv_inactivate = bdrv_qcow2.bdrv_inactivate;
    drv->bdrv_reopen_prepare = bdrv_qcow2.bdrv_reopen_prepare;
    drv->bdrv_reopen_commit = bdrv_qcow2.bdrv_reopen_commit;
    drv->bdrv_reopen_abort = bdrv_qcow2.bdrv_reopen_abort;
    drv->bdrv_join_options = bdrv_qcow2.bdrv_join_options;
    drv->mutable_opts = bdrv_qcow2.mutable_opts;

    drv->bdrv_co_flush_to_os = bdrv_qcow2.bdrv_co_flush_to_os;
    drv->bdrv_co_check = bdrv_qcow2.bdrv_co_check;
    drv->bdrv_get_specific_info = bdrv_qcow2.bdrv_get_specific_info;
    drv->create_opts = bdrv_qcow2.create_opts;
    drv->bdrv_detach_aio_context = bdrv_qcow2.bdrv_detach_aio_context;
    drv->bdrv_attach_aio_context = bdrv_qcow2.bdrv_attach_aio_context;

    drv->bdrv_supports_persistent_dirty_bitmap =
        bdrv_qcow2.bdrv_supports_persistent_dirty_bitmap;
    drv->bdrv_co_can_store_new_dirty_bitmap =
        bdrv_qcow2.bdrv_co_can_store_new_dirty_bitmap;
    drv->bdrv_co_remove_persistent_dirty_bitmap =
        bdrv_qcow2.bdrv_co_remove_persistent_dirty_bitmap;
}

block_init(qcow2_rw_backing_init);
