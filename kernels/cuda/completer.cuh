/*
 * completer: a CTA's 8 NT tokens from t0 on, of which each of its WARPS warps completes TILES tiles
 * of 16 outputs (complete.cuh) in the layout of the MMA's result: outputs (M) lane / 4 and + 8 of
 * tokens (N) 2 (lane % 4) and + 1.
 *
 * These kernels stand beside a GEMM that has nearly all of a multiprocessor's shared memory, and
 * run for a few microseconds: registers, so that two CTAs of the largest fit there, and code, which
 * is fetched anew in every layer, are scarce. No barrier without adapters.
 *
 * What the planes, the sums of squares and v's planes cost is one latency: all of it is asked for
 * before any of it is used; v's planes go to shared memory by cp.async, where the threads that
 * asked for them add them up. B does not depend on the GEMM before: it is fetched into L2 before
 * the wait, when that GEMM is nearly done, its first AHEAD steps (16 rank columns of an adapter)
 * into registers, and AHEAD steps stay on their way from there on.
 */
#ifndef KERNELS_CUDA_COMPLETER_CUH
#define KERNELS_CUDA_COMPLETER_CUH

#include "kernels/cuda/complete.cuh"

namespace lora
{

template <int NT, int TILES, int KINDS, int WARPS> struct Completer {
    static constexpr int TOKENS = NT * 8, THREADS = WARPS * 32, COLUMNS = 32;
    static constexpr int STRIDE = COLUMNS + 4;          // floats between tokens of v
    static constexpr int PLANES = NT == 1 ? 8 : 4;      // of v at once
    static constexpr int PIECES = TOKENS * COLUMNS / 4; // of 16 bytes of a plane
    static constexpr int MINE = (PIECES + THREADS - 1) / THREADS;
    static constexpr int AHEAD = 2;
    static constexpr int AT_ONCE = NT * TILES == 1 ? 4 : 2; // planes of y
    static constexpr int V_FLOATS = KINDS ? PLANES * TOKENS * STRIDE : 0;
    static constexpr int BYTES = (V_FLOATS + TOKENS) * 4; // shared memory

    /* What segment i0 + lane brings to a tile. */
    struct Item {
        const uint8_t *b;
        uint32_t shape; // first token | last << 8 | rank8 << 16; 0: nothing
        uint32_t column;
        float scale;
    };
    /* A place in the steps of 16 rank columns that lie in a window of v: lanes whose segments are
     * left, and where in the first of them. */
    struct Walk {
        uint32_t mask, r, end;
    };
    static constexpr uint32_t NONE = ~0u;

    const cu_expand &e;
    float *v, *rms; // shared: planes of v [PLANES][TOKENS][STRIDE], summed in the first; 1 / rms
    uint32_t t0, t1;
    int tid, lane;
    Segments segments;
    uint32_t out[TILES], planes[TILES];
    Item item[TILES];
    uint32_t first, last; // rank columns of the lane's steps in the window
    Walk ahead;           // the next step to be asked for
    uint32_t slot[AHEAD]; // steps on their way: lane | rank column << 8, or NONE
    uint32_t b[AHEAD][TILES][4];

    __device__ Completer(const cu_expand &e_, uint8_t *smem, uint32_t t0_)
        : e(e_), v((float *)smem), rms(v + V_FLOATS), t0(t0_), t1(min(t0_ + TOKENS, e_.t)),
          tid(threadIdx.x), lane(threadIdx.x % 32), segments{0, 0, 0}
    {
    }

    /* Token, from t0 on, and output, from the tile's first on, of value i of token tile n. */
    __device__ uint32_t token_of(int n, int i) const
    {
        return n * 8 + lane % 4 * 2 + (i & 1);
    }
    __device__ uint32_t output_of(int i) const
    {
        return lane / 4 + (i >> 1) * 8;
    }

    /* Before the wait; o[k]: first output of this warp's tile k, e.n or more for none. */
    __device__ void prepare(const uint32_t o[TILES])
    {
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            out[k] = o[k];
            planes[k] = o[k] < e.n && e.planes ? e.planes[o[k] / e.block_rows] : 1;
        }
        if (KINDS == 0)
            return;
        segments = find_segments(e, t0, t1);
        if (segments.first >= segments.last)
            return;
        find_items(segments.first);
        wait_for_turn();
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            if (item[k].shape)
                prefetch_l2(item[k].b, (item[k].shape >> 16) * 32);
        }
        find_steps(0);
#pragma unroll
        for (int a = 0; a < AHEAD; a++)
            fetch(a);
    }

    /* Until the GEMM before is nearly done: B that comes sooner may have left L2 again, and takes
     * the bandwidth of those of its CTAs that are late. */
    __device__ void wait_for_turn() const
    {
        if (!e.asked)
            return;
        if (tid == 0)
            await_count(e.asked, e.enough, 100);
        __syncthreads();
    }

    /* ---- before any of it is used ---- */

    /* After the wait: asks for v, the squares' sums and the planes; y: the planes' sums. */
    __device__ void load(float y[TILES][NT][4])
    {
        if (KINDS != 0 && segments.width)
            ask_v(0, 0);
        float first_planes[TILES][AT_ONCE][NT][4];
#pragma unroll
        for (int k = 0; k < TILES; k++)
            load_planes(k, 0, first_planes[k]);
        if (e.ss)
            load_rms<TOKENS, THREADS>(e, t0, rms);
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            add_planes(first_planes[k], y[k], true);
#pragma unroll 1
            for (uint32_t p = AT_ONCE; p < planes[k]; p += AT_ONCE) {
                float more[AT_ONCE][NT][4];
                load_planes(k, p, more);
                add_planes(more, y[k], false);
            }
        }
    }

    __device__ void load_planes(int k, uint32_t p, float to[AT_ONCE][NT][4]) const
    {
        size_t plane = (size_t)e.t * e.n;
        const float *from = e.y + (size_t)(t0 + lane % 4 * 2) * e.n + out[k] + lane / 4 + p * plane;
#pragma unroll
        for (int h = 0; h < AT_ONCE; h++) {
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    bool in = p + h < planes[k] && t0 + token_of(n, i) < e.t &&
                              out[k] + output_of(i) < e.n;
                    const float *at =
                        from + h * plane + (uint32_t)(n * 8 + (i & 1)) * e.n + (i >> 1) * 8;
                    to[h][n][i] = in ? __ldcg(at) : 0.f;
                }
            }
        }
    }

    __device__ void add_planes(const float from[AT_ONCE][NT][4], float y[NT][4],
                               bool is_first) const
    {
#pragma unroll
        for (int n = 0; n < NT; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float sum = from[0][n][i];
#pragma unroll
                for (int h = 1; h < AT_ONCE; h++)
                    sum += from[h][n][i];
                y[n][i] = is_first ? sum : y[n][i] + sum;
            }
        }
    }

    /* Planes [p, p + PLANES) of v's columns [w, w + COLUMNS): zeros where there are none. */
    __device__ void ask_v(uint32_t w, uint32_t p) const
    {
        size_t plane = (size_t)e.t * e.v_width;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < PIECES; i += THREADS) {
            uint32_t token = i / (COLUMNS / 4), c = i % (COLUMNS / 4) * 4;
            bool in = t0 + token < e.t && w + c < segments.width;
            const float *from = e.v + (in ? (size_t)(t0 + token) * e.v_width + w + c : 0);
            uint32_t to = shared_address(v + token * STRIDE + c);
#pragma unroll
            for (int k = 0; k < PLANES; k++) {
                bool have = in && p + k < e.v_planes;
                cp_async_16(to + k * (TOKENS * STRIDE * 4), have ? from + (p + k) * plane : e.v,
                            have ? 16 : 0);
            }
        }
        cp_async_commit();
    }

    /* Columns [w, w + COLUMNS) of v, summed, to all; the first planes have been asked for. */
    __device__ void share_v(uint32_t w) const
    {
        float4 sum[MINE];
#pragma unroll 1
        for (uint32_t p = 0; p < e.v_planes; p += PLANES) {
            if (p)
                ask_v(w, p);
            cp_async_wait<0>();
#pragma unroll
            for (int m = 0; m < MINE; m++) {
                uint32_t i = m * THREADS + tid;
                if (i >= PIECES)
                    break;
                const float *at = v + i / (COLUMNS / 4) * STRIDE + i % (COLUMNS / 4) * 4;
                if (p == 0)
                    sum[m] = make_float4(0, 0, 0, 0);
#pragma unroll
                for (int k = 0; k < PLANES; k++) {
                    float4 a = *(const float4 *)(at + k * (TOKENS * STRIDE));
                    sum[m].x += a.x;
                    sum[m].y += a.y;
                    sum[m].z += a.z;
                    sum[m].w += a.w;
                }
            }
        }
#pragma unroll
        for (int m = 0; m < MINE; m++) {
            uint32_t i = m * THREADS + tid;
            if (i < PIECES)
                *(float4 *)(v + i / (COLUMNS / 4) * STRIDE + i % (COLUMNS / 4) * 4) = sum[m];
        }
    }

    /* ---- B ---- */

    __device__ void find_items(uint32_t i0)
    {
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            CompleteItem it = {};
            if (i0 + lane < segments.last)
                it = complete_item(e, i0 + lane, out[k], t0, t1);
            uint32_t begin = it.rows & 0xffff, end = it.rows >> 16;
            item[k] = Item{it.b, it.rows ? begin | end << 8 | it.rank >> 16 << 16 : 0, it.column,
                           it.scale};
        }
    }

    /* Finds the steps in the window at w. */
    __device__ void find_steps(uint32_t w)
    {
        first = NONE;
        last = 0;
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            uint32_t c = item[k].column, rank8 = item[k].shape >> 16;
            uint32_t begin = c + 16 > w ? 0 : (w - c) / 16 * 16;
            uint32_t end = c < w + COLUMNS ? min(rank8, w + COLUMNS - c) : 0;
            if (begin < end) {
                first = min(first, begin);
                last = max(last, end);
            }
        }
        ahead.mask = __ballot_sync(0xffffffffu, first < last);
        enter();
    }

    __device__ void enter()
    {
        uint32_t lane_of = (__ffs(ahead.mask) - 1) & 31;
        ahead.r = __shfl_sync(0xffffffffu, first, lane_of);
        ahead.end = __shfl_sync(0xffffffffu, last, lane_of);
    }

    /* Asks for B of the next step, if there is one. */
    __device__ void fetch(int a)
    {
        slot[a] = NONE;
        if (!ahead.mask)
            return;
        uint32_t from = __ffs(ahead.mask) - 1;
        slot[a] = from | ahead.r << 8;
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            const uint8_t *p =
                (const uint8_t *)__shfl_sync(0xffffffffu, (unsigned long long)item[k].b, from);
            uint32_t rank8 = __shfl_sync(0xffffffffu, item[k].shape, from) >> 16;
            if (ahead.r < rank8)
                load_b16(p, ahead.r, rank8, lane, b[a][k]);
        }
        ahead.r += 16;
        if (ahead.r >= ahead.end) {
            ahead.mask &= ahead.mask - 1;
            enter();
        }
    }

    /* acc += B v at 16 rank columns, as far as they lie in the window; `at`: the lane's first one
     * there. B is zero beyond the rank. */
    __device__ void multiply(uint32_t shape, uint32_t at, float scale, const uint32_t b16[4],
                             float acc[NT][4]) const
    {
        uint32_t begin = shape & 0xff, end = shape >> 8 & 0xff;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            if (n * 8 >= (int)end || n * 8 + 8 <= (int)begin)
                continue;
            uint32_t token = n * 8 + lane / 4, x[2] = {0, 0};
            const float *from = v + token * STRIDE;
            if (token >= begin && token < end) {
#pragma unroll
                for (int h = 0; h < 2; h++) {
                    uint32_t c = at + h * 8;
                    float low = c < COLUMNS ? from[c] : 0.f;
                    float high = c + 1 < COLUMNS ? from[c + 1] : 0.f;
                    x[h] = pack_bf16(low * scale, high * scale);
                }
            }
            mma_16816(acc[n], b16, x);
        }
    }

    /* Adds what the items bring in the window at w. */
    __device__ void add_items(uint32_t w, float y[TILES][NT][4])
    {
        bool more = true;
#pragma unroll 1
        while (more) {
            more = false;
#pragma unroll
            for (int a = 0; a < AHEAD; a++) {
                if (slot[a] != NONE)
                    use(a, w, y);
                fetch(a);
                more |= slot[a] != NONE;
            }
        }
    }

    /* The step in slot a. */
    __device__ void use(int a, uint32_t w, float y[TILES][NT][4]) const
    {
        uint32_t from = slot[a] & 31, r = slot[a] >> 8;
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            uint32_t shape = __shfl_sync(0xffffffffu, item[k].shape, from);
            uint32_t column = __shfl_sync(0xffffffffu, item[k].column, from);
            float scale = __shfl_sync(0xffffffffu, item[k].scale, from);
            if (r < shape >> 16)
                multiply(shape, column + r + lane % 4 * 2 - w, scale, b[a][k], y[k]);
        }
    }

    /* y: the planes' sums in, completed values out. By all threads of the CTA, after load(). */
    __device__ void complete(float y[TILES][NT][4])
    {
#pragma unroll 1
        for (uint32_t w = 0; KINDS != 0 && w < segments.width; w += COLUMNS) {
            if (w) {
                __syncthreads();
                ask_v(w, 0);
            }
            share_v(w);
            __syncthreads();
#pragma unroll 1
            for (uint32_t i0 = segments.first; i0 < segments.last; i0 += 32) {
                if (w || i0 != segments.first) {
                    if (segments.last - segments.first > 32)
                        find_items(i0);
                    find_steps(w);
                }
                add_items(w, y);
            }
        }
        if (e.ss && (KINDS == 0 || segments.width == 0))
            __syncthreads();
#pragma unroll
        for (int k = 0; k < TILES; k++) {
            float bias[2] = {0, 0};
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (KINDS != 2 && e.bias && out[k] + output_of(2 * h) < e.n)
                    bias[h] = e.bias[out[k] + output_of(2 * h)];
            }
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    uint32_t token = token_of(n, i), o = out[k] + output_of(i);
                    y[k][n][i] = y[k][n][i] * (e.ss ? rms[token] : 1.f) + bias[i >> 1];
                    if (KINDS == 2 && t0 + token < e.t && o < e.n)
                        y[k][n][i] = finish_value(e, y[k][n][i], t0 + token, o);
                }
            }
        }
    }
};

} // namespace lora

#endif
