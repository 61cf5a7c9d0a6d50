/* adapter_pool's own: shared by adapter_pool.c (who wants what), adapter_view.c (what others see),
 * adapter_load.c (disk to host, host to device, on loader threads) and adapter_place.c (room on the
 * device, on the worker thread). */
#ifndef LIBCORE_ENGINE_ADAPTER_POOL_IMPL_H
#define LIBCORE_ENGINE_ADAPTER_POOL_IMPL_H

#include <pthread.h>
#include <stdatomic.h>

#include "libcore/base/thread.h"
#include "libcore/engine/adapter_pool.h"

enum host_state { HOST_NONE, HOST_LOADING, HOST_READY };
enum device_state { DEVICE_NONE, DEVICE_UPLOADING, DEVICE_POLLING, DEVICE_READY };
enum { POOL_BUCKETS = 4096, NO_SLOT = UINT32_MAX };

/* Fields are guarded by the pool's mutex. Those marked (w) are written by the worker alone, under
 * the mutex, so that the worker may read them without it. */
struct adapter_entry {
    char content_id[DIGEST_HEX_CHARS + 1]; // constant
    struct adapter_pool *pool;             // constant
    struct adapter_entry *next_in_bucket;
    struct adapter_entry *next_wanted, *prev_wanted;
    bool in_wanted;

    // what it is
    bool known; // kinds, rank and n_vocab are valid
    bool sized; // the two sizes are valid
    bool registered;
    unsigned kinds;
    uint32_t rank, n_vocab;
    uint64_t image_bytes, replacement_bytes;

    // who wants it
    uint32_t n_running, n_waiting; // n_running (w)
    bool prefetch, pinned, forgotten;
    uint64_t wanted_ns;

    // host
    enum host_state host;
    void *image;
    struct adapter *adapter; // kept for its replacements while the image is there
    struct bound_adapter *bound;
    uint64_t host_bytes; // counted
    uint64_t host_tick, host_placed_tick;
    uint64_t load_ns;      // what the last load from disk took
    uint32_t *chunks;      // room for the image's chunks
    struct err load_error; // code != 0: the last load failed, not yet seen by the worker

    // device
    enum device_state device; // (w)
    uint32_t slot;            // (w)
    uint32_t n_chunks;        // (w)
    uint64_t device_bytes;    // (w) counted
    uint64_t device_tick, placed_tick;
    struct adapter_replacement *replacements;
    uint32_t n_replacements;
    bool upload_done;
    int upload_rc;
    uint64_t upload_begin_ns, upload_ns, ready_ns;

    // worker only
    struct err error;
    bool failed, lacks_room, draining, urgent;
    uint64_t last_step;
    struct fair_client client;
    double rate; // recency-decayed hits
    uint64_t rate_ns;

    _Atomic uint64_t n_tokens;
};

struct adapter_pool {
    struct adapter_pool_options opt;
    char pack_key[256]; // "" : packs are not kept
    pthread_mutex_t mutex;
    struct job_queue *loads, *uploads;
    struct adapter_entry *buckets[POOL_BUCKETS];
    struct adapter_entry *wanted, *wanted_last; // wanted, not ready on the device; oldest first
    struct adapter_entry **slots;               // by slot
    uint32_t n_entries, n_forgotten;
    uint32_t n_host, n_device, n_distinct; // n_device, n_distinct (w)
    uint64_t host_bytes, device_bytes;
    uint64_t tick;
    struct adapter_entry *urgent[LIMIT_ADAPTERS_PER_REQUEST]; // worker
    uint32_t n_urgent;
    uint64_t completed_step; // worker
    bool stopped, polling;
    uint64_t n_host_gains; // counts up when an image goes or may go
    bool host_full; // somebody waits for room in host memory: loads begin in turn, by the worker
    uint64_t loads_done[2], load_bytes[2], load_ns[2], load_failures, hits, misses, evictions[2];
};

// adapter_pool.c
struct adapter_entry *adapter_pool_find(struct adapter_pool *p, const char *content_id); // mutex
bool adapter_entry_is_wanted(const struct adapter_entry *e);
/* Puts the entry on the wanted list or takes it off, as its state says. */
void adapter_entry_update_wanted(struct adapter_entry *e);
uint64_t adapter_entry_device_need(const struct adapter_entry *e); // bytes, chunks rounded up
uint32_t adapter_entry_chunk_need(const struct adapter_entry *e);

/* What evicts an adapter: the smallest goes first, by the policy of the pool. */
double adapter_entry_worth(const struct adapter_entry *e, bool on_device);

// adapter_load.c
struct adapter_traits {
    unsigned kinds;
    uint32_t rank, n_vocab;
    bool sized;
    uint64_t image_bytes, replacement_bytes;
};
/* Asks the back end whether it computes such an adapter, and measures it. Any thread, no mutex. */
int adapter_load_describe(struct adapter_pool *p, const struct bound_adapter *b,
                          struct adapter_traits *out, struct err *err);
void adapter_load_set_traits(struct adapter_entry *e, const struct adapter_traits *t); // mutex
/* With the mutex; host must be HOST_NONE. False: host memory has no room for it now. */
bool adapter_load_start(struct adapter_entry *e);
bool adapter_upload_start(struct adapter_entry *e);   // with the mutex; slot and chunks are set
void adapter_load_drop_host(struct adapter_entry *e); // with the mutex; frees the image

// adapter_place.c
/* Moves every wanted adapter on; whether one failed. Worker, with the mutex. */
bool adapter_place_service(struct adapter_pool *p);
void adapter_place_unload(struct adapter_entry *e); // worker, with the mutex: leaves the device

#endif
