/*
 * moe_route: which experts a row goes to, and where; and the sum over a row's experts.
 *
 * A warp a row: softmax over all experts, the n_used largest (the lower expert among equals), their
 * shares renormalised with norm_topk. Then the places, sorted by (expert, row): counts by block of
 * CU_ROUTE_ROWS rows (a bit a row and expert), sums over the blocks and experts, and a place's rank
 * is the number of bits below its own. Up to one block of rows that is one launch, beyond it three.
 * Everything is counted in device memory, so a recorded launch serves any routing.
 *
 * H100, 128 experts, 8 a row, us at T = 1 / 8 / 64 / 2048 (2026-11-28): every expert's thread going
 * over the block's places 8.0 / 13.2 / 68.9 / 88; bits 5.6 / 6.0 / 17.2 / 24.9.
 */
#include "kernels/cuda/common.cuh"
#include "kernels/cuda/launch_moe.h"

using namespace lora;

namespace
{

constexpr int THREADS = 512, WARPS = THREADS / 32;
static_assert(CU_MAX_EXPERTS <= THREADS, "a thread an expert");
static_assert(CU_ROUTE_ROWS == 64, "a bit a row");

struct Shared {
    uint16_t chosen[CU_ROUTE_ROWS * CU_MAX_EXPERTS_USED];
    uint32_t rows[CU_MAX_EXPERTS][2]; // which of the block's rows go to an expert
    uint32_t first[CU_MAX_EXPERTS];   // place of its first
    uint32_t sums[WARPS];
};

/* Sums of v over the threads before this one; *total of all. */
__device__ uint32_t scan(uint32_t v, Shared &sm, uint32_t *total)
{
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, sum = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        uint32_t add = __shfl_up_sync(0xffffffffu, sum, d);
        sum += (int)lane >= d ? add : 0;
    }
    __syncthreads();
    if (lane == 31)
        sm.sums[warp] = sum;
    __syncthreads();
    uint32_t before = 0, all = 0;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        before += w < warp ? sm.sums[w] : 0;
        all += sm.sums[w];
    }
    *total = all;
    return before + sum - v;
}

/* g y + b + s b_B of one logit, as expand.cuh does for other sites. */
__device__ float finish(const cu_route &r, float y, uint32_t row, uint32_t expert)
{
    int owner = r.owner[row];
    float b = 0;
    if (owner >= 0) {
        const cu_site &site = r.sites[(size_t)r.segments[owner].slot * r.site_stride];
        for (uint32_t i = 0; i < site.n_parts; i++) {
            y *= site.parts[i].gain ? site.parts[i].gain[expert] : 1.f;
            b = site.parts[i].bias ? site.parts[i].bias[expert] : b;
        }
    }
    y += b;
    for (uint32_t j = 0; j < *r.n_segments; j++) {
        cu_segment s = r.segments[j];
        const cu_site &site = r.sites[(size_t)s.slot * r.site_stride];
        for (uint32_t i = 0; i < site.n_parts && row >= s.row0 && row < s.row0 + s.n_rows; i++) {
            const cu_part &p = site.parts[i];
            y += p.lora_bias ? s.scale * p.scale * p.lora_bias[expert] : 0.f;
        }
    }
    return y;
}

/* The experts of one row, by one warp. */
template <int PER_LANE> __device__ void choose(const cu_route &r, uint32_t row, uint16_t *chosen)
{
    uint32_t lane = threadIdx.x % 32;
    float p[PER_LANE], top = -INFINITY, total = 0, kept = 0, mine = 0;
#pragma unroll
    for (int i = 0; i < PER_LANE; i++) {
        uint32_t e = i * 32 + lane;
        p[i] = -INFINITY;
        if (e >= r.n_experts)
            continue;
        p[i] = r.logits[(size_t)row * r.n_experts + e];
        if (r.kinds == 2)
            p[i] = finish(r, p[i], row, e);
        top = fmaxf(top, p[i]);
    }
    top = warp_max(top);
#pragma unroll
    for (int i = 0; i < PER_LANE; i++)
        total += p[i] = expf(p[i] - top);
    total = warp_sum(total);
    for (uint32_t k = 0; k < r.n_used; k++) {
        float best = -1;
        uint32_t id = 0;
#pragma unroll
        for (int i = 0; i < PER_LANE; i++) {
            if (i * 32 + lane < r.n_experts && p[i] > best) {
                best = p[i];
                id = i * 32 + lane;
            }
        }
        for (int i = 16; i; i >>= 1) {
            float o = __shfl_xor_sync(0xffffffffu, best, i);
            uint32_t oid = __shfl_xor_sync(0xffffffffu, id, i);
            if (o > best || (o == best && oid < id)) {
                best = o;
                id = oid;
            }
        }
#pragma unroll
        for (int i = 0; i < PER_LANE; i++)
            p[i] = i * 32 + lane == id ? -1.f : p[i];
        kept += best / total;
        mine = k == lane ? best / total : mine;
        if (lane == 0)
            chosen[k] = (uint16_t)id;
        if (lane == k)
            r.chosen[(size_t)row * r.n_used + k] = id;
    }
    if (lane < r.n_used)
        r.weight[(size_t)row * r.n_used + lane] = r.norm_topk ? mine / kept : mine;
}

/* Rows of a block; 0 beyond the step's. */
__device__ uint32_t rows_of(const cu_route &r, uint32_t block)
{
    uint32_t n = min(*r.n_rows, r.t), first = block * CU_ROUTE_ROWS;
    return first < n ? min(n - first, (uint32_t)CU_ROUTE_ROWS) : 0;
}

/* Marks which rows go to which expert; how many do to each thread's. */
__device__ uint32_t count(const cu_route &r, uint32_t n_places, Shared &sm)
{
    for (uint32_t i = threadIdx.x; i < 2 * CU_MAX_EXPERTS; i += THREADS)
        sm.rows[i / 2][i % 2] = 0;
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < n_places; i += THREADS) {
        uint32_t row = i / r.n_used;
        atomicOr(&sm.rows[sm.chosen[i]][row / 32], 1u << row % 32);
    }
    __syncthreads();
    const uint32_t *rows = sm.rows[threadIdx.x % CU_MAX_EXPERTS];
    return threadIdx.x < r.n_experts ? __popc(rows[0]) + __popc(rows[1]) : 0;
}

/* The block's places, an expert's from its thread's `first` on, by rising row. */
__device__ void deal(const cu_route &r, uint32_t block, uint32_t n_places, uint32_t first,
                     Shared &sm)
{
    if (threadIdx.x < r.n_experts)
        sm.first[threadIdx.x] = first;
    __syncthreads();
    uint32_t row0 = block * CU_ROUTE_ROWS;
    for (uint32_t i = threadIdx.x; i < n_places; i += THREADS) {
        uint32_t e = sm.chosen[i], row = i / r.n_used, below = (1u << row % 32) - 1;
        uint32_t low = sm.rows[e][0], high = sm.rows[e][1];
        uint32_t at =
            sm.first[e] + (row < 32 ? __popc(low & below) : __popc(low) + __popc(high & below));
        r.place[(size_t)row0 * r.n_used + i] = at;
        r.place_row[at] = row0 + row;
    }
}

/* Tiles of each thread's expert, which has places [first, first + n). */
__device__ void list_tiles(const cu_route &r, uint32_t first, uint32_t n, Shared &sm)
{
    uint32_t total, at = scan((n + r.tile - 1) / r.tile, sm, &total);
    for (uint32_t i = 0; i < n; i += r.tile)
        r.tiles[at++] = cu_tile{threadIdx.x, first + i, min(n - i, r.tile)};
    if (threadIdx.x == 0)
        *r.n_tiles = total;
}

__device__ void choose_block(const cu_route &r, uint32_t block, uint32_t n_rows, Shared &sm)
{
    for (uint32_t i = threadIdx.x / 32; i < n_rows; i += WARPS) {
        uint32_t row = block * CU_ROUTE_ROWS + i;
        if (r.n_experts <= 128)
            choose<4>(r, row, sm.chosen + i * r.n_used);
        else
            choose<CU_MAX_EXPERTS / 32>(r, row, sm.chosen + i * r.n_used);
    }
    __syncthreads();
}

__global__ void __launch_bounds__(THREADS) route_kernel(const cu_route r)
{
    __shared__ Shared sm;
    pdl_launch_dependents();
    pdl_wait();
    uint32_t n_rows = rows_of(r, 0), n_places = n_rows * r.n_used, total;
    choose_block(r, 0, n_rows, sm);
    uint32_t n = count(r, n_places, sm), first = scan(n, sm, &total);
    deal(r, 0, n_places, first, sm);
    list_tiles(r, first, n, sm);
}

__global__ void __launch_bounds__(THREADS) choose_kernel(const cu_route r)
{
    __shared__ Shared sm;
    pdl_launch_dependents();
    pdl_wait();
    uint32_t n_rows = rows_of(r, blockIdx.x);
    choose_block(r, blockIdx.x, n_rows, sm);
    uint32_t n = count(r, n_rows * r.n_used, sm);
    if (threadIdx.x < r.n_experts)
        r.counts[(size_t)blockIdx.x * r.n_experts + threadIdx.x] = n;
}

/* counts become the first place of each expert in each block. */
__global__ void __launch_bounds__(THREADS) sum_kernel(const cu_route r, uint32_t n_blocks)
{
    __shared__ Shared sm;
    pdl_launch_dependents();
    pdl_wait();
    uint32_t n = 0, total;
    for (uint32_t b = 0; threadIdx.x < r.n_experts && b < n_blocks; b++)
        n += r.counts[(size_t)b * r.n_experts + threadIdx.x];
    uint32_t first = scan(n, sm, &total), at = first;
    for (uint32_t b = 0; threadIdx.x < r.n_experts && b < n_blocks; b++) {
        uint32_t *c = &r.counts[(size_t)b * r.n_experts + threadIdx.x], here = *c;
        *c = at;
        at += here;
    }
    list_tiles(r, first, n, sm);
}

__global__ void __launch_bounds__(THREADS) deal_kernel(const cu_route r)
{
    __shared__ Shared sm;
    pdl_launch_dependents();
    pdl_wait();
    uint32_t n_places = rows_of(r, blockIdx.x) * r.n_used, row0 = blockIdx.x * CU_ROUTE_ROWS;
    for (uint32_t i = threadIdx.x; i < n_places; i += THREADS)
        sm.chosen[i] = (uint16_t)r.chosen[(size_t)row0 * r.n_used + i];
    __syncthreads();
    count(r, n_places, sm);
    uint32_t at =
        threadIdx.x < r.n_experts ? r.counts[(size_t)blockIdx.x * r.n_experts + threadIdx.x] : 0;
    deal(r, blockIdx.x, n_places, at, sm);
}

constexpr int COMBINE_THREADS = 256;

/* A thread has two dimensions of one row. */
__global__ void __launch_bounds__(COMBINE_THREADS)
    combine_kernel(const uint32_t *y, const uint32_t *place, const float *weight,
                   const uint32_t *n_rows, uint32_t n_used, uint32_t d, float *out)
{
    pdl_launch_dependents();
    pdl_wait();
    uint32_t row = blockIdx.x, i = blockIdx.y * COMBINE_THREADS + threadIdx.x;
    if (row >= *n_rows || i >= d / 2)
        return;
    float2 sum = make_float2(0, 0);
    for (uint32_t k0 = 0; k0 < n_used; k0 += 8) { // eight loads in flight
        uint32_t v[8];
        float w[8];
#pragma unroll
        for (int k = 0; k < 8; k++) {
            bool in = k0 + k < n_used;
            uint32_t at = row * n_used + k0 + k;
            w[k] = in ? weight[at] : 0.f;
            v[k] = in ? __ldcg(y + (size_t)place[at] * (d / 2) + i) : 0;
        }
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float2 p = unpack_bf16(v[k]);
            sum.x += w[k] * p.x;
            sum.y += w[k] * p.y;
        }
    }
    *(float2 *)(out + (size_t)row * d + i * 2) = sum;
}

} // namespace

extern "C" uint32_t cu_route_tiles(uint32_t t, uint32_t n_experts, uint32_t n_used, uint32_t tile)
{
    uint32_t places = t * n_used, full = places / tile;
    uint32_t most = full + (places < n_experts ? places : n_experts);
    return most < places ? most : places;
}

extern "C" int cu_route_rows(const struct cu_route *r, cudaStream_t stream)
{
    if (r->t <= CU_ROUTE_ROWS)
        return launch_pdl(route_kernel, dim3(1), dim3(THREADS), 0, stream, *r);
    uint32_t n_blocks = (r->t + CU_ROUTE_ROWS - 1) / CU_ROUTE_ROWS;
    int rc = launch_pdl(choose_kernel, dim3(n_blocks), dim3(THREADS), 0, stream, *r);
    rc = rc ? rc : (int)launch_pdl(sum_kernel, dim3(1), dim3(THREADS), 0, stream, *r, n_blocks);
    return rc ? rc : (int)launch_pdl(deal_kernel, dim3(n_blocks), dim3(THREADS), 0, stream, *r);
}

extern "C" int cu_moe_combine(const void *y, const uint32_t *place, const float *weight,
                              const uint32_t *n_rows, uint32_t t, uint32_t n_used, uint32_t d,
                              float *out, cudaStream_t stream)
{
    return launch_pdl(combine_kernel, dim3(t, (d / 2 + COMBINE_THREADS - 1) / COMBINE_THREADS),
                      dim3(COMBINE_THREADS), 0, stream, (const uint32_t *)y, place, weight, n_rows,
                      n_used, d, out);
}
