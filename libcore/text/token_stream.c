/* Ids to text: the pipe of decode.h behind the tokens' spellings. */
#include "libcore/base/sys.h"
#include "libcore/text/tokenizer_impl.h"

struct token_stream {
    const struct tokenizer *t;
    struct decode_run *run;
    unsigned flags;
};

int token_stream_open(struct token_stream **out, const struct tokenizer *t, unsigned flags,
                      struct err *err)
{
    *out = NULL;
    struct token_stream *s = sys_calloc(1, sizeof *s);
    if (!s)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    s->t = t;
    s->flags = flags;
    int rc = decode_run_open(&s->run, &t->decoder, err);
    if (rc) {
        token_stream_free(s);
        return rc;
    }
    *out = s;
    return 0;
}

void token_stream_free(struct token_stream *s)
{
    if (!s)
        return;
    decode_run_free(s->run);
    sys_free(s);
}

int token_stream_feed(struct token_stream *s, uint32_t id, struct strbuf *out, struct err *err)
{
    size_t n;
    const char *text = tokenizer_spelling(s->t, id, &n);
    if (!text || ((s->flags & TOKENIZER_SKIP_SPECIAL) && tokenizer_skips(s->t, id)))
        return 0;
    return decode_run_push(s->run, text, n, out, err);
}

int token_stream_finish(struct token_stream *s, struct strbuf *out, struct err *err)
{
    return decode_run_finish(s->run, out, err);
}

int tokenizer_decode(const struct tokenizer *t, const uint32_t *ids, size_t n, unsigned flags,
                     struct strbuf *out, struct err *err)
{
    struct token_stream *s;
    int rc = token_stream_open(&s, t, flags, err);
    for (size_t i = 0; i < n && !rc; i++)
        rc = token_stream_feed(s, ids[i], out, err);
    if (!rc)
        rc = token_stream_finish(s, out, err);
    token_stream_free(s);
    return rc;
}
