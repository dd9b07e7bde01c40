/*
 * Unit tests of the RW backing header extension's codec
 *
 * Every malformed case of docs/interop/qcow2-rw-backing.rst is refused with a
 * message that names it, everything well-formed survives a round trip.
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

    return g_test_run();
}
