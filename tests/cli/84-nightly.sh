#!/usr/bin/env bash
# examples/nightly: pull, check, tag, reload a running server, gc.
. tests/lib/tap.sh

SERVER=$(command -v docker-registry || command -v registry) || skip_all "docker-registry is not installed"
command -v python3 >/dev/null || skip_all "python3 is not installed"
REG_PORT=$(free_port)
printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:%s}\n' \
    "$TMP/registry" "$REG_PORT" >"$TMP/registry.yml"
"$SERVER" serve "$TMP/registry.yml" >"$TMP/registry.log" 2>&1 &
REGISTRY_PID=$!
trap 'kill $REGISTRY_PID 2>/dev/null; serve_stop; rm -rf "$TMP"' EXIT
for ((i = 0; i < 1200; i++)); do (exec 3<>"/dev/tcp/127.0.0.1/$REG_PORT") 2>/dev/null && break; sleep 0.1; done
export LORA_PULL_FLAGS=--plain-http

lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
lora import "$TINYTALK/adapters/math-lora" --name team-bot -q >/dev/null
lora import "$TINYTALK/adapters/upper-lora" --name team-bot --store "$TMP/trainer" -q >/dev/null
lora push team-bot "localhost:$REG_PORT/team/bot" --plain-http --store "$TMP/trainer" >/dev/null 2>"$TMP/.push" ||
    { grep -q 'without libcurl' "$TMP/.push" && skip_all "built without libcurl"; }
serve_start --model tinytalk --device cpu || { done_testing; exit; }
ok "the nightly job runs beside a server" examples/nightly/nightly.sh "localhost:$REG_PORT/team/bot" "$SERVER_PID"
NEW=$(lora inspect team-bot --store "$TMP/trainer" --json | jsonq .id)
is "$(lora inspect team-bot --json | jsonq .id)" "$NEW" "the new adapter is latest"
is "$(lora inspect "team-bot:$(date -u +%Y-%m-%d)" --json | jsonq .id)" "$NEW" "…and has the day's tag"
ok "the server goes on" curl -sf "$URL/health"
http POST /v1/completions '{"model":"team-bot","prompt":"hello","max_tokens":4,"temperature":0}'
is "$STATUS" 200 "…and answers with the adapter"
ok "a second run changes nothing" examples/nightly/nightly.sh "localhost:$REG_PORT/team/bot" "$SERVER_PID"
is "$(lora inspect team-bot --json | jsonq .id)" "$NEW" "…and keeps the name"
kill $REGISTRY_PID
wait $REGISTRY_PID 2>/dev/null
not_ok "without the registry it fails" examples/nightly/nightly.sh "localhost:$REG_PORT/team/bot" "$SERVER_PID"
is "$(lora inspect team-bot --json | jsonq .id)" "$NEW" "…and leaves everything as it was"
serve_stop
ok "the store is sound" lora fsck
done_testing
