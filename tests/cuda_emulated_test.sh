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
# Which device, and what a machine or a card lacks.
BASE=$TINYTALK/base
run lora serve --check "$BASE"
like "$OUT" 'base on cuda: emulated card' "auto takes the card"
lacks() { # EMU_CARD, words: auto goes on without it and says why on one line; cuda:0 refuses with the same words
    export EMU_CARD=$1
    run lora serve --check "$BASE"
    is "$STATUS" 0 "$1: auto goes on with the CPU"
    like "$(head -1 <<<"$OUT")" "on cpu: .*; cuda: .*$2" "and says why"
    exits 1 "$1: cuda:0 is refused" lora serve --check "$BASE" --device cuda:0
    like "$ERR" "cuda: .*$2" "with the same words"
}
lacks "no driver" "this machine has no NVIDIA driver"
lacks "old driver" "the driver is for CUDA 12.4, want 13.0: update the driver"
lacks "no card" "a driver but no card"
lacks "sm 75" "emulated card has compute capability 7.5, want 8.0"
export EMU_CARD=small
exits 1 "a card that is too small" lora serve --check "$BASE" --device cuda:0
like "$ERR" "need [0-9]+ MB; .*of the free memory of emulated card are [0-9]+ MB" "is refused with both numbers"
unset EMU_CARD
exits 1 "a card that is not there" lora serve --check "$BASE" --device cuda:1
like "$ERR" "no card 1, this machine has 1" "is named"
exits 2 "several cards for one model" lora serve --check "$BASE" --device cuda:0,cuda:1
like "$ERR" "want cuda:N" "are refused"

for t in golden/test_golden_kinds golden/test_added_tokens ops/test_ops ops/test_ops_attention ops/test_ops_merge; do
    program=build/${VARIANT:-release}/tests/$t
    ok "make $t" env -u MAKEFLAGS make --no-print-directory VARIANT="${VARIANT:-release}" "$program"
    ok "on the emulated card: $t" "$program"
done
# Two cards in one process, and the second one alone: whatever reaches the first ends the program.
program=$LORA_BUILD/tests/golden/test_two_devices
ok "make golden/test_two_devices" env -u MAKEFLAGS make --no-print-directory VARIANT="${VARIANT:-release}" "build/${VARIANT:-release}/tests/golden/test_two_devices"
EMU_CARDS=2 ok "two emulated cards" "$program"
unlike "$OUT" 'SKIP.*no card 1' "and none of it skipped"
EMU_CARDS=2 run lora version --json
is "$(jsonq -n .back_ends <<<"$OUT") $(jsonq .back_ends[2].device <<<"$OUT")" "3 cuda:1" "lora version lists both cards"
export EMU_CARDS=2 EMU_ONLY=1
LORA_TEST_DEVICE=cuda:1 ok "cuda:1 alone: golden kinds" "$LORA_BUILD/tests/golden/test_golden_kinds" kinds_llama_untied
echo '[[1,2,3,4,5]]' >"$TMP/ids.json"
ok "cuda:1 alone: an engine with its threads" lora run "$BASE" --adapter "$TINYTALK/adapters/last-lora" --device cuda:1 \
    --input-ids "$TMP/ids.json" --max-tokens 2
ok "cuda:1 alone: merging" lora merge "$TINYTALK/adapters/math-lora" --base "$BASE" --output "$TMP/cuda:1" --device cuda:1 --threads 2
unset EMU_CARDS EMU_ONLY
# Cards whose blocks have less shared memory: other rings, the same answers, and a refusal of what does not fit.
for card in "sm 80" "sm 89"; do
    for t in kinds_llama_untied kinds_qwen2_bias; do
        ok "$card: golden kinds, $t" env EMU_CARD="$card" "$LORA_BUILD/tests/golden/test_golden_kinds" $t
    done
    ok "$card: products of every site" env EMU_CARD="$card" "$LORA_BUILD/tests/ops/test_ops" gemm_sgmv_gain_and_bias_of_every_site
done
cp -r "$BASE" "$TMP/wide"
sed -i 's/"head_dim": 32/"head_dim": 256/' "$TMP/wide/config.json"
EMU_CARD="sm 89" exits 4 "heads that are too wide for a card" lora serve --check "$TMP/wide" --device cuda:0
like "$ERR" "head_dim 256: .* wants 128 KB .* has 99" "are refused with both numbers"
for a in math-lora sort-lora; do # float32 sums, and DoRA's float64 ones; the emulation has one thread
    for device in cpu cuda:0; do
        ok "$a merged on $device" lora merge "$TINYTALK/adapters/$a" --base "$TINYTALK/base" --output "$TMP/$a-$device" --device $device --threads 1
    done
    ok "…to the same folder" diff -r "$TMP/$a-cpu" "$TMP/$a-cuda:0"
done
done_testing
