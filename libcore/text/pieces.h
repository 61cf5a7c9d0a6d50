/*
 * pieces: a text under tokenization: parts that are still text, and parts that are a token already.
 * For libcore/text only; belongs to one thread.
 */
#ifndef LIBCORE_TEXT_PIECES_H
#define LIBCORE_TEXT_PIECES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "libcore/base/err.h"
#include "libcore/text/vocab.h"

struct piece {
    uint32_t start, len; // in the text of the list
    uint32_t id;         // a token; VOCAB_NONE: text
    bool head;           // begins where the whole text begins
};
struct piece_list {
    struct piece *items;
    size_t n, cap;
};

void piece_list_release(struct piece_list *l);
/* Empty text pieces are dropped. 0 or ERR_NO_MEMORY. */
int piece_list_add(struct piece_list *l, struct piece p, struct err *err);

#endif
