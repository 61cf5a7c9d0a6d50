#!/usr/bin/env bash
# tiers: all
# 500 adapters: pack, import into a fresh store, pack again: the same bytes and ids; as a tar, and as an image behind one tag.
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
python3 - "$TINYTALK/adapters/upper-lora" "$TMP/many" 500 <<'PY'
import os, struct, sys
src, out, n = sys.argv[1], sys.argv[2], int(sys.argv[3])
weights, config = (open(f"{src}/{f}", "rb").read() for f in ("adapter_model.safetensors", "adapter_config.json"))
start = 8 + struct.unpack("<Q", weights[:8])[0]
for i in range(n):
    os.makedirs(f"{out}/a{i:04d}")
    own = bytearray(weights)
    own[start + 4:start + 6] = struct.pack("<H", i + 1)
    open(f"{out}/a{i:04d}/adapter_model.safetensors", "wb").write(own)
    open(f"{out}/a{i:04d}/adapter_config.json", "wb").write(config)
PY
lora import --recursive "$TMP/many" -q >"$TMP/ids"
is "$(sort -u "$TMP/ids" | wc -l)" 500 "there are 500"
ok "packed as a tar" lora pack $(ls "$TMP/many") --output "$TMP/many.tar"
lora import "$TMP/many.tar" --store "$TMP/two" -q >"$TMP/ids2"
ok "…come back with the same ids" cmp <(sort "$TMP/ids") <(sort "$TMP/ids2")
ok "…are packed again" lora pack $(ls "$TMP/many") --output "$TMP/many2.tar" --store "$TMP/two"
ok "…with the same bytes" cmp "$TMP/many.tar" "$TMP/many2.tar"
ok "…the store is sound" lora fsck --store "$TMP/two"
ok "packed as an image index" lora pack $(ls "$TMP/many") --format oci --output "$TMP/layout.tar"
lora import "$TMP/layout.tar" --store "$TMP/three" -q >"$TMP/ids3"
ok "…come back with the same ids" cmp <(sort "$TMP/ids") <(sort "$TMP/ids3")
ok "…are packed again" lora pack $(ls "$TMP/many") --format oci --output "$TMP/layout2.tar" --store "$TMP/three"
ok "…with the same bytes" cmp "$TMP/layout.tar" "$TMP/layout2.tar"
done_testing
