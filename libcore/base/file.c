#include "libcore/base/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <unistd.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

enum { COPY_BYTES = 1 << 20 };

int file_write_all(int fd, const void *data, size_t size, const char *path, struct err *err)
{
    const char *p = data;
    while (size) {
        ssize_t n = sys_write(fd, p, size);
        if (n < 0)
            return err_set_errno(err, errno, "%s: cannot write", path);
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

int file_pread_all(int fd, void *data, size_t size, uint64_t offset, const char *path,
                   struct err *err)
{
    char *p = data;
    while (size) {
        ssize_t n = sys_pread(fd, p, size, (off_t)offset);
        if (n < 0)
            return err_set_errno(err, errno, "%s: cannot read", path);
        if (n == 0)
            return err_set(err, ERR_CORRUPT, "%s: ends at byte %llu, wanted %zu more", path,
                           (unsigned long long)offset, size);
        p += n;
        offset += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

/* Reads to the end of fd, growing; a file's size is only a hint (pipes and /proc say 0). */
static int read_all(int fd, const char *path, size_t max_bytes, size_t hint, char **data,
                    size_t *size, struct err *err)
{
    char *buf = NULL;
    size_t len = 0, cap = 0;
    int rc = 0;
    for (;;) {
        if (len == cap) {
            cap = cap ? cap * 2 : hint < 4096 ? 4096 : hint + 1;
            char *more = sys_realloc(buf, cap + 1);
            if (!more) {
                rc = err_set(err, ERR_NO_MEMORY, "%s: no memory for %zu bytes", path, cap);
                break;
            }
            buf = more;
        }
        ssize_t n = sys_read(fd, buf + len, cap - len);
        if (n < 0)
            rc = err_set_errno(err, errno, "%s: cannot read", path);
        if (n <= 0)
            break;
        len += (size_t)n;
        if (len > max_bytes) {
            rc = err_set(err, ERR_LIMIT, "%s: more than %zu bytes", path, max_bytes);
            break;
        }
    }
    if (rc) {
        sys_free(buf);
        return rc;
    }
    buf[len] = '\0';
    *data = buf;
    *size = len;
    return 0;
}

int file_read(const char *path, size_t max_bytes, char **data, size_t *size, struct err *err)
{
    size_t len = 0;
    *data = NULL;
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", path);
    struct stat st;
    int rc = 0;
    if (sys_fstat(fd, &st) != 0)
        rc = err_set_errno(err, errno, "%s: cannot stat", path);
    else if (S_ISDIR(st.st_mode))
        rc = err_set_errno(err, EISDIR, "%s: cannot read", path);
    else if (st.st_size > 0 && (uint64_t)st.st_size > max_bytes)
        rc = err_set(err, ERR_LIMIT, "%s: %llu bytes, at most %zu are read", path,
                     (unsigned long long)st.st_size, max_bytes);
    else
        rc = read_all(fd, path, max_bytes, (size_t)st.st_size, data, &len, err);
    sys_close(fd);
    if (size)
        *size = len;
    return rc;
}

int file_sync_folder(const char *path, struct err *err)
{
    int fd = sys_open(path, O_RDONLY | O_DIRECTORY, 0);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", path);
    int rc = 0;
    // Some file systems cannot sync a folder and say EINVAL: there is nothing more that we can do.
    if (sys_fsync(fd) != 0 && errno != EINVAL)
        rc = err_set_errno(err, errno, "%s: cannot sync", path);
    sys_close(fd);
    return rc;
}

/* Creates a new file "PATH.PID.N.tmp" beside path. */
static int open_temporary(const char *path, char **name, struct err *err)
{
    static unsigned counter;
    struct strbuf sb;
    for (int try = 0; try < 100; try++) {
        strbuf_init(&sb);
        strbuf_addf(&sb, "%s.%ld.%u.tmp", path, (long)getpid(),
                    __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
        *name = strbuf_take(&sb, NULL);
        if (!*name)
            return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        int fd = sys_open(*name, O_WRONLY | O_CREAT | O_EXCL, 0666);
        if (fd >= 0)
            return fd;
        int errno_value = errno;
        sys_free(*name);
        *name = NULL;
        if (errno_value != EEXIST)
            return err_set_errno(err, errno_value, "%s: cannot create", path);
    }
    return err_set(err, ERR_EXISTS, "%s: no free temporary name beside it", path);
}

int file_write_atomic(const char *path, const void *data, size_t size, struct err *err)
{
    char *tmp = NULL;
    int fd = open_temporary(path, &tmp, err);
    if (fd < 0)
        return fd;
    int rc = file_write_all(fd, data, size, path, err);
    if (!rc && sys_fsync(fd) != 0)
        rc = err_set_errno(err, errno, "%s: cannot sync", path);
    if (sys_close(fd) != 0 && !rc)
        rc = err_set_errno(err, errno, "%s: cannot close", path);
    if (!rc && sys_rename(tmp, path) != 0)
        rc = err_set_errno(err, errno, "%s: cannot rename to it", path);
    if (rc) {
        sys_unlink(tmp);
        sys_free(tmp);
        return rc;
    }
    sys_free(tmp);
    char *folder = file_dir_name(path);
    rc =
        folder ? file_sync_folder(folder, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    sys_free(folder);
    return rc;
}

bool file_exists(const char *path)
{
    struct stat st;
    return sys_stat(path, &st) == 0;
}

bool file_is_folder(const char *path)
{
    struct stat st;
    return sys_stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

int file_size(const char *path, uint64_t *size, struct err *err)
{
    struct stat st;
    if (sys_stat(path, &st) != 0)
        return err_set_errno(err, errno, "%s: cannot stat", path);
    *size = (uint64_t)st.st_size;
    return 0;
}

int file_make_folders(const char *path, struct err *err)
{
    char *copy = sys_strdup(path);
    if (!copy)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    int rc = 0;
    for (char *p = copy; !rc && *p;) {
        p += strspn(p, "/");
        p += strcspn(p, "/");
        char keep = *p;
        *p = '\0';
        // EEXIST says nothing of what is there; a file in the way is found by the next mkdir or
        // below.
        if (sys_mkdir(copy, 0777) != 0 && errno != EEXIST)
            rc = err_set_errno(err, errno, "%s: cannot make the folder", copy);
        *p = keep;
    }
    if (!rc && !file_is_folder(path))
        rc = err_set(err, ERR_EXISTS, "%s: is there and is no folder", path);
    sys_free(copy);
    return rc;
}

/* Removes what is in the folder; a name that vanished meanwhile is no error. */
static int remove_inside(const char *path, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(path, &names, &n, err);
    for (size_t i = 0; !rc && i < n; i++) {
        char *child = file_join(path, names[i]);
        rc = child ? file_remove_tree(child, err)
                   : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        sys_free(child);
    }
    file_free_names(names, n);
    return rc;
}

int file_remove_tree(const char *path, struct err *err)
{
    struct stat st;
    if (sys_lstat(path, &st) != 0)
        return errno == ENOENT ? 0 : err_set_errno(err, errno, "%s: cannot stat", path);
    if (!S_ISDIR(st.st_mode)) {
        if (sys_unlink(path) != 0 && errno != ENOENT)
            return err_set_errno(err, errno, "%s: cannot remove", path);
        return 0;
    }
    int rc = remove_inside(path, err);
    if (!rc && sys_rmdir(path) != 0 && errno != ENOENT)
        rc = err_set_errno(err, errno, "%s: cannot remove the folder", path);
    return rc;
}

/* The kernel copies; false where it cannot and nothing was written yet. */
static bool copy_in_kernel(int in, int out, bool *done)
{
    *done = ioctl(out, FICLONE, in) == 0;
    if (*done)
        return true;
    bool any = false;
    for (;;) {
        ssize_t n = sys_copy_file_range(in, NULL, out, NULL, 1 << 30);
        if (n < 0)
            return any; // with bytes written a failure is a failure; else the plain loop may work
        if (n == 0) {
            *done = true;
            return any; // 0 at once: empty, or a file system that does not know (read() decides)
        }
        any = true;
    }
}

static int copy_by_reading(int in, int out, const char *from, const char *to, struct err *err)
{
    char *buf = sys_malloc(COPY_BYTES);
    if (!buf)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory to copy it", from);
    int rc = 0;
    while (!rc) {
        ssize_t n = sys_read(in, buf, COPY_BYTES);
        if (n < 0)
            rc = err_set_errno(err, errno, "%s: cannot read", from);
        if (n <= 0)
            break;
        rc = file_write_all(out, buf, (size_t)n, to, err);
    }
    sys_free(buf);
    return rc;
}

int file_copy(const char *from, const char *to, struct err *err)
{
    int in = sys_open(from, O_RDONLY, 0);
    if (in < 0)
        return err_set_errno(err, errno, "%s: cannot open", from);
    int out = sys_open(to, O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (out < 0) {
        int rc = err_set_errno(err, errno, "%s: cannot create", to);
        sys_close(in);
        return rc;
    }
    int rc = 0;
    bool done;
    if (copy_in_kernel(in, out, &done)) {
        if (!done)
            rc = err_set_errno(err, errno, "%s: cannot write", to);
    } else {
        rc = copy_by_reading(in, out, from, to, err);
    }
    sys_close(in);
    if (sys_close(out) != 0 && !rc)
        rc = err_set_errno(err, errno, "%s: cannot close", to);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int read_names(DIR *dir, const char *path, char ***names, size_t *n, struct err *err)
{
    size_t cap = 0;
    for (;;) {
        errno = 0;
        struct dirent *e = readdir(dir);
        if (!e)
            return errno ? err_set_errno(err, errno, "%s: cannot list", path) : 0;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (*n == cap) {
            cap = cap ? cap * 2 : 16;
            char **more = sys_reallocarray(*names, cap, sizeof **names);
            if (!more)
                return err_set(err, ERR_NO_MEMORY, "%s: no memory for its names", path);
            *names = more;
        }
        char *name = sys_strdup(e->d_name);
        if (!name)
            return err_set(err, ERR_NO_MEMORY, "%s: no memory for its names", path);
        (*names)[(*n)++] = name;
    }
}

int file_list(const char *path, char ***names, size_t *n, struct err *err)
{
    *names = NULL;
    *n = 0;
    int fd = sys_open(path, O_RDONLY | O_DIRECTORY, 0);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    if (!dir) {
        int rc = err_set_errno(err, errno, "%s: cannot list", path);
        if (fd >= 0)
            sys_close(fd);
        return rc;
    }
    int rc = read_names(dir, path, names, n, err);
    closedir(dir);
    if (rc) {
        file_free_names(*names, *n);
        *names = NULL;
        *n = 0;
        return rc;
    }
    if (*n)
        qsort(*names, *n, sizeof **names, compare_names);
    return 0;
}

void file_free_names(char **names, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sys_free(names[i]);
    sys_free(names);
}

char *file_join(const char *a, const char *b)
{
    size_t len = strlen(a);
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s%s%s", a, len && a[len - 1] != '/' ? "/" : "", b);
    return strbuf_take(&sb, NULL);
}

const char *file_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *file_dir_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return sys_strdup(".");
    while (slash > path && slash[-1] == '/')
        slash--;
    return slash == path ? sys_strdup("/") : sys_strndup(path, (size_t)(slash - path));
}

char *file_real_path(const char *path, struct err *err)
{
    char buf[PATH_MAX];
    if (!realpath(path, buf)) {
        err_set_errno(err, errno, "%s: cannot resolve", path);
        return NULL;
    }
    char *copy = sys_strdup(buf);
    if (!copy)
        err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    return copy;
}
