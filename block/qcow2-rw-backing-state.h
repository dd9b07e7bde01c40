/*
 * qcow2 RW backing: what is known of a shell
 *
 * Three questions that must not be mixed: what would a program find in the
 * file if QEMU crashed now, is what the file says about bitmaps to be believed,
 * and is its metadata sound.  The answers change in one place, by a table, and
 * one predicate says whether the RW backing may be written to.  Knows no block
 * device, so that unit tests go through all of it.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_QCOW2_RW_BACKING_STATE_H
#define BLOCK_QCOW2_RW_BACKING_STATE_H

/*
 * The guard extension in the file, which makes a reader believe the bitmaps if
 * the RW backing looks as recorded.
 */
typedef enum Qcow2ShellSeal {
    /* A write has failed, or is under way: whatever was or will be there */
    QCOW2_SHELL_SEAL_UNKNOWN,
    /* The same, but whatever is there, its evidence notices every write */
    QCOW2_SHELL_SEAL_NONE_OR_EXACT,
    /* There is none, nobody believes the bitmaps */
    QCOW2_SHELL_SEAL_NONE,
    /* There may be one, but of an RW backing that looks otherwise since */
    QCOW2_SHELL_SEAL_BROKEN,
    /* Its evidence does not notice every write */
    QCOW2_SHELL_SEAL_SAMPLED,
    /* Its evidence notices every write, unless the host crashes */
    QCOW2_SHELL_SEAL_EXACT,
    QCOW2_SHELL_SEAL__MAX
} Qcow2ShellSeal;

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
    /* A header without a seal is on its way, then it is durable */
    QCOW2_SHELL_UNSEALING,
    QCOW2_SHELL_UNSEALED,
    /*
     * A header with a seal is on its way, and with it the directory that it
     * refers to; then both are durable
     */
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
    Qcow2ShellSeal seal;
    Qcow2ShellMarks marks;
    Qcow2ShellVerdict verdict;

    /* Part of the metadata was not usable: no new bitmaps are stored */
    bool needs_repair;

    /*
     * The RW backing may be written to, which follows from @seal and @marks.
     * Read in the path of each write, by any thread; changes only while the
     * node is quiesced or under BDRVQcow2State.lock.
     */
    bool may_write;
} Qcow2ShellState;

/**
 * qcow2_shell_state_read:
 * @seal: what was found in the file
 * @marks: likewise
 *
 * Begins with what a file says that nobody else writes to.
 */
void qcow2_shell_state_read(Qcow2ShellState *state, Qcow2ShellSeal seal,
                            Qcow2ShellMarks marks);

/* Goes to the state after @event.  There is no way to go back. */
void qcow2_shell_state_event(Qcow2ShellState *state, Qcow2ShellEvent event);

/* Takes @verdict, unless the bitmaps are distrusted already. */
void qcow2_shell_state_judge(Qcow2ShellState *state,
                             Qcow2ShellVerdict verdict);

#endif
