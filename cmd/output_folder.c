#include "cmd/output_folder.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

int output_folder_check(const struct cmd_context *ctx, const char *output, const char *what,
                        struct err *err)
{
    if (!file_exists(output) || ctx->force)
        return 0;
    cmd_hint("--force puts %s in its place", what);
    return err_set(err, ERR_EXISTS, "%s: is there already", output);
}

static int put_in_place(const struct cmd_context *ctx, const char *work, const char *output,
                        struct err *err)
{
    if (ctx->force && file_exists(output)) {
        int rc = file_remove_tree(output, err);
        if (rc)
            return rc;
    }
    if (sys_rename_noreplace(work, output) == 0)
        return 0;
    return err_set_errno(err, errno, "%s: cannot be made", output);
}

int output_folder_make(const struct cmd_context *ctx, const char *output,
                       int (*fill)(void *arg, const char *folder, struct err *err), void *arg,
                       struct err *err)
{
    struct strbuf work;
    strbuf_init(&work);
    size_t n = strlen(output);
    while (n > 1 && output[n - 1] == '/')
        n--;
    strbuf_addf(&work, "%.*s.%ld.tmp", (int)n, output, (long)getpid());
    const char *folder = strbuf_text(&work);
    int rc = work.failed ? err_set(err, ERR_NO_MEMORY, "%s: no memory", output)
                         : file_make_folders(folder, err);
    if (!rc)
        rc = fill(arg, folder, err);
    if (!rc)
        rc = put_in_place(ctx, folder, output, err);
    if (rc)
        file_remove_tree(folder, NULL);
    strbuf_release(&work);
    return rc;
}
