/*
 * tokenizer: text to token ids and back, from a folder's tokenizer.json (BPE models) and the few
 * facts of its tokenizer_config.json.
 *
 * It gives the ids and texts of the `tokenizers` library (0.23) or refuses the file at open, naming
 * the construct that it does not know. Unicode properties are those of unicode_table.c (16.0).
 * A handle is immutable after open: encode, decode and every getter may be called from any number
 * of threads at once. A token_stream belongs to one thread at a time.
 */
#ifndef LIBCORE_TEXT_TOKENIZER_H
#define LIBCORE_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"

struct tokenizer;
struct token_stream;

enum tokenizer_flags {
    TOKENIZER_ADD_SPECIAL = 1,     // encode: what the post-processor adds (bos, …)
    TOKENIZER_SPECIAL_AS_TEXT = 2, // encode: special tokens inside the text are ordinary text
    TOKENIZER_SKIP_SPECIAL = 4     // decode, stream: special tokens give no text
};

/* Ids that grow; `data` is freed with token_ids_release. */
struct token_ids {
    uint32_t *data;
    size_t n, cap;
};
void token_ids_init(struct token_ids *ids);
void token_ids_release(struct token_ids *ids);
int token_ids_add(struct token_ids *ids, uint32_t id, struct err *err); // 0 or ERR_NO_MEMORY

/*
 * Opens `folder`/tokenizer.json, and tokenizer_config.json when it is there. With `cache_folder`
 * (NULL: none; created when missing) the compiled vocabulary is kept there and mapped next time:
 * 33 MB of JSON then cost milliseconds. The cache is checked before use, and a cache that cannot be
 * read or written is never an error.
 * On success *out is the caller's, for tokenizer_free. Returns 0, ERR_NOT_FOUND (no
 * tokenizer.json), ERR_CORRUPT (broken JSON, a merge of unknown tokens, …), ERR_REFUSED (a
 * construct that is not known here, by name), ERR_LIMIT, ERR_IO, ERR_NO_MEMORY.
 */
int tokenizer_open(struct tokenizer **out, const char *folder, const char *cache_folder,
                   struct err *err);
void tokenizer_free(struct tokenizer *t);

/*
 * Appends the ids of text[0, n) to *out. Bytes that are not UTF-8 become U+FFFD, one for each
 * maximal ill-formed part, as a lossy conversion in front of the library would do. NULs are text.
 * Returns 0, ERR_LIMIT (more than LIMIT_TEXT_BYTES, or a pattern that runs away), ERR_NO_MEMORY, or
 * ERR_REFUSED (text needs an unknown token that the vocabulary lacks).
 */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t n, unsigned flags,
                     struct token_ids *out, struct err *err);

/* Appends the text of the ids. An id without a token gives nothing (models have spare rows). */
int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, unsigned flags,
                     struct strbuf *out, struct err *err);

/* ---- tokens ---- */
/* The token as the vocabulary spells it ("Ġthe", "▁the", "<0x0A>"), borrowed, *n bytes, not ended
 * by a NUL; NULL for an id that has none. */
const char *tokenizer_token_text(const struct tokenizer *t, uint32_t id, size_t *n);
int64_t tokenizer_id_of(const struct tokenizer *t, const char *text, size_t n); // or -1
uint32_t tokenizer_vocab_size(const struct tokenizer *t); // the highest id + 1
bool tokenizer_is_special(const struct tokenizer *t, uint32_t id);

enum tokenizer_role {
    TOKENIZER_BOS,
    TOKENIZER_EOS,
    TOKENIZER_PAD,
    TOKENIZER_UNK,
    TOKENIZER_N_ROLES
};
/* The id of that role's token, or -1; and its text as tokenizer_config.json names it (borrowed,
 * ends in a NUL), or NULL. */
int64_t tokenizer_role_id(const struct tokenizer *t, enum tokenizer_role role);
const char *tokenizer_role_text(const struct tokenizer *t, enum tokenizer_role role);

/* ---- streams: ids one by one, text as soon as it can no longer change ---- */
/*
 * What feed and finish append, put together, is exactly what tokenizer_decode gives for all the
 * ids. Text is held back while it may still change: an unfinished UTF-8 sequence, and with byte
 * fallback a whole run of byte tokens. For text that continues a prompt, feed the prompt's ids
 * first and drop what comes out. The tokenizer is borrowed. flags: TOKENIZER_SKIP_SPECIAL or 0.
 */
int token_stream_open(struct token_stream **out, const struct tokenizer *t, unsigned flags,
                      struct err *err);
void token_stream_free(struct token_stream *s);
int token_stream_feed(struct token_stream *s, uint32_t id, struct strbuf *out, struct err *err);
int token_stream_finish(struct token_stream *s, struct strbuf *out,
                        struct err *err); // once, at the end

#endif
