/*
 * The client of the benchmark: does to a block node what a guest device does,
 * by the same functions, and nothing besides, so that little is counted or
 * timed but the block layer.  It takes commands from standard input, one a
 * line, and answers each with a line of JSON: how long it took, the processor
 * time of that, the peak of memory and how many persistent bitmaps there are.
 * tests/bench/client.py builds and runs it; it is never part of QEMU.
 *
 *   open OPTIONS                 opens an image; flat options, as JSON
 *   bitmaps COUNT GRANULARITY    adds bitmaps until there are COUNT, persistent
 *                                ones where the node can store them
 *   dirty STRIDE                 marks every STRIDEth bit of all bitmaps
 *   run KIND BYTES COUNT DEPTH sequential|random
 *   profile LABEL                lets callgrind write what it has counted
 *                                since the last time
 *   close
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include <valgrind/callgrind.h>
#include "qapi/error.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "qemu/memalign.h"
#include "qemu/module.h"
#include "qemu/units.h"
#include "block/block.h"
#include "block/dirty-bitmap.h"
#include "system/block-backend.h"

/* Random requests are aligned to this, so that they fill no sparse file */
#define RANDOM_ALIGNMENT (16 * MiB)

typedef struct Run Run;

typedef struct Slot {
    Run *run;
    QEMUIOVector qiov;
} Slot;

struct Run {
    void (*submit)(Slot *slot, int64_t offset);
    int64_t bytes;              /* of one request */
    bool random;
    uint64_t left;              /* requests that are not submitted yet */
    unsigned int in_flight;
};

static BlockBackend *blk;
static int64_t length;          /* of the image, in bytes */
static int64_t next_offset;     /* of the next sequential request */
static uint64_t random_state = 88172645463325252ULL;

/* Requests */

static int64_t pick_offset(Run *run)
{
    int64_t offset;

    if (run->random) {
        /* Marsaglia's xorshift64: the same places for every image */
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        return random_state % (length / RANDOM_ALIGNMENT) * RANDOM_ALIGNMENT;
    }
    if (next_offset + run->bytes > length) {
        next_offset = 0;
    }
    offset = next_offset;
    next_offset += run->bytes;
    return offset;
}

static void next_request(Slot *slot)
{
    Run *run = slot->run;

    if (run->left) {
        run->left--;
        run->in_flight++;
        run->submit(slot, pick_offset(run));
    }
}

static void request_done(void *opaque, int ret)
{
    Slot *slot = opaque;

    if (ret < 0) {
        error_report("request failed: %s", strerror(-ret));
        exit(EXIT_FAILURE);
    }
    slot->run->in_flight--;
    next_request(slot);
}

static void submit_read(Slot *slot, int64_t offset)
{
    blk_aio_preadv(blk, offset, &slot->qiov,
                   BDRV_REQ_REGISTERED_BUF, request_done, slot);
}

static void submit_write(Slot *slot, int64_t offset)
{
    blk_aio_pwritev(blk, offset, &slot->qiov,
                    BDRV_REQ_REGISTERED_BUF, request_done, slot);
}

static void submit_zero(Slot *slot, int64_t offset)
{
    blk_aio_pwrite_zeroes(blk, offset, slot->run->bytes, 0, request_done,
                          slot);
}

static void submit_discard(Slot *slot, int64_t offset)
{
    blk_aio_pdiscard(blk, offset, slot->run->bytes, request_done, slot);
}

static void submit_flush(Slot *slot, int64_t offset)
{
    blk_aio_flush(blk, request_done, slot);
}

static const struct {
    const char *name;
    void (*submit)(Slot *slot, int64_t offset);
} kinds[] = {
    { "read", submit_read },
    { "write", submit_write },
    { "zero", submit_zero },
    { "discard", submit_discard },
    { "flush", submit_flush },
};

static void run_requests(Run *run, unsigned int depth)
{
    g_autofree Slot *slots = g_new0(Slot, depth);
    size_t size = depth * run->bytes;
    uint8_t *buffers = blk_blockalign(blk, size);
    unsigned int i;

    /* As a guest's memory is, so that drivers need not map it every time */
    memset(buffers, 0xa5, size);
    if (!blk_register_buf(blk, buffers, size, &error_fatal)) {
        exit(EXIT_FAILURE);
    }

    for (i = 0; i < depth; i++) {
        slots[i].run = run;
        qemu_iovec_init(&slots[i].qiov, 1);
        qemu_iovec_add(&slots[i].qiov, buffers + i * run->bytes, run->bytes);
    }
    for (i = 0; i < depth; i++) {
        next_request(&slots[i]);
    }
    while (run->in_flight) {
        main_loop_wait(false);
    }
    for (i = 0; i < depth; i++) {
        qemu_iovec_destroy(&slots[i].qiov);
    }
    blk_unregister_buf(blk, buffers, size);
    qemu_vfree(buffers);
}

/* Commands */

static void command_open(char **words)
{
    QDict *options = qobject_to(QDict, qobject_from_json(words[1],
                                                         &error_fatal));

    blk = blk_new_open(NULL, NULL, options, BDRV_O_RDWR, &error_fatal);
    length = blk_getlength(blk);
    next_offset = 0;
}

static void command_close(char **words)
{
    blk_unref(blk);
    blk = NULL;
}

static void command_bitmaps(char **words)
{
    BlockDriverState *bs = blk_bs(blk);
    unsigned int count = atoi(words[1]);
    uint32_t granularity = atoi(words[2]);
    BdrvDirtyBitmap *bitmap;
    unsigned int i;

    for (i = 0; i < count; i++) {
        g_autofree char *name = g_strdup_printf("bitmap%u", i);

        if (bdrv_find_dirty_bitmap(bs, name)) {
            continue;
        }
        if (bdrv_supports_persistent_dirty_bitmap(bs) &&
            !bdrv_can_store_new_dirty_bitmap(bs, name, granularity,
                                             &error_fatal)) {
            exit(EXIT_FAILURE);
        }
        bitmap = bdrv_create_dirty_bitmap(bs, granularity, name,
                                          &error_fatal);
        bdrv_dirty_bitmap_set_persistence(
            bitmap, bdrv_supports_persistent_dirty_bitmap(bs));
    }
}

static void command_dirty(char **words)
{
    uint64_t stride = atoll(words[1]);
    BdrvDirtyBitmap *bitmap;
    int64_t offset;

    FOR_EACH_DIRTY_BITMAP(blk_bs(blk), bitmap) {
        int64_t granularity = bdrv_dirty_bitmap_granularity(bitmap);

        if (stride == 1) {
            bdrv_set_dirty_bitmap(bitmap, 0, length);
            continue;
        }
        for (offset = 0; offset < length; offset += stride * granularity) {
            bdrv_set_dirty_bitmap(bitmap, offset,
                                  MIN(granularity, length - offset));
        }
    }
}

static void command_run(char **words)
{
    Run run = {
        .bytes  = atoll(words[2]),
        .left   = atoll(words[3]),
        .random = !strcmp(words[5], "random"),
    };
    size_t i;

    for (i = 0; i < ARRAY_SIZE(kinds); i++) {
        if (!strcmp(words[1], kinds[i].name)) {
            run.submit = kinds[i].submit;
        }
    }
    run_requests(&run, atoi(words[4]));
}

static void command_profile(char **words)
{
    CALLGRIND_DUMP_STATS_AT(words[1]);
}

static const struct {
    const char *name;
    int words;
    void (*function)(char **words);
} commands[] = {
    { "open", 2, command_open },
    { "close", 1, command_close },
    { "bitmaps", 3, command_bitmaps },
    { "dirty", 2, command_dirty },
    { "run", 6, command_run },
    { "profile", 2, command_profile },
};

static int64_t microseconds(const struct timeval *time)
{
    return time->tv_sec * INT64_C(1000000) + time->tv_usec;
}

/* Of all threads, and of what the kernel does in their name */
static int64_t cpu_time(const struct rusage *usage)
{
    return microseconds(&usage->ru_utime) + microseconds(&usage->ru_stime);
}

static unsigned int persistent_bitmaps(void)
{
    BdrvDirtyBitmap *bitmap;
    unsigned int count = 0;

    if (blk) {
        FOR_EACH_DIRTY_BITMAP(blk_bs(blk), bitmap) {
            count += bdrv_dirty_bitmap_get_persistence(bitmap);
        }
    }
    return count;
}

static void measure(void (*function)(char **words), char **words)
{
    struct rusage before, after;
    int64_t start, end;

    getrusage(RUSAGE_SELF, &before);
    start = g_get_monotonic_time();
    function(words);
    end = g_get_monotonic_time();
    getrusage(RUSAGE_SELF, &after);

    printf("{\"microseconds\": %" PRId64 ", \"cpu_microseconds\": %" PRId64
           ", \"peak_kib\": %ld, \"persistent\": %u}\n",
           end - start, cpu_time(&after) - cpu_time(&before),
           after.ru_maxrss, persistent_bitmaps());
    fflush(stdout);
}

static void obey(char *line)
{
    g_auto(GStrv) words = NULL;
    size_t i;

    g_strchomp(line);
    words = g_strsplit(line, " ", g_str_has_prefix(line, "open ") ? 2 : 0);
    for (i = 0; i < ARRAY_SIZE(commands); i++) {
        if (!strcmp(words[0], commands[i].name) &&
            g_strv_length(words) == commands[i].words) {
            measure(commands[i].function, words);
            return;
        }
    }
    error_report("unknown command: %s", line);
    exit(EXIT_FAILURE);
}

int main(int argc, char **argv)
{
    char *line = NULL;
    size_t size = 0;

    error_init(argv[0]);
    qemu_init_exec_dir(argv[0]);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_fatal);
    bdrv_init();

    while (getline(&line, &size, stdin) > 0) {
        obey(line);
    }
    free(line);
    return 0;
}
