/*
 * States that a crash can leave: what is done before
 *
 * The guest has some requests under way at a time, and goes on while commands
 * run.  Each command is a function that tells the truth, for the time while it
 * runs and for the time after it, see crash-qcow2-rw-backing-truth.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitmap.h"
#include "qemu/coroutine.h"
#include "qemu/job.h"
#include "qemu/main-loop.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-block-core.h"
#include "qapi/qapi-commands-job.h"
#include "qapi/qapi-commands-transaction.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "block/block_int.h"
#include "block/qdict.h"
#include "system/block-backend.h"
#include "crash-qcow2-rw-backing.h"
#include "../../block/qcow2-rw-backing-map-option.h"

#define WRITERS         4
#define LONGEST         (128 * KiB)
#define MAX_BITMAPS     5

/* Between two checkpoints */
#define CHECKPOINT_SECONDS  10

/* Of the allocation map */
#define GRANULE         (64 * KiB)

static BlockDriverState *disk_bs, *file_bs, *shell_bs;
static BlockBackend *guest_blk;
/* Without it, bdrv_inactivate_all() does not find the shell */
static BlockBackend *holder_blk;
static const CrashOptions *options;

/* What the last write has written, different for each of them */
static uint32_t stamp;

static unsigned bitmap_names;
static bool has_map;

/* False if the code does not know the option */
static bool has_checkpoints = true;

/* The guest */

typedef struct Writer {
    Coroutine *co;
    bool parked;
    uint64_t next_offset;
    uint32_t *buf;
} Writer;

static Writer writers[WRITERS];

/* How many requests it may still begin, and how many are under way */
static unsigned guest_quota, guest_active, guest_writers;
static bool guest_leaves;
/* It does not write behind that; where it likes to write */
static uint64_t guest_limit, guest_area;

static void coroutine_fn guest_write(Writer *w, uint64_t offset,
                                     uint64_t bytes)
{
    QEMUIOVector qiov = QEMU_IOVEC_INIT_BUF(qiov, w->buf, bytes);

    stamp++;
    for (uint64_t i = 0; i < bytes / sizeof(*w->buf); i++) {
        w->buf[i] = stamp;
    }
    blk_co_pwritev(guest_blk, offset, bytes, &qiov,
                   crash_one_in(8) ? BDRV_REQ_FUA : 0);
}

static void coroutine_fn guest_request(Writer *w)
{
    uint64_t len = MIN(guest_limit, guest_area);
    uint64_t bytes = (1 + crash_random(crash_one_in(4) ? LONGEST / SECTOR
                                                       : 16)) * SECTOR;
    uint64_t offset = (uint64_t)crash_random(len / SECTOR) * SECTOR;
    unsigned kind;

    if (crash_one_in(3)) {
        offset = w->next_offset;
    } else if (crash_one_in(2)) {
        offset %= 2 * MiB;
    }
    bytes = MIN(bytes, len);
    offset = MIN(offset, len - bytes);
    w->next_offset = offset + bytes;
    kind = crash_random(12);
    if (has_map && kind >= 1 && kind <= 3) {
        /* Granules are made zero if all of them are written */
        bytes = MIN(QEMU_ALIGN_UP(offset + bytes, GRANULE), len);
        offset = QEMU_ALIGN_DOWN(offset, GRANULE);
        bytes -= offset;
        kind = 1 + crash_random(2);
    }
    crash_truth_touch(offset, bytes);

    switch (kind) {
    case 0:
        blk_co_flush(guest_blk);
        break;
    case 1:
        blk_co_pwrite_zeroes(guest_blk, offset, bytes, BDRV_REQ_MAY_UNMAP);
        break;
    case 2:
        blk_co_pdiscard(guest_blk, offset, bytes, 0);
        break;
    default:
        guest_write(w, offset, bytes);
        break;
    }
}

static void coroutine_fn writer_entry(void *opaque)
{
    Writer *w = opaque;

    while (!guest_leaves) {
        if (!guest_quota) {
            w->parked = true;
            qemu_coroutine_yield();
            continue;
        }
        guest_quota--;
        guest_active++;
        guest_request(w);
        guest_active--;
    }
    guest_writers--;
}

/* Lets it begin @n more requests, as soon as the main loop runs */
static void guest_grant(unsigned n)
{
    guest_quota += n;
    for (int i = 0; i < WRITERS; i++) {
        if (writers[i].parked) {
            writers[i].parked = false;
            aio_co_schedule(qemu_get_aio_context(), writers[i].co);
        }
    }
}

/* As the main loop: timers of the AioContext are not all of them */
static void poll_main(bool blocking)
{
    aio_poll(qemu_get_aio_context(), blocking);
    qemu_clock_run_all_timers();
}

static void poll_until(bool (*done)(void))
{
    while (!done()) {
        poll_main(true);
    }
}

static bool guest_has_begun_all(void)
{
    return !guest_quota;
}

static bool guest_is_idle(void)
{
    return !guest_quota && !guest_active;
}

static bool guest_has_left(void)
{
    return !guest_writers;
}

/* Some of its requests may be under way afterwards */
static void guest_run(unsigned n)
{
    guest_grant(n);
    poll_until(guest_has_begun_all);
}

static void guest_start(void)
{
    guest_blk = blk_new(qemu_get_aio_context(),
                        BLK_PERM_CONSISTENT_READ | BLK_PERM_WRITE,
                        BLK_PERM_ALL);
    blk_insert_bs(guest_blk, shell_bs, &error_abort);
    blk_set_enable_write_cache(guest_blk, true);
    guest_leaves = false;
    guest_limit = crash_disk.image.len;
    guest_writers = WRITERS;
    for (int i = 0; i < WRITERS; i++) {
        writers[i].co = qemu_coroutine_create(writer_entry, &writers[i]);
        writers[i].parked = true;
        writers[i].next_offset = 0;
        if (!writers[i].buf) {
            writers[i].buf = g_malloc(LONGEST);
        }
    }
}

static void guest_end(void)
{
    poll_until(guest_is_idle);
    guest_leaves = true;
    guest_grant(0);
    poll_until(guest_has_left);
    blk_unref(guest_blk);
    guest_blk = NULL;
}

/* Commands */

typedef void CommandFunc(QDict *args, QObject **ret, Error **errp);

static const struct {
    const char *name;
    CommandFunc *func;
    bool coroutine;
} commands[] = {
    { "block-dirty-bitmap-add", qmp_marshal_block_dirty_bitmap_add },
    { "block-dirty-bitmap-remove", qmp_marshal_block_dirty_bitmap_remove },
    { "block-dirty-bitmap-clear", qmp_marshal_block_dirty_bitmap_clear },
    { "block-dirty-bitmap-enable", qmp_marshal_block_dirty_bitmap_enable },
    { "block-dirty-bitmap-disable", qmp_marshal_block_dirty_bitmap_disable },
    { "block-dirty-bitmap-merge", qmp_marshal_block_dirty_bitmap_merge },
    { "transaction", qmp_marshal_transaction },
    { "blockdev-backup", qmp_marshal_blockdev_backup },
    { "block_resize", qmp_marshal_block_resize, true },
    { "job-cancel", qmp_marshal_job_cancel },
    { "job-dismiss", qmp_marshal_job_dismiss },
};

/* The shell keeps a write-intent log */
static bool has_log;

typedef struct Command {
    CommandFunc *func;
    QDict *args;
    Error *err;
    bool done;
} Command;

static void coroutine_fn command_entry(void *opaque)
{
    Command *command = opaque;
    QObject *ret = NULL;

    command->func(command->args, &ret, &command->err);
    qobject_unref(ret);
    command->done = true;
}

/*
 * Runs a QMP command; the arguments are given as JSON, with format directives.
 * Returns false if it has failed.
 */
static bool G_GNUC_PRINTF(2, 3)
command(const char *name, const char *args, ...)
{
    Command cmd = { };
    bool coroutine = false;
    va_list ap;

    va_start(ap, args);
    cmd.args = qdict_from_vjsonf_nofail(args, ap);
    va_end(ap);
    for (int i = 0; i < ARRAY_SIZE(commands); i++) {
        if (!strcmp(name, commands[i].name)) {
            cmd.func = commands[i].func;
            coroutine = commands[i].coroutine;
        }
    }
    crash_note("%s", name);
    if (coroutine) {
        aio_co_enter(qemu_get_aio_context(),
                     qemu_coroutine_create(command_entry, &cmd));
        while (!cmd.done) {
            poll_main(true);
        }
    } else {
        command_entry(&cmd);
    }
    qobject_unref(cmd.args);
    crash_note("%s: %s", name, cmd.err ? error_get_pretty(cmd.err) : "done");
    if (cmd.err) {
        error_free(cmd.err);
        return false;
    }
    return true;
}

/* Without faults, all has to work */
static void must_work(bool worked, const char *what)
{
    if (!worked && !options->faults) {
        crash_fail(crash_now(), what);
    }
}

/* Bitmaps */

static uint64_t blocks_of(const CrashBitmap *bitmap)
{
    return DIV_ROUND_UP(crash_disk.image.len, bitmap->granularity);
}

/* Bits that it has now, freed with the truth; NULL if faults have cost it */
static unsigned long *bits_now(const CrashBitmap *bitmap)
{
    g_autoptr(GPtrArray) all = crash_read_node(shell_bs);
    const CrashFound *found = crash_found(all, bitmap->name);

    if (!found || found->inconsistent) {
        must_work(false, "A bitmap is lost");
        return NULL;
    }
    return crash_truth_bits_or(NULL, found->bits, blocks_of(bitmap));
}

/* If it is disabled, it keeps just what it has now */
static void set_exact_if_disabled(CrashBitmap *bitmap, CrashTruth *truth)
{
    truth->exact = NULL;
    if (truth->recording == 0) {
        truth->exact = bits_now(bitmap);
        truth->exact_blocks = blocks_of(bitmap);
        truth->base = NULL;
        truth->must = NULL;
    }
}

static CrashTruth *next_without_exact(CrashBitmap *bitmap)
{
    CrashTruth *truth = crash_truth_next(bitmap);

    truth->exact = NULL;
    return truth;
}

/* From now on, and nothing is known of what was before */
static void set_cleared(CrashBitmap *bitmap)
{
    CrashTruth *truth = crash_truth_next(bitmap);

    truth->must = NULL;
    truth->base = crash_truth_base_now();
    set_exact_if_disabled(bitmap, truth);
}

static bool is_present(CrashBitmap *bitmap)
{
    return crash_truth_last(bitmap)->presence == CRASH_PRESENT;
}

static unsigned count_bitmaps(void)
{
    unsigned n = 0;

    for (int i = 0; i < crash_bitmaps->len; i++) {
        n += is_present(crash_bitmaps->pdata[i]);
    }
    return n;
}

/* Any that is there, other than @but; NULL if there is none */
static CrashBitmap *any_bitmap(const CrashBitmap *but)
{
    unsigned start = crash_bitmaps->len ? crash_random(crash_bitmaps->len) : 0;

    for (int i = 0; i < crash_bitmaps->len; i++) {
        CrashBitmap *bitmap =
            crash_bitmaps->pdata[(start + i) % crash_bitmaps->len];

        if (bitmap != but && is_present(bitmap)) {
            return bitmap;
        }
    }
    return NULL;
}

static CrashBitmap *any_bitmap_that_records(bool records,
                                            const CrashBitmap *but)
{
    for (int i = 0; i < 10; i++) {
        CrashBitmap *bitmap = any_bitmap(but);

        if (bitmap && crash_truth_last(bitmap)->recording == records) {
            return bitmap;
        }
    }
    return NULL;
}

static uint32_t any_granularity(void)
{
    static const uint32_t granularities[] = {
        512, 512, 4 * KiB, 64 * KiB, 64 * KiB, 64 * KiB, 1 * MiB
    };

    return granularities[crash_random(ARRAY_SIZE(granularities))];
}

static CrashBitmap *new_bitmap(void)
{
    g_autofree char *name = g_strdup_printf("b%u", bitmap_names++);
    CrashBitmap *bitmap = crash_bitmap_new(name, any_granularity());

    /* The command has not been sent yet */
    crash_truth_last(bitmap)->presence = CRASH_PERHAPS;
    return bitmap;
}

/* Of one that was to be added */
static void set_added(CrashBitmap *bitmap, bool added, bool records)
{
    CrashTruth *truth = crash_truth_next(bitmap);

    truth->presence = added ? CRASH_PRESENT : CRASH_ABSENT;
    truth->recording = records;
    truth->base = added ? crash_truth_base_now() : NULL;
    if (added) {
        set_exact_if_disabled(bitmap, truth);
    }
}

/* What happens */

static void do_add(void)
{
    bool disabled = crash_one_in(4);
    CrashBitmap *bitmap;
    bool added;

    if (count_bitmaps() >= MAX_BITMAPS) {
        return;
    }
    bitmap = new_bitmap();
    added = command("block-dirty-bitmap-add", "{'node': 'shell', 'name': %s, "
                    "'granularity': %u, 'persistent': true, 'disabled': %i}",
                    bitmap->name, bitmap->granularity, disabled);
    must_work(added, "A bitmap cannot be added");
    set_added(bitmap, added, !disabled);
}

static void do_remove(void)
{
    CrashBitmap *bitmap = any_bitmap(NULL);
    bool removed;

    if (!bitmap) {
        return;
    }
    crash_truth_next(bitmap)->presence = CRASH_PERHAPS;
    removed = command("block-dirty-bitmap-remove",
                      "{'node': 'shell', 'name': %s}", bitmap->name);
    must_work(removed, "A bitmap cannot be removed");
    crash_truth_next(bitmap)->presence = removed ? CRASH_ABSENT
                                                 : CRASH_PERHAPS;
}

static void do_clear(void)
{
    CrashBitmap *bitmap = any_bitmap(NULL);
    CrashTruth *truth;

    if (!bitmap) {
        return;
    }
    truth = next_without_exact(bitmap);
    truth->base = NULL;
    truth->must = NULL;
    must_work(command("block-dirty-bitmap-clear",
                      "{'node': 'shell', 'name': %s}", bitmap->name),
              "A bitmap cannot be cleared");
    set_cleared(bitmap);
}

static void do_merge(void)
{
    CrashBitmap *to = any_bitmap(NULL);
    CrashBitmap *from = any_bitmap(to);
    unsigned long *bits;
    CrashTruth *truth;

    if (!from || from->granularity != to->granularity) {
        return;
    }
    bits = bits_now(from);
    next_without_exact(to);
    must_work(command("block-dirty-bitmap-merge", "{'node': 'shell', "
                      "'target': %s, 'bitmaps': [%s]}", to->name, from->name),
              "Bitmaps cannot be merged");
    truth = crash_truth_next(to);
    truth->must = crash_truth_bits_or(truth->must, bits, blocks_of(to));
    set_exact_if_disabled(to, truth);
}

/* What one bitmap has goes to another one, in one step */
static void do_move(void)
{
    CrashBitmap *to = any_bitmap(NULL);
    CrashBitmap *from = any_bitmap_that_records(true, to);
    unsigned long *bits;
    CrashTruth *truth;

    if (!from || from->granularity != to->granularity) {
        return;
    }
    bits = bits_now(from);
    next_without_exact(to);
    crash_truth_next(from)->other = to;
    must_work(command("transaction", "{'actions': ["
                      "{'type': 'block-dirty-bitmap-merge', 'data': "
                      "{'node': 'shell', 'target': %s, 'bitmaps': [%s]}},"
                      "{'type': 'block-dirty-bitmap-clear', 'data': "
                      "{'node': 'shell', 'name': %s}}]}",
                      to->name, from->name, from->name),
              "A bitmap cannot be moved to another one");
    truth = crash_truth_next(to);
    truth->must = crash_truth_bits_or(truth->must, bits, blocks_of(to));
    set_exact_if_disabled(to, truth);
    set_cleared(from);
}

/* Before it is disabled: what it has now, and perhaps more */
static void set_being_disabled(CrashBitmap *bitmap)
{
    CrashTruth *truth = crash_truth_next(bitmap);

    truth->must = bits_now(bitmap);
    truth->base = NULL;
    truth->recording = -1;
}

static void set_disabled(CrashBitmap *bitmap)
{
    CrashTruth *truth = crash_truth_next(bitmap);

    truth->recording = 0;
    set_exact_if_disabled(bitmap, truth);
}

static void do_disable(void)
{
    CrashBitmap *bitmap = any_bitmap_that_records(true, NULL);

    if (!bitmap) {
        return;
    }
    set_being_disabled(bitmap);
    must_work(command("block-dirty-bitmap-disable",
                      "{'node': 'shell', 'name': %s}", bitmap->name),
              "A bitmap cannot be disabled");
    set_disabled(bitmap);
}

static void do_enable(void)
{
    CrashBitmap *bitmap = any_bitmap_that_records(false, NULL);
    unsigned long *bits;
    CrashTruth *truth;

    if (!bitmap) {
        return;
    }
    bits = bits_now(bitmap);
    truth = next_without_exact(bitmap);
    truth->recording = -1;
    truth->must = bits;
    truth->base = NULL;
    must_work(command("block-dirty-bitmap-enable",
                      "{'node': 'shell', 'name': %s}", bitmap->name),
              "A bitmap cannot be enabled");
    truth = crash_truth_next(bitmap);
    truth->recording = 1;
    truth->base = crash_truth_base_now();
}

/* One is disabled, a new one begins, as backup programs do */
static void do_succeed(void)
{
    CrashBitmap *old = any_bitmap_that_records(true, NULL);
    CrashBitmap *new;
    bool worked;

    if (!old || count_bitmaps() >= MAX_BITMAPS) {
        return;
    }
    set_being_disabled(old);
    new = new_bitmap();
    worked = command("transaction", "{'actions': ["
                     "{'type': 'block-dirty-bitmap-disable', 'data': "
                     "{'node': 'shell', 'name': %s}},"
                     "{'type': 'block-dirty-bitmap-add', 'data': "
                     "{'node': 'shell', 'name': %s, 'granularity': %u, "
                     "'persistent': true}}]}",
                     old->name, new->name, new->granularity);
    must_work(worked, "A bitmap cannot take over from another one");
    set_disabled(old);
    set_added(new, worked, true);
}

static void open_node(const char *name, const char *node,
                      BlockDriverState **bs)
{
    QDict *dict = qdict_new();

    qdict_put_str(dict, "driver", "crash-memory");
    qdict_put_str(dict, "name", name);
    qdict_put_str(dict, "node-name", node);
    qdict_put_str(dict, "discard", "unmap");
    *bs = bdrv_open(NULL, NULL, dict, BDRV_O_RDWR, &error_abort);
}

/* A transaction whose last action fails */
static void do_undo(void)
{
    CrashBitmap *a = any_bitmap_that_records(true, NULL);
    CrashBitmap *new;

    if (!a || count_bitmaps() >= MAX_BITMAPS) {
        return;
    }
    new = new_bitmap();
    if (command("transaction", "{'actions': ["
                "{'type': 'block-dirty-bitmap-add', 'data': "
                "{'node': 'shell', 'name': %s, 'granularity': %u, "
                "'persistent': true}},"
                "{'type': 'block-dirty-bitmap-clear', 'data': "
                "{'node': 'shell', 'name': %s}},"
                "{'type': 'block-dirty-bitmap-disable', 'data': "
                "{'node': 'shell', 'name': %s}},"
                "{'type': 'abort', 'data': {}}]}",
                new->name, new->granularity, a->name, a->name)) {
        crash_fail(crash_now(), "A transaction was not undone");
    }
    set_added(new, false, true);
}

/* The guest goes on while another action of it takes long */
static void do_undo_slowly(void)
{
    CrashBitmap *bitmap = any_bitmap_that_records(true, NULL);
    BlockDriverState *source_bs, *target_bs;

    if (!bitmap) {
        return;
    }
    crash_target.image.len = SECTOR;
    open_node("target", "slow", &source_bs);
    open_node("target", "target", &target_bs);
    crash_target.slow = true;
    if (command("transaction", "{'actions': ["
                "{'type': 'block-dirty-bitmap-clear', 'data': "
                "{'node': 'shell', 'name': %s}},"
                "{'type': 'blockdev-backup', 'data': {'job-id': 'slow', "
                "'device': 'slow', 'target': 'target', 'sync': 'full'}},"
                "{'type': 'abort', 'data': {}}]}", bitmap->name)) {
        crash_fail(crash_now(), "A transaction was not undone");
    }
    crash_target.slow = false;
    bdrv_unref(target_bs);
    bdrv_unref(source_bs);
}

/* A bitmap that was to be removed, and is as before */
static void do_undo_removal(void)
{
    CrashBitmap *bitmap = any_bitmap(NULL);

    if (bitmap &&
        command("transaction", "{'actions': ["
                "{'type': 'block-dirty-bitmap-remove', 'data': "
                "{'node': 'shell', 'name': %s}},"
                "{'type': 'abort', 'data': {}}]}", bitmap->name)) {
        crash_fail(crash_now(), "A transaction was not undone");
    }
}

static void resize(uint64_t new_len)
{
    uint64_t len = crash_disk.image.len;

    poll_until(guest_is_idle);
    guest_limit = MIN(len, new_len);
    crash_truth_touch(guest_limit, MAX(len, new_len) - guest_limit);
    /* The end of the disk is marked */
    crash_truth_touch(guest_limit - SECTOR, SECTOR);
    guest_grant(crash_random(8));
    for (int i = 0; i < crash_bitmaps->len; i++) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];
        CrashTruth *truth;

        if (is_present(bitmap)) {
            truth = crash_truth_next(bitmap);
            truth->exact_blocks = MIN(truth->exact_blocks,
                                      MIN(len, new_len) / bitmap->granularity);
        }
    }
    must_work(command("block_resize", "{'node-name': 'shell', 'size': %" PRIu64
                      "}", new_len), "The disk cannot be resized");
    guest_limit = crash_disk.image.len;
    for (int i = 0; i < crash_bitmaps->len; i++) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];

        if (is_present(bitmap)) {
            CrashTruth *truth = crash_truth_next(bitmap);

            set_exact_if_disabled(bitmap, truth);
            if (has_log) {
                /* What was cut off comes back with what was stored */
                truth->exact = NULL;
            }
        }
    }
}

static void do_shrink(void)
{
    uint64_t len = crash_disk.image.len;

    resize(len - crash_random(len / 4 / SECTOR) * SECTOR);
}

static void do_grow(void)
{
    uint64_t len = crash_disk.image.len;

    resize(len + crash_random((CRASH_DISK_MAX - len) / SECTOR + 1) * SECTOR);
}

/* What was cut off does not come back, so its backup is wrong */
static void do_shrink_and_grow(void)
{
    do_shrink();
    guest_run(crash_random(4));
    do_grow();
}

/*
 * A checkpoint begins by itself, and has come to some point afterwards: all of
 * them are less than @requests to the shell away.  The guest goes on.
 */
static void run_checkpoint(unsigned requests)
{
    uint64_t end = crash_shell.begun + 1 + crash_random(requests);

    if (!has_checkpoints) {
        return;
    }
    crash_note("wait");
    crash_skip_time(CHECKPOINT_SECONDS + 1);
    for (int i = 0; i < 1500 && crash_shell.begun < end; i++) {
        if (crash_one_in(16)) {
            guest_grant(1);
        }
        poll_main(false);
    }
}

/* One checkpoint after the other, so that they share what has not changed */
static void do_wait(void)
{
    bool fast = crash_one_in(2);

    for (int n = 1 + crash_random(fast ? 8 : 4); n > 0; n--) {
        run_checkpoint(fast ? 25 : 60);
        if (!fast && crash_one_in(2)) {
            poll_until(guest_is_idle);
        }
    }
}

/* Backups */

static bool job_has_concluded(void)
{
    JOB_LOCK_GUARD();
    return job_get_locked("backup")->status == JOB_STATUS_CONCLUDED;
}

static bool job_has_worked(void)
{
    JOB_LOCK_GUARD();
    return job_get_locked("backup")->ret == 0;
}

/*
 * Returns when it was seen last that the job had not ended yet; @before is when
 * it was not there yet
 */
static int64_t wait_for_backup(const CrashBitmap *bitmap, int64_t before)
{
    unsigned cancel_at = crash_one_in(4) ? crash_random(200) : UINT_MAX;
    unsigned clear_at = crash_random(100);
    unsigned wait_at = crash_random(20);
    unsigned steps = 0;

    while (!job_has_concluded()) {
        before = crash_now();
        if (steps == cancel_at) {
            command("job-cancel", "{'id': 'backup'}");
        }
        if (steps == clear_at) {
            CrashBitmap *other = any_bitmap(bitmap);

            if (other) {
                CrashTruth *truth = next_without_exact(other);

                truth->base = NULL;
                truth->must = NULL;
                command("block-dirty-bitmap-clear",
                        "{'node': 'shell', 'name': %s}", other->name);
                set_cleared(other);
            }
        }
        if (steps == wait_at) {
            run_checkpoint(60);
        }
        if (crash_one_in(4)) {
            guest_grant(1);
        }
        /* It may have ended in the checkpoint, with nothing left to wait for */
        poll_main(steps != wait_at);
        steps++;
    }
    return before;
}

static void do_backup(void)
{
    CrashBitmap *bitmap = any_bitmap_that_records(true, NULL);
    bool clears = !crash_one_in(4);
    BlockDriverState *target_bs;
    CrashTruth *truth;
    int64_t before;

    if (!bitmap || !crash_truth_last(bitmap)->base) {
        return;
    }
    /* What is copied goes over what the last backup has copied */
    crash_target.image.len = crash_disk.image.len;
    memcpy(crash_target.image.stamps, crash_truth_last(bitmap)->base,
           CRASH_DISK_MAX / SECTOR * sizeof(uint32_t));
    open_node("target", "target", &target_bs);
    before = crash_now();
    if (!command("blockdev-backup", "{'job-id': 'backup', 'device': 'shell', "
                 "'target': 'target', 'sync': 'bitmap', 'bitmap': %s, "
                 "'bitmap-mode': %s, 'auto-dismiss': false}", bitmap->name,
                 clears ? "on-success" : "never")) {
        must_work(false, "A backup cannot be started");
        bdrv_unref(target_bs);
        return;
    }
    before = wait_for_backup(bitmap, before);
    if (clears && job_has_worked()) {
        /* The bitmap was changed at some time since then */
        truth = crash_truth_next(bitmap);
        truth->from = before;
        truth->or_before = true;
        truth->base = crash_truth_base_copy(crash_target.image.stamps);
        crash_disk_mark_doubtful(truth->base, false);
        truth->must = NULL;
        crash_truth_next(bitmap);
    }
    command("job-dismiss", "{'id': 'backup'}");
    bdrv_unref(target_bs);
}

/* Sessions */

/* What is true while the image is about to be sealed: nothing is written */
static void set_sealing(void)
{
    for (int i = 0; i < crash_bitmaps->len; i++) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];

        if (is_present(bitmap)) {
            CrashTruth *truth = crash_truth_next(bitmap);

            truth->exact = bits_now(bitmap);
            truth->exact_blocks = blocks_of(bitmap);
            /* Until the seal is there, a log has what it had before */
            truth->or_before = has_log;
        }
    }
}

/* What was stored has to be exact, unless it could not be stored */
static void set_sealed(bool sealed)
{
    for (int i = 0; i < crash_bitmaps->len; i++) {
        if (is_present(crash_bitmaps->pdata[i])) {
            CrashTruth *truth = crash_truth_next(crash_bitmaps->pdata[i]);

            truth->sealed = sealed && !crash_shell.flush_has_failed &&
                            !crash_disk.flush_has_failed;
            truth->or_before = false;
            if (has_log && !truth->sealed && truth->recording) {
                truth->exact = NULL;
            }
        }
    }
}

/* From now on, there may be writes */
static void set_unsealed(void)
{
    for (int i = 0; i < crash_bitmaps->len; i++) {
        if (is_present(crash_bitmaps->pdata[i])) {
            CrashTruth *truth = crash_truth_next(crash_bitmaps->pdata[i]);

            if (truth->recording) {
                truth->exact = NULL;
            }
        }
    }
}

static void close_nodes(void)
{
    blk_unref(holder_blk);
    bdrv_unref(shell_bs);
    bdrv_unref(file_bs);
    bdrv_unref(disk_bs);
    holder_blk = NULL;
    shell_bs = file_bs = disk_bs = NULL;
}

static BlockDriverState *open_shell(bool checkpoints, Error **errp)
{
    QDict *dict = qdict_new();

    qdict_put_str(dict, "driver", "qcow2");
    qdict_put_str(dict, "node-name", "shell");
    qdict_put_str(dict, "file", "file");
    qdict_put_str(dict, "rw-backing", "disk");
    qdict_put_str(dict, "discard", "unmap");
    if (checkpoints) {
        qdict_put_int(dict, CRASH_CHECKPOINT_OPTION, CHECKPOINT_SECONDS);
    }
    return bdrv_open(NULL, NULL, dict, BDRV_O_RDWR | BDRV_O_RESIZE, errp);
}

static bool open_image(void)
{
    Error *err = NULL;

    crash_note("open");
    set_unsealed();
    open_node("disk", "disk", &disk_bs);
    open_node("shell", "file", &file_bs);
    shell_bs = open_shell(has_checkpoints, &err);
    if (!shell_bs && strstr(error_get_pretty(err), CRASH_CHECKPOINT_OPTION)) {
        g_clear_pointer(&err, error_free);
        has_checkpoints = false;
        shell_bs = open_shell(false, &err);
    }
    if (!shell_bs) {
        crash_note("open: %s", error_get_pretty(err));
        error_free(err);
        must_work(false, "The shell cannot be opened");
        close_nodes();
        return false;
    }
    holder_blk = blk_new(qemu_get_aio_context(), 0, BLK_PERM_ALL);
    blk_insert_bs(holder_blk, shell_bs, &error_abort);
    blk_set_force_allow_inactivate(holder_blk);
    crash_note("opened");
    return true;
}

static void close_image(void)
{
    set_sealing();
    crash_note("close");
    close_nodes();
    crash_note("closed");
    set_sealed(true);
}

static void do_reopen(void)
{
    Error *err = NULL;

    guest_end();
    set_sealing();
    crash_note("reopen read-only");
    bdrv_reopen_set_read_only(shell_bs, true, &err);
    crash_note("reopen read-only: %s", err ? error_get_pretty(err) : "done");
    must_work(!err, "It cannot be reopened read-only");
    set_sealed(!err);
    g_clear_pointer(&err, error_free);

    crash_note("reopen read-write");
    set_unsealed();
    bdrv_reopen_set_read_only(shell_bs, false, &err);
    crash_note("reopen read-write: %s", err ? error_get_pretty(err) : "done");
    must_work(!err, "It cannot be reopened read-write");
    error_free(err);
    guest_start();
}

static void do_inactivate(void)
{
    Error *err = NULL;
    int ret;

    guest_end();
    set_sealing();
    crash_note("inactivate");
    ret = bdrv_inactivate_all();
    crash_note("inactivate: %d", ret);
    must_work(ret == 0, "It cannot be inactivated");
    set_sealed(ret == 0);

    crash_note("activate");
    set_unsealed();
    bdrv_activate_all(&err);
    crash_note("activate: %s", err ? error_get_pretty(err) : "done");
    must_work(!err, "It cannot be activated");
    error_free(err);
    guest_start();
}

/* Those that are inconsistent are of no more use */
static void remove_inconsistent(void)
{
    g_autoptr(GPtrArray) found = crash_read_node(shell_bs);

    for (int i = 0; i < found->len; i++) {
        const CrashFound *f = found->pdata[i];
        CrashBitmap *bitmap = crash_bitmap_find(f->name, crash_now());

        if (!f->inconsistent) {
            continue;
        }
        if (bitmap) {
            crash_truth_next(bitmap)->presence = CRASH_PERHAPS;
        }
        must_work(command("block-dirty-bitmap-remove",
                          "{'node': 'shell', 'name': %s}", f->name),
                  "An inconsistent bitmap cannot be removed");
        if (bitmap) {
            crash_truth_next(bitmap)->presence = CRASH_ABSENT;
        }
    }
}

/* Compares what is in memory with the truth */
static void check_node(bool usable)
{
    g_autoptr(GPtrArray) found = crash_read_node(shell_bs);
    CrashVerdict verdict = { };
    char *wrong = crash_compare(found, &crash_disk.image, crash_now(), usable,
                                &verdict);

    if (wrong) {
        crash_fail(crash_now(), wrong);
    }
}

/* After faults, some may be lost; if they come back, they are right */
static void forget_lost(void)
{
    g_autoptr(GPtrArray) found = crash_read_node(shell_bs);

    for (int i = 0; i < crash_bitmaps->len; i++) {
        CrashBitmap *bitmap = crash_bitmaps->pdata[i];
        const CrashFound *f = crash_found(found, bitmap->name);

        if (is_present(bitmap) && (!f || f->inconsistent)) {
            must_work(false, "A bitmap is lost");
            crash_truth_next(bitmap)->presence = CRASH_PERHAPS;
        }
    }
}

static bool storage_fails(void)
{
    return crash_disk.fail_flush || crash_disk.flush_has_failed;
}

/*
 * Somebody looks for zeroes while the guest goes on.  Once a flush has failed,
 * and the host has not crashed since, the disk may read what it does not have:
 * within a session it is refused, and otherwise the guide warns of it.
 */
static void do_scan(void)
{
    if (has_map && !crash_disk.flush_has_failed) {
        crash_note("scan");
        GRAPH_RDLOCK_GUARD_MAINLOOP();
        qcow2_shell_set_map_sync(shell_bs, BLOCKDEV_QCOW2_RW_BACKING_MAP_SCAN,
                                 NULL, NULL, NULL);
    }
}

static void session(void)
{
    static void (*const actions[])(void) = {
        do_add, do_add, do_remove, do_clear, do_merge, do_move, do_disable,
        do_enable, do_succeed, do_undo, do_undo_slowly, do_undo_removal,
        do_shrink, do_grow,
        do_shrink_and_grow, do_backup, do_backup, do_reopen,
        do_inactivate, do_wait, do_wait, do_wait, do_scan, do_scan,
    };

    /*
     * If the disk fails, commands may not be durable with a log: these leave
     * nothing that is wrong then.
     */
    static void (*const faulty_actions[])(void) = {
        do_add, do_clear, do_backup, do_backup, do_wait, do_wait, do_undo,
        do_undo_slowly, do_reopen, do_inactivate, do_scan,
    };
    bool restricted = has_log && storage_fails();

    guest_start();
    for (int n = 1 + crash_random(5); n > 0; n--) {
        guest_run(crash_random(12));
        if (crash_one_in(3)) {
            poll_until(guest_is_idle);
        }
        forget_lost();
        if (crash_one_in(3)) {
            run_checkpoint(40);
        }
        /* These begin while the command runs */
        guest_grant(crash_random(8));
        if (restricted) {
            faulty_actions[crash_random(ARRAY_SIZE(faulty_actions))]();
        } else {
            actions[crash_random(ARRAY_SIZE(actions))]();
        }
    }
    guest_run(crash_random(12));
    guest_end();
    forget_lost();
    check_node(!options->faults);
}

void crash_workload_run(const CrashOptions *opts)
{
    options = opts;
    guest_area = crash_one_in(2) ? CRASH_DISK_MAX
                                 : (1 + crash_random(2)) * MiB;
    crash_shell.recorded = crash_disk.recorded = true;
    /* A job lasts for some time */
    crash_target.recorded = true;
    crash_disk.fail_flush = opts->faults && !has_log ? 10 : 0;
    crash_shell.fail_flush = crash_disk.fail_flush && crash_one_in(2) ? 10 : 0;
    for (int n = 1 + crash_random(3) + (has_log && opts->faults); n > 0; n--) {
        if (!open_image()) {
            continue;
        }
        check_node(options->usable && !options->faults);
        remove_inconsistent();
        forget_lost();
        session();
        close_image();
        /*
         * With a log, there have to be bitmaps before the disk fails; and if
         * the shell does, it may be believed although it cannot be written.
         */
        crash_disk.fail_flush = opts->faults ? 10 : 0;
    }
    crash_shell.recorded = crash_disk.recorded = false;
    crash_target.recorded = false;
}

/* Beginnings */

typedef struct Creation {
    BlockdevCreateOptions options;
    bool done;
} Creation;

static void coroutine_fn create_entry(void *opaque)
{
    Creation *creation = opaque;
    BlockDriver *drv = bdrv_find_format("qcow2");

    drv->bdrv_co_create(&creation->options, &error_abort);
    creation->done = true;
}

static void fill_disk(void)
{
    crash_disk.image.len = (4 + crash_random(8)) * MiB +
                           crash_random(3) * 7 * SECTOR;
    for (uint64_t i = 0; i < crash_disk.image.len / SECTOR; i++) {
        /* With a map, some of it is zero */
        crash_disk.image.stamps[i] = has_map && i / (GRANULE / SECTOR) % 4
            ? STAMP_ZERO : 1 + i / 64 % 3;
    }
    stamp = 1000;
}

void crash_workload_create(bool with_log)
{
    static const uint32_t cluster_sizes[] = { 512, 512, 4 * KiB, 64 * KiB };
    BlockdevRef file = { .type = QTYPE_QSTRING, .u.reference = (char *)"file" };
    BlockdevRef rwb = { .type = QTYPE_QSTRING, .u.reference = (char *)"disk" };
    Creation creation = {
        .options = {
            .driver = BLOCKDEV_DRIVER_QCOW2,
            .u.qcow2 = {
                .file = &file,
                .rw_backing = &rwb,
                .has_rw_backing_log = true,
                .rw_backing_log = with_log,
                .has_cluster_size = true,
                .cluster_size =
                    cluster_sizes[crash_random(ARRAY_SIZE(cluster_sizes))],
            },
        },
    };

    has_log = with_log;
    has_map = with_log && crash_one_in(2);
    creation.options.u.qcow2.has_rw_backing_map = has_map;
    creation.options.u.qcow2.rw_backing_map = crash_one_in(2)
        ? BLOCKDEV_QCOW2_RW_BACKING_MAP_SCAN : BLOCKDEV_QCOW2_RW_BACKING_MAP_ON;
    fill_disk();
    crash_shell.image.len = 0;
    crash_shell.image.torn = false;
    creation.options.u.qcow2.size = crash_disk.image.len;
    bitmap_names = 0;
    crash_truth_clear();
    open_node("shell", "file", &file_bs);
    open_node("disk", "disk", &disk_bs);
    aio_co_enter(qemu_get_aio_context(),
                 qemu_coroutine_create(create_entry, &creation));
    while (!creation.done) {
        aio_poll(qemu_get_aio_context(), true);
    }
    bdrv_unref(disk_bs);
    bdrv_unref(file_bs);
    crash_storage_restart();
}

void crash_workload_recover(GPtrArray *found, int64_t number)
{
    crash_truth_continue(found, &crash_left_disk.image, number);
    crash_image_copy(&crash_shell.image, &crash_left_shell.image);
    crash_image_copy(&crash_disk.image, &crash_left_disk.image);
    crash_storage_restart();
}
