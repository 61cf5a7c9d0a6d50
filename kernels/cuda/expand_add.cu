/*
 * expand_add: y[T, N] += sum_j B_j v_j of a step with many rows (T > CU_SMALL_ROWS), in place, or
 * act[T, N / 2] = f(gate) up of that sum, or x[T, N] += sum_j B_j v_j beside the product: what
 * follows is as without adapters.
 *
 * A warp has 16 tokens (the MMA's M side) by two times 16 outputs (its N side): neighbours, or
 * gates and their ups. B's fragments are stored as the MMA wants them (adapter_image.h); which lane
 * loads which word is chosen so that column 2 q + i of N tile j is output 8 q + 2 j + i of the 32:
 * a lane ends with eight neighbours of two tokens, 16 bytes of y each. v goes from global memory
 * straight into fragments. Sums in float32, rounded once.
 *
 * What adapters there are, where their B lies, and the first of it: before griddepcontrol.wait,
 * which is short behind a kernel that lets nobody start early, as cuBLASLt's: so few loads that
 * wait for each other (segment, site, table of B, B), and no barrier. One
 * step (16 ranks of a segment) is on its way while another is multiplied; the B of all segments
 * listed has been asked for. Bytes: y both ways, B once every 16 tokens.
 */
#include "kernels/cuda/activated.cuh"
#include "kernels/cuda/complete.cuh"
#include "kernels/cuda/packed.cuh"

using namespace lora;

namespace
{

constexpr int WARPS = 4, TOKENS = 16;
constexpr uint32_t AHEAD_BYTES = 2048; // of an item's B that listing it asks for

/* What a segment brings: to both halves, or (b[.] NULL) to one of them. */
struct Item {
    const uint8_t *b[2];
    uint32_t column; // of v
    uint32_t rows;   // first token | last << 16
    uint32_t rank8;
};

/* 16 ranks of an item. */
struct Step {
    uint32_t v[4], b[4][2];
};

struct Adder {
    static constexpr uint32_t LISTED = 16; // segments at a time, a lane for each half
    const cu_expand &e;
    Item *items; // shared, this warp's
    uint32_t t0, t1, out[2];
    uint32_t lane;
    uint32_t next0, last;   // segments that may touch the tokens and are not listed yet
    uint32_t n_items, item; // listed, and the next step's
    uint32_t k;             // its first rank

    __device__ Adder(const cu_expand &e_, uint32_t n_segments, Item *items_, const uint32_t o[2])
        : e(e_), items(items_), t0(blockIdx.y * TOKENS),
          t1(min(t0 + TOKENS, e_.t)), out{o[0], o[1]}, lane(threadIdx.x % 32), next0(0), last(0),
          n_items(0), item(0), k(0)
    {
        find(n_segments);
    }

    __device__ void find(uint32_t n_segments)
    {
#pragma unroll 4
        for (uint32_t i0 = 0; i0 < n_segments; i0 += 32) {
            cu_segment s = {};
            if (i0 + lane < n_segments)
                s = e.segments[i0 + lane];
            uint32_t mask = __ballot_sync(0xffffffffu, s.row0 < t1 && s.row0 + s.n_rows > t0);
            if (!mask)
                continue;
            if (!last)
                next0 = i0 + __ffs(mask) - 1;
            last = i0 + 32 - __clz(mask);
        }
    }

    /* Lists the next segments, in order; one that reaches both halves with the same columns of v is
     * one item, else an item a half. */
    __device__ void list()
    {
        uint32_t half = lane / 16, j = lane % 16, before = (1u << j) - 1;
        CompleteItem mine = {};
        if (next0 + j < last)
            mine = complete_item(e, next0 + j, half ? out[1] : out[0], t0, t1);
        uint32_t bytes = min((mine.rank >> 16) * 32, AHEAD_BYTES);
        for (uint32_t at = 0; at < bytes; at += 128)
            prefetch_line(mine.b + at);
        bool has = mine.rows;
        bool same = __shfl_xor_sync(0xffffffffu, has ? mine.column : ~0u, 16) == mine.column && has;
        bool makes = has && !(same && half);
        uint32_t makers = __ballot_sync(0xffffffffu, makes);
        uint32_t low = makers & 0xffff, high = makers >> 16;
        Item *to = items + __popc(low & before) + __popc(high & before);
        if (half && !same)
            to += low >> j & 1;
        __syncwarp();
        if (has)
            to->b[half] = mine.b;
        if (has && !same)
            to->b[!half] = nullptr;
        if (makes) {
            to->column = mine.column;
            to->rows = mine.rows;
            to->rank8 = mine.rank >> 16;
        }
        __syncwarp();
        next0 += LISTED;
        n_items = __popc(makers);
        item = k = 0;
    }

    __device__ bool more() const
    {
        return item < n_items;
    }

    __device__ void advance()
    {
        k += 16;
        if (k < items[item].rank8)
            return;
        k = 0;
        item++;
    }

    /* B of the next step. The lane's column g of N tile j is output 8 (g / 2) + 2 j + g % 2. */
    __device__ void load_b(Step *s) const
    {
        uint32_t g = lane / 4, t = lane % 4;
        const Item &it = items[item];
        const uint8_t *b = it.b[g / 4];
        bool second = k + 8 < it.rank8;
        b += k * 32 + (g % 2 * 4 + t) * 8 + g / 2 % 2 * 4;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            s->b[j][0] = it.b[g / 4] ? __ldg((const uint32_t *)(b + j * 64)) : 0;
            s->b[j][1] = it.b[g / 4] && second ? __ldg((const uint32_t *)(b + 256 + j * 64)) : 0;
        }
    }

    /* v of the next step: zeros for other segments' tokens. */
    __device__ void load_v(Step *s) const
    {
        const Item &it = items[item];
        uint32_t g = lane / 4, first = it.rows & 0xffff, last = it.rows >> 16;
        const bf16 *v =
            (const bf16 *)e.v16 + (size_t)(t0 + g) * e.v_width + it.column + k + lane % 4 * 2;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            bool in = g + h * 8 >= first && g + h * 8 < last;
            s->v[h] = in ? *(const uint32_t *)(v + h * 8 * e.v_width) : 0;
            s->v[h + 2] = in ? *(const uint32_t *)(v + h * 8 * e.v_width + 8) : 0;
        }
    }

    /* acc += B v of what is listed; the first step has been loaded. */
    __device__ void add(Step step, float acc[4][4])
    {
#pragma unroll 1
        while (more()) {
            Step now = step;
            advance();
            if (more()) {
                load_b(&step);
                load_v(&step);
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
                mma_16816(acc[j], now.v, now.b[j]);
        }
    }

    /* Token h of the lane's two, and the first of its outputs. */
    __device__ uint32_t token(int h) const
    {
        return t0 + lane / 4 + h * 8;
    }
    __device__ uint32_t first_out() const
    {
        return (lane & 2 ? out[1] : out[0]) + lane % 2 * 8;
    }
};

/* f(gate) up: lanes 0 and 1 of four have gates, 2 and 3 their ups, of two tokens each. They end one
 * token each. */
__device__ void store_activated(const Adder &a, const float sum[2][8], uint32_t d_ff, int gelu,
                                bf16 *act)
{
    bool gates = a.lane % 4 < 2;
    uint32_t t = a.token(gates ? 0 : 1), o = a.out[0] + a.lane % 2 * 8;
    float f[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float mine = gates ? sum[0][i] : sum[1][i];
        float theirs = __shfl_xor_sync(0xffffffffu, gates ? sum[1][i] : sum[0][i], 2);
        f[i] = activated(gates ? mine : theirs, gelu) * (gates ? theirs : mine);
    }
    if (t < a.e.t && o < d_ff)
        *(uint4 *)(act + (size_t)t * d_ff + o) = pack8(f);
}

enum { TO_Y, TO_ACT, TO_X };

/* Value: what y16 (none where B v goes to x) or x is in memory. */
template <int TO, typename Value>
__global__ void __launch_bounds__(WARPS * 32, TO == TO_X ? 5 : 6)
    expand_add_kernel(const __grid_constant__ cu_expand e, uint32_t n_segments, int gelu, void *to)
{
    constexpr int PIECES = TO == TO_X ? 2 : 1; // of 16 bytes of a token
    __shared__ Item items[WARPS][2 * Adder::LISTED];
    pdl_launch_dependents();
    uint32_t warp = threadIdx.x / 32, i = blockIdx.x * WARPS + warp, d_ff = e.n / 2;
    uint32_t o[2] = {i * 32, i * 32 + 16};
    if (TO == TO_ACT) {
        o[0] = i * 16 < d_ff ? i * 16 : e.n;
        o[1] = i * 16 < d_ff ? d_ff + i * 16 : e.n;
    }
    Adder a(e, n_segments, items[warp], o);
    bool waited = false, any = a.last > 0, in[2];
    Value *at = (Value *)(TO == TO_X ? to : (void *)e.y16) + a.first_out();
    uint4 old[2][PIECES] = {};
    float acc[4][4] = {}, sum[2][8];
#pragma unroll 1
    do {
        Step step;
        if (any)
            a.list();
        if (a.more())
            a.load_b(&step);
        if (!waited) {
            waited = true;
            pdl_wait();
#pragma unroll
            for (int h = 0; h < 2; h++) {
                in[h] = (any || TO == TO_ACT) && a.token(h) < e.t && a.first_out() < e.n;
#pragma unroll
                for (int p = 0; p < PIECES; p++) {
                    if (in[h])
                        old[h][p] = ((const uint4 *)(at + (size_t)a.token(h) * e.n))[p];
                }
            }
        }
        if (a.more()) {
            a.load_v(&step);
            a.add(step, acc);
        }
    } while (a.next0 < a.last);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if constexpr (TO == TO_X) {
#pragma unroll
            for (int c = 0; c < 8; c++)
                sum[h][c] = __uint_as_float(word(old[h][c / 4], c % 4));
        } else {
            unpack8(old[h][0], sum[h]);
        }
#pragma unroll
        for (int c = 0; c < 8; c++)
            sum[h][c] += acc[c / 2][h * 2 + c % 2];
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        uint4 *out = (uint4 *)(at + (size_t)a.token(h) * e.n);
        if (TO == TO_Y && in[h])
            *out = pack8(sum[h]);
#pragma unroll
        for (int p = 0; p < 2 && TO == TO_X; p++) {
            if (in[h])
                ((float4 *)out)[p] = ((const float4 *)sum[h])[p];
        }
    }
    if (TO == TO_ACT)
        store_activated(a, sum, d_ff, gelu, (bf16 *)to);
}

template <int TO, typename Value>
int launch(const cu_expand *e, uint32_t n_segments, int gelu, void *to, cudaStream_t stream)
{
    dim3 grid((e->n + WARPS * 32 - 1) / (WARPS * 32), (e->t + TOKENS - 1) / TOKENS);
    return launch_pdl(expand_add_kernel<TO, Value>, grid, dim3(WARPS * 32), 0, stream, *e,
                      n_segments, gelu, to);
}

} // namespace

extern "C" int cu_expand_add(const struct cu_expand *e, uint32_t n_segments,
                             enum cu_epilogue epilogue, void *act, cudaStream_t stream)
{
    bool gated = epilogue != CU_STORE;
    if (!e->y16 || !e->v16 || e->n % (gated ? 32 : 16) || (gated && e->bias))
        return cudaErrorInvalidValue;
    return gated ? launch<TO_ACT, bf16>(e, n_segments, epilogue == CU_GELU, act, stream)
                 : launch<TO_Y, bf16>(e, n_segments, 0, nullptr, stream);
}

extern "C" int cu_expand_residual(const struct cu_expand *e, uint32_t n_segments, float *x,
                                  cudaStream_t stream)
{
    if (!e->v16 || e->n % 16)
        return cudaErrorInvalidValue;
    return launch<TO_X, float>(e, n_segments, 0, x, stream);
}
