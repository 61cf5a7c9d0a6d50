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
#include "kernels/cuda/packed.cuh"

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

/* What the warps of a CTA leave in shared memory. */
struct Parts {
    float *o;      // [WARPS][heads][hd], to be divided by the sums
    float *maxima; // [WARPS][8 NG]
    float *sums;   // [WARPS][8 NG]
    float *top;    // [8 NG]: largest of the maxima

    __device__ Parts(uint8_t *smem, uint32_t warps, uint32_t n_out, uint32_t heads)
        : o((float *)smem), maxima(o + warps * n_out), sums(maxima + warps * heads),
          top(sums + warps * heads)
    {
    }
    static constexpr uint32_t floats(uint32_t warps, uint32_t n_out, uint32_t heads)
    {
        return warps * (n_out + 2 * heads) + heads;
    }
};

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
#pragma unroll 1
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
                scale[c] = exp2_approx(max[g][c] - safe);
                max[g][c] = m;
                p[g][c] = exp2_approx(p[g][c] - safe);
                p[g][c + 2] = exp2_approx(p[g][c + 2] - safe);
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
#pragma unroll 1
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

    /* o and sums to shared memory, scaled to the largest maximum of the warps. By all threads. */
    __device__ void leave(const Parts &to, uint32_t group)
    {
        uint32_t warp = threadIdx.x / 32;
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                if (lane / 4 == 0)
                    to.maxima[warp * NG * 8 + g * 8 + lane % 4 * 2 + c] = max[g][c];
            }
        }
        __syncthreads();
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                uint32_t head = g * 8 + lane % 4 * 2 + c;
                float top = to.maxima[head], f;
#pragma unroll
                for (int w = 1; w < WARPS; w++)
                    top = fmaxf(top, to.maxima[w * NG * 8 + head]);
                f = max[g][c] == -INFINITY ? 0.f : exp2_approx(max[g][c] - top);
                if (lane / 4 == 0)
                    to.sums[warp * NG * 8 + head] = sum[g][c] * f;
                if (warp == 0 && lane / 4 == 0)
                    to.top[head] = top;
                float *at = to.o + (warp * group + head) * hd;
#pragma unroll
                for (int dm = 0; dm < HD / 16; dm++) {
                    uint32_t d0 = dimension(dm, 0), d1 = dimension(dm, 2);
                    if (head < group && d0 < hd)
                        at[d0] = o[dm][g][c] * f;
                    if (head < group && d1 < hd)
                        at[d1] = o[dm][g][c + 2] * f;
                }
            }
        }
        __syncthreads();
    }
};

/* What a (row, head) comes to in this CTA, and the other splits of its cluster. */
template <int NG, int WARPS> struct Finish {
    static constexpr int THREADS = WARPS * 32, HEADS = NG * 8;
    const DecodeArgs &g;
    const Parts &part;
    uint32_t row, kv_head, group, hd, n_out;
    bf16 *out;

    __device__ Finish(const DecodeArgs &g_, const Parts &part_, uint32_t row_, uint32_t kv_head_,
                      uint32_t group_)
        : g(g_), part(part_), row(row_), kv_head(kv_head_), group(group_), hd(g_.a.heads.head_dim),
          n_out(group_ * hd)
    {
        out = (bf16 *)g.a.out + ((size_t)row * g.a.heads.n_heads + kv_head * group) * hd;
    }

    __device__ uint32_t head_of(uint32_t i) const
    {
        return __umulhi(i, g.hd_inverse);
    }
    /* Over the warps, whose parts lie `stride` apart. */
    __device__ static float sum_warps(const float *at, uint32_t stride)
    {
        float sum = at[0];
#pragma unroll
        for (int w = 1; w < WARPS; w++)
            sum += at[w * stride];
        return sum;
    }
    __device__ float o(uint32_t i) const
    {
        return sum_warps(part.o + i, n_out);
    }
    __device__ float weight(uint32_t head) const
    {
        return sum_warps(part.sums + head, HEADS);
    }

    __device__ void alone() const
    {
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n_out; i += THREADS)
            out[i] = __float2bfloat16(__fdividef(o(i), weight(head_of(i))));
    }

    /* Each CTA of the cluster sends its sums to those that own the outputs, a power of two each.
     * got: [n_active][own outputs, maxima and sums of heads]. */
    __device__ void in_cluster(uint32_t split, uint32_t n_active, float *got) const
    {
        uint32_t own = 1, shift = 0;
        for (; own * n_active < n_out; own *= 2)
            shift++;
        uint32_t stride = own + 2 * HEADS, mine = shared_address(got + split * stride);
        cluster_wait(); // for all to have begun
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n_out; i += THREADS)
            store_to_cta(mine + (i & (own - 1)) * 4, i >> shift, o(i));
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n_active * HEADS; i += THREADS) {
            uint32_t head = i % HEADS, at = mine + (own + head * 2) * 4;
            store_to_cta(at, i / HEADS, part.top[head]);
            store_to_cta(at + 4, i / HEADS, weight(head));
        }
        cluster_arrive();
        cluster_wait();
#pragma unroll 1
        for (uint32_t j = threadIdx.x; j < own && split * own + j < n_out; j += THREADS) {
            const float *of_head = got + own + head_of(split * own + j) * 2;
            float m = -INFINITY, sum = 0, v = 0;
#pragma unroll 4
            for (uint32_t k = 0; k < n_active; k++)
                m = fmaxf(m, of_head[k * stride]);
#pragma unroll 4
            for (uint32_t k = 0; k < n_active; k++) {
                float f = exp2_approx(of_head[k * stride] - m);
                sum += of_head[k * stride + 1] * f;
                v += got[k * stride + j] * f;
            }
            out[split * own + j] = __float2bfloat16(__fdividef(v, sum));
        }
    }

    /* Splits leave [heads][hd + 2]: o, maximum, sum; the last CTA to come adds them up. */
    __device__ void in_memory(uint32_t split, uint32_t n_active) const
    {
        __shared__ bool is_last;
        size_t pair = (size_t)row * g.a.heads.n_kv_heads + kv_head;
        uint32_t width = group * (hd + 2);
        float *all = g.a.partial + pair * g.a.n_split * width;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n_out; i += THREADS) {
            uint32_t head = head_of(i);
            float *to = all + split * width + head * 2;
            to[i] = o(i);
            if (i == head * hd) {
                to[i + hd] = part.top[head];
                to[i + hd + 1] = weight(head);
            }
        }
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0)
            is_last = atomicAdd(&g.a.arrived[pair], 1u) + 1 == n_active;
        __syncthreads();
        if (!is_last)
            return;
        __threadfence();
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n_out; i += THREADS) {
            uint32_t head = head_of(i);
            out[i] =
                __float2bfloat16(sum_of(all + head * (hd + 2), width, n_active, i - head * hd));
        }
        if (threadIdx.x == 0)
            g.a.arrived[pair] = 0;
    }

    /* Of n splits, `stride` floats apart, at dimension d of a head: eight at a time are asked for.
     */
    __device__ float sum_of(const float *p, size_t stride, uint32_t n, uint32_t d) const
    {
        float m = -INFINITY, sum = 0, v = 0;
#pragma unroll 1
        for (uint32_t s0 = 0; s0 < n; s0 += 8) {
            float pm[8], ps[8], po[8], top = m;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float *at = p + (s0 + k) * stride;
                bool in = s0 + k < n;
                pm[k] = in ? __ldcg(at + hd) : -INFINITY;
                ps[k] = in ? __ldcg(at + hd + 1) : 0.f;
                po[k] = in ? __ldcg(at + d) : 0.f;
            }
#pragma unroll
            for (int k = 0; k < 8; k++)
                top = fmaxf(top, pm[k]);
            float f = exp2_approx(m - top);
            sum *= f;
            v *= f;
            m = top;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                f = exp2_approx(pm[k] - m);
                sum += ps[k] * f;
                v += po[k] * f;
            }
        }
        return __fdividef(v, sum);
    }
};

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
    uint32_t n_out = group * a.heads.head_dim;
    const Parts part(smem, WARPS, n_out, NG * 8);
    w.leave(part, group);
    const Finish<NG, WARPS> finish(g, part, row, kv_head, group);
    if (splits.n_active == 1)
        finish.alone();
    else if (splits.clustered)
        finish.in_cluster(split, splits.n_active, (float *)(smem + g.got));
    else
        finish.in_memory(split, splits.n_active);
}

template <int HD, int NG, int KINDS, int WARPS>
int launch(DecodeArgs g, uint32_t bound, cudaStream_t stream)
{
    uint32_t hd = g.a.heads.head_dim, group = g.a.heads.n_heads / g.a.heads.n_kv_heads;
    uint32_t inputs = (group + 2) * hd * 6 + ATTENTION_COLUMNS * 4 + hd * 4;
    uint32_t parts = Parts::floats(WARPS, group * hd, NG * 8) * 4, sent = 0;
    g.cluster = 1;
    g.hd_inverse = (uint32_t)(((1ull << 32) + hd - 1) / hd);
    if (g.a.n_split > 1 && cluster_supported()) {
        while (g.cluster < 8 && g.cluster * 2 <= g.a.n_split)
            g.cluster *= 2;
        g.a.n_split = g.a.n_split / g.cluster * g.cluster;
        sent = (2 * group * hd + 8 * 2 * NG * 8) * 4;
    }
    g.got = inputs > parts ? inputs : parts; // others send while this CTA still reads either
    uint32_t bytes = g.got + sent;
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
    DecodeArgs g = {*a, *qkv, *r, n_decode_rows, 1, 0, 0};
    if (hd <= 64)
        return group <= 8 ? launch_warps<64>(g, bound, stream)
                          : launch_kinds<64, 2, 4>(g, bound, stream);
    if (hd <= 128)
        return group <= 8 ? launch_warps<128>(g, bound, stream)
                          : launch_kinds<128, 2, 4>(g, bound, stream);
    return launch_kinds<256, 1, 4>(g, bound, stream);
}
