/*
 * qcow2 RW backing: noticing modifications by others
 *
 * Dirty bitmaps miss what another program writes to the RW backing.  So the
 * shell remembers what the RW backing looked like when the bitmaps were
 * stored, and compares when it is opened again.  The modification time tells
 * all of a local file under the raw format.  A device or an image in another
 * format has no such time: there, the content of some places has to do.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/units.h"
#include "block/block-io.h"
#include "crypto/hash.h"
#include "crypto/random.h"
#include "qcow2-rw-backing-guard.h"

/*
 * Where samples are taken, see "Samples" in the specification.  Partition
 * tables and the superblock of a first partition are in the head.
 */
#define SAMPLES_WHOLE_MAX   (4 * MiB)
#define SAMPLES_HEAD_LEN    (1 * MiB + 256 * KiB)
#define SAMPLES_TAIL_LEN    (128 * KiB)
#define SAMPLES_COUNT       64
#define SAMPLES_LEN         (16 * KiB)

/* The file */

void qcow2_rw_backing_file_init(Qcow2RwBackingFile *file)
{
    *file = (Qcow2RwBackingFile) { .fd = -1 };
}

void qcow2_rw_backing_file_close(Qcow2RwBackingFile *file)
{
    if (file->fd >= 0) {
        qemu_close(file->fd);
    }
    g_free(file->node_name);
    qcow2_rw_backing_file_init(file);
}

/*
 * The node of the file that is the RW backing, or part of it, as it is.  Other
 * formats write metadata when they are closed, so that the modification time
 * of their files changes without a modification of the disk.
 */
static GRAPH_RDLOCK
BlockDriverState *find_file_node(BlockDriverState *rw_bs)
{
    BlockDriverState *bs = rw_bs;

    while (bs && bs->drv &&
           (bs->drv->is_filter || !strcmp(bs->drv->format_name, "raw"))) {
        bs = bdrv_primary_bs(bs);
    }
    return bs && bs->drv && !strcmp(bs->drv->format_name, "file") ? bs : NULL;
}

/* Such a node truncates the file when it is closed */
static bool GRAPH_RDLOCK has_preallocate_node(BlockDriverState *rw_bs)
{
    BlockDriverState *bs;

    for (bs = rw_bs; bs; bs = bdrv_primary_bs(bs)) {
        if (bs->drv && !strcmp(bs->drv->format_name, "preallocate")) {
            return true;
        }
    }
    return false;
}

#ifdef O_PATH
static int open_for_stat(const char *filename)
{
    int fd;

    if (!strstart(filename, "/dev/fdset/", NULL)) {
        /* Closing an O_PATH descriptor does not drop anybody's file locks */
        return open(filename, O_PATH | O_CLOEXEC);
    }
    /* Finds a descriptor that was passed to QEMU with this access mode */
    fd = qemu_open(filename, O_RDWR, NULL);
    return fd < 0 ? qemu_open(filename, O_RDONLY, NULL) : fd;
}
#endif

void qcow2_rw_backing_file_find(Qcow2RwBackingFile *file,
                                BlockDriverState *rw_bs)
{
#ifdef O_PATH
    BlockDriverState *bs = find_file_node(rw_bs);

    if (bs && bs == file->bs &&
        !strcmp(bdrv_get_node_name(bs), file->node_name)) {
        return;
    }
    qcow2_rw_backing_file_close(file);
    if (bs) {
        bdrv_refresh_filename(bs);
        file->bs = bs;
        file->node_name = g_strdup(bdrv_get_node_name(bs));
        file->fd = open_for_stat(bs->exact_filename);
    }
#endif
}

static bool file_stat(const Qcow2RwBackingFile *file, struct stat *st)
{
    return file->fd >= 0 && fstat(file->fd, st) == 0 && S_ISREG(st->st_mode);
}

static uint32_t mtime_nsec(const struct stat *st)
{
#ifdef O_PATH
    return st->st_mtim.tv_nsec;
#else
    return 0;
#endif
}

/*
 * Files get their time from a clock that ticks every few milliseconds; some
 * file systems only keep seconds, FAT every other one.  Lets the tick of the
 * last write pass, so that any later write has a later time.
 */
static void wait_for_later_time(const struct stat *st)
{
#ifdef CLOCK_REALTIME_COARSE
    bool whole_seconds = mtime_nsec(st) == 0;
    struct timespec now;
    int i;

    /* The clock of a file server may be wrong: do not wait for long */
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    if (st->st_mtime > now.tv_sec + 2) {
        return;
    }
    for (i = 0; i < (whole_seconds ? 2100 : 20); i++) {
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
        if (now.tv_sec > st->st_mtime + whole_seconds ||
            (!whole_seconds && now.tv_sec == st->st_mtime &&
             now.tv_nsec > mtime_nsec(st))) {
            return;
        }
        g_usleep(1000);
    }
#endif
}

/* Samples */

typedef struct Samples {
    BdrvChild *rw_backing;
    uint64_t size;              /* of the RW backing, in bytes */
    GByteArray *data;
} Samples;

/* Appends the part of @offset + @len that is inside of the RW backing */
static bool coroutine_mixed_fn GRAPH_RDLOCK
samples_read(Samples *samples, uint64_t offset, uint64_t len, Error **errp)
{
    guint start = samples->data->len;
    int ret;

    len = MIN(len, samples->size - offset);
    g_byte_array_set_size(samples->data, start + len);
    ret = bdrv_pread(samples->rw_backing, offset, len,
                     samples->data->data + start, 0);
    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read %" PRIu64 " bytes at "
                         "%" PRIu64, len, offset);
        return false;
    }
    return true;
}

static bool sha256(const void *data, size_t len,
                   uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN], Error **errp)
{
    size_t digest_len = QCOW2_RW_BACKING_DIGEST_LEN;

    return qcrypto_hash_bytes(QCRYPTO_HASH_ALGO_SHA256, data, len, &digest,
                              &digest_len, errp) == 0;
}

/* The place of sample number @i in units of SAMPLES_LEN */
static bool sample_index(uint64_t seed, uint64_t i, uint64_t units,
                         uint64_t *index, Error **errp)
{
    uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN];
    uint8_t buf[16];

    stq_be_p(buf, seed);
    stq_be_p(buf + 8, i);
    if (!sha256(buf, sizeof(buf), digest, errp)) {
        return false;
    }
    *index = ldq_be_p(digest) % units;
    return true;
}

static bool coroutine_mixed_fn GRAPH_RDLOCK
samples_read_all(Samples *samples, uint64_t seed, Error **errp)
{
    uint64_t size = samples->size;
    uint64_t i, index;

    if (size <= SAMPLES_WHOLE_MAX) {
        return size == 0 || samples_read(samples, 0, size, errp);
    }
    if (!samples_read(samples, 0, SAMPLES_HEAD_LEN, errp) ||
        !samples_read(samples, size - SAMPLES_TAIL_LEN, SAMPLES_TAIL_LEN,
                      errp)) {
        return false;
    }
    for (i = 0; i < SAMPLES_COUNT; i++) {
        if (!sample_index(seed, i, DIV_ROUND_UP(size, SAMPLES_LEN), &index,
                          errp) ||
            !samples_read(samples, index * SAMPLES_LEN, SAMPLES_LEN, errp)) {
            return false;
        }
    }
    return true;
}

static bool coroutine_mixed_fn GRAPH_RDLOCK
samples_digest(BdrvChild *rw_backing, uint64_t size, uint64_t seed,
               uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN], Error **errp)
{
    g_autoptr(GByteArray) data = g_byte_array_new();
    Samples samples = {
        .rw_backing = rw_backing,
        .size       = size,
        .data       = data,
    };

    return samples_read_all(&samples, seed, errp) &&
           sha256(data->data, data->len, digest, errp);
}

/* The guard */

bool coroutine_mixed_fn
qcow2_rw_backing_guard_take(Qcow2RwBackingGuard *guard,
                            Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                            Error **errp)
{
    struct stat st;
    int64_t size;

    *guard = (Qcow2RwBackingGuard) { };

    qcow2_rw_backing_file_find(file, rw_backing->bs);
    if (file_stat(file, &st) && !has_preallocate_node(rw_backing->bs)) {
        guard->kind = QCOW2_RW_BACKING_GUARD_MTIME;
        guard->size = st.st_size;
        guard->mtime_sec = st.st_mtime;
        guard->mtime_nsec = mtime_nsec(&st);
        wait_for_later_time(&st);
        return true;
    }

    size = bdrv_getlength(rw_backing->bs);
    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get its size");
        return false;
    }
    if (qcrypto_random_bytes(&guard->seed, sizeof(guard->seed), errp) < 0 ||
        !samples_digest(rw_backing, size, guard->seed, guard->digest, errp)) {
        return false;
    }
    guard->kind = QCOW2_RW_BACKING_GUARD_SAMPLES;
    guard->size = size;
    return true;
}

/*
 * A node that becomes writable may open its file by name once more.  If there
 * is nothing of this name, QEMU has changed its directory since.
 */
static bool GRAPH_RDLOCK
name_means_other_file(BlockDriverState *rw_bs, const struct stat *st)
{
    BlockDriverState *bs = find_file_node(rw_bs);
    struct stat by_name;

    return stat(bs->exact_filename, &by_name) == 0 &&
           (by_name.st_dev != st->st_dev || by_name.st_ino != st->st_ino);
}

static bool GRAPH_RDLOCK
compare_mtime(const Qcow2RwBackingGuard *guard, Qcow2RwBackingFile *file,
              BlockDriverState *rw_bs, Error **errp)
{
    struct stat st;

    if (!file_stat(file, &st)) {
        error_setg(errp, "It has no modification time to be compared with");
        return false;
    }
    if (name_means_other_file(rw_bs, &st)) {
        error_setg(errp, "Another file has taken its name");
        return false;
    }
    if (st.st_size != guard->size) {
        error_setg(errp, "Its size has changed from %" PRIu64 " to %" PRIu64
                   " bytes", guard->size, (uint64_t)st.st_size);
        return false;
    }
    if (st.st_mtime != guard->mtime_sec ||
        mtime_nsec(&st) != guard->mtime_nsec) {
        error_setg(errp, "Its modification time has changed from %" PRId64
                   ".%09" PRIu32 " to %" PRId64 ".%09" PRIu32,
                   guard->mtime_sec, guard->mtime_nsec,
                   (int64_t)st.st_mtime, mtime_nsec(&st));
        return false;
    }
    return true;
}

static Qcow2RwBackingGuardState coroutine_mixed_fn GRAPH_RDLOCK
compare_samples(const Qcow2RwBackingGuard *guard, BdrvChild *rw_backing,
                Error **errp)
{
    uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN];
    int64_t size = bdrv_getlength(rw_backing->bs);

    if (size < 0) {
        error_setg_errno(errp, -size, "Could not get its size");
        return QCOW2_RW_BACKING_GUARD_STATE_UNCHECKED;
    }
    if (size != guard->size) {
        error_setg(errp, "Its size has changed from %" PRIu64 " to %" PRId64
                   " bytes", guard->size, size);
        return QCOW2_RW_BACKING_GUARD_STATE_MODIFIED;
    }
    if (!samples_digest(rw_backing, size, guard->seed, digest, errp)) {
        return QCOW2_RW_BACKING_GUARD_STATE_UNCHECKED;
    }
    if (memcmp(digest, guard->digest, sizeof(digest))) {
        error_setg(errp, "Its content has changed");
        return QCOW2_RW_BACKING_GUARD_STATE_MODIFIED;
    }
    return QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED;
}

Qcow2RwBackingGuardState coroutine_mixed_fn
qcow2_rw_backing_guard_compare(const Qcow2RwBackingGuard *guard,
                               Qcow2RwBackingFile *file, BdrvChild *rw_backing,
                               Error **errp)
{
    assert(guard->kind != QCOW2_RW_BACKING_GUARD_NONE);

    if (guard->kind == QCOW2_RW_BACKING_GUARD_MTIME) {
        qcow2_rw_backing_file_find(file, rw_backing->bs);
        return compare_mtime(guard, file, rw_backing->bs, errp)
            ? QCOW2_RW_BACKING_GUARD_STATE_UNCHANGED
            : QCOW2_RW_BACKING_GUARD_STATE_MODIFIED;
    }
    return compare_samples(guard, rw_backing, errp);
}
