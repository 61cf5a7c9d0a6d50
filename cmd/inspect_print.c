#include <string.h>

#include "cmd/inspect_info.h"
#include "cmd/table.h"

static const char *text(const json_t *o, const char *key)
{
    const char *t = json_string_value(json_object_get(o, key));
    return t ? t : "";
}

static json_int_t number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static void line(const char *label, const char *value)
{
    printf("%-13s %s\n", label, value);
}

static void print_names(const json_t *info)
{
    size_t i;
    json_t *name;
    json_array_foreach(json_object_get(info, "names"), i, name)
    {
        line(i ? "" : "name", json_string_value(name));
    }
    line("id", text(info, "id"));
}

static void print_bytes(const json_t *info)
{
    const json_t *tiers = json_object_get(info, "tiers");
    char disk[TABLE_CELL_BYTES], host[TABLE_CELL_BYTES], device[TABLE_CELL_BYTES];
    if (!json_is_object(tiers))
        return;
    printf("%-13s disk %s · host %s · device %s\n", "bytes",
           table_bytes(disk, (uint64_t)number(tiers, "disk")),
           table_bytes(host, (uint64_t)number(tiers, "host")),
           table_bytes(device, (uint64_t)number(tiers, "device")));
}

static void print_files(const json_t *info)
{
    size_t i;
    json_t *file;
    char cell[TABLE_CELL_BYTES];
    const json_t *files = json_object_get(info, "files");
    if (!json_array_size(files))
        return;
    puts("");
    struct table *t = table_open((const char *[]){"FILE", ">BYTES", "SHA256", NULL});
    json_array_foreach(files, i, file)
    {
        table_row(t, (const char *[]){text(file, "path"),
                                      table_bytes(cell, (uint64_t)number(file, "size")),
                                      text(file, "sha256")});
    }
    table_print(t, stdout);
    table_free(t);
}

/* Whose they are said to be: only `lora verify` knows whether they hold. */
static void print_signatures(const json_t *info)
{
    size_t i;
    json_t *signature;
    json_array_foreach(json_object_get(info, "signatures"), i, signature)
    {
        char shown[80];
        const char *key = text(signature, "key");
        snprintf(shown, sizeof shown, "%.12s by key %.12s", text(signature, "sha256"),
                 *key ? key : "unknown");
        line("signature", shown);
    }
}

static void print_warnings(const json_t *info)
{
    size_t i;
    json_t *warning;
    json_array_foreach(json_object_get(info, "warnings"), i, warning)
    {
        line("warning", json_string_value(warning));
    }
    json_array_foreach(json_object_get(info, "ignored_fields"), i, warning)
    {
        line("ignored", json_string_value(warning));
    }
}

// ---- an adapter --------------------------------------------------------------------------------

static void print_base(const json_t *info)
{
    const json_t *base = json_object_get(info, "base");
    const char *name = text(base, "name"), *id = text(base, "id");
    if (*id)
        printf("%-13s %s (%.12s)%s\n", "base", *name ? name : "?", id,
               json_is_true(json_object_get(base, "in_store")) ? "" : ", not in the store");
    else
        printf("%-13s %s (never checked: `lora import --base REF` records it)\n", "base",
               *name ? name : "unknown");
    if (*text(base, "problem"))
        line("", text(base, "problem"));
}

static void print_size(const json_t *info)
{
    char count[TABLE_CELL_BYTES];
    const json_t *share = json_object_get(info, "share");
    printf("%-13s %s", "parameters", table_count(count, (uint64_t)number(info, "parameters")));
    if (share)
        printf(", %.2f %% of the base's", json_real_value(share) * 100);
    putchar('\n');
    const json_t *rank = json_object_get(info, "rank");
    json_int_t low = json_integer_value(json_array_get(rank, 0)),
               high = json_integer_value(json_array_get(rank, 1));
    if (low == high)
        printf("%-13s %lld\n", "rank", (long long)high);
    else
        printf("%-13s %lld to %lld\n", "rank", (long long)low, (long long)high);
    line("kinds", text(info, "kinds_text"));
}

static void print_dtypes(const json_t *info)
{
    const char *name;
    json_t *bytes;
    char cell[TABLE_CELL_BYTES];
    printf("%-13s", "dtypes");
    json_object_foreach(json_object_get(info, "dtypes"), name, bytes)
    {
        printf(" %s (%s)", name, table_bytes(cell, (uint64_t)json_integer_value(bytes)));
    }
    putchar('\n');
}

static void print_capability(const json_t *info)
{
    const char *use;
    json_t *row;
    puts("");
    json_object_foreach(json_object_get(info, "capability"), use, row)
    {
        const char *why = text(row, "why");
        printf("%-13s %s%s%s\n", use, json_is_true(json_object_get(row, "ok")) ? "yes" : "no",
               *why ? ": " : "", why);
    }
}

/* Runs of modules that are alike but for their layer would fill the screen: one line a target, rank
 * and scale. */
static void print_targets(const json_t *info)
{
    bool deep = json_object_get(info, "deep") != NULL;
    static const char *const plain[] = {"MODULE", ">RANK", ">SCALE", "KINDS", ">PARAMS", NULL};
    static const char *const more[] = {"MODULE", ">RANK",     ">SCALE",       "KINDS", ">PARAMS",
                                       ">‖ΔW‖",  ">SPECTRAL", ">STABLE RANK", NULL};
    struct table *t = table_open(deep ? more : plain);
    size_t i, k;
    json_t *m, *kind;
    json_array_foreach(json_object_get(info, "modules"), i, m)
    {
        char cells[6][TABLE_CELL_BYTES], kinds[160] = "";
        json_array_foreach(json_object_get(m, "kinds"), k, kind)
        {
            size_t used = strlen(kinds);
            snprintf(kinds + used, sizeof kinds - used, "%s%s", used ? "," : "",
                     json_string_value(kind));
        }
        snprintf(cells[0], TABLE_CELL_BYTES, "%lld", (long long)number(m, "rank"));
        snprintf(cells[1], TABLE_CELL_BYTES, "%.6g", json_real_value(json_object_get(m, "scale")));
        table_count(cells[2], (uint64_t)number(m, "parameters"));
        static const char *const norms[] = {"frobenius", "spectral", "stable_rank"};
        for (size_t n = 0; deep && n < 3; n++) {
            const json_t *value = json_object_get(m, norms[n]);
            snprintf(cells[3 + n], TABLE_CELL_BYTES, json_is_real(value) ? "%.4g" : "-",
                     json_real_value(value));
        }
        table_row(t, (const char *[]){text(m, "name"), cells[0], cells[1], kinds, cells[2],
                                      cells[3], cells[4], cells[5]});
    }
    puts("");
    table_print(t, stdout);
    table_free(t);
}

static void print_map(const json_t *info)
{
    static const char *const blocks[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    struct inspect_map map;
    if (inspect_map_make(&map, info, NULL) != 0 || !map.n_layers) {
        inspect_map_release(&map);
        return;
    }
    printf("\n%s by layer (%ld to %ld) and module, at most %.4g\n", map.what, map.first_layer,
           map.first_layer + (long)map.n_layers - 1, map.max);
    for (size_t t = 0; t < map.n_targets; t++) {
        printf("%-13s ", map.targets[t]);
        for (size_t l = 0; l < map.n_layers; l++) {
            double v = map.values[t * map.n_layers + l];
            int level = map.max > 0 ? (int)(v / map.max * 7.999) : 0;
            fputs(v < 0 ? "·" : blocks[level], stdout);
        }
        putchar('\n');
    }
    inspect_map_release(&map);
}

static void print_adapter(const json_t *info)
{
    print_names(info);
    if (*text(info, "path"))
        line("path", text(info, "path"));
    print_base(info);
    print_size(info);
    print_dtypes(info);
    print_bytes(info);
    if (*text(info, "source"))
        line("from", text(info, "source"));
    print_signatures(info);
    print_warnings(info);
    const json_t *deep = json_object_get(info, "deep");
    if (deep)
        printf("‖ΔW‖          %.6g, largest spectral norm %.6g in %s\n",
               json_real_value(json_object_get(deep, "frobenius")),
               json_real_value(json_object_get(deep, "max_spectral")), text(deep, "max_module"));
    print_capability(info);
    print_map(info);
    print_targets(info);
    print_files(info);
}

static void print_base_page(const json_t *info)
{
    char cell[TABLE_CELL_BYTES];
    const char *key;
    json_t *value;
    print_names(info);
    line("architecture", text(info, "architecture"));
    line("path", text(info, "path"));
    if (*text(info, "verified"))
        printf("%-13s %s%s\n", "base", text(info, "verified"),
               json_is_true(json_object_get(info, "by_reference")) ? ", by reference" : ", a copy");
    line("parameters", table_count(cell, (uint64_t)number(info, "parameters")));
    line("dtype", text(info, "dtype"));
    print_bytes(info);
    json_object_foreach(json_object_get(info, "config"), key, value)
    {
        if (json_is_integer(value))
            printf("  %-17s %lld\n", key, (long long)json_integer_value(value));
        else
            printf("  %-17s %s\n", key, json_is_true(value) ? "yes" : "no");
    }
    if (json_object_get(info, "adapters"))
        printf("%-13s %lld\n", "adapters", (long long)number(info, "adapters"));
    print_files(info);
}

void inspect_print(const json_t *info)
{
    if (strcmp(text(info, "kind"), "base") == 0)
        print_base_page(info);
    else
        print_adapter(info);
}
