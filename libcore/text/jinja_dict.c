/* Dicts in order of insertion, with Python's equality of keys: 1, 1.0 and true are one key. */
#include <math.h>
#include <string.h>

#include "libcore/text/jinja_impl.h"

/* Below this many entries a walk is as quick as a table. */
enum { SMALL = 8 };

int jinja_new_dict(struct jinja_render *r, enum jinja_type type, struct jinja_value *out)
{
    struct jinja_dict *d = jinja_alloc(r, sizeof *d);
    if (!d)
        return r->err->code;
    *out = (struct jinja_value){.type = type, .dict = d};
    return 0;
}

/* Tuples inside one another beyond this are no keys. */
enum { MAX_KEY_DEPTH = 64 };

static bool hashable_to(struct jinja_value v, unsigned depth)
{
    if (v.type == JINJA_TUPLE) {
        bool all = depth > 0;
        for (size_t i = 0; all && i < v.list->n; i++)
            all = hashable_to(v.list->items[i], depth - 1);
        return all;
    }
    return v.type != JINJA_LIST && v.type != JINJA_DICT &&
           !(v.type == JINJA_VIEW && v.view->kind != JINJA_VALUES);
}

bool jinja_hashable(struct jinja_value v)
{
    return hashable_to(v, MAX_KEY_DEPTH);
}

static uint64_t mix(uint64_t h, uint64_t word)
{
    h = (h ^ word) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

static uint64_t hash_bytes(uint64_t h, const char *data, size_t len)
{
    uint64_t word;
    h = mix(h, len);
    for (; len >= 8; data += 8, len -= 8) {
        memcpy(&word, data, 8);
        h = mix(h, word);
    }
    word = 0;
    if (len)
        memcpy(&word, data, len);
    return mix(h, word);
}

/* Equal numbers hash alike: whole floats as their integer. */
static uint64_t hash_number(uint64_t h, struct jinja_value v)
{
    uint64_t word = 0;
    double f = v.type == JINJA_FLOAT ? v.f : 0;
    if (v.type != JINJA_FLOAT)
        word = (uint64_t)jinja_as_int(v);
    else if (f >= -0x1p63 && f < 0x1p63 && floor(f) == f)
        word = (uint64_t)(int64_t)f;
    else
        memcpy(&word, &f, sizeof f);
    return mix(h, word);
}

static uint64_t hash_value(struct jinja_render *r, struct jinja_value v)
{
    uint64_t h = r->seed;
    switch (v.type) {
    case JINJA_STR:
        return hash_bytes(mix(h, 1), v.s->data, v.s->len);
    case JINJA_BOOL:
    case JINJA_INT:
    case JINJA_FLOAT:
        return hash_number(h, v);
    case JINJA_TUPLE:
        for (size_t i = 0; i < v.list->n; i++)
            h = mix(h, hash_value(r, v.list->items[i]));
        return h;
    case JINJA_NONE:
    case JINJA_UNDEFINED:
        return mix(h, v.type);
    default:
        return mix(h, (uint64_t)(uintptr_t)v.dict);
    }
}

static int same_key(struct jinja_render *r, const struct jinja_entry *e, uint64_t hash,
                    struct jinja_value key, bool *out)
{
    *out = false;
    if (e->hash != hash)
        return 0;
    if (key.type == JINJA_STR && e->key.type == JINJA_STR) {
        *out = e->key.s->len == key.s->len && memcmp(e->key.s->data, key.s->data, key.s->len) == 0;
        return 0;
    }
    return jinja_equal(r, e->key, key, out);
}

/* The entry of a key, or SIZE_MAX. */
static int find(struct jinja_render *r, const struct jinja_dict *d, struct jinja_value key,
                uint64_t hash, size_t *out)
{
    bool same = false;
    *out = SIZE_MAX;
    for (size_t i = 0; !d->index && i < d->n; i++) {
        JINJA_TRY(same_key(r, &d->entries[i], hash, key, &same));
        if (same) {
            *out = i;
            return 0;
        }
    }
    if (!d->index)
        return 0;
    for (size_t i = hash & (d->n_index - 1); d->index[i]; i = (i + 1) & (d->n_index - 1)) {
        JINJA_TRY(jinja_steps(r, 1));
        JINJA_TRY(same_key(r, &d->entries[d->index[i] - 1], hash, key, &same));
        if (same) {
            *out = d->index[i] - 1;
            return 0;
        }
    }
    return 0;
}

static void index_entry(struct jinja_dict *d, size_t entry)
{
    size_t i = d->entries[entry].hash & (d->n_index - 1);
    while (d->index[i])
        i = (i + 1) & (d->n_index - 1);
    d->index[i] = (uint32_t)entry + 1;
}

static int grow(struct jinja_render *r, struct jinja_dict *d)
{
    size_t cap = d->cap ? 2 * d->cap : 4;
    struct jinja_entry *entries = jinja_alloc(r, cap * sizeof *entries);
    if (!entries)
        return r->err->code;
    if (d->n)
        memcpy(entries, d->entries, d->n * sizeof *entries);
    d->entries = entries;
    d->cap = cap;
    if (cap <= SMALL)
        return 0;
    d->n_index = 2 * cap;
    d->index = jinja_alloc(r, d->n_index * sizeof *d->index);
    if (!d->index)
        return r->err->code;
    for (size_t i = 0; i < d->n; i++)
        index_entry(d, i);
    return 0;
}

static int check_key(struct jinja_render *r, struct jinja_value key)
{
    return jinja_hashable(key) ? 0 : jinja_fail(r, "unhashable type: '%s'", jinja_type_name(key));
}

int jinja_dict_set(struct jinja_render *r, struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value value)
{
    size_t entry;
    JINJA_TRY(check_key(r, key));
    JINJA_TRY(jinja_steps(r, 1));
    uint64_t hash = hash_value(r, key);
    JINJA_TRY(find(r, d, key, hash, &entry));
    if (entry != SIZE_MAX) {
        d->entries[entry].value = value;
        return 0;
    }
    if (d->n == d->cap)
        JINJA_TRY(grow(r, d));
    d->entries[d->n++] = (struct jinja_entry){.key = key, .value = value, .hash = hash};
    if (d->index)
        index_entry(d, d->n - 1);
    return 0;
}

int jinja_dict_get(struct jinja_render *r, const struct jinja_dict *d, struct jinja_value key,
                   struct jinja_value *out)
{
    size_t entry;
    JINJA_TRY(check_key(r, key));
    JINJA_TRY(find(r, d, key, hash_value(r, key), &entry));
    *out = (struct jinja_value){.type = JINJA_MISSING};
    if (entry != SIZE_MAX)
        *out = d->entries[entry].value;
    return 0;
}

int jinja_dict_get_text(struct jinja_render *r, const struct jinja_dict *d, const char *name,
                        size_t len, struct jinja_value *out)
{
    struct jinja_str s = {.data = name, .len = len, .n_chars = JINJA_UNCOUNTED};
    return jinja_dict_get(r, d, jinja_of_str(&s), out);
}
