/*
 * attention_prefill: out = softmax(scale q K^T) V, causal and windowed, for sequences with many
 * rows.
 *
 * A CTA has 64 query rows of one head, 4 warps of 16 rows; keys and values come from the pages in
 * tiles of 64 through two stages (flash attention with a running maximum, mma.m16n8k16).
 */
#include "kernels/cuda/attention_tile.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 128, KEYS = 64, STAGES = 2;

template <int HD> constexpr int stage_bytes = 2 * KEYS *HD * 2;

template <int HD> struct Block : QueryTile<HD> {
    using Tile = QueryTile<HD>;
    using Tile::a, Tile::hd, Tile::warp, Tile::lane, Tile::q, Tile::o, Tile::sum;
    cu_sequence s;
    uint32_t head, kv_head, row0, n_rows, position0;
    uint32_t ring;
    uint64_t (*offsets)[KEYS]; // of the rows of two tiles, in shared memory

    __device__ Block(const cu_attention &a_, uint32_t ring_, uint64_t (*offsets_)[KEYS])
        : Tile(a_), ring(ring_), offsets(offsets_)
    {
    }

    __device__ uint32_t stage(uint32_t i) const
    {
        return ring + i % STAGES * stage_bytes<HD>;
    }

    /* Page look-ups of a tile's rows, once for all their pieces; a barrier before load(). */
    __device__ void find(uint32_t i, uint32_t tile, uint32_t end)
    {
        if (threadIdx.x < KEYS)
            offsets[i & 1][threadIdx.x] =
                key_offset(a.pages, a.heads, s, kv_head, min(tile * KEYS + threadIdx.x, end - 1));
    }

    __device__ void load(uint32_t i)
    {
        uint32_t pieces = hd / 8, base = stage(i);
        uint64_t values = value_distance(a.pages, a.heads);
        for (uint32_t p = threadIdx.x; p < KEYS * pieces; p += THREADS) {
            uint32_t r = HD == 128 && hd == 128 ? p / 16 : p / pieces, c = p - r * pieces;
            const uint8_t *from = a.pages.pool + offsets[i & 1][r] + c * 16;
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
                uint32_t r = warp * 16 + lane / 4 + (i & 1) * 8;
                const bf16 *from =
                    (const bf16 *)a.q + ((size_t)(row0 + r) * a.heads.n_heads + head) * hd;
                bool in = r < n_rows && d * 16 < (int)hd;
                q[d][i] = in ? ((const uint32_t *)(from + d * 16))[lane % 4 + (i >> 1) * 4] : 0;
            }
        }
    }

    __device__ void run()
    {
        uint32_t end = position0 + n_rows; // keys
        uint32_t begin = a.heads.window && position0 + 1 > a.heads.window
                             ? (position0 + 1 - a.heads.window) / KEYS
                             : 0;
        uint32_t n = (end + KEYS - 1) / KEYS, first = position0 + warp * 16 + lane / 4;
        const uint32_t at[2] = {first, first + 8};
        find(0, begin, end);
        find(1, begin + 1, end);
        __syncthreads();
        load(0);
        cp_async_commit();
        for (uint32_t tile = begin, i = 0; tile < n; tile++, i++) {
            if (tile + 1 < n)
                load(i + 1);
            cp_async_commit();
            cp_async_wait<1>();
            __syncthreads();
            find(i, tile + 2, end);
            float p[KEYS / 8][4];
            this->scores(stage(i), p);
            this->soften(tile, at, p);
            this->add_values(stage(i) + KEYS * HD * 2, p);
            __syncthreads();
        }
    }

    __device__ void store()
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
            uint32_t r = warp * 16 + lane / 4 + h * 8;
            if (r >= n_rows)
                continue;
            bf16 *to = (bf16 *)a.out + ((size_t)(row0 + r) * a.heads.n_heads + head) * hd;
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                if (d * 8 < (int)hd)
                    ((uint32_t *)(to + d * 8))[lane % 4] =
                        pack_bf16(o[d][2 * h] / sum[h], o[d][2 * h + 1] / sum[h]);
            }
        }
    }
};

template <int HD>
__global__ void __launch_bounds__(THREADS)
    prefill_kernel(const cu_attention a, const cu_rows r, const uint32_t *block_sequence,
                   const uint32_t *block_row)
{
    extern __shared__ __align__(128) uint8_t smem[];
    pdl_launch_dependents();
    pdl_wait();
    __shared__ uint64_t offsets[2][KEYS];
    Block<HD> b(a, shared_address(smem), offsets);
    // The longest blocks first: they come last in their sequence.
    uint32_t idx = gridDim.y - 1 - blockIdx.y;
    b.s = r.sequences[block_sequence[idx]];
    b.head = blockIdx.x;
    b.kv_head = blockIdx.x / (a.heads.n_heads / a.heads.n_kv_heads);
    b.row0 = b.s.row0 + block_row[idx];
    b.n_rows = min((uint32_t)CU_QUERY_ROWS, b.s.n_rows - block_row[idx]);
    b.position0 = b.s.position0 + block_row[idx];
    b.load_query();
    b.run();
    b.store();
}

template <int HD>
int launch(const cu_attention *a, const cu_rows *r, const uint32_t *block_sequence,
           const uint32_t *block_row, uint32_t n_blocks, cudaStream_t stream)
{
    constexpr int BYTES = STAGES * stage_bytes<HD>;
    static Allowed allowed;
    cudaError_t e = allow_shared(prefill_kernel<HD>, BYTES, allowed);
    if (e != cudaSuccess)
        return e;
    return launch_pdl(prefill_kernel<HD>, dim3(a->heads.n_heads, n_blocks), dim3(THREADS), BYTES,
                      stream, *a, *r, block_sequence, block_row);
}

} // namespace

extern "C" int cu_attention_prefill(const struct cu_attention *a, const struct cu_rows *r,
                                    const uint32_t *block_sequence, const uint32_t *block_row,
                                    uint32_t n_blocks, cudaStream_t stream)
{
    if (n_blocks == 0)
        return 0;
    uint32_t hd = a->heads.head_dim;
    if (hd <= 64)
        return launch<64>(a, r, block_sequence, block_row, n_blocks, stream);
    if (hd <= 128)
        return launch<128>(a, r, block_sequence, block_row, n_blocks, stream);
    return launch<256>(a, r, block_sequence, block_row, n_blocks, stream);
}
