/*
 * The text of a safetensors header. A pull reader of our own instead of a JSON tree: a header may
 * be 100 MB, keys that come twice must be seen, and raw control characters, lone surrogates and
 * numbers like 1e3 must be refused, which two readers of one file could take differently.
 */
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/format/safetensors_impl.h"

struct cursor {
    const char *begin, *p, *end;
    struct safetensors_header *h;
    struct err *err;
};

static int broken(struct cursor *c, const char *what)
{
    return err_set(c->err, ERR_CORRUPT, "%s: header, byte %zu: %s", c->h->where,
                   (size_t)(c->p - c->begin), what);
}

static int no_memory(struct cursor *c)
{
    return err_set(c->err, ERR_NO_MEMORY, "%s: header: no memory", c->h->where);
}

static void skip_space(struct cursor *c)
{
    while (c->p < c->end && (*c->p == ' ' || *c->p == '\n' || *c->p == '\t' || *c->p == '\r'))
        c->p++;
}

static bool next_is(struct cursor *c, char wanted)
{
    skip_space(c);
    if (c->p == c->end || *c->p != wanted)
        return false;
    c->p++;
    return true;
}

/* ---- strings ---- */

static int hex4(struct cursor *c, uint32_t *out)
{
    if (c->end - c->p < 4)
        return broken(c, "cut \\u escape");
    uint32_t v = 0;
    for (int i = 0; i < 4; i++) {
        char d = c->p[i];
        uint32_t digit;
        if (d >= '0' && d <= '9')
            digit = (uint32_t)(d - '0');
        else if ((d | 32) >= 'a' && (d | 32) <= 'f')
            digit = (uint32_t)((d | 32) - 'a' + 10);
        else
            return broken(c, "bad \\u escape");
        v = v << 4 | digit;
    }
    c->p += 4;
    *out = v;
    return 0;
}

/* After "\u": one code point, both halves of a surrogate pair taken. */
static int unicode_escape(struct cursor *c, uint32_t *out)
{
    uint32_t high = 0, low = 0;
    int rc = hex4(c, &high);
    if (rc)
        return rc;
    if (high == 0)
        return broken(c, "NUL in a string");
    if (high >= 0xDC00 && high <= 0xDFFF)
        return broken(c, "lone surrogate in a string");
    if (high < 0xD800 || high > 0xDBFF) {
        *out = high;
        return 0;
    }
    if (c->end - c->p < 2 || c->p[0] != '\\' || c->p[1] != 'u')
        return broken(c, "lone surrogate in a string");
    c->p += 2;
    rc = hex4(c, &low);
    if (rc)
        return rc;
    if (low < 0xDC00 || low > 0xDFFF)
        return broken(c, "lone surrogate in a string");
    *out = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
    return 0;
}

static char *put_utf8(char *w, uint32_t u)
{
    if (u < 0x80) {
        *w++ = (char)u;
    } else if (u < 0x800) {
        *w++ = (char)(0xC0 | u >> 6);
        *w++ = (char)(0x80 | (u & 63));
    } else if (u < 0x10000) {
        *w++ = (char)(0xE0 | u >> 12);
        *w++ = (char)(0x80 | (u >> 6 & 63));
        *w++ = (char)(0x80 | (u & 63));
    } else {
        *w++ = (char)(0xF0 | u >> 18);
        *w++ = (char)(0x80 | (u >> 12 & 63));
        *w++ = (char)(0x80 | (u >> 6 & 63));
        *w++ = (char)(0x80 | (u & 63));
    }
    return w;
}

static int escape(struct cursor *c, char **w)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    if (c->p == c->end)
        return broken(c, "cut escape");
    char e = *c->p++;
    const char *at = e ? strchr(from, e) : NULL;
    if (at) {
        *(*w)++ = to[at - from];
        return 0;
    }
    if (e != 'u')
        return broken(c, "unknown escape");
    uint32_t u = 0;
    int rc = unicode_escape(c, &u);
    if (!rc)
        *w = put_utf8(*w, u);
    return rc;
}

/* Copies a string into the arena, escapes resolved (which never makes it longer). */
static int string(struct cursor *c, const char **out)
{
    if (!next_is(c, '"'))
        return broken(c, "a string is wanted");
    const char *close = c->p;
    while (close < c->end && *close != '"')
        close += *close == '\\' && close + 1 < c->end ? 2 : 1;
    if (close >= c->end)
        return broken(c, "string without end");
    char *text = arena_alloc(c->h->arena, (size_t)(close - c->p) + 1), *w = text;
    if (!text)
        return no_memory(c);
    while (*c->p != '"') {
        unsigned char ch = (unsigned char)*c->p;
        if (ch < 0x20)
            return broken(c, "raw control character in a string");
        c->p++;
        if (ch != '\\') {
            *w++ = (char)ch;
            continue;
        }
        int rc = escape(c, &w);
        if (rc)
            return rc;
    }
    c->p++;
    *out = text;
    return 0;
}

/* ---- numbers and arrays ---- */

static int whole_number(struct cursor *c, uint64_t *out)
{
    skip_space(c);
    const char *first = c->p;
    uint64_t v = 0;
    for (; c->p < c->end && *c->p >= '0' && *c->p <= '9'; c->p++) {
        uint64_t digit = (uint64_t)(*c->p - '0');
        if (v > (UINT64_MAX - digit) / 10)
            return broken(c, "number too large");
        v = v * 10 + digit;
    }
    if (c->p == first)
        return broken(c, "a whole number is wanted");
    if (*first == '0' && c->p - first > 1)
        return broken(c, "number with a leading zero");
    if (c->p < c->end && (*c->p == '.' || (*c->p | 32) == 'e'))
        return broken(c, "a whole number is wanted");
    *out = v;
    return 0;
}

static int number_array(struct cursor *c, uint64_t *values, uint32_t max, uint32_t *n)
{
    *n = 0;
    if (!next_is(c, '['))
        return broken(c, "an array is wanted");
    if (next_is(c, ']'))
        return 0;
    do {
        uint64_t v = 0;
        int rc = whole_number(c, &v);
        if (rc)
            return rc;
        if (*n < max)
            values[*n] = v;
        ++*n;
    } while (next_is(c, ','));
    return next_is(c, ']') ? 0 : broken(c, "',' or ']' is wanted");
}

/* ---- entries ---- */

static int entry_error(struct cursor *c, const char *name, int code, const char *what)
{
    return err_set(c->err, code, "%s:%s: %s", c->h->where, name, what);
}

static int entry_dtype(struct cursor *c, struct safetensors_entry *e)
{
    const char *text;
    int rc = string(c, &text);
    if (rc)
        return rc;
    e->value.dtype = dtype_parse(text);
    if (e->value.dtype == DTYPE_NONE)
        return err_set(c->err, ERR_CORRUPT, "%s:%s: unknown dtype \"%.40s\"", c->h->where, e->name,
                       text);
    return 0;
}

static int entry_shape(struct cursor *c, struct safetensors_entry *e)
{
    int rc = number_array(c, e->value.shape, LIMIT_TENSOR_DIMS, &e->value.n_dims);
    if (rc)
        return rc;
    if (e->value.n_dims > LIMIT_TENSOR_DIMS)
        return err_set(c->err, ERR_REFUSED, "%s:%s: %u dimensions, at most %d are read",
                       c->h->where, e->name, e->value.n_dims, LIMIT_TENSOR_DIMS);
    return 0;
}

static int entry_offsets(struct cursor *c, struct safetensors_entry *e)
{
    uint64_t v[2];
    uint32_t n;
    int rc = number_array(c, v, 2, &n);
    if (rc)
        return rc;
    if (n != 2)
        return entry_error(c, e->name, ERR_CORRUPT, "data_offsets wants two numbers");
    e->begin = v[0];
    e->end = v[1];
    return 0;
}

static int entry_body(struct cursor *c, struct safetensors_entry *e)
{
    static const struct {
        const char *key;
        int (*read)(struct cursor *c, struct safetensors_entry *e);
    } keys[] = {{"dtype", entry_dtype}, {"shape", entry_shape}, {"data_offsets", entry_offsets}};
    unsigned seen = 0;
    if (!next_is(c, '{'))
        return entry_error(c, e->name, ERR_CORRUPT, "an object is wanted");
    do {
        const char *key;
        int rc = string(c, &key);
        if (rc)
            return rc;
        size_t k = 0;
        while (k < 3 && strcmp(key, keys[k].key) != 0)
            k++;
        if (k == 3)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: unknown key \"%.60s\"", c->h->where,
                           e->name, key);
        if (seen & 1U << k)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: key \"%s\" twice", c->h->where, e->name,
                           key);
        seen |= 1U << k;
        if (!next_is(c, ':'))
            return broken(c, "':' is wanted");
        rc = keys[k].read(c, e);
        if (rc)
            return rc;
    } while (next_is(c, ','));
    if (!next_is(c, '}'))
        return broken(c, "',' or '}' is wanted");
    if (seen != 7)
        return entry_error(c, e->name, ERR_CORRUPT, "dtype, shape and data_offsets are wanted");
    return 0;
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

static int add_entry(struct cursor *c, const char *name)
{
    struct safetensors_header *h = c->h;
    void *p = grown(h->entries, &h->cap_entries, h->n_entries, sizeof *h->entries);
    if (!p)
        return no_memory(c);
    h->entries = p;
    struct safetensors_entry *e = &h->entries[h->n_entries];
    memset(e, 0, sizeof *e);
    e->name = name;
    int rc = entry_body(c, e);
    if (!rc)
        h->n_entries++;
    return rc;
}

static int metadata_body(struct cursor *c)
{
    struct safetensors_header *h = c->h;
    if (!next_is(c, '{'))
        return entry_error(c, "__metadata__", ERR_CORRUPT, "an object is wanted");
    if (next_is(c, '}'))
        return 0;
    do {
        void *p = grown(h->metadata, &h->cap_metadata, h->n_metadata, sizeof *h->metadata);
        if (!p)
            return no_memory(c);
        h->metadata = p;
        struct safetensors_metadata *m = &h->metadata[h->n_metadata];
        int rc = string(c, &m->key);
        if (!rc && !next_is(c, ':'))
            rc = broken(c, "':' is wanted");
        if (!rc)
            rc = string(c, &m->value); // nothing but strings is allowed
        if (rc)
            return rc;
        h->n_metadata++;
    } while (next_is(c, ','));
    return next_is(c, '}') ? 0 : broken(c, "',' or '}' is wanted");
}

static int top_level(struct cursor *c)
{
    bool metadata_seen = false;
    if (c->p == c->end || *c->p != '{')
        return broken(c, "the header must begin with '{'");
    c->p++;
    if (!next_is(c, '}')) {
        do {
            const char *name;
            int rc = string(c, &name);
            if (rc)
                return rc;
            if (!next_is(c, ':'))
                return broken(c, "':' is wanted");
            bool metadata = strcmp(name, "__metadata__") == 0;
            if (metadata && metadata_seen)
                return entry_error(c, name, ERR_CORRUPT, "key twice");
            metadata_seen |= metadata;
            rc = metadata ? metadata_body(c) : add_entry(c, name);
            if (rc)
                return rc;
        } while (next_is(c, ','));
        if (!next_is(c, '}'))
            return broken(c, "',' or '}' is wanted");
    }
    while (c->p < c->end && *c->p == ' ')
        c->p++;
    return c->p == c->end ? 0 : broken(c, "only spaces may follow the header's object");
}

/* ---- checks between entries ---- */

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_entry *)a)->name,
                  ((const struct safetensors_entry *)b)->name);
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(((const struct safetensors_metadata *)a)->key,
                  ((const struct safetensors_metadata *)b)->key);
}

static int compare_offsets(const void *a, const void *b)
{
    const struct safetensors_entry *x = *(struct safetensors_entry *const *)a,
                                   *y = *(struct safetensors_entry *const *)b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return strcmp(x->name, y->name);
}

/* Rule 6: the product of the shape, overflow checked in the order in which the reference checks. */
static int check_size(struct cursor *c, const struct safetensors_entry *e)
{
    uint64_t bits = 1;
    for (uint32_t d = 0; d < e->value.n_dims; d++) {
        if (__builtin_mul_overflow(bits, e->value.shape[d], &bits))
            return entry_error(c, e->name, ERR_CORRUPT, "shape overflows 64 bits");
    }
    if (__builtin_mul_overflow(bits, (uint64_t)dtype_bits(e->value.dtype), &bits))
        return entry_error(c, e->name, ERR_CORRUPT, "shape overflows 64 bits");
    if (bits % 8)
        return entry_error(c, e->name, ERR_CORRUPT, "size is not a whole number of bytes");
    if (e->end < e->begin)
        return entry_error(c, e->name, ERR_CORRUPT, "data_offsets end before they begin");
    if (e->end - e->begin == bits / 8)
        return 0;
    char shape[96];
    return err_set(c->err, ERR_CORRUPT, "%s:%s: data_offsets hold %llu bytes, %s %s wants %llu",
                   c->h->where, e->name, (unsigned long long)(e->end - e->begin),
                   dtype_name(e->value.dtype), tensor_shape_text(&e->value, shape, sizeof shape),
                   (unsigned long long)(bits / 8));
}

static int check_duplicates(struct cursor *c)
{
    struct safetensors_header *h = c->h;
    for (size_t i = 1; i < h->n_entries; i++) {
        if (strcmp(h->entries[i - 1].name, h->entries[i].name) == 0)
            return entry_error(c, h->entries[i].name, ERR_CORRUPT, "duplicate key");
    }
    for (size_t i = 1; i < h->n_metadata; i++) {
        if (strcmp(h->metadata[i - 1].key, h->metadata[i].key) == 0)
            return err_set(c->err, ERR_CORRUPT, "%s:__metadata__: duplicate key \"%.80s\"",
                           h->where, h->metadata[i].key);
    }
    return 0;
}

/* Rules 5 and 7: in order of offset the tensors tile the payload without hole or overlap. */
static int check_tiling(struct cursor *c, struct safetensors_entry **order, uint64_t payload_bytes)
{
    struct safetensors_header *h = c->h;
    uint64_t at = 0;
    for (size_t i = 0; i < h->n_entries; i++)
        order[i] = &h->entries[i];
    qsort(order, h->n_entries, sizeof *order, compare_offsets);
    for (size_t i = 0; i < h->n_entries; i++) {
        const struct safetensors_entry *e = order[i];
        if (e->begin != at)
            return err_set(c->err, ERR_CORRUPT, "%s:%s: %s: begins at byte %llu, wanted %llu",
                           h->where, e->name, e->begin > at ? "hole before it" : "overlap",
                           (unsigned long long)e->begin, (unsigned long long)at);
        at = e->end;
    }
    if (at == payload_bytes)
        return 0;
    return err_set(c->err, ERR_CORRUPT, "%s: %s: the tensors take %llu bytes, the file has %llu",
                   h->where, at > payload_bytes ? "truncated" : "bytes after the last tensor",
                   (unsigned long long)at, (unsigned long long)payload_bytes);
}

static int check_entries(struct cursor *c, uint64_t payload_bytes)
{
    struct safetensors_header *h = c->h;
    if (h->n_entries)
        qsort(h->entries, h->n_entries, sizeof *h->entries, compare_names);
    if (h->n_metadata)
        qsort(h->metadata, h->n_metadata, sizeof *h->metadata, compare_keys);
    int rc = check_duplicates(c);
    for (size_t i = 0; !rc && i < h->n_entries; i++)
        rc = check_size(c, &h->entries[i]);
    if (rc)
        return rc;
    struct safetensors_entry **order = sys_reallocarray(NULL, h->n_entries + 1, sizeof *order);
    if (!order)
        return no_memory(c);
    rc = check_tiling(c, order, payload_bytes);
    sys_free(order);
    return rc;
}

/* Strict UTF-8: no overlong forms, no surrogates, nothing beyond U+10FFFF. */
static size_t utf8_length(const unsigned char *s, size_t n)
{
    if (s[0] < 0x80)
        return 1;
    size_t len = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n < len)
        return 0;
    unsigned char low = 0x80, high = 0xBF;
    if (s[0] == 0xE0)
        low = 0xA0;
    else if (s[0] == 0xED)
        high = 0x9F;
    else if (s[0] == 0xF0)
        low = 0x90;
    else if (s[0] == 0xF4)
        high = 0x8F;
    if (s[1] < low || s[1] > high)
        return 0;
    for (size_t i = 2; i < len; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return 0;
    }
    return len;
}

int safetensors_header_parse(struct safetensors_header *h, const char *text, size_t n,
                             uint64_t payload_bytes, struct err *err)
{
    struct cursor c = {text, text, text + n, h, err};
    for (size_t i = 0, len; i < n; i += len) {
        len = utf8_length((const unsigned char *)text + i, n - i);
        if (!len) {
            c.p = text + i;
            return broken(&c, "not UTF-8");
        }
    }
    int rc = top_level(&c);
    return rc ? rc : check_entries(&c, payload_bytes);
}
