#include "libcore/adapter/capability.h"

#include <stdarg.h>
#include <stdio.h>

const char *capability_use_name(enum capability_use use)
{
    static const char *const names[CAPABILITY_COUNT] = {"serve", "scale", "merge", "combine"};
    return names[use];
}

static void say(struct capability *c, bool ok, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static void say(struct capability *c, bool ok, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(c->why, sizeof c->why, fmt, args);
    va_end(args);
    c->ok = ok;
}

static void serve(const struct adapter *a, unsigned served, struct capability *c)
{
    char missing[96];
    if (a->kinds & ~served)
        say(c, false, "%s: not computed by this back end",
            adapter_kinds_text(a->kinds & ~served, missing, sizeof missing));
}

/* The kinds without what is probably the base's own weight, saved along: whether it is, the binding
 * to a base shows. */
static unsigned own_kinds(const struct adapter *a)
{
    for (size_t i = 0; i < a->n_modules; i++) {
        if (tensor_present(&a->modules[i].full) && !a->modules[i].full_is_base)
            return a->kinds;
    }
    return a->kinds & ~(unsigned)ADAPTER_FULL;
}

/* DoRA's gain depends on the scale; what replaces weights has none. */
static void scale(const struct adapter *a, unsigned served, struct capability *c)
{
    unsigned fixed = own_kinds(a) & ~(unsigned)ADAPTER_ADDITIVE;
    char kinds[96];
    serve(a, served, c);
    if (!c->ok || !fixed)
        return;
    say(c, false, "%s: only alone and at scale 1", adapter_kinds_text(fixed, kinds, sizeof kinds));
}

static void merge(const struct adapter *a, struct capability *c)
{
    bool lora_bias = a->kinds & ADAPTER_LORA_BIAS;
    if (lora_bias) // PEFT refuses too: there is nothing to add s b_B to
        say(c, true, "lora_bias: the base must have biases on its modules");
    else if (a->kinds & (ADAPTER_EMBED | ADAPTER_HEAD | ADAPTER_TOKENS))
        say(c, true, "in a base with tied embeddings, the merged model is no longer tied");
}

/* Sums of B A, and of B's biases; libcore/merge/combine_rest.c has the rules for the rest. */
static void combine(const struct adapter *a, struct capability *c)
{
    unsigned other = own_kinds(a) & ~(unsigned)ADAPTER_ADDITIVE;
    char kinds[96];
    if (other & ADAPTER_DORA)
        say(c, false, "%s: no sum of factors; merge it into the base, then extract",
            adapter_kinds_text(other, kinds, sizeof kinds));
    else if (other)
        say(c, true,
            "%s: taken over at weight 1 where no other adapter changes the module, by methods that "
            "only add",
            adapter_kinds_text(other, kinds, sizeof kinds));
}

void capability_of(const struct adapter *a, enum capability_use use, unsigned served_kinds,
                   struct capability *out)
{
    *out = (struct capability){.ok = true};
    if (use == CAPABILITY_SERVE)
        serve(a, served_kinds, out);
    else if (use == CAPABILITY_SCALE)
        scale(a, served_kinds, out);
    else if (use == CAPABILITY_MERGE)
        merge(a, out);
    else
        combine(a, out);
}
