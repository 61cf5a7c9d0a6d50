#include "libcore/base/digest_pair.h"

#include <string.h>

#include "libcore/base/sys.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

enum { BLOCK_BYTES = 64, STREAM = 0, PART = 1 };

/* One SHA-256 (FIPS 180-4) on its way: whole blocks are in h, the rest lies in tail. */
struct chain {
    uint32_t h[8];
    uint64_t n_bytes;
    uint8_t tail[BLOCK_BYTES];
};

struct digest_pair {
    struct chain chains[2];         // with SHA extensions
    struct digest_state *states[2]; // without; else NULL
};

static const uint32_t initial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static void chain_begin(struct chain *c)
{
    memcpy(c->h, initial, sizeof initial);
    c->n_bytes = 0;
}

// ---- blocks ------------------------------------------------------------------------------------

#if defined(__x86_64__)

static const uint32_t constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

/* AVX for its instructions with three operands: 2 to 7 % faster. */
#define WITH_SHA __attribute__((target("sha,avx")))
#define INLINE   static inline __attribute__((always_inline)) WITH_SHA

/* The working state as the instructions want it: a, b, e, f in one register, c, d, g, h in one. */
struct words {
    __m128i abef, cdgh, m[4];
};

INLINE void words_load(struct words *w, const uint32_t h[8])
{
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)h), 0xB1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)(h + 4)), 0x1B);
    w->abef = _mm_alignr_epi8(cdab, efgh, 8);
    w->cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
}

INLINE void words_store(const struct words *w, uint32_t h[8])
{
    __m128i feba = _mm_shuffle_epi32(w->abef, 0x1B), dchg = _mm_shuffle_epi32(w->cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)h, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(h + 4), _mm_alignr_epi8(dchg, feba, 8));
}

/* Rounds 4k to 4k+3. */
INLINE void four_rounds(struct words *w, int k)
{
    __m128i x = _mm_add_epi32(w->m[k & 3], _mm_load_si128((const __m128i *)(constants + 4 * k)));
    w->cdgh = _mm_sha256rnds2_epu32(w->cdgh, w->abef, x);
    w->abef = _mm_sha256rnds2_epu32(w->abef, w->cdgh, _mm_shuffle_epi32(x, 0x0E));
}

/* The message's words of those rounds, from the sixteen before them. */
INLINE void four_words(struct words *w, int k)
{
    __m128i x = _mm_sha256msg1_epu32(w->m[k & 3], w->m[(k + 1) & 3]);
    x = _mm_add_epi32(x, _mm_alignr_epi8(w->m[(k + 3) & 3], w->m[(k + 2) & 3], 4));
    w->m[k & 3] = _mm_sha256msg2_epu32(x, w->m[(k + 3) & 3]);
}

/* Written for one chain or two: n_chains is a constant where it is inlined. */
INLINE void run_blocks(struct words w[2], const uint8_t *const at[2], size_t n_blocks, int n_chains)
{
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    for (size_t b = 0; b < n_blocks; b++) {
        struct words before[2] = {w[0], w[1]};
#pragma GCC unroll 16
        for (int k = 0; k < 16; k++) {
#pragma GCC unroll 2
            for (int i = 0; i < n_chains; i++) {
                const uint8_t *from = at[i] + b * BLOCK_BYTES + 16 * (k & 3);
                if (k < 4)
                    w[i].m[k] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)from), swap);
                else
                    four_words(&w[i], k);
            }
#pragma GCC unroll 2
            for (int i = 0; i < n_chains; i++)
                four_rounds(&w[i], k);
        }
#pragma GCC unroll 2
        for (int i = 0; i < n_chains; i++) {
            w[i].abef = _mm_add_epi32(w[i].abef, before[i].abef);
            w[i].cdgh = _mm_add_epi32(w[i].cdgh, before[i].cdgh);
        }
    }
}

WITH_SHA static void blocks_of_one(struct chain *c, const uint8_t *at, size_t n_blocks)
{
    struct words w[2];
    const uint8_t *const both[2] = {at, at};
    words_load(&w[0], c->h);
    w[1] = w[0];
    run_blocks(w, both, n_blocks, 1);
    words_store(&w[0], c->h);
}

WITH_SHA static void blocks_of_two(struct chain c[2], const uint8_t *const at[2], size_t n_blocks)
{
    struct words w[2];
    words_load(&w[0], c[0].h);
    words_load(&w[1], c[1].h);
    run_blocks(w, at, n_blocks, 2);
    words_store(&w[0], c[0].h);
    words_store(&w[1], c[1].h);
}

static bool has_sha(void)
{
    enum { SHA = 1 << 29 };
    unsigned a, b, c, d;
    return __builtin_cpu_supports("avx") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & SHA);
}

#else

static void blocks_of_one(struct chain *c, const uint8_t *at, size_t n_blocks)
{
    (void)c, (void)at, (void)n_blocks;
}

static void blocks_of_two(struct chain c[2], const uint8_t *const at[2], size_t n_blocks)
{
    (void)c, (void)at, (void)n_blocks;
}

static bool has_sha(void)
{
    return false;
}

#endif

// ---- chains ------------------------------------------------------------------------------------

/* Fills up the tail and takes it when it is a block; gives what is left of the bytes. */
static size_t chain_fill(struct chain *c, const uint8_t **at, size_t n)
{
    size_t have = (size_t)(c->n_bytes % BLOCK_BYTES), k = have ? BLOCK_BYTES - have : 0;
    c->n_bytes += n;
    if (k > n)
        k = n;
    memcpy(c->tail + have, *at, k);
    if (k && have + k == BLOCK_BYTES)
        blocks_of_one(c, c->tail, 1);
    *at += k;
    return n - k;
}

static void chain_update(struct chain *c, const uint8_t *at, size_t n)
{
    n = chain_fill(c, &at, n);
    size_t n_blocks = n / BLOCK_BYTES;
    blocks_of_one(c, at, n_blocks);
    if (n % BLOCK_BYTES)
        memcpy(c->tail, at + n_blocks * BLOCK_BYTES, n % BLOCK_BYTES);
}

static void chains_update(struct chain c[2], const uint8_t *data, size_t n)
{
    const uint8_t *at[2] = {data, data};
    size_t left[2];
    for (int i = 0; i < 2; i++)
        left[i] = chain_fill(&c[i], &at[i], n);
    size_t n_blocks = (left[0] < left[1] ? left[0] : left[1]) / BLOCK_BYTES;
    blocks_of_two(c, at, n_blocks);
    for (int i = 0; i < 2; i++) {
        const uint8_t *rest = at[i] + n_blocks * BLOCK_BYTES;
        left[i] -= n_blocks * BLOCK_BYTES;
        size_t more = left[i] / BLOCK_BYTES; // the other chain's tail took some of its bytes
        blocks_of_one(&c[i], rest, more);
        if (left[i] % BLOCK_BYTES)
            memcpy(c[i].tail, rest + more * BLOCK_BYTES, left[i] % BLOCK_BYTES);
    }
}

static void chain_final(struct chain *c, struct digest *out)
{
    uint8_t end[2 * BLOCK_BYTES] = {0x80};
    uint64_t n_bits = c->n_bytes * 8;
    size_t have = (size_t)(c->n_bytes % BLOCK_BYTES);
    size_t n = (have < 56 ? 56 : 56 + BLOCK_BYTES) - have;
    for (int i = 0; i < 8; i++)
        end[n + (size_t)i] = (uint8_t)(n_bits >> (56 - 8 * i));
    chain_update(c, end, n + 8);
    for (int i = 0; i < 32; i++)
        out->bytes[i] = (uint8_t)(c->h[i / 4] >> (24 - 8 * (i % 4)));
}

// ---- the pair ----------------------------------------------------------------------------------

static int open_pair(struct digest_pair **out, bool portable, struct err *err)
{
    *out = NULL;
    struct digest_pair *p = sys_calloc(1, sizeof *p);
    if (!p)
        return err_set(err, ERR_NO_MEMORY, "no memory for a digest");
    chain_begin(&p->chains[STREAM]);
    chain_begin(&p->chains[PART]);
    int rc = !portable ? 0 : digest_open(&p->states[STREAM], err);
    if (!rc && p->states[STREAM])
        rc = digest_open(&p->states[PART], err);
    if (rc) {
        digest_pair_free(p);
        return rc;
    }
    *out = p;
    return 0;
}

int digest_pair_open(struct digest_pair **out, struct err *err)
{
    return open_pair(out, !has_sha(), err);
}

int digest_pair_open_portable(struct digest_pair **out, struct err *err)
{
    return open_pair(out, true, err);
}

void digest_pair_free(struct digest_pair *p)
{
    if (!p)
        return;
    digest_free(p->states[STREAM]);
    digest_free(p->states[PART]);
    sys_free(p);
}

int digest_pair_update(struct digest_pair *p, const void *data, size_t n, bool in_part,
                       struct err *err)
{
    // Through memory twice, but the second time through the cache.
    enum { STEP_BYTES = 64 << 10 };
    if (!p->states[STREAM]) {
        if (in_part)
            chains_update(p->chains, data, n);
        else
            chain_update(&p->chains[STREAM], data, n);
        return 0;
    }
    int rc = 0;
    for (size_t at = 0; !rc && at < n; at += STEP_BYTES) {
        size_t k = n - at < STEP_BYTES ? n - at : STEP_BYTES;
        rc = digest_update(p->states[STREAM], (const char *)data + at, k, err);
        if (!rc && in_part)
            rc = digest_update(p->states[PART], (const char *)data + at, k, err);
    }
    return rc;
}

int digest_pair_end_part(struct digest_pair *p, struct digest *out, struct err *err)
{
    if (!p->states[STREAM]) {
        chain_final(&p->chains[PART], out);
        chain_begin(&p->chains[PART]);
        return 0;
    }
    int rc = digest_final(p->states[PART], out, err);
    digest_free(p->states[PART]);
    p->states[PART] = NULL;
    return rc ? rc : digest_open(&p->states[PART], err);
}

int digest_pair_final(struct digest_pair *p, struct digest *out, struct err *err)
{
    if (p->states[STREAM])
        return digest_final(p->states[STREAM], out, err);
    chain_final(&p->chains[STREAM], out);
    return 0;
}
