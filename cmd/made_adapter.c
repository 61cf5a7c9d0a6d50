#include "cmd/made_adapter.h"

#include <string.h>

#include "cmd/output_folder.h"
#include "cmd/table.h"
#include "libcore/format/peft.h"

int made_check(const struct cmd_context *ctx, const struct made_options *opt, struct err *err)
{
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    if (!opt->name && !opt->output)
        return err_set(err, ERR_USAGE, "--name NAME is missing: what the new adapter is called");
    int rc = opt->output ? output_folder_check(ctx, opt->output, "the new adapter", err) : 0;
    // Whether the name is in use for other content, the end of the work shows.
    return rc || !opt->name ? rc : store_parse_name(opt->name, name, tag, err);
}

// ---- the folder --------------------------------------------------------------------------------

static int write_peft(void *arg, const char *folder, struct err *err)
{
    return peft_write(arg, folder, err);
}

// ---- the store ---------------------------------------------------------------------------------

static const char *state_name(enum publish_state state)
{
    static const char *const names[] = {"added", "named", "replaced", "same"};
    return names[state];
}

static int open_base(struct base_model **out, struct store *s, const struct made_options *opt,
                     struct err *err)
{
    *out = NULL;
    if (opt->base_id && *opt->base_id)
        return base_model_open(out, s, opt->base_id, err);
    return opt->base_folder ? base_model_open_folder(out, opt->base_folder, err) : 0;
}

static int put_store(const struct cmd_context *ctx, struct store *s, const struct adapter *a,
                     const struct made_options *opt, json_t *info, struct err *err)
{
    char name[LIMIT_NAME_BYTES + 1], tag[STORE_TAG_BYTES + 1];
    struct base_model *base = NULL;
    struct import_result r;
    int rc = store_parse_name(opt->name, name, tag, err);
    if (!rc)
        rc = open_base(&base, s, opt, err);
    const struct import_options import = {.name = name,
                                          .tag = tag,
                                          .base = base,
                                          .find_base = !base,
                                          .force = ctx->force,
                                          .source = opt->source,
                                          .lineage = opt->lineage};
    if (!rc)
        rc = import_made(s, a, &import, &r, err);
    base_model_free(base);
    if (rc)
        return rc;
    json_t *more =
        json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:O}", "name", r.name, "tag", r.tag, "id", r.id,
                  "state", state_name(r.state), "bytes", (json_int_t)r.bytes, "base_id",
                  *r.base_id ? json_string(r.base_id) : json_null(), "warnings", r.warnings);
    rc = more && json_object_update(info, more) == 0 ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
    json_decref(more);
    import_result_release(&r);
    return rc;
}

int made_put(const struct cmd_context *ctx, struct store *s, const struct adapter *a,
             const struct made_options *opt, json_t *info, struct err *err)
{
    int rc = opt->name ? put_store(ctx, s, a, opt, info, err) : 0;
    if (rc == ERR_EXISTS)
        cmd_hint(
            "--name takes another name; --force takes this one (the old content stays in `lora "
            "tag --history`)");
    if (!rc && opt->output)
        rc = output_folder_make(ctx, opt->output, write_peft, (void *)(uintptr_t)a, err);
    if (!rc && opt->output)
        json_object_set_new(info, "output", json_string(opt->output));
    return rc;
}

// ---- telling -----------------------------------------------------------------------------------

json_t *made_modules_json(const struct combine_report *r)
{
    json_t *list = json_array();
    for (size_t i = 0; list && i < r->n; i++) {
        const struct combine_module *m = &r->modules[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:i, s:f, s:b, s:f}", "name", m->name,
                                              "parameter", m->parameter, "rank", (int)m->rank,
                                              "loss", combine_loss(m->discarded2, m->total2),
                                              "exact", (int)m->exact, "residual", m->residual));
    }
    return list;
}

int made_print_modules(const struct combine_report *r, struct err *err)
{
    static const char *const headings[] = {"MODULE", ">RANK", ">LOST %", "BY", NULL};
    struct table *t = table_open(headings);
    if (!t)
        return err_set(err, ERR_NO_MEMORY, "no memory for a table");
    for (size_t i = 0; i < r->n; i++) {
        const struct combine_module *m = &r->modules[i];
        bool plain = strcmp(m->parameter, "weight") == 0;
        char name[512], rank[16], lost[32], by[64];
        snprintf(name, sizeof name, "%s%s%s", m->name, plain ? "" : ".", plain ? "" : m->parameter);
        snprintf(rank, sizeof rank, "%u", m->rank);
        snprintf(lost, sizeof lost, "%.4g", 100 * combine_loss(m->discarded2, m->total2));
        snprintf(by, sizeof by, m->exact ? "exact" : "iteration, residual %.1e", m->residual);
        const char *const cells[] = {name, rank, lost, by};
        table_row(t, cells);
    }
    if (r->discarded2 > 0)
        table_print(t, stdout);
    table_free(t);
    printf("%zu modules, rank up to %u, lost %.4g %% of the delta's norm\n", r->n, r->max_rank,
           100 * combine_loss(r->discarded2, r->total2));
    return 0;
}

void made_print(const json_t *info)
{
    char bytes[TABLE_CELL_BYTES];
    size_t i;
    json_t *warning;
    const char *name = json_string_value(json_object_get(info, "name"));
    const char *output = json_string_value(json_object_get(info, "output"));
    json_array_foreach(json_object_get(info, "warnings"), i, warning)
    {
        fprintf(stderr, "warning: %s\n", json_string_value(warning));
    }
    if (name)
        printf("%s %s:%s  %.12s  %s\n", json_string_value(json_object_get(info, "state")), name,
               json_string_value(json_object_get(info, "tag")),
               json_string_value(json_object_get(info, "id")),
               table_bytes(bytes, (uint64_t)json_integer_value(json_object_get(info, "bytes"))));
    if (output)
        printf("written to %s\n", output);
}

bool made_print_id(const struct cmd_context *ctx, const json_t *info)
{
    const char *id = json_string_value(json_object_get(info, "id"));
    if (ctx->quiet)
        puts(id ? id : json_string_value(json_object_get(info, "output")));
    return ctx->quiet;
}
