/* What is put around the ids of a text: the "post_processor" of tokenizer.json, for single texts.
 */
#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/json_fields.h"
#include "libcore/text/tokenizer_impl.h"

static int add_around(struct token_ids *list, const struct token_ids *outer, bool in_front,
                      struct err *err)
{
    struct token_ids joined = {0};
    const struct token_ids *first = in_front ? outer : list, *second = in_front ? list : outer;
    int rc = 0;
    for (size_t i = 0; i < first->n && !rc; i++)
        rc = token_ids_add(&joined, first->data[i], err);
    for (size_t i = 0; i < second->n && !rc; i++)
        rc = token_ids_add(&joined, second->data[i], err);
    if (rc) {
        token_ids_release(&joined);
        return rc;
    }
    token_ids_release(list);
    *list = joined;
    return 0;
}

/* {"SpecialToken": {"id": NAME}}: the ids that special_tokens has under the name. */
static int add_special(const json_t *special, const json_t *tokens, struct token_ids *to,
                       struct err *err)
{
    const char *name = json_string_value(json_object_get(special, "id"));
    const json_t *ids = json_object_get(name ? json_object_get(tokens, name) : NULL, "ids");
    size_t i;
    const json_t *id;
    if (!json_is_array(ids))
        return err_set(err, ERR_CORRUPT, "post_processor: special token '%.60s' has no ids",
                       name ? name : "");
    json_array_foreach(ids, i, id)
    {
        json_int_t v = json_is_integer(id) ? json_integer_value(id) : -1;
        if (v < 0 || v > INT32_MAX)
            return err_set(err, ERR_CORRUPT, "post_processor: an id of '%.60s' is none", name);
        int rc = token_ids_add(to, (uint32_t)v, err);
        if (rc)
            return rc;
    }
    return 0;
}

static int read_template_into(const json_t *value, struct token_ids *before,
                              struct token_ids *after, struct err *err)
{
    const json_t *single = json_object_get(value, "single"), *item;
    size_t i, n_texts = 0;
    if (!json_is_array(single))
        return err_set(err, ERR_CORRUPT, "post_processor TemplateProcessing: single is no list");
    json_array_foreach(single, i, item)
    {
        const json_t *special = json_object_get(item, "SpecialToken");
        const json_t *sequence = json_object_get(item, "Sequence");
        const char *name = json_string_value(json_object_get(sequence, "id"));
        if (special) {
            int rc = add_special(special, json_object_get(value, "special_tokens"),
                                 n_texts ? after : before, err);
            if (rc)
                return rc;
        } else if (name && strcmp(name, "A") == 0) {
            n_texts++;
        } else {
            return err_set(err, ERR_REFUSED,
                           "post_processor TemplateProcessing: an item of single is not supported");
        }
    }
    if (n_texts != 1)
        return err_set(err, ERR_REFUSED,
                       "post_processor TemplateProcessing: the text stands %zu times", n_texts);
    return 0;
}

static int read_template(struct tokenizer *t, const json_t *value, struct err *err)
{
    struct token_ids before = {0}, after = {0};
    int rc = read_template_into(value, &before, &after, err);
    if (!rc)
        rc = add_around(&t->before, &before, true, err);
    if (!rc)
        rc = add_around(&t->after, &after, false, err);
    token_ids_release(&before);
    token_ids_release(&after);
    return rc;
}

/* ["<s>", 0] */
static int read_pair(const json_t *value, const char *name, struct token_ids *to, struct err *err)
{
    const json_t *id = json_array_get(json_object_get(value, name), 1);
    if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) > INT32_MAX)
        return err_set(err, ERR_CORRUPT, "post_processor: %s is no token with its id", name);
    return token_ids_add(to, (uint32_t)json_integer_value(id), err);
}

/* RobertaProcessing and BertProcessing: cls text sep. */
static int read_cls_sep(struct tokenizer *t, const json_t *value, struct err *err)
{
    struct token_ids cls = {0}, sep = {0};
    int rc = read_pair(value, "cls", &cls, err);
    if (!rc)
        rc = read_pair(value, "sep", &sep, err);
    if (!rc)
        rc = add_around(&t->before, &cls, true, err);
    if (!rc)
        rc = add_around(&t->after, &sep, false, err);
    token_ids_release(&cls);
    token_ids_release(&sep);
    return rc;
}

int post_processor_read(struct tokenizer *t, const json_t *value, struct err *err)
{
    if (!value || json_is_null(value))
        return 0;
    const char *type = json_string_value(json_object_get(value, "type"));
    if (!type)
        return err_set(err, ERR_REFUSED, "post_processor without a type");
    if (strcmp(type, "ByteLevel") == 0) // moves offsets only
        return 0;
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, value, err);
    if (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0)
        return read_cls_sep(t, value, err);
    if (strcmp(type, "Sequence") != 0)
        return err_set(err, ERR_REFUSED, "post_processor '%.60s' is not supported", type);
    size_t i;
    const json_t *member;
    const json_t *list = json_object_get(value, "processors");
    if (!json_is_array(list))
        return err_set(err, ERR_CORRUPT, "post_processor Sequence: processors is no list");
    json_array_foreach(list, i, member)
    {
        int rc = json_is_object(member)
                     ? post_processor_read(t, member, err)
                     : err_set(err, ERR_CORRUPT, "post_processor Sequence: a member is no object");
        if (rc)
            return rc;
    }
    return 0;
}

/* add_bos_token and add_eos_token, where they are said, win over the template: transformers
 * rebuilds it from them. */
static int set_edge(struct token_ids *list, int64_t id, int wanted, bool in_front, struct err *err)
{
    if (wanted < 0 || id < 0)
        return 0;
    size_t at = in_front ? 0 : list->n - 1;
    bool there = list->n && list->data[at] == (uint32_t)id;
    if (there == (wanted > 0))
        return 0;
    if (!wanted) {
        list->n--;
        if (in_front)
            memmove(list->data, list->data + 1, list->n * sizeof *list->data);
        return 0;
    }
    uint32_t one = (uint32_t)id;
    struct token_ids outer = {.data = &one, .n = 1};
    return add_around(list, &outer, in_front, err);
}

int post_processor_configure(struct tokenizer *t, const struct tokenizer_config *config,
                             struct err *err)
{
    int rc = set_edge(&t->before, t->role_id[TOKENIZER_BOS], config->add_bos, true, err);
    return rc ? rc : set_edge(&t->after, t->role_id[TOKENIZER_EOS], config->add_eos, false, err);
}
