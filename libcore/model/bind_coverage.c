/*
 * From the configuration to the base: what it names must be there. A file that lacks the tensors of
 * a module would be loaded by PEFT with a warning and give other numbers than were trained; tensors
 * of a module that the configuration does not mean would be passed over in silence.
 */
#include <stdio.h>
#include <string.h>

#include "libcore/format/peft_match.h"
#include "libcore/model/bind_impl.h"

enum { NAME_BYTES = 512 };

static bool is_matrix(const struct model_module *t)
{
    return t->place.kind == WEIGHT_MATRIX;
}

/* What "all-linear" takes: no embedding, no output embedding, and no router, which is no Linear in
 * transformers 5. */
static bool is_linear(const struct model_module *t)
{
    return is_matrix(t) && t->place.site != SITE_EMBED && t->place.site != SITE_HEAD &&
           t->place.site != SITE_ROUTER;
}

static const struct adapter_module *module_of(struct binder *k, const struct model_module *t)
{
    struct bound_part *part = bind_find(k->b, t);
    return part ? part->module : NULL;
}

static int check_target(struct binder *k, struct peft_matcher *matcher,
                        const struct model_module *t)
{
    bool targeted = false;
    int rc = peft_matcher_targets(matcher, t->name, is_linear(t), &targeted, k->err);
    if (rc || !targeted)
        return rc;
    const struct adapter_module *m = module_of(k, t);
    if (m && m->rank)
        return 0;
    if (t->tied && k->a->ensure_weight_tying)
        return 0; // follows the embedding
    return bind_refuse(k, t->name,
                       "target_modules means this module, but the adapter has no "
                       "lora_A and lora_B for it");
}

static int check_parameter(struct binder *k, struct peft_matcher *matcher,
                           const struct model_module *t)
{
    char key[NAME_BYTES];
    snprintf(key, sizeof key, "%s.%s", t->name, t->parameter);
    if (!peft_matcher_targets_parameter(matcher, key))
        return 0;
    const struct adapter_module *m = module_of(k, t);
    if (m && m->rank)
        return 0;
    return bind_refuse(
        k, t->name, "target_parameters means %s, but the adapter has no lora_A and lora_B for it",
        t->parameter);
}

static int check_saved(struct binder *k, struct peft_matcher *matcher, const struct model_module *t)
{
    if (!peft_matcher_wraps(matcher, t->name))
        return 0;
    const struct adapter_module *m = module_of(k, t);
    if (m && tensor_present(&m->full))
        return 0;
    if (t->tied && k->a->ensure_weight_tying)
        return 0;
    return bind_refuse(k, t->name,
                       "modules_to_save means this module, but the adapter has no "
                       "weight for it");
}

/* Base → adapter: everything that the configuration means has its tensors. */
static int check_forward(struct binder *k, struct peft_matcher *matcher)
{
    int rc = 0;
    for (size_t i = 0; !rc && i < k->m->n; i++) {
        const struct model_module *t = &k->m->items[i];
        bool weight = strcmp(t->parameter, "weight") == 0;
        if (is_matrix(t) && weight)
            rc = check_target(k, matcher, t);
        if (!rc && is_matrix(t))
            rc = check_parameter(k, matcher, t);
        if (!rc)
            rc = check_saved(k, matcher, t);
    }
    return rc;
}

/* Adapter → configuration: A and B of a module that nothing in it means. */
static int check_backward(struct binder *k, struct peft_matcher *matcher)
{
    const json_t *targets = json_object_get(k->a->config, "target_modules");
    bool by_regex = json_is_string(targets);
    if (!targets || json_is_null(targets))
        return 0; // PEFT's table by architecture; the file's names are trusted
    for (size_t i = 0; i < k->b->n_parts; i++) {
        const struct bound_part *part = &k->b->parts[i];
        char key[NAME_BYTES];
        bool targeted = false;
        if (!part->module->rank || part->target->n_experts)
            continue; // experts were told apart by target_parameters, or are of transformers 4
        snprintf(key, sizeof key, "%s.%s", part->target->name, part->target->parameter);
        if (peft_matcher_targets_parameter(matcher, key))
            continue;
        int rc = peft_matcher_targets(matcher, part->target->name, is_linear(part->target),
                                      &targeted, k->err);
        if (!rc && !targeted) // entries may be in full, with the name that the trainer's model had
            rc = peft_matcher_targets(matcher, part->module->name, is_linear(part->target),
                                      &targeted, k->err);
        if (rc)
            return rc;
        if (targeted || part->target->place.site == SITE_ROUTER ||
            (part->target->tied && k->a->ensure_weight_tying))
            continue;
        if (!by_regex || strcmp(part->module->name, part->target->name) == 0)
            return bind_refuse(k, part->module->name,
                               "has lora_A and lora_B, but the configuration does not mean it "
                               "(target_modules, exclude_modules, layers_to_transform); PEFT would "
                               "pass over them");
    }
    return 0;
}

/* The projections of single experts in transformers 4, which no module of transformers 5 is. */
static bool is_expert_alias(const struct binder *k, const char *entry)
{
    static const char *const names[] = {"w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"};
    if (!k->config->n_experts)
        return false;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (peft_entry_matches(names[i], entry))
            return true;
    }
    return false;
}

/* An entry that means no module of the base only warns: PEFT accepts it. */
static int warn_idle_entries(struct binder *k)
{
    const json_t *targets = json_object_get(k->a->config, "target_modules");
    for (size_t e = 0; json_is_array(targets) && e < json_array_size(targets); e++) {
        const char *entry = json_string_value(json_array_get(targets, e));
        bool found = is_expert_alias(k, entry);
        for (size_t i = 0; !found && i < k->m->n; i++) {
            const struct model_module *t = &k->m->items[i];
            found = is_matrix(t) && peft_entry_matches(entry, t->name);
        }
        int rc =
            found ? 0 : bind_warn(k, "target_modules: \"%s\" means no module of this base", entry);
        if (rc)
            return rc;
    }
    return 0;
}

int bind_coverage(struct binder *k)
{
    struct peft_matcher *matcher;
    if (!k->a->config || strcmp(k->a->format, "peft") != 0)
        return 0;
    int rc = peft_matcher_open(&matcher, k->a->config, "adapter_config.json", k->err);
    if (rc)
        return rc;
    rc = check_forward(k, matcher);
    if (!rc)
        rc = check_backward(k, matcher);
    if (!rc)
        rc = warn_idle_entries(k);
    peft_matcher_free(matcher);
    return rc;
}
