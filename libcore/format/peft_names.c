/*
 * What the name of a tensor in an adapter file means. PEFT removes the adapter's name when it
 * saves; files written around it (FSDP, torch.compile, state dicts saved by hand) keep prefixes and
 * names, which are taken off here and reported.
 */
#include <stdio.h>
#include <string.h>

#include "libcore/format/peft_impl.h"

static bool starts_with(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool ends_with(const char *s, size_t n, const char *suffix)
{
    size_t k = strlen(suffix);
    return n >= k && memcmp(s + n - k, suffix, k) == 0;
}

/* Removes every occurrence of `piece` (which ends in a dot) that begins a component. */
static bool drop_component(char *s, const char *piece)
{
    bool dropped = false;
    size_t k = strlen(piece);
    for (char *at = s; (at = strstr(at, piece));) {
        if (at != s && at[-1] != '.') {
            at += k;
            continue;
        }
        memmove(at, at + k, strlen(at + k) + 1);
        dropped = true;
    }
    return dropped;
}

static bool drop_prefix(char *s, const char *prefix)
{
    size_t k = strlen(prefix);
    if (!starts_with(s, prefix))
        return false;
    memmove(s, s + k, strlen(s + k) + 1);
    return true;
}

static void strip_prefixes(struct peft_name *out, char *s)
{
    static const char *const leaked[] = {"_orig_mod.", "_fsdp_wrapped_module.",
                                         "_checkpoint_wrapped_module.", "_forward_module."};
    for (size_t i = 0; i < sizeof leaked / sizeof *leaked; i++)
        out->leaked |= drop_component(s, leaked[i]);
    out->leaked |= drop_prefix(s, "module."); // DistributedDataParallel
    if (!drop_prefix(s, "base_model.model."))
        drop_prefix(s, "base_model.");
    out->leaked |= drop_prefix(s, "base_model.model."); // wrapped twice
    // "model.language_model." stays: patterns of the configuration were made for it; bind maps it.
}

/* What follows ".lora_X": "", ".weight", ".NAME", ".NAME.weight" → the piece after the adapter's
 * name, with *named set when there was one. */
static const char *after_adapter_name(const char *rest, bool *named)
{
    if (rest[0] != '.' || strcmp(rest, ".weight") == 0 || strcmp(rest, ".bias") == 0)
        return rest;
    const char *dot = strchr(rest + 1, '.');
    *named = true;
    return dot ? dot : "";
}

struct lora_word {
    const char *word;
    enum peft_part part;
    const char *why;
};

static const struct lora_word lora_words[] = {
    {"lora_A", PART_A, NULL},
    {"lora_B", PART_B, NULL},
    {"lora_embedding_A", PART_EMBEDDING_A, NULL},
    {"lora_embedding_B", PART_EMBEDDING_B, NULL},
    {"lora_magnitude_vector", PART_MAGNITUDE, NULL},
    {"lora_monteclora_sampler", PART_INERT, NULL}, // noise that training draws, none in inference
    {"lora_velora_embed", PART_INERT, NULL},       // compresses activations of the backward pass
    {"lora_diag", PART_REFUSED, "KaSA's diagonal; merge the adapter with PEFT"},
    {"lora_arrow", PART_REFUSED, "Arrow's routing; import the task adapters themselves"},
    {"lora_E", PART_REFUSED, "AdaLoRA; convert it to LoRA with PEFT"},
};

static void refuse(struct peft_name *out, const char *why)
{
    out->part = PART_REFUSED;
    out->why = why;
}

/* `at` points to ".lora_…" in the name s. */
static void parse_lora(struct peft_name *out, char *at)
{
    size_t n = strcspn(at + 1, ".");
    const struct lora_word *w = NULL;
    for (size_t i = 0; i < sizeof lora_words / sizeof *lora_words; i++) {
        if (strlen(lora_words[i].word) == n && memcmp(lora_words[i].word, at + 1, n) == 0)
            w = &lora_words[i];
    }
    const char *rest = after_adapter_name(at + 1 + n, &out->named);
    *at = '\0';
    if (!w) {
        refuse(out, "a kind of LoRA tensor that is not known here");
        return;
    }
    out->part = w->part;
    out->why = w->why;
    if (w->part == PART_INERT) {
        out->named = false;
        return;
    }
    bool is_bias = strcmp(rest, ".bias") == 0;
    if (w->part == PART_B && is_bias)
        out->part = PART_LORA_BIAS;
    else if (is_bias)
        refuse(out, "a bias where PEFT has none");
    else if ((w->part == PART_A || w->part == PART_B) && strcmp(rest, ".weight") != 0)
        refuse(out, "neither .weight nor .bias");
}

/* Finds the last component that begins with "lora_". */
static char *find_lora(char *s)
{
    char *found = NULL;
    for (char *at = s; (at = strstr(at, ".lora_")); at++)
        found = at;
    return found;
}

static bool cut(char *s, size_t *n, const char *suffix)
{
    if (!ends_with(s, *n, suffix))
        return false;
    *n -= strlen(suffix);
    s[*n] = '\0';
    return true;
}

/* "….modules_to_save.NAME" or "….modules_to_save" at the end is taken off. */
static void cut_modules_to_save(struct peft_name *out, char *s, size_t *n)
{
    static const char piece[] = ".modules_to_save";
    char *at = strstr(s, piece);
    if (!at || (at[sizeof piece - 1] && at[sizeof piece - 1] != '.'))
        return;
    out->named |= at[sizeof piece - 1] == '.';
    *n = (size_t)(at - s);
    *at = '\0';
}

/* Names without ".lora_": full weights, biases, tokens. */
static void parse_plain(struct peft_name *out, char *s)
{
    size_t n = strlen(s);
    static const char tokens[] = ".token_adapter.trainable_tokens_delta";
    char *at = strstr(s, tokens);
    if (at) {
        out->named |= at[sizeof tokens - 1] == '.';
        *at = '\0';
        out->part = PART_TOKENS;
        return;
    }
    if (strstr(s, ".token_adapter.trainable_tokens_original")) {
        out->part = PART_INERT; // the base's own rows, kept to undo a merge
        return;
    }
    bool bias = cut(s, &n, ".bias"), weight = !bias && cut(s, &n, ".weight");
    if (!bias && !weight) { // a parameter of its own name; only modules_to_save may say so
        char *dot = strrchr(s, '.');
        if (!dot) {
            refuse(out, "no tensor that PEFT writes");
            return;
        }
        *dot = '\0';
        out->parameter = dot + 1;
        out->part = PART_FULL;
        return;
    }
    out->part = bias ? PART_BIAS : PART_FULL;
    if (cut(s, &n, ".original_module")) {
        out->part = PART_INERT; // modules_to_save keeps the untrained copy
        return;
    }
    bool wrapped = cut(s, &n, ".token_adapter.base_layer") || cut(s, &n, ".base_layer");
    if (wrapped && weight)
        out->part = PART_SAVED_BASE;
    cut_modules_to_save(out, s, &n);
}

/* Counts and removes ".base_layer" at the end of a LoRA module's name. */
static void unwrap(struct peft_name *out, char *s)
{
    size_t n = strlen(s);
    while (cut(s, &n, ".base_layer"))
        out->depth++;
}

int peft_name_parse(struct peft_name *out, const char *name, struct arena *arena, struct err *err)
{
    memset(out, 0, sizeof *out);
    out->parameter = "weight";
    char *s = arena_strdup(arena, name);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", name);
    out->module = s;
    strip_prefixes(out, s);
    char *lora = find_lora(s);
    if (lora)
        parse_lora(out, lora);
    else
        parse_plain(out, s);
    unwrap(out, s);
    return 0;
}
