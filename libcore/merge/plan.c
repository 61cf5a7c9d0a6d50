#include "libcore/merge/plan.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/plan_impl.h"

int plan_refuse(struct planner *k, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(k->err, ERR_REFUSED, fmt, args);
    va_end(args);
    if (!k->survey)
        return ERR_REFUSED;
    if (json_array_append_new(k->p->refusals, json_string(k->err->msg)) != 0)
        return plan_no_memory(k);
    err_clear(k->err);
    return 0;
}

int plan_warn(struct planner *k, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    json_t *text = json_vsprintf(fmt, args);
    va_end(args);
    return text && json_array_append_new(k->p->warnings, text) == 0 ? 0 : plan_no_memory(k);
}

int plan_no_memory(struct planner *k)
{
    return err_set(k->err, ERR_NO_MEMORY, "merge plan: no memory");
}

const char *plan_adapter_name(const struct merge_plan *p, size_t adapter_idx)
{
    const struct adapter *a = p->adapters[adapter_idx].adapter;
    return a->name ? a->name : a->content_id;
}

// ---- adapters -----------------------------------------------------------------------------------

static int by_content_id(const void *a, const void *b)
{
    const struct merge_bound *x = a, *y = b;
    return strcmp(x->adapter->content_id, y->adapter->content_id);
}

static int take_adapters(struct planner *k, const struct merge_adapter *adapters, size_t n)
{
    struct merge_plan *p = k->p;
    p->adapters = arena_array(&p->arena, n + 1, sizeof *p->adapters);
    if (!p->adapters)
        return plan_no_memory(k);
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(adapters[i].weight))
            return err_set(k->err, ERR_USAGE, "the weight of %s is no number",
                           adapters[i].adapter->name ? adapters[i].adapter->name : "an adapter");
        p->adapters[i] = (struct merge_bound){adapters[i].adapter, adapters[i].weight, NULL};
    }
    p->n_adapters = n;
    qsort(p->adapters, n, sizeof *p->adapters, by_content_id);
    for (size_t i = 1; i < n; i++) {
        if (by_content_id(&p->adapters[i - 1], &p->adapters[i]) == 0)
            return err_set(k->err, ERR_USAGE,
                           "%s and %s are the same adapter (%.12s): give it once, "
                           "with the sum of the weights",
                           plan_adapter_name(p, i - 1), plan_adapter_name(p, i),
                           p->adapters[i].adapter->content_id);
    }
    return 0;
}

static int bind_failed(struct planner *k, int rc)
{
    if (rc != ERR_REFUSED || !k->survey)
        return rc;
    char msg[ERR_MSG_BYTES];
    memcpy(msg, k->err->msg, sizeof msg);
    return plan_refuse(k, "%s", msg);
}

/* Kinds whose effect has no weight. */
static int check_weight(struct planner *k, size_t idx)
{
    const struct merge_bound *b = &k->p->adapters[idx];
    unsigned fixed = b->bound->kinds & ~(unsigned)ADAPTER_ADDITIVE;
    char kinds[96];
    if (b->weight == 1 || !fixed)
        return 0;
    return plan_refuse(k, "%s: %s has no weight other than 1, got %g", plan_adapter_name(k->p, idx),
                       adapter_kinds_text(fixed, kinds, sizeof kinds), b->weight);
}

static int bind_one(struct planner *k, size_t idx)
{
    struct merge_plan *p = k->p;
    struct merge_bound *b = &p->adapters[idx];
    if (b->weight == 0)
        return plan_warn(k, "%s: weight 0, left out", plan_adapter_name(p, idx));
    int rc = bind_adapter(&b->bound, b->adapter, p->modules, &p->config, k->err);
    if (!rc && !k->opt->headers_only)
        rc = bind_drop_saved_base(b->bound, p->modules, p->base, k->err);
    if (rc) {
        bound_free(b->bound);
        b->bound = NULL;
        return bind_failed(k, rc);
    }
    size_t i;
    json_t *text;
    json_array_foreach(b->bound->warnings, i, text)
    {
        rc = plan_warn(k, "%s: %s", plan_adapter_name(p, idx), json_string_value(text));
        if (rc)
            return rc;
    }
    return check_weight(k, idx);
}

// ---- estimates ----------------------------------------------------------------------------------

enum { BUFFER_BYTES = 1 << 20, SPARE_BUFFERS = 3, SCRATCH_BYTES = 3 << 20, REST_BYTES = 16 << 20 };

/* Packed factors of the two largest changed tensors side by side, a buffer and scratch for each
 * thread, and the program. */
static void estimate(struct merge_plan *p, unsigned n_threads)
{
    uint64_t largest = 0;
    for (size_t i = 0; i < p->n_tensors; i++) {
        const struct merge_tensor *t = &p->tensors[i];
        uint64_t rank = 0;
        for (size_t j = 0; j < t->n_terms; j++)
            rank += t->terms[j].module->rank;
        uint64_t bytes = t->module ? rank * t->module->d_in * sizeof(double) : 0;
        largest = bytes > largest ? bytes : largest;
        p->read_bytes += tensor_n_bytes(&t->base->value);
    }
    for (size_t s = 0; s < p->n_shards; s++)
        p->write_bytes += p->shards[s].file_bytes;
    uint64_t n = n_threads ? n_threads : thread_n_processors();
    p->ram_bytes =
        2 * largest + (n + SPARE_BUFFERS) * BUFFER_BYTES + n * SCRATCH_BYTES + REST_BYTES;
}

// ---- the whole ----------------------------------------------------------------------------------

static int open_base(struct planner *k, const char *folder)
{
    struct merge_plan *p = k->p;
    int rc = config_read_stored(&p->config, &p->float8, folder, k->err);
    if (!rc)
        rc = modules_open(&p->modules, &p->config, k->err);
    if (!rc)
        rc = checkpoint_open(&p->base, folder, k->err);
    if (!rc)
        rc = fingerprint_compute(p->base, p->modules, &p->config, p->fingerprint, k->err);
    return rc;
}

static int plan_all(struct planner *k, const char *folder, const struct merge_adapter *adapters,
                    size_t n)
{
    int rc = open_base(k, folder);
    if (!rc)
        rc = take_adapters(k, adapters, n);
    for (size_t i = 0; !rc && i < n; i++)
        rc = bind_one(k, i);
    if (!rc)
        rc = plan_tensors(k);
    if (!rc)
        rc = plan_float8(k);
    if (!rc)
        rc = plan_layout(k);
    return rc;
}

static int open_plan(struct merge_plan **out, const char *folder,
                     const struct merge_adapter *adapters, size_t n,
                     const struct merge_options *opt, bool survey, struct err *err)
{
    static const struct merge_options defaults = {0};
    struct err own = {0};
    *out = NULL;
    struct merge_plan *p = sys_calloc(1, sizeof *p);
    struct planner k = {p, opt ? opt : &defaults, survey, err ? err : &own};
    if (!p)
        return plan_no_memory(&k);
    arena_init(&p->arena);
    p->warnings = json_array();
    p->refusals = json_array();
    int rc = p->warnings && p->refusals ? plan_all(&k, folder, adapters, n) : plan_no_memory(&k);
    if (rc) {
        merge_plan_free(p);
        return rc;
    }
    estimate(p, k.opt->n_threads);
    *out = p;
    return 0;
}

int merge_plan_open(struct merge_plan **out, const char *folder,
                    const struct merge_adapter *adapters, size_t n_adapters,
                    const struct merge_options *opt, struct err *err)
{
    return open_plan(out, folder, adapters, n_adapters, opt, false, err);
}

int merge_plan_survey(struct merge_plan **out, const char *folder,
                      const struct merge_adapter *adapters, size_t n_adapters,
                      const struct merge_options *opt, struct err *err)
{
    return open_plan(out, folder, adapters, n_adapters, opt, true, err);
}

void merge_plan_free(struct merge_plan *p)
{
    if (!p)
        return;
    for (size_t i = 0; i < p->n_adapters; i++)
        bound_free(p->adapters[i].bound);
    checkpoint_free(p->base);
    modules_free(p->modules);
    config_release(&p->config);
    json_decref(p->warnings);
    json_decref(p->refusals);
    arena_release(&p->arena);
    sys_free(p);
}
