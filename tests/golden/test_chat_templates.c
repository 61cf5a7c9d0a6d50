/* Chat templates that others published, with the text that others' Jinja made of them. */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/jinja.h"
#include "tests/lib/test.h"

enum { FIXTURE_CLOCK = 1752148800 }; // 2025-07-10T12:00:00Z

static void check_one(const json_t *row)
{
    const char *name = json_string_value(json_object_get(row, "name"));
    const json_t *text = json_object_get(row, "template"), *want = json_object_get(row, "expected");
    struct jinja_template *t = NULL;
    struct err err = {0};
    char *got = NULL;
    size_t len = 0;
    int rc = jinja_compile(&t, name, json_string_value(text), json_string_length(text), &err);
    if (!rc)
        rc =
            jinja_render(t, json_object_get(row, "context"), NULL, FIXTURE_CLOCK, &got, &len, &err);
    EXPECT_MSG(rc == 0, "%s: %s", name, err.msg);
    if (!rc)
        EXPECT_MSG(len == json_string_length(want) && !memcmp(got, json_string_value(want), len),
                   "%s: other text: %s", name, got);
    sys_free(got);
    jinja_free(t);
}

TEST(published_templates_give_the_published_text)
{
    char path[4096];
    json_error_t why;
    if (!test_fixtures()) {
        test_skip("no fixtures");
        return;
    }
    snprintf(path, sizeof path, "%s/chat_templates.json", test_fixtures());
    json_t *rows = json_load_file(path, 0, &why);
    CHECK_MSG(rows != NULL, "%s: %s", path, why.text);
    EXPECT_INT(json_array_size(rows), 28);
    for (size_t i = 0; i < json_array_size(rows); i++)
        check_one(json_array_get(rows, i));
    json_decref(rows);
}
