#!/usr/bin/env bash
# merge: adapters into base weights: the folder, its bytes, the recipe, what is refused.
. tests/lib/tap.sh

B=$TINYTALK/base
A=$TINYTALK/adapters
files() { (cd "$1" && find . -type f | sort | tr '\n' ' '); }
# weights_equal X Y: the shards of two folders, byte for byte
weights_equal() { for f in "$1"/*.safetensors; do cmp "$f" "$2/$(basename "$f")" || return 1; done; }

ok "an adapter is merged by path" lora merge "$A/upper-lora" --base "$B" --output "$TMP/upper" --check
like "$OUT" '% of their weights changed' "…the report says how much changed"
like "$OUT" 'checked: 491520 values' "…and --check derived it again"
is "$(files "$TMP/upper" | sed 's, ./merge.json,,')" "$(files "$B")" "…the base's files, names and all"
ok "…with the base's configuration" cmp "$TMP/upper/config.json" "$B/config.json"
ok "…and tokenizer" cmp "$TMP/upper/tokenizer.json" "$B/tokenizer.json"
is "$(stat -c %s "$TMP/upper/model.safetensors")" "$(stat -c %s "$B/model.safetensors")" "…a shard of the same size"
not_ok "…and other bytes" cmp "$TMP/upper/model.safetensors" "$B/model.safetensors"
not_ok "nothing else is left" test -e "$TMP/upper.partial"

# Which tensors differ is what the adapter targets; the rest is bit-equal.
cat >"$TMP/differ.py" <<'PY'
import json, struct, sys
def read(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + n])
    return {k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]])
            for k, v in header.items() if k != "__metadata__"}
a, b = read(sys.argv[1]), read(sys.argv[2])
assert a.keys() == b.keys()
names = {k.split(".")[-2] for k in a if a[k] != b[k]}
print(len([k for k in a if a[k] != b[k]]), ",".join(sorted(names)))
PY
is "$(python3 "$TMP/differ.py" "$B/model.safetensors" "$TMP/upper/model.safetensors")" "12 q_proj,v_proj" "…the differing tensors: q_proj and v_proj of six layers"

# The recipe.
J=$(cat "$TMP/upper/merge.json")
is "$(json "$J" .schema)" 1 "merge.json has a schema"
is "$(json "$J" .kind)" merge "…a kind"
like "$(json "$J" .adapters[0].weight)" '^1(\.0)?$' "…the weight"
like "$(json "$J" .adapters[0].id)" '^[0-9a-f]{64}$' "…the content id"
like "$(json "$J" .base.fingerprint)" '^[0-9a-f]{64}$' "…the base's fingerprint"
is "$(json "$J" .report.values)" 491520 "…and the report"
ok "--apply makes the same bytes again" lora merge --apply "$TMP/upper/merge.json" --output "$TMP/again"
ok "…the same" weights_equal "$TMP/upper" "$TMP/again"

# Order, threads, weights.
ok "two adapters at once" lora merge "$A/upper-lora=0.7" "$A/math-lora=-0.4" --base "$B" -o "$TMP/two" --threads 1 --check --json
like "$(json "$OUT" .adapters[1].weight)" '^0\.(7|6999)' "…listed by content id"
ok "the other order" lora merge "$A/math-lora=-0.4" "$A/upper-lora=0.7" --base "$B" -o "$TMP/two-r" --threads 5
ok "…gives the same bytes, with 5 threads as with 1" weights_equal "$TMP/two" "$TMP/two-r"
ok "…and so do 2 threads" lora merge "$A/math-lora=-0.4" "$A/upper-lora=0.7" --base "$B" -o "$TMP/two-2" --threads 2
ok "…the same" weights_equal "$TMP/two" "$TMP/two-2"
is "$(jsonq .report.lost_share <"$TMP/two/merge.json")" "$(jsonq .report.lost_share <"$TMP/two-r/merge.json")" "…and the same statistics"
ok "weight 0 is the base" lora merge "$A/upper-lora=0" --base "$B" -o "$TMP/zero"
like "$ERR" 'weight 0, left out' "…says so"
ok "…bit for bit" weights_equal "$TMP/zero" "$B"
ok "…also beside another" lora merge "$A/upper-lora=0" "$A/math-lora" --base "$B" -o "$TMP/one"
ok "…" lora merge "$A/math-lora" --base "$B" -o "$TMP/math"
ok "…which is then alone" weights_equal "$TMP/one" "$TMP/math"

# Plans.
ok "a plan" lora merge "$A/count-lora" "$A/first-lora" --base "$B" --plan "$TMP/plan.json"
like "$OUT" '43|42|44' "…says how many tensors change"
P=$(cat "$TMP/plan.json")
is "$(json "$P" -n .plan.refusals)" 0 "…refuses nothing"
like "$(json "$P" .plan.disk_bytes)" '^1[0-9]{7}$' "…disk"
like "$(json "$P" .plan.ram_bytes)" '^[0-9]+$' "…memory"
not_ok "…and merges nothing" test -e "$TMP/planned"
ok "a plan is applied" lora merge --apply "$TMP/plan.json" --output "$TMP/planned" --check
ok "the same by hand" lora merge "$A/first-lora" "$A/count-lora" --base "$B" --output "$TMP/planned-2"
ok "…gives the same bytes" weights_equal "$TMP/planned" "$TMP/planned-2"
exits 4 "a plan of what has no meaning" lora merge "$A/sort-lora=0.5" "$A/last-lora" --base "$B" --plan -
like "$OUT" 'refusals' "…is printed all the same"
like "$ERR" 'DoRA.*weight other than 1' "…and says why"

# The store.
lora import "$B" --name tinytalk >/dev/null
lora import --recursive "$A" >/dev/null
ok "names of the store, the recorded base" lora merge upper-lora=0.7 math-lora=-0.4 -o "$TMP/stored" --json
is "$(json "$OUT" .base.name)" tinytalk "…found by its fingerprint"
ok "…the same bytes as by path" weights_equal "$TMP/stored" "$TMP/two"
ok "…and its recipe is applied from the store" lora merge --apply "$TMP/stored/merge.json" -o "$TMP/stored-2"
ok "…the same" weights_equal "$TMP/stored" "$TMP/stored-2"
ok "a base with digests is verified while it is read" lora import "$B" --name tinytalk --copy --force
ok "…and merged" lora merge upper-lora=0.7 math-lora=-0.4 -o "$TMP/verified"
ok "…the same" weights_equal "$TMP/verified" "$TMP/two"

# Refusals.
exits 4 "an output that is there" lora merge "$A/upper-lora" --base "$B" --output "$TMP/upper"
like "$ERR" 'is there already' "…is not touched"
ok "…unless --force" lora merge "$A/title-lora" --base "$B" --output "$TMP/again" --force
not_ok "…replaces it" weights_equal "$TMP/upper" "$TMP/again"
exits 1 "a card that is not there" env LORA_CUDA_PLUGIN="$TMP/none.so" lora merge "$A/upper-lora" --base "$B" --output "$TMP/x" --device cuda:0
like "$ERR" 'no plug-in' "…is said"
ok "auto does without" env LORA_CUDA_PLUGIN="$TMP/none.so" lora merge "$A/upper-lora" --base "$B" --output "$TMP/auto" --device auto
ok "…the same bytes" weights_equal "$TMP/auto" "$TMP/upper"
exits 2 "no output" lora merge "$A/upper-lora" --base "$B"
exits 2 "no adapter" lora merge --output "$TMP/x"
exits 2 "a weight that is no number" lora merge "$A/upper-lora=x" --base "$B" --output "$TMP/x"
like "$ERR" "is no weight" "…is named"
exits 2 "the same adapter twice" lora merge "$A/upper-lora" "$A/upper-lora" --base "$B" --output "$TMP/x"
exits 1 "an adapter that is not there" lora merge "$TMP/nothing" --base "$B" --output "$TMP/x"
exits 4 "DoRA beside another on the same modules" lora merge "$A/sort-lora" "$A/math-lora" --base "$B" --output "$TMP/x"
like "$ERR" 'DoRA adapter of' "…by name"
exits 4 "DoRA at a weight" lora merge "$A/sort-lora=0.5" --base "$B" --output "$TMP/x"
exits 4 "modules_to_save at a weight" lora merge "$A/last-lora=0.5" --base "$B" --output "$TMP/x"
exits 4 "two that replace or change lm_head" lora merge "$A/last-lora" "$A/first-lora" --base "$B" --output "$TMP/x"
like "$ERR" 'lm_head' "…by name"

# Another base of the same shape: the fingerprint tells.
cp -r "$B" "$TMP/other"
python3 - "$TMP/other/model.safetensors" <<'PY'
import sys
f = open(sys.argv[1], "r+b"); f.seek(-2, 2); b = f.read(2); f.seek(-2, 2); f.write(bytes([b[0] ^ 1, b[1]]))
PY
exits 4 "a base that the adapter was not recorded with" lora merge upper-lora --base "$TMP/other" --output "$TMP/x"
like "$ERR" 'is for base' "…by fingerprint"
exits 4 "a recipe of another base" lora merge --apply "$TMP/upper/merge.json" --base "$TMP/other" --output "$TMP/x"

# An adapter that changes nothing: B is zero.
mkdir "$TMP/null"
cp "$A/upper-lora/adapter_config.json" "$TMP/null/"
python3 - "$A/upper-lora/adapter_model.safetensors" "$TMP/null/adapter_model.safetensors" <<'PY'
import json, struct, sys
data = bytearray(open(sys.argv[1], "rb").read())
n = struct.unpack("<Q", data[:8])[0]
for k, v in json.loads(data[8:8 + n]).items():
    if "lora_B" in k:
        a, b = v["data_offsets"]
        data[8 + n + a:8 + n + b] = bytes(b - a)
open(sys.argv[2], "wb").write(data)
PY
exits 4 "an adapter that adds nothing" lora merge "$TMP/null" --base "$B" --output "$TMP/x"
like "$ERR" 'no weight of the base would change' "…is refused"
exits 5 "a recipe that is none" lora merge --apply "$B/config.json" --output "$TMP/x"
not_ok "none of them left a folder" test -e "$TMP/x"
not_ok "…nor a half one" test -e "$TMP/x.partial"
done_testing
