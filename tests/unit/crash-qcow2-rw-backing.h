/*
 * States that a crash can leave: what the parts of the test share
 *
 * The storage keeps two files in memory, that of the shell and the disk, and
 * records what is done to them, in one order.  From that it makes each state
 * in which a crash may leave them.  The truth is what the bitmaps have to say
 * in each state, if they say anything.  The reader opens a state, and compares.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef CRASH_QCOW2_RW_BACKING_H
#define CRASH_QCOW2_RW_BACKING_H

#include "block/block_int-common.h"
#include "qemu/units.h"

#define SECTOR              512
#define CRASH_DISK_MAX      (16 * MiB)
#define CRASH_SHELL_MAX     (8 * MiB)

/*
 * What a bitmap may have beyond the truth after a crash: a log says of chunks
 * of this size that they may have been written; and if writes are sequential,
 * of so many chunks behind them.
 */
#define CRASH_CHUNK         (1 * MiB)
#define CRASH_CHUNKS_AHEAD  4

/* The node option for the time between two checkpoints, in seconds */
#define CRASH_CHECKPOINT_OPTION "rw-backing-checkpoint-interval"

/*
 * The content of a sector of the disk is a number: that of the write that it
 * comes from, or 0 for zeroes.
 */
#define STAMP_ZERO          0
/* In the truth: anything is right */
#define STAMP_ANY           UINT32_MAX

/* Random numbers, the same ones for the same seed */

void crash_seed(uint64_t seed);
/* From 0 to @n - 1 */
uint32_t crash_random(uint32_t n);
/* True once in @n times */
bool crash_one_in(uint32_t n);

/* Storage */

/* Of a file of the shell, or of a disk */
typedef struct CrashImage {
    uint64_t len;
    /* Bytes of a shell, or NULL */
    uint8_t *bytes;
    /* Parts of sectors were lost: where marks were, anything may be dirty */
    bool torn;
    /* Content of the sectors of a disk, or NULL */
    uint32_t *stamps;
} CrashImage;

typedef enum CrashRequestType {
    CRASH_WRITE,
    CRASH_TRUNCATE,
    CRASH_FLUSH,
} CrashRequestType;

typedef struct CrashFile CrashFile;

typedef struct CrashRequest {
    CrashRequestType type;
    CrashFile *file;
    /* In bytes; the new length is @offset for CRASH_TRUNCATE */
    uint64_t offset;
    uint64_t bytes;
    /* What is written, NULL for zeroes */
    void *data;

    /* Numbers of events, the second one -1 if it is under way */
    int64_t submitted;
    int64_t completed;
    bool failed;
    /*
     * If set: sectors, counted from the first one that it touches, in which a
     * later write is safe, so that this one cannot be there any more
     */
    unsigned long *superseded;

    /* While it is under way */
    Coroutine *co;
    unsigned hold;
} CrashRequest;

/* A node of the driver "crash-memory", by the option "name" */
struct CrashFile {
    const char *name;
    uint64_t max_len;
    /* Requests take time, end in any order, and are recorded */
    bool recorded;
    /* One flush in so many fails, 0 for none */
    unsigned fail_flush;
    /* Since the last restart */
    bool flush_has_failed;
    /* Whoever asks for its length has to wait */
    bool slow;
    /* How many requests were recorded */
    uint64_t begun;
    CrashImage image;
};

/* Those two that are written to, those two that are looked at, and a backup */
extern CrashFile crash_shell, crash_disk, crash_left_shell, crash_left_disk,
                 crash_target;

typedef struct CrashEvent {
    /* NULL for a note */
    CrashRequest *req;
    /* With @req: it has ended now, or else it has begun */
    bool completed;
    char *note;
} CrashEvent;

void crash_storage_init(void);

/* Forgets all events; what is in the files is what was there before. */
void crash_storage_restart(void);

/* The number of events so far, which is the number of the next one */
int64_t crash_now(void);
const CrashEvent *crash_event(int64_t number);
void crash_note(const char *fmt, ...) G_GNUC_PRINTF(1, 2);

void crash_image_init(CrashImage *image, bool is_shell);
void crash_image_destroy(CrashImage *image);
void crash_image_copy(CrashImage *to, const CrashImage *from);

/*
 * Marks those sectors of @stamps with STAMP_ANY that are being written, if
 * @in_flight, and those that a failed flush may have dropped: who reads the
 * disk now cannot know what will be there after a power failure.
 */
void crash_disk_mark_doubtful(uint32_t *stamps, bool in_flight);

/*
 * Lets so many seconds pass at once, so that timers expire.  The clock goes on
 * as usual otherwise.
 */
void crash_skip_time(unsigned seconds);

/* States */

/*
 * What a crash after some number of events leaves of one file: the image with
 * all that is safe, and the requests that may or may not be in it.
 */
typedef struct CrashLeft {
    CrashFile *file;
    CrashImage safe;
    /* CrashRequest *: completed ones in their order, then others */
    GPtrArray *loose;
} CrashLeft;

/*
 * crash_left_init() begins with what was there at the last restart, and
 * crash_left_next() goes over event number @number.
 */
void crash_left_init(CrashLeft *left, CrashFile *file);
void crash_left_next(CrashLeft *left, int64_t number);
void crash_left_free(CrashLeft *left);

typedef enum CrashTear {
    CRASH_NOTHING,
    CRASH_ALL,
    /* Sectors from the front, from the end, any */
    CRASH_FRONT,
    CRASH_END,
    CRASH_ANY,
    /* Parts of sectors */
    CRASH_BYTES,
    CRASH_TEAR__MAX,
} CrashTear;

/* Makes *@to what is safe and, of each loose request, what @tears says. */
void crash_left_make(const CrashLeft *left, const CrashTear *tears,
                     CrashImage *to);

/* The truth */

typedef enum CrashPresence {
    CRASH_ABSENT,
    CRASH_PERHAPS,
    CRASH_PRESENT,
} CrashPresence;

typedef struct CrashBitmap CrashBitmap;

/* What is true of a bitmap from an event on, until there is another truth */
typedef struct CrashTruth {
    int64_t from;
    CrashPresence presence;
    /* -1 if it may be either */
    int recording;
    /* The image was left in a proper way: it must be there and consistent */
    bool sealed;
    /*
     * If set: what the disk was like when the last backup copied it.  Blocks
     * must be dirty where it differs now.
     */
    uint32_t *base;
    /* If set: blocks that must be dirty in any case */
    unsigned long *must;
    /* If set: this many blocks must be just like this */
    unsigned long *exact;
    uint64_t exact_blocks;
    /* The truth before is as good */
    bool or_before;
    /* If set: if not true, then the next truth of @other has to be */
    CrashBitmap *other;
} CrashTruth;

struct CrashBitmap {
    char *name;
    uint32_t granularity;
    /* CrashTruth */
    GArray *truths;
};

/* CrashBitmap *; bitmaps that were removed are in it, too */
extern GPtrArray *crash_bitmaps;

void crash_truth_init(void);
/* Forgets all bitmaps */
void crash_truth_clear(void);
CrashBitmap *crash_bitmap_new(const char *name, uint32_t granularity);
/* The one that may be there, NULL if none */
CrashBitmap *crash_bitmap_find(const char *name, int64_t now);

/*
 * Begins a new truth that is like the last one, and lets the caller change it.
 * It is about the time from now on.
 */
CrashTruth *crash_truth_next(CrashBitmap *bitmap);
CrashTruth *crash_truth_last(CrashBitmap *bitmap);
/* The last one that has begun when @number events have happened, or NULL */
const CrashTruth *crash_truth_at(const CrashBitmap *bitmap, int64_t number);

/*
 * Instead of all that was: what is true of bitmaps that were @found after
 * @number events.  It begins with event 0.
 */
void crash_truth_continue(GPtrArray *found, const CrashImage *disk,
                          int64_t number);

/* From now on, any of these bytes may be dirty. */
void crash_truth_touch(uint64_t offset, uint64_t bytes);

/* What the disk is like now; it is freed with the truth */
uint32_t *crash_truth_base_now(void);
uint32_t *crash_truth_base_copy(const uint32_t *stamps);
/* Both, each of which may be NULL; freed with the truth */
unsigned long *crash_truth_bits_or(const unsigned long *a,
                                   const unsigned long *b, uint64_t blocks);
/* Room for the bits of a disk of any size, freed with the truth */
unsigned long *crash_truth_bits_new(void);

/* The reader */

/* What a state of the shell says of one bitmap */
typedef struct CrashFound {
    char *name;
    uint32_t granularity;
    uint64_t size;
    bool inconsistent;
    bool recording;
    bool is_map;
    unsigned long *bits;
} CrashFound;

/* All persistent bitmaps of a node that is open: CrashFound *, to be freed */
GPtrArray *crash_read_node(BlockDriverState *bs);
const CrashFound *crash_found(GPtrArray *found, const char *name);

/* Reads crash_left_shell, with crash_left_disk as its disk. */
GPtrArray *crash_read_state(bool writable, const char *guard, Error **errp);

typedef struct CrashVerdict {
    uint64_t consistent;
    uint64_t inconsistent;
    uint64_t missing;
    /* Granules of allocation maps that are said to read as zeroes */
    uint64_t zeroes;
} CrashVerdict;

/*
 * Compares what was @found with the truth after @number events; returns what is
 * wrong, or NULL.  With @usable, no bitmap that was stored may be lost.
 */
char *crash_compare(GPtrArray *found, const CrashImage *disk, int64_t number,
                    bool usable, CrashVerdict *verdict);

/* The workload */

typedef struct CrashOptions {
    /* After a crash, no bitmap that was stored may be inconsistent or gone */
    bool usable;
    /* Flushes fail now and then */
    bool faults;
} CrashOptions;

/* Begins with a new shell and a new disk. */
void crash_workload_create(bool with_log);

/*
 * Begins with what crash_left_shell and crash_left_disk have, which is what a
 * crash after @number events of the workload before has left; @found is what
 * the shell says.
 */
void crash_workload_recover(GPtrArray *found, int64_t number);

/* A few sessions; ends with a close.  Aborts if a bitmap is wrong meanwhile. */
void crash_workload_run(const CrashOptions *options);

/* Says what has happened, and ends the program. */
void crash_fail(int64_t number, const char *what) G_NORETURN;

#endif
