#!/usr/bin/env bash
# Signatures in registries: docker-registry, which lists no referrers (the tag sha256-… stands in), and one that does
# (tests/packs/stub_registry.py).
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
KEYS=$ROOT/tests/keys
ALL="count-lora first-lora last-lora math-lora"
lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
for a in $ALL; do lora import "$TINYTALK/adapters/$a" -q >/dev/null; done
lora push math-lora localhost:1/x --plain-http --retry-delay 1 >/dev/null 2>"$TMP/.push"
! grep -q 'without libcurl' "$TMP/.push" || skip_all "built without libcurl"
export HOME=$TMP DOCKER_CONFIG=$TMP/docker
mkdir "$DOCKER_CONFIG"
lora pack math-lora --format oci --output "$TMP/layout" -q >/dev/null
PIDS=
trap 'kill $PIDS 2>/dev/null; rm -rf "$TMP"' EXIT

python3 tests/packs/stub_registry.py "$TMP/layout" "$TMP/port" "$TMP/log" &
PIDS="$PIDS $!"
for ((i = 0; i < 1200; i++)); do [ ! -s "$TMP/port" ] || break; sleep 0.1; done
STUB=localhost:$(cat "$TMP/port")
DOCKER=
if SERVER=$(command -v docker-registry || command -v registry); then
    PORT=$(free_port)
    printf 'version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: 127.0.0.1:%s}\n' \
        "$TMP/registry" "$PORT" >"$TMP/registry.yml"
    "$SERVER" serve "$TMP/registry.yml" >"$TMP/registry.log" 2>&1 &
    PIDS="$PIDS $!"
    for ((i = 0; i < 1200; i++)); do (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null && break; sleep 0.1; done
    DOCKER=localhost:$PORT
else
    skip "docker-registry" "it is not installed"
fi
pull() { lora pull "$1" --plain-http --store "$2" "${@:3}"; }
empty() { is "$(lora list --store "$1" --kind adapter -q 2>/dev/null)" "" "…and nothing is kept"; }

# round NAME REPOSITORY…: everything, at one registry
round() {
    local at=$1 to=$2 id=$3
    local s=$TMP/$id
    ok "$id: pushed unsigned" lora push math-lora "$at/$to:v1" --plain-http --json
    local digest=$(json "$OUT" .digest)
    exits 4 "…where it must be signed it is refused" pull "$at/$to:v1" "$s.strict" --require-signature "$KEYS/team.pub"
    like "$ERR" 'is not signed, and unsigned adapters are refused here' "…and the reason said"
    empty "$s.strict"
    ok "…elsewhere not" pull "$at/$to:v1" "$s.lax"
    lora sign math-lora --key "$KEYS/team.pem" -q >/dev/null
    ok "signed, and pushed again" lora push math-lora "$at/$to:v1" --plain-http --json
    is "$(json "$OUT" .digest)" "$digest" "…the image is the same"
    ok "…now it is taken" pull "$at/$to:v1" "$s.strict" --require-signature "$KEYS/team.pub"
    ok "…and verifies there" lora verify math-lora --store "$s.strict" --key "$KEYS/team.pub"
    ok "…the store is sound" lora fsck --store "$s.strict"
    ok "…a store that has the adapter gets the signature" pull "$at/$to@$digest" "$s.lax"
    ok "…which holds" lora verify math-lora --store "$s.lax" --key "$KEYS/team.pub"
    exits 4 "another key's is refused" pull "$at/$to:v1" "$s.other" --require-signature "$KEYS/other.pub"
    like "$ERR" 'is signed by key' "…which says whose it is"
    empty "$s.other"
    # Somebody else signs, from a store of his own; both signatures are there then.
    lora sign math-lora --store "$s.lax" --key "$KEYS/other.pem" -q >/dev/null
    ok "a second signer pushes" lora push math-lora "$at/$to:v1" --plain-http --store "$s.lax"
    ok "…both are pulled" pull "$at/$to:v1" "$s.both" --require-signature "$KEYS/other.pub"
    is "$(lora inspect math-lora --store "$s.both" --json | jsonq -n .signatures)" 2 "…two signatures"
    lora pack math-lora --store "$s.both" --output "$s.a.tar" -q >/dev/null
    lora pack math-lora --store "$s.lax" --output "$s.b.tar" -q >/dev/null
    ok "…packed at both ends: the same bytes" cmp "$s.a.tar" "$s.b.tar"
    # Several behind one tag: one that is not signed keeps all out.
    ok "four adapters" lora push $ALL "$at/$to-all:v1" --plain-http
    exits 4 "…one is signed, three are not" pull "$at/$to-all:v1" "$s.four" --require-signature "$KEYS/team.pub"
    empty "$s.four"
    for a in $ALL; do lora sign "$a" --key "$KEYS/team.pem" -q >/dev/null; done
    ok "…all are signed" lora push $ALL "$at/$to-all:v1" --plain-http
    ok "…then they are taken" pull "$at/$to-all:v1" "$s.four" --require-signature "$KEYS/team.pub" --json
    is "$(json "$OUT" -n .adapters)" 4 "…all four"
    for a in $ALL; do ok "…$a verifies" lora verify "$a" --store "$s.four" --key "$KEYS/team.pub"; done
    for compat in image empty; do
        ok "…--oci-compat $compat" lora push math-lora "$at/$to-$compat:v1" --plain-http --oci-compat $compat
        ok "…is pulled with its signature" pull "$at/$to-$compat:v1" "$s.$compat" --require-signature "$KEYS/team.pub"
    done
    ok "a dry run says it would" pull "$at/$to:v1" "$s.four" --require-signature "$KEYS/team.pub" --dry-run
    exits 4 "…or would not" pull "$at/$to-all:v1" "$s.four" --require-signature "$KEYS/other.pub" --dry-run
    ok "the store is sound" lora fsck --store "$s.four"
}

round "$STUB" refer api
like "$(grep -c 'GET /v2/refer/referrers/' "$TMP/log")" '^[1-9]' "the referrers API was asked"
is "$(grep -c 'PUT /v2/refer/manifests/sha256-' "$TMP/log")" 0 "…and no tag written in its place"
if [ -n "$DOCKER" ]; then
    for a in $ALL; do lora rm "$a" -q >/dev/null; done
    lora gc -q >/dev/null
    for a in $ALL; do lora import "$TINYTALK/adapters/$a" -q >/dev/null; done
    round "$DOCKER" team/math tags
    DIGEST=$(lora push math-lora "$DOCKER/team/math:v1" --plain-http -q)
    ok "docker-registry has the tag that stands for the list" \
        test -d "$TMP/registry/docker/registry/v2/repositories/team/math/_manifests/tags/sha256-${DIGEST#sha256:}"
    if command -v skopeo >/dev/null; then
        ok "skopeo reads that list" skopeo inspect --raw --tls-verify=false "docker://$DOCKER/team/math:sha256-${DIGEST#sha256:}"
        is "$(json "$OUT" .manifests[0].artifactType)" application/vnd.dev.sigstore.bundle.v0.3+json "…of Sigstore bundles"
    else
        skip "skopeo reads that list" "it is not installed"
        skip "…of Sigstore bundles" "skopeo is not installed"
    fi
fi
done_testing
