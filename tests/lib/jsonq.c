/*
 * jsonq: a value out of the JSON object on stdin, for shell tests.
 *   jsonq .adapters[0].name     a string as it is, everything else as compact JSON
 *   jsonq -n .adapters          how many items or members
 *   jsonq -k .                  the members' names, one a line
 * Exit 1 when the path leads nowhere, 2 when stdin is not one JSON value.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Follows ".name", "[3]", ".\"na.me\"" one step; NULL when there is nothing. */
static const json_t *step(const json_t *at, const char **path)
{
    const char *p = *path;
    if (*p == '[') {
        char *end;
        long i = strtol(p + 1, &end, 10);
        size_t n = json_array_size(at);
        *path = end + (*end == ']');
        return json_array_get(at, i < 0 ? n - (size_t)-i : (size_t)i);
    }
    p += *p == '.';
    const char *stop = *p == '"' ? "\"" : ".[";
    p += *p == '"';
    size_t n = strcspn(p, stop);
    char name[256];
    snprintf(name, sizeof name, "%.*s", (int)n, p);
    *path = p + n + (*stop == '"' && p[n]);
    return n ? json_object_get(at, name) : at;
}

static int print_value(const json_t *value)
{
    if (json_is_string(value)) {
        fwrite(json_string_value(value), 1, json_string_length(value), stdout);
    } else {
        json_dumpf(value, stdout, JSON_COMPACT | JSON_ENCODE_ANY);
    }
    putchar('\n');
    return 0;
}

static int print_keys(json_t *value)
{
    const char *key;
    json_t *unused;
    json_object_foreach(value, key, unused)
    {
        puts(key);
    }
    return json_is_object(value) ? 0 : 1;
}

int main(int argc, char **argv)
{
    const char *mode = argc > 2 ? argv[1] : "";
    const char *path = argc > 1 ? argv[argc - 1] : ".";
    json_error_t why;
    json_t *root = json_loadf(stdin, JSON_DECODE_ANY | JSON_REJECT_DUPLICATES, &why);
    if (!root) {
        fprintf(stderr, "jsonq: line %d: %s\n", why.line, why.text);
        return 2;
    }
    const json_t *value = root;
    while (value && *path)
        value = step(value, &path);
    int rc = 1;
    if (value && strcmp(mode, "-n") == 0)
        rc = printf("%zu\n",
                    json_is_array(value) ? json_array_size(value) : json_object_size(value)) < 0;
    else if (value && strcmp(mode, "-k") == 0)
        rc = print_keys((json_t *)value);
    else if (value)
        rc = print_value(value);
    json_decref(root);
    return rc;
}
