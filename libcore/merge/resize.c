#include "libcore/merge/resize.h"

#include "libcore/base/sys.h"
#include "libcore/merge/each.h"
#include "libcore/merge/factors.h"

struct resized {
    bool same; // rank and bytes stay
    struct factors factors;
    struct combine_module report;
};

struct resizer {
    const struct adapter *a;
    const struct resize_options *opt;
    struct resized *modules; // [a->n_modules]
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "resizing: no memory");
}

/* How many triples of one expert stay; into the factors. */
static int resize_expert(struct resizer *z, const struct adapter_module *m, struct resized *out,
                         uint32_t expert, struct err *err)
{
    size_t d_out = m->b.shape[0], d_in = m->a.shape[1];
    double *left = sys_reallocarray(NULL, m->rank * d_out, sizeof *left);
    double *right = sys_reallocarray(NULL, m->rank * d_in, sizeof *right);
    const struct svd_want want = {.rank = z->opt->rank, .energy = z->opt->energy, .seed = 1};
    struct svd d = {0};
    int rc = left && right ? 0 : no_memory(err);
    if (!rc) {
        factors_left(m, expert, m->scale, left);
        factors_right(m, expert, right);
        rc = svd_product(&d, left, d_out, right, d_in, m->rank, &want, err);
    }
    if (!rc) {
        size_t k = svd_choose(&d, &want);
        k = k < out->factors.cap ? k : out->factors.cap;
        factors_put(&out->factors, expert, &d, k);
        double cut = d.exact ? 0 : d.total2 - svd_kept2(&d, k);
        for (size_t i = k; d.exact && i < d.k; i++)
            cut += d.s[i] * d.s[i];
        out->report.total2 += d.total2;
        out->report.discarded2 += cut > 0 ? cut : 0;
        out->report.exact &= d.exact;
        out->report.residual =
            d.residual > out->report.residual ? d.residual : out->report.residual;
    }
    svd_release(&d);
    sys_free(left);
    sys_free(right);
    return rc;
}

static int resize_module(void *arg, size_t i, struct err *err)
{
    struct resizer *z = arg;
    const struct adapter_module *m = &z->a->modules[i];
    struct resized *out = &z->modules[i];
    uint32_t n_experts = m->n_experts ? m->n_experts : 1;
    if (!m->rank)
        return 0;
    out->report = (struct combine_module){.n_terms = 1, .exact = true};
    int rc = factors_open(&out->factors, m->n_experts, (uint32_t)m->b.shape[0],
                          (uint32_t)m->a.shape[1], m->rank, err);
    for (uint32_t e = 0; !rc && e < n_experts; e++)
        rc = resize_expert(z, m, out, e, err);
    if (rc)
        return err_prefix(err, "%s", m->name);
    // Asked for all of it: exactly what was there, not a rotation of it.
    out->same = out->factors.rank == m->rank || (!z->opt->energy && z->opt->rank >= m->rank);
    if (out->same) {
        out->report.rank = m->rank;
        out->report.discarded2 = 0;
        return 0;
    }
    factors_compact(&out->factors);
    out->report.rank = out->factors.rank;
    return 0;
}

/* The bias of B is multiplied by the scale, which becomes 1. */
static int put_lora_bias(struct adapter_builder *b, struct adapter_module *to,
                         const struct adapter_module *from, struct err *err)
{
    if (to->scale == from->scale || !tensor_present(&from->lora_bias))
        return adapter_builder_copy(b, &to->lora_bias, &from->lora_bias, err);
    uint64_t n = from->lora_bias.shape[0];
    float *values = sys_reallocarray(NULL, n, sizeof *values);
    size_t size = dtype_bits(from->lora_bias.dtype) / 8;
    for (uint64_t i = 0; values && i < n; i++) {
        double v;
        dtype_to_f64(from->lora_bias.dtype, (const char *)from->lora_bias.data + i * size, &v, 1);
        values[i] = (float)(from->scale * v);
    }
    return adapter_builder_tensor(b, &to->lora_bias, DTYPE_F32, 1, &n, values, err);
}

static int put_module(struct adapter_builder *b, const struct adapter_module *from,
                      struct resized *r, struct combine_report *report, struct err *err)
{
    struct adapter_module *m = adapter_builder_module(b, from->name, from->parameter, err);
    if (!m)
        return ERR_NO_MEMORY;
    m->embedding = from->embedding;
    m->transposed = from->transposed;
    m->n_experts = from->n_experts;
    int rc = 0;
    if (from->rank && r->same) {
        m->rank = from->rank;
        m->alpha = from->alpha;
        m->scale = from->scale;
        rc = adapter_builder_copy(b, &m->a, &from->a, err);
        if (!rc)
            rc = adapter_builder_copy(b, &m->b, &from->b, err);
    } else if (from->rank) {
        rc = factors_take(&r->factors, b, m, err);
    }
    if (!rc)
        rc = put_lora_bias(b, m, from, err);
    if (!rc)
        rc = adapter_builder_copy(b, &m->bias, &from->bias, err);
    if (!rc)
        rc = adapter_builder_copy(b, &m->full, &from->full, err);
    m->full_is_base = from->full_is_base;
    if (!rc && from->n_rows) {
        m->n_rows = from->n_rows;
        rc = adapter_builder_copy(b, &m->rows, &from->rows, err);
        if (!rc)
            rc = adapter_builder_copy_ids(b, &m->row_ids, from->row_ids, from->n_rows, err);
    }
    if (rc || !from->rank)
        return rc;
    r->report.name = m->name;
    r->report.parameter = m->parameter;
    report->modules[report->n++] = r->report;
    report->total2 += r->report.total2;
    report->discarded2 += r->report.discarded2;
    report->max_rank = m->rank > report->max_rank ? m->rank : report->max_rank;
    return 0;
}

static int assemble(struct resizer *z, struct adapter **out, struct combine_report *report,
                    struct err *err)
{
    struct adapter_builder *b;
    report->modules = sys_calloc(z->a->n_modules + 1, sizeof *report->modules);
    int rc = report->modules ? adapter_builder_open(&b, z->a->base_name, err) : no_memory(err);
    if (rc)
        return rc;
    adapter_builder_adapter(b)->ensure_weight_tying = z->a->ensure_weight_tying;
    for (size_t i = 0; !rc && i < z->a->n_modules; i++)
        rc = put_module(b, &z->a->modules[i], &z->modules[i], report, err);
    if (!rc)
        return adapter_builder_finish(b, out, err);
    adapter_builder_free(b);
    return rc;
}

static int check(const struct adapter *a, const struct resize_options *opt, struct err *err)
{
    if (!opt->rank && opt->energy <= 0)
        return err_set(err, ERR_USAGE, "a rank or a share of energy is wanted");
    if (opt->energy < 0 || opt->energy > 1)
        return err_set(err, ERR_USAGE, "energy %g: wanted a share of (0, 1]", opt->energy);
    for (size_t i = 0; i < a->n_modules; i++) {
        if (tensor_present(&a->modules[i].magnitude))
            return err_set(
                err, ERR_REFUSED,
                "%s: DoRA: its gain is a function of the base and of s B A, so a cut has "
                "no known loss; merge it into the base, then extract",
                a->modules[i].name);
    }
    return 0;
}

int resize_adapter(struct adapter **out, struct combine_report **report, const struct adapter *a,
                   const struct resize_options *opt, struct err *err)
{
    *out = NULL;
    *report = NULL;
    struct resizer z = {.a = a, .opt = opt};
    int rc = check(a, opt, err);
    if (rc)
        return rc;
    struct combine_report *r = sys_calloc(1, sizeof *r);
    z.modules = sys_calloc(a->n_modules + 1, sizeof *z.modules);
    rc = r && z.modules ? 0 : no_memory(err);
    if (!rc)
        rc = each_run(a->n_modules, opt->n_threads, opt->stop, resize_module, &z, err);
    if (!rc)
        rc = assemble(&z, out, r, err);
    for (size_t i = 0; z.modules && i < a->n_modules; i++)
        factors_release(&z.modules[i].factors);
    sys_free(z.modules);
    if (rc)
        combine_report_free(r);
    else
        *report = r;
    return rc;
}
