#!/usr/bin/env bash
# tiers: check all
# 64 streaming clients from mixed adapters for a while (LORA_SOAK_SECONDS, a minute in check-all): every answer golden, the
# memory steady; then the same with clients that leave in the middle: nothing of theirs stays behind.
. tests/lib/tap.sh

SECONDS_LONG=${LORA_SOAK_SECONDS:-10}
ADAPTERS=()
for folder in "$TINYTALK"/adapters/*; do ADAPTERS+=("$(basename "$folder")=$folder"); done
soak() { http_load soak --port "$PORT" --golden "$ROOT/tests/golden/tinytalk.json" --clients 64 --pid "$SERVER_PID" "$@"; }
metric() { http_load metric --port "$PORT" "$1"; }

serve_start --model "$TINYTALK/base" --served-model-name tinytalk --lora-paths "${ADAPTERS[@]}" --log-level warn || { done_testing; exit; }
soak --seconds 3 >/dev/null # caches, pools and arenas grow to their size
ok "64 clients stream for $SECONDS_LONG s: no error, memory grows by 2 % at most" soak --seconds "$SECONDS_LONG"
note "$OUT"
ok "an eighth of them leaves early" soak --seconds $((SECONDS_LONG / 4 + 2)) --leave
note "$OUT"
idle() { [ "$(metric vllm:num_requests_running) $(metric vllm:num_requests_waiting)" = "0 0" ]; }
eventually idle
is "$(metric vllm:num_requests_running) $(metric vllm:num_requests_waiting)" "0 0" "nothing of theirs stays behind"
ok "$(metric lora_cancelled_total) sequences were ended early" test "$(metric lora_cancelled_total)" -gt 0
ok "a client that leaves is worked for two steps at most, streaming or not" http_load leave --port "$PORT"
note "$OUT"
is "$(metric lora_failed_total)" 0 "none failed"
is "$(metric vllm:kv_cache_usage_perc)" 0 "no page is held"
serve_stop
is "$STATUS" 0 "the server ends well"
is "$(cat "$SERVER_LOG")" "" "and has logged nothing to worry about"
done_testing
