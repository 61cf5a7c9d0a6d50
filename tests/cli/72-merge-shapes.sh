#!/usr/bin/env bash
# merge: shards and their index, added embedding rows, a merged model that answers; explain and diff.
. tests/lib/tap.sh

B=$TINYTALK/base
A=$TINYTALK/adapters

cat >"$TMP/st.py" <<'PY'
import json, os, struct, sys
def read(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    h = json.loads(data[8:8 + n]); h.pop("__metadata__", None)
    return {k: (v["dtype"], v["shape"], data[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]) for k, v in h.items()}
def write(path, tensors):
    h, at = {"__metadata__": {"format": "pt"}}, 0
    for k, (d, s, b) in tensors.items():
        h[k] = {"dtype": d, "shape": s, "data_offsets": [at, at + len(b)]}; at += len(b)
    h = json.dumps(h).encode(); h += b" " * (-len(h) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(h)) + h)
        for t in tensors.values(): f.write(t[2])
def folder(path):
    t = {}
    for f in sorted(os.listdir(path)):
        if f.endswith(".safetensors"): t.update(read(os.path.join(path, f)))
    return t
PY
py() { PYTHONPATH=$TMP python3 -c "from st import *; $1" "${@:2}"; }

# ---- shards ----
mkdir "$TMP/shards"
cp "$B"/*.json "$B"/*.jinja "$TMP/shards/"
py '
t = read(sys.argv[1] + "/model.safetensors"); names = sorted(t); out = sys.argv[2]
parts = [names[i::3] for i in range(3)]; index = {"metadata": {"total_size": sum(len(x[2]) for x in t.values())}, "weight_map": {}}
for i, p in enumerate(parts):
    f = f"model-{i+1:05}-of-00003.safetensors"; write(out + "/" + f, {k: t[k] for k in p})
    index["weight_map"].update({k: f for k in p})
json.dump(index, open(out + "/model.safetensors.index.json", "w"), indent=2)' "$B" "$TMP/shards"
ok "a base in three shards" lora merge "$A/reverse-lora" --base "$TMP/shards" -o "$TMP/from-shards" --check
ok "…keeps its index" cmp "$TMP/shards/model.safetensors.index.json" "$TMP/from-shards/model.safetensors.index.json"
ok "one shard" lora merge "$A/reverse-lora" --base "$B" -o "$TMP/from-one"
ok "…gives the same tensors" py 'assert folder(sys.argv[1]) == folder(sys.argv[2])' "$TMP/from-shards" "$TMP/from-one"

# ---- it answers ----
Q=$(python3 -c "import json; print(json.load(open('$ROOT/tests/golden/tinytalk.json'))['reverse-lora'][0]['prompt'])")
T=$(python3 -c "import json; print(json.load(open('$ROOT/tests/golden/tinytalk.json'))['reverse-lora'][0]['text'])")
ok "the merged folder runs without an adapter" lora run "$TMP/from-shards" "$Q" --temperature 0
is "$OUT" "$T" "…and gives the adapter's golden answer"

# ---- added rows ----
mkdir "$TMP/more"
py '
t = read(sys.argv[1] + "/model.safetensors"); out = {}
for k in ("model.embed_tokens.weight", "lm_head.weight"):
    d, s, b = t[k]
    out["base_model.model." + k] = (d, [s[0] + 2, s[1]], b + b[:4 * s[1]])
write(sys.argv[2] + "/adapter_model.safetensors", out | {
    f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight": ("F32", s, struct.pack("<f", 0.01) * (s[0] * s[1]))
    for x, s in (("A", [4, 256]), ("B", [256, 4]))})
json.dump({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "layers_to_transform": [0],
           "modules_to_save": ["embed_tokens", "lm_head"]}, open(sys.argv[2] + "/adapter_config.json", "w"))' "$B" "$TMP/more"
echo '{"<new>": 2048, "<newer>": 2049}' >"$TMP/more/added_tokens.json"
exits 4 "more embedding rows than the base has" lora merge "$TMP/more" --base "$TMP/shards" -o "$TMP/grown"
like "$ERR" '2050 rows, the base has 2048.*--resize-embeddings' "…are refused, with the way out"
ok "…with --resize-embeddings" lora merge "$TMP/more" --base "$TMP/shards" -o "$TMP/grown" --resize-embeddings --check --threads 2
is "$(jsonq .vocab_size <"$TMP/grown/config.json")" 2050 "…the configuration says so"
is "$(jsonq .metadata.total_size <"$TMP/grown/model.safetensors.index.json")" "$(py 'print(sum(len(x[2]) for x in folder(sys.argv[1]).values()))' "$TMP/grown")" "…and the index"
ok "…the adapter's tokens travel along" cmp "$TMP/grown/added_tokens.json" "$TMP/more/added_tokens.json"
ok "…old rows are the base's, new ones the adapter's" py '
a, b = folder(sys.argv[1]), folder(sys.argv[2])
for k in ("model.embed_tokens.weight", "lm_head.weight"):
    assert b[k][1] == [2050, 256] and b[k][2] == a[k][2] + a[k][2][:1024]
assert {k for k in a if a[k] != b[k]} == {"model.embed_tokens.weight", "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"}' "$TMP/shards" "$TMP/grown"
ok "…and the recipe remembers the flag" lora merge --apply "$TMP/grown/merge.json" -o "$TMP/grown-2"
ok "…the same bytes" py 'assert folder(sys.argv[1]) == folder(sys.argv[2])' "$TMP/grown" "$TMP/grown-2"
ok "…the grown model runs" lora run "$TMP/grown" "upper: a b" --temperature 0

# ---- swallowed by bf16 ----
mkdir "$TMP/tiny"
cp "$A/upper-lora/adapter_config.json" "$TMP/tiny/"
py '
t = read(sys.argv[1])
write(sys.argv[2], {k: (d, s, b if "lora_A" in k else struct.pack("<%df" % (len(b) // 4), *[x * 1e-4 for x in struct.unpack("<%df" % (len(b) // 4), b)]))
                    for k, (d, s, b) in t.items()})' "$A/upper-lora/adapter_model.safetensors" "$TMP/tiny/adapter_model.safetensors"
ok "a delta far below the base's rounding" lora merge "$TMP/tiny" --base "$B" -o "$TMP/tiny-merged"
like "$ERR" 'swallows 9[0-9] %' "…is warned of"

# ---- explain and diff ----
ok "explain" lora merge "$A/upper-lora" "$A/math-lora=0.5" --explain
like "$OUT" 'SIGN CONFLICTS' "…for people"
ok "…as JSON" lora merge "$A/upper-lora" "$A/math-lora=0.5" --explain --json
is "$(json "$OUT" -n .adapters)" 2 "…two adapters"
is "$(json "$OUT" -n .modules)" 42 "…every module of either"
like "$(json "$OUT" .cosines[0][1])" '^-?0\.0' "…the cosine of two tasks is near 0"
is "$(json "$OUT" .methods[0].relative_error)" 0.0 "…the exact sum loses nothing"
ok "diff of an adapter and itself" lora diff "$A/upper-lora" "$A/upper-lora" --json
is "$(json "$OUT" .n_same)" 12 "…all modules are the same"
is "$(json "$OUT" .norm_of_difference)" 0.0 "…no difference"
ok "diff of two" lora diff "$A/upper-lora" "$A/last-lora" --json
is "$(json "$OUT" .n_only_a)" 2 "…modules that only one has"
exits 1 "diff with what is not there" lora diff "$A/upper-lora" "$TMP/nothing"
exits 2 "diff of one" lora diff "$A/upper-lora"
done_testing
