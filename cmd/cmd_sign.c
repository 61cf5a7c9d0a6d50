/*
 * lora sign: a signature for an adapter of the store, or for a folder.
 */
#include <string.h>

#include "cmd/progress.h"
#include "cmd/signing.h"
#include "store/signed.h"

static const char *key_path, *signature_path, *attach_path;

static int on_bytes(void *arg, uint64_t bytes)
{
    progress_add(arg, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

static void tell(struct cmd_context *ctx, const struct signing_target *t,
                 const struct signed_report *r, bool same)
{
    const char *what = t->path ? t->path : *t->name ? t->name : ctx->args[0];
    const char *bundle = t->store ? NULL : signature_path ? signature_path : BUNDLE_FILE;
    if (ctx->json)
        cmd_print_json(
            json_pack("{s:s?,s:s?,s:s?,s:s,s:s,s:s?,s:s?,s:I,s:I}", "id", t->store ? t->id : NULL,
                      "name", t->store && *t->name ? t->name : NULL, "path", t->path, "state",
                      same ? "same" : "signed", "key", r->key, "signature",
                      t->store ? r->signature : NULL, "output", t->store ? signature_path : bundle,
                      "files", (json_int_t)r->n_files, "signatures", (json_int_t)r->n_signatures));
    else if (ctx->quiet)
        puts(t->store ? r->signature : r->key);
    else
        printf("%s %s  key %.12s  %zu files\n", same ? "is signed already:" : "signed", what,
               *r->key ? r->key : "?", r->n_files);
}

static int sign_object(struct cmd_context *ctx, const struct signing_target *t,
                       const struct sign_key *key, struct signed_report *r, bool *same,
                       struct err *err)
{
    int rc = attach_path ? signed_attach(t->store, t->id, attach_path, same, r, err)
                         : signed_sign(t->store, t->id, *t->name ? t->name : t->id, key, ctx->force,
                                       same, r, err);
    if (!rc && signature_path)
        rc = signed_write(t->store, t->id, r->signature, signature_path, ctx->force, err);
    if (rc == ERR_EXISTS)
        cmd_hint("--force overwrites it");
    return rc;
}

static int sign_path(struct cmd_context *ctx, const struct signing_target *t,
                     const struct sign_key *key, struct signed_report *r, struct err *err)
{
    if (attach_path)
        return err_set(err, ERR_USAGE,
                       "--attach is for an adapter of the store; beside %s a model.sig is enough",
                       t->path);
    struct progress *p = progress_open(ctx->progress, "sign", 0);
    const struct signed_folder_options opt = {
        .bundle = signature_path, .replace = ctx->force, .on_bytes = on_bytes, .on_bytes_arg = p};
    int rc = signed_sign_folder(t->path, key, &opt, r, err);
    progress_free(p);
    if (rc == ERR_EXISTS)
        cmd_hint("--force signs anew; `lora verify %s --key PUBKEY` looks at the old one", t->path);
    else if (rc == ERR_USAGE)
        cmd_hint("--signature FILE names it");
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct sign_key *key = NULL;
    struct signing_target t = {0};
    struct signed_report r;
    bool same = false;
    int rc = 0;
    if (!key_path == !attach_path)
        return err_set(err, ERR_USAGE, "one of --key FILE and --attach FILE is wanted");
    if (key_path && (rc = sign_key_read_private(&key, key_path, err)) != 0)
        signing_hint_key(rc, key_path, err->msg);
    if (!rc)
        rc = signing_find(&t, ctx, ctx->args[0], err);
    if (!rc)
        rc = t.store ? sign_object(ctx, &t, key, &r, &same, err) : sign_path(ctx, &t, key, &r, err);
    if (!rc)
        tell(ctx, &t, &r, same);
    signing_release(&t);
    sign_key_free(key);
    return rc;
}

static const struct option options[] = {
    {.long_name = "key",
     .type = OPTION_STRING,
     .value = &key_path,
     .value_name = "FILE",
     .aliases = "private-key",
     .help = "The private key: EC P-256, PEM, without a password."},
    {.long_name = "attach",
     .type = OPTION_STRING,
     .value = &attach_path,
     .value_name = "FILE",
     .help = "Keep this bundle, which was made elsewhere, with the adapter; it must be of its "
             "files."},
    {.long_name = "signature",
     .type = OPTION_STRING,
     .value = &signature_path,
     .value_name = "FILE",
     .help = "Where the signature of a path goes (PATH/model.sig); of an adapter: a copy."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_sign = {
    .name = "sign",
    .arguments = "REF|PATH",
    .summary = "a signature for an adapter",
    .description =
        "Signs the files of an adapter with an EC P-256 key, offline. The signature is a Sigstore\n"
        "bundle as the OpenSSF model-signing tools write and verify it; it is kept with the\n"
        "adapter, travels in packs and to registries, and comes out of `lora export` as "
        "model.sig.\n"
        "An adapter may have several. A PATH is signed as those tools do it: all files below it,\n"
        "into PATH/model.sig.",
    .examples = "openssl ecparam -name prime256v1 -genkey -noout -out team.pem\n"
                "openssl ec -in team.pem -pubout -out team.pub\n"
                "lora sign support-bot --key team.pem\n"
                "lora verify support-bot --key team.pub",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
