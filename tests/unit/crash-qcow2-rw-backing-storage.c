/*
 * States that a crash can leave: files in memory whose requests are recorded
 *
 * A request takes time: it is submitted, which is an event, and waits until it
 * is chosen, at random, to be carried out, which is the next event.  So any
 * order is possible that storage may choose, and it is the same for the same
 * seed.  Flushes are held back now and then, so that much goes on while one
 * hangs.
 *
 * This is what a crash leaves:
 *
 * - A write is safe when a flush has succeeded that began after the write had
 *   ended.
 * - Of any other write that has begun, anything between nothing and all sectors
 *   may be there, each sector by itself, and parts of sectors, except of the
 *   header.
 * - A write from before a flush that has failed never becomes safe: the storage
 *   may have dropped it, and a later flush may succeed over it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#ifdef CONFIG_LINUX
#include <sys/syscall.h>
#endif
#include "qemu/bitmap.h"
#include "qapi/error.h"
#include "qemu/coroutine.h"
#include "qemu/main-loop.h"
#include "qobject/qdict.h"
#include "block/block_int.h"
#include "crash-qcow2-rw-backing.h"

CrashFile crash_shell = { .name = "shell", .max_len = CRASH_SHELL_MAX };
CrashFile crash_disk = { .name = "disk", .max_len = CRASH_DISK_MAX };
CrashFile crash_left_shell = {
    .name = "left-shell", .max_len = CRASH_SHELL_MAX
};
CrashFile crash_left_disk = {
    .name = "left-disk", .max_len = CRASH_DISK_MAX
};
CrashFile crash_target = { .name = "target", .max_len = CRASH_DISK_MAX };

static CrashFile *const files[] = {
    &crash_shell, &crash_disk, &crash_left_shell, &crash_left_disk,
    &crash_target,
};

/* What crash_shell and crash_disk had at the last restart */
static CrashImage shell_before, disk_before;

/* CrashEvent */
static GArray *events;

/* CrashRequest *, under way */
static GPtrArray *pending;
static QEMUBH *pending_bh;

/* Random numbers */

static uint64_t random_state;

void crash_seed(uint64_t seed)
{
    random_state = seed;
}

/* A linear generator, and a mix of its upper bits */
uint32_t crash_random(uint32_t n)
{
    uint64_t x;

    random_state = random_state * 6364136223846793005ULL + 1442695040888963407;
    x = random_state ^ random_state >> 32;
    x *= 0x9e3779b97f4a7c15ULL;
    return (x >> 32) % n;
}

bool crash_one_in(uint32_t n)
{
    return crash_random(n) == 0;
}

/* Time */

static unsigned skipped_seconds;

void crash_skip_time(unsigned seconds)
{
    skipped_seconds += seconds;
}

#ifdef CONFIG_LINUX
/* These are called instead of those of the C library */

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    int ret = syscall(SYS_clock_gettime, clock, ts);

    ts->tv_sec += skipped_seconds;
    return ret;
}

int gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
    struct timespec ts;
    int ret = clock_gettime(CLOCK_REALTIME, &ts);

    tv->tv_sec = ts.tv_sec;
    tv->tv_usec = ts.tv_nsec / 1000;
    return ret;
}
#endif

/* Images */

void crash_image_init(CrashImage *image, bool is_shell)
{
    image->len = 0;
    image->torn = false;
    image->bytes = is_shell ? g_malloc0(CRASH_SHELL_MAX) : NULL;
    image->stamps = is_shell ? NULL : g_new0(uint32_t, CRASH_DISK_MAX / SECTOR);
}

void crash_image_destroy(CrashImage *image)
{
    g_free(image->bytes);
    g_free(image->stamps);
}

void crash_image_copy(CrashImage *to, const CrashImage *from)
{
    to->len = from->len;
    to->torn = from->torn;
    if (from->bytes) {
        memcpy(to->bytes, from->bytes, from->len);
    } else {
        memcpy(to->stamps, from->stamps,
               from->len / SECTOR * sizeof(*from->stamps));
    }
}

static void image_resize(CrashImage *image, uint64_t len)
{
    if (len > image->len) {
        if (image->bytes) {
            memset(image->bytes + image->len, 0, len - image->len);
        } else {
            memset(image->stamps + image->len / SECTOR, 0,
                   (len - image->len) / SECTOR * sizeof(*image->stamps));
        }
    }
    image->len = len;
}

/* Writes the part of @req between @from and @to, offsets in the file */
static void image_write(CrashImage *image, const CrashRequest *req,
                        uint64_t from, uint64_t to)
{
    if (to > image->len) {
        image_resize(image, to);
    }
    if (image->bytes) {
        if (req->data) {
            memcpy(image->bytes + from,
                   (uint8_t *)req->data + (from - req->offset), to - from);
        } else {
            memset(image->bytes + from, 0, to - from);
        }
    } else {
        for (uint64_t i = from / SECTOR; i < to / SECTOR; i++) {
            image->stamps[i] = req->data
                ? ((uint32_t *)req->data)[i - req->offset / SECTOR]
                : STAMP_ZERO;
        }
    }
}

static void image_apply(CrashImage *image, const CrashRequest *req)
{
    switch (req->type) {
    case CRASH_WRITE:
        image_write(image, req, req->offset, req->offset + req->bytes);
        break;
    case CRASH_TRUNCATE:
        image_resize(image, req->offset);
        break;
    case CRASH_FLUSH:
        break;
    }
}

/* Events */

int64_t crash_now(void)
{
    return events->len;
}

const CrashEvent *crash_event(int64_t number)
{
    return &g_array_index(events, CrashEvent, number);
}

void crash_note(const char *fmt, ...)
{
    CrashEvent event = { };
    va_list ap;

    va_start(ap, fmt);
    event.note = g_strdup_vprintf(fmt, ap);
    va_end(ap);
    g_array_append_val(events, event);
}

static void record(CrashRequest *req, bool completed)
{
    CrashEvent event = { .req = req, .completed = completed };

    if (completed) {
        req->completed = crash_now();
    } else {
        req->submitted = crash_now();
    }
    g_array_append_val(events, event);
}

static void event_clear(void *opaque)
{
    CrashEvent *event = opaque;

    if (event->req && !event->completed) {
        g_free(event->req->superseded);
        g_free(event->req->data);
        g_free(event->req);
    }
    g_free(event->note);
}

void crash_storage_restart(void)
{
    g_assert_cmpint(pending->len, ==, 0);
    g_array_set_size(events, 0);
    crash_shell.flush_has_failed = crash_disk.flush_has_failed = false;
    crash_image_copy(&shell_before, &crash_shell.image);
    crash_image_copy(&disk_before, &crash_disk.image);
}

static void mark_any(uint32_t *stamps, const CrashRequest *req)
{
    for (uint64_t i = 0; i < req->bytes / SECTOR; i++) {
        stamps[req->offset / SECTOR + i] = STAMP_ANY;
    }
}

/* Marks what a flush that has failed, event number @failed, may have dropped */
static void mark_dropped(uint32_t *stamps, int64_t failed)
{
    int64_t safe = -1;

    for (int64_t i = 0; i < failed; i++) {
        const CrashRequest *req = crash_event(i)->req;

        if (req && req->file == &crash_disk && req->type == CRASH_FLUSH &&
            req->completed != -1 && req->completed < failed && !req->failed) {
            safe = MAX(safe, req->submitted);
        }
    }
    for (int64_t i = 0; i < failed; i++) {
        const CrashEvent *event = crash_event(i);

        if (event->completed && event->req->file == &crash_disk &&
            event->req->type == CRASH_WRITE && i > safe) {
            mark_any(stamps, event->req);
        }
    }
}

void crash_disk_mark_doubtful(uint32_t *stamps, bool in_flight)
{
    for (int i = 0; in_flight && i < pending->len; i++) {
        CrashRequest *req = pending->pdata[i];

        if (req->file == &crash_disk && req->type == CRASH_WRITE) {
            mark_any(stamps, req);
        }
    }
    for (int64_t i = 0; crash_disk.flush_has_failed && i < crash_now(); i++) {
        const CrashEvent *event = crash_event(i);

        if (event->completed && event->req->failed &&
            event->req->file == &crash_disk) {
            mark_dropped(stamps, i);
        }
    }
}

/* Requests */

/* One that is not held back, any of them; NULL if there is none */
static CrashRequest *choose_pending(void)
{
    unsigned start = crash_random(pending->len);
    CrashRequest *found = NULL;

    for (int i = 0; i < pending->len; i++) {
        CrashRequest *req = pending->pdata[(start + i) % pending->len];

        if (req->hold) {
            req->hold--;
        } else if (!found) {
            found = req;
        }
    }
    return found;
}

static void pending_run(void *opaque)
{
    CrashRequest *req = choose_pending();

    if (req) {
        g_ptr_array_remove_fast(pending, req);
        if (!req->failed) {
            image_apply(&req->file->image, req);
        }
        record(req, true);
    }
    if (pending->len) {
        qemu_bh_schedule(pending_bh);
    }
    if (req) {
        aio_co_wake(req->co);
    }
}

static int coroutine_fn request_run(CrashRequest *req)
{
    CrashFile *file = req->file;

    if (req->type == CRASH_WRITE && req->offset + req->bytes > file->max_len) {
        g_free(req->data);
        g_free(req);
        return -ENOSPC;
    }
    if (!file->recorded) {
        image_apply(&file->image, req);
        g_free(req->data);
        g_free(req);
        return 0;
    }
    req->co = qemu_coroutine_self();
    req->completed = -1;
    if (req->type == CRASH_FLUSH) {
        static const uint8_t holds[] = { 0, 0, 1, 3, 10, 40 };

        req->hold = holds[crash_random(ARRAY_SIZE(holds))];
        if (file->fail_flush && crash_one_in(file->fail_flush)) {
            req->failed = file->flush_has_failed = true;
        }
    } else if (file == &crash_shell && req->offset == 0) {
        /* The header, so that there are writes while nobody knows which */
        req->hold = crash_one_in(2) ? crash_random(80) : 0;
    } else {
        req->hold = crash_one_in(8) ? crash_random(20) : 0;
    }
    file->begun++;
    record(req, false);
    g_ptr_array_add(pending, req);
    qemu_bh_schedule(pending_bh);
    qemu_coroutine_yield();
    return req->failed ? -EIO : 0;
}

/* The driver */

static int memory_open(BlockDriverState *bs, QDict *options, int flags,
                       Error **errp)
{
    const char *name = qdict_get_str(options, "name");

    for (int i = 0; i < ARRAY_SIZE(files); i++) {
        if (!strcmp(name, files[i]->name)) {
            *(CrashFile **)bs->opaque = files[i];
        }
    }
    qdict_del(options, "name");
    bs->supported_zero_flags = BDRV_REQ_MAY_UNMAP | BDRV_REQ_NO_FALLBACK;
    return 0;
}

static CrashFile *memory_file(BlockDriverState *bs)
{
    return *(CrashFile **)bs->opaque;
}

/* Others go on meanwhile */
static void coroutine_fn wait_a_while(void)
{
    for (int i = crash_random(300); i > 0; i--) {
        aio_co_schedule(qemu_get_aio_context(), qemu_coroutine_self());
        qemu_coroutine_yield();
    }
}

static int64_t coroutine_fn memory_co_getlength(BlockDriverState *bs)
{
    if (memory_file(bs)->slow) {
        wait_a_while();
    }
    return memory_file(bs)->image.len;
}

/* A sector whose content is @stamp has it everywhere */
static void sector_fill(uint32_t *sector, uint32_t stamp)
{
    for (int i = 0; i < SECTOR / sizeof(*sector); i++) {
        sector[i] = stamp;
    }
}

static int coroutine_fn memory_co_preadv(BlockDriverState *bs, int64_t offset,
                                         int64_t bytes, QEMUIOVector *qiov,
                                         BdrvRequestFlags flags)
{
    CrashImage *image = &memory_file(bs)->image;
    uint64_t len = offset < image->len ? MIN(bytes, image->len - offset) : 0;
    g_autofree uint32_t *data = NULL;

    qemu_iovec_memset(qiov, len, 0, bytes - len);
    if (image->bytes) {
        qemu_iovec_from_buf(qiov, 0, image->bytes + offset, len);
        return 0;
    }
    data = g_malloc(len);
    for (uint64_t i = 0; i < len / SECTOR; i++) {
        sector_fill(data + i * SECTOR / sizeof(*data),
                    image->stamps[offset / SECTOR + i]);
    }
    qemu_iovec_from_buf(qiov, 0, data, len);
    return 0;
}

static CrashRequest *request_new(BlockDriverState *bs, CrashRequestType type,
                                 uint64_t offset, uint64_t bytes)
{
    CrashRequest *req = g_new0(CrashRequest, 1);

    req->type = type;
    req->file = memory_file(bs);
    req->offset = offset;
    req->bytes = bytes;
    return req;
}

static int coroutine_fn memory_co_pwritev(BlockDriverState *bs, int64_t offset,
                                          int64_t bytes, QEMUIOVector *qiov,
                                          BdrvRequestFlags flags)
{
    CrashRequest *req = request_new(bs, CRASH_WRITE, offset, bytes);

    if (req->file->image.bytes) {
        req->data = g_malloc(bytes);
        qemu_iovec_to_buf(qiov, 0, req->data, bytes);
    } else {
        uint32_t *stamps = req->data = g_new(uint32_t, bytes / SECTOR);

        for (uint64_t i = 0; i < bytes / SECTOR; i++) {
            qemu_iovec_to_buf(qiov, i * SECTOR, &stamps[i], sizeof(*stamps));
        }
    }
    return request_run(req);
}

static int coroutine_fn memory_co_pwrite_zeroes(BlockDriverState *bs,
                                                int64_t offset, int64_t bytes,
                                                BdrvRequestFlags flags)
{
    return request_run(request_new(bs, CRASH_WRITE, offset, bytes));
}

/* Of a disk: the file of a shell ignores it */
static int coroutine_fn memory_co_pdiscard(BlockDriverState *bs,
                                           int64_t offset, int64_t bytes)
{
    CrashImage *image = &memory_file(bs)->image;

    if (image->bytes || offset >= image->len) {
        return 0;
    }
    bytes = MIN(bytes, image->len - offset);
    return request_run(request_new(bs, CRASH_WRITE, offset, bytes));
}

static int coroutine_fn
memory_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                   PreallocMode prealloc, BdrvRequestFlags flags, Error **errp)
{
    if (offset > memory_file(bs)->max_len) {
        error_setg(errp, "Too large for a file in memory");
        return -ENOSPC;
    }
    return request_run(request_new(bs, CRASH_TRUNCATE, offset, 0));
}

static int coroutine_fn memory_co_flush(BlockDriverState *bs)
{
    return request_run(request_new(bs, CRASH_FLUSH, 0, 0));
}

static void memory_refresh_limits(BlockDriverState *bs, Error **errp)
{
    bs->bl.request_alignment = memory_file(bs)->image.bytes ? 1 : SECTOR;
    bs->bl.has_variable_length = true;
}

static BlockDriver bdrv_memory = {
    .format_name            = "crash-memory",
    .protocol_name          = "crash-memory",
    .instance_size          = sizeof(CrashFile *),

    .bdrv_open              = memory_open,
    .bdrv_refresh_limits    = memory_refresh_limits,
    .bdrv_co_getlength      = memory_co_getlength,
    .bdrv_co_preadv         = memory_co_preadv,
    .bdrv_co_pwritev        = memory_co_pwritev,
    .bdrv_co_pwrite_zeroes  = memory_co_pwrite_zeroes,
    .bdrv_co_pdiscard       = memory_co_pdiscard,
    .bdrv_co_truncate       = memory_co_truncate,
    .bdrv_co_flush_to_disk  = memory_co_flush,
};

void crash_storage_init(void)
{
    for (int i = 0; i < ARRAY_SIZE(files); i++) {
        crash_image_init(&files[i]->image,
                         files[i]->max_len == CRASH_SHELL_MAX);
    }
    crash_image_init(&shell_before, true);
    crash_image_init(&disk_before, false);
    events = g_array_new(false, true, sizeof(CrashEvent));
    g_array_set_clear_func(events, event_clear);
    pending = g_ptr_array_new();
    pending_bh = qemu_bh_new(pending_run, NULL);
    bdrv_register(&bdrv_memory);
}

/* States */

void crash_left_init(CrashLeft *left, CrashFile *file)
{
    left->file = file;
    crash_image_init(&left->safe, file == &crash_shell);
    crash_image_copy(&left->safe, file == &crash_shell ? &shell_before
                                                       : &disk_before);
    left->loose = g_ptr_array_new();
}

void crash_left_free(CrashLeft *left)
{
    crash_image_destroy(&left->safe);
    g_ptr_array_unref(left->loose);
}

/* Does a flush that has failed make it doubtful whether @req is there? */
static bool request_may_be_dropped(const CrashRequest *req, int64_t number)
{
    /* A file's length is metadata: a later success says that it is there */
    if (!req->file->flush_has_failed || req->type == CRASH_TRUNCATE) {
        return false;
    }
    for (int64_t i = req->completed; i < number; i++) {
        const CrashEvent *event = crash_event(i);

        if (event->completed && event->req->failed &&
            event->req->file == req->file) {
            return true;
        }
    }
    return false;
}

static uint64_t first_sector(const CrashRequest *req)
{
    return req->offset / SECTOR;
}

static uint64_t count_sectors(const CrashRequest *req)
{
    return DIV_ROUND_UP(req->offset + req->bytes, SECTOR) - first_sector(req);
}

/* @newer has become safe, so the sectors of @older are no longer there */
static void supersede(CrashRequest *older, const CrashRequest *newer)
{
    uint64_t end = older->offset + older->bytes;

    /* A file that was made shorter has nothing behind its end */
    uint64_t newer_end = newer->type == CRASH_TRUNCATE
        ? UINT64_MAX : newer->offset + newer->bytes;

    if (older->type != CRASH_WRITE) {
        return;
    }
    for (uint64_t i = 0; i < count_sectors(older); i++) {
        uint64_t from = MAX((first_sector(older) + i) * SECTOR, older->offset);
        uint64_t to = MIN((first_sector(older) + i + 1) * SECTOR, end);

        if (from < newer->offset || to > newer_end) {
            continue;
        }
        if (!older->superseded) {
            older->superseded = bitmap_new(count_sectors(older));
        }
        set_bit(i, older->superseded);
    }
}

static void flush_completed(CrashLeft *left, const CrashRequest *flush)
{
    for (int i = 0; i < left->loose->len; ) {
        CrashRequest *req = left->loose->pdata[i];

        if (req->completed == -1 || req->completed > flush->submitted ||
            request_may_be_dropped(req, flush->completed)) {
            i++;
            continue;
        }
        image_apply(&left->safe, req);
        /* Those that remain and come before it may have been dropped */
        for (int j = 0; j < i; j++) {
            supersede(left->loose->pdata[j], req);
        }
        g_ptr_array_remove_index(left->loose, i);
    }
}

/*
 * Requests that have ended are in the order of their end, before those that
 * have not.
 */
static void request_completed(CrashLeft *left, CrashRequest *req,
                              int64_t number)
{
    int place = 0;

    g_ptr_array_remove(left->loose, req);
    while (place < left->loose->len) {
        CrashRequest *other = left->loose->pdata[place];

        if (other->completed == -1 || other->completed > number) {
            break;
        }
        place++;
    }
    g_ptr_array_insert(left->loose, place, req);
}

void crash_left_next(CrashLeft *left, int64_t number)
{
    const CrashEvent *event = crash_event(number);
    CrashRequest *req = event->req;

    if (!req || req->file != left->file) {
        return;
    }
    if (req->type == CRASH_FLUSH) {
        if (event->completed && !req->failed) {
            flush_completed(left, req);
        }
    } else if (event->completed) {
        request_completed(left, req, number);
    } else {
        g_ptr_array_add(left->loose, req);
    }
}

/* The part of @req from the @from'th byte of a sector on to the @to'th one */
static void write_sector(CrashImage *image, const CrashRequest *req,
                         uint64_t sector, uint64_t from, uint64_t to)
{
    from = MAX(sector * SECTOR + from, req->offset);
    to = MIN(sector * SECTOR + to, req->offset + req->bytes);
    if (from < to) {
        image_write(image, req, from, to);
    }
}

static void apply_torn(CrashImage *image, const CrashRequest *req,
                       CrashTear tear)
{
    uint64_t first = first_sector(req);
    uint64_t count = count_sectors(req);
    uint64_t cut = crash_random(count + 1);

    for (uint64_t i = 0; i < count; i++) {
        if (req->superseded && test_bit(i, req->superseded)) {
            continue;
        }
        if (tear == CRASH_BYTES && image->bytes && first > 0) {
            /* Nothing but the header relies on whole sectors */
            image->torn = true;
            write_sector(image, req, first + i,
                         crash_one_in(2) ? 0 : crash_random(SECTOR / 8) * 8,
                         SECTOR - crash_random(SECTOR / 8) * 8);
        } else if (tear == CRASH_ALL ? true : tear == CRASH_FRONT ? i < cut :
                   tear == CRASH_END ? i >= cut : crash_one_in(2)) {
            write_sector(image, req, first + i, 0, SECTOR);
        }
    }
}

void crash_left_make(const CrashLeft *left, const CrashTear *tears,
                     CrashImage *to)
{
    crash_image_copy(to, &left->safe);
    for (int i = 0; i < left->loose->len; i++) {
        const CrashRequest *req = left->loose->pdata[i];

        if (tears[i] == CRASH_NOTHING) {
            continue;
        }
        if (req->type == CRASH_TRUNCATE ||
            (tears[i] == CRASH_ALL && !req->superseded)) {
            image_apply(to, req);
        } else {
            apply_torn(to, req, tears[i]);
        }
    }
}
