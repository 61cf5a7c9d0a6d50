/*
 * GGUF LoRA files, as llama.cpp's convert_lora_to_gguf.py writes them: general.type "adapter",
 * adapter.type "lora", adapter.lora.alpha, and <tensor>.lora_a / .lora_b for each weight.
 * Scale: alpha / rank of the tensor; alpha 0 or not there: 1 (llama.cpp multiplies by the user's
 * scale alone). token_embd's A is stored transposed. In files for "llama" (Llama, Mistral, Mixtral)
 * the rows of q and k stand in ggml's rotary order, which can only be undone with the number of
 * heads, so those need the base.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/foreign_impl.h"
#include "libcore/format/gguf.h"
#include "libcore/format/gguf_names.h"

static const struct gguf_module_name names[] = {
    {"blk.#.attn_q", "model.layers.#.self_attn.q_proj", NULL, false},
    {"blk.#.attn_k", "model.layers.#.self_attn.k_proj", NULL, false},
    {"blk.#.attn_v", "model.layers.#.self_attn.v_proj", NULL, false},
    {"blk.#.attn_output", "model.layers.#.self_attn.o_proj", NULL, false},
    {"blk.#.attn_qkv", "model.layers.#.self_attn.qkv_proj", "phi3", false},
    {"blk.#.ffn_up", "model.layers.#.mlp.gate_up_proj", "phi3", false},
    {"blk.#.ffn_gate", "model.layers.#.mlp.gate_proj", NULL, false},
    {"blk.#.ffn_up", "model.layers.#.mlp.up_proj", NULL, false},
    {"blk.#.ffn_down", "model.layers.#.mlp.down_proj", NULL, false},
    {"token_embd", "model.embed_tokens", NULL, false},
    {"output", "lm_head", NULL, false},
    {"blk.#.ffn_gate_exps", "", NULL, true},
    {"blk.#.ffn_up_exps", "", NULL, true},
    {"blk.#.ffn_down_exps", "", NULL, true},
    {"blk.#.ffn_gate_inp", "", NULL, true},
};

const struct gguf_module_name *gguf_module_names(size_t *n)
{
    *n = sizeof names / sizeof *names;
    return names;
}

bool gguf_rows_are_permuted(const char *architecture)
{
    return strcmp(architecture, "llama") == 0;
}

bool gguf_knows(const char *architecture)
{
    static const char *const known[] = {"llama", "qwen2",  "qwen3", "qwen3moe",
                                        "phi3",  "gemma3", "gemma2"};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i], architecture) == 0)
            return true;
    }
    return false;
}

struct reader {
    struct foreign f;
    struct gguf *file;
    const char *architecture;
    double alpha;
};

/* ---- header ---- */

static int read_header(struct reader *r)
{
    const char *type = gguf_text(r->file, "general.type"),
               *kind = gguf_text(r->file, "adapter.type");
    r->architecture = gguf_text(r->file, "general.architecture");
    if (!type || strcmp(type, "adapter") != 0)
        return foreign_refuse(&r->f, "general.type", "'%.40s': a model, no adapter",
                              type ? type : "(none)");
    if (!kind || strcmp(kind, "lora") != 0)
        return foreign_refuse(&r->f, "adapter.type", "'%.40s', only lora is computed",
                              kind ? kind : "(none)");
    if (!r->architecture || !gguf_knows(r->architecture))
        return foreign_refuse(&r->f, "general.architecture",
                              "'%.40s': its tensors' names are not known",
                              r->architecture ? r->architecture : "(none)");
    if (gguf_has(r->file, "adapter.alora.invocation_tokens"))
        return foreign_refuse(&r->f, "adapter.alora.invocation_tokens",
                              "aLoRA acts only after its invocation tokens; train a plain LoRA");
    r->alpha = 0;
    bool there = gguf_number(r->file, "adapter.lora.alpha", &r->alpha);
    if (!isfinite(r->alpha))
        return err_set(r->f.err, ERR_CORRUPT, "%s:adapter.lora.alpha: NaN or Inf", r->f.path);
    if (!there || r->alpha == 0)
        return foreign_warn(&r->f, there
                                       ? "adapter.lora.alpha is 0: the scale is 1, as in llama.cpp"
                                       : "no adapter.lora.alpha: the scale is 1, as in llama.cpp");
    return 0;
}

/* ---- tensors ---- */

/* Q8_0 to float32: the number that the file holds, exactly (an f16 times a byte). */
static const float *dequantized(struct reader *r, const struct gguf_tensor *t)
{
    size_t n = (size_t)(t->n_bytes / GGUF_Q8_0_BYTES);
    float *out = arena_array(&r->f.img.arena, n * GGUF_Q8_0_VALUES + 1, sizeof *out);
    const uint8_t *p = t->data;
    for (size_t i = 0; out && i < n; i++, p += GGUF_Q8_0_BYTES) {
        float scale = dtype_f16_to_f32((uint16_t)(p[0] | p[1] << 8));
        for (size_t k = 0; k < GGUF_Q8_0_VALUES; k++)
            out[i * GGUF_Q8_0_VALUES + k] = scale * (float)(int8_t)p[2 + k];
    }
    return out;
}

static int add_tensor(struct reader *r, const struct gguf_tensor *t)
{
    static const char middle[] = ".weight";
    size_t n = strlen(t->name);
    bool a = n > 7 && strcmp(t->name + n - 7, ".lora_a") == 0;
    bool b = n > 7 && strcmp(t->name + n - 7, ".lora_b") == 0;
    if (!a && !b)
        return foreign_refuse(&r->f, t->name,
                              "is no factor of a LoRA; whole tensors in an adapter "
                              "are not read from GGUF");
    size_t key = n - 7;
    if (key > sizeof middle - 1 && memcmp(t->name + key - 7, middle, 7) == 0)
        key -= 7;
    struct tensor v = {.n_dims = t->n_dims, .data = t->data};
    memcpy(v.shape, t->shape, sizeof v.shape);
    v.dtype = t->type == GGUF_TYPE_F16    ? DTYPE_F16
              : t->type == GGUF_TYPE_BF16 ? DTYPE_BF16
                                          : DTYPE_F32;
    if (t->type == GGUF_TYPE_Q8_0)
        v.data = dequantized(r, t);
    if (!v.data)
        return foreign_no_memory(&r->f);
    return foreign_add(&r->f, t->name, key, a ? FOREIGN_A : FOREIGN_B, &v);
}

/* ---- modules ---- */

/* Whether `text` is `pattern`, whose '#' is a number; that number's digits into *digits. */
static bool matches(const char *pattern, const char *text, const char **digits, int *n_digits)
{
    for (; *pattern; pattern++) {
        if (*pattern != '#') {
            if (*text++ != *pattern)
                return false;
            continue;
        }
        *digits = text;
        *n_digits = (int)strspn(text, "0123456789");
        if (!*n_digits)
            return false;
        text += *n_digits;
    }
    return !*text;
}

static int set_name(struct reader *r, struct foreign_module *m)
{
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *digits = "";
        int n = 0;
        if ((names[i].only && strcmp(names[i].only, r->architecture) != 0) ||
            !matches(names[i].ggml, m->key, &digits, &n))
            continue;
        if (names[i].expert)
            return foreign_refuse(&r->f, m->key, "experts and routers are not read from GGUF");
        const char *hash = strchr(names[i].module, '#');
        m->name = !hash ? names[i].module
                        : arena_printf(&r->f.img.arena, "%.*s%.*s%s", (int)(hash - names[i].module),
                                       names[i].module, n, digits, hash + 1);
        m->embedding = strcmp(names[i].ggml, "token_embd") == 0;
        return m->name ? 0 : foreign_no_memory(&r->f);
    }
    return foreign_refuse(&r->f, m->key, "no module of %s that is known here", r->architecture);
}

/* In the file: row (h, i, half) of q's B, i below head_dim / 2; wanted: (h, half, i). */
static int unpermute(struct reader *r, struct foreign_module *m)
{
    size_t n = strlen(m->name);
    bool q = n > 7 && strcmp(m->name + n - 7, ".q_proj") == 0,
         k = n > 7 && strcmp(m->name + n - 7, ".k_proj") == 0;
    if (!gguf_rows_are_permuted(r->architecture) || (!q && !k))
        return 0;
    const struct peft_options *opt = r->f.opt;
    uint64_t heads = !opt ? 0 : q ? opt->n_heads : opt->n_kv_heads;
    if (!heads)
        return foreign_refuse(&r->f, m->key,
                              "its rows stand in ggml's order, which needs the base's number of "
                              "heads: import it with --base REF");
    uint64_t rows = m->b.shape[0], rank = m->rank;
    if (rows % (2 * heads))
        return foreign_refuse(&r->f, m->key, "%llu rows are not %llu heads",
                              (unsigned long long)rows, (unsigned long long)heads);
    uint64_t half = rows / heads / 2;
    m->b = (struct image_view){.dtype = m->b.dtype,
                               .n_dims = 4,
                               .shape = {heads, 2, half, rank},
                               .stride = {2 * half * rank, rank, 2 * rank, 1},
                               .data = m->b.data};
    return 0;
}

static int take_factors(struct reader *r, struct foreign_module *m)
{
    struct tensor *a = &m->parts[FOREIGN_A];
    if (!m->embedding || a->n_dims != 2)
        return foreign_take_factors(&r->f, m);
    struct tensor stored = *a; // [vocab, r]
    a->shape[0] = stored.shape[1];
    a->shape[1] = stored.shape[0];
    int rc = foreign_take_factors(&r->f, m);
    m->a = image_view_transposed(&stored);
    return rc;
}

static int read_modules(struct reader *r)
{
    int rc = foreign_group(&r->f);
    for (size_t i = 0; !rc && i < r->f.n_modules; i++) {
        struct foreign_module *m = &r->f.modules[i];
        rc = set_name(r, m);
        if (!rc)
            rc = take_factors(r, m);
        if (!rc)
            rc = unpermute(r, m);
        m->scale = r->alpha != 0 ? r->alpha / (double)m->rank : 1;
    }
    return rc;
}

int gguf_lora_read(struct adapter **out, const char *weights, const char *path,
                   const struct peft_options *opt, struct err *err)
{
    struct reader r = {0};
    char *data = NULL;
    size_t size;
    *out = NULL;
    int rc = foreign_init(&r.f, weights, "gguf", opt, err);
    if (!rc)
        rc = file_read(weights, PTRDIFF_MAX, &data, &size, err);
    if (!rc)
        rc = gguf_open_memory(&r.file, data, size, weights, err);
    if (!rc)
        rc = read_header(&r);
    for (size_t i = 0; !rc && i < gguf_count(r.file); i++)
        rc = add_tensor(&r, gguf_at(r.file, i));
    if (!rc)
        rc = read_modules(&r);
    if (!rc)
        rc = foreign_build(&r.f, out, path);
    foreign_release(&r.f);
    gguf_free(r.file);
    sys_free(data);
    return rc;
}
