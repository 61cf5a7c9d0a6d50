#include "libcore/text/decode.h"

#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/bpe.h"
#include "libcore/text/unicode.h"

/* What a step remembers between tokens. */
struct step_state {
    struct strbuf held; // bytes of a run, an unfinished character, a token, or all of a fused one
    size_t n_tokens;    // taken so far
    size_t n_cut;       // STRIP on fragments: characters cut at the start
    size_t n_held;      // STRIP on fragments: characters at the end that may have to go
    bool started;       // STRIP on fragments: the start is over
};

struct decode_run {
    const struct decoder *d;
    struct strbuf *out;     // of the call that runs
    size_t n_tokens;        // joined so far, where there are no steps
    struct span_list spans; // REPLACE
    struct regex_scratch *regex;
    struct strbuf work;
    struct err *err;
    struct step_state state[];
};

static int push(struct decode_run *r, size_t step, const char *s, size_t n, bool begins);

static int no_memory(struct decode_run *r)
{
    return err_set(r->err, ERR_NO_MEMORY, "tokenizer: out of memory");
}

/* ---- one whole token each ---- */

static int push_replaced(struct decode_run *r, size_t step, const char *s, size_t n)
{
    const struct decode_step *d = &r->d->steps[step];
    struct strbuf out;
    size_t done = 0;
    r->spans.n = 0;
    int rc = text_pattern_find(&d->pattern, r->regex, s, n, &r->spans, r->err);
    if (rc)
        return rc;
    if (r->spans.n == 0)
        return push(r, step + 1, s, n, true);
    strbuf_init(&out);
    for (size_t i = 0; i < r->spans.n; i++) {
        strbuf_add(&out, s + done, r->spans.items[i].start - done);
        strbuf_add(&out, d->content, d->n_content);
        done = r->spans.items[i].end;
    }
    strbuf_add(&out, s + done, n - done);
    rc = out.failed ? no_memory(r) : push(r, step + 1, strbuf_text(&out), out.len, true);
    strbuf_release(&out);
    return rc;
}

/* "<0x0A>": two hex digits of either case, as Rust's from_str_radix reads them ("+A" too). */
static int byte_of_token(const char *s, size_t n)
{
    int value = 0;
    if (n != 6 || memcmp(s, "<0x", 3) != 0 || s[5] != '>')
        return -1;
    for (int i = 3; i < 5; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0 && !(i == 3 && c == '+'))
            return -1;
        value = value * 16 + (digit < 0 ? 0 : digit);
    }
    return value;
}

/* The end of a run of byte tokens: its text, or one U+FFFD a byte when it is no UTF-8. */
static int flush_bytes(struct decode_run *r, size_t step)
{
    struct strbuf *held = &r->state[step].held;
    int rc = 0;
    if (held->failed)
        return no_memory(r);
    size_t n = held->len;
    if (n && utf8_valid_prefix(held->data, n) == n) {
        rc = push(r, step + 1, held->data, n, true);
    } else {
        for (size_t i = 0; i < n && !rc; i++)
            rc = push(r, step + 1, "\xEF\xBF\xBD", 3, true);
    }
    strbuf_reset(held);
    return rc;
}

static int push_fallback(struct decode_run *r, size_t step, const char *s, size_t n)
{
    int byte = byte_of_token(s, n);
    if (byte >= 0) {
        strbuf_addc(&r->state[step].held, (char)byte);
        return 0;
    }
    int rc = flush_bytes(r, step);
    return rc ? rc : push(r, step + 1, s, n, true);
}

/* Gives out the held bytes up to an unfinished character (at the end: that one too, as U+FFFD). */
static int flush_level(struct decode_run *r, size_t step, bool end)
{
    struct step_state *state = &r->state[step];
    struct strbuf *held = &state->held;
    size_t whole = 0;
    bool unfinished = false;
    if (held->failed)
        return no_memory(r);
    while (whole < held->len && !unfinished) {
        whole += utf8_valid_prefix(held->data + whole, held->len - whole);
        size_t bad = whole < held->len
                         ? utf8_bad_length(held->data + whole, held->len - whole, &unfinished)
                         : 0;
        whole += unfinished ? 0 : bad;
    }
    if (end)
        whole = held->len;
    if (whole == 0)
        return 0;
    strbuf_reset(&r->work);
    utf8_add_lossy(&r->work, held->data, whole);
    if (r->work.failed)
        return no_memory(r);
    memmove(held->data, held->data + whole, held->len - whole);
    strbuf_truncate(held, held->len - whole);
    bool begins = state->n_tokens++ == 0;
    // the next steps may come here too (work is theirs then): they get a copy of their own
    struct strbuf text = r->work;
    strbuf_init(&r->work);
    int rc = push(r, step + 1, strbuf_text(&text), text.len, begins);
    strbuf_release(&text);
    return rc;
}

static int push_level(struct decode_run *r, size_t step, const char *s, size_t n)
{
    struct strbuf *held = &r->state[step].held;
    size_t before = held->len;
    bool all = true;
    for (size_t i = 0, len; i < n && all; i += len) {
        int byte = byte_level_byte(utf8_decode(s + i, &len));
        all = byte >= 0;
        if (all)
            strbuf_addc(held, (char)byte);
    }
    if (!all) { // not of the alphabet: an added token, taken as it is
        strbuf_truncate(held, before);
        strbuf_add(held, s, n);
    }
    return flush_level(r, step, false);
}

static int push_stripped(struct decode_run *r, size_t step, const char *s, size_t n)
{
    const struct decode_step *d = &r->d->steps[step];
    size_t start = 0, end = n, len, unused;
    for (size_t i = 0; i < d->start && start < n && utf8_decode(s + start, &len) == d->character;
         i++)
        start += len;
    for (size_t i = 0; i < d->stop && end > start; i++) {
        len = utf8_length_before(s, end);
        if (utf8_decode(s + end - len, &unused) != d->character)
            break;
        end -= len;
    }
    return push(r, step + 1, s + start, end - start, true);
}

/* As push_stripped where the token comes in fragments. */
static int push_stripped_fragment(struct decode_run *r, size_t step, const char *s, size_t n,
                                  bool begins)
{
    const struct decode_step *d = &r->d->steps[step];
    struct step_state *state = &r->state[step];
    struct strbuf out;
    strbuf_init(&out);
    for (size_t i = 0, len; i < n; i += len) {
        uint32_t c = utf8_decode(s + i, &len);
        if (!state->started && c == d->character && state->n_cut < d->start) {
            state->n_cut++;
            continue;
        }
        state->started = true;
        if (c == d->character && state->n_held < d->stop) {
            state->n_held++;
            continue;
        }
        for (; c != d->character && state->n_held; state->n_held--)
            strbuf_add_utf8(&out, d->character);
        strbuf_add(&out, s + i, len);
    }
    int rc = out.failed ? no_memory(r) : push(r, step + 1, strbuf_text(&out), out.len, begins);
    strbuf_release(&out);
    return rc;
}

static int push_metaspace(struct decode_run *r, size_t step, const char *s, size_t n, bool begins)
{
    const struct decode_step *d = &r->d->steps[step];
    struct step_state *state = &r->state[step];
    struct strbuf out;
    state->n_tokens += begins;
    strbuf_init(&out);
    for (size_t i = 0, len; i < n; i += len) {
        if (utf8_decode(s + i, &len) != d->character)
            strbuf_add(&out, s + i, len);
        else if (state->n_tokens > 1 || !d->drop_first)
            strbuf_addc(&out, ' ');
    }
    int rc = out.failed ? no_memory(r) : push(r, step + 1, strbuf_text(&out), out.len, begins);
    strbuf_release(&out);
    return rc;
}

/* The suffix of a token becomes a space, that of the last token nothing. */
static int push_suffixed(struct decode_run *r, size_t step, const char *s, size_t n, bool last)
{
    const struct decode_step *d = &r->d->steps[step];
    struct strbuf out;
    size_t done = 0;
    strbuf_init(&out);
    for (const char *at; (at = memmem(s + done, n - done, d->content, d->n_content)) != NULL;) {
        strbuf_add(&out, s + done, (size_t)(at - s) - done);
        strbuf_adds(&out, last ? "" : " ");
        done = (size_t)(at - s) + d->n_content;
    }
    strbuf_add(&out, s + done, n - done);
    int rc = out.failed ? no_memory(r) : push(r, step + 1, strbuf_text(&out), out.len, true);
    strbuf_release(&out);
    return rc;
}

/* A token is held until the next one shows that it is not the last. */
static int push_bpe(struct decode_run *r, size_t step, const char *s, size_t n)
{
    struct step_state *state = &r->state[step];
    if (state->n_tokens++) {
        struct strbuf before = state->held;
        strbuf_init(&state->held);
        int rc = push_suffixed(r, step, strbuf_text(&before), before.len, false);
        strbuf_release(&before);
        if (rc)
            return rc;
    }
    strbuf_add(&state->held, s, n);
    return state->held.failed ? no_memory(r) : 0;
}

/* ---- the pipe ---- */

static int push_whole(struct decode_run *r, size_t step, const char *s, size_t n)
{
    switch (r->d->steps[step].kind) {
    case DECODE_REPLACE:
        return push_replaced(r, step, s, n);
    case DECODE_BYTE_FALLBACK:
        return push_fallback(r, step, s, n);
    case DECODE_BYTE_LEVEL:
        return push_level(r, step, s, n);
    case DECODE_STRIP:
        return push_stripped(r, step, s, n);
    default:
        return push_bpe(r, step, s, n);
    }
}

/* Whether a step must see a token whole before it can say anything. */
static bool wants_whole(enum decode_kind kind)
{
    return kind == DECODE_REPLACE || kind == DECODE_BYTE_FALLBACK || kind == DECODE_BYTE_LEVEL ||
           kind == DECODE_BPE;
}

/* A token, or a fragment of one (begins: its first). */
static int push(struct decode_run *r, size_t step, const char *s, size_t n, bool begins)
{
    if (step == r->d->n) {
        strbuf_add(r->out, s, n);
        return r->out->failed ? no_memory(r) : 0;
    }
    const struct decode_step *d = &r->d->steps[step];
    struct step_state *state = &r->state[step];
    if (d->fused && wants_whole(d->kind)) {
        strbuf_add(&state->held, s, n);
        return state->held.failed ? no_memory(r) : 0;
    }
    if (d->kind == DECODE_FUSE)
        return push(r, step + 1, s, n, state->n_tokens++ == 0);
    if (d->kind == DECODE_METASPACE)
        return push_metaspace(r, step, s, n, begins);
    if (d->kind == DECODE_STRIP && d->fused)
        return push_stripped_fragment(r, step, s, n, begins);
    return push_whole(r, step, s, n);
}

static int finish_step(struct decode_run *r, size_t step)
{
    const struct decode_step *d = &r->d->steps[step];
    struct step_state *state = &r->state[step];
    if (d->fused && wants_whole(d->kind)) {
        struct strbuf all = state->held;
        strbuf_init(&state->held);
        int rc = push_whole(r, step, strbuf_text(&all), all.len);
        strbuf_release(&all);
        if (rc)
            return rc;
    }
    switch (d->kind) {
    case DECODE_BYTE_FALLBACK:
        return flush_bytes(r, step);
    case DECODE_BYTE_LEVEL:
        return flush_level(r, step, true);
    case DECODE_BPE:
        return state->n_tokens
                   ? push_suffixed(r, step, strbuf_text(&state->held), state->held.len, true)
                   : 0;
    default:
        return 0;
    }
}

int decode_run_open(struct decode_run **out, const struct decoder *d, struct err *err)
{
    *out = NULL;
    struct decode_run *r = sys_calloc(1, sizeof *r + d->n * sizeof r->state[0]);
    if (!r)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    r->d = d;
    for (size_t i = 0; i < d->n; i++) {
        int rc = d->steps[i].pattern.regex && !r->regex ? regex_scratch_open(&r->regex, err) : 0;
        if (rc) {
            decode_run_free(r);
            return rc;
        }
    }
    *out = r;
    return 0;
}

void decode_run_free(struct decode_run *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->d->n; i++)
        strbuf_release(&r->state[i].held);
    span_list_release(&r->spans);
    regex_scratch_free(r->regex);
    strbuf_release(&r->work);
    sys_free(r);
}

int decode_run_push(struct decode_run *r, const char *token, size_t n, struct strbuf *out,
                    struct err *err)
{
    r->out = out;
    r->err = err;
    if (r->d->n == 0 && r->n_tokens++)
        strbuf_addc(out, ' ');
    return push(r, 0, token, n, true);
}

int decode_run_finish(struct decode_run *r, struct strbuf *out, struct err *err)
{
    r->out = out;
    r->err = err;
    for (size_t i = 0; i < r->d->n; i++) {
        int rc = finish_step(r, i);
        if (rc)
            return rc;
    }
    return 0;
}
