/*
 * extract: an adapter out of a base and a checkpoint that was tuned from it.
 *
 * Every linear weight that differs gives the leading singular triples of tuned - base (float64 of
 * the stored values). Embeddings, norms, routers and heads of another size that differ become
 * modules_to_save, biases become replaced biases: nothing that differs is dropped. Weights are read
 * from the mapped files in tiles; memory is bounded by the vectors and 256 MB a thread.
 * Thread rule: re-entrant; works on its own threads.
 */
#ifndef LIBCORE_MERGE_EXTRACT_H
#define LIBCORE_MERGE_EXTRACT_H

#include "libcore/merge/combine.h"

struct extract_options {
    uint32_t rank;         // at most; 0: what `energy` takes, at most LIMIT_RANK
    double energy;         // share of ||tuned - base||^2 that each tensor keeps; 0: `rank` decides
    const char *base_name; // base_model_name_or_path of the result; NULL: the base's folder
    unsigned n_threads;    // 0: all processors
    bool (*stop)(void);    // asked from any thread between tensors; may be NULL
};

struct extract_report {
    struct combine_report factors; // modules that became factors
    const char **saved;            // names that became modules_to_save, borrowed from the adapter
    size_t n_saved, n_biases, n_same; // n_same: weights that do not differ
};

/* base and tuned: checkpoint folders of one architecture. The adapter keeps the tuned files mapped.
 * ERR_REFUSED (other architectures or shapes, nothing differs), ERR_NOT_FOUND, ERR_CORRUPT,
 * ERR_USAGE, ERR_NO_MEMORY, ERR_INTERRUPTED. */
int extract_adapter(struct adapter **out, struct extract_report **report, const char *base,
                    const char *tuned, const struct extract_options *opt, struct err *err);
void extract_report_free(struct extract_report *r);

#endif
