#!/usr/bin/env bash
# What needs a GPU begins here: the card, the plug-in, and that the program finds both.
# tiers: gpu
. tests/lib/tap.sh

{ command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; } || skip_all "there is no GPU here"
ls kernels/cuda/*.cu >/dev/null 2>&1 || skip_all "kernels/cuda holds no kernels yet"
ok "make cuda" env -u MAKEFLAGS make --no-print-directory cuda
ok "the plug-in lies beside the program" test -e build/lora_cuda.so

# The goldens through the port and the engine, on the card; bf16 bounds are in the tests.
export LORA_TEST_DEVICE=cuda LORA_CUDA_PLUGIN=$PWD/build/lora_cuda.so
for t in golden_step golden_kinds golden_engine added_tokens deterministic; do
    program=build/release/tests/golden/test_$t
    ok "make test_$t" env -u MAKEFLAGS make --no-print-directory "$program"
    ok "golden answers on the GPU: $t" "$program"
done
if command -v compute-sanitizer >/dev/null 2>&1; then
    ok "memcheck finds nothing" compute-sanitizer --tool memcheck --error-exitcode 9 \
        build/release/tests/golden/test_golden_step one_at_a_time
else
    skip "memcheck finds nothing" "no compute-sanitizer here"
fi
done_testing
