/*
 * lora prompt: what a model is really given, its chat template rendered over a context.
 */
#include <string.h>
#include <time.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/limits.h"
#include "libcore/base/sys.h"
#include "libcore/text/chat_template.h"
#include "libcore/text/tokenizer.h"

static const char *context_file, *template_file;
static bool tokens, now_given;
static int64_t now_unix;

/* FILE, or - for standard input. */
static int read_context(json_t **out, const char *path, struct err *err)
{
    json_error_t why;
    char *text = NULL;
    size_t len;
    bool from_stdin = strcmp(path, "-") == 0;
    int rc = file_read(from_stdin ? "/dev/stdin" : path, LIMIT_BODY_BYTES, &text, &len, err);
    if (rc)
        return rc;
    *out = json_loadb(text, len, JSON_ALLOW_NUL, &why);
    sys_free(text);
    if (!*out)
        return err_set(err, ERR_USAGE, "%s:%d:%d: %s", path, why.line, why.column, why.text);
    if (!json_is_object(*out))
        return err_set(err, ERR_USAGE, "%s: wanted a JSON object of variables (messages, …)", path);
    return 0;
}

/* The template writes the model's special tokens itself, so none are added. */
static int encode(const struct cmd_context *ctx, const char *folder, const struct strbuf *text,
                  struct token_ids *ids, struct err *err)
{
    struct tokenizer *t = NULL;
    char *cache = cmd_tokenizer_cache(ctx);
    int rc = tokenizer_open(&t, folder, cache, err);
    sys_free(cache);
    if (!rc)
        rc = tokenizer_encode(t, strbuf_text(text), text->len, 0, ids, err);
    tokenizer_free(t);
    return rc;
}

static json_t *ids_json(const struct token_ids *ids)
{
    json_t *list = json_array();
    for (size_t i = 0; i < ids->n; i++)
        json_array_append_new(list, json_integer(ids->data[i]));
    return list;
}

static void print_result(const struct cmd_context *ctx, const struct strbuf *text,
                         const struct token_ids *ids)
{
    if (ctx->json) {
        json_t *o = json_pack("{s:o}", "prompt", json_stringn(strbuf_text(text), text->len));
        if (tokens)
            json_object_set_new(o, "ids", ids_json(ids));
        cmd_print_json(o);
    } else if (tokens) {
        for (size_t i = 0; i < ids->n; i++)
            printf("%s%u", i ? " " : "", ids->data[i]);
        putchar('\n');
    } else {
        fwrite(strbuf_text(text), 1, text->len, stdout);
    }
}

static int render(const char *folder, struct strbuf *text, struct err *err)
{
    struct chat_template *t = NULL;
    json_t *context = NULL;
    int rc = read_context(&context, context_file, err);
    if (!rc)
        rc = template_file ? chat_template_open_file(&t, template_file, folder, err)
                           : chat_template_open(&t, folder, err);
    if (rc == ERR_NOT_FOUND && !template_file && context)
        cmd_hint("--template FILE gives one");
    if (!rc)
        rc =
            chat_template_render(t, context, now_given ? now_unix : (int64_t)time(NULL), text, err);
    chat_template_free(t);
    json_decref(context);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct strbuf text;
    struct token_ids ids;
    char *folder = NULL;
    if (!context_file)
        return err_set(err, ERR_USAGE, "--context FILE is missing");
    strbuf_init(&text);
    token_ids_init(&ids);
    int rc = cmd_model_folder(ctx, ctx->args[0], &folder, err);
    if (!rc)
        rc = render(folder, &text, err);
    if (!rc && tokens)
        rc = encode(ctx, folder, &text, &ids, err);
    if (!rc)
        print_result(ctx, &text, &ids);
    sys_free(folder);
    token_ids_release(&ids);
    strbuf_release(&text);
    return rc;
}

static const struct option options[] = {
    {.long_name = "context",
     .type = OPTION_STRING,
     .value = &context_file,
     .value_name = "FILE",
     .help = "JSON object of the template's variables: messages, tools, add_generation_prompt, … "
             "(- reads standard input)."},
    {.long_name = "template",
     .type = OPTION_STRING,
     .value = &template_file,
     .value_name = "FILE",
     .help = "A Jinja file instead of the model's own template."},
    {.long_name = "tokens",
     .type = OPTION_FLAG,
     .value = &tokens,
     .help = "Print the ids of the text, on one line; with --json both."},
    {.long_name = "now",
     .type = OPTION_INT,
     .value = &now_unix,
     .given = &now_given,
     .value_name = "UNIX",
     .min = 0,
     .max = INT64_C(253402300799),
     .help = "The clock that the template sees, in seconds since 1970 (UTC)."},
    {0},
};

const struct command command_prompt = {
    .name = "prompt",
    .arguments = "MODEL",
    .summary = "show what a chat makes the model read",
    .description = "Renders the model's chat template over the variables of a JSON file and\n"
                   "prints the text byte for byte. MODEL is a base or a folder with its\n"
                   "tokenizer files. Special tokens (bos_token, …) come from there too; no\n"
                   "other variable is added to those of the file.",
    .examples = "lora prompt ./llama --context chat.json\n"
                "lora prompt llama --context chat.json --tokens",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
