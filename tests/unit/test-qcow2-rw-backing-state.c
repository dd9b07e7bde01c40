/*
 * qcow2 RW backing: what is known of a shell
 *
 * Goes through all states and events without any I/O, next to a model of the
 * file that knows what a crash may leave, and checks that whenever writes are
 * allowed, no crash leaves a file that vouches for its bitmaps.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "../../block/qcow2-rw-backing-state.h"

static const Qcow2ShellSeal seals[] = {
    QCOW2_SHELL_SEAL_UNKNOWN, QCOW2_SHELL_SEAL_NONE_OR_EXACT,
    QCOW2_SHELL_SEAL_NONE, QCOW2_SHELL_SEAL_BROKEN,
    QCOW2_SHELL_SEAL_SAMPLED, QCOW2_SHELL_SEAL_EXACT,
};

static const Qcow2ShellMarks all_marks[] = {
    QCOW2_SHELL_MARKS_UNKNOWN, QCOW2_SHELL_MARKS_IN_DOUBT,
    QCOW2_SHELL_MARKS_IN_USE, QCOW2_SHELL_MARKS_NOT_IN_USE,
};

static void test_may_write(void)
{
    int i, j;

    g_assert_cmpint(ARRAY_SIZE(seals), ==, QCOW2_SHELL_SEAL__MAX);
    g_assert_cmpint(ARRAY_SIZE(all_marks), ==, QCOW2_SHELL_MARKS__MAX);

    for (i = 0; i < ARRAY_SIZE(seals); i++) {
        for (j = 0; j < ARRAY_SIZE(all_marks); j++) {
            Qcow2ShellState state = { };
            bool expected = seals[i] == QCOW2_SHELL_SEAL_BROKEN ||
                (seals[i] == QCOW2_SHELL_SEAL_NONE &&
                 all_marks[j] == QCOW2_SHELL_MARKS_IN_USE);

            qcow2_shell_state_read(&state, seals[i], all_marks[j]);
            g_assert_cmpint(state.seal, ==, seals[i]);
            g_assert_cmpint(state.marks, ==, all_marks[j]);
            g_assert_cmpint(state.may_write, ==, expected);
        }
    }
}

/*
 * The file, as sets of what may be there after a crash.  Whether bitmaps are
 * believed takes a seal and a bitmap that is not marked.
 */
typedef struct Model {
    bool seal_possible;
    bool sampled_possible;      /* a seal that does not notice each write */
    bool no_seal_possible;
    bool fits;                  /* does the RW backing look as recorded? */
    bool unmarked;              /* the directory that we know */
    bool other_directory;       /* of a header that may have arrived */
} Model;

static void model_event(Model *model, Qcow2ShellEvent event)
{
    switch (event) {
    case QCOW2_SHELL_UNSEALING:
        model->no_seal_possible = true;
        break;
    case QCOW2_SHELL_UNSEALED:
        model->seal_possible = false;
        model->sampled_possible = false;
        model->no_seal_possible = true;
        model->other_directory = false;
        break;
    case QCOW2_SHELL_SEALING_SAMPLED:
        model->sampled_possible = true;
        /* fall through */
    case QCOW2_SHELL_SEALING_EXACT:
        model->seal_possible = true;
        model->other_directory = true;
        model->fits = true;
        break;
    case QCOW2_SHELL_SEALED_SAMPLED:
    case QCOW2_SHELL_SEALED_EXACT:
        model->sampled_possible = event == QCOW2_SHELL_SEALED_SAMPLED;
        model->seal_possible = true;
        model->no_seal_possible = false;
        model->unmarked = true;
        model->other_directory = false;
        model->fits = true;
        break;
    case QCOW2_SHELL_MARKING:
        break;
    case QCOW2_SHELL_MARKED:
        model->unmarked = false;
        break;
    case QCOW2_SHELL_BROKE_SEAL:
        model->fits = false;
        break;
    default:
        g_assert_not_reached();
    }
}

static void check(const Qcow2ShellState *state, const Model *model)
{
    bool unmarked = model->unmarked || model->other_directory;
    bool believed = model->seal_possible && model->fits && unmarked;

    if (state->may_write) {
        g_assert_false(believed);
    }
    /* What is said to be known is known */
    if (state->seal == QCOW2_SHELL_SEAL_NONE) {
        g_assert_false(model->seal_possible);
    }
    if (state->seal == QCOW2_SHELL_SEAL_SAMPLED ||
        state->seal == QCOW2_SHELL_SEAL_EXACT) {
        g_assert_false(model->no_seal_possible);
    }
    if (state->seal == QCOW2_SHELL_SEAL_NONE_OR_EXACT ||
        state->seal == QCOW2_SHELL_SEAL_EXACT) {
        g_assert_false(model->sampled_possible);
    }
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
    unsigned long count = 0;
    int seal, marked;

    for (seal = 0; seal < 4; seal++) {
        for (marked = 0; marked < 2; marked++) {
            static const Qcow2ShellSeal found[] = {
                QCOW2_SHELL_SEAL_NONE, QCOW2_SHELL_SEAL_SAMPLED,
                QCOW2_SHELL_SEAL_EXACT, QCOW2_SHELL_SEAL_UNKNOWN,
            };
            Qcow2ShellState state = { };
            Model model = {
                .seal_possible     = seal > 0,
                .sampled_possible  = seal == 1 || seal == 3,
                .no_seal_possible  = seal == 0 || seal == 3,
                .fits              = true,
                .unmarked          = !marked,
            };

            qcow2_shell_state_read(&state, found[seal],
                                   marked ? QCOW2_SHELL_MARKS_IN_USE
                                          : QCOW2_SHELL_MARKS_UNKNOWN);
            go(&state, &model, 6, &count);
        }
    }
    /* 8 states to begin with, 9 events, 0 to 6 of them */
    g_assert_cmpuint(count, ==, 8UL * (9 * 9 * 9 * 9 * 9 * 9 * 9 - 1) / 8);
}

/* Nothing but a durable header makes an unknown one known */
static void test_unknown_stays(void)
{
    Qcow2ShellState state = { };

    qcow2_shell_state_read(&state, QCOW2_SHELL_SEAL_EXACT,
                           QCOW2_SHELL_MARKS_NOT_IN_USE);
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALING);
    g_assert_cmpint(state.seal, ==, QCOW2_SHELL_SEAL_NONE_OR_EXACT);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKING);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKED);
    g_assert_cmpint(state.seal, ==, QCOW2_SHELL_SEAL_NONE_OR_EXACT);
    g_assert_false(state.may_write);
    qcow2_shell_state_event(&state, QCOW2_SHELL_SEALING_SAMPLED);
    g_assert_cmpint(state.seal, ==, QCOW2_SHELL_SEAL_UNKNOWN);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKING);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKED);
    g_assert_cmpint(state.seal, ==, QCOW2_SHELL_SEAL_UNKNOWN);
    g_assert_false(state.may_write);
    /* The directory that was marked need not have been the one that is there */
    qcow2_shell_state_event(&state, QCOW2_SHELL_UNSEALED);
    g_assert_false(state.may_write);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKING);
    qcow2_shell_state_event(&state, QCOW2_SHELL_MARKED);
    g_assert_true(state.may_write);
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
    g_test_add_func("/qcow2-rw-backing-state/verdict", test_verdict);

    return g_test_run();
}
