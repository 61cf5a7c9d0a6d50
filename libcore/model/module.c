#include "libcore/model/module.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/model/arch.h"

enum { NAME_BYTES = 512 };

/* ---- the list ---- */

struct builder {
    struct model_modules *m;
    const struct model_config *c;
    size_t cap;
    uint32_t layer;
    bool failed;
};

static struct model_module *add(struct builder *b, const char *name)
{
    if (b->m->n == b->cap) {
        b->failed = true;
        return NULL;
    }
    struct model_module *item = &b->m->items[b->m->n++];
    item->name = arena_strdup(&b->m->arena, name);
    item->parameter = "weight";
    item->place.layer = b->layer;
    item->place.expert = -1;
    if (!item->name)
        b->failed = true;
    return item;
}

static struct model_module *add_in_layer(struct builder *b, const char *suffix)
{
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "model.layers.%u.%s", b->layer, suffix);
    return add(b, name);
}

static void add_matrix(struct builder *b, const char *suffix, enum site site, uint32_t row0,
                       uint32_t d_out, uint32_t d_in, bool has_bias)
{
    struct model_module *item = add_in_layer(b, suffix);
    if (!item)
        return;
    item->place.kind = WEIGHT_MATRIX;
    item->place.site = site;
    item->place.row0 = row0;
    item->d_out = d_out;
    item->d_in = d_in;
    item->has_bias = has_bias;
}

static void add_norm(struct builder *b, const char *suffix, enum norm norm, uint32_t width)
{
    struct model_module *item = add_in_layer(b, suffix);
    if (!item)
        return;
    item->place.kind = WEIGHT_NORM;
    item->place.norm = norm;
    item->d_out = width;
}

static void add_experts(struct builder *b, const char *parameter, enum site site, uint32_t d_out,
                        uint32_t d_in)
{
    add_matrix(b, "mlp.experts", site, 0, d_out, d_in, false);
    if (b->failed)
        return;
    struct model_module *item = &b->m->items[b->m->n - 1];
    item->parameter = parameter;
    item->n_experts = b->c->n_experts;
}

static void add_attention(struct builder *b)
{
    const struct model_config *c = b->c;
    uint32_t q = c->n_heads * c->head_dim, kv = c->n_kv_heads * c->head_dim;
    add_norm(b, "input_layernorm", NORM_ATTN, c->d_model);
    if (c->fused_qkv) {
        add_matrix(b, "self_attn.qkv_proj", SITE_QKV, 0, q + 2 * kv, c->d_model, c->qkv_bias);
    } else {
        add_matrix(b, "self_attn.q_proj", SITE_QKV, 0, q, c->d_model, c->qkv_bias);
        add_matrix(b, "self_attn.k_proj", SITE_QKV, q, kv, c->d_model, c->qkv_bias);
        add_matrix(b, "self_attn.v_proj", SITE_QKV, q + kv, kv, c->d_model, c->qkv_bias);
    }
    if (c->qk_norm) {
        add_norm(b, "self_attn.q_norm", NORM_Q, c->head_dim);
        add_norm(b, "self_attn.k_norm", NORM_K, c->head_dim);
    }
    add_matrix(b, "self_attn.o_proj", SITE_O, 0, c->d_model, q, c->o_bias);
}

static void add_mlp(struct builder *b)
{
    const struct model_config *c = b->c;
    if (c->post_norms) { // gemma3 names: its "post_attention" norm really is after attention
        add_norm(b, "post_attention_layernorm", NORM_ATTN_POST, c->d_model);
        add_norm(b, "pre_feedforward_layernorm", NORM_MLP, c->d_model);
    } else {
        add_norm(b, "post_attention_layernorm", NORM_MLP, c->d_model);
    }
    if (c->layers[b->layer].moe) {
        add_matrix(b, "mlp.gate", SITE_ROUTER, 0, c->n_experts, c->d_model, false);
        add_experts(b, "gate_up_proj", SITE_EXPERTS_GATE_UP, 2 * c->d_expert, c->d_model);
        add_experts(b, "down_proj", SITE_EXPERTS_DOWN, c->d_model, c->d_expert);
    } else if (c->fused_gate_up) {
        add_matrix(b, "mlp.gate_up_proj", SITE_GATE_UP, 0, 2 * c->d_ff, c->d_model, c->mlp_bias);
        add_matrix(b, "mlp.down_proj", SITE_DOWN, 0, c->d_model, c->d_ff, c->mlp_bias);
    } else {
        add_matrix(b, "mlp.gate_proj", SITE_GATE_UP, 0, c->d_ff, c->d_model, c->mlp_bias);
        add_matrix(b, "mlp.up_proj", SITE_GATE_UP, c->d_ff, c->d_ff, c->d_model, c->mlp_bias);
        add_matrix(b, "mlp.down_proj", SITE_DOWN, 0, c->d_model, c->d_ff, c->mlp_bias);
    }
    if (c->post_norms)
        add_norm(b, "post_feedforward_layernorm", NORM_MLP_POST, c->d_model);
}

static void add_ends(struct builder *b, bool front)
{
    const struct model_config *c = b->c;
    struct model_module *item = add(b, front ? "model.embed_tokens" : "model.norm");
    if (!item)
        return;
    item->place.layer = 0;
    item->place.kind = front ? WEIGHT_MATRIX : WEIGHT_NORM;
    item->place.site = SITE_EMBED;
    item->place.norm = NORM_FINAL;
    item->d_out = front ? c->vocab_size : c->d_model;
    item->d_in = front ? c->d_model : 0;
    if (front || !(item = add(b, "lm_head")))
        return;
    item->place.layer = 0;
    item->place.kind = WEIGHT_MATRIX;
    item->place.site = SITE_HEAD;
    item->d_out = c->vocab_size;
    item->d_in = c->d_model;
    item->tied = c->tied_embeddings;
}

static int compare_names(const char *a_name, const char *a_param, const char *b_name,
                         const char *b_param)
{
    int order = strcmp(a_name, b_name);
    return order ? order : strcmp(a_param, b_param);
}

static int by_name(const void *a, const void *b)
{
    const struct model_module *x = *(const struct model_module *const *)a;
    const struct model_module *y = *(const struct model_module *const *)b;
    return compare_names(x->name, x->parameter, y->name, y->parameter);
}

int modules_open(struct model_modules **out, const struct model_config *config, struct err *err)
{
    *out = NULL;
    struct model_modules *m = sys_calloc(1, sizeof *m);
    if (!m)
        return err_set(err, ERR_NO_MEMORY, "model modules: out of memory");
    arena_init(&m->arena);
    m->config = config;
    struct builder b = {m, config, (size_t)config->n_layers * 14 + 3, 0, false};
    m->items = arena_array(&m->arena, b.cap, sizeof *m->items);
    m->by_name = arena_array(&m->arena, b.cap, sizeof *m->by_name);
    if (!m->items || !m->by_name)
        goto no_memory;
    add_ends(&b, true);
    for (b.layer = 0; b.layer < config->n_layers && !b.failed; b.layer++) {
        add_attention(&b);
        add_mlp(&b);
    }
    b.layer = 0;
    add_ends(&b, false);
    if (b.failed)
        goto no_memory;
    for (size_t i = 0; i < m->n; i++)
        m->by_name[i] = &m->items[i];
    qsort(m->by_name, m->n, sizeof *m->by_name, by_name);
    *out = m;
    return 0;
no_memory:
    modules_free(m);
    return err_set(err, ERR_NO_MEMORY, "model modules: out of memory");
}

void modules_free(struct model_modules *m)
{
    if (!m)
        return;
    arena_release(&m->arena);
    sys_free(m);
}

const struct model_module *modules_find(const struct model_modules *m, const char *name,
                                        const char *parameter)
{
    size_t low = 0, high = m->n;
    while (low < high) {
        size_t mid = (low + high) / 2;
        const struct model_module *item = m->by_name[mid];
        int order =
            compare_names(name, parameter ? parameter : "weight", item->name, item->parameter);
        if (order == 0)
            return item;
        if (order < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

/* ---- names ---- */

static bool starts_with(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

const char *modules_canonical_name(const struct model_modules *m, const char *name, char *buf,
                                   size_t n)
{
    static const struct {
        const char *old, *now;
    } prefixes[] = {
        {"language_model.model.", "model."},    {"model.language_model.", "model."},
        {"language_model.lm_head", "lm_head"},  {"layers.", "model.layers."},
        {"embed_tokens", "model.embed_tokens"}, {"norm.", "model.norm."},
    };
    snprintf(buf, n, "%s", name);
    for (size_t i = 0; i < sizeof prefixes / sizeof prefixes[0]; i++) {
        if (!starts_with(name, prefixes[i].old))
            continue;
        snprintf(buf, n, "%s%s", prefixes[i].now, name + strlen(prefixes[i].old));
        break;
    }
    const struct arch_entry *e = arch_by_id(m->config->arch);
    const char *block = e && e->expert_block ? strstr(buf, e->expert_block) : NULL;
    if (block && strcmp(e->expert_block, "mlp") != 0) {
        char tail[NAME_BYTES];
        snprintf(tail, sizeof tail, "%s", block + strlen(e->expert_block));
        size_t at = (size_t)(block - buf);
        snprintf(buf + at, n - at, "mlp%s", tail);
    }
    return buf;
}

bool modules_tensor_is_inert(const char *name)
{
    static const char *const parts[] = {"rotary_emb.inv_freq", "vision_tower.",
                                        "multi_modal_projector.", "masked_bias"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (strstr(name, parts[i]))
            return true;
    }
    return false;
}

/* "model.layers.N.mlp.experts.E.gate_proj.weight": one expert's own tensor, of older checkpoints.
 */
static const struct model_module *find_expert(const struct model_modules *m, const char *name,
                                              struct weight_place *place, uint32_t *n_rows)
{
    static const struct {
        const char *suffix, *parameter;
        int half; // 0 gate, 1 up, 2 the whole of down
    } forms[] = {
        {"gate_proj.weight", "gate_up_proj", 0}, {"up_proj.weight", "gate_up_proj", 1},
        {"down_proj.weight", "down_proj", 2},    {"w1.weight", "gate_up_proj", 0},
        {"w3.weight", "gate_up_proj", 1},        {"w2.weight", "down_proj", 2},
    };
    static const char marker[] = ".mlp.experts.";
    const char *at = strstr(name, marker);
    if (!at)
        return NULL;
    char *rest;
    unsigned long expert = strtoul(at + strlen(marker), &rest, 10);
    if (rest == at + strlen(marker) || *rest != '.' || expert >= m->config->n_experts)
        return NULL;
    char module[NAME_BYTES];
    snprintf(module, sizeof module, "%.*s", (int)(at - name + strlen(marker) - 1), name);
    for (size_t i = 0; i < sizeof forms / sizeof forms[0]; i++) {
        if (strcmp(rest + 1, forms[i].suffix) != 0)
            continue;
        const struct model_module *found = modules_find(m, module, forms[i].parameter);
        if (!found)
            return NULL;
        *place = found->place;
        place->expert = (int32_t)expert;
        place->row0 = forms[i].half == 1 ? m->config->d_expert : 0;
        *n_rows = forms[i].half == 2 ? found->d_out : m->config->d_expert;
        return found;
    }
    return NULL;
}

static const struct model_module *find_bias(const struct model_modules *m, char *name,
                                            struct weight_place *place)
{
    size_t len = strlen(name);
    if (len < 5 || strcmp(name + len - 5, ".bias") != 0)
        return NULL;
    name[len - 5] = '\0';
    const struct model_module *found = modules_find(m, name, NULL);
    name[len - 5] = '.';
    if (!found || !found->has_bias)
        return NULL;
    *place = found->place;
    place->kind = WEIGHT_BIAS;
    return found;
}

int modules_place_tensor(const struct model_modules *m, const char *tensor_name,
                         const struct model_module **module, struct weight_place *place,
                         uint32_t *n_rows, uint32_t *n_cols, struct err *err)
{
    char name[NAME_BYTES];
    modules_canonical_name(m, tensor_name, name, sizeof name);
    const struct model_module *found = find_bias(m, name, place);
    if (found) {
        *n_rows = found->d_out;
        *n_cols = 0;
        *module = found;
        return 0;
    }
    found = find_expert(m, name, place, n_rows);
    if (found) {
        *n_cols = found->d_in;
        *module = found;
        return 0;
    }
    char *dot = strrchr(name, '.');
    if (dot) {
        *dot = '\0';
        found = modules_find(m, name, dot + 1);
    }
    if (!found)
        return err_set(err, ERR_NOT_FOUND, "%s: no weight of this %s model", tensor_name,
                       m->config->model_type);
    *module = found;
    *place = found->place;
    *n_rows = found->d_out;
    *n_cols = found->d_in;
    return 0;
}

/* Edit distance of two names, at most `limit`. */
static unsigned distance(const char *a, const char *b, unsigned limit)
{
    unsigned row[NAME_BYTES];
    size_t n = strlen(b);
    if (n >= NAME_BYTES)
        return limit;
    for (size_t j = 0; j <= n; j++)
        row[j] = (unsigned)j;
    for (size_t i = 1; a[i - 1]; i++) {
        unsigned diagonal = row[0], best = row[0] = (unsigned)i;
        for (size_t j = 1; j <= n; j++) {
            unsigned change = diagonal + (a[i - 1] != b[j - 1]);
            diagonal = row[j];
            unsigned insert = row[j - 1] + 1, drop = row[j] + 1;
            row[j] = change < insert ? change : insert;
            row[j] = row[j] < drop ? row[j] : drop;
            best = best < row[j] ? best : row[j];
        }
        if (best >= limit)
            return limit;
    }
    return row[n] < limit ? row[n] : limit;
}

const char *modules_nearest(const struct model_modules *m, const char *name)
{
    unsigned best = (unsigned)strlen(name) / 3 + 1;
    const char *nearest = NULL;
    for (size_t i = 0; i < m->n; i++) {
        unsigned d = distance(name, m->items[i].name, best);
        if (d >= best)
            continue;
        best = d;
        nearest = m->items[i].name;
    }
    return nearest;
}
