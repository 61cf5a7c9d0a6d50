#include "libcore/merge/combine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/merge/combine_impl.h"
#include "libcore/merge/each.h"
#include "libcore/merge/svd.h"

struct combiner {
    struct combine_options opt;
    struct combine_input *inputs; // by content id
    size_t n_inputs;
    double weight_sum;
    struct combine_member *members; // of all modules, by name and parameter, then input
    size_t n_members;
    struct combine_job *jobs; // one a name and parameter; no terms: no factors
    size_t *first_member;     // [n_jobs + 1]
    size_t n_jobs;
    bool any_lora_bias;
    struct err *err;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "combining: no memory");
}

double combine_loss(double discarded2, double total2)
{
    return total2 > 0 && discarded2 > 0 ? sqrt(discarded2 / total2) : 0;
}

// ---- what was asked for ------------------------------------------------------------------------

static int check_numbers(struct combiner *c)
{
    const struct combine_options *o = &c->opt;
    const struct combine_method *m = o->method;
    bool density = combine_takes_density(m);
    if (density && o->density <= 0)
        return err_set(c->err, ERR_USAGE,
                       "method %s: --density is missing, wanted a share of (0, 1]", m->name);
    if (o->density < 0 || o->density > 1)
        return err_set(c->err, ERR_USAGE, "density %g: wanted a share of (0, 1]", o->density);
    if (!density && o->density > 0)
        return err_set(c->err, ERR_USAGE, "method %s prunes nothing: it takes no --density",
                       m->name);
    if (o->rank && (m->path == COMBINE_STACK || m->path == COMBINE_FACTORS))
        return err_set(c->err, ERR_USAGE,
                       "method %s gives the rank that it gives; --method svd --rank %u is the best "
                       "of that rank",
                       m->name, o->rank);
    if (o->epsilon >= 0 && m->rule.prune != BLEND_DELLA)
        return err_set(c->err, ERR_USAGE, "method %s takes no --epsilon", m->name);
    if (o->gamma >= 0 && m->rule.prune != BLEND_OUTLIERS)
        return err_set(c->err, ERR_USAGE, "method %s takes no --gamma", m->name);
    if (o->epsilon >= 0 && o->density < 1 &&
        (o->density + o->epsilon > 1 || o->density - o->epsilon <= 0))
        return err_set(c->err, ERR_USAGE, "density %g +- epsilon %g: wanted within (0, 1]",
                       o->density, o->epsilon);
    if (o->gamma > 1)
        return err_set(c->err, ERR_USAGE, "gamma %g: wanted a share of [0, 1]", o->gamma);
    return 0;
}

static void set_defaults(struct combiner *c)
{
    struct combine_options *o = &c->opt;
    if (o->gamma < 0)
        o->gamma = 0.01;
    if (o->epsilon < 0) {
        double room = fmin(1 - o->density, o->density) / 2;
        o->epsilon = fmin(0.15, room);
    }
}

static int check_weights(struct combiner *c)
{
    bool turn = c->opt.method->path == COMBINE_SLERP;
    for (size_t i = 0; i < c->n_inputs; i++) {
        double w = c->inputs[i].weight;
        if (!isfinite(w) || w == 0)
            return err_set(c->err, ERR_USAGE, "%s=%g: wanted a weight that is a number and not 0",
                           c->inputs[i].label, w);
        if (turn && w < 0)
            return err_set(c->err, ERR_USAGE, "%s=%g: slerp takes weights above 0",
                           c->inputs[i].label, w);
        c->weight_sum += w;
    }
    if (turn && c->n_inputs > 2)
        return err_set(c->err, ERR_USAGE, "slerp takes two adapters, not %zu", c->n_inputs);
    if (c->opt.method->normalize && fabs(c->weight_sum) < 1e-8)
        return err_set(c->err, ERR_USAGE, "method %s divides by the sum of weights, which is %g",
                       c->opt.method->name, c->weight_sum);
    return 0;
}

static int by_content(const void *a, const void *b)
{
    const struct combine_input *x = a, *y = b;
    int order = strcmp(x->adapter->content_id, y->adapter->content_id);
    return order ? order : (x->weight > y->weight) - (x->weight < y->weight);
}

// ---- which modules -----------------------------------------------------------------------------

static int by_module(const void *a, const void *b)
{
    const struct combine_member *x = a, *y = b;
    int order = strcmp(x->module->name, y->module->name);
    if (!order)
        order = strcmp(x->module->parameter, y->module->parameter);
    return order ? order : (x->input > y->input) - (x->input < y->input);
}

/* A model with a picture half spells its text half's names differently; both spellings in one
 * adapter would be two modules. */
static int check_spelling(struct combiner *c)
{
    const struct combine_member *with = NULL, *without = NULL;
    for (size_t i = 0; i < c->n_members; i++) {
        const char *name = c->members[i].module->name;
        if (strstr(name, "language_model."))
            with = &c->members[i];
        else if (strncmp(name, "model.layers.", 13) == 0)
            without = &c->members[i];
    }
    if (!with || !without)
        return 0;
    return err_set(c->err, ERR_REFUSED,
                   "%s:%s and %s:%s: the adapters spell the names of one model in two ways; train "
                   "or export them for the same model class",
                   with->input->label, with->module->name, without->input->label,
                   without->module->name);
}

static int gather(struct combiner *c)
{
    for (size_t i = 0; i < c->n_inputs; i++)
        c->n_members += c->inputs[i].adapter->n_modules;
    c->members = sys_calloc(c->n_members + 1, sizeof *c->members);
    c->jobs = sys_calloc(c->n_members + 1, sizeof *c->jobs);
    c->first_member = sys_calloc(c->n_members + 1, sizeof *c->first_member);
    if (!c->members || !c->jobs || !c->first_member)
        return no_memory(c->err);
    size_t n = 0;
    for (size_t i = 0; i < c->n_inputs; i++) {
        const struct adapter *a = c->inputs[i].adapter;
        for (size_t k = 0; k < a->n_modules; k++) {
            c->members[n++] = (struct combine_member){&a->modules[k], &c->inputs[i]};
            c->any_lora_bias |= tensor_present(&a->modules[k].lora_bias);
        }
    }
    qsort(c->members, n, sizeof *c->members, by_module);
    for (size_t i = 0; i < n; i++) {
        const struct adapter_module *m = c->members[i].module;
        const struct adapter_module *last = i ? c->members[i - 1].module : NULL;
        if (last && strcmp(last->name, m->name) == 0 && strcmp(last->parameter, m->parameter) == 0)
            continue;
        c->first_member[c->n_jobs++] = i;
    }
    c->first_member[c->n_jobs] = n;
    return check_spelling(c);
}

static int check_pair(const struct combine_member *a, const struct combine_member *b,
                      struct err *err)
{
    const struct adapter_module *x = a->module, *y = b->module;
    if (x->b.shape[0] != y->b.shape[0] || x->a.shape[1] != y->a.shape[1] ||
        x->n_experts != y->n_experts)
        return err_set(err, ERR_REFUSED,
                       "%s:%s: %llu x %llu, but %s has %llu x %llu: adapters of different bases",
                       b->input->label, y->name, (unsigned long long)y->b.shape[0],
                       (unsigned long long)y->a.shape[1], a->input->label,
                       (unsigned long long)x->b.shape[0], (unsigned long long)x->a.shape[1]);
    if (x->embedding != y->embedding || x->transposed != y->transposed)
        return err_set(err, ERR_REFUSED, "%s:%s: an %s here, another kind of module in %s",
                       b->input->label, y->name,
                       y->embedding    ? "embedding"
                       : y->transposed ? "fan_in_fan_out module"
                                       : "ordinary module",
                       a->input->label);
    return 0;
}

/* The factors' terms of job i. */
static int make_terms(struct combiner *c, size_t i)
{
    struct combine_job *j = &c->jobs[i];
    size_t begin = c->first_member[i], n = c->first_member[i + 1] - begin;
    const struct combine_member *members = c->members + begin, *first = NULL;
    int rc = combine_rest_check(members, n, &c->opt, c->err);
    if (rc)
        return rc;
    j->like = members[0].module;
    j->terms = sys_calloc(n, sizeof *j->terms);
    if (!j->terms)
        return no_memory(c->err);
    bool divide =
        c->opt.method->normalize || (c->opt.method->path == COMBINE_SLERP && c->n_inputs == 2);
    for (size_t k = 0; !rc && k < n; k++) {
        const struct combine_member *m = &members[k];
        if (!m->module->rank)
            continue;
        if (first)
            rc = check_pair(first, m, c->err);
        else
            j->like = m->module;
        if (!rc && c->any_lora_bias && (m->module->embedding || m->module->n_experts))
            rc =
                err_set(c->err, ERR_REFUSED,
                        "%s:%s: %s, and another adapter has lora_bias: PEFT has no adapter of both",
                        m->input->label, m->module->name,
                        m->module->embedding ? "an embedding" : "experts");
        first = first ? first : m;
        j->terms[j->n_terms++] = (struct combine_term){
            m->module, m->input, divide ? m->input->weight / c->weight_sum : m->input->weight};
    }
    return rc;
}

/* What PEFT says no to as well. */
static int check_peft(struct combiner *c)
{
    uint32_t rank = 0;
    for (size_t i = 0; i < c->n_members; i++) {
        const struct combine_member *m = &c->members[i];
        if (m->module->n_experts)
            return err_set(c->err, ERR_REFUSED,
                           "%s:%s: PEFT does not combine target_parameters; leave --compat out",
                           m->input->label, m->module->name);
    }
    // It adds the factors themselves: they must have one shape.
    for (size_t i = 0; c->opt.method->path == COMBINE_FACTORS && i < c->n_members; i++) {
        const struct combine_member *m = &c->members[i];
        if (m->module->rank && rank && m->module->rank != rank)
            return err_set(c->err, ERR_REFUSED,
                           "%s:%s: rank %u, another has %u: PEFT's %s wants one rank; its svd "
                           "methods, and ours without --compat, take any",
                           m->input->label, m->module->name, m->module->rank, rank,
                           c->opt.method->name);
        rank = m->module->rank ? m->module->rank : rank;
    }
    return 0;
}

// ---- numbers, on all threads -------------------------------------------------------------------

static int compute_job(void *arg, size_t i, struct err *err)
{
    struct combiner *c = arg;
    struct combine_job *j = &c->jobs[i];
    int rc = j->n_terms ? combine_compute(j, &c->opt, err) : 0;
    return rc ? err_prefix(err, "%s", j->like->name) : 0;
}

/* Pruned deltas of large modules take all threads, one after the other, so that memory is that of
 * one; the rest goes a thread a module. */
static bool is_large(const struct combiner *c, size_t i)
{
    const struct combine_job *j = &c->jobs[i];
    return c->opt.method->path == COMBINE_DENSE && j->n_terms &&
           j->like->a.shape[1] > SVD_EXACT_MAX && j->like->b.shape[0] > SVD_EXACT_MAX;
}

static int compute_small(void *arg, size_t i, struct err *err)
{
    return is_large(arg, i) ? 0 : compute_job(arg, i, err);
}

static int compute(struct combiner *c)
{
    unsigned n_threads = c->opt.n_threads ? c->opt.n_threads : thread_n_processors();
    struct worker_pool *pool;
    int rc = each_run(c->n_jobs, c->opt.n_threads, c->opt.stop, compute_small, c, c->err);
    if (!rc)
        rc = worker_pool_open(&pool, n_threads < SVD_MAX_THREADS ? n_threads : SVD_MAX_THREADS,
                              c->err);
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < c->n_jobs; i++) {
        if (!is_large(c, i))
            continue;
        c->jobs[i].pool = pool;
        rc = c->opt.stop && c->opt.stop() ? err_set(c->err, ERR_INTERRUPTED, "interrupted")
                                          : compute_job(c, i, c->err);
        c->jobs[i].pool = NULL;
    }
    worker_pool_free(pool);
    return rc;
}

// ---- the result --------------------------------------------------------------------------------

static int add_module(struct combiner *c, size_t i, struct adapter_builder *b,
                      struct combine_report *r)
{
    struct combine_job *j = &c->jobs[i];
    size_t begin = c->first_member[i], n = c->first_member[i + 1] - begin;
    struct adapter_module *m = adapter_builder_module(b, j->like->name, j->like->parameter, c->err);
    if (!m)
        return ERR_NO_MEMORY;
    m->embedding = j->like->embedding;
    m->transposed = j->like->transposed;
    int rc = j->n_terms ? factors_take(&j->result, b, m, c->err) : 0;
    if (!rc)
        rc = combine_rest(b, m, c->members + begin, n, c->any_lora_bias, &r->n_taken_over, c->err);
    if (rc || !j->n_terms)
        return rc;
    j->report.name = m->name;
    j->report.parameter = m->parameter;
    r->modules[r->n++] = j->report;
    r->total2 += j->report.total2;
    r->discarded2 += j->report.discarded2;
    r->max_rank = j->report.rank > r->max_rank ? j->report.rank : r->max_rank;
    return 0;
}

static int assemble(struct combiner *c, struct adapter **out, struct combine_report *r)
{
    struct adapter_builder *b;
    r->modules = sys_calloc(c->n_jobs + 1, sizeof *r->modules);
    if (!r->modules)
        return no_memory(c->err);
    int rc = adapter_builder_open(&b, c->inputs[0].adapter->base_name, c->err);
    for (size_t i = 0; !rc && i < c->n_inputs; i++)
        adapter_builder_adapter(b)->ensure_weight_tying |=
            c->inputs[i].adapter->ensure_weight_tying;
    for (size_t i = 0; !rc && i < c->n_jobs; i++)
        rc = add_module(c, i, b, r);
    if (!rc)
        return adapter_builder_finish(b, out, c->err);
    adapter_builder_free(b);
    return rc;
}

/* In a tied base the flag gives lm_head what the embedding has: not to be mixed. */
static int check_tying(struct combiner *c)
{
    for (size_t i = 1; i < c->n_inputs; i++) {
        const struct adapter *a = c->inputs[0].adapter, *b = c->inputs[i].adapter;
        if (a->ensure_weight_tying != b->ensure_weight_tying &&
            ((a->kinds | b->kinds) & (ADAPTER_EMBED | ADAPTER_TOKENS | ADAPTER_FULL)))
            return err_set(c->err, ERR_REFUSED,
                           "%s and %s: one has ensure_weight_tying, the other has not",
                           c->inputs[0].label, c->inputs[i].label);
    }
    return 0;
}

static int combine_all(struct combiner *c, struct adapter **out, struct combine_report *r)
{
    int rc = check_numbers(c);
    set_defaults(c);
    if (!rc)
        rc = check_weights(c);
    if (!rc)
        rc = check_tying(c);
    if (!rc)
        rc = gather(c);
    if (!rc && c->opt.method->compat == COMBINE_PEFT)
        rc = check_peft(c);
    for (size_t i = 0; !rc && i < c->n_jobs; i++)
        rc = make_terms(c, i);
    if (!rc)
        rc = compute(c);
    return rc ? rc : assemble(c, out, r);
}

int combine_adapters(struct adapter **out, struct combine_report **report,
                     const struct combine_input *inputs, size_t n,
                     const struct combine_options *opt, struct err *err)
{
    struct err own = {0};
    struct combiner c = {.opt = *opt, .n_inputs = n, .err = err ? err : &own};
    struct combine_report *r = sys_calloc(1, sizeof *r);
    *out = NULL;
    *report = NULL;
    c.inputs = sys_calloc(n + 1, sizeof *c.inputs);
    int rc = r && c.inputs ? 0 : no_memory(c.err);
    if (!rc && !n)
        rc = err_set(c.err, ERR_USAGE, "no adapters to combine");
    if (!rc) {
        memcpy(c.inputs, inputs, n * sizeof *inputs);
        qsort(c.inputs, n, sizeof *c.inputs, by_content);
        rc = combine_all(&c, out, r);
    }
    for (size_t i = 0; i < c.n_jobs; i++) {
        sys_free(c.jobs[i].terms);
        factors_release(&c.jobs[i].result);
    }
    sys_free(c.jobs);
    sys_free(c.members);
    sys_free(c.first_member);
    sys_free(c.inputs);
    if (rc)
        combine_report_free(r);
    else
        *report = r;
    return rc;
}

void combine_report_free(struct combine_report *r)
{
    if (!r)
        return;
    sys_free(r->modules);
    sys_free(r);
}
