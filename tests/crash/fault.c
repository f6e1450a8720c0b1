/* Preloaded into a server under test: makes syncs and writes of its log slow or failing, as a shared file says.
 *
 * The file named by FAULT_CONTROL is mapped; its words are, in order: milliseconds that each sync takes longer, which end early when
 * the word becomes smaller; syncs to let pass before one fails (-1: none fails); writes to let pass before one fails (-1: none fails); errno of the failure; then
 * counters: syncs and writes seen. Only files whose path contains "/wal/" are touched.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { DELAY_MS, SYNCS_LEFT, WRITES_LEFT, ERRNO, SYNCS, WRITES, WORDS };

static volatile int64_t *control;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("FAULT_CONTROL");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    void *map = fd < 0 ? MAP_FAILED
                       : mmap(NULL, WORDS * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    control = map == MAP_FAILED ? NULL : map;
    if (fd >= 0) close(fd);
}

static int of_log(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (!control || size <= 0) return 0;
    path[size] = 0;
    return strstr(path, "/wal/") != NULL;
}

/* Whether this call is one that fails; what has failed once goes on failing. */
static int fails(int left) {
    if (control[left] < 0) return 0;
    if (control[left] == 0) return 1;
    control[left]--;
    return 0;
}

static int before_sync(int fd) {
    if (!of_log(fd)) return 0;
    control[SYNCS]++;
    struct timespec pause = {0, 1000000};
    for (int64_t slept = 0; slept < control[DELAY_MS]; slept++) nanosleep(&pause, NULL);
    return fails(SYNCS_LEFT);
}

static int before_write(int fd) {
    if (!of_log(fd)) return 0;
    control[WRITES]++;
    return fails(WRITES_LEFT);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define SYNC(name)                                            \
    int name(int fd) {                                        \
        if (before_sync(fd)) { errno = (int)control[ERRNO]; return -1; } \
        return REAL(name)(fd);                                \
    }
#define WRITE(name, parameters, arguments)                    \
    ssize_t name parameters {                                 \
        if (before_write(fd)) { errno = (int)control[ERRNO]; return -1; } \
        return REAL(name) arguments;                          \
    }

SYNC(fsync)
SYNC(fdatasync)
WRITE(write, (int fd, const void *data, size_t size), (fd, data, size))
WRITE(writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRITE(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRITE(pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
WRITE(pwritev2, (int fd, const struct iovec *parts, int count, off_t at, int flags), (fd, parts, count, at, flags))
