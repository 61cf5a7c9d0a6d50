#!/usr/bin/env bash
# serve --require-signature: what is not signed by that key is refused by name, at the start, by --check and when it is loaded.
. tests/lib/tap.sh

KEYS=$ROOT/tests/keys
TEAM="$KEYS/team.pub"
lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
for a in math upper sort; do lora import "$TINYTALK/adapters/$a-lora" --name "$a" -q >/dev/null; done
lora sign math --key "$KEYS/team.pem" -q >/dev/null
lora sign sort --key "$KEYS/other.pem" -q >/dev/null
cp -r "$TINYTALK/adapters/title-lora" "$TMP/title"
lora sign "$TMP/title" --key "$KEYS/team.pem" -q >/dev/null
mkdir "$TMP/root"
cp -r "$TINYTALK/adapters/first-lora" "$TMP/root/unsigned"
cp -r "$TMP/title" "$TMP/root/title"
serve() { lora serve --model tinytalk --device cpu --require-signature "$TEAM" "$@"; }

exits 4 "an unsigned adapter that is named keeps the server from starting" serve --port 0 --lora-paths math=math upper=upper
like "$ERR" 'upper: is not signed' "…by its name"
exits 4 "…so does one signed by somebody else" serve --port 0 --lora-paths sort
like "$ERR" 'sort: is signed by key .*, wanted' "…which says whose it is"
exits 4 "…and a folder without a signature" serve --port 0 --lora-paths "x=$TINYTALK/adapters/first-lora"
like "$ERR" 'x: .*is not signed: it has no model.sig' "…by its name"
exits 4 "a key that is none" lora serve --model tinytalk --require-signature "$KEYS/p384.pem" --port 0
like "$ERR" 'p384.pem' "…is named"
exits 4 "--check says of each what it thinks" serve --check --json
is "$(json "$OUT" .adapters[0].name) $(json "$OUT" .adapters[0].served)" "math true" "…the signed one is served"
is "$(json "$OUT" .adapters[2].name) $(json "$OUT" .adapters[2].served)" "upper false" "…the unsigned one is not"
like "$(json "$OUT" .adapters[2].reason)" 'is not signed' "…with the reason"
like "$(json "$OUT" .adapters[1].reason)" 'is signed by key' "…the other one with its own"
ok "--check of signed ones" serve --check --lora-paths math "t=$TMP/title"

serve_start --model tinytalk --device cpu --require-signature "$TEAM" --adapter-root "$TMP/root" || { done_testing; exit; }
http GET /v1/models
like "$OUT" '"math"' "the signed adapter of the store is offered"
unlike "$OUT" '"upper"|"sort"' "…the others are not"
like "$(cat "$SERVER_LOG")" 'not offered name=upper reason="upper: is not signed"' "…as the log says"
http POST /v1/completions '{"model":"math","prompt":"hello","max_tokens":2}'
is "$STATUS" 200 "…it answers"
http POST /v1/load_lora_adapter '{"lora_name":"upper","lora_path":"upper"}'
is "$STATUS" 400 "loading an unsigned one is refused"
like "$OUT" 'upper: is not signed' "…by its name"
http POST /load_lora_adapter '{"lora_name":"mine","lora_path":"sort"}'
is "$STATUS" 400 "…on SGLang's route, too"
like "$OUT" 'mine: is signed by key' "…by its name"
http POST /v1/load_lora_adapter "{\"lora_name\":\"u\",\"lora_path\":\"$TMP/root/unsigned\"}"
is "$STATUS" 400 "…a folder without a signature"
http POST /v1/load_lora_adapter "{\"lora_name\":\"t\",\"lora_path\":\"$TMP/root/title\"}"
is "$STATUS" 200 "…one with a signature is loaded"
printf ' ' >>"$TMP/root/title/adapter_config.json"
http POST /v1/load_lora_adapter "{\"lora_name\":\"t2\",\"lora_path\":\"$TMP/root/title\"}"
is "$STATUS" 400 "…not when a file was changed"
like "$OUT" 'adapter_config.json is not what was signed' "…which is named"

# The name moves to content that is not signed: what was offered stays; signed, it is taken.
OLD=$(lora inspect math --json | jsonq .id)
lora import "$TINYTALK/adapters/last-lora" --name math --force -q >/dev/null
kill -HUP "$SERVER_PID"
logged() { grep -q 'not offered name=math' "$SERVER_LOG"; }
ok "SIGHUP: an unsigned successor is not taken" eventually logged
http GET /v1/models
like "$OUT" '"math"' "…the old one goes on"
http POST /v1/completions '{"model":"math","prompt":"hello","max_tokens":2}'
is "$STATUS" 200 "…and answers"
lora sign math --key "$KEYS/team.pem" -q >/dev/null
lora sign upper --key "$KEYS/team.pem" -q >/dev/null
kill -HUP "$SERVER_PID"
offered() { http GET /v1/models && [[ $OUT == *'"upper"'* ]]; }
ok "signed, it is" eventually offered
serve_stop
is "$STATUS" 0 "the server ends well"
isnt "$(lora inspect math --json | jsonq .id)" "$OLD" "…and the name is the new content's"
done_testing
