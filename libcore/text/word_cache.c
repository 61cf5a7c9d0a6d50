#include <string.h>

#include "libcore/base/sys.h"
#include "libcore/text/bpe_impl.h"
#include "libcore/text/vocab_impl.h"

/* 16,384 words fill the half of the slots; a megabyte in all. A word whose place and the next ones
 * are taken is not kept: words made to collide cost no more than others. */
enum { N_SLOTS = 1 << 15, MOST_WORDS = N_SLOTS / 2, MOST_IDS = 1 << 16, MOST_TEXT = 1 << 18 };
enum { MOST_PROBES = 16 };

void word_cache_release(struct word_cache *c)
{
    sys_free(c->slots);
    sys_free(c->ids);
    sys_free(c->text);
    memset(c, 0, sizeof *c);
}

const struct word_ids *word_cache_find(struct word_cache *c, const char *text, size_t n,
                                       uint64_t *hash)
{
    *hash = vocab_hash(text, n);
    if (!c->slots)
        return NULL;
    for (size_t k = 0; k < MOST_PROBES; k++) {
        const struct word_ids *w = &c->slots[(*hash + k) % N_SLOTS];
        if (!w->len)
            break;
        if (w->hash == *hash && w->len == n && memcmp(c->text + w->text, text, n) == 0)
            return w;
    }
    return NULL;
}

static bool prepare(struct word_cache *c)
{
    if (c->slots || c->off)
        return !c->off;
    c->slots = sys_calloc(N_SLOTS, sizeof *c->slots);
    c->ids = sys_reallocarray(NULL, MOST_IDS, sizeof *c->ids);
    c->text = sys_malloc(MOST_TEXT);
    if (c->slots && c->ids && c->text)
        return true;
    word_cache_release(c);
    c->off = true;
    return false;
}

void word_cache_add(struct word_cache *c, const char *text, size_t n, uint64_t hash,
                    const uint32_t *ids, size_t n_ids)
{
    if (n == 0 || n_ids > MOST_IDS || !prepare(c))
        return;
    if (c->n_words == MOST_WORDS || c->n_ids + n_ids > MOST_IDS || c->n_text + n > MOST_TEXT) {
        memset(c->slots, 0, N_SLOTS * sizeof *c->slots);
        c->n_words = c->n_ids = c->n_text = 0;
    }
    size_t k = 0;
    while (k < MOST_PROBES && c->slots[(hash + k) % N_SLOTS].len)
        k++;
    if (k == MOST_PROBES)
        return;
    c->slots[(hash + k) % N_SLOTS] = (struct word_ids){hash, (uint32_t)c->n_text, (uint32_t)n,
                                                       (uint32_t)c->n_ids, (uint32_t)n_ids};
    memcpy(c->text + c->n_text, text, n);
    if (n_ids)
        memcpy(c->ids + c->n_ids, ids, n_ids * sizeof *ids);
    c->n_text += n;
    c->n_ids += n_ids;
    c->n_words++;
}
