/*
 * The few names a tensor state dict needs, and what they mean here.
 * Source: torch/_utils.py (_rebuild_tensor_v2, _rebuild_parameter), torch/serialization.py
 * (persistent ids ("storage", type, key, location, n_values)), PyTorch 2.
 */
#include <string.h>

#include "libcore/format/pickle_impl.h"

enum meaning { ORDERED_DICT, REBUILD_TENSOR, REBUILD_PARAMETER, STORAGE_TYPE };

static const struct name {
    const char *module, *name;
    enum meaning meaning;
    enum dtype dtype; // of a storage
} names[] = {
    {"collections", "OrderedDict", ORDERED_DICT, DTYPE_NONE},
    {"torch._utils", "_rebuild_tensor_v2", REBUILD_TENSOR, DTYPE_NONE},
    {"torch._utils", "_rebuild_tensor", REBUILD_TENSOR, DTYPE_NONE},
    {"torch._utils", "_rebuild_parameter", REBUILD_PARAMETER, DTYPE_NONE},
    {"torch", "DoubleStorage", STORAGE_TYPE, DTYPE_F64},
    {"torch", "FloatStorage", STORAGE_TYPE, DTYPE_F32},
    {"torch", "HalfStorage", STORAGE_TYPE, DTYPE_F16},
    {"torch", "BFloat16Storage", STORAGE_TYPE, DTYPE_BF16},
    {"torch", "LongStorage", STORAGE_TYPE, DTYPE_I64},
    {"torch", "IntStorage", STORAGE_TYPE, DTYPE_I32},
    {"torch", "ShortStorage", STORAGE_TYPE, DTYPE_I16},
    {"torch", "CharStorage", STORAGE_TYPE, DTYPE_I8},
    {"torch", "ByteStorage", STORAGE_TYPE, DTYPE_U8},
    {"torch", "BoolStorage", STORAGE_TYPE, DTYPE_BOOL},
};

int pickle_global(struct pickle_machine *m, struct pickle_value **out, const char *module,
                  const char *name)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].module, module) != 0 || strcmp(names[i].name, name) != 0)
            continue;
        *out = pickle_new(m, PICKLE_GLOBAL);
        if (*out)
            (*out)->integer = (int64_t)i;
        return *out ? 0 : ERR_NO_MEMORY;
    }
    return pickle_corrupt(m,
                          "names %.100s.%.100s, which no tensor state dict needs: hostile; "
                          "nothing of it was run",
                          module, name);
}

static bool means(const struct pickle_value *v, enum meaning meaning)
{
    return v->kind == PICKLE_GLOBAL && names[v->integer].meaning == meaning;
}

/* ---- storages ---- */

int pickle_persistent(struct pickle_machine *m, struct pickle_value **out,
                      const struct pickle_value *id)
{
    // The files of before PyTorch 1.6 have a sixth part: the storage that this one is a view of.
    if (id->kind != PICKLE_TUPLE || id->n < 5 || id->n > 6 || id->items[0]->kind != PICKLE_TEXT ||
        strcmp(id->items[0]->text, "storage") != 0 || id->items[2]->kind != PICKLE_TEXT ||
        id->items[4]->kind != PICKLE_INT || id->items[4]->integer < 0)
        return pickle_corrupt(m, "refers to something that is no storage");
    if (!means(id->items[1], STORAGE_TYPE))
        return pickle_corrupt(m, "has a storage of no known type");
    if (id->n == 6 && id->items[5]->kind != PICKLE_NONE)
        return err_set(m->err, ERR_REFUSED,
                       "%s: storage %.60s is a view of another one; save it with a later PyTorch",
                       m->where, id->items[2]->text);
    *out = pickle_new(m, PICKLE_STORAGE);
    struct pickle_storage *s = *out ? arena_alloc(m->arena, sizeof *s) : NULL;
    if (!s)
        return pickle_no_memory(m);
    s->key = id->items[2]->text;
    s->dtype = names[id->items[1]->integer].dtype;
    s->n_values = (uint64_t)id->items[4]->integer;
    (*out)->storage = s;
    return 0;
}

/* ---- tensors ---- */

static int read_sizes(struct pickle_machine *m, const struct pickle_value *v, uint64_t *out,
                      uint32_t n_dims)
{
    if (v->kind != PICKLE_TUPLE || v->n != n_dims)
        return pickle_corrupt(m, "has a tensor whose size and stride differ in length");
    for (uint32_t d = 0; d < n_dims; d++) {
        if (v->items[d]->kind != PICKLE_INT || v->items[d]->integer < 0)
            return pickle_corrupt(m, "has a tensor with a negative size");
        out[d] = (uint64_t)v->items[d]->integer;
    }
    return 0;
}

/* Every value lies within the storage, and there are no more of them than it has. */
static int check_extent(struct pickle_machine *m, const struct pickle_tensor *t)
{
    uint64_t n = 1, last = t->offset, limit = t->storage->n_values;
    bool bad = false;
    for (uint32_t d = 0; d < t->n_dims; d++)
        bad |= __builtin_mul_overflow(n, t->shape[d], &n);
    for (uint32_t d = 0; d < t->n_dims && n; d++) {
        uint64_t step;
        bad |= __builtin_mul_overflow(t->shape[d] - 1, t->stride[d], &step) ||
               __builtin_add_overflow(last, step, &last);
    }
    if (bad || n > limit || (n && last >= limit))
        return pickle_corrupt(m, "has a tensor that reaches beyond its storage %.60s",
                              t->storage->key);
    return 0;
}

static int rebuild_tensor(struct pickle_machine *m, struct pickle_value **out,
                          const struct pickle_value *args)
{
    if (args->n < 4 || args->items[0]->kind != PICKLE_STORAGE ||
        args->items[1]->kind != PICKLE_INT || args->items[1]->integer < 0 ||
        args->items[2]->kind != PICKLE_TUPLE)
        return pickle_corrupt(m, "rebuilds a tensor from what is none");
    if (args->items[2]->n > LIMIT_TENSOR_DIMS)
        return pickle_corrupt(m, "has a tensor of %zu dimensions", args->items[2]->n);
    *out = pickle_new(m, PICKLE_TENSOR);
    struct pickle_tensor *t = *out ? arena_alloc(m->arena, sizeof *t) : NULL;
    if (!t)
        return pickle_no_memory(m);
    t->storage = args->items[0]->storage;
    t->offset = (uint64_t)args->items[1]->integer;
    t->n_dims = (uint32_t)args->items[2]->n;
    int rc = read_sizes(m, args->items[2], t->shape, t->n_dims);
    if (!rc)
        rc = read_sizes(m, args->items[3], t->stride, t->n_dims);
    if (!rc)
        rc = check_extent(m, t);
    (*out)->tensor = t;
    return rc;
}

int pickle_call(struct pickle_machine *m, struct pickle_value **out,
                const struct pickle_value *callable, const struct pickle_value *args)
{
    if (callable->kind != PICKLE_GLOBAL || args->kind != PICKLE_TUPLE)
        return pickle_corrupt(m, "calls what is no function: hostile");
    if (means(callable, REBUILD_TENSOR))
        return rebuild_tensor(m, out, args);
    if (means(callable, ORDERED_DICT) && args->n == 0) {
        *out = pickle_new(m, PICKLE_DICT);
        return *out ? 0 : ERR_NO_MEMORY;
    }
    if (means(callable, REBUILD_PARAMETER) && args->n >= 1 &&
        args->items[0]->kind == PICKLE_TENSOR) {
        *out = args->items[0]; // a parameter is its tensor
        return 0;
    }
    return pickle_corrupt(m, "calls %s.%s with what it does not take",
                          names[callable->integer].module, names[callable->integer].name);
}

/* A state dict carries its modules' versions as a state: a dict that nothing here needs. */
int pickle_build(struct pickle_machine *m, const struct pickle_value *object,
                 const struct pickle_value *state)
{
    if (object->kind != PICKLE_DICT || state->kind != PICKLE_DICT)
        return pickle_corrupt(m, "gives a state to what has none: hostile");
    return 0;
}
