/* The CPU back end's table: opening, what it is, what it supports. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kernels/cpu/cpu_impl.h"
#include "kernels/kernels.h"
#include "libcore/base/file.h"
#include "libcore/base/sys.h"

/* "model name" of /proc/cpuinfo, or the machine's word for itself. */
static void processor_name(char *buf, size_t n)
{
    char *text = NULL;
    size_t size;
    snprintf(buf, n, "CPU");
    if (file_read("/proc/cpuinfo", 64 << 20, &text, &size, NULL) != 0)
        return;
    const char *at = strstr(text, "model name");
    at = at ? strchr(at, ':') : NULL;
    if (at) {
        at += 2;
        snprintf(buf, n, "%.*s", (int)strcspn(at, "\n"), at);
    }
    sys_free(text);
}

static void close_backend(struct backend *base)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    if (!be)
        return;
    worker_pool_free(be->math_pool);
    pthread_mutex_destroy(&be->math_lock);
    sys_free(be);
}

static int open_backend(struct backend **out, const struct backend_options *opt, struct err *err)
{
    *out = NULL;
    struct cpu_backend *be = sys_calloc(1, sizeof *be);
    if (!be)
        return err_set(err, ERR_NO_MEMORY, "no memory for the CPU back end");
    be->base.ops = &backend_cpu_ops;
    be->n_threads = opt->n_threads ? opt->n_threads : thread_n_processors();
    pthread_mutex_init(&be->math_lock, NULL);
    const char *wanted = getenv("LORA_CPU_ISA"); // for tests and comparison
    be->isa = isa_select(wanted && *wanted ? wanted : NULL);
    if (!be->isa) {
        close_backend(&be->base);
        return err_set(err, ERR_DEVICE, "LORA_CPU_ISA: this processor has no '%s'", wanted);
    }
    int rc = worker_pool_open(&be->math_pool, be->n_threads, err);
    if (rc != 0) {
        close_backend(&be->base);
        return rc;
    }
    char name[64];
    processor_name(name, sizeof name);
    snprintf(be->device, sizeof be->device, "%.56s, %u threads, %s", name, be->n_threads,
             be->isa->name);
    *out = &be->base;
    return 0;
}

static int info(struct backend *base, struct backend_info *out, struct err *err)
{
    struct cpu_backend *be = (struct cpu_backend *)base;
    (void)err;
    *out = (struct backend_info){.adapter_dtype = DTYPE_NONE,
                                 .weight_dtype = DTYPE_NONE,
                                 .kv_dtype = DTYPE_F32,
                                 .n_devices = 1};
    snprintf(out->name, sizeof out->name, "cpu");
    snprintf(out->device, sizeof out->device, "%s", be->device);
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    out->memory_total = (uint64_t)sysconf(_SC_PHYS_PAGES) * page;
    out->memory_free = (uint64_t)sysconf(_SC_AVPHYS_PAGES) * page;
    return 0;
}

static int supports(struct backend *be, const struct model_config *c, unsigned kinds,
                    struct err *err)
{
    (void)be;
    (void)kinds; // every kind is computed
    if (cpu_matrix_dtype(c->dtype) == DTYPE_NONE)
        return err_set(err, ERR_REFUSED, "dtype: weights of type %s are not computed on the CPU",
                       dtype_name(c->dtype));
    if (c->n_kv_heads == 0 || c->n_heads % c->n_kv_heads != 0)
        return err_set(err, ERR_REFUSED, "num_key_value_heads: %u does not divide %u heads",
                       c->n_kv_heads, c->n_heads);
    return 0;
}

static void *host_alloc(struct backend *be, size_t n)
{
    (void)be;
    return sys_aligned_alloc(CPU_ALIGN, (n + CPU_ALIGN - 1) / CPU_ALIGN * CPU_ALIGN);
}

static void host_free(struct backend *be, void *p)
{
    (void)be;
    sys_free(p);
}

const struct backend_ops backend_cpu_ops = {
    .abi = BACKEND_ABI,
    .name = "cpu",
    .pack_layout_version = CPU_LAYOUT_VERSION,
    .open = open_backend,
    .close = close_backend,
    .info = info,
    .supports = supports,
    .host_alloc = host_alloc,
    .host_free = host_free,
    .model_open = cpu_model_open,
    .model_free = cpu_model_free,
    .model_bytes = cpu_model_bytes,
    .weight_load = cpu_weight_load,
    .model_ready = cpu_model_ready,
    .replacement_load = cpu_replacement_load,
    .replacement_free = cpu_replacement_free,
    .pool_open = cpu_pool_open,
    .pool_free = cpu_pool_free,
    .page_bytes = cpu_page_bytes,
    .adapter_pack_size = cpu_adapter_pack_size,
    .adapter_pack = cpu_adapter_pack,
    .adapter_load = cpu_adapter_load,
    .adapter_poll = cpu_adapter_poll,
    .adapter_unload = cpu_adapter_unload,
    .step_submit = cpu_step_submit,
    .step_result = cpu_step_result,
    .read_bandwidth = cpu_backend_read_bandwidth,
    .math = &cpu_math,
    .op_access = &cpu_op_access,
};
