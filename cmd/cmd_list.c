/*
 * lora list: what the store has. Rows are printed as they come from the index: ten thousand of them
 * cost no tree and no second copy.
 */
#include <string.h>

#include "cmd/cmd.h"
#include "cmd/model_ref.h"
#include "cmd/table.h"
#include "libcore/adapter/adapter.h"
#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "store/base_model.h"

static const char *base_ref, *tag, *sort = "name", *kind = "all";

struct base_name {
    char id[STORE_ID_CHARS + 1];
    char *name;
};

struct listing {
    struct table *table;
    struct strbuf out; // JSON and ids: flushed when it is long
    bool json, quiet, first;
    struct base_name *bases; // to show a base by its name
    size_t n_bases;
};

enum { FLUSH_BYTES = 1 << 16 };

static void flush(struct listing *l, size_t beyond)
{
    if (l->out.len <= beyond)
        return;
    fwrite(l->out.data, 1, l->out.len, stdout);
    strbuf_reset(&l->out);
}

// ---- JSON --------------------------------------------------------------------------------------

/* By hand: printf would be half of what a long listing costs. */
static void add_digits(struct strbuf *sb, uint64_t n)
{
    char buf[24], *p = buf + sizeof buf;
    do {
        *--p = (char)('0' + n % 10);
        n /= 10;
    } while (n);
    strbuf_add(sb, p, (size_t)(buf + sizeof buf - p));
}

static void add_key(struct strbuf *sb, const char *key)
{
    strbuf_add(sb, ",\"", 2);
    strbuf_adds(sb, key);
    strbuf_add(sb, "\":", 2);
}

static void add_number(struct strbuf *sb, const char *key, uint64_t n)
{
    add_key(sb, key);
    add_digits(sb, n);
}

static void add_text(struct strbuf *sb, const char *key, const char *text)
{
    add_key(sb, key);
    strbuf_add_json(sb, text, strlen(text));
}

static void add_text_or_null(struct strbuf *sb, const char *key, const char *text)
{
    add_key(sb, key);
    if (*text)
        strbuf_add_json(sb, text, strlen(text));
    else
        strbuf_adds(sb, "null");
}

static void add_list(struct strbuf *sb, const char *key, const char *commas)
{
    add_key(sb, key);
    strbuf_addc(sb, '[');
    while (*commas) {
        size_t n = strcspn(commas, ",");
        strbuf_add_json(sb, commas, n);
        commas += n + (commas[n] == ',');
        if (*commas)
            strbuf_addc(sb, ',');
    }
    strbuf_addc(sb, ']');
}

static const struct {
    unsigned bit;
    const char *name;
} kind_names[] = {
    {ADAPTER_LORA, "lora"},     {ADAPTER_DORA, "dora"},   {ADAPTER_LORA_BIAS, "lora_bias"},
    {ADAPTER_BIAS, "bias"},     {ADAPTER_EMBED, "embed"}, {ADAPTER_HEAD, "head"},
    {ADAPTER_TOKENS, "tokens"}, {ADAPTER_FULL, "full"},   {ADAPTER_EXPERTS, "experts"},
};

static void add_kinds(struct strbuf *sb, unsigned kinds)
{
    strbuf_adds(sb, ",\"kinds\":[");
    bool first = true;
    for (size_t i = 0; i < sizeof kind_names / sizeof *kind_names; i++) {
        if (kinds & kind_names[i].bit) {
            strbuf_adds(sb, first ? "\"" : ",\"");
            strbuf_adds(sb, kind_names[i].name);
            strbuf_addc(sb, '"');
            first = false;
        }
    }
    strbuf_addc(sb, ']');
}

static void json_row(struct listing *l, const struct store_entry *e)
{
    struct strbuf *sb = &l->out;
    strbuf_adds(sb, l->first ? "{\"name\":" : ",{\"name\":");
    l->first = false;
    strbuf_add_json(sb, e->name, strlen(e->name));
    add_text(sb, "id", e->id);
    add_list(sb, "tags", e->tags);
    if (e->kind == STORE_ADAPTER) {
        add_text_or_null(sb, "base", e->base_name);
        add_text_or_null(sb, "base_id", e->base_id);
        add_number(sb, "rank", e->max_rank);
        add_key(sb, "signed");
        strbuf_adds(sb, e->n_signatures ? "true" : "false");
        strbuf_adds(sb, ",\"ranks\":[");
        add_digits(sb, e->min_rank);
        strbuf_addc(sb, ',');
        add_digits(sb, e->max_rank);
        strbuf_addc(sb, ']');
        add_kinds(sb, e->kinds);
        add_list(sb, "targets", e->targets);
    } else {
        add_text(sb, "architecture", e->arch);
        add_text_or_null(sb, "path", e->path);
    }
    add_number(sb, "layers", e->n_layers);
    add_text(sb, "dtype", e->dtype);
    add_text(sb, "format", e->format);
    add_number(sb, "parameters", e->n_parameters);
    add_number(sb, "bytes", e->disk_bytes);
    strbuf_adds(sb, ",\"tiers\":{\"disk\":");
    add_digits(sb, e->disk_bytes);
    add_number(sb, "host", e->host_bytes);
    add_number(sb, "device", e->device_bytes);
    strbuf_addc(sb, '}');
    add_number(sb, "created", e->created);
    strbuf_addc(sb, '}');
    flush(l, FLUSH_BYTES);
}

// ---- tables ------------------------------------------------------------------------------------

/* The name that people know: "name", or "name:tag" where latest is something else. */
static const char *shown_name(const struct store_entry *e, char *buf, size_t n)
{
    bool latest = false;
    for (const char *t = e->tags; *t;) {
        size_t len = strcspn(t, ",");
        latest = latest || (len == 6 && memcmp(t, "latest", 6) == 0);
        t += len + (t[len] == ',');
    }
    if (latest && strcmp(e->tags, "latest") == 0)
        return e->name;
    snprintf(buf, n, "%s%s%s%s", e->name, latest ? " (" : ":", e->tags, latest ? ")" : "");
    return buf;
}

static const char *shown_base(const struct listing *l, const struct store_entry *e, char *buf,
                              size_t n)
{
    for (size_t i = 0; *e->base_id && i < l->n_bases; i++) {
        if (strcmp(l->bases[i].id, e->base_id) == 0)
            return l->bases[i].name;
    }
    if (!*e->base_id) // only what the configuration says: nothing was checked
        snprintf(buf, n, "%s?", e->base_name);
    else
        snprintf(buf, n, "%s", *e->base_name ? e->base_name : e->base_id);
    return buf;
}

/* "q_proj,v_proj" -> "q,v": the names' common ending tells a reader nothing. */
static const char *shown_targets(const char *targets, char *out, size_t n)
{
    static const char ending[] = "_proj";
    size_t used = 0;
    while (*targets && used + 1 < n) {
        bool skip = strncmp(targets, ending, sizeof ending - 1) == 0 &&
                    (targets[sizeof ending - 1] == ',' || targets[sizeof ending - 1] == '\0');
        if (skip)
            targets += sizeof ending - 1;
        else
            out[used++] = *targets++;
    }
    out[used] = '\0';
    return out;
}

static void table_adapter(struct listing *l, const struct store_entry *e)
{
    char name[LIMIT_NAME_BYTES + 600], id[13], base[300], rank[32], kinds[160], targets[1024],
        cells[5][TABLE_CELL_BYTES];
    memcpy(id, e->id, sizeof id - 1);
    id[sizeof id - 1] = '\0';
    if (e->min_rank == e->max_rank)
        snprintf(rank, sizeof rank, "%u", e->max_rank);
    else
        snprintf(rank, sizeof rank, "%u-%u", e->min_rank, e->max_rank);
    table_row(
        l->table,
        (const char *[]){shown_name(e, name, sizeof name), id, shown_base(l, e, base, sizeof base),
                         rank, adapter_kinds_text(e->kinds, kinds, sizeof kinds),
                         shown_targets(e->targets, targets, sizeof targets),
                         table_count(cells[0], e->n_parameters),
                         table_bytes(cells[1], e->disk_bytes), table_bytes(cells[2], e->host_bytes),
                         table_bytes(cells[3], e->device_bytes), table_age(cells[4], e->created)});
}

static void table_base(struct listing *l, const struct store_entry *e)
{
    char name[LIMIT_NAME_BYTES + 600], id[13], cells[3][TABLE_CELL_BYTES];
    snprintf(id, sizeof id, "%.12s", e->id);
    table_row(l->table, (const char *[]){shown_name(e, name, sizeof name), id, e->arch, e->dtype,
                                         table_count(cells[0], e->n_parameters),
                                         table_bytes(cells[1], e->disk_bytes),
                                         table_age(cells[2], e->created),
                                         *e->path ? e->path : "(in the store)"});
}

static int row(void *arg, const struct store_entry *e)
{
    struct listing *l = arg;
    if (l->quiet) {
        strbuf_addf(&l->out, "%s\n", e->id);
        flush(l, FLUSH_BYTES);
    } else if (l->json) {
        json_row(l, e);
    } else if (e->kind == STORE_ADAPTER) {
        table_adapter(l, e);
    } else {
        table_base(l, e);
    }
    return l->out.failed ? ERR_NO_MEMORY : 0;
}

// ---- the command -------------------------------------------------------------------------------

static int remember_base(void *arg, const struct store_entry *e)
{
    struct listing *l = arg;
    struct base_name *more = sys_reallocarray(l->bases, l->n_bases + 1, sizeof *more);
    if (!more)
        return ERR_NO_MEMORY;
    l->bases = more;
    more[l->n_bases].name = sys_strdup(e->name);
    memcpy(more[l->n_bases].id, e->id, sizeof more->id);
    return more[l->n_bases++].name ? 0 : ERR_NO_MEMORY;
}

static int list_kind(struct listing *l, struct store *s, struct store_query *q, unsigned kinds,
                     struct err *err)
{
    static const char *const adapter_headings[] = {"NAME",  "ID",      "BASE",    "RANK",
                                                   "KINDS", "TARGETS", ">PARAMS", ">DISK",
                                                   ">HOST", ">DEVICE", "AGE",     NULL};
    static const char *const base_headings[] = {"BASE",   "ID",  "ARCHITECTURE", "DTYPE", ">PARAMS",
                                                ">BYTES", "AGE", "WHERE",        NULL};
    q->kinds = kinds;
    l->first = true;
    l->table = table_open(kinds == STORE_BASE ? base_headings : adapter_headings);
    if (!l->table)
        return err_set(err, ERR_NO_MEMORY, "no memory for a listing");
    int rc = store_list(s, q, row, l, err);
    if (!rc && !l->json && !l->quiet)
        table_print(l->table, stdout);
    table_free(l->table);
    l->table = NULL;
    return rc;
}

static int list_all(struct listing *l, struct store *s, struct store_query *q, struct err *err)
{
    bool adapters = strcmp(kind, "base") != 0;
    bool bases = strcmp(kind, "adapter") != 0 && !q->base_id;
    int rc = 0;
    const struct store_query all_bases = {.kinds = STORE_BASE};
    if (!l->json && !l->quiet)
        rc = store_list(s, &all_bases, remember_base, l, err);
    if (l->json)
        strbuf_adds(&l->out, "{\"schema\":1,\"adapters\":[");
    if (!rc && adapters)
        rc = list_kind(l, s, q, STORE_ADAPTER, err);
    if (l->json)
        strbuf_adds(&l->out, "],\"bases\":[");
    bool any = l->json || l->quiet || l->n_bases;
    if (!rc && bases && any) {
        if (adapters && !l->json && !l->quiet)
            puts("");
        rc = list_kind(l, s, q, STORE_BASE, err);
    }
    if (l->json)
        strbuf_adds(&l->out, "]}\n");
    if (!rc)
        flush(l, 0);
    return rc;
}

/* The fingerprint behind --base: of a base of the store, or of a folder. */
static int base_id_of(struct store *s, const char *ref, char id[STORE_ID_CHARS + 1],
                      struct err *err)
{
    struct model_ref r;
    int rc = model_ref_resolve(&r, s, ref, STORE_BASE, err);
    struct base_model *b = NULL;
    if (!rc && r.in_store)
        memcpy(id, r.id, STORE_ID_CHARS + 1);
    else if (!rc && (rc = base_model_open_folder(&b, r.path, err)) == 0)
        memcpy(id, b->id, STORE_ID_CHARS + 1);
    base_model_free(b);
    model_ref_release(&r);
    return rc;
}

static int run(struct cmd_context *ctx, struct err *err)
{
    struct store *s;
    int rc = cmd_store_open(ctx, false, &s, err);
    if (rc)
        return rc;
    char base_id[STORE_ID_CHARS + 1];
    struct listing l = {.json = ctx->json, .quiet = ctx->quiet};
    struct store_query q = {.tag = tag};
    q.sort = strcmp(sort, "age") == 0     ? STORE_SORT_AGE
             : strcmp(sort, "bytes") == 0 ? STORE_SORT_BYTES
             : strcmp(sort, "rank") == 0  ? STORE_SORT_RANK
                                          : STORE_SORT_NAME;
    if (base_ref) {
        rc = base_id_of(s, base_ref, base_id, err);
        q.base_id = base_id;
    }
    if (!rc)
        rc = list_all(&l, s, &q, err);
    for (size_t i = 0; i < l.n_bases; i++)
        sys_free(l.bases[i].name);
    sys_free(l.bases);
    strbuf_release(&l.out);
    store_close(s);
    return rc;
}

static const struct option options[] = {
    {.long_name = "base",
     .type = OPTION_STRING,
     .value = &base_ref,
     .value_name = "REF",
     .help = "Only adapters that were recorded for this base."},
    {.long_name = "tag",
     .type = OPTION_STRING,
     .value = &tag,
     .value_name = "TAG",
     .help = "Only what has this tag."},
    {.long_name = "sort",
     .type = OPTION_STRING,
     .value = &sort,
     .value_name = "BY",
     .choices = "name,age,bytes,rank",
     .help = "The order: by name, or newest, biggest or highest rank first."},
    {.long_name = "kind",
     .type = OPTION_STRING,
     .value = &kind,
     .value_name = "KIND",
     .choices = "all,adapter,base",
     .help = "Adapters, bases, or all."},
    {0},
};

const struct command command_list = {
    .name = "list",
    .alias = "ls",
    .summary = "adapters and bases of the store",
    .description =
        "One line a name. DISK is what the files take, HOST what the tensors take in memory in\n"
        "their own types, DEVICE what they take in 16 bits a value. A base with a question mark "
        "is\n"
        "only what the adapter's configuration says: `lora import --base` records it for certain.",
    .examples = "lora list\nlora list --sort age --tag v2\nlora list -q --kind adapter",
    .options = options,
    .run = run,
};
