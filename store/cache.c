#include "store/cache.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

/* A pack file: this, then the bytes. In the machine's own byte order: packs are, too. */
struct pack_header {
    char magic[8];
    uint64_t size;
    struct digest payload;
    struct digest key;
};
static const char pack_magic[8] = "LORAPCK1";

static char *path_of(const char *root, const char *kind, const char *id, const char *name,
                     struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s/cache/%s/%s%s%s", root, kind, id, name ? "/" : "", name ? name : "");
    char *path = strbuf_take(&sb, NULL);
    if (!path)
        err_set(err, ERR_NO_MEMORY, "%s: no memory for a path", root);
    return path;
}

// ---- packs -------------------------------------------------------------------------------------

/* Opens the pack and checks its header. The caller closes *fd. */
static int open_pack(const char *root, const char *id, const char *key, int *fd,
                     struct pack_header *h, char **path, struct err *err)
{
    char hex[DIGEST_HEX_CHARS + 1];
    struct digest key_digest;
    *fd = -1;
    *path = NULL;
    int rc = digest_buffer(key, strlen(key), &key_digest, err);
    if (rc)
        return rc;
    digest_hex(&key_digest, hex);
    *path = path_of(root, "packs", id, hex, err);
    if (!*path)
        return ERR_NO_MEMORY;
    *fd = sys_open(*path, O_RDONLY, 0);
    if (*fd < 0)
        return err_set_errno(err, errno, "%s: cannot open", *path);
    rc = file_pread_all(*fd, h, sizeof *h, 0, *path, err);
    if (!rc &&
        (memcmp(h->magic, pack_magic, sizeof h->magic) != 0 || !digest_equal(&h->key, &key_digest)))
        rc = err_set(err, ERR_CORRUPT, "%s: not the pack of that key", *path);
    return rc;
}

static void close_pack(int fd, char *path, int rc)
{
    if (fd >= 0)
        sys_close(fd);
    if (rc == ERR_CORRUPT && path)
        sys_unlink(path); // it is made again
    sys_free(path);
}

int cache_pack_size(const char *root, const char *content_id, const char *key, uint64_t *size,
                    struct err *err)
{
    struct pack_header h;
    char *path;
    int fd, rc = open_pack(root, content_id, key, &fd, &h, &path, err);
    if (!rc)
        *size = h.size;
    close_pack(fd, path, rc);
    return rc;
}

/* Reads and hashes piece by piece, so that the hash sees bytes that are still in the cache. */
static int read_payload(int fd, const char *path, uint8_t *dst, const struct pack_header *h,
                        struct err *err)
{
    enum { PIECE = 1 << 20 };
    struct digest_state *d;
    struct digest got;
    int rc = digest_open(&d, err);
    for (uint64_t at = 0; !rc && at < h->size; at += PIECE) {
        size_t n = h->size - at < PIECE ? (size_t)(h->size - at) : PIECE;
        rc = file_pread_all(fd, dst + at, n, sizeof *h + at, path, err);
        if (!rc)
            rc = digest_update(d, dst + at, n, err);
    }
    if (!rc)
        rc = digest_final(d, &got, err);
    digest_free(d);
    if (!rc && !digest_equal(&got, &h->payload))
        rc = err_set(err, ERR_CORRUPT, "%s: the pack's bytes have another digest", path);
    return rc;
}

int cache_pack_read(const char *root, const char *content_id, const char *key, void *dst,
                    uint64_t size, struct err *err)
{
    struct pack_header h;
    char *path;
    int fd, rc = open_pack(root, content_id, key, &fd, &h, &path, err);
    if (!rc && h.size != size)
        rc = err_set(err, ERR_CORRUPT, "%s: %llu bytes, wanted %llu", path,
                     (unsigned long long)h.size, (unsigned long long)size);
    if (!rc)
        rc = read_payload(fd, path, dst, &h, err);
    if (!rc)
        sys_touch(fd); // its time is when it was last of use
    close_pack(fd, path, rc);
    return rc;
}

/* No sync: a pack that a crash tore fails its digest and is made again. */
static int write_pack(const char *tmp, const struct pack_header *h, const void *data,
                      struct err *err)
{
    int fd = sys_open(tmp, O_WRONLY | O_CREAT | O_EXCL, 0666);
    if (fd < 0)
        return err_set_errno(err, errno, "%s: cannot create", tmp);
    int rc = file_write_all(fd, h, sizeof *h, tmp, err);
    if (!rc)
        rc = file_write_all(fd, data, h->size, tmp, err);
    if (sys_close(fd) != 0 && !rc)
        rc = err_set_errno(err, errno, "%s: cannot close", tmp);
    return rc;
}

static int make_header(struct pack_header *h, const char *key, const void *data, uint64_t size,
                       struct err *err)
{
    memset(h, 0, sizeof *h);
    memcpy(h->magic, pack_magic, sizeof h->magic);
    h->size = size;
    int rc = digest_buffer(data, size, &h->payload, err);
    return rc ? rc : digest_buffer(key, strlen(key), &h->key, err);
}

static int trim(const char *root, uint64_t cap_bytes, bool dry_run,
                void (*removed)(void *arg, const char *name, uint64_t bytes), void *arg,
                struct err *err);

/* Looks at the cap now and then: at a process's first write, and after a sixteenth of it. */
static void trim_sometimes(const char *root, uint64_t cap_bytes, uint64_t written)
{
    static uint64_t since_trim = UINT64_MAX / 2;
    if (__atomic_add_fetch(&since_trim, written, __ATOMIC_RELAXED) < cap_bytes / 16)
        return;
    __atomic_store_n(&since_trim, 0, __ATOMIC_RELAXED);
    trim(root, cap_bytes, false, NULL, NULL, NULL);
}

int cache_pack_write(const char *root, const char *content_id, const char *key, const void *data,
                     uint64_t size, uint64_t cap_bytes, struct err *err)
{
    static unsigned counter;
    struct pack_header h;
    char hex[DIGEST_HEX_CHARS + 1], tmp_name[64];
    int rc = make_header(&h, key, data, size, err);
    if (rc)
        return rc;
    digest_hex(&h.key, hex);
    snprintf(tmp_name, sizeof tmp_name, "tmp-%ld-%u", (long)getpid(),
             __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    char *folder = path_of(root, "packs", content_id, NULL, err);
    char *tmp = folder ? file_join(folder, tmp_name) : NULL;
    char *to = tmp ? file_join(folder, hex) : NULL;
    rc = to ? file_make_folders(folder, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", root);
    if (!rc)
        rc = write_pack(tmp, &h, data, err);
    if (!rc && sys_rename(tmp, to) != 0)
        rc = err_set_errno(err, errno, "%s: cannot rename to it", to);
    if (rc && tmp)
        sys_unlink(tmp);
    if (!rc)
        trim_sometimes(root, cap_bytes, size);
    sys_free(folder);
    sys_free(tmp);
    sys_free(to);
    return rc;
}

// ---- folders of links --------------------------------------------------------------------------

static bool links_to(const char *path, const char *target)
{
    char buf[4096];
    ssize_t n = readlink(path, buf, sizeof buf - 1);
    if (n < 0)
        return false;
    buf[n] = '\0';
    return strcmp(buf, target) == 0;
}

/* Puts a link at `path`, or in the place of another one, at once: a reader beside it never finds
 * the name gone. */
static int place_link(const char *parent, const char *path, const char *target, struct err *err)
{
    static unsigned counter;
    char name[64];
    snprintf(name, sizeof name, ".link-%ld-%u", (long)getpid(),
             __atomic_add_fetch(&counter, 1, __ATOMIC_RELAXED));
    char *tmp = file_join(parent, name);
    if (!tmp)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", parent);
    int rc = 0;
    if (sys_symlink(target, tmp) != 0)
        rc = err_set_errno(err, errno, "%s: cannot link", path);
    else if (sys_rename(tmp, path) != 0)
        rc = err_set_errno(err, errno, "%s: cannot replace", path);
    if (rc)
        sys_unlink(tmp);
    sys_free(tmp);
    return rc;
}

static int make_link(const char *folder, const struct cache_link *link, struct err *err)
{
    char *path = file_join(folder, link->name);
    if (!path)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    int rc = 0;
    if (!links_to(path, link->target)) {
        char *parent = file_dir_name(path);
        rc = parent ? file_make_folders(parent, err)
                    : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
        if (!rc)
            rc = place_link(parent, path, link->target, err);
        sys_free(parent);
    }
    sys_free(path);
    return rc;
}

int cache_link_folder(const char *root, const char *id, const struct cache_link *links,
                      size_t n_links, char **folder, struct err *err)
{
    *folder = path_of(root, "objects", id, NULL, err);
    int rc = *folder ? file_make_folders(*folder, err) : ERR_NO_MEMORY;
    for (size_t i = 0; !rc && i < n_links; i++)
        rc = make_link(*folder, &links[i], err);
    if (rc) {
        sys_free(*folder);
        *folder = NULL;
    }
    return rc;
}

// ---- making room -------------------------------------------------------------------------------

struct pack_file {
    char *path;
    uint64_t size;
    int64_t used_ns;
};

struct pack_files {
    struct pack_file *items;
    size_t n, cap;
    uint64_t bytes;
};

static int collect(struct pack_files *all, char *path)
{
    struct stat st;
    if (all->n == all->cap) {
        size_t cap = all->cap ? all->cap * 2 : 64;
        void *more = sys_reallocarray(all->items, cap, sizeof *all->items);
        if (!more)
            return ERR_NO_MEMORY;
        all->items = more;
        all->cap = cap;
    }
    if (sys_lstat(path, &st) != 0) {
        sys_free(path);
        return 0;
    }
    all->items[all->n++] = (struct pack_file){
        path, (uint64_t)st.st_size, (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec};
    all->bytes += (uint64_t)st.st_size;
    return 0;
}

static int collect_folder(struct pack_files *all, const char *folder)
{
    char **names;
    size_t n;
    if (file_list(folder, &names, &n, NULL) != 0)
        return 0; // gone meanwhile, or no cache at all
    int rc = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        char *path = file_join(folder, names[i]);
        rc = path ? collect(all, path) : ERR_NO_MEMORY;
        if (rc)
            sys_free(path);
    }
    file_free_names(names, n);
    return rc;
}

static int by_use(const void *a, const void *b)
{
    const struct pack_file *x = a, *y = b;
    return (x->used_ns > y->used_ns) - (x->used_ns < y->used_ns);
}

static int trim(const char *root, uint64_t cap_bytes, bool dry_run,
                void (*removed)(void *arg, const char *name, uint64_t bytes), void *arg,
                struct err *err)
{
    struct pack_files all = {0};
    char *packs = path_of(root, "packs", "", NULL, err), **ids = NULL;
    size_t n_ids = 0;
    int rc = packs ? 0 : ERR_NO_MEMORY;
    if (!rc && file_list(packs, &ids, &n_ids, NULL) != 0)
        n_ids = 0;
    for (size_t i = 0; !rc && i < n_ids; i++) {
        char *folder = file_join(packs, ids[i]);
        rc = folder ? collect_folder(&all, folder) : ERR_NO_MEMORY;
        sys_free(folder);
    }
    char *tokenizers = rc ? NULL : path_of(root, "tokenizer", "", NULL, err);
    if (!rc)
        rc = tokenizers ? collect_folder(&all, tokenizers) : ERR_NO_MEMORY;
    sys_free(tokenizers);
    if (rc)
        err_set(err, rc, "%s: no memory", root);
    if (!rc && all.n)
        qsort(all.items, all.n, sizeof *all.items, by_use);
    for (size_t i = 0; i < all.n; i++) {
        if (!rc && all.bytes > cap_bytes) {
            all.bytes -= all.items[i].size;
            if (removed)
                removed(arg, all.items[i].path, all.items[i].size);
            if (!dry_run)
                sys_unlink(all.items[i].path);
        }
        sys_free(all.items[i].path);
    }
    sys_free(all.items);
    file_free_names(ids, n_ids);
    sys_free(packs);
    return rc;
}

/* Removes cache/kind/<id> for every id that is not kept. */
static int sweep_kind(struct store *s, const char *kind, struct id_set *keep, bool dry_run,
                      void (*removed)(void *arg, const char *name, uint64_t bytes), void *arg,
                      struct err *err)
{
    char *folder = path_of(s->path, kind, "", NULL, err), **ids = NULL;
    size_t n = 0;
    int rc = folder ? 0 : ERR_NO_MEMORY;
    if (!rc && file_list(folder, &ids, &n, NULL) != 0)
        n = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        if (id_set_has(keep, ids[i]))
            continue;
        char *path = file_join(folder, ids[i]);
        rc = path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
        if (!rc && removed)
            removed(arg, path, 0);
        if (!rc && !dry_run)
            rc = file_remove_tree(path, err);
        sys_free(path);
    }
    file_free_names(ids, n);
    sys_free(folder);
    return rc;
}

// ---- downloads that broke off ------------------------------------------------------------------

enum { PARTIAL_DAYS = 7 };

char *cache_partial_path(const char *root, const char *digest, struct err *err)
{
    char *folder = path_of(root, "partial", "", NULL, err), *path = NULL;
    if (folder && file_make_folders(folder, err) == 0) {
        path = file_join(folder, digest);
        if (!path)
            err_set(err, ERR_NO_MEMORY, "%s: no memory for a path", root);
    }
    sys_free(folder);
    return path;
}

/* Whether nobody touched it for days, and nobody has it open to go on with. */
static bool is_given_up(const char *path, uint64_t *bytes)
{
    struct stat st;
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return false;
    bool old =
        sys_fstat(fd, &st) == 0 &&
        (uint64_t)st.st_mtim.tv_sec + PARTIAL_DAYS * 86400u < thread_unix_ns() / 1000000000u &&
        sys_flock(fd, LOCK_EX | LOCK_NB) == 0;
    *bytes = old ? (uint64_t)st.st_size : 0;
    sys_close(fd);
    return old;
}

static int sweep_partial(struct store *s, bool dry_run,
                         void (*removed)(void *arg, const char *name, uint64_t bytes), void *arg,
                         struct err *err)
{
    char *folder = path_of(s->path, "partial", "", NULL, err), **names = NULL;
    size_t n = 0;
    int rc = folder ? 0 : ERR_NO_MEMORY;
    if (!rc && file_list(folder, &names, &n, NULL) != 0)
        n = 0;
    for (size_t i = 0; !rc && i < n; i++) {
        uint64_t bytes;
        char *path = file_join(folder, names[i]);
        rc = path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
        if (!rc && is_given_up(path, &bytes)) {
            if (removed)
                removed(arg, path, bytes);
            if (!dry_run)
                sys_unlink(path);
        }
        sys_free(path);
    }
    file_free_names(names, n);
    sys_free(folder);
    return rc;
}

int cache_sweep(struct store *s, struct id_set *keep, uint64_t cap_bytes, bool dry_run,
                void (*removed)(void *arg, const char *name, uint64_t bytes), void *arg,
                struct err *err)
{
    int rc = sweep_kind(s, "objects", keep, dry_run, removed, arg, err);
    if (!rc)
        rc = sweep_kind(s, "packs", keep, dry_run, removed, arg, err);
    if (!rc)
        rc = sweep_partial(s, dry_run, removed, arg, err);
    return rc ? rc : trim(s->path, cap_bytes, dry_run, removed, arg, err);
}
