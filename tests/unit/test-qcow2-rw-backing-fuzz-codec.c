/*
 * Fuzz target: codec of qcow2 RW backing's header extensions
 *
 * What is parsed at all keeps to the rules of the specification and becomes
 * the same bytes again; what is not leaves nothing behind.  Partition tables
 * give a bounded number of places inside of the disk.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "block/qcow2-rw-backing-format.h"
#include "block/qcow2-rw-backing-guard-partitions.h"
#include "block/qcow2-rw-backing-log-format.h"
#include "fuzz-qcow2-rw-backing.h"

static void try_pointer(const uint8_t *data, size_t len)
{
    Qcow2RwBackingPointer ptr;
    g_autofree uint8_t *buf = NULL;
    Error *err = NULL;
    size_t buf_len;

    if (!qcow2_rw_backing_pointer_parse(&ptr, data, len, &err)) {
        g_assert_true(g_utf8_validate(error_get_pretty(err), -1, NULL));
        error_free_or_abort(&err);
        g_assert_true(!ptr.format && !ptr.filename);
        return;
    }

    g_assert_null(err);
    g_assert_true(ptr.format[0]);
    g_assert_cmpuint(strlen(ptr.format), <=, QCOW2_RW_BACKING_MAX_FORMAT);
    if (ptr.filename) {
        g_assert_true(ptr.filename[0]);
        g_assert_cmpuint(strlen(ptr.filename), <=,
                         QCOW2_RW_BACKING_MAX_FILENAME);
    }
    buf = qcow2_rw_backing_pointer_serialize(&ptr, &buf_len, &error_abort);
    /* What it says of a log that cannot be there is dropped */
    g_assert_cmpuint(buf_len, ==, ROUND_UP(len, 8));
    g_assert_cmpmem(buf + 4, 4, data + 4, 4);
    g_assert_cmpmem(buf + 16, len - 16, data + 16, len - 16);
    g_assert_true(buffer_is_zero(buf + len, buf_len - len));
    if (qcow2_rw_backing_hint(&ptr)) {
        g_assert_cmpstr(ptr.format, ==, "raw");
        g_assert_true(g_utf8_validate(ptr.filename, -1, NULL));
    }
    if (ptr.log_armed) {
        uint32_t flags = ldl_be_p(data);

        if (!ptr.map) {
            /* Nor is there an unproven map where there is none */
            flags &= ~QCOW2_RW_BACKING_MAP_UNPROVEN;
        }
        g_assert_cmphex(ldl_be_p(buf), ==, flags);
        g_assert_cmpmem(buf + 8, 8, data + 8, 8);
    }
    qcow2_rw_backing_pointer_destroy(&ptr);
}

/* Sectors of the write-intent log; those with a right checksum come back */
static void try_log(const uint8_t *data, size_t len)
{
    uint8_t buf[QCOW2_LOG_UNIT_LEN];
    unsigned int chunk_bits;
    Qcow2LogSuper super;
    Qcow2LogLease lease;
    Qcow2LogId id;

    if (len < sizeof(buf)) {
        return;
    }
    if (qcow2_log_unit_parse(data, 0, &id, &chunk_bits) ==
        QCOW2_LOG_UNIT_VALID) {
        qcow2_log_unit_serialize(buf, &id, 0, chunk_bits,
                                 qcow2_log_unit_marks(data));
        g_assert_cmpmem(buf, sizeof(buf), data, sizeof(buf));
    }
    if (qcow2_log_super_parse(&super, data)) {
        qcow2_log_super_serialize(&super, buf);
        g_assert_cmpmem(buf, sizeof(buf), data, sizeof(buf));
    }
    if (qcow2_log_lease_parse(&lease, data)) {
        qcow2_log_lease_serialize(&lease, buf);
        g_assert_cmpmem(buf, sizeof(buf), data, sizeof(buf));
    }
}

static void try_guard(const uint8_t *data, size_t len)
{
    Qcow2RwBackingGuard guard;
    Qcow2RwBackingGuardExt ext;

    if (!qcow2_rw_backing_guard_parse(&guard, data, len)) {
        g_assert_cmpint(guard.kind, ==, QCOW2_RW_BACKING_GUARD_NONE);
        return;
    }

    g_assert_cmpint(guard.kind, !=, QCOW2_RW_BACKING_GUARD_NONE);
    g_assert_cmpuint(guard.file.mtime_nsec, <, NANOSECONDS_PER_SECOND);
    g_assert_cmpint(guard.place, <=, QCOW2_RW_BACKING_PLACE__MAX);
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    g_assert_cmpmem(&ext, sizeof(ext), data, len);
}

/* As if the input were the start of a disk */
static void try_partitions(const uint8_t *data, size_t len)
{
    Qcow2RwBackingPartitions found;
    uint64_t size = (uint64_t)len * len, ebr_start;
    unsigned int i;

    qcow2_rw_backing_partitions_parse(data, len, size, &found);
    g_assert_cmpuint(found.extended, <, MAX(size, 1));

    ebr_start = found.extended;
    for (i = 0; ebr_start && i < QCOW2_RW_BACKING_MAX_LOGICAL; i++) {
        uint64_t next = qcow2_rw_backing_partitions_add_logical(
            data, ebr_start, size, &found);

        g_assert_true(next == 0 || (next > ebr_start && next < size));
        ebr_start = next;
    }
    g_assert_cmpuint(found.count, <=, QCOW2_RW_BACKING_MAX_PARTITIONS);
    for (i = 0; i < found.count; i++) {
        g_assert_cmpuint(found.start[i], >, 0);
        g_assert_cmpuint(found.start[i], <, size);
    }
}

static void codec_one_input(const uint8_t *data, size_t len)
{
    /* A buffer without anything behind it, so that no overrun goes unnoticed */
    g_autofree uint8_t *exact = g_memdup2(data, len);

    try_pointer(exact, len);
    try_guard(exact, len);
    try_log(exact, len);
    try_partitions(exact, len);
}

static void seed_pointer(const char *name, const char *format,
                         const char *filename)
{
    Qcow2RwBackingPointer ptr = {
        .format     = (char *)format,
        .filename   = (char *)filename,
    };
    size_t len;
    g_autofree uint8_t *buf =
        qcow2_rw_backing_pointer_serialize(&ptr, &len, &error_abort);

    fuzz_seed_add(name, buf, len);
}

/* With all flags, and with one that has no meaning without another */
static void seed_flags(void)
{
    Qcow2RwBackingPointer ptr = {
        .format         = (char *)"raw",
        .log            = true,
        .log_armed      = true,
        .log_offset     = 0x50000,
        .map            = true,
        .map_unproven   = true,
    };
    size_t len;
    g_autofree uint8_t *buf =
        qcow2_rw_backing_pointer_serialize(&ptr, &len, &error_abort);

    fuzz_seed_add("pointer-flags", buf, len);
    stl_be_p(buf, ldl_be_p(buf) & ~QCOW2_RW_BACKING_MAP);
    fuzz_seed_add("pointer-unproven-without-map", buf, len);
}

static void seed_guard(const char *name, const Qcow2RwBackingGuard *guard)
{
    Qcow2RwBackingGuardExt ext;

    qcow2_rw_backing_guard_serialize(guard, &ext);
    fuzz_seed_add(name, &ext, sizeof(ext));
}

static void seed_mbr(void)
{
    uint8_t mbr[QCOW2_RW_BACKING_MBR_LEN] = { [510] = 0x55, [511] = 0xaa };
    int i;

    for (i = 0; i < 4; i++) {
        uint8_t *entry = mbr + 446 + 16 * i;

        entry[4] = i == 1 ? 0x05 : 0x83;
        stl_le_p(entry + 8, 16 * i + 8);
        stl_le_p(entry + 12, 16);
    }
    fuzz_seed_add("mbr", mbr, sizeof(mbr));
}

static void seed_gpt(void)
{
    uint8_t gpt[4 * 512] = { 0 };
    int i;

    memcpy(gpt + 512, "EFI PART", 8);
    stq_le_p(gpt + 512 + 72, 2);
    stl_le_p(gpt + 512 + 80, 8);
    stl_le_p(gpt + 512 + 84, 128);
    for (i = 0; i < 8; i++) {
        gpt[2 * 512 + i * 128] = i + 1;
        stq_le_p(gpt + 2 * 512 + i * 128 + 32, 4 + i);
    }
    fuzz_seed_add("gpt", gpt, sizeof(gpt));
}

static void codec_make_seeds(void)
{
    g_autofree char *format = g_strnfill(QCOW2_RW_BACKING_MAX_FORMAT, 'f');
    g_autofree char *filename = g_strnfill(QCOW2_RW_BACKING_MAX_FILENAME, 'n');

    seed_pointer("pointer", "raw", "disk.raw");
    seed_pointer("pointer-without-name", "qcow2", NULL);
    seed_pointer("pointer-longest", format, filename);
    seed_flags();
    seed_mbr();
    seed_gpt();
    seed_guard("guard-file", &(Qcow2RwBackingGuard) {
        .kind               = QCOW2_RW_BACKING_GUARD_FILE,
        .size               = 1234,
        .bitmaps_checksum   = 0xdeadbeef,
        .other_files        = 3,
        .offset             = 512,
        .digest             = { 1, 2, 3, 4 },
        .file.size          = 2000,
        .file.mtime_sec     = -1,
        .file.mtime_nsec    = NANOSECONDS_PER_SECOND - 1,
    });
    seed_guard("guard-samples", &(Qcow2RwBackingGuard) {
        .kind               = QCOW2_RW_BACKING_GUARD_SAMPLES,
        .size               = 4096,
        .place              = QCOW2_RW_BACKING_PLACE_REMOTE_FILE,
        .seed               = 0x0123456789abcdef,
        .digest             = { 1, 2, 3, 4 },
        .file.mtime_sec     = 1,
    });
    seed_guard("guard-device", &(Qcow2RwBackingGuard) {
        .kind               = QCOW2_RW_BACKING_GUARD_DEVICE,
        .size               = 4096,
        .offset             = 1048576,
        .seed               = 0x0123456789abcdef,
        .digest             = { 1, 2, 3, 4 },
        .device.boot_id     = { 5, 6, 7, 8 },
        .device.diskseq     = 9,
        .device.self        = { 10, 11 },
        .device.disk        = { 12, 13 },
    });
}

static void codec_init(void)
{
}

static const FuzzTarget codec_target = {
    .name       = "codec",
    .init       = codec_init,
    .make_seeds = codec_make_seeds,
    .one_input  = codec_one_input,
    .mutations  = 200000,
};

int main(int argc, char **argv)
{
    return fuzz_main(argc, argv, &codec_target);
}
