/* Templates of our own, with what jinja2 made of them (tests/golden/jinja/make_cases.py). */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/jinja.h"
#include "tests/lib/test.h"

enum { CLOCK = 1752148800 }; // 2025-07-10T12:00:00Z

static json_t *load_cases(void)
{
    char path[4096];
    json_error_t why;
    snprintf(path, sizeof path, "%s/tests/golden/jinja/cases.json", test_root());
    json_t *cases = json_load_file(path, JSON_ALLOW_NUL, &why);
    EXPECT_MSG(cases != NULL, "%s: %s", path, why.text);
    return cases;
}

/* want: a text, or null for an error. */
static void check_one(const json_t *text, const json_t *context, const json_t *want)
{
    struct jinja_template *t = NULL;
    struct err err = {0};
    char *got = NULL;
    size_t len = 0;
    const char *template = json_string_value(text);
    int rc = jinja_compile(&t, "case", template, json_string_length(text), &err);
    if (!rc)
        rc = jinja_render(t, context, NULL, CLOCK, &got, &len, &err);
    if (json_is_null(want)) {
        EXPECT_MSG(rc == ERR_REFUSED || rc == ERR_CORRUPT, "%s: gives '%s', wants an error",
                   template, got ? got : err.msg);
        EXPECT(rc == 0 || err.msg[0] != '\0');
    } else {
        EXPECT_MSG(rc == 0 && len == json_string_length(want) &&
                       !memcmp(got, json_string_value(want), len),
                   "%s: gives '%s', wants '%s'", template, rc ? err.msg : got,
                   json_string_value(want));
    }
    sys_free(got);
    jinja_free(t);
}

TEST(templates_written_by_hand_are_as_jinja2_renders_them)
{
    json_t *cases = load_cases(), *rows = json_object_get(cases, "written");
    EXPECT(json_array_size(rows) >= 20);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        check_one(json_object_get(row, "template"), json_object_get(row, "context"),
                  json_object_get(row, "expected"));
    }
    json_decref(cases);
}

TEST(generated_templates_are_as_jinja2_renders_them)
{
    json_t *cases = load_cases(), *rows = json_object_get(cases, "generated");
    EXPECT(json_array_size(rows) >= 1500);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        check_one(json_array_get(row, 0), json_object_get(cases, "context"),
                  json_array_get(row, 1));
    }
    json_decref(cases);
}
