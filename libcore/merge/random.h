/*
 * random: numbers that depend on (seed, tensor, index) alone, by base/philox.h. Whatever thread,
 * tile or order asks for a value, it is the same. Thread rule: pure functions.
 */
#ifndef LIBCORE_MERGE_RANDOM_H
#define LIBCORE_MERGE_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* The index-th number of the stream `tensor`: uniform in [0, 1), 32 bits of it. */
double random_uniform(uint64_t seed, uint64_t tensor, uint64_t index);
/* The same for indices first … first + n - 1. */
void random_uniforms(uint64_t seed, uint64_t tensor, uint64_t first, size_t n, double *out);
/* Standard normal (Box-Muller on one block's words). */
double random_normal(uint64_t seed, uint64_t tensor, uint64_t index);

/* A stream's number from texts, so that it depends on names and not on positions (FNV-1a, then
 * mixed). `more` tells experts of one tensor apart. */
uint64_t random_stream(const char *a, const char *b, const char *c, uint64_t more);

#endif
