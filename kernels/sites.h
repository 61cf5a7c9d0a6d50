/*
 * sites: the forward pass as wide sites, one call each, and their default implementations out of
 * plain ops. A back end fills a struct site_run once a model, overrides the sites where fusion pays
 * (a NULL slot takes the default) and calls sites_forward() for a step, or records that call.
 *
 * Between the sites only the buffers of site_run carry data. `x` is the residual stream, `h` its
 * normalised copy: every site that ends a residual leaves the next site's norm applied in h.
 *
 *   embed       tokens -> x, h = norm_attn(layer 0)
 *   attn_in     h -> qkv: projection, biases, q/k norms, rope, keys and values to the pages
 *   attention   qkv -> attn
 *   attn_out    attn -> o projection, [post norm], x += ., h = norm_mlp(x)
 *   mlp_in      h -> act: gate_up projection and activation
 *   mlp_out     act -> down projection, [post norm], x += ., h = the next layer's norm_attn(x)
 *   moe         h -> in place of mlp_in and mlp_out
 *   head        x -> logits of the logit rows (final norm, projection)
 *   sample      logits -> results
 * Each yields g * (W x + sum s B A x) + b as backend.h says.
 */
#ifndef KERNELS_SITES_H
#define KERNELS_SITES_H

#include "kernels/ops.h"

/* Activations, allocated by the back end for limits.max_rows (head: max_logit_rows). */
struct site_buffers {
    void *x, *h, *y; // [rows, d_model]
    void *qkv;       // [rows, (n_heads + 2 n_kv_heads) head_dim]
    void *attn;      // [rows, n_heads head_dim]
    void *gate_up;   // [rows, 2 d_ff]
    void *act;       // [rows, d_ff]
    void *head_h;    // [logit rows, d_model]
    void *logits;    // [logit rows, vocab], the stride is the back end's
};

struct site_run;

struct site_table {
    int (*embed)(const struct site_run *r, const struct op_step *s);
    int (*attn_in)(const struct site_run *r, const struct op_step *s, uint32_t layer);
    int (*attention)(const struct site_run *r, const struct op_step *s, uint32_t layer);
    int (*attn_out)(const struct site_run *r, const struct op_step *s, uint32_t layer);
    int (*mlp_in)(const struct site_run *r, const struct op_step *s, uint32_t layer);
    int (*mlp_out)(const struct site_run *r, const struct op_step *s, uint32_t layer);
    int (*moe)(const struct site_run *r, const struct op_step *s, uint32_t layer);
    int (*head)(const struct site_run *r, const struct op_step *s);
    int (*sample)(const struct site_run *r, const struct op_step *s);
};

struct site_run {
    const struct op_table *ops;
    struct op_context *context;
    const struct model_config *config; // borrowed
    struct site_buffers buf;
    struct site_table sites; // complete after sites_init()
};

/* Fills the NULL slots of r->sites with the defaults. */
void sites_init(struct site_run *r);

/* Runs (or records) the whole step. The sequence of calls depends only on the step's key. A step
 * without logit rows (logit_bucket 0) leaves out head and sample. */
int sites_forward(const struct site_run *r, const struct op_step *s);

/* y = g * (W x + sum s B A x) + b of one site by plain ops; for overriding sites that keep parts.
 */
int sites_linear(const struct site_run *r, const struct op_step *s, uint32_t layer, enum site site,
                 enum op_space space, const void *x, void *y);

#endif
