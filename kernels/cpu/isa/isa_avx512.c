/* AVX-512 (F, BW, DQ, VL): 32 registers of sixteen floats. Compiled with those flags (build.mk);
 * reached only through isa_select(). */
#if defined(__AVX512F__) && defined(__AVX512BW__)
#define ISA_NAME   "avx512"
#define ISA_SYMBOL isa_avx512
#define ISA_WIDTH  16
#define ISA_BLOCKS(X)                                                                              \
    X(1, 8) X(1, 2) X(2, 8) X(2, 2) X(3, 4) X(3, 2) X(4, 4) X(4, 2) X(6, 4) X(6, 2) X(8, 2) X(12, 2)
#include "kernels/cpu/isa/simd.h"
#else
typedef int isa_avx512_is_not_for_this_processor;
#endif
