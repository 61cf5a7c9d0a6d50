#include "kernels/cpu/isa/isa.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static size_t panel_index(size_t k_idx, size_t row)
{
    return (k_idx / 2 * ISA_PANEL + row) * 2 + (k_idx & 1);
}

enum { PACK_COLUMNS = 64 };

/* Columns [k0, k1) of a row, both even where k1 is not the end; 16-bit values go in pairs. */
static void pack_columns(enum dtype t, char *panel, size_t row, const char *from, size_t k0,
                         size_t k1)
{
    if (t == DTYPE_F32) {
        for (size_t j = k0; j < k1; j++)
            memcpy(panel + (j * ISA_PANEL + row) * 4, from + j * 4, 4);
        return;
    }
    size_t j = k0;
    for (; j + 2 <= k1; j += 2)
        memcpy(panel + (j / 2 * ISA_PANEL + row) * 4, from + j * 2, 4);
    if (j < k1)
        memcpy(panel + panel_index(j, row) * 2, from + j * 2, 2);
}

/* All rows of a panel pass a few columns at a time, so that what is written stays in the cache. */
void isa_pack_rows(enum dtype t, void *w, size_t k, size_t row0, size_t n_rows, const void *src,
                   size_t stride)
{
    size_t panel_bytes = isa_panel_bytes(t, k);
    for (size_t i = 0; i < n_rows;) {
        size_t first = (row0 + i) % ISA_PANEL, n = ISA_PANEL - first;
        n = n < n_rows - i ? n : n_rows - i;
        char *panel = (char *)w + (row0 + i) / ISA_PANEL * panel_bytes;
        const char *from = (const char *)src + i * stride;
        for (size_t k0 = 0; k0 < k; k0 += PACK_COLUMNS) {
            size_t k1 = k - k0 < PACK_COLUMNS ? k : k0 + PACK_COLUMNS;
            for (size_t r = 0; r < n; r++)
                pack_columns(t, panel, first + r, from + r * stride, k0, k1);
        }
        i += n;
    }
}

void isa_unpack_row(enum dtype t, const void *w, size_t k, size_t row, float *dst)
{
    const char *panel = (const char *)w + row / ISA_PANEL * isa_panel_bytes(t, k);
    row %= ISA_PANEL;
    for (size_t j = 0; j < k; j++) {
        uint16_t v;
        if (t == DTYPE_F32) {
            memcpy(dst + j, panel + (j * ISA_PANEL + row) * 4, 4);
            continue;
        }
        memcpy(&v, panel + panel_index(j, row) * 2, 2);
        dst[j] = t == DTYPE_BF16 ? dtype_bf16_to_f32(v) : dtype_f16_to_f32(v);
    }
}

#if defined(__x86_64__)
enum { ARCH_REQUEST_XCOMP = 0x1023, XFEATURE_TILE_DATA = 18 };

/* AMX: the processor has tiles and bf16, and the kernel grants their state to this process. */
static bool amx_granted(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> 22 & 1) || !(d >> 24 & 1))
        return false;
    return syscall(SYS_arch_prctl, ARCH_REQUEST_XCOMP, XFEATURE_TILE_DATA) == 0;
}
#endif

const struct isa_table *isa_select(const char *wanted)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && (!wanted || strcmp(wanted, "amx") == 0) && amx_granted())
        return &isa_amx;
    if (avx512 && (!wanted || strcmp(wanted, "avx512") == 0))
        return &isa_avx512;
    if (avx2 && (!wanted || strcmp(wanted, "avx2") == 0))
        return &isa_avx2;
#endif
    return !wanted || strcmp(wanted, "plain") == 0 ? &isa_plain : NULL;
}
