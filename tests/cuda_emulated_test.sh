#!/usr/bin/env bash
# The CUDA back end's kernels on this machine's processor (tests/emulate): what they compute, without a GPU.
# tiers: all
. tests/lib/tap.sh

CXX=${CXX:-g++}
command -v "$CXX" >/dev/null 2>&1 || skip_all "there is no C++ compiler here"
command -v perl >/dev/null 2>&1 || skip_all "perl is not installed"
[ "$(uname -m)" = x86_64 ] || skip_all "the emulation switches stacks of x86-64 only"
ok "the plug-in builds for the emulated card" tests/emulate/build.sh "$LORA_BUILD/emulate" "${CC:-gcc}" "$CXX"
export LORA_TEST_DEVICE=cuda LORA_CUDA_PLUGIN=$LORA_BUILD/emulate/lora_cuda.so
for t in golden/test_golden_kinds golden/test_added_tokens ops/test_ops ops/test_ops_attention; do
    program=build/${VARIANT:-release}/tests/$t
    ok "make $t" env -u MAKEFLAGS make --no-print-directory VARIANT="${VARIANT:-release}" "$program"
    ok "on the emulated card: $t" "$program"
done
done_testing
