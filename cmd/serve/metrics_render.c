/*
 * The page of /metrics. Names and meanings: docs/SERVING.md.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/serve/generation.h"
#include "cmd/serve/metrics_impl.h"
#include "cmd/serve/names.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

/* A label's value, escaped as the text format wants it. */
static void add_label(struct strbuf *out, const char *text)
{
    for (const char *p = text; *p; p++) {
        if (*p == '\\' || *p == '"')
            strbuf_addc(out, '\\');
        strbuf_addc(out, *p == '\n' ? ' ' : *p);
    }
}

static void add_type(struct strbuf *out, const char *name, const char *type, const char *help)
{
    strbuf_addf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

struct page {
    struct strbuf *out;
    const char *model;
};

static void add_series(const struct page *p, const char *name, const char *suffix)
{
    strbuf_addf(p->out, "%s%s{model_name=\"", name, suffix);
    add_label(p->out, p->model);
    strbuf_adds(p->out, "\"");
}

static void add_value(const struct page *p, const char *name, const char *type, const char *help,
                      double value)
{
    add_type(p->out, name, type, help);
    add_series(p, name, "");
    strbuf_addf(p->out, "} %.17g\n", value);
}

static void add_histogram(const struct page *p, const char *name, const char *help,
                          const struct histogram *h, const double *bounds)
{
    add_type(p->out, name, "histogram", help);
    uint64_t below = 0;
    for (unsigned i = 0; i < METRICS_N_BOUNDS; i++) {
        below += h->counts[i];
        add_series(p, name, "_bucket");
        strbuf_addf(p->out, ",le=\"%g\"} %llu\n", bounds[i], (unsigned long long)below);
    }
    add_series(p, name, "_bucket");
    strbuf_addf(p->out, ",le=\"+Inf\"} %llu\n", (unsigned long long)h->n);
    add_series(p, name, "_sum");
    strbuf_addf(p->out, "} %.9g\n", h->sum);
    add_series(p, name, "_count");
    strbuf_addf(p->out, "} %llu\n", (unsigned long long)h->n);
}

// ---- adapters: where they are -------------------------------------------------------------------

struct residency {
    const struct engine_adapter_info *infos;
    size_t n;
    struct strbuf *out;
    unsigned wanted; // 1: resident on the device, 2: queued for a load
    unsigned listed;
};

static int compare_infos(const void *a, const void *b)
{
    const struct engine_adapter_info *x = a, *y = b;
    return strcmp(x->content_id, y->content_id);
}

/* infos are sorted: thousands of names meet thousands of adapters at every scrape. */
static const struct engine_adapter_info *info_of(const struct residency *r, const char *content_id)
{
    struct engine_adapter_info key;
    memcpy(key.content_id, content_id, sizeof key.content_id);
    return bsearch(&key, r->infos, r->n, sizeof key, compare_infos);
}

static void list_name(void *arg, const struct offered *o)
{
    struct residency *r = arg;
    const struct engine_adapter_info *info = info_of(r, o->served->content_id);
    if (!info)
        return;
    bool resident = info->tier == ENGINE_TIER_DEVICE;
    bool queued = !resident && (info->n_waiting > 0 || info->tier == ENGINE_TIER_LOADING);
    if ((r->wanted == 1 && !resident) || (r->wanted == 2 && !queued))
        return;
    strbuf_adds(r->out, r->listed++ ? "," : "");
    add_label(r->out, o->name);
}

static void list_loaded(void *arg, const struct offered *o)
{
    struct residency *r = arg;
    const struct engine_adapter_info *info = info_of(r, o->served->content_id);
    bool device = info && info->tier == ENGINE_TIER_DEVICE;
    bool host = info && (device || info->tier == ENGINE_TIER_HOST);
    if (!host)
        return;
    strbuf_adds(r->out, "vllm:lora_adapter_loaded{adapter_name=\"");
    add_label(r->out, o->name);
    strbuf_addf(r->out, "\",level=\"%s\",pinned=\"%s\",rank=\"%u\"} 1\n", device ? "gpu" : "cpu",
                info->pinned ? "true" : "false", info->rank);
}

static void add_residency(const struct page *p, const struct metrics_view *view,
                          const struct engine_stats *stats)
{
    size_t n = engine_adapters(view->engine, NULL, 0);
    struct engine_adapter_info *infos = sys_calloc(n ? n : 1, sizeof *infos);
    if (!infos) {
        p->out->failed = true;
        return;
    }
    size_t known = engine_adapters(view->engine, infos, n);
    struct residency r = {.infos = infos, .n = known < n ? known : n, .out = p->out};
    qsort(infos, r.n, sizeof *infos, compare_infos);
    add_type(p->out, "vllm:lora_requests_info", "gauge",
             "Adapters resident on the device (running_lora_adapters) and queued for a load "
             "(waiting_lora_adapters); the value is the time of this report.");
    strbuf_addf(p->out, "vllm:lora_requests_info{max_lora=\"%u\",running_lora_adapters=\"",
                stats->max_step_adapters);
    r.wanted = 1;
    names_each(view->names, list_name, &r);
    strbuf_adds(p->out, "\",waiting_lora_adapters=\"");
    r.wanted = 2;
    r.listed = 0;
    names_each(view->names, list_name, &r);
    strbuf_addf(p->out, "\"} %.3f\n", (double)thread_unix_ns() * 1e-9);
    add_type(p->out, "vllm:lora_adapter_loaded", "gauge", "Adapters in the device or host tier.");
    names_each(view->names, list_loaded, &r);
    sys_free(infos);
}

// ---- sections -----------------------------------------------------------------------------------

static void add_engine(const struct page *p, const struct engine_stats *s)
{
    double pages = s->kv_pages_total ? (double)s->kv_pages_used / s->kv_pages_total : 0;
    add_value(p, "vllm:num_requests_running", "gauge", "Sequences in the batch.", s->n_running);
    add_value(p, "vllm:num_requests_waiting", "gauge", "Sequences in the queue.", s->n_waiting);
    add_value(p, "vllm:kv_cache_usage_perc", "gauge", "Share of KV pages in use (1: all).", pages);
    add_value(p, "vllm:gpu_cache_usage_perc", "gauge", "The old name of kv_cache_usage_perc.",
              pages);
    add_type(p->out, "vllm:cache_config_info", "gauge", "Shape of the KV cache.");
    strbuf_addf(p->out, "vllm:cache_config_info{block_size=\"%u\",num_gpu_blocks=\"%u\"} 1\n",
                s->page_tokens, s->kv_pages_total);
    add_value(p, "vllm:num_preemptions_total", "counter", "Sequences sent back to the queue.",
              (double)s->n_preemptions);
    add_value(p, "vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up.",
              (double)s->prefix_queries_tokens);
    add_value(p, "vllm:prefix_cache_hits_total", "counter", "Prompt tokens found.",
              (double)s->prefix_hit_tokens);
    add_value(p, "vllm:num_gpu_loaded_lora_adapters", "gauge", "Adapters in the device tier.",
              s->n_device_adapters);
    add_value(p, "vllm:num_cpu_loaded_lora_adapters", "gauge", "Adapters in the host tier.",
              s->n_host_adapters);
    add_value(p, "vllm:max_gpu_lora_adapters", "gauge", "Cap of adapters in one step.",
              s->max_step_adapters);
    add_value(p, "sglang:num_running_reqs", "gauge", "Sequences in the batch.", s->n_running);
    add_value(p, "sglang:num_queue_reqs", "gauge", "Sequences in the queue.", s->n_waiting);
    add_value(p, "sglang:token_usage", "gauge", "Share of KV pages in use (1: all).", pages);
    add_value(p, "sglang:lora_pool_slots_used", "gauge", "Adapters in the device tier.",
              s->n_device_adapters);
    add_value(p, "sglang:lora_pool_slots_total", "gauge", "Cap of adapters in one step.",
              s->max_step_adapters);
}

static void add_tiers(const struct page *p, const struct engine_stats *s)
{
    static const char *const moves[2] = {"disk_to_host", "host_to_device"};
    static const struct {
        const char *name, *help;
    } rows[4] = {{"lora_adapter_loads_total", "Adapters moved up a tier."},
                 {"lora_adapter_load_bytes_total", "Bytes moved up a tier."},
                 {"lora_adapter_load_seconds_total", "Time of these moves."},
                 {"lora_adapter_evictions_total", "Adapters that left a tier (host, device)."}};
    for (unsigned k = 0; k < 4; k++) {
        add_type(p->out, rows[k].name, "counter", rows[k].help);
        for (unsigned i = 0; i < 2; i++) {
            double v = k == 0   ? (double)s->loads[i]
                       : k == 1 ? (double)s->load_bytes[i]
                       : k == 2 ? (double)s->load_ns[i] * 1e-9
                                : (double)s->evictions[i];
            strbuf_addf(p->out, "%s{tier=\"%s\"} %.17g\n", rows[k].name,
                        k == 3 ? (i ? "device" : "host") : moves[i], v);
        }
    }
    add_value(p, "lora_adapter_load_failures_total", "counter", "Loads that failed.",
              (double)s->load_failures);
    add_value(p, "lora_adapter_hits_total", "counter", "Requests whose adapters were resident.",
              (double)s->hits);
    add_value(p, "lora_adapter_misses_total", "counter", "Requests that waited for a load.",
              (double)s->misses);
    add_value(p, "lora_device_adapter_bytes", "gauge", "Adapters in the device tier.",
              (double)s->device_adapter_bytes);
    add_value(p, "lora_host_adapter_bytes", "gauge", "Adapters in the host tier.",
              (double)s->host_adapter_bytes);
    add_value(p, "lora_pool_bytes", "gauge", "The pool of KV pages and adapters.",
              (double)s->pool_bytes);
    add_value(p, "lora_requests_waiting_for_adapter", "gauge", "Sequences that wait for a load.",
              s->n_waiting_for_adapter);
    add_value(p, "lora_steps_total", "counter", "Steps of the engine.", (double)s->n_steps);
    add_value(p, "lora_step_seconds_total", "counter", "Time in steps.", (double)s->step_ns * 1e-9);
    add_value(p, "lora_cancelled_total", "counter", "Sequences whose client left or timed out.",
              (double)s->n_cancelled);
    add_value(p, "lora_failed_total", "counter", "Sequences that failed.", (double)s->n_failed);
}

/* Under m->mutex. */
static void add_adapter_counters(struct strbuf *out, const struct metrics *m, const char *base)
{
    static const struct {
        const char *name, *help;
    } rows[4] = {{"lora_adapter_requests_total", "Finished sequences."},
                 {"lora_adapter_failed_total", "Failed sequences."},
                 {"lora_adapter_prompt_tokens_total", "Prompt tokens."},
                 {"lora_adapter_generation_tokens_total", "Generated tokens."}};
    for (unsigned k = 0; k < 4; k++) {
        add_type(out, rows[k].name, "counter", rows[k].help);
        for (unsigned i = 0; i < m->n_adapters; i++) {
            const struct adapter_counter *c = &m->adapters[i];
            uint64_t v = k == 0   ? c->n_requests
                         : k == 1 ? c->n_failed
                         : k == 2 ? c->n_prompt_tokens
                                  : c->n_tokens;
            strbuf_addf(out, "%s{adapter=\"", rows[k].name);
            add_label(out, *c->label ? c->label : base);
            strbuf_addf(out, "\"} %llu\n", (unsigned long long)v);
        }
    }
}

/* Under m->mutex. */
static void add_requests(const struct page *p, const struct metrics *m)
{
    static const char *const reasons[5] = {"", "stop", "length", "abort", "error"};
    static const char SUCCESS[] = "vllm:request_success_total";
    add_type(p->out, SUCCESS, "counter", "Finished sequences by how they ended.");
    for (unsigned i = CHOICE_STOP; i <= CHOICE_ABORT; i++) {
        add_series(p, SUCCESS, "");
        strbuf_addf(p->out, ",finished_reason=\"%s\"} %llu\n", reasons[i],
                    (unsigned long long)m->by_end[i]);
    }
    add_value(p, "vllm:prompt_tokens_total", "counter", "Prompt tokens.",
              (double)m->n_prompt_tokens);
    add_value(p, "vllm:generation_tokens_total", "counter", "Generated tokens.",
              (double)m->n_tokens);
    add_value(p, "lora_cached_prompt_tokens_total", "counter", "Prompt tokens of the prefix cache.",
              (double)m->n_cached_tokens);
    const double *s = metrics_second_bounds, *t = metrics_token_bounds;
    add_histogram(p, "vllm:time_to_first_token_seconds", "Request to first token.", &m->ttft, s);
    add_histogram(p, "vllm:time_per_output_token_seconds", "Mean time of a token after the first.",
                  &m->tpot, s);
    add_histogram(p, "vllm:inter_token_latency_seconds", "The same, its newer name.", &m->tpot, s);
    add_histogram(p, "vllm:e2e_request_latency_seconds", "Request to last token.", &m->e2e, s);
    add_histogram(p, "vllm:request_queue_time_seconds", "Time in the queue.", &m->queue, s);
    add_histogram(p, "vllm:request_prefill_time_seconds", "Admitted to first token.", &m->prefill,
                  s);
    add_histogram(p, "vllm:request_decode_time_seconds", "First token to last.", &m->decode, s);
    add_histogram(p, "vllm:request_inference_time_seconds", "Admitted to last token.",
                  &m->inference, s);
    add_histogram(p, "lora_adapter_wait_seconds", "Time a sequence waited for its adapters.",
                  &m->adapter_wait, s);
    add_histogram(p, "vllm:request_prompt_tokens", "Prompt tokens.", &m->prompt_tokens, t);
    add_histogram(p, "vllm:request_generation_tokens", "Generated tokens.", &m->answer_tokens, t);
    add_type(p->out, "lora_http_responses_total", "counter", "Answers by class of status.");
    for (unsigned i = 1; i < 6; i++)
        strbuf_addf(p->out, "lora_http_responses_total{class=\"%uxx\"} %llu\n", i,
                    (unsigned long long)m->by_status[i]);
}

void metrics_render(struct metrics *m, const struct metrics_view *view, struct strbuf *out)
{
    struct page p = {out, view->model_name};
    struct engine_stats stats = {0};
    engine_stats(view->engine, &stats);
    add_engine(&p, &stats);
    add_residency(&p, view, &stats);
    add_tiers(&p, &stats);
    pthread_mutex_lock(&m->mutex);
    add_requests(&p, m);
    add_adapter_counters(out, m, view->model_name);
    pthread_mutex_unlock(&m->mutex);
    char hot[LIMIT_NAME_BYTES + 1];
    metrics_hot_adapter(m, hot, sizeof hot);
    add_type(out, "lora_hot_adapter", "gauge",
             "The adapter that has had most of the tokens for minutes: try --premerge.");
    if (*hot) {
        strbuf_adds(out, "lora_hot_adapter{adapter=\"");
        add_label(out, hot);
        strbuf_adds(out, "\"} 1\n");
    }
}
