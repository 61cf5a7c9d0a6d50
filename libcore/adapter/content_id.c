/*
 * The record that is hashed (docs/FORMATS.md, "Content id"): one line a tensor of the file, one
 * line a module with what the configuration makes of it. Resolved values stand in for configuration
 * fields, so the order of lists, an absent field against its default, or two ways to write the same
 * scale do not change the id.
 */
#include "libcore/adapter/content_id.h"

#include <stdio.h>
#include <string.h>

#include "libcore/base/strbuf.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

struct hash_job {
    struct adapter *a;
    struct err *errs; // one a thread
};

static void hash_range(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct hash_job *job = arg;
    struct err *err = &job->errs[thread_idx];
    for (size_t i = begin; i < end && !err->code; i++) {
        struct adapter_tensor *t = &job->a->tensors[i];
        if (!t->payload_known)
            digest_buffer(t->value.data, tensor_n_bytes(&t->value), &t->payload, err);
    }
}

static int hash_payloads(struct adapter *a, unsigned n_threads, struct err *err)
{
    if (n_threads > a->n_tensors)
        n_threads = a->n_tensors ? (unsigned)a->n_tensors : 1;
    struct worker_pool *pool;
    int rc = worker_pool_open(&pool, n_threads, err);
    if (rc)
        return rc;
    struct hash_job job = {a, sys_calloc(worker_pool_size(pool), sizeof(struct err))};
    if (!job.errs) {
        worker_pool_free(pool);
        return err_set(err, ERR_NO_MEMORY, "content id: no memory");
    }
    worker_pool_run(pool, a->n_tensors, 1, hash_range, &job);
    for (unsigned i = 0; i < worker_pool_size(pool) && !rc; i++) {
        rc = job.errs[i].code;
        if (rc && err)
            *err = job.errs[i];
    }
    worker_pool_free(pool);
    sys_free(job.errs);
    return rc;
}

static void add_tensor(struct strbuf *sb, const struct adapter_tensor *t)
{
    char hex[DIGEST_HEX_CHARS + 1];
    digest_hex(&t->payload, hex);
    strbuf_adds(sb, "tensor ");
    strbuf_add_json(sb, t->name, strlen(t->name));
    strbuf_addf(sb, " %s [", dtype_name(t->value.dtype));
    for (uint32_t d = 0; d < t->value.n_dims; d++)
        strbuf_addf(sb, d ? ",%llu" : "%llu", (unsigned long long)t->value.shape[d]);
    strbuf_addf(sb, "] %s\n", hex);
}

static void add_module(struct strbuf *sb, const struct adapter_module *m)
{
    strbuf_adds(sb, "module ");
    strbuf_add_json(sb, m->name, strlen(m->name));
    strbuf_addf(sb, " %s", m->parameter);
    if (m->rank)
        strbuf_addf(sb, " scale=%.17g", m->scale);
    if (m->n_experts)
        strbuf_addf(sb, " experts=%u", m->n_experts);
    if (m->transposed)
        strbuf_adds(sb, " transposed");
    if (m->full_is_base)
        strbuf_adds(sb, " saved-base");
    for (uint32_t i = 0; i < m->n_rows; i++)
        strbuf_addf(sb, i ? ",%u" : " rows=%u", m->row_ids[i]);
    strbuf_addc(sb, '\n');
}

int content_id_record(const struct adapter *a, char **out, size_t *n, struct err *err)
{
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_adds(&sb, "lora-content-id 1\n");
    for (size_t i = 0; i < a->n_tensors; i++)
        add_tensor(&sb, &a->tensors[i]);
    for (size_t i = 0; i < a->n_modules; i++)
        add_module(&sb, &a->modules[i]);
    if (a->ensure_weight_tying)
        strbuf_adds(&sb, "ensure_weight_tying\n");
    *out = strbuf_take(&sb, n);
    return *out ? 0 : err_set(err, ERR_NO_MEMORY, "content id: no memory");
}

int content_id_compute(struct adapter *a, unsigned n_threads, struct err *err)
{
    char *record;
    size_t n;
    struct digest id;
    int rc = hash_payloads(a, n_threads, err);
    if (!rc)
        rc = content_id_record(a, &record, &n, err);
    if (rc)
        return rc;
    rc = digest_buffer(record, n, &id, err);
    sys_free(record);
    if (!rc)
        digest_hex(&id, a->content_id);
    return rc;
}
