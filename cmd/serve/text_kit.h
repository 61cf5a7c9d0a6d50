/*
 * text_kit: how text becomes ids and back for a base or an adapter: tokenizer and chat template.
 * An adapter has its own kit only when files beside it differ from the base's; equal files share
 * one kit, so thousands of adapters cost one tokenizer.
 * Immutable and reference-counted; any thread may use it.
 */
#ifndef CMD_SERVE_TEXT_KIT_H
#define CMD_SERVE_TEXT_KIT_H

#include <jansson.h>
#include <stdatomic.h>

#include "libcore/base/strbuf.h"
#include "libcore/text/tokenizer.h"

struct chat_template;

struct text_kit {
    atomic_uint refs;
    struct tokenizer *tokenizer;                     // NULL: ids only
    struct chat_template *chat;                      // NULL: the model has none
    struct text_kit *tokenizer_lender, *chat_lender; // held: whose it is; NULL: its own
};

/* Tokenizer and template of a folder. Without tokenizer.json: ERR_NOT_FOUND, unless
 * `skip_tokenizer` (then the tokenizer is NULL). A folder without a chat template is sound.
 * cache_folder as in tokenizer_open. template_file: a Jinja file instead of the folder's own, or
 * NULL. */
int text_kit_open(struct text_kit **out, const char *folder, const char *cache_folder,
                  bool skip_tokenizer, const char *template_file, struct err *err);
/* An adapter's folder over the base's kit: what the folder lacks is the base's. Gives the base's
 * own kit when nothing differs. base_folder: where the base's files lie, to compare. */
int text_kit_open_over(struct text_kit **out, struct text_kit *base, const char *base_folder,
                       const char *folder, const char *cache_folder, struct err *err);
struct text_kit *text_kit_hold(struct text_kit *k);
void text_kit_release(struct text_kit *k); // NULL is fine

/* Renders the chat template over `context` (messages, tools, …). template_text: another template
 * for this once, or NULL. ERR_REFUSED: no template, or it raised. Appends to *out. */
int text_kit_render(const struct text_kit *k, const json_t *context, const char *template_text,
                    struct strbuf *out, struct err *err);

#endif
