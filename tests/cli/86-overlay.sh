#!/usr/bin/env bash
# pack --overlay-of: a merged checkpoint as what differs from its base; over that base the same bytes, over another refused.
. tests/lib/tap.sh

command -v python3 >/dev/null || skip_all "python3 is not installed"
lora import "$TINYTALK/base" --name tinytalk -q >/dev/null
lora import "$TINYTALK/adapters/math-lora" -q >/dev/null
lora merge math-lora --base tinytalk --output "$TMP/merged" >/dev/null || { fail "merge"; done_testing; exit; }
size() { stat -c %s "$1"; }
WHOLE=$(cat "$TMP"/merged/*.safetensors | wc -c)

for format in tar tar.zst zip; do
    ok "a merged folder as $format" lora pack "$TMP/merged" --overlay-of tinytalk --output "$TMP/o.$format" --json
    is "$(json "$OUT" .adapters[0].kind)" base "…a base"
    ok "…again" lora pack "$TMP/merged" --overlay-of tinytalk --output "$TMP/o2.$format"
    ok "…the same bytes" cmp "$TMP/o.$format" "$TMP/o2.$format"
    rm "$TMP/o2.$format"
    lora import "$TINYTALK/base" --name tinytalk --store "$TMP/s-$format" -q >/dev/null
    ok "…is imported over its base" lora import "$TMP/o.$format" --store "$TMP/s-$format" --json
    ID=$(json "$OUT" .bases[0].id)
    is "$(json "$OUT" .bases[0].by_reference)" false "…as files of the store"
    for file in "$TMP"/merged/*; do
        [ "$(basename "$file")" != merge.json ] || continue
        SUM=$(openssl dgst -sha256 -r "$file" | cut -d' ' -f1)
        ok "…with the same bytes: $(basename "$file")" cmp "$file" "$TMP/s-$format/blobs/sha256/${SUM:0:2}/$SUM"
    done
    ok "…the store is sound" lora fsck --store "$TMP/s-$format"
    is "$(ls "$TMP/s-$format/tmp")" "" "…nothing is left in its tmp"
    ok "…imported again" lora import "$TMP/o.$format" --store "$TMP/s-$format" --json
    is "$(json "$OUT" .bases[0].state)" same "…it is there already"
done
ok "the output is smaller than the checkpoint" test "$(size "$TMP/o.tar")" -lt "$WHOLE"
is "$(jsonq .recipe.schema <"$TMP/s-tar/manifests/$ID.json")" "$(jsonq .schema <"$TMP/merged/merge.json")" "the recipe travels"
is "$(ls "$TMP" | grep -c '\.overlay$')" 0 "no work folder is left"
ok "only tensors that differ are in it" python3 - "$TMP" "$TINYTALK/base" <<'PY'
import glob, json, os, struct, sys, tarfile
def tensors(data):
    n = struct.unpack("<Q", data[:8])[0]
    h = json.loads(data[8:8 + n]); h.pop("__metadata__", None)
    return {k: data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]] for k, v in h.items()}
def folder(path):
    out = {}
    for f in glob.glob(path + "/*.safetensors"):
        out |= tensors(open(f, "rb").read())
    return out
base, merged, packed = folder(sys.argv[2]), folder(sys.argv[1] + "/merged"), {}
for m in tarfile.open(sys.argv[1] + "/o.tar"):
    if m.name.endswith(".safetensors"):
        packed |= tensors(tarfile.open(sys.argv[1] + "/o.tar").extractfile(m).read())
want = {k: v for k, v in merged.items() if base.get(k) != v}
assert 0 < len(want) < len(merged), (len(want), len(merged))
assert packed == want, (sorted(packed), sorted(want))
PY
ok "a base in the store is packed by its name" lora import "$TMP/merged" --name mine -q
ok "…over another" lora pack mine --overlay-of tinytalk --output "$TMP/mine.tar"
ok "…and keeps its name" lora import "$TMP/mine.tar" --base "$TINYTALK/base" --store "$TMP/mine" --json
is "$(json "$OUT" .bases[0].name)" mine "…in a store that has not the other, with --base"
ok "--name gives another" lora import "$TMP/mine.tar" --base "$TINYTALK/base" --name yours --store "$TMP/mine" --json
is "$(json "$OUT" .bases[0].name)" yours "…to it"
ok "a dry run builds and keeps nothing" lora import "$TMP/o.tar" --base "$TINYTALK/base" --dry-run --store "$TMP/dry" --json
is "$(json "$OUT" .bases[0].id)" "$ID" "…and says what it would be"
not_ok "…and makes no store" test -e "$TMP/dry"
ok "what was built is served" lora run yours "12+30=" --store "$TMP/mine"

# Over another base.
exits 1 "without its base" lora import "$TMP/o.tar" --store "$TMP/none"
like "$ERR" 'lies over base .*not in the store' "…says which"
like "$ERR" 'hint: .*--base' "…and what to do"
exits 4 "over another base" lora import "$TMP/o.tar" --base "$TMP/merged" --store "$TMP/none"
like "$ERR" 'lies over base' "…says so"
mkdir "$TMP/other"
cp "$TINYTALK"/base/* "$TMP/other"
python3 - "$TMP/other" <<'PY'
# One bit of a large tensor, between the samples of the fingerprint if there is such a place.
import glob, json, struct, sys
path = sorted(glob.glob(sys.argv[1] + "/*.safetensors"))[0]
data = bytearray(open(path, "rb").read())
n = struct.unpack("<Q", data[:8])[0]
h = json.loads(data[8:8 + n]); h.pop("__metadata__", None)
begin, end = max((v["data_offsets"] for v in h.values()), key=lambda o: o[1] - o[0])
data[8 + n + begin + (end - begin) // 32 + 5000] ^= 1
open(path, "wb").write(data)
PY
exits 4 "over a base that differs in one bit" lora import "$TMP/o.tar" --base "$TMP/other" --store "$TMP/none"
is "$(ls "$TMP/none/tmp" 2>/dev/null)" "" "…nothing is left of it"
ok "…the store is sound" lora fsck --store "$TMP/none"

# Packs that were tampered with.
tamper() { # NAME: python on `index` (the record's dict) and `files` (name -> bytes)
    python3 - "$TMP/o.tar" "$TMP/$1.tar" <<PY
import io, json, sys, tarfile
src = tarfile.open(sys.argv[1])
files = {m.name: src.extractfile(m).read() for m in src}
index = json.loads(files["LORA-PACK.json"])
overlay = index["bases"][0]["overlay"]
weights = next(f for f in overlay["files"] if f["from"] == "tensors")
$2
files["LORA-PACK.json"] = json.dumps(index).encode()
with tarfile.open(sys.argv[2], "w") as out:
    for name in sorted(files):
        info = tarfile.TarInfo(name)
        info.size = len(files[name])
        out.addfile(info, io.BytesIO(files[name]))
PY
}
refused() { # STATUS NAME PATTERN PYTHON
    tamper "$2" "$4"
    exits "$1" "tampered: $2" lora import "$TMP/$2.tar" --base "$TINYTALK/base" --store "$TMP/none"
    like "$ERR" "$3" "…says why"
    is "$(ls "$TMP/none/tmp")" "" "…nothing is left"
}
refused 4 outside 'outside|\.\.|may not' 'weights["path"] = "../evil.safetensors"'
refused 4 folder 'is no file of a checkpoint' 'weights["path"] = "a/b.safetensors"'
refused 4 script 'is no file of a checkpoint' 'overlay["files"][0]["path"] = "run.sh"'
refused 5 digest 'digest' 'weights["parts"][1]["sha256"] = "0" * 64'
refused 5 missing 'is missing' 'files = {n: b for n, b in files.items() if not n.endswith(".header")}'
refused 5 nofiles 'has no files' 'overlay["files"] = []'
refused 5 twice 'not in order' 'overlay["files"].append(overlay["files"][0])'
refused 5 order 'not in order' 'overlay["files"].reverse()'
refused 5 nowhere 'nowhere' 'weights["from"] = "moon"'
refused 5 notall 'config.json' 'overlay["files"] = [weights]'
refused 4 othersum 'the base is not the one' 'weights["sha256"] = "0" * 64'
refused 5 otherid 'fingerprint' 'index["bases"][0]["id"] = "0" * 64'
refused 4 newer 'schema 3' 'index["schema"] = 3'
exits 2 "--overlay-of with two" lora pack tinytalk mine --overlay-of tinytalk --output "$TMP/x.tar"
exits 2 "--overlay-of as an image" lora pack mine --overlay-of tinytalk --format oci --output "$TMP/x"
exits 1 "a base that is not there" lora pack mine --overlay-of nobody --output "$TMP/x.tar"
done_testing
