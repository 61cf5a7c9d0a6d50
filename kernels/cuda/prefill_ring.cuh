/*
 * prefill_ring: what the threads of gemm_prefill share: how tiles are dealt out, the two rings in
 * shared memory and their barriers.
 *
 * One ring has the k-blocks of x and W, filled by the copy engine. The other has four places of 8
 * KB for what adapters bring, filled by three warps: 64 rows of A of a k-block, or v of 128 rows
 * (16 ranks for each half of a tile's outputs), or the B that belongs to it.
 */
#ifndef KERNELS_CUDA_PREFILL_RING_CUH
#define KERNELS_CUDA_PREFILL_RING_CUH

#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/launch.h"

namespace lora
{

constexpr int BM = 128, BK = 64, LOADERS = 96, PLACES = 4, PLACE = 8192, V_HALF = BM * 32;
constexpr int GROUPS = CU_PREFILL_GROUPS, SHARES = CU_PREFILL_SHARES;
constexpr int SHARE_AT = 8; // blocks of x before a share, in which A is on its way

template <int BN> struct PrefillShape {
    static constexpr int HALF = BN / 2, B_HALF = HALF * 32;
    static constexpr int X_BYTES = BM * BK * 2, W_BYTES = BN * BK * 2;
    static constexpr int STAGE = X_BYTES + W_BYTES, STAGES = 4 * 48 * 1024 / STAGE;
    static constexpr int PLACES_AT = STAGES * STAGE, BARRIERS_AT = PLACES_AT + PLACES * PLACE;
    static constexpr int TABLE_AT = BARRIERS_AT + 256;
    static constexpr int BYTES = TABLE_AT + 256 + 1024; // the ring begins at a multiple of 1024
};

struct PrefillArgs {
    cu_prefill g;
    uint32_t n_rows_of_tiles, n_tiles;
    uint32_t group;         // rows of tiles that come one after the other
    float linear, cubic;    // of the activation
    uint32_t shares;        // tiles of a row of tiles that compute v, each of a share of k; or 0
    uint32_t blocks, share; // of k in all, of a share
    bool turn;              // tiles with shares begin elsewhere in k, so that all shares come early
};

struct Place {
    uint32_t row0, tile; // first row, tile of outputs
};

/* A step through a ring. */
struct Turn {
    uint32_t s, parity;
};

/* 16 ranks of an adapter in a share. */
struct ShareGroup {
    const bf16 *a;
    uint32_t n_rows;      // that a has
    uint32_t column;      // of the sums
    uint32_t first, last; // rows of the tile that it is for
};

struct ShareTable {
    uint32_t n_places; // of a k-block: 0: no adapter here, 1: for all rows, 2: for 64 rows each
    uint32_t n[2];
    ShareGroup groups[2][GROUPS];
};

template <int BN, bool GLU> struct Ring {
    using S = PrefillShape<BN>;
    const PrefillArgs &a;
    uint32_t ring, warp, lane;
    ShareTable *table;

    __device__ Ring(const PrefillArgs &a_, uint8_t *smem)
        : a(a_), ring((shared_address(smem) + 1023) & ~1023u), warp(threadIdx.x / 32),
          lane(threadIdx.x % 32),
          table((ShareTable *)(smem + (ring - shared_address(smem)) + S::TABLE_AT))
    {
        static_assert(sizeof(ShareTable) <= 256, "the table's room");
    }

    __device__ uint32_t stage(uint32_t s) const
    {
        return ring + s * S::STAGE;
    }
    __device__ uint32_t full(uint32_t s) const
    {
        return ring + S::BARRIERS_AT + s * 8;
    }
    __device__ uint32_t empty(uint32_t s) const
    {
        return full(S::STAGES + s);
    }
    __device__ uint32_t item(uint32_t s) const
    {
        return ring + S::PLACES_AT + s * PLACE;
    }
    __device__ uint32_t item_full(uint32_t s) const
    {
        return full(2 * S::STAGES + s);
    }
    __device__ uint32_t item_empty(uint32_t s) const
    {
        return full(2 * S::STAGES + PLACES + s);
    }
    __device__ uint32_t table_full() const
    {
        return full(2 * S::STAGES + 2 * PLACES);
    }
    /* The sums of a share are in memory. */
    __device__ uint32_t share_done() const
    {
        return full(2 * S::STAGES + 2 * PLACES + 1);
    }
    /* Of a place with v: first row | end << 8 | the tile's last << 16; end 0: nothing is there. */
    __device__ uint32_t item_rows(uint32_t s) const
    {
        return full(2 * S::STAGES + 2 * PLACES + 2) + s * 4;
    }

    __device__ void init() const
    {
        if (threadIdx.x == 0) {
            for (uint32_t s = 0; s < S::STAGES; s++) {
                barrier_init(full(s), 1);
                barrier_init(empty(s), 8);
            }
            for (uint32_t s = 0; s < PLACES; s++) {
                barrier_init(item_full(s), LOADERS);
                barrier_init(item_empty(s), 8);
            }
            barrier_init(table_full(), 1);
            barrier_init(share_done(), 8);
            barrier_init_done();
        }
        __syncthreads();
    }

    __device__ static void advance(Turn &t)
    {
        if (++t.s == S::STAGES) {
            t.s = 0;
            t.parity ^= 1;
        }
    }

    __device__ Place place(uint32_t i) const
    {
        uint32_t per = a.group, n = a.n_tiles / a.n_rows_of_tiles, group = i / (per * n);
        uint32_t rows = min(per, a.n_rows_of_tiles - group * per), at = i - group * per * n;
        return {(group * per + at % rows) * BM, at / rows};
    }

    /* First row of W of a half of the tile. */
    __device__ uint32_t w_row(uint32_t tile, uint32_t half) const
    {
        return GLU ? half * (a.g.n / 2) + tile * S::HALF : tile * BN + half * S::HALF;
    }

    // ---- shares: tile i of a row of tiles has k-blocks [i share, …) of it

    __device__ bool has_share(Place p) const
    {
        return p.tile < a.shares;
    }
    __device__ uint32_t share_blocks(Place p) const
    {
        return min(a.share, a.blocks - p.tile * a.share);
    }
    /* Blocks that the tile goes over before its share. */
    __device__ uint32_t share_at(Place p) const
    {
        return a.turn ? min((uint32_t)SHARE_AT, a.blocks - share_blocks(p)) : p.tile * a.share;
    }
    /* Which k-block a tile begins with. */
    __device__ uint32_t first_block(Place p) const
    {
        if (!has_share(p) || !a.turn)
            return 0;
        uint32_t at = p.tile * a.share, before = share_at(p);
        return at >= before ? at - before : at + a.blocks - before;
    }
};

} // namespace lora

#endif
