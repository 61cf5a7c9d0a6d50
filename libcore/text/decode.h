/*
 * decode: the decoders of tokenizer.json as a pipe that takes tokens one by one and gives text as
 * soon as it can no longer change. Whole texts go through the same pipe, so that both ways always
 * agree. A struct decoder is immutable and may be shared; a struct decode_run belongs to one
 * thread.
 */
#ifndef LIBCORE_TEXT_DECODE_H
#define LIBCORE_TEXT_DECODE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"
#include "libcore/text/normalize.h"

enum decode_kind {
    DECODE_BYTE_LEVEL,
    DECODE_BYTE_FALLBACK,
    DECODE_FUSE,
    DECODE_REPLACE,
    DECODE_STRIP,
    DECODE_METASPACE,
    DECODE_BPE
};

struct decode_step {
    enum decode_kind kind;
    struct text_pattern pattern; // REPLACE
    char *content;               // REPLACE; BPE: the suffix
    size_t n_content;
    uint32_t character; // STRIP, METASPACE
    size_t start, stop; // STRIP: how many at each end
    bool drop_first;    // METASPACE: the marks of the first token vanish
    bool fused;         // what comes in is one token in fragments
};
struct decoder {
    struct decode_step *steps; // none: the tokens are joined by spaces
    size_t n, cap;
};

/* Adds the steps of a "decoder" value (null: none). ERR_REFUSED names what is not known. */
int decoder_add(struct decoder *d, const json_t *value, struct err *err);
void decoder_release(struct decoder *d);

struct decode_run;
/* Borrows the decoder. */
int decode_run_open(struct decode_run **out, const struct decoder *d, struct err *err);
void decode_run_free(struct decode_run *r);
/* One token, well-formed UTF-8; appends to *out what is certain now. */
int decode_run_push(struct decode_run *r, const char *token, size_t n, struct strbuf *out,
                    struct err *err);
int decode_run_finish(struct decode_run *r, struct strbuf *out, struct err *err);

#endif
