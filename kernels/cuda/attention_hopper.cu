/*
 * attention_hopper: attention_prefill on sm_90a, for heads of 64 or 128.
 *
 * A CTA has 128 query rows of one head: two warpgroups of 64 rows, and a warp that copies keys and
 * values of 128 positions at a time from the pages (one box a page, by the copy engine). Tiles go
 * from the last to the first, so that the masked ones come first. A warpgroup issues the scores of
 * the next tile and the values of this one together, and computes weights while values are added.
 * Rows behind the last key are zeroed among the values: what lies there may be no number.
 */
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

constexpr int ROWS = 128, KEYS = 128, THREADS = 384, STAGES = 2;

struct Args {
    cu_attention a;
    const cu_sequence *sequences;
    const uint32_t *block_sequence, *block_row;
};

template <int HD> struct Shape {
    static constexpr int Q_BYTES = ROWS * HD * 2, TILE = KEYS * HD * 2, HALF = KEYS * 128;
    static constexpr int K_AT = Q_BYTES, V_AT = K_AT + STAGES * TILE,
                         BARRIERS_AT = V_AT + STAGES * TILE, BYTES = BARRIERS_AT + 128 + 1024;
};

template <int HD> struct Flash {
    using S = Shape<HD>;
    const Args &g;
    cu_sequence s;
    uint32_t base, warp, lane, head, row0, n_rows, position0, end, first, n;

    __device__ Flash(const Args &g_, uint32_t base_) : g(g_), base(base_)
    {
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        uint32_t idx = gridDim.y - 1 - blockIdx.y; // the longest first
        s = g.sequences[g.block_sequence[idx]];
        head = blockIdx.x;
        uint32_t row = g.block_row[idx], window = g.a.heads.window;
        row0 = s.row0 + row;
        n_rows = min((uint32_t)ROWS, s.n_rows - row);
        position0 = s.position0 + row;
        end = position0 + n_rows;
        first = window && position0 + 1 > window ? (position0 + 1 - window) / KEYS : 0;
        n = (end + KEYS - 1) / KEYS - first;
    }

    __device__ uint32_t barrier(uint32_t i) const
    {
        return base + S::BARRIERS_AT + i * 8;
    }
    __device__ uint32_t q_full() const
    {
        return barrier(0);
    }
    __device__ uint32_t k_full(uint32_t i) const
    {
        return barrier(1 + i % STAGES);
    }
    __device__ uint32_t v_full(uint32_t i) const
    {
        return barrier(3 + i % STAGES);
    }
    __device__ uint32_t k_empty(uint32_t i) const
    {
        return barrier(5 + i % STAGES);
    }
    __device__ uint32_t v_empty(uint32_t i) const
    {
        return barrier(7 + i % STAGES);
    }
    __device__ uint32_t keys(uint32_t i) const
    {
        return base + S::K_AT + i % STAGES * S::TILE;
    }
    __device__ uint32_t values(uint32_t i) const
    {
        return base + S::V_AT + i % STAGES * S::TILE;
    }
    __device__ uint32_t tile(uint32_t i) const
    {
        return first + n - 1 - i;
    }

    __device__ void init() const
    {
        if (threadIdx.x == 0) {
            barrier_init(q_full(), 1);
            for (uint32_t i = 0; i < STAGES; i++) {
                barrier_init(k_full(i), 1);
                barrier_init(v_full(i), 1);
                barrier_init(k_empty(i), 8);
                barrier_init(v_empty(i), 8);
            }
            barrier_init_done();
        }
        __syncthreads();
    }

    // ---- one warp: copies

    __device__ void copy_tile(const CUtensorMap *map, uint32_t to, uint32_t bar, uint32_t slice,
                              uint32_t page, uint32_t count) const
    {
        const cu_pages &p = g.a.pages;
        if (lane == 0)
            barrier_expect(bar, count * p.page_tokens * HD * 2);
        __syncwarp();
        if (lane >= count)
            return;
#pragma unroll
        for (int h = 0; h < HD / 64; h++)
            tma_load_5d(to + h * S::HALF + lane * p.page_tokens * 128, map, bar, h * 64, 0, slice,
                        page % p.pages_per_chunk, page / p.pages_per_chunk);
    }

    __device__ void copy(const CUtensorMap *q_map, const CUtensorMap *pool_map) const
    {
        const cu_heads &h = g.a.heads;
        const cu_pages &p = g.a.pages;
        uint32_t kv_head = head / (h.n_heads / h.n_kv_heads);
        uint32_t slice = h.layer * 2 * h.n_kv_heads + kv_head, per = KEYS / p.page_tokens;
        uint32_t pages = (end + p.page_tokens - 1) / p.page_tokens;
        if (lane == 0) {
            barrier_expect(q_full(), S::Q_BYTES);
#pragma unroll
            for (int i = 0; i < HD / 64; i++)
                tma_load_3d(base + i * (ROWS * 128), q_map, q_full(), i * 64, head, row0);
        }
        for (uint32_t i = 0; i < n; i++) {
            uint32_t page0 = tile(i) * per, count = min(per, pages - page0), page = 0;
            if (lane < count)
                page = p.table[s.page0 + page0 + lane];
            uint32_t free = (i / STAGES & 1) ^ 1;
            barrier_wait(k_empty(i), free);
            copy_tile(pool_map, keys(i), k_full(i), slice, page, count);
            barrier_wait(v_empty(i), free);
            copy_tile(pool_map, values(i), v_full(i), slice + h.n_kv_heads, page, count);
        }
    }

    // ---- two warpgroups

    __device__ uint32_t group() const
    {
        return warp / 4 - 1;
    }

    __device__ void release(uint32_t bar) const
    {
        if (lane == 0)
            barrier_arrive(bar);
    }

    __device__ void scores(float (&p)[KEYS / 2], uint32_t i) const
    {
        uint64_t q = swizzled_tile(base + group() * (64 * 128)), k = swizzled_tile(keys(i));
#pragma unroll
        for (int d = 0; d < HD / 16; d++)
            Wgmma<KEYS>::run(p, q + d / 4 * (ROWS * 128 / 16) + d % 4 * 2,
                             k + d / 4 * (S::HALF / 16) + d % 4 * 2, d > 0);
        wgmma_commit();
    }

    __device__ void add_values(float (&o)[HD / 2], const uint32_t (&w)[KEYS / 4], uint32_t i) const
    {
        uint64_t v = turned_tile(values(i), S::HALF);
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++)
            WgmmaTurned<HD>::run(o, w + 4 * k, v + 128 * k);
        wgmma_commit();
    }

    /* Zeros in the values of the last tile behind the last key. */
    __device__ void clean(uint32_t i) const
    {
        uint32_t used = end - tile(i) * KEYS, pieces = (KEYS - min(used, (uint32_t)KEYS)) * 8;
        if (pieces == 0)
            return;
        for (uint32_t p = threadIdx.x - 128; p < pieces; p += 256) {
#pragma unroll
            for (int h = 0; h < HD / 64; h++)
                asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(
                                 values(i) + h * S::HALF + used * 128 + p * 16),
                             "r"(0)
                             : "memory");
        }
        fence_async_proxy();
        asm volatile("bar.sync 1, 256;" ::: "memory");
    }

    __device__ void mask(float (&p)[KEYS / 2], uint32_t i) const
    {
        uint32_t window = g.a.heads.window, key0 = tile(i) * KEYS + lane % 4 * 2;
        uint32_t position = position0 + group() * 64;
        if (tile(i) * KEYS + KEYS - 1 <= position &&
            (!window || tile(i) * KEYS + window > position + 63))
            return;
        position += warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int k = 0; k < KEYS / 2; k++) {
            uint32_t key = key0 + k / 4 * 8 + (k & 1), at = position + (k >> 1 & 1) * 8;
            if (key > at || (window && key + window <= at))
                p[k] = -INFINITY;
        }
    }

    /* Scores to weights; what sums so far are to be multiplied with. */
    __device__ void soften(float (&p)[KEYS / 2], float (&top)[2], float (&sum)[2],
                           float (&factor)[2]) const
    {
        float cap = g.a.heads.softcap, scale = g.a.heads.scale * 1.4426950408889634f;
        if (cap > 0) {
#pragma unroll
            for (int k = 0; k < KEYS / 2; k++)
                p[k] = p[k] == -INFINITY ? p[k] : cap * tanhf(p[k] * g.a.heads.scale / cap);
            scale = 1.4426950408889634f;
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float most = top[h];
#pragma unroll
            for (int k = 0; k < KEYS / 8; k++)
                most = fmaxf(most, fmaxf(p[4 * k + 2 * h], p[4 * k + 2 * h + 1]));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
            float from = most == -INFINITY ? 0.f : most * scale;
            factor[h] = exp2_approx(top[h] * scale - from);
            top[h] = most;
            sum[h] *= factor[h];
#pragma unroll
            for (int k = 0; k < KEYS / 8; k++) {
#pragma unroll
                for (int e = 4 * k + 2 * h; e < 4 * k + 2 * h + 2; e++) {
                    p[e] = exp2_approx(p[e] * scale - from);
                    sum[h] += p[e];
                }
            }
        }
    }

    __device__ void pack(uint32_t (&w)[KEYS / 4], const float (&p)[KEYS / 2]) const
    {
#pragma unroll
        for (int k = 0; k < KEYS / 4; k++)
            w[k] = pack_bf16(p[2 * k], p[2 * k + 1]);
    }

    __device__ void attend() const
    {
        float o[HD / 2], p[KEYS / 2], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, factor[2];
        uint32_t w[KEYS / 4];
#pragma unroll
        for (int k = 0; k < HD / 2; k++)
            o[k] = 0;
        barrier_wait(q_full(), 0);
        barrier_wait(k_full(0), 0);
        wgmma_fence();
        scores(p, 0);
        wgmma_wait<0>();
        wgmma_hold(p);
        release(k_empty(0));
        mask(p, 0);
        soften(p, top, sum, factor);
        pack(w, p);
        barrier_wait(v_full(0), 0);
        clean(0);
        for (uint32_t i = 1; i < n; i++) {
            barrier_wait(k_full(i), i / STAGES & 1);
            wgmma_fence();
            scores(p, i);
            if (i > 1)
                barrier_wait(v_full(i - 1), (i - 1) / STAGES & 1);
            add_values(o, w, i - 1);
            wgmma_wait<1>();
            wgmma_hold(p);
            release(k_empty(i));
            mask(p, i);
            soften(p, top, sum, factor);
            wgmma_wait<0>();
            wgmma_hold(o);
            release(v_empty(i - 1));
#pragma unroll
            for (int k = 0; k < HD / 2; k++)
                o[k] *= factor[k >> 1 & 1];
            pack(w, p);
        }
        barrier_wait(v_full(n - 1), (n - 1) / STAGES & 1);
        wgmma_fence();
        add_values(o, w, n - 1);
        wgmma_wait<0>();
        wgmma_hold(o);
        store(o, sum);
    }

    __device__ void store(const float (&o)[HD / 2], float (&sum)[2]) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
            float scale = 1.f / sum[h];
            uint32_t r = group() * 64 + warp % 4 * 16 + lane / 4 + h * 8;
            bf16 *to = (bf16 *)g.a.out + ((size_t)(row0 + r) * g.a.heads.n_heads + head) * HD;
#pragma unroll
            for (int j = 0; j < HD / 8; j += 4) {
                uint32_t w[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int at = (j + i) * 4 + h * 2;
                    w[i] = pack_bf16(o[at] * scale, o[at + 1] * scale);
                }
                uint4 v = exchange_columns(lane, w);
                if (r < n_rows)
                    *(uint4 *)(to + (j + lane % 4) * 8) = v;
            }
        }
    }
};

template <int HD>
__global__ void __launch_bounds__(THREADS, 1)
    flash_kernel(const __grid_constant__ CUtensorMap q_map,
                 const __grid_constant__ CUtensorMap pool_map, const __grid_constant__ Args g)
{
    extern __shared__ uint8_t smem[];
    pdl_launch_dependents();
    Flash<HD> f(g, (shared_address(smem) + 1023) & ~1023u);
    f.init();
    if (f.warp < 4) {
        registers_down<24>();
        if (f.warp == 0) {
            pdl_wait();
            f.copy(&q_map, &pool_map);
        }
    } else {
        registers_up<240>();
        f.attend();
    }
}

/* q[T, n_heads, head_dim] in boxes of 128 rows x 64 of one head. */
int describe_q(CUtensorMap *map, const cu_attention *a, uint32_t t)
{
    uint64_t hd = a->heads.head_dim, dims[3] = {hd, a->heads.n_heads, t};
    uint64_t pitch[2] = {hd * 2, hd * 2 * a->heads.n_heads};
    uint32_t box[3] = {64, 1, ROWS};
    return describe_tensor(map, a->q, 3, dims, pitch, box);
}

/* The pool as [chunk][page][layer, key or value, head][token][head_dim] in boxes of a page x 64. */
int describe_pool(CUtensorMap *map, const cu_attention *a)
{
    const cu_pages &p = a->pages;
    uint64_t hd = a->heads.head_dim, token = hd * 2, slice = token * p.page_tokens;
    uint64_t dims[5] = {hd, p.page_tokens, 2ull * a->heads.n_layers * a->heads.n_kv_heads,
                        p.pages_per_chunk, p.n_chunks};
    uint64_t pitch[4] = {token, slice, p.page_bytes, 2u << 20};
    uint32_t box[5] = {64, p.page_tokens, 1, 1, 1};
    return describe_tensor(map, p.pool, 5, dims, pitch, box);
}

template <int HD>
int launch(const cu_attention *a, const cu_rows *r, const uint32_t *block_sequence,
           const uint32_t *block_row, uint32_t n_blocks, cudaStream_t stream)
{
    static Allowed allowed;
    CUtensorMap q_map, pool_map;
    int rc = describe_q(&q_map, a, r->t);
    rc = rc ? rc : describe_pool(&pool_map, a);
    rc = rc ? rc : (int)allow_shared(flash_kernel<HD>, Shape<HD>::BYTES, allowed);
    if (rc)
        return rc;
    Args g = {*a, r->sequences, block_sequence, block_row};
    return launch_pdl(flash_kernel<HD>, dim3(a->heads.n_heads, n_blocks), dim3(THREADS),
                      Shape<HD>::BYTES, stream, q_map, pool_map, g);
}

} // namespace

extern "C" int cu_attention_hopper_takes(uint32_t head_dim, uint32_t page_tokens)
{
    return (head_dim == 64 || head_dim == 128) &&
           (page_tokens == 8 || page_tokens == 16 || page_tokens == 32 || page_tokens == 64 ||
            page_tokens == 128);
}

extern "C" int cu_attention_hopper(const struct cu_attention *a, const struct cu_rows *r,
                                   const uint32_t *block_sequence, const uint32_t *block_row,
                                   uint32_t n_blocks, cudaStream_t stream)
{
    static_assert(ROWS == CU_HOPPER_ROWS, "the host lists blocks of that many rows");
    if (n_blocks == 0)
        return 0;
    return a->heads.head_dim == 64 ? launch<64>(a, r, block_sequence, block_row, n_blocks, stream)
                                   : launch<128>(a, r, block_sequence, block_row, n_blocks, stream);
}
