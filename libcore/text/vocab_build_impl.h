/*
 * vocab_build_impl: what the two halves of the builder share: the file, vocabulary and block
 * (vocab_build.c), the merges (vocab_merges.c). For libcore/text only.
 */
#ifndef LIBCORE_TEXT_VOCAB_BUILD_IMPL_H
#define LIBCORE_TEXT_VOCAB_BUILD_IMPL_H

#include "libcore/text/json_pull.h"
#include "libcore/text/vocab_impl.h"

enum { MAX_PREFIX = 64 };

struct vocab_entry {
    uint32_t offset, len, id;
};

struct builder {
    struct json_pull r;
    struct strbuf text, rest;
    struct strbuf left;          // of the merge that is read
    struct vocab_entry *entries; // vocab in the order of the file
    size_t n_entries, cap_entries;
    struct vocab v; // what lookups need while merges are read
    struct vocab_token *tokens;
    struct vocab_slot *slots;
    struct vocab_merge *list; // merges by rank
    size_t n_list, cap_list;
    struct vocab_merge *merges;
    struct vocab_added *added;
    size_t n_added, cap_added;
    uint64_t *pairs;
    char prefix[MAX_PREFIX];
    size_t prefix_len, prefix_len_used;
    const char *merges_at; // where model.merges stands
};

int vocab_no_memory(struct builder *b);
/* Doubles *array when it is full. */
int vocab_grow(struct builder *b, void **array, size_t n, size_t *cap, size_t item);
uint32_t vocab_table_size(size_t n);

/* The list at the reader, into b->list; the vocabulary is indexed. */
int vocab_read_merges(struct builder *b);
int vocab_index_merges(struct builder *b);
int vocab_make_pairs(struct builder *b);

#endif
