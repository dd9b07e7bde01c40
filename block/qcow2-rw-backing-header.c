/*
 * qcow2 RW backing: header of a shell
 *
 * Reads and writes what the header of a qcow2 image with an RW backing says.
 * The whole header cluster is taken in at once and gone through in memory.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/memalign.h"
#include "qemu/timer.h"
#include "block/block-io.h"
#include "block/block_int.h"
#include "system/runstate.h"
#include "qcow2.h"
#include "qcow2-rw-backing-directory.h"
#include "qcow2-rw-backing-flush.h"
#include "qcow2-rw-backing-header.h"
#include "qcow2-rw-backing-log.h"

/* Magic numbers of extensions that qcow2.c keeps to itself */
#define QCOW2_EXT_MAGIC_END             0
#define QCOW2_EXT_MAGIC_FEATURE_NAMES   0x6803f857
#define QCOW2_EXT_MAGIC_BITMAPS         0x23852875
#define QCOW2_EXT_MAGIC_DATA_FILE       0x44415441

/* Features that make sense for an image without data clusters */
#define QCOW2_RW_BACKING_INCOMPAT_MASK (QCOW2_INCOMPAT_DIRTY | \
                                        QCOW2_INCOMPAT_CORRUPT | \
                                        QCOW2_INCOMPAT_RW_BACKING)

/* See "Bitmaps extension" in the specification of qcow2 */
typedef struct QEMU_PACKED BitmapsExt {
    uint32_t nb_bitmaps;
    uint32_t reserved32;
    uint64_t directory_size;
    uint64_t directory_offset;
} BitmapsExt;

/* Reading */

void qcow2_shell_hint_new_image(Error *const *errp)
{
    error_append_hint(errp, "The disk is not affected: use it directly, or "
                      "create a new image for it with 'qemu-img create -f "
                      "qcow2 -o rw-backing=DISK,rw-backing-fmt=FORMAT "
                      "IMAGE'.\n");
}

/* Section "Header fields" of the specification */
static bool check_fields(BlockDriverState *bs, const QCowHeader *header,
                         Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    const char *surplus = NULL;
    uint64_t features;

    features = s->incompatible_features & ~QCOW2_RW_BACKING_INCOMPAT_MASK;
    if (features) {
        error_setg(errp, "Incompatible features 0x%" PRIx64 " cannot be "
                   "combined with an RW backing", features);
        return false;
    }

    if (header->backing_file_offset) {
        surplus = "backing file";
    } else if (header->crypt_method) {
        surplus = "encryption";
    } else if (header->l1_table_offset != QCOW2_SHELL_L1_OFFSET) {
        surplus = "L1 table";
    } else if (header->nb_snapshots) {
        surplus = "internal snapshots";
    }
    if (surplus) {
        error_setg(errp, "Image with an RW backing must not have: %s",
                   surplus);
        return false;
    }

    if (header->size > BDRV_MAX_LENGTH ||
        !QEMU_IS_ALIGNED(header->size, BDRV_SECTOR_SIZE)) {
        error_setg(errp, "Invalid size of the RW backing: %" PRIu64,
                   header->size);
        return false;
    }
    return true;
}

/* What qcow2 needs to know to find its refcounts; there is nothing else */
static int take_over_layout(BlockDriverState *bs, const QCowHeader *header,
                            int flags, Error **errp)
{
    BDRVQcow2State *s = bs->opaque;

    if (header->refcount_order > 6) {
        error_setg(errp, "Invalid width of refcounts: 2^%" PRIu32 " bits",
                   header->refcount_order);
        return -EINVAL;
    }
    if (header->refcount_table_clusters == 0 && !(flags & BDRV_O_CHECK)) {
        error_setg(errp, "Image has no refcount table");
        return -EINVAL;
    }

    s->refcount_order = header->refcount_order;
    s->refcount_bits = 1 << s->refcount_order;
    s->refcount_max = UINT64_MAX >> (64 - s->refcount_bits);
    s->refcount_block_bits = s->cluster_bits - (s->refcount_order - 3);
    s->refcount_block_size = 1 << s->refcount_block_bits;
    s->refcount_table_offset = header->refcount_table_offset;
    s->refcount_table_size =
        header->refcount_table_clusters << (s->cluster_bits - 3);

    /* There are no L2 tables, but the cache for them exists */
    s->subclusters_per_cluster = 1;
    s->subcluster_size = s->cluster_size;
    s->subcluster_bits = s->cluster_bits;
    s->l2_bits = s->cluster_bits - ctz32(l2_entry_size(s));
    s->l2_size = 1 << s->l2_bits;
    s->csize_shift = 62 - (s->cluster_bits - 8);
    s->csize_mask = (1 << (s->cluster_bits - 8)) - 1;
    s->cluster_offset_mask = (1LL << s->csize_shift) - 1;

    return qcow2_validate_table(bs, s->refcount_table_offset,
                                header->refcount_table_clusters,
                                s->cluster_size, QCOW_MAX_REFTABLE_SIZE,
                                "Refcount table", errp);
}

static bool read_pointer(Qcow2RwBacking *rwb, const uint8_t *data, size_t len,
                         Error **errp)
{
    if (rwb->pointer.format) {
        qcow2_rw_backing_pointer_destroy(&rwb->pointer);
        error_setg(errp, "Duplicate RW backing extension");
        return false;
    }
    return qcow2_rw_backing_pointer_parse(&rwb->pointer, data, len, errp);
}

static bool read_bitmaps(BlockDriverState *bs, const uint8_t *data, size_t len,
                         Error **errp)
{
    BDRVQcow2State *s = bs->opaque;
    BitmapsExt ext;

    if (len != sizeof(ext)) {
        error_setg(errp, "Bitmaps extension has %zu bytes, not %zu", len,
                   sizeof(ext));
        return false;
    }
    if (!(s->autoclear_features & QCOW2_AUTOCLEAR_BITMAPS)) {
        warn_report("Bitmaps of '%s' are lost: it was modified by a program "
                    "that does not know bitmaps; 'qemu-img check -r leaks' "
                    "frees their space", bs->filename);
        qcow2_shell(bs)->header_outdated = true;
        return true;
    }

    memcpy(&ext, data, sizeof(ext));
    ext.nb_bitmaps = be32_to_cpu(ext.nb_bitmaps);
    ext.directory_size = be64_to_cpu(ext.directory_size);
    ext.directory_offset = be64_to_cpu(ext.directory_offset);
    if (ext.reserved32) {
        error_setg(errp, "Bitmaps extension has a reserved field that is not "
                   "zero");
        return false;
    }
    if (!ext.nb_bitmaps || ext.nb_bitmaps > QCOW2_MAX_BITMAPS) {
        error_setg(errp, "Invalid number of bitmaps: %" PRIu32,
                   ext.nb_bitmaps);
        return false;
    }
    if (!ext.directory_offset ||
        offset_into_cluster(s, ext.directory_offset) ||
        ext.directory_offset > INT64_MAX) {
        error_setg(errp, "Invalid offset of the bitmap directory: %" PRIu64,
                   ext.directory_offset);
        return false;
    }
    if (ext.directory_size > QCOW2_MAX_BITMAP_DIRECTORY_SIZE) {
        error_setg(errp, "Invalid size of the bitmap directory: %" PRIu64,
                   ext.directory_size);
        return false;
    }

    s->nb_bitmaps = ext.nb_bitmaps;
    s->bitmap_directory_size = ext.directory_size;
    s->bitmap_directory_offset = ext.directory_offset;
    return true;
}

static void keep_unknown(BlockDriverState *bs, uint32_t magic,
                         const uint8_t *data, uint32_t len)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2UnknownHeaderExtension *ext = g_malloc0(sizeof(*ext) + len);

    ext->magic = magic;
    ext->len = len;
    memcpy(ext->data, data, len);
    QLIST_INSERT_HEAD(&s->unknown_header_ext, ext, next);
}

/* A guard that cannot be used is as good as none, see the specification */
static void read_guard(Qcow2RwBacking *rwb, const uint8_t *data, size_t len,
                       unsigned int *guards)
{
    if ((*guards)++) {
        rwb->guard = (Qcow2RwBackingGuard) { };
    } else {
        qcow2_rw_backing_guard_parse(&rwb->guard, data, len);
    }
}

/* Returns false with @errp set for an extension that breaks a rule */
static bool read_extensions(BlockDriverState *bs, const uint8_t *buf,
                            size_t len, Error **errp)
{
    Qcow2RwBacking *rwb = qcow2_shell(bs);
    unsigned int guards = 0;

    while (len >= 8) {
        uint32_t magic = ldl_be_p(buf);
        uint32_t ext_len = ldl_be_p(buf + 4);
        bool ok = true;

        buf += 8;
        len -= 8;
        if (ext_len > len) {
            error_setg(errp, "Header extension too large");
            return false;
        }

        switch (magic) {
        case QCOW2_EXT_MAGIC_END:
            return true;
        case QCOW2_EXT_MAGIC_FEATURE_NAMES:
        case QCOW2_EXT_MAGIC_DATA_FILE:
            break;
        case QCOW2_EXT_MAGIC_RW_BACKING:
            ok = read_pointer(rwb, buf, ext_len, errp);
            break;
        case QCOW2_EXT_MAGIC_RW_BACKING_GUARD:
            read_guard(rwb, buf, ext_len, &guards);
            break;
        case QCOW2_EXT_MAGIC_BITMAPS:
            ok = read_bitmaps(bs, buf, ext_len, errp);
            break;
        default:
            keep_unknown(bs, magic, buf, ext_len);
        }
        if (!ok) {
            return false;
        }
        buf += MIN(ROUND_UP((uint64_t)ext_len, 8), len);
        len -= MIN(ROUND_UP((uint64_t)ext_len, 8), len);
    }
    return true;
}

/* What a reader of the file would go by */
static void take_over_state(BlockDriverState *bs, bool damaged)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    Qcow2ShellMarks marks = s->nb_bitmaps ? QCOW2_SHELL_MARKS_UNKNOWN
                                          : QCOW2_SHELL_MARKS_IN_USE;
    unsigned int headers = qcow2_shell_header(rwb);

    if (damaged) {
        /* What could not be read may be there */
        headers = QCOW2_SHELL_HEADERS_ANY;
        marks = QCOW2_SHELL_MARKS_UNKNOWN;
    }
    qcow2_shell_state_read(&rwb->state, headers, marks);
    qcow2_shell_update_gate(bs);
    rwb->state.needs_repair = damaged;

    rwb->flush_failures_seen = get_clock();
    rwb->read_guard = rwb->guard;
    rwb->has_stored_checksum = rwb->guard.kind != QCOW2_RW_BACKING_GUARD_NONE;
    rwb->stored_checksum = rwb->guard.bitmaps_checksum;
    /* Bitmaps that come with a migration may be of a disk that was larger */
    rwb->shrunk = rwb->guard.shrunk || runstate_check(RUN_STATE_INMIGRATE);
    rwb->guard_state = rwb->has_stored_checksum
        ? QCOW2_RW_BACKING_GUARD_STATE_UNCHECKED
        : QCOW2_RW_BACKING_GUARD_STATE_NONE;
}

int coroutine_fn
qcow2_shell_read_header(BlockDriverState *bs, const QCowHeader *header,
                        int flags, Error **errp)
{
    ERRP_GUARD();
    BDRVQcow2State *s = bs->opaque;
    Error *local_err = NULL;
    g_autofree uint8_t *buf = g_malloc(s->cluster_size);
    bool damaged;
    int ret;

    /* Is only a hint for others, see put_hint() */
    s->incompatible_features &= ~(uint64_t)QCOW2_INCOMPAT_DATA_FILE;

    if (!check_fields(bs, header, errp)) {
        return -EINVAL;
    }

    s->rw_backing = g_new0(Qcow2RwBacking, 1);
    s->rw_backing->stored_size = header->size;
    s->rw_backing->log = qcow2_log_new();
    s->rw_backing->directory = qcow2_shell_directory_new();
    qcow2_rw_backing_file_init(&s->rw_backing->file);
    s->data_file = bs->file;
    QLIST_INIT(&s->cluster_allocs);
    QTAILQ_INIT(&s->discards);
    /* Has no meaning here, and would make qcow2 insist on a data file */
    s->autoclear_features &= ~(uint64_t)QCOW2_AUTOCLEAR_DATA_FILE_RAW;

    ret = bdrv_co_pread(bs->file, 0, s->cluster_size, buf, 0);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read the header");
        return ret;
    }
    damaged = !read_extensions(bs, buf + header->header_length,
                               s->cluster_size - header->header_length,
                               &local_err);
    take_over_state(bs, damaged);
    if (offset_into_cluster(s, s->rw_backing->pointer.log_offset)) {
        s->rw_backing->pointer.log_offset = 0;
        s->rw_backing->pointer.log_armed = false;
    }
    if (!s->rw_backing->pointer.format) {
        /* Without an error of its own, it was not there at all */
        if (local_err) {
            error_propagate(errp, local_err);
        } else {
            qcow2_rw_backing_check_feature(true, false, errp);
        }
        qcow2_shell_hint_new_image(errp);
        return -EINVAL;
    }
    if (local_err) {
        warn_reportf_err(local_err, "Metadata of '%s' is damaged: ",
                         bs->filename);
    }
    return take_over_layout(bs, header, flags, errp);
}

/* Writing */

uint32_t qcow2_shell_l1_size(uint64_t size, unsigned int cluster_bits)
{
    /* Of an entry: an L2 table is a cluster of entries with 8 bytes each */
    unsigned int bits = 2 * cluster_bits - 3;
    uint64_t entries = DIV_ROUND_UP(size, UINT64_C(1) << bits);

    return MIN(MAX(entries, 1), QCOW_MAX_L1_SIZE / L1E_SIZE);
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

ssize_t qcow2_shell_put_extensions(const Qcow2RwBackingPointer *ptr,
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
 * Names the RW backing to programs that know external data files, where there
 * is room for that.  Sets the feature bit that goes with it in @header, and
 * returns the number of bytes written.
 */
static size_t put_hint(QCowHeader *header, const Qcow2RwBackingPointer *ptr,
                       char *buf, ssize_t buflen)
{
    const char *hint = qcow2_rw_backing_hint(ptr);
    ssize_t len = -ENOSPC;

    if (hint && buflen > 0) {
        len = write_extension(buf, buflen, QCOW2_EXT_MAGIC_DATA_FILE, hint,
                              strlen(hint));
    }
    if (len < 0) {
        return 0;
    }
    header->incompatible_features |= cpu_to_be64(QCOW2_INCOMPAT_DATA_FILE);
    return len;
}

/* Length of extensions of unknown type in the header */
static size_t unknown_extensions_len(BDRVQcow2State *s)
{
    Qcow2UnknownHeaderExtension *ext;
    size_t len = 0;

    QLIST_FOREACH(ext, &s->unknown_header_ext, next) {
        len += 8 + ROUND_UP((size_t)ext->len, 8);
    }
    return len;
}

/*
 * Nobody needs an extension of unknown type, which can as well be a known one
 * whose type was damaged.  The header must be written, so all of them go if
 * they do not leave room for the others.  @buf is a cluster to try in.
 */
static void make_room_for_extensions(BlockDriverState *bs, char *buf)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2UnknownHeaderExtension *ext, *next;
    size_t room = s->cluster_size - sizeof(QCowHeader) -
                  s->unknown_header_fields_size;
    ssize_t needed = qcow2_shell_put_extensions(&s->rw_backing->pointer, buf,
                                                room);

    if (needed < 0 || unknown_extensions_len(s) <=
                      room - needed - LATER_EXTENSIONS_LEN) {
        return;
    }

    warn_report("Header extensions of unknown type leave '%s' without space "
                "for others, and are removed", bs->filename);
    QLIST_FOREACH_SAFE(ext, &s->unknown_header_ext, next, next) {
        QLIST_REMOVE(ext, next);
        g_free(ext);
    }
}

/*
 * Fills in the extensions of @bs, and says in @header which of them are there.
 * Returns -ENOSPC if they do not fit.
 */
static int put_all_extensions(BlockDriverState *bs, QCowHeader *header,
                              char *buf, size_t buflen)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    Qcow2UnknownHeaderExtension *unknown;
    ssize_t len = qcow2_shell_put_extensions(&rwb->pointer, buf, buflen);

    if (len >= 0 && rwb->guard.kind != QCOW2_RW_BACKING_GUARD_NONE) {
        Qcow2RwBackingGuardExt guard;

        qcow2_rw_backing_guard_serialize(&rwb->guard, &guard);
        buf += len;
        buflen -= len;
        len = write_extension(buf, buflen, QCOW2_EXT_MAGIC_RW_BACKING_GUARD,
                              &guard, sizeof(guard));
    }
    if (len >= 0 && s->nb_bitmaps) {
        BitmapsExt bitmaps = {
            .nb_bitmaps       = cpu_to_be32(s->nb_bitmaps),
            .directory_size   = cpu_to_be64(s->bitmap_directory_size),
            .directory_offset = cpu_to_be64(s->bitmap_directory_offset),
        };

        buf += len;
        buflen -= len;
        len = write_extension(buf, buflen, QCOW2_EXT_MAGIC_BITMAPS, &bitmaps,
                              sizeof(bitmaps));
    }
    if (len >= 0) {
        size_t others = unknown_extensions_len(s) + 8;

        buf += len;
        buflen -= len;
        len = put_hint(header, &rwb->pointer, buf,
                       (ssize_t)buflen - (ssize_t)others);
    }
    QLIST_FOREACH(unknown, &s->unknown_header_ext, next) {
        if (len < 0) {
            break;
        }
        buf += len;
        buflen -= len;
        len = write_extension(buf, buflen, unknown->magic, unknown->data,
                              unknown->len);
    }
    /* The end of the extensions is a zero, as is the rest of the cluster */
    return len < 0 ? len : buflen - len < 8 ? -ENOSPC : 0;
}

/* Fills in @buf, a cluster of zeroes */
static int serialize_header(BlockDriverState *bs, char *buf)
{
    BDRVQcow2State *s = bs->opaque;
    size_t header_length = sizeof(QCowHeader) + s->unknown_header_fields_size;
    uint64_t size = bs->total_sectors * BDRV_SECTOR_SIZE;
    QCowHeader header = {
        .magic                  = cpu_to_be32(QCOW_MAGIC),
        .version                = cpu_to_be32(3),
        .cluster_bits           = cpu_to_be32(s->cluster_bits),
        .size                   = cpu_to_be64(size),
        .l1_size                =
            cpu_to_be32(qcow2_shell_l1_size(size, s->cluster_bits)),
        .l1_table_offset        = cpu_to_be64(QCOW2_SHELL_L1_OFFSET),
        .refcount_table_offset  = cpu_to_be64(s->refcount_table_offset),
        .refcount_table_clusters =
            cpu_to_be32(s->refcount_table_size >> (s->cluster_bits - 3)),
        .incompatible_features  = cpu_to_be64(s->incompatible_features),
        .compatible_features    = cpu_to_be64(s->compatible_features),
        .autoclear_features     = cpu_to_be64(s->autoclear_features),
        .refcount_order         = cpu_to_be32(s->refcount_order),
        .header_length          = cpu_to_be32(header_length),
    };

    /* The header was read with these fields, so there is space for them */
    memcpy(buf, &header, sizeof(header));
    if (s->unknown_header_fields_size) {
        memcpy(buf + sizeof(header), s->unknown_header_fields,
               s->unknown_header_fields_size);
    }
    return put_all_extensions(bs, (QCowHeader *)buf, buf + header_length,
                              s->cluster_size - header_length);
}

/* The events when a header is on its way, and when it is durable */
static const Qcow2ShellEvent header_events[][2] = {
    [QCOW2_SHELL_HEADER_BARE]    = { QCOW2_SHELL_UNSEALING,
                                     QCOW2_SHELL_UNSEALED },
    [QCOW2_SHELL_HEADER_LOGGED]  = { QCOW2_SHELL_ARMING,
                                     QCOW2_SHELL_ARMED },
    [QCOW2_SHELL_HEADER_SAMPLED] = { QCOW2_SHELL_SEALING_SAMPLED,
                                     QCOW2_SHELL_SEALED_SAMPLED },
    [QCOW2_SHELL_HEADER_EXACT]   = { QCOW2_SHELL_SEALING_EXACT,
                                     QCOW2_SHELL_SEALED_EXACT },
};

/*
 * The only place that writes what a header says of the RW backing.  As long as
 * it says the same as before, a crash leaves one of two headers that mean the
 * same; whoever needs other fields to be durable flushes the file.
 */
int coroutine_mixed_fn qcow2_rw_backing_write_header(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    Qcow2RwBacking *rwb = s->rw_backing;
    Qcow2ShellHeader header = qcow2_shell_header(rwb);
    bool changes = rwb->state.headers != header;
    uint64_t since = get_clock();
    char *buf = qemu_blockalign(bs->file->bs, s->cluster_size);
    int ret;

    make_room_for_extensions(bs, buf);
    memset(buf, 0, s->cluster_size);
    ret = serialize_header(bs, buf);
    if (ret == 0) {
        if (changes) {
            qcow2_shell_event(bs, header_events[header][0]);
        }
        ret = bdrv_pwrite(bs->file, 0, s->cluster_size, buf, 0);
    }
    if (ret == 0 && changes) {
        ret = qcow2_shell_flush_file(bs, since);
    }
    if (ret == 0) {
        rwb->header_outdated = false;
        if (changes) {
            qcow2_shell_event(bs, header_events[header][1]);
        }
    }
    qemu_vfree(buf);
    return ret;
}

void qcow2_shell_free(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;

    if (s->rw_backing) {
        qcow2_rw_backing_pointer_destroy(&s->rw_backing->pointer);
        qcow2_rw_backing_file_close(&s->rw_backing->file);
        g_free(s->rw_backing->guard_reason);
        g_slist_free(s->rw_backing->loaded);
        g_slist_free(s->rw_backing->merged);
        g_ptr_array_unref(s->rw_backing->directory);
        qcow2_log_recovery_free(s->rw_backing->recovery);
        qcow2_map_free(s->rw_backing->map);
        g_slist_free_full(s->rw_backing->old_maps,
                          (GDestroyNotify)qcow2_map_free);
        qcow2_log_free(s->rw_backing->log);
        g_clear_pointer(&s->rw_backing, g_free);
    }
}

Qcow2ShellHeader qcow2_shell_header(const Qcow2RwBacking *rwb)
{
    switch (rwb->guard.kind) {
    case QCOW2_RW_BACKING_GUARD_NONE:
        return rwb->pointer.log_armed ? QCOW2_SHELL_HEADER_LOGGED
                                      : QCOW2_SHELL_HEADER_BARE;
    case QCOW2_RW_BACKING_GUARD_FILE:
        return QCOW2_SHELL_HEADER_EXACT;
    default:
        /* Counters of a device start anew with the host */
        return QCOW2_SHELL_HEADER_SAMPLED;
    }
}
