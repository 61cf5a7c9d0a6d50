/*
 * The canonical form of every fixture adapter, told by a second reader
 * (tests/golden/make_canonical.py) that shares nothing with this one.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "tests/lib/test.h"

static void add_tensor(struct strbuf *sb, const char *what, const struct tensor *t)
{
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    if (!tensor_present(t))
        return;
    digest_buffer(t->data, tensor_n_bytes(t), &d, NULL);
    digest_hex(&d, hex);
    strbuf_addf(sb, " %s=", what);
    for (uint32_t i = 0; i < t->n_dims; i++)
        strbuf_addf(sb, i ? "x%llu" : "%llu", (unsigned long long)t->shape[i]);
    strbuf_addf(sb, ":%.16s", hex);
}

static char *line_of(const struct adapter_module *m)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s %s", m->name, m->parameter);
    if (m->rank)
        strbuf_addf(&sb, " %u %.17g", m->rank, m->scale);
    if (m->n_experts)
        strbuf_addf(&sb, " experts=%u", m->n_experts);
    if (m->embedding)
        strbuf_adds(&sb, " embedding");
    add_tensor(&sb, "a", &m->a);
    add_tensor(&sb, "b", &m->b);
    add_tensor(&sb, "magnitude", &m->magnitude);
    add_tensor(&sb, "lora_bias", &m->lora_bias);
    add_tensor(&sb, "bias", &m->bias);
    add_tensor(&sb, m->full_is_base ? "saved_base" : "full", &m->full);
    for (uint32_t i = 0; i < m->n_rows; i++)
        strbuf_addf(&sb, i ? ",%u" : " ids=%u", m->row_ids[i]);
    add_tensor(&sb, "rows", &m->rows);
    strbuf_addc(&sb, '\n');
    return strbuf_take(&sb, NULL);
}

static int compare_lines(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static void check(const char *path, const char *want)
{
    struct adapter *a;
    struct err err = {0};
    struct strbuf all;
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    CHECK_OK(peft_read(&a, path, NULL, &err), err);
    char **lines = calloc(a->n_modules, sizeof *lines);
    for (size_t i = 0; i < a->n_modules; i++)
        lines[i] = line_of(&a->modules[i]);
    qsort(lines, a->n_modules, sizeof *lines, compare_lines);
    strbuf_init(&all);
    for (size_t i = 0; i < a->n_modules; i++) {
        strbuf_adds(&all, lines[i]);
        sys_free(lines[i]);
    }
    digest_buffer(all.data, all.len, &d, NULL);
    digest_hex(&d, hex);
    EXPECT_MSG(strcmp(hex, want) == 0, "%s:\n%s", path, all.data);
    strbuf_release(&all);
    free(lines);
    adapter_free(a);
}

TEST(every_fixture_has_its_canonical_form)
{
    char path[4400];
    json_error_t je;
    const char *name;
    json_t *want;
    snprintf(path, sizeof path, "%s/tests/golden/canonical.json", test_root());
    json_t *root = json_load_file(path, 0, &je);
    CHECK_MSG(root, "%s: %s", path, je.text);
    CHECK_INT(json_object_size(root), 45 + 22 + 8);
    bool fixtures = test_fixtures() != NULL;
    json_object_foreach(root, name, want)
    {
        if (fixtures)
            snprintf(path, sizeof path, "%s/%s", test_fixtures(), name);
        else // tinytalk's are in the checkout
            snprintf(path, sizeof path, "%s/examples/%s", test_root(), name);
        if (fixtures || strncmp(name, "tinytalk/", 9) == 0)
            check(path, json_string_value(want));
    }
    if (!fixtures)
        test_skip("tinytalk only: no fixtures beside the checkout");
    json_decref(root);
}
