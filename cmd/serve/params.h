/*
 * params: the sampling part of a request, whichever peer's words it uses.
 */
#ifndef CMD_SERVE_PARAMS_H
#define CMD_SERVE_PARAMS_H

#include "cmd/serve/fields.h"
#include "libcore/backend.h"
#include "libcore/format/generation_config.h"

struct stop_text {
    char *text;
    size_t n;
};

struct params {
    struct sample_params sampling; // temperature … n_top; history and target are the engine's
    struct token_bias *bias;
    bool has_seed;
    bool has_max;            // max_new_tokens was given
    uint32_t max_new_tokens; // 0 without has_max: up to the context
    uint32_t min_new_tokens;
    int32_t *stop_ids; // the request's own
    size_t n_stop_ids;
    struct stop_text *stops;
    size_t n_stops;
    bool ignore_eos, include_stop, skip_special;
    uint32_t n;
};

/* Defaults: temperature 1, and what generation_config.json says. */
void params_init(struct params *p, const struct generation_config *defaults);
void params_release(struct params *p);

/* Reads the fields that OpenAI's routes with vLLM's additions, and SGLang's sampling_params, share:
 * temperature, top_p, top_k, min_p, penalties, stop, stop_token_ids, ignore_eos, seed, n,
 * skip_special_tokens, logit_bias; then max_tokens, max_completion_tokens or max_new_tokens, and
 * min_tokens or min_new_tokens. 0 or -1 with *e set. */
int params_read(struct params *p, const json_t *object, uint32_t vocab_size,
                struct request_error *e);

/* Whether an id ends the answer by the request's own wish. */
bool params_is_stop_id(const struct params *p, int32_t id);

#endif
