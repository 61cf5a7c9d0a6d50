#include <math.h>
#include <string.h>

#include "libcore/model/arch.h"

static double number_of(const json_t *o, const char *field, double fallback)
{
    const json_t *v = json_object_get(o, field);
    return json_is_number(v) ? json_number_value(v) : fallback;
}

static const double *factors_of(struct model_config *c, struct config_reader *r, const json_t *o,
                                const char *field)
{
    const json_t *list = json_object_get(o, field);
    size_t want = c->rotary_dim / 2;
    if (json_array_size(list) != want) {
        config_fail(r, ERR_CORRUPT, "%s: rope %s has %zu values, want %zu", r->where, field,
                    json_array_size(list), want);
        return NULL;
    }
    double *values = arena_array(&c->arena, want, sizeof *values);
    for (size_t i = 0; values && i < want; i++)
        values[i] = json_number_value(json_array_get(list, i));
    if (!values)
        config_fail(r, ERR_NO_MEMORY, "%s: out of memory", r->where);
    return values;
}

static void read_longrope(struct model_config *c, struct config_reader *r, const json_t *o,
                          struct rope_config *out)
{
    out->type = ROPE_LONGROPE;
    out->short_factor = factors_of(c, r, o, "short_factor");
    out->long_factor = factors_of(c, r, o, "long_factor");
    out->factor = number_of(o, "factor", 0);
    if (out->factor == 0 && out->original_max_positions)
        out->factor = (double)c->max_positions / out->original_max_positions;
}

static void read_yarn(const json_t *o, struct rope_config *out)
{
    out->type = ROPE_YARN;
    out->beta_fast = number_of(o, "beta_fast", 32);
    out->beta_slow = number_of(o, "beta_slow", 1);
    out->mscale = number_of(o, "mscale", 0);
    out->mscale_all_dim = number_of(o, "mscale_all_dim", 0);
    const json_t *truncate = json_object_get(o, "truncate");
    out->yarn_truncate = !json_is_false(truncate);
}

void config_read_rope(struct model_config *c, struct config_reader *r, const json_t *o,
                      double theta, struct rope_config *out)
{
    memset(out, 0, sizeof *out);
    out->theta = number_of(o, "rope_theta", theta);
    out->factor = number_of(o, "factor", 1);
    out->attention_factor = number_of(o, "attention_factor", 0);
    uint32_t top_level = config_u32(r, "original_max_position_embeddings", c->max_positions);
    out->original_max_positions =
        (uint32_t)number_of(o, "original_max_position_embeddings", top_level);
    const char *type = json_string_value(json_object_get(o, "rope_type"));
    if (!type)
        type = json_string_value(json_object_get(o, "type"));
    if (!type || strcmp(type, "default") == 0) {
        out->type = ROPE_DEFAULT;
    } else if (strcmp(type, "linear") == 0) {
        out->type = ROPE_LINEAR;
    } else if (strcmp(type, "llama3") == 0) {
        out->type = ROPE_LLAMA3;
        out->low_freq_factor = number_of(o, "low_freq_factor", 1);
        out->high_freq_factor = number_of(o, "high_freq_factor", 4);
    } else if (strcmp(type, "yarn") == 0) {
        read_yarn(o, out);
    } else if (strcmp(type, "longrope") == 0 || strcmp(type, "su") == 0) {
        read_longrope(c, r, o, out);
    } else {
        config_fail(r, ERR_REFUSED,
                    "%s: rope type \"%s\" is not computed here; known: default, "
                    "linear, llama3, yarn, longrope",
                    r->where, type);
    }
    if (!r->code && (!(out->theta > 0) || !(out->factor > 0)))
        config_fail(r, ERR_CORRUPT, "%s: rope_theta %g or factor %g is not positive", r->where,
                    out->theta, out->factor);
}

/* ---- tables; formulas of transformers 5 modeling_rope_utils.py ---- */

static double llama3_frequency(const struct rope_config *p, double f)
{
    double wavelength = 2 * M_PI / f;
    double low = p->original_max_positions / p->low_freq_factor;
    double high = p->original_max_positions / p->high_freq_factor;
    if (wavelength < high)
        return f;
    if (wavelength > low)
        return f / p->factor;
    double smooth = (p->original_max_positions / wavelength - p->low_freq_factor) /
                    (p->high_freq_factor - p->low_freq_factor);
    return (1 - smooth) * f / p->factor + smooth * f;
}

static double yarn_dimension(const struct rope_config *p, double rotations, double dim)
{
    return dim * log(p->original_max_positions / (rotations * 2 * M_PI)) / (2 * log(p->theta));
}

static double yarn_frequency(const struct rope_config *p, double f, uint32_t i, uint32_t dim)
{
    double low = yarn_dimension(p, p->beta_fast, dim), high = yarn_dimension(p, p->beta_slow, dim);
    if (p->yarn_truncate) {
        low = floor(low);
        high = ceil(high);
    }
    low = fmax(low, 0);
    high = fmin(high, dim - 1);
    if (low == high)
        high += 0.001;
    double ramp = fmin(fmax((i - low) / (high - low), 0), 1);
    return f / p->factor * ramp + f * (1 - ramp);
}

static double yarn_mscale(double factor, double mscale)
{
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static double cos_sin_scale(const struct rope_config *p)
{
    if (p->attention_factor > 0)
        return p->attention_factor;
    if (p->type == ROPE_YARN) {
        if (p->mscale != 0 && p->mscale_all_dim != 0)
            return yarn_mscale(p->factor, p->mscale) / yarn_mscale(p->factor, p->mscale_all_dim);
        return yarn_mscale(p->factor, 1);
    }
    if (p->type == ROPE_LONGROPE)
        return p->factor <= 1 ? 1 : sqrt(1 + log(p->factor) / log(p->original_max_positions));
    return 1;
}

void config_rope_table(const struct model_config *c, unsigned rope_idx, unsigned regime,
                       float *inv_freq, float *scale)
{
    const struct rope_config *p = &c->rope[rope_idx];
    for (uint32_t i = 0; i < c->rotary_dim / 2; i++) {
        double f = 1.0 / pow(p->theta, 2.0 * i / c->rotary_dim);
        if (p->type == ROPE_LINEAR)
            f /= p->factor;
        else if (p->type == ROPE_LLAMA3)
            f = llama3_frequency(p, f);
        else if (p->type == ROPE_YARN)
            f = yarn_frequency(p, f, i, c->rotary_dim);
        else if (p->type == ROPE_LONGROPE)
            f /= (regime ? p->long_factor : p->short_factor)[i];
        inv_freq[i] = (float)f;
    }
    *scale = (float)cos_sin_scale(p);
}

unsigned config_rope_regime(const struct model_config *c, uint32_t n_positions)
{
    const struct rope_config *p = &c->rope[0];
    return p->type == ROPE_LONGROPE && n_positions > p->original_max_positions;
}
