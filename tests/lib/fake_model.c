#include <assert.h>
#include <math.h>
#include <string.h>

#include "tests/lib/fake_impl.h"

uint64_t fake_mix(uint64_t h, uint64_t v)
{
    h ^= v + 0x9E3779B97F4A7C15u + (h << 6) + (h >> 2);
    h *= 0xBF58476D1CE4E5B9u;
    return h ^ (h >> 31);
}

uint64_t fake_effect(uint64_t signature, float scale)
{
    uint32_t bits;
    memcpy(&bits, &scale, sizeof bits);
    return fake_mix(signature, bits);
}

uint64_t fake_row_value(int32_t token, uint32_t position, uint32_t regime, uint64_t effects)
{
    return fake_mix(fake_mix(fake_mix(fake_mix(1, (uint32_t)token), position), regime), effects);
}

static bool forbidden(const struct token_bias *bias, uint32_t n, int32_t token)
{
    for (uint32_t i = 0; i < n; i++) {
        if (bias[i].token == token && bias[i].bias == -INFINITY)
            return true;
    }
    return false;
}

/* fold: everything visible; history: what the penalties read, 0 without. */
int32_t fake_draw(uint64_t fold, uint64_t history, const struct sample_params *p)
{
    fold = fake_mix(fold, history);
    if (p->temperature > 0)
        fold = fake_mix(fake_mix(fold, p->seed), p->counter);
    for (uint32_t k = 0;; k++) {
        int32_t token = (int32_t)(fake_mix(fold, k) % FAKE_VOCAB);
        if (!forbidden(p->bias, p->n_bias, token))
            return token;
    }
}

float fake_score_of(uint64_t fold, int32_t token)
{
    return -(float)(fake_mix(fold, (uint32_t)token) % 1000) / 100;
}

bool fake_reads_history(const struct sample_params *p)
{
    return p->repetition_penalty != 1 || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

static uint64_t signature_of(unsigned number)
{
    char id[DIGEST_HEX_CHARS + 1];
    fake_content_id(number, id);
    uint64_t image = fake_hash_text(id), all = 0;
    uint64_t n_bytes = number & FAKE_FULL ? 0 : (uint64_t)fake_rank(number) * FAKE_BYTES_PER_RANK;
    for (uint64_t at = 0; at < n_bytes; at += FAKE_BLOCK_BYTES)
        all = fake_mix(all, fake_mix(image, at));
    return number & FAKE_FULL ? fake_mix(all, image) : all;
}

struct oracle {
    const struct engine_request *r;
    uint64_t effects, fold, history;
    uint32_t regime, position;
};

static void oracle_open(struct oracle *o, const struct engine_request *r,
                        const struct fake_use *uses, size_t n_uses)
{
    *o = (struct oracle){.r = r};
    for (size_t i = 0; i < n_uses; i++)
        o->effects += fake_effect(signature_of(uses[i].number), uses[i].scale);
}

static void oracle_read(struct oracle *o, int32_t token)
{
    o->fold = fake_mix(o->fold, fake_row_value(token, o->position++, o->regime, o->effects));
    o->history = fake_mix(o->history, (uint32_t)token);
}

size_t fake_answer(const struct engine_request *r, const struct fake_use *uses, size_t n_uses,
                   int32_t *out, size_t max, bool *stopped)
{
    struct oracle o;
    oracle_open(&o, r, uses, n_uses);
    for (size_t i = 0; i < r->n_prompt; i++)
        oracle_read(&o, r->prompt[i]);
    *stopped = false;
    struct token_bias bias[256];
    assert(r->sampling.n_bias + r->n_stop_ids < 256);
    for (size_t n = 0; n < max; n++) {
        struct sample_params p = r->sampling;
        if (p.n_bias)
            memcpy(bias, p.bias, p.n_bias * sizeof *bias);
        for (size_t i = 0; n < r->min_new_tokens && i < r->n_stop_ids; i++)
            bias[p.n_bias++] = (struct token_bias){r->stop_ids[i], -INFINITY};
        p.bias = bias;
        p.counter = n;
        out[n] = fake_draw(fake_mix(o.fold, o.effects), fake_reads_history(&p) ? o.history : 0, &p);
        for (size_t i = 0; n >= r->min_new_tokens && i < r->n_stop_ids; i++) {
            if (r->stop_ids[i] == out[n]) {
                *stopped = true;
                return n + 1;
            }
        }
        oracle_read(&o, out[n]);
    }
    return max;
}

float fake_score(const struct engine_request *r, const struct fake_use *uses, size_t n_uses,
                 uint32_t position)
{
    struct oracle o;
    oracle_open(&o, r, uses, n_uses);
    for (uint32_t i = 0; i < position; i++)
        oracle_read(&o, r->prompt[i]);
    return fake_score_of(fake_mix(o.fold, o.effects), r->prompt[position]);
}
