/*
 * attention_tile: one warp's 16 query rows against tiles of 64 keys and values in shared memory
 * (flash attention with a running maximum, mma.m16n8k16), for attention_prefill and
 * attention_fixed. A lane has rows lane / 4 and + 8.
 */
#ifndef KERNELS_CUDA_ATTENTION_TILE_CUH
#define KERNELS_CUDA_ATTENTION_TILE_CUH

#include "kernels/cuda/attention.cuh"

namespace lora
{

template <int HD> struct QueryTile {
    static constexpr int KEYS = 64;
    const cu_attention &a;
    uint32_t hd;
    int warp, lane;
    uint32_t q[HD / 16][4];
    float o[HD / 8][4];
    float max[2], sum[2]; // of a lane's rows; the sum of what this lane saw of them

    __device__ explicit QueryTile(const cu_attention &a_) : a(a_), hd(a_.heads.head_dim)
    {
        warp = threadIdx.x / 32;
        lane = threadIdx.x % 32;
        clear();
    }

    /* No keys seen yet. */
    __device__ void clear()
    {
        max[0] = max[1] = -INFINITY;
        sum[0] = sum[1] = 0;
#pragma unroll
        for (int d = 0; d < HD / 8; d++)
            o[d][0] = o[d][1] = o[d][2] = o[d][3] = 0;
    }

    __device__ void scores(uint32_t base, float p[KEYS / 8][4]) const
    {
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
            p[n][0] = p[n][1] = p[n][2] = p[n][3] = 0;
#pragma unroll
        for (int d = 0; d < HD / 16; d++) {
            if (d * 16 >= (int)hd)
                break;
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                uint32_t k[4];
                ldmatrix_x4(k, tile_address<HD>(base, n * 16 + (lane >> 4) * 8 + (lane & 7),
                                                d * 2 + ((lane >> 3) & 1)));
                mma_16816(p[2 * n], q[d], k);
                mma_16816(p[2 * n + 1], q[d], k + 2);
            }
        }
    }

    /* Turns scores into weights against the running maximum. at: the positions of rows 0 and 1. */
    __device__ void soften(uint32_t tile, const uint32_t at[2], float p[KEYS / 8][4])
    {
        const float log2e = 1.4426950408889634f;
        float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t key = tile * KEYS + n * 8 + lane % 4 * 2 + (i & 1), mine = at[i >> 1];
                float v = soft_cap(p[n][i] * a.heads.scale, a.heads.softcap) * log2e;
                bool seen = key <= mine && (!a.heads.window || key + a.heads.window > mine);
                p[n][i] = seen ? v : -INFINITY;
                top[i >> 1] = fmaxf(top[i >> 1], p[n][i]);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
            top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
            top[h] = fmaxf(top[h], max[h]);
            float safe = top[h] == -INFINITY ? 0.f : top[h], scale = exp2f(max[h] - safe);
            max[h] = top[h];
            sum[h] *= scale;
#pragma unroll
            for (int d = 0; d < HD / 8; d++) {
                o[d][2 * h] *= scale;
                o[d][2 * h + 1] *= scale;
            }
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    p[n][i] = exp2f(p[n][i] - safe);
                    sum[h] += p[n][i];
                }
            }
        }
    }

    __device__ void add_values(uint32_t base, float p[KEYS / 8][4])
    {
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            uint32_t w[4] = {pack_bf16(p[2 * k][0], p[2 * k][1]),
                             pack_bf16(p[2 * k][2], p[2 * k][3]),
                             pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]),
                             pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
            for (int d = 0; d < HD / 16; d++) {
                if (d * 16 >= (int)hd)
                    break;
                uint32_t v[4];
                ldmatrix_x4_trans(
                    v, tile_address<HD>(base, k * 16 + (lane & 15), d * 2 + (lane >> 4)));
                mma_16816(o[2 * d], w, v);
                mma_16816(o[2 * d + 1], w, v + 2);
            }
        }
    }
};

} // namespace lora

#endif
