#include "cmd/serve/text_kit.h"

#include <string.h>

#include "libcore/base/digest.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "libcore/text/chat_template.h"

static const char TOKENIZER[] = "tokenizer.json", TOKENIZER_CONFIG[] = "tokenizer_config.json",
                  TEMPLATE[] = "chat_template.jinja";

static struct text_kit *kit_alloc(struct err *err)
{
    struct text_kit *k = sys_calloc(1, sizeof *k);
    if (!k)
        err_set(err, ERR_NO_MEMORY, "no memory for a tokenizer");
    else
        atomic_init(&k->refs, 1);
    return k;
}

struct text_kit *text_kit_hold(struct text_kit *k)
{
    atomic_fetch_add_explicit(&k->refs, 1, memory_order_relaxed);
    return k;
}

void text_kit_release(struct text_kit *k)
{
    if (!k || atomic_fetch_sub_explicit(&k->refs, 1, memory_order_acq_rel) != 1)
        return;
    if (!k->tokenizer_lender)
        tokenizer_free(k->tokenizer);
    if (!k->chat_lender)
        chat_template_free(k->chat);
    text_kit_release(k->tokenizer_lender);
    text_kit_release(k->chat_lender);
    sys_free(k);
}

static bool has_file(const char *folder, const char *name)
{
    char *path = file_join(folder, name);
    bool there = path && file_exists(path);
    sys_free(path);
    return there;
}

/* Whether both folders have the file with the same bytes. */
static bool same_file(const char *a, const char *b, const char *name)
{
    struct digest digests[2];
    uint64_t sizes[2];
    const char *folders[2] = {a, b};
    for (int i = 0; i < 2; i++) {
        char *path = file_join(folders[i], name);
        int rc = path ? digest_file(path, &digests[i], &sizes[i], NULL) : ERR_NO_MEMORY;
        sys_free(path);
        if (rc != 0)
            return false;
    }
    return sizes[0] == sizes[1] && digest_equal(&digests[0], &digests[1]);
}

int text_kit_open(struct text_kit **out, const char *folder, const char *cache_folder,
                  bool skip_tokenizer, const char *template_file, struct err *err)
{
    *out = NULL;
    struct text_kit *k = kit_alloc(err);
    if (!k)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (!skip_tokenizer)
        rc = tokenizer_open(&k->tokenizer, folder, cache_folder, err);
    if (rc == 0 && !skip_tokenizer)
        rc = template_file ? chat_template_open_file(&k->chat, template_file, folder, err)
                           : chat_template_open(&k->chat, folder, err);
    if (rc == ERR_NOT_FOUND && !skip_tokenizer && k->tokenizer && !template_file) {
        err_clear(err); // a model without a template completes, it does not chat
        rc = 0;
    }
    if (rc != 0) {
        text_kit_release(k);
        return rc;
    }
    *out = k;
    return 0;
}

int text_kit_open_over(struct text_kit **out, struct text_kit *base, const char *base_folder,
                       const char *folder, const char *cache_folder, struct err *err)
{
    bool own_tokenizer = base->tokenizer && has_file(folder, TOKENIZER) &&
                         !same_file(folder, base_folder, TOKENIZER);
    bool own_config =
        has_file(folder, TOKENIZER_CONFIG) && !same_file(folder, base_folder, TOKENIZER_CONFIG);
    bool own_template = has_file(folder, TEMPLATE) && !same_file(folder, base_folder, TEMPLATE);
    *out = NULL;
    if (!base->tokenizer || (!own_tokenizer && !own_config && !own_template)) {
        *out = text_kit_hold(base);
        return 0;
    }
    struct text_kit *k = kit_alloc(err);
    if (!k)
        return ERR_NO_MEMORY;
    int rc = 0;
    if (own_tokenizer)
        rc = tokenizer_open(&k->tokenizer, folder, cache_folder, err);
    else
        k->tokenizer_lender = text_kit_hold(base);
    if (rc == 0)
        rc = chat_template_open(&k->chat, folder, err);
    if (rc == ERR_NOT_FOUND) {
        err_clear(err);
        rc = 0;
    }
    if (rc != 0) {
        text_kit_release(k);
        return rc;
    }
    if (k->tokenizer_lender)
        k->tokenizer = base->tokenizer;
    if (!k->chat) {
        k->chat_lender = text_kit_hold(base);
        k->chat = base->chat;
    }
    *out = k;
    return 0;
}

int text_kit_render(const struct text_kit *k, const json_t *context, const char *template_text,
                    struct strbuf *out, struct err *err)
{
    struct chat_template *once = NULL;
    const struct chat_template *t = k->chat;
    int rc = 0;
    if (template_text) {
        rc = chat_template_open_text(&once, template_text, strlen(template_text), k->chat, err);
        t = once;
    }
    if (rc == 0 && !t)
        rc = err_set(err, ERR_REFUSED,
                     "This model has no chat template: use completions, or send "
                     "a chat_template.");
    if (rc == 0)
        rc = chat_template_render(t, context, (int64_t)(thread_unix_ns() / 1000000000u), out, err);
    chat_template_free(once);
    return rc;
}
