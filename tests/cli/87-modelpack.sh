#!/usr/bin/env bash
# Images that other ModelPack tools make: layers that are tars, packed or plain, beside files as they are.
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
lora import "$TINYTALK/adapters/math-lora" -q >/dev/null
ID=$(lora inspect math-lora --json | jsonq .id)
FORMS="tar folder tar+gzip mixed"
! command -v zstd >/dev/null || FORMS="$FORMS tar+zstd"
for form in $FORMS; do
    python3 tests/packs/modelpack.py "$TINYTALK/adapters/math-lora" "$TMP/$form" "$form" || { fail "the layout is made"; continue; }
    ok "layers as $form: the layout is imported" lora import "$TMP/$form" --store "$TMP/s-$form" --json
    is "$(json "$OUT" .adapters[0].id)" "$ID" "…the same content"
    is "$(json "$OUT" .adapters[0].name)" bot "…under the image's name"
    is "$(ls "$TMP/s-$form/tmp")" "" "…nothing is left in the store's tmp"
    ok "…which is sound" lora fsck --store "$TMP/s-$form"
    tar -C "$TMP/$form" -cf "$TMP/$form.tar" .
    ok "…as a tar of the layout" lora import "$TMP/$form.tar" --store "$TMP/t-$form" --json
    is "$(json "$OUT" .adapters[0].id)" "$ID" "…the same content"
done
[ -d "$TMP/tar+zstd" ] || skip "layers as tar+zstd" "zstd is not installed"
like "$(lora import "$TMP/folder" --name again --store "$TMP/s-folder" 2>&1)" '1 files of layer .* are no part' "what is left out of a layer is told"

# From a registry.
lora push math-lora localhost:1/x --plain-http --retry-delay 1 >/dev/null 2>"$TMP/.push"
if grep -q 'without libcurl' "$TMP/.push"; then
    skip "pulled from a registry" "built without libcurl"
else
    export HOME=$TMP DOCKER_CONFIG=$TMP/docker
    python3 tests/packs/stub_registry.py "$TMP/tar+gzip" "$TMP/port" "$TMP/log" &
    STUB=$!
    trap 'kill $STUB 2>/dev/null; tap_cleanup' EXIT
    port_is_there() { [ -s "$TMP/port" ]; }
    eventually port_is_there
    ok "pulled from a registry" lora pull "localhost:$(cat "$TMP/port")/fine:v1" --plain-http --store "$TMP/pulled" --json
    is "$(json "$OUT" .adapters[0].id)" "$ID" "…the same content"
    ok "…the store is sound" lora fsck --store "$TMP/pulled"
    kill $STUB
fi
done_testing
