#include "libcore/engine/device_pool.h"

#include <assert.h>

#include "libcore/base/sys.h"

struct device_pool {
    uint32_t n_chunks;
    uint32_t n_owned[POOL_OWNERS];
    uint32_t *free_chunks; // a stack; the lowest chunk on top at first
    uint8_t *owners;       // enum pool_owner by chunk
};

int device_pool_open(struct device_pool **out, uint32_t n_chunks, struct err *err)
{
    *out = NULL;
    struct device_pool *p = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "device pool: no memory");
    p->free_chunks = sys_calloc(n_chunks, sizeof *p->free_chunks);
    p->owners = sys_calloc(n_chunks, 1);
    if (!p->free_chunks || !p->owners) {
        device_pool_free(p);
        return err_set(err, ERR_NO_MEMORY, "device pool: no memory for %u chunks", n_chunks);
    }
    p->n_chunks = n_chunks;
    p->n_owned[POOL_FREE] = n_chunks;
    for (uint32_t i = 0; i < n_chunks; i++)
        p->free_chunks[i] = n_chunks - 1 - i;
    *out = p;
    return 0;
}

void device_pool_free(struct device_pool *p)
{
    if (!p)
        return;
    sys_free(p->free_chunks);
    sys_free(p->owners);
    sys_free(p);
}

bool device_pool_take(struct device_pool *p, enum pool_owner owner, uint32_t *chunk)
{
    if (p->n_owned[POOL_FREE] == 0)
        return false;
    *chunk = p->free_chunks[--p->n_owned[POOL_FREE]];
    assert(p->owners[*chunk] == POOL_FREE);
    p->owners[*chunk] = (uint8_t)owner;
    p->n_owned[owner]++;
    return true;
}

void device_pool_give(struct device_pool *p, enum pool_owner owner, uint32_t chunk)
{
    assert(chunk < p->n_chunks && p->owners[chunk] == owner && owner != POOL_FREE);
    p->owners[chunk] = POOL_FREE;
    p->n_owned[owner]--;
    p->free_chunks[p->n_owned[POOL_FREE]++] = chunk;
}

uint32_t device_pool_n_chunks(const struct device_pool *p)
{
    return p->n_chunks;
}

uint32_t device_pool_n_owned(const struct device_pool *p, enum pool_owner owner)
{
    return p->n_owned[owner];
}

enum pool_owner device_pool_owner(const struct device_pool *p, uint32_t chunk)
{
    return (enum pool_owner)p->owners[chunk];
}
