/*
 * Routes about the server itself: health, version, models, metrics, information, flushing.
 */
#include <stdio.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/serve/api.h"
#include "cmd/serve/plan.h"
#include "libcore/base/sys.h"

/* 200 without a body; 503 while loading and draining. */
void api_health(struct server *s, struct http_exchange *x)
{
    bool ready = atomic_load(&s->state) == SERVER_READY;
    if (!ready)
        http_add_header(x, "Retry-After", "1");
    http_answer(x, ready ? 200 : 503, NULL, NULL);
}

void api_version(struct server *s, struct http_exchange *x)
{
    (void)s;
    answer_json(x, 200, json_pack("{s:s}", "version", cmd_version()));
}

void api_metrics(struct server *s, struct http_exchange *x)
{
    struct strbuf out;
    strbuf_init(&out);
    const struct metrics_view view = {s->names, s->rt->engine, names_base(s->names),
                                      s->rt->context_length};
    metrics_render(s->metrics, &view, &out);
    http_answer(x, 200, "text/plain; version=0.0.4; charset=utf-8", &out);
}

// ---- models -------------------------------------------------------------------------------------

static json_t *permission(const char *id, uint64_t created)
{
    return json_pack("[{s:o, s:s, s:I, s:b, s:b, s:b, s:b, s:b, s:b, s:s, s:n, s:b}]", "id",
                     json_sprintf("modelperm-%s", id), "object", "model_permission", "created",
                     (json_int_t)created, "allow_create_engine", 0, "allow_sampling", 1,
                     "allow_logprobs", 1, "allow_search_indices", 0, "allow_view", 1,
                     "allow_fine_tuning", 0, "organization", "*", "group", "is_blocking", 0);
}

static json_t *base_card(struct server *s, const char *name)
{
    const char *root = s->rt->base.folder ? s->rt->base.folder : name;
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:n, s:I, s:o}", "id", name, "object", "model",
                     "created", (json_int_t)s->started_s, "owned_by", "lora", "root", root,
                     "parent", "max_model_len", (json_int_t)s->rt->context_length, "permission",
                     permission(name, s->started_s));
}

static json_t *adapter_card(struct server *s, const struct offered *o)
{
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:s, s:n, s:o}", "id", o->name, "object", "model",
                     "created", (json_int_t)o->created, "owned_by", "lora", "root", o->root,
                     "parent", names_base(s->names), "max_model_len", "permission",
                     permission(o->name, o->created));
}

struct model_list {
    struct server *s;
    json_t *data;
    const char *wanted; // NULL: all
};

static void add_card(void *arg, const struct offered *o)
{
    struct model_list *l = arg;
    if (!l->wanted || strcmp(l->wanted, o->name) == 0)
        json_array_append_new(l->data, adapter_card(l->s, o));
}

static void add_base_cards(struct model_list *l)
{
    for (size_t i = 0; i < names_n_base(l->s->names); i++) {
        const char *name = names_base_at(l->s->names, i);
        if (!l->wanted || strcmp(l->wanted, name) == 0)
            json_array_append_new(l->data, base_card(l->s, name));
    }
}

void api_models(struct server *s, struct http_exchange *x)
{
    struct model_list list = {.s = s, .data = json_array()};
    add_base_cards(&list);
    names_each(s->names, add_card, &list);
    answer_json(x, 200, json_pack("{s:s, s:o}", "object", "list", "data", list.data));
}

void api_model(struct server *s, struct http_exchange *x)
{
    const char *name = http_path(x) + strlen("/v1/models/");
    struct model_list list = {.s = s, .data = json_array(), .wanted = name};
    add_base_cards(&list);
    names_each(s->names, add_card, &list);
    json_t *card = json_array_get(list.data, 0);
    if (card) {
        answer_json(x, 200, json_incref(card));
    } else {
        char text[LIMIT_NAME_BYTES + 64];
        snprintf(text, sizeof text, "The model `%.*s` does not exist.", LIMIT_NAME_BYTES, name);
        answer_error(x, ANSWER_OPENAI, 404, "model", text);
    }
    json_decref(list.data);
}

// ---- SGLang's information -----------------------------------------------------------------------

void api_model_info(struct server *s, struct http_exchange *x)
{
    const struct runtime *rt = s->rt;
    const char *folder = rt->base.folder ? rt->base.folder : "";
    json_t *body = json_pack(
        "{s:s, s:s, s:b, s:b, s:I, s:s, s:[s]}", "model_path", folder, "tokenizer_path",
        rt->kit && rt->kit->tokenizer ? folder : "", "is_generation", 1, "skip_tokenizer_init",
        rt->kit && rt->kit->tokenizer ? 0 : 1, "max_context_length", (json_int_t)rt->context_length,
        "model_type", rt->config.model_type, "architectures", rt->config.arch_name);
    answer_json(x, 200, body);
}

static json_t *tiers(const struct engine_stats *st)
{
    return json_pack("{s:{s:I, s:I}, s:{s:I, s:I}}", "device", "adapters",
                     (json_int_t)st->n_device_adapters, "bytes",
                     (json_int_t)st->device_adapter_bytes, "host", "adapters",
                     (json_int_t)st->n_host_adapters, "bytes", (json_int_t)st->host_adapter_bytes);
}

void api_server_info(struct server *s, struct http_exchange *x)
{
    const struct runtime *rt = s->rt;
    struct engine_stats st = {0};
    engine_stats(rt->engine, &st);
    json_t *body = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "version", cmd_version(),
        "model_path", rt->base.folder ? rt->base.folder : "", "served_model_name",
        names_base(s->names), "device", rt->info.device, "context_length",
        (json_int_t)rt->context_length, "max_total_num_tokens", (json_int_t)plan_kv_tokens(rt),
        "max_running_requests", (json_int_t)rt->limits.max_sequences, "chunked_prefill_size",
        (json_int_t)rt->limits.max_rows, "num_running_reqs", (json_int_t)st.n_running,
        "num_waiting_reqs", (json_int_t)st.n_waiting, "num_adapters",
        (json_int_t)names_count(s->names), "adapter_tiers", tiers(&st));
    answer_json(x, 200, body);
}

void api_flush_cache(struct server *s, struct http_exchange *x)
{
    engine_flush_prefix_cache(s->rt->engine);
    http_answer_text(x, 200, "Cache flushed.\n");
}
