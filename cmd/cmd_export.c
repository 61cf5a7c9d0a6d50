/*
 * lora export: an adapter as a folder that other tools read.
 */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "libcore/base/file.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"

static const char *output, *format = "peft";

/* Every file as it was imported, byte for byte. */
static int copy_files(struct store *s, const char *id, const char *folder, json_t *written,
                      struct err *err)
{
    json_t *m, *file;
    size_t i;
    int rc = store_manifest(s, id, &m, err);
    if (rc)
        return rc;
    json_array_foreach(json_object_get(m, "files"), i, file)
    {
        const char *name = json_string_value(json_object_get(file, "path"));
        char *from = NULL, *to = NULL;
        if (!rc)
            rc = store_file(s, id, name, &from, err);
        if (!rc)
            rc = (to = file_join(folder, name)) ? 0 : err_set(err, ERR_NO_MEMORY, "no memory");
        if (!rc)
            rc = file_copy(from, to, err);
        struct digest d;
        char hex[DIGEST_HEX_CHARS + 1] = "";
        if (!rc && (rc = digest_file(to, &d, NULL, err)) == 0) {
            digest_hex(&d, hex);
            if (strcmp(hex, json_string_value(json_object_get(file, "sha256"))) != 0)
                rc = err_set(err, ERR_CORRUPT, "%s: the store's copy has another digest", from);
        }
        if (!rc)
            json_array_append_new(written, json_string(name));
        sys_free(from);
        sys_free(to);
    }
    json_decref(m);
    return rc;
}

/* The folder appears by rename when it is complete; --force puts it in the place of what is there.
 */
static int put_in_place(struct cmd_context *ctx, const char *work, struct err *err)
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

static int export_folder(struct cmd_context *ctx, struct store *s, const char *id, json_t *written,
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
        rc = copy_files(s, id, folder, written, err);
    if (!rc)
        rc = put_in_place(ctx, folder, err);
    if (rc)
        file_remove_tree(folder, NULL);
    strbuf_release(&work);
    return rc;
}

static int export_adapter(struct cmd_context *ctx, struct store *s, const char *ref,
                          struct err *err)
{
    struct store_resolved r;
    struct lease *lease = NULL;
    int rc = store_resolve(s, ref, STORE_ADAPTER, &r, err);
    const char *id = r.id;
    if (!rc) // gc must not take it meanwhile
        rc = lease_open(&lease, s, "export", &id, 1, err);
    json_t *written = json_array();
    if (!rc)
        rc = export_folder(ctx, s, r.id, written, err);
    if (!rc && ctx->json)
        cmd_print_json(json_pack("{s:s, s:s, s:s, s:O}", "id", r.id, "format", format, "output",
                                 output, "files", written));
    else if (!rc && !ctx->quiet)
        printf("exported %.12s to %s: %zu files\n", r.id, output, json_array_size(written));
    json_decref(written);
    lease_close(lease);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    if (!output)
        return err_set(err, ERR_USAGE, "--output DIR is missing");
    if (strcmp(format, "peft") != 0)
        return err_set(err, ERR_REFUSED, "--format %s: cannot be written by this version", format);
    if (file_exists(output) && !ctx->force) {
        cmd_hint("--force puts the export in its place");
        return err_set(err, ERR_EXISTS, "%s: is there already", output);
    }
    struct store *s;
    int rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    rc = export_adapter(ctx, s, ctx->args[0], err);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "output",
     .short_name = 'o',
     .type = OPTION_STRING,
     .value = &output,
     .value_name = "DIR",
     .help = "The folder to make."},
    {.long_name = "format",
     .type = OPTION_STRING,
     .value = &format,
     .value_name = "FORMAT",
     .choices = "peft,kohya,gguf",
     .help = "peft: the files as they were imported, byte for byte."},
    {0},
};

const struct command command_export = {
    .name = "export",
    .arguments = "REF",
    .summary = "write an adapter as a folder that other tools read",
    .description = "The folder appears when it is complete. The files are checked against their\n"
                   "digests while they are written.",
    .examples = "lora export support-bot --output ./support-bot",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
