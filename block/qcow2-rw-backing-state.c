/*
 * qcow2 RW backing: what is known of a shell
 *
 * A write that a bitmap does not know makes it silently wrong if the file can
 * be believed later on.  So the order is always: the file is made to say that
 * its bitmaps are not to be believed (unsealed, marked), this is durable, then
 * the RW backing is written to.  And on the way back: the RW backing is
 * durable, the bitmaps are durable, then the file says so (sealed).
 *
 * Between the begin of a write to the header and the end of the flush after it,
 * either header may be what a crash leaves.  That is "unknown", and stays so if
 * the write or the flush fails: a later success of something else proves
 * nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qcow2-rw-backing-state.h"

#define UNKNOWN QCOW2_SHELL_SEAL_UNKNOWN
#define NOR_EX  QCOW2_SHELL_SEAL_NONE_OR_EXACT
#define NONE    QCOW2_SHELL_SEAL_NONE
#define BROKEN  QCOW2_SHELL_SEAL_BROKEN
#define SAMPLED QCOW2_SHELL_SEAL_SAMPLED
#define EXACT   QCOW2_SHELL_SEAL_EXACT

/*
 * What becomes of the seal.  A header without a seal cannot bring one back, so
 * that it does no harm where there was none, however it ends.
 */
static const int seal_after[QCOW2_SHELL_EVENT__MAX][QCOW2_SHELL_SEAL__MAX] = {
    /*  UNKNOWN  NOR_EX   NONE     BROKEN   SAMPLED  EXACT     before */
    [QCOW2_SHELL_UNSEALING] = {
        UNKNOWN, NOR_EX,  NONE,    BROKEN,  UNKNOWN, NOR_EX
    },
    [QCOW2_SHELL_UNSEALED] = {
        NONE,    NONE,    NONE,    NONE,    NONE,    NONE
    },
    [QCOW2_SHELL_SEALING_SAMPLED] = {
        UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN
    },
    [QCOW2_SHELL_SEALED_SAMPLED] = {
        SAMPLED, SAMPLED, SAMPLED, SAMPLED, SAMPLED, SAMPLED
    },
    /* A broken seal may be a sampled one, and fit the next record again */
    [QCOW2_SHELL_SEALING_EXACT] = {
        UNKNOWN, NOR_EX,  NOR_EX,  UNKNOWN, UNKNOWN, NOR_EX
    },
    [QCOW2_SHELL_SEALED_EXACT] = {
        EXACT,   EXACT,   EXACT,   EXACT,   EXACT,   EXACT
    },
    [QCOW2_SHELL_MARKING] = {
        UNKNOWN, NOR_EX,  NONE,    BROKEN,  SAMPLED, EXACT
    },
    [QCOW2_SHELL_MARKED] = {
        UNKNOWN, NOR_EX,  NONE,    BROKEN,  SAMPLED, EXACT
    },
    /* Whoever says so has made sure that no seal fits, or there is none */
    [QCOW2_SHELL_BROKE_SEAL] = {
        BROKEN,  BROKEN,  BROKEN,  BROKEN,  BROKEN,  BROKEN
    },
};

/*
 * What becomes of the marks.  As long as a header with a new directory may have
 * arrived, marks in the old one prove nothing.
 */
static const int marks_after[QCOW2_SHELL_EVENT__MAX][QCOW2_SHELL_MARKS__MAX] = {
#define M(name) QCOW2_SHELL_MARKS_##name
    /*  UNKNOWN        IN_DOUBT       IN_USE         NOT_IN_USE     before */
    [QCOW2_SHELL_UNSEALING] = {
        M(UNKNOWN),    M(IN_DOUBT),   M(IN_USE),     M(NOT_IN_USE)
    },
    [QCOW2_SHELL_UNSEALED] = {
        M(UNKNOWN),    M(UNKNOWN),    M(IN_USE),     M(NOT_IN_USE)
    },
    [QCOW2_SHELL_SEALING_SAMPLED] = {
        M(IN_DOUBT),   M(IN_DOUBT),   M(IN_DOUBT),   M(IN_DOUBT)
    },
    [QCOW2_SHELL_SEALED_SAMPLED] = {
        M(NOT_IN_USE), M(NOT_IN_USE), M(NOT_IN_USE), M(NOT_IN_USE)
    },
    [QCOW2_SHELL_SEALING_EXACT] = {
        M(IN_DOUBT),   M(IN_DOUBT),   M(IN_DOUBT),   M(IN_DOUBT)
    },
    [QCOW2_SHELL_SEALED_EXACT] = {
        M(NOT_IN_USE), M(NOT_IN_USE), M(NOT_IN_USE), M(NOT_IN_USE)
    },
    [QCOW2_SHELL_MARKING] = {
        M(UNKNOWN),    M(IN_DOUBT),   M(UNKNOWN),    M(UNKNOWN)
    },
    [QCOW2_SHELL_MARKED] = {
        M(IN_USE),     M(IN_DOUBT),   M(IN_USE),     M(IN_USE)
    },
    [QCOW2_SHELL_BROKE_SEAL] = {
        M(UNKNOWN),    M(IN_DOUBT),   M(IN_USE),     M(NOT_IN_USE)
    },
#undef M
};

/*
 * A seal that is not there is enough for readers that look at the RW backing,
 * marks are enough for all; both have to be right, since neither costs anything
 * by then.  A broken seal is for files that cannot be written any more.
 */
static bool may_write(const Qcow2ShellState *state)
{
    return state->seal == QCOW2_SHELL_SEAL_BROKEN ||
           (state->seal == QCOW2_SHELL_SEAL_NONE &&
            state->marks == QCOW2_SHELL_MARKS_IN_USE);
}

void qcow2_shell_state_read(Qcow2ShellState *state, Qcow2ShellSeal seal,
                            Qcow2ShellMarks marks)
{
    state->seal = seal;
    state->marks = marks;
    state->may_write = may_write(state);
}

void qcow2_shell_state_event(Qcow2ShellState *state, Qcow2ShellEvent event)
{
    assert(event < QCOW2_SHELL_EVENT__MAX);

    state->seal = seal_after[event][state->seal];
    state->marks = marks_after[event][state->marks];
    if (event == QCOW2_SHELL_SEALED_SAMPLED ||
        event == QCOW2_SHELL_SEALED_EXACT) {
        /* We have stored what is there ourselves */
        state->verdict = QCOW2_SHELL_TRUSTED;
    }
    state->may_write = may_write(state);
}

void qcow2_shell_state_judge(Qcow2ShellState *state,
                             Qcow2ShellVerdict verdict)
{
    if (state->verdict != QCOW2_SHELL_DISTRUSTED) {
        state->verdict = verdict;
    }
}
