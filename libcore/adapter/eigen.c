/*
 * Eigenvalues of a symmetric matrix: Householder reduction to tridiagonal form and the implicit QL
 * iteration, values only (Golub & Van Loan 8.3). O(4/3 n^3), and exact to n eps ||m||.
 */
#include <math.h>
#include <stdlib.h>

#include "libcore/adapter/stats.h"

/* Row i's reflection: makes m[i][0 … i-2] zero. d[i] and e[i] get the tridiagonal's entries. */
static void reflect(double *m, size_t n, size_t i, double *d, double *e)
{
    double *row = m + i * n, scale = 0, h = 0;
    for (size_t k = 0; k < i; k++)
        scale += fabs(row[k]);
    if (i < 2 || scale == 0) {
        e[i] = row[i - 1];
        return;
    }
    for (size_t k = 0; k < i; k++) {
        row[k] /= scale;
        h += row[k] * row[k];
    }
    double f = row[i - 1], g = f >= 0 ? -sqrt(h) : sqrt(h);
    e[i] = scale * g;
    h -= f * g;
    row[i - 1] = f - g;
    f = 0;
    for (size_t j = 0; j < i; j++) { // p = M u / h, into d
        g = 0;
        for (size_t k = 0; k <= j; k++)
            g += m[j * n + k] * row[k];
        for (size_t k = j + 1; k < i; k++)
            g += m[k * n + j] * row[k];
        d[j] = g / h;
        f += d[j] * row[j];
    }
    double hh = f / (h + h);
    for (size_t j = 0; j < i; j++) { // M -= u q^T + q u^T
        double u = row[j], q = d[j] = d[j] - hh * u;
        for (size_t k = 0; k <= j; k++)
            m[j * n + k] -= u * d[k] + q * row[k];
    }
}

/* One QL sweep with implicit shift on the block [l, m]. */
static void sweep(double *d, double *e, size_t l, size_t m)
{
    double g = (d[l + 1] - d[l]) / (2 * e[l]), r = hypot(g, 1);
    g = d[m] - d[l] + e[l] / (g + (g >= 0 ? r : -r));
    double s = 1, c = 1, p = 0;
    for (size_t i = m; i-- > l;) {
        double f = s * e[i], b = c * e[i];
        r = e[i + 1] = hypot(f, g);
        if (r == 0) {
            d[i + 1] -= p;
            e[m] = 0;
            return;
        }
        s = f / r;
        c = g / r;
        g = d[i + 1] - p;
        r = (d[i] - g) * s + 2 * c * b;
        p = s * r;
        d[i + 1] = g + p;
        g = c * r - b;
    }
    d[l] -= p;
    e[l] = g;
    e[m] = 0;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

void stats_eigenvalues(double *m, size_t n, double *values, double *scratch)
{
    enum { MAX_SWEEPS = 60 }; // two or three are usual
    double *d = values, *e = scratch;
    if (!n)
        return;
    for (size_t i = n; i-- > 1;)
        reflect(m, n, i, d, e);
    for (size_t i = 0; i < n; i++)
        d[i] = m[i * n + i];
    for (size_t i = 1; i < n; i++)
        e[i - 1] = e[i];
    e[n - 1] = 0;
    for (size_t l = 0; l < n; l++) {
        for (int tries = 0; tries < MAX_SWEEPS; tries++) {
            size_t end = l;
            while (end + 1 < n) {
                double around = fabs(d[end]) + fabs(d[end + 1]);
                if (fabs(e[end]) + around == around)
                    break;
                end++;
            }
            if (end == l)
                break;
            sweep(d, e, l, end);
        }
    }
    qsort(d, n, sizeof *d, compare_doubles);
}
