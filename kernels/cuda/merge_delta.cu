/*
 * merge_delta: out = round_once(W + L R), 16 bits a value, bit for bit what cpu/merge_delta.c
 * gives.
 *
 * W[n_rows, n_cols], L[n_rows, rank], R in panels of 32 columns. A CTA of 256 threads makes 8 rows
 * of one chunk of 512 columns; a thread 2 neighbouring columns of all 8 rows, so that an element of
 * R is loaded once for 8 products and L comes from shared memory, 64 of k at a time. Sums are
 * float32 fused multiply-adds in the order that backend.h says, with no tensor cores: a value whose
 * window of error rounds two ways is summed again in float64 by its own thread (a few in ten
 * thousand). Rounding modes are said at each operation, so that no compiler flag changes a bit.
 * Bytes moved: 2 + 2 a value and 16 a chunk; R stays in L2. Up to rank 64 or so the link to the
 * host is the bound (2 + 2 bytes a value), then the FMA pipe. Tried: nothing else yet.
 */
#include <cuda_runtime.h>

#include "kernels/cuda/common.cuh"
#include "kernels/cuda/merge_launch.h"

namespace
{

constexpr uint32_t PANEL = 32, TERMS = 16, CHUNK = 512, LANES = 16;
constexpr uint32_t ROWS = 8, THREADS = 256, SLICE = 64, STRIDE = CHUNK + LANES;
constexpr uint32_t OPEN = 0xFFFFFFFFu;

template <bool BF16> __device__ float to_float(uint32_t bits)
{
    if (BF16)
        return __uint_as_float(bits << 16);
    uint32_t sign = (bits & 0x8000) << 16, magnitude = bits & 0x7FFF;
    if (magnitude >= 0x7C00)
        return __uint_as_float(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    return __uint_as_float(sign |
                           __float_as_uint(__fmul_rn(__uint_as_float(magnitude << 13), 0x1p112f)));
}

/* To nearest, ties to even; a NaN gives something with all exponent bits set. */
template <bool BF16> __device__ uint32_t round_float(float v)
{
    uint32_t bits = __float_as_uint(v), magnitude = bits & 0x7FFFFFFF;
    if (magnitude > 0x7F800000)
        return BF16 ? 0x7FC0 : 0x7E00;
    if (BF16)
        return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    uint32_t sign = bits >> 16 & 0x8000;
    if (magnitude >= 0x477FF000)
        return sign | 0x7C00;
    if (magnitude < 0x38800000)
        return sign | (__float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0.5f)) - 0x3F000000);
    return sign | (magnitude + 0xC8000FFF + (magnitude >> 13 & 1)) >> 13;
}

/* Once, not twice: cut to float32 with its last bit odd where something was cut. */
template <bool BF16> __device__ uint32_t round_double(double v)
{
    float f = __double2float_rz(v);
    uint32_t odd = (double)f != v; // also of a NaN, which stays one
    return round_float<BF16>(__uint_as_float(__float_as_uint(f) | odd));
}

template <bool BF16> __device__ bool decided(uint32_t low, uint32_t high)
{
    const uint32_t exponent = BF16 ? 0x7F80 : 0x7C00;
    return low == high && (low & exponent) != exponent;
}

/* The value in float64; false: open. */
template <bool BF16>
__device__ __noinline__ bool settle(const cu_merge &m, uint32_t row, uint32_t j, float w,
                                    uint32_t *out)
{
    const double *left = m.left_exact + (size_t)row * m.rank;
    const float *right = m.right + (size_t)(j / PANEL) * m.rank * PANEL + j % PANEL;
    double sum[4] = {0, 0, 0, 0};
    uint32_t whole = m.rank / 4 * 4;
    for (uint32_t k = 0; k < m.rank; k++) {
        double product = __dmul_rn(left[k], (double)right[(size_t)k * PANEL]);
        uint32_t t = k < whole ? k % 4 : 0;
        for (uint32_t i = 0; i < 4; i++) // no indexing: the sums stay in registers
            sum[i] = i == t ? __dadd_rn(sum[i], product) : sum[i];
    }
    double v =
        __dadd_rn((double)w, __dadd_rn(__dadd_rn(sum[0], sum[1]), __dadd_rn(sum[2], sum[3])));
    double slack = m.left_norms[row] * (double)m.norms[j] * (double)(m.rank + 8) * 0x1p-53 +
                   fabs(v) * 0x1p-50 + 0x1p-1000;
    *out = round_double<BF16>(v - slack);
    return isfinite(w) && decided<BF16>(*out, round_double<BF16>(v + slack));
}

struct tile {
    float left[SLICE][ROWS];
    float delta[ROWS][STRIDE];
    uint16_t old[ROWS][STRIDE], now[ROWS][STRIDE];
    float lanes[3][ROWS][LANES];
    uint32_t n_changed[ROWS];
    uint32_t open[ROWS];
};

/* The float32 sums of two columns and ROWS rows. */
__device__ void sums(const cu_merge &m, tile &s, uint32_t row0, uint32_t n_rows, uint32_t j,
                     float (&total)[ROWS][2])
{
    const float *right = m.right + (size_t)(j / PANEL) * m.rank * PANEL + j % PANEL;
    bool inside = j < (m.n_cols + PANEL - 1) / PANEL * PANEL;
    float part[ROWS][2];
    for (uint32_t i = 0; i < ROWS; i++)
        total[i][0] = total[i][1] = 0;
    for (uint32_t k0 = 0; k0 < m.rank; k0 += SLICE) {
        uint32_t n = min(SLICE, m.rank - k0);
        __syncthreads();
        for (uint32_t t = threadIdx.x; t < ROWS * SLICE; t += THREADS) {
            uint32_t i = t / SLICE, k = t % SLICE;
            s.left[k][i] = i < n_rows && k < n ? m.left[(size_t)(row0 + i) * m.rank + k0 + k] : 0;
        }
        __syncthreads();
        for (uint32_t k1 = 0; inside && k1 < n; k1 += TERMS) {
            uint32_t end = min(k1 + TERMS, n);
#pragma unroll
            for (uint32_t i = 0; i < ROWS; i++)
                part[i][0] = part[i][1] = 0;
#pragma unroll 4
            for (uint32_t k = k1; k < end; k++) {
                float2 r = *(const float2 *)(right + (size_t)(k0 + k) * PANEL);
#pragma unroll
                for (uint32_t i = 0; i < ROWS; i++) {
                    float l = s.left[k][i];
                    part[i][0] = __fmaf_rn(l, r.x, part[i][0]);
                    part[i][1] = __fmaf_rn(l, r.y, part[i][1]);
                }
            }
#pragma unroll
            for (uint32_t i = 0; i < ROWS; i++) {
                total[i][0] = __fadd_rn(total[i][0], part[i][0]);
                total[i][1] = __fadd_rn(total[i][1], part[i][1]);
            }
        }
    }
}

/* One value: rounded, stored, and noted for the statistics. */
template <bool BF16>
__device__ void finish(const cu_merge &m, tile &s, uint32_t row, uint32_t i, uint32_t j0,
                       uint32_t j_in, float delta)
{
    size_t idx = (size_t)row * m.n_cols + j0 + j_in;
    uint32_t old = m.w[idx], now;
    float w = to_float<BF16>(old), v = __fadd_rn(w, delta);
    float slack = __fadd_rn(
        __fadd_rn(__fmul_rn(m.windows[row], m.norms[j0 + j_in]), __fmul_rn(fabsf(v), 0x1p-22f)),
        0x1p-136f);
    now = round_float<BF16>(__fsub_rn(v, slack));
    if (!decided<BF16>(now, round_float<BF16>(__fadd_rn(v, slack))) &&
        !settle<BF16>(m, row, j0 + j_in, w, &now))
        s.open[i] = 1;
    m.out[idx] = (uint16_t)now;
    s.delta[i][j_in] = delta;
    s.old[i][j_in] = (uint16_t)old;
    s.now[i][j_in] = (uint16_t)now;
    if (old != now)
        atomicAdd(&s.n_changed[i], 1);
}

/* Lanes in rising order of columns, then the lanes in order. */
template <bool BF16>
__device__ void statistics(const cu_merge &m, tile &s, uint32_t row0, uint32_t n_rows, uint32_t n)
{
    uint32_t i = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    if (i < ROWS) {
        float base2 = 0, delta2 = 0, lost2 = 0;
        for (uint32_t j = lane; j < n; j += LANES) {
            float w = to_float<BF16>(s.old[i][j]), d = s.delta[i][j];
            float lost = __fsub_rn(__fsub_rn(to_float<BF16>(s.now[i][j]), w), d);
            base2 = __fadd_rn(base2, __fmul_rn(w, w));
            delta2 = __fadd_rn(delta2, __fmul_rn(d, d));
            lost2 = __fadd_rn(lost2, __fmul_rn(lost, lost));
        }
        s.lanes[0][i][lane] = base2;
        s.lanes[1][i][lane] = delta2;
        s.lanes[2][i][lane] = lost2;
    }
    __syncthreads();
    if (threadIdx.x >= n_rows)
        return;
    i = threadIdx.x;
    float sum[3] = {0, 0, 0};
    for (uint32_t l = 0; l < LANES; l++) {
        for (uint32_t t = 0; t < 3; t++)
            sum[t] = __fadd_rn(sum[t], s.lanes[t][i][l]);
    }
    uint32_t n_chunks = (m.n_cols + CHUNK - 1) / CHUNK;
    m.sums[(size_t)(row0 + i) * n_chunks + blockIdx.x] =
        cu_merge_sums{sum[0], sum[1], sum[2], s.open[i] ? OPEN : s.n_changed[i]};
}

template <bool BF16> __global__ void __launch_bounds__(THREADS) merge_delta_kernel(cu_merge m)
{
    __shared__ tile s;
    uint32_t j0 = blockIdx.x * CHUNK, n = min(CHUNK, m.n_cols - j0);
    uint32_t row0 = blockIdx.y * ROWS, n_rows = min(ROWS, m.n_rows - row0);
    uint32_t j = 2 * threadIdx.x;
    if (threadIdx.x < ROWS)
        s.n_changed[threadIdx.x] = s.open[threadIdx.x] = 0;
    float total[ROWS][2];
    sums(m, s, row0, n_rows, j0 + j, total);
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < ROWS; i++) {
        if (i < n_rows && j < n)
            finish<BF16>(m, s, row0 + i, i, j0, j, total[i][0]);
        if (i < n_rows && j + 1 < n)
            finish<BF16>(m, s, row0 + i, i, j0, j + 1, total[i][1]);
    }
    __syncthreads();
    statistics<BF16>(m, s, row0, n_rows, n);
}

} // namespace

extern "C" int cu_merge_delta(const struct cu_merge *m, cudaStream_t stream)
{
    dim3 grid((m->n_cols + CHUNK - 1) / CHUNK, (m->n_rows + ROWS - 1) / ROWS);
    if (!m->n_rows || !m->n_cols)
        return 0;
    auto kernel = m->is_bf16 ? merge_delta_kernel<true> : merge_delta_kernel<false>;
    return lora::launch_plain(kernel, grid, dim3(THREADS), stream, *m);
}
