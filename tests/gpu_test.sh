#!/usr/bin/env bash
# What needs a GPU begins here: the card, the plug-in, and that the program finds both.
# tiers: gpu
. tests/lib/tap.sh

{ command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; } || skip_all "there is no GPU here"
ls kernels/cuda/*.cu >/dev/null 2>&1 || skip_all "kernels/cuda holds no kernels yet"
ok "make cuda" env -u MAKEFLAGS make --no-print-directory cuda
ok "the plug-in lies beside the program" test -e build/lora_cuda.so
done_testing
