/* AVX-512 (F, BW, DQ, VL): 32 registers of sixteen floats. Compiled with those flags (build.mk);
 * reached only through isa_select(). */
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define ISA_WIDTH     16
#define ISA_BLOCKS(X) ISA_BLOCKS_512(X)
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/isa/simd_attend.h"
#include "kernels/cpu/isa/simd_gemm.h"

const struct isa_table isa_avx512 = ISA_TABLE("avx512", gemm, pack_units, gemm_packed);
#else
typedef int isa_avx512_is_not_for_this_processor;
#endif
