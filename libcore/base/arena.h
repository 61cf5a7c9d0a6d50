/*
 * arena: memory that is given back all at once.
 * For the many small pieces of one parsed thing (names, tables). Not thread-safe.
 */
#ifndef LIBCORE_BASE_ARENA_H
#define LIBCORE_BASE_ARENA_H

#include <stddef.h>

struct arena {
    struct arena_block *head; // private
};

void arena_init(struct arena *a);
void arena_release(struct arena *a);
/* 16-byte aligned, zeroed; NULL when memory is out. Lives until arena_release. */
void *arena_alloc(struct arena *a, size_t n);
void *arena_array(struct arena *a, size_t n, size_t size); // checked multiplication
char *arena_strdup(struct arena *a, const char *s);
char *arena_strndup(struct arena *a, const char *s, size_t n);
char *arena_printf(struct arena *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
