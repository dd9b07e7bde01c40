/*
 * qcow2 RW backing: codec of the header extensions
 *
 * Turns the bytes of the RW backing extension into a pointer to the RW
 * backing and back, those of the guard extension into a guard and back, and
 * refuses everything that the specification
 * (docs/interop/qcow2-rw-backing.rst) does.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "block/qcow2-rw-backing-format.h"
#include "block/qcow2-rw-backing-log-format.h"

#define KNOWN_FLAGS     (QCOW2_RW_BACKING_LOG | QCOW2_RW_BACKING_LOG_ARMED | \
                         QCOW2_RW_BACKING_MAP | QCOW2_RW_BACKING_MAP_UNPROVEN)

/*
 * The format name ends up in error messages before anybody looks it up, so it
 * must not be able to carry anything but a name.
 */
static bool format_name_is_valid(const char *format)
{
    size_t len = strlen(format);

    return len > 0 && len <= QCOW2_RW_BACKING_MAX_FORMAT &&
           strspn(format, "abcdefghijklmnopqrstuvwxyz"
                          "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
                          "0123456789-_.") == len;
}

bool qcow2_rw_backing_pointer_validate(const Qcow2RwBackingPointer *ptr,
                                       Error **errp)
{
    if (!format_name_is_valid(ptr->format)) {
        g_autofree char *printable = g_strescape(ptr->format, NULL);

        error_setg(errp, "Invalid RW backing format name '%s'", printable);
        return false;
    }
    if (ptr->filename && ptr->filename[0] == '\0') {
        error_setg(errp, "RW backing file name is empty");
        return false;
    }
    if (ptr->filename &&
        strlen(ptr->filename) > QCOW2_RW_BACKING_MAX_FILENAME) {
        error_setg(errp, "RW backing file name of %zu bytes is too long, the "
                   "maximum is %d", strlen(ptr->filename),
                   QCOW2_RW_BACKING_MAX_FILENAME);
        return false;
    }
    return true;
}

/* With padding: programs exist that expect none behind an extension */
static size_t pointer_len(size_t format_len, size_t filename_len)
{
    return ROUND_UP(sizeof(Qcow2RwBackingExt) + format_len + filename_len, 8);
}

static bool fixed_part_parse(const uint8_t *buf, size_t len,
                             Qcow2RwBackingExt *ext, Error **errp)
{
    size_t used;

    if (len < sizeof(*ext)) {
        error_setg(errp, "RW backing extension of %zu bytes is too short, the "
                   "minimum is %zu", len, sizeof(*ext));
        return false;
    }

    memcpy(ext, buf, sizeof(*ext));
    ext->flags = be32_to_cpu(ext->flags);
    ext->format_len = be16_to_cpu(ext->format_len);
    ext->filename_len = be16_to_cpu(ext->filename_len);
    ext->log_offset = be64_to_cpu(ext->log_offset);

    if (ext->flags & ~KNOWN_FLAGS) {
        error_setg(errp, "RW backing extension has unknown flags 0x%" PRIx32,
                   ext->flags & ~KNOWN_FLAGS);
        return false;
    }
    if (!buffer_is_zero(ext->reserved, sizeof(ext->reserved))) {
        error_setg(errp, "RW backing extension has non-zero reserved bytes");
        return false;
    }
    used = sizeof(*ext) + ext->format_len + ext->filename_len;
    if (len != used && len != pointer_len(ext->format_len, ext->filename_len)) {
        error_setg(errp, "RW backing extension is %zu bytes long, but its "
                   "parts are %zu + %" PRIu16 " + %" PRIu16, len, sizeof(*ext),
                   ext->format_len, ext->filename_len);
        return false;
    }
    if (!buffer_is_zero(buf + used, len - used)) {
        error_setg(errp, "RW backing extension has non-zero padding");
        return false;
    }
    return true;
}

/*
 * A log that cannot be there is none that counts, nor is a map without a log,
 * see the specification
 */
static void take_over_log(Qcow2RwBackingPointer *ptr,
                          const Qcow2RwBackingExt *ext)
{
    ptr->log = ext->flags & QCOW2_RW_BACKING_LOG;
    ptr->map = ptr->log && (ext->flags & QCOW2_RW_BACKING_MAP);
    ptr->map_unproven = ptr->map &&
                        (ext->flags & QCOW2_RW_BACKING_MAP_UNPROVEN);
    if (ext->log_offset <= INT64_MAX - QCOW2_LOG_LEN &&
        QEMU_IS_ALIGNED(ext->log_offset, QCOW2_LOG_UNIT_LEN)) {
        ptr->log_offset = ext->log_offset;
        ptr->log_armed = ptr->log && ptr->log_offset &&
                         (ext->flags & QCOW2_RW_BACKING_LOG_ARMED);
    }
}

bool qcow2_rw_backing_pointer_parse(Qcow2RwBackingPointer *ptr,
                                    const uint8_t *buf, size_t len,
                                    Error **errp)
{
    Qcow2RwBackingExt ext;
    const char *names;

    *ptr = (Qcow2RwBackingPointer) { };

    if (!fixed_part_parse(buf, len, &ext, errp)) {
        return false;
    }

    names = (const char *)buf + sizeof(ext);
    if (memchr(names, '\0', ext.format_len + ext.filename_len)) {
        error_setg(errp, "RW backing extension has a NUL byte in a name");
        return false;
    }

    ptr->format = g_strndup(names, ext.format_len);
    if (ext.filename_len) {
        ptr->filename = g_strndup(names + ext.format_len, ext.filename_len);
    }
    take_over_log(ptr, &ext);

    if (!qcow2_rw_backing_pointer_validate(ptr, errp)) {
        qcow2_rw_backing_pointer_destroy(ptr);
        return false;
    }
    return true;
}

uint8_t *qcow2_rw_backing_pointer_serialize(const Qcow2RwBackingPointer *ptr,
                                            size_t *len, Error **errp)
{
    Qcow2RwBackingExt ext = { };
    size_t format_len, filename_len;
    uint8_t *buf;

    if (!qcow2_rw_backing_pointer_validate(ptr, errp)) {
        return NULL;
    }

    format_len = strlen(ptr->format);
    filename_len = ptr->filename ? strlen(ptr->filename) : 0;
    ext.format_len = cpu_to_be16(format_len);
    ext.filename_len = cpu_to_be16(filename_len);
    ext.log_offset = cpu_to_be64(ptr->log_offset);
    ext.flags = cpu_to_be32((ptr->log ? QCOW2_RW_BACKING_LOG : 0) |
                            (ptr->log_armed ? QCOW2_RW_BACKING_LOG_ARMED : 0) |
                            (ptr->map ? QCOW2_RW_BACKING_MAP : 0) |
                            (ptr->map_unproven
                             ? QCOW2_RW_BACKING_MAP_UNPROVEN : 0));

    *len = pointer_len(format_len, filename_len);
    buf = g_malloc0(*len);
    memcpy(buf, &ext, sizeof(ext));
    memcpy(buf + sizeof(ext), ptr->format, format_len);
    if (filename_len) {
        memcpy(buf + sizeof(ext) + format_len, ptr->filename, filename_len);
    }
    return buf;
}

const char *qcow2_rw_backing_hint(const Qcow2RwBackingPointer *ptr)
{
    const char *name = ptr->filename;

    if (!name || strcmp(ptr->format, "raw") ||
        !g_utf8_validate(name, -1, NULL)) {
        return NULL;
    }
    for (const char *p = name; *p; p++) {
        if (g_ascii_iscntrl(*p)) {
            return NULL;
        }
    }
    /* What comes before a colon is a protocol, unless a slash does */
    return name[strcspn(name, ":/")] == ':' ? NULL : name;
}

bool qcow2_rw_backing_check_feature(bool feature, bool extension, Error **errp)
{
    if (feature && !extension) {
        error_setg(errp, "RW backing feature bit is set, but the RW backing "
                   "extension is missing");
        return false;
    }
    if (extension && !feature) {
        error_setg(errp, "RW backing extension found, but the RW backing "
                   "feature bit is not set");
        return false;
    }
    return true;
}

void qcow2_rw_backing_pointer_destroy(Qcow2RwBackingPointer *ptr)
{
    g_clear_pointer(&ptr->format, g_free);
    g_clear_pointer(&ptr->filename, g_free);
}

static bool file_time_is_valid(const Qcow2RwBackingGuardExt *ext)
{
    return be32_to_cpu(ext->file.mtime_nsec) < NANOSECONDS_PER_SECOND &&
           buffer_is_zero(ext->file.reserved, sizeof(ext->file.reserved));
}

/* Fields that a guard of this kind does not need are zero */
static bool guard_ext_is_valid(const Qcow2RwBackingGuardExt *ext)
{
    if ((be32_to_cpu(ext->flags) & ~QCOW2_RW_BACKING_GUARD_SHRUNK) ||
        !buffer_is_zero(ext->reserved, sizeof(ext->reserved)) ||
        ext->place > QCOW2_RW_BACKING_PLACE__MAX) {
        return false;
    }

    switch (ext->kind) {
    case QCOW2_RW_BACKING_GUARD_FILE:
        return !ext->place && !ext->seed && file_time_is_valid(ext) &&
               (ext->other_files ||
                buffer_is_zero(ext->digest, sizeof(ext->digest)));
    case QCOW2_RW_BACKING_GUARD_SAMPLES:
        return !ext->other_files && (ext->place || !ext->offset) &&
               file_time_is_valid(ext) &&
               (ext->place == QCOW2_RW_BACKING_PLACE_REMOTE_FILE ||
                buffer_is_zero(&ext->file, sizeof(ext->file)));
    case QCOW2_RW_BACKING_GUARD_DEVICE:
        return !ext->place && !ext->other_files;
    default:
        return false;
    }
}

bool qcow2_rw_backing_guard_parse(Qcow2RwBackingGuard *guard,
                                  const uint8_t *buf, size_t len)
{
    Qcow2RwBackingGuardExt ext;

    *guard = (Qcow2RwBackingGuard) { };

    if (len != sizeof(ext)) {
        return false;
    }
    memcpy(&ext, buf, sizeof(ext));
    if (!guard_ext_is_valid(&ext)) {
        return false;
    }

    *guard = (Qcow2RwBackingGuard) {
        .kind               = ext.kind,
        .place              = ext.place,
        .shrunk             = ext.flags != 0,
        .size               = be64_to_cpu(ext.size),
        .bitmaps_checksum   = be32_to_cpu(ext.bitmaps_checksum),
        .other_files        = be32_to_cpu(ext.other_files),
        .offset             = be64_to_cpu(ext.offset),
        .seed               = be64_to_cpu(ext.seed),
    };
    memcpy(guard->digest, ext.digest, sizeof(ext.digest));

    if (guard->kind != QCOW2_RW_BACKING_GUARD_DEVICE) {
        guard->file = (Qcow2RwBackingFileTime) {
            .size           = be64_to_cpu(ext.file.size),
            .mtime_sec      = be64_to_cpu(ext.file.mtime_sec),
            .mtime_nsec     = be32_to_cpu(ext.file.mtime_nsec),
        };
        return true;
    }
    guard->device = (Qcow2RwBackingDevice) {
        .diskseq            = be64_to_cpu(ext.device.diskseq),
        .self.written       = be64_to_cpu(ext.device.written),
        .self.discarded     = be64_to_cpu(ext.device.discarded),
        .disk.written       = be64_to_cpu(ext.device.disk_written),
        .disk.discarded     = be64_to_cpu(ext.device.disk_discarded),
    };
    memcpy(guard->device.boot_id, ext.device.boot_id,
           sizeof(guard->device.boot_id));
    return true;
}

void qcow2_rw_backing_guard_serialize(const Qcow2RwBackingGuard *guard,
                                      Qcow2RwBackingGuardExt *ext)
{
    *ext = (Qcow2RwBackingGuardExt) {
        .flags              = guard->shrunk
            ? cpu_to_be32(QCOW2_RW_BACKING_GUARD_SHRUNK) : 0,
        .kind               = guard->kind,
        .place              = guard->place,
        .size               = cpu_to_be64(guard->size),
        .bitmaps_checksum   = cpu_to_be32(guard->bitmaps_checksum),
        .other_files        = cpu_to_be32(guard->other_files),
        .offset             = cpu_to_be64(guard->offset),
        .seed               = cpu_to_be64(guard->seed),
    };
    memcpy(ext->digest, guard->digest, sizeof(ext->digest));

    if (guard->kind != QCOW2_RW_BACKING_GUARD_DEVICE) {
        ext->file = (Qcow2RwBackingFileExt) {
            .size           = cpu_to_be64(guard->file.size),
            .mtime_sec      = cpu_to_be64(guard->file.mtime_sec),
            .mtime_nsec     = cpu_to_be32(guard->file.mtime_nsec),
        };
        return;
    }
    ext->device = (Qcow2RwBackingDeviceExt) {
        .diskseq            = cpu_to_be64(guard->device.diskseq),
        .written            = cpu_to_be64(guard->device.self.written),
        .discarded          = cpu_to_be64(guard->device.self.discarded),
        .disk_written       = cpu_to_be64(guard->device.disk.written),
        .disk_discarded     = cpu_to_be64(guard->device.disk.discarded),
    };
    memcpy(ext->device.boot_id, guard->device.boot_id,
           sizeof(ext->device.boot_id));
}

bool qcow2_rw_backing_guard_is_equal(const Qcow2RwBackingGuard *a,
                                     const Qcow2RwBackingGuard *b)
{
    Qcow2RwBackingGuardExt a_ext, b_ext;

    qcow2_rw_backing_guard_serialize(a, &a_ext);
    qcow2_rw_backing_guard_serialize(b, &b_ext);
    return memcmp(&a_ext, &b_ext, sizeof(a_ext)) == 0;
}
