/*
 * gemm_prefill: y[T, N] = x[T, K] W^T + sum over adapters of v B^T for many rows, on sm_90a.
 *
 * A persistent CTA takes tiles of 128 rows x BN outputs. One thread feeds a ring of k-blocks of 64
 * through the copy engine; two warpgroups of 64 rows each multiply (wgmma, m64 x BN). Tiles go down
 * the rows of a group first, so that x of the group and a few columns of W stay in L2.
 *
 * Adapters (prefill_adapters.cuh): v is given, or the first tiles of every 128 rows compute it from
 * the x that they have in shared memory, each for a share of k. After a tile's last k-block each
 * warp adds v B^T to its accumulators by mma.sync, whose fragments B lies in; only for segments
 * that have rows among its 16. The sum is rounded once, y is written once.
 *
 * CU_SILU and CU_GELU: a tile has the gates of BN / 2 columns and their ups, and writes
 * f(gate) up [T, N / 2].
 */
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/prefill_adapters.cuh"

using namespace lora;

namespace
{

constexpr int THREADS = 384;

template <int BN, bool GLU, bool LORA> struct Product : Ring<BN, GLU> {
    using R = Ring<BN, GLU>;
    using S = typename R::S;
    using R::a, R::lane, R::table, R::warp;
    using R::empty, R::full, R::item, R::item_empty, R::item_full, R::stage, R::w_row;

    __device__ Product(const R &r) : R(r) {}

    // ---- one thread: k-blocks

    __device__ void copy(const CUtensorMap *x_map, const CUtensorMap *w_map) const
    {
        Turn t = {0, 0};
        for (uint32_t i = blockIdx.x; i < a.n_tiles; i += gridDim.x) {
            Place p = R::place(i);
            uint32_t block = LORA ? R::first_block(p) : 0;
            for (uint32_t b = 0; b < a.blocks; b++, R::advance(t)) {
                uint32_t to = stage(t.s), bar = full(t.s);
                barrier_wait(empty(t.s), t.parity ^ 1);
                barrier_expect(bar, S::STAGE);
                tma_load(to, x_map, bar, block * BK, p.row0);
                to += S::X_BYTES;
                tma_load(to, w_map, bar, block * BK, w_row(p.tile, 0));
                tma_load(to + S::W_BYTES / 2, w_map, bar, block * BK, w_row(p.tile, 1));
                if (++block == a.blocks)
                    block = 0;
            }
        }
    }

    // ---- two warpgroups: products

    __device__ uint32_t group() const
    {
        return warp / 4 - 1;
    }

    __device__ void release(uint32_t bar) const
    {
        __syncwarp();
        if (lane == 0)
            barrier_arrive(bar);
    }

    __device__ uint64_t x_tile(uint32_t s) const
    {
        return swizzled_tile(stage(s) + group() * (64 * BK * 2));
    }

    /* With adapters the products always add: ptxas makes them wait for each other where it does not
     * see which one comes first. */
    template <int N> __device__ static void clear(float (&sums)[N])
    {
#pragma unroll
        for (int i = 0; i < N; i++)
            sums[i] = 0.f;
        wgmma_hold(sums);
    }

    __device__ void multiply_block(float *acc, uint32_t s, bool first) const
    {
        uint64_t x = x_tile(s), w = swizzled_tile(stage(s) + S::X_BYTES);
#pragma unroll
        for (int k = 0; k < BK / 16; k++)
            Wgmma<BN>::run(acc, x + 2 * k, w + 2 * k, LORA || k > 0 || !first);
    }

    __device__ void multiply_blocks(float (&acc)[BN / 2], Turn &t, uint32_t n) const
    {
        uint32_t before = 0;
        for (uint32_t b = 0; b < n; b++, R::advance(t)) {
            barrier_wait(full(t.s), t.parity);
            wgmma_fence();
            multiply_block(acc, t.s, b == 0);
            wgmma_commit();
            if (b > 0) {
                wgmma_wait<1>();
                release(empty(before));
            }
            before = t.s;
        }
        wgmma_wait<0>();
        wgmma_hold(acc);
        if (n > 0)
            release(empty(before));
    }

    // ---- a share of v

    /* Waits for A of a k-block; its place for these rows. The other rows' place is given back. */
    __device__ uint32_t wait_a(uint32_t &items, uint32_t n_places) const
    {
        uint32_t mine = 0;
        for (uint32_t w = 0; w < n_places; w++, items++) {
            uint32_t s = items % PLACES;
            barrier_wait(item_full(s), items / PLACES & 1);
            if (n_places == 1 || w == group())
                mine = s;
            else
                release(item_empty(s));
        }
        return mine;
    }

    /* Blocks against A, too; then the sums go to this tile's plane. */
    template <int N>
    __device__ void multiply_share(float (&acc)[BN / 2], Turn &t, uint32_t &items, uint32_t n,
                                   Place p) const
    {
        float v[N / 2];
        clear(v);
        uint32_t before = 0, a_before = 0, n_places = table->n_places;
        for (uint32_t b = 0; b < n; b++, R::advance(t)) {
            barrier_wait(full(t.s), t.parity);
            uint32_t s = wait_a(items, n_places);
            uint64_t x = x_tile(t.s), at = swizzled_tile(item(s));
            wgmma_fence();
            multiply_block(acc, t.s, b == 0);
#pragma unroll
            for (int k = 0; k < BK / 16; k++)
                Wgmma<N>::run(v, x + 2 * k, at + 2 * k, 1);
            wgmma_commit();
            if (b > 0) {
                wgmma_wait<1>();
                release(empty(before));
                release(item_empty(a_before));
            }
            before = t.s;
            a_before = s;
        }
        wgmma_wait<0>();
        wgmma_hold(acc);
        wgmma_hold(v);
        release(empty(before));
        release(item_empty(a_before));
        store_sums<N>(v, p, n_places == 2 ? group() : 0);
    }

    template <int N>
    __device__ void store_sums(const float (&v)[N / 2], Place p, uint32_t place) const
    {
        float *plane = a.g.planes + (size_t)p.tile * a.g.t * a.g.v_width;
        uint32_t row = group() * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const ShareGroup &g = table->groups[place][j / 2];
            if (j / 2 >= (int)table->n[place])
                break;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                uint32_t r = row + h * 8, column = g.column + j % 2 * 8 + lane % 4 * 2;
                if (r >= g.first && r < g.last)
                    *(float2 *)(plane + (size_t)(p.row0 + r) * a.g.v_width + column) =
                        make_float2(v[j * 4 + h * 2], v[j * 4 + h * 2 + 1]);
            }
        }
    }

    __device__ void run_share(float (&acc)[BN / 2], Turn &t, uint32_t &items, Place p,
                              uint32_t number) const
    {
        uint32_t n = R::share_blocks(p);
        barrier_wait(R::table_full(), number & 1);
        uint32_t wide = table->n_places == 2 ? max(table->n[0], table->n[1]) : table->n[0];
        if (table->n_places == 0)
            multiply_blocks(acc, t, n);
        else if (wide <= 1)
            multiply_share<16>(acc, t, items, n, p);
        else if (wide == 2)
            multiply_share<32>(acc, t, items, n, p);
        else
            multiply_share<64>(acc, t, items, n, p);
        release(R::share_done());
    }

    // ---- v B^T of a tile

    /* A thread's accumulators of 8 columns lie as the sums of mma.m16n8k16 do. */
    __device__ void add_step(float (&acc)[BN / 2], uint32_t v_at, uint32_t b_at) const
    {
        uint32_t row = group() * 64 + warp % 4 * 16;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t v[4], at = b_at + h * S::B_HALF + lane * 8;
            ldmatrix_x4(v, v_at + h * V_HALF + (row / 8 + (lane >> 3 & 1)) * 256 +
                               (lane >> 4) * 128 + lane % 8 * 16);
#pragma unroll
            for (int i = 0; i < S::HALF / 16; i++) {
                uint32_t low[2], high[2], b[2];
                load_shared_8(low, at + i * 512);
                load_shared_8(high, at + i * 512 + 256);
                float *sums = acc + (h * S::HALF / 8 + 2 * i) * 4;
                b[0] = low[0], b[1] = high[0];
                mma_16816(sums, v, b);
                b[0] = low[1], b[1] = high[1];
                mma_16816(sums + 4, v, b);
            }
        }
    }

    __device__ static void load_shared_8(uint32_t w[2], uint32_t address)
    {
        asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
                     : "=r"(w[0]), "=r"(w[1])
                     : "r"(address)
                     : "memory");
    }

    __device__ void add_adapters(float (&acc)[BN / 2], uint32_t &items) const
    {
        uint32_t row = group() * 64 + warp % 4 * 16;
        for (bool last = false; !last;) {
            uint32_t s = items % PLACES, rows;
            barrier_wait(item_full(s), items++ / PLACES & 1);
            asm volatile("ld.shared.u32 %0, [%1];" : "=r"(rows) : "r"(R::item_rows(s)) : "memory");
            rows = __shfl_sync(0xffffffffu, rows, 0);
            uint32_t first = rows & 255, end = rows >> 8 & 255;
            last = rows >> 16;
            if (end) {
                uint32_t s_b = items % PLACES;
                barrier_wait(item_full(s_b), items++ / PLACES & 1);
                if (first < row + 16 && end > row)
                    add_step(acc, item(s), item(s_b));
                release(item_empty(s_b));
            }
            release(item_empty(s));
        }
    }

    __device__ void multiply_all() const
    {
        Turn t = {0, 0};
        uint32_t items = 0, shares = 0;
        for (uint32_t i = blockIdx.x; i < a.n_tiles; i += gridDim.x) {
            float acc[BN / 2];
            Place p = R::place(i);
            if (LORA)
                clear(acc);
            if (LORA && R::has_share(p)) {
                uint32_t at = R::share_at(p);
                multiply_blocks(acc, t, at);
                run_share(acc, t, items, p, shares++);
                multiply_blocks(acc, t, a.blocks - at - R::share_blocks(p));
            } else {
                multiply_blocks(acc, t, a.blocks);
            }
            if (LORA)
                add_adapters(acc, items);
            store(acc, p);
        }
    }

    // ---- output

    /* Both are gate sigmoid(.) up: of gate, or of 1.6 (gate + 0.045 gate^3), which is the tanh
     * form. */
    __device__ float combine(float gate, float up) const
    {
        float x = gate * (a.linear + a.cubic * gate * gate);
        return __fdividef(gate, 1.f + __expf(-x)) * up;
    }

    __device__ uint32_t pair(const float *acc, int i) const
    {
        if (GLU)
            return pack_bf16(combine(acc[i], acc[i + BN / 4]),
                             combine(acc[i + 1], acc[i + 1 + BN / 4]));
        return pack_bf16(acc[i], acc[i + 1]);
    }

    __device__ void store(const float (&acc)[BN / 2], Place p) const
    {
        constexpr int WIDTH = GLU ? BN / 2 : BN;
        uint32_t width = GLU ? a.g.n / 2 : a.g.n;
        uint32_t row = p.row0 + group() * 64 + warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            uint32_t t = row + h * 8;
            bf16 *to = (bf16 *)a.g.y + (size_t)t * width;
#pragma unroll
            for (int j = 0; j < WIDTH / 8; j += 4) {
                uint32_t w[4], column = p.tile * WIDTH + (j + lane % 4) * 8;
#pragma unroll
                for (int i = 0; i < 4; i++)
                    w[i] = pair(acc, (j + i) * 4 + h * 2);
                uint4 v = exchange_columns(lane, w);
                if (t < a.g.t && column < width)
                    *(uint4 *)(to + column) = v;
            }
        }
    }
};

template <int BN, bool GLU, bool LORA>
__global__ void __launch_bounds__(THREADS, 1)
    prefill_kernel(const __grid_constant__ CUtensorMap x_map,
                   const __grid_constant__ CUtensorMap w_map, const __grid_constant__ PrefillArgs a)
{
    extern __shared__ uint8_t smem[];
    Ring<BN, GLU> ring(a, smem);
    if (threadIdx.x == 0) {
        tma_prefetch(&x_map);
        tma_prefetch(&w_map);
    }
    ring.init();
    pdl_launch_dependents();
    if (ring.warp < 4) {
        registers_down<56>();
        if (ring.warp == 0 && ring.lane == 0) {
            pdl_wait();
            Product<BN, GLU, LORA>(ring).copy(&x_map, &w_map);
        }
        if (LORA && ring.warp > 0) {
            pdl_wait();
            Loader<BN, GLU>(ring).run();
        }
    } else {
        registers_up<224>();
        Product<BN, GLU, LORA>(ring).multiply_all();
    }
}

/* bf16 [rows, k] in boxes of box_rows x 64. */
int describe(CUtensorMap *map, const void *data, uint32_t rows, uint32_t k, uint32_t box_rows)
{
    uint64_t dims[2] = {k, rows}, pitch[1] = {2ull * k};
    uint32_t box[2] = {BK, box_rows};
    return describe_tensor(map, data, 2, dims, pitch, box);
}

constexpr uint32_t GROUP_ROWS = 2048;

/* How v is shared out: to as many tiles of a row of tiles as have CTAs at once. */
void share_out(PrefillArgs *a, uint32_t ctas)
{
    uint32_t rows = a->n_rows_of_tiles < a->group ? a->n_rows_of_tiles : a->group;
    uint32_t n = a->n_tiles / a->n_rows_of_tiles, most = ctas / rows;
    n = n < SHARES ? n : SHARES;
    n = n < most ? n : most;
    n = n < a->g.max_planes ? n : a->g.max_planes;
    a->share = (a->blocks + n - 1) / n;
    a->shares = (a->blocks + a->share - 1) / a->share;
    // x is read from 8 places at once then: from L2, if it is not much.
    a->turn = (uint64_t)rows * BM * a->g.k * 2 <= 24u << 20;
}

template <int BN, bool GLU, bool LORA> int launch(const cu_prefill *g, cudaStream_t stream)
{
    using S = PrefillShape<BN>;
    auto kernel = prefill_kernel<BN, GLU, LORA>;
    static Allowed allowed;
    CUtensorMap x_map, w_map;
    int rc = describe(&x_map, g->x, g->t, g->k, BM);
    rc = rc ? rc : describe(&w_map, g->w, g->n, g->k, S::HALF);
    rc = rc ? rc : (int)allow_shared(kernel, S::BYTES, allowed);
    if (rc)
        return rc;
    uint32_t rows = (g->t + BM - 1) / BM;
    uint32_t width = GLU ? S::HALF : BN, n = GLU ? g->n / 2 : g->n;
    PrefillArgs a = {*g,
                     rows,
                     rows * ((n + width - 1) / width),
                     GROUP_ROWS / BM,
                     1.f,
                     0.f,
                     0,
                     (g->k + BK - 1) / BK,
                     0,
                     false};
    if (g->epilogue == CU_GELU) {
        a.linear = 2 * 0.7978845608028654f;
        a.cubic = a.linear * 0.044715f;
    }
    uint32_t ctas = g->n_ctas < a.n_tiles ? g->n_ctas : a.n_tiles;
    if (LORA && g->planes)
        share_out(&a, ctas);
    return launch_pdl(kernel, dim3(ctas), dim3(THREADS), S::BYTES, stream, x_map, w_map, a);
}

template <int BN> int launch_as(const cu_prefill *g, cudaStream_t stream)
{
    if (g->epilogue == CU_STORE)
        return g->segments ? launch<BN, false, true>(g, stream)
                           : launch<BN, false, false>(g, stream);
    return g->segments ? launch<BN, true, true>(g, stream) : launch<BN, true, false>(g, stream);
}

} // namespace

extern "C" int cu_gemm_prefill(const struct cu_prefill *g, cudaStream_t stream)
{
    if (g->k % 8 || g->n % 16 || (g->epilogue != CU_STORE && g->n % 32))
        return cudaErrorInvalidValue;
    if (g->planes && (!g->max_planes || g->n_ctas < GROUP_ROWS / BM))
        return cudaErrorInvalidValue;
    uint32_t rows = (g->t + BM - 1) / BM;
    auto waves = [&](uint32_t width) {
        return (rows * ((g->n + width - 1) / width) + g->n_ctas - 1) / g->n_ctas;
    };
    // Narrow tiles cost 0.62 of a wide one, not 0.5.
    bool wide = g->tile ? g->tile == 256 : waves(256) * 100 <= waves(128) * 62;
    return wide ? launch_as<256>(g, stream) : launch_as<128>(g, stream);
}
