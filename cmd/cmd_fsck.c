/*
 * lora fsck: whether the store is whole; --repair brings back what can be.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/progress.h"
#include "cmd/table.h"
#include "store/fsck.h"

static bool quick, repair;

struct session {
    struct cmd_context *ctx;
    struct progress *progress;
    json_t *problems, *repaired, *notes;
};

static void found(void *arg, enum fsck_severity severity, const char *text)
{
    struct session *x = arg;
    if (x->ctx->json) {
        json_t *list = severity == FSCK_PROBLEM    ? x->problems
                       : severity == FSCK_REPAIRED ? x->repaired
                                                   : x->notes;
        json_t *row = json_string(text);
        json_array_append_new(list, row ? row : json_string("(a name that is not UTF-8)"));
    } else if (severity != FSCK_NOTE || !x->ctx->quiet) {
        printf("%s %s\n",
               severity == FSCK_PROBLEM    ? "problem: "
               : severity == FSCK_REPAIRED ? "repaired:"
                                           : "note:    ",
               text);
    }
}

static int on_bytes(void *arg, uint64_t bytes)
{
    struct session *x = arg;
    progress_add(x->progress, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

static void print_report(struct session *x, const struct fsck_report *r)
{
    if (x->ctx->json) {
        cmd_print_json(json_pack("{s:b, s:b, s:I, s:I, s:I, s:I, s:I, s:O, s:O, s:O}", "clean",
                                 r->n_problems == 0, "quick", quick, "adapters",
                                 (json_int_t)r->n_adapters, "bases", (json_int_t)r->n_bases,
                                 "names", (json_int_t)r->n_names, "blobs", (json_int_t)r->n_blobs,
                                 "bytes", (json_int_t)r->n_bytes, "problems", x->problems,
                                 "repaired", x->repaired, "notes", x->notes));
        return;
    }
    if (x->ctx->quiet)
        return;
    char cell[TABLE_CELL_BYTES];
    printf("%llu adapters, %llu bases, %llu names, %llu blobs (%s%s): %llu problems",
           (unsigned long long)r->n_adapters, (unsigned long long)r->n_bases,
           (unsigned long long)r->n_names, (unsigned long long)r->n_blobs,
           table_bytes(cell, r->n_bytes), quick ? ", sizes only" : "",
           (unsigned long long)r->n_problems);
    if (r->n_repaired)
        printf(", %llu repaired", (unsigned long long)r->n_repaired);
    if (r->n_notes)
        printf(", %llu left by interrupted commands", (unsigned long long)r->n_notes);
    putchar('\n');
}

static int verdict(const struct fsck_report *r, struct err *err)
{
    if (!r->n_problems)
        return 0;
    if (!repair)
        cmd_hint("`lora fsck --repair` brings back what can be");
    else if (r->corrupt)
        cmd_hint("import the adapters again that lost their content: `lora import PATH`");
    return err_set(err, r->corrupt ? ERR_CORRUPT : ERR_FAIL, "%llu problems",
                   (unsigned long long)r->n_problems);
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct session x = {.ctx = ctx,
                        .progress = progress_open(ctx->progress, "fsck", 0),
                        .problems = json_array(),
                        .repaired = json_array(),
                        .notes = json_array()};
    struct fsck_options opt = {
        .quick = quick,
        .repair = repair,
        .lock_timeout_ms = cmd_lock_timeout_s ? (uint32_t)cmd_lock_timeout_s * 1000 : 1,
        .on_bytes = on_bytes,
        .on_bytes_arg = &x,
    };
    struct fsck_report report;
    int rc = store_fsck(ctx->store_path, &opt, &report, found, &x, err);
    progress_free(x.progress);
    if (rc == ERR_NO_STORE)
        cmd_hint("`lora import PATH` makes the store; --store DIR names another");
    if (!rc) {
        print_report(&x, &report);
        rc = verdict(&report, err);
    }
    json_decref(x.problems);
    json_decref(x.repaired);
    json_decref(x.notes);
    return rc;
}

static const struct option options[] = {
    {.long_name = "quick",
     .type = OPTION_FLAG,
     .value = &quick,
     .help = "Compare sizes, do not hash."},
    {.long_name = "repair",
     .type = OPTION_FLAG,
     .value = &repair,
     .help = "Rebuild the index and ref files, put spoiled blobs aside."},
    CMD_LOCK_TIMEOUT_ROW,
    {0},
};

const struct command command_fsck = {
    .name = "fsck",
    .summary = "check that the store is whole, and repair it",
    .description =
        "Hashes every blob and compares index, manifests and refs. Notes are what interrupted\n"
        "commands left behind, no problems: gc removes it. Exit status 5 when content is missing\n"
        "or spoiled. With --repair an index that is missing or broken is rebuilt, names included.",
    .examples = "lora fsck\nlora fsck --quick\nlora fsck --repair",
    .options = options,
    .run = run,
};
