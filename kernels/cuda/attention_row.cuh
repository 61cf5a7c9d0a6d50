/*
 * attention_row: what attention takes of one decoding row and one key/value head: the row's query
 * heads, its key and its value, completed from the qkv projection (planes, B v, biases, gains),
 * normed and rotated. Queries stay in shared memory, the key and the value go to the pages too.
 *
 * A chain of latencies: what the projection left (planes, v's planes, sums of squares) is asked for
 * at once, right after griddepcontrol.wait; all else before it, B in registers. B v is an MMA whose
 * columns 0 and 1 are v's upper and lower half, so that v counts with 16 bits of mantissa.
 */
#ifndef KERNELS_CUDA_ATTENTION_ROW_CUH
#define KERNELS_CUDA_ATTENTION_ROW_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/complete.cuh"
#include "kernels/cuda/norm.cuh"

namespace lora
{

constexpr uint32_t ATTENTION_COLUMNS = 256; // of v in shared memory at a time

struct DecodeArgs {
    cu_attention a;
    cu_expand e;
    cu_rows r;
    const uint32_t *n_decode_rows;
    uint32_t cluster;    // splits of a cluster; 1: no clusters
    uint32_t hd_inverse; // ceil(2^32 / head_dim)
    uint32_t got;        // where in shared memory lies what the other splits of a cluster send
};

/* The row's q heads, key and value of one kv head: completed, normed, rotated. */
template <int HD, int NG, int KINDS, int WARPS> struct AttentionRow {
    static constexpr int THREADS = WARPS * 32, PLANES = 4;
    static constexpr int PAIRS = ((NG * 8 + 2) * HD / 2 + THREADS - 1) / THREADS; // of a thread
    static constexpr int AT_ONCE = PAIRS < 3 ? PAIRS : 3; // pairs whose planes fly together
    static constexpr int TILES = 48 / WARPS;              // of a warp, whose B flies together
    static constexpr int COLUMNS_EACH = ATTENTION_COLUMNS / THREADS;
    static constexpr int TURNS = (HD + THREADS - 1) / THREADS;

    const DecodeArgs &g;
    uint32_t row, kv_head, group, hd, n_out; // n_out: outputs, without k and v unless `late`
    uint32_t q0, k0, v0; // local output 0, were it one of the projection's q, k and v
    bool late;
    float *y;    // shared [n_out]
    bf16 *q;     // shared [group + 2][hd]: queries, then the row's key and value
    float *vs;   // shared [ATTENTION_COLUMNS]
    float *trig; // shared [rotary_dim]: cosines, then sines
    bf16 *page;  // the row's key in its page
    Segments segments;
    CompleteItem item; // of lane: what a segment brings to this warp's tile `lane` of TILES
    uint32_t planes[PAIRS];
    uint32_t b[TILES][4]; // 16 rank columns of these tiles' B
    int tid, warp, lane;

    __device__ AttentionRow(const DecodeArgs &g_, uint32_t row_, uint32_t kv_head_, bool late_,
                            uint8_t *smem)
        : g(g_), row(row_), kv_head(kv_head_), late(late_), page(nullptr), segments{0, 0, 0}, item{}
    {
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
        hd = g.a.heads.head_dim;
        group = g.a.heads.n_heads / g.a.heads.n_kv_heads;
        n_out = (group + (late ? 2 : 0)) * hd;
        q0 = kv_head * group * hd;
        k0 = (g.a.heads.n_heads + kv_head - group) * hd;
        v0 = k0 + (g.a.heads.n_kv_heads - 1) * hd;
        y = (float *)smem;
        q = (bf16 *)(y + (group + 2) * hd);
        vs = (float *)(q + (group + 2) * hd);
        trig = vs + ATTENTION_COLUMNS;
    }

    /* Output of the qkv projection that local output i is. */
    __device__ uint32_t out_of(uint32_t i) const
    {
        return i + (i < group * hd ? q0 : i < (group + 1) * hd ? k0 : v0);
    }

    /* Local output of this thread's pair k. */
    __device__ uint32_t pair_at(int k) const
    {
        return (k * THREADS + tid) * 2;
    }

    /* ---- before the wait ---- */

    __device__ void prepare(const cu_sequence &s)
    {
        uint32_t shift = __ffs(g.e.block_rows) - 1;
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            uint32_t i = pair_at(k);
            planes[k] = i >= n_out ? 0 : g.e.planes ? g.e.planes[out_of(i) >> shift] : 1;
        }
        if (late)
            page = (bf16 *)(g.a.pages.pool +
                            key_offset(g.a.pages, g.a.heads, s, kv_head, s.position0));
        if (KINDS == 0)
            return;
        segments = find_segments(g.e, row, row + 1);
        if (!segments.width)
            return;
        take_items(segments.first, 0);
        load_b(0);
#pragma unroll 1
        for (uint32_t at = 512; at < (item.rank >> 16) * 32; at += 128)
            prefetch_line(item.b + at);
    }

    /* item: segment i at tiles j0, j0 + 1, … of this warp, in the lanes. */
    __device__ void take_items(uint32_t i, uint32_t j0)
    {
        uint32_t tile = warp + (j0 + lane) * WARPS;
        item = CompleteItem{};
        if (lane < TILES && tile * 16 < n_out)
            item = complete_item(g.e, i, out_of(tile * 16), row, row + 1);
    }

    /* 16 rank columns of B from k on, of all tiles in the lanes. Bit 0 of an address says whether
     * the upper eight are there; 0: nothing is. */
    __device__ void load_b(uint32_t k)
    {
        uint32_t rank8 = item.rank >> 16;
        unsigned long long mine = 0;
        if (k < rank8)
            mine = (unsigned long long)(item.b + k * 32) | (k + 8 < rank8);
#pragma unroll
        for (int s = 0; s < TILES; s++) {
            unsigned long long from = __shfl_sync(0xffffffffu, mine, s);
            const uint2 *at = (const uint2 *)(from & ~1ull) + lane;
            uint2 low = from ? __ldg(at) : make_uint2(0, 0);
            uint2 high = from & 1 ? __ldg(at + 32) : make_uint2(0, 0);
            b[s][0] = low.x;
            b[s][1] = low.y;
            b[s][2] = high.x;
            b[s][3] = high.y;
        }
    }

    /* ---- what the projection left ---- */

    /* Planes of pairs k, k + 1, …: all loads before the first use. */
    __device__ void load_base(int k, float2 v[AT_ONCE][PLANES]) const
    {
        size_t plane = (size_t)g.e.t * g.e.n;
#pragma unroll
        for (int s = 0; s < AT_ONCE; s++) {
            uint32_t n = k + s < PAIRS ? planes[k + s] : 0;
            const float *from = g.e.y + (size_t)row * g.e.n + out_of(pair_at(k + s));
#pragma unroll
            for (int p = 0; p < PLANES; p++)
                v[s][p] = (uint32_t)p < n ? __ldcg((const float2 *)(from + p * plane))
                                          : make_float2(0, 0);
        }
    }

    /* Their sums to y. */
    __device__ void share_base(int k, const float2 v[AT_ONCE][PLANES])
    {
#pragma unroll
        for (int s = 0; s < AT_ONCE; s++) {
            uint32_t i = pair_at(k + s);
            if (k + s >= PAIRS || i >= n_out)
                continue;
            float2 sum = v[s][0];
#pragma unroll
            for (int p = 1; p < PLANES; p++) {
                sum.x += v[s][p].x;
                sum.y += v[s][p].y;
            }
#pragma unroll 1
            for (uint32_t p = PLANES; p < planes[k + s]; p++) {
                size_t at = (p * (size_t)g.e.t + row) * g.e.n + out_of(i);
                float2 more = __ldcg((const float2 *)(g.e.y + at));
                sum.x += more.x;
                sum.y += more.y;
            }
            *(float2 *)(y + i) = sum;
        }
    }

    /* Where the projection is complete in bf16. */
    __device__ void share_whole()
    {
#pragma unroll 1
        for (uint32_t i = tid * 2; i < n_out; i += THREADS * 2)
            *(float2 *)(y + i) = unpack_bf16(
                __ldcg((const uint32_t *)g.e.y16 + ((size_t)row * g.e.n + out_of(i)) / 2));
    }

    /* Planes of this thread's columns of v from w on. */
    __device__ void load_v(uint32_t w, float v[COLUMNS_EACH][PLANES]) const
    {
        const cu_expand &e = g.e;
#pragma unroll
        for (int j = 0; j < COLUMNS_EACH; j++) {
            uint32_t c = w + j * THREADS + tid, n = c < segments.width ? e.v_planes : 0;
            const float *from = e.v + (size_t)row * e.v_width + c;
#pragma unroll
            for (int p = 0; p < PLANES; p++)
                v[j][p] = (uint32_t)p < n ? __ldcg(from + p * ((size_t)e.t * e.v_width)) : 0.f;
        }
    }

    __device__ void share_v(uint32_t w, const float v[COLUMNS_EACH][PLANES])
    {
        const cu_expand &e = g.e;
#pragma unroll
        for (int j = 0; j < COLUMNS_EACH; j++) {
            uint32_t c = w + j * THREADS + tid;
            float sum = 0;
            if (c < segments.width) {
#pragma unroll
                for (int p = 0; p < PLANES; p++)
                    sum += v[j][p];
#pragma unroll 1
                for (uint32_t p = PLANES; p < e.v_planes; p++)
                    sum += __ldcg(e.v + (p * (size_t)e.t + row) * e.v_width + c);
            }
            vs[j * THREADS + tid] = sum;
        }
    }

    /* Sums of squares of the row, four of a lane. */
    __device__ void load_squares(float v[4]) const
    {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            v[i] = 0;
            if (i * 32 < g.e.n_ss) {
                uint32_t at = lane + i * 32;
                v[i] = __ldcg(g.e.ss + (size_t)row * g.e.n_ss + min(at, g.e.n_ss - 1));
                v[i] = at < g.e.n_ss ? v[i] : 0.f;
            }
        }
    }

    /* 1 / rms of the row, to every lane. */
    __device__ float scale_of(const float v[4]) const
    {
        float sum = v[0] + v[1] + v[2] + v[3];
        for (uint32_t i = lane + 128; i < g.e.n_ss; i += 32)
            sum += __ldcg(g.e.ss + (size_t)row * g.e.n_ss + i);
        return rsqrtf(warp_sum(sum) * g.e.ss_scale + g.e.eps);
    }

    /* ---- B v ---- */

    /* B operand: v at 16 rank columns from k on, times the scale; v's window at w. */
    __device__ void v_operand(uint32_t column, uint32_t rank, float scale, uint32_t k, uint32_t w,
                              uint32_t x[2]) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float v[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                uint32_t c = k + h * 8 + lane % 4 * 2 + i, at = column + c - w;
                v[i] = c < rank && at < ATTENTION_COLUMNS && lane < 8 ? vs[at] * scale : 0.f;
            }
            x[h] = pack_bf16(v[0], v[1]);
            float2 upper = unpack_bf16(x[h]);
            if (lane >= 4)
                x[h] = pack_bf16(v[0] - upper.x, v[1] - upper.y);
        }
    }

    /* y += what `item` of the lanes adds to the warp's tiles from j0 on; v's window at w. ready: b
     * has the first columns. v's operand is made once for the tiles of a module, which share its
     * columns. */
    __device__ void add_tiles(uint32_t j0, uint32_t w, bool ready)
    {
        float *to = y + (warp + j0 * WARPS) * 16 + lane / 4;
#pragma unroll 1
        for (uint32_t k = 0;; k += 16) {
            uint32_t left = __ballot_sync(0xffffffffu, k < item.rank >> 16);
            if (!left)
                return;
            if (k || !ready)
                load_b(k);
#pragma unroll 1
            while (left) {
                int from = __ffs(left) - 1;
                uint32_t column = __shfl_sync(0xffffffffu, item.column, from), x[2];
                uint32_t same = left & __ballot_sync(0xffffffffu, item.column == column);
                v_operand(column, __shfl_sync(0xffffffffu, item.rank, from) & 0xffff,
                          __shfl_sync(0xffffffffu, item.scale, from), k, w, x);
                left &= ~same;
#pragma unroll
                for (int s = 0; s < TILES; s++) {
                    if (same >> s & 1)
                        add_tile(to + s * WARPS * 16, b[s], x);
                }
            }
        }
    }

    __device__ void add_tile(float *to, const uint32_t w[4], const uint32_t x[2]) const
    {
        float sum[4] = {0, 0, 0, 0};
        mma_16816(sum, w, x);
        if (lane % 4 == 0) {
            to[0] += sum[0] + sum[1];
            to[8] += sum[2] + sum[3];
        }
    }

    /* y += what the adapters add; the first columns of v are in shared memory. */
    __device__ void add_adapters()
    {
#pragma unroll 1
        for (uint32_t w = 0; w < segments.width; w += ATTENTION_COLUMNS) {
            if (w) {
                float v[COLUMNS_EACH][PLANES];
                __syncthreads();
                load_v(w, v);
                share_v(w, v);
                __syncthreads();
            }
#pragma unroll 1
            for (uint32_t i = segments.first; i < segments.last; i++) {
#pragma unroll 1
                for (uint32_t j0 = 0; (warp + j0 * WARPS) * 16 < n_out; j0 += TILES) {
                    bool ready = i == segments.first && !w && !j0;
                    if (!ready)
                        take_items(i, j0);
                    add_tiles(j0, w, ready);
                }
            }
        }
    }

    /* ---- after the wait ---- */

    /* The projection's output to y, but for the factor that is returned. */
    __device__ float complete()
    {
        bool adapters = KINDS != 0 && segments.width;
        float v[COLUMNS_EACH][PLANES], squares[4], turn[TURNS], r = 1;
        float2 base[AT_ONCE][PLANES];
        if (adapters)
            load_v(0, v);
        if (g.e.y16)
            share_whole();
        else
            load_base(0, base);
        if (g.e.ss)
            load_squares(squares);
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            uint32_t at = i * THREADS + tid;
            if (at < g.a.heads.rotary_dim)
                turn[i] = __ldcg(g.a.trig + (size_t)row * g.a.heads.rotary_dim + at);
        }
        if (adapters)
            share_v(0, v);
#pragma unroll
        for (int k = 0; k < PAIRS && !g.e.y16; k += AT_ONCE) {
            if ((uint32_t)k * THREADS * 2 >= n_out)
                break;
            if (k)
                load_base(k, base);
            share_base(k, base);
        }
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            if ((uint32_t)i * THREADS + tid < g.a.heads.rotary_dim)
                trig[i * THREADS + tid] = turn[i];
        }
        if (g.e.ss)
            r = scale_of(squares);
        __syncthreads();
        if (adapters) {
            add_adapters();
            __syncthreads();
        }
        return r;
    }

    /* Queries that are in their buffer already. */
    __device__ void take_given()
    {
        const bf16 *from =
            (const bf16 *)g.a.q + ((size_t)row * g.a.heads.n_kv_heads + kv_head) * group * hd;
        for (uint32_t i = tid; i < group * hd; i += THREADS)
            q[i] = from[i];
        __syncthreads();
    }

    /* Finishes y times r, norms and rotates; q to shared memory, the key and the value to the
     * pages. */
    __device__ void rotate(float r)
    {
#pragma unroll 1
        for (uint32_t head = warp; head * hd < n_out; head += WARPS) {
            bool is_q = head < group, is_k = head == group;
            const cu_norm &n = is_q ? g.a.q_norm : g.a.k_norm;
            uint32_t out = out_of(head * hd), half = is_q || is_k ? g.a.heads.rotary_dim / 2 : 0;
            float *v = y + head * hd;
            bf16 *to = is_q   ? nullptr
                       : is_k ? page
                              : page + value_distance(g.a.pages, g.a.heads) / 2;
            bool normed = (is_q || is_k) && n.w;
            if (normed || KINDS == 2) {
#pragma unroll 1
                for (uint32_t j = lane; j < hd; j += 32)
                    v[j] = finish<KINDS>(g.e, v[j] * r, row, out + j);
                __syncwarp();
                if (normed)
                    normalise_head(v, norm_weights(n, g.r, row), n, hd, lane);
            }
            bool done = normed || KINDS == 2;
            const float *bias = done ? nullptr : g.e.bias;
            float scale = done ? 1.f : r;
#pragma unroll 2
            for (uint32_t j = lane; j < half; j += 32) {
                float low = v[j] * scale, high = v[j + half] * scale;
                if (bias) {
                    low += bias[out + j];
                    high += bias[out + j + half];
                }
                float cosine = trig[j], sine = trig[half + j];
                put(head, j, low * cosine - high * sine, to);
                put(head, j + half, high * cosine + low * sine, to);
            }
#pragma unroll 4
            for (uint32_t j = 2 * half + lane; j < hd; j += 32)
                put(head, j, v[j] * scale + (bias ? bias[out + j] : 0.f), to);
        }
        __syncthreads();
    }

    __device__ void put(uint32_t head, uint32_t j, float v, bf16 *page_row) const
    {
        bf16 value = __float2bfloat16(v);
        q[head * hd + j] = value;
        if (page_row)
            page_row[j] = value;
    }
};

} // namespace lora

#endif
