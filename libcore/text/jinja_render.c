/* The public face of jinja, and the state and bounds of one render. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/jinja_syntax.h"

/* Calls of eval and exec inside one another: what a thread's stack of 8 MB holds with room to
 * spare. */
enum { MAX_STACK = 3000 };

int jinja_fail_code(struct jinja_render *r, int code, const char *fmt, ...)
{
    char text[ERR_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return err_set(r->err, code, "%s:%u: %s", r->t->name, r->line, text);
}

int jinja_fail(struct jinja_render *r, const char *fmt, ...)
{
    char text[ERR_MSG_BYTES];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    return err_set(r->err, ERR_REFUSED, "%s:%u: %s", r->t->name, r->line, text);
}

int jinja_fail_undefined(struct jinja_render *r, struct jinja_value v)
{
    return jinja_fail(r, "%s", v.undef->message);
}

int jinja_steps(struct jinja_render *r, size_t n)
{
    r->steps += n;
    if (r->steps > LIMIT_TEMPLATE_STEPS)
        return jinja_fail_code(r, ERR_LIMIT, "the template takes more than %d steps",
                               LIMIT_TEMPLATE_STEPS);
    return 0;
}

int jinja_enter(struct jinja_render *r)
{
    JINJA_TRY(jinja_steps(r, 1));
    if (r->depth >= MAX_STACK)
        return jinja_fail_code(r, ERR_LIMIT, "the template nests too deep (%d levels)", MAX_STACK);
    r->depth++;
    return 0;
}

void *jinja_alloc(struct jinja_render *r, size_t n)
{
    if (n > LIMIT_TEMPLATE_MEMORY_BYTES || r->memory > LIMIT_TEMPLATE_MEMORY_BYTES - n) {
        jinja_fail_code(r, ERR_LIMIT, "the template takes more than %d bytes of memory",
                        LIMIT_TEMPLATE_MEMORY_BYTES);
        return NULL;
    }
    r->memory += n + 16;
    void *p = arena_alloc(&r->arena, n ? n : 1);
    if (!p)
        jinja_fail_code(r, ERR_NO_MEMORY, "out of memory");
    return p;
}

int jinja_emit(struct jinja_render *r, const char *data, size_t n)
{
    r->out_total += n;
    strbuf_add(r->out, data, n);
    if (r->out->too_long || r->out_total > LIMIT_TEMPLATE_MEMORY_BYTES)
        return jinja_fail_code(r, ERR_LIMIT, "the template writes more than %d bytes",
                               LIMIT_TEMPLATE_OUTPUT_BYTES);
    if (r->out->failed)
        return jinja_fail_code(r, ERR_NO_MEMORY, "out of memory");
    return jinja_steps(r, n / 64);
}

/* ---- compile ---- */

/* The template with \r\n and \r as \n, and without one newline at its end. */
static char *normal_newlines(struct arena *a, const char *text, size_t *len)
{
    char *copy = arena_alloc(a, *len + 1);
    size_t n = 0;
    if (!copy)
        return NULL;
    for (size_t i = 0; i < *len; i++) {
        if (text[i] == '\r' && i + 1 < *len && text[i + 1] == '\n')
            continue;
        copy[n++] = text[i] == '\r' ? '\n' : text[i];
    }
    if (n && copy[n - 1] == '\n')
        n--;
    *len = n;
    return copy;
}

static int compile(struct jinja_template *t, const char *text, size_t len, struct err *err)
{
    if (!jinja_valid_utf8(text, len))
        return err_set(err, ERR_CORRUPT, "%s: the template is not valid UTF-8", t->name);
    struct jinja_lexer lx = {.arena = &t->arena, .name = t->name, .len = len, .err = err};
    lx.src = normal_newlines(&t->arena, text, &lx.len);
    if (!lx.src)
        return err_set(err, ERR_NO_MEMORY, "%s: out of memory", t->name);
    JINJA_TRY(jinja_lex(&lx));
    struct jinja_parser p = {.t = t, .tokens = lx.tokens, .err = err};
    JINJA_TRY(jinja_parse(&p));
    return jinja_resolve_scopes(t, err);
}

int jinja_compile(struct jinja_template **out, const char *name, const char *text, size_t len,
                  struct err *err)
{
    *out = NULL;
    if (len > LIMIT_TEMPLATE_BYTES)
        return err_set(err, ERR_LIMIT, "%s: a template of %zu bytes, at most %d are read", name,
                       len, LIMIT_TEMPLATE_BYTES);
    struct jinja_template *t = sys_calloc(1, sizeof *t);
    if (!t)
        return err_set(err, ERR_NO_MEMORY, "%s: out of memory", name);
    arena_init(&t->arena);
    t->name = arena_strdup(&t->arena, name);
    int rc = t->name ? compile(t, text, len, err)
                     : err_set(err, ERR_NO_MEMORY, "%s: out of memory", name);
    if (rc) {
        jinja_free(t);
        return rc;
    }
    *out = t;
    return 0;
}

void jinja_free(struct jinja_template *t)
{
    if (!t)
        return;
    arena_release(&t->arena);
    sys_free(t);
}

/* ---- render ---- */
static int add_variables(struct jinja_render *r, const json_t *from, bool replace)
{
    const char *key;
    json_t *item;
    json_object_foreach((json_t *)from, key, item)
    {
        struct jinja_value name, v;
        JINJA_TRY(jinja_new_str(r, key, strlen(key), &name));
        JINJA_TRY(jinja_dict_get(r, r->context, name, &v));
        if (v.type != JINJA_MISSING && !replace)
            continue;
        JINJA_TRY(jinja_from_json(r, item, &v));
        JINJA_TRY(jinja_dict_set(r, r->context, name, v));
    }
    return 0;
}

static int run(struct jinja_render *r, const json_t *context, const json_t *defaults)
{
    struct jinja_value dict;
    enum jinja_flow flow;
    JINJA_TRY(jinja_new_dict(r, JINJA_DICT, &dict));
    r->context = dict.dict;
    JINJA_TRY(add_variables(r, context, true));
    if (defaults)
        JINJA_TRY(add_variables(r, defaults, false));
    struct jinja_env *env = jinja_open_env(r, r->t->root, NULL);
    if (!env)
        return r->err->code;
    return jinja_exec(r, env, r->t->body, &flow);
}

int jinja_render(const struct jinja_template *t, const json_t *context, const json_t *defaults,
                 int64_t now_unix, char **text, size_t *len, struct err *err)
{
    struct err local;
    struct strbuf out;
    *text = NULL;
    *len = 0;
    if (!json_is_object(context) || (defaults && !json_is_object(defaults)))
        return err_set(err, ERR_USAGE, "%s: the template's context is not a JSON object", t->name);
    strbuf_init(&out);
    out.max = LIMIT_TEMPLATE_OUTPUT_BYTES;
    struct jinja_render r = {.t = t, .now_unix = now_unix, .out = &out, .line = 1};
    r.err = err ? err : &local;
    r.seed = (uint64_t)(uintptr_t)&r * 0x9E3779B97F4A7C15u ^ (uint64_t)(uintptr_t)t;
    arena_init(&r.arena);
    int rc = run(&r, context, defaults);
    if (!rc) {
        *text = strbuf_take(&out, len);
        if (!*text)
            rc = jinja_fail_code(&r, ERR_NO_MEMORY, "out of memory");
    }
    strbuf_release(&out);
    arena_release(&r.arena);
    return rc;
}
