/*
 * Fuzz target: images with an RW backing, through the whole block layer
 *
 * The image is in memory, mutated and failing as the input says.  It is
 * inspected, checked, opened, written to, reopened and repaired.  These are
 * the promises that must hold, apart from not crashing:
 *
 * - The guest reads and writes its disk, the RW backing, and nothing else.
 * - An image that is only inspected or checked cannot make QEMU open a file.
 * - As long as the header fields and the pointer to the RW backing are good,
 *   the disk can be opened, whatever happens to the other metadata.
 * - A bitmap that counts as good has not missed a write, neither by this
 *   program nor by others.
 * - What block status calls zeroes reads as zeroes, whatever the allocation
 *   map says.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <zlib.h>
#include "qapi/error.h"
#include "qapi/qapi-visit-block-core.h"
#include "qapi/qobject-output-visitor.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/units.h"
#include "block/block_int.h"
#include "block/dirty-bitmap.h"
#include "block/qapi.h"
#include "block/qcow2-rw-backing-format.h"
#include "block/qcow2-rw-backing-log-format.h"
#include "crypto/init.h"
#include "system/block-backend.h"
#include "fuzz-qcow2-rw-backing.h"

/* Offsets of fields in the header of a qcow2 image, and good values */
#define HEADER_MAGIC                0
#define HEADER_VERSION              4
#define HEADER_BACKING_OFFSET       8
#define HEADER_BACKING_SIZE         16
#define HEADER_CLUSTER_BITS         20
#define HEADER_SIZE                 24
#define HEADER_CRYPT_METHOD         32
#define HEADER_L1_SIZE              36
#define HEADER_L1_OFFSET            40
#define L1_OFFSET                   UINT64_C(0x8080000000000000)
#define HEADER_REFTABLE_OFFSET      48
#define HEADER_REFTABLE_CLUSTERS    56
#define HEADER_NB_SNAPSHOTS         60
#define HEADER_SNAPSHOTS_OFFSET     64
#define HEADER_INCOMPAT             72
#define HEADER_REFCOUNT_ORDER       96
#define HEADER_LENGTH               100
#define HEADER_COMPRESSION          104
#define HEADER_EXTENSIONS           112

#define EXT_MAGIC_FEATURE_NAMES     0x6803f857

#define MAGIC                       0x514649fb  /* "QFI\xfb" */
#define INCOMPAT_RW_BACKING         (1ULL << 30)
#define INCOMPAT_DIRTY_OR_CORRUPT   3

/* The shell must not grow beyond this */
#define SHELL_MAX                   (1 * MiB)

/* The disk: its ends are looked at, and all of it if it has nothing between */
#define WINDOW                      (16 * KiB)
#define MEMORY_DISK_SIZE            (2 * WINDOW)
#define FILE_DISK_SIZE              (4 * MiB)

/*
 * An input is the image, after this many bytes that say what to do with it,
 * each of them counted from where the other bits are of no meaning.  If it has
 * a write-intent log, sectors of the log come in between; the image is without
 * it, as most of it is always the same.
 */
typedef struct QEMU_PACKED Control {
    uint8_t keep;           /* bit 0: header fields and pointer are good */
    uint8_t disk;           /* bit 0: a local file; bit 1: by stored name */
    uint8_t guard;          /* "rw-backing-guard": off, strict or auto */
    uint8_t ops;            /* OP_*, what to do with the opened image */
    uint8_t more_ops;
    uint8_t fault;          /* FAULT_*, what goes wrong in the shell's file */
    uint8_t fault_after;    /* so many requests later */
    uint8_t place;          /* where in the disk to write */
    uint8_t log;            /* LOG_*, write-intent log of the image */
    uint8_t log_sectors;    /* how many of them the input has */
    uint16_t log_at;        /* where in the image it is, in sectors */
    uint8_t map;            /* MAP_*, allocation map of the image with a log */
} Control;

typedef struct QEMU_PACKED LogSector {
    uint16_t place;         /* in the log, in sectors */
    uint8_t data[QCOW2_LOG_UNIT_LEN];
} LogSector;

enum {
    LOG_THERE       = 0x01,
    LOG_ARMED       = 0x02, /* the header says that it counts */
    LOG_CHECKSUMS   = 0x04, /* those of its sectors are right */
};

enum {
    MAP_THERE       = 0x01,
    MAP_UNPROVEN    = 0x02,
};

enum {
    OP_WRITE        = 0x01,
    OP_ZERO         = 0x02,
    OP_DISCARD      = 0x04,
    OP_ADD_BITMAP   = 0x08,
    OP_DEL_BITMAP   = 0x10,
    OP_READ_ONLY    = 0x20,
    OP_INACTIVATE   = 0x40,
    OP_RESIZE       = 0x80,
};

enum {
    FAULT_WRITE     = 0x01,
    FAULT_READ      = 0x02,
    FAULT_FLUSH     = 0x04,
    FAULT_NO_SPACE  = 0x08, /* with FAULT_WRITE: growing fails */
    FAULT_ONCE      = 0x10,
};

/* Files in memory */

typedef struct MemoryFile {
    const char *name;
    uint8_t *data;
    size_t len;
    size_t max_len;

    uint8_t fault;
    unsigned fault_after;
} MemoryFile;

static MemoryFile memory_files[] = {
    { .name = "shell", .max_len = SHELL_MAX },
    { .name = "disk", .max_len = 2 * MEMORY_DISK_SIZE },
};
static MemoryFile *const shell = &memory_files[0];
static MemoryFile *const disk = &memory_files[1];

/* Returns true if a request of kind @fault is to fail */
static bool memory_fails(MemoryFile *file, uint8_t fault)
{
    if (!(file->fault & fault)) {
        return false;
    }
    if (file->fault_after) {
        file->fault_after--;
        return false;
    }
    if (file->fault & FAULT_ONCE) {
        file->fault &= ~fault;
    }
    return true;
}

static int memory_open(BlockDriverState *bs, QDict *options, int flags,
                       Error **errp)
{
    const char *name = qdict_get_str(options, "name");

    for (int i = 0; i < ARRAY_SIZE(memory_files); i++) {
        if (!strcmp(name, memory_files[i].name)) {
            *(MemoryFile **)bs->opaque = &memory_files[i];
        }
    }
    qdict_del(options, "name");
    return 0;
}

static MemoryFile *memory_file(BlockDriverState *bs)
{
    return *(MemoryFile **)bs->opaque;
}

static int64_t coroutine_fn memory_co_getlength(BlockDriverState *bs)
{
    return memory_file(bs)->len;
}

static int coroutine_fn memory_co_preadv(BlockDriverState *bs, int64_t offset,
                                         int64_t bytes, QEMUIOVector *qiov,
                                         BdrvRequestFlags flags)
{
    MemoryFile *file = memory_file(bs);
    size_t len = offset < file->len ? MIN(bytes, file->len - offset) : 0;

    if (memory_fails(file, FAULT_READ)) {
        return -EIO;
    }
    qemu_iovec_from_buf(qiov, 0, file->data + offset, len);
    qemu_iovec_memset(qiov, len, 0, bytes - len);
    return 0;
}

static int memory_resize(MemoryFile *file, uint64_t len)
{
    if (len > file->max_len ||
        (len > file->len && (file->fault & FAULT_NO_SPACE) &&
         memory_fails(file, FAULT_WRITE))) {
        return -ENOSPC;
    }
    if (len > file->len) {
        memset(file->data + file->len, 0, len - file->len);
    }
    file->len = len;
    return 0;
}

static int coroutine_fn memory_co_pwritev(BlockDriverState *bs, int64_t offset,
                                          int64_t bytes, QEMUIOVector *qiov,
                                          BdrvRequestFlags flags)
{
    MemoryFile *file = memory_file(bs);
    int ret;

    if (!(file->fault & FAULT_NO_SPACE) && memory_fails(file, FAULT_WRITE)) {
        return -EIO;
    }
    if (offset + bytes > file->len) {
        ret = memory_resize(file, offset + bytes);
        if (ret < 0) {
            return ret;
        }
    }
    qemu_iovec_to_buf(qiov, 0, file->data + offset, bytes);
    return 0;
}

static int coroutine_fn
memory_co_truncate(BlockDriverState *bs, int64_t offset, bool exact,
                   PreallocMode prealloc, BdrvRequestFlags flags, Error **errp)
{
    int ret = memory_resize(memory_file(bs), offset);

    if (ret < 0) {
        error_setg_errno(errp, -ret, "Could not resize");
    }
    return ret;
}

static int coroutine_fn memory_co_flush(BlockDriverState *bs)
{
    return memory_fails(memory_file(bs), FAULT_FLUSH) ? -EIO : 0;
}

static void memory_refresh_limits(BlockDriverState *bs, Error **errp)
{
    bs->bl.request_alignment = 1;
    bs->bl.has_variable_length = true;
}

static BlockDriver bdrv_memory = {
    .format_name            = "fuzz-memory",
    .protocol_name          = "fuzz-memory",
    .instance_size          = sizeof(MemoryFile *),

    .bdrv_open              = memory_open,
    .bdrv_refresh_limits    = memory_refresh_limits,
    .bdrv_co_getlength      = memory_co_getlength,
    .bdrv_co_preadv         = memory_co_preadv,
    .bdrv_co_pwritev        = memory_co_pwritev,
    .bdrv_co_truncate       = memory_co_truncate,
    .bdrv_co_flush_to_disk  = memory_co_flush,
};

/* The disk */

static char *file_disk_name;
static int file_disk_fd;

/* What the two windows of the disk have to look like */
static uint8_t model[2 * WINDOW];

/* Where the guest has written to, offset in the disk; -1 if nowhere */
static int64_t written_at;

/* Pseudo-random, so that no part looks like another one */
static uint8_t pristine[2 * WINDOW];

static bool disk_is_file(const Control *c)
{
    return c->disk & 1;
}

static uint64_t disk_size(const Control *c)
{
    return disk_is_file(c) ? FILE_DISK_SIZE : disk->len;
}

/* The second window is that at the end of the disk, before it is resized */
static uint64_t window_offset(const Control *c, int i)
{
    return i == 0 ? 0
                  : (disk_is_file(c) ? FILE_DISK_SIZE
                                     : MEMORY_DISK_SIZE) - WINDOW;
}

static void set_mtime(time_t sec)
{
    const struct timespec times[2] = { { .tv_sec = sec }, { .tv_sec = sec } };

    g_assert_cmpint(futimens(file_disk_fd, times), ==, 0);
}

static void disk_reset(const Control *c)
{
    written_at = -1;
    memcpy(model, pristine, sizeof(model));
    if (!disk_is_file(c)) {
        disk->len = MEMORY_DISK_SIZE;
        memcpy(disk->data, pristine, sizeof(pristine));
        return;
    }
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(pwrite(file_disk_fd, pristine + i * WINDOW, WINDOW,
                               window_offset(c, i)), ==, WINDOW);
    }
    set_mtime(1000000000);
}

/* Somebody else writes to the disk */
static void disk_modify(const Control *c)
{
    uint8_t byte = model[WINDOW / 2] ^= 1;

    if (disk_is_file(c)) {
        g_assert_cmpint(pwrite(file_disk_fd, &byte, 1, WINDOW / 2), ==, 1);
        set_mtime(1000000001);
    } else {
        disk->data[WINDOW / 2] = byte;
    }
}

/* The node "disk", for the option "rw-backing" */
static BlockDriverState *disk_open(const Control *c)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "node-name", "disk");
    if (disk_is_file(c)) {
        qdict_put_str(options, "driver", "file");
        qdict_put_str(options, "filename", file_disk_name);
    } else {
        qdict_put_str(options, "driver", "fuzz-memory");
        qdict_put_str(options, "name", "disk");
    }
    return bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
}

static void assert_model(BlockBackend *blk, const Control *c)
{
    static uint8_t buf[WINDOW];

    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(blk_pread(blk, window_offset(c, i), WINDOW, buf, 0),
                        >=, 0);
        g_assert_true(!memcmp(buf, model + i * WINDOW, WINDOW));
    }
}

/* Also the disk's own file may know that it has holes */
static void assert_zeroes(BlockBackend *blk, const Control *c)
{
    for (int i = 0; i < 2; i++) {
        int64_t done, bytes, map;

        for (done = 0; done < WINDOW; done += bytes) {
            BlockDriverState *file;
            int ret = bdrv_block_status(blk_bs(blk),
                                        window_offset(c, i) + done,
                                        WINDOW - done, &bytes, &map, &file);

            g_assert_cmpint(ret, >=, 0);
            g_assert_cmpint(bytes, >, 0);
            if (ret & BDRV_BLOCK_ZERO) {
                g_assert_true(buffer_is_zero(model + i * WINDOW + done, bytes));
            }
        }
    }
}

/* What was written through the shell has to be in the disk itself */
static void assert_disk(const Control *c)
{
    static uint8_t buf[WINDOW];

    if (!disk_is_file(c)) {
        g_assert_true(!memcmp(disk->data, model, sizeof(model)));
        return;
    }
    for (int i = 0; i < 2; i++) {
        g_assert_cmpint(pread(file_disk_fd, buf, WINDOW, window_offset(c, i)),
                        ==, WINDOW);
        g_assert_true(!memcmp(buf, model + i * WINDOW, WINDOW));
    }
}

/* The shell */

/* Requests to its file may fail, or have failed since it was opened */
static bool faulty;

/* Where its log was put, in bytes; 0 if it has none */
static uint64_t log_offset;

static bool keeps_promise(const Control *c)
{
    return c->keep & 1;
}

static bool shell_has_bit(void)
{
    return shell->len >= HEADER_EXTENSIONS &&
           ldl_be_p(shell->data + HEADER_MAGIC) == MAGIC &&
           ldl_be_p(shell->data + HEADER_VERSION) == 3 &&
           (ldq_be_p(shell->data + HEADER_INCOMPAT) & INCOMPAT_RW_BACKING);
}

static void put_pointer(const Control *c, uint8_t *buf)
{
    Qcow2RwBackingPointer ptr = {
        .format     = (char *)"raw",
        .filename   = disk_is_file(c) ? file_disk_name : NULL,
        .log        = log_offset,
        .log_offset = log_offset,
        .log_armed  = log_offset && (c->log & LOG_ARMED),
        .map        = log_offset && (c->map & MAP_THERE),
        .map_unproven = log_offset && (c->map & MAP_THERE) &&
                        (c->map & MAP_UNPROVEN),
    };
    size_t len;
    g_autofree uint8_t *data =
        qcow2_rw_backing_pointer_serialize(&ptr, &len, &error_abort);

    stl_be_p(buf, QCOW2_EXT_MAGIC_RW_BACKING);
    stl_be_p(buf + 4, len);
    memset(buf + 8, 0, ROUND_UP(len, 8));
    memcpy(buf + 8, data, len);
}

static size_t next_extension(size_t offset)
{
    uint32_t len = ldl_be_p(shell->data + offset + 4);

    return offset + 8 + ROUND_UP((size_t)len, 8);
}

/* The first extension of type @magic at or after @offset, 0 if there is none */
static size_t find_extension(size_t offset, uint32_t magic)
{
    for (; offset + 8 <= shell->len; offset = next_extension(offset)) {
        if (ldl_be_p(shell->data + offset) == magic) {
            return offset;
        }
    }
    return 0;
}

/* Makes the extension at @offset one that nobody knows */
static void hide_extension(size_t offset)
{
    shell->data[offset] ^= 0x80;
}

/* Leaves one extension of type @magic of those from @offset on */
static void hide_repetitions(size_t offset, uint32_t magic)
{
    size_t first = find_extension(offset, magic);
    size_t next;

    while (first && (next = find_extension(next_extension(first), magic))) {
        hide_extension(next);
    }
}

/* The write-intent log, to which an image may have been left by a crash */

/* Where nothing was written yet */
static void fill_log(uint8_t *log)
{
    static const uint8_t no_marks[QCOW2_LOG_UNIT_CHUNKS / 8];
    Qcow2LogId id = { };

    memset(log, 0, QCOW2_LOG_LEN);
    for (int area = 0; area < 2; area++) {
        uint8_t *units = log + QCOW2_LOG_AREA_OFFSET(area) + QCOW2_LOG_PAGE_LEN;

        for (int i = 0; i < QCOW2_LOG_UNITS; i++) {
            qcow2_log_unit_serialize(units + i * QCOW2_LOG_UNIT_LEN, &id, i,
                                     QCOW2_LOG_MIN_CHUNK_BITS, no_marks);
        }
    }
}

static void put_checksum(uint8_t *sector)
{
    stl_be_p(sector + 4, 0);
    stl_be_p(sector + 4, crc32(0, sector, QCOW2_LOG_UNIT_LEN));
}

/* Returns how many bytes of @data were sectors of the log */
static size_t take_log_sectors(const Control *c, const uint8_t *data,
                               size_t len, uint8_t *log)
{
    size_t count = MIN(c->log_sectors, len / sizeof(LogSector));

    fill_log(log);
    for (size_t i = 0; i < count; i++) {
        LogSector sector;

        memcpy(&sector, data + i * sizeof(sector), sizeof(sector));
        if (c->log & LOG_CHECKSUMS) {
            put_checksum(sector.data);
        }
        memcpy(log + le16_to_cpu(sector.place) %
               (QCOW2_LOG_LEN / QCOW2_LOG_UNIT_LEN) * QCOW2_LOG_UNIT_LEN,
               sector.data, sizeof(sector.data));
    }
    return count * sizeof(LogSector);
}

static void insert_log(const Control *c, const uint8_t *log)
{
    size_t at = le16_to_cpu(c->log_at) * QCOW2_LOG_UNIT_LEN, len = shell->len;

    if (at < QCOW2_LOG_UNIT_LEN || at > len ||
        memory_resize(shell, len + QCOW2_LOG_LEN) < 0) {
        return;
    }
    memmove(shell->data + at + QCOW2_LOG_LEN, shell->data + at, len - at);
    memcpy(shell->data + at, log, QCOW2_LOG_LEN);
    log_offset = at;
}

/* The image, with its log if it has one */
static void take_image(const Control *c, const uint8_t *data, size_t len)
{
    g_autofree uint8_t *log = NULL;
    size_t sectors = 0;

    log_offset = 0;
    if (c->log & LOG_THERE) {
        log = g_malloc(QCOW2_LOG_LEN);
        sectors = take_log_sectors(c, data, len, log);
    }
    shell->len = len - sectors;
    memcpy(shell->data, data + sectors, shell->len);
    if (log) {
        insert_log(c, log);
    }
}

/* Does the header say that the log counts? */
static bool shell_is_armed(void)
{
    uint32_t start = ldl_be_p(shell->data + HEADER_LENGTH);
    size_t ext = shell->len < HEADER_EXTENSIONS
        ? 0 : find_extension(start, QCOW2_EXT_MAGIC_RW_BACKING);

    return ext && ext + 12 <= shell->len &&
           (ldl_be_p(shell->data + ext + 8) & QCOW2_RW_BACKING_LOG_ARMED);
}

/* Makes good what must not be damaged, and leaves the rest as it is */
static void repair_header(const Control *c)
{
    uint8_t *h = shell->data;
    uint32_t cluster_bits;

    if (shell->len < 512) {
        memory_resize(shell, 512);
    }
    cluster_bits = 9 + (uint32_t)(ldl_be_p(h + HEADER_CLUSTER_BITS) - 9) % 8;

    stl_be_p(h + HEADER_MAGIC, MAGIC);
    stl_be_p(h + HEADER_VERSION, 3);
    stq_be_p(h + HEADER_BACKING_OFFSET, 0);
    stl_be_p(h + HEADER_BACKING_SIZE, 0);
    stl_be_p(h + HEADER_CLUSTER_BITS, cluster_bits);
    stq_be_p(h + HEADER_SIZE,
             ldq_be_p(h + HEADER_SIZE) % BDRV_MAX_LENGTH & ~511ULL);
    stl_be_p(h + HEADER_CRYPT_METHOD, 0);
    stq_be_p(h + HEADER_L1_OFFSET, L1_OFFSET);
    stq_be_p(h + HEADER_REFTABLE_OFFSET,
             (ldq_be_p(h + HEADER_REFTABLE_OFFSET) & INT32_MAX) >>
             cluster_bits << cluster_bits);
    stl_be_p(h + HEADER_REFTABLE_CLUSTERS,
             (uint32_t)ldl_be_p(h + HEADER_REFTABLE_CLUSTERS) % 64 ?: 1);
    stl_be_p(h + HEADER_NB_SNAPSHOTS, 0);
    stq_be_p(h + HEADER_SNAPSHOTS_OFFSET, 0);
    stq_be_p(h + HEADER_INCOMPAT, INCOMPAT_RW_BACKING |
             (ldq_be_p(h + HEADER_INCOMPAT) & INCOMPAT_DIRTY_OR_CORRUPT));
    stl_be_p(h + HEADER_REFCOUNT_ORDER,
             (uint32_t)ldl_be_p(h + HEADER_REFCOUNT_ORDER) % 7);
    stl_be_p(h + HEADER_LENGTH, HEADER_EXTENSIONS);
    memset(h + HEADER_COMPRESSION, 0, HEADER_EXTENSIONS - HEADER_COMPRESSION);
    put_pointer(c, h + HEADER_EXTENSIONS);
    /* With a second pointer, the image has to be refused */
    hide_repetitions(HEADER_EXTENSIONS, QCOW2_EXT_MAGIC_RW_BACKING);
}

static QDict *shell_options(void)
{
    QDict *options = qdict_new();

    qdict_put_str(options, "driver", "qcow2");
    qdict_put_str(options, "node-name", "shell");
    qdict_put_str(options, "file.driver", "fuzz-memory");
    qdict_put_str(options, "file.name", "shell");
    return options;
}

/* For the guest's data */
static BlockBackend *shell_open(const Control *c, int flags, Error **errp)
{
    static const char *const guards[] = { "auto", "auto", "strict", "off" };
    QDict *options = shell_options();

    qdict_put_str(options, "rw-backing-guard", guards[c->guard % 4]);
    if (!(disk_is_file(c) && (c->disk & 2) && keeps_promise(c))) {
        qdict_put_str(options, "rw-backing", "disk");
    }
    return blk_new_open(NULL, NULL, options, flags, errp);
}

static bool is_strict(const Control *c)
{
    return c->guard % 4 == 2;
}

static bool guard_is_off(const Control *c)
{
    return c->guard % 4 == 3;
}

/* As 'qemu-img info --output=json' does */
static void query_info(BlockDriverState *bs)
{
    ImageInfo *info = NULL;
    g_autoptr(GString) json = NULL;
    Error *err = NULL;
    QObject *obj;
    Visitor *v;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    bdrv_query_image_info(bs, &info, false, false, &err);
    if (err) {
        error_free(err);
        return;
    }
    v = qobject_output_visitor_new(&obj);
    visit_type_ImageInfo(v, NULL, &info, &error_abort);
    visit_complete(v, &obj);
    json = qobject_to_json(obj);
    qobject_unref(obj);
    visit_free(v);
    qapi_free_ImageInfo(info);
}

/* Nothing but the shell and its file may be open, whatever the image names */
static void assert_alone(BlockDriverState *bs)
{
    BlockDriverState *node;
    BdrvChild *child;
    int nodes = 0;

    GRAPH_RDLOCK_GUARD_MAINLOOP();

    QLIST_FOREACH(child, &bs->children, next) {
        g_assert_cmpstr(child->name, ==, "file");
    }
    for (node = bdrv_next_node(NULL); node; node = bdrv_next_node(node)) {
        nodes++;
    }
    g_assert_cmpint(nodes, ==, 2);
}

static void assert_nothing_open(void)
{
    while (aio_poll(qemu_get_aio_context(), false)) {
        /* what is left to do */
    }
    g_assert_null(bdrv_next_all_states(NULL));
}

/* Only what is not promised can fail */
static void assert_may_fail(const Control *c, Error *err)
{
    if (keeps_promise(c) && !faulty && !is_strict(c)) {
        fprintf(stderr, "Image cannot be opened: %s\n", error_get_pretty(err));
        abort();
    }
}

static void inspect(const Control *c)
{
    Error *err = NULL;
    BlockBackend *blk = blk_new_open(NULL, NULL, shell_options(),
                                     BDRV_O_NO_IO | BDRV_O_NO_BACKING, &err);

    if (!blk) {
        assert_may_fail(c, err);
        error_free_or_abort(&err);
        return;
    }
    assert_alone(blk_bs(blk));
    query_info(blk_bs(blk));
    assert_alone(blk_bs(blk));
    blk_unref(blk);
}

/* Returns false if something is still wrong with the image */
static bool check(const Control *c, int flags, BdrvCheckMode fix)
{
    BdrvCheckResult result = { };
    Error *err = NULL;
    BlockBackend *blk = blk_new_open(NULL, NULL, shell_options(),
                                     flags | BDRV_O_CHECK | BDRV_O_NO_BACKING,
                                     &err);
    int ret;

    if (!blk) {
        assert_may_fail(c, err);
        error_free_or_abort(&err);
        return false;
    }
    assert_alone(blk_bs(blk));
    ret = bdrv_check(blk_bs(blk), &result, fix);
    assert_alone(blk_bs(blk));
    blk_unref(blk);
    return ret == 0 && !result.check_errors && !result.corruptions &&
           !result.leaks;
}

/* What the guest and the monitor do */

static void add_bitmap(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap;
    Error *err = NULL;

    if (bdrv_find_dirty_bitmap(bs, "new")) {
        return;
    }
    if (!bdrv_can_store_new_dirty_bitmap(bs, "new", 512, &err)) {
        error_free_or_abort(&err);
        return;
    }
    bitmap = bdrv_create_dirty_bitmap(bs, 512, "new", &err);
    if (!bitmap) {
        error_free_or_abort(&err);
        return;
    }
    bdrv_dirty_bitmap_set_persistence(bitmap, true);
}

static void del_bitmap(BlockDriverState *bs)
{
    BdrvDirtyBitmap *bitmap = bdrv_dirty_bitmap_first(bs);
    Error *err = NULL;

    while (bitmap && !bdrv_dirty_bitmap_get_persistence(bitmap)) {
        bitmap = bdrv_dirty_bitmap_next(bitmap);
    }
    if (!bitmap || bdrv_dirty_bitmap_check(bitmap, BDRV_BITMAP_BUSY |
                                           BDRV_BITMAP_RO, NULL)) {
        return;
    }
    if (bdrv_remove_persistent_dirty_bitmap(bs, bdrv_dirty_bitmap_name(bitmap),
                                            &err) < 0) {
        error_free_or_abort(&err);
        return;
    }
    bdrv_release_dirty_bitmap(bitmap);
}

static void write_disk(BlockBackend *blk, const Control *c)
{
    static uint8_t data[4096];
    int window = c->place & 1;
    size_t start = (c->place >> 1) * 512 % (WINDOW - sizeof(data));
    uint64_t offset = window_offset(c, window) + start;
    uint8_t *in_model = model + window * WINDOW + start;

    if (c->ops & OP_WRITE) {
        memset(data, c->place ^ 0xa5, sizeof(data));
        g_assert_cmpint(blk_pwrite(blk, offset, sizeof(data), data, 0), >=, 0);
        memcpy(in_model, data, sizeof(data));
        written_at = offset;
    }
    if (c->ops & OP_ZERO) {
        g_assert_cmpint(blk_pwrite_zeroes(blk, offset, 1024,
                                          BDRV_REQ_MAY_UNMAP), >=, 0);
        memset(in_model, 0, 1024);
        written_at = offset;
    }
    if (c->ops & OP_DISCARD) {
        /* A memory file ignores it, a file need not read as zeroes */
        g_assert_cmpint(blk_pdiscard(blk, offset, 512, 0), >=, 0);
        g_assert_cmpint(blk_pread(blk, offset, 512, in_model, 0), >=, 0);
        written_at = offset;
    }
    g_assert_cmpint(blk_flush(blk), >=, 0);
    assert_model(blk, c);
    assert_zeroes(blk, c);
}

static void reopen_read_only(BlockBackend *blk)
{
    uint64_t perm, shared;
    Error *err = NULL;

    blk_get_perm(blk, &perm, &shared);
    blk_set_perm(blk, BLK_PERM_CONSISTENT_READ, shared, &error_abort);
    if (bdrv_reopen_set_read_only(blk_bs(blk), true, &err) < 0) {
        /* Bitmaps that cannot be stored are not to be lost */
        error_free_or_abort(&err);
    } else if (bdrv_reopen_set_read_only(blk_bs(blk), false, &err) < 0) {
        error_free_or_abort(&err);
    }
    if (blk_set_perm(blk, perm, shared, &err) < 0) {
        error_free_or_abort(&err);
    }
}

/* As a migration does that fails in the end; it may fail as early as that */
static void inactivate(BlockBackend *blk, const Control *c)
{
    Error *err = NULL;

    bdrv_inactivate_all();
    bdrv_activate_all(&err);
    if (err) {
        assert_may_fail(c, err);
        error_free(err);
    } else {
        assert_model(blk, c);
    }
}

static void use(BlockBackend *blk, const Control *c)
{
    BlockDriverState *bs = blk_bs(blk);
    Error *err = NULL;

    if (c->ops & OP_ADD_BITMAP) {
        add_bitmap(bs);
    }
    write_disk(blk, c);
    query_info(bs);
    qapi_free_BlockDirtyInfoList(bdrv_query_dirty_bitmaps(bs));
    if (c->ops & OP_DEL_BITMAP) {
        del_bitmap(bs);
    }
    if (c->ops & OP_READ_ONLY) {
        reopen_read_only(blk);
        assert_model(blk, c);
    }
    if (c->ops & OP_INACTIVATE) {
        inactivate(blk, c);
    }
    if ((c->ops & OP_RESIZE) && !disk_is_file(c) &&
        blk_truncate(blk, disk->len + WINDOW / 2, false, PREALLOC_MODE_OFF, 0,
                     &err) < 0) {
        error_free_or_abort(&err);
    }
}

/* A bitmap of which nobody says that it is inconsistent must be right */
static void assert_bitmaps(BlockDriverState *bs, bool modified)
{
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (!bdrv_dirty_bitmap_get_persistence(bitmap) ||
            bdrv_dirty_bitmap_inconsistent(bitmap)) {
            continue;
        }
        g_assert_false(modified);
        if (written_at >= 0 && bdrv_dirty_bitmap_enabled(bitmap)) {
            g_assert_true(bdrv_dirty_bitmap_get(bitmap, written_at));
        }
    }
}

/* Opens the image for what comes after, and makes sure that it can be */
static BlockBackend *open_to_use(const Control *c, int flags)
{
    Error *err = NULL;
    BlockBackend *blk = shell_open(c, flags, &err);

    if (!blk) {
        assert_may_fail(c, err);
        error_free_or_abort(&err);
        return NULL;
    }
    assert_model(blk, c);
    assert_zeroes(blk, c);
    return blk;
}

/*
 * What the specification and the guide do not promise: where nothing tells of
 * foreign writes, a log that could not be written to goes on to count, and does
 * not notice modifications; nor does a lease until it has ended, and that of
 * the input may be of any length.
 */
static bool is_out_of_reach(const Control *c, bool modified)
{
    return shell_is_armed() &&
           (modified || (c->fault && !disk_is_file(c) && !is_strict(c)));
}

static void session_read_only(const Control *c, bool modified)
{
    bool out_of_reach = is_out_of_reach(c, modified);
    BlockBackend *blk = open_to_use(c, 0);

    if (blk) {
        if (!guard_is_off(c) && !out_of_reach) {
            assert_bitmaps(blk_bs(blk), modified);
        }
        query_info(blk_bs(blk));
        blk_unref(blk);
    }
    assert_disk(c);
}

static void session_read_write(const Control *c)
{
    BlockBackend *blk;

    faulty = c->fault;
    shell->fault = c->fault;
    shell->fault_after = c->fault_after;
    blk = open_to_use(c, BDRV_O_RDWR | BDRV_O_RESIZE);
    if (blk) {
        blk_set_force_allow_inactivate(blk);
        use(blk, c);
        blk_unref(blk);
    }
    faulty = false;
    shell->fault = 0;
    assert_disk(c);
}

static void image_one_input(const uint8_t *data, size_t len)
{
    BlockDriverState *disk_bs;
    Control c;

    if (len < sizeof(c) || len > sizeof(c) + SHELL_MAX / 2) {
        return;
    }
    memcpy(&c, data, sizeof(c));
    shell->fault = 0;
    take_image(&c, data + sizeof(c), len - sizeof(c));
    if (log_offset && disk_is_file(&c)) {
        /* Without the log, one would wait until the lease has ended */
        c.fault &= ~(FAULT_WRITE | FAULT_FLUSH);
    }
    if (keeps_promise(&c)) {
        repair_header(&c);
    }
    if (shell->len >= HEADER_EXTENSIONS) {
        /* qcow2.c reads each of these, and frees the last one */
        hide_repetitions((uint32_t)ldl_be_p(shell->data + HEADER_LENGTH),
                         EXT_MAGIC_FEATURE_NAMES);
    }
    disk_reset(&c);

    inspect(&c);
    check(&c, 0, 0);
    assert_nothing_open();
    if (!shell_has_bit()) {
        /* Not our business, and it could name any file */
        return;
    }

    disk_bs = disk_open(&c);
    session_read_only(&c, false);
    session_read_write(&c);
    session_read_only(&c, false);
    bdrv_unref(disk_bs);

    if (check(&c, BDRV_O_RDWR, BDRV_FIX_ERRORS | BDRV_FIX_LEAKS)) {
        g_assert_true(check(&c, 0, 0));
    }
    disk_modify(&c);
    disk_bs = disk_open(&c);
    session_read_only(&c, true);
    bdrv_unref(disk_bs);
    inspect(&c);
    assert_nothing_open();
}

/* Seeds: real shells with different things in them */

typedef struct Creation {
    BlockdevCreateOptions options;
    bool done;
    int ret;
} Creation;

static void coroutine_fn create_entry(void *opaque)
{
    Creation *creation = opaque;
    BlockDriver *drv = bdrv_find_format("qcow2");

    creation->ret = drv->bdrv_co_create(&creation->options, &error_abort);
    creation->done = true;
    aio_wait_kick();
}

static void create_shell(const Control *c, uint32_t cluster_size,
                         uint8_t refcount_bits)
{
    BlockdevRef file = { .type = QTYPE_QSTRING, .u.reference = (char *)"file" };
    BlockdevRef rwb = { .type = QTYPE_QSTRING, .u.reference = (char *)"disk" };
    QDict *options = qdict_new();
    BlockDriverState *bs;
    Creation creation = {
        .options = {
            .driver = BLOCKDEV_DRIVER_QCOW2,
            .u.qcow2 = {
                .file = &file,
                .rw_backing = &rwb,
                .size = disk_size(c),
                .has_cluster_size = true,
                .cluster_size = cluster_size,
                .has_refcount_bits = true,
                .refcount_bits = refcount_bits,
                .has_rw_backing_log = true,
                .rw_backing_log = c->log & LOG_THERE,
                .has_rw_backing_map = true,
                .rw_backing_map = c->map & MAP_THERE
                    ? BLOCKDEV_QCOW2_RW_BACKING_MAP_SCAN
                    : BLOCKDEV_QCOW2_RW_BACKING_MAP_OFF,
            },
        },
    };

    shell->len = 0;
    qdict_put_str(options, "driver", "fuzz-memory");
    qdict_put_str(options, "name", "shell");
    qdict_put_str(options, "node-name", "file");
    bs = bdrv_open(NULL, NULL, options, BDRV_O_RDWR, &error_abort);
    aio_co_enter(qemu_get_aio_context(),
                 qemu_coroutine_create(create_entry, &creation));
    AIO_WAIT_WHILE_UNLOCKED(NULL, !creation.done);
    g_assert_cmpint(creation.ret, ==, 0);
    bdrv_unref(bs);
}

static void add_seed_bitmaps(BlockBackend *blk, int count)
{
    for (int i = 0; i < count; i++) {
        g_autofree char *name = g_strdup_printf("b%d", i);
        BdrvDirtyBitmap *bitmap;

        g_assert_true(bdrv_can_store_new_dirty_bitmap(blk_bs(blk), name, 512,
                                                      &error_abort));
        bitmap = bdrv_create_dirty_bitmap(blk_bs(blk), 512 << i, name,
                                          &error_abort);
        bdrv_dirty_bitmap_set_persistence(bitmap, true);
        if (i == 2) {
            bdrv_disable_dirty_bitmap(bitmap);
        }
    }
}

/* What was there before, so that the disk remains pristine */
static void write_pristine(BlockBackend *blk)
{
    static uint8_t data[4096];

    g_assert_cmpint(blk_pread(blk, 0, sizeof(data), data, 0), >=, 0);
    g_assert_cmpint(blk_pwrite(blk, 0, sizeof(data), data, 0), >=, 0);
    g_assert_cmpint(blk_flush(blk), >=, 0);
}

static void add_seed(const char *name, const Control *c)
{
    g_autoptr(GByteArray) seed = g_byte_array_new();

    g_byte_array_append(seed, (const uint8_t *)c, sizeof(*c));
    g_byte_array_append(seed, shell->data, shell->len);
    fuzz_seed_add(name, seed->data, seed->len);
}

/* Of the disk as it is */
static void make_image(const Control *c, uint32_t cluster_size,
                       uint8_t refcount_bits, int bitmaps)
{
    BlockDriverState *disk_bs = disk_open(c);

    create_shell(c, cluster_size, refcount_bits);
    if (bitmaps) {
        BlockBackend *blk = shell_open(c, BDRV_O_RDWR, &error_abort);

        add_seed_bitmaps(blk, bitmaps);
        write_pristine(blk);
        if (disk_is_file(c)) {
            set_mtime(1000000000);
        }
        blk_unref(blk);
    }
    bdrv_unref(disk_bs);
}

static void make_seed(const char *name, Control c, uint32_t cluster_size,
                      uint8_t refcount_bits, int bitmaps)
{
    disk_reset(&c);
    make_image(&c, cluster_size, refcount_bits, bitmaps);
    add_seed(name, &c);
}

/* Takes the log out of the image; returns sectors that are not as ever */
static GByteArray *cut_log(Control *c)
{
    g_autofree uint8_t *empty = g_malloc(QCOW2_LOG_LEN);
    size_t ext = find_extension(HEADER_EXTENSIONS, QCOW2_EXT_MAGIC_RW_BACKING);
    uint64_t at = ldq_be_p(shell->data + ext + 8 + 8);
    GByteArray *sectors = g_byte_array_new();

    fill_log(empty);
    c->log_sectors = 0;
    c->log_at = cpu_to_le16(at / QCOW2_LOG_UNIT_LEN);
    for (size_t i = 0; i < QCOW2_LOG_LEN; i += QCOW2_LOG_UNIT_LEN) {
        LogSector sector = {
            .place = cpu_to_le16(i / QCOW2_LOG_UNIT_LEN),
        };

        if (memcmp(shell->data + at + i, empty + i, QCOW2_LOG_UNIT_LEN)) {
            memcpy(sector.data, shell->data + at + i, sizeof(sector.data));
            g_byte_array_append(sectors, (uint8_t *)&sector, sizeof(sector));
            c->log_sectors++;
        }
    }
    memmove(shell->data + at, shell->data + at + QCOW2_LOG_LEN,
            shell->len - at - QCOW2_LOG_LEN);
    shell->len -= QCOW2_LOG_LEN;
    return sectors;
}

/* What the input is to have before the image, which is without its log */
static void add_log_seed(const char *name, Control *c)
{
    g_autoptr(GByteArray) seed = g_byte_array_new();
    g_autoptr(GByteArray) sectors = cut_log(c);

    g_byte_array_append(seed, (const uint8_t *)c, sizeof(*c));
    g_byte_array_append(seed, sectors->data, sectors->len);
    g_byte_array_append(seed, shell->data, shell->len);
    fuzz_seed_add(name, seed->data, seed->len);
}

/* An image that was in use when QEMU was killed */
static void make_crashed_seed(const char *name, Control c, int bitmaps)
{
    g_autofree uint8_t *crashed = NULL;
    BlockDriverState *disk_bs;
    BlockBackend *blk;
    size_t len;

    c.log = LOG_THERE | LOG_ARMED | LOG_CHECKSUMS;
    disk_reset(&c);
    disk_bs = disk_open(&c);
    create_shell(&c, 512, 16);
    blk = shell_open(&c, BDRV_O_RDWR, &error_abort);
    add_seed_bitmaps(blk, bitmaps);
    /* From now on, the log counts */
    bdrv_dirty_bitmaps_changed();
    write_pristine(blk);
    g_assert_true(shell_is_armed());
    len = shell->len;
    crashed = g_memdup2(shell->data, len);
    blk_unref(blk);
    bdrv_unref(disk_bs);

    memcpy(shell->data, crashed, len);
    shell->len = len;
    add_log_seed(name, &c);
}

/* An image with a map that was closed properly */
static void make_map_seed(const char *name, Control c, int bitmaps)
{
    c.log = LOG_THERE | LOG_CHECKSUMS;
    c.map |= MAP_THERE;
    make_image(&c, 512, 16, bitmaps);
    add_log_seed(name, &c);
}

/* The same, and the map says of all data of the disk that there is none */
static void make_hiding_seed(const char *name, Control c, int bitmaps)
{
    disk_reset(&c);
    if (disk_is_file(&c)) {
        g_assert_cmpint(ftruncate(file_disk_fd, 0), ==, 0);
        g_assert_cmpint(ftruncate(file_disk_fd, FILE_DISK_SIZE), ==, 0);
    } else {
        memset(disk->data, 0, disk->len);
    }
    make_map_seed(name, c, bitmaps);
}

static void make_map_seeds(Control c)
{
    for (int i = 0; i < 8; i++) {
        g_autofree char *name = g_strdup_printf("map-%d", i);
        g_autofree char *hiding = g_strdup_printf("map-hiding-%d", i);

        c.disk = i & 1;
        c.guard = i & 2 ? 3 : 0;
        c.map = i & 4 ? MAP_UNPROVEN : 0;
        disk_reset(&c);
        make_map_seed(name, c, 2);
        make_hiding_seed(hiding, c, 0);
    }
    c.guard = 0;
    c.map = MAP_THERE;
    for (int i = 0; i < 4; i++) {
        g_autofree char *name = g_strdup_printf("map-crashed-%d", i);

        c.disk = i & 1;
        c.fault = i & 2 ? FAULT_WRITE | FAULT_ONCE : 0;
        make_crashed_seed(name, c, 2);
    }
}

static void image_make_seeds(void)
{
    Control c = { .keep = 1, .ops = OP_WRITE };

    make_seed("empty", c, 512, 16, 0);
    make_seed("empty-64k", c, 64 * KiB, 16, 0);
    make_seed("bitmap", c, 512, 16, 1);

    c.ops = 0xff;
    make_seed("all-ops", c, 512, 16, 3);
    make_seed("one-bit-refcounts", c, 512, 1, 2);
    c.disk = 1;
    make_seed("file", c, 512, 16, 3);
    c.disk = 3;
    make_seed("file-by-name", c, 512, 64, 2);
    c.disk = 0;
    c.keep = 0;
    make_seed("damaged-header", c, 512, 16, 3);
    c.keep = 1;

    for (int i = 1; i < 4; i++) {
        g_autofree char *name = g_strdup_printf("guard-%d", i);

        c.guard = i;
        make_seed(name, c, 512, 16, 2);
    }
    /* Nothing but the bitmaps themselves tells that they are damaged */
    hide_extension(find_extension(HEADER_EXTENSIONS,
                                  QCOW2_EXT_MAGIC_RW_BACKING_GUARD));
    add_seed("trusted", &c);

    c.guard = 0;
    c.ops = OP_WRITE;
    make_crashed_seed("crashed", c, 1);
    c.ops = 0xff;
    make_crashed_seed("crashed-all-ops", c, 3);
    c.disk = 1;
    make_crashed_seed("crashed-file", c, 3);
    c.disk = 0;
    c.fault_after = 9;
    c.fault = FAULT_WRITE | FAULT_ONCE;
    make_crashed_seed("crashed-fault", c, 2);
    c.fault = FAULT_FLUSH;
    make_crashed_seed("crashed-flush-fault", c, 2);
    c.fault = FAULT_READ | FAULT_ONCE;
    make_crashed_seed("crashed-read-fault", c, 2);
    c.fault = 0;
    make_map_seeds(c);
    for (int i = 1; i < 32; i++) {
        g_autofree char *name = g_strdup_printf("fault-%d", i);

        c.fault = i;
        c.fault_after = i;
        c.disk = i & 1;
        make_seed(name, c, 512, 16, 2);
    }
}

/* The file disk is deleted when the program ends */
static void remove_file_disk(void)
{
    unlink(file_disk_name);
}

static void image_init(void)
{
    qemu_init_main_loop(&error_abort);
    g_assert_cmpint(qcrypto_init(&error_abort), ==, 0);
    bdrv_init();
    bdrv_register(&bdrv_memory);
    for (int i = 0; i < ARRAY_SIZE(memory_files); i++) {
        memory_files[i].data = g_malloc0(memory_files[i].max_len);
    }
    for (uint32_t i = 0, x = 1; i < sizeof(pristine); i++) {
        x = x * 1103515245 + 12345;
        pristine[i] = x >> 16;
    }

    file_disk_fd = g_file_open_tmp("rw-backing-XXXXXX", &file_disk_name, NULL);
    g_assert_cmpint(file_disk_fd, >=, 0);
    g_assert_cmpint(ftruncate(file_disk_fd, FILE_DISK_SIZE), ==, 0);
    atexit(remove_file_disk);
}

static const FuzzTarget image_target = {
    .name       = "image",
    .init       = image_init,
    .make_seeds = image_make_seeds,
    .one_input  = image_one_input,
    .mutations  = 3000,
};

int main(int argc, char **argv)
{
    return fuzz_main(argc, argv, &image_target);
}
