/*
 * tokenizer_impl: the handle of tokenizer.h. For libcore/text only.
 */
#ifndef LIBCORE_TEXT_TOKENIZER_IMPL_H
#define LIBCORE_TEXT_TOKENIZER_IMPL_H

#include <pthread.h>

#include "libcore/text/added.h"
#include "libcore/text/bpe.h"
#include "libcore/text/decode.h"
#include "libcore/text/normalize.h"
#include "libcore/text/pre_tokenize.h"
#include "libcore/text/tokenizer.h"
#include "libcore/text/vocab.h"

/* Everything that one running encode needs; kept for the next one, with its cache of words. */
struct encode_scratch {
    struct regex_scratch *regex;
    struct bpe_scratch *bpe;
    struct normalize_scratch normalize;
    struct pre_scratch pre;
    struct strbuf text, normalized;
    struct piece_list raw, pieces;
    struct encode_scratch *next;
};

struct tokenizer {
    struct vocab *v;
    struct bpe bpe;
    struct added added;
    struct normalizer normalizer;
    struct pre_tokenizer pre;
    struct decoder decoder;
    struct token_ids before, after; // what the post-processor puts around the text
    char *role_text[TOKENIZER_N_ROLES];
    int64_t role_id[TOKENIZER_N_ROLES];
    uint32_t n_ids;
    pthread_mutex_t lock; // of the list below
    struct encode_scratch *idle;
};

int encode_scratch_open(struct encode_scratch **out, struct err *err);
void encode_scratch_free(struct encode_scratch *s);

/* The text that decoding gives for an id: an added token as it is looked for, else the
 * vocabulary's. */
const char *tokenizer_spelling(const struct tokenizer *t, uint32_t id, size_t *n);
/* Whether TOKENIZER_SKIP_SPECIAL drops a token of that spelling. */
bool tokenizer_skips(const struct tokenizer *t, uint32_t id);

/* tokenizer_config.json: added tokens that tokenizer.json lacks, the roles, and what it says of bos
 * and eos (post_config.c). A missing file is fine. To be called before added_prepare. */
struct tokenizer_config {
    int add_bos, add_eos; // -1: not said
};
int tokenizer_config_read(struct tokenizer *t, const char *path, struct tokenizer_config *config,
                          struct err *err);
/* The "post_processor" value, then what the configuration changes. */
int post_processor_read(struct tokenizer *t, const json_t *value, struct err *err);
int post_processor_configure(struct tokenizer *t, const struct tokenizer_config *config,
                             struct err *err);

#endif
