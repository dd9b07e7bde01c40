/*
 * States that a crash can leave: all that can follow from short workloads
 *
 * A workload runs with a shell and a disk that are in memory, and what is done
 * to the two files is recorded, in one order.  Then each moment is one at which
 * QEMU could have been killed, or the power could have failed.  What either may
 * leave is opened, and no bitmap may be believed that is wrong.
 *
 *            shell: ---W---W--F-----W--------F----W---F---
 *            disk:  -W----W------W-----W--F----W----------
 *                                     ^
 *             killed: all that was done before, and some of what was under way
 *             power failure: for each file, what it had at the last flush, and
 *                            any part of what was written since
 *
 * Then it goes on with one of these states, so that there are crashes of what
 * comes after a crash, too.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/error-report.h"
#include "qemu/main-loop.h"
#include "crypto/init.h"
#include "block/block_int.h"
#include "monitor/monitor.h"
#include "system/runstate.h"
#include "crash-qcow2-rw-backing.h"

/* As many crashes may follow one another */
#define LIVES           3

/* Of a workload and each of its lives */
#define STATES          1200

/* As many states of the shell are remembered */
#define CACHE_SIZE      1024

static CrashOptions options;
static uint64_t workload_seed;
static int life;
static const char *save_dir;

/* What the present state is */
static GString *state_text;

static struct {
    uint64_t workloads;
    uint64_t events;
    uint64_t states;
    uint64_t killed;
    uint64_t power_failed;
    uint64_t opened;
    uint64_t opened_to_write;
    CrashVerdict verdict;
} stats;

/* Pairs of a shell and a disk: hashes */
static GHashTable *distinct;

/* blockdev.c's signal handlers want it */
void qemu_system_killed(int signal, pid_t pid)
{
    g_assert_not_reached();
}

/* Failures */

/* What QEMU has said in this life, for the case that something is wrong */
static GString *said;

int error_vprintf(const char *fmt, va_list ap)
{
    g_string_append_vprintf(said, fmt, ap);
    return 0;
}

int error_vprintf_unless_qmp(const char *fmt, va_list ap)
{
    return error_vprintf(fmt, ap);
}

static void print_event(int64_t number)
{
    const CrashEvent *event = crash_event(number);
    const CrashRequest *req = event->req;
    static const char *const types[] = { "write", "truncate", "flush" };

    if (!req) {
        fprintf(stderr, "%6" PRId64 " -- %s\n", number, event->note);
        return;
    }
    fprintf(stderr, "%6" PRId64 " %s: %s", number, req->file->name,
            types[req->type]);
    if (req->type != CRASH_FLUSH) {
        fprintf(stderr, " %" PRIu64 " %" PRIu64 "%s", req->offset, req->bytes,
                req->data ? "" : " zeroes");
    }
    fprintf(stderr, "%s\n", !event->completed ? "" :
            req->failed ? " has failed" : " has ended");
}

static void save(const char *name, const CrashImage *image)
{
    g_autofree char *path = g_build_filename(save_dir, name, NULL);

    g_file_set_contents(path, image->bytes ? (char *)image->bytes
                                           : (char *)image->stamps,
                        image->bytes ? image->len
                                     : image->len / SECTOR * sizeof(uint32_t),
                        NULL);
}

void crash_fail(int64_t number, const char *what)
{
    for (int64_t i = 0; i < number; i++) {
        print_event(i);
    }
    fputs(said->str + MAX(said->len, 2000) - 2000, stderr);
    if (save_dir) {
        save("shell.qcow2", &crash_left_shell.image);
        save("disk.stamps", &crash_left_disk.image);
    }
    fprintf(stderr, "%s\n%s\nAgain: --seed %" PRIu64 " --workloads 1%s%s\n",
            state_text->str, what, workload_seed,
            options.usable ? " --log" : "",
            options.faults ? " --faults" : "");
    exit(1);
}

/* States */

static uint64_t hash_words(uint64_t hash, const void *data, size_t len)
{
    const uint8_t *p = data;

    for (; len >= 8; p += 8, len -= 8) {
        hash = (hash ^ ldq_le_p(p)) * 0x9e3779b97f4a7c15ULL;
        hash ^= hash >> 29;
    }
    for (; len; p++, len--) {
        hash = (hash ^ *p) * 0x9e3779b97f4a7c15ULL;
    }
    return hash;
}

static uint64_t hash_image(const CrashImage *image)
{
    return image->bytes
        ? hash_words(image->len, image->bytes, image->len)
        : hash_words(image->len, image->stamps,
                     image->len / SECTOR * sizeof(*image->stamps));
}

/* GPtrArray of CrashFound by the hash of a shell, for one size of the disk */
static GHashTable *cache;

static void cache_clear(void)
{
    if (cache) {
        g_hash_table_destroy(cache);
    }
    cache = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free,
                                  (GDestroyNotify)g_ptr_array_unref);
}

static GPtrArray *read_state(int64_t number, bool writable, const char *guard)
{
    Error *err = NULL;
    GPtrArray *found = crash_read_state(writable, guard, &err);

    if (!found) {
        crash_fail(number, error_get_pretty(err));
    }
    stats.opened++;
    stats.opened_to_write += writable;
    return found;
}

/* Has the shell had a failure in any life up to now? */
static bool shell_has_failed;

/*
 * If nobody looks at the disk, it has no influence on what the shell says,
 * except by its size.  But if the shell cannot be written, it may be the disk
 * alone that speaks against the bitmaps.
 */
static const char *guard_option(void)
{
    return shell_has_failed ? "auto" : "off";
}

static GPtrArray *read_cached(int64_t number, uint64_t shell_hash,
                              uint64_t disk_hash)
{
    uint64_t key = shell_hash * 31 + (shell_has_failed
                                      ? disk_hash
                                      : crash_left_disk.image.len);
    GPtrArray *found = g_hash_table_lookup(cache, &key);

    if (!found) {
        if (g_hash_table_size(cache) >= CACHE_SIZE) {
            cache_clear();
        }
        found = read_state(number, false, guard_option());
        g_hash_table_insert(cache, g_memdup2(&key, sizeof(key)), found);
    }
    return g_ptr_array_ref(found);
}

static void compare(GPtrArray *found, int64_t number)
{
    /* What was lost to a failed flush is lost in later lives, too */
    bool usable = options.usable && !options.faults;
    char *wrong = crash_compare(found, &crash_left_disk.image, number, usable,
                                &stats.verdict);

    if (wrong) {
        crash_fail(number, wrong);
    }
}

/* As QEMU does after a crash, and once more, which must not change anything */
static void recover(int64_t number, const char *guard)
{
    g_autoptr(GPtrArray) first = read_state(number, true, guard);
    g_autoptr(GPtrArray) second = NULL;

    compare(first, number);
    second = read_state(number, false, guard);
    compare(second, number);
    for (int i = 0; i < first->len; i++) {
        const CrashFound *f = first->pdata[i];
        const CrashFound *s = crash_found(second, f->name);

        if (!s || s->inconsistent != f->inconsistent ||
            (!s->inconsistent &&
             memcmp(s->bits, f->bits,
                    DIV_ROUND_UP(f->size, f->granularity) / 8))) {
            crash_fail(number, "A bitmap has changed after it was recovered");
        }
    }
}

/* What crash_left_shell and crash_left_disk have */
static void check_state(int64_t number)
{
    uint64_t shell_hash = hash_image(&crash_left_shell.image);
    uint64_t disk_hash = hash_image(&crash_left_disk.image);
    uint64_t hash = shell_hash * 31 + disk_hash;
    g_autoptr(GPtrArray) found = read_cached(number, shell_hash, disk_hash);

    stats.states++;
    g_hash_table_add(distinct, g_memdup2(&hash, sizeof(hash)));
    compare(found, number);
    if (crash_one_in(50)) {
        recover(number, crash_one_in(2) ? "auto" : guard_option());
    }
}

/* Crashes */

/* Of the requests that may or may not be there */
static CrashTear *choose_tears(const CrashLeft *left)
{
    CrashTear *tears = g_new0(CrashTear, left->loose->len);
    unsigned special = left->loose->len ? crash_random(left->loose->len) : 0;
    unsigned kind = crash_random(7);

    for (unsigned i = 0; i < left->loose->len; i++) {
        switch (kind) {
        case 0:
            tears[i] = CRASH_NOTHING;
            break;
        case 1:
            tears[i] = CRASH_ALL;
            break;
        case 2:
            tears[i] = i == special ? CRASH_NOTHING : CRASH_ALL;
            break;
        case 3:
            tears[i] = i == special ? CRASH_ALL : CRASH_NOTHING;
            break;
        case 4:
            tears[i] = crash_one_in(2) ? CRASH_NOTHING : CRASH_ALL;
            break;
        case 5:
            tears[i] = i == special ? crash_random(CRASH_TEAR__MAX) :
                       i < special ? CRASH_ALL : CRASH_NOTHING;
            break;
        default:
            tears[i] = crash_random(CRASH_TEAR__MAX);
            break;
        }
    }
    return tears;
}

/* Number @subset of all, without torn ones */
static CrashTear *subset_tears(const CrashLeft *left, unsigned subset)
{
    CrashTear *tears = g_new0(CrashTear, left->loose->len);

    for (unsigned i = 0; i < left->loose->len; i++) {
        tears[i] = subset >> i & 1 ? CRASH_ALL : CRASH_NOTHING;
    }
    return tears;
}

/* What has ended is there; what is under way, perhaps */
static CrashTear *killed_tears(const CrashLeft *left, int64_t number,
                               bool under_way)
{
    CrashTear *tears = choose_tears(left);

    for (int i = 0; i < left->loose->len; i++) {
        const CrashRequest *req = left->loose->pdata[i];

        if (req->completed != -1 && req->completed < number) {
            tears[i] = CRASH_ALL;
        } else if (!under_way) {
            tears[i] = CRASH_NOTHING;
        }
    }
    return tears;
}

static void describe(const char *name, const CrashLeft *left,
                     const CrashTear *tears)
{
    static const char *const words[] = {
        "nothing", "all", "its front", "its end", "parts", "bytes"
    };

    for (int i = 0; i < left->loose->len; i++) {
        const CrashRequest *req = left->loose->pdata[i];

        g_string_append_printf(state_text, "  %s: %s of request %" PRId64 "\n",
                               name, words[tears[i]], req->submitted);
    }
}

static void make_state(int64_t number, const char *kind,
                       const CrashLeft *shell, CrashTear *shell_tears,
                       const CrashLeft *disk, CrashTear *disk_tears)
{
    g_string_printf(state_text, "Life %d, %s after %" PRId64 " events:\n",
                    life, kind, number);
    describe("shell", shell, shell_tears);
    describe("disk", disk, disk_tears);
    crash_left_make(shell, shell_tears, &crash_left_shell.image);
    crash_left_make(disk, disk_tears, &crash_left_disk.image);
    g_free(shell_tears);
    g_free(disk_tears);
}

static void killed(const CrashLeft *shell, const CrashLeft *disk,
                   int64_t number, bool under_way)
{
    make_state(number, "killed",
               shell, killed_tears(shell, number, under_way),
               disk, killed_tears(disk, number, under_way));
    check_state(number);
    stats.killed++;
}

static void power_failed(const CrashLeft *shell, CrashTear *shell_tears,
                         const CrashLeft *disk, CrashTear *disk_tears,
                         int64_t number)
{
    make_state(number, "power failure", shell, shell_tears, disk, disk_tears);
    check_state(number);
    stats.power_failed++;
}

/* Crashes after @number events, some @n of them, and at least one */
static void crash(const CrashLeft *shell, const CrashLeft *disk,
                  int64_t number, int n)
{
    killed(shell, disk, number, false);
    if (crash_one_in(2)) {
        killed(shell, disk, number, true);
    }
    if (shell->loose->len <= 3 && n > 4) {
        for (unsigned i = 0; i < 1 << shell->loose->len; i++) {
            power_failed(shell, subset_tears(shell, i),
                         disk, choose_tears(disk), number);
        }
    }
    for (int i = 0; i < n; i++) {
        power_failed(shell, choose_tears(shell),
                     disk, choose_tears(disk), number);
    }
}

/* Is anything different after this event?  All in all, some STATES of them */
static int how_many_crashes(int64_t number, int64_t events)
{
    const CrashEvent *event = crash_event(number);
    int usual = MAX(1, STATES / events / 3);

    /* All of the beginning, where a state is that a crash before has left */
    if (number > 100 && events > STATES / 3 &&
        crash_random(events) > STATES / 3) {
        return 0;
    }
    if (!event->req) {
        return usual;
    }
    if (event->req->file == &crash_shell) {
        return 4 * usual;
    }
    return crash_one_in(2) ? usual : 0;
}

static bool is_header_write(const CrashRequest *req)
{
    return req->file == &crash_shell && req->type == CRASH_WRITE &&
           req->offset == 0;
}

/*
 * Beginning with event @number, looks for a header that takes so long that
 * meanwhile a mark becomes durable, and a guest writes.  Returns when it has,
 * or -1.
 */
static int64_t find_slow_header(int64_t number)
{
    /* Ends of the steps, each of which begins after the one before has ended */
    enum { HEADER, MARK, FLUSH, STEPS };
    int64_t ends[STEPS] = { INT64_MAX, INT64_MAX, INT64_MAX };

    for (; number < crash_now(); number++) {
        const CrashEvent *event = crash_event(number);
        const CrashRequest *req = event->req;

        if (!req) {
            continue;
        }
        if (is_header_write(req)) {
            /* Once it is there, the next flush makes it durable */
            ends[HEADER] = event->completed ? INT64_MAX : number;
            ends[MARK] = ends[FLUSH] = INT64_MAX;
        } else if (!event->completed) {
            continue;
        } else if (req->file == &crash_shell) {
            if (req->type == CRASH_WRITE && req->submitted > ends[HEADER]) {
                ends[MARK] = MIN(ends[MARK], number);
            } else if (req->type == CRASH_FLUSH &&
                       req->submitted > ends[MARK]) {
                ends[FLUSH] = MIN(ends[FLUSH], number);
            }
        } else if (req->file == &crash_disk && req->type == CRASH_WRITE &&
                   req->submitted > ends[FLUSH]) {
            return number;
        }
    }
    return -1;
}

/* All that was done is there, apart from the last header */
static CrashTear *tears_without_header(const CrashLeft *left)
{
    CrashTear *tears = g_new0(CrashTear, left->loose->len);

    for (int i = 0; i < left->loose->len; i++) {
        const CrashRequest *req = left->loose->pdata[i];

        tears[i] = req->completed == -1 || is_header_write(req)
            ? CRASH_NOTHING : CRASH_ALL;
    }
    return tears;
}

/* All crashes of one workload; returns one to go on with: after how many */
static int64_t enumerate(void)
{
    int64_t events = crash_now();
    int64_t chosen = crash_random(events);
    int64_t slow_header = crash_one_in(2) ? find_slow_header(0) : -1;
    CrashLeft shell, disk;
    CrashImage chosen_shell, chosen_disk;

    if (slow_header != -1) {
        chosen = slow_header;
    }
    cache_clear();
    crash_image_init(&chosen_shell, true);
    crash_image_init(&chosen_disk, false);
    crash_left_init(&shell, &crash_shell);
    crash_left_init(&disk, &crash_disk);
    for (int64_t i = 0; i < events; i++) {
        int n = how_many_crashes(i, events);

        crash_left_next(&shell, i);
        crash_left_next(&disk, i);
        if (n || i == chosen) {
            crash(&shell, &disk, i + 1, n);
        }
        if (i == chosen) {
            make_state(i + 1, "power failure", &shell,
                       slow_header == -1 ? choose_tears(&shell)
                                         : tears_without_header(&shell),
                       &disk, slow_header == -1 ? choose_tears(&disk)
                                                : tears_without_header(&disk));
            crash_image_copy(&chosen_shell, &crash_left_shell.image);
            crash_image_copy(&chosen_disk, &crash_left_disk.image);
        }
    }
    crash_image_copy(&crash_left_shell.image, &chosen_shell);
    crash_image_copy(&crash_left_disk.image, &chosen_disk);
    crash_left_free(&shell);
    crash_left_free(&disk);
    crash_image_destroy(&chosen_shell);
    crash_image_destroy(&chosen_disk);
    return chosen + 1;
}

static void run_workload(uint64_t seed)
{
    workload_seed = seed;
    crash_seed(seed);
    crash_workload_create(options.usable);
    shell_has_failed = false;
    for (life = 1; ; life++) {
        g_autoptr(GPtrArray) found = NULL;
        int64_t number;

        g_string_assign(state_text, "While it runs:");
        g_string_truncate(said, 0);
        crash_workload_run(&options);
        shell_has_failed |= crash_shell.flush_has_failed;
        stats.events += crash_now();
        number = enumerate();
        if (life == LIVES) {
            break;
        }
        found = read_state(number, false, guard_option());
        crash_workload_recover(found, number);
    }
    stats.workloads++;
}

/* As JSON */
static void print_stats(void)
{
    const struct {
        const char *name;
        uint64_t count;
    } lines[] = {
        { "workloads", stats.workloads },
        { "requests and commands", stats.events },
        { "states", stats.states },
        { "different states", g_hash_table_size(distinct) },
        { "states after a kill", stats.killed },
        { "states after a power failure", stats.power_failed },
        { "shells opened", stats.opened },
        { "shells opened to write", stats.opened_to_write },
        { "bitmaps right", stats.verdict.consistent },
        { "bitmaps inconsistent", stats.verdict.inconsistent },
        { "bitmaps missing", stats.verdict.missing },
        { "granules known to be zero", stats.verdict.zeroes },
    };

    for (int i = 0; i < ARRAY_SIZE(lines); i++) {
        printf("%s\"%s\": %" PRIu64, i ? ", " : "{", lines[i].name,
               lines[i].count);
    }
    printf("}\n");
}

/* In QEMU's own "make check": the same each time */
static void test_some(void)
{
    for (int i = 1; i <= 5; i++) {
        run_workload(i);
    }
}

static void test_faults(void)
{
    options.faults = true;
    for (int i = 1; i <= 5; i++) {
        run_workload(i);
    }
    options.faults = false;
}

static uint64_t opt_seed;
static int opt_workloads;

static const GOptionEntry entries[] = {
    { "seed", 0, 0, G_OPTION_ARG_INT64, &opt_seed,
      "Of the first workload; the next ones follow", "N" },
    { "workloads", 0, 0, G_OPTION_ARG_INT, &opt_workloads,
      "How many", "N" },
    { "log", 0, 0, G_OPTION_ARG_NONE, &options.usable,
      "With a write-intent log: no bitmap that was stored may be lost", NULL },
    { "faults", 0, 0, G_OPTION_ARG_NONE, &options.faults,
      "Flushes fail now and then", NULL },
    { "save", 0, 0, G_OPTION_ARG_FILENAME, &save_dir,
      "Where to save a state that is wrong", "DIR" },
    { NULL }
};

static void run_workloads(void)
{
    for (int i = 0; i < opt_workloads; i++) {
        run_workload(opt_seed + i);
    }
    print_stats();
}

int main(int argc, char **argv)
{
    g_autoptr(GOptionContext) context = g_option_context_new(NULL);

    qemu_init_main_loop(&error_abort);
    g_assert_cmpint(qcrypto_init(&error_abort), ==, 0);
    bdrv_init();
    crash_storage_init();
    crash_truth_init();
    state_text = g_string_new(NULL);
    said = g_string_new(NULL);
    distinct = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free,
                                     NULL);

    g_option_context_add_main_entries(context, entries, NULL);
    g_option_context_set_ignore_unknown_options(context, true);
    g_option_context_parse(context, &argc, &argv, NULL);
    if (opt_workloads) {
        run_workloads();
        return 0;
    }

    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/qcow2-rw-backing/crash/some", test_some);
    g_test_add_func("/qcow2-rw-backing/crash/faults", test_faults);
    return g_test_run();
}
