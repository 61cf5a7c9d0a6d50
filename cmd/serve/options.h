/*
 * options: everything that `lora serve` can be told, as plain data, and the table it comes from.
 * The peers' spellings are aliases; a flag that means something else there is translated here and
 * logged in one line; what this program does not have is refused with the reason.
 */
#ifndef CMD_SERVE_OPTIONS_H
#define CMD_SERVE_OPTIONS_H

#include "cmd/cmd.h"
#include "store/sign.h"

/* What a base model is opened with; `lora run` uses the same. */
struct model_options {
    const char *model;       // a REF of a base, or its folder
    const char *device;      // "auto", "cpu", "cuda:0"
    const char *dtype;       // "auto" or the checkpoint's own
    const char *load_format; // "auto", "dummy"
    const char *config_json; // with dummy: the file that gives the shapes
    const char *lora_dtype;
    int64_t n_threads;      // 0: all
    int64_t context_length; // 0: the model's own
    int64_t seed;
    bool deterministic, skip_tokenizer;
    double memory_utilization;                // share of the device's memory that is used
    uint64_t adapter_bytes, host_cache_bytes; // 0: by the plan
    int64_t max_step_tokens, max_running, max_step_adapters, max_host_adapters, max_queued;
    int64_t max_kv_tokens; // 0: what fits
    int64_t max_kv_pages;  // vLLM's way of saying it; 0: not said
    const char *eviction;
    bool no_prefix_cache;
    bool no_sampling_defaults; // generation_config.json gives end ids alone
    const char *trace;
    const char *chat_template; // a file instead of the model's own
};

struct serve_options {
    struct model_options base;
    struct string_list served_names;
    struct string_list lora_paths;
    bool lora_paths_given;
    const char *adapter_root;
    struct sign_keys required; // adapters must be signed by one of them; none: need not
    const char *host;
    int64_t port;
    struct string_list api_keys;
    const char *api_key_file, *admin_api_key;
    uint64_t max_body_bytes;
    int64_t max_connections, max_lora_rank, n_workers;
    double request_timeout_s, drain_timeout_s, idle_timeout_s;
    bool check;
};

extern const struct option serve_option_table[];
extern struct serve_options serve_options;

/* After parsing: translates, refuses, checks one against another. ERR_USAGE, ERR_REFUSED. */
int serve_options_finish(struct cmd_context *ctx, struct err *err);

#endif
