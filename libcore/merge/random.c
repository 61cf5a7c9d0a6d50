#include "libcore/merge/random.h"

#include <math.h>

#include "libcore/base/philox.h"

static void block(uint64_t seed, uint64_t tensor, uint64_t number, uint32_t out[4])
{
    const uint32_t counter[4] = {(uint32_t)number, (uint32_t)(number >> 32), (uint32_t)tensor,
                                 (uint32_t)(tensor >> 32)};
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    philox4x32(counter, key, out);
}

double random_uniform(uint64_t seed, uint64_t tensor, uint64_t index)
{
    uint32_t w[4];
    block(seed, tensor, index / 4, w);
    return w[index % 4] * 0x1p-32;
}

void random_uniforms(uint64_t seed, uint64_t tensor, uint64_t first, size_t n, double *out)
{
    uint32_t w[4] = {0};
    for (size_t i = 0; i < n; i++) {
        uint64_t index = first + i;
        if (i == 0 || index % 4 == 0)
            block(seed, tensor, index / 4, w);
        out[i] = w[index % 4] * 0x1p-32;
    }
}

double random_normal(uint64_t seed, uint64_t tensor, uint64_t index)
{
    uint32_t w[4];
    block(seed, tensor, index, w);
    double u = (w[0] + 1.0) * 0x1p-32, v = w[1] * 0x1p-32; // u > 0: its logarithm is finite
    return sqrt(-2 * log(u)) * cos(2 * 3.14159265358979323846 * v);
}

static uint64_t fnv(uint64_t h, const char *text)
{
    for (const char *p = text; *p; p++)
        h = (h ^ (unsigned char)*p) * 0x100000001B3u;
    return (h ^ 0xFF) * 0x100000001B3u; // no byte of UTF-8: "ab","c" is not "a","bc"
}

uint64_t random_stream(const char *a, const char *b, const char *c, uint64_t more)
{
    uint64_t h = fnv(fnv(fnv(0xCBF29CE484222325u, a), b), c) + more * 0x9E3779B97F4A7C15u;
    h = (h ^ (h >> 30)) * 0xBF58476D1CE4E5B9u; // splitmix64's finish
    h = (h ^ (h >> 27)) * 0x94D049BB133111EBu;
    return h ^ (h >> 31);
}
