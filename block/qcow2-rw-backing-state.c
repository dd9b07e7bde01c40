/*
 * qcow2 RW backing: what is known of a shell
 *
 * A write that a bitmap does not know makes it silently wrong if the file can
 * be believed later on.  So the order is always: the file is made to say that
 * its bitmaps are not to be believed (unsealed, marked), or not without the log
 * (armed); this is durable, then the RW backing is written to.  And on the way
 * back: the RW backing is durable, the bitmaps are durable, then the file says
 * so (sealed).
 *
 * Between the begin of a write to the header and the end of the flush after it,
 * either header may be what a crash leaves.  So what is known is a set, which
 * grows when a write begins, and becomes a single header when its flush has
 * succeeded.  If the write or the flush fails, it stays as it is: a later
 * success of something else proves nothing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qcow2-rw-backing-state.h"

#define H(name) QCOW2_SHELL_HEADER_##name

/* The header that is on its way, or durable */
static const struct {
    Qcow2ShellHeader header;
    bool durable;
} header_of[QCOW2_SHELL_EVENT__MAX] = {
    [QCOW2_SHELL_UNSEALING]         = { H(BARE),    false },
    [QCOW2_SHELL_UNSEALED]          = { H(BARE),    true },
    [QCOW2_SHELL_ARMING]            = { H(LOGGED),  false },
    [QCOW2_SHELL_ARMED]             = { H(LOGGED),  true },
    [QCOW2_SHELL_SEALING_SAMPLED]   = { H(SAMPLED), false },
    [QCOW2_SHELL_SEALED_SAMPLED]    = { H(SAMPLED), true },
    [QCOW2_SHELL_SEALING_EXACT]     = { H(EXACT),   false },
    [QCOW2_SHELL_SEALED_EXACT]      = { H(EXACT),   true },
    /* Whoever says so has made sure that no header is believed */
    [QCOW2_SHELL_BROKE_SEAL]        = { H(BROKEN),  true },
};

static unsigned int headers_after(unsigned int headers, Qcow2ShellEvent event)
{
    Qcow2ShellHeader header = header_of[event].header;

    if (header_of[event].durable) {
        return header;
    }
    /* A broken seal may be a sampled one, and fit the next record again */
    if ((headers & H(BROKEN)) && (header & ~H(BARE))) {
        return QCOW2_SHELL_HEADERS_ANY;
    }
    return headers | header;
}

/*
 * What becomes of the marks.  As long as a header with a new directory may have
 * arrived that is not marked, marks in the old one prove nothing.
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
    [QCOW2_SHELL_ARMING] = {
        M(UNKNOWN),    M(IN_DOUBT),   M(IN_USE),     M(NOT_IN_USE)
    },
    [QCOW2_SHELL_ARMED] = {
        M(IN_USE),     M(IN_USE),     M(IN_USE),     M(IN_USE)
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
 * A header without a seal is enough for readers that look at the RW backing,
 * marks are enough for all; both have to be right, since neither costs anything
 * by then.  A broken seal is for files that cannot be written any more.
 */
bool qcow2_shell_state_may_write(const Qcow2ShellState *state)
{
    return !(state->headers & ~(H(BARE) | H(BROKEN))) &&
           ((state->headers & H(BROKEN)) ||
            state->marks == QCOW2_SHELL_MARKS_IN_USE);
}

bool qcow2_shell_state_may_write_marked(const Qcow2ShellState *state)
{
    return !(state->headers & ~(H(BARE) | H(LOGGED))) &&
           state->marks == QCOW2_SHELL_MARKS_IN_USE;
}

void qcow2_shell_state_read(Qcow2ShellState *state, unsigned int headers,
                            Qcow2ShellMarks marks)
{
    state->headers = headers;
    state->marks = marks;
}

void qcow2_shell_state_event(Qcow2ShellState *state, Qcow2ShellEvent event)
{
    assert(event < QCOW2_SHELL_EVENT__MAX);

    if (header_of[event].header) {
        state->headers = headers_after(state->headers, event);
    }
    state->marks = marks_after[event][state->marks];
    if (header_of[event].durable &&
        (header_of[event].header & (QCOW2_SHELL_HEADERS_SEALED | H(LOGGED)))) {
        /* We have stored what is there ourselves */
        state->verdict = QCOW2_SHELL_TRUSTED;
    }
}

void qcow2_shell_state_judge(Qcow2ShellState *state,
                             Qcow2ShellVerdict verdict)
{
    if (state->verdict != QCOW2_SHELL_DISTRUSTED) {
        state->verdict = verdict;
    }
}
