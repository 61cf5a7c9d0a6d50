#!/usr/bin/env bash
# Peak memory of import and pack is a few blocks, whatever the size of what goes through.
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
[ "$(basename "$LORA_BUILD")" = release ] || skip_all "sanitizers have a memory of their own"

# adapter FOLDER MEBIBYTES: bf16 values that do not shrink to nothing (a bomb), none of them NaN.
adapter() {
    python3 - "$1" "$2" <<'PY'
import json, os, random, struct, sys
out, mib = sys.argv[1], int(sys.argv[2])
rank, n = 64, mib  # each module 1 MiB: A [64, 4096], B [4096, 64]
header, at = {}, 0
for i in range(n):
    for side, shape in (("A", [rank, 4096]), ("B", [4096, rank])):
        header[f"base_model.model.model.layers.{i}.self_attn.q_proj.lora_{side}.weight"] = {
            "dtype": "BF16", "shape": shape, "data_offsets": [at, at + rank * 4096 * 2]}
        at += rank * 4096 * 2
text = json.dumps(header).encode()
text += b" " * (-len(text) % 8)
os.makedirs(out)
finite, dice = bytes(b & 0x3F for b in range(256)), random.Random(mib)
with open(out + "/adapter_model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    for i in range(n):
        f.write(dice.randbytes(1 << 20).translate(finite))
json.dump({"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"]},
          open(out + "/adapter_config.json", "w"))
PY
}

# peak COMMAND…: its peak resident MiB.
peak() {
    python3 -c 'import resource, subprocess, sys
rc = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
sys.exit(rc)' "$@"
}

SMALL=32 LARGE=192
for mib in $SMALL $LARGE; do
    adapter "$TMP/a$mib" $mib
    mkdir "$TMP/s$mib"
done

# flat NAME BOUND COMMAND…: SIZE in the command stands for the size.
flat() {
    local name=$1 bound=$2 small large
    shift 2
    if ! small=$(peak "${@//SIZE/$SMALL}") || ! large=$(peak "${@//SIZE/$LARGE}"); then
        fail "$name"
        return
    fi
    note "$name: $small MiB for $SMALL, $large MiB for $LARGE"
    ok "$name stays below $bound MiB" test "$large" -lt "$bound"
    ok "…and does not grow with the size" test $((large - small)) -le ${SLACK:-6}
}
flat "import of a folder" 48 lora import "$TMP/aSIZE" --name big --store "$TMP/sSIZE"
flat "…again, with what is there checked" 48 lora import "$TMP/aSIZE" --name big --store "$TMP/sSIZE"
for format in tar tar.zst zip; do
    bound=48 SLACK=6
    [ $format != tar.zst ] || bound=128 SLACK=24 # the compressor's workers, who come one by one
    flat "pack as $format" $bound lora pack big --output "$TMP/SIZE.$format" --store "$TMP/sSIZE"
    SLACK=6
    flat "import of $format" 48 lora import "$TMP/SIZE.$format" --store "$TMP/iSIZE-$format"
    rm -rf "$TMP"/i*-$format "$TMP"/*.$format
done
flat "pack as an OCI layout" 48 lora pack big --format oci --output "$TMP/lSIZE" --store "$TMP/sSIZE"
flat "import of an OCI layout" 48 lora import "$TMP/lSIZE" --store "$TMP/iSIZE"
flat "fsck" 48 lora fsck --store "$TMP/sSIZE"
done_testing
