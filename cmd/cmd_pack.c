/*
 * lora pack: adapters as one archive or OCI layout.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/pack_overlay.h"
#include "cmd/progress.h"
#include "cmd/table.h"
#include "cmd/transfer_rows.h"
#include "libcore/base/file.h"
#include "store/oci.h"

static const char *output, *format, *oci_compat, *overlay_of;

static int on_bytes(void *arg, uint64_t bytes)
{
    progress_add(arg, bytes);
    return cmd_interrupted() ? ERR_INTERRUPTED : 0;
}

/* What is to be written: a kind of archive (NONE: a folder), and whether it is an OCI layout. */
struct form {
    enum archive_kind kind;
    bool oci;
    const char *name; // for --json
};

static int find_form(struct form *f, struct err *err)
{
    enum archive_kind by_name = archive_kind_of(output);
    const char *text = format;
    f->kind = by_name;
    if (text && strcmp(text, "oci") == 0) {
        f->oci = true;
        f->name = "oci";
        return by_name == ARCHIVE_KIND_NONE || by_name == ARCHIVE_KIND_TAR
                   ? 0
                   : err_set(err, ERR_USAGE, "%s: an OCI layout is a folder or a .tar", output);
    }
    if (text) {
        char ending[16];
        snprintf(ending, sizeof ending, "x.%.10s", text);
        f->kind = archive_kind_of(ending);
    }
    if (f->kind == ARCHIVE_KIND_NONE)
        return err_set(err, ERR_USAGE,
                       "%s: --format is missing, and the name does not end in .tar, .tar.zst, "
                       ".tar.gz or .zip",
                       output);
    f->name = archive_kind_ending(f->kind) + 1;
    return 0;
}

static int check_usage(struct cmd_context *ctx, struct form *f, struct err *err)
{
    enum oci_compat ignored;
    if (!output)
        return err_set(err, ERR_USAGE, "--output FILE is missing");
    int rc = find_form(f, err);
    if (!rc)
        rc = oci_compat_parse(oci_compat, &ignored, err);
    if (!rc && oci_compat && !f->oci)
        rc = err_set(err, ERR_USAGE, "--oci-compat is for --format oci");
    if (!rc && overlay_of && (f->oci || ctx->n_args != 1))
        rc = err_set(err, ERR_USAGE, "--overlay-of is for one base in an archive");
    if (rc)
        return rc;
    if (file_exists(output) && !ctx->force) {
        cmd_hint("--force puts the pack in its place");
        return err_set(err, ERR_EXISTS, "%s: is there already", output);
    }
    return 0;
}

struct done {
    char digest[STORE_ID_CHARS + 1]; // of the pack's index, or of the image
    uint64_t bytes;
};

/* A pack is known by its index. */
static void take_index_digest(const struct pack_items *items, struct done *done)
{
    for (size_t i = 0; i < items->n; i++) {
        if (strcmp(items->items[i].name, PACK_INDEX) == 0)
            memcpy(done->digest, items->items[i].digest, sizeof done->digest);
    }
}

static int make_items(const struct pack_plan *plan, const struct form *f, struct pack_items *items,
                      struct done *done, struct err *err)
{
    if (!f->oci) {
        int rc = pack_plan_items(plan, items, err);
        if (!rc)
            take_index_digest(items, done);
        return rc;
    }
    enum oci_compat compat;
    struct oci_top top;
    json_t *manifests, *referrers;
    int rc = oci_compat_parse(oci_compat, &compat, err);
    if (!rc)
        rc = oci_items(plan, compat, items, &manifests, &referrers, &top, err);
    if (rc)
        return rc;
    json_decref(manifests);
    memcpy(done->digest, top.digest, sizeof done->digest);
    const char *tag = json_string_value(json_object_get(json_array_get(plan->records, 0), "tag"));
    rc = oci_add_layout(items, &top, referrers,
                        json_array_size(plan->records) == 1 ? tag : "latest", err);
    json_decref(referrers);
    return rc;
}

static int write_items(struct cmd_context *ctx, const struct pack_items *items,
                       const struct form *f, struct done *done, struct err *err)
{
    struct progress *p = progress_open(ctx->progress, "pack", pack_items_bytes(items));
    struct pack_output out = {output, ctx->force, on_bytes, p};
    int rc = f->kind == ARCHIVE_KIND_NONE
                 ? pack_write_folder(items, &out, &done->bytes, err)
                 : pack_write_archive(items, f->kind, &out, &done->bytes, err);
    progress_free(p);
    return rc;
}

static void tell(struct cmd_context *ctx, const json_t *records, const struct form *f,
                 const struct done *done)
{
    json_t *adapters = json_array(), *record;
    size_t i;
    char bytes[TABLE_CELL_BYTES];
    json_array_foreach(records, i, record)
    {
        json_array_append_new(
            adapters, json_pack("{s:O,s:O,s:O,s:O}", "name", json_object_get(record, "name"), "tag",
                                json_object_get(record, "tag"), "id", json_object_get(record, "id"),
                                "kind", json_object_get(record, "kind")));
    }
    if (ctx->json)
        cmd_print_json(json_pack("{s:O,s:s,s:s,s:s,s:I}", "adapters", adapters, "output", output,
                                 "format", f->name, "digest", done->digest, "bytes",
                                 (json_int_t)done->bytes));
    else if (ctx->quiet)
        puts(done->digest);
    else
        printf("packed %zu into %s: %s  %.12s\n", json_array_size(adapters), output,
               table_bytes(bytes, done->bytes), done->digest);
    json_decref(adapters);
}

static int pack_refs(struct cmd_context *ctx, const struct form *f, struct err *err)
{
    struct store *s;
    struct pack_plan plan;
    struct pack_items items = {0};
    struct done done = {0};
    int rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    rc = pack_plan_open(&plan, s, (const char *const *)ctx->args, ctx->n_args, "pack", err);
    for (size_t i = 0; rc && i < ctx->n_args; i++) {
        if (strchr(ctx->args[i], '/') && file_exists(ctx->args[i]))
            cmd_hint("names of the store are packed: `lora import %s` first", ctx->args[i]);
    }
    if (!rc) {
        rc = make_items(&plan, f, &items, &done, err);
        if (!rc)
            rc = write_items(ctx, &items, f, &done, err);
        if (!rc)
            tell(ctx, plan.records, f, &done);
        pack_items_release(&items);
        pack_plan_release(&plan);
    }
    store_close(s);
    return rc;
}

static int pack_over_base(struct cmd_context *ctx, const struct form *f, struct err *err)
{
    struct pack_overlay p;
    struct pack_items items = {0};
    struct done done = {0};
    int rc = pack_overlay_open(&p, ctx, ctx->args[0], overlay_of, output, &items, err);
    if (rc)
        return rc;
    take_index_digest(&items, &done);
    rc = write_items(ctx, &items, f, &done, err);
    if (!rc) {
        json_t *records = json_pack("[O]", p.record);
        tell(ctx, records, f, &done);
        json_decref(records);
    }
    pack_items_release(&items);
    pack_overlay_release(&p);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct form f = {0};
    int rc = check_usage(ctx, &f, err);
    if (rc)
        return rc;
    return overlay_of ? pack_over_base(ctx, &f, err) : pack_refs(ctx, &f, err);
}

static const struct option options[] = {
    {.long_name = "output",
     .short_name = 'o',
     .type = OPTION_STRING,
     .value = &output,
     .value_name = "FILE|DIR",
     .help = "What to make; its ending says the format when --format does not."},
    {.long_name = "format",
     .type = OPTION_STRING,
     .value = &format,
     .value_name = "FORMAT",
     .choices = "tar.zst,tar,tar.gz,zip,oci",
     .help = "oci: an OCI image layout, as a folder or (FILE.tar) a tar."},
    OCI_COMPAT_ROW(oci_compat),
    {.long_name = "overlay-of",
     .type = OPTION_STRING,
     .value = &overlay_of,
     .value_name = "BASE",
     .help = "REF is a base (a name, or a folder as `lora merge` writes it) that lies over BASE: "
             "pack the tensors that differ, and the merge's recipe."},
    {0},
};

const struct command command_pack = {
    .name = "pack",
    .arguments = "REF…",
    .summary = "adapters as one archive or OCI layout, reproducibly",
    .description =
        "The same adapters under the same names give the same bytes (compressed ones: with the "
        "same\n"
        "version of the compressor). `lora import FILE` brings them back with the same content "
        "ids.\n"
        "A base travels thin, by its fingerprint, or with --overlay-of as what differs from "
        "another\n"
        "base: over that one, and no other, `lora import FILE [--base BASE]` makes the same files\n"
        "again. In a plain tar the weights begin at multiples of 4096 bytes, so that they can be "
        "mapped.",
    .examples = "lora pack support-bot --output support-bot.tar.zst\n"
                "lora pack a b c --output team.tar\n"
                "lora pack support-bot --format oci --output ./layout\n"
                "lora pack ./merged --overlay-of llama --output merged.tar.zst",
    .main_five = true,
    .min_args = 1,
    .max_args = SIZE_MAX,
    .options = options,
    .run = run,
};
