#include "store/id_set.h"

#include <stdlib.h>
#include <string.h>

#include "libcore/base/sys.h"

void id_set_release(struct id_set *set)
{
    sys_free(set->ids);
    *set = (struct id_set){0};
}

int id_set_add(struct id_set *set, const char *id, struct err *err)
{
    if (!id || strlen(id) != STORE_ID_CHARS)
        return 0;
    if (set->n == set->cap) {
        size_t cap = set->cap ? set->cap * 2 : 64;
        void *more = sys_reallocarray(set->ids, cap, sizeof *set->ids);
        if (!more)
            return err_set(err, ERR_NO_MEMORY, "no memory for a set of %zu ids", cap);
        set->ids = more;
        set->cap = cap;
    }
    memcpy(set->ids[set->n++], id, STORE_ID_CHARS + 1);
    set->sorted = false;
    return 0;
}

static int compare(const void *a, const void *b)
{
    return memcmp(a, b, STORE_ID_CHARS);
}

bool id_set_has(struct id_set *set, const char *id)
{
    if (!set->n || strlen(id) != STORE_ID_CHARS)
        return false;
    if (!set->sorted)
        qsort(set->ids, set->n, sizeof *set->ids, compare);
    set->sorted = true;
    return bsearch(id, set->ids, set->n, sizeof *set->ids, compare) != NULL;
}
