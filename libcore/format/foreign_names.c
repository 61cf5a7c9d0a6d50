/*
 * What a module's name in a foreign file means among causal language models. kohya writes the dots
 * as underscores, which cannot be undone in general; among the few names that transformers gives
 * the modules of the models served here it can, for no two of them become the same text.
 */
#include <ctype.h>
#include <string.h>

#include "libcore/format/foreign_impl.h"

static const char *const roots[] = {"model.language_model.",
                                    "language_model.model.",
                                    "language_model.",
                                    "model.model.",
                                    "model.",
                                    ""};

/* '#' is a number. */
static const char *const leaves[] = {
    "layers.#.self_attn.q_proj",
    "layers.#.self_attn.k_proj",
    "layers.#.self_attn.v_proj",
    "layers.#.self_attn.o_proj",
    "layers.#.self_attn.qkv_proj",
    "layers.#.mlp.gate_proj",
    "layers.#.mlp.up_proj",
    "layers.#.mlp.down_proj",
    "layers.#.mlp.gate_up_proj",
    "layers.#.mlp.gate",
    "layers.#.mlp.experts.#.gate_proj",
    "layers.#.mlp.experts.#.up_proj",
    "layers.#.mlp.experts.#.down_proj",
    "layers.#.block_sparse_moe.gate",
    "layers.#.block_sparse_moe.experts.#.w1",
    "layers.#.block_sparse_moe.experts.#.w2",
    "layers.#.block_sparse_moe.experts.#.w3",
    "layers.#.mlp.switch_mlp.gate_proj", // MLX: all experts in one tensor
    "layers.#.mlp.switch_mlp.up_proj",
    "layers.#.mlp.switch_mlp.down_proj",
    "layers.#.block_sparse_moe.switch_mlp.gate_proj",
    "layers.#.block_sparse_moe.switch_mlp.up_proj",
    "layers.#.block_sparse_moe.switch_mlp.down_proj",
    "embed_tokens",
    "lm_head",
};

/* Whether `text` is `leaf`; its spelling with dots into out, which is as long as text. */
static bool matches(const char *leaf, const char *text, char separator, char *out)
{
    for (; *leaf; leaf++) {
        if (*leaf == '#') {
            if (!isdigit((unsigned char)*text))
                return false;
            while (isdigit((unsigned char)*text))
                *out++ = *text++;
            continue;
        }
        if (*text != (*leaf == '.' ? separator : *leaf))
            return false;
        *out++ = *leaf;
        text++;
    }
    *out = '\0';
    return !*text;
}

static const char *skip_root(const char *root, const char *text, char separator)
{
    for (; *root; root++, text++) {
        if (*text != (*root == '.' ? separator : *root))
            return NULL;
    }
    return text;
}

int foreign_name(struct foreign *f, const char *key, char separator, const char **out)
{
    static const char model[] = "model.";
    char *text = arena_alloc(&f->img.arena, strlen(key) + sizeof model);
    *out = NULL;
    if (!text)
        return foreign_no_memory(f);
    strcpy(text, model);
    for (size_t r = 0; r < sizeof roots / sizeof *roots; r++) {
        const char *rest = skip_root(roots[r], key, separator);
        for (size_t i = 0; rest && i < sizeof leaves / sizeof *leaves; i++) {
            if (!matches(leaves[i], rest, separator, text + sizeof model - 1))
                continue;
            *out = strcmp(leaves[i], "lm_head") == 0 ? text + sizeof model - 1 : text;
            return 0;
        }
    }
    return 0;
}
