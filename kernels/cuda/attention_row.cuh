/*
 * attention_row: what attention takes of one decoding row and one key/value head: the row's query
 * heads, its key and its value, completed from the qkv projection (planes, B v, biases, gains),
 * normed and rotated. Queries stay in shared memory, the key and the value go to the pages too.
 */
#ifndef KERNELS_CUDA_ATTENTION_ROW_CUH
#define KERNELS_CUDA_ATTENTION_ROW_CUH

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/complete.cuh"
#include "kernels/cuda/norm.cuh"

namespace lora
{

constexpr int ATTENTION_WARPS = 4, ATTENTION_THREADS = ATTENTION_WARPS * 32;

struct DecodeArgs {
    cu_attention a;
    cu_expand e;
    cu_rows r;
    const uint32_t *n_decode_rows;
};

/* The row's q heads, key and value of one kv head: completed, normed, rotated. */
template <int HD, int NG, int KINDS> struct AttentionRow {
    static constexpr int OUT = (NG * 8 + 2) * HD,
                         PAIRS = (OUT / 2 + ATTENTION_THREADS - 1) / ATTENTION_THREADS;
    static constexpr uint32_t COLUMNS = COMPLETE_COLUMNS;

    const DecodeArgs &g;
    uint32_t row, kv_head, group, hd, n_out; // n_out: outputs, without k and v unless `late`
    bool late;
    float *y;    // shared [n_out]
    bf16 *q;     // shared [group + 2][hd]: queries, then the row's key and value
    float *vs;   // shared [COLUMNS]
    float *trig; // shared [rotary_dim]: cosines, then sines
    Segments segments;
    CompleteItem item; // the first segment's at this warp's tile `lane`
    uint32_t planes[PAIRS];
    int tid, warp, lane;

    __device__ AttentionRow(const DecodeArgs &g_, uint32_t row_, uint32_t kv_head_, bool late_,
                            uint8_t *smem)
        : g(g_), row(row_), kv_head(kv_head_), late(late_), segments{0, 0, 0}
    {
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
        hd = g.a.heads.head_dim;
        group = g.a.heads.n_heads / g.a.heads.n_kv_heads;
        n_out = (group + (late ? 2 : 0)) * hd;
        y = (float *)smem;
        q = (bf16 *)(y + (group + 2) * hd);
        vs = (float *)(q + (group + 2) * hd);
        trig = vs + COLUMNS;
    }

    /* Output of the qkv projection that local output i is. */
    __device__ uint32_t out_of(uint32_t i) const
    {
        const cu_heads &h = g.a.heads;
        if (i < group * hd)
            return kv_head * group * hd + i;
        i -= group * hd;
        uint32_t head = h.n_heads + (i >= hd ? h.n_kv_heads : 0) + kv_head;
        return head * hd + (i >= hd ? i - hd : i);
    }

    __device__ CompleteItem item_of_tile(uint32_t segment, uint32_t tile) const
    {
        if (tile * 16 >= n_out)
            return CompleteItem{};
        return complete_item(g.e, segment, out_of(tile * 16), row, row + 1);
    }

    /* What may be known before the wait; B into L2. */
    __device__ void prepare()
    {
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            uint32_t i = (k * ATTENTION_THREADS + tid) * 2;
            planes[k] = i < n_out && g.e.planes ? g.e.planes[out_of(i) / g.e.block_rows] : 1;
        }
        item = CompleteItem{};
        if (KINDS == 0)
            return;
        segments = find_segments(g.e, row, row + 1);
        if (segments.width)
            item = item_of_tile(segments.first, warp + lane * ATTENTION_WARPS);
        for (uint32_t at = 0; item.rows && at < (item.rank >> 16) * 32; at += 128)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(item.b + at));
    }

    __device__ float2 base_pair(uint32_t out, uint32_t n_planes) const
    {
        const cu_expand &e = g.e;
        size_t at = (size_t)row * e.n + out;
        if (e.y16)
            return unpack_bf16(__ldcg((const uint32_t *)e.y16 + at / 2));
        float2 sum = make_float2(0, 0);
        for (uint32_t p = 0; p < n_planes; p += 4) {
            float2 v[4];
#pragma unroll
            for (int k = 0; k < 4; k++)
                v[k] = p + k < n_planes
                           ? __ldcg((const float2 *)(e.y + at + (p + k) * ((size_t)e.t * e.n)))
                           : make_float2(0, 0);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                sum.x += v[k].x;
                sum.y += v[k].y;
            }
        }
        return sum;
    }

    /* 1 / rms of the row, to every lane. */
    __device__ float scale() const
    {
        if (!g.e.ss)
            return 1.f;
        float sum = 0;
        for (uint32_t i = lane; i < g.e.n_ss; i += 32)
            sum += __ldcg(g.e.ss + (size_t)row * g.e.n_ss + i);
        return rsqrtf(warp_sum(sum) * g.e.ss_scale + g.e.eps);
    }

    /* What 8 rank columns of B at k add to 16 outputs, in the lanes of a row; v's window at w. */
    __device__ void add_eight(const CompleteItem &it, uint32_t k, uint2 b, uint32_t w,
                              float sum[2]) const
    {
        uint32_t rank = it.rank & 0xffff, c = k + lane % 4 * 2, at = it.column + c - w;
        float v0 = c < rank && at < COLUMNS ? vs[at] : 0.f;
        float v1 = c + 1 < rank && at + 1 < COLUMNS ? vs[at + 1] : 0.f;
        float2 low = unpack_bf16(b.x), high = unpack_bf16(b.y);
        sum[0] += (low.x * v0 + low.y * v1) * it.scale;
        sum[1] += (high.x * v0 + high.y * v1) * it.scale;
    }

    __device__ uint2 load_b8(const CompleteItem &it, uint32_t k) const
    {
        return k < it.rank >> 16 ? __ldg((const uint2 *)(it.b + k * 32 + lane * 8))
                                 : make_uint2(0, 0);
    }

    /* y += what `item` of the lanes adds to this warp's tiles from j0 on by the columns at w; B of
     * SOME tiles is on its way at once. */
    __device__ void add_tiles(uint32_t j0, uint32_t w)
    {
        constexpr int SOME = 6;
        uint32_t n_tiles = n_out / 16, n = 0;
        if (warp + j0 * ATTENTION_WARPS < n_tiles)
            n = min((n_tiles - warp - j0 * ATTENTION_WARPS + ATTENTION_WARPS - 1) / ATTENTION_WARPS,
                    32u);
        for (uint32_t j = 0; j < n; j += SOME) {
            uint2 b[SOME][2];
#pragma unroll
            for (int s = 0; s < SOME; s++) {
                CompleteItem it = item_of_lane(item, (j + s) % 32);
                bool in = j + s < n && it.rows;
                b[s][0] = in ? load_b8(it, 0) : make_uint2(0, 0);
                b[s][1] = in ? load_b8(it, 8) : make_uint2(0, 0);
            }
#pragma unroll
            for (int s = 0; s < SOME; s++) {
                CompleteItem it = item_of_lane(item, (j + s) % 32);
                if (j + s >= n || !it.rows)
                    continue;
                float sum[2] = {0, 0};
                add_eight(it, 0, b[s][0], w, sum);
                add_eight(it, 8, b[s][1], w, sum);
#pragma unroll 1
                for (uint32_t k = 16; k < it.rank >> 16; k += 8)
                    add_eight(it, k, load_b8(it, k), w, sum);
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
                    sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
                    if (lane % 4 == 0)
                        y[(warp + (j0 + j + s) * ATTENTION_WARPS) * 16 + lane / 4 + h * 8] +=
                            sum[h];
                }
            }
        }
    }

    /* y += what segment i adds by the columns at w; this warp's tiles are its own. */
    __device__ void add_segment(uint32_t i, uint32_t w)
    {
        for (uint32_t j0 = 0; (warp + j0 * ATTENTION_WARPS) * 16 < n_out; j0 += 32) {
            if (i != segments.first || w || j0)
                item = item_of_tile(i, warp + (j0 + lane) * ATTENTION_WARPS);
            add_tiles(j0, w);
        }
    }

    /* y = what the adapters add. */
    __device__ void add_adapters()
    {
        for (uint32_t i = tid; i < n_out; i += ATTENTION_THREADS)
            y[i] = 0;
        for (uint32_t w = 0; w < segments.width; w += COLUMNS) {
            if (w)
                __syncthreads();
            for (uint32_t c = tid; c < COLUMNS; c += ATTENTION_THREADS)
                vs[c] = w + c < segments.width ? v_value(g.e, row, w + c) : 0.f;
            __syncthreads();
            for (uint32_t i = segments.first; i < segments.last; i++)
                add_segment(i, w);
        }
        __syncthreads();
    }

    __device__ void complete()
    {
        float2 base[PAIRS];
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            uint32_t i = (k * ATTENTION_THREADS + tid) * 2;
            base[k] = i < n_out ? base_pair(out_of(i), planes[k]) : make_float2(0, 0);
        }
        const float *turns = g.a.trig + (size_t)row * g.a.heads.rotary_dim;
        for (uint32_t i = tid; i < g.a.heads.rotary_dim; i += ATTENTION_THREADS)
            trig[i] = __ldcg(turns + i);
        float r = scale();
        bool adapters = KINDS != 0 && segments.width;
        if (adapters)
            add_adapters();
#pragma unroll
        for (int k = 0; k < PAIRS; k++) {
            uint32_t i = (k * ATTENTION_THREADS + tid) * 2, out = out_of(i);
            if (i >= n_out)
                continue;
            float2 more = adapters ? make_float2(y[i], y[i + 1]) : make_float2(0, 0);
            y[i] = finish<KINDS>(g.e, (base[k].x + more.x) * r, row, out);
            y[i + 1] = finish<KINDS>(g.e, (base[k].y + more.y) * r, row, out + 1);
        }
        __syncthreads();
    }

    /* Queries that are in their buffer already. */
    __device__ void take_given()
    {
        const bf16 *from =
            (const bf16 *)g.a.q + ((size_t)row * g.a.heads.n_kv_heads + kv_head) * group * hd;
        for (uint32_t i = tid; i < group * hd; i += ATTENTION_THREADS)
            q[i] = from[i];
        __syncthreads();
    }

    /* Norms and rotates; q to shared memory, the key and the value to the pages. */
    __device__ void rotate(const cu_sequence &s)
    {
        uint32_t half = g.a.heads.rotary_dim / 2;
        for (uint32_t head = warp; head * hd < n_out; head += ATTENTION_WARPS) {
            float *v = y + head * hd;
            bool is_q = head < group, is_k = head == group;
            const cu_norm &n = is_q ? g.a.q_norm : g.a.k_norm;
            if ((is_q || is_k) && n.w)
                normalise_head(v, norm_weights(n, g.r, row), n, hd, lane);
            bf16 *page = nullptr;
            if (!is_q)
                page = (bf16 *)(g.a.pages.pool +
                                key_offset(g.a.pages, g.a.heads, s, kv_head, s.position0) +
                                (is_k ? 0 : value_distance(g.a.pages, g.a.heads)));
            for (uint32_t j = lane; j < hd; j += 32) {
                float x = v[j];
                if ((is_q || is_k) && j < half)
                    x = v[j] * trig[j] - v[j + half] * trig[half + j];
                else if ((is_q || is_k) && j < 2 * half)
                    x = v[j] * trig[j - half] + v[j - half] * trig[j];
                q[head * hd + j] = __float2bfloat16(x);
                if (!is_q)
                    page[j] = __float2bfloat16(x);
            }
        }
        __syncthreads();
    }
};

} // namespace lora

#endif
