/* The loops for any processor: four floats a vector (SSE2, NEON, or scalars). */
#define ISA_WIDTH     4
#define ISA_BLOCKS(X) X(1, 8) X(2, 4)
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/isa/simd_attend.h"
#include "kernels/cpu/isa/simd_gemm.h"

const struct isa_table isa_plain = ISA_TABLE("plain", gemm, pack_units, gemm_packed);
