/*
 * merge_delta: the plain loops that say what every back end's merge_delta gives, bit for bit.
 * libcore/merge/values.c has the fast ones of the CPU; this is what tests hold a device to.
 */
#include <math.h>
#include <string.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

struct device_merge {
    struct merge_matrix m; // right and norms are copies
};

struct merge_lane {
    char unused;
};

void cpu_merge_close(struct backend *be, struct device_merge *m)
{
    (void)be;
    if (!m)
        return;
    sys_free((void *)(uintptr_t)m->m.right);
    sys_free((void *)(uintptr_t)m->m.norms);
    sys_free(m);
}

int cpu_merge_open(struct backend *be, const struct merge_matrix *m, struct device_merge **out,
                   struct err *err)
{
    size_t n_padded = (m->n_cols + MERGE_PANEL - 1) / MERGE_PANEL * MERGE_PANEL;
    float *right = sys_reallocarray(NULL, n_padded * m->rank + 1, sizeof *right);
    float *norms = sys_reallocarray(NULL, n_padded + 1, sizeof *norms);
    struct device_merge *d = sys_malloc(sizeof *d);
    *out = NULL;
    if (!right || !norms || !d) {
        sys_free(right);
        sys_free(norms);
        sys_free(d);
        return err_set(err, ERR_NO_MEMORY, "no memory for factors of %zu columns", m->n_cols);
    }
    (void)be;
    memcpy(right, m->right, n_padded * m->rank * sizeof *right);
    memcpy(norms, m->norms, n_padded * sizeof *norms);
    *d = (struct device_merge){*m};
    d->m.right = right;
    d->m.norms = norms;
    *out = d;
    return 0;
}

int cpu_merge_lane_open(struct backend *be, struct merge_lane **out, struct err *err)
{
    (void)be;
    *out = sys_malloc(sizeof **out);
    return *out ? 0 : err_set(err, ERR_NO_MEMORY, "no memory for a lane");
}

void cpu_merge_lane_close(struct backend *be, struct merge_lane *lane)
{
    (void)be;
    sys_free(lane);
}

// ---- one value ----------------------------------------------------------------------------------

static uint16_t load16(const void *p, size_t i)
{
    uint16_t v;
    memcpy(&v, (const char *)p + i * sizeof v, sizeof v);
    return v;
}

static float to_float(enum dtype t, uint16_t bits)
{
    return t == DTYPE_BF16 ? dtype_bf16_to_f32(bits) : dtype_f16_to_f32(bits);
}

static uint16_t round_narrow(enum dtype t, float v)
{
    return t == DTYPE_BF16 ? dtype_f32_to_bf16(v) : dtype_f32_to_f16(v);
}

static uint16_t round_double(enum dtype t, double v)
{
    return t == DTYPE_BF16 ? dtype_f64_to_bf16(v) : dtype_f64_to_f16(v);
}

/* Both ends of the window round to `low` and that is a number. */
static bool decided(enum dtype t, uint16_t low, uint16_t high)
{
    uint16_t exponent = t == DTYPE_BF16 ? 0x7F80 : 0x7C00;
    return low == high && (low & exponent) != exponent;
}

static float delta_of(const struct merge_matrix *m, const float *left, const float *right)
{
    float sum = 0;
    for (size_t k0 = 0; k0 < m->rank; k0 += MERGE_TERMS) {
        size_t end = m->rank - k0 < MERGE_TERMS ? m->rank : k0 + MERGE_TERMS;
        float part = 0;
        for (size_t k = k0; k < end; k++)
            part = fmaf(left[k], right[k * MERGE_PANEL], part);
        sum += part;
    }
    return sum;
}

static bool settle(const struct merge_matrix *m, const double *left, double left_norm,
                   const float *right, float norm, float w, uint16_t *out)
{
    double sum[4] = {0};
    for (size_t k = 0; k < m->rank; k++)
        sum[k < m->rank / 4 * 4 ? k % 4 : 0] += left[k] * (double)right[k * MERGE_PANEL];
    double v = (double)w + ((sum[0] + sum[1]) + (sum[2] + sum[3]));
    double slack =
        left_norm * (double)norm * (double)(m->rank + 8) * 0x1p-53 + fabs(v) * 0x1p-50 + 0x1p-1000;
    *out = round_double(m->dtype, v - slack);
    return isfinite(w) && decided(m->dtype, *out, round_double(m->dtype, v + slack));
}

/* False: open. */
static bool one_value(const struct merge_matrix *m, const struct merge_rows *r, size_t i, size_t j,
                      float w, float *delta, uint16_t *out)
{
    const float *right = m->right + j / MERGE_PANEL * m->rank * MERGE_PANEL + j % MERGE_PANEL;
    *delta = delta_of(m, r->left + i * m->rank, right);
    float v = w + *delta;
    float slack = r->windows[i] * m->norms[j] + fabsf(v) * 0x1p-22f + 0x1p-136f;
    *out = round_narrow(m->dtype, v - slack);
    if (decided(m->dtype, *out, round_narrow(m->dtype, v + slack)))
        return true;
    return settle(m, r->left_exact + i * m->rank, r->left_norms[i], right, m->norms[j], w, out);
}

static void one_chunk(const struct merge_matrix *m, const struct merge_rows *r, size_t i, size_t j0,
                      size_t n, struct merge_sums *sums)
{
    float base2[MERGE_LANES] = {0}, delta2[MERGE_LANES] = {0}, lost2[MERGE_LANES] = {0};
    *sums = (struct merge_sums){0};
    for (size_t j = 0; j < n; j++) {
        size_t idx = i * m->n_cols + j0 + j, lane = j % MERGE_LANES;
        uint16_t old = load16(r->w, idx), now;
        float w = to_float(m->dtype, old), delta;
        if (!one_value(m, r, i, j0 + j, w, &delta, &now)) {
            sums->n_changed = MERGE_OPEN;
            return;
        }
        float lost = (to_float(m->dtype, now) - w) - delta;
        base2[lane] += w * w;
        delta2[lane] += delta * delta;
        lost2[lane] += lost * lost;
        sums->n_changed += now != old;
        memcpy((char *)r->out + idx * sizeof now, &now, sizeof now);
    }
    for (size_t l = 0; l < MERGE_LANES; l++) {
        sums->base2 += base2[l];
        sums->delta2 += delta2[l];
        sums->lost2 += lost2[l];
    }
}

int cpu_merge_delta(struct backend *be, const struct device_merge *d, struct merge_lane *lane,
                    const struct merge_rows *r, struct err *err)
{
    const struct merge_matrix *m = &d->m;
    size_t n_chunks = (m->n_cols + MERGE_CHUNK - 1) / MERGE_CHUNK;
    (void)be;
    (void)lane;
    (void)err;
    for (size_t i = 0; i < r->n_rows; i++) {
        for (size_t c = 0; c < n_chunks; c++) {
            size_t j0 = c * MERGE_CHUNK;
            size_t n = m->n_cols - j0 < MERGE_CHUNK ? m->n_cols - j0 : MERGE_CHUNK;
            one_chunk(m, r, i, j0, n, &r->sums[i * n_chunks + c]);
        }
    }
    return 0;
}

// ---- float64 sums -------------------------------------------------------------------------------

struct device_sums {
    size_t n_cols, rank;
    double right[]; // [rank, n_cols]
};

int cpu_sums_open(struct backend *be, const struct merge_right *r, struct device_sums **out,
                  struct err *err)
{
    struct device_sums *d = sys_malloc(sizeof *d + r->rank * r->n_cols * sizeof *r->right);
    (void)be;
    *out = d;
    if (!d)
        return err_set(err, ERR_NO_MEMORY, "no memory for factors of %zu columns", r->n_cols);
    d->n_cols = r->n_cols;
    d->rank = r->rank;
    for (size_t k = 0; k < r->rank; k++)
        memcpy(d->right + k * r->n_cols, r->right + k * r->stride, r->n_cols * sizeof *r->right);
    return 0;
}

void cpu_sums_close(struct backend *be, struct device_sums *s)
{
    (void)be;
    sys_free(s);
}

int cpu_sums(struct backend *be, const struct device_sums *s, struct merge_lane *lane,
             const double *left, size_t n_rows, double *sums, struct err *err)
{
    (void)be;
    (void)lane;
    (void)err;
    for (size_t i = 0; i < n_rows; i++) {
        for (size_t j = 0; j < s->n_cols; j++) {
            double sum = 0;
            for (size_t k = 0; k < s->rank; k++)
                sum = fma(left[i * s->rank + k], s->right[k * s->n_cols + j], sum);
            sums[i * s->n_cols + j] = sum;
        }
    }
    return 0;
}
