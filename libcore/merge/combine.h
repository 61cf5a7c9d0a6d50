/*
 * combine: several adapters into one adapter.
 *
 * With D_i = s_i B_i A_i (a module's delta, s_i the adapter's own scale) and w_i the given weight:
 *   cat                  A = [w_i s_i A_i], B = [B_i]: sum w_i D_i at rank sum r_i
 *   linear, task_arithmetic   the same sum by its own singular triples: as many as it has, or K
 *   svd                  the same at rank K, by default the largest r_i: the best of that rank
 *   slerp                two adapters: c_a D_a + c_b D_b, c = sin((1 - t) o) / sin(o) and sin(t o)
 * / sin(o), o the angle between D_a and D_b, t = w_b / (w_a + w_b); beyond a cosine of 0.9995 (and
 * where one lacks the module) linear magnitude_prune, ties, dare_linear, dare_ties, della,
 * breadcrumbs prune, vote, add up by libcore/merge/blend on the D_i themselves, then the best rank
 * K The sums never leave factored form: QR of the stacked factors, then a small SVD, float64.
 * Results are float32, r = lora_alpha, so every scale is in the factors. `compat` gives the flavour
 * of PEFT 0.21 or mergekit 0.1.5; combine_method.differs says where it differs from ours and from
 * theirs.
 *
 * Adapters are taken in the order of their content ids, so the bytes do not depend on the order
 * given, nor on threads; random numbers on the seed, the content id, the module and the index.
 * What has no factored sum (DoRA) is refused; what replaces weights is taken over where that is the
 * sum (one adapter has it, at weight 1, in a method that only adds), else refused by name.
 */
#ifndef LIBCORE_MERGE_COMBINE_H
#define LIBCORE_MERGE_COMBINE_H

#include <jansson.h>

#include "libcore/adapter/adapter.h"
#include "libcore/merge/blend.h"

enum combine_compat { COMBINE_OWN, COMBINE_PEFT, COMBINE_MERGEKIT };

enum combine_path {
    COMBINE_STACK,   // factors side by side
    COMBINE_SUM,     // the weighted sum, decomposed
    COMBINE_SLERP,   // a weighted sum whose weights come from the angle
    COMBINE_DENSE,   // blend on the deltas
    COMBINE_FACTORS, // blend on A and on B apart, as PEFT does: no statement about the deltas
};

struct combine_method {
    const char *name;
    enum combine_compat compat;
    enum combine_path path;
    struct blend_rule rule; // but for density, epsilon, gamma and seed
    bool own_rank;          // without a rank: the largest r_i (else as many as the sum has)
    bool normalize;         // weights are divided by their sum
    const char *differs;    // of a compat method: one sentence; NULL
};
/* All of them; *n in all. */
const struct combine_method *combine_method_table(size_t *n);
/* ERR_USAGE lists the names that there are. */
int combine_method_find(const struct combine_method **out, const char *name,
                        enum combine_compat compat, struct err *err);
bool combine_takes_density(const struct combine_method *m);
bool combine_takes_seed(const struct combine_method *m);

struct combine_input {
    const struct adapter *adapter; // borrowed; with its content id
    double weight;                 // finite, not 0
    const char *label;             // for messages
};

struct combine_options {
    const struct combine_method *method;
    uint32_t rank;  // 0: see the method
    double density; // 0: not given
    double epsilon; // della; negative: not given (0.15, less where density leaves no room)
    double gamma;   // breadcrumbs; negative: not given (0.01)
    uint64_t seed;
    unsigned n_threads; // 0: all processors
    bool (*stop)(void); // asked from any thread between modules; may be NULL
};

/* What became of one module. */
struct combine_module {
    const char *name, *parameter; // borrowed from the resulting adapter
    uint32_t rank, n_terms;
    double total2;     // squared Frobenius norm before truncation (0 for cat: nothing is cut)
    double discarded2; // of what the rank does not hold
    double residual;   // of subspace iteration; 0 when exact
    bool exact;        // the decomposition
};
struct combine_report {
    struct combine_module *modules; // those with factors, in the result's order
    size_t n;
    double total2, discarded2;
    uint32_t max_rank;
    size_t n_taken_over; // modules whose replacement was taken over as it is
};

/* *out and *report are the caller's, to free with adapter_free() and combine_report_free().
 * ERR_USAGE (a number that the method does not take or lacks), ERR_REFUSED ("adapter:module: why"),
 * ERR_NO_MEMORY, ERR_INTERRUPTED. */
int combine_adapters(struct adapter **out, struct combine_report **report,
                     const struct combine_input *inputs, size_t n,
                     const struct combine_options *opt, struct err *err);
void combine_report_free(struct combine_report *r);

/* sqrt(discarded2 / total2), 0 when there is nothing. */
double combine_loss(double discarded2, double total2);

#endif
