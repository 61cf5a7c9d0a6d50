#include "cmd/report.h"

#include <string.h>

#include "cmd/inspect_info.h"
#include "cmd/table.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"

static const char style[] =
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;"
    "color:#1d2430;background:#fff}h1{font-size:1.5rem;margin-bottom:0}h2{font-size:1.1rem;"
    "margin-top:2rem}code{font-size:.9em}table{border-collapse:collapse}td,th{padding:.15rem .8rem "
    ".15rem 0;text-align:left;vertical-align:top}td.n,th.n{text-align:right}tr+tr "
    "td{border-top:1px "
    "solid #e4e7ec}.id{color:#667}.no{color:#b00020}.scroll{overflow-x:auto}"
    "@media(prefers-color-scheme:dark){body{color:#e4e7ec;background:#14171c}tr+tr td{border-color:"
    "#2c323c}.id{color:#99a}.no{color:#ff7a8a}svg text{fill:#e4e7ec}}";

/* Names in an adapter are somebody else's text. */
static void add_escaped(struct strbuf *sb, const char *text)
{
    for (; *text; text++) {
        const char *e = *text == '<'    ? "&lt;"
                        : *text == '>'  ? "&gt;"
                        : *text == '&'  ? "&amp;"
                        : *text == '"'  ? "&quot;"
                        : *text == '\'' ? "&#39;"
                                        : NULL;
        if (e)
            strbuf_adds(sb, e);
        else
            strbuf_addc(sb, *text);
    }
}

static const char *text(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));
    return t ? t : "";
}

static void add_fact(struct strbuf *sb, const char *label, const char *value)
{
    strbuf_addf(sb, "<tr><th>%s</th><td>", label);
    add_escaped(sb, value);
    strbuf_adds(sb, "</td></tr>\n");
}

static void add_facts(struct strbuf *sb, const json_t *info)
{
    char cell[TABLE_CELL_BYTES], line[512];
    const json_t *base = json_object_get(info, "base"), *tiers = json_object_get(info, "tiers");
    strbuf_adds(sb, "<table>\n");
    if (*text(info, "architecture"))
        add_fact(sb, "architecture", text(info, "architecture"));
    if (base)
        add_fact(sb, "base", *text(base, "name") ? text(base, "name") : "unknown");
    uint64_t n = (uint64_t)json_integer_value(json_object_get(info, "parameters"));
    const json_t *share = json_object_get(info, "share");
    snprintf(line, sizeof line, share ? "%s, %.2f %% of the base's" : "%s", table_count(cell, n),
             json_real_value(share) * 100);
    add_fact(sb, "parameters", line);
    if (*text(info, "kinds_text"))
        add_fact(sb, "kinds", text(info, "kinds_text"));
    static const char *const names[] = {"disk", "host", "device"};
    for (size_t i = 0; json_is_object(tiers) && i < 3; i++) {
        snprintf(line, sizeof line, "bytes on %s", names[i]);
        add_fact(sb, line,
                 table_bytes(cell, (uint64_t)json_integer_value(json_object_get(tiers, names[i]))));
    }
    const json_t *deep = json_object_get(info, "deep");
    if (deep) {
        snprintf(line, sizeof line, "%.6g", json_real_value(json_object_get(deep, "frobenius")));
        add_fact(sb, "‖ΔW‖ (Frobenius)", line);
        snprintf(line, sizeof line, "%.6g in %s",
                 json_real_value(json_object_get(deep, "max_spectral")), text(deep, "max_module"));
        add_fact(sb, "largest spectral norm", line);
    }
    if (*text(info, "source"))
        add_fact(sb, "imported from", text(info, "source"));
    size_t i;
    json_t *signature;
    json_array_foreach(json_object_get(info, "signatures"), i, signature)
    {
        add_fact(sb, "signature by key", text(signature, "key"));
    }
    strbuf_adds(sb, "</table>\n");
}

static void add_capability(struct strbuf *sb, const json_t *info)
{
    const json_t *all = json_object_get(info, "capability");
    const char *use;
    json_t *row;
    if (!all)
        return;
    strbuf_adds(sb, "<h2>What will be said of it</h2>\n<table>\n");
    json_object_foreach((json_t *)all, use, row)
    {
        bool ok = json_is_true(json_object_get(row, "ok"));
        strbuf_addf(sb, "<tr><th>%s</th><td class=\"%s\">%s</td><td>", use, ok ? "yes" : "no",
                    ok ? "yes" : "no");
        add_escaped(sb, text(row, "why"));
        strbuf_adds(sb, "</td></tr>\n");
    }
    strbuf_adds(sb, "</table>\n");
}

// ---- the map -----------------------------------------------------------------------------------

/* Light to dark blue; the same order in print and for the colour-blind. */
static void add_colour(struct strbuf *sb, double share)
{
    int r = (int)(235 - 220 * share), g = (int)(242 - 172 * share), b = (int)(252 - 102 * share);
    strbuf_addf(sb, "#%02x%02x%02x", (unsigned)r, (unsigned)g, (unsigned)b);
}

static void add_cell(struct strbuf *sb, const struct inspect_map *map, size_t t, size_t l, int side,
                     int left)
{
    double v = map->values[t * map->n_layers + l];
    strbuf_addf(sb, "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"",
                left + (int)l * side, (int)t * side, side - 2, side - 2);
    if (v < 0)
        strbuf_adds(sb, "none\" stroke=\"#c8ccd4");
    else
        add_colour(sb, map->max > 0 ? v / map->max : 0);
    strbuf_adds(sb, "\"><title>");
    add_escaped(sb, map->targets[t]);
    strbuf_addf(sb, ", layer %ld: ", map->first_layer + (long)l);
    if (v < 0)
        strbuf_adds(sb, "none");
    else
        strbuf_addf(sb, "%.6g", v);
    strbuf_adds(sb, "</title></rect>\n");
}

static int add_map(struct strbuf *sb, const json_t *info, struct err *err)
{
    enum { SIDE = 18, LEFT = 130 };
    struct inspect_map map;
    int rc = inspect_map_make(&map, info, err);
    if (rc || !map.n_layers) {
        inspect_map_release(&map);
        return rc;
    }
    int width = LEFT + (int)map.n_layers * SIDE, height = (int)map.n_targets * SIDE + 20;
    strbuf_addf(sb,
                "<h2>%s by layer and module</h2>\n<div class=\"scroll\"><svg width=\"%d\" "
                "height=\"%d\" font-size=\"12\" role=\"img\">\n",
                map.what, width, height);
    for (size_t t = 0; t < map.n_targets; t++) {
        strbuf_addf(sb, "<text x=\"0\" y=\"%d\">", (int)t * SIDE + 12);
        add_escaped(sb, map.targets[t]);
        strbuf_adds(sb, "</text>\n");
        for (size_t l = 0; l < map.n_layers; l++)
            add_cell(sb, &map, t, l, SIDE, LEFT);
    }
    for (size_t l = 0; l<map.n_layers; l += map.n_layers> 12 ? 4 : 1)
        strbuf_addf(sb, "<text x=\"%d\" y=\"%d\">%ld</text>\n", LEFT + (int)l * SIDE, height - 4,
                    map.first_layer + (long)l);
    strbuf_adds(sb, "</svg></div>\n");
    inspect_map_release(&map);
    return 0;
}

// ---- tables ------------------------------------------------------------------------------------

static void add_number_cell(struct strbuf *sb, const json_t *value)
{
    if (json_is_number(value))
        strbuf_addf(sb, "<td class=\"n\">%.6g</td>", json_number_value(value));
    else
        strbuf_adds(sb, "<td class=\"n\">–</td>");
}

static void add_modules(struct strbuf *sb, const json_t *info)
{
    static const char *const columns[] = {"rank",      "scale",    "parameters",
                                          "frobenius", "spectral", "stable_rank"};
    enum { N = sizeof columns / sizeof *columns };
    const json_t *modules = json_object_get(info, "modules");
    size_t i;
    json_t *m;
    if (!json_array_size(modules))
        return;
    strbuf_adds(sb, "<h2>Modules</h2>\n<div class=\"scroll\"><table>\n<tr><th>module</th>");
    for (size_t c = 0; c < N; c++)
        strbuf_addf(sb, "<th class=\"n\">%s</th>", columns[c]);
    strbuf_adds(sb, "</tr>\n");
    json_array_foreach((json_t *)modules, i, m)
    {
        strbuf_adds(sb, "<tr><td><code>");
        add_escaped(sb, text(m, "name"));
        strbuf_adds(sb, "</code></td>");
        for (size_t c = 0; c < N; c++)
            add_number_cell(sb, json_object_get(m, columns[c]));
        strbuf_adds(sb, "</tr>\n");
    }
    strbuf_adds(sb, "</table></div>\n");
}

static void add_files(struct strbuf *sb, const json_t *info)
{
    size_t i;
    json_t *file;
    const json_t *files = json_object_get(info, "files");
    if (!json_array_size(files))
        return;
    strbuf_adds(sb, "<h2>Files</h2>\n<div class=\"scroll\"><table>\n");
    json_array_foreach((json_t *)files, i, file)
    {
        strbuf_adds(sb, "<tr><td>");
        add_escaped(sb, text(file, "path"));
        strbuf_addf(sb, "</td><td class=\"n\">%lld</td><td><code>",
                    (long long)json_integer_value(json_object_get(file, "size")));
        add_escaped(sb, text(file, "sha256"));
        strbuf_adds(sb, "</code></td></tr>\n");
    }
    strbuf_adds(sb, "</table></div>\n");
}

int report_write(const json_t *info, const char *path, struct err *err)
{
    const char *name = json_string_value(json_array_get(json_object_get(info, "names"), 0));
    if (!name)
        name = file_base_name(text(info, "path"));
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                     "<meta name=\"viewport\" content=\"width=device-width\"><title>");
    add_escaped(&sb, name);
    strbuf_addf(&sb, "</title><style>%s</style></head><body>\n<h1>", style);
    add_escaped(&sb, name);
    strbuf_adds(&sb, "</h1>\n<p class=\"id\"><code>");
    add_escaped(&sb, text(info, "id"));
    strbuf_adds(&sb, "</code></p>\n");
    add_facts(&sb, info);
    add_capability(&sb, info);
    int rc = json_object_get(info, "modules") ? add_map(&sb, info, err) : 0;
    add_modules(&sb, info);
    add_files(&sb, info);
    strbuf_adds(&sb, "</body></html>\n");
    if (!rc && sb.failed)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory for the report", path);
    if (!rc)
        rc = file_write_atomic(path, sb.data, sb.len, err);
    strbuf_release(&sb);
    return rc;
}
