/*
 * lora push: adapters to a registry.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/progress.h"
#include "cmd/table.h"
#include "cmd/transfer_rows.h"
#include "store/registry.h"

static int64_t retry_delay_ms = 500;
static bool plain_http;
static const char *oci_compat, *mount_from;
static uint64_t chunk_size;

static int on_bytes(void *arg, uint64_t bytes)
{
    progress_add(arg, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

static void hint_for(int code, const struct registry_ref *ref)
{
    if (code == ERR_DENIED)
        cmd_hint("`docker login %s`, or another tool that writes ~/.docker/config.json", ref->host);
    else if (code == ERR_USAGE)
        cmd_hint("--plain-http is for a registry on localhost; give the other one a certificate");
}

static void tell(struct cmd_context *ctx, const struct registry_ref *ref, size_t n_adapters,
                 const struct registry_report *r)
{
    char bytes[TABLE_CELL_BYTES];
    if (ctx->json)
        cmd_print_json(json_pack(
            "{s:s++++,s:s+,s:I,s:I,s:I,s:I,s:I}", "reference", ref->host, "/", ref->repo, ":",
            ref->reference, "digest", "sha256:", r->digest, "adapters", (json_int_t)n_adapters,
            "blobs", (json_int_t)r->n_blobs, "present", (json_int_t)r->n_present, "mounted",
            (json_int_t)r->n_mounted, "bytes", (json_int_t)r->bytes));
    else if (ctx->quiet)
        printf("sha256:%s\n", r->digest);
    else
        printf("pushed %zu to %s/%s:%s  sha256:%.12s  %s sent, %zu of %zu files were there\n",
               n_adapters, ref->host, ref->repo, ref->reference, r->digest,
               table_bytes(bytes, r->bytes), r->n_present + r->n_mounted, r->n_blobs);
}

static int push_items(struct cmd_context *ctx, const struct registry_ref *ref,
                      const struct pack_plan *plan, enum oci_compat compat, struct err *err)
{
    struct pack_items items;
    struct oci_top top;
    json_t *manifests = NULL, *referrers = NULL;
    struct registry *r = NULL;
    struct registry_report report;
    int rc = oci_items(plan, compat, &items, &manifests, &referrers, &top, err);
    if (rc)
        return rc;
    struct progress *p = progress_open(ctx->progress, "push", pack_items_bytes(&items));
    struct registry_options opt = {.plain_http = plain_http,
                                   .retry_ms = (uint32_t)retry_delay_ms,
                                   .chunk_bytes = chunk_size,
                                   .mount_from = mount_from,
                                   .on_bytes = on_bytes,
                                   .arg = p};
    rc = registry_open(&r, ref, &opt, err);
    if (!rc)
        rc = registry_push(r, &items, manifests, referrers, &top, &report, err);
    progress_free(p);
    if (!rc)
        tell(ctx, ref, json_array_size(plan->records), &report);
    registry_free(r);
    json_decref(manifests);
    json_decref(referrers);
    pack_items_release(&items);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct registry_ref ref;
    enum oci_compat compat;
    struct store *s;
    struct pack_plan plan;
    size_t n_refs = ctx->n_args - 1;
    int rc = registry_ref_parse(ctx->args[n_refs], &ref, err);
    if (!rc && strncmp(ref.reference, "sha256:", 7) == 0)
        rc = err_set(err, ERR_USAGE, "%s: a push is to a tag", ctx->args[n_refs]);
    if (!rc)
        rc = oci_compat_parse(oci_compat, &compat, err);
    if (!rc)
        rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    rc = pack_plan_open(&plan, s, (const char *const *)ctx->args, n_refs, "push", err);
    if (!rc) {
        rc = push_items(ctx, &ref, &plan, compat, err);
        pack_plan_release(&plan);
        hint_for(rc, &ref);
    }
    store_close(s);
    return rc;
}

static const struct option options[] = {
    PLAIN_HTTP_ROW(plain_http),
    RETRY_DELAY_ROW(retry_delay_ms),
    OCI_COMPAT_ROW(oci_compat),
    {.long_name = "mount-from",
     .type = OPTION_STRING,
     .value = &mount_from,
     .value_name = "REPO",
     .help = "A repository of that registry that may have some of the files already."},
    {.long_name = "chunk-size",
     .type = OPTION_SIZE,
     .value = &chunk_size,
     .value_name = "SIZE",
     .help = "Larger files are sent in pieces of this size (64M)."},
    {0},
};

const struct command command_push = {
    .name = "push",
    .arguments = "REF… REGISTRY/REPO[:TAG]",
    .summary = "adapters to an OCI registry",
    .description =
        "Each adapter becomes an image in the ModelPack form; several become an index behind one "
        "tag.\n"
        "A file that the registry has is not sent. The login is docker's (config.json, credential\n"
        "helpers). What fails for a moment is tried again.",
    .examples = "lora push support-bot registry.example.com/adapters/support-bot:v1\n"
                "lora push a b c localhost:5000/team:latest --plain-http",
    .min_args = 2,
    .max_args = SIZE_MAX,
    .options = options,
    .run = run,
};
