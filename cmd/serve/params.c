#include "cmd/serve/params.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/sys.h"

void params_init(struct params *p, const struct generation_config *defaults)
{
    *p = (struct params){.sampling = {.temperature = 1,
                                      .top_p = 1,
                                      .repetition_penalty = 1,
                                      .target = -1,
                                      .pending = -1},
                         .skip_special = true,
                         .n = 1};
    if (!defaults || !defaults->present)
        return;
    if (defaults->has_temperature)
        p->sampling.temperature = (float)defaults->temperature;
    if (defaults->has_top_p)
        p->sampling.top_p = (float)defaults->top_p;
    if (defaults->has_top_k)
        p->sampling.top_k = defaults->top_k;
    if (defaults->has_min_p)
        p->sampling.min_p = (float)defaults->min_p;
    if (defaults->has_repetition_penalty)
        p->sampling.repetition_penalty = (float)defaults->repetition_penalty;
}

void params_release(struct params *p)
{
    for (size_t i = 0; i < p->n_stops; i++)
        sys_free(p->stops[i].text);
    sys_free(p->stops);
    sys_free(p->stop_ids);
    sys_free(p->bias);
    *p = (struct params){0};
}

bool params_is_stop_id(const struct params *p, int32_t id)
{
    for (size_t i = 0; i < p->n_stop_ids; i++) {
        if (p->stop_ids[i] == id)
            return true;
    }
    return false;
}

/* One number with its range: from `low` (itself allowed unless open) to `high`. */
struct range_row {
    const char *name;
    float *out;
    double low, high;
    bool open;
    const char *rule; // vLLM's words
};

static int read_ranges(struct params *p, const json_t *object, struct request_error *e)
{
    struct sample_params *s = &p->sampling;
    const struct range_row rows[] = {
        {"temperature", &s->temperature, 0, 1e6, false, "must be non-negative"},
        {"top_p", &s->top_p, 0, 1, true, "must be in (0, 1]"},
        {"min_p", &s->min_p, 0, 1, false, "must be in [0, 1]"},
        {"presence_penalty", &s->presence_penalty, -2, 2, false, "must be in [-2, 2]"},
        {"frequency_penalty", &s->frequency_penalty, -2, 2, false, "must be in [-2, 2]"},
        {"repetition_penalty", &s->repetition_penalty, 0, 1e6, true, "must be greater than zero"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        double v = (double)*rows[i].out;
        if (field_double(object, rows[i].name, &v, e) != 0)
            return -1;
        if (!(v >= rows[i].low) || v > rows[i].high || (rows[i].open && v == rows[i].low))
            return request_fail(e, 400, rows[i].name, "%s %s, got %g.", rows[i].name, rows[i].rule,
                                v);
        *rows[i].out = (float)v;
    }
    /* As in vLLM: a temperature this small is greedy in all but name, and overflows float32. */
    if (s->temperature > 0 && s->temperature < 0.01f)
        s->temperature = 0.01f;
    int64_t top_k = s->top_k;
    if (field_int(object, "top_k", INT32_MIN, INT32_MAX, &top_k, e) != 0)
        return -1;
    if (top_k < -1)
        return request_fail(e, 400, "top_k", "top_k must be 0 (disable), or at least 1, got %lld.",
                            (long long)top_k);
    s->top_k = top_k > 0 ? (int32_t)top_k : 0;
    return 0;
}

static int add_stop(struct params *p, const json_t *value, struct request_error *e)
{
    if (!json_is_string(value))
        return request_fail(e, 400, "stop", "stop must be a string or a list of strings.");
    size_t n = json_string_length(value);
    if (n == 0)
        return request_fail(e, 400, "stop", "stop cannot contain an empty string.");
    char *text = sys_malloc(n + 1);
    if (!text)
        return request_fail(e, 500, "stop", "no memory for stop strings");
    memcpy(text, json_string_value(value), n + 1);
    p->stops[p->n_stops++] = (struct stop_text){text, n};
    return 0;
}

static int read_stops(struct params *p, const json_t *object, struct request_error *e)
{
    const json_t *stop = field_get(object, "stop");
    if (!stop)
        return 0;
    size_t n = json_is_array(stop) ? json_array_size(stop) : 1;
    if (n > LIMIT_STOP_STRINGS)
        return request_fail(e, 400, "stop", "stop holds %zu strings; at most %d are allowed.", n,
                            LIMIT_STOP_STRINGS);
    p->stops = sys_calloc(n ? n : 1, sizeof *p->stops);
    if (!p->stops)
        return request_fail(e, 500, "stop", "no memory for stop strings");
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < n; i++)
        rc = add_stop(p, json_is_array(stop) ? json_array_get(stop, i) : stop, e);
    return rc;
}

static int read_stop_ids(struct params *p, const json_t *object, uint32_t vocab_size,
                         struct request_error *e)
{
    const json_t *ids = field_get(object, "stop_token_ids");
    if (!ids)
        return 0;
    if (!json_is_array(ids))
        return request_fail(e, 400, "stop_token_ids", "stop_token_ids must be a list of integers.");
    return field_ids(ids, "stop_token_ids", vocab_size, &p->stop_ids, &p->n_stop_ids, e);
}

static int read_bias(struct params *p, const json_t *object, uint32_t vocab_size,
                     struct request_error *e)
{
    json_t *bias = field_get(object, "logit_bias");
    if (!bias)
        return 0;
    if (!json_is_object(bias))
        return request_fail(e, 400, "logit_bias", "logit_bias must map token ids to numbers.");
    size_t n = json_object_size(bias);
    if (n > LIMIT_LOGIT_BIAS)
        return request_fail(e, 400, "logit_bias",
                            "logit_bias holds %zu tokens; at most %d are "
                            "allowed.",
                            n, LIMIT_LOGIT_BIAS);
    p->bias = sys_calloc(n ? n : 1, sizeof *p->bias);
    if (!p->bias)
        return request_fail(e, 500, "logit_bias", "no memory for logit_bias");
    const char *key;
    json_t *value;
    json_object_foreach(bias, key, value)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (end == key || *end || id < 0 || id >= (long)vocab_size || !json_is_number(value))
            return request_fail(e, 400, "logit_bias",
                                "logit_bias: '%.40s' is not a token id of the "
                                "vocabulary with a number.",
                                key);
        double v = json_number_value(value);
        v = v < -100 ? -100 : v > 100 ? 100 : v; // as in vLLM and OpenAI
        p->bias[p->sampling.n_bias++] = (struct token_bias){(int32_t)id, (float)v};
    }
    p->sampling.bias = p->bias;
    return 0;
}

static int read_lengths(struct params *p, const json_t *object, struct request_error *e)
{
    static const char *const max_names[] = {"max_tokens", "max_completion_tokens",
                                            "max_new_tokens"};
    static const char *const min_names[] = {"min_tokens", "min_new_tokens"};
    for (size_t i = 0; i < 3; i++) {
        int64_t v = -1;
        if (field_int(object, max_names[i], 0, INT32_MAX, &v, e) != 0)
            return -1;
        if (v < 0)
            continue;
        p->has_max = true;
        p->max_new_tokens = (uint32_t)v;
    }
    for (size_t i = 0; i < 2; i++) {
        int64_t v = p->min_new_tokens;
        if (field_int(object, min_names[i], 0, INT32_MAX, &v, e) != 0)
            return -1;
        p->min_new_tokens = (uint32_t)v;
        if (p->has_max && p->min_new_tokens > p->max_new_tokens)
            return request_fail(e, 400, min_names[i],
                                "%s must be less than or equal to "
                                "max_tokens=%u, got %u.",
                                min_names[i], p->max_new_tokens, p->min_new_tokens);
    }
    return 0;
}

static int read_seed(struct params *p, const json_t *object, struct request_error *e)
{
    int64_t seed = 0;
    const char *name = field_get(object, "seed") ? "seed" : "sampling_seed";
    if (!field_get(object, name))
        return 0;
    if (field_int(object, name, INT64_MIN, INT64_MAX, &seed, e) != 0)
        return -1;
    p->has_seed = true;
    p->sampling.seed = (uint64_t)seed;
    return 0;
}

int params_read(struct params *p, const json_t *object, uint32_t vocab_size,
                struct request_error *e)
{
    int64_t n = p->n;
    bool no_trim = false;
    if (read_ranges(p, object, e) != 0 || read_stops(p, object, e) != 0 ||
        read_stop_ids(p, object, vocab_size, e) != 0 || read_bias(p, object, vocab_size, e) != 0 ||
        read_lengths(p, object, e) != 0 || read_seed(p, object, e) != 0 ||
        field_bool(object, "ignore_eos", &p->ignore_eos, e) != 0 ||
        field_bool(object, "include_stop_str_in_output", &p->include_stop, e) != 0 ||
        field_bool(object, "no_stop_trim", &no_trim, e) != 0 ||
        field_bool(object, "skip_special_tokens", &p->skip_special, e) != 0 ||
        field_int(object, "n", 1, LIMIT_CHOICES, &n, e) != 0)
        return -1;
    p->include_stop = p->include_stop || no_trim;
    p->n = (uint32_t)n;
    return 0;
}
