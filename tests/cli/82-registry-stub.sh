#!/usr/bin/env bash
# push and pull against a registry that misbehaves (tests/packs/stub_registry.py): tried again, or one clear error.
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
lora import --recursive "$TINYTALK/adapters" -q >/dev/null
lora pack math-lora upper-lora --format oci --output "$TMP/layout" -q >/dev/null
lora push math-lora localhost:1/x --plain-http >/dev/null 2>"$TMP/.push"
! grep -q 'without libcurl' "$TMP/.push" || skip_all "built without libcurl"
ok "lora knows push" lora push --help
python3 tests/packs/stub_registry.py "$TMP/layout" "$TMP/port" "$TMP/log" &
STUB=$!
trap 'kill $STUB 2>/dev/null; rm -rf "$TMP"' EXIT
for ((i = 0; i < 1200; i++)); do [ ! -s "$TMP/port" ] || break; sleep 0.1; done
HOST=localhost:$(cat "$TMP/port")
export HOME=$TMP DOCKER_CONFIG=$TMP/docker
mkdir "$DOCKER_CONFIG"
pull() { lora pull "$HOST/$1:v1" --plain-http --retry-delay 20 --store "$TMP/$1" "${@:2}"; }
clean() {
    is "$(ls "$TMP/$1/tmp")" "" "…nothing is left in the store's tmp"
    is "$(lora fsck --store "$TMP/$1" >/dev/null && find "$TMP/$1/blobs" -type f | wc -l)" "${2:-0}" "…and fsck finds it clean"
}

ok "an index of two is pulled" pull fine --json
is "$(json "$OUT" -n .adapters)" 2 "…both adapters"
is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…with their content ids"
clean fine 4
: >"$TMP/log"
ok "pulled again" pull fine --json
is "$(json "$OUT" .bytes)" 0 "…nothing is fetched twice"
is "$(grep -c 'GET.*/blobs/' "$TMP/log")" 0 "…by the registry's own log"

for mode in broken brokenstart; do
    ok "a download that breaks off ($mode) goes on" pull $mode
    clean $mode 4
done
like "$(grep -c 'broken/blobs.* 206 ' "$TMP/log")" '^[1-9]' "…with ranges"
# A pull that is killed has kept what it received; the next one goes on from there.
partial_size() { stat -c %s "$TMP/stall/cache/partial/"* 2>/dev/null | sort -n | tail -1; }
HALF=$(($(stat -c %s "$TMP/layout/blobs/sha256/"* | sort -n | tail -1) / 4))
(exec lora pull "$HOST/stall:v1" --plain-http --store "$TMP/stall") >/dev/null 2>&1 &
PULL=$!
more_than() { [ "$(partial_size || echo 0)" -gt "$HALF" ] 2>/dev/null; }
ok "a pull is killed half-way" eventually more_than
kill -9 $PULL
wait $PULL 2>/dev/null
ok "…fsck has nothing to say of it" lora fsck --store "$TMP/stall"
lora gc --store "$TMP/stall" >/dev/null
ok "…gc keeps what may be gone on with" more_than
: >"$TMP/log"
ok "the next pull goes on with it" pull stall --json
like "$(json "$OUT" .resumed)" '^[1-9]' "…and says with how many bytes"
like "$(grep -c 'stall/blobs.* 206 ' "$TMP/log")" '^1$' "…by a range"
is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…to the same content"
is "$(ls "$TMP/stall/cache/partial")" "" "…and leaves nothing of it"
clean stall 4
# What lies there may be spoiled, or too long: then it is fetched from the beginning.
LARGE=$(ls -S "$TMP/layout/blobs/sha256" | head -1)
for bytes in 1000 9999999; do
    rm -rf "$TMP/fine2"
    mkdir -p "$TMP/fine2"
    lora import "$TINYTALK/adapters/sort-lora" --store "$TMP/fine2" -q >/dev/null
    mkdir -p "$TMP/fine2/cache/partial"
    head -c $bytes /dev/zero >"$TMP/fine2/cache/partial/$LARGE"
    ok "$bytes bytes of something else do not matter" lora pull "$HOST/fine:v1" --plain-http --store "$TMP/fine2" --json
    is "$(json "$OUT" .resumed)" 0 "…and are not counted"
done
touch -d '8 days ago' "$(mkdir -p "$TMP/fine2/cache/partial" && echo "$TMP/fine2/cache/partial/$LARGE")"
lora gc --store "$TMP/fine2" >/dev/null
is "$(ls "$TMP/fine2/cache/partial")" "" "gc takes what nobody has gone on with for a week"

ok "429 with Retry-After is waited for" pull busy
ok "503 is tried again" pull flaky
exits 1 "429 for an hour is one clear error" pull busylong
like "$ERR" '3600 s' "…which says how long"
clean busylong
exits 1 "503 to the end is one clear error" pull down
like "$ERR" "$HOST/down.*503" "…by name and status"
exits 1 "a registry that hangs up" pull hangup
like "$ERR" "$HOST" "…is named"
clean hangup
exits 1 "a download that never gets on" pull cutalways
clean cutalways
exits 5 "a wrong digest" pull wrong
like "$ERR" 'adapter_model.safetensors: its digest is .*wanted' "…names the file"
clean wrong
exits 5 "a layer that is too short" pull short
like "$ERR" 'ends after|bytes' "…says so"
clean short
exits 5 "a layer that is too long" pull long
clean long
exits 5 "a manifest with another digest" pull wrongmanifest
clean wrongmanifest
exits 1 "404" pull missing
like "$ERR" "$HOST/missing: v1: status 404: MANIFEST_UNKNOWN the stub says so" "…in the registry's words"
exits 1 "a layer that is not there" pull noblob
clean noblob
exits 1 "403" pull forbidden
like "$ERR" 'hint: .*docker login' "…points to the login"

# Logins.
exits 1 "401 without a login" pull basic
like "$ERR" '401: a login is needed' "…says so"
clean basic
printf '{"auths": {"%s": {"auth": "%s"}}}' "$HOST" "$(printf 'joe:secret word' | base64)" >"$DOCKER_CONFIG/config.json"
ok "Basic with the login of docker's config.json" pull basic
ok "a token for that login" pull token
mkdir "$TMP/bin"
cat >"$TMP/bin/docker-credential-stub" <<'SH'
#!/bin/sh
read -r host
[ "$1" = get ] && [ "$host" = "$STUB_HOST" ] && printf '{"ServerURL": "%s", "Username": "joe", "Secret": "secret word"}' "$host"
SH
chmod +x "$TMP/bin/docker-credential-stub"
rm -rf "$TMP/basic" "$TMP/token"
printf '{"credHelpers": {"%s": "stub"}}' "$HOST" >"$DOCKER_CONFIG/config.json"
ok "a credential helper's login" env STUB_HOST="$HOST" PATH="$TMP/bin:$PATH" lora pull "$HOST/basic:v1" --plain-http --store "$TMP/basic"
printf '{"credsStore": "../evil"}' >"$DOCKER_CONFIG/config.json"
exits 4 "a helper's name that is a path" pull token
printf '{"auths": {"%s": {"auth": "%s"}}}' "$HOST" "$(printf 'joe:wrong' | base64)" >"$DOCKER_CONFIG/config.json"
exits 1 "a wrong login" pull basic
unlike "$OUT$ERR" 'secret|wrong' "…is not repeated in the message"

# Pushes.
push() { lora push math-lora "$HOST/$1:v1" --plain-http --retry-delay 20 "${@:2}"; }
: >"$TMP/log"
ok "a push" push pushfine --json
is "$(json "$OUT" .present)" 0 "…sends all of it"
is "$(grep -c '^PUT /v2/pushfine/blobs' "$TMP/log")" 3 "…each file once"
ok "in pieces, one of which fails half-way" push pushflaky --chunk-size 200K
like "$(grep -c '^GET /v2/pushflaky/blobs/uploads' "$TMP/log")" '^[1-9]' "…goes on where the registry had got"
ok "an upload that the registry forgets is begun again" push pushlost
exits 1 "a registry that takes no uploads" push pushreadonly
like "$ERR" '405: UNSUPPORTED' "…says so"
exits 1 "a manifest that it does not take" push pushnomanifest
like "$ERR" 'MANIFEST_INVALID' "…says so"
ok "a slow registry is waited for" pull slow
clean slow 4
exits 1 "a registry that dies in the middle of a pull" pull dies
like "$ERR" "$HOST" "…is one error that names it"
clean dies
wait $STUB 2>/dev/null
python3 tests/packs/stub_registry.py "$TMP/layout" "$TMP/port2" "$TMP/log" &
STUB=$!
port_is_there() { [ -s "$TMP/port2" ]; }
eventually port_is_there
ok "…and when it is back the pull goes on" lora pull "localhost:$(cat "$TMP/port2")/fine:v1" --plain-http --store "$TMP/dies" --json
like "$(json "$OUT" .resumed)" '^[1-9]' "…with what it had received"
clean dies 4
kill $STUB
wait $STUB 2>/dev/null
exits 1 "a registry that is gone" push pushfine
like "$ERR" "$HOST" "…is named"
exits 2 "plain http elsewhere" lora push math-lora example.com/x/y --plain-http
exits 2 "a reference without a registry" lora pull team/bot
exits 2 "a repository in upper case" lora pull localhost:1/Team/bot
done_testing
