/*
 * lora export: an adapter as a folder that other tools read.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/output_folder.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/adapter/bake.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/foreign_write.h"
#include "libcore/format/peft.h"
#include "cmd/signing.h"
#include "store/base_model.h"
#include "store/signed.h"

static const char *output, *format = "peft", *base_ref, *signer;
static bool bake_scale;

/* Files as they were imported, byte for byte: all, or those that travel with any form of it. */
static int copy_files(struct store *s, const char *id, const json_t *m, bool all,
                      const char *folder, json_t *written, struct err *err)
{
    json_t *file;
    size_t i;
    int rc = 0;
    json_array_foreach(json_object_get(m, "files"), i, file)
    {
        const char *name = json_string_value(json_object_get(file, "path"));
        if (!all && !checkpoint_is_companion(name) && strncmp(name, "LICENSE", 7) != 0)
            continue;
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
    return rc;
}

// ---- other forms -------------------------------------------------------------------------------

/* llama.cpp's names of the architectures; gemma3's is that of its text model. */
static const char *const ggml_architectures[ARCH_COUNT] = {
    [ARCH_LLAMA] = "llama",   [ARCH_MISTRAL] = "llama",      [ARCH_QWEN2] = "qwen2",
    [ARCH_QWEN3] = "qwen3",   [ARCH_GEMMA3] = "gemma3",      [ARCH_PHI3] = "phi3",
    [ARCH_MIXTRAL] = "llama", [ARCH_QWEN3_MOE] = "qwen3moe",
};

static int open_base(struct base_model **out, struct store *s, const json_t *manifest,
                     struct err *err)
{
    const char *recorded =
        json_string_value(json_object_get(json_object_get(manifest, "base"), "fingerprint"));
    if (!base_ref && (!recorded || !*recorded))
        return err_set(err, ERR_REFUSED,
                       "--format gguf needs the base, and none is recorded: give --base REF");
    if (!base_ref)
        return base_model_open(out, s, recorded, err);
    struct model_ref r;
    int rc = model_ref_resolve(&r, s, base_ref, STORE_BASE, err);
    if (!rc)
        rc = r.in_store ? base_model_open(out, s, r.id, err)
                        : base_model_open_folder(out, r.path, err);
    model_ref_release(&r);
    return rc;
}

static int write_gguf(const struct adapter *a, struct store *s, const json_t *manifest,
                      const char *folder, struct err *err)
{
    struct base_model *b = NULL;
    int rc = open_base(&b, s, manifest, err);
    if (!rc)
        rc = base_model_check_adapter(b, a, NULL, err);
    if (!rc) {
        const struct gguf_target target = {.architecture = ggml_architectures[b->config.arch],
                                           .n_heads = b->config.n_heads,
                                           .n_kv_heads = b->config.n_kv_heads,
                                           .tied = b->config.tied_embeddings};
        rc = gguf_lora_write(a, folder, &target, err);
    }
    base_model_free(b);
    return rc;
}

static int write_form(const struct adapter *a, struct store *s, const json_t *manifest,
                      const char *folder, struct err *err)
{
    if (strcmp(format, "kohya") == 0)
        return kohya_write(a, folder, err);
    if (strcmp(format, "mlx") == 0)
        return mlx_write(a, folder, err);
    if (strcmp(format, "gguf") == 0)
        return write_gguf(a, s, manifest, folder, err);
    return peft_write(a, folder, err);
}

/* What the writers made, for the list. */
static int list_made(const char *folder, json_t *written, struct err *err)
{
    char **names;
    size_t n;
    int rc = file_list(folder, &names, &n, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < n; i++)
        json_array_append_new(written, json_string(names[i]));
    file_free_names(names, n);
    return 0;
}

static int convert(struct cmd_context *ctx, struct store *s, const char *id, const json_t *m,
                   const char *folder, json_t *written, struct err *err)
{
    struct adapter_source *source;
    struct adapter *a = NULL, *baked = NULL;
    struct bake_report report = {0};
    int rc = store_source_open(&source, s, err);
    if (rc)
        return rc;
    rc = source->ops->get(source, id, &a, err);
    source->ops->close(source);
    if (!rc && bake_scale)
        rc = adapter_bake(&baked, a, &report, err);
    if (!rc)
        rc = write_form(baked ? baked : a, s, m, folder, err);
    if (!rc)
        rc = list_made(folder, written, err);
    if (!rc) // tokenizer, template and card travel with every form
        rc = copy_files(s, id, m, false, folder, written, err);
    if (!rc && bake_scale && !ctx->json && !ctx->quiet)
        printf("baked the scales of %zu modules into B; %zu became float32, off by %.2g at most\n",
               report.n_modules, report.n_rounded, report.max_error);
    adapter_free(baked);
    adapter_free(a);
    return rc;
}

/* A signature is of the files as they came: with them it is written, as the model-signing tools
 * look for it. */
static int write_signature(struct store *s, const char *id, const char *folder, json_t *written,
                           struct err *err)
{
    struct sign_key *key = NULL;
    char digest[DIGEST_HEX_CHARS + 1];
    int rc = signer ? sign_key_read_public(&key, signer, err) : 0;
    if (rc) {
        signing_hint_key(rc, signer, err->msg);
        return rc;
    }
    rc = signed_pick(s, id, key ? sign_key_hint(key) : NULL, digest, err);
    sign_key_free(key);
    if (!rc && !*digest && signer) {
        cmd_hint("`lora inspect %.12s` names the keys of its signatures; `lora sign` adds one", id);
        return err_set(err, ERR_NOT_FOUND, "%.12s: has no signature by %s", id, signer);
    }
    if (rc || !*digest)
        return rc;
    char *path = file_join(folder, BUNDLE_FILE);
    rc = path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", folder);
    if (!rc)
        rc = signed_write(s, id, digest, path, false, err);
    if (!rc)
        json_array_append_new(written, json_string(BUNDLE_FILE));
    sys_free(path);
    return rc;
}

/* One that came as PEFT goes out as it came; every other pair of forms is written anew. */
static int write_files(struct cmd_context *ctx, struct store *s, const char *id, const char *folder,
                       json_t *written, struct err *err)
{
    json_t *m;
    int rc = store_manifest(s, id, &m, err);
    if (rc)
        return rc;
    const char *stored = json_string_value(json_object_get(m, "format"));
    bool as_it_is =
        !bake_scale && strcmp(format, "peft") == 0 && stored && strcmp(stored, "peft") == 0;
    if (!as_it_is && signer)
        rc = err_set(err, ERR_REFUSED, "%.12s: in this form it is not what was signed", id);
    else if (as_it_is)
        rc = copy_files(s, id, m, true, folder, written, err);
    else
        rc = convert(ctx, s, id, m, folder, written, err);
    if (!rc && as_it_is)
        rc = write_signature(s, id, folder, written, err);
    json_decref(m);
    return rc;
}

struct export
{
    struct cmd_context *ctx;
    struct store *s;
    const char *id;
    json_t *written;
};

static int fill(void *arg, const char *folder, struct err *err)
{
    const struct export *x = arg;
    return write_files(x->ctx, x->s, x->id, folder, x->written, err);
}

static int export_adapter(struct cmd_context *ctx, struct store *s, const char *ref,
                          struct err *err)
{
    struct store_resolved r;
    struct lease *lease = NULL;
    int rc = store_resolve(s, ref, STORE_ADAPTER, &r, err);
    const char *id = r.id;
    if (rc && file_exists(ref)) {
        cmd_hint("`lora import %s` puts it there", ref);
        rc = err_set(err, ERR_NOT_FOUND, "%s: a path; export takes adapters of the store", ref);
    }
    if (!rc) // gc must not take it meanwhile
        rc = lease_open(&lease, s, "export", &id, 1, err);
    json_t *written = json_array();
    struct export x = {ctx, s, r.id, written};
    if (!rc)
        rc = output_folder_make(ctx, output, fill, &x, err);
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
    struct store *s;
    int rc = output_folder_check(ctx, output, "the export", err);
    if (!rc)
        rc = cmd_store_open(ctx, false, &s, err);
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
     .choices = "peft,kohya,mlx,gguf",
     .help = "peft: PEFT's files, byte for byte when it was imported so; kohya: one .safetensors "
             "with an alpha by module; mlx: MLX-LM's; gguf: llama.cpp's."},
    {.long_name = "bake-scale",
     .type = OPTION_FLAG,
     .value = &bake_scale,
     .help = "Multiply B by the scale, one rank and alpha = rank for all: for readers that know "
             "no rsLoRA and no patterns."},
    {.long_name = "signer",
     .type = OPTION_STRING,
     .value = &signer,
     .value_name = "PUBKEY",
     .help = "Whose signature becomes model.sig, when it has several (the first)."},
    {.long_name = "base",
     .type = OPTION_STRING,
     .value = &base_ref,
     .value_name = "REF",
     .help = "With --format gguf: the base, when none is recorded."},
    {0},
};

const struct command command_export = {
    .name = "export",
    .arguments = "REF",
    .summary = "write an adapter as a folder that other tools read",
    .description =
        "The folder appears when it is complete. Files that are copied are checked\n"
        "against their digests; a signature comes with them as model.sig. What a format cannot "
        "hold (DoRA, biases, full weights,\n"
        "tokens, experts) is refused by name; so is a scale that it cannot say exactly,\n"
        "unless --bake-scale.",
    .examples = "lora export support-bot --output ./support-bot\n"
                "lora export support-bot --format gguf --output ./for-llama.cpp\n"
                "lora export support-bot --bake-scale --output ./for-readers-of-r-and-alpha",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
