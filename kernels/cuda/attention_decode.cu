/*
 * attention_decode: out = softmax(scale q K^T) V for rows that are one token of their sequence.
 *
 * A CTA has one (row, key/value head, split of the context) and all query heads that share the
 * head: a key is read once for them. Keys stand on the MMA's M side (16), heads on its N side (8):
 *     S^T[16 keys, heads] = K Q^T,   O^T[head_dim, heads] += V^T P^T
 * Each of the 4 warps streams its own tiles of 16 keys through its own ring; the sums meet at the
 * end, the splits in the combine kernel. Old keys are fetched before griddepcontrol.wait. Bytes:
 * keys and values of the context once.
 */
#include "kernels/cuda/attention.cuh"

using namespace lora;

namespace
{

constexpr int WARPS = 4, THREADS = WARPS * 32, STAGES = 3, KEYS = 16;

template <int HD> constexpr int ring_bytes = WARPS *STAGES * 2 * KEYS *HD * 2;

template <int HD, int NG> struct Warp {
    const cu_attention &a;
    const cu_sequence s;
    uint32_t kv_head, hd, n_keys, first_key;
    uint32_t ring;
    int lane;
    uint32_t q[HD / 16][NG][2];
    float o[HD / 16][NG][4];
    float max[NG][2], sum[NG][2];

    __device__ Warp(const cu_attention &a_, const cu_sequence &s_, uint32_t kv_head_,
                    uint32_t ring_)
        : a(a_), s(s_), kv_head(kv_head_), ring(ring_)
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

    __device__ uint32_t stage(uint32_t i) const
    {
        return ring + i % STAGES * (2 * KEYS * HD * 2);
    }

    __device__ void load(uint32_t i, uint32_t tile)
    {
        uint32_t position = min(tile * KEYS + lane % KEYS, n_keys - 1);
        uint64_t offset = key_offset(a.pages, a.heads, s, kv_head, position);
        uint64_t values = value_distance(a.pages, a.heads);
        uint32_t pieces = hd / 8, base = stage(i);
        for (uint32_t p = lane; p < KEYS * pieces; p += 32) {
            uint32_t r = p / pieces, c = p % pieces;
            uint64_t from = __shfl_sync(__activemask(), offset, r) + c * 16;
            cp_async_16(tile_address<HD>(base, r, c), a.pages.pool + from, 16);
            cp_async_16(tile_address<HD>(base + KEYS * HD * 2, r, c), a.pages.pool + from + values,
                        16);
        }
    }

    __device__ void load_query(uint32_t row, uint32_t group)
    {
        const bf16 *from =
            (const bf16 *)a.q + ((size_t)row * a.heads.n_heads + kv_head * group) * hd;
#pragma unroll
        for (int g = 0; g < NG; g++) {
            uint32_t head = g * 8 + lane / 4;
#pragma unroll
            for (int d = 0; d < HD / 16; d++) {
                const uint32_t *v =
                    (const uint32_t *)(from + (size_t)head * hd + d * 16) + lane % 4;
                bool in = head < group && d * 16 < (int)hd;
                q[d][g][0] = in ? v[0] : 0;
                q[d][g][1] = in ? v[4] : 0;
            }
        }
    }

    __device__ void scores(uint32_t base, float p[NG][4]) const
    {
#pragma unroll
        for (int g = 0; g < NG; g++)
            p[g][0] = p[g][1] = p[g][2] = p[g][3] = 0;
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            if (d * 16 >= (int)hd)
                break;
            uint32_t k[4];
            ldmatrix_x4(k, tile_address<HD>(base, lane & 15, d * 2 + (lane >> 4)));
#pragma unroll
            for (int g = 0; g < NG; g++)
                mma_16816(p[g], k, q[d][g]);
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

    __device__ void add_values(uint32_t base, float p[NG][4])
    {
        uint32_t w[NG][2];
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t v = pack_bf16(p[g][2 * i], p[g][2 * i + 1]);
                asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;"
                             : "=r"(w[g][i])
                             : "r"(v));
            }
        }
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            if (d * 16 >= (int)hd)
                break;
            uint32_t v[4]; // V^T: rows are dimensions; matrices (d lo, k lo), (d hi, k lo), (d lo,
                           // k hi), …
            ldmatrix_x4_trans(
                v, tile_address<HD>(base, (lane >> 4) * 8 + (lane & 7), d * 2 + ((lane >> 3) & 1)));
#pragma unroll
            for (int g = 0; g < NG; g++)
                mma_16816(o[d][g], v, w[g]);
        }
    }

    /* Tiles begin, begin + WARPS, … below end; the first STAGES - 1 are in flight. */
    __device__ void run(uint32_t begin, uint32_t end)
    {
        uint32_t i = 0;
        for (uint32_t tile = begin; tile < end; tile += WARPS, i++) {
            cp_async_wait<STAGES - 2>();
            __syncwarp();
            uint32_t ahead = tile + (STAGES - 1) * WARPS;
            if (ahead < end)
                load(i + STAGES - 1, ahead);
            cp_async_commit();
            float p[NG][4];
            scores(stage(i), p);
            soften(tile, p);
            add_values(stage(i) + KEYS * HD * 2, p);
            __syncwarp();
        }
#pragma unroll
        for (int g = 0; g < NG; g++) {
#pragma unroll
            for (int c = 0; c < 2; c++) {
                for (int k = 4; k < 32; k <<= 1)
                    sum[g][c] += __shfl_xor_sync(0xffffffffu, sum[g][c], k);
            }
        }
        cp_async_wait<0>();
    }
};

/* part: [WARPS][heads][hd + 2]: the warps' sums, in the ring's memory. */
template <int HD, int NG> __device__ void leave(const Warp<HD, NG> &w, float *part, uint32_t hd)
{
    int lane = w.lane;
#pragma unroll
    for (int g = 0; g < NG; g++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float *to = part + (g * 8 + lane % 4 * 2 + c) * (HD + 2);
#pragma unroll
            for (int d = 0; d < HD / 16; d++) {
                to[d * 16 + lane / 4] = w.o[d][g][c];
                to[d * 16 + lane / 4 + 8] = w.o[d][g][c + 2];
            }
            if (lane / 4 == 0) {
                to[HD] = w.max[g][c];
                to[HD + 1] = w.sum[g][c];
            }
        }
    }
}

template <int HD, int NG>
__global__ void __launch_bounds__(THREADS)
    decode_kernel(const cu_attention a, const cu_rows r, const uint32_t *n_decode_rows)
{
    extern __shared__ __align__(128) uint8_t smem[];
    pdl_launch_dependents();
    uint32_t kv_head = blockIdx.x, row = blockIdx.y, split = blockIdx.z;
    if (row >= *n_decode_rows)
        return;
    uint32_t hd = a.heads.head_dim, group = a.heads.n_heads / a.heads.n_kv_heads;
    int warp = threadIdx.x / 32;
    Warp<HD, NG> w(a, r.sequences[r.sequence[row]], kv_head,
                   shared_address(smem) + warp * STAGES * (2 * KEYS * HD * 2));
    uint32_t tile0 = w.first_key / KEYS, n_tiles = (w.n_keys + KEYS - 1) / KEYS - tile0;
    uint32_t per = (n_tiles + a.n_split - 1) / a.n_split;
    uint32_t begin = tile0 + min(split * per, n_tiles) + warp;
    uint32_t end = tile0 + min((split + 1) * per, n_tiles);
    bool late = end == tile0 + n_tiles; // the newest key is in this split
    if (!late) {
        for (int i = 0; i < STAGES - 1; i++) {
            if (begin + i * WARPS < end)
                w.load(i, begin + i * WARPS);
            cp_async_commit();
        }
    }
    pdl_wait();
    if (late) {
        for (int i = 0; i < STAGES - 1; i++) {
            if (begin + i * WARPS < end)
                w.load(i, begin + i * WARPS);
            cp_async_commit();
        }
    }
    w.load_query(row, group);
    w.run(begin, end);
    __syncthreads();
    float *part = (float *)smem;
    leave<HD, NG>(w, part + warp * NG * 8 * (HD + 2), hd);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < group * hd; i += THREADS) {
        uint32_t head = i / hd, d = i % hd;
        float m = -INFINITY, sum = 0, o = 0;
        for (int k = 0; k < WARPS; k++)
            m = fmaxf(m, part[(k * NG * 8 + head) * (HD + 2) + HD]);
        for (int k = 0; k < WARPS; k++) {
            const float *p = part + (k * NG * 8 + head) * (HD + 2);
            float f = p[HD] == -INFINITY ? 0.f : exp2f(p[HD] - m);
            sum += p[HD + 1] * f;
            o += p[d] * f;
        }
        uint32_t global_head = kv_head * group + head;
        if (a.n_split == 1) {
            ((bf16 *)a.out)[((size_t)row * a.heads.n_heads + global_head) * hd + d] =
                __float2bfloat16(o / sum);
            continue;
        }
        float *to = a.partial +
                    (((size_t)split * gridDim.y + row) * a.heads.n_heads + global_head) * (hd + 2);
        to[d] = o;
        if (d == 0) {
            to[hd] = m;
            to[hd + 1] = sum;
        }
    }
}

__global__ void combine_kernel(const cu_attention a, const uint32_t *n_decode_rows)
{
    pdl_launch_dependents();
    pdl_wait();
    uint32_t head = blockIdx.x, row = blockIdx.y, hd = a.heads.head_dim;
    if (row >= *n_decode_rows)
        return;
    size_t stride = (size_t)gridDim.y * a.heads.n_heads * (hd + 2);
    const float *p = a.partial + ((size_t)row * a.heads.n_heads + head) * (hd + 2);
    // All loads of up to eight splits at once, with a running maximum over the groups.
    for (uint32_t d = threadIdx.x; d < hd; d += blockDim.x) {
        float m = -INFINITY, sum = 0, o = 0;
        for (uint32_t s0 = 0; s0 < a.n_split; s0 += 8) {
            float pm[8], ps[8], po[8], top = m;
#pragma unroll
            for (int k = 0; k < 8; k++) {
                const float *q = p + (s0 + k) * stride;
                bool in = s0 + k < a.n_split;
                pm[k] = in ? __ldcg(q + hd) : -INFINITY;
                ps[k] = in ? __ldcg(q + hd + 1) : 0.f;
                po[k] = in ? __ldcg(q + d) : 0.f;
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
        ((bf16 *)a.out)[((size_t)row * a.heads.n_heads + head) * hd + d] =
            __float2bfloat16(o / sum);
    }
}

template <int HD, int NG>
int launch(const cu_attention *a, const cu_rows *r, const uint32_t *n_decode_rows, uint32_t bound,
           cudaStream_t stream)
{
    constexpr int BYTES = ring_bytes < HD >> WARPS * NG * 8 * (HD + 2) * 4
                              ? ring_bytes<HD>
                              : WARPS * NG * 8 * (HD + 2) * 4;
    static bool ready[16];
    cudaError_t e = allow_shared(decode_kernel<HD, NG>, BYTES, ready);
    if (e != cudaSuccess)
        return e;
    dim3 grid(a->heads.n_kv_heads, bound, a->n_split);
    e = launch_pdl(decode_kernel<HD, NG>, grid, dim3(THREADS), BYTES, stream, *a, *r,
                   n_decode_rows);
    if (e != cudaSuccess || a->n_split == 1)
        return e;
    return launch_pdl(combine_kernel, dim3(a->heads.n_heads, bound), dim3(128), 0, stream, *a,
                      n_decode_rows);
}

} // namespace

extern "C" int cu_attention_decode(const struct cu_attention *a, const struct cu_rows *r,
                                   const uint32_t *n_decode_rows, uint32_t bound,
                                   cudaStream_t stream)
{
    uint32_t hd = a->heads.head_dim, group = a->heads.n_heads / a->heads.n_kv_heads;
    if (hd <= 64)
        return group <= 8 ? launch<64, 1>(a, r, n_decode_rows, bound, stream)
                          : launch<64, 2>(a, r, n_decode_rows, bound, stream);
    if (hd <= 128)
        return group <= 8 ? launch<128, 1>(a, r, n_decode_rows, bound, stream)
                          : launch<128, 2>(a, r, n_decode_rows, bound, stream);
    return launch<256, 1>(a, r, n_decode_rows, bound, stream);
}
