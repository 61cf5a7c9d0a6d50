#include "cmd/merge_combine.h"

#include <string.h>

#include "cmd/made_adapter.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

struct combining {
    struct cmd_context *ctx;
    struct store *s;
    struct merge_inputs *in;
    const struct merge_combine_options *opt;
    struct combine_options options;
    struct combine_input *inputs;
    const char *base_id; // that the adapters record, "" unknown
};

static int choose_method(struct combining *c, struct err *err)
{
    const struct merge_combine_options *o = c->opt;
    enum combine_compat compat = !o->compat                       ? COMBINE_OWN
                                 : strcmp(o->compat, "peft") == 0 ? COMBINE_PEFT
                                                                  : COMBINE_MERGEKIT;
    const char *method = o->method                               ? o->method
                         : o->rank || compat == COMBINE_MERGEKIT ? "linear"
                                                                 : "cat";
    c->options = (struct combine_options){.rank = (uint32_t)o->rank,
                                          .density = o->density,
                                          .epsilon = o->epsilon,
                                          .gamma = o->gamma,
                                          .seed = (uint64_t)o->seed,
                                          .n_threads = o->n_threads,
                                          .stop = cmd_interrupted};
    return combine_method_find(&c->options.method, method, compat, err);
}

/* With --base that one; else what the adapters record, which must agree. */
static int find_base(struct combining *c, struct err *err)
{
    c->base_id = "";
    if (c->opt->base_ref) {
        int rc = merge_inputs_base(c->in, c->opt->base_ref, err);
        c->base_id = c->in->base_id;
        return rc;
    }
    for (size_t i = 0; i < c->in->n; i++) {
        const char *one = c->in->items[i].base_id;
        if (*c->base_id && *one && strcmp(c->base_id, one) != 0)
            return err_set(err, ERR_REFUSED, "%s is for base %.12s, %s for %.12s",
                           c->in->items[i].name, one, c->in->items[0].name, c->base_id);
        if (*one)
            c->base_id = one;
    }
    struct store_entry e; // a base that was taken out of the store is only a name
    if (*c->base_id && store_get(c->s, c->base_id, &e, NULL) == 0)
        store_entry_release(&e);
    else
        c->base_id = "";
    return 0;
}

static void warn_of_names(const struct combining *c)
{
    const char *first = c->in->items[0].adapter->base_name;
    for (size_t i = 1; i < c->in->n && !*c->base_id; i++) {
        const char *other = c->in->items[i].adapter->base_name;
        if (first && other && strcmp(first, other) != 0)
            fprintf(stderr, "warning: %s names base %s, %s names %s\n", c->in->items[0].name, first,
                    c->in->items[i].name, other);
    }
}

static int make_inputs(struct combining *c, struct err *err)
{
    c->inputs = sys_calloc(c->in->n + 1, sizeof *c->inputs);
    if (!c->inputs)
        return err_set(err, ERR_NO_MEMORY, "combining: no memory");
    for (size_t i = 0; i < c->in->n; i++)
        c->inputs[i] = (struct combine_input){c->in->items[i].adapter, c->in->items[i].weight,
                                              c->in->items[i].name};
    return 0;
}

static json_t *number_or_null(bool given, double v)
{
    return given ? json_real(v) : json_null();
}

/* Everything that makes the same adapter again. */
static json_t *lineage_of(const struct combining *c)
{
    const struct combine_options *o = &c->options;
    json_t *list = json_array();
    for (size_t i = 0; list && i < c->in->n; i++)
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:f}", "id", c->in->items[i].adapter->content_id, "name",
                            c->in->items[i].name, "weight", c->in->items[i].weight));
    return json_pack("{s:s, s:s, s:s, s:s?, s:i, s:o, s:o, s:o, s:o, s:o}", "command", "merge",
                     "version", cmd_version(), "method", o->method->name, "compat", c->opt->compat,
                     "rank", (int)o->rank, "density", number_or_null(o->density > 0, o->density),
                     "epsilon", number_or_null(o->epsilon >= 0, o->epsilon), "gamma",
                     number_or_null(o->gamma >= 0, o->gamma), "seed",
                     combine_takes_seed(o->method) ? json_integer((json_int_t)o->seed)
                                                   : json_null(),
                     "adapters", list);
}

static char *source_of(const struct combining *c)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "lora merge");
    for (size_t i = 0; i < c->in->n; i++)
        strbuf_addf(&sb, " %s=%.15g", c->in->items[i].name, c->in->items[i].weight);
    strbuf_addf(&sb, " --method %s", c->options.method->name);
    return strbuf_take(&sb, NULL);
}

static int tell(const struct combining *c, const struct combine_report *r, json_t *info,
                struct err *err)
{
    const struct combine_method *m = c->options.method;
    if (c->ctx->json) {
        json_object_update_new(
            info, json_pack("{s:s, s:s?, s:s?, s:i, s:f, s:i, s:o}", "method", m->name, "compat",
                            c->opt->compat, "differs", m->differs, "rank", (int)r->max_rank, "loss",
                            combine_loss(r->discarded2, r->total2), "taken_over",
                            (int)r->n_taken_over, "modules", made_modules_json(r)));
        cmd_print_json(json_incref(info));
        return 0;
    }
    if (m->differs)
        fprintf(stderr, "note: --compat %s, method %s: %s\n", c->opt->compat, m->name, m->differs);
    if (made_print_id(c->ctx, info))
        return 0;
    int rc = made_print_modules(r, err);
    if (r->n_taken_over)
        printf("%zu modules have whole weights, biases or rows that were taken over as they are\n",
               r->n_taken_over);
    made_print(info);
    return rc;
}

int merge_combine_run(struct cmd_context *ctx, struct store *s, struct merge_inputs *in,
                      const struct merge_combine_options *opt, struct err *err)
{
    struct combining c = {.ctx = ctx, .s = s, .in = in, .opt = opt};
    struct adapter *a = NULL;
    struct combine_report *r = NULL;
    struct made_options made = {.name = opt->name, .output = opt->output};
    json_t *info = json_object(), *lineage = NULL;
    char *source = NULL;
    int rc = made_check(ctx, &made, err);
    if (!rc)
        rc = choose_method(&c, err);
    if (!rc)
        rc = find_base(&c, err);
    if (!rc)
        rc = make_inputs(&c, err);
    if (!rc) {
        warn_of_names(&c);
        rc = combine_adapters(&a, &r, c.inputs, in->n, &c.options, err);
    }
    if (!rc) {
        made.base_id = c.base_id;
        made.base_folder = *c.base_id ? NULL : in->base_folder;
        made.lineage = lineage = lineage_of(&c);
        made.source = source = source_of(&c);
        rc = lineage && source ? made_put(ctx, s, a, &made, info, err)
                               : err_set(err, ERR_NO_MEMORY, "combining: no memory");
    }
    if (!rc)
        rc = tell(&c, r, info, err);
    combine_report_free(r);
    adapter_free(a);
    json_decref(info);
    json_decref(lineage);
    sys_free(source);
    sys_free(c.inputs);
    return rc;
}
