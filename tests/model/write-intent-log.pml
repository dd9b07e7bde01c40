/*
 * The protocol of the write-intent log, as a model for spin.  A disk of two
 * chunks, one or two writers, one checkpoint at a time, one or two bitmaps of
 * which a bit is a chunk; generations are numbered anew when a header is durable,
 * so that the number of states is finite and runs may be of any length.
 *
 * What must hold: after every crash and recovery, a reader believes (t_ok), each
 * bitmap covers each chunk whose content on the disk, as the crash has left it,
 * is not what the last backup has copied, and what a command has promised when
 * it returned is there.  See check().
 *
 * Storage is a page cache over a medium, for both files.  A kill leaves the
 * cache.  Power failure leaves the medium, with any subset of what was dirty; a
 * sector is whole.  A flush that fails leaves any subset on the medium, and may
 * leave the rest clean: the next flush succeeds over it.
 *
 * Steps of the protocol, and where they are:
 *   request tracked, gate, touch, commit, write, dirty bits    writer()
 *   checkpoint, 1 to 5, each write and each flush by itself    checkpoint()
 *   begin, recovery, leave                                     opener()
 *   kill and power failure                                     crash()
 *   flushes of others that fail                                others()
 *   clear, merge, enable, disable, transaction, backup job     user()
 *   what a reader makes of header, superblock, units           reader()
 *
 * Variants, by macros:
 *   WRITERS=1, WRITERS=2
 *   COMMANDS=MASK  two bitmaps; 1: merge, 2: enable and disable, 4: a transaction
 *                  that is committed or undone, 8: a backup job.  With 8 alone
 *                  there is one bitmap: what a job does has nothing to do with
 *                  any other
 *   FAILURES=N     at most so many flushes fail, of either file
 *   ONE_LIFE       nothing is opened after a crash, nothing is closed
 *   SPLIT_END      a request ends after its dirty bits, in a step of its own
 * M_... takes out a rule, or does what an earlier draft of the protocol did;
 * scripts/tests/check_model.py says which must let spin find an error where.
 *
 * What the model insists on beyond what seems obvious:
 *   - who opens a file writes the header again as it was read, and flushes, before
 *     anything is written or freed (M_NO_FLUSH_OPEN);
 *   - a header that may not be durable is written again as it is: a superblock
 *     that names another directory comes only after that (M_RETRY_NEW_DIRECTORY);
 *   - a flush is good for a write only if none by anybody has failed since the
 *     write was submitted (M_ERRORS_ONCE);
 *   - the sequence of commands is looked at after the RW backing was flushed, and
 *     the bitmaps are filled before another flush may succeed (M_FLUSHES_CROSS).
 *
 * Not here: the lease, a shell that cannot be written at all, resizing, torn
 * units (a superset of marks), reuse of a disk's content that a failed flush has
 * lost but the cache still shows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef WRITERS
#define WRITERS 2
#endif
#define NW WRITERS
#define CHUNKS 3                /* all chunks, as a mask */

/* bitmaps, and copies of the disk that backups have made or are making */
#ifdef COMMANDS
#if COMMANDS == 8
#define NB 1
#else
#define NB 2
#endif
#define COPIES (NB + 1)
#define JOB NB
#else
#define NB 1
#define COPIES 1
#endif
#define SLOTS 3

/* --- Words ------------------------------------------------------------- */

/* phase */
#define STEADY 0
#define OVERLAP 1
#define SWITCHING 2

/* kinds of header, and the header itself: kind and place of the directory */
#define BARE 0
#define ARMED 1
#define SEALED 2
#define HEADER(kind, slot) ((kind) << 2 | (slot))
#define KIND(header) ((header) >> 2)
#define SLOT(header) ((header) & 3)

/* what a superblock says of a directory: its place, and a checksum of it */
#define NAMES(slot, content) ((content) << 2 | (slot))
#define NOTHING 255

/* what is in a directory: bits and flag of each bitmap */
#define BITS(content, b) (((content) >> (2 * (b))) & CHUNKS)
#define RECORDS(content, b) (((content) >> (4 + (b))) & 1)

#define LACKS(mask, all) ((all) & ~(mask))

/* --- The RW backing ----------------------------------------------------- */

byte d_dirty;                   /* chunks written since the last good flush */
byte d_other;                   /* chunks whose cache and medium differ */
byte differs[COPIES];               /* chunks whose cached content the last backup
                                   does not have */
byte differs_medium[COPIES];        /* the same for what is on the medium */

/* --- The file of the shell: what is cached, what is on the medium -------- */

byte marks[2], marks_medium[2], marks_dirty[2]; /* units: of G, of G+1 */
byte super[2], super_medium[2];                 /* superblocks, likewise */
byte super_dirty;
byte dir[SLOTS], dir_medium[SLOTS];             /* directories, contents */
byte dir_dirty;
byte header, header_medium;
bit header_dirty;

/* --- Memory ------------------------------------------------------------ */

byte bitmap[NB];
bit recording[NB];
bit changed[NB];                /* by a command, since base was stored */
bit c_changed[NB];              /* the same, as the checkpoint has read it */
bit sequence;                   /* commands since contents were read */

byte phase;
byte cur, durable, next, gate;
byte old_cur, old_durable;      /* while step 4 may fail */
byte in_force;                  /* area that cur belongs to */
byte base;                      /* slot of the directory that clusters are
                                   shared with */
byte lock;                      /* commit lock: who has it, 0: nobody */
byte batch;                     /* what the committer has written */
byte older;                     /* requests that step 2 waits for, a mask */

byte w_step[NW];                /* writers */
byte w_chunk[NW];
byte c_step;                    /* the checkpoint */
byte c_slot;
byte other;                     /* slot that the header may name, too; base if
                                   there is none */
byte c_content;
byte o_step = 1;                /* the opener, or who leaves; 0: running */
#ifdef FAILURES
byte failures;
bit commit_spoiled, c_spoiled;  /* somebody's flush has failed */
bit fill_due;
#endif

#ifdef COMMANDS
bit relied_on[COPIES];          /* records, and the user has been told so */
byte promised[NB];              /* bits that a command has put there */
byte merging;                   /* bits that one will have, when it returns */
byte either;                    /* bits that one bitmap or the other has */
byte pending;                   /* a command has not returned: 1, and a
                                   checkpoint has read what it did: 2 */
bit unsure;                     /* it never did, for a crash: old or new */
bit transaction;                /* between prepare and commit or abort */
byte saved[NB];
bit job;                        /* bitmap 0 is frozen */
byte successor;
#define RELIED_ON(b) relied_on[b]
#define STORED(n) (bitmap[n] | (n == 0 -> successor : 0))
#else
#define RELIED_ON(b) recording[b]
#define STORED(n) bitmap[n]
#endif

/* scratch */
byte t_ok, t_slot, t_gen, t_marks, t_content, b, i;     /* 0 after each step */

inline tidy()
{
    d_step {
        t_ok = 0; t_slot = 0; t_gen = 0; t_marks = 0; t_content = 0;
        b = 0; i = 0
    }
}

/* a change of bitmaps matters to the checkpoint */
#define READING (c_step >= 2 && c_step <= 5)

/* --- What storage does --------------------------------------------------- */

inline disk_written_back(which)
{
    for (b : 0 .. COPIES - 1) {
        differs_medium[b] = (differs_medium[b] & ~(which)) |
                            (differs[b] & (which));
    }
    d_other = d_other & ~(which);
    d_dirty = d_dirty & ~(which);
}

inline disk_dropped(which)
{
    for (b : 0 .. COPIES - 1) {
        differs[b] = (differs[b] & ~(which)) | (differs_medium[b] & (which));
    }
    d_other = d_other & ~(which);
    d_dirty = d_dirty & ~(which);
}

/* What the cache has may be written back at any time: that it was matters
   only when it is replaced, lost, or a flush fails */
inline disk_write(which)
{
    if
    :: true
    :: d_dirty & (which) -> disk_written_back(which)
    fi;
    for (b : 0 .. COPIES - 1) {
        if
        :: RELIED_ON(b) -> differs[b] = differs[b] | (which)
        :: else
        fi
    }
    d_other = d_other | (which);
    d_dirty = d_dirty | (which)
}

inline units_write(area, which)
{
    marks[area] = marks[area] | (which);
    marks_dirty[area] = marks_dirty[area] |
                        LACKS(marks_medium[area], which)
}

inline super_write(area, value)
{
    if
    :: true
    :: super_dirty & (1 << (area)) -> super_medium[area] = super[area]
    fi;
    super[area] = value;
    if
    :: super[area] == super_medium[area] ->
        super_dirty = super_dirty & ~(1 << (area))
    :: else -> super_dirty = super_dirty | (1 << (area))
    fi
}

inline dir_write(slot, value)
{
    if
    :: true
    :: dir_dirty & (1 << (slot)) -> dir_medium[slot] = dir[slot]
    fi;
    dir[slot] = value;
    if
    :: dir[slot] == dir_medium[slot] -> dir_dirty = dir_dirty & ~(1 << (slot))
    :: else -> dir_dirty = dir_dirty | (1 << (slot))
    fi
}

inline header_write(value)
{
    if
    :: true
    :: header_dirty -> header_medium = header
    fi;
    header = value;
    header_dirty = (header != header_medium)
}

inline shell_flushed()
{
    for (i : 0 .. 1) {
        marks_medium[i] = (marks_medium[i] & ~marks_dirty[i]) |
                          (marks[i] & marks_dirty[i]);
        marks_dirty[i] = 0;
        if
        :: super_dirty & (1 << i) -> super_medium[i] = super[i]
        :: else
        fi
    }
    super_dirty = 0;
    for (i : 0 .. SLOTS - 1) {
        if
        :: dir_dirty & (1 << i) -> dir_medium[i] = dir[i]
        :: else
        fi
    }
    dir_dirty = 0;
    if
    :: header_dirty -> header_medium = header
    :: else
    fi;
    header_dirty = 0
}

/* Each sector that is dirty reaches the medium, or not.  After a crash what did
   not is gone; after a flush that fails it is clean all the same, or dirty */
inline some_units_written_back(area)
{
    for (i : 0 .. 1) {
        if
        :: marks_dirty[area] & (1 << i) ->
            if
            :: marks_medium[area] = (marks_medium[area] & ~(1 << i)) |
                                    (marks[area] & (1 << i));
               marks_dirty[area] = marks_dirty[area] & ~(1 << i)
            :: true
            fi
        :: else
        fi
    }
}

inline some_written_back()
{
    some_units_written_back(0);
    some_units_written_back(1);
    for (i : 0 .. 1) {
        if
        :: super_dirty & (1 << i) ->
            if
            :: super_medium[i] = super[i];
               super_dirty = super_dirty & ~(1 << i)
            :: true
            fi
        :: else
        fi
    }
    for (i : 0 .. SLOTS - 1) {
        if
        :: dir_dirty & (1 << i) ->
            if
            :: dir_medium[i] = dir[i];
               dir_dirty = dir_dirty & ~(1 << i)
            :: true
            fi
        :: else
        fi
    }
    if
    :: header_dirty ->
        if
        :: header_medium = header; header_dirty = 0
        :: true
        fi
    :: else
    fi
}

inline dropped()
{
    for (i : 0 .. 1) {
        marks[i] = marks_medium[i];
        marks_dirty[i] = 0;
        super[i] = super_medium[i]
    }
    super_dirty = 0;
    for (i : 0 .. SLOTS - 1) {
        dir[i] = dir_medium[i]
    }
    dir_dirty = 0;
    header = header_medium;
    header_dirty = 0
}

inline some_of_disk_written_back()
{
    if
    :: d_dirty & 1 -> disk_written_back(1)
    :: true
    fi;
    if
    :: d_dirty & 2 -> disk_written_back(2)
    :: true
    fi
}

#ifdef FAILURES
inline disk_flush_fails()
{
    failures++;
    some_of_disk_written_back();
    if
    :: d_dirty & 1 -> disk_dropped(1)
    :: true
    fi;
    if
    :: d_dirty & 2 -> disk_dropped(2)
    :: true
    fi
}

/* Either all that was not written back is clean now, or is dirty still */
inline shell_flush_fails()
{
    failures++;
    some_written_back();
    if
    :: true
    :: marks_dirty[0] = 0; marks_dirty[1] = 0; super_dirty = 0; dir_dirty = 0;
       header_dirty = 0
    fi;
#ifndef M_ERRORS_ONCE
    commit_spoiled = (lock != 0 && lock <= NW);
    c_spoiled = (c_step >= 5)
#endif
}

inline fill()
{
#ifdef M_NO_FILL
    skip
#else
    for (b : 0 .. NB - 1) {
        if
        :: recording[b] -> bitmap[b] = CHUNKS; changed[b] = 1
        :: else
        fi
    }
    sequence = READING
#endif
}

/* The page cache drops what is clean */
inline some_evicted()
{
    if
    :: true
    :: marks[0] = (marks[0] & marks_dirty[0]) |
                  LACKS(marks_dirty[0], marks_medium[0]);
       marks[1] = (marks[1] & marks_dirty[1]) |
                  LACKS(marks_dirty[1], marks_medium[1])
    fi;
    for (i : 0 .. 1) {
        if
        :: !(super_dirty & (1 << i)) && super[i] != super_medium[i] ->
            if
            :: true
            :: super[i] = super_medium[i]
            fi
        :: else
        fi
    }
    for (i : 0 .. SLOTS - 1) {
        if
        :: !(dir_dirty & (1 << i)) && dir[i] != dir_medium[i] ->
            if
            :: true
            :: dir[i] = dir_medium[i]
            fi
        :: else
        fi
    }
    if
    :: true
    :: !header_dirty -> header = header_medium
    fi
}
#endif

/* --- The reader, and what it must find ----------------------------------- */

/* t_ok: it believes; t_gen: which generation, 0 for a sealed image */
inline reader()
{
    t_slot = SLOT(header);
    t_content = dir[t_slot];
    t_marks = 0;
    t_gen = 0;
    t_ok = 1;
    if
    :: KIND(header) == SEALED
    :: KIND(header) == BARE -> t_ok = 0
    :: KIND(header) == ARMED ->
        if
#ifdef M_NEWEST_WINS
        :: super[1] != NOTHING ->
#else
        :: super[1] == NAMES(t_slot, t_content) ->
#endif
            t_gen = 2;
            t_marks = marks[1]
        :: else ->
            if
            :: super[0] == NAMES(t_slot, t_content) ->
                t_gen = 1;
#ifdef M_ONE_GENERATION
                t_marks = marks[0]
#else
                t_marks = marks[0] | marks[1]
#endif
            :: else -> t_ok = 0
            fi
        fi
    fi
}

inline check()
{
    reader();
    assert(t_ok);
    for (b : 0 .. NB - 1) {
        if
        :: RECORDS(t_content, b) && (t_gen & CHUNKS) ->
            i = BITS(t_content, b) | t_marks
        :: else -> i = BITS(t_content, b)
        fi;
        assert(!LACKS(i, differs[b]));
#ifdef COMMANDS
        assert(!LACKS(i, promised[b]));
        assert(pending || unsure || RECORDS(t_content, b) == relied_on[b]);
        t_gen = t_gen | i << 4
#endif
    }
#ifdef COMMANDS
    assert(!LACKS(t_gen >> 4, either))
#endif
}

/* After a crash the file is opened again, or there is one life */
#ifdef ONE_LIFE
#define DEAD 99
#define BURY bury()
#else
#define DEAD 1
#define BURY skip
#endif

inline forget()
{
    for (b : 0 .. NB - 1) {
        bitmap[b] = 0;
        recording[b] = 0;
        changed[b] = 0;
        c_changed[b] = 0
    }
    sequence = 0;
    phase = STEADY;
    cur = 0; durable = 0; next = 0; gate = 0; old_cur = 0; old_durable = 0;
    in_force = 0; base = 0; other = 0; lock = 0; batch = 0; older = 0;
    for (i : 0 .. NW - 1) {
        w_step[i] = 0;
        w_chunk[i] = 0
    }
    c_step = 0; c_slot = 0; c_content = 0;
#ifdef COMMANDS
    unsure = unsure | (pending != 0);
    merging = 0; pending = 0; transaction = 0; job = 0;
    successor = 0;
    for (b : 0 .. NB - 1) {
        saved[b] = 0
    }
    relied_on[JOB] = 0;
    differs[JOB] = 0;
    differs_medium[JOB] = 0;
#endif
#ifdef FAILURES
    commit_spoiled = 0; c_spoiled = 0; fill_due = 0;
#endif
#ifdef ONE_LIFE
    o_step = DEAD
#else
    o_step = 1
#endif
}

#ifdef ONE_LIFE
inline bury()
{
    d_dirty = 0; d_other = 0;
    for (i : 0 .. 1) {
        marks[i] = 0; marks_medium[i] = 0; marks_dirty[i] = 0;
        super[i] = 0; super_medium[i] = 0
    }
    super_dirty = 0;
    for (i : 0 .. SLOTS - 1) {
        dir[i] = 0; dir_medium[i] = 0
    }
    dir_dirty = 0;
    header = 0; header_medium = 0; header_dirty = 0;
    for (b : 0 .. COPIES - 1) {
        differs[b] = 0;
        differs_medium[b] = 0
    }
#ifdef COMMANDS
    for (b : 0 .. NB - 1) {
        promised[b] = 0;
        relied_on[b] = 0
    }
    either = 0; unsure = 0;
#endif
#ifdef FAILURES
    failures = FAILURES
#endif
}
#endif

/* The header names the generation after: number anew, G is old */
inline renumber(slot)
{
    marks[0] = marks[1];
    marks_medium[0] = marks_medium[1];
    marks_dirty[0] = marks_dirty[1];
    marks[1] = 0; marks_medium[1] = 0; marks_dirty[1] = 0;
    super[0] = super[1];
    super_medium[0] = super_medium[1];
    super_dirty = super_dirty >> 1;
    super[1] = NOTHING; super_medium[1] = NOTHING;
    in_force = 0;
    free_others(slot)
}

inline free_others(slot)
{
    for (i : 0 .. SLOTS - 1) {
        if
        :: i != slot ->
            dir[i] = 0; dir_medium[i] = 0; dir_dirty = dir_dirty & ~(1 << i)
        :: else
        fi
    }
}

/* A slot that neither @one nor @two is */
inline choose_slot(result, one, two)
{
    result = 0;
    do
    :: result == one || result == two -> result++
    :: else -> break
    od
}

/* --- Requests ------------------------------------------------------------ */


#define CHUNK w_chunk[w]
#define QUIET (w_step[0] == 0 && w_step[NW - 1] == 0)

inline set_gate()
{
    if
#ifndef M_GATE_UNTOUCHED
    :: phase == OVERLAP -> gate = gate | (durable & next)
#endif
    :: else -> gate = gate | durable
    fi
}

proctype writer(byte w)
{
    do
    /* tracked */
    :: atomic {
#ifdef COMMANDS
        !o_step && w_step[w] == 0 && !transaction ->
#else
        !o_step && w_step[w] == 0 ->
#endif
        if
        :: CHUNK = 1
        :: CHUNK = 2
        fi;
        w_step[w] = 1;
        tidy()
    }
    /* test gate bits */
    :: atomic {
        w_step[w] == 1 ->
        if
        :: gate & CHUNK -> w_step[w] = 6
        :: else -> w_step[w] = 2
        fi;
        tidy()
    }
    /* touch */
    :: d_step {
        w_step[w] == 2 ->
        if
        :: phase == OVERLAP ->
            next = next | CHUNK;
            cur = cur | LACKS(durable, CHUNK)
        :: else -> cur = cur | CHUNK
        fi;
        w_step[w] = 3;
        tidy()
    }
    /* commit: take the commit lock, write */
    :: atomic {
        w_step[w] == 3 && !lock ->
        if
        :: durable & CHUNK ->
            set_gate();
            w_step[w] = 6
        :: else ->
            lock = w + 1;
            batch = cur;
            units_write(in_force, LACKS(durable, cur));
#ifdef M_GATE_EARLY
            durable = durable | batch;
            set_gate();
#endif
            w_step[w] = 4
        fi;
        tidy()
    }
    /* commit: flush */
    :: atomic {
        w_step[w] == 4 ->
#ifndef M_NO_COMMIT_FLUSH
        shell_flushed();
#endif
#ifdef FAILURES
        if
        :: commit_spoiled ->
            commit_spoiled = 0; lock = 0; batch = 0;
            w_step[w] = 3
        :: else -> w_step[w] = 5
        fi
#else
        w_step[w] = 5
#endif
        tidy()
    }
#ifdef FAILURES
    :: atomic {
        w_step[w] == 4 && failures < FAILURES ->
        shell_flush_fails();
        commit_spoiled = 0; lock = 0; batch = 0;
        w_step[w] = 3;
        tidy()
    }
#endif
    /* commit: durable, set gate bits */
    :: d_step {
        w_step[w] == 5 ->
        durable = durable | batch;
        set_gate();
        lock = 0; batch = 0;
        w_step[w] = 6;
        tidy()
    }
    /* write to the RW backing */
    :: atomic {
        w_step[w] == 6 ->
        disk_write(CHUNK);
        w_step[w] = 7;
        tidy()
    }
    /* dirty bits */
    :: d_step {
        w_step[w] == 7 ->
        for (b : 0 .. NB - 1) {
            if
#ifdef COMMANDS
            :: job && b == 0 -> successor = successor | CHUNK
            :: !(job && b == 0) && recording[b] ->
                bitmap[b] = bitmap[b] | CHUNK
#else
            :: recording[b] -> bitmap[b] = bitmap[b] | CHUNK
#endif
            :: else
            fi
        }
#ifdef SPLIT_END
        w_step[w] = 8;
        tidy()
    }
    /* the tracked request ends */
    :: d_step {
        w_step[w] == 8 ->
#endif
        older = older & ~(1 << w);
        CHUNK = 0;
        w_step[w] = 0;
        tidy()
    }
    od
}

/* --- The checkpoint ------------------------------------------------------ */

/* A bitmap as it is stored: what cannot have changed is shared with base */
inline read_bitmap(n)
{
#ifndef M_COMMANDS_SHARED
    c_changed[n] = c_changed[n] | changed[n];
#endif
    changed[n] = 0;
    if
    :: c_changed[n] -> t_marks = CHUNKS
    :: else -> t_marks = cur | next
    fi;
#ifdef M_PARENT_ONLY
    t_content = (bitmap[n] & t_marks) |
#else
    t_content = (STORED(n) & t_marks) |
#endif
                LACKS(t_marks, BITS(dir[base], n));
#ifdef M_FROZEN_DISABLED
    c_content = c_content | t_content << (2 * n) |
                (recording[n] && !(job && n == 0)) << (4 + n)
#else
    c_content = c_content | t_content << (2 * n) | recording[n] << (4 + n)
#endif
}

inline checkpoint_ends()
{
    c_step = 0; c_slot = 0; c_content = 0;
    for (b : 0 .. NB - 1) {
        changed[b] = changed[b] | c_changed[b];
        c_changed[b] = 0
    }
    next = 0;
    other = base;
    phase = STEADY
}

#ifdef COMMANDS
/* The user is told, if a checkpoint had what the command did */
inline command_returns(when)
{
    if
    :: pending == when ->
        promised[NB - 1] = promised[NB - 1] | merging;
        relied_on[NB - 1] = recording[NB - 1];
        merging = 0; either = 0;
        pending = 0
    :: else
    fi
}
#endif

proctype checkpoint()
{
    do
    /* 1 */
    :: d_step {
        !o_step && c_step == 0 ->
        next = 0;
#ifndef M_GATE_KEPT_1
        gate = 0;
#endif
        for (i : 0 .. NW - 1) {
            older = older | (w_step[i] != 0) << i
        }
        phase = OVERLAP;
#ifdef M_DISK_FLUSH_EARLY
        disk_written_back(d_dirty);
#endif
        c_step = 1;
        tidy()
    }
    /* 2 */
#if defined(M_NO_WAIT)
    :: d_step { c_step == 1 -> older = 0; c_step = 2; tidy() }
#elif defined(M_WAIT_CALLBACK)
    :: d_step {
        c_step == 1 && !((older & 1) && w_step[0] < 7) &&
        !((older & 2) && w_step[NW - 1] < 7) ->
        older = 0; c_step = 2;
        tidy()
    }
#else
    :: d_step {
        c_step == 1 && !older ->
#ifdef M_DISK_FLUSH_FIRST
        disk_written_back(d_dirty);
#endif
        c_step = 2;
        tidy()
    }
#endif
    /* 3: read contents */
    :: atomic {
#if defined(COMMANDS) && !defined(M_READ_IN_TRANSACTION)
        c_step == 2 && !transaction ->
#else
        c_step == 2 ->
#endif
#ifdef M_FREED_EARLY
        c_slot = base;
#else
        choose_slot(c_slot, base, other);
#endif
        sequence = 0;
        c_content = 0;
        read_bitmap(0);
#ifdef COMMANDS
        if
        :: pending == 1 -> pending = 2
        :: else
        fi;
#if NB > 1
        c_step = 3;
        tidy()
    }
    :: d_step {
        c_step == 3 ->
        read_bitmap(1);
#endif
        c_step = 4;
        tidy()
    }
    /* 3: write them, and the directory */
    :: atomic {
        c_step == 4 ->
#endif
        dir_write(c_slot, c_content);
#ifdef FAILURES
        c_spoiled = 0;
#endif
        c_step = 5;
        tidy()
    }
    /* 3: flush the RW backing */
    :: atomic {
#if defined(FAILURES) && !defined(M_FLUSHES_CROSS)
        c_step == 5 && !fill_due ->
#else
        c_step == 5 ->
#endif
#if !defined(M_NO_DISK_FLUSH) && !defined(M_DISK_FLUSH_FIRST) && \
    !defined(M_DISK_FLUSH_EARLY)
        disk_written_back(d_dirty);
#endif
#if defined(COMMANDS) && defined(M_NO_SEQUENCE)
        if
        :: pending == 1 -> pending = 2
        :: else
        fi;
        sequence = 0;
#endif
        if
        :: sequence -> sequence = 0; c_content = 0; c_step = 2
        :: else -> c_step = 6
        fi;
        tidy()
    }
#ifdef FAILURES
    :: atomic {
        c_step == 5 && !fill_due && failures < FAILURES ->
        disk_flush_fails();
        fill();
        checkpoint_ends();
        tidy()
    }
#endif
    /* 4: switch, write units and the superblock */
    :: atomic {
        c_step == 6 && !lock ->
        lock = NW + 1;
#ifdef M_RETRY_NEW_DIRECTORY
        if
        :: phase == SWITCHING -> next = cur
        :: else
        fi;
#endif
        old_cur = cur; old_durable = durable;
#ifdef M_NEXT_LOST
        cur = 0;
#else
        cur = next;
#endif
        durable = 0;
        next = 0;
        in_force = 1;
#ifdef M_GATE_NEW_4
        gate = CHUNKS;
#endif
        phase = SWITCHING;
        batch = cur;
        units_write(1, batch);
        super_write(1, NAMES(c_slot, c_content));
        c_content = 0;
        c_step = 7;
        tidy()
    }
    /* 4: flush */
#ifdef FAILURES
    :: atomic {
        c_step == 7 && (c_spoiled || failures < FAILURES) ->
        if
        :: c_spoiled -> shell_flushed()
        :: failures < FAILURES -> shell_flush_fails()
        fi;
        d_step {
#ifdef M_NEW_MARKS_LOST
            cur = old_cur;
#else
            cur = cur | old_cur;
#endif
            durable = old_durable;
            old_cur = 0; old_durable = 0; batch = 0;
            in_force = 0;
            c_spoiled = 0;
            lock = 0;
            checkpoint_ends()
        };
        tidy()
    }
    :: atomic {
        c_step == 7 && !c_spoiled ->
#else
    :: atomic {
        c_step == 7 ->
#endif
#ifndef M_NO_FLUSH_4
        shell_flushed();
#endif
        durable = batch;
        batch = 0; old_cur = 0; old_durable = 0;
        lock = 0;
        other = base;
        base = c_slot;
        for (b : 0 .. NB - 1) {
            c_changed[b] = 0
        }
        c_step = 8;
        tidy()
    }
    /* 5: header */
    :: atomic {
        c_step == 8 ->
        header_write(HEADER(ARMED, c_slot));
#ifdef FAILURES
        c_spoiled = 0;
#endif
        c_step = 9;
        tidy()
    }
    /* 5: flush */
#ifdef FAILURES
    :: atomic {
        c_step == 9 && (c_spoiled || failures < FAILURES) ->
        if
        :: c_spoiled -> shell_flushed()
        :: failures < FAILURES -> shell_flush_fails()
        fi;
        c_spoiled = 0;
#ifdef M_RETRY_NEW_DIRECTORY
        c_step = 2;
#else
        c_step = 8;
#endif
        tidy()
    }
    :: atomic {
        c_step == 9 && !c_spoiled ->
#else
    :: atomic {
        c_step == 9 ->
#endif
#ifndef M_NO_FLUSH_5
        shell_flushed();
#endif
        d_step {
            renumber(c_slot);
            checkpoint_ends();
#ifdef COMMANDS
            command_returns(2)
#endif
        };
        tidy()
    }
    od
}

/* --- Opening and leaving ------------------------------------------------- */

inline store_exactly(slot)
{
    t_content = 0;
    for (b : 0 .. NB - 1) {
        t_content = t_content | bitmap[b] << (2 * b) | recording[b] << (4 + b)
    }
    dir_write(slot, t_content)
}

proctype opener()
{
    do
    /* read the header and the log, recover */
    :: atomic {
        o_step == 1 ->
        d_step {
            reader();
            for (b : 0 .. NB - 1) {
                recording[b] = RECORDS(t_content, b);
                bitmap[b] = BITS(t_content, b) |
                            (recording[b] -> t_marks : 0)
            }
            base = t_slot;
            other = base
        }
        header_write(header);
        o_step = 2;
        tidy()
    }
    /* what has been read is durable, and nothing else is needed any more */
    :: atomic {
        o_step == 2 ->
#ifndef M_NO_FLUSH_OPEN
        shell_flushed();
#endif
        d_step {
            reader();
            if
            :: t_gen == 0 ->
                renumber(t_slot);
                renumber(t_slot)
            :: t_gen == 1 -> free_others(t_slot)
            :: t_gen == 2 -> renumber(t_slot)
            fi;
            cur = marks[1]
        }
        o_step = 3;
        tidy()
    }
    /* begin: store, flush the RW backing, write units and the superblock */
    :: atomic {
        o_step == 3 ->
        choose_slot(c_slot, base, other);
        store_exactly(c_slot);
        disk_written_back(d_dirty);
        units_write(1, cur);
        super_write(1, NAMES(c_slot, t_content));
        o_step = 4;
        tidy()
    }
    :: atomic { o_step == 4 -> shell_flushed(); o_step = 5; tidy() }
#ifdef FAILURES
    :: atomic {
        o_step == 2 && failures < FAILURES ->
        shell_flush_fails();
        header_write(header);
        tidy()
    }
    :: atomic { o_step == 4 && failures < FAILURES ->
        shell_flush_fails();
        o_step = 3;
        tidy()
    }
    :: atomic { o_step == 6 && failures < FAILURES ->
        shell_flush_fails();
        o_step = 5;
        tidy()
    }
#endif
    :: atomic {
        o_step == 5 ->
        header_write(HEADER(ARMED, c_slot));
        o_step = 6;
        tidy()
    }
    :: atomic {
        o_step == 6 ->
#ifndef M_NO_FLUSH_BEGIN
        shell_flushed();
#endif
        d_step {
            renumber(c_slot);
            durable = cur;
#ifdef COMMANDS
            for (b : 0 .. NB - 1) {
                relied_on[b] = recording[b]
            }
            unsure = 0;
            either = 0;
#endif
            base = c_slot;
            other = base;
            c_slot = 0;
            o_step = 0
        };
        tidy()
    }
#ifndef ONE_LIFE
    /* leave: cancel the checkpoint, flush the RW backing, store */
    :: atomic {
#ifdef FAILURES
        !o_step && !lock && QUIET && !fill_due ->
#elif defined(COMMANDS)
        !o_step && !lock && QUIET && !transaction && !pending && !job ->
#else
        !o_step && !lock && QUIET ->
#endif
#ifndef M_NO_DISK_FLUSH_LEAVE
        disk_written_back(d_dirty);
#endif
        choose_slot(c_slot, base, other);
        store_exactly(c_slot);
        d_step {
            c_content = 0; c_step = 0; older = 0;
            cur = 0; durable = 0; next = 0; gate = 0; in_force = 0;
            phase = STEADY;
            o_step = 10
        };
        tidy()
    }
#ifdef FAILURES
    :: atomic {
        !o_step && failures < FAILURES && QUIET &&
        d_dirty && !fill_due ->
        disk_flush_fails();
        fill();
        tidy()
    }
    :: atomic {
        o_step == 10 && failures < FAILURES ->
        shell_flush_fails();
        store_exactly(c_slot);
        tidy()
    }
    :: atomic {
        o_step == 12 && failures < FAILURES ->
        shell_flush_fails();
        o_step = 11;
        tidy()
    }
#endif
    :: atomic { o_step == 10 -> shell_flushed(); o_step = 11; tidy() }
    :: atomic {
        o_step == 11 ->
        header_write(HEADER(SEALED, c_slot));
        o_step = 12;
        tidy()
    }
    :: atomic { o_step == 12 -> shell_flushed(); forget(); tidy() }
#endif
    od
}

/* --- Crashes -------------------------------------------------------------- */

proctype crash()
{
    do
    /* what is cached stays, and is written back at some time */
    :: atomic {
        o_step != DEAD ->
#ifdef FAILURES
        some_evicted();
#endif
        d_step {
            check();
            forget();
            BURY
        };
        tidy()
    }
    /* each sector that was not flushed, and each chunk, is there or is not */
    :: atomic {
#ifdef ONE_LIFE
        o_step != DEAD ->
#else
        true ->
#endif
        some_written_back();
        some_of_disk_written_back();
        d_step {
            dropped();
            disk_dropped(CHUNKS);
            check();
            forget();
            BURY
        };
        tidy()
    }
    od
}

#ifdef FAILURES
/* --- Flushes of others, which fail ------------------------------------------ */

proctype others()
{
    do
    :: atomic {
        !o_step && failures < FAILURES && (lock || c_step >= 5) ->
        shell_flush_fails();
        tidy()
    }
    /* the disk has lost something */
    :: atomic {
        !o_step && failures < FAILURES && !fill_due && d_dirty ->
        disk_flush_fails();
        fill_due = 1;
        tidy()
    }
    /* we are told */
    :: d_step { fill_due -> fill(); fill_due = 0; tidy() }
    od
}
#endif

/* --- Others --------------------------------------------------------------- */

inline done(n)
{
    changed[n] = 1;
    sequence = READING
}

/* A backup has what is cached */
inline copied(n)
{
    differs[n] = 0;
    differs_medium[n] = d_other
}

#ifndef COMMANDS
proctype user()
{
    do
    :: d_step {
        !o_step ->
        bitmap[0] = 0;
        done(0);
        copied(0)
    }
    od
}
#else
inline job_ends()
{
    successor = 0;
    job = 0;
    relied_on[JOB] = 0;
    differs[JOB] = 0;
    differs_medium[JOB] = 0
}
#define MAY_COMMAND (!o_step && !pending && !transaction)

inline told_later()
{
    pending = 1;
#ifdef M_RETURN_EARLY
    command_returns(1)
#endif
}

proctype user()
{
    do
    /* clear; one that does not record says nothing of a backup before the
       command has returned */
    :: atomic {
        MAY_COMMAND && !job ->
        if
        :: t_slot = 0
        :: recording[NB - 1] -> t_slot = NB - 1
        fi;
        bitmap[t_slot] = 0;
        done(t_slot);
        copied(t_slot);
        promised[t_slot] = 0;
        told_later();
        tidy()
    }
#if NB > 1
    /* merge */
    :: d_step {
        (COMMANDS & 1) && MAY_COMMAND && !job ->
        bitmap[1] = bitmap[1] | bitmap[0];
        merging = bitmap[0];
        done(1);
        told_later();
        tidy()
    }
    /* disable: it may forget requests in flight */
    :: d_step {
        (COMMANDS & 2) && MAY_COMMAND && recording[1] ->
        recording[1] = 0;
        relied_on[1] = 0;
        for (i : 0 .. NW - 1) {
            if
            :: w_step[i] == 7 ->
                differs[1] = LACKS(w_chunk[i] & ~bitmap[1], differs[1]);
                differs_medium[1] = LACKS(w_chunk[i] & ~bitmap[1],
                                          differs_medium[1])
            :: else
            fi
        }
        done(1);
        told_later();
        tidy()
    }
    /* enable */
    :: d_step {
        (COMMANDS & 2) && MAY_COMMAND && !recording[1] ->
        recording[1] = 1;
        done(1);
        told_later();
        tidy()
    }
    /* transaction, prepare: merge, and clear what was merged */
    :: d_step {
        (COMMANDS & 4) && MAY_COMMAND && !job && QUIET ->
        transaction = 1;
        saved[0] = bitmap[0]; saved[1] = bitmap[1];
        bitmap[1] = bitmap[1] | bitmap[0];
        bitmap[0] = 0;
        done(0);
        done(1)
    }
    /* commit */
    :: d_step {
        transaction ->
        merging = saved[0];
        either = saved[0];
        saved[0] = 0; saved[1] = 0;
        copied(0);
        promised[0] = 0;
        transaction = 0;
        told_later()
    }
    /* abort */
    :: d_step {
        transaction ->
        bitmap[0] = saved[0]; bitmap[1] = saved[1];
        saved[0] = 0; saved[1] = 0;
        done(0);
        done(1);
        transaction = 0
    }
#endif
    /* a backup job begins */
    :: d_step {
        (COMMANDS & 8) && MAY_COMMAND && !job ->
        job = 1;
        copied(JOB);
        relied_on[JOB] = 1;
        done(0)
    }
    /* it succeeds: the successor takes over */
    :: d_step {
        !o_step && job && !transaction ->
        bitmap[0] = successor;
        differs[0] = differs[JOB];
        differs_medium[0] = differs_medium[JOB];
        promised[0] = 0;
        done(0);
        job_ends()
    }
    /* it fails: the successor is merged */
    :: d_step {
        !o_step && job && !transaction ->
        bitmap[0] = bitmap[0] | successor;
        done(0);
        job_ends()
    }
    od
}
#endif

init {
    atomic {
        header = HEADER(SEALED, 0);
        header_medium = header;
        for (b : 0 .. NB - 1) {
            dir[0] = dir[0] | 1 << (4 + b);
#ifdef COMMANDS
            relied_on[b] = 1
#endif
        }
        dir_medium[0] = dir[0];
        for (i : 0 .. 1) {
            super[i] = NOTHING;
            super_medium[i] = NOTHING
        }
        run writer(0);
#if WRITERS > 1
        run writer(1);
#endif
        run checkpoint();
        run opener();
        run user();
#ifdef FAILURES
        run others();
#endif
        run crash();
        tidy()
    }
}
