#include "libcore/text/vocab.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/text/vocab_impl.h"

/* Up to 30 MB each; a store serves few bases, but their files may change. */
enum { MOST_CACHED = 16 };

/* A file that changed this short a time ago may change again within one tick of its clock. */
static const int64_t SETTLED_NS = 100000000;

void vocab_attach(struct vocab *v)
{
    const struct vocab_header *h = (const struct vocab_header *)v->block;
    v->n_ids = h->n_ids;
    v->n_tokens = h->n_tokens;
    v->n_merges = h->n_merges;
    v->n_added = h->n_added;
    v->tokens = (const struct vocab_token *)(v->block + h->offset[SECTION_TOKENS]);
    v->text = (const char *)(v->block + h->offset[SECTION_TEXT]);
    v->slots = (const struct vocab_slot *)(v->block + h->offset[SECTION_SLOTS]);
    v->slot_mask = (uint32_t)(h->bytes[SECTION_SLOTS] / sizeof *v->slots) - 1;
    v->merges = (const struct vocab_merge *)(v->block + h->offset[SECTION_MERGES]);
    v->merge_mask = (uint32_t)(h->bytes[SECTION_MERGES] / sizeof *v->merges) - 1;
    v->added = (const struct vocab_added *)(v->block + h->offset[SECTION_ADDED]);
    v->pairs =
        h->bytes[SECTION_PAIRS] ? (const uint64_t *)(v->block + h->offset[SECTION_PAIRS]) : NULL;
    v->pair_mask = (uint32_t)(h->bytes[SECTION_PAIRS] * 8) - 1;
    v->rest = (const char *)(v->block + h->offset[SECTION_REST]);
    v->rest_len = h->bytes[SECTION_REST] - 1;
}

/* Four lanes, so that it runs at memory speed; finds damage, not malice. */
static uint64_t checksum(const uint8_t *p, size_t n)
{
    const uint64_t k = 0x9E3779B97F4A7C15u;
    uint64_t lane[4] = {1, 2, 3, 4}, word[4];
    for (; n >= 32; p += 32, n -= 32) {
        memcpy(word, p, 32);
        for (int i = 0; i < 4; i++) {
            lane[i] = (lane[i] ^ word[i]) * k;
            lane[i] ^= lane[i] >> 31;
        }
    }
    return vocab_hash((const char *)lane, sizeof lane) ^ vocab_hash((const char *)p, n);
}

/* ---- the cache ---- */

static int64_t to_ns(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static bool identify(const char *path, struct vocab_source *source)
{
    struct stat st;
    if (sys_stat(path, &st) != 0)
        return false;
    memset(source, 0, sizeof *source);
    source->device = (uint64_t)st.st_dev;
    source->inode = (uint64_t)st.st_ino;
    source->size = (uint64_t)st.st_size;
    source->mtime_ns = to_ns(st.st_mtim);
    source->ctime_ns = to_ns(st.st_ctim);
    return true;
}

static char *cache_path(const char *folder, const struct vocab_source *source)
{
    char name[64];
    snprintf(name, sizeof name, "tokenizer-%016llx.v%d",
             (unsigned long long)vocab_hash((const char *)source, sizeof *source), VOCAB_VERSION);
    return file_join(folder, name);
}

static bool header_is_sound(const struct vocab_header *h, size_t size,
                            const struct vocab_source *source)
{
    if (size < sizeof *h || memcmp(h->magic, "loratok", 8) != 0 || h->version != VOCAB_VERSION ||
        h->byte_order != 0x01020304 || h->size != size ||
        memcmp(&h->source, source, sizeof *source) != 0)
        return false;
    const uint8_t *body = (const uint8_t *)h + sizeof *h;
    return checksum(body, size - sizeof *h) == h->checksum;
}

static struct vocab *map_cache(const char *path, const struct vocab_source *source)
{
    struct stat st;
    struct vocab *v = NULL;
    int fd = sys_open(path, O_RDONLY, 0);
    if (fd < 0)
        return NULL;
    void *p = NULL;
    if (sys_fstat(fd, &st) == 0 && st.st_size >= (off_t)sizeof(struct vocab_header))
        p = sys_mmap_read(fd, (size_t)st.st_size);
    sys_close(fd);
    if (!p)
        return NULL;
    if (header_is_sound(p, (size_t)st.st_size, source))
        v = sys_calloc(1, sizeof *v);
    if (!v) {
        sys_munmap(p, (size_t)st.st_size);
        return NULL;
    }
    v->block = p;
    v->size = (size_t)st.st_size;
    v->mapped = true;
    vocab_attach(v);
    return v;
}

/* Before one more comes: of MOST_CACHED files the one that was written first goes. */
static void make_room(const char *folder)
{
    char **names;
    size_t n, n_ours = 0;
    struct stat st;
    char *oldest = NULL;
    struct timespec when = {0};
    if (file_list(folder, &names, &n, NULL) != 0)
        return;
    for (size_t i = 0; i < n; i++) {
        char *path = strncmp(names[i], "tokenizer-", 10) == 0 ? file_join(folder, names[i]) : NULL;
        bool older =
            path && sys_stat(path, &st) == 0 && (!oldest || to_ns(st.st_mtim) < to_ns(when));
        n_ours += path != NULL;
        if (older) {
            sys_free(oldest);
            oldest = path;
            when = st.st_mtim;
        } else {
            sys_free(path);
        }
    }
    if (oldest && n_ours >= MOST_CACHED)
        sys_unlink(oldest);
    sys_free(oldest);
    file_free_names(names, n);
}

/* Written beside and renamed; not synced, since a damaged file is found by its checksum. */
static void write_cache(const char *folder, const char *path, struct vocab *v,
                        const struct vocab_source *source)
{
    struct vocab_header *h = (struct vocab_header *)v->block;
    h->source = *source;
    h->checksum = checksum(v->block + sizeof *h, v->size - sizeof *h);
    char part[32];
    snprintf(part, sizeof part, ".%ld.%llx", (long)getpid(), (unsigned long long)thread_now_ns());
    size_t n = strlen(path), m = strlen(part);
    char *temporary = sys_malloc(n + m + 1);
    if (!temporary || file_make_folders(folder, NULL) != 0) {
        sys_free(temporary);
        return;
    }
    make_room(folder);
    memcpy(temporary, path, n);
    memcpy(temporary + n, part, m + 1);
    int fd = sys_open(temporary, O_WRONLY | O_CREAT | O_EXCL, 0644);
    if (fd >= 0) {
        int rc = file_write_all(fd, v->block, v->size, temporary, NULL);
        sys_close(fd);
        if (rc || sys_rename(temporary, path) != 0)
            sys_unlink(temporary);
    }
    sys_free(temporary);
}

static int build(struct vocab **out, const char *path, struct err *err)
{
    char *json = NULL;
    size_t n;
    struct vocab *v = sys_calloc(1, sizeof *v);
    if (!v)
        return err_set(err, ERR_NO_MEMORY, "%s: out of memory", path);
    int rc = file_read(path, LIMIT_TOKENIZER_BYTES, &json, &n, err);
    if (!rc)
        rc = vocab_build(&v->block, &v->size, json, n, path, err);
    sys_free(json);
    if (rc) {
        vocab_free(v);
        return rc;
    }
    vocab_attach(v);
    *out = v;
    return 0;
}

int vocab_open(struct vocab **out, const char *path, const char *cache_folder, struct err *err)
{
    struct vocab_source before, after;
    char *cached = NULL;
    *out = NULL;
    if (cache_folder && identify(path, &before))
        cached = cache_path(cache_folder, &before);
    if (cached)
        *out = map_cache(cached, &before);
    int rc = *out ? 0 : build(out, path, err);
    if (!rc && cached && !(*out)->mapped && identify(path, &after) &&
        memcmp(&before, &after, sizeof before) == 0 &&
        (int64_t)thread_unix_ns() - before.ctime_ns > SETTLED_NS)
        write_cache(cache_folder, cached, *out, &before);
    sys_free(cached);
    return rc;
}

void vocab_free(struct vocab *v)
{
    if (!v)
        return;
    if (v->mapped)
        sys_munmap(v->block, v->size);
    else
        sys_free(v->block);
    sys_free(v);
}

/* ---- lookups ---- */

uint32_t vocab_find_hashed(const struct vocab *v, uint64_t h, const char *text, size_t n)
{
    if (!v->n_tokens)
        return VOCAB_NONE;
    uint32_t tag = (uint32_t)(h >> 32);
    for (uint32_t i = (uint32_t)h & v->slot_mask; v->slots[i].id != VOCAB_NONE;
         i = (i + 1) & v->slot_mask) {
        const struct vocab_token *t = &v->tokens[v->slots[i].id];
        if (v->slots[i].tag == tag && t->len == n && memcmp(v->text + t->offset, text, n) == 0)
            return v->slots[i].id;
    }
    return VOCAB_NONE;
}

uint32_t vocab_find(const struct vocab *v, const char *text, size_t n)
{
    return vocab_find_hashed(v, vocab_hash(text, n), text, n);
}

const struct vocab_merge *vocab_find_merge(const struct vocab *v, uint32_t left, uint32_t right)
{
    uint32_t i = (uint32_t)vocab_hash_pair(left, right) & v->merge_mask;
    for (; v->merges[i].left != VOCAB_NONE; i = (i + 1) & v->merge_mask) {
        if (v->merges[i].left == left && v->merges[i].right == right)
            return &v->merges[i];
    }
    return NULL;
}

bool vocab_may_join(const struct vocab *v, uint32_t left_char, uint32_t right_char)
{
    uint32_t bit = (uint32_t)vocab_hash_pair(left_char, right_char) & v->pair_mask;
    return v->pairs[bit / 64] >> bit % 64 & 1;
}
