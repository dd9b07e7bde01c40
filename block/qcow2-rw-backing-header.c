/*
 * qcow2 RW backing: header of a shell
 *
 * Reads and writes what the header of a qcow2 image says about its RW backing:
 * the feature bit, the size, and the header extensions.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "qcow2.h"
#include "qcow2-rw-backing.h"

/* Magic number of the feature name table, which qcow2.c keeps to itself */
#define QCOW2_EXT_MAGIC_FEATURE_NAMES 0x6803f857

/* Features that make sense for an image without data clusters */
#define QCOW2_RW_BACKING_INCOMPAT_MASK (QCOW2_INCOMPAT_DIRTY | \
                                        QCOW2_INCOMPAT_CORRUPT | \
                                        QCOW2_INCOMPAT_RW_BACKING)

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

    /* Has no meaning here, and would make qcow2 insist on a data file */
    s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_DATA_FILE_RAW;

    s->rw_backing = g_new0(Qcow2RwBacking, 1);
    s->rw_backing->stored_size = header->size;
    qcow2_rw_backing_file_init(&s->rw_backing->file);
    header->size = 0;
    return 0;
}

void qcow2_rw_backing_hint_new_image(Error *const *errp)
{
    error_append_hint(errp, "The disk is not affected: use it directly, or "
                      "create a new image for it with 'qemu-img create -f "
                      "qcow2 -o rw-backing=DISK,rw-backing-fmt=FORMAT "
                      "IMAGE'.\n");
}

static int coroutine_fn GRAPH_RDLOCK
read_pointer(BlockDriverState *bs, uint64_t offset, uint32_t len, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    bool feature = s->incompatible_features & QCOW2_INCOMPAT_RW_BACKING;
    g_autofree uint8_t *buf = NULL;
    int ret;

    if (!qcow2_rw_backing_check_feature(feature, true, errp)) {
        return -EINVAL;
    }
    if (!s->rw_backing) {
        /* Image has unknown features too, only their names are wanted */
        return 0;
    }
    /* Until it turns out to be fine */
    s->rw_backing->pointer_damaged = true;
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
    s->rw_backing->pointer_damaged = false;
    return 0;
}

/* A guard that cannot be used is as good as none, see the specification */
static void coroutine_fn GRAPH_RDLOCK
read_guard(BlockDriverState *bs, uint64_t offset, uint32_t len)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    uint8_t buf[sizeof(Qcow2RwBackingGuardExt)];

    if (!rwb) {
        return;
    }
    if (rwb->guard_found || len != sizeof(buf) ||
        bdrv_co_pread(bs->file, offset, len, buf, 0) < 0) {
        rwb->guard.kind = QCOW2_RW_BACKING_GUARD_NONE;
    } else {
        qcow2_rw_backing_guard_parse(&rwb->guard, buf, len);
    }
    rwb->guard_found = true;
}

int coroutine_fn
qcow2_rw_backing_read_extension(BlockDriverState *bs, uint32_t magic,
                                uint64_t offset, uint32_t len, Error **errp)
{
    ERRP_GUARD();
    int ret;

    if (magic == QCOW2_EXT_MAGIC_RW_BACKING_GUARD) {
        read_guard(bs, offset, len);
        return 0;
    }
    ret = read_pointer(bs, offset, len, errp);
    if (ret < 0) {
        qcow2_rw_backing_hint_new_image(errp);
    }
    return ret;
}

/*
 * Room that the header needs for what comes and goes with bitmaps: the guard,
 * the bitmaps extension and the end of the extensions, with 8 bytes each of
 * type and length.
 */
#define LATER_EXTENSIONS_LEN (8 + sizeof(Qcow2RwBackingGuardExt) + 8 + 24 + 8)

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
    ssize_t ptr_len, ret;
    size_t len;

    /* The pointer comes first, so that nothing before it can be damaged */
    data = qcow2_rw_backing_pointer_serialize(ptr, &len, &error_abort);
    ptr_len = write_extension(buf, buflen, QCOW2_EXT_MAGIC_RW_BACKING, data,
                              len);
    if (ptr_len < 0) {
        return ptr_len;
    }

    ret = write_feature_name(buf + ptr_len, buflen - ptr_len);
    if (ret >= 0 && buflen - ptr_len - ret < LATER_EXTENSIONS_LEN) {
        ret = -ENOSPC;
    }
    return ret < 0 ? ret : ptr_len + ret;
}

/*
 * Nobody needs an extension of unknown type, which can as well be a known one
 * whose type was damaged.  The header must be written, so all of them go if
 * they do not fit into @space.
 */
static void make_room_for_extensions(BlockDriverState *bs, size_t space)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2UnknownHeaderExtension *ext, *next;
    size_t len = 0;

    QLIST_FOREACH(ext, &s->unknown_header_ext, next) {
        len += 8 + ROUND_UP((size_t)ext->len, 8);
    }
    if (len <= space) {
        return;
    }

    warn_report("Header extensions of unknown type leave '%s' without space "
                "for others, and are removed", bs->filename);
    QLIST_FOREACH_SAFE(ext, &s->unknown_header_ext, next, next) {
        QLIST_REMOVE(ext, next);
        g_free(ext);
    }
}

ssize_t qcow2_rw_backing_write_extensions(BlockDriverState *bs, char *buf,
                                          size_t buflen)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBackingGuardExt guard;
    ssize_t len, ret;

    if (!s->rw_backing) {
        return 0;
    }

    len = qcow2_rw_backing_put_extensions(&s->rw_backing->pointer, buf,
                                          buflen);
    if (len >= 0) {
        make_room_for_extensions(bs, buflen - len - LATER_EXTENSIONS_LEN);
    }
    if (len >= 0 && s->rw_backing->guard.kind != QCOW2_RW_BACKING_GUARD_NONE) {
        qcow2_rw_backing_guard_serialize(&s->rw_backing->guard, &guard);
        ret = write_extension(buf + len, buflen - len,
                              QCOW2_EXT_MAGIC_RW_BACKING_GUARD,
                              &guard, sizeof(guard));
        len = ret < 0 ? ret : len + ret;
    }
    if (len >= 0) {
        /*
         * The header is on its way, with the size and without a stale guard.
         * What has to be done for stale bitmaps is protected by the autoclear
         * bit from here on, see update_ext_header_and_dir_in_place().
         */
        s->rw_backing->header_stale = false;
        s->rw_backing->bitmaps_stale = false;
    }
    return len;
}

void qcow2_rw_backing_free(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing) {
        qcow2_rw_backing_pointer_destroy(&s->rw_backing->pointer);
        qcow2_rw_backing_file_close(&s->rw_backing->file);
        g_free(s->rw_backing->guard_reason);
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
        .guard       = s->rw_backing->guard_state,
        .guard_reason = g_strdup(s->rw_backing->guard_reason),
    };
    return info;
}
