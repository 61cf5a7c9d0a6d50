/*
 * sample: one id a logit row and the log-probabilities that were asked for; one CTA a row.
 *
 * The rules are kernels/cpu/sample.c's: raw logits (after the soft cap) give the log-probabilities;
 * a copy takes bias and penalties; temperature 0 takes the largest; else min_p, top_k, top_p on
 * logits / temperature and the Gumbel-max draw of kernels/ops.h. Nothing is sorted: thresholds are
 * found by four passes of a 256-bin histogram over the bits of the logits, of counts for top_k and
 * of fixed-point mass (integers, so that no order of summation matters) for top_p.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

constexpr int THREADS = 512, WARPS = THREADS / 32, MAX_TOP = 20;
constexpr float MASS_ONE = 1099511627776.f; // 2^40

/* Larger float, larger key. */
__device__ __forceinline__ uint32_t key_of(float v)
{
    uint32_t b = __float_as_uint(v);
    return b & 0x80000000u ? ~b : b | 0x80000000u;
}

struct Best {
    float value;
    int id;
};

__device__ __forceinline__ bool better(const Best &a, const Best &b)
{
    return a.value > b.value || (a.value == b.value && a.id < b.id);
}

struct Shared {
    float f[WARPS];
    Best best[WARPS];
    uint32_t n[WARPS];
    double d[WARPS];
    unsigned long long bins[256];
    unsigned long long mass;
    uint32_t key, count;
};

__device__ Best block_best(Best v, Shared &sm)
{
    for (int i = 16; i; i >>= 1) {
        Best o = {__shfl_xor_sync(0xffffffffu, v.value, i), __shfl_xor_sync(0xffffffffu, v.id, i)};
        if (better(o, v))
            v = o;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        sm.best[threadIdx.x / 32] = v;
    __syncthreads();
    for (int i = 0; i < WARPS; i++) {
        if (better(sm.best[i], v))
            v = sm.best[i];
    }
    return v;
}

__device__ float block_sum(float v, Shared &sm)
{
    v = warp_sum(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        sm.f[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < WARPS; i++)
        v += sm.f[i];
    return v;
}

__device__ uint32_t block_count(uint32_t v, Shared &sm)
{
    for (int i = 16; i; i >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, i);
    __syncthreads();
    if (threadIdx.x % 32 == 0)
        sm.n[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int i = 0; i < WARPS; i++)
        v += sm.n[i];
    return v;
}

__device__ Best largest(const float *l, uint32_t n, Shared &sm)
{
    Best b = {-INFINITY, 0x7fffffff};
    for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
        Best o = {l[i], (int)i};
        if (better(o, b))
            b = o;
    }
    b = block_best(b, sm);
    return b.id == 0x7fffffff ? Best{b.value, 0} : b;
}

__device__ float sum_exp(const float *l, float max, uint32_t n, Shared &sm)
{
    float s = 0;
    for (uint32_t i = threadIdx.x; i < n; i += THREADS)
        s += expf(l[i] - max);
    return block_sum(s, sm);
}

__device__ void philox(uint32_t c[4], uint32_t k0, uint32_t k1)
{
    for (int i = 0; i < 10; i++) {
        uint64_t a = (uint64_t)0xD2511F53u * c[0], b = (uint64_t)0xCD9E8D57u * c[2];
        uint32_t n0 = (uint32_t)(b >> 32) ^ c[1] ^ k0, n2 = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[1] = (uint32_t)b;
        c[3] = (uint32_t)a;
        c[0] = n0;
        c[2] = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

struct Row {
    const cu_sampler &s;
    const cu_sample p;
    Shared &sm;
    uint32_t n;
    float *raw, *l;
    uint32_t *counts;

    __device__ bool penalised() const
    {
        return p.repetition != 1.f || p.presence != 0.f || p.frequency != 0.f;
    }

    __device__ void change()
    {
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            l[i] = raw[i];
            if (penalised())
                counts[i] = 0;
        }
        __syncthreads();
        if (threadIdx.x == 0) { // in their order: an id may be named twice
            for (uint32_t i = 0; i < p.n_bias; i++) {
                cu_token_bias b = s.biases[p.bias0 + i];
                if ((uint32_t)b.token < n)
                    l[b.token] += b.bias;
            }
        }
        __syncthreads();
        if (!penalised())
            return;
        constexpr uint32_t IN_PROMPT = 1u << 31;
        for (uint32_t i = threadIdx.x; i < p.n_history; i += THREADS) {
            uint32_t id = (uint32_t)s.history[p.history0 + i];
            if (id >= n)
                continue;
            if (i < p.n_prompt)
                atomicOr(&counts[id], IN_PROMPT);
            else
                atomicAdd(&counts[id], 1u);
        }
        if (threadIdx.x == 0 && p.pending >= 0 && (uint32_t)s.prev_ids[p.pending] < n)
            atomicAdd(&counts[s.prev_ids[p.pending]], 1u);
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            uint32_t c = counts[i];
            if (!c)
                continue;
            float v = l[i] > 0 ? l[i] / p.repetition : l[i] * p.repetition;
            c &= ~IN_PROMPT;
            if (c)
                v -= p.frequency * (float)c + p.presence;
            l[i] = v;
        }
        __syncthreads();
    }

    __device__ static unsigned long long mass_of(float v, float max)
    {
        return (unsigned long long)(expf(v - max) * MASS_ONE);
    }

    /* The key at which the sum of weights of ids with a larger key stays below `want` and with it
     * reaches it; weights are 1 (top_k) or mass. *above: the sum over larger keys. */
    template <bool MASS>
    __device__ uint32_t threshold(uint32_t limit, float max, unsigned long long want,
                                  unsigned long long *above)
    {
        uint32_t prefix = 0;
        unsigned long long sum = 0;
        for (int shift = 24; shift >= 0; shift -= 8) {
            for (int i = threadIdx.x; i < 256; i += THREADS)
                sm.bins[i] = 0;
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
                uint32_t k = key_of(l[i]);
                bool in = k >= limit && (shift == 24 || k >> (shift + 8) == prefix >> (shift + 8));
                if (in && l[i] > -INFINITY)
                    atomicAdd(&sm.bins[k >> shift & 255], MASS ? mass_of(l[i], max) : 1ull);
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                int bin = 255;
                for (; bin > 0 && sum + sm.bins[bin] < want; bin--)
                    sum += sm.bins[bin];
                sm.key = prefix | (uint32_t)bin << shift;
                sm.mass = sum;
            }
            __syncthreads();
            prefix = sm.key;
            sum = sm.mass;
            __syncthreads();
        }
        *above = sum;
        return prefix;
    }

    /* The id up to which equals of `key` are kept, when `keep` of them are. */
    __device__ int last_equal(uint32_t key, uint32_t keep)
    {
        uint32_t seen = 0;
        for (uint32_t i0 = 0; i0 < n; i0 += THREADS) {
            uint32_t i = i0 + threadIdx.x;
            bool equal = i < n && key_of(l[i]) == key;
            uint32_t here = __syncthreads_count(equal);
            if (seen + here < keep) {
                seen += here;
                continue;
            }
            if (threadIdx.x == 0) {
                for (uint32_t j = i0;; j++) {
                    if (key_of(l[j]) == key && ++seen == keep) {
                        sm.count = j;
                        break;
                    }
                }
            }
            __syncthreads();
            return (int)sm.count;
        }
        return (int)n;
    }

    __device__ double noise(uint32_t id) const
    {
        uint32_t c[4] = {id / 4, 0, (uint32_t)p.counter, (uint32_t)(p.counter >> 32)};
        philox(c, (uint32_t)p.seed, (uint32_t)(p.seed >> 32));
        return -log(-log(((double)c[id % 4] + 0.5) * 0x1p-32));
    }

    /* The largest l_i + noise among keys >= limit (equals of it up to id `last`). */
    __device__ int draw(uint32_t limit, int last, Best top)
    {
        double floor = (double)top.value + noise((uint32_t)top.id);
        double best = -INFINITY;
        int id = top.id;
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            uint32_t k = key_of(l[i]);
            if (k < limit || (k == limit && (int)i > last) || l[i] == -INFINITY ||
                l[i] + 23.0 < floor)
                continue;
            double v = l[i] + noise(i);
            if (v > best || (v == best && (int)i < id)) {
                best = v;
                id = (int)i;
            }
        }
        for (int k = 16; k; k >>= 1) {
            double o = __shfl_xor_sync(0xffffffffu, best, k);
            int oid = __shfl_xor_sync(0xffffffffu, id, k);
            if (o > best || (o == best && oid < id)) {
                best = o;
                id = oid;
            }
        }
        __syncthreads();
        if (threadIdx.x % 32 == 0) {
            sm.d[threadIdx.x / 32] = best;
            sm.n[threadIdx.x / 32] = (uint32_t)id;
        }
        __syncthreads();
        for (int i = 0; i < WARPS; i++) {
            if (sm.d[i] > best || (sm.d[i] == best && (int)sm.n[i] < id)) {
                best = sm.d[i];
                id = (int)sm.n[i];
            }
        }
        return id;
    }

    __device__ int choose(Best raw_best)
    {
        if (!(p.temperature > 0) && p.n_bias == 0 && !penalised())
            return raw_best.id;
        change();
        Best top = largest(l, n, sm);
        if (!(p.temperature > 0))
            return top.id;
        for (uint32_t i = threadIdx.x; i < n; i += THREADS)
            l[i] /= p.temperature;
        top.value /= p.temperature;
        __syncthreads();
        uint32_t limit = p.min_p > 0 ? key_of(top.value + logf(p.min_p)) : 0;
        int last = (int)n;
        unsigned long long above;
        if (p.top_k > 0 && (uint32_t)p.top_k < n) {
            uint32_t k = threshold<false>(limit, top.value, (unsigned long long)p.top_k, &above);
            limit = max(limit, k);
        }
        if (p.top_p < 1.f)
            limit = keep_mass(limit, top.value, &last);
        return draw(limit, last, top);
    }

    __device__ uint32_t keep_mass(uint32_t limit, float max, int *last)
    {
        unsigned long long total = 0, above;
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            if (key_of(l[i]) >= limit && l[i] > -INFINITY)
                total += mass_of(l[i], max);
        }
        if (threadIdx.x == 0)
            sm.mass = 0;
        __syncthreads();
        atomicAdd(&sm.mass, total);
        __syncthreads();
        total = sm.mass;
        __syncthreads();
        unsigned long long want = (unsigned long long)((double)p.top_p * (double)total);
        want = want ? want : 1;
        uint32_t k = threshold<true>(limit, max, want, &above);
        float v = __uint_as_float(k & 0x80000000u ? k & 0x7fffffffu : ~k);
        unsigned long long each = mass_of(v, max);
        uint32_t keep =
            each ? (uint32_t)min((want - above + each - 1) / each, (unsigned long long)n) : n;
        *last = last_equal(k, keep ? keep : 1);
        return k;
    }

    __device__ void report(uint32_t row, int id, Best best, float log_sum)
    {
        float v = (uint32_t)id < n ? raw[id] : -INFINITY;
        if (threadIdx.x == 0) {
            s.ids[row] = id;
            s.logprobs[row] = v - log_sum;
        }
        uint32_t rank = 0;
        if (p.n_top > 0 || p.target >= 0) {
            uint32_t larger = 0;
            for (uint32_t i = threadIdx.x; i < n; i += THREADS)
                larger += raw[i] > v;
            rank = 1 + block_count(larger, sm);
        }
        if (threadIdx.x == 0)
            s.ranks[row] = (int32_t)rank;
        for (int k = 0; k < p.n_top && k < MAX_TOP; k++) {
            if (k)
                best = after(best);
            if (threadIdx.x == 0) {
                s.top_ids[row * MAX_TOP + k] = best.id;
                s.top_logprobs[row * MAX_TOP + k] = best.value - log_sum;
            }
        }
    }

    /* The next by falling logit, then rising id. */
    __device__ Best after(Best last)
    {
        Best b = {-INFINITY, 0x7fffffff};
        for (uint32_t i = threadIdx.x; i < n; i += THREADS) {
            Best o = {raw[i], (int)i};
            if (better(last, o) && better(o, b))
                b = o;
        }
        return block_best(b, sm);
    }
};

__global__ void __launch_bounds__(THREADS) sample_kernel(const cu_sampler s)
{
    __shared__ Shared sm;
    pdl_launch_dependents();
    pdl_wait();
    uint32_t row = blockIdx.x;
    if (row >= *s.n_rows)
        return;
    size_t at = (size_t)row * s.stride;
    Row r = {s, s.params[row], sm, 0, s.logits + at, s.changed + at, s.counts + at};
    r.n = r.p.vocab;
    if (s.softcap > 0) {
        for (uint32_t i = threadIdx.x; i < r.n; i += THREADS)
            r.raw[i] = s.softcap * tanhf(r.raw[i] / s.softcap);
        __syncthreads();
    }
    Best best = largest(r.raw, r.n, sm);
    float log_sum = best.value + logf(sum_exp(r.raw, best.value, r.n, sm));
    int id = r.p.target >= 0 ? r.p.target : r.choose(best);
    __syncthreads();
    r.report(row, id, best, log_sum);
}

} // namespace

extern "C" int cu_sample_rows(const struct cu_sampler *s, cudaStream_t stream)
{
    return launch_pdl(sample_kernel, dim3(s->bound), dim3(THREADS), 0, stream, *s);
}
