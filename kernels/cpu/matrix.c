/* Whole matrices: allocation, loading into panels, and one row back. */
#include <string.h>
#include <sys/mman.h>

#include "kernels/cpu/cpu_impl.h"
#include "libcore/base/sys.h"

enum { HUGE_PAGE = 2 << 20 };

enum dtype cpu_matrix_dtype(enum dtype t)
{
    if (t == DTYPE_BF16 || t == DTYPE_F16 || t == DTYPE_F32)
        return t;
    return t == DTYPE_F64 ? DTYPE_F32 : DTYPE_NONE;
}

static size_t matrix_bytes(const struct cpu_matrix *m, enum dtype t)
{
    if (!m->panels)
        return (size_t)m->n_rows * m->n_cols * (dtype_bits(t) / 8);
    return ((size_t)m->n_rows + ISA_PANEL - 1) / ISA_PANEL * isa_panel_bytes(t, m->n_cols);
}

int cpu_matrix_allocate(struct cpu_matrix *m, enum dtype t, struct err *err)
{
    size_t bytes = matrix_bytes(m, t);
    size_t align = bytes >= HUGE_PAGE ? HUGE_PAGE : CPU_ALIGN;
    bytes = (bytes + align - 1) / align * align;
    m->data = sys_aligned_alloc(align, bytes);
    if (!m->data)
        return err_set(err, ERR_NO_MEMORY, "no memory for a matrix of %u x %u (%zu bytes)",
                       m->n_rows, m->n_cols, bytes);
    if (align == HUGE_PAGE)
        (void)madvise(m->data, bytes, MADV_HUGEPAGE); // a wish: small pages work too
    memset(m->data, 0, bytes);
    m->dtype = t;
    return 0;
}

void cpu_matrix_release(struct cpu_matrix *m)
{
    sys_free(m->data);
    m->data = NULL;
}

static void write_rows(struct cpu_matrix *m, uint32_t row0, uint32_t n, const void *src)
{
    size_t row_bytes = m->n_cols * (size_t)(dtype_bits(m->dtype) / 8);
    if (m->panels)
        isa_pack_rows(m->dtype, m->data, m->n_cols, row0, n, src, row_bytes);
    else
        memcpy((char *)m->data + row0 * row_bytes, src, n * row_bytes);
}

/* A part in another type than the rest: everything becomes F32. */
static int widen(struct cpu_matrix *m, struct err *err)
{
    struct cpu_matrix wide = {.panels = m->panels, .n_rows = m->n_rows, .n_cols = m->n_cols};
    float *row = sys_malloc((m->n_cols + 1) * sizeof *row);
    int rc = row ? cpu_matrix_allocate(&wide, DTYPE_F32, err)
                 : err_set(err, ERR_NO_MEMORY, "no memory to widen a matrix");
    if (rc == 0) {
        for (uint32_t i = 0; i < m->n_rows; i++) {
            cpu_matrix_row(&isa_plain, m, i, row);
            write_rows(&wide, i, 1, row);
        }
        cpu_matrix_release(m);
        *m = wide;
    }
    sys_free(row);
    return rc;
}

int cpu_matrix_load(struct cpu_matrix *m, uint32_t row0, const struct tensor *src, struct err *err)
{
    uint32_t n = (uint32_t)src->shape[0];
    if (src->dtype == m->dtype) {
        write_rows(m, row0, n, src->data);
        return 0;
    }
    if (m->dtype != DTYPE_F32) {
        int rc = widen(m, err);
        if (rc != 0)
            return rc;
    }
    float *row = sys_malloc((m->n_cols + 1) * sizeof *row);
    if (!row)
        return err_set(err, ERR_NO_MEMORY, "no memory to load a matrix");
    for (uint32_t i = 0; i < n; i++) {
        dtype_to_f32(src->dtype, tensor_row(src, i), row, m->n_cols);
        write_rows(m, row0 + i, 1, row);
    }
    sys_free(row);
    return 0;
}

void cpu_matrix_row(const struct isa_table *isa, const struct cpu_matrix *m, uint32_t row,
                    float *dst)
{
    if (m->panels) {
        isa_unpack_row(m->dtype, m->data, m->n_cols, row, dst);
        return;
    }
    size_t row_bytes = m->n_cols * (size_t)(dtype_bits(m->dtype) / 8);
    isa->to_f32(m->dtype, (const char *)m->data + row * row_bytes, dst, m->n_cols);
}
