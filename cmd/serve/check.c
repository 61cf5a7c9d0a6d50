#include "cmd/serve/check.h"

#include <stdio.h>
#include <string.h>

#include "cmd/serve/plan.h"
#include "cmd/serve/server.h"
#include "cmd/table.h"
#include "libcore/base/sys.h"
#include "libcore/model/bind.h"

/* What is said of one adapter. */
struct verdict {
    const char *name, *path; // path: outside the store, or NULL
    char content_id[DIGEST_HEX_CHARS + 1];
    int rc;
    struct err why;
    char kinds[64];
    uint32_t rank;
    uint64_t host_bytes, device_bytes;
};

struct check {
    struct server s;
    struct verdict *verdicts;
    size_t n;
    uint64_t largest; // bytes on the device of the largest adapter
};

static void collect(void *arg, const struct offered *o)
{
    struct check *c = arg;
    struct verdict *v = &c->verdicts[c->n++];
    v->name = o->name;
    v->path = o->served->path;
    memcpy(v->content_id, o->served->content_id, sizeof v->content_id);
}

static uint64_t tensor_bytes(const struct adapter *a)
{
    uint64_t n = 0;
    for (size_t i = 0; i < a->n_tensors; i++)
        n += tensor_n_bytes(&a->tensors[i].value);
    return n;
}

/* The weights are not loaded, so DoRA's gains cannot be made; their room is counted all the same.
 */
static int make_room_for_gains(struct bound_adapter *bound, struct err *err)
{
    for (size_t i = 0; i < bound->n_parts; i++) {
        struct bound_part *part = &bound->parts[i];
        if (!tensor_present(&part->module->magnitude) || part->gain)
            continue;
        part->gain = sys_calloc(part->target->d_out, sizeof *part->gain);
        if (!part->gain)
            return err_set(err, ERR_NO_MEMORY, "no memory for gains");
    }
    return 0;
}

/* Reads, binds, asks the back end, measures. */
static void judge(struct check *c, struct verdict *v)
{
    struct runtime *rt = c->s.rt;
    struct adapter *a = NULL;
    struct bound_adapter *bound = NULL;
    v->rc = rt->source->ops->get(rt->source, v->content_id, &a, &v->why);
    if (v->rc == 0) {
        v->rank = a->max_rank;
        v->host_bytes = tensor_bytes(a);
        adapter_kinds_text(a->kinds, v->kinds, sizeof v->kinds);
        v->rc = bind_adapter(&bound, a, rt->modules, &rt->config, &v->why);
    }
    if (v->rc == 0 && c->s.opt->required.n)
        v->rc = names_check_signature(NULL, rt->store_path, v->content_id, v->path, v->name,
                                      &c->s.opt->required, &v->why);
    if (v->rc == 0)
        v->rc = rt->be->ops->supports(rt->be, &rt->config, bound->kinds, &v->why);
    uint32_t cap = (uint32_t)c->s.opt->max_lora_rank;
    if (v->rc == 0 && cap && v->rank > cap)
        v->rc = err_set(&v->why, ERR_REFUSED, "rank %u is larger than --max-lora-rank %u", v->rank,
                        cap);
    if (v->rc == 0)
        v->rc = make_room_for_gains(bound, &v->why);
    if (v->rc == 0)
        v->rc = rt->be->ops->adapter_pack_size(rt->be, rt->model, bound, &v->device_bytes, &v->why);
    if (v->device_bytes > c->largest)
        c->largest = v->device_bytes;
    bound_free(bound);
    adapter_free(a);
}

static uint64_t whole_chunks(uint64_t bytes)
{
    return (bytes + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES * BACKEND_CHUNK_BYTES;
}

/* How many of the largest adapter the device tier and the host tier hold. */
static void count_fits(const struct check *c, uint64_t *device, uint64_t *host)
{
    const struct plan *p = &c->s.rt->plan;
    uint64_t room = p->adapter_cap && p->adapter_cap < p->pool ? p->adapter_cap : p->pool;
    *device = c->largest ? room / whole_chunks(c->largest) : 0;
    if (*device > c->s.rt->limits.max_slots)
        *device = c->s.rt->limits.max_slots;
    *host = c->largest ? p->host_cache / c->largest : 0;
}

static void print_row(const char *what, uint64_t bytes, const char *note)
{
    char text[TABLE_CELL_BYTES];
    printf("  %-18s %12s  %s\n", what, table_bytes(text, bytes), note);
}

/* What reading the weights will compare, and how long the start took so far. */
static void print_start(const struct runtime *rt)
{
    size_t n = rt->digests ? json_object_size(rt->digests) : 0;
    if (n)
        printf("  weights are checked: digests of %zu tensors were recorded\n", n);
    printf("  opened in %.2f s: base %.2f, device %.2f; weights are not read here\n",
           rt->times.read_s + rt->times.device_s, rt->times.read_s, rt->times.device_s);
}

static void print_plan(const struct check *c)
{
    const struct runtime *rt = c->s.rt;
    const struct plan *p = &rt->plan;
    char note[160], count[TABLE_CELL_BYTES];
    printf("%s on %s\n", c->s.served_names[0], rt->device_note);
    snprintf(note, sizeof note, "%.0f %% of what is free", rt->opt.memory_utilization * 100);
    print_row("budget", p->budget, note);
    print_row("weights", p->weights, rt->config.arch_name);
    snprintf(note, sizeof note, "steps of %u tokens, %u sequences", rt->limits.max_rows,
             rt->limits.max_sequences);
    print_row("scratch", p->scratch, note);
    snprintf(note, sizeof note, "%s tokens of %llu bytes, or adapters; context %u",
             table_count(count, plan_kv_tokens(rt)), (unsigned long long)p->token_bytes,
             rt->context_length);
    print_row("pool", p->pool, note);
    if (p->adapter_cap)
        print_row("  adapters at most", p->adapter_cap, "--adapter-memory");
    print_row("host cache", p->host_cache, "adapters, packed");
    print_start(rt);
    uint64_t device = 0, host = 0;
    count_fits(c, &device, &host);
    if (c->largest)
        printf(
            "  of the largest adapter (%s) %llu fit on the device, %llu more in the host cache\n",
            table_bytes(count, c->largest), (unsigned long long)device, (unsigned long long)host);
}

static void print_adapters(const struct check *c)
{
    static const char *const headings[] = {"ADAPTER", "KINDS",   ">RANK", ">HOST",
                                           ">DEVICE", "VERDICT", NULL};
    struct table *t = table_open(headings);
    for (size_t i = 0; t && i < c->n; i++) {
        const struct verdict *v = &c->verdicts[i];
        char rank[16], host[TABLE_CELL_BYTES], device[TABLE_CELL_BYTES];
        snprintf(rank, sizeof rank, "%u", v->rank);
        table_bytes(host, v->host_bytes);
        if (v->device_bytes)
            table_bytes(device, v->device_bytes);
        else
            snprintf(device, sizeof device, "-");
        const char *cells[] = {v->name, v->kinds, rank,
                               host,    device,   v->rc == 0 ? "served" : v->why.msg};
        table_row(t, cells);
    }
    if (t && c->n) {
        putchar('\n');
        table_print(t, stdout);
    }
    table_free(t);
}

static json_t *adapters_json(const struct check *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->n; i++) {
        const struct verdict *v = &c->verdicts[i];
        json_array_append_new(
            list, json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:b, s:o}", "name", v->name, "id",
                            v->content_id, "kinds", v->kinds, "rank", (json_int_t)v->rank,
                            "host_bytes", (json_int_t)v->host_bytes, "device_bytes",
                            (json_int_t)v->device_bytes, "served", v->rc == 0, "reason",
                            v->rc == 0 ? json_null() : json_string(v->why.msg)));
    }
    return list;
}

static void print_json(const struct check *c)
{
    const struct runtime *rt = c->s.rt;
    const struct plan *p = &rt->plan;
    uint64_t device = 0, host = 0;
    count_fits(c, &device, &host);
    json_t *memory = json_pack(
        "{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "budget_bytes", (json_int_t)p->budget,
        "weights_bytes", (json_int_t)p->weights, "scratch_bytes", (json_int_t)p->scratch,
        "pool_bytes", (json_int_t)p->pool, "adapter_cap_bytes", (json_int_t)p->adapter_cap,
        "host_cache_bytes", (json_int_t)p->host_cache, "kv_token_bytes", (json_int_t)p->token_bytes,
        "kv_tokens", (json_int_t)plan_kv_tokens(rt), "largest_adapters_on_device",
        (json_int_t)device, "largest_adapters_in_host_cache", (json_int_t)host);
    json_t *seconds =
        json_pack("{s:f, s:f}", "base", rt->times.read_s, "device", rt->times.device_s);
    cmd_print_json(json_pack("{s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:o}", "model",
                             c->s.served_names[0], "device", rt->info.device, "architecture",
                             rt->config.arch_name, "context_length", (json_int_t)rt->context_length,
                             "recorded_digests", (json_int_t)json_object_size(rt->digests),
                             "seconds", seconds, "memory", memory, "adapters", adapters_json(c)));
}

static int open_check(struct check *c, const char *store_path, struct err *err)
{
    int rc = runtime_open(&c->s.rt, &c->s.opt->base, store_path, err);
    if (rc == 0)
        rc = server_open_names(&c->s, err);
    size_t count = 0;
    if (rc == 0)
        rc = c->s.opt->lora_paths_given ? names_offer_words(c->s.names, c->s.opt->lora_paths.items,
                                                            c->s.opt->lora_paths.n, err)
                                        : names_offer_store(c->s.names, &count, err);
    /* Sizes of packs need the model's layout: its memory is asked for, its weights are not read. */
    struct runtime *rt = c->s.rt;
    if (rc == 0)
        rc =
            rt->be->ops->model_open(rt->be, &rt->config, rt->modules, &rt->limits, &rt->model, err);
    return rc;
}

int check_run(struct cmd_context *ctx, const struct serve_options *opt, struct err *err)
{
    struct check c = {.s = {.opt = opt}};
    int rc = open_check(&c, ctx->store_path, err);
    if (rc == 0) {
        c.verdicts = sys_calloc(names_count(c.s.names) + 1, sizeof *c.verdicts);
        if (!c.verdicts)
            rc = err_set(err, ERR_NO_MEMORY, "no memory for the adapters");
    }
    if (rc == 0)
        names_each(c.s.names, collect, &c);
    size_t n_refused = 0;
    for (size_t i = 0; rc == 0 && i < c.n; i++) {
        judge(&c, &c.verdicts[i]);
        n_refused += c.verdicts[i].rc != 0;
    }
    if (rc == 0 && ctx->json) {
        print_json(&c);
    } else if (rc == 0) {
        print_plan(&c);
        print_adapters(&c);
    }
    if (rc == 0 && n_refused)
        rc = err_set(err, ERR_REFUSED, "%zu of %zu adapters would not be served", n_refused, c.n);
    sys_free(c.verdicts);
    names_free(c.s.names);
    runtime_close(c.s.rt);
    sys_free(c.s.served_names);
    return rc;
}
