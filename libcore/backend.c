#include "libcore/backend.h"

#include <math.h>

#include "libcore/base/sys.h"

#define WANT(cond, ...)                                                                            \
    do {                                                                                           \
        if (!(cond))                                                                               \
            return err_set(err, ERR_INTERNAL, "step: " __VA_ARGS__);                               \
    } while (0)

static int check_sequences(const struct step *s, const struct step_limits *l, struct err *err)
{
    uint32_t row = 0;
    for (uint32_t i = 0; i < s->n_sequences; i++) {
        const struct step_sequence *q = &s->sequences[i];
        WANT(q->row0 == row && q->n_rows > 0, "sequences[%u] begins at row %u, want %u", i, q->row0,
             row);
        WANT(q->n_rows <= s->n_rows - row, "sequences[%u] has %u rows, %u are left", i, q->n_rows,
             s->n_rows - row);
        WANT((i < s->n_decode_rows) <= (q->n_rows == 1), "sequences[%u]: %u rows among decode rows",
             i, q->n_rows);
        WANT(q->page0 <= s->n_pages && q->n_pages <= s->n_pages - q->page0,
             "sequences[%u].pages %u + %u of %u", i, q->page0, q->n_pages, s->n_pages);
        uint64_t end = (uint64_t)q->position0 + q->n_rows;
        WANT(end <= (uint64_t)q->n_pages * l->page_tokens,
             "sequences[%u]: %u pages for %llu tokens", i, q->n_pages, (unsigned long long)end);
        row += q->n_rows;
    }
    WANT(row == s->n_rows, "sequences cover %u of %u rows", row, s->n_rows);
    WANT(s->n_decode_rows <= s->n_sequences, "n_decode_rows %u of %u sequences", s->n_decode_rows,
         s->n_sequences);
    return 0;
}

static int check_segments(const char *name, const struct step_segment *g, uint32_t n,
                          uint32_t n_rows, const struct step_limits *l, struct err *err)
{
    for (uint32_t i = 0; i < n; i++) {
        WANT(g[i].n_rows > 0 && g[i].row0 < n_rows && g[i].n_rows <= n_rows - g[i].row0,
             "%s[%u]: rows %u + %u of %u", name, i, g[i].row0, g[i].n_rows, n_rows);
        WANT(g[i].slot < l->max_slots, "%s[%u]: slot %u of %u", name, i, g[i].slot, l->max_slots);
        WANT(isfinite(g[i].scale), "%s[%u]: scale is not finite", name, i);
        WANT(i == 0 || g[i - 1].row0 < g[i].row0 ||
                 (g[i - 1].row0 == g[i].row0 && g[i - 1].slot <= g[i].slot),
             "%s[%u] is not sorted by (row0, slot)", name, i);
    }
    return 0;
}

static int check_logit_rows(const struct step *s, uint32_t vocab_size, struct err *err)
{
    for (uint32_t i = 0; i < s->n_logit_rows; i++) {
        const struct sample_params *p = &s->sampling[i];
        WANT(s->logit_rows[i] < s->n_rows && (i == 0 || s->logit_rows[i - 1] < s->logit_rows[i]),
             "logit_rows[%u] = %u is out of range or order", i, s->logit_rows[i]);
        WANT(p->n_top >= 0 && p->n_top <= BACKEND_MAX_TOP && (uint32_t)p->n_top <= vocab_size,
             "sampling[%u].n_top %d", i, p->n_top);
        WANT(p->target < (int64_t)vocab_size, "sampling[%u].target %d", i, p->target);
        WANT(p->n_prompt <= p->n_history || p->n_history == 0, "sampling[%u].n_prompt %u of %u", i,
             p->n_prompt, p->n_history);
        WANT(p->repetition_penalty > 0 && isfinite(p->temperature),
             "sampling[%u]: repetition penalty %g, temperature %g", i, p->repetition_penalty,
             p->temperature);
    }
    return 0;
}

int backend_check_step(const struct step *step, const struct step_limits *l, uint32_t vocab_size,
                       struct err *err)
{
    const struct step *s = step;
    WANT(s->n_rows > 0 && s->n_rows <= l->max_rows, "n_rows %u of %u", s->n_rows, l->max_rows);
    WANT(s->n_sequences > 0 && s->n_sequences <= l->max_sequences, "n_sequences %u of %u",
         s->n_sequences, l->max_sequences);
    WANT(s->n_logit_rows <= l->max_logit_rows, "n_logit_rows %u of %u", s->n_logit_rows,
         l->max_logit_rows);
    WANT(s->n_segments <= l->max_segments && s->n_head_segments <= l->max_segments,
         "n_segments %u, n_head_segments %u of %u", s->n_segments, s->n_head_segments,
         l->max_segments);
    WANT(s->n_pages <= l->max_pages, "n_pages %u of %u", s->n_pages, l->max_pages);
    for (uint32_t i = 0; i < s->n_rows; i++)
        WANT(s->tokens[i] < (int64_t)vocab_size, "tokens[%u] = %d, the vocabulary has %u", i,
             s->tokens[i], vocab_size);
    int rc = check_sequences(s, l, err);
    if (rc == 0)
        rc = check_segments("segments", s->segments, s->n_segments, s->n_rows, l, err);
    if (rc == 0)
        rc = check_segments("head_segments", s->head_segments, s->n_head_segments, s->n_logit_rows,
                            l, err);
    return rc ? rc : check_logit_rows(s, vocab_size, err);
}

// ---- gains
// ---------------------------------------------------------------------------------------

static int set_gain(struct backend *be, struct device_model *m, struct bound_part *part,
                    struct err *err)
{
    const struct adapter_module *mod = part->module;
    size_t n = mod->embedding ? part->target->d_in : part->target->d_out;
    double *norms = sys_malloc(n * sizeof *norms);
    float *gain = sys_malloc(n * sizeof *gain);
    int rc = 0;
    if (!norms || !gain)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory for its gains", mod->name);
    if (rc == 0 && tensor_n_values(&mod->magnitude) != n)
        rc = err_set(err, ERR_INTERNAL, "%s: magnitude of %llu values, want %zu", mod->name,
                     (unsigned long long)tensor_n_values(&mod->magnitude), n);
    if (rc == 0)
        rc = be->ops->math->row_norms(be, m, part, norms, err);
    if (rc == 0) {
        (void)dtype_to_f32(mod->magnitude.dtype, mod->magnitude.data, gain, n);
        for (size_t i = 0; i < n; i++)
            gain[i] = (float)(gain[i] / sqrt(norms[i]));
        part->gain = gain;
        gain = NULL;
    }
    sys_free(norms);
    sys_free(gain);
    return rc;
}

int backend_set_gains(struct backend *be, struct device_model *m, struct bound_adapter *b,
                      struct err *err)
{
    for (size_t i = 0; i < b->n_parts; i++) {
        struct bound_part *part = &b->parts[i];
        if (!tensor_present(&part->module->magnitude) || part->gain)
            continue;
        if (!be->ops->math || !be->ops->math->row_norms)
            return err_set(err, ERR_REFUSED, "%s: DoRA needs row norms, which back end %s lacks",
                           part->module->name, be->ops->name);
        int rc = set_gain(be, m, part, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}
