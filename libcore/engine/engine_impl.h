/* engine's own: shared by engine.c (open, free, the callers' side) and engine_worker.c (the worker
 * thread: steps, results, events). */
#ifndef LIBCORE_ENGINE_ENGINE_IMPL_H
#define LIBCORE_ENGINE_ENGINE_IMPL_H

#include <pthread.h>

#include "libcore/engine/batch.h"
#include "libcore/engine/scheduler.h"
#include "libcore/engine/trace.h"

enum { ENGINE_ID_BUCKETS = 4096 };

struct engine {
    struct engine_options opt;
    struct sequence_limits sequence_limits;
    struct device_pool *chunks;
    struct kv_cache *kv;
    struct prefix_cache *prefix;
    struct adapter_pool *adapters;
    struct scheduler *scheduler;
    struct batch *batch;
    bool pool_opened;
    pthread_t worker;
    bool worker_started;

    // ---- under the mutex ----
    pthread_mutex_t mutex;
    pthread_cond_t work, idle;
    struct sequence *inbox, *inbox_last; // submitted, not yet seen by the worker
    struct sequence *cancels;
    struct sequence *ids[ENGINE_ID_BUCKETS];
    uint64_t last_id;
    uint32_t n_live;   // accepted, FINISHED not yet delivered
    uint32_t n_queued; // of which never admitted
    bool awake;        // something changed since the worker looked
    bool stop, draining, flush_prefix;
    struct engine_stats stats; // as of the end of the last turn

    // ---- worker only ----
    uint64_t n_submitted, n_completed; // steps
    struct step_record *in_flight[BATCH_IN_FLIGHT];
    uint32_t n_in_flight;
    uint64_t n_preemptions_seen, n_admissions_seen;
    bool delivered; // events since on_step was last called
    struct engine_stats counts;
};

void engine_wake(void *user); // struct engine *
int engine_open_scheduler(struct engine *e, struct err *err);
void *engine_worker_main(void *arg);

#endif
