/*
 * load: a base model's weights into a back end, from a checkpoint or made up.
 * Every tensor of the checkpoint finds its place or is named; every weight of the model is loaded
 * or named. Loads on several threads, through pread where the back end takes bytes so, else from
 * the mapped files; nothing is kept. Thread rule: one load a device_model.
 */
#ifndef LIBCORE_MODEL_LOAD_H
#define LIBCORE_MODEL_LOAD_H

#include "libcore/backend.h"
#include "libcore/base/digest.h"
#include "libcore/format/checkpoint.h"

/* What a load did. */
struct model_load_stats {
    uint64_t bytes;
    double seconds;
    unsigned n_threads;
    size_t n_tensors, n_checked; // all; those whose digest was compared
};

struct model_load_options {
    unsigned n_threads; // 0: the processors, but 2 at least and 8 at most
    /* Bytes loaded so far of all, called from the loading threads, one at a time; may be NULL. */
    void (*progress)(void *user, uint64_t done, uint64_t total);
    void *user;
    /* The recorded digest of a tensor's bytes, called from the loading threads; false: there is
     * none. May be NULL. It is compared beside the reading: ERR_CORRUPT when they differ. */
    bool (*digest_of)(void *digests, const char *name, struct digest *out);
    void *digests;
    struct model_load_stats *stats; // filled when not NULL
};

/* Hands every tensor of `ckpt` to the back end, then model_ready(). A head that the checkpoint of a
 * tied model repeats is left out, as transformers does. opt may be NULL. ERR_CORRUPT: a tensor of
 * another shape, or a weight that is missing; ERR_REFUSED: a tensor that is no weight of this
 * model, or a type that is not computed. Errors name `folder:tensor`. */
int model_load(struct backend *be, struct device_model *dm, const struct checkpoint *ckpt,
               const struct model_config *config, const struct model_modules *modules,
               const struct model_load_options *opt, struct err *err);

/* Weights that are random (normal, sigma 0.02; norms 1, biases 0) but the same for the same seed,
 * in the type that the configuration declares: `--load-format dummy`. */
int model_load_dummy(struct backend *be, struct device_model *dm, const struct model_config *config,
                     const struct model_modules *modules, uint64_t seed,
                     const struct model_load_options *opt, struct err *err);

#endif
