#include "libcore/model/bind.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/model/bind_impl.h"

enum { NAME_BYTES = 512 };

int bind_refuse(struct binder *k, const char *module, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    err_setv(k->err, ERR_REFUSED, fmt, args);
    va_end(args);
    err_prefix(k->err, "%s:%s", k->a->name ? k->a->name : "adapter", module);
    return ERR_REFUSED;
}

int bind_no_memory(struct binder *k)
{
    return err_set(k->err, ERR_NO_MEMORY, "bind: no memory");
}

int bind_warn(struct binder *k, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    json_t *text = json_vsprintf(fmt, args);
    va_end(args);
    return text && json_array_append_new(k->b->warnings, text) == 0 ? 0 : bind_no_memory(k);
}

struct adapter_module *bind_copy(struct binder *k, const struct adapter_module *m)
{
    struct adapter_module *copy = arena_alloc(&k->b->arena, sizeof *copy);
    if (copy)
        *copy = *m;
    else
        bind_no_memory(k);
    return copy;
}

struct bound_part *bind_find(struct bound_adapter *b, const struct model_module *target)
{
    for (size_t i = 0; target && i < b->n_parts; i++) {
        if (b->parts[i].target == target)
            return &b->parts[i];
    }
    return NULL;
}

int bind_add(struct binder *k, const struct adapter_module *m, const struct model_module *target)
{
    if (k->b->n_parts == k->cap)
        return err_set(k->err, ERR_INTERNAL, "bind: more parts than modules");
    k->b->parts[k->b->n_parts++] = (struct bound_part){.module = m, .target = target};
    return 0;
}

/* ---- shapes ---- */

static bool is_matrix(const struct model_module *t)
{
    return t->place.kind == WEIGHT_MATRIX;
}

static bool is_end(const struct model_module *t)
{
    return is_matrix(t) && (t->place.site == SITE_EMBED || t->place.site == SITE_HEAD);
}

static int want_shape(struct binder *k, const struct adapter_module *m, const char *what,
                      const struct tensor *got, uint32_t n_dims, uint64_t d0, uint64_t d1)
{
    uint64_t shape[LIMIT_TENSOR_DIMS] = {d0, d1};
    if (tensor_has_shape(got, n_dims, shape))
        return 0;
    struct tensor wanted = {.dtype = got->dtype, .n_dims = n_dims, .shape = {d0, d1}};
    char a[96], b[96];
    return bind_refuse(k, m->name, "%s: the base wants %s, the adapter has %s", what,
                       tensor_shape_text(&wanted, a, sizeof a),
                       tensor_shape_text(got, b, sizeof b));
}

/* Rows that the vocabulary has once the adapter's own copy of the weight is in place. */
static uint64_t vocabulary(const struct adapter_module *m, const struct model_module *t)
{
    return is_end(t) && tensor_present(&m->full) ? m->full.shape[0] : t->d_out;
}

static int check_full(struct binder *k, const struct adapter_module *m,
                      const struct model_module *t)
{
    const struct tensor *f = &m->full;
    if (!tensor_present(f))
        return 0;
    if (!is_matrix(t))
        return want_shape(k, m, "weight", f, 1, t->d_out, 0);
    if (t->n_experts) {
        uint64_t shape[LIMIT_TENSOR_DIMS] = {t->n_experts, t->d_out, t->d_in};
        return tensor_has_shape(f, 3, shape)
                   ? 0
                   : bind_refuse(k, m->name, "%s: not the shape of the base's experts",
                                 m->parameter);
    }
    if (!is_end(t) || f->n_dims != 2 || f->shape[1] != t->d_in || f->shape[0] < t->d_out)
        return want_shape(k, m, "weight", f, 2, t->d_out, t->d_in);
    return 0;
}

static int check_factors(struct binder *k, const struct adapter_module *m,
                         const struct model_module *t)
{
    if (!m->rank)
        return 0;
    if (!is_matrix(t))
        return bind_refuse(k, m->name, "A and B on a norm are not computed here");
    bool embed = t->place.site == SITE_EMBED;
    if (embed != m->embedding)
        return bind_refuse(k, m->name,
                           embed ? "the base has an embedding here, the adapter lora_A/B"
                                 : "the base has no embedding here");
    uint64_t n = m->n_experts ? m->n_experts : 1;
    uint64_t in = embed ? vocabulary(m, t) : t->d_in, out = embed ? t->d_in : vocabulary(m, t);
    int rc = want_shape(k, m, embed ? "lora_embedding_A" : "lora_A", &m->a, 2, n * m->rank, in);
    if (!rc)
        rc = want_shape(k, m, embed ? "lora_embedding_B" : "lora_B", &m->b, 2, out, m->rank * n);
    if (!rc && tensor_present(&m->magnitude))
        rc = want_shape(k, m, "lora_magnitude_vector", &m->magnitude, 1, out, 0);
    if (!rc && tensor_present(&m->lora_bias))
        rc = want_shape(k, m, "lora_B.bias", &m->lora_bias, 1, out, 0);
    return rc;
}

static int check_bias(struct binder *k, const struct adapter_module *m,
                      const struct model_module *t)
{
    if (!tensor_present(&m->bias))
        return 0;
    if (!t->has_bias)
        return bind_refuse(k, m->name, "a bias, but the base has none here");
    return want_shape(k, m, "bias", &m->bias, 1, t->d_out, 0);
}

static int check_rows(struct binder *k, const struct adapter_module *m,
                      const struct model_module *t)
{
    if (!m->n_rows)
        return 0;
    if (!is_end(t))
        return bind_refuse(k, m->name, "trainable tokens on something that is no embedding");
    uint64_t vocab = vocabulary(m, t);
    if (m->row_ids[m->n_rows - 1] >= vocab)
        return bind_refuse(k, m->name,
                           "token %u, but the base has %llu rows; save the adapter with its "
                           "embedding layers (save_embedding_layers=True)",
                           m->row_ids[m->n_rows - 1], (unsigned long long)vocab);
    return want_shape(k, m, "trainable_tokens_delta", &m->rows, 2, m->n_rows, t->d_in);
}

/* ---- one module ---- */

/* fan_in_fan_out is about Conv1D bases; every base here is Linear, where PEFT turns it off. */
static const struct adapter_module *straightened(struct binder *k, const struct adapter_module *m)
{
    if (!m->transposed)
        return m;
    struct adapter_module *copy = bind_copy(k, m);
    if (!copy)
        return NULL;
    copy->transposed = false;
    if (!k->warned_fan_in) {
        k->warned_fan_in = true;
        if (bind_warn(k, "fan_in_fan_out is set, but the base stores [out, in]: taken as not set, "
                         "as PEFT does") != 0)
            return NULL;
    }
    return copy;
}

static int find_target(struct binder *k, const struct adapter_module *m,
                       const struct model_module **out)
{
    char name[NAME_BYTES];
    modules_canonical_name(k->m, m->name, name, sizeof name);
    *out = modules_find(k->m, name, m->parameter);
    if (*out)
        return 0;
    const char *nearest = modules_nearest(k->m, name);
    return bind_refuse(k, m->name, "no %s of that name in this %s base%s%s%s",
                       strcmp(m->parameter, "weight") == 0 ? "module" : m->parameter,
                       k->config->model_type, nearest ? "; nearest is " : "",
                       nearest ? nearest : "", nearest ? "" : "; is it for another base?");
}

static int bind_one(struct binder *k, const struct adapter_module *m)
{
    const struct model_module *t;
    int rc = find_target(k, m, &t);
    if (!rc && strstr(m->name, "language_model.") && !k->warned_prefix) {
        k->warned_prefix = true;
        rc = bind_warn(k, "trained within a multimodal model: language_model is taken off names");
    }
    if (rc)
        return rc;
    if (bind_find(k->b, t))
        return bind_refuse(k, m->name, "two modules of the adapter mean %s", t->name);
    m = straightened(k, m);
    if (m && m->n_experts)
        m = bind_experts_oriented(k, m, t);
    if (!m)
        return k->err->code;
    rc = check_full(k, m, t);
    if (!rc)
        rc = check_factors(k, m, t);
    if (!rc)
        rc = check_bias(k, m, t);
    if (!rc)
        rc = check_rows(k, m, t);
    return rc ? rc : bind_add(k, m, t);
}

/* ---- the whole ---- */

static int norm_or_site(const struct weight_place *p)
{
    return p->kind == WEIGHT_NORM ? SITE_COUNT + (int)p->norm : (int)p->site;
}

static int compare_parts(const void *a, const void *b)
{
    const struct weight_place *x = &((const struct bound_part *)a)->target->place;
    const struct weight_place *y = &((const struct bound_part *)b)->target->place;
    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (norm_or_site(x) != norm_or_site(y))
        return norm_or_site(x) - norm_or_site(y);
    return x->row0 < y->row0 ? -1 : x->row0 > y->row0;
}

static uint64_t end_rows(const struct bound_part *p)
{
    return p && tensor_present(&p->module->full) ? p->module->full.shape[0] : 0;
}

/* Rows of embedding and head once everything is in place; they must agree. */
static int set_vocabulary(struct binder *k)
{
    struct bound_adapter *b = k->b;
    uint64_t base = k->config->vocab_size;
    uint64_t embed = end_rows(bind_find(b, k->embed)), head = end_rows(bind_find(b, k->head));
    embed = embed ? embed : base;
    head = head ? head : base;
    b->n_vocab = 0;
    if (embed == base && head == base)
        return 0;
    if (embed != head)
        return bind_refuse(k, embed > head ? "lm_head" : "model.embed_tokens",
                           "%llu rows, but %s has %llu: the adapter must bring both",
                           (unsigned long long)(embed > head ? head : embed),
                           embed > head ? "embed_tokens" : "lm_head",
                           (unsigned long long)(embed > head ? embed : head));
    b->n_vocab = (uint32_t)embed;
    return 0;
}

void bind_set_kinds(struct bound_adapter *b)
{
    b->kinds = 0;
    for (size_t i = 0; i < b->n_parts; i++)
        b->kinds |= adapter_module_kinds(b->parts[i].module);
}

static int bind_all(struct binder *k)
{
    int rc = 0;
    k->embed = modules_find(k->m, "model.embed_tokens", NULL);
    k->head = modules_find(k->m, "lm_head", NULL);
    for (size_t i = 0; !rc && i < k->a->n_modules; i++)
        rc = bind_one(k, &k->a->modules[i]);
    if (!rc)
        rc = bind_coverage(k);
    if (!rc && k->config->tied_embeddings)
        rc = bind_tied(k);
    else if (!rc && k->a->ensure_weight_tying)
        rc = bind_warn(k, "ensure_weight_tying is set, but the base is not tied");
    if (!rc)
        rc = set_vocabulary(k);
    qsort(k->b->parts, k->b->n_parts, sizeof *k->b->parts, compare_parts);
    bind_set_kinds(k->b);
    if (!rc && k->m->base)
        rc = bind_drop_saved_base(k->b, k->m, k->m->base, k->err);
    return rc;
}

int bind_adapter(struct bound_adapter **out, const struct adapter *a, const struct model_modules *m,
                 const struct model_config *config, struct err *err)
{
    struct err own = {0};
    *out = NULL;
    struct binder k = {.a = a, .m = m, .config = config, .err = err ? err : &own};
    struct bound_adapter *b = k.b = sys_calloc(1, sizeof *b);
    if (!b)
        return bind_no_memory(&k);
    arena_init(&b->arena);
    b->adapter = a;
    b->warnings = json_array();
    k.cap = a->n_modules + 2; // a tied base may add the other end
    b->parts = sys_calloc(k.cap, sizeof *b->parts);
    int rc = b->warnings && b->parts ? bind_all(&k) : bind_no_memory(&k);
    if (rc) {
        bound_free(b);
        return rc;
    }
    *out = b;
    return 0;
}

void bound_free(struct bound_adapter *b)
{
    if (!b)
        return;
    for (size_t i = 0; b->parts && i < b->n_parts; i++)
        sys_free(b->parts[i].gain);
    sys_free(b->parts);
    json_decref(b->warnings);
    arena_release(&b->arena);
    sys_free(b);
}
