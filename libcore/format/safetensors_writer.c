#include "libcore/format/safetensors_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/arena.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

struct declared {
    const char *name;
    struct tensor shape; // data unused
    uint64_t begin, bytes;
};

struct pair {
    const char *key, *value;
};

struct safetensors_writer {
    struct arena arena;
    const char *path, *tmp;
    int fd; // -1: no file yet
    struct declared *tensors;
    size_t n_tensors, cap_tensors;
    struct pair *metadata;
    size_t n_metadata, cap_metadata;
    uint64_t data_offset, payload_bytes;
    atomic_ullong put_bytes;
};

static int no_memory(const struct safetensors_writer *w, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", w->path);
}

int safetensors_writer_open(struct safetensors_writer **out, const char *path, struct err *err)
{
    *out = NULL;
    struct safetensors_writer *w = sys_calloc(1, sizeof *w);
    if (!w)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    arena_init(&w->arena);
    w->fd = -1;
    w->path = arena_strdup(&w->arena, path);
    w->tmp = arena_printf(&w->arena, "%s.%d.tmp", path, (int)getpid());
    if (!w->path || !w->tmp) {
        safetensors_writer_free(w);
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    }
    *out = w;
    return 0;
}

void safetensors_writer_free(struct safetensors_writer *w)
{
    if (!w)
        return;
    if (w->fd >= 0) {
        sys_close(w->fd);
        sys_unlink(w->tmp);
    }
    sys_free(w->tensors);
    sys_free(w->metadata);
    arena_release(&w->arena);
    sys_free(w);
}

static void *grown(void *table, size_t *cap, size_t n, size_t size)
{
    if (n < *cap)
        return table;
    size_t wanted = *cap ? *cap * 2 : 64;
    void *p = sys_reallocarray(table, wanted, size);
    if (p)
        *cap = wanted;
    return p;
}

int safetensors_writer_metadata(struct safetensors_writer *w, const char *key, const char *value,
                                struct err *err)
{
    for (size_t i = 0; i < w->n_metadata; i++) {
        if (strcmp(w->metadata[i].key, key) == 0)
            return err_set(err, ERR_EXISTS, "%s: metadata \"%s\" twice", w->path, key);
    }
    void *p = grown(w->metadata, &w->cap_metadata, w->n_metadata, sizeof *w->metadata);
    if (!p)
        return no_memory(w, err);
    w->metadata = p;
    struct pair *m = &w->metadata[w->n_metadata];
    m->key = arena_strdup(&w->arena, key);
    m->value = arena_strdup(&w->arena, value);
    if (!m->key || !m->value)
        return no_memory(w, err);
    w->n_metadata++;
    return 0;
}

int safetensors_writer_declare(struct safetensors_writer *w, const char *name, enum dtype dtype,
                               uint32_t n_dims, const uint64_t *shape, struct err *err)
{
    if (n_dims > LIMIT_TENSOR_DIMS || dtype == DTYPE_NONE || dtype >= DTYPE_COUNT)
        return err_set(err, ERR_LIMIT, "%s:%s: %u dimensions of type %d cannot be written", w->path,
                       name, n_dims, (int)dtype);
    void *p = grown(w->tensors, &w->cap_tensors, w->n_tensors, sizeof *w->tensors);
    if (!p)
        return no_memory(w, err);
    w->tensors = p;
    struct declared *d = &w->tensors[w->n_tensors];
    memset(d, 0, sizeof *d);
    d->name = arena_strdup(&w->arena, name);
    if (!d->name)
        return no_memory(w, err);
    d->shape.dtype = dtype;
    d->shape.n_dims = n_dims;
    uint64_t bits = dtype_bits(dtype);
    for (uint32_t i = 0; i < n_dims; i++) {
        d->shape.shape[i] = shape[i];
        if (__builtin_mul_overflow(bits, shape[i], &bits))
            return err_set(err, ERR_LIMIT, "%s:%s: shape overflows 64 bits", w->path, name);
    }
    if (bits % 8)
        return err_set(err, ERR_LIMIT, "%s:%s: not a whole number of bytes", w->path, name);
    d->bytes = bits / 8;
    w->n_tensors++;
    return 0;
}

static int compare_order(const void *a, const void *b)
{
    const struct declared *x = a, *y = b;
    if (x->shape.dtype != y->shape.dtype) // enum dtype is in the reference's order, narrow to wide
        return x->shape.dtype > y->shape.dtype ? -1 : 1;
    return strcmp(x->name, y->name);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct declared *)a)->name, ((const struct declared *)b)->name);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const struct pair *)a)->key, ((const struct pair *)b)->key);
}

/* Orders tensors for the file and gives them their places; the header's text into sb. */
static void build_header(struct safetensors_writer *w, struct strbuf *sb)
{
    if (w->n_metadata)
        qsort(w->metadata, w->n_metadata, sizeof *w->metadata, compare_keys);
    if (w->n_tensors)
        qsort(w->tensors, w->n_tensors, sizeof *w->tensors, compare_order);
    strbuf_addc(sb, '{');
    for (size_t i = 0; i < w->n_metadata; i++) {
        strbuf_adds(sb, i ? "," : "\"__metadata__\":{");
        strbuf_add_json(sb, w->metadata[i].key, strlen(w->metadata[i].key));
        strbuf_addc(sb, ':');
        strbuf_add_json(sb, w->metadata[i].value, strlen(w->metadata[i].value));
    }
    if (w->n_metadata)
        strbuf_adds(sb, w->n_tensors ? "}," : "}");
    uint64_t at = 0;
    for (size_t i = 0; i < w->n_tensors; i++) {
        struct declared *d = &w->tensors[i];
        d->begin = at;
        at += d->bytes;
        if (i)
            strbuf_addc(sb, ',');
        strbuf_add_json(sb, d->name, strlen(d->name));
        strbuf_addf(sb, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(d->shape.dtype));
        for (uint32_t k = 0; k < d->shape.n_dims; k++)
            strbuf_addf(sb, k ? ",%llu" : "%llu", (unsigned long long)d->shape.shape[k]);
        strbuf_addf(sb, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)d->begin,
                    (unsigned long long)at);
    }
    strbuf_addc(sb, '}');
    while (sb->len % 8 && !sb->failed)
        strbuf_addc(sb, ' ');
    w->payload_bytes = at;
    w->data_offset = 8 + sb->len;
}

uint64_t safetensors_writer_file_bytes(struct safetensors_writer *w)
{
    struct strbuf sb;
    strbuf_init(&sb);
    build_header(w, &sb);
    strbuf_release(&sb);
    return w->data_offset + w->payload_bytes;
}

static int write_header(struct safetensors_writer *w, const struct strbuf *sb, struct err *err)
{
    unsigned char size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (unsigned char)(sb->len >> 8 * i);
    w->fd = sys_open(w->tmp, O_RDWR | O_CREAT | O_EXCL, 0644);
    if (w->fd < 0)
        return err_set_errno(err, errno, "%s: cannot create", w->tmp);
    int rc = file_write_all(w->fd, size, sizeof size, w->tmp, err);
    if (!rc)
        rc = file_write_all(w->fd, sb->data, sb->len, w->tmp, err);
    if (!rc && sys_ftruncate(w->fd, (off_t)(w->data_offset + w->payload_bytes)) != 0)
        rc = err_set_errno(err, errno, "%s: cannot make it %llu bytes long", w->tmp,
                           (unsigned long long)(w->data_offset + w->payload_bytes));
    return rc;
}

int safetensors_writer_begin(struct safetensors_writer *w, struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    build_header(w, &sb);
    int rc = sb.failed ? no_memory(w, err) : 0;
    if (!rc && w->n_tensors) // from here on put() finds by name
        qsort(w->tensors, w->n_tensors, sizeof *w->tensors, compare_names);
    for (size_t i = 1; !rc && i < w->n_tensors; i++) {
        if (strcmp(w->tensors[i - 1].name, w->tensors[i].name) == 0)
            rc = err_set(err, ERR_EXISTS, "%s:%s: declared twice", w->path, w->tensors[i].name);
    }
    if (!rc)
        rc = write_header(w, &sb, err);
    strbuf_release(&sb);
    return rc;
}

int safetensors_writer_put(struct safetensors_writer *w, const char *name, uint64_t offset,
                           const void *data, uint64_t size, struct err *err)
{
    struct declared key = {.name = name};
    const struct declared *d =
        w->n_tensors ? bsearch(&key, w->tensors, w->n_tensors, sizeof *w->tensors, compare_names)
                     : NULL;
    if (!d || offset > d->bytes || size > d->bytes - offset)
        return err_set(err, ERR_INTERNAL, "%s:%s: bytes %llu+%llu were not declared", w->path, name,
                       (unsigned long long)offset, (unsigned long long)size);
    const char *from = data;
    uint64_t at = w->data_offset + d->begin + offset;
    for (uint64_t left = size; left;) {
        ssize_t n = sys_pwrite(w->fd, from, left > 1 << 30 ? 1 << 30 : left, (off_t)at);
        if (n <= 0)
            return err_set_errno(err, n ? errno : EIO, "%s: cannot write", w->tmp);
        from += n;
        at += (uint64_t)n;
        left -= (uint64_t)n;
    }
    atomic_fetch_add(&w->put_bytes, size);
    return 0;
}

int safetensors_writer_finish(struct safetensors_writer *w, struct err *err)
{
    if (w->fd < 0 || atomic_load(&w->put_bytes) != w->payload_bytes)
        return err_set(err, ERR_INTERNAL, "%s: %llu of %llu payload bytes were put", w->path,
                       (unsigned long long)atomic_load(&w->put_bytes),
                       (unsigned long long)w->payload_bytes);
    if (sys_fsync(w->fd) != 0)
        return err_set_errno(err, errno, "%s: cannot sync", w->tmp);
    if (sys_rename(w->tmp, w->path) != 0)
        return err_set_errno(err, errno, "%s: cannot rename to it", w->path);
    sys_close(w->fd);
    w->fd = -1;
    char *folder = file_dir_name(w->path);
    if (!folder)
        return no_memory(w, err);
    int rc = file_sync_folder(folder, err);
    sys_free(folder);
    return rc;
}
