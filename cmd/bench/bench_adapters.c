/* The synthetic adapters of `lora bench`: one image a rank, loaded into every slot of that rank. */
#include <string.h>

#include "cmd/bench/bench.h"
#include "libcore/base/sys.h"
#include "libcore/base/thread.h"

static bool takes_adapter(const struct model_module *mod)
{
    return mod->place.kind == WEIGHT_MATRIX && mod->place.site != SITE_EMBED &&
           mod->place.site != SITE_HEAD && !mod->n_experts;
}

/* All linear modules, all with the same numbers. */
static int add_modules(const struct bench_model *b, struct adapter *a, uint32_t rank,
                       const uint16_t *block, uint64_t *ab_bytes, struct err *err)
{
    a->modules = arena_array(&a->arena, b->modules->n, sizeof *a->modules);
    if (!a->modules)
        return err_set(err, ERR_NO_MEMORY, "no memory for a synthetic adapter");
    *ab_bytes = 0;
    for (size_t i = 0; i < b->modules->n; i++) {
        const struct model_module *mod = &b->modules->items[i];
        if (!takes_adapter(mod))
            continue;
        a->modules[a->n_modules++] = (struct adapter_module){
            .name = mod->name,
            .parameter = mod->parameter,
            .rank = rank,
            .alpha = rank,
            .scale = 1,
            .a = {.dtype = DTYPE_BF16, .n_dims = 2, .shape = {rank, mod->d_in}, .data = block},
            .b = {.dtype = DTYPE_BF16, .n_dims = 2, .shape = {mod->d_out, rank}, .data = block}};
        *ab_bytes += 2ull * rank * (mod->d_in + (uint64_t)mod->d_out);
    }
    a->config = json_object();
    a->format = "synthetic";
    adapter_finish(a);
    return a->config ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for an adapter");
}

static int pack_image(struct bench_model *b, const struct adapter *a, struct bench_image *image,
                      struct err *err)
{
    struct bound_adapter *bound = NULL;
    const struct backend_ops *ops = b->be->ops;
    int rc = bind_adapter(&bound, a, b->modules, &b->config, err);
    if (rc == 0)
        rc = ops->adapter_pack_size(b->be, b->dm, bound, &image->bytes, err);
    if (rc == 0 && !(image->data = ops->host_alloc(b->be, image->bytes)))
        rc = err_set(err, ERR_NO_MEMORY, "no memory for an adapter's image");
    if (rc == 0)
        rc = ops->adapter_pack(b->be, b->dm, bound, image->data, image->bytes, err);
    bound_free(bound);
    image->n_chunks = (uint32_t)((image->bytes + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES);
    return rc;
}

static size_t widest(const struct bench_model *b)
{
    size_t most = 0;
    for (size_t i = 0; i < b->modules->n; i++) {
        const struct model_module *mod = &b->modules->items[i];
        most = mod->d_out > most ? mod->d_out : most;
        most = mod->d_in > most ? mod->d_in : most;
    }
    return most;
}

static int make_image(struct bench_model *b, uint32_t rank, struct bench_image *image,
                      struct err *err)
{
    struct adapter *a = NULL;
    size_t n = widest(b) * rank;
    uint16_t *block = sys_malloc(n * sizeof *block);
    if (!block)
        return err_set(err, ERR_NO_MEMORY, "no memory for a synthetic adapter");
    for (size_t i = 0; i < n; i++)
        block[i] = (uint16_t)(0x3C00 + i * 2654435761u % 0x100); // small and positive
    int rc = adapter_open(&a, err);
    if (rc == 0)
        rc = add_modules(b, a, rank, block, &image->ab_bytes, err);
    if (rc == 0)
        rc = pack_image(b, a, image, err);
    adapter_free(a);
    sys_free(block);
    return rc;
}

int bench_make_images(struct bench_model *b, struct err *err)
{
    int rc = 0;
    for (uint32_t i = 0; rc == 0 && i < b->opt.n_ranks; i++)
        rc = make_image(b, b->opt.ranks[i], &b->images[i], err);
    return rc;
}

void bench_free_images(struct bench_model *b)
{
    for (uint32_t i = 0; i < BENCH_MAX_RANKS; i++) {
        if (b->images[i].data)
            b->be->ops->host_free(b->be, b->images[i].data);
        b->images[i].data = NULL;
    }
}

const struct bench_image *bench_image(const struct bench_model *b, uint32_t slot)
{
    return &b->images[slot % b->opt.n_ranks];
}

static uint32_t first_chunk(const struct bench_model *b, uint32_t slot)
{
    uint32_t at = b->first_adapter_chunk;
    for (uint32_t i = 0; i < slot; i++)
        at += bench_image(b, i)->n_chunks;
    return at;
}

uint32_t bench_adapter_chunks(const struct bench_model *b)
{
    return b->opt.n_adapters ? first_chunk(b, b->opt.n_adapters) - b->first_adapter_chunk : 0;
}

int bench_load_slot(struct bench_model *b, uint32_t slot, double *seconds, struct err *err)
{
    const struct bench_image *image = bench_image(b, slot);
    uint32_t *chunks = sys_malloc((image->n_chunks + 1) * sizeof *chunks);
    if (!chunks)
        return err_set(err, ERR_NO_MEMORY, "no memory for a list of chunks");
    for (uint32_t i = 0, at = first_chunk(b, slot); i < image->n_chunks; i++)
        chunks[i] = at + i;
    uint64_t begin = thread_now_ns();
    int rc = b->be->ops->adapter_load(b->be, b->dm, slot, image->data, image->bytes, chunks,
                                      image->n_chunks, NULL, 0, err);
    enum adapter_state state = ADAPTER_LOADING;
    while (rc == 0 && state == ADAPTER_LOADING)
        state = b->be->ops->adapter_poll(b->be, b->dm, slot);
    if (seconds)
        *seconds = (double)(thread_now_ns() - begin) / 1e9;
    sys_free(chunks);
    if (rc == 0 && state != ADAPTER_READY)
        rc = err_set(err, ERR_DEVICE, "loading a synthetic adapter failed");
    return rc;
}

uint64_t bench_ab_bytes(const struct bench_model *b, uint32_t n)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < n; i++)
        bytes += bench_image(b, i)->ab_bytes;
    return bytes;
}
