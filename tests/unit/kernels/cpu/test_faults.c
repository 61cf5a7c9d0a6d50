/* tiers: check asan */
/* Every allocation of the CPU back end fails once: opening, loading, adapters, a step. */
#include <stdio.h>

#include "kernels/kernels.h"
#include "libcore/base/sys.h"
#include "libcore/format/checkpoint.h"
#include "libcore/format/peft.h"
#include "libcore/model/load.h"
#include "tests/lib/fault.h"
#include "tests/lib/test.h"

enum { N_ADAPTERS = 2, N_CHUNKS = 16, MAX_FULL = 4 };

struct world {
    struct model_config config;
    struct model_modules *modules;
    struct checkpoint *ckpt;
    struct adapter *adapters[N_ADAPTERS];
    struct bound_adapter *bound[N_ADAPTERS]; // DoRA; LoRA with a whole head
};

static void open_world(struct world *w)
{
    static const char *const names[] = {"sort-lora", "last-lora"};
    char path[4096];
    struct err err = {0};
    snprintf(path, sizeof path, "%s/examples/tinytalk/base", test_root());
    CHECK_OK(config_read(&w->config, path, &err), err);
    CHECK_OK(modules_open(&w->modules, &w->config, &err), err);
    CHECK_OK(checkpoint_open(&w->ckpt, path, &err), err);
    for (int i = 0; i < N_ADAPTERS; i++) {
        snprintf(path, sizeof path, "%s/examples/tinytalk/adapters/%s", test_root(), names[i]);
        CHECK_OK(peft_read(&w->adapters[i], path, NULL, &err), err);
        CHECK_OK(bind_adapter(&w->bound[i], w->adapters[i], w->modules, &w->config, &err), err);
    }
}

static void close_world(struct world *w)
{
    for (int i = 0; i < N_ADAPTERS; i++) {
        bound_free(w->bound[i]);
        adapter_free(w->adapters[i]);
    }
    checkpoint_free(w->ckpt);
    modules_free(w->modules);
    config_release(&w->config);
}

/* What one run holds. */
struct held {
    struct backend *be;
    struct device_model *dm;
    struct adapter_replacement full[MAX_FULL];
    uint32_t n_full;
    void *image;
    uint32_t next_chunk;
};

static int load_adapter(struct held *h, uint32_t slot, struct bound_adapter *b, struct err *err)
{
    const struct backend_ops *ops = h->be->ops;
    uint64_t size = 0, bytes;
    uint32_t chunks[N_CHUNKS], first = h->n_full, n;
    int rc = backend_set_gains(h->be, h->dm, b, err);
    if (rc == 0)
        rc = ops->adapter_pack_size(h->be, h->dm, b, &size, err);
    if (rc != 0)
        return rc;
    n = (uint32_t)((size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES);
    for (uint32_t i = 0; i < n; i++)
        chunks[i] = h->next_chunk++;
    h->image = ops->host_alloc(h->be, size);
    if (!h->image)
        return err_set(err, ERR_NO_MEMORY, "no memory for an image");
    rc = ops->adapter_pack(h->be, h->dm, b, h->image, size, err);
    for (size_t i = 0; rc == 0 && i < b->n_parts; i++) {
        if (!tensor_present(&b->parts[i].module->full))
            continue;
        struct adapter_replacement *to = &h->full[h->n_full];
        to->part = &b->parts[i];
        rc = ops->replacement_load(h->be, h->dm, to->part, &to->weight, &bytes, err);
        h->n_full += rc == 0;
    }
    if (rc == 0)
        rc = ops->adapter_load(h->be, h->dm, slot, h->image, size, chunks, n, h->full + first,
                               h->n_full - first, err);
    ops->host_free(h->be, h->image);
    h->image = NULL;
    return rc;
}

static int run_step(struct held *h, unsigned kinds, struct err *err)
{
    const int32_t tokens[] = {1, 5, 9, 1, 5, 9, 1};
    const struct step_sequence sequences[] = {{0, 4, 0, 0, 1, 0}, {4, 3, 0, 1, 1, 0}};
    const uint32_t pages[] = {0, 1}, logit_rows[] = {3, 6};
    const struct step_segment segments[] = {{0, 4, 0, 1}, {4, 3, 1, 1}};
    const struct step_segment head_segments[] = {{0, 1, 0, 1}, {1, 1, 1, 1}};
    struct sample_params p = {.top_p = 1, .repetition_penalty = 1, .pending = -1, .target = -1};
    const struct sample_params sampling[] = {p, p};
    struct step s = {.n_rows = 7,
                     .tokens = tokens,
                     .sequences = sequences,
                     .n_sequences = 2,
                     .pages = pages,
                     .n_pages = 2,
                     .segments = segments,
                     .n_segments = 2,
                     .kinds = kinds,
                     .logit_rows = logit_rows,
                     .n_logit_rows = 2,
                     .head_segments = head_segments,
                     .n_head_segments = 2,
                     .sampling = sampling};
    uint64_t ticket;
    struct step_result out;
    int rc = h->be->ops->step_submit(h->be, h->dm, &s, &ticket, err);
    return rc ? rc : h->be->ops->step_result(h->be, h->dm, ticket, &out, err);
}

static int whole_run(void *arg, struct err *err)
{
    struct world *w = arg;
    struct held h = {.next_chunk = 2};
    const struct backend_options opt = {.device = "cpu", .n_threads = 2};
    const struct step_limits limits = {16, 4, 4, 4, 2, 16, 16};
    const struct model_load_options load = {.n_threads = 1};
    int rc = kernels_open(&h.be, &opt, NULL, 0, err);
    if (rc != 0)
        return rc;
    rc = h.be->ops->model_open(h.be, &w->config, w->modules, &limits, &h.dm, err);
    if (rc == 0)
        rc = model_load(h.be, h.dm, w->ckpt, &w->config, w->modules, &load, err);
    if (rc == 0)
        rc = h.be->ops->pool_open(h.be, h.dm, N_CHUNKS, err);
    for (uint32_t i = 0; rc == 0 && i < N_ADAPTERS; i++)
        rc = load_adapter(&h, i, w->bound[i], err);
    if (rc == 0)
        rc = run_step(&h, w->bound[0]->kinds | w->bound[1]->kinds, err);
    for (uint32_t i = 0; h.dm && i < N_ADAPTERS; i++)
        h.be->ops->adapter_unload(h.be, h.dm, i);
    for (uint32_t i = 0; i < h.n_full; i++)
        h.be->ops->replacement_free(h.be, h.full[i].weight);
    h.be->ops->model_free(h.be, h.dm);
    h.be->ops->close(h.be);
    for (uint32_t i = 0; i < N_ADAPTERS; i++) {
        for (size_t j = 0; j < w->bound[i]->n_parts; j++) {
            sys_free(w->bound[i]->parts[j].gain);
            w->bound[i]->parts[j].gain = NULL;
        }
    }
    return rc;
}

TEST(each_allocation_fails_once_and_nothing_leaks)
{
    struct world w = {0};
    open_world(&w);
    // The processor's name is read from a file; without it the back end opens all the same.
    uint64_t n = test_each_fault(SYS_FAULT_MEM, true, whole_run, &w);
    printf("# %llu allocations\n", (unsigned long long)n);
    CHECK(n > 100);
    close_world(&w);
}
