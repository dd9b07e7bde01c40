/*
 * Fuzz targets of qcow2 RW backing: driver
 *
 * Runs a target in one of two ways: under libFuzzer, which looks for new code
 * paths as long as it is let, or as an ordinary unit test, which needs neither
 * clang nor time, and does the same every time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "fuzz-qcow2-rw-backing.h"

/* Mutated inputs do not grow beyond this */
#define MAX_INPUT_LEN   (64 * 1024)

typedef struct Seed {
    char *name;
    GByteArray *data;
} Seed;

static const FuzzTarget *target;
static GArray *seeds;

void fuzz_seed_add(const char *name, const void *data, size_t len)
{
    Seed seed = {
        .name = g_strdup(name),
        .data = g_byte_array_append(g_byte_array_new(), data, len),
    };

    g_array_append_val(seeds, seed);
}

static void prepare(const FuzzTarget *t)
{
    target = t;
    seeds = g_array_new(false, false, sizeof(Seed));
    /* What is wrong with each input is of no interest */
    g_setenv("QTEST_SILENT_ERRORS", "1", true);
    target->init();
    target->make_seeds();
}

#ifdef FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION

static int one_input(const uint8_t *data, size_t len)
{
    target->one_input(data, len);
    return 0;
}

static void write_seeds(const char *directory)
{
    for (int i = 0; i < seeds->len; i++) {
        Seed *seed = &g_array_index(seeds, Seed, i);
        g_autofree char *path = g_build_filename(directory, seed->name, NULL);
        g_autoptr(GError) err = NULL;

        if (!g_file_set_contents(path, (const char *)seed->data->data,
                                 seed->data->len, &err)) {
            g_error("%s", err->message);
        }
    }
}

int fuzz_main(int argc, char **argv, const FuzzTarget *t)
{
    char *test_args[] = { argv[0], NULL };
    char **test_argv = test_args;
    int test_argc = 1;
    sigset_t set;

    g_test_init(&test_argc, &test_argv, NULL);
    prepare(t);
    if (argc == 3 && !strcmp(argv[1], "--seeds")) {
        write_seeds(argv[2]);
        return 0;
    }

    /* libFuzzer's clock, which QEMU's main loop blocks */
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);

    return LLVMFuzzerRunDriver(&argc, &argv, one_input);
}

#else

/* A sequence of numbers that is the same everywhere (xorshift64) */
static uint64_t random_state = 0x5257424b52574247;

static uint64_t next_random(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* A number that may confuse a parser */
static uint64_t next_number(void)
{
    static const uint64_t numbers[] = {
        0, 1, 2, 3, 4, 8, 9, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512,
        1024, 2048, 65535, 65536, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX,
    };

    switch (next_random() % 4) {
    case 0:
        return next_random();
    case 1:
        return next_random() % 64 * 512;
    default:
        return numbers[next_random() % ARRAY_SIZE(numbers)];
    }
}

static void mutate_once(GByteArray *input)
{
    size_t offset = next_random() % input->len;
    size_t from = next_random() % input->len;
    size_t left = input->len - offset;
    uint8_t number[8];
    size_t len;

    stq_be_p(number, next_number());
    switch (next_random() % 8) {
    case 0:
    case 1:
        input->data[offset] ^= 1 << next_random() % 8;
        break;
    case 2:
        input->data[offset] = next_random();
        break;
    case 3:
    case 4:
    case 5:
        /* Fields are aligned */
        len = 1 << next_random() % 4;
        offset -= offset % len;
        memcpy(input->data + offset, number + sizeof(number) - len,
               MIN(len, input->len - offset));
        break;
    case 6:
        len = MIN(next_random() % 128, MIN(left, input->len - from));
        memmove(input->data + offset, input->data + from, len);
        break;
    case 7:
        if (next_random() % 4 == 0) {
            g_byte_array_set_size(input, MAX(offset, 1));
        } else if (input->len < MAX_INPUT_LEN) {
            g_byte_array_append(input, number, sizeof(number));
        }
        break;
    }
}

static void test_seeds(void)
{
    for (int i = 0; i < seeds->len; i++) {
        Seed *seed = &g_array_index(seeds, Seed, i);

        g_test_message("%s", seed->name);
        target->one_input(seed->data->data, seed->data->len);
    }
}

static void test_nothing(void)
{
    target->one_input((const uint8_t *)"", 0);
}

static void test_mutations(void)
{
    /* For the input that makes the target abort; it is the same every time */
    const char *save = g_getenv("FUZZ_SAVE");

    for (unsigned i = 0; i < target->mutations; i++) {
        Seed *seed = &g_array_index(seeds, Seed, next_random() % seeds->len);
        g_autoptr(GByteArray) input = g_byte_array_new();

        g_byte_array_append(input, seed->data->data, seed->data->len);
        for (int n = next_random() % 8; n >= 0; n--) {
            mutate_once(input);
        }
        if (save) {
            g_file_set_contents(save, (char *)input->data, input->len, NULL);
        }
        target->one_input(input->data, input->len);
    }
}

static void test_file(gconstpointer path)
{
    g_autofree char *data = NULL;
    g_autoptr(GError) err = NULL;
    size_t len;

    if (!g_file_get_contents(path, &data, &len, &err)) {
        g_error("%s", err->message);
    }
    target->one_input((uint8_t *)data, len);
}

static void add_test(const char *name, GTestFunc func)
{
    g_autofree char *path = g_strdup_printf("/qcow2-rw-backing/fuzz/%s/%s",
                                            target->name, name);

    g_test_add_func(path, func);
}

int fuzz_main(int argc, char **argv, const FuzzTarget *t)
{
    g_test_init(&argc, &argv, NULL);
    prepare(t);

    for (int i = 1; i < argc; i++) {
        g_autofree char *path = g_strdup_printf("/file/%d", i);

        g_test_add_data_func(path, argv[i], test_file);
    }
    add_test("nothing", test_nothing);
    add_test("seeds", test_seeds);
    add_test("mutations", test_mutations);
    return g_test_run();
}

#endif
