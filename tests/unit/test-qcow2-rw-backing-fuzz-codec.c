/*
 * Fuzz target: codec of qcow2 RW backing's header extensions
 *
 * What is parsed at all keeps to the rules of the specification and becomes
 * the same bytes again; what is not leaves nothing behind.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/timer.h"
#include "block/qcow2-rw-backing-format.h"
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
    g_assert_cmpmem(buf, buf_len, data, len);
    qcow2_rw_backing_pointer_destroy(&ptr);
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
    g_assert_cmpuint(guard.mtime_nsec, <, NANOSECONDS_PER_SECOND);
    qcow2_rw_backing_guard_serialize(&guard, &ext);
    g_assert_cmpmem(&ext, sizeof(ext), data, len);
}

static void codec_one_input(const uint8_t *data, size_t len)
{
    /* A buffer without anything behind it, so that no overrun goes unnoticed */
    g_autofree uint8_t *exact = g_memdup2(data, len);

    try_pointer(exact, len);
    try_guard(exact, len);
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

static void seed_guard(const char *name, const Qcow2RwBackingGuard *guard)
{
    Qcow2RwBackingGuardExt ext;

    qcow2_rw_backing_guard_serialize(guard, &ext);
    fuzz_seed_add(name, &ext, sizeof(ext));
}

static void codec_make_seeds(void)
{
    g_autofree char *format = g_strnfill(QCOW2_RW_BACKING_MAX_FORMAT, 'f');
    g_autofree char *filename = g_strnfill(QCOW2_RW_BACKING_MAX_FILENAME, 'n');

    seed_pointer("pointer", "raw", "disk.raw");
    seed_pointer("pointer-without-name", "qcow2", NULL);
    seed_pointer("pointer-longest", format, filename);
    seed_guard("guard-mtime", &(Qcow2RwBackingGuard) {
        .kind               = QCOW2_RW_BACKING_GUARD_MTIME,
        .size               = 1234,
        .mtime_sec          = -1,
        .mtime_nsec         = NANOSECONDS_PER_SECOND - 1,
        .bitmaps_checksum   = 0xdeadbeef,
    });
    seed_guard("guard-samples", &(Qcow2RwBackingGuard) {
        .kind               = QCOW2_RW_BACKING_GUARD_SAMPLES,
        .size               = 4096,
        .seed               = 0x0123456789abcdef,
        .digest             = { 1, 2, 3, 4 },
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
