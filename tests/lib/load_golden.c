/*
 * Every golden prompt over HTTP, through three routes and with and without streams in turn; the ids
 * and the first token's five log-probabilities must be the golden ones (--tolerance 0.01, --share
 * 1; a GPU in bf16: 0.5 and 0.05 for the most probable one, 0.99).
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/http_load.h"

enum { N_TOP = 10 };

enum route {
    ROUTE_GENERATE,
    ROUTE_CHAT,
    ROUTE_COMPLETIONS,
    ROUTE_GENERATE_STREAM,
    ROUTE_CHAT_STREAM,
    N_ROUTES
};

struct item {
    struct http_call call;
    const char *model; // NULL: the base
    const json_t *golden;
    enum route route;
    char *body;
};

static char *make_body(const struct load_options *o, const struct item *it)
{
    const char *model = it->model ? it->model : o->base;
    json_t *ids = json_object_get(it->golden, "prompt_ids");
    json_t *body = NULL;
    switch (it->route) {
    case ROUTE_GENERATE:
    case ROUTE_GENERATE_STREAM:
        body = json_pack("{s:O, s:{s:i, s:i}, s:b, s:i, s:b, s:s?}", "input_ids", ids,
                         "sampling_params", "temperature", 0, "max_new_tokens", 64,
                         "return_logprob", 1, "top_logprobs_num", N_TOP, "stream",
                         it->route == ROUTE_GENERATE_STREAM, "lora_path", it->model);
        break;
    case ROUTE_CHAT:
    case ROUTE_CHAT_STREAM:
        body = json_pack("{s:s, s:[{s:s, s:O}], s:i, s:i, s:b, s:i, s:b, s:b, s:b}", "model", model,
                         "messages", "role", "user", "content",
                         json_object_get(it->golden, "prompt"), "temperature", 0, "max_tokens", 64,
                         "logprobs", 1, "top_logprobs", N_TOP, "return_token_ids", 1,
                         "return_tokens_as_token_ids", 1, "stream", it->route == ROUTE_CHAT_STREAM);
        break;
    default:
        body = json_pack("{s:s, s:O, s:i, s:i, s:i, s:b, s:b}", "model", model, "prompt", ids,
                         "temperature", 0, "max_tokens", 64, "logprobs", N_TOP, "return_token_ids",
                         1, "return_tokens_as_token_ids", 1);
        break;
    }
    char *text = json_dumps(body, JSON_COMPACT);
    json_decref(body);
    return text;
}

/* What the server said, whatever the route: ids, text, the first token's log-probabilities. */
struct answer {
    json_t *ids; // owned
    struct strbuf text;
    json_t *top; // owned: {"id": logprob}
};

static void take_generate(struct answer *a, const json_t *body)
{
    json_decref(a->ids);
    a->ids = json_incref(json_object_get(body, "output_ids"));
    strbuf_reset(&a->text);
    const json_t *text = json_object_get(body, "text");
    strbuf_add(&a->text, json_string_value(text), json_string_length(text));
    const json_t *meta = json_object_get(body, "meta_info");
    const json_t *first = json_array_get(json_object_get(meta, "output_top_logprobs"), 0);
    for (size_t i = 0; i < json_array_size(first); i++) {
        const json_t *triple = json_array_get(first, i);
        char id[24];
        snprintf(id, sizeof id, "%lld", json_integer_value(json_array_get(triple, 1)));
        json_object_set(a->top, id, json_array_get(triple, 0));
    }
}

static void set_top(json_t *top, const char *token, json_t *logprob)
{
    if (token && strncmp(token, "token_id:", 9) == 0)
        json_object_set(top, token + 9, logprob);
}

static void take_choice(struct answer *a, const json_t *body)
{
    const json_t *choice = json_array_get(json_object_get(body, "choices"), 0);
    const json_t *message = json_object_get(choice, "message");
    if (!message)
        message = json_object_get(choice, "delta");
    const json_t *text =
        message ? json_object_get(message, "content") : json_object_get(choice, "text");
    if (text)
        strbuf_add(&a->text, json_string_value(text), json_string_length(text));
    const json_t *ids = json_object_get(choice, "token_ids");
    const json_t *logprobs = json_object_get(choice, "logprobs");
    bool first = json_array_size(a->ids) == 0 && json_array_size(ids) > 0;
    for (size_t i = 0; i < json_array_size(ids); i++)
        json_array_append(a->ids, json_array_get(ids, i));
    if (!first)
        return;
    const json_t *content = json_array_get(json_object_get(logprobs, "content"), 0);
    const json_t *tops = json_object_get(content, "top_logprobs");
    for (size_t i = 0; i < json_array_size(tops); i++) {
        const json_t *t = json_array_get(tops, i);
        set_top(a->top, json_string_value(json_object_get(t, "token")),
                json_object_get(t, "logprob"));
    }
    json_t *map = json_array_get(json_object_get(logprobs, "top_logprobs"), 0);
    const char *key;
    json_t *value;
    json_object_foreach(map, key, value) set_top(a->top, key, value);
}

static bool take_one(struct answer *a, const struct item *it, const char *text, size_t n)
{
    json_t *body = json_loadb(text, n, 0, NULL);
    if (!body)
        return false;
    if (it->route == ROUTE_GENERATE || it->route == ROUTE_GENERATE_STREAM)
        take_generate(a, body);
    else
        take_choice(a, body);
    json_decref(body);
    return true;
}

static bool take_answer(struct answer *a, const struct item *it)
{
    const char *text = strbuf_text(&it->call.text);
    if (it->route != ROUTE_GENERATE_STREAM && it->route != ROUTE_CHAT_STREAM)
        return take_one(a, it, text, it->call.text.len);
    for (const char *p = strstr(text, "data: "); p; p = strstr(p + 6, "\ndata: ")) {
        p += *p == '\n';
        const char *end = strchr(p, '\n');
        if (!end)
            return false;
        if (strncmp(p + 6, "[DONE]", 6) == 0)
            return true;
        if (!take_one(a, it, p + 6, (size_t)(end - p - 6)))
            return false;
        p = end - 6;
    }
    return false; // no [DONE]
}

/* /v1 routes give the end token too. */
static bool same_ids(const json_t *got, const json_t *want)
{
    size_t n = json_array_size(want), m = json_array_size(got);
    if (m != n && m != n + 1)
        return false;
    for (size_t i = 0; i < n; i++) {
        if (json_integer_value(json_array_get(got, i)) !=
            json_integer_value(json_array_get(want, i)))
            return false;
    }
    return m == n || json_integer_value(json_array_get(got, n)) == 2;
}

static bool same_top(const struct answer *a, const json_t *golden, double tolerance, double *worst)
{
    const json_t *ids = json_object_get(golden, "top5_ids");
    const json_t *logprobs = json_object_get(golden, "top5_logprobs");
    bool same = true;
    for (size_t i = 0; i < json_array_size(ids); i++) {
        char id[24];
        snprintf(id, sizeof id, "%lld", json_integer_value(json_array_get(ids, i)));
        const json_t *got = json_object_get(a->top, id);
        double off =
            got ? fabs(json_number_value(got) - json_number_value(json_array_get(logprobs, i)))
                : 1e9;
        *worst = off > *worst ? off : *worst;
        same = same && off <= (i == 0 && tolerance > 0.1 ? tolerance / 10 : tolerance);
    }
    return same;
}

static bool check(const struct item *it, double tolerance, double *worst)
{
    struct answer a = {.ids = json_array(), .top = json_object()};
    strbuf_init(&a.text);
    bool ok = !it->call.failed && it->call.status == 200 && take_answer(&a, it);
    bool ids = ok && same_ids(a.ids, json_object_get(it->golden, "ids"));
    bool text = ok && strcmp(strbuf_text(&a.text),
                             json_string_value(json_object_get(it->golden, "text"))) == 0;
    bool top = ok && same_top(&a, it->golden, tolerance, worst);
    if (!ids || !text || !top)
        printf(
            "# %s route %d status %d%s: ids %d text %d logprobs %d: got '%s', want '%s' %.200s\n",
            it->model ? it->model : "base", it->route, it->call.status,
            it->call.failed ? " (broken)" : "", ids, text, top, strbuf_text(&a.text),
            json_string_value(json_object_get(it->golden, "text")),
            ok ? "" : strbuf_text(&it->call.text));
    json_decref(a.ids);
    json_decref(a.top);
    strbuf_release(&a.text);
    return ids && text && top;
}

/* One prompt of each name after the other, so that all are mixed from the first batch on. */
static size_t fill(struct item *items, size_t max, const json_t *golden)
{
    size_t n = 0;
    for (size_t i = 0, found = 1; found > 0; i++) {
        const char *name;
        json_t *rows;
        found = 0;
        json_object_foreach((json_t *)golden, name, rows)
        {
            if (i >= json_array_size(rows) || n == max)
                continue;
            bool base = strcmp(name, "base") == 0;
            items[n] = (struct item){.model = base ? NULL : name,
                                     .golden = json_array_get(rows, i),
                                     .route = (enum route)(n % N_ROUTES)};
            n++;
            found++;
        }
    }
    return n;
}

int load_golden(const struct load_options *o)
{
    static const char *const paths[N_ROUTES] = {"/generate", "/v1/chat/completions",
                                                "/v1/completions", "/generate",
                                                "/v1/chat/completions"};
    json_t *golden = load_json_file(o->golden);
    if (!golden)
        return 1;
    enum { MAX_ITEMS = 4096 };
    struct item *items = calloc(MAX_ITEMS, sizeof *items);
    size_t n = items ? fill(items, MAX_ITEMS, golden) : 0, n_good = 0;
    double worst = 0;
    for (unsigned round = 0; round < o->repeat; round++) {
        struct http_client *c = http_client_open(o->host, o->port, o->clients);
        n_good = 0;
        for (size_t i = 0; c && i < n; i++) {
            struct item *it = &items[i];
            free(it->body);
            http_call_release(&it->call);
            it->route = (enum route)((i + round) % N_ROUTES);
            it->body = make_body(o, it);
            it->call = (struct http_call){.method = "POST",
                                          .path = paths[it->route],
                                          .key = o->key,
                                          .body = it->body,
                                          .n_body = strlen(it->body)};
            http_client_add(c, &it->call);
        }
        if (c)
            http_client_run(c, 0);
        for (size_t i = 0; i < n; i++)
            n_good += check(&items[i], o->tolerance, &worst);
        http_client_free(c);
        if ((double)n_good < o->share * (double)n)
            break;
    }
    printf("%zu of %zu golden, worst log-probability off by %.6f\n", n_good, n, worst);
    for (size_t i = 0; i < n; i++) {
        free(items[i].body);
        http_call_release(&items[i].call);
    }
    free(items);
    json_decref(golden);
    return n > 0 && (double)n_good >= o->share * (double)n ? 0 : 1;
}
