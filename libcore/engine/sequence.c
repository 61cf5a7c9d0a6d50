#include "libcore/engine/sequence.h"

#include <math.h>
#include <string.h>

#include "libcore/base/sys.h"

static int check_tokens(const struct engine_request *r, const struct sequence_limits *limits,
                        struct err *err)
{
    if (r->n_prompt == 0)
        return err_set(err, ERR_USAGE, "the prompt is empty");
    for (size_t i = 0; i < r->n_prompt; i++) {
        if (r->prompt[i] < 0 || (uint32_t)r->prompt[i] >= limits->vocab_size)
            return err_set(err, ERR_USAGE, "token id %d at position %zu is out of vocabulary (%u)",
                           (int)r->prompt[i], i, limits->vocab_size);
    }
    if (r->max_new_tokens == 0 && !r->prompt_logprobs)
        return err_set(err, ERR_USAGE,
                       "max_new_tokens is 0 and no prompt log-probabilities "
                       "are asked for");
    uint32_t room = r->max_new_tokens ? 1 : 0;
    if (r->n_prompt + room > limits->max_tokens)
        return err_set(
            err, ERR_LIMIT, "the prompt has %zu tokens, the maximum context length is %u tokens%s",
            r->n_prompt, limits->max_tokens,
            r->n_prompt == limits->max_tokens ? ", which leaves no room for an answer" : "");
    return 0;
}

static int check_sampling(const struct engine_request *r, uint32_t vocab_size, struct err *err)
{
    const struct sample_params *p = &r->sampling;
    if (!(p->temperature >= 0) || !isfinite(p->temperature))
        return err_set(err, ERR_USAGE, "temperature is %g, wanted 0 or more", p->temperature);
    if (!(p->repetition_penalty > 0) || !isfinite(p->repetition_penalty) ||
        !isfinite(p->presence_penalty) || !isfinite(p->frequency_penalty))
        return err_set(err, ERR_USAGE,
                       "penalties are %g (repetition), %g (presence), %g (frequency)",
                       p->repetition_penalty, p->presence_penalty, p->frequency_penalty);
    if (!(p->top_p > 0 && p->top_p <= 1) || !(p->min_p >= 0 && p->min_p <= 1))
        return err_set(err, ERR_USAGE,
                       "top_p is %g, wanted above 0 to 1; min_p is %g, wanted 0 to 1", p->top_p,
                       p->min_p);
    if (p->n_bias > LIMIT_LOGIT_BIAS)
        return err_set(err, ERR_LIMIT, "logit_bias has %u entries, at most %d are allowed",
                       p->n_bias, LIMIT_LOGIT_BIAS);
    for (uint32_t i = 0; i < p->n_bias; i++) {
        // +Inf and NaN would meet a -Inf of min_new_tokens
        if (isnan(p->bias[i].bias) || p->bias[i].bias == INFINITY)
            return err_set(err, ERR_USAGE, "logit_bias of token %d is not a number",
                           (int)p->bias[i].token);
    }
    if (p->n_top < 0 || p->n_top > BACKEND_MAX_TOP || (uint32_t)p->n_top > vocab_size)
        return err_set(err, ERR_LIMIT, "%d log-probabilities are asked for, at most %d are given",
                       (int)p->n_top, BACKEND_MAX_TOP);
    return 0;
}

/* Sorts the uses by content id, adds up the scales of equal ones and drops those of scale 0. */
static int set_uses(struct sequence *s, const struct engine_request *r, struct err *err)
{
    if (r->n_adapters > LIMIT_ADAPTERS_PER_REQUEST)
        return err_set(err, ERR_LIMIT, "%zu adapters in one request, at most %d are allowed",
                       r->n_adapters, LIMIT_ADAPTERS_PER_REQUEST);
    for (size_t i = 0; i < r->n_adapters; i++) {
        struct sequence_use use = {.content_id = r->adapters[i].content_id,
                                   .scale = r->adapters[i].scale};
        if (strlen(use.content_id) != DIGEST_HEX_CHARS)
            return err_set(err, ERR_USAGE, "\"%.80s\" is no content id", use.content_id);
        if (!isfinite(use.scale))
            return err_set(err, ERR_USAGE, "the scale of adapter %zu is not a number", i);
        uint32_t at = s->n_uses;
        while (at > 0 && strcmp(use.content_id, s->uses[at - 1].content_id) < 0)
            at--;
        if (at > 0 && strcmp(use.content_id, s->uses[at - 1].content_id) == 0) {
            s->uses[at - 1].scale += use.scale;
            continue;
        }
        memmove(&s->uses[at + 1], &s->uses[at], (s->n_uses - at) * sizeof use);
        s->uses[at] = use;
        s->n_uses++;
    }
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_uses; i++) {
        if (s->uses[i].scale != 0)
            s->uses[n++] = s->uses[i];
    }
    s->n_uses = n;
    return 0;
}

static int set_space(struct sequence *s, const struct engine_request *r, struct err *err)
{
    struct prefix_adapter keys[LIMIT_ADAPTERS_PER_REQUEST];
    for (uint32_t i = 0; i < s->n_uses; i++)
        keys[i] = (struct prefix_adapter){s->uses[i].content_id, s->uses[i].scale};
    return prefix_space_open(&s->space, keys, s->n_uses, s->rope_regime, r->cache_salt, err);
}

static void copy_lists(struct sequence *s, const struct engine_request *r)
{
    memcpy(s->tokens, r->prompt, r->n_prompt * sizeof *s->tokens);
    if (r->n_stop_ids)
        memcpy(s->stop_ids, r->stop_ids, r->n_stop_ids * sizeof *s->stop_ids);
    if (r->sampling.n_bias)
        memcpy(s->bias, r->sampling.bias, r->sampling.n_bias * sizeof *s->bias);
    for (size_t i = 0; i < r->n_stop_ids; i++)
        s->bias[r->sampling.n_bias + i] = (struct token_bias){r->stop_ids[i], -INFINITY};
}

/* One block: the struct, tokens, pages, stop ids, biases. */
static struct sequence *allocate(const struct engine_request *r, uint32_t n_tokens,
                                 uint32_t page_tokens)
{
    size_t n_pages = (n_tokens + page_tokens - 1) / page_tokens;
    size_t n_bias = r->sampling.n_bias + r->n_stop_ids;
    size_t size = sizeof(struct sequence) + n_tokens * sizeof(int32_t) +
                  n_pages * sizeof(uint32_t) + r->n_stop_ids * sizeof(int32_t) +
                  n_bias * sizeof(struct token_bias);
    struct sequence *s = sys_calloc(1, size);
    if (!s)
        return NULL;
    s->bias = (struct token_bias *)(s + 1);
    s->tokens = (int32_t *)(s->bias + n_bias);
    s->pages = (uint32_t *)(s->tokens + n_tokens);
    s->stop_ids = (int32_t *)(s->pages + n_pages);
    return s;
}

int sequence_open(struct sequence **out, const struct engine_request *r,
                  const struct sequence_limits *limits, const struct model_config *config,
                  struct err *err)
{
    *out = NULL;
    int rc = check_tokens(r, limits, err);
    if (rc == 0)
        rc = check_sampling(r, limits->vocab_size, err);
    if (rc)
        return rc;
    if (r->n_stop_ids > limits->vocab_size)
        return err_set(err, ERR_LIMIT, "%zu stop ids, the vocabulary has %u", r->n_stop_ids,
                       limits->vocab_size);
    uint32_t n_prompt = (uint32_t)r->n_prompt, room = limits->max_tokens - n_prompt;
    uint32_t max_new = r->max_new_tokens < room ? r->max_new_tokens : room;
    struct sequence *s = allocate(r, n_prompt + max_new, limits->page_tokens);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "no memory for a request of %u tokens",
                       n_prompt + max_new);
    copy_lists(s, r);
    s->on_event = r->on_event;
    s->user = r->user;
    s->n_prompt = s->n_tokens = n_prompt;
    s->n_scored = 1; // position 0 follows nothing
    s->max_new = max_new;
    s->min_new = r->min_new_tokens;
    s->n_stop = (uint32_t)r->n_stop_ids;
    s->include_stop = r->include_stop_token;
    s->prompt_logprobs = r->prompt_logprobs;
    s->n_bias = r->sampling.n_bias;
    s->sampling = r->sampling;
    s->priority = r->priority > 1000 ? 1000 : r->priority < -1000 ? -1000 : r->priority;
    s->rope_regime = config_rope_regime(config, n_prompt + max_new);
    rc = set_uses(s, r, err);
    if (rc == 0)
        rc = set_space(s, r, err);
    if (rc) {
        sequence_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void sequence_free(struct sequence *s)
{
    if (!s)
        return;
    if (!s->space_interned)
        prefix_space_free(s->space);
    sys_free(s);
}

uint32_t sequence_n_left(const struct sequence *s)
{
    return s->max_new - (s->n_tokens - s->n_prompt) - s->n_pending;
}

uint32_t sequence_n_todo(const struct sequence *s)
{
    // without an answer the prompt's last row predicts nothing that is asked for
    uint32_t n = s->max_new ? s->n_tokens + s->n_pending : s->n_prompt - 1;
    return n - s->n_computed;
}

bool sequence_is_stop(const struct sequence *s, int32_t token)
{
    for (uint32_t i = 0; i < s->n_stop; i++) {
        if (s->stop_ids[i] == token)
            return true;
    }
    return false;
}

static int compare_sets(const struct sequence *a, const struct sequence *b)
{
    for (uint32_t i = 0; i < a->n_uses && i < b->n_uses; i++) {
        const struct sequence_use *x = &a->uses[i], *y = &b->uses[i];
        if (x->slot != y->slot)
            return x->slot < y->slot ? -1 : 1;
        if (x->scale != y->scale)
            return x->scale < y->scale ? -1 : 1;
    }
    return a->n_uses < b->n_uses ? -1 : a->n_uses > b->n_uses;
}

bool sequence_same_set(const struct sequence *a, const struct sequence *b)
{
    return compare_sets(a, b) == 0;
}

int sequence_compare_rows(const struct sequence *a, const struct sequence *b)
{
    int order = compare_sets(a, b);
    return order ? order : a->id < b->id ? -1 : a->id > b->id;
}
