/*
 * generation_config: the default sampling of a base, from its generation_config.json.
 * Plain data. Each field says whether the file gave it, so that a request's and a flag's own
 * defaults can come behind it.
 */
#ifndef LIBCORE_FORMAT_GENERATION_CONFIG_H
#define LIBCORE_FORMAT_GENERATION_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "libcore/base/err.h"

enum { GENERATION_MAX_EOS = 64 };

struct generation_config {
    bool present; // there is such a file
    int32_t eos_ids[GENERATION_MAX_EOS];
    uint32_t n_eos;                // 0: the file gives none
    int32_t bos_id, pad_id;        // -1: not given
    bool has_do_sample, do_sample; // do_sample false: greedy
    bool has_temperature, has_top_p, has_top_k, has_min_p, has_repetition_penalty;
    double temperature, top_p, min_p, repetition_penalty;
    int32_t top_k; // 0: off
    bool has_max_new_tokens, has_max_length;
    uint32_t max_new_tokens, max_length;
};

/* Reads folder/generation_config.json; a missing file gives present = false and 0.
 * ERR_CORRUPT: no JSON object, or a known field of a wrong type ("file:field"). */
int generation_config_read(struct generation_config *out, const char *folder, struct err *err);

#endif
