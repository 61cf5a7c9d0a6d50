#!/usr/bin/env bash
# examples/nightly: sign and push; pull, verify, import, tag, reload a running server, gc.
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
export LORA_PULL_FLAGS=--plain-http LORA_PUSH_FLAGS=--plain-http
KEYS=$ROOT/tests/keys
IMAGE=localhost:$REG_PORT/team/bot
lora push nothing "$IMAGE" >/dev/null 2>"$TMP/.push"
! grep -q 'without libcurl' "$TMP/.push" || skip_all "built without libcurl"
trainer() { LORA_STORE=$TMP/trainer examples/nightly/sign-and-push.sh "$TINYTALK/adapters/$1" team-bot "$KEYS/$2.pem" "$IMAGE"; }
nightly() { examples/nightly/nightly.sh "$IMAGE" "$KEYS/team.pub" "$SERVER_PID"; }
id_of() { lora inspect "$1" --json "${@:2}" | jsonq .id; }

lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
lora import "$TINYTALK/adapters/math-lora" --name team-bot -q >/dev/null
lora sign team-bot --key "$KEYS/team.pem" -q >/dev/null
ok "the trainer signs and pushes" trainer upper-lora team
serve_start --model tinytalk --device cpu --require-signature "$KEYS/team.pub" || { done_testing; exit; }
ok "the nightly job runs beside a server" nightly
NEW=$(id_of team-bot --store "$TMP/trainer")
is "$(id_of team-bot)" "$NEW" "the new adapter is latest"
is "$(id_of "team-bot:$(date -u +%Y-%m-%d)")" "$NEW" "…and has the day's tag"
ok "…its signature came with it" lora verify team-bot --key "$KEYS/team.pub"
ok "the server goes on" curl -sf "$URL/health"
http POST /v1/completions '{"model":"team-bot","prompt":"hello","max_tokens":4,"temperature":0}'
is "$STATUS" 200 "…and answers with the adapter"
unlike "$(cat "$SERVER_LOG")" 'not offered' "…which it found signed"
ok "a second run changes nothing" nightly
is "$(id_of team-bot)" "$NEW" "…and keeps the name"
# Somebody pushes another adapter to the same place, signed by nobody that the team knows, then by nobody at all.
ok "a stranger pushes" trainer sort-lora other
exits 4 "…which is refused" nightly
like "$ERR" 'is signed by key' "…and said whose it is"
is "$(id_of team-bot)" "$NEW" "…the name is what it was"
lora import "$TINYTALK/adapters/title-lora" --name team-bot --store "$TMP/careless" -q >/dev/null
lora push team-bot "$IMAGE" --plain-http --store "$TMP/careless" >/dev/null
exits 4 "what is not signed is refused, too" nightly
like "$ERR" 'is not signed, and unsigned adapters are refused here' "…and said why"
is "$(id_of team-bot)" "$NEW" "…the name is what it was"
ok "…the store is sound" lora fsck
kill $REGISTRY_PID
wait $REGISTRY_PID 2>/dev/null
exits 1 "without the registry it fails" nightly
is "$(id_of team-bot)" "$NEW" "…and leaves everything as it was"
exits 1 "without a key it does nothing" examples/nightly/nightly.sh "$IMAGE"
serve_stop
ok "the store is sound" lora fsck
done_testing
