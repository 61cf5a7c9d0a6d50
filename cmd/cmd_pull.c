/*
 * lora pull: adapters from a registry into the store.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/progress.h"
#include "cmd/table.h"
#include "cmd/signing.h"
#include "cmd/transfer_rows.h"
#include "store/registry.h"

static int64_t retry_delay_ms = 500;
static bool plain_http, dry_run;
static const char *name, *tag, *base_ref;
static struct string_list ignore_fields;

struct session {
    struct cmd_context *ctx;
    struct progress *progress;
    json_t *adapters;
};

static int on_bytes(void *arg, uint64_t bytes)
{
    struct session *x = arg;
    progress_add(x->progress, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

static const char *const states[] = {
    [PUBLISH_ADDED] = "added",
    [PUBLISH_NAMED] = "named",
    [PUBLISH_REPLACED] = "replaced",
    [PUBLISH_SAME] = "same",
};

static void take_row(void *arg, const char *where, const struct import_result *r)
{
    struct session *x = arg;
    size_t i;
    json_t *warning;
    char bytes[TABLE_CELL_BYTES];
    json_array_append_new(
        x->adapters,
        json_pack("{s:s,s:s,s:s,s:s,s:s,s:I,s:i,s:i,s:O,s:o}", "name", r->name, "tag", r->tag, "id",
                  r->id, "state", states[r->state], "path", where, "bytes", (json_int_t)r->bytes,
                  "files", (int)r->n_files, "signatures", (int)r->n_signatures, "warnings",
                  r->warnings, "base_id", *r->base_id ? json_string(r->base_id) : json_null()));
    if (x->ctx->json)
        return;
    json_array_foreach(r->warnings, i, warning)
    {
        fprintf(stderr, "warning: %s: %s\n", where, json_string_value(warning));
    }
    if (x->ctx->quiet)
        puts(r->id);
    else
        printf("%s %s%s%s  %.12s  %s\n",
               r->state == PUBLISH_SAME ? "is there already:"
               : dry_run                ? "would pull"
                                        : "pulled",
               r->name, strcmp(r->tag, "latest") ? ":" : "", strcmp(r->tag, "latest") ? r->tag : "",
               r->id, table_bytes(bytes, r->bytes));
}

static void hint_for(int code, const struct registry_ref *ref, const char *msg)
{
    if (code == ERR_DENIED)
        cmd_hint("`docker login %s`, or another tool that writes ~/.docker/config.json", ref->host);
    else if (code == ERR_NOT_FOUND)
        cmd_hint("is it pushed, and under that name? %s/v2/%s/tags/list names the tags", ref->host,
                 ref->repo);
    else if (code == ERR_EXISTS)
        cmd_hint("--name gives it another name; --force takes this one");
    else if (code == ERR_REFUSED && strstr(msg, "is not signed"))
        cmd_hint("`lora sign` it where it was pushed, and push it again; --require-signature and "
                 "the setting require-signature say whose signature is wanted");
    else if (code == ERR_REFUSED || code == ERR_CORRUPT)
        signing_hint_refused(code, ref->repo, msg);
}

static int open_base(struct store *s, struct base_model **base, struct err *err)
{
    struct model_ref r;
    *base = NULL;
    if (!base_ref)
        return 0;
    int rc = model_ref_resolve(&r, s, base_ref, STORE_BASE, err);
    if (!rc)
        rc = r.in_store ? base_model_open(base, s, r.id, err)
                        : base_model_open_folder(base, r.path, err);
    model_ref_release(&r);
    return rc;
}

static int pull(struct session *x, struct store *s, const struct registry_ref *ref, struct err *err)
{
    struct base_model *base;
    struct registry *r = NULL;
    struct registry_report report = {0};
    json_t *notes = NULL, *note;
    size_t i;
    struct sign_keys keys;
    int rc = signing_read_keys(&keys, &signing_required, err);
    if (rc)
        return rc;
    rc = open_base(s, &base, err);
    struct import_options opt = {.name = name,
                                 .tag = tag,
                                 .base = base,
                                 .find_base = true,
                                 .force = x->ctx->force,
                                 .dry_run = dry_run,
                                 .ignore_fields = ignore_fields.items,
                                 .n_ignore_fields = ignore_fields.n,
                                 .required = &keys};
    struct registry_options how = {.plain_http = plain_http,
                                   .retry_ms = (uint32_t)retry_delay_ms,
                                   .on_bytes = on_bytes,
                                   .arg = x};
    if (!rc)
        rc = registry_open(&r, ref, &how, err);
    if (!rc)
        rc = registry_pull(r, s, &opt, take_row, x, &notes, &report, err);
    json_array_foreach(notes, i, note)
    {
        fprintf(stderr, "warning: %s\n", json_string_value(note));
    }
    if (!rc && x->ctx->json)
        cmd_print_json(json_pack("{s:O,s:s+,s:I,s:I,s:I,s:I,s:b}", "adapters", x->adapters,
                                 "digest", "sha256:", report.digest, "blobs",
                                 (json_int_t)report.n_blobs, "present",
                                 (json_int_t)report.n_present, "bytes", (json_int_t)report.bytes,
                                 "resumed", (json_int_t)report.resumed, "dry_run", dry_run));
    json_decref(notes);
    registry_free(r);
    base_model_free(base);
    sign_keys_release(&keys);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct registry_ref ref;
    struct store *s = NULL;
    struct session x = {.ctx = ctx, .adapters = json_array()};
    int rc = registry_ref_parse(ctx->args[0], &ref, err);
    if (!rc)
        rc = dry_run ? cmd_store_open_if_there(ctx, &s, err) : cmd_store_open(ctx, true, &s, err);
    if (!rc) {
        x.progress = progress_open(ctx->progress, "pull", 0);
        rc = pull(&x, s, &ref, err);
        progress_free(x.progress);
        hint_for(rc, &ref, err->msg);
    }
    json_decref(x.adapters);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "name",
     .type = OPTION_STRING,
     .value = &name,
     .value_name = "NAME[:TAG]",
     .help = "The name in the store; without it the one that it was pushed under."},
    {.long_name = "tag",
     .type = OPTION_STRING,
     .value = &tag,
     .value_name = "TAG",
     .help = "The tag in the store."},
    {.long_name = "base",
     .type = OPTION_STRING,
     .value = &base_ref,
     .value_name = "REF",
     .help = "The base of the adapters: they are checked against it, its fingerprint is recorded."},
    PLAIN_HTTP_ROW(plain_http),
    RETRY_DELAY_ROW(retry_delay_ms),
    {.long_name = "dry-run",
     .short_name = 'n',
     .type = OPTION_FLAG,
     .value = &dry_run,
     .help = "Fetch and check everything and say what would be done; keep nothing."},
    IGNORE_FIELD_ROW(ignore_fields),
    SIGNING_REQUIRED_ROW,
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_pull = {
    .name = "pull",
    .arguments = "REGISTRY/REPO[:TAG|@DIGEST]",
    .summary = "adapters from an OCI registry",
    .description =
        "Fetches every adapter of the image or index, files that the store has excepted, checks "
        "all\n"
        "of it as `lora import` does, and keeps it under the names that it was pushed under.\n"
        "A pull that was cut off is gone on with by the next one, from where each file had got.",
    .examples = "lora pull registry.example.com/adapters/support-bot:v1\n"
                "lora pull localhost:5000/team --plain-http",
    .min_args = 1,
    .max_args = 1,
    .options = options,
    .run = run,
};
