/*
 * From a request's messages to the text of the prompt: what the template is given, and
 * continue_final_message.
 */
#include <string.h>

#include "cmd/serve/api.h"
#include "libcore/base/sys.h"

/* Content in parts, of text alone, becomes one string, a line a part, as vLLM does for templates
 * that want strings. */
static int flatten_content(json_t *message, struct request_error *e)
{
    const json_t *content = json_object_get(message, "content");
    if (!json_is_array(content))
        return 0;
    struct strbuf text;
    strbuf_init(&text);
    for (size_t i = 0; i < json_array_size(content); i++) {
        const json_t *part = json_array_get(content, i);
        const json_t *type = json_object_get(part, "type"), *value = json_object_get(part, "text");
        const char *name = json_string_value(type);
        if (json_is_string(part))
            value = part;
        else if (name && strcmp(name, "text") != 0 && strcmp(name, "input_text") != 0)
            value = NULL;
        if (!json_is_string(value)) {
            strbuf_release(&text);
            return request_fail(e, 400, "messages",
                                "Content of type '%.40s' is not supported by "
                                "this server; only text is.",
                                name ? name : "?");
        }
        strbuf_adds(&text, i ? "\n" : "");
        strbuf_add(&text, json_string_value(value), json_string_length(value));
    }
    json_t *flat = json_stringn(strbuf_text(&text), text.len);
    strbuf_release(&text);
    if (!flat || json_object_set_new(message, "content", flat) != 0)
        return request_fail(e, 500, NULL, "no memory for the messages");
    return 0;
}

/* Templates expect the arguments of earlier tool calls as objects, clients send them as text. */
static void parse_tool_arguments(json_t *message)
{
    const json_t *calls = json_object_get(message, "tool_calls");
    for (size_t i = 0; i < json_array_size(calls); i++) {
        json_t *function = json_object_get(json_array_get(calls, i), "function");
        const json_t *arguments = json_object_get(function, "arguments");
        if (!json_is_string(arguments))
            continue;
        json_t *parsed =
            json_loadb(json_string_value(arguments), json_string_length(arguments), 0, NULL);
        if (parsed)
            json_object_set_new(function, "arguments", parsed);
    }
}

/* A copy of the messages that a template may be given. */
static json_t *copy_messages(const json_t *body, struct request_error *e)
{
    const json_t *messages = field_get(body, "messages");
    if (!json_is_array(messages) || json_array_size(messages) == 0) {
        request_fail(e, 400, "messages", "messages must be a list of at least one message.");
        return NULL;
    }
    json_t *copy = json_deep_copy(messages);
    for (size_t i = 0; copy && i < json_array_size(copy); i++) {
        json_t *message = json_array_get(copy, i);
        if (!json_is_object(message) || !json_is_string(json_object_get(message, "role"))) {
            request_fail(e, 400, "messages", "messages[%zu] needs a role.", i);
            json_decref(copy);
            return NULL;
        }
        if (flatten_content(message, e) != 0) {
            json_decref(copy);
            return NULL;
        }
        parse_tool_arguments(message);
    }
    if (!copy)
        request_fail(e, 500, NULL, "no memory for the messages");
    return copy;
}

/* What follows the last message's content is cut off, so that the model goes on with it: the rule
 * of transformers' continue_final_message. */
static int cut_after_final(const json_t *messages, struct strbuf *out, struct request_error *e)
{
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    const json_t *content = json_object_get(last, "content");
    if (!json_is_string(content))
        return request_fail(e, 400, "continue_final_message", "The final message has no text.");
    static const char SPACE[] = " \t\r\n";
    const char *text = json_string_value(content);
    text += strspn(text, SPACE);
    size_t n = strlen(text), stripped = n;
    while (stripped > 0 && strchr(SPACE, text[stripped - 1]))
        stripped--;
    char *found = NULL;
    for (char *p = out->data; stripped && p; p = memmem(p, strlen(p), text, stripped)) {
        if (p != out->data || strncmp(p, text, stripped) == 0)
            found = p;
        p++;
    }
    if (!found)
        return request_fail(
            e, 400, "continue_final_message",
            "continue_final_message is set but the final message does not appear in "
            "the chat after the chat template was applied.");
    size_t at = (size_t)(found - out->data);
    bool whole = strncmp(found, text, n) == 0;
    strbuf_truncate(out, at + (whole ? n : stripped));
    return 0;
}

static int set_flag(json_t *context, const char *name, bool value)
{
    return json_object_set_new(context, name, json_boolean(value));
}

/* messages, tools, documents, add_generation_prompt, and chat_template_kwargs over them. */
static json_t *make_context(const json_t *body, json_t *messages, bool generation_prompt,
                            bool continue_final, struct request_error *e)
{
    json_t *context = json_object();
    json_t *tools = field_get(body, "tools"), *documents = field_get(body, "documents");
    json_t *more = field_get(body, "chat_template_kwargs");
    const char *choice = json_string_value(field_get(body, "tool_choice"));
    int rc = context ? json_object_set(context, "messages", messages) : -1;
    if (tools && json_array_size(tools) > 0 && !(choice && strcmp(choice, "none") == 0))
        rc |= json_object_set(context, "tools", tools);
    if (documents)
        rc |= json_object_set(context, "documents", documents);
    rc |= set_flag(context, "add_generation_prompt", generation_prompt);
    if (continue_final)
        rc |= set_flag(context, "continue_final_message", true);
    if (more && json_is_object(more))
        rc |= json_object_update(context, more);
    else if (more)
        rc =
            request_fail(e, 400, "chat_template_kwargs", "chat_template_kwargs must be an object.");
    if (rc == 0)
        return context;
    if (e->status == 0)
        request_fail(e, 500, NULL, "no memory for the chat template");
    json_decref(context);
    return NULL;
}

int api_render_chat(const struct text_kit *kit, const json_t *body, bool default_generation_prompt,
                    struct strbuf *out, struct request_error *e)
{
    bool generation_prompt = default_generation_prompt, continue_final = false;
    const char *template_text = NULL;
    if (field_bool(body, "continue_final_message", &continue_final, e) != 0 ||
        field_bool(body, "add_generation_prompt", &generation_prompt, e) != 0 ||
        field_string(body, "chat_template", &template_text, e) != 0)
        return -1;
    if (continue_final && field_get(body, "add_generation_prompt") && generation_prompt)
        return request_fail(e, 400, "continue_final_message",
                            "Cannot set both "
                            "`continue_final_message` and "
                            "`add_generation_prompt` to True.");
    if (continue_final)
        generation_prompt = false;
    if (!kit)
        return request_fail(e, 400, "messages",
                            "There is no tokenizer here: use /generate with "
                            "input_ids.");
    json_t *messages = copy_messages(body, e);
    json_t *context =
        messages ? make_context(body, messages, generation_prompt, continue_final, e) : NULL;
    struct err err = {0};
    int rc = context ? 0 : -1;
    if (rc == 0 && text_kit_render(kit, context, template_text, out, &err) != 0)
        rc = request_fail(e, err.code == ERR_NO_MEMORY ? 500 : 400, "messages", "%s", err.msg);
    if (rc == 0 && continue_final)
        rc = cut_after_final(messages, out, e);
    json_decref(context);
    json_decref(messages);
    return rc;
}
