/* A full disk, on demand and without privileges.
 *
 * Preloaded (LD_PRELOAD) into the process under test. While the file
 * FULLDISK_FLAG exists, nothing below FULLDISK_DIR can grow: a write or a
 * truncation beyond a file's present end fails with ENOSPC. What overwrites a
 * file in place goes through, as on a real disk. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char dir[PATH_MAX];
static size_t dir_length;
static const char *flag;

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("FULLDISK_DIR");
    flag = getenv("FULLDISK_FLAG");
    if (where && flag && realpath(where, dir)) dir_length = strlen(dir);
}

/* Whether a file may not become this long. */
static int refused(int fd, off_t end) {
    if (!dir_length || syscall(SYS_faccessat, AT_FDCWD, flag, F_OK) != 0) return 0;
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (strncmp(path, dir, dir_length) != 0 || path[dir_length] != '/') return 0;
    struct stat now;
    if (fstat(fd, &now) != 0 || end <= now.st_size) return 0;
    errno = ENOSPC;
    return 1;
}

ssize_t write(int fd, const void *data, size_t length) {
    int before = errno;
    off_t at = lseek(fd, 0, SEEK_CUR);
    errno = before;
    if (at >= 0 && refused(fd, at + (off_t)length)) return -1;
    return syscall(SYS_write, fd, data, length);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    if (refused(fd, at + (off_t)length)) return -1;
    return syscall(SYS_pwrite64, fd, data, length, at);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return pwrite64(fd, data, length, at); }

int ftruncate64(int fd, off64_t length) {
    if (refused(fd, length)) return -1;
    return (int)syscall(SYS_ftruncate, fd, length);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }
