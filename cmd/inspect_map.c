#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/inspect_info.h"
#include "libcore/base/sys.h"

/* "model.layers.11.mlp.up_proj": layer 11; -1 when no part of the name is a number. */
static long layer_of(const char *name)
{
    for (const char *p = name; p; p = strchr(p, '.')) {
        p += *p == '.';
        char *end;
        if (isdigit((unsigned char)*p)) {
            long n = strtol(p, &end, 10);
            if (*end == '.' || !*end)
                return n;
        }
    }
    return -1;
}

static const char *target_of(const json_t *module)
{
    const char *name = json_string_value(json_object_get(module, "name"));
    const char *parameter = json_string_value(json_object_get(module, "parameter"));
    const char *dot = strrchr(name, '.');
    return strcmp(parameter, "weight") == 0 ? (dot ? dot + 1 : name) : parameter;
}

static size_t target_index(const struct inspect_map *m, const char *target)
{
    size_t i = 0;
    while (i < m->n_targets && strcmp(m->targets[i], target) != 0)
        i++;
    return i;
}

/* Targets in the order of the first layer that has them, and the range of layers. */
static int find_range(struct inspect_map *m, const json_t *modules, struct err *err)
{
    long first = -1, last = -1;
    size_t i;
    json_t *module;
    m->targets = sys_calloc(json_array_size(modules), sizeof *m->targets);
    if (!m->targets)
        return err_set(err, ERR_NO_MEMORY, "no memory for a map");
    json_array_foreach(modules, i, module)
    {
        long layer = layer_of(json_string_value(json_object_get(module, "name")));
        if (layer < 0)
            continue;
        first = first < 0 || layer < first ? layer : first;
        last = layer > last ? layer : last;
        const char *target = target_of(module);
        if (target_index(m, target) == m->n_targets)
            m->targets[m->n_targets++] = target;
    }
    m->first_layer = first;
    m->n_layers = first < 0 ? 0 : (size_t)(last - first + 1);
    return 0;
}

int inspect_map_make(struct inspect_map *m, const json_t *info, struct err *err)
{
    memset(m, 0, sizeof *m);
    const json_t *modules = json_object_get(info, "modules");
    bool deep = json_object_get(info, "deep") != NULL;
    m->what = deep ? "‖ΔW‖" : "rank";
    int rc = find_range(m, modules, err);
    if (rc || !m->n_layers)
        return rc;
    m->values = sys_calloc(m->n_layers * m->n_targets, sizeof *m->values);
    if (!m->values)
        return err_set(err, ERR_NO_MEMORY, "no memory for a map");
    for (size_t i = 0; i < m->n_layers * m->n_targets; i++)
        m->values[i] = -1;
    size_t i;
    json_t *module;
    json_array_foreach(modules, i, module)
    {
        long layer = layer_of(json_string_value(json_object_get(module, "name")));
        if (layer < 0)
            continue;
        size_t at =
            target_index(m, target_of(module)) * m->n_layers + (size_t)(layer - m->first_layer);
        double value = json_number_value(json_object_get(module, deep ? "frobenius" : "rank"));
        m->values[at] = value > m->values[at] ? value : m->values[at];
        m->max = value > m->max ? value : m->max;
    }
    return 0;
}

void inspect_map_release(struct inspect_map *m)
{
    sys_free(m->targets);
    sys_free(m->values);
    memset(m, 0, sizeof *m);
}
