/*
 * simd_attend: one block of keys against some queries, for one instruction set. A part of
 * simd.h.
 * alone with: -DISA_WIDTH=4
 */
#ifndef KERNELS_CPU_ISA_SIMD_ATTEND_H
#define KERNELS_CPU_ISA_SIMD_ATTEND_H

#include "kernels/cpu/isa/simd.h"

/*
 * Four queries against n_groups groups of W keys: keys lie as [head_dim][keys], so a vector holds W
 * keys and no sum crosses lanes; every score is summed over head_dim in order.
 */
enum { GROUPS = ISA_WIDTH == 16 ? 4 : 2, QUERIES = 4 };

#define DEFINE_SCORES(NG)                                                                          \
    INLINE void scores_##NG(const float *q, const float *const *k, const size_t *k_stride,         \
                            unsigned head_dim, float *score)                                       \
    {                                                                                              \
        vf acc[QUERIES][NG];                                                                       \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int g = 0; g < (NG); g++) acc[i][g] = \
            (vf){0};                                                                               \
        for (unsigned d = 0; d < head_dim; d++) {                                                  \
            vf key[NG];                                                                            \
            UNROLL for (int g = 0; g < (NG); g++) key[g] = load(k[g] + d * k_stride[g]);           \
            UNROLL for (int i = 0; i < QUERIES; i++)                                               \
            {                                                                                      \
                vf qi = splat(q[d * ISA_ATTEND_QUERIES + i]);                                      \
                UNROLL for (int g = 0; g < (NG); g++) acc[i][g] += key[g] * qi;                    \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int g = 0; g < (NG); g++)             \
            store(score + i * ISA_ATTEND_KEYS + g * W, acc[i][g]);                                 \
    }
DEFINE_SCORES(1)
#if ISA_WIDTH == 16
DEFINE_SCORES(4)
#define scores_many scores_4
#else
DEFINE_SCORES(2)
#define scores_many scores_2
#endif

enum { MAX_GROUPS = ISA_ATTEND_KEYS / ISA_WIDTH };

/* Where each group of W keys lies; groups of several small pages are put together in `buffer`. */
static unsigned find_groups(const struct isa_attend *a, float *buffer, const float **k,
                            size_t *stride)
{
    unsigned n = (a->n_keys + W - 1) / W;
    for (unsigned g = 0; g < n; g++) {
        unsigned first = g * W;
        if (a->piece >= W) {
            k[g] = a->k[first / a->piece] + first % a->piece;
            stride[g] = a->k_stride;
            continue;
        }
        float *to = buffer + (size_t)g * W * a->head_dim;
        for (unsigned j = 0; j < W && first + j < a->n_keys; j += a->piece) {
            const float *from = a->k[(first + j) / a->piece];
            for (unsigned d = 0; d < a->head_dim; d++)
                memcpy(to + d * W + j, from + d * a->k_stride, a->piece * sizeof *to);
        }
        k[g] = to;
        stride[g] = W;
    }
    return n;
}

/* Scores of one query become weights; returns by how much older sums must shrink. */
static float softmax_block(const struct isa_attend *a, unsigned q, float *score)
{
    int first = a->first[q], last = a->last[q];
    unsigned n = (a->n_keys + W - 1) / W * W;
    if (a->softcap > 0)
        for (int j = first; j < last; j++)
            score[j] = a->softcap * tanhf(score[j] / a->softcap);
    for (unsigned j = 0; j < n; j++)
        score[j] = (int)j < first || (int)j >= last ? -INFINITY : score[j];
    vf most = splat(a->max[q]);
    for (unsigned j = 0; j < n; j += W)
        most = max_of(load(score + j), most);
    float lanes[W], max = a->max[q];
    store(lanes, most);
    for (int j = 0; j < W; j++)
        max = lanes[j] > max ? lanes[j] : max;
    vf sum = {0};
    for (unsigned j = 0; j < n; j += W) {
        vf p = exp_of(load(score + j) - splat(max));
        store(score + j, p);
        sum += p;
    }
    float shrink = a->max[q] == max ? 1.0f : expf(a->max[q] - max);
    a->sum[q] = a->sum[q] * shrink + sum_lanes(sum);
    a->max[q] = max;
    return shrink;
}

/* out = out * shrink + sum over the keys [first, last) of p_j v_j, NV vectors of head_dim. */
#define DEFINE_WEIGH(NV)                                                                           \
    INLINE void weigh_##NV(const struct isa_attend *a, float *out, unsigned d, const float *p,     \
                           const float *shrink, unsigned first, unsigned last)                     \
    {                                                                                              \
        vf acc[QUERIES][NV];                                                                       \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int n = 0; n < (NV); n++) acc[i][n] = \
            load(out + i * a->head_dim + d + n * W) * splat(shrink[i]);                            \
        for (unsigned j = first; j < last; j++) {                                                  \
            const float *v = a->v[j / a->piece] + (size_t)(j % a->piece) * a->head_dim + d;        \
            vf value[NV];                                                                          \
            UNROLL for (int n = 0; n < (NV); n++) value[n] = load(v + n * W);                      \
            UNROLL for (int i = 0; i < QUERIES; i++)                                               \
            {                                                                                      \
                vf pi = splat(p[i * ISA_ATTEND_KEYS + j]);                                         \
                UNROLL for (int n = 0; n < (NV); n++) acc[i][n] += value[n] * pi;                  \
            }                                                                                      \
        }                                                                                          \
        UNROLL for (int i = 0; i < QUERIES; i++) UNROLL for (int n = 0; n < (NV); n++)             \
            store(out + i * a->head_dim + d + n * W, acc[i][n]);                                   \
    }
DEFINE_WEIGH(1)
#if ISA_WIDTH == 16
DEFINE_WEIGH(4)
#endif
DEFINE_WEIGH(2)

static void weigh(const struct isa_attend *a, unsigned q0, const float *p, const float *shrink,
                  unsigned first, unsigned last)
{
    float *out = a->out + (size_t)q0 * a->head_dim;
    unsigned d = 0;
#if ISA_WIDTH == 16
    for (; d + 4 * W <= a->head_dim; d += 4 * W)
        weigh_4(a, out, d, p, shrink, first, last);
#endif
    for (; d + 2 * W <= a->head_dim; d += 2 * W)
        weigh_2(a, out, d, p, shrink, first, last);
    for (; d + W <= a->head_dim; d += W)
        weigh_1(a, out, d, p, shrink, first, last);
    for (; d < a->head_dim; d++) {
        for (int i = 0; i < QUERIES; i++) {
            float sum = out[i * a->head_dim + d] * shrink[i];
            for (unsigned j = first; j < last; j++)
                sum += a->v[j / a->piece][(size_t)(j % a->piece) * a->head_dim + d] *
                       p[i * ISA_ATTEND_KEYS + j];
            out[i * a->head_dim + d] = sum;
        }
    }
}

static void attend(const struct isa_attend *a)
{
    float score[QUERIES * ISA_ATTEND_KEYS], shrink[QUERIES];
    const float *k[MAX_GROUPS];
    size_t stride[MAX_GROUPS];
    unsigned n_groups = find_groups(a, a->buffer, k, stride);
    for (unsigned q0 = 0; q0 < a->n_queries; q0 += QUERIES) {
        unsigned g = 0, low = a->n_keys, high = 0;
        for (; g + GROUPS <= n_groups; g += GROUPS)
            scores_many(a->q + q0, k + g, stride + g, a->head_dim, score + g * W);
        for (; g < n_groups; g++)
            scores_1(a->q + q0, k + g, stride + g, a->head_dim, score + g * W);
        for (unsigned i = 0; i < QUERIES; i++) {
            unsigned q = q0 + i;
            float *s = score + i * ISA_ATTEND_KEYS;
            shrink[i] = 1.0f;
            if (q < a->n_queries && a->first[q] < a->last[q]) {
                shrink[i] = softmax_block(a, q, s);
                low = (unsigned)a->first[q] < low ? (unsigned)a->first[q] : low;
                high = (unsigned)a->last[q] > high ? (unsigned)a->last[q] : high;
            } else {
                memset(s, 0, ISA_ATTEND_KEYS * sizeof *s);
            }
        }
        if (low < high)
            weigh(a, q0, score, shrink, low, high);
    }
}

#endif
