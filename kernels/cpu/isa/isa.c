#include "kernels/cpu/isa/isa.h"

#include <string.h>

static size_t panel_index(size_t k_idx, size_t row)
{
    return (k_idx / 2 * ISA_PANEL + row) * 2 + (k_idx & 1);
}

void isa_pack_rows(enum dtype t, void *w, size_t k, size_t row0, size_t n_rows, const void *src,
                   size_t stride)
{
    size_t panel_bytes = isa_panel_bytes(t, k);
    for (size_t i = 0; i < n_rows; i++) {
        size_t row = row0 + i;
        char *panel = (char *)w + row / ISA_PANEL * panel_bytes;
        const char *from = (const char *)src + i * stride;
        if (t == DTYPE_F32) {
            for (size_t j = 0; j < k; j++)
                memcpy(panel + (j * ISA_PANEL + row % ISA_PANEL) * 4, from + j * 4, 4);
        } else {
            for (size_t j = 0; j < k; j++)
                memcpy(panel + panel_index(j, row % ISA_PANEL) * 2, from + j * 2, 2);
        }
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

const struct isa_table *isa_select(const char *wanted)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (avx512 && (!wanted || strcmp(wanted, "avx512") == 0))
        return &isa_avx512;
    if (avx2 && (!wanted || strcmp(wanted, "avx2") == 0))
        return &isa_avx2;
#endif
    return !wanted || strcmp(wanted, "plain") == 0 ? &isa_plain : NULL;
}
