#include "kernels/sites.h"

#define TRY(call)                                                                                  \
    do {                                                                                           \
        int rc_ = (call);                                                                          \
        if (rc_ != 0)                                                                              \
            return rc_;                                                                            \
    } while (0)

static bool site_has_bias(const struct model_config *c, enum site site)
{
    switch (site) {
    case SITE_QKV:
        return c->qkv_bias;
    case SITE_O:
        return c->o_bias;
    case SITE_GATE_UP:
    case SITE_DOWN:
        return c->mlp_bias;
    default:
        return false;
    }
}

/* Which kinds bring A and B at a site. */
static unsigned additive_kinds(enum site site)
{
    return site == SITE_HEAD ? ADAPTER_HEAD : ADAPTER_LORA;
}

int sites_linear(const struct site_run *r, const struct op_step *s, uint32_t layer, enum site site,
                 enum op_space space, const void *x, void *y)
{
    const struct op_table *ops = r->ops;
    struct op_context *c = r->context;
    TRY(ops->gemm(c, s, layer, site, space, x, y));
    if (s->kinds & additive_kinds(site)) {
        TRY(ops->sgmv_shrink(c, s, layer, site, space, x));
        TRY(ops->sgmv_expand(c, s, layer, site, space, y));
    }
    if (site_has_bias(r->config, site) ||
        (s->kinds & (ADAPTER_DORA | ADAPTER_LORA_BIAS | ADAPTER_BIAS)))
        TRY(ops->gain_bias(c, s, layer, site, space, y));
    return 0;
}

static int embed(const struct site_run *r, const struct op_step *s)
{
    TRY(r->ops->embed(r->context, s, r->buf.x));
    return r->ops->rms_norm(r->context, s, 0, NORM_ATTN, OP_ROWS, r->buf.x, r->buf.h);
}

static int attn_in(const struct site_run *r, const struct op_step *s, uint32_t layer)
{
    TRY(sites_linear(r, s, layer, SITE_QKV, OP_ROWS, r->buf.h, r->buf.qkv));
    if (r->config->qk_norm) {
        TRY(r->ops->rms_norm(r->context, s, layer, NORM_Q, OP_ROWS, r->buf.qkv, r->buf.qkv));
        TRY(r->ops->rms_norm(r->context, s, layer, NORM_K, OP_ROWS, r->buf.qkv, r->buf.qkv));
    }
    return r->ops->rope_write(r->context, s, layer, r->buf.qkv);
}

static int attention(const struct site_run *r, const struct op_step *s, uint32_t layer)
{
    return r->ops->attention(r->context, s, layer, r->buf.qkv, r->buf.attn);
}

/* y -> [post norm], x += y, h = next norm of x. */
static int end_residual(const struct site_run *r, const struct op_step *s, uint32_t layer,
                        enum norm post, uint32_t next_layer, enum norm next)
{
    const struct site_buffers *b = &r->buf;
    if (r->config->post_norms)
        TRY(r->ops->rms_norm(r->context, s, layer, post, OP_ROWS, b->y, b->y));
    TRY(r->ops->residual(r->context, s, b->x, b->y));
    if (next_layer >= r->config->n_layers)
        return 0; // the head gathers its rows first
    return r->ops->rms_norm(r->context, s, next_layer, next, OP_ROWS, b->x, b->h);
}

static int attn_out(const struct site_run *r, const struct op_step *s, uint32_t layer)
{
    TRY(sites_linear(r, s, layer, SITE_O, OP_ROWS, r->buf.attn, r->buf.y));
    return end_residual(r, s, layer, NORM_ATTN_POST, layer, NORM_MLP);
}

static int mlp_in(const struct site_run *r, const struct op_step *s, uint32_t layer)
{
    TRY(sites_linear(r, s, layer, SITE_GATE_UP, OP_ROWS, r->buf.h, r->buf.gate_up));
    return r->ops->activation(r->context, s, r->buf.gate_up, r->buf.act);
}

static int mlp_out(const struct site_run *r, const struct op_step *s, uint32_t layer)
{
    TRY(sites_linear(r, s, layer, SITE_DOWN, OP_ROWS, r->buf.act, r->buf.y));
    return end_residual(r, s, layer, NORM_MLP_POST, layer + 1, NORM_ATTN);
}

static int moe(const struct site_run *r, const struct op_step *s, uint32_t layer)
{
    TRY(r->ops->moe(r->context, s, layer, r->buf.h, r->buf.y));
    return end_residual(r, s, layer, NORM_MLP_POST, layer + 1, NORM_ATTN);
}

static int head(const struct site_run *r, const struct op_step *s)
{
    const struct site_buffers *b = &r->buf;
    TRY(r->ops->gather(r->context, s, b->x, b->head_h));
    TRY(r->ops->rms_norm(r->context, s, 0, NORM_FINAL, OP_LOGIT_ROWS, b->head_h, b->head_h));
    return sites_linear(r, s, 0, SITE_HEAD, OP_LOGIT_ROWS, b->head_h, b->logits);
}

static int sample(const struct site_run *r, const struct op_step *s)
{
    return r->ops->sample(r->context, s, r->buf.logits);
}

void sites_init(struct site_run *r)
{
#define DEFAULT(slot)                                                                              \
    if (!r->sites.slot)                                                                            \
    r->sites.slot = slot
    DEFAULT(embed);
    DEFAULT(attn_in);
    DEFAULT(attention);
    DEFAULT(attn_out);
    DEFAULT(mlp_in);
    DEFAULT(mlp_out);
    DEFAULT(moe);
    DEFAULT(head);
    DEFAULT(sample);
#undef DEFAULT
}

int sites_forward(const struct site_run *r, const struct op_step *s)
{
    TRY(r->ops->begin(r->context, s));
    TRY(r->sites.embed(r, s));
    for (uint32_t layer = 0; layer < r->config->n_layers; layer++) {
        TRY(r->sites.attn_in(r, s, layer));
        TRY(r->sites.attention(r, s, layer));
        TRY(r->sites.attn_out(r, s, layer));
        if (r->config->layers[layer].moe) {
            TRY(r->sites.moe(r, s, layer));
        } else {
            TRY(r->sites.mlp_in(r, s, layer));
            TRY(r->sites.mlp_out(r, s, layer));
        }
    }
    if (s->logit_bucket == 0)
        return 0;
    TRY(r->sites.head(r, s));
    return r->sites.sample(r, s);
}
