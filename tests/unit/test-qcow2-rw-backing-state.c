/*
 * qcow2 RW backing: what is known of a shell
 *
 * Goes through all states and events without any I/O, next to a model of the
 * file that knows what a crash may leave, and checks that whenever writes are
 * allowed, no crash leaves a file that vouches for bitmaps without them.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../../block/qcow2-rw-backing-state.h"

#define BARE    QCOW2_SHELL_HEADER_BARE
#define LOGGED  QCOW2_SHELL_HEADER_LOGGED
#define SAMPLED QCOW2_SHELL_HEADER_SAMPLED
#define EXACT   QCOW2_SHELL_HEADER_EXACT
#define BROKEN  QCOW2_SHELL_HEADER_BROKEN
#define SEALED  QCOW2_SHELL_HEADERS_SEALED
#define ANY     QCOW2_SHELL_HEADERS_ANY

static void test_may_write(void)
{
    unsigned int headers;
    int marks;

    for (headers = 1; headers < 2 * BROKEN; headers++) {
        for (marks = 0; marks < QCOW2_SHELL_MARKS__MAX; marks++) {
            bool in_use = marks == QCOW2_SHELL_MARKS_IN_USE;
            Qcow2ShellState state = { };

            qcow2_shell_state_read(&state, headers, marks);
            g_assert_cmpint(state.headers, ==, headers);
            g_assert_cmpint(state.marks, ==, marks);
            g_assert_cmpint(qcow2_shell_state_may_write(&state), ==,
                            headers == BROKEN || headers == (BROKEN | BARE) ||
                            (headers == BARE && in_use));
            g_assert_cmpint(qcow2_shell_state_may_write_marked(&state), ==,
                            in_use && (headers == BARE || headers == LOGGED ||
                                       headers == (BARE | LOGGED)));
        }
    }
}

/*
 * The file, as sets of what may be there after a crash.  Whether bitmaps are
 * believed takes a header that fits the RW backing, and, if it is a seal, a
 * bitmap that is not marked.
 */
typedef struct Model {
    unsigned int possible;      /* headers */
    unsigned int fits;          /* those of them that fit */
    bool unmarked;              /* the directory that we know */
    bool other_directory;       /* of a header that may have arrived */
} Model;

static void model_write(Model *model, unsigned int header)
{
    model->possible |= header;
    model->fits |= header;
    model->other_directory |= header & SEALED;
}

static void model_durable(Model *model, unsigned int header)
{
    model->possible = header;
    model->fits = header;
    model->other_directory = false;
    if (header != BARE) {
        model->unmarked = header & SEALED;
    }
}

static void model_event(Model *model, Qcow2ShellEvent event)
{
    switch (event) {
    case QCOW2_SHELL_UNSEALING:
        model_write(model, BARE);
        break;
    case QCOW2_SHELL_UNSEALED:
        model_durable(model, BARE);
        break;
    case QCOW2_SHELL_ARMING:
        model_write(model, LOGGED);
        break;
    case QCOW2_SHELL_ARMED:
        model_durable(model, LOGGED);
        break;
    case QCOW2_SHELL_SEALING_SAMPLED:
        model_write(model, SAMPLED);
        break;
    case QCOW2_SHELL_SEALED_SAMPLED:
        model_durable(model, SAMPLED);
        break;
    case QCOW2_SHELL_SEALING_EXACT:
        model_write(model, EXACT);
        break;
    case QCOW2_SHELL_SEALED_EXACT:
        model_durable(model, EXACT);
        break;
    case QCOW2_SHELL_MARKING:
        break;
    case QCOW2_SHELL_MARKED:
        model->unmarked = false;
        break;
    case QCOW2_SHELL_BROKE_SEAL:
        model->fits = 0;
        break;
    default:
        g_assert_not_reached();
    }
}

static void check(const Qcow2ShellState *state, const Model *model)
{
    unsigned int fits = model->possible & model->fits;
    bool unmarked = model->unmarked || model->other_directory;
    bool believed = (fits & SEALED) && unmarked;

    if (qcow2_shell_state_may_write(state)) {
        g_assert_false(believed);
        g_assert_cmpint(fits & LOGGED, ==, 0);
    }
    if (qcow2_shell_state_may_write_marked(state)) {
        g_assert_false(believed);
    }
    /* Whatever may be there is known to be possible */
    g_assert_cmpint(fits & ~BARE & ~state->headers, ==, 0);
    if (state->marks == QCOW2_SHELL_MARKS_IN_USE) {
        g_assert_false(unmarked);
    }
}

/* All sequences of events of this length, from a state that fits the model */
static void go(const Qcow2ShellState *before, const Model *model_before,
               int depth, unsigned long *count)
{
    Qcow2ShellEvent event;

    check(before, model_before);
    (*count)++;
    if (!depth) {
        return;
    }
    for (event = 0; event < QCOW2_SHELL_EVENT__MAX; event++) {
        Qcow2ShellState state = *before;
        Model model = *model_before;

        qcow2_shell_state_event(&state, event);
        model_event(&model, event);
        go(&state, &model, depth - 1, count);
    }
}

static void test_sequences(void)
{
    static const unsigned int found[] = { BARE, LOGGED, SAMPLED, EXACT, ANY };
    unsigned long count = 0, expected = 0;
    int i, marked;

    for (i = 0; i < ARRAY_SIZE(found); i++) {
        for (marked = 0; marked < 2; marked++) {
            Qcow2ShellState state = { };
            Model model = {
                .possible   = found[i],
                .fits       = found[i],
                .unmarked   = !marked,
            };

            qcow2_shell_state_read(&state, found[i],
                                   marked ? QCOW2_SHELL_MARKS_IN_USE
                                          : QCOW2_SHELL_MARKS_UNKNOWN);
            go(&state, &model, 5, &count);
        }
    }
    /* 10 states to begin with, 11 events, 0 to 5 of them */
    for (i = 0; i < 6; i++) {
        expected = 11 * expected + 10;
    }
    g_assert_cmpuint(count, ==, expected);
}

/* Nothing but a durable header makes an unknown one known */
static void test_unknown_stays(void)
{
    Qcow2ShellState state = { };

    qcow2_shell_state_read(&state, EXACT, QCOW2_SHELL_MARKS_NOT_IN_USE);
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALING);
    g_assert_cmpint(state.headers, ==, BARE | EXACT);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKING);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKED);
    g_assert_cmpint(state.headers, ==, BARE | EXACT);
    g_assert_false(qcow2_shell_state_may_write(&state));
    qcow2_shell_state_event(&state, QCOW2_SHELL_SEALING_SAMPLED);
    g_assert_cmpint(state.headers, ==, BARE | EXACT | SAMPLED);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKING);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKED);
    g_assert_cmpint(state.headers, ==, BARE | EXACT | SAMPLED);
    g_assert_false(qcow2_shell_state_may_write(&state));
    /* The directory that was marked need not have been the one that is there */
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALED);
    g_assert_false(qcow2_shell_state_may_write(&state));
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKING);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKED);
    g_assert_true(qcow2_shell_state_may_write(&state));
}

/* A log counts from when it may, and does not count when it need not */
static void test_log(void)
{
    Qcow2ShellState state = { };

    qcow2_shell_state_read(&state, EXACT, QCOW2_SHELL_MARKS_NOT_IN_USE);
    qcow2_shell_state_event(&state, QCOW2_SHELL_ARMING);
    g_assert_false(qcow2_shell_state_may_write_marked(&state));
    qcow2_shell_state_event(&state, QCOW2_SHELL_ARMED);
    g_assert_true(qcow2_shell_state_may_write_marked(&state));
    g_assert_false(qcow2_shell_state_may_write(&state));
    /* The next checkpoint, which may fail */
    qcow2_shell_state_event(&state, QCOW2_SHELL_ARMING);
    g_assert_true(qcow2_shell_state_may_write_marked(&state));
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALING);
    g_assert_true(qcow2_shell_state_may_write_marked(&state));
    g_assert_false(qcow2_shell_state_may_write(&state));
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALED);
    g_assert_true(qcow2_shell_state_may_write(&state));
}

static void test_verdict(void)
{
    Qcow2ShellState state = { };

    g_assert_cmpint(state.verdict, ==, QCOW2_SHELL_UNJUDGED);
    qcow2_shell_state_judge(&state, QCOW2_SHELL_TRUSTED);
    g_assert_cmpint(state.verdict, ==, QCOW2_SHELL_TRUSTED);
    qcow2_shell_state_judge(&state, QCOW2_SHELL_DISTRUSTED);
    qcow2_shell_state_judge(&state, QCOW2_SHELL_TRUSTED);
    g_assert_cmpint(state.verdict, ==, QCOW2_SHELL_DISTRUSTED);
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALED);
    g_assert_cmpint(state.verdict, ==, QCOW2_SHELL_DISTRUSTED);
    qcow2_shell_state_event(&state, QCOW2_SHELL_SEALING_SAMPLED);
    g_assert_cmpint(state.verdict, ==, QCOW2_SHELL_DISTRUSTED);
    qcow2_shell_state_event(&state, QCOW2_SHELL_SEALED_SAMPLED);
    g_assert_cmpint(state.verdict, ==, QCOW2_SHELL_TRUSTED);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/qcow2-rw-backing-state/may-write", test_may_write);
    g_test_add_func("/qcow2-rw-backing-state/no-crash-leaves-a-lie",
                    test_sequences);
    g_test_add_func("/qcow2-rw-backing-state/unknown-stays-unknown",
                    test_unknown_stays);
    g_test_add_func("/qcow2-rw-backing-state/log", test_log);
    g_test_add_func("/qcow2-rw-backing-state/verdict", test_verdict);

    return g_test_run();
}
