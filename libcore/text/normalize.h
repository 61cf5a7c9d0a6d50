/*
 * normalize: the normalizers of tokenizer.json, run one after the other over a piece of text.
 * NFC and its kin come from utf8proc, held to the characters that the library's own tables (Unicode
 * 9) know. A struct normalizer is immutable and may be shared; a scratch belongs to one thread.
 */
#ifndef LIBCORE_TEXT_NORMALIZE_H
#define LIBCORE_TEXT_NORMALIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"
#include "libcore/text/regex.h"

enum normalize_kind {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE,
    NORMALIZE_STRIP,
    NORMALIZE_STRIP_ACCENTS,
    NORMALIZE_NMT,
    NORMALIZE_REPLACE,
    NORMALIZE_PREPEND,
    NORMALIZE_BYTE_LEVEL
};

/* What Replace and Split look for: a text or a regular expression. */
struct text_pattern {
    struct regex *regex; // or NULL: the text
    char *text;
    size_t n;
};

struct normalize_step {
    enum normalize_kind kind;
    struct text_pattern pattern; // REPLACE
    char *content;               // REPLACE, PREPEND
    size_t n_content;
    bool left, right; // STRIP
};
struct normalizer {
    struct normalize_step *steps;
    size_t n, cap;
};

struct normalize_scratch {
    struct strbuf buffer[2];
    struct span_list spans;
    int32_t *code_points; // 2 * cap: the second half is for sorting marks
    size_t cap;
    struct regex_scratch *regex; // borrowed
};

/* Adds the steps of a "normalizer" value (null: none). ERR_REFUSED names what is not known. */
int normalizer_add(struct normalizer *z, const json_t *value, struct err *err);
void normalizer_release(struct normalizer *z);
void normalize_scratch_release(struct normalize_scratch *s);

/*
 * The normalized form of text[0, n) (well-formed UTF-8): *out is borrowed from the scratch, or is
 * the text itself. *head: the piece begins where the whole text begins; cleared when what stood
 * there is removed (the pre-tokenizer Metaspace asks).
 */
int normalizer_run(const struct normalizer *z, struct normalize_scratch *s, const char *text,
                   size_t n, bool *head, const char **out, size_t *n_out, struct err *err);

/* {"String": …} or {"Regex": …}; `what` names the owner in messages. */
int text_pattern_open(struct text_pattern *p, const json_t *value, const char *what,
                      struct err *err);
void text_pattern_release(struct text_pattern *p);
/* As regex_find_all. */
int text_pattern_find(const struct text_pattern *p, struct regex_scratch *s, const char *text,
                      size_t n, struct span_list *out, struct err *err);

#endif
