/*
 * sys: the one door to the host's memory and file system, so that tests can fail or kill at any
 * call.
 *
 * Every call of ours that allocates or touches files goes through here. Each call is a fault point:
 * it counts up, and when it is the chosen one it fails (memory: NULL, files: errno EIO or ENOSPC)
 * or kills the process with SIGKILL. Chosen by sys_fault() in a test, or by the environment
 * LORA_FAULT=fail:N[:class] or LORA_FAULT=kill:N[:class] (class: mem, file, change; default mem and
 * file), read by the first call. A `kill` happens before the call takes effect. Costs one relaxed
 * load when off. Thread rule: all of it may be called from any thread.
 */
#ifndef LIBCORE_BASE_SYS_H
#define LIBCORE_BASE_SYS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

/* CHANGE is the part of FILE that writes, syncs, makes, renames or removes; alone it fails with
 * ENOSPC instead of EIO. */
enum sys_fault_class {
    SYS_FAULT_MEM = 1,
    SYS_FAULT_FILE = 2,
    SYS_FAULT_ALL = 3,
    SYS_FAULT_CHANGE = 4
};
enum sys_fault_action { SYS_FAULT_OFF, SYS_FAULT_FAIL, SYS_FAULT_KILL };

/* From now on the n-th call (from 1) of `class_mask` meets `action`; off with SYS_FAULT_OFF. */
void sys_fault(enum sys_fault_action action, unsigned class_mask, uint64_t n);
/* Calls counted since sys_fault() was last called, and whether the chosen one was reached. */
uint64_t sys_fault_count(void);
bool sys_fault_hit(void);
/* Whether a sys_fault or LORA_FAULT is armed; and one counted step for libraries with own hooks. */
bool sys_fault_point(unsigned class_bits);

void *sys_malloc(size_t n);              // n == 0 gives a pointer that may be freed
void *sys_calloc(size_t n, size_t size); // checked multiplication
void *sys_realloc(void *p, size_t n);
void *sys_reallocarray(void *p, size_t n, size_t size);
void *sys_aligned_alloc(size_t alignment, size_t n); // freed with sys_free
char *sys_strdup(const char *s);
char *sys_strndup(const char *s, size_t n);
void sys_free(void *p);

/* As the system calls of those names: -1 and errno on failure. EINTR is retried inside. */
int sys_open(const char *path, int flags, mode_t mode); // always O_CLOEXEC
int sys_openat(int dir_fd, const char *path, int flags, mode_t mode);
int sys_close(int fd);
ssize_t sys_read(int fd, void *buf, size_t n);
ssize_t sys_write(int fd, const void *buf, size_t n);
ssize_t sys_pread(int fd, void *buf, size_t n, off_t offset);
ssize_t sys_pwrite(int fd, const void *buf, size_t n, off_t offset);
ssize_t sys_copy_file_range(int in_fd, off_t *in_off, int out_fd, off_t *out_off, size_t n);
int sys_ftruncate(int fd, off_t size);
int sys_fsync(int fd);
/* Asks the system to start writing these bytes out now, so that a later sync has less to wait for.
 * A hint: no fault point, no result. */
void sys_start_writeback(int fd, off_t offset, off_t n);
/* Asks the system to read these bytes before they are asked for. A hint, as above. */
void sys_will_need(int fd, off_t offset, off_t n);
/* Tells the system that a mapping's pages may go; they come back from the file. A hint. */
void sys_forget_pages(const void *p, size_t n);
int sys_fdatasync(int fd);
int sys_rename(const char *from, const char *to);
int sys_rename_noreplace(const char *from, const char *to); // EEXIST when `to` is there
int sys_link(const char *from, const char *to);
int sys_symlink(const char *target, const char *path);
int sys_unlink(const char *path);
int sys_mkdir(const char *path, mode_t mode);
int sys_rmdir(const char *path);
int sys_chmod(const char *path, mode_t mode);
int sys_fchmod(int fd, mode_t mode);
int sys_disk_free(const char *path, uint64_t *bytes); // for this user, on the path's file system
int sys_stat(const char *path, struct stat *st);
int sys_lstat(const char *path, struct stat *st);
int sys_fstat(int fd, struct stat *st);
int sys_touch(int fd);                // both times become now
int sys_flock(int fd, int operation); // LOCK_NB gives EWOULDBLOCK
void *sys_mmap_read(int fd,
                    size_t n); // n > 0 bytes from the start, private, read-only; NULL on failure
int sys_munmap(void *p, size_t n);

#endif
