/* Records what a process writes and syncs below one folder, so that a test can
 * rebuild what a power cut at any moment would have left on the disk.
 *
 * Preloaded (LD_PRELOAD) into the process under test. Everything that it does to
 * the files and folders below POWERCUT_DIR is carried out as usual and appended
 * to POWERCUT_JOURNAL, in the order in which it took effect:
 *
 *   op (1 byte) · path length (2 bytes) · path · number (8 bytes) · inode (8 bytes)
 *   · data length (4 bytes) · data
 *
 *   C a file was created: number is its mode, as of P
 *   P a file's mode was changed      M a folder was made
 *   W bytes were written: number is where, data what
 *   T a file was cut or extended: number is its length
 *   U a name was removed             R a name was changed: data is the new path
 *   L what a folder holds, before it is synced: data is, for each name, f or d
 *     (1 byte) · inode (8 bytes) · length (1 byte) · name
 *   S a file, D a folder was synced: number is how many bytes the journal had
 *     when the sync began. What was recorded of it until then is durable.
 *   X something was done that is not recorded: data names the call
 *
 * Files are told apart by inode. A rename that does not pass through the C library
 * (some callers make the system call themselves) shows in the next L of its folder.
 *
 * The index of a WAL (`-shm`) is left out: it is mapped memory that nobody syncs,
 * and the first one to open the database makes it anew. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int journal = -1;
static char dir[PATH_MAX];
static size_t dir_length;
static uint64_t journal_bytes;

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWERCUT_DIR"), *file = getenv("POWERCUT_JOURNAL");
    if (!where || !file || !realpath(where, dir)) return;
    dir_length = strlen(dir);
    journal = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    struct stat stat;
    if (journal >= 0 && fstat(journal, &stat) == 0) journal_bytes = (uint64_t)stat.st_size;
}

static int ours(const char *path) {
    size_t length = strlen(path);
    if (strncmp(path, dir, dir_length) != 0 || (path[dir_length] && path[dir_length] != '/')) return 0;
    return length < 4 || strcmp(path + length - 4, "-shm") != 0;
}

static int path_of(int fd, char *path) {
    /* The first three were opened by whoever started the process. */
    if (journal < 0 || fd == journal || fd <= 2) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return ours(path);
}

/* The path of a name that may not exist yet. */
static int path_at(int at, const char *name, char *full) {
    char folder[PATH_MAX], real[PATH_MAX];
    if (journal < 0) return 0;
    if (name[0] == '/' || at == AT_FDCWD) {
        if ((size_t)snprintf(folder, sizeof folder, "%s", name) >= sizeof folder) return 0;
    } else {
        char link[64], under[PATH_MAX];
        snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t length = readlink(link, under, PATH_MAX - 1);
        if (length <= 0) return 0;
        under[length] = 0;
        if ((size_t)snprintf(folder, sizeof folder, "%s/%s", under, name) >= sizeof folder) return 0;
    }
    char *last = strrchr(folder, '/');
    if (!last) return 0;
    *last = 0;
    if (!realpath(folder[0] ? folder : "/", real)) return 0;
    if ((size_t)snprintf(full, PATH_MAX, "%s/%s", real, last + 1) >= PATH_MAX) return 0;
    return ours(full);
}

static uint64_t inode_of(int fd) {
    struct stat stat;
    return fstat(fd, &stat) == 0 ? stat.st_ino : 0;
}

static uint64_t mode_of(int fd) {
    struct stat stat;
    return fstat(fd, &stat) == 0 ? stat.st_mode & 07777 : 0;
}

/* The lock is held. */
static void record(char op, const char *path, uint64_t number, uint64_t inode, const void *data, uint32_t length) {
    char head[1 + 2 + PATH_MAX + 8 + 8 + 4];
    uint16_t path_length = (uint16_t)strlen(path);
    size_t head_length = 0;
#define PUT(bytes, count) (memcpy(head + head_length, bytes, count), head_length += (count))
    PUT(&op, 1);
    PUT(&path_length, 2);
    PUT(path, path_length);
    PUT(&number, 8);
    PUT(&inode, 8);
    PUT(&length, 4);
#undef PUT
    const char *parts[2] = {head, data};
    size_t lengths[2] = {head_length, length};
    for (int part = 0; part < 2; part++) {
        while (lengths[part] > 0) {
            ssize_t done = syscall(SYS_write, journal, parts[part], lengths[part]);
            if (done <= 0) abort();
            parts[part] += done;
            lengths[part] -= (size_t)done;
            journal_bytes += (uint64_t)done;
        }
    }
}

/* What is done and recorded under the lock, with the error it left. */
#define BEGIN pthread_mutex_lock(&lock)
#define END(done) do { int error_ = errno; pthread_mutex_unlock(&lock); errno = error_; return done; } while (0)

/* Says that something was done that the journal cannot tell. */
static void uncovered(const char *call, const char *path) {
    BEGIN;
    record('X', path, 0, 0, call, (uint32_t)strlen(call));
    pthread_mutex_unlock(&lock);
}

/* ---- what files hold ---- */

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_write, fd, data, length);
    BEGIN;
    off_t at = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    ssize_t done = syscall(SYS_write, fd, data, length);
    if (done > 0) record('W', path, (uint64_t)at, inode_of(fd), data, (uint32_t)done);
    END(done);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_pwrite64, fd, data, length, at);
    BEGIN;
    ssize_t done = syscall(SYS_pwrite64, fd, data, length, at);
    if (done > 0) record('W', path, (uint64_t)at, inode_of(fd), data, (uint32_t)done);
    END(done);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return pwrite64(fd, data, length, at); }

/* Callers of these must expect that less is written than they asked for: one part is. */
static const struct iovec *first(const struct iovec *parts, int count) {
    static const struct iovec none = {0, 0};
    for (int part = 0; part < count; part++)
        if (parts[part].iov_len) return &parts[part];
    return &none;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_writev, fd, parts, count);
    const struct iovec *part = first(parts, count);
    return write(fd, part->iov_base, part->iov_len);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t at) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return syscall(SYS_pwritev, fd, parts, count, at, 0);
    const struct iovec *part = first(parts, count);
    return pwrite64(fd, part->iov_base, part->iov_len, at);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) { return pwritev64(fd, parts, count, at); }

int ftruncate64(int fd, off64_t length) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(SYS_ftruncate, fd, length);
    BEGIN;
    int done = (int)syscall(SYS_ftruncate, fd, length);
    if (done == 0) record('T', path, (uint64_t)length, inode_of(fd), 0, 0);
    END(done);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fchmod(int fd, mode_t mode) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(SYS_fchmod, fd, mode);
    BEGIN;
    int done = (int)syscall(SYS_fchmod, fd, mode);
    if (done == 0) record('P', path, mode, inode_of(fd), 0, 0);
    END(done);
}

int fchmodat(int at, const char *name, mode_t mode, int flags) {
    char full[PATH_MAX];
    if (path_at(at, name, full)) uncovered("fchmodat", full);
    if (flags) return errno = ENOTSUP, -1;
    return (int)syscall(SYS_fchmodat, at, name, mode);
}

int chmod(const char *name, mode_t mode) { return fchmodat(AT_FDCWD, name, mode, 0); }

int truncate64(const char *name, off64_t length) {
    char full[PATH_MAX];
    if (path_at(AT_FDCWD, name, full)) uncovered("truncate", full);
    return (int)syscall(SYS_truncate, name, length);
}

int truncate(const char *name, off_t length) { return truncate64(name, length); }

int fallocate64(int fd, int mode, off64_t at, off64_t length) {
    char path[PATH_MAX];
    if (path_of(fd, path)) uncovered("fallocate", path);
    return (int)syscall(SYS_fallocate, fd, mode, at, length);
}

int fallocate(int fd, int mode, off_t at, off_t length) { return fallocate64(fd, mode, at, length); }

int posix_fallocate64(int fd, off64_t at, off64_t length) {
    return fallocate64(fd, 0, at, length) == 0 ? 0 : errno;
}

int posix_fallocate(int fd, off_t at, off_t length) { return posix_fallocate64(fd, at, length); }

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    char path[PATH_MAX];
    if (path_of(out, path)) uncovered("copy_file_range", path);
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}

ssize_t sendfile64(int out, int in, off64_t *from, size_t length) {
    char path[PATH_MAX];
    if (path_of(out, path)) uncovered("sendfile", path);
    return syscall(SYS_sendfile, out, in, from, length);
}

ssize_t sendfile(int out, int in, off_t *from, size_t length) { return sendfile64(out, in, from, length); }

void *mmap64(void *where, size_t length, int protection, int flags, int fd, off64_t at) {
    char path[PATH_MAX];
    if (fd >= 0 && (flags & MAP_SHARED) && (protection & PROT_WRITE) && path_of(fd, path)) uncovered("mmap", path);
    return (void *)syscall(SYS_mmap, where, length, protection, flags, fd, at);
}

void *mmap(void *where, size_t length, int protection, int flags, int fd, off_t at) {
    return mmap64(where, length, protection, flags, fd, at);
}

/* ---- syncs ---- */

/* What a folder holds now. The lock is held. */
static void list(const char *path) {
    DIR *folder = opendir(path);
    if (!folder) abort();
    char *data = 0;
    size_t length = 0;
    for (struct dirent *entry; (entry = readdir(folder));) {
        char full[PATH_MAX];
        uint8_t name_length = (uint8_t)strlen(entry->d_name);
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if ((size_t)snprintf(full, PATH_MAX, "%s/%s", path, entry->d_name) >= PATH_MAX) abort();
        struct stat stat;
        if (!ours(full) || lstat(full, &stat) != 0) continue;
        uint64_t inode = stat.st_ino;
        data = realloc(data, length + 10 + name_length);
        if (!data) abort();
        data[length] = S_ISDIR(stat.st_mode) ? 'd' : 'f';
        memcpy(data + length + 1, &inode, 8);
        data[length + 9] = (char)name_length;
        memcpy(data + length + 10, entry->d_name, name_length);
        length += 10 + (size_t)name_length;
    }
    closedir(folder);
    record('L', path, 0, 0, data, (uint32_t)length);
    free(data);
}

static int sync_with(long call, int fd) {
    char path[PATH_MAX];
    if (!path_of(fd, path)) return (int)syscall(call, fd);
    struct stat stat;
    if (fstat(fd, &stat) != 0) return -1;
    int folder = S_ISDIR(stat.st_mode);
    BEGIN;
    if (folder) list(path);
    uint64_t before = journal_bytes;
    pthread_mutex_unlock(&lock);
    int done = (int)syscall(call, fd);
    int error = errno;
    BEGIN;
    if (done == 0) record(folder ? 'D' : 'S', path, before, stat.st_ino, 0, 0);
    errno = error;
    END(done);
}

int fsync(int fd) { return sync_with(SYS_fsync, fd); }
int fdatasync(int fd) { return sync_with(SYS_fdatasync, fd); }

/* ---- names ---- */

static int open_with(int at, const char *name, int flags, mode_t mode) {
    char full[PATH_MAX];
    int changes = flags & (O_CREAT | O_TRUNC);
    if ((flags & O_TMPFILE) == O_TMPFILE || !changes || !path_at(at, name, full))
        return (int)syscall(SYS_openat, at, name, flags, mode);
    BEGIN;
    struct stat stat;
    int existed = lstat(full, &stat) == 0;
    int fd = (int)syscall(SYS_openat, at, name, flags, mode);
    if (fd >= 0 && !existed) record('C', full, mode_of(fd), inode_of(fd), 0, 0);
    if (fd >= 0 && existed && (flags & O_TRUNC)) record('T', full, 0, inode_of(fd), 0, 0);
    END(fd);
}

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & O_CREAT || ((flags) & O_TMPFILE) == O_TMPFILE) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = (mode_t)va_arg(rest, int); \
        va_end(rest); \
    }

int open(const char *name, int flags, ...) { MODE(flags) return open_with(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE(flags) return open_with(AT_FDCWD, name, flags, mode); }
int openat(int at, const char *name, int flags, ...) { MODE(flags) return open_with(at, name, flags, mode); }
int openat64(int at, const char *name, int flags, ...) { MODE(flags) return open_with(at, name, flags, mode); }
int creat(const char *name, mode_t mode) { return open_with(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return creat(name, mode); }

int mkdirat(int at, const char *name, mode_t mode) {
    char full[PATH_MAX];
    if (!path_at(at, name, full)) return (int)syscall(SYS_mkdirat, at, name, mode);
    BEGIN;
    int done = (int)syscall(SYS_mkdirat, at, name, mode);
    if (done == 0) record('M', full, 0, 0, 0, 0);
    END(done);
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

int unlinkat(int at, const char *name, int flags) {
    char full[PATH_MAX];
    if (!path_at(at, name, full)) return (int)syscall(SYS_unlinkat, at, name, flags);
    BEGIN;
    int done = (int)syscall(SYS_unlinkat, at, name, flags);
    if (done == 0) record('U', full, 0, 0, 0, 0);
    END(done);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    char full[PATH_MAX], target[PATH_MAX];
    int from_ours = path_at(from_at, from, full), to_ours = path_at(to_at, to, target);
    if (!from_ours || !to_ours || (flags & ~1u)) {
        if (from_ours || to_ours) uncovered("rename", from_ours ? full : target);
        return (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    }
    BEGIN;
    int done = (int)syscall(SYS_renameat2, from_at, from, to_at, to, flags);
    if (done == 0) record('R', full, 0, 0, target, (uint32_t)strlen(target));
    END(done);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    return renameat2(from_at, from, to_at, to, 0);
}

int rename(const char *from, const char *to) { return renameat2(AT_FDCWD, from, AT_FDCWD, to, 0); }

int linkat(int from_at, const char *from, int to_at, const char *to, int flags) {
    char target[PATH_MAX];
    if (path_at(to_at, to, target)) uncovered("link", target);
    return (int)syscall(SYS_linkat, from_at, from, to_at, to, flags);
}

int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

int symlinkat(const char *from, int to_at, const char *to) {
    char target[PATH_MAX];
    if (path_at(to_at, to, target)) uncovered("symlink", target);
    return (int)syscall(SYS_symlinkat, from, to_at, to);
}

int symlink(const char *from, const char *to) { return symlinkat(from, AT_FDCWD, to); }
