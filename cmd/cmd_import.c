/*
 * lora import: adapters and bases into the store.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/import_initial.h"
#include "cmd/model_ref.h"
#include "cmd/progress.h"
#include "cmd/signing.h"
#include "cmd/table.h"
#include "cmd/transfer_rows.h"
#include "libcore/adapter/adapter.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"
#include "store/import.h"

static const char *name, *tag, *base_ref, *initial_ref;
static bool recursive, dry_run, copy, deep;
static struct string_list ignore_fields;

struct session {
    struct cmd_context *ctx;
    struct store *s; // NULL: a dry run where there is none
    struct base_model *base;
    struct progress *progress;
    json_t *adapters, *bases, *failures;
    size_t n_done, n_failed;
    int first_code;
    struct err first;
    struct sign_keys keys; // that adapters must be signed by
};

static int on_bytes(void *arg, uint64_t bytes)
{
    struct session *x = arg;
    progress_add(x->progress, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

// ---- telling -----------------------------------------------------------------------------------

static const char *state_name(const struct import_result *r)
{
    switch (r->state) {
    case PUBLISH_ADDED:
        return "added";
    case PUBLISH_NAMED:
        return "named";
    case PUBLISH_REPLACED:
        return "replaced";
    default:
        return "same";
    }
}

static void note_json(struct session *x, const char *path, const struct import_result *r)
{
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:i, s:O}", "name", r->name, "tag", r->tag, "id",
                  r->id, "state", state_name(r), "path", path, "bytes", (json_int_t)r->bytes,
                  "files", (int)r->n_files, "warnings", r->warnings);
    if (r->kind == STORE_ADAPTER)
        json_object_update_new(row, json_pack("{s:i, s:o}", "signatures", (int)r->n_signatures,
                                              "base_id",
                                              *r->base_id ? json_string(r->base_id) : json_null()));
    else
        json_object_set_new(row, "by_reference", json_boolean(r->by_reference));
    json_array_append_new(r->kind == STORE_ADAPTER ? x->adapters : x->bases, row);
}

static const char *state_text(const struct import_result *r)
{
    if (dry_run)
        return r->state == PUBLISH_SAME       ? "is there already:"
               : r->state == PUBLISH_REPLACED ? "would replace"
               : r->state == PUBLISH_NAMED    ? "would name again"
                                              : "would import";
    return r->state == PUBLISH_SAME       ? "is there already:"
           : r->state == PUBLISH_REPLACED ? "replaced"
           : r->state == PUBLISH_NAMED    ? "named again"
                                          : "imported";
}

static void note_text(struct session *x, const char *path, const struct import_result *r)
{
    char bytes[TABLE_CELL_BYTES];
    size_t i;
    json_t *warning;
    json_array_foreach(r->warnings, i, warning)
    {
        fprintf(stderr, "warning: %s: %s\n", path, json_string_value(warning));
    }
    if (x->ctx->quiet) {
        puts(r->id);
        return;
    }
    printf("%s %s%s%s  %.12s  %s", state_text(r), r->name, strcmp(r->tag, "latest") ? ":" : "",
           strcmp(r->tag, "latest") ? r->tag : "", r->id, table_bytes(bytes, r->bytes));
    if (r->kind == STORE_BASE)
        printf("  base%s", r->by_reference ? ", by reference" : "");
    else if (*r->base_id)
        printf("  base %.12s", r->base_id);
    putchar('\n');
}

static void note_failure(struct session *x, const char *path, const struct err *err)
{
    x->n_failed++;
    if (x->n_failed == 1)
        x->first = *err;
    json_array_append_new(x->failures, json_pack("{s:s, s:s, s:s}", "path", path, "code",
                                                 err_name(err->code), "message", err->msg));
}

// ---- the inputs --------------------------------------------------------------------------------

struct input {
    char *path;
    enum import_kind kind;
};

struct inputs {
    struct input *items;
    size_t n, cap;
};

static void inputs_release(struct inputs *in)
{
    for (size_t i = 0; i < in->n; i++)
        sys_free(in->items[i].path);
    sys_free(in->items);
}

static int add_input(struct inputs *in, const char *path, struct err *err)
{
    if (in->n == in->cap) {
        size_t cap = in->cap ? in->cap * 2 : 16;
        struct input *more = sys_reallocarray(in->items, cap, sizeof *more);
        if (!more)
            return err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
        in->items = more;
        in->cap = cap;
    }
    in->items[in->n] = (struct input){sys_strdup(path), import_classify(path)};
    return in->items[in->n++].path ? 0 : err_set(err, ERR_NO_MEMORY, "%s: no memory", path);
}

static int add_below(struct inputs *in, const char *folder, struct err *err)
{
    char **paths;
    size_t n;
    int rc = import_find(folder, &paths, &n, err);
    if (rc == ERR_NOT_FOUND) { // told with the others, as an input that fails
        err_clear(err);
        return add_input(in, folder, err);
    }
    if (rc)
        return rc;
    for (size_t i = 0; !rc && i < n; i++)
        rc = add_input(in, paths[i], err);
    file_free_names(paths, n);
    return rc;
}

/* What the arguments stand for; bases first, so that adapters that name them find them. */
static int collect_inputs(struct inputs *in, const struct cmd_context *ctx, struct err *err)
{
    struct inputs all = {0};
    int rc = 0;
    for (size_t i = 0; !rc && i < ctx->n_args; i++)
        rc = recursive && file_is_folder(ctx->args[i]) ? add_below(&all, ctx->args[i], err)
                                                       : add_input(&all, ctx->args[i], err);
    for (int bases = 1; bases >= 0; bases--) {
        for (size_t i = 0; !rc && i < all.n; i++) {
            if ((all.items[i].kind == IMPORT_BASE) == bases)
                rc = add_input(in, all.items[i].path, err);
        }
    }
    inputs_release(&all);
    return rc;
}

/* Why an input is none, with the way out. */
static int check_input(const struct input *in, struct err *err)
{
    switch (in->kind) {
    case IMPORT_ADAPTER:
    case IMPORT_BASE:
        return 0;
    case IMPORT_PACK:
        return strcmp(in->path, "-") == 0 || file_exists(in->path)
                   ? 0
                   : err_set(err, ERR_NOT_FOUND, "%s: no such file", in->path);
    case IMPORT_FOLDERS:
        if (!recursive)
            cmd_hint("`lora import --recursive %s` looks below it", in->path);
        return err_set(err, ERR_NOT_FOUND,
                       "%s: no adapter (adapter_config.json and weights) and no base checkpoint "
                       "(config.json and weights) in it%s",
                       in->path, recursive ? " or below" : "");
    default:
        return err_set(err, ERR_NOT_FOUND, "%s: %s", in->path,
                       file_exists(in->path) ? "no adapter: wanted a folder, or a .safetensors "
                                               "file with adapter_config.json beside it"
                                             : "no such file or folder");
    }
}

/* What will be copied (or hashed); for the progress bar. */
static uint64_t total_bytes(const struct inputs *in)
{
    uint64_t total = 0;
    for (size_t i = 0; i < in->n; i++) {
        bool reads = in->items[i].kind != IMPORT_BASE || copy || deep;
        bool pack = in->items[i].kind == IMPORT_PACK; // read as a whole by a dry run too
        total +=
            reads && (pack || !dry_run) ? import_bytes(in->items[i].path, in->items[i].kind) : 0;
    }
    return total;
}

// ---- one input ---------------------------------------------------------------------------------

static void take_row(void *arg, const char *where, const struct import_result *r)
{
    struct session *x = arg;
    x->n_done++;
    if (x->ctx->json)
        note_json(x, where, r);
    else
        note_text(x, where, r);
}

static int import_packed(struct session *x, const struct input *in,
                         const struct import_options *opt, struct err *err)
{
    json_t *notes, *note;
    size_t i;
    int rc = import_pack(x->s, in->path, opt, take_row, x, &notes, err);
    json_array_foreach(notes, i, note)
    {
        fprintf(stderr, "warning: %s: %s\n", in->path, json_string_value(note));
    }
    json_decref(notes);
    return rc;
}

static int import_one(struct session *x, const struct input *in, struct err *err)
{
    struct import_options opt = {
        .name = name,
        .tag = tag,
        .base = x->base,
        .find_base = true,
        .force = x->ctx->force,
        .dry_run = dry_run,
        .copy = copy,
        .deep = deep,
        .ignore_fields = ignore_fields.items,
        .n_ignore_fields = ignore_fields.n,
        .on_bytes = on_bytes,
        .on_bytes_arg = x,
        .required = &x->keys,
    };
    int rc = check_input(in, err);
    if (rc)
        return rc;
    if (cmd_interrupted())
        return err_set(err, ERR_INTERRUPTED, "%s: interrupted", in->path);
    progress_label(x->progress, file_base_name(in->path));
    if (in->kind == IMPORT_PACK)
        return import_packed(x, in, &opt, err);
    struct import_result r;
    if (in->kind == IMPORT_BASE)
        rc = import_base(x->s, in->path, &opt, &r, err);
    else
        rc = initial_ref ? import_converted(x->ctx, x->s, initial_ref, in->path, &opt, &r, err)
                         : import_adapter(x->s, in->path, &opt, &r, err);
    if (rc)
        return rc;
    take_row(x, in->path, &r);
    import_result_release(&r);
    return 0;
}

static void hint_for(int code, const char *msg)
{
    if (code == ERR_EXISTS)
        cmd_hint("--name gives it another name; --force takes this one (the old content stays in "
                 "`lora tag --history`)");
    else if (code == ERR_LOCKED)
        cmd_hint("wait for that process, or --lock-timeout SECONDS");
    else if (code == ERR_NOT_FOUND && strstr(msg, "lies over base"))
        cmd_hint("`lora import FOLDER` of that base first, or --base REF");
    else if (code == ERR_REFUSED && strstr(msg, "does not fit base"))
        cmd_hint("--base REF names the base that it was trained on");
    else if (code == ERR_REFUSED && strstr(msg, "is not signed"))
        cmd_hint("`lora sign PATH --key KEY.pem` signs it; --require-signature and the setting "
                 "require-signature say whose signature is wanted");
    else if (code == ERR_REFUSED || (code == ERR_CORRUPT && strstr(msg, "was signed")))
        signing_hint_refused(code, "PATH", msg);
}

/* A failure of one of several inputs is told and the others go on; what concerns the store, and an
 * interruption, ends it all. */
static int take_input(struct session *x, const struct input *in, bool alone, struct err *err)
{
    struct err own = {0};
    int rc = import_one(x, in, &own);
    if (!rc)
        return 0;
    hint_for(rc, own.msg);
    if (alone || rc == ERR_INTERRUPTED || rc == ERR_LOCKED || rc == ERR_NO_STORE)
        return err_set(err, rc, "%s", own.msg);
    if (!x->ctx->json)
        fprintf(stderr, "error: %s\n", own.msg);
    note_failure(x, in->path, &own);
    return 0;
}

// ---- the command -------------------------------------------------------------------------------

static int open_base(struct session *x, struct err *err)
{
    if (!base_ref)
        return 0;
    struct model_ref r;
    int rc = model_ref_resolve(&r, x->s, base_ref, STORE_BASE, err);
    if (!rc)
        rc = r.in_store ? base_model_open(&x->base, x->s, r.id, err)
                        : base_model_open_folder(&x->base, r.path, err);
    model_ref_release(&r);
    return rc;
}

static int import_all(struct session *x, const struct inputs *in, struct err *err)
{
    int rc = open_base(x, err);
    for (size_t i = 0; !rc && i < in->n; i++)
        rc = take_input(x, &in->items[i], in->n == 1, err);
    if (rc || !x->n_failed)
        return rc;
    if (x->n_done == 0)
        return err_set(err, x->first.code, "%zu of %zu failed: %s", x->n_failed, x->n_failed,
                       x->first.msg);
    return err_set(err, ERR_PARTIAL, "%zu of %zu failed", x->n_failed, x->n_failed + x->n_done);
}

/* What is wrong before a store is opened, or made for nothing. */
static int check_usage(const struct inputs *in, struct err *err)
{
    if (name && in->n > 1)
        return err_set(err, ERR_USAGE, "--name is for one path, these are %zu", in->n);
    return in->n == 1 ? check_input(&in->items[0], err) : 0;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct session x = {
        .ctx = ctx, .adapters = json_array(), .bases = json_array(), .failures = json_array()};
    struct inputs in = {0};
    int rc = collect_inputs(&in, ctx, err);
    if (!rc)
        rc = check_usage(&in, err);
    if (!rc)
        rc = signing_read_keys(&x.keys, &signing_required, err);
    if (!rc)
        rc = dry_run ? cmd_store_open_if_there(ctx, &x.s, err)
                     : cmd_store_open(ctx, true, &x.s, err);
    if (!rc) {
        x.progress = progress_open(ctx->progress, "import", total_bytes(&in));
        rc = import_all(&x, &in, err);
        progress_free(x.progress);
    }
    if (ctx->json && (!rc || rc == ERR_PARTIAL))
        cmd_print_json(json_pack("{s:O, s:O, s:O, s:b}", "adapters", x.adapters, "bases", x.bases,
                                 "failures", x.failures, "dry_run", dry_run));
    inputs_release(&in);
    json_decref(x.adapters);
    json_decref(x.bases);
    json_decref(x.failures);
    base_model_free(x.base);
    sign_keys_release(&x.keys);
    store_close(x.s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "name",
     .type = OPTION_STRING,
     .value = &name,
     .value_name = "NAME[:TAG]",
     .help = "The name in the store; without it what the configuration or the folder says."},
    {.long_name = "tag",
     .type = OPTION_STRING,
     .value = &tag,
     .value_name = "TAG",
     .help = "The tag; `latest` without it."},
    {.long_name = "base",
     .type = OPTION_STRING,
     .value = &base_ref,
     .value_name = "REF",
     .help = "The base of the adapters: they are checked against it, its fingerprint is recorded."},
    {.long_name = "initial-base",
     .type = OPTION_STRING,
     .value = &initial_ref,
     .value_name = "REF",
     .help = "For adapters begun with PiSSA or OLoRA: the base before training. They are converted "
             "to plain LoRA on it, and how far that can differ from what was trained is said."},
    {.long_name = "recursive",
     .short_name = 'r',
     .type = OPTION_FLAG,
     .value = &recursive,
     .help = "Import every adapter and base below the given folders."},
    {.long_name = "dry-run",
     .short_name = 'n',
     .type = OPTION_FLAG,
     .value = &dry_run,
     .help = "Check everything and say what would be done; write nothing."},
    {.long_name = "copy",
     .type = OPTION_FLAG,
     .value = &copy,
     .help = "Copy a base into the store instead of referring to its folder."},
    {.long_name = "deep",
     .type = OPTION_FLAG,
     .value = &deep,
     .help = "Record the digests of a base that is referred to; it is verified with them then."},
    IGNORE_FIELD_ROW(ignore_fields),
    SIGNING_REQUIRED_ROW,
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_import = {
    .name = "import",
    .arguments = "PATH…",
    .summary = "add adapters or base models to the store",
    .description =
        "PATH is a PEFT folder, a .safetensors file with its adapter_config.json beside it, the\n"
        "folder of a base checkpoint, a LoRA file of kohya, diffusers or llama.cpp (.safetensors,\n"
        ".gguf), an MLX folder, a pack (.tar, .tar.zst, .tar.gz, .zip, the folder or tar of "
        "an\n"
        "OCI layout; - for a tar on standard input), or with --recursive a folder of such "
        "folders.\n"
        "Symbolic links are followed. What cannot be computed exactly is refused by name. A base "
        "is\n"
        "referred to where it lies unless --copy is given. The same content twice is no error.\n"
        "A pack is read and checked as a whole before any of it is kept: links, devices, names "
        "that\n"
        "lead outside, duplicates, bombs and wrong digests are refused by the entry's name.",
    .examples = "lora import ./my-adapter\n"
                "lora import ~/models/Llama-3.1-8B --name llama\n"
                "lora import --recursive ./adapters --base llama\n"
                "lora import team.tar.zst",
    .main_five = true,
    .min_args = 1,
    .max_args = SIZE_MAX,
    .options = options,
    .run = run,
};
