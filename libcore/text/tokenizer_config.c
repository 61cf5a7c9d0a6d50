/* The few facts of tokenizer_config.json that matter to ids: added tokens, roles, bos and eos. Read
 * without a tree, since added_tokens_decoder makes the file a megabyte at times. */
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/json_pull.h"
#include "libcore/text/tokenizer_impl.h"

static bool is(const char *s, size_t n, const char *word)
{
    return strlen(word) == n && memcmp(s, word, n) == 0;
}

static unsigned flag_of(const char *s, size_t n)
{
    return is(s, n, "special")       ? ADDED_SPECIAL
           : is(s, n, "lstrip")      ? ADDED_LSTRIP
           : is(s, n, "rstrip")      ? ADDED_RSTRIP
           : is(s, n, "single_word") ? ADDED_SINGLE_WORD
           : is(s, n, "normalized")  ? ADDED_NORMALIZED
                                     : 0;
}

/* {"content": …, "lstrip": …}: the content is appended to *content, which is emptied before. */
static int read_token(struct json_pull *r, struct strbuf *content, unsigned *flags)
{
    const char *s;
    size_t n;
    bool first = true, more, on;
    strbuf_reset(content);
    *flags = 0;
    int rc = json_pull_begin(r, '{');
    while (!rc && !(rc = json_pull_next(r, '}', &first, &more)) && more) {
        rc = json_pull_key(r, &s, &n);
        if (rc)
            return rc;
        unsigned flag = flag_of(s, n);
        if (is(s, n, "content")) {
            rc = json_pull_string(r, &s, &n);
            if (!rc)
                strbuf_add(content, s, n);
        } else if (flag) {
            rc = json_pull_bool(r, &on);
            *flags |= !rc && on ? flag : 0;
        } else {
            rc = json_pull_skip(r, NULL, NULL);
        }
    }
    return rc;
}

/* A token that tokenizer.json has as well keeps what is said there. */
static int add_if_new(struct tokenizer *t, uint32_t id, const struct strbuf *content,
                      unsigned flags, struct err *err)
{
    if (content->failed)
        return err_set(err, ERR_NO_MEMORY, "tokenizer: out of memory");
    if (added_by_text(&t->added, strbuf_text(content), content->len))
        return 0;
    return added_add(&t->added, t->v, strbuf_text(content), content->len, id, flags, err);
}

/* {"128000": {token}, …} in ascending order. */
static int read_added_decoder(struct tokenizer *t, struct json_pull *r)
{
    struct strbuf content;
    bool first = true, more;
    strbuf_init(&content);
    int rc = json_pull_peek(r) == '{' ? json_pull_begin(r, '{') : json_pull_skip(r, NULL, NULL);
    if (rc || r->p[-1] != '{')
        return rc;
    added_begin(&t->added, t->v);
    while (!rc && !(rc = json_pull_next(r, '}', &first, &more)) && more) {
        const char *s;
        size_t n;
        uint32_t id = 0;
        unsigned flags;
        rc = json_pull_key(r, &s, &n);
        for (size_t i = 0; !rc && i < n; i++) {
            if (s[i] < '0' || s[i] > '9' || id >= LIMIT_VOCABULARY)
                rc = json_pull_fail(r, "a key of added_tokens_decoder is no id");
            else
                id = id * 10 + (uint32_t)(s[i] - '0');
        }
        if (!rc)
            rc = read_token(r, &content, &flags);
        if (!rc)
            rc = add_if_new(t, id, &content, flags, r->err);
    }
    strbuf_release(&content);
    return rc;
}

/* A role is a string, or an object with its content, or null. */
static int read_role(struct tokenizer *t, enum tokenizer_role role, struct json_pull *r)
{
    char c = json_pull_peek(r);
    if (c != '"' && c != '{')
        return json_pull_skip(r, NULL, NULL);
    struct strbuf content;
    unsigned flags;
    const char *s;
    size_t n;
    strbuf_init(&content);
    int rc = c == '{' ? read_token(r, &content, &flags) : json_pull_string(r, &s, &n);
    if (!rc && c == '"')
        strbuf_add(&content, s, n);
    if (!rc) {
        sys_free(t->role_text[role]);
        t->role_text[role] = strbuf_take(&content, NULL);
        if (!t->role_text[role])
            rc = err_set(r->err, ERR_NO_MEMORY, "tokenizer: out of memory");
    }
    strbuf_release(&content);
    return rc;
}

static int read_said(struct json_pull *r, int *said)
{
    bool on;
    char c = json_pull_peek(r);
    if (c != 't' && c != 'f')
        return json_pull_skip(r, NULL, NULL);
    int rc = json_pull_bool(r, &on);
    *said = rc ? *said : on;
    return rc;
}

static int read_member(struct tokenizer *t, struct json_pull *r, struct tokenizer_config *config)
{
    static const char *const roles[TOKENIZER_N_ROLES] = {"bos_token", "eos_token", "pad_token",
                                                         "unk_token"};
    const char *s;
    size_t n;
    int rc = json_pull_key(r, &s, &n);
    if (rc)
        return rc;
    for (int i = 0; i < TOKENIZER_N_ROLES; i++) {
        if (is(s, n, roles[i]))
            return read_role(t, (enum tokenizer_role)i, r);
    }
    if (is(s, n, "added_tokens_decoder"))
        return read_added_decoder(t, r);
    if (is(s, n, "add_bos_token"))
        return read_said(r, &config->add_bos);
    if (is(s, n, "add_eos_token"))
        return read_said(r, &config->add_eos);
    return json_pull_skip(r, NULL, NULL);
}

/* A role's token is a special token, also where no list of added tokens has it. One that the
 * vocabulary lacks gets no id: no model has a row for it. */
static int add_roles(struct tokenizer *t, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < TOKENIZER_N_ROLES && !rc; i++) {
        const char *text = t->role_text[i];
        size_t n = text ? strlen(text) : 0;
        if (n && vocab_find(t->v, text, n) != VOCAB_NONE && !added_by_text(&t->added, text, n))
            rc = added_add(&t->added, t->v, text, n, VOCAB_NONE, ADDED_SPECIAL, err);
    }
    return rc;
}

int tokenizer_config_read(struct tokenizer *t, const char *path, struct tokenizer_config *config,
                          struct err *err)
{
    char *text = NULL;
    size_t size;
    bool first = true, more;
    *config = (struct tokenizer_config){-1, -1};
    int rc = file_read(path, LIMIT_CONFIG_BYTES, &text, &size, err);
    if (rc == ERR_NOT_FOUND) {
        err_clear(err);
        return 0;
    }
    if (rc)
        return rc;
    struct json_pull r;
    json_pull_init(&r, text, size, path, err);
    rc = json_pull_begin(&r, '{');
    while (!rc && !(rc = json_pull_next(&r, '}', &first, &more)) && more)
        rc = read_member(t, &r, config);
    if (!rc)
        rc = json_pull_end(&r);
    if (!rc)
        rc = add_roles(t, err);
    json_pull_release(&r);
    sys_free(text);
    return rc;
}
