/*
 * choices: what a back end found by measuring, kept on disk so that the next start need not measure
 * again: records of one size under a key that names everything they depend on (card, driver,
 * library). A file that is damaged, of another key or of another record size counts as empty and is
 * written anew. Not thread-safe.
 */
#ifndef KERNELS_CHOICES_H
#define KERNELS_CHOICES_H

#include <stdbool.h>
#include <stddef.h>

#include "libcore/base/err.h"

struct choices {
    char *path, *key; // path NULL: nothing is kept
    size_t record_bytes, n, max;
    unsigned char *records;
    bool changed;
};

/* folder: NULL keeps nothing; need not exist. name: of the file, letters and dashes; key: free
 * text. Reads what is there. 0 or ERR_NO_MEMORY. Frees with choices_release(), also after an error.
 */
int choices_open(struct choices *c, const char *folder, const char *name, const char *key,
                 size_t record_bytes, size_t max, struct err *err);
void choices_release(struct choices *c);

/* Record i; the caller writes only to what it added. */
void *choices_at(const struct choices *c, size_t i);
/* Appends a copy; false when there are `max`. */
bool choices_add(struct choices *c, const void *record);
void choices_drop(struct choices *c, size_t i); // moves the last one to its place
/* Writes the file if something changed: folders made, temporary file, rename. */
int choices_save(struct choices *c, struct err *err);

#endif
