/*
 * The table of methods. Sources: PEFT 0.21 tuners/lora/model.py and utils/merge_utils.py; mergekit
 * 0.1.5 merge_methods/ and sparsify.py; TIES arXiv 2306.01708, DARE 2311.03099, DELLA 2406.11617,
 * Breadcrumbs 2312.06795.
 */
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/merge/combine.h"

#define FACTORWISE                                                                                 \
    "PEFT works on A and on B apart, so the result has cross terms B_i A_j: it is not the method " \
    "on the deltas"
#define RSLORA                                                                                     \
    "PEFT 0.21 lets rsLoRA adapters pass use_rslora on, which makes the result sqrt(r) "           \
    "times too large; not done here"
#define SEEDED "; its random numbers are torch's, ours are --seed's"
#define DELTAS                                                                                     \
    "mergekit subtracts models in their own type; here the deltas are those of the "               \
    "adapters, unrounded"

static const struct combine_method table[] = {
    {.name = "cat", .path = COMBINE_STACK},
    {.name = "linear", .path = COMBINE_SUM},
    {.name = "task_arithmetic", .path = COMBINE_SUM},
    {.name = "svd", .path = COMBINE_SUM, .own_rank = true},
    {.name = "slerp", .path = COMBINE_SLERP},
    {.name = "magnitude_prune",
     .path = COMBINE_DENSE,
     .own_rank = true,
     .rule = {.prune = BLEND_MAGNITUDE}},
    {.name = "ties",
     .path = COMBINE_DENSE,
     .own_rank = true,
     .rule = {.prune = BLEND_MAGNITUDE, .vote = BLEND_VOTE_WEIGHTED, .divisor = BLEND_BY_COUNT}},
    {.name = "dare_linear",
     .path = COMBINE_DENSE,
     .own_rank = true,
     .rule = {.prune = BLEND_RANDOM, .rescale = BLEND_BY_PROBABILITY}},
    {.name = "dare_ties",
     .path = COMBINE_DENSE,
     .own_rank = true,
     .rule = {.prune = BLEND_RANDOM,
              .rescale = BLEND_BY_PROBABILITY,
              .vote = BLEND_VOTE_WEIGHTED,
              .divisor = BLEND_BY_COUNT}},
    {.name = "della",
     .path = COMBINE_DENSE,
     .own_rank = true,
     .rule = {.prune = BLEND_DELLA,
              .rescale = BLEND_BY_PROBABILITY,
              .vote = BLEND_VOTE_WEIGHTED,
              .divisor = BLEND_BY_COUNT}},
    {.name = "breadcrumbs",
     .path = COMBINE_DENSE,
     .own_rank = true,
     .rule = {.prune = BLEND_OUTLIERS}},

    {.name = "cat", .compat = COMBINE_PEFT, .path = COMBINE_STACK, .differs = RSLORA},
    {.name = "svd",
     .compat = COMBINE_PEFT,
     .path = COMBINE_SUM,
     .own_rank = true,
     .differs = RSLORA},
    {.name = "linear", .compat = COMBINE_PEFT, .path = COMBINE_FACTORS, .differs = FACTORWISE},
    {.name = "ties",
     .compat = COMBINE_PEFT,
     .path = COMBINE_FACTORS,
     .differs = FACTORWISE "; signs are elected before weights",
     .rule = {.prune = BLEND_MAGNITUDE, .vote = BLEND_VOTE_PLAIN, .divisor = BLEND_BY_COUNT}},
    {.name = "magnitude_prune",
     .compat = COMBINE_PEFT,
     .path = COMBINE_FACTORS,
     .differs = FACTORWISE,
     .rule = {.prune = BLEND_MAGNITUDE}},
    {.name = "dare_linear",
     .compat = COMBINE_PEFT,
     .path = COMBINE_FACTORS,
     .differs = FACTORWISE SEEDED,
     .rule = {.prune = BLEND_RANDOM, .rescale = BLEND_BY_PROBABILITY}},
    {.name = "dare_ties",
     .compat = COMBINE_PEFT,
     .path = COMBINE_FACTORS,
     .differs = FACTORWISE SEEDED,
     .rule = {.prune = BLEND_RANDOM,
              .rescale = BLEND_BY_PROBABILITY,
              .vote = BLEND_VOTE_PLAIN,
              .divisor = BLEND_BY_COUNT}},
    {.name = "ties_svd",
     .compat = COMBINE_PEFT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "signs are elected before weights: a negative weight does not change the vote",
     .rule = {.prune = BLEND_MAGNITUDE, .vote = BLEND_VOTE_PLAIN, .divisor = BLEND_BY_COUNT}},
    {.name = "magnitude_prune_svd",
     .compat = COMBINE_PEFT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = RSLORA,
     .rule = {.prune = BLEND_MAGNITUDE}},
    {.name = "dare_linear_svd",
     .compat = COMBINE_PEFT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = RSLORA SEEDED,
     .rule = {.prune = BLEND_RANDOM, .rescale = BLEND_BY_PROBABILITY}},
    {.name = "dare_ties_svd",
     .compat = COMBINE_PEFT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "signs are elected before weights" SEEDED,
     .rule = {.prune = BLEND_RANDOM,
              .rescale = BLEND_BY_PROBABILITY,
              .vote = BLEND_VOTE_PLAIN,
              .divisor = BLEND_BY_COUNT}},

    {.name = "linear",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_SUM,
     .normalize = true,
     .differs = "weights are divided by their sum; " DELTAS},
    {.name = "task_arithmetic", .compat = COMBINE_MERGEKIT, .path = COMBINE_SUM, .differs = DELTAS},
    {.name = "ties",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs =
         "what agrees is divided by its weights, so a weight common to all has no effect; " DELTAS,
     .rule = {.prune = BLEND_MAGNITUDE,
              .vote = BLEND_VOTE_WEIGHTED,
              .divisor = BLEND_BY_WEIGHTS,
              .at_least_one = true}},
    {.name = "dare_linear",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "rescaled to the sum of magnitudes instead of by 1/density; " DELTAS SEEDED,
     .rule = {.prune = BLEND_RANDOM, .rescale = BLEND_BY_L1}},
    {.name = "dare_ties",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "rescaled to the sum of magnitudes, and added up, not averaged; " DELTAS SEEDED,
     .rule = {.prune = BLEND_RANDOM, .rescale = BLEND_BY_L1, .vote = BLEND_VOTE_WEIGHTED}},
    {.name = "della",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "rescaled to the sum of magnitudes, and divided by weights; " DELTAS SEEDED,
     .rule = {.prune = BLEND_DELLA,
              .rescale = BLEND_BY_L1,
              .vote = BLEND_VOTE_WEIGHTED,
              .divisor = BLEND_BY_WEIGHTS}},
    {.name = "della_linear",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "rescaled to the sum of magnitudes; " DELTAS SEEDED,
     .rule = {.prune = BLEND_DELLA, .rescale = BLEND_BY_L1}},
    {.name = "breadcrumbs",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = DELTAS,
     .rule = {.prune = BLEND_OUTLIERS}},
    {.name = "breadcrumbs_ties",
     .compat = COMBINE_MERGEKIT,
     .path = COMBINE_DENSE,
     .own_rank = true,
     .differs = "what agrees is added up, not averaged; " DELTAS,
     .rule = {.prune = BLEND_OUTLIERS, .vote = BLEND_VOTE_WEIGHTED}},
};

const struct combine_method *combine_method_table(size_t *n)
{
    *n = sizeof table / sizeof *table;
    return table;
}

static int unknown(const char *name, enum combine_compat compat, struct err *err)
{
    struct strbuf names;
    strbuf_init(&names);
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].compat == compat)
            strbuf_addf(&names, "%s%s", names.len ? ", " : "", table[i].name);
    }
    const char *why = "";
    if (compat == COMBINE_MERGEKIT && strcmp(name, "slerp") == 0)
        why = " (mergekit turns whole weights, whose angle is so small that it is linear there)";
    int rc =
        err_set(err, ERR_USAGE, "--method %s: there is none of that name%s%s; there are %s", name,
                compat == COMBINE_PEFT       ? " with --compat peft"
                : compat == COMBINE_MERGEKIT ? " with --compat mergekit"
                                             : "",
                why, strbuf_text(&names));
    strbuf_release(&names);
    return rc;
}

int combine_method_find(const struct combine_method **out, const char *name,
                        enum combine_compat compat, struct err *err)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        if (table[i].compat == compat && strcmp(table[i].name, name) == 0) {
            *out = &table[i];
            return 0;
        }
    }
    return unknown(name, compat, err);
}

bool combine_takes_density(const struct combine_method *m)
{
    return m->rule.prune != BLEND_ALL;
}

bool combine_takes_seed(const struct combine_method *m)
{
    return m->rule.prune == BLEND_RANDOM || m->rule.prune == BLEND_DELLA;
}
