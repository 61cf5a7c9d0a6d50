#!/usr/bin/env bash
# tiers: check asan tsan
# All golden prompts over real HTTP, mixed over the base and eight adapters: the answers of transformers and PEFT.
. tests/lib/tap.sh

GOLDEN=$ROOT/tests/golden/tinytalk.json
ADAPTERS=()
for folder in "$TINYTALK"/adapters/*; do ADAPTERS+=("$(basename "$folder")=$folder"); done

# golden NAME [http_load options…]
golden() {
    local name=$1
    shift
    ok "$name" http_load golden --port "$PORT" --golden "$GOLDEN" "$@"
    note "$OUT"
}
metric() { http_load metric --port "$PORT" "$1"; }
start() { serve_start --model "$TINYTALK/base" --served-model-name tinytalk --lora-paths "${ADAPTERS[@]}" "$@"; }
more_than() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b) }'; }

if start --trace "$TMP/trace"; then
    golden "all 216 at once, and once more" --repeat 2
    serve_stop
    is "$STATUS" 0 "the server drains and ends"
    # One step that held the base and all eight adapters.
    widest=$(sed 's/.*"adapters":{//; s/}.*//' "$TMP/trace" | awk -F'":' '{ if (NF - 1 > most) most = NF - 1 } END { print most }')
    is "$widest" 9 "a step held all nine groups at once"
fi

if start; then
    # A sanitizer makes each step slow, and there are races only between several.
    case $LORA_BUILD in
    *san) golden "the same, few at a time" --clients 24 ;;
    *)
        golden "the same, one at a time" --clients 1
        golden "again, over what the prefix cache keeps, three times" --repeat 3
        ;;
    esac
    http POST /v1/completions "$(jsonq '.base[2]' <"$GOLDEN" | sed 's/.*"prompt_ids":\(\[[^]]*\]\).*/{"prompt":\1,"max_tokens":1}/')"
    first=$(json "$OUT" .usage.prompt_tokens_details.cached_tokens)
    http POST /v1/completions "$(jsonq '.base[2]' <"$GOLDEN" | sed 's/.*"prompt_ids":\(\[[^]]*\]\).*/{"prompt":\1,"max_tokens":1}/')"
    ok "a prompt that was seen is a prefix hit (first $first)" test "$(json "$OUT" .usage.prompt_tokens_details.cached_tokens)" -gt 0
    serve_stop
fi

if start --max-num-batched-tokens 16; then
    golden "16 tokens in a step"
    serve_stop
fi

# Pages for about three sequences: they preempt one another.
if start --max-total-tokens 96 --context-length 96; then
    golden "KV pages for three sequences" --clients 64
    preempted=$(metric vllm:num_preemptions_total)
    ok "sequences were preempted ($preempted)" more_than "$preempted" 0
    serve_stop
fi

# Room for two adapters on the device and four on the host: all three tiers move.
if start --adapter-memory 4M --host-cache 1M; then
    golden "adapters that do not all fit" --clients 64
    evicted=$(metric lora_adapter_evictions_total)
    ok "adapters were evicted ($evicted)" more_than "$evicted" 0
    serve_stop
fi
done_testing
