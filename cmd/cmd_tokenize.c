/*
 * lora tokenize: texts to ids and back.
 */
#include <stdlib.h>
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/tokenizer.h"

static const char *file;
static bool add_special, decode, skip_special, special_as_text;

static const struct option options[] = {
    {.long_name = "file",
     .type = OPTION_STRING,
     .value = &file,
     .value_name = "FILE",
     .help = "A JSON list of texts (with --decode: of lists of ids) instead of TEXT; - is standard "
             "input."},
    {.long_name = "add-special",
     .type = OPTION_FLAG,
     .value = &add_special,
     .help = "Add the special tokens that the model wants around a text, such as its first one."},
    {.long_name = "special-as-text",
     .type = OPTION_FLAG,
     .value = &special_as_text,
     .help = "Take special tokens inside a text as ordinary characters."},
    {.long_name = "decode", .type = OPTION_FLAG, .value = &decode, .help = "From ids to texts."},
    {.long_name = "skip-special",
     .type = OPTION_FLAG,
     .value = &skip_special,
     .help = "With --decode: leave special tokens out."},
    {0},
};

/* Where the results go: lines on stdout at once, or a list for --json. */
struct output {
    bool json;
    json_t *list;
};

static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "tokenize: out of memory");
}

static int put_ids(struct output *o, const struct token_ids *ids, struct err *err)
{
    if (!o->json) {
        for (size_t i = 0; i < ids->n; i++)
            printf("%s%u", i ? " " : "", ids->data[i]);
        putchar('\n');
        return 0;
    }
    json_t *row = json_array();
    bool good = row != NULL;
    for (size_t i = 0; good && i < ids->n; i++)
        good = json_array_append_new(row, json_integer(ids->data[i])) == 0;
    if (good)
        return json_array_append_new(o->list, row) == 0 ? 0 : no_memory(err);
    json_decref(row);
    return no_memory(err);
}

static int encode_one(const struct tokenizer *t, const char *text, size_t n, struct output *o,
                      struct err *err)
{
    struct token_ids ids;
    token_ids_init(&ids);
    unsigned flags = (add_special ? TOKENIZER_ADD_SPECIAL : 0u) |
                     (special_as_text ? TOKENIZER_SPECIAL_AS_TEXT : 0u);
    int rc = tokenizer_encode(t, text, n, flags, &ids, err);
    if (!rc)
        rc = put_ids(o, &ids, err);
    token_ids_release(&ids);
    return rc;
}

static int decode_one(const struct tokenizer *t, const struct token_ids *ids, struct output *o,
                      struct err *err)
{
    struct strbuf text;
    strbuf_init(&text);
    int rc = tokenizer_decode(t, ids->data, ids->n, skip_special ? TOKENIZER_SKIP_SPECIAL : 0,
                              &text, err);
    if (!rc && o->json) {
        json_t *s = json_stringn(strbuf_text(&text), text.len);
        rc = s && json_array_append_new(o->list, s) == 0 ? 0 : no_memory(err);
    } else if (!rc) {
        fwrite(strbuf_text(&text), 1, text.len, stdout);
        putchar('\n');
    }
    strbuf_release(&text);
    return rc;
}

static int add_id(struct token_ids *ids, json_int_t id, const char *where, struct err *err)
{
    if (id < 0 || id > INT32_MAX)
        return err_set(err, ERR_USAGE, "%s: %lld is no token id", where, (long long)id);
    return token_ids_add(ids, (uint32_t)id, err);
}

/* "1 2 3", commas allowed: as the ids are printed or as JSON has them. */
static int decode_words(const struct tokenizer *t, const char *text, struct output *o,
                        struct err *err)
{
    static const char between[] = " ,\t\n[]";
    struct token_ids ids;
    token_ids_init(&ids);
    int rc = 0;
    for (text += strspn(text, between); !rc && *text; text += strspn(text, between)) {
        char *end;
        long long id = strtoll(text, &end, 10);
        if (end == text || !strchr(between, *end))
            rc = err_set(err, ERR_USAGE, "'%.40s' is no token id", text);
        else
            rc = add_id(&ids, id, "TEXT", err);
        text = end;
    }
    if (!rc)
        rc = decode_one(t, &ids, o, err);
    token_ids_release(&ids);
    return rc;
}

static int decode_list(const struct tokenizer *t, const json_t *list, struct output *o,
                       struct err *err)
{
    struct token_ids ids;
    token_ids_init(&ids);
    size_t i;
    const json_t *id;
    int rc =
        json_is_array(list) ? 0 : err_set(err, ERR_USAGE, "%s: not a list of lists of ids", file);
    json_array_foreach(list, i, id)
    {
        if (!rc)
            rc = json_is_integer(id) ? add_id(&ids, json_integer_value(id), file, err)
                                     : err_set(err, ERR_USAGE, "%s: an id is no number", file);
    }
    if (!rc)
        rc = decode_one(t, &ids, o, err);
    token_ids_release(&ids);
    return rc;
}

static int run_file(const struct tokenizer *t, struct output *o, struct err *err)
{
    json_error_t e;
    size_t i;
    const json_t *item;
    if (strcmp(file, "-") != 0 && !file_exists(file))
        return err_set(err, ERR_NOT_FOUND, "%s: no such file", file);
    json_t *all = strcmp(file, "-") == 0 ? json_loadf(stdin, JSON_ALLOW_NUL, &e)
                                         : json_load_file(file, JSON_ALLOW_NUL, &e);
    int rc = 0;
    if (!all)
        rc = err_set(err, ERR_USAGE, "%s:%d: %s", file, e.line, e.text);
    else if (!json_is_array(all))
        rc = err_set(err, ERR_USAGE, "%s: not a list", file);
    json_array_foreach(all, i, item)
    {
        if (rc)
            break;
        if (cmd_interrupted())
            rc = err_set(err, ERR_INTERRUPTED, "interrupted");
        else if (decode)
            rc = decode_list(t, item, o, err);
        else if (json_is_string(item))
            rc = encode_one(t, json_string_value(item), json_string_length(item), o, err);
        else
            rc = err_set(err, ERR_USAGE, "%s: item %zu is no text", file, i);
    }
    json_decref(all);
    return rc;
}

static int open_tokenizer(struct cmd_context *ctx, struct tokenizer **t, struct err *err)
{
    char *folder = NULL;
    char *cache = cmd_tokenizer_cache(ctx);
    int rc = cmd_model_folder(ctx, ctx->args[0], &folder, err);
    if (!rc)
        rc = tokenizer_open(t, folder, cache, err);
    sys_free(cache);
    sys_free(folder);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct tokenizer *t = NULL;
    struct output o = {.json = ctx->json};
    if ((ctx->n_args == 2) == (file != NULL))
        return err_set(err, ERR_USAGE, "tokenize takes either TEXT or --file");
    int rc = open_tokenizer(ctx, &t, err);
    if (rc)
        return rc;
    o.list = o.json ? json_array() : NULL;
    if (o.json && !o.list)
        rc = no_memory(err);
    else if (file)
        rc = run_file(t, &o, err);
    else if (decode)
        rc = decode_words(t, ctx->args[1], &o, err);
    else
        rc = encode_one(t, ctx->args[1], strlen(ctx->args[1]), &o, err);
    tokenizer_free(t);
    if (rc || !o.json) {
        json_decref(o.list);
        return rc;
    }
    json_t *fields = json_pack("{s:o}", decode ? "texts" : "ids", o.list);
    if (!fields)
        return no_memory(err);
    cmd_print_json(fields);
    return 0;
}

const struct command command_tokenize = {
    .name = "tokenize",
    .arguments = "MODEL [TEXT]",
    .summary = "texts to token ids and back",
    .description =
        "Prints the ids that the model's tokenizer gives for TEXT, or for each text of a "
        "JSON list (--file), one line a text. MODEL needs no more than the tokenizer's "
        "files. With --decode TEXT is ids, \"1 2 3\", and the file a list of lists of ids.",
    .examples = "lora tokenize ./llama-3.1-8b \"Hello, world!\"\n"
                "lora tokenize ./llama-3.1-8b --file texts.json --add-special --json\n"
                "lora tokenize ./llama-3.1-8b --decode \"9906 11 1917 0\"",
    .min_args = 1,
    .max_args = 2,
    .options = options,
    .run = run,
};
