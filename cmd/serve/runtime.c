#include "cmd/serve/runtime.h"

#include <errno.h>
#include <string.h>

#include "cmd/cache_folder.h"
#include "cmd/serve/plan.h"
#include "kernels/kernels.h"
#include "libcore/base/file.h"
#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

// ---- finding and reading ------------------------------------------------------------------------

/* The source outlives the store's handle; the base is leased while we run. */
static int open_store_parts(struct runtime *rt, struct err *err)
{
    struct store *store = NULL;
    struct store_options opt = {0};
    int rc = rt->store_path ? store_open(&store, rt->store_path, &opt, err) : ERR_NO_STORE;
    if (rc == ERR_NO_STORE) {
        rt->store_path = NULL;
        return store_source_open(&rt->source, NULL, err);
    }
    if (rc != 0)
        return rc;
    rt->cache_folder = file_join(rt->store_path, "cache/tokenizer");
    const char *id = rt->base.id;
    if (rt->base.in_store)
        rc = lease_open(&rt->lease, store, "serve", &id, 1, err);
    if (rc == 0 && rt->base.in_store)
        rc = store_base_digests(store, id, &rt->digests, err);
    if (rc == 0)
        rc = store_source_open(&rt->source, store, err);
    store_close(store);
    return rc;
}

static int read_config_file(struct runtime *rt, const char *path, struct err *err)
{
    char *text = NULL;
    size_t n = 0;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &n, err);
    if (rc != 0)
        return rc;
    json_error_t why;
    json_t *config = json_loadb(text, n, JSON_REJECT_DUPLICATES, &why);
    sys_free(text);
    if (!config)
        return err_set(err, ERR_CORRUPT, "%s: %s", path, why.text);
    rc = config_from_json(&rt->config, config, path, err);
    json_decref(config);
    return rc;
}

static int check_dtype(const struct runtime *rt, struct err *err)
{
    static const struct {
        const char *name;
        enum dtype dtype;
    } names[] = {{"bfloat16", DTYPE_BF16}, {"bf16", DTYPE_BF16},   {"float16", DTYPE_F16},
                 {"half", DTYPE_F16},      {"float32", DTYPE_F32}, {"float", DTYPE_F32}};
    const char *wanted = rt->opt.dtype;
    if (strcmp(wanted, "auto") == 0)
        return 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(names[i].name, wanted) != 0)
            continue;
        if (names[i].dtype == rt->config.dtype || names[i].dtype == rt->info.weight_dtype)
            return 0;
        return err_set(err, ERR_REFUSED, "--dtype %s: the checkpoint has %s and is not converted",
                       wanted, dtype_name(rt->config.dtype));
    }
    return err_set(err, ERR_USAGE, "--dtype %s: wanted auto, bfloat16, float16 or float32", wanted);
}

static int read_base(struct runtime *rt, struct err *err)
{
    const struct model_options *o = &rt->opt;
    int rc = 0;
    if (o->model)
        rc = base_ref_find(&rt->base, rt->store_path, o->model, err);
    if (rc == 0)
        rc = o->config_json ? read_config_file(rt, o->config_json, err)
                            : config_read(&rt->config, rt->base.folder, err);
    rt->has_config = rc == 0;
    if (rc == 0)
        rc = modules_open(&rt->modules, &rt->config, err);
    if (rc == 0)
        rc = open_store_parts(rt, err);
    if (rc != 0 || !rt->base.folder)
        return rc;
    rc = generation_config_read(&rt->generation, rt->base.folder, err);
    struct generation_config *g = &rt->generation;
    if (o->no_sampling_defaults)
        g->has_temperature = g->has_top_p = g->has_top_k = g->has_min_p =
            g->has_repetition_penalty = false;
    if (rc == 0)
        rc = text_kit_open(&rt->kit, rt->base.folder, rt->cache_folder, o->skip_tokenizer,
                           o->chat_template, err);
    return rc;
}

static int open_device(struct runtime *rt, struct err *err)
{
    rt->kernel_cache = cache_folder(rt->store_path, "kernels");
    const struct backend_options opt = {.device = rt->opt.device,
                                        .n_threads = (unsigned)rt->opt.n_threads,
                                        .deterministic = rt->opt.deterministic,
                                        .cache_dir = rt->kernel_cache};
    int rc = kernels_open(&rt->be, &opt, rt->device_note, sizeof rt->device_note, err);
    if (rc == 0)
        rc = rt->be->ops->info(rt->be, &rt->info, err);
    if (rc == 0)
        rc = rt->be->ops->supports(rt->be, &rt->config, 0, err);
    return rc;
}

static double seconds_since(uint64_t begin_ns)
{
    return (double)(thread_now_ns() - begin_ns) * 1e-9;
}

int runtime_open(struct runtime **out, const struct model_options *opt, const char *store_path,
                 struct err *err)
{
    *out = NULL;
    struct runtime *rt = sys_calloc(1, sizeof *rt);
    if (!rt)
        return err_set(err, ERR_NO_MEMORY, "no memory for the runtime");
    rt->opt = *opt;
    rt->store_path = store_path;
    rt->times.begin_ns = thread_now_ns();
    int rc = read_base(rt, err);
    rt->times.read_s = seconds_since(rt->times.begin_ns);
    uint64_t device_ns = thread_now_ns();
    if (rc == 0)
        rc = open_device(rt, err);
    rt->times.device_s = seconds_since(device_ns);
    if (rc == 0)
        rc = check_dtype(rt, err);
    if (rc == 0)
        rc = plan_make(rt, err);
    if (rc == 0 && opt->trace) {
        rt->trace = fopen(opt->trace, "we");
        if (!rt->trace)
            rc = err_set_errno(err, errno, "--trace %s", opt->trace);
    }
    if (rc != 0) {
        runtime_close(rt);
        return rc;
    }
    *out = rt;
    return 0;
}

// ---- loading and driving ------------------------------------------------------------------------

static bool digest_of(void *digests, const char *name, struct digest *out)
{
    const char *hex = json_string_value(json_object_get(digests, name));
    return hex && digest_parse(hex, out);
}

int runtime_load(struct runtime *rt, void (*progress)(void *user, uint64_t done, uint64_t total),
                 void *user, struct err *err)
{
    const struct model_load_options opt = {.progress = progress,
                                           .user = user,
                                           .digest_of = rt->digests ? digest_of : NULL,
                                           .digests = rt->digests,
                                           .stats = &rt->times.weights};
    uint64_t begin_ns = thread_now_ns();
    int rc =
        rt->be->ops->model_open(rt->be, &rt->config, rt->modules, &rt->limits, &rt->model, err);
    rt->times.model_s = seconds_since(begin_ns);
    if (rc != 0)
        return rc;
    if (strcmp(rt->opt.load_format, "dummy") == 0)
        return model_load_dummy(rt->be, rt->model, &rt->config, rt->modules, (uint64_t)rt->opt.seed,
                                &opt, err);
    rc = checkpoint_open(&rt->checkpoint, rt->base.folder, err);
    if (rc != 0)
        return rc;
    rt->modules->base = rt->checkpoint;
    return model_load(rt->be, rt->model, rt->checkpoint, &rt->config, rt->modules, &opt, err);
}

static enum eviction_policy policy_of(const char *name)
{
    if (strcmp(name, "fifo") == 0)
        return EVICTION_FIFO;
    return strcmp(name, "cost") == 0 ? EVICTION_COST : EVICTION_LRU;
}

int runtime_start(struct runtime *rt, void (*on_step)(void *user), void *user, struct err *err)
{
    const struct model_options *o = &rt->opt;
    uint64_t kv_pages = 0;
    if (o->max_kv_tokens)
        kv_pages =
            ((uint64_t)o->max_kv_tokens + rt->limits.page_tokens - 1) / rt->limits.page_tokens;
    if (o->max_kv_pages && (kv_pages == 0 || (uint64_t)o->max_kv_pages < kv_pages))
        kv_pages = (uint64_t)o->max_kv_pages;
    const struct engine_options opt = {
        .be = rt->be,
        .model = rt->model,
        .config = &rt->config,
        .modules = rt->modules,
        .limits = rt->limits,
        .source = rt->source,
        .base_fingerprint = rt->base.id,
        .pool_bytes = rt->plan.pool,
        .adapter_bytes = rt->plan.adapter_cap,
        .host_cache_bytes = rt->plan.host_cache,
        .max_kv_pages = kv_pages < UINT32_MAX ? (uint32_t)kv_pages : 0,
        .max_step_tokens = rt->limits.max_rows,
        .max_running = rt->limits.max_sequences,
        .max_step_adapters = (uint32_t)o->max_step_adapters,
        .max_host_adapters = (uint32_t)o->max_host_adapters,
        .max_queued = (uint32_t)o->max_queued,
        .context_length = rt->context_length,
        .eviction = policy_of(o->eviction),
        .no_prefix_cache = o->no_prefix_cache,
        .trace = rt->trace,
        .on_step = on_step,
        .user = user,
    };
    uint64_t begin_ns = thread_now_ns();
    int rc = engine_open(&rt->engine, &opt, err);
    rt->times.start_s = seconds_since(begin_ns);
    return rc;
}

void runtime_stop(struct runtime *rt)
{
    engine_free(rt->engine);
    rt->engine = NULL;
}

void runtime_close(struct runtime *rt)
{
    if (!rt)
        return;
    runtime_stop(rt);
    if (rt->model)
        rt->be->ops->model_free(rt->be, rt->model);
    if (rt->be)
        rt->be->ops->close(rt->be);
    text_kit_release(rt->kit);
    if (rt->source)
        rt->source->ops->close(rt->source);
    lease_close(rt->lease);
    modules_free(rt->modules);
    checkpoint_free(rt->checkpoint);
    if (rt->has_config)
        config_release(&rt->config);
    if (rt->trace)
        fclose(rt->trace);
    base_ref_release(&rt->base);
    json_decref(rt->digests);
    sys_free(rt->kernel_cache);
    sys_free(rt->cache_folder);
    sys_free(rt);
}
