/*
 * qcow2 RW backing: creating a shell
 *
 * Wraps an existing disk, or a new one, in a qcow2 image that has metadata
 * only.  An existing disk is opened for its size and nothing else; everything
 * that can go wrong is checked before the first file is created.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/qobject-input-visitor.h"
#include "qemu/option.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/qdict.h"
#include "qobject/qdict.h"
#include "system/block-backend.h"
#include "qcow2.h"
#include "qcow2-rw-backing-header.h"
#include "qcow2-rw-backing-inspect.h"
#include "qcow2-rw-backing-map-option.h"

/* Options */

/* Completes and checks the options that say how the metadata is laid out */
static bool check_layout_options(BlockdevCreateOptionsQcow2 *opts,
                                 Error **errp)
{
    uint64_t cluster_size = opts->has_cluster_size ? opts->cluster_size
                                                   : DEFAULT_CLUSTER_SIZE;
    uint32_t refcount_bits = opts->has_refcount_bits ? opts->refcount_bits : 16;

    if (!is_power_of_2(cluster_size) ||
        cluster_size < (1 << MIN_CLUSTER_BITS) ||
        cluster_size > (1 << MAX_CLUSTER_BITS)) {
        error_setg(errp, "Cluster size must be a power of two between %d and "
                   "%dk", 1 << MIN_CLUSTER_BITS,
                   1 << (MAX_CLUSTER_BITS - 10));
        return false;
    }
    if (refcount_bits > 64 || !is_power_of_2(refcount_bits)) {
        error_setg(errp, "Refcount width must be a power of two and may not "
                   "exceed 64 bits");
        return false;
    }

    opts->cluster_size = cluster_size;
    opts->refcount_bits = refcount_bits;
    return true;
}

static bool wants_log(const BlockdevCreateOptionsQcow2 *opts)
{
    return !opts->has_rw_backing_log || opts->rw_backing_log;
}

static bool wants_map(const BlockdevCreateOptionsQcow2 *opts)
{
    return opts->has_rw_backing_map &&
           opts->rw_backing_map != BLOCKDEV_QCOW2_RW_BACKING_MAP_OFF;
}

/* Refuses what an image without data of its own cannot have */
static bool check_create_options(BlockdevCreateOptionsQcow2 *opts,
                                 Error **errp)
{
    const char *unsupported = NULL;

    if (opts->has_version && opts->version != BLOCKDEV_QCOW2_VERSION_V3) {
        error_setg(errp, "An RW backing requires compatibility level 1.1 "
                   "(use version=v3 or compat=1.1)");
        return false;
    }

    if (opts->backing_file || opts->has_backing_fmt) {
        unsupported = "a backing file";
    } else if (opts->data_file) {
        unsupported = "an external data file";
    } else if (opts->has_data_file_raw && opts->data_file_raw) {
        unsupported = "data-file-raw";
    } else if (opts->encrypt) {
        unsupported = "encryption";
    } else if (opts->has_extended_l2 && opts->extended_l2) {
        unsupported = "extended L2 entries";
    } else if (opts->has_preallocation &&
               opts->preallocation != PREALLOC_MODE_OFF) {
        unsupported = "preallocation";
    } else if (opts->has_compression_type &&
               opts->compression_type != QCOW2_COMPRESSION_TYPE_ZLIB) {
        unsupported = "a compression type";
    }
    if (unsupported) {
        error_setg(errp, "An RW backing cannot be combined with %s",
                   unsupported);
        return false;
    }
    if (wants_map(opts) && !wants_log(opts)) {
        error_setg(errp, "'" BLOCK_OPT_RW_BACKING_MAP "' requires '"
                   BLOCK_OPT_RW_BACKING_LOG "'");
        return false;
    }
    return check_layout_options(opts, errp);
}

/* The shell */

static bool coroutine_fn GRAPH_UNLOCKED
check_size(BlockdevCreateOptionsQcow2 *opts, BlockDriverState *rw_bs,
           const char *rw_name, Error **errp)
{
    int64_t size;

    bdrv_graph_co_rdlock();
    size = bdrv_co_getlength(rw_bs);
    bdrv_graph_co_rdunlock();

    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of the RW "
                         "backing '%s'", rw_name);
        return false;
    }
    if (size != opts->size) {
        error_setg(errp, "RW backing '%s' has a size of %" PRId64 " bytes, "
                   "which disagrees with the given size of %" PRIu64,
                   rw_name, size, opts->size);
        return false;
    }
    return true;
}

/*
 * Returns the clusters of a new shell: header, refcount table and an empty
 * refcount block.  Returns NULL with @errp set if @ptr cannot be stored.
 */
static char *build_shell(BlockdevCreateOptionsQcow2 *opts,
                         const Qcow2RwBackingPointer *ptr, Error **errp)
{
    size_t cluster_size = opts->cluster_size;
    uint64_t refcount_table_entry = cpu_to_be64(2 * cluster_size);
    uint32_t l1_size = qcow2_shell_l1_size(opts->size, ctz32(cluster_size));
    g_autofree char *buf = NULL;
    QCowHeader *header;

    if (!qcow2_rw_backing_pointer_validate(ptr, errp)) {
        return NULL;
    }

    buf = g_malloc0(3 * cluster_size);
    header = (QCowHeader *)buf;
    *header = (QCowHeader) {
        .magic                      = cpu_to_be32(QCOW_MAGIC),
        .version                    = cpu_to_be32(3),
        .cluster_bits               = cpu_to_be32(ctz32(cluster_size)),
        .size                       = cpu_to_be64(opts->size),
        .l1_size                    = cpu_to_be32(l1_size),
        .l1_table_offset            = cpu_to_be64(QCOW2_SHELL_L1_OFFSET),
        .refcount_table_offset      = cpu_to_be64(cluster_size),
        .refcount_table_clusters    = cpu_to_be32(1),
        .incompatible_features      = cpu_to_be64(QCOW2_INCOMPAT_RW_BACKING),
        .refcount_order             = cpu_to_be32(ctz32(opts->refcount_bits)),
        .header_length              = cpu_to_be32(sizeof(*header)),
    };
    if (opts->has_lazy_refcounts && opts->lazy_refcounts) {
        header->compatible_features = cpu_to_be64(QCOW2_COMPAT_LAZY_REFCOUNTS);
    }
    if (qcow2_shell_put_extensions(ptr, buf + sizeof(*header),
                                   cluster_size - sizeof(*header)) < 0) {
        error_setg(errp, "RW backing file name '%s' does not fit into the "
                   "header cluster of %zu bytes", ptr->filename ?: "",
                   cluster_size);
        return NULL;
    }
    memcpy(buf + cluster_size, &refcount_table_entry,
           sizeof(refcount_table_entry));

    return g_steal_pointer(&buf);
}

/*
 * Enters the clusters of build_shell() into the refcounts and completes the
 * header.  Opened with BDRV_O_NO_IO, the image does without its RW backing,
 * while its metadata can be written.
 */
static int coroutine_fn GRAPH_UNLOCKED
finish_shell(BlockDriverState *file_bs, size_t cluster_size, Error **errp)
{
    QDict *options = qdict_new();
    BlockDriverState *bs;
    int64_t ret;

    qdict_put_str(options, "driver", "qcow2");
    qdict_put_str(options, "file", file_bs->node_name);
    bs = bdrv_co_open(NULL, NULL, options,
                      BDRV_O_RDWR | BDRV_O_RESIZE | BDRV_O_NO_IO, errp);
    if (!bs) {
        return -EIO;
    }

    bdrv_graph_co_rdlock();
    ret = qcow2_alloc_clusters(bs, 3 * cluster_size);
    assert(ret <= 0);
    if (ret == 0) {
        ret = qcow2_update_header(bs);
    }
    if (ret == 0) {
        ret = bdrv_co_flush(bs);
    }
    bdrv_graph_co_rdunlock();

    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write the image metadata");
    }
    bdrv_co_unref(bs);
    return ret;
}

/*
 * Returns false with @errp set if no shell fits in a file that cannot grow.
 * Drivers that create images by writing over what is there are those of
 * devices and servers; some have bdrv_co_truncate(), but only for less.
 */
static bool coroutine_fn GRAPH_UNLOCKED
check_room(BlockDriverState *file_bs, const char *filename,
           size_t cluster_size, Error **errp)
{
    int64_t size;

    GRAPH_RDLOCK_GUARD();

    file_bs = qcow2_shell_protocol_node(file_bs);
    if (file_bs->drv->bdrv_co_create_opts != bdrv_co_create_opts_simple) {
        return true;
    }
    size = bdrv_co_getlength(file_bs);
    if (size >= 0 && size < 3 * cluster_size) {
        error_setg(errp, "'%s' has a size of %" PRId64 " bytes and cannot "
                   "grow, but the image needs %zu", filename, size,
                   3 * cluster_size);
        return false;
    }
    return true;
}

/* Writes what build_shell() has returned to @file_bs, and completes it */
static int coroutine_fn GRAPH_UNLOCKED
write_shell(BlockDriverState *file_bs, const char *buf, size_t cluster_size,
            Error **errp)
{
    BlockBackend *blk;
    int ret;

    blk = blk_co_new_with_bs(file_bs, BLK_PERM_WRITE | BLK_PERM_RESIZE,
                             BLK_PERM_ALL, errp);
    if (!blk) {
        return -EPERM;
    }
    blk_set_allow_write_beyond_eof(blk, true);
    ret = blk_co_pwrite(blk, 0, 3 * cluster_size, buf, 0);
    blk_co_unref(blk);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not write the image header");
        return ret;
    }
    return finish_shell(file_bs, cluster_size, errp);
}

/*
 * The new shell has a map that knows nothing.  Finds out what of @rw_bs reads
 * as zeroes, and stores that.
 */
static int coroutine_fn GRAPH_UNLOCKED
fill_in_map(BlockDriverState *file_bs, BlockDriverState *rw_bs,
            BlockdevQcow2RwBackingMap option, Error **errp)
{
    QDict *options = qdict_new();
    BlockDriverState *bs;
    int ret;

    qdict_put_str(options, "driver", "qcow2");
    qdict_put_str(options, "file", file_bs->node_name);
    qdict_put_str(options, BLOCK_OPT_RW_BACKING, rw_bs->node_name);
    bs = bdrv_co_open(NULL, NULL, options, BDRV_O_RDWR | BDRV_O_RESIZE, errp);
    if (!bs) {
        return -EIO;
    }
    bdrv_graph_co_rdlock();
    ret = qcow2_shell_set_map(bs, option, NULL, NULL, errp);
    bdrv_graph_co_rdunlock();
    bdrv_co_unref(bs);
    return ret;
}

/* The RW backing */

static bool coroutine_fn GRAPH_UNLOCKED
check_no_loop(BlockDriverState *file_bs, const char *filename,
              BlockDriverState *rw_bs, const char *rw_name, Error **errp)
{
    GRAPH_RDLOCK_GUARD();
    return qcow2_rw_backing_check_no_loop(file_bs, filename, rw_bs, rw_name,
                                          errp);
}

/* Creation through QMP */

int coroutine_fn
qcow2_rw_backing_co_create(BlockdevCreateOptions *create_options, Error **errp)
{
    BlockdevCreateOptionsQcow2 *opts = &create_options->u.qcow2;
    Qcow2RwBackingPointer ptr = { };
    BlockDriverState *rw_bs, *file_bs = NULL;
    g_autofree char *buf = NULL;
    const char *rw_name;
    int ret = -EINVAL;

    if (!opts->rw_backing) {
        error_setg(errp, "'%s' requires '" BLOCK_OPT_RW_BACKING "'",
                   opts->has_rw_backing_map ? BLOCK_OPT_RW_BACKING_MAP
                                            : BLOCK_OPT_RW_BACKING_LOG);
        return -EINVAL;
    }
    if (!check_create_options(opts, errp)) {
        return -EINVAL;
    }
    rw_bs = bdrv_co_open_blockdev_ref(opts->rw_backing, errp);
    if (!rw_bs) {
        return -EIO;
    }
    file_bs = bdrv_co_open_blockdev_ref(opts->file, errp);
    if (!file_bs) {
        ret = -EIO;
        goto out;
    }

    rw_name = bdrv_get_node_name(rw_bs);
    bdrv_graph_co_rdlock();
    qcow2_rw_backing_pointer_from_node(rw_bs, &ptr);
    bdrv_graph_co_rdunlock();
    ptr.log = wants_log(opts);
    ptr.map = wants_map(opts);

    if (!check_no_loop(file_bs, bdrv_get_node_name(file_bs), rw_bs, rw_name,
                       errp) ||
        !check_size(opts, rw_bs, rw_name, errp)) {
        goto out;
    }
    buf = build_shell(opts, &ptr, errp);
    if (buf && check_room(file_bs, bdrv_get_node_name(file_bs),
                          opts->cluster_size, errp)) {
        ret = write_shell(file_bs, buf, opts->cluster_size, errp);
    }
    if (ret == 0 && ptr.map) {
        ret = fill_in_map(file_bs, rw_bs, opts->rw_backing_map, errp);
    }

out:
    qcow2_rw_backing_pointer_destroy(&ptr);
    bdrv_co_unref(file_bs);
    bdrv_co_unref(rw_bs);
    return ret;
}

/* Creation with qemu-img */

/*
 * Creates an RW backing unless there is a file of this name.
 *
 * Returns 1 if it was created, 0 if it existed, or -errno with @errp set.
 */
static int coroutine_fn GRAPH_UNLOCKED
create_rw_backing(const char *rw_filename, const char *format, uint64_t size,
                  Error **errp)
{
    ERRP_GUARD();
    BlockDriver *drv = bdrv_find_format(format);
    QemuOptsList *create_opts;
    QemuOpts *opts;
    int fd, ret;

    if (!qcow2_rw_backing_is_missing(rw_filename)) {
        return 0;
    }
    if (!drv || !drv->create_opts) {
        error_setg(errp, "RW backing '%s' does not exist, and format '%s' %s",
                   rw_filename, format,
                   drv ? "does not support creation" : "is unknown");
        return -EINVAL;
    }

    /* Claim the name first: nobody's file is ever created over */
    fd = qemu_create(rw_filename, O_WRONLY | O_EXCL | O_BINARY, 0644, errp);
    if (fd < 0) {
        error_prepend(errp, "Could not create the RW backing: ");
        return fd;
    }
    close(fd);

    create_opts = qemu_opts_append(NULL, drv->create_opts);
    create_opts = qemu_opts_append(create_opts, bdrv_file.create_opts);
    opts = qemu_opts_create(create_opts, NULL, 0, &error_abort);
    qemu_opt_set_number(opts, BLOCK_OPT_SIZE, size, &error_abort);
    ret = bdrv_co_create(drv, rw_filename, opts, errp);
    qemu_opts_del(opts);
    qemu_opts_free(create_opts);
    if (ret < 0) {
        error_prepend(errp, "Could not create the RW backing '%s': ",
                      rw_filename);
        unlink(rw_filename);
        return ret;
    }
    return 1;
}

/* @rw_bs is there if the shell shall have a map */
static int coroutine_fn GRAPH_UNLOCKED
create_shell_file(const char *filename, QemuOpts *opts, const char *buf,
                  BlockdevCreateOptionsQcow2 *qcow2_opts,
                  BlockDriverState *rw_bs, Error **errp)
{
    BlockDriverState *bs;
    int ret;

    ret = bdrv_co_create_file(filename, opts, errp);
    if (ret < 0) {
        return ret;
    }
    bs = bdrv_co_open(filename, NULL, NULL,
                      BDRV_O_RDWR | BDRV_O_RESIZE | BDRV_O_PROTOCOL, errp);
    if (!bs) {
        return -EIO;
    }

    ret = write_shell(bs, buf, qcow2_opts->cluster_size, errp);
    if (ret == 0 && rw_bs) {
        ret = fill_in_map(bs, rw_bs, qcow2_opts->rw_backing_map, errp);
    }
    if (ret < 0) {
        bdrv_graph_co_rdlock();
        bdrv_co_delete_file_noerr(bs);
        bdrv_graph_co_rdunlock();
    }
    bdrv_co_unref(bs);
    return ret;
}

/* Returns the options as a QAPI type, with no nodes that mean anything */
static BlockdevCreateOptions *visit_create_options(QDict *qdict, Error **errp)
{
    BlockdevCreateOptions *create_options = NULL;
    Visitor *v;

    if (qdict_haskey(qdict, BLOCK_OPT_DATA_FILE)) {
        error_setg(errp, "An RW backing cannot be combined with an external "
                   "data file");
        return NULL;
    }

    qdict_put_str(qdict, "driver", "qcow2");
    qdict_put_str(qdict, "file", "");
    v = qobject_input_visitor_new_flat_confused(qdict, errp);
    if (!v) {
        return NULL;
    }
    visit_type_BlockdevCreateOptions(v, NULL, &create_options, errp);
    visit_free(v);
    return create_options;
}

/* A shell that the user wants, once its options were found to be possible */
typedef struct NewShell {
    char *rw_name;              /* of the RW backing, as the user gives it */
    char *rw_filename;          /* with which it is opened */
    char *rw_format;
    BlockdevCreateOptions *options;
    char *clusters;             /* of build_shell() */
} NewShell;

static void new_shell_clear(NewShell *shell)
{
    g_free(shell->rw_name);
    g_free(shell->rw_filename);
    g_free(shell->rw_format);
    qapi_free_BlockdevCreateOptions(shell->options);
    g_free(shell->clusters);
}

G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(NewShell, new_shell_clear)

/* Takes the options that are about the RW backing from @qdict */
static bool take_rw_backing_options(NewShell *shell, const char *filename,
                                    QDict *qdict, Error **errp)
{
    const char *name = qdict_get_try_str(qdict, BLOCK_OPT_RW_BACKING);
    const char *format = qdict_get_try_str(qdict, BLOCK_OPT_RW_BACKING_FMT);

    if (!name) {
        error_setg(errp, "'%s' requires '" BLOCK_OPT_RW_BACKING "'",
                   format ? BLOCK_OPT_RW_BACKING_FMT :
                   qdict_haskey(qdict, BLOCK_OPT_RW_BACKING_MAP)
                   ? BLOCK_OPT_RW_BACKING_MAP : BLOCK_OPT_RW_BACKING_LOG);
        return false;
    }
    shell->rw_name = g_strdup(name);
    shell->rw_format = g_strdup(format ?: "raw");
    qdict_del(qdict, BLOCK_OPT_RW_BACKING);
    qdict_del(qdict, BLOCK_OPT_RW_BACKING_FMT);

    shell->rw_filename = qcow2_rw_backing_resolve(filename, shell->rw_name,
                                                  errp);
    return shell->rw_filename &&
           qcow2_rw_backing_check_file(filename, shell->rw_filename, errp);
}

/* All that can be checked before there is an RW backing */
static bool plan_shell(NewShell *shell, const char *filename, QDict *qdict,
                       Error **errp)
{
    BlockdevCreateOptionsQcow2 *opts;
    Qcow2RwBackingPointer ptr;

    if (!take_rw_backing_options(shell, filename, qdict, errp)) {
        return false;
    }
    shell->options = visit_create_options(qdict, errp);
    if (!shell->options) {
        return false;
    }
    opts = &shell->options->u.qcow2;
    opts->size = ROUND_UP(opts->size, BDRV_SECTOR_SIZE);
    if (!check_create_options(opts, errp)) {
        return false;
    }

    ptr = (Qcow2RwBackingPointer) {
        .format = shell->rw_format,
        .filename = qcow2_rw_backing_is_local_path(shell->rw_name)
                    ? shell->rw_name : NULL,
        .log = wants_log(opts),
        .map = wants_map(opts),
    };
    shell->clusters = build_shell(opts, &ptr, errp);
    return shell->clusters;
}

/* Creates the file of @shell for the RW backing, which exists by now */
static int coroutine_fn GRAPH_UNLOCKED
wrap_rw_backing(const NewShell *shell, const char *filename, QemuOpts *opts,
                Error **errp)
{
    BlockdevCreateOptionsQcow2 *qcow2_opts = &shell->options->u.qcow2;
    BlockDriverState *rw_bs, *old_bs;
    QDict *rw_options;
    bool possible;
    int flags, ret = -EINVAL;

    rw_options = qcow2_rw_backing_inspect_options(shell->rw_format, &flags);
    rw_bs = bdrv_co_open(shell->rw_filename, NULL, rw_options, flags, errp);
    if (!rw_bs) {
        return -EINVAL;
    }
    /* There may be something that the shell is going to replace */
    old_bs = bdrv_co_open(filename, NULL, NULL,
                          BDRV_O_PROTOCOL | BDRV_O_NO_IO, NULL);
    possible = check_no_loop(old_bs, filename, rw_bs, shell->rw_name, errp) &&
               check_size(qcow2_opts, rw_bs, shell->rw_name, errp) &&
               (!old_bs || check_room(old_bs, filename,
                                      qcow2_opts->cluster_size, errp));
    bdrv_co_unref(old_bs);
    if (possible && wants_map(qcow2_opts)) {
        /* The map is found out by a user of the new shell */
        bdrv_co_unref(rw_bs);
        rw_options = qdict_new();
        qdict_put_str(rw_options, "driver", shell->rw_format);
        rw_bs = bdrv_co_open(shell->rw_filename, NULL, rw_options, BDRV_O_RDWR,
                             errp);
        possible = rw_bs;
    }
    if (possible) {
        ret = create_shell_file(filename, opts, shell->clusters, qcow2_opts,
                                wants_map(qcow2_opts) ? rw_bs : NULL, errp);
    }
    bdrv_co_unref(rw_bs);
    return ret;
}

int coroutine_fn
qcow2_rw_backing_co_create_opts(const char *filename, QemuOpts *opts,
                                QDict *qdict, Error **errp)
{
    g_auto(NewShell) shell = { };
    int created, ret;

    if (!plan_shell(&shell, filename, qdict, errp)) {
        return -EINVAL;
    }
    created = create_rw_backing(shell.rw_filename, shell.rw_format,
                                shell.options->u.qcow2.size, errp);
    if (created < 0) {
        return created;
    }
    ret = wrap_rw_backing(&shell, filename, opts, errp);
    if (created && ret < 0) {
        unlink(shell.rw_filename);
    }
    return ret;
}

bool qcow2_rw_backing_set_create_size(const char *filename, QemuOpts *opts,
                                      Error **errp)
{
    ERRP_GUARD();
    const char *name = qemu_opt_get(opts, BLOCK_OPT_RW_BACKING);
    const char *format = qemu_opt_get(opts, BLOCK_OPT_RW_BACKING_FMT) ?: "raw";
    g_autofree char *rw_filename = NULL;
    BlockDriverState *bs;
    QDict *options;
    int64_t size;
    int flags;

    if (!name || qemu_opt_get_size(opts, BLOCK_OPT_SIZE, 0) != UINT64_MAX) {
        return true;
    }

    rw_filename = qcow2_rw_backing_resolve(filename, name, errp);
    if (!rw_filename ||
        !qcow2_rw_backing_check_file(filename, rw_filename, errp)) {
        return false;
    }
    options = qcow2_rw_backing_inspect_options(format, &flags);
    bs = bdrv_open(rw_filename, NULL, options, flags, errp);
    if (!bs) {
        if (qcow2_rw_backing_is_missing(rw_filename)) {
            error_append_hint(errp, "Give a size to create a new RW "
                              "backing.\n");
        }
        return false;
    }

    size = bdrv_getlength(bs);
    bdrv_unref(bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get the size of '%s'",
                         rw_filename);
        return false;
    }
    qemu_opt_set_number(opts, BLOCK_OPT_SIZE, size, &error_abort);
    return true;
}

BlockMeasureInfo *qcow2_rw_backing_measure(QemuOpts *opts,
                                           BlockDriverState *in_bs,
                                           Error **errp)
{
    BlockdevCreateOptionsQcow2 qcow2_opts = {
        .has_cluster_size = true,
        .cluster_size = qemu_opt_get_size(opts, BLOCK_OPT_CLUSTER_SIZE,
                                          DEFAULT_CLUSTER_SIZE),
    };
    BlockMeasureInfo *info;

    if (!check_layout_options(&qcow2_opts, errp)) {
        return NULL;
    }

    /* The clusters of build_shell() */
    info = g_new0(BlockMeasureInfo, 1);
    info->required = 3 * qcow2_opts.cluster_size;
    info->fully_allocated = info->required;
    info->has_bitmaps = in_bs && bdrv_supports_persistent_dirty_bitmap(in_bs);
    if (info->has_bitmaps) {
        info->bitmaps = qcow2_get_persistent_dirty_bitmap_size(
            in_bs, qcow2_opts.cluster_size);
    }
    return info;
}
