/*
 * Preloaded into QEMU: kills it at a chosen modification of a chosen file
 *
 * A process that is killed after a random time is hardly ever killed between
 * two certain writes.  Here, the test says by shared memory which modification
 * of which file is the last one, and how much of it still happens.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* As kill_at.py writes it */
typedef struct Control {
    uint64_t dev, ino;          /* the file */
    _Atomic int64_t countdown;  /* 1: the next modification, 0: never */
    int64_t bytes;              /* of a write that still happen, -1: all */
} Control;

static Control *control;

__attribute__((constructor))
static void init(void)
{
    const char *name = getenv("KILL_AT");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;

    if (fd >= 0) {
        control = mmap(NULL, sizeof(*control), PROT_READ | PROT_WRITE,
                       MAP_SHARED, fd, 0);
        if (control == MAP_FAILED) {
            abort();
        }
        close(fd);
    }
}

/* Is this modification the last one? */
static int is_last(int fd)
{
    struct stat st;

    if (!control || control->countdown <= 0 || fstat(fd, &st) < 0 ||
        st.st_dev != control->dev || st.st_ino != control->ino) {
        return 0;
    }
    return atomic_fetch_sub(&control->countdown, 1) == 1;
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) {
        pause();
    }
}

#define REAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *buf, size_t len, off64_t offset)
{
    if (is_last(fd)) {
        if (control->bytes) {
            REAL(pwrite64)(fd, buf, control->bytes < 0 ||
                           control->bytes > len ? len : control->bytes, offset);
        }
        die();
    }
    return REAL(pwrite64)(fd, buf, len, offset);
}

ssize_t pwritev64(int fd, const struct iovec *iov, int count, off64_t offset)
{
    int64_t left;

    if (is_last(fd)) {
        left = control->bytes < 0 ? INT64_MAX : control->bytes;
        for (; count && left > 0; iov++, count--) {
            size_t len = iov->iov_len < left ? iov->iov_len : left;

            REAL(pwrite64)(fd, iov->iov_base, len, offset);
            offset += len;
            left -= len;
        }
        die();
    }
    return REAL(pwritev64)(fd, iov, count, offset);
}

int fdatasync(int fd)
{
    if (is_last(fd)) {
        die();
    }
    return REAL(fdatasync)(fd);
}

int fsync(int fd)
{
    if (is_last(fd)) {
        die();
    }
    return REAL(fsync)(fd);
}

int ftruncate64(int fd, off64_t length)
{
    if (is_last(fd)) {
        if (control->bytes) {
            REAL(ftruncate64)(fd, length);
        }
        die();
    }
    return REAL(ftruncate64)(fd, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t len)
{
    if (is_last(fd)) {
        if (control->bytes) {
            REAL(fallocate64)(fd, mode, offset, len);
        }
        die();
    }
    return REAL(fallocate64)(fd, mode, offset, len);
}

int posix_fallocate64(int fd, off64_t offset, off64_t len)
{
    if (is_last(fd)) {
        if (control->bytes) {
            REAL(posix_fallocate64)(fd, offset, len);
        }
        die();
    }
    return REAL(posix_fallocate64)(fd, offset, len);
}
