/* The "pre_tokenizer" value of tokenizer.json into steps. */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/json_fields.h"
#include "libcore/text/pre_tokenize.h"

enum { MAX_STEPS = 64, MAX_FIXED_LENGTH = 1 << 20 };

static const char byte_level_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

static struct pre_step *add_step(struct pre_tokenizer *p, enum pre_kind kind, struct err *err)
{
    if (p->n == MAX_STEPS) {
        err_set(err, ERR_LIMIT, "more than %d pre-tokenizers", MAX_STEPS);
        return NULL;
    }
    if (p->n == p->cap) {
        size_t cap = p->cap ? p->cap * 2 : 8;
        struct pre_step *steps = sys_reallocarray(p->steps, cap, sizeof *steps);
        if (!steps) {
            err_set(err, ERR_NO_MEMORY, "pre-tokenizer: out of memory");
            return NULL;
        }
        p->steps = steps;
        p->cap = cap;
    }
    struct pre_step *step = &p->steps[p->n++];
    *step = (struct pre_step){.kind = kind, .behavior = SPLIT_ISOLATED};
    return step;
}

static int read_behavior(const json_t *value, enum split_behavior *out, const char *owner,
                         struct err *err)
{
    static const char *const names[] = {"Removed", "Isolated", "MergedWithPrevious",
                                        "MergedWithNext", "Contiguous"};
    const char *name = json_string_value(value);
    for (size_t i = 0; name && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = (enum split_behavior)i;
            return 0;
        }
    }
    return err_set(err, ERR_REFUSED, "%s: behavior '%.40s' is not supported", owner,
                   name ? name : "");
}

static int read_split(struct pre_step *step, const json_t *value, struct err *err)
{
    const char *owner = "pre-tokenizer Split";
    int rc = read_behavior(json_object_get(value, "behavior"), &step->behavior, owner, err);
    if (!rc)
        rc = json_field_bool(value, "invert", FIELD_NEEDED, &step->invert, owner, err);
    return rc ? rc
              : text_pattern_open(&step->pattern, json_object_get(value, "pattern"), owner, err);
}

/* One step to cut, one to put characters for bytes. */
static int read_byte_level(struct pre_tokenizer *p, struct pre_step *step, const json_t *value,
                           struct err *err)
{
    const char *owner = "pre-tokenizer ByteLevel";
    step->use_pattern = true;
    int rc =
        json_field_bool(value, "add_prefix_space", FIELD_NEEDED, &step->prefix_space, owner, err);
    if (!rc)
        rc = json_field_bool(value, "use_regex", FIELD_OPTIONAL, &step->use_pattern, owner, err);
    if (!rc && step->use_pattern)
        rc = regex_open(&step->pattern.regex, byte_level_pattern, sizeof byte_level_pattern - 1,
                        err);
    if (rc)
        return rc;
    return add_step(p, PRE_BYTE_LEVEL_MAP, err) ? 0 : err->code;
}

int metaspace_read(const json_t *value, struct pre_step *step, struct err *err)
{
    static const char *const names[] = {"always", "first", "never"};
    const char *owner = "Metaspace";
    bool prefix_space = true;
    step->prepend = PREPEND_ALWAYS;
    step->split = true;
    int rc = json_field_char(value, "replacement", &step->character, owner, err);
    if (!rc)
        rc = json_field_bool(value, "add_prefix_space", FIELD_OPTIONAL, &prefix_space, owner, err);
    if (!rc)
        rc = json_field_bool(value, "split", FIELD_OPTIONAL, &step->split, owner, err);
    const json_t *scheme = json_object_get(value, "prepend_scheme");
    if (rc)
        return rc;
    if (scheme) {
        size_t i = 0;
        const char *name = json_string_value(scheme);
        while (i < 3 && (!name || strcmp(name, names[i]) != 0))
            i++;
        if (i == 3)
            return err_set(err, ERR_REFUSED, "%s: prepend_scheme '%.40s' is not supported", owner,
                           name ? name : "");
        step->prepend = (enum prepend_scheme)i;
    }
    if (!prefix_space && step->prepend != PREPEND_NEVER)
        return err_set(err, ERR_REFUSED, "%s: add_prefix_space does not fit prepend_scheme", owner);
    return 0;
}

static int read_step(struct pre_tokenizer *p, struct pre_step *step, const char *type,
                     const json_t *value, struct err *err)
{
    switch (step->kind) {
    case PRE_SPLIT:
        return read_split(step, value, err);
    case PRE_BYTE_LEVEL_SPLIT:
        return read_byte_level(p, step, value, err);
    case PRE_METASPACE:
        return metaspace_read(value, step, err);
    case PRE_DIGITS: {
        bool single = false;
        int rc = json_field_bool(value, "individual_digits", FIELD_NEEDED, &single, type, err);
        step->behavior = single ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
        return rc;
    }
    case PRE_PUNCTUATION: {
        const json_t *behavior = json_object_get(value, "behavior");
        return behavior ? read_behavior(behavior, &step->behavior, type, err) : 0;
    }
    case PRE_DELIMITER:
        step->behavior = SPLIT_REMOVED;
        return json_field_char(value, "delimiter", &step->character, type, err);
    case PRE_FIXED_LENGTH: {
        step->length = 5; // the library's default
        int rc = json_field_size(value, "length", FIELD_OPTIONAL, &step->length, type, err);
        if (!rc && (step->length == 0 || step->length > MAX_FIXED_LENGTH))
            rc = err_set(err, ERR_REFUSED, "pre-tokenizer FixedLength: length %zu", step->length);
        return rc;
    }
    default:
        step->behavior = SPLIT_REMOVED;
        return 0;
    }
}

static int add_by_type(struct pre_tokenizer *p, const char *type, const json_t *value,
                       struct err *err)
{
    static const struct {
        const char *name;
        enum pre_kind kind;
    } kinds[] = {{"Split", PRE_SPLIT},
                 {"ByteLevel", PRE_BYTE_LEVEL_SPLIT},
                 {"Metaspace", PRE_METASPACE},
                 {"Digits", PRE_DIGITS},
                 {"Whitespace", PRE_WHITESPACE},
                 {"WhitespaceSplit", PRE_WHITESPACE_SPLIT},
                 {"Punctuation", PRE_PUNCTUATION},
                 {"CharDelimiterSplit", PRE_DELIMITER},
                 {"FixedLength", PRE_FIXED_LENGTH}};
    if (strcmp(type, "BertPreTokenizer") == 0) {
        struct pre_step *step = add_step(p, PRE_WHITESPACE_SPLIT, err);
        if (step)
            step->behavior = SPLIT_REMOVED;
        return step && add_step(p, PRE_PUNCTUATION, err) ? 0 : err->code;
    }
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        if (strcmp(type, kinds[i].name) != 0)
            continue;
        struct pre_step *step = add_step(p, kinds[i].kind, err);
        return step ? read_step(p, step, type, value, err) : err->code;
    }
    return err_set(err, ERR_REFUSED, "pre-tokenizer '%.60s' is not supported", type);
}

int pre_tokenizer_add(struct pre_tokenizer *p, const json_t *value, struct err *err)
{
    struct err own;
    if (!err) // messages are read back above
        err = &own;
    if (!value || json_is_null(value))
        return 0;
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type)
        return err_set(err, ERR_REFUSED, "pre-tokenizer without a type");
    if (strcmp(type, "Sequence") != 0)
        return add_by_type(p, type, value, err);
    size_t i;
    const json_t *member;
    const json_t *list = json_object_get(value, "pretokenizers");
    if (!json_is_array(list))
        return err_set(err, ERR_CORRUPT, "pre-tokenizer Sequence: pretokenizers is no list");
    json_array_foreach(list, i, member)
    {
        int rc = json_is_object(member)
                     ? pre_tokenizer_add(p, member, err)
                     : err_set(err, ERR_CORRUPT, "pre-tokenizer Sequence: a member is no object");
        if (rc)
            return rc;
    }
    return 0;
}

void pre_tokenizer_release(struct pre_tokenizer *p)
{
    for (size_t i = 0; i < p->n; i++)
        text_pattern_release(&p->steps[i].pattern);
    sys_free(p->steps);
    memset(p, 0, sizeof *p);
}
