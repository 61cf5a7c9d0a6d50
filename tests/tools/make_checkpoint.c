/*
 * make_checkpoint: a Llama-shaped checkpoint of random bf16 weights and a LoRA adapter for all its
 * linear modules, for measuring: make_checkpoint FOLDER [layers [hidden [ffn [rank [shards [vocab
 * [repeat]]]]]]] writes FOLDER/base and FOLDER/adapter. The same numbers give the same bytes.
 * repeat 1: every matrix holds one block of a million numbers over and over, as fast as the disk
 * takes it. make_checkpoint FOLDER 32 4096 14336 16 4 128256 1 is of the size of Llama-3.1-8B.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/safetensors_writer.h"

enum { CHUNK = 1 << 20 };

struct shape {
    uint32_t n_layers, hidden, ffn, rank, n_shards, vocab, repeat;
};

static uint64_t state = 88172645463325252u;

static uint64_t next(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

/* Near enough to a normal: the sum of four bytes' differences. */
static float value(float sigma)
{
    uint64_t r = next();
    int sum = (int)(r & 0xFFF) + (int)(r >> 12 & 0xFFF) + (int)(r >> 24 & 0xFFF) - 6142;
    return sigma * (float)sum / 2048.0f;
}

static void die(const struct err *err)
{
    fprintf(stderr, "make_checkpoint: %s\n", err->msg);
    exit(1);
}

static void put_random(struct safetensors_writer *w, const char *name, enum dtype t, uint64_t n,
                       float sigma, float mean, bool repeat)
{
    static float values[CHUNK];
    static char stored[CHUNK * sizeof(float)];
    struct err err = {0};
    uint64_t size = dtype_bits(t) / 8;
    for (uint64_t at = 0; at < n; at += CHUNK) {
        uint64_t count = n - at < CHUNK ? n - at : CHUNK;
        for (uint64_t i = 0; i < count && !(repeat && at); i++)
            values[i] = mean + value(sigma);
        if (!(repeat && at))
            dtype_from_f32(t, values, stored, count);
        if (safetensors_writer_put(w, name, at * size, stored, count * size, &err) != 0)
            die(&err);
    }
}

struct weight {
    char name[128];
    uint64_t d[2]; // d[1] 0: a vector
    uint32_t layer;
};

static size_t list_weights(const struct shape *s, struct weight *out)
{
    const struct {
        const char *name;
        uint32_t rows, cols;
    } of_layer[] = {
        {"self_attn.q_proj", s->hidden, s->hidden},
        {"self_attn.k_proj", s->hidden / 4, s->hidden},
        {"self_attn.v_proj", s->hidden / 4, s->hidden},
        {"self_attn.o_proj", s->hidden, s->hidden},
        {"mlp.gate_proj", s->ffn, s->hidden},
        {"mlp.up_proj", s->ffn, s->hidden},
        {"mlp.down_proj", s->hidden, s->ffn},
        {"input_layernorm", s->hidden, 0},
        {"post_attention_layernorm", s->hidden, 0},
    };
    size_t n = 0;
    out[n++] = (struct weight){"model.embed_tokens", {s->vocab, s->hidden}, 0};
    for (uint32_t l = 0; l < s->n_layers; l++) {
        for (size_t i = 0; i < sizeof of_layer / sizeof *of_layer; i++) {
            struct weight *w = &out[n++];
            *w = (struct weight){"", {of_layer[i].rows, of_layer[i].cols}, l};
            snprintf(w->name, sizeof w->name, "model.layers.%u.%s", l, of_layer[i].name);
        }
    }
    out[n++] = (struct weight){"model.norm", {s->hidden, 0}, s->n_layers - 1};
    out[n++] = (struct weight){"lm_head", {s->vocab, s->hidden}, s->n_layers - 1};
    return n;
}

static void write_json(const char *folder, const char *name, json_t *value)
{
    struct err err = {0};
    char *path = file_join(folder, name), *text = json_dumps(value, JSON_INDENT(2));
    if (!path || !text || file_write_atomic(path, text, strlen(text), &err) != 0)
        die(&err);
    free(text);
    sys_free(path);
    json_decref(value);
}

static void write_shard(const struct shape *s, const char *folder, const struct weight *all,
                        size_t n, uint32_t shard, json_t *map)
{
    char file[64], name[160];
    struct err err = {0};
    struct safetensors_writer *w;
    if (s->n_shards == 1)
        snprintf(file, sizeof file, "model.safetensors");
    else
        snprintf(file, sizeof file, "model-%05u-of-%05u.safetensors", shard + 1, s->n_shards);
    char *path = file_join(folder, file);
    if (safetensors_writer_open(&w, path, &err) != 0 ||
        safetensors_writer_metadata(w, "format", "pt", &err) != 0)
        die(&err);
    for (int put = 0; put < 2; put++) {
        for (size_t i = 0; i < n; i++) {
            if (all[i].layer * s->n_shards / s->n_layers != shard)
                continue;
            uint64_t values = all[i].d[0] * (all[i].d[1] ? all[i].d[1] : 1);
            snprintf(name, sizeof name, "%s.weight", all[i].name);
            if (put)
                put_random(w, name, DTYPE_BF16, values, all[i].d[1] ? 0.02f : 0, !all[i].d[1],
                           s->repeat);
            else if (safetensors_writer_declare(w, name, DTYPE_BF16, all[i].d[1] ? 2 : 1, all[i].d,
                                                &err) != 0)
                die(&err);
            json_object_set_new(map, name, json_string(file));
        }
        if (!put && safetensors_writer_begin(w, &err) != 0)
            die(&err);
    }
    if (safetensors_writer_finish(w, &err) != 0)
        die(&err);
    safetensors_writer_free(w);
    sys_free(path);
}

static void write_base(const struct shape *s, const char *folder, const struct weight *all,
                       size_t n)
{
    json_t *map = json_object();
    for (uint32_t i = 0; i < s->n_shards; i++)
        write_shard(s, folder, all, n, i, map);
    if (s->n_shards > 1)
        write_json(folder, "model.safetensors.index.json",
                   json_pack("{s:{}, s:O}", "metadata", "weight_map", map));
    json_decref(map);
    write_json(folder, "config.json",
               json_pack("{s:[s], s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:f, s:i, s:b, s:s, s:s}",
                         "architectures", "LlamaForCausalLM", "model_type", "llama", "hidden_size",
                         s->hidden, "intermediate_size", s->ffn, "num_hidden_layers", s->n_layers,
                         "num_attention_heads", s->hidden / 128, "num_key_value_heads",
                         s->hidden / 512, "head_dim", 128, "vocab_size", s->vocab, "rms_norm_eps",
                         1e-5, "max_position_embeddings", 4096, "tie_word_embeddings", 0,
                         "hidden_act", "silu", "torch_dtype", "bfloat16"));
}

static void write_adapter(const struct shape *s, const char *folder, const struct weight *all,
                          size_t n)
{
    struct err err = {0};
    struct safetensors_writer *w;
    char name[200], *path = file_join(folder, "adapter_model.safetensors");
    if (safetensors_writer_open(&w, path, &err) != 0)
        die(&err);
    for (int put = 0; put < 2; put++) {
        for (size_t i = 0; i < 2 * n; i++) {
            const struct weight *x = &all[i / 2];
            bool is_b = i % 2;
            if (!strstr(x->name, "_proj"))
                continue;
            uint64_t shape[2] = {is_b ? x->d[0] : s->rank, is_b ? s->rank : x->d[1]};
            snprintf(name, sizeof name, "base_model.model.%s.lora_%c.weight", x->name,
                     is_b ? 'B' : 'A');
            if (put)
                put_random(w, name, DTYPE_F32, shape[0] * shape[1], is_b ? 0.004f : 0.02f, 0,
                           false);
            else if (safetensors_writer_declare(w, name, DTYPE_F32, 2, shape, &err) != 0)
                die(&err);
        }
        if (!put && safetensors_writer_begin(w, &err) != 0)
            die(&err);
    }
    if (safetensors_writer_finish(w, &err) != 0)
        die(&err);
    safetensors_writer_free(w);
    sys_free(path);
    write_json(folder, "adapter_config.json",
               json_pack("{s:s, s:i, s:i, s:s, s:s}", "peft_type", "LORA", "r", s->rank,
                         "lora_alpha", 2 * s->rank, "target_modules", "all-linear",
                         "base_model_name_or_path", "base"));
}

static uint32_t number(int argc, char **argv, int i, uint32_t otherwise)
{
    return argc > i ? (uint32_t)strtoul(argv[i], NULL, 10) : otherwise;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        fprintf(
            stderr,
            "make_checkpoint FOLDER [layers [hidden [ffn [rank [shards [vocab [repeat]]]]]]]\n");
        return 2;
    }
    struct shape s = {number(argc, argv, 2, 8),     number(argc, argv, 3, 4096),
                      number(argc, argv, 4, 14336), number(argc, argv, 5, 16),
                      number(argc, argv, 6, 1),     number(argc, argv, 7, 32000),
                      number(argc, argv, 8, 0)};
    struct weight *all = calloc((size_t)s.n_layers * 9 + 3, sizeof *all);
    char *base = file_join(argv[1], "base"), *adapter = file_join(argv[1], "adapter");
    struct err err = {0};
    if (!all || !base || !adapter || s.hidden % 512 || !s.n_layers || !s.n_shards ||
        file_make_folders(base, &err) != 0 || file_make_folders(adapter, &err) != 0)
        die(&err);
    size_t n = list_weights(&s, all);
    write_base(&s, base, all, n);
    write_adapter(&s, adapter, all, n);
    sys_free(base);
    sys_free(adapter);
    free(all);
    return 0;
}
