/*
 * qcow2 RW backing: local files and devices below it
 *
 * Finds the files that make up an RW backing, and what their times tell.  Size
 * and modification time prove that nobody has written to a file, if three
 * things are true: its file system is a local one, where every write moves the
 * time; all data of the disk is in such files; and closing the RW backing does
 * not write to them after the time was recorded.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "block/block-io.h"
#include "block/dirty-bitmap.h"
#include "qcow2.h"
#include "qcow2-rw-backing-guard-int.h"

#ifdef CONFIG_LINUX
#include <sys/vfs.h>
#endif

/* A file or device under the RW backing */
typedef struct Leaf {
    /* Compared, but never dereferenced: the node may be gone */
    const BlockDriverState *bs;
    char *node_name;

    char *filename;

    /* O_PATH descriptor, -1 if the file could not be found */
    int fd;

    /* Where in the file the disk starts, in bytes */
    uint64_t offset;
} Leaf;

typedef enum FileSystem {
    FS_LOCAL,       /* every write by anybody moves the time of the file */
    FS_REMOTE,      /* a time that has moved is due to a write by somebody */
    FS_UNRELIABLE,  /* times are what somebody makes them */
} FileSystem;

static Leaf *get_leaf(const Qcow2RwBackingFile *file, guint i)
{
    return &g_array_index(file->leaves, Leaf, i);
}

static guint leaf_count(const Qcow2RwBackingFile *file)
{
    return file->leaves ? file->leaves->len : 0;
}

void qcow2_rw_backing_file_init(Qcow2RwBackingFile *file)
{
    *file = (Qcow2RwBackingFile) { };
}

static void leaf_destroy(void *opaque)
{
    Leaf *leaf = opaque;

    if (leaf->fd >= 0) {
        qemu_close(leaf->fd);
    }
    g_free(leaf->node_name);
    g_free(leaf->filename);
}

void qcow2_rw_backing_file_close(Qcow2RwBackingFile *file)
{
    if (file->leaves) {
        g_array_unref(file->leaves);
    }
    g_free(file->nodes);
    qcow2_rw_backing_file_init(file);
}

/* Finding them */

#ifdef CONFIG_LINUX
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
#else
/* What times are worth is not known there */
static int open_for_stat(const char *filename)
{
    return -1;
}
#endif

static void GRAPH_RDLOCK
add_leaf(Qcow2RwBackingFile *file, BlockDriverState *bs, uint64_t offset)
{
    Leaf leaf = {
        .bs         = bs,
        .node_name  = g_strdup(bdrv_get_node_name(bs)),
        .fd         = -1,
        .offset     = offset,
    };

    g_array_append_val(file->leaves, leaf);
}

/* Bytes that a raw format node skips; its options are all that tells */
static uint64_t raw_offset(BlockDriverState *bs)
{
    QObject *obj = qdict_get(bs->options, "offset");
    QNum *num = qobject_to(QNum, obj);
    QString *str = qobject_to(QString, obj);
    uint64_t offset;

    if ((num && qnum_get_try_uint(num, &offset)) ||
        (str && qemu_strtosz(qstring_get_str(str), NULL, &offset) == 0)) {
        return offset;
    }
    return 0;
}

/* Persistent bitmaps of the RW backing itself are stored when it is closed */
static bool qcow2_closes_quietly(BlockDriverState *bs)
{
    BDRVQcow2State *s = bs->opaque;
    BdrvDirtyBitmap *bitmap;

    FOR_EACH_DIRTY_BITMAP(bs, bitmap) {
        if (bdrv_dirty_bitmap_get_persistence(bitmap)) {
            return false;
        }
    }
    return s->nb_bitmaps == 0 && !s->use_lazy_refcounts &&
           !(s->incompatible_features & QCOW2_INCOMPAT_DIRTY);
}

/*
 * Returns true if everything is in the files once an image is flushed.  Images
 * of formats that are not listed set a mark when they are opened, and take it
 * back when they are closed.
 */
static bool closes_quietly(BlockDriverState *bs)
{
    static const char *const quiet[] = {
        "luks", "raw", "vdi", "vmdk", "vpc", NULL
    };

    if (bs->drv == &bdrv_qcow2) {
        return !bdrv_is_writable(bs) || qcow2_closes_quietly(bs);
    }
    /* It cuts off what it has allocated in advance */
    if (!strcmp(bs->drv->format_name, "preallocate")) {
        return false;
    }
    return !bdrv_is_writable(bs) || bs->drv->is_filter ||
           g_strv_contains(quiet, bs->drv->format_name);
}

static void GRAPH_RDLOCK
collect(Qcow2RwBackingFile *file, BlockDriverState *bs, uint64_t offset)
{
    const char *format = bs && bs->drv ? bs->drv->format_name : "";
    BdrvChild *child;

    if (!strcmp(format, "file") || !strcmp(format, "host_device")) {
        add_leaf(file, bs, offset);
        return;
    }
    if (!format[0] || QLIST_EMPTY(&bs->children)) {
        file->complete = false;
        return;
    }

    file->quiet &= closes_quietly(bs);
    if (bs->drv->is_filter) {
        /* Other children are none that the disk is read from */
        collect(file, bdrv_primary_bs(bs), offset);
        return;
    }
    if (!strcmp(format, "raw")) {
        collect(file, bdrv_primary_bs(bs), offset + raw_offset(bs));
        return;
    }
    file->raw = false;
    collect(file, bdrv_primary_bs(bs), 0);
    QLIST_FOREACH(child, &bs->children, next) {
        if (child != bdrv_primary_child(bs)) {
            collect(file, child->bs, 0);
        }
    }
}

/*
 * The nodes whose data is that of the disk.  Filters come and go and do not
 * change it, nor does what is done to a chain of backing files.
 */
static void GRAPH_RDLOCK append_nodes(GString *nodes, BlockDriverState *bs)
{
    BdrvChild *child;

    if (bs->drv && bs->drv->is_filter && bdrv_primary_bs(bs)) {
        append_nodes(nodes, bdrv_primary_bs(bs));
        return;
    }
    g_string_append_printf(nodes, "%s %p\n", bdrv_get_node_name(bs), bs);
    QLIST_FOREACH(child, &bs->children, next) {
        if (!(child->role & BDRV_CHILD_COW)) {
            append_nodes(nodes, child->bs);
        }
    }
}

static char *GRAPH_RDLOCK list_nodes(BlockDriverState *rw_bs)
{
    GString *nodes = g_string_new(NULL);

    append_nodes(nodes, rw_bs);
    return g_string_free(nodes, false);
}

bool qcow2_rw_backing_file_is_exchanged(const Qcow2RwBackingFile *file,
                                        BlockDriverState *rw_bs)
{
    g_autofree char *nodes = list_nodes(rw_bs);

    return g_strcmp0(nodes, file->nodes);
}

/* What @leaf was found to be earlier, which is given up there */
static bool take_over(Qcow2RwBackingFile *old, Leaf *leaf)
{
    Leaf *known;
    guint i;

    for (i = 0; i < leaf_count(old); i++) {
        known = get_leaf(old, i);
        if (known->bs == leaf->bs && known->filename &&
            !strcmp(known->node_name, leaf->node_name)) {
            leaf->filename = g_steal_pointer(&known->filename);
            leaf->fd = known->fd;
            known->fd = -1;
            return true;
        }
    }
    return false;
}

static void GRAPH_RDLOCK find_leaf(Leaf *leaf)
{
    BlockDriverState *bs = (BlockDriverState *)leaf->bs;

    bdrv_refresh_filename(bs);
    leaf->filename = g_strdup(bs->exact_filename);
    leaf->fd = open_for_stat(bs->exact_filename);
}

void qcow2_rw_backing_file_find(Qcow2RwBackingFile *file,
                                BlockDriverState *rw_bs)
{
    Qcow2RwBackingFile old = *file;
    guint i;

    *file = (Qcow2RwBackingFile) {
        .leaves     = g_array_new(false, false, sizeof(Leaf)),
        .complete   = true,
        .raw        = true,
        .quiet      = true,
        .nodes      = list_nodes(rw_bs),
        .exchanged  = old.exchanged,
    };
    file->exchanged |= old.nodes && strcmp(old.nodes, file->nodes);
    g_array_set_clear_func(file->leaves, leaf_destroy);
    collect(file, rw_bs, 0);

    for (i = 0; i < leaf_count(file); i++) {
        Leaf *leaf = get_leaf(file, i);

        if (!take_over(&old, leaf)) {
            find_leaf(leaf);
        }
    }
    qcow2_rw_backing_file_close(&old);
}

/* Times */

#ifdef CONFIG_LINUX
/*
 * File systems whose kernel code alone decides what is written and when, so
 * that no write by a program of this host goes without a new time.  Overlayfs
 * takes the times of its upper layer, which cannot be a network file system.
 * The others are those of servers and clusters, where other hosts write, and
 * what nobody has looked at.
 */
static FileSystem get_file_system(int fd)
{
    static const uint32_t local[] = {
        0x00004d44,     /* msdos, vfat */
        0x0000ef53,     /* ext2, ext3, ext4 */
        0x01021994,     /* tmpfs */
        0x2011bab0,     /* exfat */
        0x2fc12fc1,     /* zfs */
        0x58465342,     /* xfs */
        0x794c7630,     /* overlayfs */
        0x858458f6,     /* ramfs */
        0x9123683e,     /* btrfs */
        0xca451a4e,     /* bcachefs */
        0xf2f52010,     /* f2fs */
    };
    static const uint32_t remote[] = {
        0x00006969,     /* nfs */
        0x00c36400,     /* ceph */
        0x01161970,     /* gfs2 */
        0x7461636f,     /* ocfs2 */
        0xfe534d42,     /* smb2 */
        0xff534d42,     /* cifs */
    };
    struct statfs fs;
    int i;

    if (fstatfs(fd, &fs) < 0) {
        return FS_UNRELIABLE;
    }
    for (i = 0; i < ARRAY_SIZE(local); i++) {
        if ((uint32_t)fs.f_type == local[i]) {
            return FS_LOCAL;
        }
    }
    for (i = 0; i < ARRAY_SIZE(remote); i++) {
        if ((uint32_t)fs.f_type == remote[i]) {
            return FS_REMOTE;
        }
    }
    return FS_UNRELIABLE;
}

static uint32_t mtime_nsec(const struct stat *st)
{
    return st->st_mtim.tv_nsec;
}
#else
static FileSystem get_file_system(int fd)
{
    return FS_UNRELIABLE;
}

static uint32_t mtime_nsec(const struct stat *st)
{
    return 0;
}
#endif

static Qcow2RwBackingFileTime file_time(const struct stat *st)
{
    return (Qcow2RwBackingFileTime) {
        .size       = st->st_size,
        .mtime_sec  = st->st_mtime,
        .mtime_nsec = mtime_nsec(st),
    };
}

/* Returns false with @errp set if the time of @leaf proves nothing */
static bool get_local_time(const Leaf *leaf, Qcow2RwBackingFileTime *time,
                           Error **errp)
{
    struct stat st;

    if (leaf->fd < 0 || fstat(leaf->fd, &st) < 0) {
        error_setg(errp, "File '%s' cannot be found", leaf->filename);
        return false;
    }
    if (!S_ISREG(st.st_mode)) {
        error_setg(errp, "'%s' is not a regular file", leaf->filename);
        return false;
    }
    if (get_file_system(leaf->fd) != FS_LOCAL) {
        error_setg(errp, "The file system of '%s' is not a local one whose "
                   "times can be relied on", leaf->filename);
        return false;
    }
    *time = file_time(&st);
    return true;
}

static int compare_records(const void *a, const void *b)
{
    return memcmp(a, b, QCOW2_RW_BACKING_FILE_RECORD_LEN);
}

/* See "Files" in the specification */
static bool digest_other_files(const Qcow2RwBackingFile *file, uint8_t *digest,
                               Error **errp)
{
    guint count = leaf_count(file) - 1, i;
    g_autofree uint8_t *records =
        g_malloc_n(count, QCOW2_RW_BACKING_FILE_RECORD_LEN);

    for (i = 0; i < count; i++) {
        const Leaf *leaf = get_leaf(file, i + 1);
        uint8_t *record = records + i * QCOW2_RW_BACKING_FILE_RECORD_LEN;
        Qcow2RwBackingFileTime time;

        if (!get_local_time(leaf, &time, errp)) {
            return false;
        }
        stq_be_p(record, leaf->offset);
        stq_be_p(record + 8, time.size);
        stq_be_p(record + 16, time.mtime_sec);
        stl_be_p(record + 24, time.mtime_nsec);
    }
    /* The order of children of a node is nobody's concern */
    qsort(records, count, QCOW2_RW_BACKING_FILE_RECORD_LEN, compare_records);
    return qcow2_rw_backing_sha256(records,
                                   count * QCOW2_RW_BACKING_FILE_RECORD_LEN,
                                   digest, errp);
}

bool qcow2_rw_backing_file_get_times(const Qcow2RwBackingFile *file,
                                     Qcow2RwBackingGuard *guard, Error **errp)
{
    if (!file->complete || leaf_count(file) == 0) {
        error_setg(errp, "It does not consist of local files");
        return false;
    }
    guard->offset = get_leaf(file, 0)->offset;
    guard->other_files = leaf_count(file) - 1;
    return get_local_time(get_leaf(file, 0), &guard->file, errp) &&
           (!guard->other_files ||
            digest_other_files(file, guard->digest, errp));
}

bool qcow2_rw_backing_file_get_remote_time(const Qcow2RwBackingFile *file,
                                           Qcow2RwBackingFileTime *time)
{
    struct stat st;
    int fd;

    if (!file->complete || leaf_count(file) != 1) {
        return false;
    }
    fd = get_leaf(file, 0)->fd;
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        get_file_system(fd) != FS_REMOTE) {
        return false;
    }
    *time = file_time(&st);
    return true;
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

void qcow2_rw_backing_file_wait(const Qcow2RwBackingFile *file)
{
    struct stat st;
    guint i;

    for (i = 0; i < leaf_count(file); i++) {
        if (fstat(get_leaf(file, i)->fd, &st) == 0) {
            wait_for_later_time(&st);
        }
    }
}

/* Making sure that no record fits */

bool qcow2_rw_backing_file_is_exact(const Qcow2RwBackingFile *file)
{
    Qcow2RwBackingGuard guard = { };

    return file->quiet && qcow2_rw_backing_file_get_times(file, &guard, NULL);
}

bool qcow2_rw_backing_file_get_evidence(const Qcow2RwBackingFile *file,
                                        Qcow2LogTime *time, uint64_t *inode,
                                        Error **errp)
{
    Qcow2RwBackingFileTime file_time;
    struct stat st;

    if (!file->complete || !file->quiet || leaf_count(file) != 1) {
        error_setg(errp, "It is not a single local file");
        return false;
    }
    if (!get_local_time(get_leaf(file, 0), &file_time, errp)) {
        return false;
    }
    if (fstat(get_leaf(file, 0)->fd, &st) < 0) {
        error_setg_errno(errp, errno, "It cannot be asked for its time");
        return false;
    }
    *time = (Qcow2LogTime) {
        .sec  = file_time.mtime_sec,
        .nsec = file_time.mtime_nsec,
    };
    *inode = st.st_ino;
    return true;
}

#ifdef CONFIG_LINUX
/* Makes the time of the file durable, which is set to now before if @touch */
static bool sync_time(const Leaf *leaf, bool touch)
{
    g_autofree char *name = g_strdup_printf("/proc/self/fd/%d", leaf->fd);
    int fd, ret = 0;

    /* Without OFD locks, closing a descriptor drops all locks on its file */
    if (!qemu_has_ofd_lock()) {
        return false;
    }
    fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return false;
    }
    if (touch) {
        ret = futimens(fd, NULL);
    }
    if (ret == 0) {
        /* fdatasync() would not care for the time */
        ret = fsync(fd);
    }
    close(fd);
    return ret == 0;
}

bool qcow2_rw_backing_file_sync_time(const Qcow2RwBackingFile *file)
{
    return leaf_count(file) == 1 && sync_time(get_leaf(file, 0), false);
}

bool qcow2_rw_backing_file_touch(const Qcow2RwBackingFile *file)
{
    Qcow2RwBackingFileTime before, after;
    const Leaf *leaf;

    if (!leaf_count(file)) {
        return false;
    }
    leaf = get_leaf(file, 0);
    return get_local_time(leaf, &before, NULL) && sync_time(leaf, true) &&
           get_local_time(leaf, &after, NULL) &&
           (before.mtime_sec != after.mtime_sec ||
            before.mtime_nsec != after.mtime_nsec);
}
#else
bool qcow2_rw_backing_file_sync_time(const Qcow2RwBackingFile *file)
{
    return false;
}

bool qcow2_rw_backing_file_touch(const Qcow2RwBackingFile *file)
{
    return false;
}
#endif

/* Identity */

static bool is_same_file(const struct stat *a, const struct stat *b)
{
    if (S_ISBLK(a->st_mode) && S_ISBLK(b->st_mode)) {
        return a->st_rdev == b->st_rdev;
    }
    return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool qcow2_rw_backing_file_check_names(const Qcow2RwBackingFile *file,
                                       Error **errp)
{
    struct stat st, by_name;
    guint i;

    for (i = 0; i < leaf_count(file); i++) {
        const Leaf *leaf = get_leaf(file, i);

        /* If there is nothing of this name, QEMU has changed its directory */
        if (leaf->fd >= 0 && fstat(leaf->fd, &st) == 0 &&
            stat(leaf->filename, &by_name) == 0 &&
            !is_same_file(&st, &by_name)) {
            error_setg(errp, "Another file has taken its name '%s'",
                       leaf->filename);
            return false;
        }
    }
    return true;
}

int qcow2_rw_backing_file_device(const Qcow2RwBackingFile *file)
{
    struct stat st;
    int fd;

    if (!file->complete || leaf_count(file) != 1) {
        return -1;
    }
    fd = get_leaf(file, 0)->fd;
    return fd >= 0 && fstat(fd, &st) == 0 && S_ISBLK(st.st_mode) ? fd : -1;
}

uint64_t qcow2_rw_backing_file_offset(const Qcow2RwBackingFile *file)
{
    return leaf_count(file) ? get_leaf(file, 0)->offset : 0;
}

Qcow2RwBackingPlace qcow2_rw_backing_file_place(const Qcow2RwBackingFile *file)
{
    struct stat st;
    int fd;

    if (!file->complete || !file->raw || leaf_count(file) != 1) {
        return QCOW2_RW_BACKING_PLACE_OTHER;
    }
    fd = get_leaf(file, 0)->fd;
    if (fd < 0 || fstat(fd, &st) < 0) {
        return QCOW2_RW_BACKING_PLACE_OTHER;
    }
    if (S_ISBLK(st.st_mode)) {
        return QCOW2_RW_BACKING_PLACE_DEVICE;
    }
    if (!S_ISREG(st.st_mode)) {
        return QCOW2_RW_BACKING_PLACE_OTHER;
    }
    return get_file_system(fd) == FS_LOCAL
        ? QCOW2_RW_BACKING_PLACE_LOCAL_FILE
        : QCOW2_RW_BACKING_PLACE_REMOTE_FILE;
}
