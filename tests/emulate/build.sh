#!/usr/bin/env bash
# build.sh OUT CC CXX: the CUDA plug-in for this machine's processor, OUT/lora_cuda.so. Run from the
# root. The kernels are the ones that nvcc compiles, but for assembler and dynamic shared memory,
# which are rewritten to calls of the emulation; what kernels/cuda/common.cuh holds in assembler and
# its launchers stand in common.hpp in plain C++. For finding wrong arithmetic, wrong indices and the
# wrong card where there is no GPU: it knows no races, no caches and no speed.
set -eu
out=$1 cc=${2:-gcc} cxx=${3:-g++} flags=${EMULATE_FLAGS:--O2 -g}
src=$out/src include=$out/include
mkdir -p "$src/kernels/cuda" "$include/kernels/cuda"
update() { # file: takes stdin when it differs
    cat >"$1.new"
    if cmp -s "$1.new" "$1"; then rm "$1.new"; else mv "$1.new" "$1"; fi
}
for f in cuda_runtime_api cuda_runtime cuda_bf16 cublasLt; do
    update "$include/$f.h" <tests/emulate/$f.hpp
done
update "$include/kernels/cuda/common.cuh" <tests/emulate/common.hpp
for f in kernels/cuda/*.cu kernels/cuda/*.cuh; do
    [ "${f##*/}" = common.cuh ] && continue
    perl -0pe '
        s/extern __shared__ __align__\(\d+\) uint8_t (\w+)\[\];/uint8_t *$1 = emu_dynamic_shared();/g;
        s/asm volatile\("movmatrix[^"]*"\s*:\s*"=r"\((.*?)\)\s*:\s*"r"\((\w+)\)\);/emu_movmatrix(&$1, $2);/gs;
        s/asm volatile\(\s*"(prefetch|discard|cp\.async\.bulk\.prefetch)[^;]*;[^;]*;/;/gs;
    ' "$f" | update "$src/$f"
done
headers=$(find kernels libcore "$include" "$src" -name '*.h' -o -name '*.cuh' | xargs ls -t | head -1)
objects=()
compile() { # object, source, command…
    local o=$1 s=$2
    shift 2
    objects+=("$o")
    [ "$o" -nt "$s" ] && [ "$o" -nt "$headers" ] || "$@" $flags -fPIC -c -o "$o" "$s"
}
# What only runs on compute capability 9.0 (TMA, wgmma) is left out; nobody calls it on this card.
{
    echo 'extern "C" {'
    cat $(grep -l '"kernels/cuda/hopper.cuh"' kernels/cuda/*.cu) |
        sed -n 's/^extern "C" int \(cu_[a-z_]*\)(.*/int \1(void) { return 0; }/p'
    echo '}'
} | update "$src/hopper_none.cpp"
compile "$out/hopper_none.o" "$src/hopper_none.cpp" $cxx
for f in $(grep -L '"kernels/cuda/hopper.cuh"' kernels/cuda/*.cu); do
    compile "$out/$(basename "$f").o" "$src/$f" $cxx -x c++ -std=c++17 -I"$include" -I"$src" -I. -ffp-contract=off \
        -Wno-unknown-pragmas
done
compile "$out/emulate.o" tests/emulate/emulate.cpp $cxx -std=c++17 -I"$include" -ffp-contract=off
for f in kernels/cuda/*.c $(sed -n "/^CUDA_C /s/.*)) //p" make/install.mk); do
    compile "$out/$(basename "$f").o" "$f" $cc -std=c11 -D_GNU_SOURCE -I"$include" -I.
done
$cxx -shared -Wl,-Bsymbolic -o "$out/lora_cuda.so" "${objects[@]}" -lm
