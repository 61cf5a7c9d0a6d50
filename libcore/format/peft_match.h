/*
 * peft_match: which modules a PEFT configuration means, with the semantics of PEFT 0.21.
 *
 * rank_pattern and alpha_pattern: the first key, in the file's order, for which Python's
 * re.match(rf"(.*\.)?({key})$", name) holds. target_modules and exclude_modules: a string is
 * matched in full, a list entry exactly or as a suffix after a dot; layers_to_transform and
 * layers_pattern narrow a list; modules_to_save always excludes. Patterns are somebody else's
 * input: their length and the cost of a match are bounded, and what Python's `re` and PCRE2 read
 * differently is refused. Thread rule: a matcher belongs to one thread.
 */
#ifndef LIBCORE_FORMAT_PEFT_MATCH_H
#define LIBCORE_FORMAT_PEFT_MATCH_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"

struct peft_matcher;

/* `config` is borrowed and must outlive the matcher; `where` (the file) is copied. ERR_REFUSED by
 * field for patterns that cannot be had here, ERR_NO_MEMORY. */
int peft_matcher_open(struct peft_matcher **out, const json_t *config, const char *where,
                      struct err *err);
void peft_matcher_free(struct peft_matcher *m);

/* Values for the module `key` ("model.layers.0.self_attn.q_proj"; target_parameters: with the
 * parameter's name behind a dot). *other: a second key that matches as well, or NULL. */
int peft_matcher_rank(struct peft_matcher *m, const char *key, int64_t *rank, const char **other,
                      struct err *err);
int peft_matcher_alpha(struct peft_matcher *m, const char *key, double *alpha, const char **other,
                       struct err *err);

/* Whether target_modules means the module. is_linear: what "all-linear" takes (no embedding, no
 * output embedding). *yes is false when target_modules is null. */
int peft_matcher_targets(struct peft_matcher *m, const char *module, bool is_linear, bool *yes,
                         struct err *err);
/* Whether modules_to_save makes PEFT keep a whole copy of the module, or of one around it: there an
 * entry is a mere ending ("norm" means "input_layernorm" too), unlike in the rule that keeps LoRA
 * away from such modules, which peft_matcher_saves() is. */
bool peft_matcher_wraps(const struct peft_matcher *m, const char *module);
bool peft_matcher_saves(struct peft_matcher *m, const char *module);
/* Whether target_parameters names the parameter ("model.layers.0.mlp.experts.gate_up_proj"). */
bool peft_matcher_targets_parameter(const struct peft_matcher *m, const char *key);

/* Whether a list entry means a name: equal, or a suffix after a dot. */
bool peft_entry_matches(const char *entry, const char *name);

#endif
