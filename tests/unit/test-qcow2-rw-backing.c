/*
 * Unit tests of what the driver of RW backings knows without any I/O: the
 * codec of the RW backing and guard header extensions, and partition tables
 *
 * Every malformed case of docs/interop/qcow2-rw-backing.rst is refused, that of
 * an RW backing extension with a message that names it; everything well-formed
 * survives a round trip.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/bswap.h"
#include "qemu/units.h"
#include "block/qcow2-rw-backing-format.h"
#include "block/qcow2-rw-backing-guard-partitions.h"

/* Offsets of the fixed part, as the specification gives them */
#define OFFSET_FLAGS            0
#define OFFSET_FORMAT_LEN       4
#define OFFSET_FILENAME_LEN     6
#define OFFSET_LOG              8
#define OFFSET_RESERVED         16
#define FIXED_LEN               40

/* An extension as another program might have written it, byte by byte */
static GByteArray *make_ext(const char *format, size_t format_len,
                            const char *filename, size_t filename_len)
{
    GByteArray *ext = g_byte_array_new();
    uint8_t fixed[FIXED_LEN] = { 0 };

    stw_be_p(fixed + OFFSET_FORMAT_LEN, format_len);
    stw_be_p(fixed + OFFSET_FILENAME_LEN, filename_len);
    g_byte_array_append(ext, fixed, sizeof(fixed));
    g_byte_array_append(ext, (const uint8_t *)format, format_len);
    g_byte_array_append(ext, (const uint8_t *)filename, filename_len);
    while (ext->len % 8) {
        g_byte_array_append(ext, (const uint8_t *)"", 1);
    }
    return ext;
}

static GByteArray *make_good_ext(void)
{
    return make_ext("raw", 3, "disk.raw", 8);
}

/* Consumes @ext */
static void assert_refused(GByteArray *ext, const char *message)
{
    Qcow2RwBackingPointer ptr = { .format = (char *)"", .filename = NULL };
    Error *err = NULL;

    g_assert_false(qcow2_rw_backing_pointer_parse(&ptr, ext->data, ext->len,
                                                  &err));
    g_assert_nonnull(strstr(error_get_pretty(err), message));
    g_assert_null(ptr.format);
    g_assert_null(ptr.filename);
    error_free(err);
    g_byte_array_unref(ext);
}

/* Consumes @ext */
static void assert_accepted(GByteArray *ext, const char *format,
                            const char *filename)
{
    Qcow2RwBackingPointer ptr;

    g_assert_true(qcow2_rw_backing_pointer_parse(&ptr, ext->data, ext->len,
                                                 &error_abort));
    g_assert_cmpstr(ptr.format, ==, format);
    g_assert_cmpstr(ptr.filename, ==, filename);
    qcow2_rw_backing_pointer_destroy(&ptr);
    g_byte_array_unref(ext);
}

static void test_layout(void)
{
    Qcow2RwBackingPointer ptr = {
        .format = (char *)"raw",
        .filename = (char *)"disk.raw",
    };
    GByteArray *ext = make_good_ext();
    g_autofree uint8_t *buf = NULL;
    size_t len;

    buf = qcow2_rw_backing_pointer_serialize(&ptr, &len, &error_abort);
    g_assert_cmpmem(buf, len, ext->data, ext->len);
    g_byte_array_unref(ext);
}

static void test_round_trip(void)
{
    g_autofree char *longest_format =
        g_strnfill(QCOW2_RW_BACKING_MAX_FORMAT, 'f');
    g_autofree char *longest_filename =
        g_strnfill(QCOW2_RW_BACKING_MAX_FILENAME, 'n');
    const Qcow2RwBackingPointer pointers[] = {
        { (char *)"raw", (char *)"disk.raw" },
        { (char *)"raw", (char *)"/dev/vg0/lv0" },
        { (char *)"qcow2", (char *)"json:{} nbd:x\n\xc3\xa4" },
        { (char *)"vmdk", NULL },
        { (char *)"x", (char *)"y" },
        { longest_format, longest_filename },
    };

    for (int i = 0; i < ARRAY_SIZE(pointers); i++) {
        Qcow2RwBackingPointer ptr;
        g_autofree uint8_t *buf = NULL;
        size_t len;

        buf = qcow2_rw_backing_pointer_serialize(&pointers[i], &len,
                                                 &error_abort);
        g_assert_true(qcow2_rw_backing_pointer_parse(&ptr, buf, len,
                                                     &error_abort));
        g_assert_cmpstr(ptr.format, ==, pointers[i].format);
        g_assert_cmpstr(ptr.filename, ==, pointers[i].filename);
        qcow2_rw_backing_pointer_destroy(&ptr);
    }
}

static void test_no_filename(void)
{
    assert_accepted(make_ext("raw", 3, "", 0), "raw", NULL);
}

static void test_too_short(void)
{
    GByteArray *ext;

    for (int len = 0; len < FIXED_LEN; len++) {
        ext = make_good_ext();
        g_byte_array_set_size(ext, len);
        assert_refused(ext, "too short");
    }
}

static void test_bad_lengths(void)
{
    GByteArray *ext;

    /* Each part longer and shorter than what is there */
    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FORMAT_LEN, 4);
    assert_refused(ext, "NUL byte");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FORMAT_LEN, 2);
    assert_refused(ext, "non-zero padding");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FORMAT_LEN, 9);
    assert_refused(ext, "bytes long, but its parts are");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FILENAME_LEN, UINT16_MAX);
    assert_refused(ext, "bytes long, but its parts are");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FILENAME_LEN, 0);
    assert_refused(ext, "bytes long, but its parts are");

    /* Cut off and padded */
    for (int len = FIXED_LEN; len <= FIXED_LEN + 24; len++) {
        static const uint8_t zeroes[8];

        ext = make_good_ext();
        g_byte_array_append(ext, zeroes, sizeof(zeroes));
        g_byte_array_set_size(ext, len);
        /* With and without padding */
        if (len == FIXED_LEN + 16 || len == FIXED_LEN + 11) {
            assert_accepted(ext, "raw", "disk.raw");
        } else {
            assert_refused(ext, "bytes long, but its parts are");
        }
    }
}

static void test_padding(void)
{
    for (int i = FIXED_LEN + 11; i < FIXED_LEN + 16; i++) {
        GByteArray *ext = make_good_ext();

        ext->data[i] = 1;
        assert_refused(ext, "non-zero padding");
    }
}

/* What other programs would read as the name of a local raw file, or not */
static void test_hint(void)
{
    const struct {
        const char *format;
        const char *filename;
        bool fits;
    } cases[] = {
        { "raw", "disk.raw", true },
        { "raw", "/dev/vg0/lv0", true },
        { "raw", "../b c/\xc3\xa4:x.raw", true },
        { "raw", "./nbd:x", true },
        { "raw", NULL, false },
        { "raw", "nbd:x", false },
        { "raw", "nbd://x/y", false },
        { "raw", "json:{}", false },
        { "raw", ":", false },
        { "raw", "/a\nb", false },
        { "raw", "/a\x7f" "b", false },
        { "raw", "/a\xff" "b", false },
        { "qcow2", "disk.qcow2", false },
        { "host_device", "/dev/vg0/lv0", false },
        { "vmdk", NULL, false },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        Qcow2RwBackingPointer ptr = {
            .format = (char *)cases[i].format,
            .filename = (char *)cases[i].filename,
        };

        const char *hint = qcow2_rw_backing_hint(&ptr);

        if (cases[i].fits) {
            g_assert_cmpstr(hint, ==, cases[i].filename);
        } else {
            g_assert_null(hint);
        }
    }
}

static void test_unknown_flags(void)
{
    for (int bit = 4; bit < 32; bit++) {
        GByteArray *ext = make_good_ext();

        stl_be_p(ext->data + OFFSET_FLAGS, 1u << bit);
        assert_refused(ext, "unknown flags");
    }
}

static void test_reserved(void)
{
    for (int i = OFFSET_RESERVED; i < FIXED_LEN; i++) {
        GByteArray *ext = make_good_ext();

        ext->data[i] = 1;
        assert_refused(ext, "non-zero reserved bytes");
    }
}

/* What the extension says of the log; nothing is a reason to refuse it */
static Qcow2RwBackingPointer parse_log(uint32_t flags, uint64_t offset)
{
    GByteArray *ext = make_good_ext();
    Qcow2RwBackingPointer ptr;

    stl_be_p(ext->data + OFFSET_FLAGS, flags);
    stq_be_p(ext->data + OFFSET_LOG, offset);
    g_assert_true(qcow2_rw_backing_pointer_parse(&ptr, ext->data, ext->len,
                                                 &error_abort));
    g_byte_array_unref(ext);
    return ptr;
}

static void assert_log(uint32_t flags, uint64_t offset, bool log, bool armed,
                       uint64_t log_offset)
{
    Qcow2RwBackingPointer ptr = parse_log(flags, offset);

    g_assert_cmpint(ptr.log, ==, log);
    g_assert_cmpint(ptr.log_armed, ==, armed);
    g_assert_cmpuint(ptr.log_offset, ==, log_offset);
    qcow2_rw_backing_pointer_destroy(&ptr);
}

static void test_log(void)
{
    assert_log(0, 0, false, false, 0);
    assert_log(1, 0, true, false, 0);
    assert_log(1, 65536, true, false, 65536);
    assert_log(3, 65536, true, true, 65536);
    /* It is there, but not used any more */
    assert_log(0, 65536, false, false, 65536);
    /* What cannot be does not count */
    assert_log(3, 0, true, false, 0);
    assert_log(2, 65536, false, false, 65536);
    assert_log(3, 65537, true, false, 0);
    assert_log(3, INT64_MAX - 511, true, false, 0);
    assert_log(3, UINT64_MAX - 511, true, false, 0);
}

static void test_log_round_trip(void)
{
    Qcow2RwBackingPointer ptr = parse_log(3, 0x123456000), again;
    g_autofree uint8_t *buf = NULL;
    size_t len;

    buf = qcow2_rw_backing_pointer_serialize(&ptr, &len, &error_abort);
    g_assert_true(qcow2_rw_backing_pointer_parse(&again, buf, len,
                                                 &error_abort));
    g_assert_true(again.log && again.log_armed);
    g_assert_cmpuint(again.log_offset, ==, 0x123456000);
    qcow2_rw_backing_pointer_destroy(&ptr);
    qcow2_rw_backing_pointer_destroy(&again);
}

/* A map needs the log, and "unproven" a map; nothing is a reason to refuse */
static void assert_map(uint32_t flags, bool map, bool unproven)
{
    Qcow2RwBackingPointer ptr = parse_log(flags, 65536), again;
    g_autofree uint8_t *buf = NULL;
    size_t len;

    g_assert_cmpint(ptr.map, ==, map);
    g_assert_cmpint(ptr.map_unproven, ==, unproven);
    buf = qcow2_rw_backing_pointer_serialize(&ptr, &len, &error_abort);
    g_assert_true(qcow2_rw_backing_pointer_parse(&again, buf, len,
                                                 &error_abort));
    g_assert_cmpint(again.map, ==, map);
    g_assert_cmpint(again.map_unproven, ==, unproven);
    qcow2_rw_backing_pointer_destroy(&ptr);
    qcow2_rw_backing_pointer_destroy(&again);
}

static void test_map(void)
{
    assert_map(1, false, false);
    assert_map(5, true, false);
    assert_map(13, true, true);
    assert_map(15, true, true);
    assert_map(9, false, false);
    assert_map(4, false, false);
    assert_map(12, false, false);
}

static void test_bad_format(void)
{
    g_autofree char *too_long =
        g_strnfill(QCOW2_RW_BACKING_MAX_FORMAT + 1, 'f');

    assert_refused(make_ext("", 0, "disk.raw", 8), "Invalid RW backing format");
    assert_refused(make_ext("r w", 3, "disk.raw", 8), "'r w'");
    assert_refused(make_ext("\x1b[2", 3, "disk.raw", 8), "'\\033[2'");
    assert_refused(make_ext(too_long, strlen(too_long), "disk.raw", 8),
                   "Invalid RW backing format");
}

static void test_long_filename(void)
{
    g_autofree char *too_long =
        g_strnfill(QCOW2_RW_BACKING_MAX_FILENAME + 1, 'n');

    assert_refused(make_ext("raw", 3, too_long, strlen(too_long)),
                   "1024 bytes is too long");
}

static void test_embedded_nul(void)
{
    assert_refused(make_ext("r\0w", 3, "disk.raw", 8), "NUL byte");
    assert_refused(make_ext("raw", 3, "disk\0raw", 8), "NUL byte");
    assert_refused(make_ext("raw", 3, "disk.ra\0", 8), "NUL byte");
}

static void test_serialize_refuses(void)
{
    g_autofree char *too_long =
        g_strnfill(QCOW2_RW_BACKING_MAX_FILENAME + 1, 'n');
    const Qcow2RwBackingPointer pointers[] = {
        { (char *)"", (char *)"disk.raw" },
        { (char *)"r/w", (char *)"disk.raw" },
        { (char *)"raw", (char *)"" },
        { (char *)"raw", too_long },
    };

    for (int i = 0; i < ARRAY_SIZE(pointers); i++) {
        Error *err = NULL;
        size_t len;

        g_assert_null(qcow2_rw_backing_pointer_serialize(&pointers[i], &len,
                                                         &err));
        error_free_or_abort(&err);
    }
}

static void test_feature_and_extension(void)
{
    Error *err = NULL;

    g_assert_true(qcow2_rw_backing_check_feature(true, true, &error_abort));
    g_assert_true(qcow2_rw_backing_check_feature(false, false, &error_abort));

    g_assert_false(qcow2_rw_backing_check_feature(true, false, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "extension is missing"));
    error_free_or_abort(&err);

    g_assert_false(qcow2_rw_backing_check_feature(false, true, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "bit is not set"));
    error_free_or_abort(&err);
}

/* Guard: offsets as the specification gives them */

#define GUARD_FLAGS             0
#define GUARD_KIND              4
#define GUARD_PLACE             5
#define GUARD_RESERVED          6
#define GUARD_SIZE              8
#define GUARD_CHECKSUM          16
#define GUARD_OTHER_FILES       20
#define GUARD_OFFSET            24
#define GUARD_SEED              32
#define GUARD_DIGEST            40
#define GUARD_FILE_SIZE         72
#define GUARD_MTIME_SEC         80
#define GUARD_MTIME_NSEC        88
#define GUARD_FILE_RESERVED     92
#define GUARD_BOOT_ID           72
#define GUARD_DISKSEQ           88
#define GUARD_WRITTEN           96
#define GUARD_DISCARDED         104
#define GUARD_DISK_WRITTEN      112
#define GUARD_DISK_DISCARDED    120
#define GUARD_LEN               128

/* Extensions as another program might have written them, byte by byte */
static void make_digest(uint8_t buf[GUARD_LEN])
{
    for (int i = 0; i < QCOW2_RW_BACKING_DIGEST_LEN; i++) {
        buf[GUARD_DIGEST + i] = 0x51 + i;
    }
}

static void make_guard(uint8_t buf[GUARD_LEN], uint8_t kind)
{
    memset(buf, 0, GUARD_LEN);
    buf[GUARD_KIND] = kind;
    stq_be_p(buf + GUARD_SIZE, 0x0102030405060708);
    stl_be_p(buf + GUARD_CHECKSUM, 0x31323334);
    stq_be_p(buf + GUARD_OFFSET, 0x7172737475767778);
    make_digest(buf);
}

static void make_time(uint8_t buf[GUARD_LEN])
{
    stq_be_p(buf + GUARD_FILE_SIZE, 0x2122232425262728);
    stq_be_p(buf + GUARD_MTIME_SEC, 0x1112131415161718);
    stl_be_p(buf + GUARD_MTIME_NSEC, 0x21222324);
}

static void make_file_guard(uint8_t buf[GUARD_LEN])
{
    make_guard(buf, 1);
    stl_be_p(buf + GUARD_OTHER_FILES, 0x81828384);
    make_time(buf);
}

static void make_samples_guard(uint8_t buf[GUARD_LEN])
{
    make_guard(buf, 2);
    buf[GUARD_PLACE] = 1;
    stq_be_p(buf + GUARD_SEED, 0x4142434445464748);
    make_time(buf);
}

static void make_device_guard(uint8_t buf[GUARD_LEN])
{
    make_guard(buf, 3);
    stq_be_p(buf + GUARD_SEED, 0x4142434445464748);
    memset(buf + GUARD_BOOT_ID, 0x91, 16);
    stq_be_p(buf + GUARD_DISKSEQ, 0xa1a2a3a4a5a6a7a8);
    stq_be_p(buf + GUARD_WRITTEN, 0xb1b2b3b4b5b6b7b8);
    stq_be_p(buf + GUARD_DISCARDED, 0xc1c2c3c4c5c6c7c8);
    stq_be_p(buf + GUARD_DISK_WRITTEN, 0xd1d2d3d4d5d6d7d8);
    stq_be_p(buf + GUARD_DISK_DISCARDED, 0xe1e2e3e4e5e6e7e8);
}

static void (*const make_guards[])(uint8_t buf[GUARD_LEN]) = {
    make_file_guard, make_samples_guard, make_device_guard,
};

/* Treated like an extension that is missing */
static void assert_guard_refused(const uint8_t *buf, size_t len)
{
    /* Whatever is read behind the end is found by a checker of memory */
    g_autofree uint8_t *copy = g_memdup2(buf, len);
    const Qcow2RwBackingGuard none = { };
    Qcow2RwBackingGuardExt ext, none_ext;
    Qcow2RwBackingGuard guard;

    memset(&guard, 0xff, sizeof(guard));
    g_assert_false(qcow2_rw_backing_guard_parse(&guard, copy, len));
    g_assert_cmpint(guard.kind, ==, QCOW2_RW_BACKING_GUARD_NONE);
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    qcow2_rw_backing_guard_serialize(&none, &none_ext);
    g_assert_cmpmem(&ext, sizeof(ext), &none_ext, sizeof(none_ext));
}

static void assert_guard_accepted(const uint8_t buf[GUARD_LEN])
{
    Qcow2RwBackingGuard guard;
    Qcow2RwBackingGuardExt ext;

    g_assert_true(qcow2_rw_backing_guard_parse(&guard, buf, GUARD_LEN));
    g_assert_cmpint(guard.kind, ==, buf[GUARD_KIND]);
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    g_assert_cmpmem(&ext, sizeof(ext), buf, GUARD_LEN);
}

static void assert_layout(const Qcow2RwBackingGuard *fields,
                          const uint8_t expected[GUARD_LEN])
{
    Qcow2RwBackingGuard guard = *fields;
    Qcow2RwBackingGuardExt ext;

    for (int i = 0; i < sizeof(guard.digest); i++) {
        guard.digest[i] = 0x51 + i;
    }
    memset(&ext, 0xff, sizeof(ext));
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    g_assert_cmpmem(&ext, sizeof(ext), expected, GUARD_LEN);
    assert_guard_accepted(expected);
}

static void test_guard_layout_file(void)
{
    const Qcow2RwBackingGuard guard = {
        .kind = QCOW2_RW_BACKING_GUARD_FILE,
        .size = 0x0102030405060708,
        .bitmaps_checksum = 0x31323334,
        .other_files = 0x81828384,
        .offset = 0x7172737475767778,
        .file.size = 0x2122232425262728,
        .file.mtime_sec = 0x1112131415161718,
        .file.mtime_nsec = 0x21222324,
    };
    uint8_t expected[GUARD_LEN];

    make_file_guard(expected);
    assert_layout(&guard, expected);
}

static void test_guard_layout_samples(void)
{
    const Qcow2RwBackingGuard guard = {
        .kind = QCOW2_RW_BACKING_GUARD_SAMPLES,
        .place = QCOW2_RW_BACKING_PLACE_REMOTE_FILE,
        .size = 0x0102030405060708,
        .bitmaps_checksum = 0x31323334,
        .offset = 0x7172737475767778,
        .seed = 0x4142434445464748,
        .file.size = 0x2122232425262728,
        .file.mtime_sec = 0x1112131415161718,
        .file.mtime_nsec = 0x21222324,
    };
    uint8_t expected[GUARD_LEN];

    make_samples_guard(expected);
    assert_layout(&guard, expected);
}

static void test_guard_layout_device(void)
{
    const Qcow2RwBackingGuard guard = {
        .kind = QCOW2_RW_BACKING_GUARD_DEVICE,
        .size = 0x0102030405060708,
        .bitmaps_checksum = 0x31323334,
        .offset = 0x7172737475767778,
        .seed = 0x4142434445464748,
        .device.boot_id = { [0 ... 15] = 0x91 },
        .device.diskseq = 0xa1a2a3a4a5a6a7a8,
        .device.self = { 0xb1b2b3b4b5b6b7b8, 0xc1c2c3c4c5c6c7c8 },
        .device.disk = { 0xd1d2d3d4d5d6d7d8, 0xe1e2e3e4e5e6e7e8 },
    };
    uint8_t expected[GUARD_LEN];

    make_device_guard(expected);
    assert_layout(&guard, expected);
}

/* What is there after a round trip is what was there before, sign and all */
static void test_guard_round_trip(void)
{
    const Qcow2RwBackingGuard guards[] = {
        { .kind = QCOW2_RW_BACKING_GUARD_FILE },
        { .kind = QCOW2_RW_BACKING_GUARD_FILE, .size = UINT64_MAX,
          .offset = UINT64_MAX, .bitmaps_checksum = UINT32_MAX,
          .file = { UINT64_MAX, INT64_MAX, 999999999 } },
        /* Before 1970 */
        { .kind = QCOW2_RW_BACKING_GUARD_FILE, .file = { 512, -1 } },
        { .kind = QCOW2_RW_BACKING_GUARD_FILE, .file = { 0, INT64_MIN } },
        { .kind = QCOW2_RW_BACKING_GUARD_SAMPLES },
        { .kind = QCOW2_RW_BACKING_GUARD_SAMPLES, .size = UINT64_MAX,
          .seed = UINT64_MAX, .digest = { 1, [31] = 0xff },
          .bitmaps_checksum = 1 },
        { .kind = QCOW2_RW_BACKING_GUARD_DEVICE },
        { .kind = QCOW2_RW_BACKING_GUARD_DEVICE, .seed = 1,
          .device = { { 1, [15] = 2 }, 3, { 4, 5 }, { 6, UINT64_MAX } } },
    };

    for (int i = 0; i < ARRAY_SIZE(guards); i++) {
        const Qcow2RwBackingGuard *old = &guards[i];
        Qcow2RwBackingGuardExt ext;
        Qcow2RwBackingGuard new;

        qcow2_rw_backing_guard_serialize(old, &ext);
        g_assert_true(qcow2_rw_backing_guard_parse(&new, (uint8_t *)&ext,
                                                   sizeof(ext)));
        g_assert_cmpint(new.kind, ==, old->kind);
        g_assert_cmpuint(new.size, ==, old->size);
        g_assert_cmpuint(new.bitmaps_checksum, ==, old->bitmaps_checksum);
        g_assert_cmpuint(new.offset, ==, old->offset);
        g_assert_cmpuint(new.seed, ==, old->seed);
        g_assert_cmpmem(new.digest, sizeof(new.digest),
                        old->digest, sizeof(old->digest));
        g_assert_cmpuint(new.file.size, ==, old->file.size);
        g_assert_cmpint(new.file.mtime_sec, ==, old->file.mtime_sec);
        g_assert_cmpuint(new.file.mtime_nsec, ==, old->file.mtime_nsec);
        g_assert_cmpmem(new.device.boot_id, 16, old->device.boot_id, 16);
        g_assert_cmpuint(new.device.diskseq, ==, old->device.diskseq);
        g_assert_cmpuint(new.device.self.written, ==,
                         old->device.self.written);
        g_assert_cmpuint(new.device.self.discarded, ==,
                         old->device.self.discarded);
        g_assert_cmpuint(new.device.disk.written, ==,
                         old->device.disk.written);
        g_assert_cmpuint(new.device.disk.discarded, ==,
                         old->device.disk.discarded);
    }
}

static void test_guard_bad_length(void)
{
    uint8_t buf[GUARD_LEN + 8] = { 0 };

    make_file_guard(buf);
    assert_guard_accepted(buf);
    for (int len = 0; len < sizeof(buf); len++) {
        if (len != GUARD_LEN) {
            assert_guard_refused(buf, len);
        }
    }
}

static void test_guard_unknown_flags(void)
{
    uint8_t buf[GUARD_LEN];

    for (int kind = 0; kind < ARRAY_SIZE(make_guards); kind++) {
        for (int bit = 0; bit < 32; bit++) {
            make_guards[kind](buf);
            stl_be_p(buf + GUARD_FLAGS, 1u << bit);
            if (bit == 0) {
                /* The only flag that there is */
                assert_guard_accepted(buf);
            } else {
                assert_guard_refused(buf, sizeof(buf));
            }
        }
    }
}

static void test_guard_reserved(void)
{
    uint8_t buf[GUARD_LEN];

    for (int kind = 0; kind < ARRAY_SIZE(make_guards); kind++) {
        for (int i = GUARD_RESERVED; i < GUARD_SIZE; i++) {
            make_guards[kind](buf);
            buf[i] = 1;
            assert_guard_refused(buf, sizeof(buf));
        }
    }
    for (int i = GUARD_FILE_RESERVED; i < GUARD_LEN; i++) {
        make_file_guard(buf);
        buf[i] = 0x80;
        assert_guard_refused(buf, sizeof(buf));
        make_samples_guard(buf);
        buf[i] = 1;
        assert_guard_refused(buf, sizeof(buf));
    }
}

static void test_guard_unknown_kind(void)
{
    uint8_t buf[GUARD_LEN] = { 0 };

    for (int kind = 0; kind < 256; kind++) {
        buf[GUARD_KIND] = kind;
        if (kind >= 1 && kind <= 3) {
            assert_guard_accepted(buf);
        } else {
            assert_guard_refused(buf, sizeof(buf));
        }
    }
}

static void test_guard_unknown_place(void)
{
    uint8_t buf[GUARD_LEN] = { 0 };

    buf[GUARD_KIND] = 2;
    for (int place = 0; place < 256; place++) {
        buf[GUARD_PLACE] = place;
        if (place <= 3) {
            assert_guard_accepted(buf);
        } else {
            assert_guard_refused(buf, sizeof(buf));
        }
    }
}

static void assert_surplus(void (*make)(uint8_t buf[GUARD_LEN]), int from,
                           int to)
{
    uint8_t buf[GUARD_LEN];

    for (int i = from; i < to; i++) {
        make(buf);
        buf[i] = 1;
        assert_guard_refused(buf, sizeof(buf));
    }
}

static void make_single_file_guard(uint8_t buf[GUARD_LEN])
{
    make_file_guard(buf);
    memset(buf + GUARD_OTHER_FILES, 0, 4);
    memset(buf + GUARD_DIGEST, 0, QCOW2_RW_BACKING_DIGEST_LEN);
}

static void make_device_samples_guard(uint8_t buf[GUARD_LEN])
{
    make_samples_guard(buf);
    buf[GUARD_PLACE] = 2;
    memset(buf + GUARD_FILE_SIZE, 0, GUARD_LEN - GUARD_FILE_SIZE);
}

static void make_placeless_guard(uint8_t buf[GUARD_LEN])
{
    make_device_samples_guard(buf);
    buf[GUARD_PLACE] = 0;
    memset(buf + GUARD_OFFSET, 0, 8);
}

/* What other kinds need has to be zero */
static void test_guard_surplus_fields(void)
{
    uint8_t buf[GUARD_LEN];

    make_single_file_guard(buf);
    assert_guard_accepted(buf);
    make_device_samples_guard(buf);
    assert_guard_accepted(buf);
    make_placeless_guard(buf);
    assert_guard_accepted(buf);

    assert_surplus(make_file_guard, GUARD_PLACE, GUARD_PLACE + 1);
    assert_surplus(make_file_guard, GUARD_SEED, GUARD_DIGEST);
    assert_surplus(make_single_file_guard, GUARD_DIGEST, GUARD_FILE_SIZE);
    assert_surplus(make_samples_guard, GUARD_OTHER_FILES, GUARD_OFFSET);
    assert_surplus(make_device_samples_guard, GUARD_FILE_SIZE, GUARD_LEN);
    assert_surplus(make_placeless_guard, GUARD_OFFSET, GUARD_SEED);
    assert_surplus(make_placeless_guard, GUARD_FILE_SIZE, GUARD_LEN);
    assert_surplus(make_device_guard, GUARD_PLACE, GUARD_PLACE + 1);
    assert_surplus(make_device_guard, GUARD_OTHER_FILES, GUARD_OFFSET);
}

static void test_guard_nanoseconds(void)
{
    uint8_t buf[GUARD_LEN];

    for (int kind = 0; kind < 2; kind++) {
        make_guards[kind](buf);
        stl_be_p(buf + GUARD_MTIME_NSEC, 999999999);
        assert_guard_accepted(buf);
        stl_be_p(buf + GUARD_MTIME_NSEC, 1000000000);
        assert_guard_refused(buf, sizeof(buf));
        stl_be_p(buf + GUARD_MTIME_NSEC, UINT32_MAX);
        assert_guard_refused(buf, sizeof(buf));
    }
}

/* Partitions: what samples are taken of */

#define DISK_SIZE   (1 * TiB)

static void put_mbr_entry(uint8_t *sector, int i, uint8_t type, uint32_t start,
                          uint32_t sectors)
{
    uint8_t *entry = sector + 446 + 16 * i;

    entry[4] = type;
    stl_le_p(entry + 8, start);
    stl_le_p(entry + 12, sectors);
    sector[510] = 0x55;
    sector[511] = 0xaa;
}

static void put_gpt(uint8_t *head, uint32_t sector, uint64_t table,
                    uint32_t count, uint32_t entry_len)
{
    memcpy(head + sector, "EFI PART", 8);
    stq_le_p(head + sector + 72, table);
    stl_le_p(head + sector + 80, count);
    stl_le_p(head + sector + 84, entry_len);
}

static void put_gpt_entry(uint8_t *entry, uint64_t start)
{
    entry[15] = 1;
    stq_le_p(entry + 32, start);
}

static void assert_partitions(const Qcow2RwBackingPartitions *found,
                              unsigned int count, ...)
{
    va_list ap;

    g_assert_cmpuint(found->count, ==, count);
    va_start(ap, count);
    for (int i = 0; i < count; i++) {
        g_assert_cmpuint(found->start[i], ==, va_arg(ap, uint64_t));
    }
    va_end(ap);
}

static void test_partitions_none(void)
{
    g_autofree uint8_t *head = g_malloc0(MiB);
    Qcow2RwBackingPartitions found;

    memset(&found, 0xff, sizeof(found));
    qcow2_rw_backing_partitions_parse(head, MiB, DISK_SIZE, &found);
    assert_partitions(&found, 0);
    g_assert_cmpuint(found.extended, ==, 0);
    for (int len = 0; len < 520; len++) {
        qcow2_rw_backing_partitions_parse(head, len, len, &found);
        assert_partitions(&found, 0);
    }
}

static void test_partitions_mbr(void)
{
    uint8_t head[512] = { 0 };
    Qcow2RwBackingPartitions found;

    put_mbr_entry(head, 0, 0x83, 2048, 100);
    put_mbr_entry(head, 1, 0, 4096, 100);               /* not used */
    put_mbr_entry(head, 2, 0x83, 0xfffffff0, 100);      /* behind the end */
    put_mbr_entry(head, 3, 0x07, 1, 1);
    qcow2_rw_backing_partitions_parse(head, sizeof(head), DISK_SIZE, &found);
    assert_partitions(&found, 2, (uint64_t)MiB, (uint64_t)512);
    g_assert_cmpuint(found.extended, ==, 0);

    head[510] = 0;
    qcow2_rw_backing_partitions_parse(head, sizeof(head), DISK_SIZE, &found);
    assert_partitions(&found, 0);
}

static void test_partitions_logical(void)
{
    uint8_t head[512] = { 0 }, ebr[512] = { 0 };
    Qcow2RwBackingPartitions found;
    const uint64_t ext = 8192 * 512;

    put_mbr_entry(head, 1, 0x0f, 8192, 100000);
    qcow2_rw_backing_partitions_parse(head, sizeof(head), DISK_SIZE, &found);
    assert_partitions(&found, 1, ext);
    g_assert_cmpuint(found.extended, ==, ext);

    put_mbr_entry(ebr, 0, 0x83, 2048, 100);
    put_mbr_entry(ebr, 1, 0x05, 4096, 100);
    g_assert_cmpuint(qcow2_rw_backing_partitions_add_logical(
                         ebr, ext, DISK_SIZE, &found), ==, ext + 4096 * 512);
    /* The next one is relative to the extended partition, the last has none */
    put_mbr_entry(ebr, 1, 0x05, 0, 100);
    g_assert_cmpuint(qcow2_rw_backing_partitions_add_logical(
                         ebr, ext + 4096 * 512, DISK_SIZE, &found), ==, 0);
    assert_partitions(&found, 3, ext, ext + MiB, ext + 4096 * 512 + MiB);

    /* Nothing there, or the chain leads backwards, or out of the disk */
    put_mbr_entry(ebr, 1, 0x05, 4095, 100);
    g_assert_cmpuint(qcow2_rw_backing_partitions_add_logical(
                         ebr, ext + 4096 * 512, DISK_SIZE, &found), ==, 0);
    put_mbr_entry(ebr, 1, 0x05, UINT32_MAX, 100);
    g_assert_cmpuint(qcow2_rw_backing_partitions_add_logical(
                         ebr, ext, DISK_SIZE, &found), ==, 0);
    memset(ebr, 0, sizeof(ebr));
    g_assert_cmpuint(qcow2_rw_backing_partitions_add_logical(
                         ebr, ext, DISK_SIZE, &found), ==, 0);
    g_assert_cmpuint(found.count, ==, 5);
}

static void test_partitions_gpt(void)
{
    const uint32_t sectors[] = { 512, 4096 };

    for (int i = 0; i < ARRAY_SIZE(sectors); i++) {
        g_autofree uint8_t *head = g_malloc0(MiB);
        uint8_t *table = head + 2 * sectors[i];
        Qcow2RwBackingPartitions found;

        /* Its protective MBR is of no account */
        put_mbr_entry(head, 0, 0xee, 1, UINT32_MAX);
        put_gpt(head, sectors[i], 2, 128, 128);
        put_gpt_entry(table, 2048);
        put_gpt_entry(table + 3 * 128, 227328);
        put_gpt_entry(table + 127 * 128, 100000);
        put_gpt_entry(table + 5 * 128, UINT64_MAX);     /* behind the end */
        put_gpt_entry(table + 128 * 128, 300000);       /* not in the table */
        stq_le_p(table + 4 * 128 + 32, 5);              /* not used */
        qcow2_rw_backing_partitions_parse(head, MiB, DISK_SIZE, &found);
        assert_partitions(&found, 3, (uint64_t)2048 * sectors[i],
                          (uint64_t)227328 * sectors[i],
                          (uint64_t)100000 * sectors[i]);
    }
}

static void test_partitions_gpt_malformed(void)
{
    g_autofree uint8_t *head = g_malloc0(64 * KiB);
    Qcow2RwBackingPartitions found;

    /* More entries than anybody has, up to the end of what is known */
    put_gpt(head, 512, 2, UINT32_MAX, 128);
    for (int i = 0; i < 200; i++) {
        put_gpt_entry(head + 1024 + 128 * i, i + 1);
    }
    qcow2_rw_backing_partitions_parse(head, 64 * KiB, DISK_SIZE, &found);
    g_assert_cmpuint(found.count, ==, QCOW2_RW_BACKING_MAX_PARTITIONS);
    qcow2_rw_backing_partitions_parse(head, 1024 + 128 * 3 + 127, DISK_SIZE,
                                      &found);
    g_assert_cmpuint(found.count, ==, 3);

    put_gpt(head, 512, UINT64_MAX, 128, 128);
    qcow2_rw_backing_partitions_parse(head, 64 * KiB, DISK_SIZE, &found);
    assert_partitions(&found, 0);
    put_gpt(head, 512, 128, 128, 128);
    qcow2_rw_backing_partitions_parse(head, 64 * KiB, DISK_SIZE, &found);
    assert_partitions(&found, 0);
    put_gpt(head, 512, 2, 128, 0);
    qcow2_rw_backing_partitions_parse(head, 64 * KiB, DISK_SIZE, &found);
    assert_partitions(&found, 0);
    put_gpt(head, 512, 2, 128, UINT32_MAX);
    qcow2_rw_backing_partitions_parse(head, 64 * KiB, DISK_SIZE, &found);
    assert_partitions(&found, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/qcow2-rw-backing/layout", test_layout);
    g_test_add_func("/qcow2-rw-backing/round-trip", test_round_trip);
    g_test_add_func("/qcow2-rw-backing/no-filename", test_no_filename);
    g_test_add_func("/qcow2-rw-backing/too-short", test_too_short);
    g_test_add_func("/qcow2-rw-backing/bad-lengths", test_bad_lengths);
    g_test_add_func("/qcow2-rw-backing/padding", test_padding);
    g_test_add_func("/qcow2-rw-backing/hint", test_hint);
    g_test_add_func("/qcow2-rw-backing/unknown-flags", test_unknown_flags);
    g_test_add_func("/qcow2-rw-backing/reserved", test_reserved);
    g_test_add_func("/qcow2-rw-backing/log", test_log);
    g_test_add_func("/qcow2-rw-backing/log-round-trip", test_log_round_trip);
    g_test_add_func("/qcow2-rw-backing/map", test_map);
    g_test_add_func("/qcow2-rw-backing/bad-format", test_bad_format);
    g_test_add_func("/qcow2-rw-backing/long-filename", test_long_filename);
    g_test_add_func("/qcow2-rw-backing/embedded-nul", test_embedded_nul);
    g_test_add_func("/qcow2-rw-backing/serialize-refuses",
                    test_serialize_refuses);
    g_test_add_func("/qcow2-rw-backing/feature-and-extension",
                    test_feature_and_extension);
    g_test_add_func("/qcow2-rw-backing/guard/layout-file",
                    test_guard_layout_file);
    g_test_add_func("/qcow2-rw-backing/guard/layout-device",
                    test_guard_layout_device);
    g_test_add_func("/qcow2-rw-backing/guard/layout-samples",
                    test_guard_layout_samples);
    g_test_add_func("/qcow2-rw-backing/guard/round-trip",
                    test_guard_round_trip);
    g_test_add_func("/qcow2-rw-backing/guard/bad-length",
                    test_guard_bad_length);
    g_test_add_func("/qcow2-rw-backing/guard/unknown-flags",
                    test_guard_unknown_flags);
    g_test_add_func("/qcow2-rw-backing/guard/reserved", test_guard_reserved);
    g_test_add_func("/qcow2-rw-backing/guard/unknown-kind",
                    test_guard_unknown_kind);
    g_test_add_func("/qcow2-rw-backing/guard/unknown-place",
                    test_guard_unknown_place);
    g_test_add_func("/qcow2-rw-backing/guard/surplus-fields",
                    test_guard_surplus_fields);
    g_test_add_func("/qcow2-rw-backing/guard/nanoseconds",
                    test_guard_nanoseconds);
    g_test_add_func("/qcow2-rw-backing/partitions/none", test_partitions_none);
    g_test_add_func("/qcow2-rw-backing/partitions/mbr", test_partitions_mbr);
    g_test_add_func("/qcow2-rw-backing/partitions/logical",
                    test_partitions_logical);
    g_test_add_func("/qcow2-rw-backing/partitions/gpt", test_partitions_gpt);
    g_test_add_func("/qcow2-rw-backing/partitions/gpt-malformed",
                    test_partitions_gpt_malformed);

    return g_test_run();
}
