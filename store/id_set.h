/*
 * id_set: a set of ids or digests (64 hex digits) for marking: fill, sort, ask.
 */
#ifndef STORE_ID_SET_H
#define STORE_ID_SET_H

#include "store/store_impl.h"

struct id_set {
    char (*ids)[STORE_ID_CHARS + 1];
    size_t n, cap;
    bool sorted;
};

void id_set_release(struct id_set *set);
int id_set_add(struct id_set *set, const char *id, struct err *err); // other texts are left out
bool id_set_has(struct id_set *set, const char *id);                 // sorts when needed

#endif
