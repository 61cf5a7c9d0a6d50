/*
 * attention_fixed: out = softmax(scale q K^T) V for --deterministic, for rows of decode and of
 * prefill alike.
 *
 * Keys are cut at fixed positions into parts of 128 (two tiles of 64). A part is one chain of a
 * running maximum, its sum and its output; parts are added by rising position with the same four
 * operations, which the compiler may not contract, whether one CTA goes over all of them (prefill)
 * or each part is a CTA's and a second kernel adds them (decode). So a row's bits depend on its
 * keys alone. What a row does not see changes nothing: a masked tile scales by exactly 1 and adds
 * exactly 0.
 *
 * A CTA has one key/value head and 64 rows of its queries: 64 / group tokens by all heads of the
 * group, 4 warps of 16 rows (mma.m16n8k16); warps without rows only help to load.
 */
#include "kernels/cuda/attention_tile.cuh"
#include "kernels/cuda/launch_moe.h"

using namespace lora;

namespace
{

constexpr int THREADS = 128, KEYS = 64, PART = 2, ROWS = 64; // PART: tiles

template <int HD> constexpr int stages = HD > 128 ? 2 : 3;
template <int HD> constexpr int stage_bytes = 2 * KEYS *HD * 2;

/* The sum of two parts' rows: maxima, sums, one output. */
__device__ __forceinline__ float scale_to(float from, float to)
{
    return from == -INFINITY ? 0.f : exp2f(from - to);
}

__device__ __forceinline__ float add_scaled(float a, float fa, float b, float fb)
{
    return __fadd_rn(__fmul_rn(a, fa), __fmul_rn(b, fb));
}

template <int HD> struct Block : QueryTile<HD> {
    static constexpr uint32_t STAGES = stages<HD>;
    using Tile = QueryTile<HD>; // o, max and sum are those of a part
    using Tile::a, Tile::hd, Tile::warp, Tile::lane, Tile::q, Tile::o, Tile::max, Tile::sum;
    cu_sequence s;
    uint32_t kv_head, group, row0, n_tokens, position0;
    uint32_t ring;
    uint64_t (*offsets)[KEYS];
    bool idle; // no rows in this warp
    float all_o[HD / 8][4];
    float all_max[2], all_sum[2];

    __device__ Block(const cu_attention &a_, uint32_t ring_, uint64_t (*offsets_)[KEYS])
        : Tile(a_), ring(ring_), offsets(offsets_)
    {
        group = a.heads.n_heads / a.heads.n_kv_heads;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            all_max[h] = -INFINITY;
            all_sum[h] = 0;
        }
#pragma unroll
        for (int d = 0; d < HD / 8; d++)
            all_o[d][0] = all_o[d][1] = all_o[d][2] = all_o[d][3] = 0;
    }

    /* Row h of this lane: its token in the block and its head. */
    __device__ uint32_t row_of(int h) const
    {
        return warp * 16 + lane / 4 + h * 8;
    }

    __device__ bool has(uint32_t row) const
    {
        return row / group < n_tokens;
    }

    __device__ size_t place(uint32_t row) const
    {
        return (size_t)(row0 + row / group) * a.heads.n_heads + kv_head * group + row % group;
    }

    __device__ uint32_t stage(uint32_t i) const
    {
        return ring + i % STAGES * stage_bytes<HD>;
    }

    __device__ void find(uint32_t i, uint32_t tile, uint32_t end)
    {
        if (threadIdx.x < KEYS)
            offsets[i % STAGES][threadIdx.x] =
                key_offset(a.pages, a.heads, s, kv_head, min(tile * KEYS + threadIdx.x, end - 1));
    }

    __device__ void load(uint32_t i)
    {
        uint32_t pieces = hd / 8, base = stage(i);
        uint64_t values = value_distance(a.pages, a.heads);
        for (uint32_t p = threadIdx.x; p < KEYS * pieces; p += THREADS) {
            uint32_t r = p / pieces, c = p - r * pieces;
            const uint8_t *from = a.pages.pool + offsets[i % STAGES][r] + c * 16;
            cp_async_16(tile_address<HD>(base, r, c), from, 16);
            cp_async_16(tile_address<HD>(base + KEYS * HD * 2, r, c), from + values, 16);
        }
    }

    __device__ void load_query()
    {
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t row = row_of(i & 1);
                const bf16 *from = (const bf16 *)a.q + (has(row) ? place(row) * hd : 0);
                bool in = has(row) && d * 16 < (int)hd;
                q[d][i] = in ? ((const uint32_t *)(from + d * 16))[lane % 4 + (i >> 1) * 4] : 0;
            }
        }
    }

    /* The part's sums go to those of the parts before. */
    __device__ void end_part()
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
            if (max[h] == -INFINITY)
                continue;
            float top = fmaxf(all_max[h], max[h]);
            float before = scale_to(all_max[h], top), now = scale_to(max[h], top);
            all_max[h] = top;
            all_sum[h] = add_scaled(all_sum[h], before, sum[h], now);
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++)
                    all_o[d][i] = add_scaled(all_o[d][i], before, o[d][i], now);
            }
        }
        this->clear();
    }

    /* Tiles [begin, last); end: keys of the block. */
    __device__ void run(uint32_t begin, uint32_t last, uint32_t end)
    {
        for (uint32_t i = 0; i < STAGES - 1; i++)
            find(i, begin + i, end);
        __syncthreads();
        for (uint32_t i = 0; i < STAGES - 1; i++) {
            if (begin + i < last)
                load(i);
            cp_async_commit();
        }
        for (uint32_t tile = begin, i = 0; tile < last; tile++, i++) {
            find(i + STAGES - 1, tile + STAGES - 1, end);
            cp_async_wait<STAGES - 2>();
            __syncthreads();
            if (tile + STAGES - 1 < last)
                load(i + STAGES - 1);
            cp_async_commit();
            if (idle)
                continue;
            float p[KEYS / 8][4];
            const uint32_t at[2] = {position0 + row_of(0) / group, position0 + row_of(1) / group};
            this->scores(stage(i), p);
            this->soften(tile, at, p);
            this->add_values(stage(i) + KEYS * HD * 2, p);
            if (tile % PART == PART - 1 || tile + 1 == last)
                end_part();
        }
    }

    __device__ void store() const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t row = row_of(h);
            if (!has(row))
                continue;
            uint32_t *to = (uint32_t *)((bf16 *)a.out + place(row) * hd);
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                if (d * 8 < (int)hd)
                    to[d * 4 + lane % 4] =
                        pack_bf16(all_o[d][2 * h] / all_sum[h], all_o[d][2 * h + 1] / all_sum[h]);
            }
        }
    }

    /* One part's sums, for the kernel that adds them. rows: of the launch. */
    __device__ void store_part(uint32_t part, uint32_t rows) const
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t row = row_of(h);
            if (!has(row))
                continue;
            float *to = a.partial + ((size_t)part * rows * a.heads.n_heads + place(row)) * (hd + 2);
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                if (d * 8 >= (int)hd)
                    break;
                to[d * 8 + lane % 4 * 2] = all_o[d][2 * h];
                to[d * 8 + lane % 4 * 2 + 1] = all_o[d][2 * h + 1];
            }
            if (lane % 4 == 0) {
                to[hd] = all_max[h];
                to[hd + 1] = all_sum[h];
            }
        }
    }
};

/* grid: key/value heads, blocks x sub-blocks, parts (1: all parts by one CTA when !split). */
template <int HD>
__global__ void __launch_bounds__(THREADS)
    fixed_kernel(const cu_attention a, const cu_rows r, const uint32_t *block_sequence,
                 const uint32_t *block_row, uint32_t n_sub, uint32_t split)
{
    extern __shared__ __align__(128) uint8_t smem[];
    __shared__ uint64_t offsets[stages<HD>][KEYS];
    pdl_launch_dependents();
    pdl_wait();
    Block<HD> b(a, shared_address(smem), offsets);
    uint32_t idx = (gridDim.y - 1 - blockIdx.y) / n_sub, tokens = ROWS / b.group;
    uint32_t sub = (gridDim.y - 1 - blockIdx.y) % n_sub, first = block_row[idx] + sub * tokens;
    b.s = r.sequences[block_sequence[idx]];
    uint32_t end_row = min(block_row[idx] + CU_QUERY_ROWS, b.s.n_rows);
    if (first >= end_row)
        return;
    b.kv_head = blockIdx.x;
    b.row0 = b.s.row0 + first;
    b.n_tokens = min(tokens, end_row - first);
    b.position0 = b.s.position0 + first;
    b.idle = !b.has(b.warp * 16);
    uint32_t end = b.position0 + b.n_tokens, last = (end + KEYS - 1) / KEYS;
    uint32_t begin = a.heads.window && b.position0 + 1 > a.heads.window
                         ? (b.position0 + 1 - a.heads.window) / KEYS
                         : 0;
    if (split) {
        uint32_t part = begin / PART + blockIdx.z;
        begin = max(begin, part * PART);
        last = min(last, (part + 1) * PART);
    }
    b.load_query();
    if (begin < last)
        b.run(begin, last, end);
    if (split)
        b.store_part(blockIdx.z, split);
    else
        b.store();
}

/* Adds the parts of decode rows, as end_part does. */
__global__ void add_parts_kernel(const cu_attention a, uint32_t n_parts)
{
    pdl_launch_dependents();
    pdl_wait();
    uint32_t hd = a.heads.head_dim;
    size_t at = (size_t)blockIdx.y * a.heads.n_heads + blockIdx.x;
    size_t stride = (size_t)gridDim.y * a.heads.n_heads * (hd + 2);
    const float *p = a.partial + at * (hd + 2);
    for (uint32_t d = threadIdx.x; d < hd; d += blockDim.x) {
        float all_max = -INFINITY, all_sum = 0, all_o = 0;
#pragma unroll 4
        for (uint32_t i = 0; i < n_parts; i++) {
            const float *part = p + i * stride;
            float m = __ldcg(part + hd), sum = __ldcg(part + hd + 1), o = __ldcg(part + d);
            if (m == -INFINITY)
                continue;
            float top = fmaxf(all_max, m);
            float before = scale_to(all_max, top), now = scale_to(m, top);
            all_max = top;
            all_sum = add_scaled(all_sum, before, sum, now);
            all_o = add_scaled(all_o, before, o, now);
        }
        ((bf16 *)a.out)[at * hd + d] = __float2bfloat16(all_o / all_sum);
    }
}

template <int HD>
int launch(const cu_attention *a, const cu_rows *r, const uint32_t *block_sequence,
           const uint32_t *block_row, uint32_t n_blocks, uint32_t n_parts, cudaStream_t stream)
{
    constexpr int BYTES = stages<HD> * stage_bytes<HD>;
    static Allowed allowed;
    cudaError_t e = allow_shared(fixed_kernel<HD>, BYTES, allowed);
    if (e != cudaSuccess)
        return e;
    uint32_t tokens = ROWS / (a->heads.n_heads / a->heads.n_kv_heads);
    // A decode row is a block of its own: one sub-block.
    uint32_t n_sub = n_parts ? 1 : (CU_QUERY_ROWS + tokens - 1) / tokens;
    dim3 grid(a->heads.n_kv_heads, n_blocks * n_sub, n_parts ? n_parts : 1);
    e = launch_pdl(fixed_kernel<HD>, grid, dim3(THREADS), BYTES, stream, *a, *r, block_sequence,
                   block_row, n_sub, n_parts ? n_blocks : 0u);
    if (e != cudaSuccess || !n_parts)
        return e;
    return launch_pdl(add_parts_kernel, dim3(a->heads.n_heads, n_blocks), dim3(128), 0, stream, *a,
                      n_parts);
}

} // namespace

extern "C" int cu_attention_fixed(const struct cu_attention *a, const struct cu_rows *r,
                                  const uint32_t *block_sequence, const uint32_t *block_row,
                                  uint32_t n_blocks, uint32_t n_parts, cudaStream_t stream)
{
    if (n_blocks == 0)
        return 0;
    uint32_t hd = a->heads.head_dim;
    if (hd <= 64)
        return launch<64>(a, r, block_sequence, block_row, n_blocks, n_parts, stream);
    if (hd <= 128)
        return launch<128>(a, r, block_sequence, block_row, n_blocks, n_parts, stream);
    return launch<256>(a, r, block_sequence, block_row, n_blocks, n_parts, stream);
}
