#include "cmd/serve/options.h"

#include <string.h>

#include "cmd/signing.h"
#include "libcore/base/limits.h"
#include "libcore/base/log.h"

struct serve_options serve_options = {
    .base = {.device = "auto",
             .dtype = "auto",
             .load_format = "auto",
             .lora_dtype = "auto",
             .memory_utilization = 0.9,
             .max_step_tokens = 8192,
             .max_running = 256,
             .max_queued = 4096,
             .eviction = "lru"},
    .host = "127.0.0.1",
    .port = 30000,
    .max_body_bytes = LIMIT_BODY_BYTES,
    .max_connections = 4096,
    .n_workers = 2,
    .request_timeout_s = 600,
    .drain_timeout_s = 30,
    .idle_timeout_s = 120,
};

/* The peers' flags that translate, or that are refused. */
static struct {
    double mem_fraction_static;
    bool mem_fraction_given;
    const char *max_step_adapters, *max_host_adapters;
    int64_t tensor_parallel, pipeline_parallel, data_parallel;
    const char *quantization, *kv_cache_dtype, *premerge, *tls_cert, *tls_key, *tokenizer,
        *revision, *generation_config;
    bool given_loras_per_batch, given_chunked;
    int64_t chunked_prefill;
    bool prefix_caching, prefix_caching_given, disable_radix_cache, enable_lora;
    bool inert_flag;
    struct string_list inert_words;
    bool inert_given;
} peer = {.tensor_parallel = 1,
          .pipeline_parallel = 1,
          .data_parallel = 1,
          .max_step_adapters = "auto",
          .max_host_adapters = "auto",
          .kv_cache_dtype = "auto",
          .generation_config = "auto",
          .prefix_caching = true};

#define OPT (&serve_options)

/* Flags of vLLM and SGLang that change nothing here; one row for switches, one for values. */
#define INERT_SWITCHES                                                                             \
    "enable-metrics,trust-remote-code,disable-log-requests,disable-log-stats,enforce-eager,"       \
    "enable-chunked-prefill,fully-sharded-loras,disable-cuda-graph,enable-lora-overlap-loading,"   \
    "lora-strict-loading,skip-server-warmup,enable-mixed-chunk,disable-overlap-schedule,"          \
    "record-nolora-graph,specialize-active-lora,disable-uvicorn-access-log,"                       \
    "enable-request-id-headers,enable-cache-report,disable-frontend-multiprocessing,"              \
    "enable-log-requests,enable-tokenizer-info-endpoint,enable-auto-tool-choice,"                  \
    "disable-custom-all-reduce,enable-torch-compile,async-scheduling,disable-fastapi-docs,"        \
    "enable-p2p-check,enable-mixed-moe-lora-format,enable-server-load-tracking"
#define INERT_VALUES                                                                               \
    "block-size,page-size,swap-space,lora-backend,max-lora-chunk-size,attention-backend,"          \
    "sampling-backend,schedule-policy,stream-interval,watchdog-timeout,max-prefill-tokens,"        \
    "lora-drain-wait-threshold,lora-target-modules,uvicorn-log-level,"                             \
    "chat-template-content-format,download-dir,disable-log,cuda-graph-max-bs,max-logprobs,"        \
    "tokenizer-mode,guided-decoding-backend,scheduling-policy,log-level-http,"                     \
    "schedule-conservativeness,grammar-backend,max-seq-len-to-capture,decode-log-interval,"        \
    "tool-call-parser,reasoning-parser,cuda-graph-bs,response-role,num-scheduler-steps,"           \
    "max-parallel-loading-workers,distributed-executor-backend,root-path"

const struct option serve_option_table[] = {
    {.type = OPTION_HEADING, .help = "Model"},
    {.long_name = "model",
     .type = OPTION_STRING,
     .value = &serve_options.base.model,
     .value_name = "REF",
     .aliases = "model-path",
     .env = "LORA_MODEL",
     .help = "The base: a name, id, hub id or folder."},
    {.long_name = "served-model-name",
     .type = OPTION_WORDS,
     .value = &serve_options.served_names,
     .value_name = "NAME",
     .help = "What clients call the base; more names are further aliases."},
    {.long_name = "device",
     .type = OPTION_STRING,
     .value = &serve_options.base.device,
     .value_name = "auto|cpu|cuda:N",
     .env = "LORA_DEVICE",
     .help = "Where it computes."},
    {.long_name = "threads",
     .type = OPTION_INT,
     .value = &serve_options.base.n_threads,
     .value_name = "N",
     .min = 0,
     .max = 1024,
     .env = "LORA_THREADS",
     .help = "Threads of the CPU back end; 0 takes all."},
    {.long_name = "dtype",
     .type = OPTION_STRING,
     .value = &serve_options.base.dtype,
     .value_name = "auto|bfloat16|…",
     .help = "Weights as the checkpoint has them (auto), or that "
             "type named, if it is the one that is computed."},
    {.long_name = "load-format",
     .type = OPTION_STRING,
     .value = &serve_options.base.load_format,
     .choices = "auto,dummy,safetensors",
     .value_name = "FORMAT",
     .help = "dummy: random weights of the model's shapes."},
    {.long_name = "config-json",
     .type = OPTION_STRING,
     .value = &serve_options.base.config_json,
     .value_name = "FILE",
     .help = "With --load-format dummy: the config.json that gives shapes."},
    {.long_name = "context-length",
     .type = OPTION_INT,
     .min = 1,
     .max = 1 << 24,
     .value = &serve_options.base.context_length,
     .value_name = "N",
     .aliases = "max-model-len",
     .help = "Prompt and answer together, in tokens; by default the model's own."},
    {.long_name = "skip-tokenizer-init",
     .type = OPTION_FLAG,
     .value = &serve_options.base.skip_tokenizer,
     .help = "Serve ids only, on /generate."},
    {.long_name = "chat-template",
     .type = OPTION_STRING,
     .value = &serve_options.base.chat_template,
     .value_name = "FILE",
     .help = "A Jinja template instead of the model's own."},
    {.long_name = "seed",
     .type = OPTION_INT,
     .value = &serve_options.base.seed,
     .value_name = "N",
     .aliases = "random-seed",
     .help = "First seed of requests that bring none, and of dummy weights."},
    {.long_name = "deterministic",
     .type = OPTION_FLAG,
     .value = &serve_options.base.deterministic,
     .aliases = "enable-deterministic-inference",
     .help = "Sums do not depend on the batch."},

    {.type = OPTION_HEADING, .help = "Adapters"},
    {.long_name = "lora-paths",
     .type = OPTION_WORDS,
     .value = &serve_options.lora_paths,
     .value_name = "NAME=REF",
     .aliases = "lora-modules",
     .given = &serve_options.lora_paths_given,
     .env = "LORA_LORA_PATHS",
     .help = "Adapters to offer: NAME=REF, REF, or JSON {lora_name, lora_path, pinned}. By default "
             "all of the store whose base matches."},
    {.long_name = "max-loras-per-batch",
     .type = OPTION_STRING,
     .value = &peer.max_step_adapters,
     .value_name = "N|auto",
     .aliases = "max-loras",
     .given = &peer.given_loras_per_batch,
     .help = "Cap on distinct adapters in one step; the base alone never counts."},
    {.long_name = "max-cpu-loras",
     .type = OPTION_STRING,
     .value = &peer.max_host_adapters,
     .value_name = "N|auto",
     .aliases = "max-loaded-loras",
     .help = "Cap of the host tier."},
    {.long_name = "max-lora-rank",
     .type = OPTION_INT,
     .value = &serve_options.max_lora_rank,
     .min = 1,
     .max = LIMIT_RANK,
     .value_name = "N",
     .help = "Refuse adapters of a larger rank; nothing is padded to it."},
    {.long_name = "lora-dtype",
     .type = OPTION_STRING,
     .value = &serve_options.base.lora_dtype,
     .value_name = "auto",
     .help = "What adapters are stored as on the device."},
    {.long_name = "adapter-memory",
     .type = OPTION_SIZE,
     .value = &serve_options.base.adapter_bytes,
     .value_name = "SIZE",
     .env = "LORA_ADAPTER_MEMORY",
     .help = "Cap of adapters in the device tier; by default they share the pool with KV pages."},
    {.long_name = "host-cache",
     .type = OPTION_SIZE,
     .value = &serve_options.base.host_cache_bytes,
     .value_name = "SIZE",
     .env = "LORA_HOST_CACHE",
     .help = "Cap of adapters in the host tier."},
    {.long_name = "eviction-policy",
     .type = OPTION_STRING,
     .value = &serve_options.base.eviction,
     .value_name = "POLICY",
     .choices = "lru,fifo,cost",
     .aliases = "lora-eviction-policy",
     .help = "Which adapter leaves a full tier."},
    {.long_name = "adapter-root",
     .type = OPTION_STRING,
     .value = &serve_options.adapter_root,
     .value_name = "DIR",
     .env = "LORA_ADAPTER_ROOT",
     .help = "Requests to load by path may name what lies below it; without it, names only."},
    SIGNING_REQUIRED_ROW,

    {.type = OPTION_HEADING, .help = "Memory and batch"},
    {.long_name = "gpu-memory-utilization",
     .type = OPTION_DOUBLE,
     .value = &serve_options.base.memory_utilization,
     .value_name = "SHARE",
     .help = "Share of the device's memory for weights, KV pages and adapters together."},
    {.long_name = "max-num-batched-tokens",
     .type = OPTION_INT,
     .min = -1,
     .max = LIMIT_STEP_TOKENS,
     .value = &serve_options.base.max_step_tokens,
     .value_name = "N",
     .aliases = "chunked-prefill-size",
     .given = &peer.given_chunked,
     .help = "Tokens in one step."},
    {.long_name = "max-num-seqs",
     .type = OPTION_INT,
     .min = 1,
     .max = LIMIT_SEQUENCES,
     .value = &serve_options.base.max_running,
     .value_name = "N",
     .aliases = "max-running-requests",
     .help = "Running sequences."},
    {.long_name = "max-queued-requests",
     .type = OPTION_INT,
     .min = 1,
     .max = LIMIT_QUEUED_REQUESTS,
     .value = &serve_options.base.max_queued,
     .value_name = "N",
     .help = "Waiting sequences; beyond, requests get 503."},
    {.long_name = "max-total-tokens",
     .type = OPTION_INT,
     .min = 1,
     .max = INT64_MAX,
     .value = &serve_options.base.max_kv_tokens,
     .value_name = "N",
     .help = "Cap of tokens in the KV cache."},
    {.long_name = "no-prefix-cache",
     .type = OPTION_FLAG,
     .value = &serve_options.base.no_prefix_cache,
     .help = "Never share KV pages."},

    {.type = OPTION_HEADING, .help = "HTTP"},
    {.long_name = "host",
     .type = OPTION_STRING,
     .value = &serve_options.host,
     .value_name = "ADDRESS",
     .env = "LORA_HOST",
     .help = "Where to listen."},
    {.long_name = "port",
     .type = OPTION_INT,
     .value = &serve_options.port,
     .min = 0,
     .max = 65535,
     .value_name = "N",
     .env = "LORA_PORT",
     .help = "0 takes a free one; the log names it."},
    {.long_name = "api-key",
     .type = OPTION_WORDS,
     .value = &serve_options.api_keys,
     .value_name = "KEY",
     .env = "LORA_API_KEY",
     .secret = true,
     .help = "Bearer keys of clients."},
    {.long_name = "api-key-file",
     .type = OPTION_STRING,
     .value = &serve_options.api_key_file,
     .value_name = "FILE",
     .env = "LORA_API_KEY_FILE",
     .help = "One key a line."},
    {.long_name = "admin-api-key",
     .type = OPTION_STRING,
     .value = &serve_options.admin_api_key,
     .value_name = "KEY",
     .env = "LORA_ADMIN_API_KEY",
     .secret = true,
     .help = "For routes that load, unload and flush."},
    {.long_name = "max-body-bytes",
     .type = OPTION_SIZE,
     .value = &serve_options.max_body_bytes,
     .value_name = "SIZE",
     .help = "Larger requests get 413."},
    {.long_name = "max-connections",
     .type = OPTION_INT,
     .min = 1,
     .max = LIMIT_CONNECTIONS,
     .value = &serve_options.max_connections,
     .value_name = "N",
     .help = "Open connections."},
    {.long_name = "request-timeout",
     .type = OPTION_DOUBLE,
     .value = &serve_options.request_timeout_s,
     .value_name = "SECONDS",
     .help = "A request that takes longer is ended; 0 for never."},
    {.long_name = "idle-timeout",
     .type = OPTION_DOUBLE,
     .value = &serve_options.idle_timeout_s,
     .value_name = "SECONDS",
     .help = "A connection that neither sends nor reads is closed."},
    {.long_name = "drain-timeout",
     .type = OPTION_DOUBLE,
     .value = &serve_options.drain_timeout_s,
     .value_name = "SECONDS",
     .help = "After SIGTERM, how long running requests may take."},
    {.long_name = "http-workers",
     .type = OPTION_INT,
     .min = 1,
     .max = 64,
     .value = &serve_options.n_workers,
     .value_name = "N",
     .help = "Threads that parse, tokenise and render templates."},

    {.type = OPTION_HEADING, .help = "More"},
    {.long_name = "check",
     .type = OPTION_FLAG,
     .value = &serve_options.check,
     .help = "Print the memory plan and what is said of each adapter, and exit."},
    {.long_name = "trace",
     .type = OPTION_STRING,
     .value = &serve_options.base.trace,
     .value_name = "FILE",
     .help = "One JSON line for each step."},

    // The peers' flags: translated, accepted where they change nothing, or refused.
    {.long_name = "mem-fraction-static",
     .type = OPTION_DOUBLE,
     .value = &peer.mem_fraction_static,
     .given = &peer.mem_fraction_given,
     .help = "",
     .hidden = true},
    {.long_name = "num-gpu-blocks-override",
     .type = OPTION_INT,
     .value = &serve_options.base.max_kv_pages,
     .min = 1,
     .max = INT32_MAX,
     .help = "",
     .hidden = true},
    {.long_name = "enable-lora",
     .type = OPTION_FLAG,
     .value = &peer.enable_lora,
     .help = "",
     .hidden = true},
    {.long_name = "enable-prefix-caching",
     .type = OPTION_FLAG,
     .value = &peer.prefix_caching,
     .given = &peer.prefix_caching_given,
     .help = "",
     .hidden = true},
    {.long_name = "disable-radix-cache",
     .type = OPTION_FLAG,
     .value = &peer.disable_radix_cache,
     .help = "",
     .hidden = true},
    {.long_name = "tensor-parallel-size",
     .type = OPTION_INT,
     .value = &peer.tensor_parallel,
     .aliases = "tp-size,tp",
     .help = "",
     .hidden = true},
    {.long_name = "pipeline-parallel-size",
     .type = OPTION_INT,
     .value = &peer.pipeline_parallel,
     .aliases = "pp-size,pp",
     .help = "",
     .hidden = true},
    {.long_name = "data-parallel-size",
     .type = OPTION_INT,
     .value = &peer.data_parallel,
     .aliases = "dp-size,dp",
     .help = "",
     .hidden = true},
    {.long_name = "quantization",
     .type = OPTION_STRING,
     .value = &peer.quantization,
     .help = "",
     .hidden = true},
    {.long_name = "kv-cache-dtype",
     .type = OPTION_STRING,
     .value = &peer.kv_cache_dtype,
     .help = "",
     .hidden = true},
    {.long_name = "tokenizer",
     .type = OPTION_STRING,
     .value = &peer.tokenizer,
     .aliases = "tokenizer-path",
     .help = "",
     .hidden = true},
    {.long_name = "revision",
     .type = OPTION_STRING,
     .value = &peer.revision,
     .help = "",
     .hidden = true},
    {.long_name = "generation-config",
     .type = OPTION_STRING,
     .value = &peer.generation_config,
     .choices = "auto,vllm",
     .help = "",
     .hidden = true},
    {.long_name = "premerge",
     .type = OPTION_STRING,
     .value = &peer.premerge,
     .help = "",
     .hidden = true},
    {.long_name = "tls-cert",
     .type = OPTION_STRING,
     .value = &peer.tls_cert,
     .aliases = "ssl-certfile",
     .help = "",
     .hidden = true},
    {.long_name = "tls-key",
     .type = OPTION_STRING,
     .value = &peer.tls_key,
     .aliases = "ssl-keyfile",
     .help = "",
     .hidden = true},
    {.long_name = "inert-switch",
     .type = OPTION_FLAG,
     .value = &peer.inert_flag,
     .aliases = INERT_SWITCHES,
     .given = &peer.inert_given,
     .help = "",
     .hidden = true},
    {.long_name = "inert-value",
     .type = OPTION_LIST,
     .value = &peer.inert_words,
     .aliases = INERT_VALUES,
     .given = &peer.inert_given,
     .help = "",
     .hidden = true},
    {0},
};

static int parse_cap(const char *flag, const char *text, int64_t at_least, int64_t *out,
                     struct err *err)
{
    if (strcmp(text, "auto") == 0) {
        *out = 0;
        return 0;
    }
    int64_t n = 0;
    for (const char *p = text; *p; p++) {
        if (*p < '0' || *p > '9' || n > 1000000)
            return err_set(err, ERR_USAGE, "%s: wanted a number or auto, got '%s'", flag, text);
        n = n * 10 + (*p - '0');
    }
    if (n < at_least)
        return err_set(err, ERR_USAGE, "%s: wanted %lld or more, got '%s'", flag,
                       (long long)at_least, text);
    *out = n;
    return 0;
}

static int refuse_what_is_not_here(struct err *err)
{
    if (peer.tensor_parallel != 1 || peer.pipeline_parallel != 1 || peer.data_parallel != 1)
        return err_set(err, ERR_REFUSED,
                       "several devices are not built yet: --tensor-parallel-size %lld, "
                       "--pipeline-parallel-size %lld, --data-parallel-size %lld must be 1",
                       (long long)peer.tensor_parallel, (long long)peer.pipeline_parallel,
                       (long long)peer.data_parallel);
    if (peer.quantization)
        return err_set(err, ERR_REFUSED, "--quantization %s: quantized bases are not computed here",
                       peer.quantization);
    if (strcmp(peer.kv_cache_dtype, "auto") != 0)
        return err_set(err, ERR_REFUSED,
                       "--kv-cache-dtype %s: the KV cache has the back end's type",
                       peer.kv_cache_dtype);
    if (peer.premerge)
        return err_set(err, ERR_REFUSED,
                       "--premerge %s is not built yet; the adapter is served in "
                       "the batch without it",
                       peer.premerge);
    if (peer.tls_cert || peer.tls_key)
        return err_set(err, ERR_REFUSED,
                       "TLS is not built yet: put a proxy in front, and keep "
                       "--host 127.0.0.1");
    if (peer.tokenizer)
        return err_set(err, ERR_REFUSED, "--tokenizer %s: the tokenizer is the model's own",
                       peer.tokenizer);
    if (peer.revision)
        return err_set(err, ERR_REFUSED,
                       "--revision %s: it belongs to the model's name, as org/name@%s",
                       peer.revision, peer.revision);
    if (strcmp(OPT->base.lora_dtype, "auto") != 0)
        return err_set(err, ERR_REFUSED, "--lora-dtype %s: adapters keep the file's type (auto)",
                       OPT->base.lora_dtype);
    return 0;
}

static void translate(void)
{
    struct model_options *m = &OPT->base;
    if (peer.mem_fraction_given) {
        m->memory_utilization = peer.mem_fraction_static;
        log_info("options", "--mem-fraction-static is taken as --gpu-memory-utilization %.2f",
                 m->memory_utilization);
    }
    if (peer.given_chunked && m->max_step_tokens <= 0) {
        m->max_step_tokens = 16384;
        log_info("options", "--chunked-prefill-size -1 (off) is taken as "
                            "--max-num-batched-tokens 16384: prefill is always chunked here");
    }
    if (peer.given_loras_per_batch && m->max_step_adapters > 0)
        log_info("options",
                 "--max-loras-per-batch %lld caps distinct adapters in a step; the base "
                 "does not count, and nothing is reserved for it",
                 (long long)m->max_step_adapters);
    if ((peer.prefix_caching_given && !peer.prefix_caching) || peer.disable_radix_cache) {
        m->no_prefix_cache = true;
        log_info("options", "prefix caching is off (--no-prefix-cache)");
    }
    m->no_sampling_defaults = strcmp(peer.generation_config, "vllm") == 0;
    if (m->max_kv_pages > 0)
        log_info("options",
                 "--num-gpu-blocks-override %lld is taken as so many KV pages (see "
                 "--max-total-tokens)",
                 (long long)m->max_kv_pages);
    if (peer.inert_given)
        log_info("options", "flags of other servers that change nothing here were accepted");
}

int serve_options_finish(struct cmd_context *ctx, struct err *err)
{
    struct model_options *m = &OPT->base;
    if (ctx->n_args == 1 && m->model && strcmp(m->model, ctx->args[0]) != 0)
        return err_set(err, ERR_USAGE, "two models are given: %s and %s", m->model, ctx->args[0]);
    if (ctx->n_args == 1)
        m->model = ctx->args[0];
    if (!m->model && !m->config_json)
        return err_set(err, ERR_USAGE, "which model? --model REF is needed");
    int rc = refuse_what_is_not_here(err);
    if (rc == 0)
        rc = parse_cap("--max-loras-per-batch", peer.max_step_adapters, 1, &m->max_step_adapters,
                       err);
    if (rc == 0)
        rc = parse_cap("--max-cpu-loras", peer.max_host_adapters, 1, &m->max_host_adapters, err);
    if (rc != 0)
        return rc;
    translate();
    if (m->config_json && strcmp(m->load_format, "dummy") != 0)
        return err_set(err, ERR_USAGE, "--config-json needs --load-format dummy");
    if (m->memory_utilization <= 0 || m->memory_utilization > 1)
        return err_set(err, ERR_USAGE, "--gpu-memory-utilization: wanted a share in (0, 1], got %g",
                       m->memory_utilization);
    if (m->max_step_tokens < 1)
        return err_set(err, ERR_USAGE, "--max-num-batched-tokens: wanted 1 or more, got %lld",
                       (long long)m->max_step_tokens);
    if (OPT->max_body_bytes > LIMIT_BODY_BYTES || OPT->max_body_bytes == 0)
        return err_set(err, ERR_USAGE, "--max-body-bytes: wanted 1 to %d", LIMIT_BODY_BYTES);
    if (OPT->request_timeout_s < 0 || OPT->drain_timeout_s < 0 || OPT->idle_timeout_s < 0)
        return err_set(err, ERR_USAGE, "a time-out is negative");
    return signing_read_keys(&OPT->required, &signing_required, err);
}
