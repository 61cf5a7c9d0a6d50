#include <string.h>

#include "libcore/base/log.h"
#include "libcore/base/sys.h"
#include "libcore/engine/adapter_pool_impl.h"

// ---- what an adapter is -------------------------------------------------------------------------

static uint64_t replacement_bytes(const struct bound_adapter *b)
{
    uint64_t n = 0;
    for (size_t i = 0; i < b->n_parts; i++)
        n += tensor_present(&b->parts[i].module->full) ? tensor_n_bytes(&b->parts[i].module->full)
                                                       : 0;
    return n;
}

int adapter_load_describe(struct adapter_pool *p, const struct bound_adapter *b,
                          struct adapter_traits *out, struct err *err)
{
    const struct backend_ops *ops = p->opt.be->ops;
    *out = (struct adapter_traits){.kinds = b->kinds,
                                   .rank = b->adapter->max_rank,
                                   .n_vocab = b->n_vocab,
                                   .replacement_bytes = replacement_bytes(b)};
    int rc = ops->supports(p->opt.be, p->opt.config, b->kinds, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < b->n_parts; i++) {
        if (tensor_present(&b->parts[i].module->magnitude) && !b->parts[i].gain)
            return 0; // gains need W: measured when it is loaded
    }
    rc = ops->adapter_pack_size(p->opt.be, p->opt.model, b, &out->image_bytes, err);
    out->sized = rc == 0;
    return rc;
}

void adapter_load_set_traits(struct adapter_entry *e, const struct adapter_traits *t)
{
    e->known = true;
    e->kinds = t->kinds;
    e->rank = t->rank;
    e->n_vocab = t->n_vocab;
    if (!t->sized)
        return;
    e->sized = true;
    e->image_bytes = t->image_bytes;
    e->replacement_bytes = t->replacement_bytes;
}

// ---- room in host memory ------------------------------------------------------------------------

/* Whether the image of e may go for that of `other`. One that is on the device or that nobody wants
 * may always go. One that waits for room on the device only because of a hint (a prefetch, a pin)
 * goes for a request; and any for a request that has waited too long: otherwise images that wait
 * for the device and requests that wait for host memory could wait for each other. */
static bool may_go_for(const struct adapter_entry *e, const struct adapter_entry *other)
{
    if (e->host != HOST_READY)
        return false;
    if (e->device == DEVICE_READY)
        return true;
    if (e->device != DEVICE_NONE)
        return false;
    if (!e->in_wanted || (other->urgent && !e->urgent))
        return true;
    return e->n_waiting == 0 && other->n_waiting > 0;
}

void adapter_load_drop_host(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    if (e->host != HOST_READY)
        return;
    p->opt.be->ops->host_free(p->opt.be, e->image);
    bound_free(e->bound);
    adapter_free(e->adapter);
    e->image = NULL;
    e->bound = NULL;
    e->adapter = NULL;
    p->host_bytes -= e->host_bytes;
    p->n_host--;
    e->host_bytes = 0;
    e->host = HOST_NONE;
    p->n_host_gains++;
}

static bool evict_host_for(const struct adapter_entry *other)
{
    struct adapter_pool *p = other->pool;
    struct adapter_entry *worst = NULL;
    for (uint32_t i = 0; i < POOL_BUCKETS; i++) {
        for (struct adapter_entry *e = p->buckets[i]; e; e = e->next_in_bucket) {
            if (may_go_for(e, other) &&
                (!worst || adapter_entry_worth(e, false) < adapter_entry_worth(worst, false)))
                worst = e;
        }
    }
    if (!worst)
        return false;
    p->evictions[0]++;
    adapter_load_drop_host(worst);
    return true;
}

static bool host_fits(const struct adapter_pool *p, uint64_t n_bytes)
{
    if (p->n_host == 0)
        return true; // one image always, if only on its way to the device
    uint32_t max = p->opt.max_host_adapters;
    return (max == 0 || p->n_host < max) && p->host_bytes + n_bytes <= p->opt.host_bytes;
}

/* Counts the image of e as held, at the cost of others. With the mutex. */
static bool reserve_host(struct adapter_entry *e, uint64_t n_bytes)
{
    struct adapter_pool *p = e->pool;
    while (!host_fits(p, n_bytes)) {
        if (!evict_host_for(e))
            return false;
    }
    p->host_bytes += n_bytes;
    p->n_host++;
    e->host_bytes = n_bytes;
    return true;
}

static void unreserve_host(struct adapter_entry *e)
{
    if (e->host_bytes == 0)
        return;
    e->pool->host_bytes -= e->host_bytes;
    e->pool->n_host--;
    e->host_bytes = 0;
}

static uint64_t host_need(const struct adapter_traits *t)
{
    uint64_t n = t->image_bytes + (t->kinds & ADAPTER_FULL ? t->replacement_bytes : 0);
    return n ? n : 1; // 0 means: nothing is reserved
}

// ---- disk to host -------------------------------------------------------------------------------

struct loaded {
    struct adapter_traits traits;
    void *image;
    uint32_t *chunks;
    struct adapter *adapter;
    struct bound_adapter *bound;
};

/* Makes sure that what is reserved is what it takes. ERR_BUSY: the size was not known when the load
 * began, and there is no room for it now; the worker begins again when there is. */
static int check_reserved(struct adapter_entry *e, const struct loaded *l, struct err *err)
{
    int rc = 0;
    pthread_mutex_lock(&e->pool->mutex);
    uint64_t n_bytes = host_need(&l->traits);
    if (e->host_bytes != n_bytes) {
        unreserve_host(e);
        adapter_load_set_traits(e, &l->traits);
        if (!reserve_host(e, n_bytes))
            rc = err_set(err, ERR_BUSY, "adapter %.12s: no room in host memory now", e->content_id);
    }
    pthread_mutex_unlock(&e->pool->mutex);
    return rc;
}

/* The image and the list of chunks for it. */
static int allocate_image(struct adapter_entry *e, struct loaded *l, struct err *err)
{
    uint64_t size = l->traits.image_bytes;
    uint64_t n_chunks = (size + BACKEND_CHUNK_BYTES - 1) / BACKEND_CHUNK_BYTES;
    int rc = check_reserved(e, l, err);
    if (rc)
        return rc;
    l->image = e->pool->opt.be->ops->host_alloc(e->pool->opt.be, size ? size : 1);
    l->chunks = sys_calloc(n_chunks ? n_chunks : 1, sizeof *l->chunks);
    if (l->image && l->chunks)
        return 0;
    return err_set(err, ERR_NO_MEMORY, "adapter %.12s: no host memory for %llu bytes",
                   e->content_id, (unsigned long long)size);
}

static void drop_image(struct adapter_pool *p, struct loaded *l)
{
    if (l->image)
        p->opt.be->ops->host_free(p->opt.be, l->image);
    sys_free(l->chunks);
    l->image = NULL;
    l->chunks = NULL;
}

/* The back end's image as the store kept it. ERR_NOT_FOUND and the like: make a new one. */
static int read_pack(struct adapter_entry *e, struct loaded *l, struct err *err)
{
    struct adapter_pool *p = e->pool;
    struct adapter_source *s = p->opt.source;
    if (!p->pack_key[0] || !s->ops->pack_read)
        return err_set(err, ERR_NOT_FOUND, "packs are not kept");
    pthread_mutex_lock(&p->mutex);
    bool usable = e->known && !(e->kinds & ADAPTER_FULL);
    l->traits.kinds = e->kinds;
    l->traits.rank = e->rank;
    l->traits.n_vocab = e->n_vocab;
    pthread_mutex_unlock(&p->mutex);
    if (!usable)
        return err_set(err, ERR_NOT_FOUND, "its kinds are not known");
    int rc = s->ops->pack_size(s, e->content_id, p->pack_key, &l->traits.image_bytes, err);
    l->traits.sized = rc == 0;
    if (rc == 0)
        rc = allocate_image(e, l, err);
    if (rc)
        return rc;
    return s->ops->pack_read(s, e->content_id, p->pack_key, l->image, l->traits.image_bytes, err);
}

static int read_and_bind(struct adapter_entry *e, struct loaded *l, struct err *err)
{
    struct adapter_pool *p = e->pool;
    if (!p->opt.source)
        return err_set(err, ERR_NOT_FOUND, "adapter %.12s: this engine has no adapter source",
                       e->content_id);
    int rc = p->opt.source->ops->get(p->opt.source, e->content_id, &l->adapter, err);
    if (rc)
        return rc;
    if (l->adapter->content_id[0] && strcmp(l->adapter->content_id, e->content_id) != 0)
        return err_set(err, ERR_CORRUPT, "adapter %.12s: the source gave %.12s", e->content_id,
                       l->adapter->content_id);
    rc = bind_adapter(&l->bound, l->adapter, p->opt.modules, p->opt.config, err);
    if (rc == 0 && (l->bound->kinds & ADAPTER_DORA))
        rc = backend_set_gains(p->opt.be, p->opt.model, l->bound, err);
    if (rc == 0)
        rc = adapter_load_describe(p, l->bound, &l->traits, err);
    return rc;
}

static int make_image(struct adapter_entry *e, struct loaded *l, struct err *err)
{
    struct adapter_pool *p = e->pool;
    struct adapter_source *s = p->opt.source;
    int rc = read_and_bind(e, l, err);
    if (rc == 0)
        rc = allocate_image(e, l, err);
    if (rc)
        return rc;
    rc = p->opt.be->ops->adapter_pack(p->opt.be, p->opt.model, l->bound, l->image,
                                      l->traits.image_bytes, err);
    if (rc)
        return rc;
    struct err ignored = {0};
    if (p->pack_key[0] && s->ops->pack_write &&
        s->ops->pack_write(s, e->content_id, p->pack_key, l->image, l->traits.image_bytes,
                           &ignored))
        log_debug("adapter_load", "pack not kept id=%.12s reason=\"%s\"", e->content_id,
                  ignored.msg);
    return 0;
}

static void publish(struct adapter_entry *e, struct loaded *l, uint64_t took_ns)
{
    struct adapter_pool *p = e->pool;
    adapter_load_set_traits(e, &l->traits);
    e->host = HOST_READY;
    e->image = l->image;
    sys_free(e->chunks);
    e->chunks = l->chunks;
    e->host_tick = e->host_placed_tick = ++p->tick;
    e->load_ns = took_ns;
    p->loads_done[0]++;
    p->load_bytes[0] += e->host_bytes;
    p->load_ns[0] += took_ns;
    if (l->traits.kinds & ADAPTER_FULL) { // the upload reads its replacements
        e->adapter = l->adapter;
        e->bound = l->bound;
        l->adapter = NULL;
        l->bound = NULL;
    }
}

static int load(struct adapter_entry *e, struct loaded *l, struct err *err)
{
    pthread_mutex_lock(&e->pool->mutex);
    bool stopped = e->pool->stopped;
    pthread_mutex_unlock(&e->pool->mutex);
    if (stopped)
        return err_set(err, ERR_BUSY, "the engine stops");
    int rc = read_pack(e, l, err);
    if (rc == 0 || rc == ERR_BUSY)
        return rc;
    drop_image(e->pool, l);
    err_clear(err);
    l->traits = (struct adapter_traits){0};
    return make_image(e, l, err);
}

static void load_job(void *arg)
{
    struct adapter_entry *e = arg;
    struct adapter_pool *p = e->pool;
    struct loaded l = {0};
    struct err err = {0};
    uint64_t begin = thread_now_ns();
    int rc = load(e, &l, &err);
    if (rc)
        drop_image(p, &l);
    pthread_mutex_lock(&p->mutex);
    if (rc == 0) {
        publish(e, &l, thread_now_ns() - begin);
    } else {
        unreserve_host(e);
        e->host = HOST_NONE;
        if (rc != ERR_BUSY) {
            e->load_error = err;
            p->load_failures++;
        }
    }
    pthread_mutex_unlock(&p->mutex);
    bound_free(l.bound);
    adapter_free(l.adapter);
    p->opt.wake(p->opt.user);
}

bool adapter_load_start(struct adapter_entry *e)
{
    struct adapter_pool *p = e->pool;
    if (p->stopped)
        return true;
    if (e->sized) {
        struct adapter_traits t = {.kinds = e->kinds,
                                   .image_bytes = e->image_bytes,
                                   .replacement_bytes = e->replacement_bytes};
        if (!reserve_host(e, host_need(&t)))
            return false;
    }
    if (job_queue_add(p->loads, load_job, e, NULL) == 0)
        e->host = HOST_LOADING;
    else
        unreserve_host(e); // a full queue is no failure: the worker asks again
    return true;
}

// ---- host to device -----------------------------------------------------------------------------

static int load_replacements(struct adapter_entry *e, uint64_t *n_bytes, struct err *err)
{
    struct adapter_pool *p = e->pool;
    *n_bytes = 0;
    if (!e->bound)
        return 0;
    e->replacements = sys_calloc(e->bound->n_parts, sizeof *e->replacements);
    if (!e->replacements)
        return err_set(err, ERR_NO_MEMORY, "adapter %.12s: no memory", e->content_id);
    for (size_t i = 0; i < e->bound->n_parts; i++) {
        const struct bound_part *part = &e->bound->parts[i];
        if (!tensor_present(&part->module->full))
            continue;
        uint64_t one = 0;
        struct adapter_replacement *r = &e->replacements[e->n_replacements];
        r->part = part;
        int rc =
            p->opt.be->ops->replacement_load(p->opt.be, p->opt.model, part, &r->weight, &one, err);
        if (rc)
            return rc;
        e->n_replacements++;
        *n_bytes += one;
    }
    return 0;
}

/* Reads only what the mutex protects from change while the upload runs: image, bound, slot, chunks.
 */
static void upload_job(void *arg)
{
    struct adapter_entry *e = arg;
    struct adapter_pool *p = e->pool;
    struct err err = {0};
    uint64_t n_bytes;
    int rc = load_replacements(e, &n_bytes, &err);
    if (rc == 0)
        rc = p->opt.be->ops->adapter_load(p->opt.be, p->opt.model, e->slot, e->image,
                                          e->image_bytes, e->chunks, e->n_chunks, e->replacements,
                                          e->n_replacements, &err);
    pthread_mutex_lock(&p->mutex);
    uint64_t now_counted = (uint64_t)e->n_chunks * BACKEND_CHUNK_BYTES + n_bytes;
    p->device_bytes += now_counted - e->device_bytes; // the estimate made room for it
    e->device_bytes = now_counted;
    e->upload_done = true;
    e->upload_rc = rc;
    if (rc)
        e->load_error = err;
    pthread_mutex_unlock(&p->mutex);
    p->opt.wake(p->opt.user);
}

bool adapter_upload_start(struct adapter_entry *e)
{
    e->upload_done = false;
    e->upload_begin_ns = thread_now_ns();
    return job_queue_add(e->pool->uploads, upload_job, e, NULL) == 0;
}
