/*
 * adapter_pool: the tiers of the adapters of one engine: disk (the adapter source), host (packed
 * images in the back end's host memory), device (chunks of the device pool and a slot).
 *
 * A load starts when somebody wants an adapter, once for all who want it, and runs on loader
 * threads; the worker places finished images on the device and evicts others for them. A full tier
 * makes everybody wait, never fail. Adapters that are pinned or in the batch are not evicted;
 * those that requests wait for only when nothing else can go (adapter_pool_make_room).
 * Full replacements (modules_to_save) are weight handles outside the pool; their bytes count
 * against the same cap.
 *
 * Thread rule: functions say "any thread" or "worker" (the engine's worker thread).
 */
#ifndef LIBCORE_ENGINE_ADAPTER_POOL_H
#define LIBCORE_ENGINE_ADAPTER_POOL_H

#include "libcore/engine/device_pool.h"
#include "libcore/engine/engine.h"
#include "libcore/engine/fair.h"

struct adapter_pool;
struct adapter_entry; // one content id

struct adapter_pool_options {
    struct backend *be; // all borrowed
    struct device_model *model;
    const struct model_config *config;
    const struct model_modules *modules;
    struct adapter_source *source;
    const char *base_fingerprint;
    struct device_pool *chunks;
    uint64_t device_bytes; // cap of chunks and replacements
    uint64_t host_bytes;
    uint32_t max_host_adapters; // 0: by bytes alone
    uint32_t max_slots;
    uint32_t n_loader_threads;
    enum eviction_policy eviction;
    /* Gives a chunk of idle KV pages back to `chunks`; false: there is none. Worker. */
    bool (*give_chunk)(void *user);
    uint32_t (*n_spare_chunks)(void *user); // how many times give_chunk would succeed. Worker.
    /* An adapter has left every tier. Worker. */
    void (*on_forgotten)(void *user, const char *content_id);
    /* Something changed that adapter_pool_service() should see. Any thread. */
    void (*wake)(void *user);
    void *user;
};

int adapter_pool_open(struct adapter_pool **out, const struct adapter_pool_options *opt,
                      struct err *err);
/* Ends the loads and empties the tiers; no step may be in flight. Any one thread, the last. */
void adapter_pool_free(struct adapter_pool *p);
void adapter_pool_stop(struct adapter_pool *p); // loads that wait give up

// ---- any thread ----
int adapter_pool_check(struct adapter_pool *p, const struct adapter *a, struct err *err);
int adapter_pool_register(struct adapter_pool *p, const struct adapter *a, struct err *err);
int adapter_pool_prefetch(struct adapter_pool *p, const char *content_id, bool pin,
                          struct err *err);
void adapter_pool_unpin(struct adapter_pool *p, const char *content_id);
void adapter_pool_forget(struct adapter_pool *p, const char *content_id);
size_t adapter_pool_list(struct adapter_pool *p, struct engine_adapter_info *out, size_t max);
/* Rows of the vocabulary that it brings; 0: none, or not known (yet). */
uint32_t adapter_pool_n_vocab(struct adapter_pool *p, const char *content_id);
void adapter_pool_stats(struct adapter_pool *p, struct engine_stats *out);
/* One more request waits for it: starts the load where one is needed. The entry stays valid until
 * adapter_pool_release(). ERR_LIMIT when it is known never to fit, ERR_NO_MEMORY. */
int adapter_pool_want(struct adapter_pool *p, const char *content_id, struct adapter_entry **out,
                      struct err *err);

// ---- worker ----
/* Moves loads on. completed_step: the last step whose result is known. Returns whether an adapter
 * failed: ask adapter_pool_error() for each entry that somebody waits for, then
 * adapter_pool_clear_errors(). */
bool adapter_pool_service(struct adapter_pool *p, uint64_t completed_step);
const struct err *adapter_pool_error(const struct adapter_entry *e); // NULL: has not failed
void adapter_pool_clear_errors(struct adapter_pool *p);
bool adapter_pool_polling(const struct adapter_pool *p); // a device copy runs: service again soon

/* A waiting request runs, or a running one waits again. Entry must be ready to run. */
void adapter_pool_start(struct adapter_pool *p, struct adapter_entry *e);
void adapter_pool_pause(struct adapter_pool *p, struct adapter_entry *e);
/* One request less, which was running or waiting. */
void adapter_pool_release(struct adapter_pool *p, struct adapter_entry *e, bool was_running);

bool adapter_pool_is_ready(const struct adapter_entry *e); // on the device
/* Its image is in host memory and the device has no room for it. */
bool adapter_pool_lacks_room(const struct adapter_entry *e);
bool adapter_pool_is_draining(const struct adapter_entry *e); // admit nobody for it
uint32_t adapter_pool_n_running(const struct adapter_entry *e);
uint32_t adapter_pool_n_distinct(const struct adapter_pool *p); // adapters with running requests
uint32_t adapter_pool_slot(const struct adapter_entry *e);
unsigned adapter_pool_kinds(const struct adapter_entry *e); // valid when ready
bool adapter_pool_kinds_known(struct adapter_pool *p, const struct adapter_entry *e,
                              unsigned *kinds);             // any thread
const char *adapter_pool_id(const struct adapter_entry *e); // any thread
uint64_t adapter_pool_ready_ns(const struct adapter_entry *e);
struct fair_client *adapter_pool_client(struct adapter_entry *e);
/* Step `step` uses it and computes n_tokens for it. */
void adapter_pool_used(struct adapter_entry *e, uint64_t step, uint32_t n_tokens);

/* The adapters of one request that has waited too long: room is made for them at the expense of
 * the clients that got most. Only one such set at a time; n 0 ends it. n_distinct: how many other
 * adapters must stop running (max_step_adapters). Ask again while it waits. False: adapters alone
 * cannot make the room, KV pages must go too. */
bool adapter_pool_make_room(struct adapter_pool *p, struct adapter_entry **urgent, uint32_t n,
                            uint32_t n_distinct);
/* Whether `urgent` can never be on the device together, even with all else gone (pins aside). */
bool adapter_pool_never_fits(struct adapter_pool *p, struct adapter_entry **urgent, uint32_t n);
/* Evicts one adapter that nobody uses or wants, so that KV can have its chunks. */
bool adapter_pool_evict_idle(struct adapter_pool *p);
/* Chunks that adapter_pool_evict_idle() could give in all. */
uint32_t adapter_pool_n_idle_chunks(struct adapter_pool *p);

#endif
