#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cmd/options_impl.h"

int options_parse_size(const char *text, uint64_t *bytes, struct err *err)
{
    static const char letters[] = "KMGTP";
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    bool digits = text[0] >= '0' && text[0] <= '9';
    if (!digits || end == text || errno || !isfinite(v) || strpbrk(text, "xX"))
        return err_set(err, ERR_USAGE, "wanted a size such as 1024, 64K, 1.5G or 2GiB, got '%s'",
                       text);
    double unit = 1;
    const char *letter = *end ? strchr(letters, *end >= 'a' ? *end - 'a' + 'A' : *end) : NULL;
    const char *rest = end;
    if (letter) {
        rest = end + 1;
        double base = strcasecmp(rest, "B") == 0 ? 1000 : 1024;
        for (long i = 0; i <= letter - letters; i++)
            unit *= base;
        if (strcasecmp(rest, "iB") == 0)
            rest += 2;
    }
    if (strcasecmp(rest, "B") == 0)
        rest++;
    if (*rest)
        return err_set(err, ERR_USAGE, "wanted a size such as 1024, 64K, 1.5G or 2GiB, got '%s'",
                       text);
    if (v * unit >= 0x1p63)
        return err_set(err, ERR_USAGE, "%s is more than 8 EiB", text);
    // Whole numbers keep all their digits; a double holds only 53 bits.
    *bytes = unit == 1 ? strtoull(text, NULL, 10) : (uint64_t)(v * unit);
    return 0;
}

static bool parse_flag(const char *text, bool *out)
{
    static const char *const yes[] = {"1", "true", "yes", "on"};
    static const char *const no[] = {"0", "false", "no", "off", ""};
    for (size_t i = 0; i < sizeof yes / sizeof *yes; i++) {
        if (strcasecmp(text, yes[i]) == 0)
            return *out = true;
    }
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        if (strcasecmp(text, no[i]) == 0) {
            *out = false;
            return true;
        }
    }
    return false;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t n = strlen(text);
    for (const char *p = choices; *p;) {
        size_t len = strcspn(p, ",");
        if (len == n && memcmp(p, text, n) == 0)
            return true;
        p += len + (p[len] == ',');
    }
    return false;
}

static int set_int(const struct option *row, const char *text, const char *where, struct err *err)
{
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    bool whole = end != text && !*end && !errno && (text[0] == '-' || (text[0] >= '0'));
    if (row->max > row->min && (!whole || v < row->min || v > row->max)) {
        if (row->max == INT64_MAX)
            return err_set(err, ERR_USAGE, "%s: wanted a whole number, %lld or more, got '%s'",
                           where, (long long)row->min, text);
        return err_set(err, ERR_USAGE, "%s: wanted a whole number from %lld to %lld, got '%s'",
                       where, (long long)row->min, (long long)row->max, text);
    }
    if (!whole)
        return err_set(err, ERR_USAGE, "%s: wanted a whole number, got '%s'", where, text);
    *(int64_t *)row->value = v;
    return 0;
}

static int set_double(const struct option *row, const char *text, const char *where,
                      struct err *err)
{
    char *end;
    errno = 0;
    double v = strtod(text, &end);
    if (end == text || *end || errno == ERANGE || !isfinite(v))
        return err_set(err, ERR_USAGE, "%s: wanted a number, got '%s'", where, text);
    *(double *)row->value = v;
    return 0;
}

static int append(struct cmd_private *priv, struct row_state *state, const char *text,
                  struct err *err)
{
    struct string_list *list = state->row->value;
    if (state->list_capacity == 0)
        list->n = 0; // the first value of this parse replaces the default
    if (list->n == state->list_capacity) {
        size_t capacity = state->list_capacity ? state->list_capacity * 2 : 8;
        const char **items = arena_array(&priv->arena, capacity, sizeof *items);
        if (!items)
            return err_set(err, ERR_NO_MEMORY, "no memory for options");
        if (list->n)
            memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        state->list_capacity = capacity;
    }
    list->items[list->n++] = text;
    return 0;
}

int option_set_text(struct cmd_private *priv, struct row_state *state, const char *text,
                    const char *where, struct err *err)
{
    const struct option *row = state->row;
    if (row->choices && row->type != OPTION_FLAG && !is_choice(row->choices, text))
        return err_set(err, ERR_USAGE, "%s: wanted one of %s, got '%s'", where, row->choices, text);
    switch (row->type) {
    case OPTION_FLAG:
        if (!parse_flag(text, row->value))
            return err_set(err, ERR_USAGE, "%s: wanted true or false, got '%s'", where, text);
        return 0;
    case OPTION_STRING:
        *(const char **)row->value = text;
        return 0;
    case OPTION_INT:
        return set_int(row, text, where, err);
    case OPTION_DOUBLE:
        return set_double(row, text, where, err);
    case OPTION_SIZE: {
        int rc = options_parse_size(text, row->value, err);
        if (rc)
            err_prefix(err, "%s", where);
        return rc;
    }
    case OPTION_LIST:
    case OPTION_WORDS:
        return append(priv, state, text, err);
    case OPTION_HEADING:
        break;
    }
    return err_set(err, ERR_INTERNAL, "%s: a heading has no value", where);
}

static const char *list_text(const struct string_list *list, char *buf, size_t n)
{
    size_t len = 0;
    buf[0] = '\0';
    for (size_t i = 0; i < list->n && len < n; i++)
        len += (size_t)snprintf(buf + len, n - len, "%s%s", i ? " " : "", list->items[i]);
    return buf;
}

const char *option_value_text(const struct option *row, char *buf, size_t n)
{
    const char *text;
    switch (row->type) {
    case OPTION_FLAG:
        return *(bool *)row->value ? "true" : "false";
    case OPTION_STRING:
        text = *(const char **)row->value;
        snprintf(buf, n, "%s", text ? text : "");
        return buf;
    case OPTION_INT:
        snprintf(buf, n, "%lld", (long long)*(int64_t *)row->value);
        return buf;
    case OPTION_DOUBLE:
        snprintf(buf, n, "%g", *(double *)row->value);
        return buf;
    case OPTION_SIZE:
        snprintf(buf, n, "%llu", (unsigned long long)*(uint64_t *)row->value);
        return buf;
    case OPTION_LIST:
    case OPTION_WORDS:
        return list_text(row->value, buf, n);
    case OPTION_HEADING:
        break;
    }
    return "";
}

// ---- the nearest spelling -----------------------------------------------------------------------

enum { NEAREST_MAX_CHARS = 64 };

/* Edit distance in which two neighbours that changed places count as one edit. */
static size_t edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    size_t rows[3][NEAREST_MAX_CHARS + 1];
    if (n > NEAREST_MAX_CHARS || m > NEAREST_MAX_CHARS)
        return SIZE_MAX;
    for (size_t j = 0; j <= m; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= n; i++) {
        size_t *now = rows[i % 3], *above = rows[(i + 2) % 3], *above2 = rows[(i + 1) % 3];
        now[0] = i;
        for (size_t j = 1; j <= m; j++) {
            size_t best = above[j - 1] + (a[i - 1] != b[j - 1]);
            best = above[j] + 1 < best ? above[j] + 1 : best;
            best = now[j - 1] + 1 < best ? now[j - 1] + 1 : best;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                above2[j - 2] + 1 < best)
                best = above2[j - 2] + 1;
            now[j] = best;
        }
    }
    return rows[n % 3][m];
}

void nearest_init(struct nearest *n, const char *word)
{
    *n = (struct nearest){.word = word, .distance = SIZE_MAX};
}

void nearest_offer(struct nearest *n, const char *name)
{
    size_t distance = edit_distance(n->word, name);
    if (distance < n->distance) {
        n->distance = distance;
        n->best = name;
    }
}

const char *nearest_name(const struct nearest *n)
{
    size_t allowed = strlen(n->word) / 3;
    if (allowed < 1)
        allowed = 1;
    if (allowed > 3)
        allowed = 3;
    return n->distance <= allowed ? n->best : NULL;
}
