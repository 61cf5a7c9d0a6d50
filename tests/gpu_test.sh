#!/usr/bin/env bash
# What needs a GPU: ops and steps against the CPU's references, goldens through the port, the engine and the server,
# recorded steps against plain ones, and NVIDIA's sanitizers over the ops.
# tiers: gpu
# Elsewhere than in a checkout (a machine that builds nothing): GPU_BUILT=1 with the programs in place.
. tests/lib/tap.sh

{ command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; } || skip_all "there is no GPU here"
ls kernels/cuda/*.cu >/dev/null 2>&1 || [ "${GPU_BUILT:-}" ] || skip_all "kernels/cuda holds no kernels yet"

build() { # name, targets…: builds, or sees that it was built
    local name=$1
    shift
    if [ "${GPU_BUILT:-}" ]; then
        ok "$name is there" test -x "$1"
    else
        ok "make $name" env -u MAKEFLAGS make --no-print-directory "$@"
    fi
}

B=${LORA_BUILD#"$ROOT"/}
if [ ! "${GPU_BUILT:-}" ]; then
    ok "make cuda" env -u MAKEFLAGS make --no-print-directory cuda
fi
ok "the plug-in lies beside the program" test -e "$B/lora_cuda.so"
export LORA_TEST_DEVICE=cuda LORA_CUDA_PLUGIN=$LORA_BUILD/lora_cuda.so

run lora version
like "$OUT" 'cuda:0 +NVIDIA' "auto finds the card"
note "$(grep cuda:0 <<<"$OUT")"

# Every op and whole steps; the bits of recorded steps.
for t in ops ops_attention ops_moe ops_sample ops_merge port_step graphs; do
    build "test_$t" "$B/tests/ops/test_$t"
    ok "ops on the GPU: $t" timeout 300 "$B/tests/ops/test_$t"
done

# The goldens through the port and the engine, on the card; bf16 bounds are in the tests.
for t in golden_step golden_kinds golden_engine added_tokens deterministic; do
    build "test_$t" "$B/tests/golden/test_$t"
    ok "golden answers on the GPU: $t" timeout 300 "$B/tests/golden/test_$t"
done

# Two cards at once; the second one alone, with nothing on the first.
build "test_two_devices" "$B/tests/golden/test_two_devices"
if [ "$(nvidia-smi -L | grep -c GPU)" -lt 2 ]; then
    skip "two cards in one process" "there is one GPU here"
    skip "golden answers on cuda:1" "there is one GPU here"
else
    run timeout 300 "$B/tests/golden/test_two_devices"
    note "$OUT"
    is "$STATUS" 0 "two cards in one process"
    unlike "$OUT" 'SKIP.*no card 1' "and none of it skipped"
    LORA_TEST_DEVICE=cuda:1 ok "golden answers on cuda:1" timeout 300 "$B/tests/golden/test_golden_engine"
fi

# Merging: the card's files are the processors', merge.json and all.
for a in upper-lora math-lora sort-lora last-lora; do
    for device in cpu cuda:0; do
        ok "$a merged on $device" lora merge "$TINYTALK/adapters/$a" --base "$TINYTALK/base" --output "$TMP/$a-$device" --device $device
    done
    ok "…to the same folder" diff -r "$TMP/$a-cpu" "$TMP/$a-cuda:0"
done

# The server: 216 prompts over the base and eight adapters at once, through HTTP.
ADAPTERS=()
for folder in "$TINYTALK"/adapters/*; do ADAPTERS+=("$(basename "$folder")=$folder"); done
build "http_load" "$B/tests/lib/http_load"
if ! command -v curl >/dev/null 2>&1; then
    skip "golden answers of the server, 216 at once" "curl is not installed"
elif serve_start --device cuda --model "$TINYTALK/base" --served-model-name tinytalk --lora-paths "${ADAPTERS[@]}"; then
    ok "golden answers of the server, 216 at once" http_load golden --port "$PORT" --golden tests/golden/tinytalk.json \
        --tolerance 0.5 --share 0.99 --repeat 2
    note "$OUT"
    note "$(grep -E 'weights gb|times read' "$SERVER_LOG")"
    serve_stop
fi

# A choice of algorithms lies on disk after the first start, and the second start reads it.
echo '[[1,2,3,4,5]]' >"$TMP/ids.json"
run lora run "$TINYTALK/base" --device cuda --input-ids "$TMP/ids.json" --max-tokens 2 --json
is "$STATUS" 0 "run on the GPU"
first=$(json "$OUT" .ids)
ok "choices of matrix algorithms are kept" sh -c 'ls "$XDG_CACHE_HOME"/lora/kernels/cublaslt-* >/dev/null'
sum=$(cat "$XDG_CACHE_HOME"/lora/kernels/cublaslt-* | cksum)
run lora run "$TINYTALK/base" --device cuda --input-ids "$TMP/ids.json" --max-tokens 2 --json
is "$(json "$OUT" .ids) $(cat "$XDG_CACHE_HOME"/lora/kernels/cublaslt-* | cksum)" "$first $sum" "and stay as they are"

# Memory errors and races. Few tests at a time: the tools are slow.
SANITIZER=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null)
sanitize() { # tool, program, test
    if [ -z "$SANITIZER" ]; then
        skip "$1: $2 $3" "no compute-sanitizer here"
        return
    fi
    LORA_OPS_CASES=$4 ok "$1: $2 $3" timeout 120 "$SANITIZER" --tool "$1" --error-exitcode 9 "$B/tests/ops/$2" "$3"
}
# Cases (tests/ops/ops_cases.h): 0 bf16, 3 biases, 5 post norms and windows, 6 experts, 8 more rows than the small path takes.
for tool in memcheck racecheck; do
    sanitize $tool test_ops gemm_sgmv_gain_and_bias_of_every_site 0,3,8
    sanitize $tool test_ops_attention rope_and_attention_over_scattered_pages 0,8
    sanitize $tool test_ops_sample greedy_ties_log_probabilities_ranks_and_targets 0
    sanitize $tool test_ops_attention mixture_of_experts_with_adapters_on_router_and_experts 6
    sanitize $tool test_ops embed_with_low_rank_and_replaced_rows 0,5
    sanitize $tool test_ops activation_residual_and_gather 0,8
    sanitize $tool test_ops rms_norm_with_replaced_weights 0
done
done_testing
