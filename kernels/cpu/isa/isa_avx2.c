/* AVX2 and FMA: 16 registers of eight floats. Compiled with those flags (build.mk); reached only
 * through isa_select(). */
#if defined(__AVX2__) && defined(__FMA__)
#define ISA_WIDTH     8
#define ISA_BLOCKS(X) X(1, 8) X(1, 4) X(2, 4) X(3, 2) X(4, 2) X(5, 2) X(6, 2)
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/isa/simd_attend.h"
#include "kernels/cpu/isa/simd_gemm.h"

const struct isa_table isa_avx2 = ISA_TABLE("avx2", gemm, pack_units, gemm_packed);
#else
typedef int isa_avx2_is_not_for_this_processor;
#endif
