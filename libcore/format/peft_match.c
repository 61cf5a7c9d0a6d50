#define PCRE2_CODE_UNIT_WIDTH 8

#include "libcore/format/peft_match.h"

#include <ctype.h>
#include <pcre2.h>
#include <stdio.h>
#include <string.h>

#include "libcore/base/arena.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

enum {
    MAX_PATTERN_BYTES = 4096, // the longest seen is 300: an alternation of layers
    MAX_PATTERNS = 65536,     // EVA writes one key a module
    MATCH_STEPS = 1000000,    // pcre2's own count; a sane pattern needs hundreds
    MATCH_HEAP_KIB = 16 << 10,
};

struct regex {
    pcre2_code *code;
};

struct pattern {
    const char *key;
    double value;
    struct regex re;
};

struct pattern_list {
    struct pattern *items;
    size_t n;
};

struct peft_matcher {
    struct arena arena;
    const char *where;
    const json_t *config;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_match_data *match;
    struct pattern_list ranks, alphas;
    struct regex target, exclude; // when the field is a string
    bool all_linear;
    struct regex *layers; // of layers_pattern, or the one for any pattern
    size_t n_layers;
    struct regex *saved; // of modules_to_save
    size_t n_saved;
};

static int no_memory(const struct peft_matcher *m, struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "%s: no memory", m->where);
}

/* ---- one pattern ---- */

static void *pcre_malloc(PCRE2_SIZE n, void *tag)
{
    (void)tag;
    return sys_malloc(n);
}

static void pcre_free(void *p, void *tag)
{
    (void)tag;
    sys_free(p);
}

/* The construct at p that Python's re refuses or reads differently from PCRE2, or NULL. */
static const char *foreign_construct(const char *p)
{
    static const char escapes[] = "AbBdDsSwWZafnrtvx0123456789";
    if (p[0] == '\\') {
        if (isalnum((unsigned char)p[1]) && !strchr(escapes, p[1]))
            return "an escape that Python's re does not have";
        if (p[1] == 'x' && !(isxdigit((unsigned char)p[2]) && isxdigit((unsigned char)p[3])))
            return "\\x without two digits";
        return NULL;
    }
    if (p[0] == '(' && p[1] == '*')
        return "(*";
    if (p[0] == '[' && (p[1] == ':' || p[1] == '.' || p[1] == '='))
        return "a POSIX class";
    if (p[0] == '{' && p[1] == ',')
        return "{,n}";
    if (p[0] != '(' || p[1] != '?')
        return NULL;
    if (p[2] == 'P' && p[3] != '<' && p[3] != '=')
        return "(?P";
    if (p[2] == '<' && p[3] != '=' && p[3] != '!')
        return "(?<name>";
    return p[2] && strchr(":=!P<#(>aiLmsux-", p[2]) ? NULL
                                                    : "a group that Python's re does not have";
}

static int check_pattern(const struct peft_matcher *m, const char *field, const char *text,
                         struct err *err)
{
    if (strlen(text) > MAX_PATTERN_BYTES)
        return err_set(err, ERR_REFUSED, "%s:%s: pattern of %zu bytes, at most %d are taken",
                       m->where, field, strlen(text), MAX_PATTERN_BYTES);
    for (const char *p = text; *p; p++) {
        const char *what = foreign_construct(p);
        if (what)
            return err_set(err, ERR_REFUSED, "%s:%s: pattern \"%.120s\" uses %s; write it without",
                           m->where, field, text, what);
        if (*p == '\\' && p[1])
            p++;
    }
    return 0;
}

/* Compiles prefix + text + suffix, anchored at the start and, when full, at the end. */
static int compile(struct peft_matcher *m, struct regex *out, const char *field, const char *prefix,
                   const char *text, const char *suffix, bool full, struct err *err)
{
    int rc = check_pattern(m, field, text, err);
    if (rc)
        return rc;
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "%s%s%s", prefix, text, suffix);
    pcre2_compile_context *context = pcre2_compile_context_create(m->memory);
    int code = 0;
    PCRE2_SIZE at = 0;
    if (!sb.failed && context) {
        pcre2_set_parens_nest_limit(context, 100);
        out->code =
            pcre2_compile((PCRE2_SPTR)sb.data, sb.len,
                          PCRE2_ANCHORED | (full ? PCRE2_ENDANCHORED : 0), &code, &at, context);
    }
    bool failed = sb.failed || !context || code == PCRE2_ERROR_NOMEMORY || code == 121;
    strbuf_release(&sb);
    pcre2_compile_context_free(context);
    if (out->code)
        return 0;
    if (failed)
        return no_memory(m, err);
    char reason[120] = "";
    pcre2_get_error_message(code, (PCRE2_UCHAR *)reason, sizeof reason);
    return err_set(err, ERR_REFUSED, "%s:%s: pattern \"%.120s\": %s", m->where, field, text,
                   reason);
}

/* *yes: whether the subject matches. Too costly a pattern is refused, not waited for. */
static int run(struct peft_matcher *m, const struct regex *re, const char *field,
               const char *subject, bool *yes, struct err *err)
{
    int n = pcre2_match(re->code, (PCRE2_SPTR)subject, strlen(subject), 0, 0, m->match, m->limits);
    *yes = n >= 0;
    if (n >= 0 || n == PCRE2_ERROR_NOMATCH)
        return 0;
    if (n == PCRE2_ERROR_NOMEMORY)
        return no_memory(m, err);
    return err_set(err, ERR_REFUSED, "%s:%s: matching \"%.120s\" is too costly (pcre2 %d)",
                   m->where, field, subject, n);
}

/* ---- fields ---- */

static int read_patterns(struct peft_matcher *m, const char *field, struct pattern_list *out,
                         struct err *err)
{
    const json_t *dict = json_object_get(m->config, field);
    size_t n = json_object_size(dict);
    if (n > MAX_PATTERNS)
        return err_set(err, ERR_REFUSED, "%s:%s: %zu keys, at most %d are taken", m->where, field,
                       n, MAX_PATTERNS);
    out->items = arena_array(&m->arena, n + 1, sizeof *out->items);
    if (!out->items)
        return no_memory(m, err);
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)dict, key, value)
    {
        struct pattern *p = &out->items[out->n];
        if (!json_is_number(value))
            return err_set(err, ERR_REFUSED, "%s:%s: \"%.120s\": a number is wanted", m->where,
                           field, key);
        p->key = key;
        p->value = json_number_value(value);
        int rc = compile(m, &p->re, field, "(.*\\.)?(", key, ")$", false, err);
        if (rc)
            return rc;
        out->n++;
    }
    return 0;
}

static bool is_all_linear(const char *text)
{
    static const char word[] = "all-linear";
    size_t i = 0;
    while (word[i] && tolower((unsigned char)text[i]) == word[i])
        i++;
    return !word[i] && !text[i];
}

static int read_targets(struct peft_matcher *m, struct err *err)
{
    const char *target = json_string_value(json_object_get(m->config, "target_modules"));
    const char *exclude = json_string_value(json_object_get(m->config, "exclude_modules"));
    int rc = 0;
    m->all_linear = target && is_all_linear(target);
    if (target && !m->all_linear)
        rc = compile(m, &m->target, "target_modules", "", target, "", true, err);
    if (!rc && exclude && exclude[0])
        rc = compile(m, &m->exclude, "exclude_modules", "", exclude, "", true, err);
    return rc;
}

/* A string, or the i-th string of a list; NULL beyond its end. */
static const char *string_at(const json_t *field, size_t i)
{
    if (json_is_string(field))
        return i ? NULL : json_string_value(field);
    return json_string_value(json_array_get(field, i));
}

static size_t count_strings(const json_t *field)
{
    return json_is_string(field) ? 1 : json_array_size(field);
}

static int read_layers(struct peft_matcher *m, struct err *err)
{
    const json_t *field = json_object_get(m->config, "layers_pattern");
    if (json_is_string(field) && !json_string_value(field)[0])
        field = NULL;
    size_t n = count_strings(field);
    m->layers = arena_array(&m->arena, n + 1, sizeof *m->layers);
    if (!m->layers)
        return no_memory(m, err);
    if (!n) {
        m->n_layers = 1;
        return compile(m, &m->layers[0], "layers_pattern", ".*?\\.[^.]*\\.(?P<idx>\\d+)\\.", "", "",
                       false, err);
    }
    for (; m->n_layers < n; m->n_layers++) {
        const char *text = string_at(field, m->n_layers);
        int rc = compile(m, &m->layers[m->n_layers], "layers_pattern", "(?:^|.*?\\.)",
                         text ? text : "", "\\.(?P<idx>\\d+)\\.", false, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int read_saved(struct peft_matcher *m, struct err *err)
{
    const json_t *field = json_object_get(m->config, "modules_to_save");
    size_t n = count_strings(field);
    m->saved = arena_array(&m->arena, n + 1, sizeof *m->saved);
    if (!m->saved)
        return no_memory(m, err);
    for (; m->n_saved < n; m->n_saved++) {
        const char *text = string_at(field, m->n_saved);
        int rc = compile(m, &m->saved[m->n_saved], "modules_to_save", "(^|.*\\.)", text ? text : "",
                         "($|\\..*)", false, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int prepare(struct peft_matcher *m, struct err *err)
{
    m->memory = pcre2_general_context_create(pcre_malloc, pcre_free, NULL);
    m->limits = m->memory ? pcre2_match_context_create(m->memory) : NULL;
    m->match = m->memory ? pcre2_match_data_create(32, m->memory) : NULL;
    if (!m->limits || !m->match)
        return no_memory(m, err);
    pcre2_set_match_limit(m->limits, MATCH_STEPS);
    pcre2_set_heap_limit(m->limits, MATCH_HEAP_KIB);
    int rc = read_patterns(m, "rank_pattern", &m->ranks, err);
    if (!rc)
        rc = read_patterns(m, "alpha_pattern", &m->alphas, err);
    if (!rc)
        rc = read_targets(m, err);
    if (!rc)
        rc = read_layers(m, err);
    return rc ? rc : read_saved(m, err);
}

int peft_matcher_open(struct peft_matcher **out, const json_t *config, const char *where,
                      struct err *err)
{
    *out = NULL;
    struct peft_matcher *m = sys_calloc(1, sizeof *m);
    if (!m)
        return err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    arena_init(&m->arena);
    m->config = config;
    m->where = arena_strdup(&m->arena, where);
    int rc = m->where ? prepare(m, err) : err_set(err, ERR_NO_MEMORY, "%s: no memory", where);
    if (rc) {
        peft_matcher_free(m);
        return rc;
    }
    *out = m;
    return 0;
}

static void free_patterns(struct pattern_list *list)
{
    for (size_t i = 0; list->items && i <= list->n; i++) // the one that failed lies behind the last
        pcre2_code_free(list->items[i].re.code);
}

void peft_matcher_free(struct peft_matcher *m)
{
    if (!m)
        return;
    free_patterns(&m->ranks);
    free_patterns(&m->alphas);
    pcre2_code_free(m->target.code);
    pcre2_code_free(m->exclude.code);
    for (size_t i = 0; m->layers && i < m->n_layers; i++)
        pcre2_code_free(m->layers[i].code);
    for (size_t i = 0; m->saved && i < m->n_saved; i++)
        pcre2_code_free(m->saved[i].code);
    pcre2_match_data_free(m->match);
    pcre2_match_context_free(m->limits);
    pcre2_general_context_free(m->memory);
    arena_release(&m->arena);
    sys_free(m);
}

/* ---- questions ---- */

/* The first key that matches; *other the second. NULL: none. */
static int first_match(struct peft_matcher *m, const struct pattern_list *list, const char *field,
                       const char *key, const struct pattern **first, const char **other,
                       struct err *err)
{
    *first = NULL;
    *other = NULL;
    for (size_t i = 0; i < list->n; i++) {
        bool yes;
        int rc = run(m, &list->items[i].re, field, key, &yes, err);
        if (rc)
            return rc;
        if (!yes)
            continue;
        if (*first) {
            *other = list->items[i].key;
            return 0;
        }
        *first = &list->items[i];
    }
    return 0;
}

int peft_matcher_rank(struct peft_matcher *m, const char *key, int64_t *rank, const char **other,
                      struct err *err)
{
    const struct pattern *p;
    int rc = first_match(m, &m->ranks, "rank_pattern", key, &p, other, err);
    if (rc)
        return rc;
    const json_t *r = json_object_get(m->config, "r");
    *rank = p ? (int64_t)p->value : json_is_integer(r) ? json_integer_value(r) : 8;
    if (p && p->value != (double)*rank)
        return err_set(err, ERR_REFUSED, "%s:rank_pattern: \"%.120s\": %g is no whole rank",
                       m->where, p->key, p->value);
    return 0;
}

int peft_matcher_alpha(struct peft_matcher *m, const char *key, double *alpha, const char **other,
                       struct err *err)
{
    const struct pattern *p;
    int rc = first_match(m, &m->alphas, "alpha_pattern", key, &p, other, err);
    if (rc)
        return rc;
    const json_t *value = json_object_get(m->config, "lora_alpha");
    *alpha = p ? p->value : json_is_number(value) ? json_number_value(value) : 8.0;
    return 0;
}

bool peft_entry_matches(const char *entry, const char *name)
{
    size_t n = strlen(name), k = strlen(entry);
    if (k > n || strcmp(name + n - k, entry) != 0)
        return false;
    return k == n || name[n - k - 1] == '.';
}

static bool list_matches(const json_t *list, const char *name)
{
    for (size_t i = 0; i < json_array_size(list); i++) {
        const char *entry = json_string_value(json_array_get(list, i));
        if (entry && peft_entry_matches(entry, name))
            return true;
    }
    return false;
}

static int excluded(struct peft_matcher *m, const char *module, bool *yes, struct err *err)
{
    *yes = list_matches(json_object_get(m->config, "exclude_modules"), module) ||
           peft_matcher_saves(m, module);
    if (*yes || !m->exclude.code)
        return 0;
    return run(m, &m->exclude, "exclude_modules", module, yes, err);
}

/* The module's layer by layers_pattern, or -1. */
static int layer_index(struct peft_matcher *m, const char *module, long *layer, struct err *err)
{
    *layer = -1;
    for (size_t i = 0; i < m->n_layers; i++) {
        bool yes;
        char digits[16];
        PCRE2_SIZE n = sizeof digits;
        int rc = run(m, &m->layers[i], "layers_pattern", module, &yes, err);
        if (rc)
            return rc;
        if (!yes)
            continue;
        if (pcre2_substring_copy_byname(m->match, (PCRE2_SPTR) "idx", (PCRE2_UCHAR *)digits, &n) ==
            0)
            sscanf(digits, "%ld", layer);
        return 0;
    }
    return 0;
}

static int in_layers(struct peft_matcher *m, const char *module, bool *yes, struct err *err)
{
    const json_t *wanted = json_object_get(m->config, "layers_to_transform");
    *yes = true;
    if (!json_is_integer(wanted) && json_array_size(wanted) == 0)
        return 0;
    long layer;
    int rc = layer_index(m, module, &layer, err);
    if (rc)
        return rc;
    *yes = json_is_integer(wanted) && json_integer_value(wanted) == layer && layer >= 0;
    for (size_t i = 0; i < json_array_size(wanted); i++) {
        if (layer >= 0 && json_integer_value(json_array_get(wanted, i)) == layer)
            *yes = true;
    }
    return 0;
}

int peft_matcher_targets(struct peft_matcher *m, const char *module, bool is_linear, bool *yes,
                         struct err *err)
{
    bool out;
    int rc = excluded(m, module, &out, err);
    *yes = false;
    if (rc || out)
        return rc;
    if (m->target.code)
        return run(m, &m->target, "target_modules", module, yes, err);
    if (m->all_linear) // PEFT turns it into a list of names, so layers narrow it
        *yes = is_linear;
    else
        *yes = list_matches(json_object_get(m->config, "target_modules"), module);
    return *yes ? in_layers(m, module, yes, err) : 0;
}

bool peft_matcher_saves(struct peft_matcher *m, const char *module)
{
    for (size_t i = 0; i < m->n_saved; i++) {
        bool yes;
        if (run(m, &m->saved[i], "modules_to_save", module, &yes, NULL) == 0 && yes)
            return true;
    }
    return false;
}

bool peft_matcher_wraps(const struct peft_matcher *m, const char *module)
{
    const json_t *field = json_object_get(m->config, "modules_to_save");
    size_t n_entries = count_strings(field);
    for (size_t n = strlen(module); n; n--) { // the module, then what lies around it
        if (module[n] && module[n] != '.')
            continue;
        for (size_t i = 0; i < n_entries; i++) {
            const char *entry = string_at(field, i);
            size_t k = strlen(entry);
            if (k && k <= n && memcmp(module + n - k, entry, k) == 0)
                return true;
        }
    }
    return false;
}

bool peft_matcher_targets_parameter(const struct peft_matcher *m, const char *key)
{
    return list_matches(json_object_get(m->config, "target_parameters"), key);
}
