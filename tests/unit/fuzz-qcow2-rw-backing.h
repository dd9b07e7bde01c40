/*
 * Fuzz targets of qcow2 RW backing: what targets and driver share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef FUZZ_QCOW2_RW_BACKING_H
#define FUZZ_QCOW2_RW_BACKING_H

typedef struct FuzzTarget {
    /* Appears in the names of tests and files */
    const char *name;

    /* Called once, before anything else */
    void (*init)(void);

    /* Adds inputs to start from with fuzz_seed_add() */
    void (*make_seeds)(void);

    /* Tries one input, and aborts if a promise is broken */
    void (*one_input)(const uint8_t *data, size_t len);

    /* How many mutated inputs a unit test can try in a few seconds */
    unsigned mutations;
} FuzzTarget;

/* Adds a copy of @data to the inputs to start from. */
void fuzz_seed_add(const char *name, const void *data, size_t len);

/**
 * fuzz_main:
 *
 * Built with clang's -fsanitize=fuzzer-no-link, the program is a libFuzzer
 * fuzzer, and "--seeds DIR" makes it write its seeds there.  Otherwise it is a
 * unit test that tries the seeds, a fixed sequence of mutations of them, and
 * any files that are given as arguments.
 */
int fuzz_main(int argc, char **argv, const FuzzTarget *target);

/* Of libFuzzer, which has no header for it */
int LLVMFuzzerRunDriver(int *argc, char ***argv,
                        int (*one_input)(const uint8_t *data, size_t len));

#endif
