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

/* Length of the digest in the guard extension in bytes (SHA-256) */
#define QCOW2_RW_BACKING_DIGEST_LEN         32

/* The image keeps a write-intent log as long as it has bitmaps */
#define QCOW2_RW_BACKING_LOG                1
/* What the log says counts */
#define QCOW2_RW_BACKING_LOG_ARMED          2
/* The image keeps an allocation map */
#define QCOW2_RW_BACKING_MAP                4
/* Who believes its map has to look at the disk first */
#define QCOW2_RW_BACKING_MAP_UNPROVEN       8

/* The bitmap of this name is the allocation map */
#define QCOW2_RW_BACKING_MAP_NAME           "rw-backing-allocation-map"

/* Fixed part of the RW backing extension; all fields are big endian */
typedef struct QEMU_PACKED Qcow2RwBackingExt {
    uint32_t flags;             /* QCOW2_RW_BACKING_{LOG,MAP}* */
    uint16_t format_len;        /* in bytes, at least 1 */
    uint16_t filename_len;      /* in bytes, 0 if no name is stored */
    uint64_t log_offset;        /* in bytes, 0 if there is no log yet */
    uint8_t reserved[24];       /* must be zero */
    /* format name follows, then file name, both without NUL, and padding */
} Qcow2RwBackingExt;

QEMU_BUILD_BUG_ON(sizeof(Qcow2RwBackingExt) != 40);

/* What is known of a file under the RW backing */
typedef struct QEMU_PACKED Qcow2RwBackingFileExt {
    uint64_t size;              /* in bytes */
    uint64_t mtime_sec;         /* signed */
    uint32_t mtime_nsec;
    uint8_t reserved[36];       /* must be zero */
} Qcow2RwBackingFileExt;

/* What is known of a block device under the RW backing */
typedef struct QEMU_PACKED Qcow2RwBackingDeviceExt {
    uint8_t boot_id[16];
    uint64_t diskseq;
    uint64_t written;           /* in sectors of 512 bytes */
    uint64_t discarded;
    uint64_t disk_written;
    uint64_t disk_discarded;
} Qcow2RwBackingDeviceExt;

/* The disk was larger at a time that its bitmaps tell of */
#define QCOW2_RW_BACKING_GUARD_SHRUNK       1

/*
 * Guard extension; all fields are big endian.  Fields that the kind does not
 * need are zero.
 */
typedef struct QEMU_PACKED Qcow2RwBackingGuardExt {
    uint32_t flags;             /* QCOW2_RW_BACKING_GUARD_SHRUNK or 0 */
    uint8_t kind;               /* Qcow2RwBackingGuardKind */
    uint8_t place;              /* Qcow2RwBackingPlace */
    uint8_t reserved[2];        /* must be zero */
    uint64_t size;              /* of the RW backing, in bytes */
    uint32_t bitmaps_checksum;
    uint32_t other_files;       /* number of files besides the first */
    uint64_t offset;            /* of the RW backing in file or disk */
    uint64_t seed;
    uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN];
    union {
        Qcow2RwBackingFileExt file;
        Qcow2RwBackingDeviceExt device;
    };
} Qcow2RwBackingGuardExt;

QEMU_BUILD_BUG_ON(sizeof(Qcow2RwBackingFileExt) !=
                  sizeof(Qcow2RwBackingDeviceExt));
QEMU_BUILD_BUG_ON(sizeof(Qcow2RwBackingGuardExt) != 128);

/* Where a shell finds its RW backing */
typedef struct Qcow2RwBackingPointer {
    /* Block driver to open it with; never probed, never NULL once parsed */
    char *format;

    /*
     * Literal local path, relative to the directory of the shell; NULL if the
     * shell names no RW backing, so that opening it takes an option.
     */
    char *filename;

    /* Keeps a log; where it is in the image in bytes, 0 if there is none yet */
    bool log;
    uint64_t log_offset;

    /* What the log says counts */
    bool log_armed;

    /* Keeps an allocation map, which needs the log; who looks at it? */
    bool map;
    bool map_unproven;
} Qcow2RwBackingPointer;

/* How to find out whether the RW backing was modified by others */
typedef enum Qcow2RwBackingGuardKind {
    QCOW2_RW_BACKING_GUARD_NONE     = 0,    /* nothing recorded */
    QCOW2_RW_BACKING_GUARD_FILE     = 1,    /* sizes and modification times */
    QCOW2_RW_BACKING_GUARD_SAMPLES  = 2,    /* digest of samples */
    QCOW2_RW_BACKING_GUARD_DEVICE   = 3,    /* counters, digest of samples */
} Qcow2RwBackingGuardKind;

/* What the RW backing is, seen from the host, if there are only samples */
typedef enum Qcow2RwBackingPlace {
    QCOW2_RW_BACKING_PLACE_OTHER        = 0,
    QCOW2_RW_BACKING_PLACE_REMOTE_FILE  = 1,    /* part of one, as it is */
    QCOW2_RW_BACKING_PLACE_DEVICE       = 2,    /* part of one, as it is */
    QCOW2_RW_BACKING_PLACE_LOCAL_FILE   = 3,    /* part of one, as it is */
    QCOW2_RW_BACKING_PLACE__MAX         = QCOW2_RW_BACKING_PLACE_LOCAL_FILE,
} Qcow2RwBackingPlace;

/* A file that is the RW backing, or the first one of those that make it up */
typedef struct Qcow2RwBackingFileTime {
    uint64_t size;              /* in bytes */
    int64_t mtime_sec;
    uint32_t mtime_nsec;
} Qcow2RwBackingFileTime;

/* How often a block device was written to, in sectors of 512 bytes */
typedef struct Qcow2RwBackingCounters {
    uint64_t written;
    uint64_t discarded;
} Qcow2RwBackingCounters;

/* A block device that is the RW backing, or holds it */
typedef struct Qcow2RwBackingDevice {
    /* The counters start anew when the host does, or with another device */
    uint8_t boot_id[16];
    uint64_t diskseq;

    Qcow2RwBackingCounters self;

    /*
     * If it is a partition, what was written to the whole disk without using
     * one of its partitions
     */
    Qcow2RwBackingCounters disk;
} Qcow2RwBackingDevice;

/*
 * What the RW backing looked like when the bitmaps in the image were stored,
 * and what these were.
 */
typedef struct Qcow2RwBackingGuard {
    Qcow2RwBackingGuardKind kind;

    /* Only for GUARD_SAMPLES */
    Qcow2RwBackingPlace place;

    /* Size of the RW backing in bytes */
    uint64_t size;

    /* Since its bitmaps were added, it has been larger */
    bool shrunk;

    /* Sum over the stored bitmaps, see qcow2_rw_backing_sum_*() */
    uint32_t bitmaps_checksum;

    /* Only for GUARD_FILE */
    uint32_t other_files;

    /* Where the RW backing starts in the file or on the disk, in bytes */
    uint64_t offset;

    /* Which samples were taken, not for GUARD_FILE */
    uint64_t seed;

    /* Of the samples, for GUARD_FILE of size and time of other files */
    uint8_t digest[QCOW2_RW_BACKING_DIGEST_LEN];

    /* For GUARD_FILE; for PLACE_REMOTE_FILE, if it is not all zero */
    Qcow2RwBackingFileTime file;

    /* Only for GUARD_DEVICE */
    Qcow2RwBackingDevice device;
} Qcow2RwBackingGuard;

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
 * qcow2_rw_backing_hint:
 *
 * Returns the name of @ptr's file for programs that know external data files,
 * or NULL if they would misunderstand it (section "Hint for management tools"
 * of the specification).
 */
const char *qcow2_rw_backing_hint(const Qcow2RwBackingPointer *ptr);

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

/**
 * qcow2_rw_backing_guard_parse:
 * @guard: filled in; of kind QCOW2_RW_BACKING_GUARD_NONE on failure
 * @buf: data of the header extension, without magic and length
 * @len: length of @buf in bytes, as the header extension gives it
 *
 * Returns true, or false if the extension breaks a rule of section "Guard
 * extension" of the specification, which is no reason to refuse the image.
 */
bool qcow2_rw_backing_guard_parse(Qcow2RwBackingGuard *guard,
                                  const uint8_t *buf, size_t len);

/* Returns true if both are the same on disk. */
bool qcow2_rw_backing_guard_is_equal(const Qcow2RwBackingGuard *a,
                                     const Qcow2RwBackingGuard *b);

/* Fills in @ext, the data of the header extension, from a valid @guard. */
void qcow2_rw_backing_guard_serialize(const Qcow2RwBackingGuard *guard,
                                      Qcow2RwBackingGuardExt *ext);

#endif
