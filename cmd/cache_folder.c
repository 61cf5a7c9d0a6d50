#include "cmd/cache_folder.h"

#include <stdio.h>
#include <stdlib.h>

#include "libcore/base/file.h"
#include "libcore/base/sys.h"

/* a/b/c; NULL when memory is out. */
static char *join3(const char *a, const char *b, const char *c)
{
    char *ab = file_join(a, b), *abc = ab ? file_join(ab, c) : NULL;
    sys_free(ab);
    return abc;
}

char *cache_folder(const char *store_path, const char *what)
{
    char *mark = store_path ? file_join(store_path, "lora-store.json") : NULL;
    bool in_store = mark && file_exists(mark);
    sys_free(mark);
    if (in_store)
        return join3(store_path, "cache", what);
    const char *base = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (base && *base == '/') // a relative one is to be ignored
        return join3(base, "lora", what);
    return home && *home ? join3(home, ".cache/lora", what) : NULL;
}
