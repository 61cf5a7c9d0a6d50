#include "libcore/adapter/adapter.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"

int adapter_open(struct adapter **out, struct err *err)
{
    *out = sys_calloc(1, sizeof **out);
    if (!*out)
        return err_set(err, ERR_NO_MEMORY, "adapter: no memory");
    arena_init(&(*out)->arena);
    (*out)->warnings = json_array();
    if ((*out)->warnings)
        return 0;
    adapter_free(*out);
    *out = NULL;
    return err_set(err, ERR_NO_MEMORY, "adapter: no memory");
}

void adapter_free(struct adapter *a)
{
    if (!a)
        return;
    json_decref(a->config);
    json_decref(a->warnings);
    if (a->backing_free)
        a->backing_free(a->backing);
    arena_release(&a->arena);
    sys_free(a);
}

static int compare_modules(const void *a, const void *b)
{
    const struct adapter_module *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : strcmp(x->parameter, y->parameter);
}

const struct adapter_module *adapter_find(const struct adapter *a, const char *name,
                                          const char *parameter)
{
    struct adapter_module key = {.name = name, .parameter = parameter ? parameter : "weight"};
    if (!a->n_modules)
        return NULL;
    return bsearch(&key, a->modules, a->n_modules, sizeof *a->modules, compare_modules);
}

static int compare_tensors(const void *a, const void *b)
{
    return strcmp(((const struct adapter_tensor *)a)->name,
                  ((const struct adapter_tensor *)b)->name);
}

unsigned adapter_module_kinds(const struct adapter_module *m)
{
    unsigned kinds = 0;
    if (m->rank) {
        const char *dot = strrchr(m->name, '.');
        if (m->n_experts)
            kinds |= ADAPTER_EXPERTS;
        else if (m->embedding)
            kinds |= ADAPTER_EMBED;
        else if (strcmp(dot ? dot + 1 : m->name, "lm_head") == 0)
            kinds |= ADAPTER_HEAD;
        else
            kinds |= ADAPTER_LORA;
    }
    if (tensor_present(&m->magnitude))
        kinds |= ADAPTER_DORA;
    if (tensor_present(&m->lora_bias))
        kinds |= ADAPTER_LORA_BIAS;
    if (tensor_present(&m->bias))
        kinds |= ADAPTER_BIAS;
    if (m->n_rows)
        kinds |= ADAPTER_TOKENS;
    if (tensor_present(&m->full))
        kinds |= ADAPTER_FULL;
    return kinds;
}

void adapter_finish(struct adapter *a)
{
    if (a->n_modules)
        qsort(a->modules, a->n_modules, sizeof *a->modules, compare_modules);
    if (a->n_tensors)
        qsort(a->tensors, a->n_tensors, sizeof *a->tensors, compare_tensors);
    a->kinds = 0;
    a->max_rank = a->min_rank = 0;
    a->n_parameters = 0;
    for (size_t i = 0; i < a->n_modules; i++) {
        const struct adapter_module *m = &a->modules[i];
        a->kinds |= adapter_module_kinds(m);
        if (!m->rank)
            continue;
        if (m->rank > a->max_rank)
            a->max_rank = m->rank;
        if (!a->min_rank || m->rank < a->min_rank)
            a->min_rank = m->rank;
    }
    for (size_t i = 0; i < a->n_tensors; i++)
        a->n_parameters += tensor_n_values(&a->tensors[i].value);
}

int adapter_warn(struct adapter *a, struct err *err, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    json_t *text = json_vsprintf(fmt, args);
    va_end(args);
    if (!text || json_array_append_new(a->warnings, text) != 0)
        return err_set(err, ERR_NO_MEMORY, "adapter: no memory");
    return 0;
}

const char *adapter_kinds_text(unsigned kinds, char *buf, size_t n)
{
    static const struct {
        unsigned bit;
        const char *name;
    } names[] = {
        {ADAPTER_DORA, "DoRA"},         {ADAPTER_LORA, "LoRA"},
        {ADAPTER_EXPERTS, "experts"},   {ADAPTER_EMBED, "embeddings"},
        {ADAPTER_HEAD, "lm_head"},      {ADAPTER_LORA_BIAS, "lora_bias"},
        {ADAPTER_BIAS, "biases"},       {ADAPTER_TOKENS, "trainable tokens"},
        {ADAPTER_FULL, "full weights"},
    };
    size_t used = 0;
    buf[0] = '\0';
    if (kinds & ADAPTER_DORA) // a DoRA module is a LoRA module with a magnitude: one word for both
        kinds &= ~(unsigned)ADAPTER_LORA;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (!(kinds & names[i].bit))
            continue;
        int wrote = snprintf(buf + used, n - used, "%s%s", used ? " + " : "", names[i].name);
        if (wrote < 0 || (size_t)wrote >= n - used)
            break;
        used += (size_t)wrote;
    }
    if (!used)
        snprintf(buf, n, "nothing");
    return buf;
}
