/*
 * chat_template: a model's chat templates and the special tokens that they may name, as
 * transformers finds them in the model's folder: chat_template.jinja (and
 * additional_chat_templates/NAME.jinja), else `chat_template` of tokenizer_config.json (one text,
 * or a list of {name, template}), else chat_template.json; bos_token, eos_token and the others from
 * tokenizer_config.json, then special_tokens_map.json. Thread rule: immutable once open; any number
 * of threads may render.
 */
#ifndef LIBCORE_TEXT_CHAT_TEMPLATE_H
#define LIBCORE_TEXT_CHAT_TEMPLATE_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/base/strbuf.h"

struct chat_template;

/*
 * The templates and tokens of a folder. On success *out is the caller's, for chat_template_free().
 * Returns 0, ERR_NOT_FOUND (the folder has no template), ERR_CORRUPT (broken JSON, or a template
 * that does not compile: file and line), ERR_LIMIT, ERR_IO, ERR_NO_MEMORY.
 */
int chat_template_open(struct chat_template **out, const char *folder, struct err *err);

/* The template in `file`, with the tokens of `folder` (NULL: none). */
int chat_template_open_file(struct chat_template **out, const char *file, const char *folder,
                            struct err *err);

/* The template in text[0, n), with the tokens of `like` (NULL: none), which is only read here. */
int chat_template_open_text(struct chat_template **out, const char *text, size_t n,
                            const struct chat_template *like, struct err *err);

void chat_template_free(struct chat_template *t);

/*
 * Appends the text that the template makes of `context` (an object: messages, tools,
 * add_generation_prompt, …). Its variables win over the special tokens; nothing else is added. Of
 * several templates, tool_use is taken when `tools` is there and not null, else default. now_unix:
 * the clock of strftime_now, shown in UTC.
 * Returns 0, ERR_REFUSED (the template raised, or a value does not fit; with its line; or several
 * templates and no default), ERR_LIMIT, ERR_USAGE (context is no object), ERR_NO_MEMORY.
 */
int chat_template_render(const struct chat_template *t, const json_t *context, int64_t now_unix,
                         struct strbuf *out, struct err *err);

/* Text of a special token by its name ("eos_token"), borrowed; NULL when there is none. */
const char *chat_template_token(const struct chat_template *t, const char *name);

#endif
