/*
 * attention_decode: everything between the qkv and the o projection for rows that are one token of
 * their sequence: completes q, k and v (planes, B v, biases, gains), norms and rotates heads,
 * writes the row's key and value to the pages, out = softmax(scale q K^T) V, and the combination of
 * the splits.
 *
 * A CTA has one (row, key/value head, split of the context) and all query heads that share the
 * head: a key is read once for them. Keys stand on the MMA's M side (16), heads on its N side (8):
 *     S^T[16 keys, heads] = K Q^T,   O^T[head_dim, heads] += V^T P^T
 * Each warp streams its own tiles of 16 keys from global memory straight into fragments, one tile
 * ahead: next to the o projection, whose ring waits in shared memory already, there is room for
 * little else. A lane takes 16 bytes of a row, 8 dimensions d = 32 j + 8 (lane % 4) …; the products
 * see the dimensions in the order in which they lie in the lanes, queries likewise. movmatrix turns
 * values. Old keys are asked for before griddepcontrol.wait. Splits of a (row, head) are a cluster
 * and meet in shared memory; between clusters, or before 9.0, the last split to arrive adds them up
 * in their order. Bytes: keys and values of the context once.
 *
 * Measured on an H100 beside Llama 8B's projections (us a layer above an empty kernel, 513 keys):
 * 8.6 for one row and 37.9 for 32. For one, clusters save 2.8 to the last split's adding up. 8
 * warps a CTA where there are more CTAs than multiprocessors cost 7 at 32 rows; tiles further ahead
 * to L2 cost 0.5 and 10.
 */
#include "kernels/cuda/attention_row.cuh"

using namespace lora;

namespace
{

constexpr int KEYS = 16;

__device__ __forceinline__ uint32_t turned(uint32_t v)
{
    uint32_t to;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(to) : "r"(v));
    return to;
}

__device__ __forceinline__ uint32_t word(const uint4 &v, int i)
{
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* One of WARPS warps' part: HD head dimensions at most, NG groups of 8 heads. */
template <int HD, int NG, int WARPS> struct Warp {
    const cu_attention &a;
    const cu_sequence s;
    uint32_t kv_head, hd, n_keys, first_key;
    int lane;
    uint4 k[HD / 32][2], v[HD / 32][2]; // keys lane / 4 and + 8 of the tile
    uint4 q[HD / 32][NG];
    float o[HD / 16][NG][4];
    float max[NG][2], sum[NG][2];

    __device__ Warp(const cu_attention &a_, const cu_sequence &s_, uint32_t kv_head_)
        : a(a_), s(s_), kv_head(kv_head_)
    {
        lane = threadIdx.x % 32;
        hd = a.heads.head_dim;
        n_keys = s.position0 + 1;
        first_key = a.heads.window && n_keys > a.heads.window ? n_keys - a.heads.window : 0;
#pragma unroll
        for (int g = 0; g < NG; g++) {
            max[g][0] = max[g][1] = -INFINITY;
            sum[g][0] = sum[g][1] = 0;
#pragma unroll
            for (int d = 0; d < HD / 16; d++)
                o[d][g][0] = o[d][g][1] = o[d][g][2] = o[d][g][3] = 0;
        }
    }

    /* Where this lane's part of the tile's keys lies. */
    __device__ void locate(uint32_t tile, const uint8_t *at[2]) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t position = min(tile * KEYS + lane / 4 + h * 8, n_keys - 1);
            at[h] =
                a.pages.pool + key_offset(a.pages, a.heads, s, kv_head, position) + lane % 4 * 16;
        }
    }

    __device__ void load_rows(uint4 to[HD / 32][2], const uint8_t *const at[2], uint64_t further)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int d = 0; d < HD / 32; d++)
                to[d][h] = d * 32 + lane % 4 * 8 < (int)hd
                               ? load_stream_16(at[h] + further + d * 64)
                               : make_uint4(0, 0, 0, 0);
        }
    }

    __device__ void load_keys(const uint8_t *const at[2])
    {
        load_rows(k, at, 0);
    }

    __device__ void load_values(const uint8_t *const at[2])
    {
        load_rows(v, at, value_distance(a.pages, a.heads));
    }

    /* The tile's keys and values to L2, but for the newest, which may not be there yet: where
     * registers have no place for values before the wait. */
    __device__ void prefetch(uint32_t tile) const
    {
        uint32_t position = tile * KEYS + lane / 2;
        if (position + 1 >= n_keys)
            return;
        const uint8_t *at = a.pages.pool + key_offset(a.pages, a.heads, s, kv_head, position);
        uint64_t values = value_distance(a.pages, a.heads);
        for (uint32_t i = lane % 2 * 128; i < hd * 2; i += 256) {
            prefetch_line(at + i);
            prefetch_line(at + values + i);
        }
    }

    /* The row's own key and value, which may not be in the pages yet: shared [2][hd]. Places beyond
     * it get them too: nothing that was never written is multiplied, even by 0. */
    __device__ void take_newest(uint32_t tile, const bf16 *from)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            if (tile * KEYS + lane / 4 + h * 8 + 1 < n_keys)
                continue;
#pragma unroll
            for (int d = 0; d < HD / 32; d++) {
                if (d * 32 + lane % 4 * 8 >= (int)hd)
                    continue;
                k[d][h] = *(const uint4 *)(from + d * 32 + lane % 4 * 8);
                v[d][h] = *(const uint4 *)(from + hd + d * 32 + lane % 4 * 8);
            }
        }
    }

    /* Queries in shared memory, bf16 [heads][hd]. */
    __device__ void load_query(const bf16 *from, uint32_t group)
    {
#pragma unroll
        for (int g = 0; g < NG; g++) {
            uint32_t head = g * 8 + lane / 4;
#pragma unroll
            for (int d = 0; d < HD / 32; d++)
                q[d][g] = head < group && d * 32 + lane % 4 * 8 < (int)hd
                              ? *(const uint4 *)(from + head * hd + d * 32 + lane % 4 * 8)
                              : make_uint4(0, 0, 0, 0);
        }
    }

    /* Sums in CHAINS parts: MMAs that wait for each other would take half of a tile's time. */
    __device__ void scores(float p[NG][4]) const
    {
        constexpr int CHAINS = NG == 1 ? 4 : 2;
        float part[CHAINS][NG][4];
#pragma unroll
        for (int c = 0; c < CHAINS; c++) {
#pragma unroll
            for (int g = 0; g < NG; g++)
                part[c][g][0] = part[c][g][1] = part[c][g][2] = part[c][g][3] = 0;
        }
#pragma unroll
        for (int d = 0; d < HD / 32; d++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t w[4] = {word(k[d][0], 2 * h), word(k[d][1], 2 * h),
                                 word(k[d][0], 2 * h + 1), word(k[d][1], 2 * h + 1)};
#pragma unroll
                for (int g = 0; g < NG; g++) {
                    uint32_t b[2] = {word(q[d][g], 2 * h), word(q[d][g], 2 * h + 1)};
                    mma_16816(part[(2 * d + h) % CHAINS][g], w, b);
                }
            }
        }
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                p[g][i] = part[0][g][i] + part[1][g][i];
                if (CHAINS == 4)
                    p[g][i] += part[CHAINS - 2][g][i] + part[CHAINS - 1][g][i];
            }
        }
    }

    /* Turns scores into weights against the running maximum. */
    __device__ void soften(uint32_t tile, float p[NG][4])
    {
        const float log2e = 1.4426950408889634f;
        uint32_t key = tile * KEYS + lane / 4;
#pragma unroll
        for (int g = 0; g < NG; g++) {
            float scale[2];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t at = key + (i >> 1) * 8;
                p[g][i] = soft_cap(p[g][i] * a.heads.scale, a.heads.softcap) * log2e;
                if (at < first_key || at >= n_keys)
                    p[g][i] = -INFINITY;
            }
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float m = fmaxf(p[g][c], p[g][c + 2]);
                for (int i = 4; i < 32; i <<= 1)
                    m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, i));
                m = fmaxf(m, max[g][c]);
                float safe = m == -INFINITY ? 0.f : m;
                scale[c] = exp2f(max[g][c] - safe);
                max[g][c] = m;
                p[g][c] = exp2f(p[g][c] - safe);
                p[g][c + 2] = exp2f(p[g][c + 2] - safe);
                sum[g][c] = sum[g][c] * scale[c] + p[g][c] + p[g][c + 2];
            }
#pragma unroll
            for (int d = 0; d < HD / 16; d++) {
                o[d][g][0] *= scale[0];
                o[d][g][1] *= scale[1];
                o[d][g][2] *= scale[0];
                o[d][g][3] *= scale[1];
            }
        }
    }

    __device__ void add_values(float p[NG][4])
    {
        uint32_t w[NG][2];
#pragma unroll
        for (int g = 0; g < NG; g++) {
            w[g][0] = turned(pack_bf16(p[g][0], p[g][1]));
            w[g][1] = turned(pack_bf16(p[g][2], p[g][3]));
        }
#pragma unroll
        for (int d = 0; d < HD / 32; d++) {
#pragma unroll
            for (int m = 0; m < 2; m++) {
                uint32_t t[4] = {turned(word(v[d][0], 2 * m)), turned(word(v[d][0], 2 * m + 1)),
                                 turned(word(v[d][1], 2 * m)), turned(word(v[d][1], 2 * m + 1))};
#pragma unroll
                for (int g = 0; g < NG; g++)
                    mma_16816(o[2 * d + m][g], t, w[g]);
            }
        }
    }

    /* Dimension of o[2 d + m][.][i]. */
    __device__ uint32_t dimension(int dm, int i) const
    {
        uint32_t g = lane / 4;
        return dm / 2 * 32 + g / 2 * 8 + dm % 2 * 4 + (i >> 1) * 2 + g % 2;
    }

    /* Tiles begin, begin + WARPS, … below end; the first one's keys and values are on their way.
     * own: the row's key and value, or NULL where the pages have them. */
    __device__ void run(uint32_t begin, uint32_t end, const bf16 *own)
    {
        for (uint32_t tile = begin; tile < end; tile += WARPS) {
            float p[NG][4];
            uint32_t next = tile + WARPS;
            const uint8_t *at[2];
            if (next < end)
                locate(next, at);
            if (own && (tile + 1) * KEYS >= n_keys)
                take_newest(tile, own);
            scores(p);
            if (next < end)
                load_keys(at);
            soften(tile, p);
            add_values(p);
            if (next < end)
                load_values(at);
        }
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                for (int i = 4; i < 32; i <<= 1)
                    sum[g][c] += __shfl_xor_sync(0xffffffffu, sum[g][c], i);
            }
        }
    }

    /* part: [heads][hd + 2] of this warp: unnormalised o, maximum, sum. */
    __device__ void leave(float *part, uint32_t group) const
    {
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                uint32_t head = g * 8 + lane % 4 * 2 + c;
                if (head >= group)
                    continue;
                float *to = part + head * (hd + 2);
#pragma unroll
                for (int dm = 0; dm < HD / 16; dm++) {
                    uint32_t d0 = dimension(dm, 0), d1 = dimension(dm, 2);
                    if (d0 < hd)
                        to[d0] = o[dm][g][c];
                    if (d1 < hd)
                        to[d1] = o[dm][g][c + 2];
                }
                if (lane / 4 == 0) {
                    to[hd] = max[g][c];
                    to[hd + 1] = sum[g][c];
                }
            }
        }
    }
};

/* The sum of n parts [heads][hd + 2], `stride` floats apart, at (head, d). */
template <bool GLOBAL>
__device__ __forceinline__ void add_parts(const float *p, size_t stride, uint32_t n, uint32_t hd,
                                          uint32_t d, float *out_o, float *out_m, float *out_sum)
{
    float m = -INFINITY, sum = 0, o = 0;
    for (uint32_t s0 = 0; s0 < n; s0 += 8) { // all loads of eight parts at once
        float pm[8], ps[8], po[8], top = m;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float *at = p + (s0 + k) * stride;
            bool in = s0 + k < n;
            pm[k] = !in ? -INFINITY : GLOBAL ? __ldcg(at + hd) : at[hd];
            ps[k] = !in ? 0.f : GLOBAL ? __ldcg(at + hd + 1) : at[hd + 1];
            po[k] = !in ? 0.f : GLOBAL ? __ldcg(at + d) : at[d];
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
            top = fmaxf(top, pm[k]);
        float f = m == -INFINITY ? 0.f : exp2f(m - top);
        sum *= f;
        o *= f;
        m = top;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            f = pm[k] == -INFINITY ? 0.f : exp2f(pm[k] - m);
            sum += ps[k] * f;
            o += po[k] * f;
        }
    }
    *out_o = o;
    *out_m = m;
    *out_sum = sum;
}

/* The splits of a (row, head) are CTAs of one cluster: each sends the sums of its warps to those
 * that own the outputs, n_active-ths of them. got: [n_active][own outputs, maxima and sums of
 * heads]. */
template <int WARPS>
__device__ void finish_cluster(const cu_attention &a, uint32_t row, uint32_t kv_head,
                               uint32_t split, uint32_t n_active, const float *part, float *got,
                               uint32_t group)
{
    uint32_t hd = a.heads.head_dim, width = group * (hd + 2), n_out = group * hd;
    uint32_t own = (n_out + n_active - 1) / n_active, stride = own + 2 * group;
    uint32_t mine = shared_address(got + split * stride);
    cluster_wait(); // for all to have begun
    for (uint32_t i = threadIdx.x; i < n_out; i += WARPS * 32) {
        float o, m, sum;
        add_parts<false>(part + i / hd * (hd + 2), width, WARPS, hd, i % hd, &o, &m, &sum);
        store_to_cta(mine + i % own * 4, i / own, o);
    }
    for (uint32_t i = threadIdx.x; i < n_active * group; i += WARPS * 32) {
        float o, m, sum;
        uint32_t head = i % group, at = mine + (own + head * 2) * 4;
        add_parts<false>(part + head * (hd + 2), width, WARPS, hd, 0, &o, &m, &sum);
        store_to_cta(at, i / group, m);
        store_to_cta(at + 4, i / group, sum);
    }
    cluster_arrive();
    cluster_wait();
    bf16 *out = (bf16 *)a.out + ((size_t)row * a.heads.n_heads + kv_head * group) * hd;
    for (uint32_t j = threadIdx.x; j < own && split * own + j < n_out; j += WARPS * 32) {
        uint32_t i = split * own + j, head = i / hd;
        float m = -INFINITY, sum = 0, o = 0;
        for (uint32_t k = 0; k < n_active; k++)
            m = fmaxf(m, got[k * stride + own + head * 2]);
        for (uint32_t k = 0; k < n_active; k++) {
            const float *from = got + k * stride;
            float f = exp2f(from[own + head * 2] - m);
            sum += from[own + head * 2 + 1] * f;
            o += from[j] * f;
        }
        out[i] = __float2bfloat16(o / sum);
    }
}

/* Adds the warps' parts; alone, that is the result, else the last CTA to come adds the splits. */
template <int WARPS>
__device__ void finish_splits(const cu_attention &a, uint32_t row, uint32_t kv_head, uint32_t split,
                              uint32_t n_active, const float *part, uint32_t group)
{
    __shared__ bool is_last;
    uint32_t hd = a.heads.head_dim, width = group * (hd + 2), head0 = kv_head * group;
    size_t pair = (size_t)row * a.heads.n_kv_heads + kv_head;
    float *all = a.partial + pair * a.n_split * width;
    bf16 *out = (bf16 *)a.out + ((size_t)row * a.heads.n_heads + head0) * hd;
    for (uint32_t i = threadIdx.x; i < group * hd; i += WARPS * 32) {
        uint32_t head = i / hd, d = i % hd;
        float o, m, sum;
        add_parts<false>(part + head * (hd + 2), width, WARPS, hd, d, &o, &m, &sum);
        if (n_active == 1) {
            out[i] = __float2bfloat16(o / sum);
            continue;
        }
        float *to = all + split * width + head * (hd + 2);
        to[d] = o;
        if (d == 0) {
            to[hd] = m;
            to[hd + 1] = sum;
        }
    }
    if (n_active == 1)
        return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0)
        is_last = atomicAdd(&a.arrived[pair], 1u) + 1 == n_active;
    __syncthreads();
    if (!is_last)
        return;
    __threadfence();
    for (uint32_t i = threadIdx.x; i < group * hd; i += WARPS * 32) {
        float o, m, sum;
        add_parts<true>(all + i / hd * (hd + 2), width, n_active, hd, i % hd, &o, &m, &sum);
        out[i] = __float2bfloat16(o / sum);
    }
    if (threadIdx.x == 0)
        a.arrived[pair] = 0;
}

/* Two CTAs of four warps of Llama's shape, or one of eight, fit beside one of gemm_small. */
template <int HD, int NG> constexpr int registers = HD > 128 ? 255 : HD *NG > 128 ? 232 : 168;

/* How the tiles of a context are shared out: `per` of them a CTA, n_active CTAs. */
struct Splits {
    uint32_t per, n_active;
    bool clustered;

    __device__ Splits(const DecodeArgs &g, uint32_t n_tiles, uint32_t warps)
    {
        uint32_t n = g.a.n_split;
        if (g.cluster > 1 && n_tiles <= 2 * warps * g.cluster)
            n = g.cluster; // adding up is dearer between clusters than a second tile
        per = max((n_tiles + n - 1) / n, warps);
        n_active = (n_tiles + per - 1) / per;
        clustered = n_active > 1 && n_active <= g.cluster;
    }
};

template <int HD, int NG, int KINDS, int WARPS>
__global__ void __maxnreg__((registers<HD, NG>)) decode_kernel(const DecodeArgs g)
{
    extern __shared__ __align__(128) uint8_t smem[];
    pdl_launch_dependents();
    const cu_attention &a = g.a;
    uint32_t kv_head = blockIdx.x, row = blockIdx.y, split = blockIdx.z;
    if (row >= *g.n_decode_rows)
        return;
    const cu_sequence s = g.r.sequences[g.r.sequence[row]];
    uint32_t group = a.heads.n_heads / a.heads.n_kv_heads;
    int warp = threadIdx.x / 32;
    Warp<HD, NG, WARPS> w(a, s, kv_head);
    uint32_t tile0 = w.first_key / KEYS, n_tiles = (w.n_keys + KEYS - 1) / KEYS - tile0;
    const Splits splits(g, n_tiles, WARPS);
    if (split >= splits.n_active)
        return;
    if (splits.clustered)
        cluster_arrive();
    uint32_t begin = tile0 + split * splits.per + warp;
    uint32_t end = tile0 + min((split + 1) * splits.per, n_tiles);
    bool late = split + 1 == splits.n_active;
    const uint8_t *at[2];
    if (begin < end) {
        w.locate(begin, at);
        w.load_keys(at);
        if (KINDS == 0)
            w.load_values(at);
        if (KINDS != 0)
            w.prefetch(begin);
    }
    AttentionRow<HD, NG, KINDS, WARPS> head(g, row, kv_head, late, smem);
    head.prepare(s);
    pdl_wait();
    bool given = !g.e.y && !g.e.y16;
    float r = 1;
    if (!given)
        r = head.complete();
    if (KINDS != 0 && begin < end) // their registers had B
        w.load_values(at);
    if (given)
        head.take_given();
    else
        head.rotate(r);
    w.load_query(head.q, group);
    w.run(begin, end, late && !given ? head.q + group * a.heads.head_dim : nullptr);
    __syncthreads();
    float *part = (float *)smem;
    w.leave(part + warp * group * (a.heads.head_dim + 2), group);
    __syncthreads();
    if (splits.clustered)
        finish_cluster<WARPS>(a, row, kv_head, split, splits.n_active, part,
                              part + WARPS * group * (a.heads.head_dim + 2), group);
    else
        finish_splits<WARPS>(a, row, kv_head, split, splits.n_active, part, group);
}

/* What others send must not fall on what a CTA still reads: it lies behind the parts, which are
 * the larger. */
template <int HD, int NG, int KINDS, int WARPS>
int launch(DecodeArgs g, uint32_t bound, cudaStream_t stream)
{
    uint32_t hd = g.a.heads.head_dim, group = g.a.heads.n_heads / g.a.heads.n_kv_heads;
    uint32_t inputs = (group + 2) * hd * 6 + ATTENTION_COLUMNS * 4 + hd * 4;
    uint32_t parts = WARPS * group * (hd + 2) * 4, sent = 0;
    g.cluster = 1;
    if (g.a.n_split > 1 && cluster_supported()) {
        while (g.cluster < 8 && g.cluster * 2 <= g.a.n_split)
            g.cluster *= 2;
        g.a.n_split = g.a.n_split / g.cluster * g.cluster;
        sent = (group * hd + 8 + 8 * 2 * group) * 4;
    }
    uint32_t bytes = (inputs > parts ? inputs : parts) + sent;
    static Allowed allowed;
    cudaError_t e = allow_shared(decode_kernel<HD, NG, KINDS, WARPS>, 64 << 10, allowed);
    if (e != cudaSuccess)
        return e;
    dim3 grid(g.a.heads.n_kv_heads, bound, g.a.n_split);
    return launch_pdl_cluster(decode_kernel<HD, NG, KINDS, WARPS>, grid, dim3(WARPS * 32), bytes,
                              stream, dim3(1, 1, g.cluster), g);
}

template <int HD, int NG, int WARPS>
int launch_kinds(const DecodeArgs &g, uint32_t bound, cudaStream_t stream)
{
    if (g.e.kinds == 0)
        return launch<HD, NG, 0, WARPS>(g, bound, stream);
    return g.e.kinds == 1 ? launch<HD, NG, 1, WARPS>(g, bound, stream)
                          : launch<HD, NG, 2, WARPS>(g, bound, stream);
}

/* Eight warps where a CTA a multiprocessor is enough, else four: two CTAs go on one. */
template <int HD> int launch_warps(const DecodeArgs &g, uint32_t bound, cudaStream_t stream)
{
    if (g.a.heads.n_kv_heads * bound * g.a.n_split <= g.a.n_sms)
        return launch_kinds<HD, 1, 8>(g, bound, stream);
    return launch_kinds<HD, 1, 4>(g, bound, stream);
}

} // namespace

extern "C" int cu_attention_decode(const struct cu_attention *a, const struct cu_expand *qkv,
                                   const struct cu_rows *r, const uint32_t *n_decode_rows,
                                   uint32_t bound, cudaStream_t stream)
{
    uint32_t hd = a->heads.head_dim, group = a->heads.n_heads / a->heads.n_kv_heads;
    DecodeArgs g = {*a, *qkv, *r, n_decode_rows, 1};
    if (hd <= 64)
        return group <= 8 ? launch_warps<64>(g, bound, stream)
                          : launch_kinds<64, 2, 4>(g, bound, stream);
    if (hd <= 128)
        return group <= 8 ? launch_warps<128>(g, bound, stream)
                          : launch_kinds<128, 2, 4>(g, bound, stream);
    return launch_kinds<256, 1, 4>(g, bound, stream);
}
