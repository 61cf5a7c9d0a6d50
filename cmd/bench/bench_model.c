#include <stdio.h>
#include <string.h>

#include "cmd/bench/bench.h"
#include "kernels/kernels.h"
#include "libcore/base/sys.h"

static const struct {
    const char *name, *config;
} shapes[] = {
    {"llama-3.1-8b",
     "{\"architectures\":[\"LlamaForCausalLM\"],\"dtype\":\"bfloat16\",\"vocab_size\":128256,"
     "\"hidden_size\":4096,\"intermediate_size\":14336,\"num_hidden_layers\":32,"
     "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"max_position_embeddings\":131072,"
     "\"rope_theta\":500000.0,\"rms_norm_eps\":1e-5}"},
    {"llama-3.2-1b",
     "{\"architectures\":[\"LlamaForCausalLM\"],\"dtype\":\"bfloat16\",\"vocab_size\":128256,"
     "\"hidden_size\":2048,\"intermediate_size\":8192,\"num_hidden_layers\":16,"
     "\"num_attention_heads\":32,\"num_key_value_heads\":8,\"head_dim\":64,"
     "\"max_position_embeddings\":131072,\"rope_theta\":500000.0,\"tie_word_embeddings\":true}"},
    {"qwen2.5-7b",
     "{\"architectures\":[\"Qwen2ForCausalLM\"],\"dtype\":\"bfloat16\",\"vocab_size\":152064,"
     "\"hidden_size\":3584,\"intermediate_size\":18944,\"num_hidden_layers\":28,"
     "\"num_attention_heads\":28,\"num_key_value_heads\":4,\"max_position_embeddings\":32768,"
     "\"rope_theta\":1000000.0}"},
    {"small",
     "{\"architectures\":[\"LlamaForCausalLM\"],\"dtype\":\"bfloat16\",\"vocab_size\":8192,"
     "\"hidden_size\":512,\"intermediate_size\":1536,\"num_hidden_layers\":8,"
     "\"num_attention_heads\":8,\"num_key_value_heads\":2,\"max_position_embeddings\":8192}"},
};

const char *bench_shapes(void)
{
    return "llama-3.1-8b, llama-3.2-1b, qwen2.5-7b, small";
}

static int read_shape(struct bench_model *b, struct err *err)
{
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        if (strcmp(shapes[i].name, b->opt.shape) != 0)
            continue;
        json_t *config = json_loads(shapes[i].config, 0, NULL);
        int rc = config_from_json(&b->config, config, shapes[i].name, err);
        json_decref(config);
        return rc;
    }
    return err_set(err, ERR_USAGE, "--shape %s: not known; want one of %s", b->opt.shape,
                   bench_shapes());
}

// ---- weights: one random block, used for all of them

/* bf16 values in (-0.03, 0.03), both signs: exponents that never overflow a sum. */
static void fill_random(uint16_t *v, size_t n)
{
    uint32_t state = 12345;
    for (size_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        v[i] = (uint16_t)((state >> 16 & 0x80FF) | (0x3C00 + (state >> 28 & 1) * 0x80));
    }
}

static int load_module(struct bench_model *b, const struct model_module *mod, const uint16_t *block,
                       struct err *err)
{
    struct tensor t = {.dtype = DTYPE_BF16, .n_dims = mod->d_in ? 2 : 1, .data = block};
    t.shape[0] = mod->d_out;
    t.shape[1] = mod->d_in;
    struct weight_place place = mod->place;
    int rc = mod->tied ? 0 : b->be->ops->weight_load(b->be, b->dm, &place, &t, err);
    if (rc == 0 && mod->has_bias) {
        place.kind = WEIGHT_BIAS;
        t.n_dims = 1;
        rc = b->be->ops->weight_load(b->be, b->dm, &place, &t, err);
    }
    bool streamed = place.kind != WEIGHT_NORM && mod->d_in && mod->place.site != SITE_EMBED;
    uint64_t bytes = streamed ? 2ull * mod->d_out * mod->d_in : 0;
    b->weight_bytes += bytes;
    if (place.site != SITE_HEAD && mod->place.layer == 0)
        b->layer_bytes += bytes;
    return rc;
}

static int load_weights(struct bench_model *b, struct err *err)
{
    size_t most = 0;
    for (size_t i = 0; i < b->modules->n; i++) {
        const struct model_module *mod = &b->modules->items[i];
        size_t n = (size_t)mod->d_out * (mod->d_in ? mod->d_in : 1);
        most = n > most ? n : most;
    }
    uint16_t *block = sys_malloc(most * sizeof *block);
    if (!block)
        return err_set(err, ERR_NO_MEMORY, "no memory for synthetic weights");
    fill_random(block, most);
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < b->modules->n; i++)
        rc = load_module(b, &b->modules->items[i], block, err);
    sys_free(block);
    return rc ? rc : b->be->ops->model_ready(b->be, b->dm, err);
}

// ---- all of it

static int open_model(struct bench_model *b, struct err *err)
{
    const struct bench_options *o = &b->opt;
    struct backend_options be = {.device = o->device,
                                 .n_threads = o->n_threads,
                                 .no_graphs = o->no_graphs,
                                 .deterministic = o->deterministic};
    uint32_t page_tokens = 16;
    int rc = kernels_open(&b->be, &be, NULL, 0, err);
    if (rc)
        return rc;
    struct backend_info info;
    rc = b->be->ops->info(b->be, &info, err);
    if (rc)
        return rc;
    b->kv_bytes_token = 2ull * b->config.n_layers * b->config.n_kv_heads * b->config.head_dim *
                        dtype_bits(info.kv_dtype) / 8;
    while (page_tokens > 1 && page_tokens * b->kv_bytes_token > BACKEND_CHUNK_BYTES)
        page_tokens /= 2;
    snprintf(b->device, sizeof b->device, "%s", info.device);
    uint32_t pages = (o->context + page_tokens) / page_tokens + 1;
    b->limits = (struct step_limits){.max_rows = o->max_rows,
                                     .max_sequences = o->max_sequences,
                                     .max_logit_rows = o->max_sequences,
                                     .max_segments = 512,
                                     .max_slots = o->n_adapters ? o->n_adapters : 1,
                                     .max_pages = o->max_sequences * pages,
                                     .page_tokens = page_tokens};
    rc = b->be->ops->supports(b->be, &b->config, o->bare ? 0 : ADAPTER_LORA, err);
    return rc ? rc : b->be->ops->model_open(b->be, &b->config, b->modules, &b->limits, &b->dm, err);
}

static int open_pool(struct bench_model *b, struct err *err)
{
    b->pages_per_chunk = (uint32_t)(BACKEND_CHUNK_BYTES / b->be->ops->page_bytes(b->be, b->dm));
    b->n_pages = b->limits.max_pages;
    b->first_adapter_chunk = (b->n_pages + b->pages_per_chunk - 1) / b->pages_per_chunk;
    return b->be->ops->pool_open(b->be, b->dm, b->first_adapter_chunk + bench_adapter_chunks(b),
                                 err);
}

int bench_open(struct bench_model *b, const struct bench_options *opt, struct err *err)
{
    memset(b, 0, sizeof *b);
    b->opt = *opt;
    if (opt->bare)
        b->opt.n_adapters = 0;
    int rc = read_shape(b, err);
    if (rc == 0)
        rc = modules_open(&b->modules, &b->config, err);
    if (rc == 0)
        rc = open_model(b, err);
    if (rc == 0)
        rc = load_weights(b, err);
    if (rc == 0 && !opt->bare)
        rc = bench_make_images(b, err);
    if (rc == 0)
        rc = open_pool(b, err);
    for (uint32_t i = 0; rc == 0 && i < b->opt.n_adapters; i++)
        rc = bench_load_slot(b, i, NULL, err);
    if (rc == 0 && b->be->ops->read_bandwidth)
        rc = b->be->ops->read_bandwidth(b->be, &b->read_bytes_s, err);
    return rc;
}

void bench_close(struct bench_model *b)
{
    if (b->be) {
        const struct backend_ops *ops = b->be->ops;
        for (uint32_t i = 0; b->dm && i < b->opt.n_adapters; i++)
            ops->adapter_unload(b->be, b->dm, i);
        if (b->dm) {
            ops->pool_free(b->be, b->dm);
            ops->model_free(b->be, b->dm);
        }
        bench_free_images(b);
        ops->close(b->be);
    }
    modules_free(b->modules);
    config_release(&b->config);
    memset(b, 0, sizeof *b);
}

double bench_floor(const struct bench_model *b, uint32_t n_adapters, uint64_t context_tokens)
{
    if (b->read_bytes_s <= 0)
        return 0;
    return ((double)b->weight_bytes + (double)bench_ab_bytes(b, n_adapters) +
            (double)context_tokens * (double)b->kv_bytes_token) /
           b->read_bytes_s;
}
