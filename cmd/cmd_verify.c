/*
 * lora verify: whether an adapter or a folder is what somebody signed.
 */
#include <string.h>

#include "cmd/progress.h"
#include "cmd/signing.h"
#include "cmd/table.h"
#include "store/signed.h"

static struct string_list key_paths;
static const char *signature_path;
static bool loose;

static int on_bytes(void *arg, uint64_t bytes)
{
    progress_add(arg, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

static void tell(struct cmd_context *ctx, const struct signing_target *t,
                 const struct signed_report *r)
{
    char bytes[TABLE_CELL_BYTES];
    const char *what = t->path ? t->path : ctx->args[0];
    if (ctx->json)
        cmd_print_json(json_pack(
            "{s:s?,s:s?,s:s?,s:b,s:s,s:s?,s:I,s:I,s:I}", "id", t->store ? t->id : NULL, "name",
            t->store && *t->name ? t->name : NULL, "path", t->path, "verified", 1, "key", r->key,
            "signature", *r->signature ? r->signature : NULL, "files", (json_int_t)r->n_files,
            "bytes", (json_int_t)r->n_bytes, "signatures", (json_int_t)r->n_signatures));
    else if (!ctx->quiet)
        printf("verified %s  key %.12s  %zu files, %s\n", what, r->key, r->n_files,
               table_bytes(bytes, r->n_bytes));
}

static int verify_object(const struct signing_target *t, const char *what,
                         const struct sign_keys *keys, struct signed_report *r, struct err *err)
{
    if (loose)
        return err_set(err, ERR_USAGE, "--ignore-unsigned-files is for a path");
    return signature_path ? signed_check_bundle(t->store, t->id, signature_path, keys, r, err)
                          : signed_check(t->store, t->id, what, keys, SIGNED_BYTES, r, err);
}

static int verify_path(struct cmd_context *ctx, const struct signing_target *t,
                       const struct sign_keys *keys, struct signed_report *r, struct err *err)
{
    struct progress *p = progress_open(ctx->progress, "verify", 0);
    const struct signed_folder_options opt = {
        .bundle = signature_path, .loose = loose, .on_bytes = on_bytes, .on_bytes_arg = p};
    int rc = signed_check_folder(t->path, keys, &opt, r, err);
    progress_free(p);
    return rc;
}

static int verify(struct cmd_context *ctx, const struct sign_keys *keys, struct err *err)
{
    struct signing_target t;
    struct signed_report r;
    int rc = signing_find(&t, ctx, ctx->args[0], err);
    if (rc)
        return rc;
    rc = t.store ? verify_object(&t, ctx->args[0], keys, &r, err)
                 : verify_path(ctx, &t, keys, &r, err);
    if (!rc)
        tell(ctx, &t, &r);
    else if (rc == ERR_REFUSED && !t.store && strstr(err->msg, "is not signed: it has no"))
        cmd_hint("--signature FILE names it when it lies elsewhere");
    else if (rc == ERR_REFUSED && !t.store && strstr(err->msg, " is not signed"))
        cmd_hint("--ignore-unsigned-files passes over files that are not signed");
    else if (rc == ERR_USAGE && !t.store)
        cmd_hint("--signature FILE names it");
    else
        signing_hint_refused(rc, ctx->args[0], err->msg);
    signing_release(&t);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct sign_keys keys;
    const struct string_list *paths = key_paths.n ? &key_paths : &signing_required;
    if (!paths->n) {
        cmd_hint("--key PUBKEY names the file of the signer's public key");
        return err_set(err, ERR_USAGE, "whose signature it should be is not said");
    }
    int rc = signing_read_keys(&keys, paths, err);
    if (!rc)
        rc = verify(ctx, &keys, err);
    sign_keys_release(&keys);
    return rc;
}

static const struct option options[] = {
    {.long_name = "key",
     .type = OPTION_LIST,
     .value = &key_paths,
     .value_name = "PUBKEY",
     .aliases = "public-key",
     .help = "A public key that is trusted: EC P-256, PEM. May be repeated: any of them will do. "
             "Without it those of require-signature."},
    {.long_name = "signature",
     .type = OPTION_STRING,
     .value = &signature_path,
     .value_name = "FILE",
     .help = "The bundle, when it is not the adapter's own (a path: PATH/model.sig)."},
    {.long_name = "ignore-unsigned-files",
     .type = OPTION_FLAG,
     .value = &loose,
     .help = "A path: files that are not signed are no matter."},
    SIGNING_REQUIRED_ROW,
    {0},
};

const struct command command_verify = {
    .name = "verify",
    .arguments = "REF|PATH",
    .summary = "whether an adapter is what was signed",
    .description =
        "Reads every file of an adapter and compares it with a signature by one of the given "
        "keys.\n"
        "Status 0: it is what was signed, and by one of them. 4: it is not signed, by somebody\n"
        "else, or a file is not in the signature. 5: a file or the signature was changed, and\n"
        "which. A PATH is looked at as the OpenSSF model-signing tools do it; their bundles are\n"
        "read, too.",
    .examples = "lora verify support-bot --key team.pub\n"
                "lora verify ./my-adapter --signature my-adapter.sig --key team.pub",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
