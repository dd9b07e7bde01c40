/*
 * qcow2 RW backing: on-disk layout and its codec
 *
 * Knows the bytes of the RW backing header extension and nothing else: no
 * block device, no I/O.  The driver, the unit tests and the fuzzers use it.
 * The rules come from docs/interop/qcow2-rw-backing.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_FORMAT_H
#define BLOCK_QCOW2_RW_BACKING_FORMAT_H

/* Magic numbers of our header extensions ("RWBK", "RWBG") */
#define QCOW2_EXT_MAGIC_RW_BACKING          0x5257424b
#define QCOW2_EXT_MAGIC_RW_BACKING_GUARD    0x52574247

/* Name of the incompatible feature, as older programs report it */
#define QCOW2_RW_BACKING_FEATURE_NAME       "RW backing"

/* Longest names in bytes, without a terminating NUL */
#define QCOW2_RW_BACKING_MAX_FORMAT         63
#define QCOW2_RW_BACKING_MAX_FILENAME       1023

/* Fixed part of the RW backing extension; all fields are big endian */
typedef struct QEMU_PACKED Qcow2RwBackingExt {
    uint32_t flags;             /* none defined, must be zero */
    uint16_t format_len;        /* in bytes, at least 1 */
    uint16_t filename_len;      /* in bytes, 0 if no name is stored */
    uint8_t reserved[32];       /* must be zero */
    /* format name follows, then file name, both without NUL */
} Qcow2RwBackingExt;

QEMU_BUILD_BUG_ON(sizeof(Qcow2RwBackingExt) != 40);

/* Where a shell finds its RW backing */
typedef struct Qcow2RwBackingPointer {
    /* Block driver to open it with; never probed, never NULL once parsed */
    char *format;

    /*
     * Literal local path, relative to the directory of the shell; NULL if the
     * shell names no RW backing, so that opening it takes an option.
     */
    char *filename;
} Qcow2RwBackingPointer;

/**
 * qcow2_rw_backing_pointer_parse:
 * @ptr: filled in on success; free with qcow2_rw_backing_pointer_destroy()
 * @buf: data of the header extension, without magic and length
 * @len: length of @buf in bytes, as the header extension gives it
 *
 * Returns true, or false with @errp set and @ptr empty if the extension
 * breaks a rule of section "RW backing extension" of the specification.
 */
bool qcow2_rw_backing_pointer_parse(Qcow2RwBackingPointer *ptr,
                                    const uint8_t *buf, size_t len,
                                    Error **errp);

/**
 * qcow2_rw_backing_pointer_serialize:
 * @len: set to the length of the result in bytes
 *
 * Returns the data of the header extension (g_free() it), or NULL with @errp
 * set if @ptr cannot be represented.
 */
uint8_t *qcow2_rw_backing_pointer_serialize(const Qcow2RwBackingPointer *ptr,
                                            size_t *len, Error **errp);

/**
 * qcow2_rw_backing_pointer_validate:
 *
 * Returns true, or false with @errp set if @ptr cannot be represented.
 */
bool qcow2_rw_backing_pointer_validate(const Qcow2RwBackingPointer *ptr,
                                       Error **errp);

/**
 * qcow2_rw_backing_check_feature:
 * @feature: is the incompatible feature bit set?
 * @extension: does the header have an RW backing extension?
 *
 * Returns false with @errp set if one is there without the other.
 */
bool qcow2_rw_backing_check_feature(bool feature, bool extension,
                                    Error **errp);

void qcow2_rw_backing_pointer_destroy(Qcow2RwBackingPointer *ptr);

#endif
