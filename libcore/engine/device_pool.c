#include "libcore/engine/device_pool.h"

#include <assert.h>
#include <string.h>

#include "libcore/base/sys.h"

struct device_pool {
    uint32_t n_chunks;
    uint32_t n_owned[POOL_OWNERS];
    uint64_t n_submitted, n_ended;
    uint32_t *settled; // free: a stack, the lowest chunk on top at first
    uint32_t n_settled;
    uint32_t *fresh; // free, but steps in flight may touch them: the oldest first
    uint32_t n_fresh;
    uint64_t *given_at; // by chunk: steps submitted when KV gave it back
    uint8_t *owners;    // enum pool_owner by chunk
};

int device_pool_open(struct device_pool **out, uint32_t n_chunks, struct err *err)
{
    *out = NULL;
    struct device_pool *p = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "device pool: no memory");
    p->settled = sys_calloc(n_chunks, sizeof *p->settled);
    p->fresh = sys_calloc(n_chunks, sizeof *p->fresh);
    p->given_at = sys_calloc(n_chunks, sizeof *p->given_at);
    p->owners = sys_calloc(n_chunks, 1);
    if (!p->settled || !p->fresh || !p->given_at || !p->owners) {
        device_pool_free(p);
        return err_set(err, ERR_NO_MEMORY, "device pool: no memory for %u chunks", n_chunks);
    }
    p->n_chunks = n_chunks;
    p->n_owned[POOL_FREE] = p->n_settled = n_chunks;
    for (uint32_t i = 0; i < n_chunks; i++)
        p->settled[i] = n_chunks - 1 - i;
    *out = p;
    return 0;
}

void device_pool_free(struct device_pool *p)
{
    if (!p)
        return;
    sys_free(p->settled);
    sys_free(p->fresh);
    sys_free(p->given_at);
    sys_free(p->owners);
    sys_free(p);
}

void device_pool_note_steps(struct device_pool *p, uint64_t n_submitted, uint64_t n_ended)
{
    p->n_submitted = n_submitted;
    p->n_ended = n_ended;
    uint32_t n = 0;
    while (n < p->n_fresh && p->given_at[p->fresh[n]] <= n_ended)
        p->settled[p->n_settled++] = p->fresh[n++];
    p->n_fresh -= n;
    memmove(p->fresh, p->fresh + n, p->n_fresh * sizeof *p->fresh);
}

bool device_pool_take(struct device_pool *p, enum pool_owner owner, uint32_t *chunk)
{
    if (owner == POOL_KV && p->n_fresh)
        *chunk = p->fresh[--p->n_fresh];
    else if (p->n_settled)
        *chunk = p->settled[--p->n_settled];
    else
        return false;
    assert(p->owners[*chunk] == POOL_FREE);
    p->owners[*chunk] = (uint8_t)owner;
    p->n_owned[POOL_FREE]--;
    p->n_owned[owner]++;
    return true;
}

void device_pool_give(struct device_pool *p, enum pool_owner owner, uint32_t chunk)
{
    assert(chunk < p->n_chunks && p->owners[chunk] == owner && owner != POOL_FREE);
    p->owners[chunk] = POOL_FREE;
    p->n_owned[owner]--;
    p->n_owned[POOL_FREE]++;
    p->given_at[chunk] = p->n_submitted;
    if (owner == POOL_KV && p->n_submitted > p->n_ended)
        p->fresh[p->n_fresh++] = chunk;
    else
        p->settled[p->n_settled++] = chunk;
}

uint32_t device_pool_n_settled(const struct device_pool *p)
{
    return p->n_settled;
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
