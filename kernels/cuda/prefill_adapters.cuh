/*
 * prefill_adapters: the three warps of gemm_prefill that bring what adapters need: A for the shares
 * of v, v from the sums of all shares, then v and B of every tile.
 *
 * v = x A^T of 128 rows is computed by the first `shares` tiles of these rows: each multiplies its
 * share of the k-blocks of x that it has in shared memory anyway by A, too, and writes the sums to
 * a plane of its own. A word of each says that its plane is written; then these warps of each sum
 * all planes of some of the rows, in their order, and another word says that v of these is written.
 * Who waits for a word waits for tiles that come at most `shares` rows of tiles behind its own,
 * which is less than there are CTAs; all CTAs run at once, each has its tiles in order, and nobody
 * who computes a share waits for v before: so the first of those who wait always goes on.
 */
#ifndef KERNELS_CUDA_PREFILL_ADAPTERS_CUH
#define KERNELS_CUDA_PREFILL_ADAPTERS_CUH

#include "kernels/cuda/prefill_ring.cuh"
#include "kernels/cuda/shrink.cuh"

namespace lora
{

template <int BN, bool GLU> struct Loader : Ring<BN, GLU> {
    using R = Ring<BN, GLU>;
    using S = typename R::S;
    using R::a, R::lane, R::table, R::w_row;
    uint32_t tid, issued, done; // places since the kernel's begin

    __device__ Loader(const R &r) : R(r), tid(threadIdx.x - 32), issued(0), done(0) {}

    __device__ static void meet() // the three warps
    {
        asm volatile("bar.sync 2, 96;" ::: "memory");
    }

    // ---- places

    /* Hands over what was issued but for the last `left` places. */
    template <int left> __device__ void hand_over()
    {
        cp_async_wait<left>();
        fence_async_proxy();
        for (; done + left < issued; done++)
            barrier_arrive(R::item_full(done % PLACES));
    }

    /* Waits until the next place is free; nothing is held back meanwhile. */
    __device__ uint32_t next()
    {
        uint32_t s = issued % PLACES, parity = (issued / PLACES & 1) ^ 1;
        if (!__all_sync(0xffffffffu, barrier_test(R::item_empty(s), parity))) {
            hand_over<0>();
            barrier_wait(R::item_empty(s), parity);
            __syncwarp();
        }
        return s;
    }

    __device__ void commit()
    {
        cp_async_commit();
        issued++;
        hand_over<2>();
    }

    // ---- segments

    /* Calls f(segment, its index) for those among rows [row0, row0 + n), in order; all three warps
     * alike. */
    template <typename F> __device__ void for_segments(uint32_t row0, uint32_t n, F f) const
    {
        uint32_t n_segments = *a.g.n_segments;
        for (uint32_t j0 = 0; j0 < n_segments; j0 += 32) {
            cu_segment g = {};
            if (j0 + lane < n_segments)
                g = a.g.segments[j0 + lane];
            uint32_t hits =
                __ballot_sync(0xffffffffu, g.row0 < row0 + n && g.row0 + g.n_rows > row0);
            for (; hits; hits &= hits - 1) {
                uint32_t j = j0 + __ffs(hits) - 1;
                f(a.g.segments[j], j);
            }
        }
    }

    __device__ const cu_site &site_of(const cu_segment &g) const
    {
        return a.g.sites[(size_t)g.slot * a.g.site_stride];
    }

    // ---- words in memory

    /* `which` 0: the planes of all shares of these rows are written; 1: their v is. */
    __device__ uint32_t *words(uint32_t row0, uint32_t which) const
    {
        return a.g.ready + (row0 / BM * 2 + which) * SHARES;
    }

    __device__ void wait_words(uint32_t row0, uint32_t which) const
    {
        const uint32_t *at = words(row0, which) + lane % a.shares;
        auto all = [=] {
            uint32_t seen;
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(at) : "memory");
            return __all_sync(0xffffffffu, seen == a.g.epoch) != 0;
        };
        wait_until(all, row0, a.g.epoch);
    }

    __device__ void set_word(uint32_t *word) const
    {
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(word), "r"(a.g.epoch) : "memory");
    }

    // ---- a share

    __device__ void list_groups(Place p) const
    {
        uint32_t total = 0;
        for_segments(p.row0, BM,
                     [&](const cu_segment &g, uint32_t) { total += site_of(g).n_groups; });
        uint32_t n_places = total == 0 ? 0 : total <= GROUPS ? 1 : 2;
        uint32_t rows = n_places == 2 ? BM / 2 : BM;
        for (uint32_t w = 0; w < n_places; w++) {
            uint32_t n = 0, row0 = p.row0 + w * rows;
            for_segments(row0, rows, [&](const cu_segment &g, uint32_t j) {
                const cu_site &site = site_of(g);
                for (uint32_t i = 0; i < site.n_groups; i++, n++) {
                    if (tid == 0 && n < GROUPS)
                        table->groups[w][n] = {(const bf16 *)site.a[i], site.n_rows - i * 16,
                                               a.g.columns[j] + i * 16,
                                               max(g.row0, p.row0) - p.row0,
                                               min(g.row0 + g.n_rows, p.row0 + BM) - p.row0};
                }
            });
            if (tid == 0)
                table->n[w] = min(n, (uint32_t)GROUPS); // the caller promised no more
        }
        if (tid == 0)
            table->n_places = n_places;
    }

    __device__ void load_a(uint32_t to, uint32_t w, uint32_t k0) const
    {
        for (uint32_t i = tid; i < table->n[w] * 128; i += LOADERS) {
            uint32_t r = i / 8, c = i % 8, k = k0 + c * 8;
            const ShareGroup &g = table->groups[w][r / 16];
            bool in = r % 16 < g.n_rows && k < a.g.k;
            cp_async_16(to + r * 128 + ((c ^ (r & 7)) << 4),
                        g.a + (in ? (size_t)(r % 16) * a.g.k + k : 0), in ? 16 : 0);
        }
    }

    __device__ float4 sum_planes(const float *at) const
    {
        float4 sum = {};
#pragma unroll 4
        for (uint32_t i = 0; i < a.shares; i++) {
            float4 v = __ldcg((const float4 *)(at + (size_t)i * a.g.t * a.g.v_width));
            sum = {sum.x + v.x, sum.y + v.y, sum.z + v.z, sum.w + v.w};
        }
        return sum;
    }

    /* v of rows [begin, end) from the planes. */
    __device__ void sum_rows(uint32_t begin, uint32_t end) const
    {
        for_segments(begin, end - begin, [&](const cu_segment &g, uint32_t j) {
            const cu_site &site = site_of(g);
            uint32_t t0 = max(g.row0, begin), n_rows = min(g.row0 + g.n_rows, end) - t0;
            uint32_t n = site.n_groups * 4, column = a.g.columns[j];
            for (uint32_t i = tid; i < n_rows * n; i += LOADERS) {
                size_t at = (size_t)(t0 + i / n) * a.g.v_width + column;
                uint32_t c = i % n * 4;
                float4 v = sum_planes(a.g.planes + at + c);
                const float sums[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
                for (uint32_t e = 0; e < 4; e++)
                    store_v16(site, c + e, sums[e], g.scale, (bf16 *)a.g.v16 + at);
            }
        });
    }

    __device__ void share(Place p, uint32_t number)
    {
        meet(); // all have done with the table
        list_groups(p);
        meet();
        if (tid == 0)
            barrier_arrive(R::table_full());
        uint32_t n_places = table->n_places, b0 = p.tile * a.share;
        for (uint32_t b = 0; b < R::share_blocks(p); b++) {
            for (uint32_t w = 0; w < n_places; w++) {
                uint32_t s = next();
                load_a(R::item(s), w, (b0 + b) * BK);
                commit();
            }
        }
        hand_over<0>();
        barrier_wait(R::share_done(), number & 1);
        __syncwarp();
        if (!n_places)
            return;
        if (tid == 0) {
            __threadfence();
            set_word(words(p.row0, 0) + p.tile);
        }
        __syncwarp();
        wait_words(p.row0, 0);
        uint32_t rows = (BM + a.shares - 1) / a.shares, begin = p.row0 + p.tile * rows;
        uint32_t end = min(begin + rows, p.row0 + BM);
        if (begin < end)
            sum_rows(begin, end);
        __threadfence();
        meet();
        if (tid == 0)
            set_word(words(p.row0, 1) + p.tile);
    }

    // ---- v and B of a tile: steps of 16 ranks for each half of its outputs

    struct Half {
        const cu_part *p; // NULL: nothing
        uint32_t k;       // first rank
    };

    __device__ bool touches(const cu_part &p, uint32_t row) const
    {
        return p.rank && row + S::HALF > p.out0 && row < p.out0 + p.n_out;
    }

    __device__ uint32_t n_steps(const cu_site &site, uint32_t row) const
    {
        uint32_t n = 0;
        for (uint32_t i = 0; i < site.n_parts; i++)
            n += touches(site.parts[i], row) ? (site.parts[i].rank + 15) / 16 : 0;
        return n;
    }

    __device__ Half half_of(const cu_site &site, uint32_t row, uint32_t step) const
    {
        for (uint32_t i = 0; i < site.n_parts; i++) {
            const cu_part &p = site.parts[i];
            uint32_t n = touches(p, row) ? (p.rank + 15) / 16 : 0;
            if (step < n)
                return {&p, step * 16};
            step -= n;
        }
        return {nullptr, 0};
    }

    __device__ void load_v(uint32_t to, const Half &h, const cu_segment &g, uint32_t column,
                           uint32_t row0) const
    {
        const bf16 *from = (const bf16 *)a.g.v16 + (h.p ? column + h.p->col16 + h.k : 0);
        for (uint32_t i = tid; i < BM * 2; i += LOADERS) {
            uint32_t row = i / 2, t = row0 + row, c = i % 2;
            bool in = h.p && t >= g.row0 && t < g.row0 + g.n_rows;
            cp_async_16(to + (row / 8 * 2 + c) * 128 + row % 8 * 16,
                        from + (in ? (size_t)t * a.g.v_width + c * 8 : 0), in ? 16 : 0);
        }
    }

    /* As it lies in memory: 16 outputs x 8 ranks are 256 bytes, 8 a lane (expand.cuh). */
    __device__ void load_b(uint32_t to, const Half &h, uint32_t row) const
    {
        for (uint32_t i = tid; i < S::B_HALF / 16; i += LOADERS) {
            uint32_t tile = i / 32, c = i % 32;
            uint32_t local = h.p ? row + tile * 16 - h.p->out0 : 0;
            bool in = h.p && local < h.p->n_out && h.k + c / 16 * 8 < h.p->rank8;
            const uint8_t *from = (const uint8_t *)a.g.v16;
            if (in)
                from = (const uint8_t *)h.p->b[local / CU_B_BLOCK] +
                       (size_t)(local % CU_B_BLOCK / 16) * h.p->rank8 * 32 + h.k * 32 + c * 16;
            cp_async_16(to + i * 16, from, in ? 16 : 0);
        }
    }

    __device__ void set_rows(uint32_t s, uint32_t first, uint32_t end, bool last) const
    {
        if (tid == 0)
            asm volatile("st.shared.u32 [%0], %1;" ::"r"(R::item_rows(s)),
                         "r"(first | end << 8 | (uint32_t)last << 16)
                         : "memory");
    }

    __device__ void add_step(Place p, const cu_segment &g, uint32_t column, const Half half[2],
                             bool last)
    {
        uint32_t s = next();
        set_rows(s, max(g.row0, p.row0) - p.row0, min(g.row0 + g.n_rows, p.row0 + BM) - p.row0,
                 last);
        for (uint32_t h = 0; h < 2; h++)
            load_v(R::item(s) + h * V_HALF, half[h], g, column, p.row0);
        commit();
        s = next();
        for (uint32_t h = 0; h < 2; h++)
            load_b(R::item(s) + h * S::B_HALF, half[h], w_row(p.tile, h));
        commit();
    }

    __device__ void tile(Place p)
    {
        uint32_t low = w_row(p.tile, 0), high = w_row(p.tile, 1), left = 0;
        auto steps = [&](const cu_site &site) {
            return max(n_steps(site, low), n_steps(site, high));
        };
        for_segments(p.row0, BM, [&](const cu_segment &g, uint32_t) { left += steps(site_of(g)); });
        if (left && a.shares)
            wait_words(p.row0, 1);
        if (!left) {
            set_rows(next(), 0, 0, true);
            commit();
        } else {
            for_segments(p.row0, BM, [&](const cu_segment &g, uint32_t j) {
                const cu_site &site = site_of(g);
                uint32_t n = steps(site);
                for (uint32_t i = 0; i < n; i++) {
                    const Half half[2] = {half_of(site, low, i), half_of(site, high, i)};
                    add_step(p, g, a.g.columns[j], half, --left == 0);
                }
            });
        }
        hand_over<0>();
    }

    /* This CTA's share of the next site's A, so that its shares do not wait for memory. */
    __device__ void fetch_next() const
    {
        uint32_t at = blockIdx.x * LOADERS + tid, step = gridDim.x * LOADERS;
        uint32_t lines = a.g.next_k / 4, n = *a.g.n_segments; // of 128 bytes in 16 rows
        for (uint32_t j = 0; j < n; j++) {
            const cu_site &site = a.g.sites[(size_t)a.g.segments[j].slot * a.g.site_stride + 1];
            for (uint32_t i = at; i < site.n_groups * lines; i += step)
                asm volatile("prefetch.global.L2 [%0];" ::"l"((const uint8_t *)site.a[i / lines] +
                                                              i % lines * 128));
        }
    }

    __device__ void run()
    {
        uint32_t shares = 0;
        for (uint32_t i = blockIdx.x; i < a.n_tiles; i += gridDim.x) {
            Place p = R::place(i);
            if (R::has_share(p))
                share(p, shares++);
            if (a.g.next_k && i + gridDim.x >= a.n_tiles)
                fetch_next();
            tile(p);
        }
    }
};

} // namespace lora

#endif
