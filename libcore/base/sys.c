#include "libcore/base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

enum { STATE_UNREAD, STATE_OFF, STATE_ARMED };

static atomic_int state = STATE_UNREAD;
static atomic_int action = SYS_FAULT_OFF;
static atomic_uint classes;
static atomic_ullong chosen, counted;
static atomic_bool hit;

void sys_fault(enum sys_fault_action what, unsigned class_mask, uint64_t n)
{
    atomic_store(&action, (int)what);
    atomic_store(&classes, class_mask);
    atomic_store(&chosen, n);
    atomic_store(&counted, 0);
    atomic_store(&hit, false);
    atomic_store(&state, what == SYS_FAULT_OFF ? STATE_OFF : STATE_ARMED);
}

uint64_t sys_fault_count(void)
{
    return atomic_load(&counted);
}

bool sys_fault_hit(void)
{
    return atomic_load(&hit);
}

static void read_environment(void)
{
    const char *text = getenv("LORA_FAULT");
    char verb[8], class_name[8] = "";
    unsigned long long n;
    int unread = STATE_UNREAD;
    if (!text || sscanf(text, "%7[a-z]:%llu:%7s", verb, &n, class_name) < 2) {
        atomic_compare_exchange_strong(&state, &unread, STATE_OFF);
        return;
    }
    unsigned mask = strcmp(class_name, "mem") == 0      ? SYS_FAULT_MEM
                    : strcmp(class_name, "file") == 0   ? SYS_FAULT_FILE
                    : strcmp(class_name, "change") == 0 ? SYS_FAULT_CHANGE
                                                        : SYS_FAULT_ALL;
    sys_fault(strcmp(verb, "kill") == 0 ? SYS_FAULT_KILL : SYS_FAULT_FAIL, mask, n);
}

bool sys_fault_point(unsigned class_bits)
{
    int now = atomic_load_explicit(&state, memory_order_relaxed);
    if (now == STATE_OFF)
        return false;
    if (now == STATE_UNREAD) {
        // Once: two threads that both armed it would count from 1 twice.
        static pthread_once_t once = PTHREAD_ONCE_INIT;
        pthread_once(&once, read_environment);
        if (atomic_load(&state) == STATE_OFF)
            return false;
    }
    if (!(atomic_load(&classes) & class_bits))
        return false;
    if (atomic_fetch_add(&counted, 1) + 1 != atomic_load(&chosen))
        return false;
    atomic_store(&hit, true);
    if (atomic_load(&action) == SYS_FAULT_KILL)
        raise(SIGKILL);
    return true;
}

static bool fault(unsigned class_bits)
{
    if (!sys_fault_point(class_bits))
        return false;
    errno = atomic_load(&classes) & SYS_FAULT_CHANGE ? ENOSPC : EIO;
    return true;
}

static bool file_fault(void)
{
    return fault(SYS_FAULT_FILE);
}

static bool mem_fault(void)
{
    if (!sys_fault_point(SYS_FAULT_MEM))
        return false;
    errno = ENOMEM;
    return true;
}

void *sys_malloc(size_t n)
{
    return mem_fault() ? NULL : malloc(n ? n : 1);
}

void *sys_calloc(size_t n, size_t size)
{
    size_t total; // calloc checks it too, but a sanitizer's calloc ends the program
    if (__builtin_mul_overflow(n, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    return mem_fault() ? NULL : calloc(n ? n : 1, size ? size : 1);
}

void *sys_realloc(void *p, size_t n)
{
    return mem_fault() ? NULL : realloc(p, n ? n : 1);
}

void *sys_reallocarray(void *p, size_t n, size_t size)
{
    size_t total;
    if (__builtin_mul_overflow(n, size, &total)) {
        errno = ENOMEM;
        return NULL;
    }
    return sys_realloc(p, total);
}

void *sys_aligned_alloc(size_t alignment, size_t n)
{
    if (mem_fault())
        return NULL;
    void *p = NULL;
    return posix_memalign(&p, alignment, n ? n : 1) == 0 ? p : NULL;
}

char *sys_strndup(const char *s, size_t n)
{
    size_t len = strnlen(s, n);
    char *copy = sys_malloc(len + 1);
    if (!copy)
        return NULL;
    memcpy(copy, s, len);
    copy[len] = '\0';
    return copy;
}

char *sys_strdup(const char *s)
{
    return sys_strndup(s, strlen(s));
}

void sys_free(void *p)
{
    free(p);
}

/* Runs `call` until it is not interrupted by a signal; the fault point comes first. */
#define CALL(type, class_bits, call)                                                               \
    do {                                                                                           \
        if (fault(class_bits))                                                                     \
            return -1;                                                                             \
        type result;                                                                               \
        do {                                                                                       \
            result = (call);                                                                       \
        } while (result < 0 && errno == EINTR);                                                    \
        return result;                                                                             \
    } while (0)
#define FILE_CALL(type, call)   CALL(type, SYS_FAULT_FILE, call)
#define CHANGE_CALL(type, call) CALL(type, SYS_FAULT_FILE | SYS_FAULT_CHANGE, call)

static unsigned open_class(int flags)
{
    return flags & (O_CREAT | O_TRUNC) ? SYS_FAULT_FILE | SYS_FAULT_CHANGE : SYS_FAULT_FILE;
}

int sys_open(const char *path, int flags, mode_t mode)
{
    CALL(int, open_class(flags), open(path, flags | O_CLOEXEC, mode));
}

int sys_openat(int dir_fd, const char *path, int flags, mode_t mode)
{
    CALL(int, open_class(flags), openat(dir_fd, path, flags | O_CLOEXEC, mode));
}

int sys_close(int fd)
{
    // Never failed by a fault: a close that "fails" has closed on Linux, and hiding it would leak.
    return close(fd);
}

ssize_t sys_read(int fd, void *buf, size_t n)
{
    FILE_CALL(ssize_t, read(fd, buf, n));
}

ssize_t sys_write(int fd, const void *buf, size_t n)
{
    CHANGE_CALL(ssize_t, write(fd, buf, n));
}

ssize_t sys_pread(int fd, void *buf, size_t n, off_t offset)
{
    FILE_CALL(ssize_t, pread(fd, buf, n, offset));
}

ssize_t sys_pwrite(int fd, const void *buf, size_t n, off_t offset)
{
    CHANGE_CALL(ssize_t, pwrite(fd, buf, n, offset));
}

ssize_t sys_copy_file_range(int in_fd, off_t *in_off, int out_fd, off_t *out_off, size_t n)
{
    CHANGE_CALL(ssize_t, copy_file_range(in_fd, in_off, out_fd, out_off, n, 0));
}

int sys_ftruncate(int fd, off_t size)
{
    CHANGE_CALL(int, ftruncate(fd, size));
}

int sys_fsync(int fd)
{
    CHANGE_CALL(int, fsync(fd));
}

void sys_will_need(int fd, off_t offset, off_t n)
{
    if (posix_fadvise(fd, offset, n, POSIX_FADV_WILLNEED) != 0)
        return; // a pipe, or a file system without it: the read that follows does the work
}

void sys_forget_pages(const void *p, size_t n)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), first = ((uintptr_t)p + page - 1) / page * page;
    size_t end = ((uintptr_t)p + n) / page * page;
    if (end > first && madvise((void *)first, end - first, MADV_DONTNEED) != 0)
        return;
}

int sys_disk_free(const char *path, uint64_t *bytes)
{
    struct statvfs st;
    if (file_fault() || statvfs(path, &st) != 0)
        return -1;
    *bytes = (uint64_t)st.f_bavail * st.f_frsize;
    return 0;
}

void sys_start_writeback(int fd, off_t offset, off_t n)
{
    if (sync_file_range(fd, offset, n, SYNC_FILE_RANGE_WRITE) != 0)
        return; // not every file system has it; the sync that follows does the work
}

int sys_fdatasync(int fd)
{
    CHANGE_CALL(int, fdatasync(fd));
}

int sys_rename(const char *from, const char *to)
{
    CHANGE_CALL(int, rename(from, to));
}

/* Where the file system has no RENAME_NOREPLACE (NFS and some others) a look comes before the
 * rename: then two that rename to one name at the same moment are not told apart. */
static int rename_noreplace(const char *from, const char *to)
{
    int rc = renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_NOREPLACE);
    if (rc == 0 || (errno != EINVAL && errno != ENOSYS))
        return rc;
    struct stat st;
    if (lstat(to, &st) == 0) {
        errno = EEXIST;
        return -1;
    }
    return rename(from, to);
}

int sys_rename_noreplace(const char *from, const char *to)
{
    CHANGE_CALL(int, rename_noreplace(from, to));
}

int sys_link(const char *from, const char *to)
{
    CHANGE_CALL(int, link(from, to));
}

int sys_symlink(const char *target, const char *path)
{
    CHANGE_CALL(int, symlink(target, path));
}

int sys_unlink(const char *path)
{
    CHANGE_CALL(int, unlink(path));
}

int sys_mkdir(const char *path, mode_t mode)
{
    CHANGE_CALL(int, mkdir(path, mode));
}

int sys_rmdir(const char *path)
{
    CHANGE_CALL(int, rmdir(path));
}

int sys_chmod(const char *path, mode_t mode)
{
    CHANGE_CALL(int, chmod(path, mode));
}

int sys_fchmod(int fd, mode_t mode)
{
    CHANGE_CALL(int, fchmod(fd, mode));
}

int sys_stat(const char *path, struct stat *st)
{
    FILE_CALL(int, stat(path, st));
}

int sys_lstat(const char *path, struct stat *st)
{
    FILE_CALL(int, lstat(path, st));
}

int sys_fstat(int fd, struct stat *st)
{
    FILE_CALL(int, fstat(fd, st));
}

int sys_touch(int fd)
{
    CHANGE_CALL(int, futimens(fd, NULL));
}

int sys_flock(int fd, int operation)
{
    FILE_CALL(int, flock(fd, operation));
}

void *sys_mmap_read(int fd, size_t n)
{
    if (file_fault())
        return NULL;
    void *p = mmap(NULL, n, PROT_READ, MAP_PRIVATE, fd, 0);
    return p == MAP_FAILED ? NULL : p;
}

int sys_munmap(void *p, size_t n)
{
    return munmap(p, n);
}
