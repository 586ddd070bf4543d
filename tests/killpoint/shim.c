/* An end at a point that a test names, and no sooner: `kill -9` before or after
 * the n-th write or sync of a file whose path holds a text, or the n-th message
 * on standard error that holds one.
 *
 * Preloaded (LD_PRELOAD) into the process under test. While the file
 * KILLPOINT_PLAN exists, it says in one line where the process ends:
 *
 *   serial before|after write|sync|say n text
 *
 * Calls are counted anew for each serial. Names that are given in between pass
 * by the C library; what is synced before and after them stands for them. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *plan;
static unsigned long counted_serial, count;

__attribute__((constructor)) static void begin(void) { plan = getenv("KILLPOINT_PLAN"); }

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return 1;
}

/* Ends the process if the plan says that it ends here. */
static void pass(const char *when, const char *call, int fd, const void *data, size_t size) {
    if (!plan) return;
    int file = (int)syscall(SYS_openat, AT_FDCWD, plan, O_RDONLY | O_CLOEXEC);
    if (file < 0) return;
    char text[512], planned_when[16], planned_call[16], part[256], path[PATH_MAX];
    ssize_t length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (length <= 0) return;
    text[length] = 0;
    unsigned long serial, nth;
    if (sscanf(text, "%lu %15s %15s %lu %255s", &serial, planned_when, planned_call, &nth, part) != 5) return;
    if (strcmp(when, planned_when)) return;
    if (!strcmp("say", planned_call)) {
        if (fd != STDERR_FILENO || !data || !memmem(data, size, part, strlen(part))) return;
    } else if (strcmp(call, planned_call) || !path_of(fd, path) || !strstr(path, part)) {
        return;
    }
    pthread_mutex_lock(&lock);
    if (serial != counted_serial) {
        counted_serial = serial;
        count = 0;
    }
    int reached = ++count == nth;
    pthread_mutex_unlock(&lock);
    if (!reached) return;
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* The error that a call has left is kept: looking at the plan may leave another. */
#define AROUND(call, fd, data, size, type, work) do { \
        pass("before", call, fd, data, size); \
        type done_ = work; \
        int error_ = errno; \
        pass("after", call, fd, data, size); \
        errno = error_; \
        return done_; \
    } while (0)

ssize_t write(int fd, const void *data, size_t length) {
    AROUND("write", fd, data, length, ssize_t, syscall(SYS_write, fd, data, length));
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    AROUND("write", fd, data, length, ssize_t, syscall(SYS_pwrite64, fd, data, length, at));
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return pwrite64(fd, data, length, at); }

int fsync(int fd) { AROUND("sync", fd, NULL, 0, int, (int)syscall(SYS_fsync, fd)); }

int fdatasync(int fd) { AROUND("sync", fd, NULL, 0, int, (int)syscall(SYS_fdatasync, fd)); }
