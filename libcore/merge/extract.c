#include "libcore/merge/extract.h"

#include "libcore/base/sys.h"
#include "libcore/merge/each.h"
#include "libcore/merge/extract_impl.h"
#include "libcore/merge/factors.h"

enum { TILE_VALUES = 1 << 18 };

enum fate { FATE_SAME, FATE_FACTORS, FATE_SAVED };

struct extracted {
    const struct extract_weight *base, *tuned;
    enum fate fate;
    bool bias_differs;
    struct factors factors;
    struct combine_module report;
};

struct extractor {
    const struct extract_options *opt;
    struct extract_side base;
    struct extract_side *tuned; // its files live on in the adapter
    struct extracted *items;    // [n]: modules of the tuned model
    size_t n;
    bool tie; // both are tied: what is saved of the embedding is the head's too
    struct err *err;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "extracting: no memory");
}

// ---- the two sides, module by module -----------------------------------------------------------

static const struct extract_weight *embedding_of(const struct extract_side *s)
{
    for (size_t i = 0; i < s->modules->n; i++) {
        const struct model_module *m = s->weights[i].module;
        if (m->place.kind == WEIGHT_MATRIX && m->place.site == SITE_EMBED)
            return &s->weights[i];
    }
    return NULL;
}

static bool is_head(const struct model_module *m)
{
    return m->place.kind == WEIGHT_MATRIX && m->place.site == SITE_HEAD;
}

/* The tensor of a tied head is the embedding's. */
static const struct extract_weight *weight_of(const struct extract_side *s,
                                              const struct model_module *like)
{
    const struct extract_weight *w = extract_side_find(s, like);
    return w && w->module->tied ? embedding_of(s) : w;
}

static int pair_up(struct extractor *x, size_t i)
{
    struct extracted *e = &x->items[i];
    const struct model_module *m = &x->tuned->modules->items[i];
    e->tuned = weight_of(x->tuned, m);
    e->base = weight_of(&x->base, m);
    const char *tuned = checkpoint_folder(x->tuned->checkpoint);
    const char *base = checkpoint_folder(x->base.checkpoint);
    if (!e->base)
        return err_set(x->err, ERR_REFUSED, "%s:%s: %s has no such module", tuned, m->name, base);
    if (!e->tuned || !e->tuned->n_pieces || !e->base->n_pieces)
        return err_set(x->err, ERR_REFUSED, "%s:%s: the weight is missing",
                       e->tuned && e->tuned->n_pieces ? base : tuned, m->name);
    const struct model_module *a = e->base->module, *b = e->tuned->module;
    bool rows_may_differ = is_head(m) || m->place.site == SITE_EMBED;
    if (a->d_in != b->d_in || a->n_experts != b->n_experts ||
        (a->d_out != b->d_out && !(m->place.kind == WEIGHT_MATRIX && rows_may_differ)))
        return err_set(x->err, ERR_REFUSED, "%s:%s: %u x %u, but %u x %u in %s", tuned, m->name,
                       b->d_out, b->d_in, a->d_out, a->d_in, base);
    return 0;
}

static int check_shape(const struct extract_weight *w, const char *folder, struct err *err)
{
    const struct model_module *m = w->module;
    for (size_t i = 0; i < w->n_pieces; i++) {
        const struct extract_piece *p = &w->pieces[i];
        uint64_t experts = m->n_experts && p->expert < 0 ? m->n_experts : 1;
        uint64_t want = experts * p->n_rows * (m->d_in ? m->d_in : 1);
        if (tensor_n_values(&p->tensor->value) != want)
            return err_set(err, ERR_REFUSED, "%s:%s: %llu values, wanted %llu", folder,
                           p->tensor->name, (unsigned long long)tensor_n_values(&p->tensor->value),
                           (unsigned long long)want);
    }
    return 0;
}

// ---- what differs ------------------------------------------------------------------------------

struct difference {
    const struct extract_weight *base, *tuned;
    uint32_t expert;
    double *other; // of a tile of the base
};

static int difference_rows(void *arg, size_t row0, size_t n_rows, double *out, unsigned thread_idx,
                           struct err *err)
{
    (void)thread_idx;
    struct difference *d = arg;
    size_t cols = d->tuned->module->d_in ? d->tuned->module->d_in : 1;
    size_t step = TILE_VALUES / cols ? TILE_VALUES / cols : 1;
    for (size_t i = 0; i < n_rows; i += step) {
        size_t n = n_rows - i < step ? n_rows - i : step;
        int rc = extract_rows(d->tuned, d->expert, row0 + i, n, out + i * cols, err);
        if (!rc)
            rc = extract_rows(d->base, d->expert, row0 + i, n, d->other, err);
        for (size_t k = 0; !rc && k < n * cols; k++)
            out[i * cols + k] -= d->other[k];
        if (rc)
            return rc;
    }
    return 0;
}

static int difference_open(struct difference *d, const struct extracted *e, struct err *err)
{
    size_t cols = e->tuned->module->d_in ? e->tuned->module->d_in : 1;
    *d = (struct difference){.base = e->base, .tuned = e->tuned};
    d->other = sys_reallocarray(NULL, cols > TILE_VALUES ? cols : TILE_VALUES, sizeof *d->other);
    return d->other ? 0 : no_memory(err);
}

/* Stops at the first difference. */
static int differs(const struct extracted *e, bool *out, struct err *err)
{
    const struct model_module *m = e->tuned->module;
    size_t cols = m->d_in ? m->d_in : 1, step = TILE_VALUES / cols ? TILE_VALUES / cols : 1;
    *out = e->base->module->d_out != m->d_out;
    if (*out)
        return 0;
    struct difference d;
    double *tile = sys_reallocarray(NULL, step * cols, sizeof *tile);
    int rc = difference_open(&d, e, err);
    if (!rc && !tile)
        rc = no_memory(err);
    for (d.expert = 0; !rc && !*out && d.expert < (m->n_experts ? m->n_experts : 1); d.expert++) {
        for (size_t row = 0; !rc && !*out && row < m->d_out; row += step) {
            size_t n = m->d_out - row < step ? m->d_out - row : step;
            rc = difference_rows(&d, row, n, tile, 0, err);
            for (size_t k = 0; !rc && !*out && k < n * cols; k++)
                *out = tile[k] != 0;
        }
    }
    sys_free(tile);
    sys_free(d.other);
    return rc;
}

static bool same_bias(const struct checkpoint_tensor *a, const struct checkpoint_tensor *b)
{
    if (!a || !b)
        return a == b;
    uint64_t n = tensor_n_values(&a->value);
    if (n != tensor_n_values(&b->value))
        return false;
    for (uint64_t i = 0; i < n; i++) {
        double x, y;
        dtype_to_f64(a->value.dtype,
                     (const char *)a->value.data + i * (dtype_bits(a->value.dtype) / 8), &x, 1);
        dtype_to_f64(b->value.dtype,
                     (const char *)b->value.data + i * (dtype_bits(b->value.dtype) / 8), &y, 1);
        if (x != y)
            return false;
    }
    return true;
}

/* Linear weights become factors; the rest, and what has another shape, is saved whole. So is a head
 * that was the embedding on one side: its tensor is not a linear module's own there. */
static bool takes_factors(const struct extracted *e, const struct model_module *m)
{
    if (m->place.kind != WEIGHT_MATRIX || m->place.site == SITE_EMBED ||
        m->place.site == SITE_ROUTER)
        return false;
    bool was_embedding = e->base->module->place.site == SITE_EMBED || m->tied;
    return !was_embedding && e->base->module->d_out == m->d_out;
}

static int extract_factors(struct extractor *x, struct extracted *e, struct err *err)
{
    const struct model_module *m = e->tuned->module;
    uint32_t least = m->d_out < m->d_in ? m->d_out : m->d_in;
    uint32_t cap = x->opt->rank ? x->opt->rank : LIMIT_RANK;
    cap = cap < least ? cap : least;
    const struct svd_want want = {.rank = cap, .energy = x->opt->energy, .seed = 1};
    struct difference d;
    e->report = (struct combine_module){.n_terms = 1, .exact = true};
    int rc = difference_open(&d, e, err);
    if (!rc)
        rc = factors_open(&e->factors, m->n_experts, m->d_out, m->d_in, cap, err);
    const struct svd_source source = {m->d_out, m->d_in, &d, difference_rows, NULL};
    for (d.expert = 0; !rc && d.expert < (m->n_experts ? m->n_experts : 1); d.expert++) {
        struct svd t = {0};
        rc = svd_of_source(&t, &source, &want, err);
        if (rc)
            break;
        size_t k = svd_choose(&t, &want);
        k = k < cap ? k : cap;
        factors_put(&e->factors, d.expert, &t, k);
        double cut = t.exact ? 0 : t.total2 - svd_kept2(&t, k);
        for (size_t i = k; t.exact && i < t.k; i++)
            cut += t.s[i] * t.s[i];
        e->report.total2 += t.total2;
        e->report.discarded2 += cut > 0 ? cut : 0;
        e->report.exact &= t.exact;
        e->report.residual = t.residual > e->report.residual ? t.residual : e->report.residual;
        svd_release(&t);
    }
    sys_free(d.other);
    if (!rc)
        factors_compact(&e->factors);
    e->report.rank = e->factors.rank;
    return rc;
}

static int extract_one(void *arg, size_t i, struct err *err)
{
    struct extractor *x = arg;
    struct extracted *e = &x->items[i];
    const struct model_module *m = &x->tuned->modules->items[i];
    bool different = false;
    const struct extract_weight *own = extract_side_find(&x->base, m);
    e->bias_differs = !same_bias(own ? own->bias : NULL, x->tuned->weights[i].bias);
    if (e->bias_differs && !x->tuned->weights[i].bias)
        return err_set(err, ERR_REFUSED, "%s: the tuned model lacks the base's bias", m->name);
    int rc = differs(e, &different, err);
    if (rc)
        return err_prefix(err, "%s", m->name);
    // A tied head of both is the embedding again: said once, by ensure_weight_tying.
    if (!different || (is_head(m) && x->tie))
        return 0;
    e->fate = takes_factors(e, m) ? FATE_FACTORS : FATE_SAVED;
    if (e->fate == FATE_FACTORS && (rc = extract_factors(x, e, err)) != 0)
        return err_prefix(err, "%s", m->name);
    return 0;
}

// ---- the adapter -------------------------------------------------------------------------------

/* A weight of one piece as the file has it. */
static int put_whole(struct adapter_module *to, const struct extract_weight *w, struct err *err)
{
    if (w->n_pieces != 1)
        return err_set(err, ERR_REFUSED, "%s: lies in %zu tensors and cannot be saved whole",
                       w->module->name, w->n_pieces);
    to->full = w->pieces[0].tensor->value;
    return 0;
}

static int put_module(struct extractor *x, size_t i, struct adapter_builder *b,
                      struct extract_report *r)
{
    struct extracted *e = &x->items[i];
    const struct model_module *m = &x->tuned->modules->items[i];
    r->n_same += e->fate == FATE_SAME;
    if (e->fate == FATE_SAME && !e->bias_differs)
        return 0;
    struct adapter_module *to = adapter_builder_module(b, m->name, m->parameter, x->err);
    if (!to)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (e->bias_differs) {
        to->bias = x->tuned->weights[i].bias->value;
        r->n_biases++;
    }
    if (e->fate == FATE_SAVED) {
        rc = put_whole(to, e->tuned, x->err);
        r->saved[r->n_saved++] = to->name;
    }
    if (rc || e->fate != FATE_FACTORS)
        return rc;
    rc = factors_take(&e->factors, b, to, x->err);
    e->report.name = to->name;
    e->report.parameter = to->parameter;
    r->factors.modules[r->factors.n++] = e->report;
    r->factors.total2 += e->report.total2;
    r->factors.discarded2 += e->report.discarded2;
    if (e->report.rank > r->factors.max_rank)
        r->factors.max_rank = e->report.rank;
    return rc;
}

static void free_side(void *arg)
{
    extract_side_release(arg);
    sys_free(arg);
}

static int assemble(struct extractor *x, struct adapter **out, struct extract_report *r)
{
    struct adapter_builder *b;
    const char *name =
        x->opt->base_name ? x->opt->base_name : checkpoint_folder(x->base.checkpoint);
    int rc = adapter_builder_open(&b, name, x->err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < x->n; i++)
        rc = put_module(x, i, b, r);
    adapter_builder_adapter(b)->ensure_weight_tying = x->tie;
    if (!rc && r->n_same == x->n && !r->n_biases)
        rc = err_set(
            x->err, ERR_REFUSED, "%s: every weight is as in %s: there is nothing to extract",
            checkpoint_folder(x->tuned->checkpoint), checkpoint_folder(x->base.checkpoint));
    if (!rc) {
        struct extract_side *tuned = x->tuned;
        x->tuned = NULL;
        rc = adapter_builder_keep(b, tuned, free_side, x->err);
    }
    if (!rc)
        return adapter_builder_finish(b, out, x->err);
    adapter_builder_free(b);
    return rc;
}

static int open_both(struct extractor *x, const char *base, const char *tuned)
{
    int rc = extract_side_open(&x->base, base, x->err);
    if (!rc)
        rc = extract_side_open(x->tuned, tuned, x->err);
    if (rc)
        return rc;
    if (x->base.config.arch != x->tuned->config.arch || x->base.modules->n != x->tuned->modules->n)
        return err_set(x->err, ERR_REFUSED, "%s: %s of %zu modules, but %s of %zu in %s", tuned,
                       x->tuned->config.arch_name, x->tuned->modules->n, x->base.config.arch_name,
                       x->base.modules->n, base);
    x->n = x->tuned->modules->n;
    x->tie = x->base.config.tied_embeddings && x->tuned->config.tied_embeddings;
    x->items = sys_calloc(x->n + 1, sizeof *x->items);
    if (!x->items)
        return no_memory(x->err);
    for (size_t i = 0; !rc && i < x->n; i++) {
        rc = pair_up(x, i);
        if (!rc)
            rc = check_shape(x->items[i].base, base, x->err);
        if (!rc)
            rc = check_shape(x->items[i].tuned, tuned, x->err);
    }
    return rc;
}

static int check(const struct extract_options *opt, struct err *err)
{
    if (!opt->rank && opt->energy <= 0)
        return err_set(err, ERR_USAGE, "a rank or a share of energy is wanted");
    if (opt->energy < 0 || opt->energy > 1)
        return err_set(err, ERR_USAGE, "energy %g: wanted a share of (0, 1]", opt->energy);
    return 0;
}

int extract_adapter(struct adapter **out, struct extract_report **report, const char *base,
                    const char *tuned, const struct extract_options *opt, struct err *err)
{
    struct err own = {0};
    struct extractor x = {.opt = opt, .err = err ? err : &own};
    *out = NULL;
    *report = NULL;
    int rc = check(opt, x.err);
    if (rc)
        return rc;
    struct extract_report *r = sys_calloc(1, sizeof *r);
    x.tuned = sys_calloc(1, sizeof *x.tuned);
    rc = r && x.tuned ? open_both(&x, base, tuned) : no_memory(x.err);
    if (!rc) {
        r->factors.modules = sys_calloc(x.n + 1, sizeof *r->factors.modules);
        r->saved = sys_calloc(x.n + 1, sizeof *r->saved);
        rc = r->factors.modules && r->saved ? 0 : no_memory(x.err);
    }
    if (!rc)
        rc = each_run(x.n, opt->n_threads, opt->stop, extract_one, &x, x.err);
    if (!rc)
        rc = assemble(&x, out, r);
    for (size_t i = 0; x.items && i < x.n; i++)
        factors_release(&x.items[i].factors);
    sys_free(x.items);
    extract_side_release(&x.base);
    if (x.tuned)
        free_side(x.tuned);
    if (rc)
        extract_report_free(r);
    else
        *report = r;
    return rc;
}

void extract_report_free(struct extract_report *r)
{
    if (!r)
        return;
    sys_free(r->factors.modules);
    sys_free(r->saved);
    sys_free(r);
}
