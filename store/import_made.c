/*
 * Adapters that were made here. They take the way of every other one, from files: what is checked,
 * hashed and kept is what the next reader will read.
 */
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/format/peft.h"
#include "store/import.h"
#include "store/store_impl.h"

int import_made(struct store *s, const struct adapter *a, const struct import_options *opt,
                struct import_result *out, struct err *err)
{
    struct work w;
    int rc = work_open(&w, s, "made", err);
    if (rc)
        return rc;
    char *folder = file_join(w.folder, "adapter");
    if (!folder)
        rc = err_set(err, ERR_NO_MEMORY, "%s: no memory", w.folder);
    if (!rc)
        rc = file_make_folders(folder, err);
    if (!rc)
        rc = peft_write(a, folder, err);
    if (!rc)
        rc = import_adapter(s, folder, opt, out, err);
    sys_free(folder);
    work_close(&w);
    return rc;
}
