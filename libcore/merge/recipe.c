#include "libcore/merge/recipe.h"

#include <math.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/merge/estimate.h"

enum { SCHEMA = 1 };
static const double ASSUMED_BYTES_PER_S = 1e9; // of a disk, for the plan's guess

double recipe_ratio(double part2, double whole2)
{
    return whole2 > 0 ? sqrt(part2 / whole2) : 0;
}

static json_t *text(const char *s)
{
    return s ? json_string(s) : json_null();
}

static json_t *adapters_json(const struct merge_plan *p, const struct recipe_origin *o)
{
    json_t *list = json_array();
    for (size_t i = 0; i < p->n_adapters; i++) {
        const struct adapter *a = p->adapters[i].adapter;
        const char *name = o->names && o->names[i] ? o->names[i] : a->name;
        json_array_append_new(list, json_pack("{s:o, s:s, s:f, s:o}", "name", text(name), "id",
                                              a->content_id, "weight", p->adapters[i].weight,
                                              "path", text(o->paths ? o->paths[i] : NULL)));
    }
    return list;
}

/* Names of changed tensors, and how many of what. */
static json_t *plan_json(const struct merge_plan *p, unsigned n_threads)
{
    json_t *changed = json_array();
    for (size_t i = 0; i < p->n_tensors; i++) {
        if (p->tensors[i].touched || p->tensors[i].added)
            json_array_append_new(changed, json_string(p->tensors[i].name));
    }
    double compute = estimate_compute_seconds(p, n_threads);
    double disk = (double)(p->read_bytes + p->write_bytes) / ASSUMED_BYTES_PER_S;
    return json_pack("{s:f, s:I, s:I, s:o, s:I, s:I, s:I, s:O}", "seconds",
                     compute > disk ? compute : disk, "n_tensors", (json_int_t)p->n_tensors,
                     "n_changed", (json_int_t)p->n_touched, "changed", changed, "ram_bytes",
                     (json_int_t)p->ram_bytes, "read_bytes", (json_int_t)p->read_bytes,
                     "disk_bytes", (json_int_t)p->write_bytes, "refusals", p->refusals);
}

json_t *recipe_of_plan(const struct merge_plan *p, const struct recipe_origin *o, bool planned)
{
    json_t *root = json_pack(
        "{s:i, s:s, s:s, s:s, s:n, s:{s:o, s:s, s:o}, s:o, s:{s:b, s:s}, s:b, s:o, s:O}", "schema",
        SCHEMA, "kind", "merge", "version", o->version, "method", "add", "seed", "base", "name",
        text(o->base_name), "fingerprint", p->fingerprint, "path", text(o->base_folder), "adapters",
        adapters_json(p, o), "options", "resize_embeddings", o->options->resize_embeddings,
        "float8", p->to_bf16 ? "bf16" : "keep", "untied", p->untied, "vocab_size",
        p->n_vocab ? json_integer(p->n_vocab) : json_null(), "warnings", p->warnings);
    if (root && planned &&
        json_object_set_new(root, "plan", plan_json(p, o->options->n_threads)) != 0) {
        json_decref(root);
        return NULL;
    }
    return root;
}

// ---- the report ---------------------------------------------------------------------------------

static json_t *stats_json(const struct values_stats *s)
{
    return json_pack("{s:I, s:I, s:f, s:f, s:f}", "values", (json_int_t)s->n_values, "changed",
                     (json_int_t)s->n_changed, "changed_share",
                     s->n_values ? (double)s->n_changed / (double)s->n_values : 0.0,
                     "relative_change", recipe_ratio(s->delta2, s->base2), "lost_share",
                     recipe_ratio(s->lost2, s->delta2));
}

int recipe_add_report(json_t *recipe, const struct merge_plan *p, const struct values_stats *stats,
                      struct err *err)
{
    json_t *rows = json_array(), *report = NULL;
    struct values_stats total = {0};
    for (size_t i = 0; i < p->n_tensors; i++) {
        if (!p->tensors[i].touched)
            continue;
        json_t *row = stats_json(&stats[i]);
        json_object_set_new(row, "name", json_string(p->tensors[i].name));
        json_array_append_new(rows, row);
        if (!p->tensors[i].scales_of)
            values_stats_add(&total, &stats[i]);
    }
    report = stats_json(&total);
    if (rows && report && json_object_set_new(report, "tensors", rows) == 0 &&
        json_object_set_new(recipe, "report", report) == 0)
        return 0;
    return err_set(err, ERR_NO_MEMORY, "merge report: no memory");
}

// ---- reading ------------------------------------------------------------------------------------

static int bad_field(const char *path, const char *field, const char *wanted, struct err *err)
{
    return err_set(err, ERR_CORRUPT, "%s:%s: wanted %s", path, field, wanted);
}

static int read_adapters(struct recipe *r, const char *path, struct err *err)
{
    const json_t *list = json_object_get(r->root, "adapters");
    size_t n = json_array_size(list);
    if (!n)
        return bad_field(path, "adapters", "a list of adapters", err);
    r->adapters = sys_calloc(n, sizeof *r->adapters);
    if (!r->adapters)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
    for (size_t i = 0; i < n; i++) {
        const json_t *row = json_array_get(list, i), *weight = json_object_get(row, "weight");
        struct recipe_adapter *a = &r->adapters[i];
        struct digest ignored;
        a->name = json_string_value(json_object_get(row, "name"));
        a->id = json_string_value(json_object_get(row, "id"));
        a->path = json_string_value(json_object_get(row, "path"));
        a->weight = json_number_value(weight);
        if (!a->id || !digest_parse(a->id, &ignored))
            return bad_field(path, "adapters[].id", "a content id", err);
        if (!json_is_number(weight))
            return bad_field(path, "adapters[].weight", "a number", err);
    }
    r->n_adapters = n;
    return 0;
}

static int read_fields(struct recipe *r, const char *path, struct err *err)
{
    const json_t *base = json_object_get(r->root, "base");
    const char *kind = json_string_value(json_object_get(r->root, "kind"));
    json_int_t schema = json_integer_value(json_object_get(r->root, "schema"));
    if (schema > SCHEMA)
        return err_set(err, ERR_REFUSED, "%s:schema: %d is newer than this program's %d", path,
                       (int)schema, SCHEMA);
    if (schema != SCHEMA || !kind || strcmp(kind, "merge") != 0)
        return bad_field(path, "kind", "\"merge\" of schema 1", err);
    r->base_name = json_string_value(json_object_get(base, "name"));
    r->base_folder = json_string_value(json_object_get(base, "path"));
    r->fingerprint = json_string_value(json_object_get(base, "fingerprint"));
    r->resize_embeddings =
        json_is_true(json_object_get(json_object_get(r->root, "options"), "resize_embeddings"));
    const char *float8 =
        json_string_value(json_object_get(json_object_get(r->root, "options"), "float8"));
    r->float8_to_bf16 = float8 && strcmp(float8, "bf16") == 0;
    if (!r->fingerprint || strlen(r->fingerprint) != DIGEST_HEX_CHARS)
        return bad_field(path, "base.fingerprint", "64 hex digits", err);
    return read_adapters(r, path, err);
}

int recipe_read(struct recipe *out, const char *path, struct err *err)
{
    memset(out, 0, sizeof *out);
    char *data;
    size_t n;
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &data, &n, err);
    if (rc)
        return rc;
    json_error_t je;
    out->root = json_loadb(data, n, JSON_REJECT_DUPLICATES, &je);
    sys_free(data);
    rc = out->root ? read_fields(out, path, err)
                   : err_set(err, ERR_CORRUPT, "%s: line %d: %s", path, je.line, je.text);
    if (rc)
        recipe_release(out);
    return rc;
}

void recipe_release(struct recipe *r)
{
    sys_free(r->adapters);
    json_decref(r->root);
    memset(r, 0, sizeof *r);
}
