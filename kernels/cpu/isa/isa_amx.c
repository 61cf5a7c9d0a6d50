/*
 * AMX (tile, bf16): products of bf16 matrices in tiles, everything else as AVX-512. Compiled with
 * those flags (build.mk); reached only through isa_select().
 *
 * An activation is split, x = hi + lo, both bf16: 16 of float32's 24 bits, so that a product errs
 * by 2^-17 of its size at most, and sums are float32. A tile of A holds 8 rows of hi and 8 of lo,
 * or 16 of one; a panel's 32 k by 16 outputs are a tile of B as they lie. Hi and lo have sums of
 * their own, so a row's result is the same bits in either form.
 */
#if defined(__AMX_BF16__) && defined(__AVX512F__)
#include <immintrin.h>

#define ISA_WIDTH     16
#define ISA_BLOCKS(X) ISA_BLOCKS_512(X)
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/isa/simd_attend.h"
#include "kernels/cpu/isa/simd_gemm.h"

enum {
    TILE_ROWS = 16,
    TILE_K = 32,     // bf16 values a row of A
    TILE_BYTES = 64, // a row of any tile
    TILE_GROUPS = ISA_UNIT_ROWS / TILE_ROWS,
    PAIR_BYTES = ISA_PANEL * 4, // between two pairs of k in a panel
    AHEAD_BYTES = 8192
};

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t colsb[16];
    uint8_t rows[16];
};

static void configure(void)
{
    struct tile_config c = {.palette = 1};
    for (int i = 0; i < 8; i++) {
        c.colsb[i] = TILE_BYTES;
        c.rows[i] = TILE_ROWS;
    }
    _tile_loadconfig(&c);
}

/* Rows of a block of k: [k / 32][tile][16][32], one tile (8 hi, 8 lo) or two (hi, lo). */
struct split_rows {
    size_t n_rows, n_tiles, n_chunks;
    uint16_t x[2 * TILE_ROWS * K_BLOCK] __attribute__((aligned(64)));
};

static __m512 hi_of(__m512 x)
{
    // Rounding half away from zero is as good as to even here: lo takes the rest.
    __m512i bits = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
    return _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32((int)0xFFFF0000)));
}

static void store_bf16(uint16_t *to, __m512 v)
{
    __m256i h = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(v), 16));
    _mm256_storeu_si256((__m256i *)(void *)to, h);
}

static void split(struct split_rows *s, const float *x, size_t ldx, size_t n_rows, size_t n_k)
{
    s->n_rows = n_rows;
    s->n_tiles = n_rows <= TILE_ROWS / 2 ? 1 : 2;
    s->n_chunks = n_k / TILE_K;
    size_t lo_at = s->n_tiles == 1 ? TILE_ROWS / 2 * TILE_K : TILE_ROWS * TILE_K;
    size_t chunk = s->n_tiles * TILE_ROWS * TILE_K;
    memset(s->x, 0, s->n_chunks * chunk * sizeof *s->x);
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t k = 0; k < n_k; k += 16) {
            __m512 v = _mm512_loadu_ps(x + r * ldx + k), hi = hi_of(v);
            uint16_t *to = s->x + k / TILE_K * chunk + r * TILE_K + k % TILE_K;
            store_bf16(to, hi);
            store_bf16(to + lo_at, hi_of(_mm512_sub_ps(v, hi)));
        }
    }
}

static void prefetch_chunk(const char *w)
{
    for (int i = 0; i < TILE_ROWS * PAIR_BYTES; i += 64)
        _mm_prefetch(w + AHEAD_BYTES + i, _MM_HINT_T0);
}

/* Sums of one panel: c[tile][half][16][16]; w is the panel at the block of k. */
static void run_tiles(const struct split_rows *s, const char *w, float *c)
{
    const uint16_t *x = s->x;
    size_t chunk = s->n_tiles * TILE_ROWS * TILE_K;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (size_t i = 0; i < s->n_chunks; i++, x += chunk, w += TILE_ROWS * PAIR_BYTES) {
        prefetch_chunk(w);
        _tile_loadd(6, w, PAIR_BYTES);
        _tile_loadd(7, w + TILE_BYTES, PAIR_BYTES);
        _tile_loadd(4, x, TILE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if (s->n_tiles == 1)
            continue;
        _tile_loadd(5, x + TILE_ROWS * TILE_K, TILE_BYTES);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, TILE_BYTES);
    _tile_stored(1, c + 256, TILE_BYTES);
    if (s->n_tiles == 1)
        return;
    _tile_stored(2, c + 512, TILE_BYTES);
    _tile_stored(3, c + 768, TILE_BYTES);
}

/* y (+)= hi + lo for the panel's outputs that there are. */
static void add_tiles(const struct split_rows *s, const float *c, float *y, size_t ldy,
                      size_t n_valid, bool add)
{
    size_t lo_at = s->n_tiles == 1 ? TILE_ROWS / 2 * 16 : 512;
    for (size_t r = 0; r < s->n_rows; r++) {
        for (size_t half = 0; half * 16 < n_valid; half++) {
            const float *from = c + half * 256 + r * 16;
            size_t n = n_valid - half * 16 < 16 ? n_valid - half * 16 : 16;
            __mmask16 mask = (__mmask16)((1u << n) - 1);
            float *to = y + r * ldy + half * 16;
            __m512 v = _mm512_add_ps(_mm512_loadu_ps(from), _mm512_loadu_ps(from + lo_at));
            if (add)
                v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(mask, to));
            _mm512_mask_storeu_ps(to, mask, v);
        }
    }
}

/* A unit: groups of sixteen rows. */
struct split_unit {
    struct split_rows groups[TILE_GROUPS];
};
_Static_assert(sizeof(struct split_unit) <= ISA_UNIT_BYTES, "a unit holds split rows");

static void split_unit(struct split_unit *s, const float *x, size_t ldx, struct isa_unit u)
{
    for (size_t g = 0; g * TILE_ROWS < u.n_rows; g++) {
        size_t row = g * TILE_ROWS, rows = u.n_rows - row < TILE_ROWS ? u.n_rows - row : TILE_ROWS;
        split(&s->groups[g], x + (u.row + row) * ldx + u.k, ldx, rows, u.n_k);
    }
}

/* All rows of a unit pass while a panel's block of k is in the caches. */
static void run_split(const void *weights, size_t n_out, size_t k, size_t panel0, size_t panel1,
                      const struct split_unit *s, struct isa_unit u, float *y, size_t ldy, bool add)
{
    float c[1024] __attribute__((aligned(64)));
    size_t stride = isa_panel_bytes(DTYPE_BF16, k);
    const char *w = (const char *)weights + isa_panel_bytes(DTYPE_BF16, u.k);
    for (size_t p = panel0; p < panel1; p++) {
        size_t left = n_out - p * ISA_PANEL;
        for (size_t g = 0; g * TILE_ROWS < u.n_rows; g++) {
            run_tiles(&s->groups[g], w + p * stride, c);
            add_tiles(&s->groups[g], c, y + (u.row + g * TILE_ROWS) * ldy + p * ISA_PANEL, ldy,
                      left < ISA_PANEL ? left : ISA_PANEL, add || u.k > 0);
        }
    }
}

static bool takes_tiles(enum dtype t, size_t k)
{
    return t == DTYPE_BF16 && k % TILE_K == 0;
}

static void gemm_tiles(enum dtype t, const void *weights, size_t n_out, size_t k, size_t panel0,
                       size_t panel1, const float *x, size_t ldx, size_t n_rows, float *y,
                       size_t ldy, bool add)
{
    if (!takes_tiles(t, k)) {
        gemm(t, weights, n_out, k, panel0, panel1, x, ldx, n_rows, y, ldy, add);
        return;
    }
    struct split_unit s;
    configure();
    for (size_t i = 0; i < isa_units(n_rows, k); i++) {
        struct isa_unit u = isa_unit_at(n_rows, k, i);
        split_unit(&s, x, ldx, u);
        run_split(weights, n_out, k, panel0, panel1, &s, u, y, ldy, add);
    }
    _tile_release();
}

static void pack_tiles(enum dtype t, size_t k, const float *x, size_t ldx, size_t n_rows,
                       size_t unit0, size_t unit1, void *units)
{
    if (!takes_tiles(t, k)) {
        pack_units(t, k, x, ldx, n_rows, unit0, unit1, units);
        return;
    }
    for (size_t i = unit0; i < unit1; i++)
        split_unit((struct split_unit *)(void *)((char *)units + i * ISA_UNIT_BYTES), x, ldx,
                   isa_unit_at(n_rows, k, i));
}

static void gemm_packed_tiles(enum dtype t, const void *weights, size_t n_out, size_t k,
                              size_t panel0, size_t panel1, const void *units, size_t n_rows,
                              float *y, size_t ldy, bool add)
{
    if (!takes_tiles(t, k)) {
        gemm_packed(t, weights, n_out, k, panel0, panel1, units, n_rows, y, ldy, add);
        return;
    }
    configure();
    for (size_t i = 0; i < isa_units(n_rows, k); i++)
        run_split(
            weights, n_out, k, panel0, panel1,
            (const struct split_unit *)(const void *)((const char *)units + i * ISA_UNIT_BYTES),
            isa_unit_at(n_rows, k, i), y, ldy, add);
    _tile_release();
}

const struct isa_table isa_amx = ISA_TABLE("amx", gemm_tiles, pack_tiles, gemm_packed_tiles);
#else
typedef int isa_amx_is_not_for_this_processor;
#endif
