/*
 * stats: what an adapter weighs, module by module, in factored form; the product B A is never made.
 *
 * With s the scale: ||dW||_F^2 = s^2 sum (A A^T) o (B^T B); the spectral norm is s sqrt(lambda_max)
 * of L^T (A A^T) L with B^T B = L L^T (both r x r, float64); the stable rank is the ratio of the
 * squares. Experts: ||dW||_F over all of them, the largest spectral norm. What needs the base
 * (DoRA's magnitude, whole weights, replaced rows and biases) is not in these numbers, and
 * needs_base says so. Thread rule: re-entrant; works on its own threads.
 */
#ifndef LIBCORE_ADAPTER_STATS_H
#define LIBCORE_ADAPTER_STATS_H

#include "libcore/adapter/adapter.h"

struct module_stats {
    const struct adapter_module *module; // borrowed
    bool has_factors;                    // A and B are there; else the numbers are 0
    bool needs_base;                     // the module does more than s B A
    double frobenius;                    // ||s B A||_F
    double spectral;                     // largest singular value of s B A
    double stable_rank;                  // (frobenius / spectral)^2; 0 when B A is 0
    uint64_t n_parameters;               // values in the module's own tensors
    uint64_t n_bytes;
};

struct adapter_stats {
    struct module_stats *modules; // in the order of adapter.modules
    size_t n;
    double frobenius;    // over all modules with factors
    double max_spectral; // and the module that has it
    size_t max_module_idx;
    uint64_t n_bytes;
};

/* *out is the caller's, to free with stats_free(); `a` is borrowed. n_threads 0: all processors.
 * ERR_NO_MEMORY, ERR_REFUSED (a type that is no float). */
int stats_compute(struct adapter_stats **out, const struct adapter *a, unsigned n_threads,
                  struct err *err);
void stats_free(struct adapter_stats *s);

/* Eigenvalues of a symmetric n x n matrix (row-major, destroyed), ascending into values[n];
 * scratch holds n doubles. Householder tridiagonalisation, then implicit QL. */
void stats_eigenvalues(double *m, size_t n, double *values, double *scratch);

#endif
