/* How fast this machine reads its memory: the largest of 512 MiB of floats, by every thread. */
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

enum { READ_BYTES = 512 << 20, READ_TRIES = 5, READ_GRAIN = 4096 };

struct read_run {
    const struct isa_table *isa;
    const float *data;
    _Atomic uint32_t sink; // keeps the reads alive
};

static void read_range(void *arg, size_t begin, size_t end, unsigned thread_idx)
{
    struct read_run *r = arg;
    (void)thread_idx;
    if (r->isa->max(r->data + begin, end - begin) > 0)
        r->sink++;
}

double cpu_read_bandwidth(const struct isa_table *isa, struct worker_pool *pool)
{
    size_t n = READ_BYTES / sizeof(float);
    float *data = sys_calloc(n, sizeof *data);
    uint64_t best = UINT64_MAX;
    if (!data)
        return 0;
    memset(data, 0xFF, READ_BYTES); // pages of its own, not the zero page
    struct read_run r = {.isa = isa, .data = data};
    for (int i = 0; i < READ_TRIES; i++) {
        uint64_t start = thread_now_ns();
        worker_pool_run(pool, n, READ_GRAIN, read_range, &r);
        uint64_t taken = thread_now_ns() - start;
        best = taken < best ? taken : best;
    }
    sys_free(data);
    return READ_BYTES / ((double)best * 1e-9);
}

int cpu_backend_read_bandwidth(struct backend *base, double *bytes_per_s, struct err *err)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    struct worker_pool *pool = NULL;
    int rc = worker_pool_open(&pool, be->n_threads, err);
    *bytes_per_s = rc == 0 ? cpu_read_bandwidth(be->isa, pool) : 0;
    worker_pool_free(pool);
    return rc;
}
