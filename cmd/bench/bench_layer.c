/*
 * One layer's four products with and without adapters, through the single ops of the back end
 * (kernels/ops.h), as the peers' kernels are measured: no norm, no attention.
 */
#include <string.h>

#include "cmd/bench/bench.h"
#include "kernels/ops.h"

/* Bytes of activations that A and B read and write for one row of a layer: x once, y twice, bf16.
 */
static uint64_t row_bytes(const struct bench_model *b)
{
    uint64_t in[SITE_COUNT] = {0}, bytes = 0;
    for (size_t i = 0; i < b->modules->n; i++) {
        const struct model_module *mod = &b->modules->items[i];
        if (mod->place.kind != WEIGHT_MATRIX || mod->place.layer != 0 ||
            mod->place.site == SITE_EMBED || mod->place.site == SITE_HEAD)
            continue;
        in[mod->place.site] = mod->d_in; // one input for the modules side by side
        bytes += 4ull * mod->d_out;
    }
    for (int i = 0; i < SITE_COUNT; i++)
        bytes += 2 * in[i];
    return bytes;
}

/* Two sequences of one layer's times: whole layers, and what A and B take by themselves. */
static int measure(struct bench_model *b, struct op_session *session, struct bench_plan *p,
                   const struct bench_mix *mix, double t[3], struct err *err)
{
    const struct op_access *access = b->be->ops->op_access;
    const struct op_step *view;
    int rc = bench_plan_mix(b, p, mix, err);
    if (rc == 0)
        rc = access->prepare(session, &p->step, &view, err);
    if (rc == 0)
        rc = access->layer_seconds(session, true, p->n_distinct > 0, &t[1], err);
    t[2] = 0;
    if (rc || p->n_distinct == 0)
        return rc;
    rc = access->layer_seconds(session, false, true, &t[2], err);
    if (rc == ERR_REFUSED) {
        err_clear(err);
        rc = 0;
        t[2] = 0;
    }
    return rc;
}

static int run_rounds(struct bench_model *b, struct op_session *session, struct bench_plan *p,
                      const struct bench_mix *mixes, uint32_t n_mixes, uint32_t rounds,
                      struct bench_layer_times *out, struct err *err)
{
    double both[BENCH_MAX_CASES][BENCH_MAX_ROUNDS], alone[BENCH_MAX_CASES][BENCH_MAX_ROUNDS];
    int rc = 0;
    for (uint32_t round = 0; rc == 0 && round <= rounds; round++) {
        for (uint32_t i = 0; rc == 0 && i < n_mixes; i++) {
            double t[3] = {0};
            rc = measure(b, session, p, &mixes[i], t, err);
            out[i].distinct = p->n_distinct;
            if (round == 0)
                continue; // warms up
            both[i][round - 1] = t[1];
            alone[i][round - 1] = t[2];
        }
    }
    for (uint32_t i = 0; rc == 0 && i < n_mixes; i++) {
        struct bench_layer_times *o = &out[i];
        o->both = bench_median(both[i], rounds);
        o->alone = bench_median(alone[i], rounds);
        o->base = out[0].both;
        uint64_t ab = bench_ab_bytes(b, o->distinct) / b->config.n_layers;
        uint64_t bytes = ab + (o->distinct ? p->step.n_rows * row_bytes(b) : 0);
        o->floor = b->read_bytes_s > 0 ? (double)bytes / b->read_bytes_s : 0;
        o->ab_floor = b->read_bytes_s > 0 ? (double)ab / b->read_bytes_s : 0;
    }
    return rc;
}

int bench_layer(struct bench_model *b, uint32_t n_rows, const struct bench_mix *mixes,
                uint32_t n_mixes, uint32_t rounds, struct bench_layer_times *out, struct err *err)
{
    const struct op_access *access = b->be->ops->op_access;
    struct op_session *session = NULL;
    struct bench_plan p;
    if (!access || !access->layer_seconds)
        return err_set(err, ERR_REFUSED, "bench layer: %s does not run single products",
                       b->be->ops->name);
    uint32_t n = (n_rows + b->opt.context - 1) / b->opt.context; // sequences of one row, or prompts
    bool decode = n_rows <= b->limits.max_sequences;
    int rc = bench_plan_make(b, &p, decode ? n_rows : n, decode ? 1 : n_rows / n, 0, err);
    if (rc == 0)
        rc = access->open(b->be, b->dm, &session, err);
    if (rc == 0)
        rc = run_rounds(b, session, &p, mixes, n_mixes, rounds, out, err);
    if (session)
        access->close(session);
    bench_plan_release(&p);
    return rc;
}
