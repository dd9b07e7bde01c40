/*
 * Unit tests of the codec of the RW backing and guard header extensions
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
#include "block/qcow2-rw-backing-format.h"

/* Offsets of the fixed part, as the specification gives them */
#define OFFSET_FLAGS            0
#define OFFSET_FORMAT_LEN       4
#define OFFSET_FILENAME_LEN     6
#define OFFSET_RESERVED         8
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
    assert_refused(ext, "bytes long, but its parts are");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FORMAT_LEN, 2);
    assert_refused(ext, "bytes long, but its parts are");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FILENAME_LEN, UINT16_MAX);
    assert_refused(ext, "bytes long, but its parts are");

    ext = make_good_ext();
    stw_be_p(ext->data + OFFSET_FILENAME_LEN, 0);
    assert_refused(ext, "bytes long, but its parts are");

    /* Cut off and padded */
    ext = make_good_ext();
    g_byte_array_set_size(ext, ext->len - 1);
    assert_refused(ext, "bytes long, but its parts are");

    ext = make_good_ext();
    g_byte_array_append(ext, (const uint8_t *)"", 1);
    assert_refused(ext, "bytes long, but its parts are");
}

static void test_unknown_flags(void)
{
    for (int bit = 0; bit < 32; bit++) {
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
#define GUARD_RESERVED          5
#define GUARD_SIZE              8
#define GUARD_MTIME_SEC         16
#define GUARD_MTIME_NSEC        24
#define GUARD_CHECKSUM          28
#define GUARD_SEED              32
#define GUARD_DIGEST            40
#define GUARD_LEN               72

/* Extensions as another program might have written them, byte by byte */
static void make_mtime_guard(uint8_t buf[GUARD_LEN])
{
    memset(buf, 0, GUARD_LEN);
    buf[GUARD_KIND] = 1;
    stq_be_p(buf + GUARD_SIZE, 0x0102030405060708);
    stq_be_p(buf + GUARD_MTIME_SEC, 0x1112131415161718);
    stl_be_p(buf + GUARD_MTIME_NSEC, 0x21222324);
    stl_be_p(buf + GUARD_CHECKSUM, 0x31323334);
}

static void make_samples_guard(uint8_t buf[GUARD_LEN])
{
    memset(buf, 0, GUARD_LEN);
    buf[GUARD_KIND] = 2;
    stq_be_p(buf + GUARD_SIZE, 0x0102030405060708);
    stl_be_p(buf + GUARD_CHECKSUM, 0x31323334);
    stq_be_p(buf + GUARD_SEED, 0x4142434445464748);
    for (int i = 0; i < GUARD_LEN - GUARD_DIGEST; i++) {
        buf[GUARD_DIGEST + i] = 0x51 + i;
    }
}

static void assert_guard_is_none(const Qcow2RwBackingGuard *guard)
{
    const Qcow2RwBackingGuard none = { };

    g_assert_cmpint(guard->kind, ==, QCOW2_RW_BACKING_GUARD_NONE);
    g_assert_cmpint(guard->size, ==, none.size);
    g_assert_cmpint(guard->mtime_sec, ==, none.mtime_sec);
    g_assert_cmpint(guard->mtime_nsec, ==, none.mtime_nsec);
    g_assert_cmpint(guard->bitmaps_checksum, ==, none.bitmaps_checksum);
    g_assert_cmpint(guard->seed, ==, none.seed);
    g_assert_cmpmem(guard->digest, sizeof(guard->digest),
                    none.digest, sizeof(none.digest));
}

/* Treated like an extension that is missing */
static void assert_guard_refused(const uint8_t *buf, size_t len)
{
    /* Whatever is read behind the end is found by a checker of memory */
    g_autofree uint8_t *copy = g_memdup2(buf, len);
    Qcow2RwBackingGuard guard;

    memset(&guard, 0xff, sizeof(guard));
    g_assert_false(qcow2_rw_backing_guard_parse(&guard, copy, len));
    assert_guard_is_none(&guard);
}

static void assert_guard_accepted(const uint8_t buf[GUARD_LEN])
{
    Qcow2RwBackingGuard guard;

    g_assert_true(qcow2_rw_backing_guard_parse(&guard, buf, GUARD_LEN));
    g_assert_cmpint(guard.kind, ==, buf[GUARD_KIND]);
}

static void test_guard_layout_mtime(void)
{
    const Qcow2RwBackingGuard guard = {
        .kind = QCOW2_RW_BACKING_GUARD_MTIME,
        .size = 0x0102030405060708,
        .mtime_sec = 0x1112131415161718,
        .mtime_nsec = 0x21222324,
        .bitmaps_checksum = 0x31323334,
    };
    Qcow2RwBackingGuardExt ext;
    uint8_t expected[GUARD_LEN];

    memset(&ext, 0xff, sizeof(ext));
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    make_mtime_guard(expected);
    g_assert_cmpmem(&ext, sizeof(ext), expected, sizeof(expected));
}

static void test_guard_layout_samples(void)
{
    Qcow2RwBackingGuard guard = {
        .kind = QCOW2_RW_BACKING_GUARD_SAMPLES,
        .size = 0x0102030405060708,
        .bitmaps_checksum = 0x31323334,
        .seed = 0x4142434445464748,
    };
    Qcow2RwBackingGuardExt ext;
    uint8_t expected[GUARD_LEN];

    for (int i = 0; i < sizeof(guard.digest); i++) {
        guard.digest[i] = 0x51 + i;
    }
    memset(&ext, 0xff, sizeof(ext));
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    make_samples_guard(expected);
    g_assert_cmpmem(&ext, sizeof(ext), expected, sizeof(expected));
}

static void test_guard_round_trip(void)
{
    const Qcow2RwBackingGuard guards[] = {
        { .kind = QCOW2_RW_BACKING_GUARD_MTIME },
        { .kind = QCOW2_RW_BACKING_GUARD_MTIME, .size = UINT64_MAX,
          .mtime_sec = INT64_MAX, .mtime_nsec = 999999999,
          .bitmaps_checksum = UINT32_MAX },
        /* Before 1970 */
        { .kind = QCOW2_RW_BACKING_GUARD_MTIME, .size = 512, .mtime_sec = -1 },
        { .kind = QCOW2_RW_BACKING_GUARD_MTIME, .mtime_sec = INT64_MIN },
        { .kind = QCOW2_RW_BACKING_GUARD_SAMPLES },
        { .kind = QCOW2_RW_BACKING_GUARD_SAMPLES, .size = UINT64_MAX,
          .seed = UINT64_MAX, .digest = { 1, [31] = 0xff },
          .bitmaps_checksum = 1 },
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
        g_assert_cmpint(new.mtime_sec, ==, old->mtime_sec);
        g_assert_cmpuint(new.mtime_nsec, ==, old->mtime_nsec);
        g_assert_cmpuint(new.bitmaps_checksum, ==, old->bitmaps_checksum);
        g_assert_cmpuint(new.seed, ==, old->seed);
        g_assert_cmpmem(new.digest, sizeof(new.digest),
                        old->digest, sizeof(old->digest));
    }
}

static void test_guard_bad_length(void)
{
    uint8_t buf[GUARD_LEN + 8] = { 0 };

    make_mtime_guard(buf);
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

    for (int bit = 0; bit < 32; bit++) {
        make_mtime_guard(buf);
        stl_be_p(buf + GUARD_FLAGS, 1u << bit);
        assert_guard_refused(buf, sizeof(buf));
        make_samples_guard(buf);
        stl_be_p(buf + GUARD_FLAGS, 1u << bit);
        assert_guard_refused(buf, sizeof(buf));
    }
}

static void test_guard_reserved(void)
{
    uint8_t buf[GUARD_LEN];

    for (int i = GUARD_RESERVED; i < GUARD_SIZE; i++) {
        make_mtime_guard(buf);
        buf[i] = 1;
        assert_guard_refused(buf, sizeof(buf));
        make_samples_guard(buf);
        buf[i] = 0x80;
        assert_guard_refused(buf, sizeof(buf));
    }
}

static void test_guard_unknown_kind(void)
{
    uint8_t buf[GUARD_LEN] = { 0 };

    for (int kind = 0; kind < 256; kind++) {
        buf[GUARD_KIND] = kind;
        if (kind == 1 || kind == 2) {
            assert_guard_accepted(buf);
        } else {
            assert_guard_refused(buf, sizeof(buf));
        }
    }
}

/* What the other kind needs has to be zero */
static void test_guard_surplus_fields(void)
{
    uint8_t buf[GUARD_LEN];

    for (int i = GUARD_SEED; i < GUARD_LEN; i++) {
        make_mtime_guard(buf);
        buf[i] = 1;
        assert_guard_refused(buf, sizeof(buf));
    }
    for (int i = GUARD_MTIME_SEC; i < GUARD_CHECKSUM; i++) {
        make_samples_guard(buf);
        buf[i] = 1;
        assert_guard_refused(buf, sizeof(buf));
    }
}

static void test_guard_nanoseconds(void)
{
    uint8_t buf[GUARD_LEN];

    make_mtime_guard(buf);
    stl_be_p(buf + GUARD_MTIME_NSEC, 999999999);
    assert_guard_accepted(buf);
    stl_be_p(buf + GUARD_MTIME_NSEC, 1000000000);
    assert_guard_refused(buf, sizeof(buf));
    stl_be_p(buf + GUARD_MTIME_NSEC, UINT32_MAX);
    assert_guard_refused(buf, sizeof(buf));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/qcow2-rw-backing/layout", test_layout);
    g_test_add_func("/qcow2-rw-backing/round-trip", test_round_trip);
    g_test_add_func("/qcow2-rw-backing/no-filename", test_no_filename);
    g_test_add_func("/qcow2-rw-backing/too-short", test_too_short);
    g_test_add_func("/qcow2-rw-backing/bad-lengths", test_bad_lengths);
    g_test_add_func("/qcow2-rw-backing/unknown-flags", test_unknown_flags);
    g_test_add_func("/qcow2-rw-backing/reserved", test_reserved);
    g_test_add_func("/qcow2-rw-backing/bad-format", test_bad_format);
    g_test_add_func("/qcow2-rw-backing/long-filename", test_long_filename);
    g_test_add_func("/qcow2-rw-backing/embedded-nul", test_embedded_nul);
    g_test_add_func("/qcow2-rw-backing/serialize-refuses",
                    test_serialize_refuses);
    g_test_add_func("/qcow2-rw-backing/feature-and-extension",
                    test_feature_and_extension);
    g_test_add_func("/qcow2-rw-backing/guard/layout-mtime",
                    test_guard_layout_mtime);
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
    g_test_add_func("/qcow2-rw-backing/guard/surplus-fields",
                    test_guard_surplus_fields);
    g_test_add_func("/qcow2-rw-backing/guard/nanoseconds",
                    test_guard_nanoseconds);

    return g_test_run();
}
