/*
 * qcow2 RW backing: samples of content
 *
 * What a disk looks like if nothing else is known of it: the digest of some
 * places, see "Samples" in the specification.  They are where others write
 * who use the disk: partition tables, the start of partitions, the end; and at
 * random.
 *
 * A guest stands still meanwhile during migration, and a disk may be far away:
 * all places that are known are read at once.  So it takes as long as one
 * read, and a second one for what the partition table tells of; only a chain
 * of logical partitions takes a read for each of its links.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/coroutine.h"
#include "qemu/units.h"
#include "block/aio_task.h"
#include "block/block-io.h"
#include "block/qcow2-rw-backing-guard-partitions.h"
#include "crypto/hash.h"
#include "qcow2-rw-backing-guard-int.h"

#define SAMPLES_WHOLE_MAX       (4 * MiB)
#define SAMPLES_HEAD_LEN        (1 * MiB + 256 * KiB)
#define SAMPLES_TAIL_LEN        (128 * KiB)
#define SAMPLES_PARTITION_LEN   (128 * KiB)
#define SAMPLES_RANDOM_COUNT    30
#define SAMPLES_RANDOM_LEN      (16 * KiB)

/* None waits for another one */
#define SAMPLES_AT_ONCE         (2 + SAMPLES_RANDOM_COUNT + \
                                 QCOW2_RW_BACKING_MAX_PARTITIONS)

typedef struct Sample {
    uint64_t offset;
    uint64_t len;
} Sample;

typedef struct Samples {
    BdrvChild *rw_backing;
    uint64_t size;              /* of the part to look at, in bytes */
    uint64_t seed;

    /* To be read next */
    GArray *places;

    /* All that was read, in the order of the specification */
    GByteArray *data;

    /* Of those that could not be read, one; valid if there was an error */
    Sample failed;
} Samples;

typedef struct SampleTask {
    AioTask task;
    Samples *samples;
    Sample place;
    uint8_t *buf;
} SampleTask;

bool qcow2_rw_backing_sha256(const void *data, size_t len,
                             uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN],
                             Error **errp)
{
    size_t digest_len = QCOW2_RW_BACKING_DIGEST_LEN;

    return qcrypto_hash_bytes(QCRYPTO_HASH_ALGO_SHA256, data, len, &digest,
                              &digest_len, errp) == 0;
}

/* Plans to read the part of @offset + @len that is inside of the disk */
static void samples_add(Samples *samples, uint64_t offset, uint64_t len)
{
    Sample place = {
        .offset = offset,
        .len    = MIN(len, samples->size - offset),
    };

    g_array_append_val(samples->places, place);
}

/*
 * This function can count as GRAPH_RDLOCK because samples_read() holds the
 * graph lock and keeps it until this coroutine has terminated.
 */
static int coroutine_fn GRAPH_RDLOCK sample_read_entry(AioTask *task)
{
    SampleTask *t = container_of(task, SampleTask, task);
    int ret = bdrv_co_pread(t->samples->rw_backing, t->place.offset,
                            t->place.len, t->buf, 0);

    if (ret < 0) {
        t->samples->failed = t->place;
    }
    return ret;
}

/* Reads what is planned, all at once, and appends it to what is there */
static bool coroutine_fn GRAPH_RDLOCK
samples_read(Samples *samples, Error **errp)
{
    AioTaskPool *pool = aio_task_pool_new(SAMPLES_AT_ONCE);
    guint pos = samples->data->len, len = pos;
    int i, ret;

    for (i = 0; i < samples->places->len; i++) {
        len += g_array_index(samples->places, Sample, i).len;
    }
    g_byte_array_set_size(samples->data, len);

    for (i = 0; i < samples->places->len; i++) {
        SampleTask *t = g_new(SampleTask, 1);

        *t = (SampleTask) {
            .task.func  = sample_read_entry,
            .samples    = samples,
            .place      = g_array_index(samples->places, Sample, i),
            .buf        = samples->data->data + pos,
        };
        pos += t->place.len;
        aio_task_pool_start_task(pool, &t->task);
    }
    aio_task_pool_wait_all(pool);
    ret = aio_task_pool_status(pool);
    aio_task_pool_free(pool);
    g_array_set_size(samples->places, 0);

    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not read %" PRIu64 " bytes at "
                         "%" PRIu64, samples->failed.len,
                         samples->failed.offset);
        return false;
    }
    return true;
}

/* The place of random sample number @i in units of SAMPLES_RANDOM_LEN */
static bool random_index(uint64_t seed, uint64_t i, uint64_t units,
                         uint64_t *index, Error **errp)
{
    uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN];
    uint8_t buf[16];

    stq_be_p(buf, seed);
    stq_be_p(buf + 8, i);
    if (!qcow2_rw_backing_sha256(buf, sizeof(buf), digest, errp)) {
        return false;
    }
    *index = ldq_be_p(digest) % units;
    return true;
}

/* What depends on nothing but the size */
static bool coroutine_fn GRAPH_RDLOCK
read_fixed_places(Samples *samples, Error **errp)
{
    uint64_t size = samples->size;
    uint64_t i, index;

    samples_add(samples, 0, SAMPLES_HEAD_LEN);
    samples_add(samples, size - SAMPLES_TAIL_LEN, SAMPLES_TAIL_LEN);
    for (i = 0; i < SAMPLES_RANDOM_COUNT; i++) {
        if (!random_index(samples->seed, i,
                          DIV_ROUND_UP(size, SAMPLES_RANDOM_LEN), &index,
                          errp)) {
            return false;
        }
        samples_add(samples, index * SAMPLES_RANDOM_LEN, SAMPLES_RANDOM_LEN);
    }
    return samples_read(samples, errp);
}

/* One link of the chain after the other: each tells where the next one is */
static bool coroutine_fn GRAPH_RDLOCK
find_logical_partitions(Samples *samples, Qcow2RwBackingPartitions *partitions,
                        Error **errp)
{
    uint64_t ebr_start = partitions->extended;
    guint pos;
    int i;

    for (i = 0; ebr_start && i < QCOW2_RW_BACKING_MAX_LOGICAL; i++) {
        if (samples->size - ebr_start < QCOW2_RW_BACKING_MBR_LEN) {
            break;
        }
        pos = samples->data->len;
        samples_add(samples, ebr_start, QCOW2_RW_BACKING_MBR_LEN);
        if (!samples_read(samples, errp)) {
            return false;
        }
        ebr_start = qcow2_rw_backing_partitions_add_logical(
            samples->data->data + pos, ebr_start, samples->size, partitions);
    }
    return true;
}

/* What the content of the fixed places tells of */
static bool coroutine_fn GRAPH_RDLOCK
read_partitions(Samples *samples, Error **errp)
{
    Qcow2RwBackingPartitions partitions;
    int i;

    qcow2_rw_backing_partitions_parse(samples->data->data, SAMPLES_HEAD_LEN,
                                      samples->size, &partitions);
    if (!find_logical_partitions(samples, &partitions, errp)) {
        return false;
    }
    for (i = 0; i < partitions.count; i++) {
        samples_add(samples, partitions.start[i], SAMPLES_PARTITION_LEN);
    }
    return samples_read(samples, errp);
}

static bool coroutine_fn GRAPH_RDLOCK
samples_read_all(Samples *samples, Error **errp)
{
    if (samples->size == 0) {
        return true;
    }
    if (samples->size <= SAMPLES_WHOLE_MAX) {
        samples_add(samples, 0, samples->size);
        return samples_read(samples, errp);
    }
    return read_fixed_places(samples, errp) && read_partitions(samples, errp);
}

typedef struct DigestCo {
    BdrvChild *rw_backing;
    uint64_t size;
    uint64_t seed;
    uint8_t *digest;
    Error **errp;

    bool ok;
    bool done;
} DigestCo;

static void coroutine_fn GRAPH_RDLOCK digest_co(DigestCo *d)
{
    g_autoptr(GArray) places = g_array_new(false, false, sizeof(Sample));
    g_autoptr(GByteArray) data = g_byte_array_new();
    Samples samples = {
        .rw_backing = d->rw_backing,
        .size       = d->size,
        .seed       = d->seed,
        .places     = places,
        .data       = data,
    };

    d->ok = samples_read_all(&samples, d->errp) &&
            qcow2_rw_backing_sha256(data->data, data->len, d->digest, d->errp);
}

static void coroutine_fn digest_entry(void *opaque)
{
    DigestCo *d = opaque;

    bdrv_graph_co_rdlock();
    digest_co(d);
    bdrv_graph_co_rdunlock();

    d->done = true;
    aio_wait_kick();
}

bool coroutine_mixed_fn
qcow2_rw_backing_samples_digest(BdrvChild *rw_backing, uint64_t size,
                                uint64_t seed,
                                uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN],
                                Error **errp)
{
    DigestCo d = {
        .rw_backing = rw_backing,
        .size       = size,
        .seed       = seed,
        .digest     = digest,
        .errp       = errp,
    };

    if (qemu_in_coroutine()) {
        digest_co(&d);
    } else {
        BlockDriverState *bs = rw_backing->bs;

        aio_co_enter(bdrv_get_aio_context(bs),
                     qemu_coroutine_create(digest_entry, &d));
        BDRV_POLL_WHILE(bs, !d.done);
    }
    return d.ok;
}
