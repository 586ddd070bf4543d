/* Records what a process writes and syncs below one folder, so that a test can
 * rebuild what a power cut at any moment would have left on the disk.
 *
 * Preloaded (LD_PRELOAD) into the process under test. Every write, truncation,
 * sync, rename and unlink below POWERCUT_DIR is carried out as usual and then
 * appended to POWERCUT_JOURNAL, in the order in which they took effect:
 *
 *   op (1 byte: W write, T truncate, S sync, U unlink, R rename) · path length
 *   (2 bytes) · path · number (8 bytes: W offset, T length, S how many records
 *   were in the journal when the sync began) · data length (4 bytes) · data
 *   (W bytes, R the new path)
 *
 * A sync makes durable what was written to its file before it began. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static char dir[PATH_MAX];
static size_t dir_length;
static uint64_t records;

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWERCUT_DIR"), *file = getenv("POWERCUT_JOURNAL");
    if (!where || !file || !realpath(where, dir)) return;
    dir_length = strlen(dir);
    journal = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static int path_of(int fd, char *path) {
    if (journal < 0 || fd == journal) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strncmp(path, dir, dir_length) == 0;
}

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        ssize_t done = syscall(SYS_write, journal, at, length);
        if (done <= 0) abort();
        at += done;
        length -= (size_t)done;
    }
}

/* The lock is held. */
static void record(char op, const char *path, uint64_t number, const void *data, uint32_t length) {
    uint16_t path_length = (uint16_t)strlen(path);
    put(&op, 1);
    put(&path_length, 2);
    put(path, path_length);
    put(&number, 8);
    put(&length, 4);
    if (length) put(data, length);
    records++;
}

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    off_t at = lseek(fd, 0, SEEK_CUR);
    if (fcntl(fd, F_GETFL) & O_APPEND) at = lseek(fd, 0, SEEK_END);
    ssize_t done = syscall(SYS_write, fd, data, length);
    int error = errno;
    if (done > 0) record('W', path, (uint64_t)at, data, (uint32_t)done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_pwrite64, fd, data, length, at);
    pthread_mutex_lock(&lock);
    ssize_t done = syscall(SYS_pwrite64, fd, data, length, at);
    int error = errno;
    if (done > 0) record('W', path, (uint64_t)at, data, (uint32_t)done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return pwrite64(fd, data, length, at); }

int ftruncate64(int fd, off64_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(SYS_ftruncate, fd, length);
    pthread_mutex_lock(&lock);
    int done = (int)syscall(SYS_ftruncate, fd, length);
    int error = errno;
    if (done == 0) record('T', path, (uint64_t)length, 0, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

static int sync_with(long call, int fd) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(call, fd);
    pthread_mutex_lock(&lock);
    uint64_t before = records;
    pthread_mutex_unlock(&lock);
    int done = (int)syscall(call, fd);
    int error = errno;
    pthread_mutex_lock(&lock);
    if (done == 0) record('S', path, before, 0, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int fsync(int fd) { return sync_with(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

static int below(const char *path, char *full) {
    char folder[PATH_MAX];
    if (journal < 0) return 0;
    const char *name = strrchr(path, '/');
    if (!name) return 0;
    snprintf(folder, sizeof folder, "%.*s", (int)(name - path), path);
    char real[PATH_MAX];
    if (!realpath(folder[0] ? folder : "/", real)) return 0;
    if ((size_t)snprintf(full, PATH_MAX, "%s%s", real, name) >= PATH_MAX) return 0;
    return strncmp(full, dir, dir_length) == 0;
}

int unlink(const char *path) {
    char full[PATH_MAX];
    int ours = below(path, full);
    int done = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    int error = errno;
    if (ours && done == 0) {
        pthread_mutex_lock(&lock);
        record('U', full, 0, 0, 0);
        pthread_mutex_unlock(&lock);
    }
    errno = error;
    return done;
}

int rename(const char *from, const char *to) {
    char full[PATH_MAX], target[PATH_MAX];
    int ours = below(from, full) && below(to, target);
    int done = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
    int error = errno;
    if (ours && done == 0) {
        pthread_mutex_lock(&lock);
        record('R', full, 0, target, (uint32_t)strlen(target));
        pthread_mutex_unlock(&lock);
    }
    errno = error;
    return done;
}
