/* Where chat templates and special tokens come from in a model's folder. */
#include "libcore/text/chat_template.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

static int folder_number;
static char folder[4096];

static void new_folder(void)
{
    struct err err = {0};
    snprintf(folder, sizeof folder, "%s/model%d", test_tmp(), folder_number++);
    CHECK_OK(file_make_folders(folder, &err), err);
}

static void put(const char *name, const char *text)
{
    char path[5000];
    struct err err = {0};
    snprintf(path, sizeof path, "%s/%s", folder, name);
    char *parent = file_dir_name(path);
    CHECK_OK(file_make_folders(parent, &err), err);
    CHECK_OK(file_write_atomic(path, text, strlen(text), &err), err);
    sys_free(parent);
}

/* Renders the folder's template over a context. */
static void gives(const char *context, const char *want)
{
    struct chat_template *t = NULL;
    struct err err = {0};
    struct strbuf out;
    json_t *json = json_loads(context, 0, NULL);
    strbuf_init(&out);
    int rc = chat_template_open(&t, folder, &err);
    if (!rc)
        rc = chat_template_render(t, json, 0, &out, &err);
    EXPECT_MSG(rc == 0, "%s: %s", context, err.msg);
    EXPECT_STR(strbuf_text(&out), want);
    strbuf_release(&out);
    json_decref(json);
    chat_template_free(t);
}

static void is_refused(int code, const char *message)
{
    struct chat_template *t;
    struct err err = {0};
    CHECK_CODE(chat_template_open(&t, folder, &err), code, err);
    EXPECT(t == NULL);
    EXPECT_MSG(strstr(err.msg, message) != NULL, "'%s' lacks '%s'", err.msg, message);
}

TEST(a_template_in_tokenizer_config)
{
    new_folder();
    put("tokenizer_config.json",
        "{\"chat_template\": \"{{ bos_token }}{{ x }}{{ eos_token }}\", \"bos_token\": \"<s>\","
        " \"eos_token\": {\"content\": \"</s>\", \"special\": true}, \"pad_token\": null,"
        " \"model_max_length\": 1000000000000000019884624838656}");
    gives("{\"x\": 1}", "<s>1</s>");
    gives("{\"x\": 1, \"bos_token\": \"\"}", "1</s>");
}

TEST(a_jinja_file_goes_before_tokenizer_config)
{
    new_folder();
    put("tokenizer_config.json", "{\"chat_template\": \"old\", \"eos_token\": \"E\"}");
    put("chat_template.jinja", "new{{ eos_token }}");
    gives("{}", "newE");
}

TEST(a_processor_file_is_the_last_resort)
{
    new_folder();
    put("chat_template.json", "{\"chat_template\": \"processor\"}");
    gives("{}", "processor");
}

TEST(tools_choose_the_template_for_tools)
{
    new_folder();
    put("tokenizer_config.json",
        "{\"chat_template\": [{\"name\": \"default\", \"template\": \"plain\"},"
        " {\"name\": \"tool_use\", \"template\": \"tools\"}]}");
    gives("{}", "plain");
    gives("{\"tools\": null}", "plain");
    gives("{\"tools\": []}", "tools");
    gives("{\"tools\": [{}]}", "tools");
    new_folder();
    put("chat_template.jinja", "plain");
    put("additional_chat_templates/tool_use.jinja", "tools");
    gives("{}", "plain");
    gives("{\"tools\": [{}]}", "tools");
}

TEST(special_tokens_map_fills_what_tokenizer_config_lacks)
{
    new_folder();
    put("chat_template.jinja", "{{ bos_token }}{{ eos_token }}{{ additional_special_tokens }}"
                               "{{ image_token }}{{ unk_token is defined }}");
    put("tokenizer_config.json", "{\"bos_token\": \"B\", \"unk_token\": null,"
                                 " \"extra_special_tokens\": {\"image_token\": \"I\"}}");
    put("special_tokens_map.json",
        "{\"bos_token\": \"no\", \"eos_token\": \"E\","
        " \"additional_special_tokens\": [\"a\", {\"content\": \"b\"}]}");
    gives("{}", "BE['a', 'b']IFalse");
}

TEST(what_is_missing_or_broken_is_named)
{
    new_folder();
    is_refused(ERR_NOT_FOUND, "no chat template");
    put("tokenizer_config.json", "{\"chat_template\": \"a\\n{% if %}\"}");
    is_refused(ERR_CORRUPT, "tokenizer_config.json:2:");
    put("tokenizer_config.json", "{\"chat_template\": 7}");
    is_refused(ERR_CORRUPT, "neither text nor a list");
    put("tokenizer_config.json", "{\"chat_template\": [{\"name\": \"x\"}]}");
    is_refused(ERR_CORRUPT, "chat_template[0] lacks name or template");
    put("tokenizer_config.json", "{");
    is_refused(ERR_CORRUPT, "tokenizer_config.json:1:");
}

TEST(a_text_borrows_the_tokens_of_another_template)
{
    struct chat_template *like, *t;
    struct err err = {0};
    struct strbuf out;
    json_t *context = json_object();
    new_folder();
    put("chat_template.jinja", "x");
    put("tokenizer_config.json", "{\"eos_token\": \"E\"}");
    strbuf_init(&out);
    CHECK_OK(chat_template_open(&like, folder, &err), err);
    EXPECT_STR(chat_template_token(like, "eos_token"), "E");
    EXPECT(chat_template_token(like, "bos_token") == NULL);
    CHECK_OK(chat_template_open_text(&t, "[{{ eos_token }}]", 17, like, &err), err);
    chat_template_free(like);
    CHECK_OK(chat_template_render(t, context, 0, &out, &err), err);
    EXPECT_STR(strbuf_text(&out), "[E]");
    chat_template_free(t);
    strbuf_release(&out);
    json_decref(context);
}

static int open_once(void *arg, struct err *err)
{
    struct chat_template *t = NULL;
    int rc = chat_template_open(&t, arg, err);
    chat_template_free(t);
    return rc;
}

TEST(every_failed_call_comes_out_as_an_error)
{
    new_folder();
    put("tokenizer_config.json", "{\"bos_token\": \"B\", \"additional_special_tokens\": [\"a\"]}");
    put("chat_template.jinja", "x");
    put("additional_chat_templates/tool_use.jinja", "y");
    EXPECT(test_each_fault(SYS_FAULT_MEM, false, open_once, folder) > 10);
}
