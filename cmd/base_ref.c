#include "cmd/base_ref.h"

#include <string.h>

#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/model/fingerprint.h"

void base_ref_release(struct base_ref *r)
{
    sys_free(r->folder);
    sys_free(r->name);
    *r = (struct base_ref){0};
}

int base_ref_find(struct base_ref *out, const char *store_path, const char *ref, struct err *err)
{
    *out = (struct base_ref){0};
    struct store *store = NULL;
    struct model_ref found = {0};
    int rc = store_path ? store_open(&store, store_path, NULL, err) : ERR_NO_STORE;
    if (rc == ERR_NO_STORE && err)
        err_clear(err);
    else if (rc != 0 && rc != ERR_NO_STORE)
        return rc;
    rc = model_ref_resolve(&found, store, ref, STORE_BASE, err);
    if (rc == 0 && found.in_store) {
        memcpy(out->id, found.id, sizeof out->id);
        out->in_store = true;
        rc = store_base_folder(store, found.id, &out->folder, err);
    } else if (rc == 0) {
        out->folder = file_real_path(found.path, err);
        rc = out->folder ? 0 : err ? err->code : ERR_IO;
        /* A folder that is no sound base is refused later, with a better word. */
        if (rc == 0)
            (void)fingerprint_of_folder(out->folder, out->id, NULL);
    }
    bool by_prefix = found.in_store && *found.name && strncmp(found.id, ref, strlen(ref)) == 0;
    if (rc == 0) {
        out->name = sys_strdup(by_prefix ? found.name : ref);
        if (!out->name)
            rc = err_set(err, ERR_NO_MEMORY, "no memory for a name");
    }
    model_ref_release(&found);
    store_close(store);
    if (rc != 0)
        base_ref_release(out);
    return rc;
}
