/* What jinja promises beyond jinja2's text: messages with lines, bounds, threads. */
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/limits.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/text/jinja.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

/* Renders into *got (NULL when it fails); returns the code. */
static int render(const char *template, size_t n, const char *context, char **got, struct err *err)
{
    struct jinja_template *t = NULL;
    size_t len;
    json_t *json = json_loads(context, 0, NULL);
    *got = NULL;
    err_clear(err);
    int rc = jinja_compile(&t, "t.jinja", template, n, err);
    if (!rc)
        rc = jinja_render(t, json, NULL, 0, got, &len, err);
    jinja_free(t);
    json_decref(json);
    return rc;
}

static void fails(const char *template, int code, const char *message)
{
    struct err err;
    char *got;
    int rc = render(template, strlen(template), "{}", &got, &err);
    EXPECT_MSG(rc == code, "%.60s: gives %d, want %d: %s", template, rc, code, err.msg);
    EXPECT_MSG(strstr(err.msg, message) != NULL, "%.60s: '%s' lacks '%s'", template, err.msg,
               message);
    sys_free(got);
}

TEST(errors_name_template_and_line)
{
    fails("a\nb\n{{ 1 + 'x' }}", ERR_REFUSED, "t.jinja:3: unsupported operand type(s) for +");
    fails("a\n{% if x %}\n", ERR_CORRUPT, "t.jinja:2: the template ends before");
    fails("{{ missing.part }}", ERR_REFUSED, "t.jinja:1: 'missing' is undefined");
    fails("\n\n{{ raise_exception('roles must alternate') }}", ERR_REFUSED,
          "t.jinja:3: roles must alternate");
    fails("{{ 'a'|urlize }}", ERR_REFUSED, "no filter named 'urlize'");
    fails("{{ 1 is prime }}", ERR_REFUSED, "no test named 'prime'");
}

TEST(what_is_not_here_is_refused_by_name)
{
    fails("{% include 'x' %}", ERR_CORRUPT, "'include' is not available");
    fails("{% extends 'x' %}", ERR_CORRUPT, "'extends' is not available");
    fails("{% import 'x' as y %}", ERR_CORRUPT, "'import' is not available");
    fails("{% block a %}{% endblock %}", ERR_CORRUPT, "'block' is not available");
    fails("{% frob %}", ERR_CORRUPT, "unknown tag 'frob'");
    fails("{% break %}", ERR_CORRUPT, "'break' outside a loop");
}

TEST(the_sandbox_holds)
{
    fails("{{ ''.__class__.__mro__ }}", ERR_REFUSED, "'__class__' of 'str' object is unsafe");
    fails("{{ [1].append(2) }}", ERR_REFUSED, "'append' of 'list' object is unsafe");
    fails("{{ {}.update({'a': 1}) }}", ERR_REFUSED, "'update' of 'dict' object is unsafe");
    fails("{{ '{0.__class__.x}'.format(1) }}", ERR_REFUSED, "unsafe");
}

TEST(integers_overflow_with_an_error)
{
    fails("{{ 9223372036854775807 + 1 }}", ERR_REFUSED, "does not fit 64 bits");
    fails("{{ -9223372036854775807 - 2 }}", ERR_REFUSED, "does not fit 64 bits");
    fails("{{ 3 ** 99 }}", ERR_REFUSED, "does not fit 64 bits");
    fails("{{ 99999999999999999999 }}", ERR_CORRUPT, "does not fit 64 bits");
    fails("{{ 1 // 0 }}", ERR_REFUSED, "by zero");
}

TEST(huge_wishes_end_in_a_limit)
{
    fails("{{ 'a' * 10 ** 9 }}", ERR_LIMIT, "bytes");
    fails("{{ [1] * 10 ** 9 }}", ERR_LIMIT, "items");
    fails("{{ '%1000000000d' % 1 }}", ERR_LIMIT, "width");
    fails("{{ '{:1000000000}'.format(1) }}", ERR_LIMIT, "width");
    fails("{{ 'a'.center(10 ** 12) }}", ERR_LIMIT, "bytes");
    fails("{{ [1] | tojson(indent=10 ** 9) }}", ERR_LIMIT, "bytes");
    fails("{{ ('a' * 10 ** 6) | replace('a', 'b' * 10 ** 6) }}", ERR_LIMIT, "than");
    fails("{% for x in range(10 ** 12) %}{% endfor %}", ERR_REFUSED, "Range too big");
    fails("{% set ns = namespace(s='a') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}"
          "{% endfor %}",
          ERR_LIMIT, "bytes");
    fails("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
          ERR_LIMIT, "steps");
    fails("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", ERR_LIMIT, "deeper than");
    fails("{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}", ERR_LIMIT, "deeper than");
    fails("{% set ns = namespace(s=[]) %}{% for i in range(50000) %}{% set ns.s = [ns.s] %}"
          "{% endfor %}{{ ns.s }}",
          ERR_LIMIT, "too deep");
    fails("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}", ERR_LIMIT, "too deep");
}

/* `open` n times, `middle`, `close` n times. */
static void nested(const char *open, const char *middle, const char *close, size_t n, int code)
{
    struct strbuf sb;
    struct err err;
    char *got;
    strbuf_init(&sb);
    for (size_t i = 0; i < n; i++)
        strbuf_adds(&sb, open);
    strbuf_adds(&sb, middle);
    for (size_t i = 0; i < n; i++)
        strbuf_adds(&sb, close);
    int rc = render(strbuf_text(&sb), sb.len, "{}", &got, &err);
    EXPECT_MSG(rc == code, "%zu times '%s': gives %d, want %d: %s", n, open, rc, code, err.msg);
    sys_free(got);
    strbuf_release(&sb);
}

TEST(deep_nesting_ends_in_a_limit)
{
    nested("{{ (", "1", ") }}", 1, 0);
    nested("{{ ", "1", "", 1, ERR_CORRUPT);
    nested("{% if 1 %}", "x", "{% endif %}", 150, 0);
    nested("{% if 1 %}", "x", "{% endif %}", 50000, ERR_LIMIT);
    nested("{% for x in [1] %}", "x", "{% endfor %}", 150, 0);
    nested("{{ a }}", "", "", 200000, ERR_LIMIT);
    char parens[40000];
    memset(parens, '(', sizeof parens - 1);
    memcpy(parens, "{{ ", 3);
    parens[sizeof parens - 1] = '\0';
    fails(parens, ERR_LIMIT, "too deep");
}

TEST(bytes_that_are_not_utf8_are_refused)
{
    fails("a\xff", ERR_CORRUPT, "not valid UTF-8");
    fails("\xed\xa0\x80", ERR_CORRUPT, "not valid UTF-8");
    fails("{{ '\\ud83d' }}", ERR_CORRUPT, "surrogates");
}

TEST(a_text_grown_piece_by_piece_costs_linear_memory)
{
    static const char template[] =
        "{% set ns = namespace(s='') %}{% for i in range(100000) %}{% set ns.s = ns.s ~ "
        "'0123456789012345678901234567890123456789' %}{% endfor %}{{ ns.s | length }}";
    struct err err;
    char *got;
    CHECK_OK(render(template, sizeof template - 1, "{}", &got, &err), err);
    EXPECT_STR(got, "4000000");
    sys_free(got);
}

TEST(older_values_keep_their_text_when_a_longer_one_is_made)
{
    static const char template[] =
        "{% set a = 'x' ~ 'y' %}{% set b = a ~ '1' %}{% set c = a ~ '2' %}"
        "{% set d = b ~ '3' %}{{ a }} {{ b }} {{ c }} {{ d }}";
    struct err err;
    char *got;
    CHECK_OK(render(template, sizeof template - 1, "{}", &got, &err), err);
    EXPECT_STR(got, "xy xy1 xy2 xy13");
    sys_free(got);
}

TEST(defaults_give_way_to_the_context)
{
    struct jinja_template *t;
    struct err err = {0};
    char *got;
    size_t len;
    json_t *context = json_pack("{s:s}", "a", "mine");
    json_t *defaults = json_pack("{s:s, s:s}", "a", "yours", "b", "both");
    CHECK_OK(jinja_compile(&t, "t", "{{ a }} {{ b }}", 15, &err), err);
    CHECK_OK(jinja_render(t, context, defaults, 0, &got, &len, &err), err);
    EXPECT_STR(got, "mine both");
    sys_free(got);
    CHECK_CODE(jinja_render(t, json_true(), NULL, 0, &got, &len, &err), ERR_USAGE, err);
    jinja_free(t);
    json_decref(context);
    json_decref(defaults);
}

struct worker {
    const struct jinja_template *t;
    int number;
    bool same;
};

static void *render_often(void *arg)
{
    struct worker *w = arg;
    char want[64];
    snprintf(want, sizeof want, "%d-é🎉-%d-2", w->number, w->number + 1);
    json_t *context = json_pack("{s:i}", "n", w->number);
    w->same = true;
    for (int i = 0; i < 200; i++) {
        char *got = NULL;
        size_t len;
        w->same &=
            jinja_render(w->t, context, NULL, 0, &got, &len, NULL) == 0 && strcmp(got, want) == 0;
        sys_free(got);
    }
    json_decref(context);
    return NULL;
}

TEST(one_template_renders_on_many_threads)
{
    static const char text[] =
        "{% macro m(x) %}{{ x }}{% endmacro %}{{ n }}-{{ 'é🎉' }}-{{ m(n + 1) "
        "}}-{{ 'é🎉'|length }}";
    struct jinja_template *t;
    struct err err = {0};
    pthread_t threads[4];
    struct worker workers[4];
    CHECK_OK(jinja_compile(&t, "t", text, sizeof text - 1, &err), err);
    for (int i = 0; i < 4; i++) {
        workers[i] = (struct worker){.t = t, .number = i * 10};
        pthread_create(&threads[i], NULL, render_often, &workers[i]);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        EXPECT(workers[i].same);
    }
    jinja_free(t);
}

/* Every part that allocates, at least once. */
static const char busy[] =
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}"
    "{% set ns = namespace(s='') %}{% for x in items | sort | unique %}{% set ns.s = ns.s ~ x %}"
    "{% endfor %}{{ ns.s }}{{ m(1, 2, 3, k=4) }}{{ d | tojson(indent=2, sort_keys=true) }}{{ d }}"
    "{{ '%5d|%-4s|%r|%a' % (7, 'ab', 'é', 'é') }}{{ '{:>9,}|{!r:5}|{a:^{w}}'.format(1234567, 'é', "
    "a='x', w=7) }}{{ 'Ünï'.upper().lower().title().capitalize().casefold().swapcase() }}"
    "{{ 'a,b,c'.split(',') | join('-') }}{{ 'x y'.partition(' ') }}{{ ('<'|e) + '<' }}"
    "{{ ('%s'|safe) % '<' }}{{ ('{}'|safe).format('<') }}{{ 'a b' | urlencode }}{{ d | urlencode }}"
    "{{ 'a\\nb' | indent }}{{ 'abcdefghijkl' | truncate(8, true, '..', 0) }}{{ 'é'[::-1] }}"
    "{{ items | groupby('real') | list | length }}{{ items | map('string') | select | batch(2) | "
    "list "
    "}}"
    "{% set t | upper %}cap{% endset %}{{ t }}{% filter replace('a', 'b') %}banana{% endfilter %}"
    "{{ 'a\tb'.expandtabs() }}{{ '7'.zfill(3) }}{{ 'a'.replace('', '-') }}{{ 1e22 }}{{ 0.1 }}"
    "{% for x in [[1, [2]]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
    "{{ cycler(1, 2).next() }}{{ dict(a=1).items() | list }}{{ range(3) | list }}{{ loop }}";

static int busy_once(void *arg, struct err *err)
{
    struct jinja_template *t = NULL;
    char *got = NULL;
    size_t len;
    int rc = jinja_compile(&t, "busy", busy, sizeof busy - 1, err);
    if (!rc)
        rc = jinja_render(t, arg, NULL, 0, &got, &len, err);
    jinja_free(t);
    sys_free(got);
    return rc;
}

TEST(every_failed_allocation_comes_out_as_an_error)
{
    json_t *context =
        json_pack("{s:[i,i,i], s:{s:s, s:f}}", "items", 3, 1, 2, "d", "k", "v", "f", 0.5);
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, busy_once, context) > 50);
    json_decref(context);
}
