/*
 * qcow2 RW backing: what is known of a shell
 *
 * Three questions that must not be mixed: what would a program find in the
 * file if QEMU crashed now, is what the file says about bitmaps to be believed,
 * and is its metadata sound.  The answers change in one place, by a table, and
 * two predicates say which writes may go to the RW backing.  Knows no block
 * device, so that unit tests go through all of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_STATE_H
#define BLOCK_QCOW2_RW_BACKING_STATE_H

/*
 * What a header says of the RW backing.  As a set: all headers that a crash may
 * leave now.
 */
typedef enum Qcow2ShellHeader {
    /* Nothing: nobody believes the bitmaps */
    QCOW2_SHELL_HEADER_BARE         = 1 << 0,
    /* Bitmaps are believed together with what the write-intent log adds */
    QCOW2_SHELL_HEADER_LOGGED       = 1 << 1,
    /* Sealed with evidence that does not notice every write */
    QCOW2_SHELL_HEADER_SAMPLED      = 1 << 2,
    /* Sealed with evidence that notices every write, unless the host crashes */
    QCOW2_SHELL_HEADER_EXACT        = 1 << 3,
    /* One of the others, but of an RW backing that looks otherwise since */
    QCOW2_SHELL_HEADER_BROKEN       = 1 << 4,
} Qcow2ShellHeader;

#define QCOW2_SHELL_HEADERS_SEALED  (QCOW2_SHELL_HEADER_SAMPLED | \
                                     QCOW2_SHELL_HEADER_EXACT)
/* After something has failed about which nothing is known */
#define QCOW2_SHELL_HEADERS_ANY     (QCOW2_SHELL_HEADER_BARE | \
                                     QCOW2_SHELL_HEADER_LOGGED | \
                                     QCOW2_SHELL_HEADERS_SEALED)

/* What the bitmap directory in the file says of all bitmaps */
typedef enum Qcow2ShellMarks {
    QCOW2_SHELL_MARKS_UNKNOWN,
    /* There may be a header with another directory, which is not marked */
    QCOW2_SHELL_MARKS_IN_DOUBT,
    /* All are in use: not to be believed, whatever the seal says */
    QCOW2_SHELL_MARKS_IN_USE,
    /* At least one is not */
    QCOW2_SHELL_MARKS_NOT_IN_USE,
    QCOW2_SHELL_MARKS__MAX
} Qcow2ShellMarks;

/* Do we believe what the file says of bitmaps? */
typedef enum Qcow2ShellVerdict {
    /* Not asked yet, or the RW backing is not there to be asked */
    QCOW2_SHELL_UNJUDGED,
    QCOW2_SHELL_TRUSTED,
    /* Once distrusted, the bitmaps stay so until new ones are stored */
    QCOW2_SHELL_DISTRUSTED,
    QCOW2_SHELL_VERDICT__MAX
} Qcow2ShellVerdict;

/* What happens to the file */
typedef enum Qcow2ShellEvent {
    /* A bare header is on its way, then it is durable */
    QCOW2_SHELL_UNSEALING,
    QCOW2_SHELL_UNSEALED,
    /*
     * The same for one that lets the log count, and with it the directory that
     * it refers to, in which all bitmaps are in use
     */
    QCOW2_SHELL_ARMING,
    QCOW2_SHELL_ARMED,
    /* The same for a seal, with a directory in which they are not in use */
    QCOW2_SHELL_SEALING_SAMPLED,
    QCOW2_SHELL_SEALED_SAMPLED,
    QCOW2_SHELL_SEALING_EXACT,
    QCOW2_SHELL_SEALED_EXACT,
    /*
     * The marks are being set in the directory that we know, then they are
     * durable
     */
    QCOW2_SHELL_MARKING,
    QCOW2_SHELL_MARKED,
    /* The RW backing was made to look otherwise, durably */
    QCOW2_SHELL_BROKE_SEAL,
    QCOW2_SHELL_EVENT__MAX
} Qcow2ShellEvent;

typedef struct Qcow2ShellState {
    unsigned int headers;       /* set of Qcow2ShellHeader */
    Qcow2ShellMarks marks;
    Qcow2ShellVerdict verdict;

    /* Part of the metadata was not usable: no new bitmaps are stored */
    bool needs_repair;
} Qcow2ShellState;

/**
 * qcow2_shell_state_read:
 * @headers: what was found in the file
 * @marks: likewise
 *
 * Begins with what a file says that nobody else writes to.
 */
void qcow2_shell_state_read(Qcow2ShellState *state, unsigned int headers,
                            Qcow2ShellMarks marks);

/* Goes to the state after @event.  There is no way to go back. */
void qcow2_shell_state_event(Qcow2ShellState *state, Qcow2ShellEvent event);

/* Takes @verdict, unless the bitmaps are distrusted already. */
void qcow2_shell_state_judge(Qcow2ShellState *state,
                             Qcow2ShellVerdict verdict);

/* May the RW backing be written to, whatever the log says? */
bool qcow2_shell_state_may_write(const Qcow2ShellState *state);

/* May the RW backing be written to where the log has a mark? */
bool qcow2_shell_state_may_write_marked(const Qcow2ShellState *state);

#endif
