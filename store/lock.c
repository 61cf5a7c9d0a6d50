#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/store_impl.h"

enum { OWNER_BYTES = 256 };

const char *lock_boot_id(void)
{
    static _Thread_local char id[64];
    if (id[0])
        return id;
    char *text;
    size_t n;
    if (file_read("/proc/sys/kernel/random/boot_id", sizeof id - 1, &text, &n, NULL) != 0)
        return "";
    text[strcspn(text, "\n")] = '\0';
    snprintf(id, sizeof id, "%s", text);
    sys_free(text);
    return id;
}

/* Leaves a note for those who meet the lock. Not synced, and its failure is no failure: the lock is
 * the flock, which the system takes back when a holder dies. */
static void write_owner(struct store *s, const char *what)
{
    char text[OWNER_BYTES];
    int n = snprintf(text, sizeof text, "%s %ld %s %llu\n", what, (long)getpid(), lock_boot_id(),
                     (unsigned long long)(thread_unix_ns() / 1000000000u));
    if (sys_ftruncate(s->lock_fd, 0) == 0 &&
        sys_pwrite(s->lock_fd, text, (size_t)n, 0) != (ssize_t)n)
        sys_ftruncate(s->lock_fd, 0);
}

static int locked_by(struct store *s, struct err *err)
{
    char text[OWNER_BYTES] = "", what[32], boot[64];
    long pid;
    unsigned long long since;
    ssize_t n = sys_pread(s->lock_fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    if (sscanf(text, "%31s %ld %63s %llu", what, &pid, boot, &since) != 4)
        return err_set(err, ERR_LOCKED, "%s: the store is locked by another process", s->path);
    unsigned long long now = thread_unix_ns() / 1000000000u;
    return err_set(err, ERR_LOCKED, "%s: the store is locked by `%s`, pid %ld%s, since %llu s",
                   s->path, what, pid,
                   strcmp(boot, lock_boot_id()) == 0 ? "" : " of another machine",
                   now > since ? now - since : 0);
}

static int open_lock(struct store *s, struct err *err)
{
    if (s->lock_fd >= 0)
        return 0;
    char *path = store_join(s, "leases", "store.lock", err);
    if (!path)
        return ERR_NO_MEMORY;
    s->lock_fd = sys_open(path, O_RDWR | O_CREAT, 0666);
    int rc = s->lock_fd >= 0 ? 0 : err_set_errno(err, errno, "%s: cannot open", path);
    sys_free(path);
    return rc;
}

int store_lock(struct store *s, const char *what, struct err *err)
{
    if (s->lock_depth) {
        s->lock_depth++;
        return 0;
    }
    int rc = open_lock(s, err);
    if (rc)
        return rc;
    uint64_t start = thread_now_ns(), wait_ns = 200000;
    while (sys_flock(s->lock_fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK)
            return err_set_errno(err, errno, "%s: cannot lock the store", s->path);
        if (thread_now_ns() - start >= (uint64_t)s->lock_timeout_ms * 1000000u)
            return locked_by(s, err);
        // Polling, since flock has no deadline: soon at first, then ever 20 ms.
        nanosleep(&(struct timespec){.tv_nsec = (long)wait_ns}, NULL);
        wait_ns = wait_ns < 10000000 ? wait_ns * 2 : 20000000;
    }
    s->lock_depth = 1;
    write_owner(s, what);
    return 0;
}

void store_unlock(struct store *s)
{
    if (!s->lock_depth || --s->lock_depth)
        return;
    // A failed unlock would hold everybody up; closing gives the lock back for certain.
    if (sys_flock(s->lock_fd, LOCK_UN) != 0) {
        sys_close(s->lock_fd);
        s->lock_fd = -1;
    }
}
