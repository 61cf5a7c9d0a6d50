/* Layout: ggml's docs/gguf.md. */
#include "libcore/format/gguf.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/arena.h"
#include "libcore/base/sys.h"

enum { MAX_PAIRS = 1 << 16, MAX_TENSORS = 1 << 20, MAX_NAME = 1 << 16, GGML_DIMS = 4 };

enum value_type {
    TYPE_U8,
    TYPE_I8,
    TYPE_U16,
    TYPE_I16,
    TYPE_U32,
    TYPE_I32,
    TYPE_F32,
    TYPE_BOOL,
    TYPE_TEXT,
    TYPE_ARRAY,
    TYPE_U64,
    TYPE_I64,
    TYPE_F64,
    N_TYPES
};
static const uint8_t type_bytes[N_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

struct pair {
    const char *key;
    uint32_t type;
    const char *text;     // of TYPE_TEXT
    const uint8_t *value; // of numbers
};

struct gguf {
    struct pair *pairs; // sorted by key
    size_t n_pairs;
    struct gguf_tensor *tensors; // sorted by name
    size_t n_tensors;
    struct arena arena;
};

struct cursor {
    const uint8_t *start, *p, *end;
    const char *where;
    struct gguf *g;
    struct err *err;
};

static int corrupt(struct cursor *c, const char *what)
{
    return err_set(c->err, ERR_CORRUPT, "%s: %s", c->where, what);
}

static int no_memory(struct cursor *c)
{
    return err_set(c->err, ERR_NO_MEMORY, "%s: no memory", c->where);
}

static uint64_t number_at(const uint8_t *p, unsigned n)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < n; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static int take(struct cursor *c, unsigned n, uint64_t *out)
{
    *out = 0;
    if ((size_t)(c->end - c->p) < n)
        return corrupt(c, "GGUF is cut off");
    *out = number_at(c->p, n);
    c->p += n;
    return 0;
}

/* A text of at most `max` bytes; out NULL: skipped. */
static int take_text(struct cursor *c, uint64_t max, const char **out)
{
    uint64_t n = 0;
    int rc = take(c, 8, &n);
    if (rc)
        return rc;
    if (n > (uint64_t)(c->end - c->p) || n > max)
        return corrupt(c, "GGUF has a text that is cut off or too long");
    if (out) {
        if (memchr(c->p, 0, (size_t)n))
            return corrupt(c, "GGUF has a NUL in a name");
        *out = arena_strndup(&c->g->arena, (const char *)c->p, (size_t)n);
        if (!*out)
            return no_memory(c);
    }
    c->p += n;
    return 0;
}

static int skip_array(struct cursor *c)
{
    uint64_t type = 0, n = 0;
    int rc = take(c, 4, &type);
    if (!rc)
        rc = take(c, 8, &n);
    if (rc)
        return rc;
    if (type >= N_TYPES || type == TYPE_ARRAY)
        return corrupt(c, "GGUF has an array of arrays, or of no known type");
    if (type != TYPE_TEXT) {
        if (n > (uint64_t)(c->end - c->p) / type_bytes[type])
            return corrupt(c, "GGUF is cut off in an array");
        c->p += n * type_bytes[type];
        return 0;
    }
    for (uint64_t i = 0; !rc && i < n; i++)
        rc = take_text(c, UINT64_MAX, NULL);
    return rc;
}

static int read_pair(struct cursor *c, struct pair *out)
{
    uint64_t type = 0;
    int rc = take_text(c, MAX_NAME, &out->key);
    if (!rc)
        rc = take(c, 4, &type);
    if (rc)
        return rc;
    if (type >= N_TYPES)
        return corrupt(c, "GGUF has a value of no known type");
    out->type = (uint32_t)type;
    if (type == TYPE_ARRAY)
        return skip_array(c);
    if (type == TYPE_TEXT) // values may hold anything: only those without a NUL are handed out
        return take_text(c, UINT64_MAX, &out->text);
    out->value = c->p;
    uint64_t ignored;
    return take(c, type_bytes[type], &ignored);
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct pair *)a)->key, ((const struct pair *)b)->key);
}

static int read_pairs(struct cursor *c, uint64_t n)
{
    struct gguf *g = c->g;
    if (n > MAX_PAIRS || n > (uint64_t)(c->end - c->p) / 13) // key, type, one byte at least
        return corrupt(c, "GGUF has more values than bytes");
    g->pairs = sys_calloc((size_t)n + 1, sizeof *g->pairs);
    if (!g->pairs)
        return no_memory(c);
    for (uint64_t i = 0; i < n; i++) {
        int rc = read_pair(c, &g->pairs[g->n_pairs++]);
        if (rc)
            return rc;
    }
    qsort(g->pairs, g->n_pairs, sizeof *g->pairs, by_key);
    for (size_t i = 1; i < g->n_pairs; i++) {
        if (strcmp(g->pairs[i - 1].key, g->pairs[i].key) == 0)
            return err_set(c->err, ERR_CORRUPT, "%s: GGUF has %.80s twice", c->where,
                           g->pairs[i].key);
    }
    return 0;
}

/* ---- tensors ---- */

static int tensor_bytes(struct cursor *c, struct gguf_tensor *t)
{
    uint64_t n = 1, width;
    bool bad = false;
    for (uint32_t d = 0; d < t->n_dims; d++)
        bad |= __builtin_mul_overflow(n, t->shape[d], &n);
    switch (t->type) {
    case GGUF_TYPE_F32:
        width = 4;
        break;
    case GGUF_TYPE_F16:
    case GGUF_TYPE_BF16:
        width = 2;
        break;
    case GGUF_TYPE_Q8_0:
        if (!t->n_dims || t->shape[t->n_dims - 1] % GGUF_Q8_0_VALUES)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: rows of Q8_0 are not whole blocks",
                           c->where, t->name);
        n /= GGUF_Q8_0_VALUES;
        width = GGUF_Q8_0_BYTES;
        break;
    default:
        return err_set(c->err, ERR_REFUSED,
                       "%s:%s: number type %u of ggml is not read; F32, F16, BF16 and Q8_0 are",
                       c->where, t->name, t->type);
    }
    if (bad || __builtin_mul_overflow(n, width, &t->n_bytes))
        return err_set(c->err, ERR_CORRUPT, "%s:%s: its size overflows", c->where, t->name);
    return 0;
}

/* The tensor's offset is kept in `data` until the payload's start is known. */
static int read_tensor(struct cursor *c, struct gguf_tensor *t, uint64_t *offset)
{
    uint64_t n_dims = 0, v = 0;
    int rc = take_text(c, MAX_NAME, &t->name);
    if (!rc)
        rc = take(c, 4, &n_dims);
    if (rc)
        return rc;
    if (n_dims > GGML_DIMS)
        return corrupt(c, "GGUF has a tensor of more than 4 dimensions");
    t->n_dims = (uint32_t)n_dims;
    for (uint32_t d = t->n_dims; !rc && d-- > 0;)
        rc = take(c, 8, &t->shape[d]);
    if (!rc)
        rc = take(c, 4, &v);
    if (rc)
        return rc;
    t->type = (uint32_t)v;
    rc = take(c, 8, offset);
    return rc ? rc : tensor_bytes(c, t);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct gguf_tensor *)a)->name, ((const struct gguf_tensor *)b)->name);
}

static int by_place(const void *a, const void *b)
{
    const struct gguf_tensor *x = a, *y = b;
    if (x->data != y->data)
        return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->n_bytes < y->n_bytes ? -1 : x->n_bytes > y->n_bytes;
}

static int check_tensors(struct cursor *c)
{
    struct gguf *g = c->g;
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, by_place);
    for (size_t i = 1; i < g->n_tensors; i++) {
        const struct gguf_tensor *before = &g->tensors[i - 1], *t = &g->tensors[i];
        if ((const char *)before->data + before->n_bytes > (const char *)t->data)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: overlaps %s", c->where, t->name,
                           before->name);
    }
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, by_name);
    for (size_t i = 1; i < g->n_tensors; i++) {
        if (strcmp(g->tensors[i - 1].name, g->tensors[i].name) == 0)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: there twice", c->where, g->tensors[i].name);
    }
    return 0;
}

static int place_tensors(struct cursor *c, const uint64_t *offsets)
{
    struct gguf *g = c->g;
    double value = 32;
    if (gguf_has(g, "general.alignment") && !gguf_number(g, "general.alignment", &value))
        return corrupt(c, "general.alignment is no number");
    if (value < 1 || value > 1 << 20 || value != (double)(uint64_t)value)
        return corrupt(c, "general.alignment is no alignment");
    uint64_t alignment = (uint64_t)value, begin = (uint64_t)(c->p - c->start);
    begin = (begin + alignment - 1) / alignment * alignment;
    uint64_t size = (uint64_t)(c->end - c->start);
    for (size_t i = 0; i < g->n_tensors; i++) {
        struct gguf_tensor *t = &g->tensors[i];
        if (begin > size || offsets[i] > size - begin || t->n_bytes > size - begin - offsets[i])
            return err_set(c->err, ERR_CORRUPT, "%s:%s: reaches beyond the file", c->where,
                           t->name);
        if (offsets[i] % alignment)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: is not aligned", c->where, t->name);
        t->data = c->start + begin + offsets[i];
    }
    return g->n_tensors ? check_tensors(c) : 0;
}

static int read_tensors(struct cursor *c, uint64_t n)
{
    struct gguf *g = c->g;
    if (n > MAX_TENSORS || n > (uint64_t)(c->end - c->p) / 24)
        return corrupt(c, "GGUF has more tensors than bytes");
    g->tensors = sys_calloc((size_t)n + 1, sizeof *g->tensors);
    uint64_t *offsets = sys_calloc((size_t)n + 1, sizeof *offsets);
    int rc = g->tensors && offsets ? 0 : no_memory(c);
    for (uint64_t i = 0; !rc && i < n; i++)
        rc = read_tensor(c, &g->tensors[g->n_tensors++], &offsets[i]);
    if (!rc)
        rc = place_tensors(c, offsets);
    sys_free(offsets);
    return rc;
}

static int read_file(struct cursor *c)
{
    uint64_t version = 0, n_tensors = 0, n_pairs = 0;
    if (c->end - c->p < 4 || memcmp(c->p, "GGUF", 4) != 0)
        return corrupt(c, "no GGUF file");
    c->p += 4;
    int rc = take(c, 4, &version);
    if (rc)
        return rc;
    if (version != 2 && version != 3)
        return err_set(c->err, ERR_REFUSED, "%s: GGUF version %llu, 2 and 3 are read%s", c->where,
                       (unsigned long long)version,
                       version > UINT16_MAX ? " (a big-endian file?)" : "");
    rc = take(c, 8, &n_tensors);
    if (!rc)
        rc = take(c, 8, &n_pairs);
    if (!rc)
        rc = read_pairs(c, n_pairs);
    return rc ? rc : read_tensors(c, n_tensors);
}

int gguf_open_memory(struct gguf **out, const void *data, size_t size, const char *where,
                     struct err *err)
{
    *out = NULL;
    struct gguf *g = sys_calloc(1, sizeof *g);
    if (!g)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    arena_init(&g->arena);
    const uint8_t *p = data;
    struct cursor c = {.start = p, .p = p, .end = p + size, .where = where, .g = g, .err = err};
    int rc = read_file(&c);
    if (rc) {
        gguf_free(g);
        return rc;
    }
    *out = g;
    return 0;
}

void gguf_free(struct gguf *g)
{
    if (!g)
        return;
    sys_free(g->pairs);
    sys_free(g->tensors);
    arena_release(&g->arena);
    sys_free(g);
}

/* ---- values ---- */

static const struct pair *find(const struct gguf *g, const char *key)
{
    struct pair wanted = {.key = key};
    return g->n_pairs ? bsearch(&wanted, g->pairs, g->n_pairs, sizeof wanted, by_key) : NULL;
}

bool gguf_has(const struct gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

const char *gguf_text(const struct gguf *g, const char *key)
{
    const struct pair *p = find(g, key);
    return p && p->type == TYPE_TEXT ? p->text : NULL;
}

bool gguf_number(const struct gguf *g, const char *key, double *out)
{
    const struct pair *p = find(g, key);
    if (!p || !p->value || p->type == TYPE_BOOL)
        return false;
    unsigned n = type_bytes[p->type];
    uint64_t bits = number_at(p->value, n);
    if (p->type == TYPE_F32) {
        float v;
        memcpy(&v, p->value, sizeof v);
        *out = (double)v;
    } else if (p->type == TYPE_F64) {
        memcpy(out, p->value, sizeof *out);
    } else if (p->type == TYPE_I8 || p->type == TYPE_I16 || p->type == TYPE_I32 ||
               p->type == TYPE_I64) {
        unsigned shift = 64 - 8 * n;
        *out = (double)((int64_t)(bits << shift) >> shift);
    } else {
        *out = (double)bits;
    }
    return true;
}

size_t gguf_count(const struct gguf *g)
{
    return g->n_tensors;
}

const struct gguf_tensor *gguf_at(const struct gguf *g, size_t i)
{
    return &g->tensors[i];
}
