/*
 * gemm_small: y = x W^T for T <= 64 rows, and in the same launch s = x A^T of every adapter
 * present.
 *
 *   y[p][t][n], s[p][t][col]: partial sums over k in float32; the consumer adds the planes p and B
 * s.
 *
 * Weights stand on the MMA's M side (16 outputs), tokens on its N side (8). One CTA a
 * multiprocessor, 8 warps. All blocks (16 KB of weights) of the matrix lie on one line; every CTA
 * gets an equal stretch of it (stream-K), less what its chunks of A cost, so that no CTA waits for
 * another and adapters fill what would be the tail. A tile that crosses CTAs gives one plane for
 * each (plan.cu).
 *
 * T <= 16: blocks of 64 outputs x 128 inputs, warps 4 x 2 (outputs x k); else 128 x 64, warps 8 x
 * 1, so that x is read from L2 half as often. A chunks: 16 rows of A x 1024 inputs (2048 when there
 * are many) for at most 16 tokens.
 *
 * A CTA takes nearly all of a multiprocessor's shared memory, so that there is one on each, and
 * starts when the GEMM before it leaves: while the kernels between the two run, it fills its ring
 * with weights, which do not depend on them, as soon as most CTAs of that GEMM have asked for their
 * last bytes, and one or two blocks at a time: what is asked for at once stands in the memory's
 * queues before what those kernels ask for. Stages are handed over by mbarriers, and a stage is
 * asked for two blocks after it was read, so that no warp waits for another; a block must take well
 * below the time in which its bytes come, else a full ring is of no use. The code is kept small: it
 * is fetched through caches that all kernels of a layer share.
 *
 * H100 80GB, Llama-3.1-8B, 15.01 GB of weights a step (2026-11-28): see docs/PERFORMANCE.md for the
 * step. Tried: two CTAs a multiprocessor of 5 stages (the scheduler puts two of one GEMM on a
 * quarter of the multiprocessors, which are late by 20 %); chunks of A first; launch_dependents at
 * the last load; weights into L2 ahead of the ring (T = 1, ms a step: 5.88 without, 6.22 at 17 MB
 * ahead, 7.98 at 34, where lines were read twice); all stages at once before the wait (5.85 against
 * 5.72: the kernels between got slower by as much).
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch.h"

using namespace lora;

namespace
{

constexpr int THREADS = 256;
constexpr int W_STAGE = 16384; // bytes of weights in a stage
constexpr int MAX_BATCH = 64;  // chunk descriptors held at once

struct Chunk {
    const uint8_t *a;      // 16 rows of A, row-major
    uint32_t n_a;          // valid ones
    uint32_t row0, n_rows; // tokens, 16 at most
    uint32_t col;          // first column of s
    uint32_t plane;

    /* log2 of the tokens that x has room for: 4, 8 or 16. */
    __device__ uint32_t room() const
    {
        return n_rows <= 4 ? 2 : n_rows <= 8 ? 3 : 4;
    }
    /* Pieces of 64 inputs in a stage: 8 or 16 KB of A, then 4 or 8 KB of x. */
    __device__ uint32_t pieces() const
    {
        return n_rows <= 4 ? 8 : 4;
    }
};

/* What a block may have of shared memory: 99 KB on 8.6 and 8.9, 163 on 8.0, 227 from 9.0 on. */
enum Room { SMALL, MIDDLE, LARGE };

template <int NT, Room ROOM> struct Shape {
    static constexpr bool WIDE = NT > 2;
    static constexpr int ROWS = WIDE ? 128 : 64; // outputs of a block
    static constexpr int SUBS = WIDE ? 1 : 2;    // of 64 inputs
    static constexpr int X_STAGE = NT == 8 ? 8192 : 4096;
    static constexpr int STAGES = (ROOM == LARGE    ? 9
                                   : ROOM == MIDDLE ? 7
                                                    : 4) -
                                  (NT == 8); // those of NT 8 are larger
    static constexpr int AHEAD = STAGES - 2; // stages asked for before they are needed, in the loop
    static constexpr int RING = STAGES * (W_STAGE + X_STAGE);
    static constexpr int RED = 4096;
    static constexpr int CHUNKS = MAX_BATCH * (int)sizeof(Chunk);
    static constexpr int BYTES = RING + RED + CHUNKS + 2 * STAGES * 8;
};

/* Address of the 16-byte piece c (of 8) of row r in a tile whose rows are 64 inputs. */
__device__ __forceinline__ uint32_t swizzled(uint32_t base, int r, int c)
{
    return base + r * 128 + ((c ^ (r & 7)) << 4);
}

/* Where the stream of base blocks stands: a block of a tile of outputs. */
struct Place {
    uint32_t tile, kblock;
};

template <int NT, Room ROOM> struct Worker {
    using S = Shape<NT, ROOM>;
    static constexpr int PIECES = S::SUBS * 8; // 16-byte pieces of a row of a block
    const cu_gemm &g;
    uint32_t ring, full, empty; // shared addresses
    float *red;
    Chunk *chunks;
    int tid, warp, lane;
    uint32_t n_kblocks, base0, n_base; // base blocks of this CTA
    uint32_t n_mine;                   // A chunks of this CTA
    uint32_t plane0;                   // plane of its first tile; the others are its own from 0 on
    uint32_t asked, read;              // stages since the start
    Place at_load, at_read;
    uint32_t at_load_index; // base blocks asked for
    float acc[NT][4];

    __device__ Worker(const cu_gemm &g_, uint8_t *smem) : g(g_), asked(0), read(0)
    {
        ring = shared_address(smem);
        red = (float *)(smem + S::RING);
        chunks = (Chunk *)(smem + S::RING + S::RED);
        full = ring + S::RING + S::RED + S::CHUNKS;
        empty = full + S::STAGES * 8;
        tid = threadIdx.x;
        warp = tid / 32;
        lane = tid % 32;
        n_kblocks = (g.k + S::SUBS * 64 - 1) / (S::SUBS * 64);
        clear();
        if (tid < S::STAGES) {
            mbarrier_init(full + tid * 8, 2 * THREADS); // weights, then x
            mbarrier_init(empty + tid * 8, THREADS / 32);
        }
        wait_turn();
        __syncthreads();
    }

    __device__ void clear()
    {
#pragma unroll
        for (int n = 0; n < NT; n++)
            acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    }

    __device__ uint32_t w_stage(uint32_t i) const
    {
        return ring + (i % S::STAGES) * (W_STAGE + S::X_STAGE);
    }
    __device__ uint32_t x_stage(uint32_t i) const
    {
        return w_stage(i) + W_STAGE;
    }

    /* ---- handing over stages ---- */

    /* Stage i may be written: what was in it has been read by all warps. */
    __device__ void wait_empty(uint32_t i) const
    {
        mbarrier_wait(empty + i % S::STAGES * 8, (i / S::STAGES & 1) ^ 1);
    }
    __device__ void wait_full(uint32_t i) const
    {
        mbarrier_wait(full + i % S::STAGES * 8, i / S::STAGES & 1);
    }
    /* When this thread's copies so far have arrived. */
    __device__ void arrive_full(uint32_t i) const
    {
        mbarrier_arrive_copies(full + i % S::STAGES * 8);
    }
    __device__ void leave_stage(uint32_t i) const
    {
        __syncwarp();
        if (lane == 0)
            mbarrier_arrive(empty + i % S::STAGES * 8);
    }

    __device__ void next(Place &p) const
    {
        if (++p.kblock == n_kblocks) {
            p.kblock = 0;
            p.tile++;
        }
    }

    /* ---- base weights ---- */

    __device__ void load_base_w(uint32_t stage, const Place &p) const
    {
        constexpr int ROWS = THREADS / PIECES;
        uint32_t dst = w_stage(stage), r = tid / PIECES, c = tid % PIECES;
        uint32_t row = p.tile * S::ROWS + r, k = p.kblock * S::SUBS * 64 + c * 8;
        const uint8_t *src = (const uint8_t *)g.w + ((size_t)row * g.k + k) * 2;
        size_t step = (size_t)ROWS * g.k * 2;
        dst += (c / 8) * (S::ROWS * 128);
#pragma unroll
        for (int it = 0; it < 4; it++, src += step) {
            bool in = row + it * ROWS < g.n && k < g.k;
            cp_async_16_stream(swizzled(dst, r + it * ROWS, c % 8), in ? src : (const uint8_t *)g.w,
                               in ? 16 : 0);
        }
    }

    __device__ void load_x_piece(uint32_t dst, int r, int c, uint32_t row, uint32_t k) const
    {
        bool in = row < g.t && k < g.k;
        const uint8_t *src = (const uint8_t *)g.x + (in ? ((size_t)row * g.k + k) * 2 : 0);
        cp_async_16(swizzled(dst, r, c), src, in ? 16 : 0);
    }

    /* Rows beyond t are not written: what lies there ends in columns that nobody reads. */
    __device__ void load_base_x(uint32_t stage, const Place &p) const
    {
        uint32_t k0 = p.kblock * S::SUBS * 64, dst = x_stage(stage);
        constexpr int TOTAL = NT * 8 * PIECES;
#pragma unroll
        for (int it = 0; it < (TOTAL + THREADS - 1) / THREADS; it++) {
            int i = it * THREADS + tid, r = i / PIECES, c = i % PIECES;
            if (i < TOTAL && (uint32_t)r < g.t)
                load_x_piece(dst + (c / 8) * (NT * 8 * 128), r, c % 8, r, k0 + c * 8);
        }
    }

    __device__ void load_b(uint32_t xs, int k16, uint32_t b[NT][2]) const
    {
        if constexpr (NT == 1) {
            ldmatrix_x2(b[0], swizzled(xs, lane & 7, k16 * 2 + ((lane >> 3) & 1)));
        } else {
#pragma unroll
            for (int p = 0; p < NT / 2; p++) {
                uint32_t r[4];
                ldmatrix_x4(r, swizzled(xs, p * 16 + (lane >> 4) * 8 + (lane & 7),
                                        k16 * 2 + ((lane >> 3) & 1)));
                b[2 * p][0] = r[0];
                b[2 * p][1] = r[1];
                b[2 * p + 1][0] = r[2];
                b[2 * p + 1][1] = r[3];
            }
        }
    }

    __device__ void compute_base(uint32_t i)
    {
        uint32_t ws = w_stage(i), xs = x_stage(i);
        int m0 = S::WIDE ? warp * 16 : (warp & 3) * 16;
        if (!S::WIDE) {
            ws += (warp >> 2) * (S::ROWS * 128);
            xs += (warp >> 2) * (NT * 8 * 128);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            uint32_t w[4], b[NT][2];
            ldmatrix_x4(w, swizzled(ws, m0 + (lane & 15), k * 2 + (lane >> 4)));
            load_b(xs, k, b);
#pragma unroll
            for (int n = 0; n < NT; n++)
                mma_16816(acc[n], w, b[n]);
        }
    }

    /* CTAs before this one that work on its first tile. */
    __device__ uint32_t find_plane() const
    {
        uint32_t plane = 0, begin = base0 / n_kblocks * n_kblocks;
#pragma unroll 1
        for (uint32_t c = blockIdx.x; g.plan->start[c] > begin; c--)
            plane += g.plan->start[c] > g.plan->start[c - 1];
        return plane;
    }

    __device__ void flush_base(uint32_t tile)
    {
        int row = (S::WIDE ? warp : warp & 3) * 16 + lane / 4, col = lane % 4 * 2;
        if (!S::WIDE) {
            if (warp >= 4) {
#pragma unroll
                for (int n = 0; n < NT; n++) {
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        red[(n * 8 + col + (e & 1)) * 64 + row + (e >> 1) * 8] = acc[n][e];
                }
            }
            __syncthreads();
        }
        if (S::WIDE || warp < 4) {
            uint32_t plane = tile == base0 / n_kblocks ? plane0 : 0;
            float *y = g.y + (size_t)plane * g.t * g.n;
#pragma unroll
            for (int n = 0; n < NT; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    uint32_t t = n * 8 + col + (e & 1), r = row + (e >> 1) * 8;
                    uint32_t out = tile * S::ROWS + r;
                    if (t < g.t && out < g.n)
                        y[(size_t)t * g.n + out] = acc[n][e] + (S::WIDE ? 0.f : red[t * 64 + r]);
                }
            }
        }
        if (!S::WIDE)
            __syncthreads(); // the next tile's sums may come at once
        clear();
    }

    /* ---- A ---- */

    /* The j-th chunk of this CTA. */
    __device__ Chunk find_chunk(uint32_t j) const
    {
        uint32_t index = blockIdx.x + j * gridDim.x, low = 0, high = *g.n_segments;
#pragma unroll 1
        while (high - low > 1) {
            uint32_t mid = (low + high) / 2;
            if (g.plan->prefix[mid] <= index)
                low = mid;
            else
                high = mid;
        }
        cu_segment seg = g.segments[low];
        const cu_site *site = &g.sites[(size_t)seg.slot * g.site_stride];
        uint32_t blocks = (g.k + CU_TILE_K - 1) / CU_TILE_K;
        uint32_t planes = (blocks + g.chunk_blocks - 1) / g.chunk_blocks;
        uint32_t local = index - g.plan->prefix[low], per_pair = site->n_groups * planes;
        uint32_t pair = local / per_pair, group = local % per_pair / planes;
        Chunk c;
        c.a = (const uint8_t *)site->a[group];
        c.n_a = min(16u, site->n_rows - group * 16);
        c.row0 = seg.row0 + pair * 16;
        c.n_rows = min(16u, seg.row0 + seg.n_rows - c.row0);
        c.col = g.columns[low] + group * 16;
        c.plane = local % planes;
        return c;
    }

    __device__ void load_a(const Chunk &c, uint32_t stage, uint32_t piece0) const
    {
        uint32_t k0 = c.plane * g.chunk_blocks * CU_TILE_K + piece0 * 64, pieces = c.pieces();
        uint32_t ws = w_stage(stage), xs = ws + pieces * 2048, col = tid & 7, room = c.room();
#pragma unroll 1
        for (uint32_t r = tid >> 3; r < pieces * 16; r += THREADS / 8) {
            uint32_t k = k0 + (r >> 4) * 64 + col * 8;
            bool in = (r & 15) < c.n_a && k < g.k;
            const uint8_t *src = in ? c.a + ((size_t)(r & 15) * g.k + k) * 2 : (const uint8_t *)g.w;
            cp_async_16_stream(swizzled(ws, r, col), src, in ? 16 : 0);
        }
#pragma unroll 1
        for (uint32_t r = tid >> 3; r < pieces << room; r += THREADS / 8) {
            uint32_t row = r & ((1u << room) - 1);
            if (row < c.n_rows)
                load_x_piece(xs, r, col, c.row0 + row, k0 + (r >> room) * 64 + col * 8);
        }
    }

    /* Warps are dealt over the tiles of 8 tokens first, then over the steps of 16 inputs. Where x
     * has room for 4 tokens, the other 4 of the tile are the same again. */
    __device__ void compute_a(const Chunk &c, uint32_t stage)
    {
        uint32_t room = c.room(), pieces = c.pieces(), shift = room == 4;
        uint32_t ws = w_stage(stage), xs = ws + pieces * 2048;
        uint32_t row = ((warp & ((1u << shift) - 1)) * 8 + (lane & 7)) & ((1u << room) - 1);
#pragma unroll 2
        for (uint32_t k = warp >> shift; k < pieces * 4; k += 8u >> shift) {
            uint32_t w[4], b[2], q = k / 4, k16 = k % 4;
            ldmatrix_x4(w, swizzled(ws + q * 2048, lane & 15, k16 * 2 + (lane >> 4)));
            ldmatrix_x2(b, swizzled(xs, (q << room) + row, k16 * 2 + ((lane >> 3) & 1)));
            mma_16816(acc[0], w, b);
        }
    }

    __device__ void flush_a(const Chunk &c)
    {
        uint32_t shift = c.room() == 4, rows = 8u << shift, parts = 8u >> shift;
        int row = lane / 4, col = (warp & ((1u << shift) - 1)) * 8 + lane % 4 * 2;
        float *mine = red + (warp >> shift) * (16 * rows);
#pragma unroll
        for (int e = 0; e < 4; e++)
            mine[(col + (e & 1)) * 16 + row + (e >> 1) * 8] = acc[0][e];
        __syncthreads();
        float *s = g.s + (size_t)c.plane * g.t * g.s_width;
#pragma unroll 1
        for (uint32_t i = tid; i < 16 * c.n_rows; i += THREADS) {
            uint32_t r = i % 16;
            if (r >= c.n_a)
                continue;
            float sum = 0;
#pragma unroll 2
            for (uint32_t p = 0; p < parts; p++)
                sum += red[p * (16 * rows) + i];
            s[(size_t)(c.row0 + i / 16) * g.s_width + c.col + r] = sum;
        }
        __syncthreads();
        acc[0][0] = acc[0][1] = acc[0][2] = acc[0][3] = 0;
    }

    /* ---- the stream of stages: base blocks, then chunks ---- */

    /* A place in the chunks of a batch. */
    struct Cursor {
        uint32_t chunk, piece;
    };

    /* True when that was the chunk's last stage. */
    __device__ bool advance(Cursor &at) const
    {
        at.piece += chunks[at.chunk].pieces();
        if (at.piece < g.chunk_blocks * 2)
            return false;
        at.piece = 0;
        at.chunk++;
        return true;
    }

    /* Asks for the next stage: a base block while there are any, else a part of a chunk. */
    __device__ void ask(uint32_t blocks, uint32_t n, Cursor &chunk)
    {
        wait_empty(asked);
        if (at_load_index < blocks) {
            load_base_w(asked, at_load);
            arrive_full(asked);
            load_base_x(asked, at_load);
            next(at_load);
            at_load_index++;
        } else {
            load_a(chunks[chunk.chunk], asked, chunk.piece);
            advance(chunk);
            arrive_full(asked);
        }
        arrive_full(asked++);
        if (at_load_index >= blocks && chunk.chunk >= n)
            tell_asked();
    }

    /* Until most CTAs of the GEMM before have asked for all of their own: what this one asks for
     * earlier takes bandwidth from those that are late. A hint, so not for ever. */
    __device__ void wait_turn() const
    {
        if (tid == 0 && g.asked_before)
            await_count(g.asked_before, gridDim.x * 5 / 8, 20);
    }

    __device__ void tell_asked() const
    {
        if (tid == 0)
            atomicAdd(g.asked, 1u);
    }

    /* The base blocks that have not been read and n chunks. One place each for what is asked for
     * and what is read: the kernels of a layer should stay in the instruction caches together. */
    __device__ void run_stream(uint32_t blocks, uint32_t n)
    {
        Cursor loading = {0, 0}, done = {0, 0};
#pragma unroll 1
        for (uint32_t i = 0; i < blocks || done.chunk < n; i++, read++) {
#pragma unroll 1
            while (asked < read + S::AHEAD && (at_load_index < blocks || loading.chunk < n))
                ask(blocks, n, loading);
            wait_full(read);
            if (i < blocks) {
                compute_base(read);
                leave_stage(read);
                uint32_t tile = at_read.tile;
                next(at_read);
                if (i + 1 == blocks || at_read.kblock == 0)
                    flush_base(tile);
            } else {
                const Chunk &c = chunks[done.chunk];
                compute_a(c, read);
                leave_stage(read);
                if (advance(done))
                    flush_a(c);
            }
        }
    }

    __device__ void find_chunks(uint32_t first, uint32_t n) const
    {
        if (tid < n)
            chunks[tid] = find_chunk(first + tid);
    }

    /* Weights of the first stages, a few of them on their way at a time: what is asked for at once
     * stands in the memory's queues before what the kernels between the two GEMMs ask for. */
    __device__ void fill(uint32_t stages, uint32_t n_chunks) const
    {
        Place at = at_load;
#pragma unroll 1
        for (uint32_t i = 0; i < max(stages, 2u); i++, next(at)) {
            if (i == 1)
                find_chunks(0, n_chunks);
            if (i >= stages)
                continue;
            if (i >= 1 && g.segments)
                cp_async_wait<0>();
            else if (i >= 2)
                cp_async_wait<1>();
            load_base_w(i, at);
            arrive_full(i);
            cp_async_commit();
        }
    }

    /* Before the wait the weights, after it what the kernels before have written. */
    __device__ void begin(uint32_t n_chunks)
    {
        uint32_t early = min(n_base, (uint32_t)S::STAGES);
        fill(early, n_chunks);
        plane0 = find_plane();
        pdl_wait();
#pragma unroll 1
        for (; asked < early; asked++, next(at_load)) {
            load_base_x(asked, at_load);
            arrive_full(asked);
        }
        at_load_index = early;
        if (early == n_base && n_mine == 0)
            tell_asked();
    }

    __device__ void run()
    {
        base0 = g.plan->start[blockIdx.x];
        n_base = g.plan->start[blockIdx.x + 1] - base0;
        at_load = at_read = Place{base0 / n_kblocks, base0 % n_kblocks};
        uint32_t n_chunks = g.segments ? g.plan->n_chunks : 0, first = 0;
        n_mine = n_chunks / gridDim.x + (blockIdx.x < n_chunks % gridDim.x);
#pragma unroll 1
        do {
            uint32_t n = min(n_mine - first, (uint32_t)MAX_BATCH);
            if (first)
                find_chunks(first, n);
            else
                begin(n);
            __syncthreads();
            run_stream(first ? 0 : n_base, n);
            first += n;
            __syncthreads();
        } while (first < n_mine);
    }
};

// So few registers that the kernels between two GEMMs fit beside a CTA of this one.
template <int NT, Room ROOM>
__global__ void __maxnreg__(NT > 2 ? 88 : 64) gemm_small_kernel(const cu_gemm g)
{
    extern __shared__ __align__(128) uint8_t smem[];
    pdl_launch_dependents();
    Worker<NT, ROOM> worker(g, smem);
    worker.run();
}

template <int NT, Room ROOM> int launch_in(const cu_gemm *g, cudaStream_t stream)
{
    constexpr int BYTES = Shape<NT, ROOM>::BYTES;
    static Allowed allowed;
    cudaError_t e = allow_shared(gemm_small_kernel<NT, ROOM>, BYTES, allowed);
    if (e != cudaSuccess)
        return e;
    return launch_pdl(gemm_small_kernel<NT, ROOM>, dim3(g->n_ctas), dim3(THREADS), BYTES, stream,
                      *g);
}

template <int NT> int launch(const cu_gemm *g, cudaStream_t stream)
{
    int bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    if (bytes >= Shape<NT, LARGE>::BYTES)
        return launch_in<NT, LARGE>(g, stream);
    return bytes >= Shape<NT, MIDDLE>::BYTES ? launch_in<NT, MIDDLE>(g, stream)
                                             : launch_in<NT, SMALL>(g, stream);
}

} // namespace

extern "C" uint32_t cu_chunk_blocks(uint32_t k)
{
    uint32_t blocks = (k + CU_TILE_K - 1) / CU_TILE_K, n = 1;
    while (n < (k > 8192 ? 16u : 8u) && n < blocks)
        n *= 2;
    return n;
}

extern "C" void cu_block_shape(uint32_t t, uint32_t *rows, uint32_t *k)
{
    *rows = t <= 16 ? 64 : 128;
    *k = t <= 16 ? 128 : 64;
}

extern "C" int cu_gemm_small(const struct cu_gemm *g, cudaStream_t stream)
{
    if (g->t <= 8)
        return launch<1>(g, stream);
    if (g->t <= 16)
        return launch<2>(g, stream);
    if (g->t <= 32)
        return launch<4>(g, stream);
    return launch<8>(g, stream);
}
