/*
 * safetensors_impl: between the reader's two halves, the file (safetensors.c) and the text of its
 * header (safetensors_header.c).
 */
#ifndef LIBCORE_FORMAT_SAFETENSORS_IMPL_H
#define LIBCORE_FORMAT_SAFETENSORS_IMPL_H

#include "libcore/base/arena.h"
#include "libcore/format/safetensors.h"

struct safetensors_header {
    struct safetensors_entry *entries; // sorted by name; value.data not yet set
    size_t n_entries, cap_entries;
    struct safetensors_metadata *metadata; // sorted by key
    size_t n_metadata, cap_metadata;
    struct arena *arena; // names and values; borrowed
    const char *where;   // the file, for errors; borrowed
};

/* Parses the JSON text and checks entries against each other and against the payload's size.
 * The two tables are the caller's, to free with sys_free, on failure too. */
int safetensors_header_parse(struct safetensors_header *h, const char *text, size_t n,
                             uint64_t payload_bytes, struct err *err);

#endif
