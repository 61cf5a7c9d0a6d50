/*
 * fake_backend: a back end whose "model" makes every mistake of an engine visible as a wrong token.
 *
 * What a row writes into its KV page is a hash of its token, position, rope regime and of the
 * adapters (as read back from their chunks) of the segments that cover it. A logit row folds all it
 * reads back THROUGH the page table it was given, then the adapters of the head segments; the next
 * token is a function of that fold. fake_answer() computes the same from the request alone. So a
 * wrong page, row order, position, segment, slot, stale prefix or chunk given twice shows.
 * Also counts violations of the port's rules (a slot that is not ready, an unload under a step).
 */
#ifndef TESTS_LIB_FAKE_BACKEND_H
#define TESTS_LIB_FAKE_BACKEND_H

#include <stdatomic.h>

#include "libcore/adapter_source.h"
#include "libcore/backend.h"
#include "libcore/engine/engine.h"

enum {
    FAKE_VOCAB = 61,
    FAKE_BYTES_PER_RANK = BACKEND_CHUNK_BYTES / 8, // rank 8 fills a chunk
    FAKE_FULL = 1 << 20, // added to an adapter's number: it replaces a weight
    FAKE_DORA = 1 << 21, // added to an adapter's number: it has a magnitude
};

struct fake_options {
    uint32_t pages_per_chunk;
    bool threaded;       // steps run on a thread of their own
    uint32_t load_polls; // adapter_poll says "loading" so often
    uint32_t step_us;    // a step takes that long
    bool no_model;       // answers without looking: for measuring the engine
};

/* A back end, its model and everything that engine_options wants of them. */
struct fake_rig {
    struct backend *be;
    struct device_model *model;
    struct model_config config;
    struct model_modules *modules;
    struct adapter_source *source;
};

int fake_open(struct fake_rig *rig, const struct fake_options *opt,
              const struct step_limits *limits, struct err *err);
void fake_close(struct fake_rig *rig);

/* The next n-th step_submit, step_result or adapter_load from now fails (0: none). */
void fake_fail_submit(struct fake_rig *rig, unsigned n);
void fake_fail_result(struct fake_rig *rig, unsigned n);
void fake_fail_upload(struct fake_rig *rig, unsigned n);
unsigned fake_violations(struct fake_rig *rig, char *first, size_t n);
unsigned fake_n_weights(struct fake_rig *rig); // replacements that are loaded now
unsigned fake_n_slots(struct fake_rig *rig);   // slots that are in use now
unsigned fake_n_images(struct fake_rig *rig);  // host_alloc without host_free

/* Adapters by number; the rank is 1 + number % 16, so images are 1 to 3 chunks. */
void fake_content_id(unsigned number, char id[DIGEST_HEX_CHARS + 1]);
unsigned fake_rank(unsigned number);
struct adapter *fake_adapter(unsigned number); // NULL when memory is out
/* The source's ways: every get takes that long; the given number fails to load. */
void fake_source_delay(struct fake_rig *rig, unsigned us);
void fake_source_fail(struct fake_rig *rig, unsigned number, int code); // code 0: no longer
unsigned fake_source_gets(struct fake_rig *rig);
unsigned fake_source_pack_reads(struct fake_rig *rig);

struct fake_use {
    unsigned number;
    float scale;
};
/* What a request must be answered, by the definition above: at most max tokens into out, the stop
 * token included. Returns how many; *stopped: by a stop id. */
size_t fake_answer(const struct engine_request *r, const struct fake_use *uses, size_t n_uses,
                   int32_t *out, size_t max, bool *stopped);
/* The log-probability that a PROMPT event at `position` must report. */
float fake_score(const struct engine_request *r, const struct fake_use *uses, size_t n_uses,
                 uint32_t position);

#endif
