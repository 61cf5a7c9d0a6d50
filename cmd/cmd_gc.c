/*
 * lora gc: removes what no name and no running process holds.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/table.h"
#include "store/cache.h"
#include "store/gc.h"

static bool dry_run;
static int64_t grace_s = GC_GRACE_SECONDS;
static uint64_t cache_cap = CACHE_CAP_BYTES;

struct session {
    struct cmd_context *ctx;
    json_t *removed;
};

static const char *const what_names[] = {
    [GC_OBJECT] = "object",       [GC_MANIFEST] = "manifest", [GC_BLOB] = "blob",
    [GC_TEMPORARY] = "temporary", [GC_CACHE] = "cache",
};

static void removed(void *arg, enum gc_what what, const char *name, uint64_t bytes)
{
    struct session *x = arg;
    char cell[TABLE_CELL_BYTES];
    if (x->ctx->json)
        json_array_append_new(x->removed, json_pack("{s:s, s:s, s:I}", "what", what_names[what],
                                                    "name", name, "bytes", (json_int_t)bytes));
    else if (x->ctx->quiet)
        puts(name);
    else if (dry_run)
        printf("would remove %-9s %s  %s\n", what_names[what], name,
               bytes ? table_bytes(cell, bytes) : "");
}

static void print_report(struct session *x, const struct gc_report *r)
{
    char cell[TABLE_CELL_BYTES];
    if (x->ctx->json) {
        cmd_print_json(json_pack(
            "{s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:O}", "dry_run", dry_run, "objects",
            (json_int_t)r->n_objects, "blobs", (json_int_t)r->n_blobs, "temporaries",
            (json_int_t)r->n_temporaries, "bytes", (json_int_t)r->bytes, "leased",
            (json_int_t)r->n_leased, "young", (json_int_t)r->n_young, "removed", x->removed));
        return;
    }
    if (x->ctx->quiet)
        return;
    printf("%s %llu objects, %llu blobs, %llu temporaries: %s\n",
           dry_run ? "would remove" : "removed", (unsigned long long)r->n_objects,
           (unsigned long long)r->n_blobs, (unsigned long long)r->n_temporaries,
           table_bytes(cell, r->bytes));
    if (r->n_leased)
        printf("%llu without a name are in use by running processes and stay\n",
               (unsigned long long)r->n_leased);
    if (r->n_young)
        printf("%llu files of unfinished imports are younger than %lld s and stay\n",
               (unsigned long long)r->n_young, (long long)grace_s);
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s;
    int rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    struct session x = {ctx, json_array()};
    struct gc_options opt = {
        .dry_run = dry_run, .grace_s = (uint64_t)grace_s, .cache_cap = cache_cap};
    struct gc_report report;
    rc = store_gc(s, &opt, &report, removed, &x, err);
    if (!rc)
        print_report(&x, &report);
    json_decref(x.removed);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "dry-run",
     .short_name = 'n',
     .type = OPTION_FLAG,
     .value = &dry_run,
     .help = "Say what would go, remove nothing."},
    {.long_name = "grace",
     .type = OPTION_INT,
     .value = &grace_s,
     .value_name = "SECONDS",
     .min = 0,
     .max = 10 * 365 * 86400LL,
     .help = "Keep files that no object has while they are younger than this (3600)."},
    {.long_name = "cache-size",
     .type = OPTION_SIZE,
     .value = &cache_cap,
     .value_name = "SIZE",
     .help = "What the cache may keep (16G); 0 empties it."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_gc = {
    .name = "gc",
    .summary = "remove what no name and no running process holds",
    .description = "Objects that lost their last name go at once; files that belong to nothing go\n"
                   "when they are older than the grace period. What a running server or import\n"
                   "holds stays.",
    .examples = "lora gc --dry-run\nlora gc",
    .options = options,
    .run = run,
};
