#include "libcore/adapter/builder.h"

#include <string.h>

#include "libcore/base/sys.h"

struct kept {
    void *arg;
    void (*free)(void *arg);
};

/* What the adapter's tensors lie in; its own block is the adapter's backing. */
struct backing {
    struct kept *items;
    size_t n, cap;
};

struct adapter_builder {
    struct adapter *a;
    struct backing *backing;
    size_t cap_modules;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "making an adapter: no memory");
}

static void backing_free(void *arg)
{
    struct backing *k = arg;
    for (size_t i = 0; k && i < k->n; i++)
        k->items[i].free(k->items[i].arg);
    if (k)
        sys_free(k->items);
    sys_free(k);
}

int adapter_builder_open(struct adapter_builder **out, const char *base_name, struct err *err)
{
    struct adapter_builder *b = sys_calloc(1, sizeof *b);
    *out = NULL;
    if (!b)
        return no_memory(err);
    int rc = adapter_open(&b->a, err);
    if (!rc && !(b->backing = sys_calloc(1, sizeof *b->backing)))
        rc = no_memory(err);
    if (!rc) {
        b->a->backing = b->backing;
        b->a->backing_free = backing_free;
        b->a->format = "made";
        if (base_name && !(b->a->base_name = arena_strdup(&b->a->arena, base_name)))
            rc = no_memory(err);
    }
    if (rc) {
        adapter_builder_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

void adapter_builder_free(struct adapter_builder *b)
{
    if (!b)
        return;
    if (b->a)
        sys_free(b->a->modules);
    adapter_free(b->a);
    sys_free(b);
}

struct adapter *adapter_builder_adapter(struct adapter_builder *b)
{
    return b->a;
}

struct adapter_module *adapter_builder_module(struct adapter_builder *b, const char *name,
                                              const char *parameter, struct err *err)
{
    struct adapter *a = b->a;
    if (a->n_modules == b->cap_modules) {
        size_t cap = b->cap_modules ? 2 * b->cap_modules : 64;
        void *p = sys_reallocarray(a->modules, cap, sizeof *a->modules);
        if (!p) {
            no_memory(err);
            return NULL;
        }
        a->modules = p;
        b->cap_modules = cap;
    }
    struct adapter_module *m = &a->modules[a->n_modules];
    *m = (struct adapter_module){.name = arena_strdup(&a->arena, name),
                                 .parameter =
                                     arena_strdup(&a->arena, parameter ? parameter : "weight")};
    if (!m->name || !m->parameter) {
        no_memory(err);
        return NULL;
    }
    a->n_modules++;
    return m;
}

int adapter_builder_keep(struct adapter_builder *b, void *arg, void (*free)(void *arg),
                         struct err *err)
{
    struct backing *k = b->backing;
    if (k->n == k->cap) {
        size_t cap = k->cap ? 2 * k->cap : 64;
        void *p = sys_reallocarray(k->items, cap, sizeof *k->items);
        if (!p) {
            free(arg);
            return no_memory(err);
        }
        k->items = p;
        k->cap = cap;
    }
    k->items[k->n++] = (struct kept){arg, free};
    return 0;
}

int adapter_builder_own(struct adapter_builder *b, void *memory, struct err *err)
{
    return adapter_builder_keep(b, memory, sys_free, err);
}

int adapter_builder_tensor(struct adapter_builder *b, struct tensor *out, enum dtype dtype,
                           uint32_t n_dims, const uint64_t *shape, void *memory, struct err *err)
{
    int rc = memory ? adapter_builder_own(b, memory, err) : no_memory(err);
    if (rc)
        return rc;
    *out = (struct tensor){.dtype = dtype, .n_dims = n_dims, .data = memory};
    for (uint32_t d = 0; d < n_dims; d++)
        out->shape[d] = shape[d];
    return 0;
}

int adapter_builder_copy(struct adapter_builder *b, struct tensor *out, const struct tensor *from,
                         struct err *err)
{
    if (!tensor_present(from))
        return 0;
    uint64_t n = tensor_n_bytes(from);
    void *memory = sys_malloc(n);
    if (memory)
        memcpy(memory, from->data, n);
    return adapter_builder_tensor(b, out, from->dtype, from->n_dims, from->shape, memory, err);
}

int adapter_builder_copy_ids(struct adapter_builder *b, const uint32_t **out, const uint32_t *ids,
                             uint32_t n, struct err *err)
{
    uint32_t *copy = arena_array(&b->a->arena, n, sizeof *copy);
    if (!copy)
        return no_memory(err);
    memcpy(copy, ids, n * sizeof *copy);
    *out = copy;
    return 0;
}

/* The modules move into the arena, where an adapter has them. */
int adapter_builder_finish(struct adapter_builder *b, struct adapter **out, struct err *err)
{
    struct adapter *a = b->a;
    *out = NULL;
    struct adapter_module *modules = arena_array(&a->arena, a->n_modules + 1, sizeof *modules);
    if (!modules) {
        adapter_builder_free(b);
        return no_memory(err);
    }
    if (a->n_modules)
        memcpy(modules, a->modules, a->n_modules * sizeof *modules);
    sys_free(a->modules);
    a->modules = modules;
    b->a = NULL;
    adapter_builder_free(b);
    adapter_finish(a);
    *out = a;
    return 0;
}
