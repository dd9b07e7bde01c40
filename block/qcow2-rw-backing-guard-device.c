/*
 * qcow2 RW backing: counters of local block devices
 *
 * The kernel counts the sectors that were written to and discarded from a
 * block device since it appeared.  If nobody has written, the counters are
 * the same.  They say nothing about what happens behind the device.  So they
 * do not count for a disk that other hosts may write to as well, as far as the
 * kernel tells; that the file of a loop device is left alone is for its user
 * to make sure.
 *
 * Writes to the whole disk that do not use a partition may hit it, but are
 * counted for the disk only, together with those to all other partitions.
 * What is left after these are subtracted stands still while other partitions
 * are in use.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qemu/uuid.h"
#include "block/block_int.h"
#include "qcow2-rw-backing-guard-int.h"

#ifdef CONFIG_LINUX
#include <sys/sysmacros.h>

#define BOOT_ID_FILE    "/proc/sys/kernel/random/boot_id"

/* Numbers in a file "stat", see Documentation/block/stat.rst in Linux */
#define STAT_READ_SECTORS       2
#define STAT_WRITE_SECTORS      6
#define STAT_DISCARD_SECTORS    13
#define STAT_COUNT              14

/* How often to look again if a disk is written to meanwhile */
#define DISK_ATTEMPTS           20

static bool get_text(const char *directory, const char *name, char **text)
{
    g_autofree char *path = g_build_filename(directory, name, NULL);

    if (!g_file_get_contents(path, text, NULL, NULL)) {
        return false;
    }
    g_strstrip(*text);
    return true;
}

static bool get_number(const char *directory, const char *name, uint64_t *value)
{
    g_autofree char *text = NULL;

    return get_text(directory, name, &text) &&
           parse_uint_full(text, 10, value) == 0;
}

static bool get_stat(const char *directory, uint64_t numbers[STAT_COUNT])
{
    g_autofree char *text = NULL;
    const char *p;
    int i;

    if (!get_text(directory, "stat", &text)) {
        return false;
    }
    for (p = text, i = 0; i < STAT_COUNT; i++) {
        while (*p == ' ') {
            p++;
        }
        if (parse_uint(p, &p, 10, &numbers[i]) < 0) {
            return false;
        }
    }
    return true;
}

static bool get_counters(const char *directory,
                         Qcow2RwBackingCounters *counters)
{
    uint64_t numbers[STAT_COUNT];

    if (!get_stat(directory, numbers)) {
        return false;
    }
    *counters = (Qcow2RwBackingCounters) {
        .written    = numbers[STAT_WRITE_SECTORS],
        .discarded  = numbers[STAT_DISCARD_SECTORS],
    };
    return true;
}

/* Some drivers never count: then nothing was ever read or written, it seems */
static bool is_counting(const char *disk)
{
    uint64_t numbers[STAT_COUNT], on;

    return get_number(disk, "queue/iostats", &on) && on == 1 &&
           get_stat(disk, numbers) &&
           (numbers[STAT_READ_SECTORS] || numbers[STAT_WRITE_SECTORS] ||
            numbers[STAT_DISCARD_SECTORS]);
}

/* How deep devices can be stacked */
#define MAX_DEPTH               16

static bool is_local(const char *disk, int depth);

/* A mapped device or a RAID is where the devices are that it consists of */
static bool has_local_slaves(const char *disk, int depth)
{
    g_autofree char *path = g_build_filename(disk, "slaves", NULL);
    g_autoptr(GDir) dir = g_dir_open(path, 0, NULL);
    const char *name;
    int count = 0;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *slave = g_build_filename(path, name, NULL);

        if (depth == 0 || !is_local(slave, depth - 1)) {
            return false;
        }
        count++;
    }
    return count > 0;
}

/* Names of directories of devices that several hosts can have */
static bool is_on_network(const char *real_path)
{
    static const char *const parts[] = {
        "/session", "/rport-", "/nvme-fabrics/", "/nvme-subsystem/",
    };
    int i;

    for (i = 0; i < ARRAY_SIZE(parts); i++) {
        if (strstr(real_path, parts[i])) {
            return true;
        }
    }
    return false;
}

/* @disk: directory of a disk or a partition */
static bool is_local(const char *disk, int depth)
{
    static const char virtual_block[] = "/sys/devices/virtual/block/";
    g_autofree char *real_path = realpath(disk, NULL);
    const char *name;

    if (!real_path || is_on_network(real_path)) {
        return false;
    }
    if (!strstart(real_path, virtual_block, &name)) {
        return true;
    }
    /* NBD, RBD and DRBD, among others, are virtual devices */
    return strstart(name, "loop", NULL) || strstart(name, "ram", NULL) ||
           strstart(name, "zram", NULL) || has_local_slaves(disk, depth);
}

static bool subtract_partitions(const char *disk,
                                Qcow2RwBackingCounters *counters)
{
    g_autoptr(GDir) dir = g_dir_open(disk, 0, NULL);
    const char *name;

    while (dir && (name = g_dir_read_name(dir))) {
        g_autofree char *path = g_build_filename(disk, name, NULL);
        g_autofree char *mark = g_build_filename(path, "partition", NULL);
        Qcow2RwBackingCounters partition;

        if (access(mark, F_OK) < 0) {
            continue;
        }
        if (!get_counters(path, &partition)) {
            return false;
        }
        counters->written -= partition.written;
        counters->discarded -= partition.discarded;
    }
    return dir;
}

/* Returns false if other partitions are written to all the time */
static bool get_disk_counters(const char *disk,
                              Qcow2RwBackingCounters *counters)
{
    Qcow2RwBackingCounters before, after;
    int i;

    for (i = 0; i < DISK_ATTEMPTS; i++) {
        if (!get_counters(disk, &before)) {
            return false;
        }
        *counters = before;
        if (!subtract_partitions(disk, counters) ||
            !get_counters(disk, &after)) {
            return false;
        }
        if (after.written == before.written &&
            after.discarded == before.discarded) {
            return true;
        }
    }
    return false;
}

bool qcow2_rw_backing_get_boot_id(uint8_t id[16])
{
    g_autofree char *text = NULL;
    QemuUUID uuid;

    if (!get_text("/", BOOT_ID_FILE, &text) ||
        qemu_uuid_parse(text, &uuid) < 0) {
        return false;
    }
    QEMU_BUILD_BUG_ON(sizeof(uuid.data) != 16);
    memcpy(id, uuid.data, 16);
    return true;
}

/*
 * What another program has written to the device without syncing it is in
 * memory, and will be counted some time later.
 */
static bool write_back(int fd)
{
#ifdef CONFIG_SYNC_FILE_RANGE
    g_autofree char *path = g_strdup_printf("/proc/self/fd/%d", fd);
    int real_fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    int ret;

    if (real_fd < 0) {
        return false;
    }
    ret = sync_file_range(real_fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE |
                          SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    close(real_fd);
    return ret == 0;
#else
    return false;
#endif
}

static bool get_partition(const char *self, const char *disk,
                          Qcow2RwBackingDevice *device, uint64_t *start)
{
    uint64_t sector;

    if (!get_number(self, "start", &sector) ||
        !get_disk_counters(disk, &device->disk)) {
        return false;
    }
    *start = sector * BDRV_SECTOR_SIZE;
    return true;
}

bool qcow2_rw_backing_device_get(int fd, Qcow2RwBackingDevice *device,
                                 uint64_t *start, Error **errp)
{
    g_autofree char *self = NULL;
    g_autofree char *mark = NULL;
    g_autofree char *disk = NULL;
    bool is_partition;
    struct stat st;

    *device = (Qcow2RwBackingDevice) { };
    *start = 0;

    if (fstat(fd, &st) < 0 || !S_ISBLK(st.st_mode)) {
        error_setg(errp, "It is not a block device");
        return false;
    }
    self = g_strdup_printf("/sys/dev/block/%u:%u", major(st.st_rdev),
                           minor(st.st_rdev));
    mark = g_build_filename(self, "partition", NULL);
    is_partition = access(mark, F_OK) == 0;
    disk = is_partition ? g_build_filename(self, "..", NULL) : g_strdup(self);

    if (!is_local(disk, MAX_DEPTH)) {
        error_setg(errp, "Other hosts may write to block device %u:%u without "
                   "being noticed here", major(st.st_rdev),
                   minor(st.st_rdev));
        return false;
    }
    if (!write_back(fd) || !qcow2_rw_backing_get_boot_id(device->boot_id) ||
        !is_counting(disk) || !get_number(disk, "diskseq", &device->diskseq) ||
        !get_counters(self, &device->self) ||
        (is_partition && !get_partition(self, disk, device, start))) {
        error_setg(errp, "The host does not count what is written to block "
                   "device %u:%u", major(st.st_rdev), minor(st.st_rdev));
        return false;
    }
    return true;
}
#else
bool qcow2_rw_backing_device_get(int fd, Qcow2RwBackingDevice *device,
                                 uint64_t *start, Error **errp)
{
    error_setg(errp, "Writes to block devices are not counted on this host");
    return false;
}
#endif
