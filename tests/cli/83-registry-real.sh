#!/usr/bin/env bash
# push and pull with Debian's docker-registry on loopback, with and without a login; skopeo on what came of it.
. tests/lib/tap.sh

SERVER=$(command -v docker-registry || command -v registry) || skip_all "docker-registry is not installed"
ALL="count-lora first-lora last-lora math-lora reverse-lora sort-lora title-lora upper-lora"
lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
lora import --recursive "$TINYTALK/adapters" -q >/dev/null
lora push math-lora localhost:1/x --plain-http --retry-delay 1 >/dev/null 2>"$TMP/.push"
! grep -q 'without libcurl' "$TMP/.push" || skip_all "built without libcurl"
export HOME=$TMP DOCKER_CONFIG=$TMP/docker
mkdir "$DOCKER_CONFIG"

# registry_start [LINES OF CONFIGURATION]
registry_start() {
    PORT=$(free_port)
    HOST=localhost:$PORT
    printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:%s}\n%s\n' \
        "$TMP/registry" "$PORT" "${1-}" >"$TMP/registry.yml"
    "$SERVER" serve "$TMP/registry.yml" >"$TMP/registry.log" 2>&1 &
    REGISTRY_PID=$!
    for ((i = 0; i < 1200; i++)); do
        (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && return 0
        sleep 0.1
    done
    fail "the registry starts"
    note "$(tail -5 "$TMP/registry.log")"
}
registry_stop() { kill "$REGISTRY_PID" 2>/dev/null; wait "$REGISTRY_PID" 2>/dev/null; }
trap 'registry_stop; rm -rf "$TMP"' EXIT

registry_start
ok "one adapter is pushed" lora push math-lora "$HOST/team/math:v1" --plain-http --json
DIGEST=$(json "$OUT" .digest)
ok "…again" lora push math-lora "$HOST/team/math:v1" --plain-http --json
is "$(json "$OUT" .bytes)" 0 "…nothing is sent twice"
is "$(json "$OUT" .digest)" "$DIGEST" "…the image has the same digest"
ok "…pulled into a fresh store" lora pull "$HOST/team/math:v1" --plain-http --store "$TMP/one" --json
is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…with its content id"
is "$(json "$OUT" .adapters[0].base_id)" "$(lora inspect tinytalk --json | jsonq .id)" "…and its base"
ok "…by digest" lora pull "$HOST/team/math@$DIGEST" --plain-http --store "$TMP/one"
lora pack math-lora --output "$TMP/a.tar" -q >/dev/null
lora pack math-lora --output "$TMP/b.tar" --store "$TMP/one" -q >/dev/null
ok "…packed at the other end: the same bytes" cmp "$TMP/a.tar" "$TMP/b.tar"
ok "eight adapters behind one tag, in pieces" lora push $ALL "$HOST/team/all:latest" --plain-http --chunk-size 300K
ok "…pulled" lora pull "$HOST/team/all" --plain-http --store "$TMP/all" --json
is "$(json "$OUT" -n .adapters)" 8 "…all of them"
ok "…the store is sound" lora fsck --store "$TMP/all"
ok "mounted from another repository" lora push math-lora "$HOST/other/math:v1" --plain-http --mount-from team/math --json
is "$(json "$OUT" .bytes)" 0 "…nothing is sent"
for compat in image empty; do
    ok "--oci-compat $compat" lora push upper-lora "$HOST/team/upper:$compat" --plain-http --oci-compat $compat
    ok "…is pulled" lora pull "$HOST/team/upper:$compat" --plain-http --store "$TMP/$compat"
done
exits 1 "a tag that is not there" lora pull "$HOST/team/math:v9" --plain-http --store "$TMP/none"
like "$ERR" 'status 404' "…says so"

if command -v skopeo >/dev/null; then
    ok "skopeo inspects what was pushed" skopeo inspect --raw --tls-verify=false "docker://$HOST/team/math:v1"
    is "$(json "$OUT" .artifactType)" application/vnd.cncf.model.manifest.v1+json "…a ModelPack"
    ok "skopeo copies what was pushed to a layout" skopeo copy -q --src-tls-verify=false "docker://$HOST/team/math:v1" "oci:$TMP/one-copied:v1"
    ok "…which is imported" lora import "$TMP/one-copied" --store "$TMP/one-copied-store" --json
    is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…the same content"
    ok "skopeo inspects the image form whole" skopeo inspect --tls-verify=false "docker://$HOST/team/upper:image"
    ok "skopeo copies an index to a layout" skopeo copy -q --all --src-tls-verify=false "docker://$HOST/team/all:latest" "oci:$TMP/copied:v1"
    ok "…which is imported" lora import "$TMP/copied" --store "$TMP/copied-store" --json
    is "$(json "$OUT" -n .adapters)" 8 "…all of it"
    lora pack math-lora --format oci --output "$TMP/layout" -q >/dev/null
    ok "skopeo copies our layout to the registry" skopeo copy -q --dest-tls-verify=false "oci:$TMP/layout:latest" "docker://$HOST/skopeo/math:v1"
    ok "…where it is pulled from" lora pull "$HOST/skopeo/math:v1" --plain-http --store "$TMP/skopeo" --json
    is "$(json "$OUT" .adapters[0].id)" "$(lora inspect math-lora --json | jsonq .id)" "…the same content"
else
    skip "skopeo inspects and copies" "skopeo is not installed"
fi

# The registry dies in the middle of a push; afterwards nothing is there twice, and nothing is lost.
(eventually test -e "$TMP/registry/docker/registry/v2/repositories/killed/all" && kill -9 "$REGISTRY_PID") >/dev/null 2>&1 &
lora push $ALL "$HOST/killed/all:v1" --plain-http --chunk-size 20K --retry-delay 20 >/dev/null 2>"$TMP/.killed"
is "$?" 1 "a registry killed in the middle of a push is an error"
like "$(cat "$TMP/.killed")" "$HOST" "…that names it"
registry_stop

# With a login.
# "secret" by bcrypt, cost 5.
HASH='$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a'
printf 'joe:%s\n' "$HASH" >"$TMP/htpasswd"
registry_start "auth: {htpasswd: {realm: stub, path: $TMP/htpasswd}}"
exits 1 "without a login nothing is pushed" lora push math-lora "$HOST/team/math:v2" --plain-http
like "$ERR" 'hint: .*docker login' "…and the way is shown"
printf '{"auths": {"%s": {"auth": "%s"}}}' "$HOST" "$(printf joe:secret | base64)" >"$DOCKER_CONFIG/config.json"
ok "with docker's login it is" lora push math-lora "$HOST/team/math:v2" --plain-http
ok "…and pulled" lora pull "$HOST/team/math:v2" --plain-http --store "$TMP/login"
printf '{"auths": {"%s": {"auth": "%s"}}}' "$HOST" "$(printf joe:other | base64)" >"$DOCKER_CONFIG/config.json"
exits 1 "a wrong password" lora pull "$HOST/team/math:v2" --plain-http --store "$TMP/login"
like "$ERR" '401' "…is an error"
done_testing
