#!/usr/bin/env bash
# merge --name: adapters combined into one; resize. Products are counted by plain Python.
. tests/lib/tap.sh

A=$TINYTALK/adapters
lora import "$TINYTALK/base" --name tinytalk >/dev/null
lora import --recursive "$A" >/dev/null

# distance.py X Y [WX WY ADAPTER …]: how far the products of X are from the weighted sum of adapters, over some modules
cat >"$TMP/distance.py" <<'PY'
import json, math, struct, sys
def adapter(folder):
    data = open(folder + "/adapter_model.safetensors", "rb").read()
    cfg = json.load(open(folder + "/adapter_config.json"))
    n = struct.unpack("<Q", data[:8])[0]
    head = json.loads(data[8:8 + n])
    assert cfg["rank_pattern"] == {} or True
    return cfg, head, data[8 + n:]
def matrix(a, name):
    cfg, head, data = a
    e = head[name]
    lo, hi = e["data_offsets"]
    assert e["dtype"] == "F32"
    v = struct.unpack("<%df" % ((hi - lo) // 4), data[lo:hi])
    rows, cols = e["shape"]
    return [v[i * cols:(i + 1) * cols] for i in range(rows)]
def rows(a, module, which, default_scale):
    A = matrix(a, module + ".lora_A.weight"); B = matrix(a, module + ".lora_B.weight")
    return [[default_scale * sum(B[i][k] * A[k][j] for k in range(len(A))) for j in range(len(A[0]))] for i in which]
made = adapter(sys.argv[1])
terms = [(adapter(sys.argv[i]), float(sys.argv[i + 1])) for i in range(2, len(sys.argv), 2)]
modules = sorted(k[:-len(".lora_A.weight")] for k in made[1] if k.endswith(".lora_A.weight"))
worst = 0
for m in modules[::5]:
    which = range(0, 64, 17)
    got = rows(made, m, which, 1.0)
    want = [[0.0] * len(got[0]) for _ in got]
    for a, w in terms:
        r = rows(a, m, which, w * a[0]["lora_alpha"] / a[0]["r"])
        want = [[x + y for x, y in zip(p, q)] for p, q in zip(want, r)]
    up = math.sqrt(sum((x - y) ** 2 for p, q in zip(got, want) for x, y in zip(p, q)))
    worst = max(worst, up / math.sqrt(sum(y * y for q in want for y in q)))
print("near" if worst < 1e-6 else worst)
PY

ok "two adapters become one" lora merge upper-lora=0.7 title-lora=0.3 --name both --output "$TMP/both"
like "$OUT" '12 modules, rank up to 16, lost 0 %' "…at the sum of their ranks, without loss"
like "$OUT" 'added both:latest' "…in the store"
is "$(jsonq .r <"$TMP/both/adapter_config.json")" 16 "…the folder's rank"
is "$(jsonq .lora_alpha <"$TMP/both/adapter_config.json")" 16 "…alpha is the rank: every scale is in the factors"
is "$(python3 "$TMP/distance.py" "$TMP/both" "$A/upper-lora" 0.7 "$A/title-lora" 0.3)" near "…it is the weighted sum"
ID=$(lora inspect both --json | jsonq .id)
J=$(lora inspect both --json)
is "$(json "$J" .base.name)" tinytalk "…its base is recorded"
is "$(json "$J" .lineage.method)" cat "…its lineage says how"
is "$(json "$J" -n .lineage.adapters)" 2 "…and of what"
is "$(json "$J" .lineage.adapters[0].id)" "$(lora inspect upper-lora --json | jsonq .id)" "…by content id"
like "$(json "$J" .source)" '^lora merge upper-lora=0.7 title-lora=0.3' "…in words"
ok "…and fsck has nothing to say" lora fsck

ok "the other order" lora merge title-lora=0.3 upper-lora=0.7 --name both --json
is "$(json "$OUT" .id)" "$ID" "…is the same adapter"
is "$(json "$OUT" .state)" same "…which is there already"
ok "from folders" lora merge "$A/title-lora=0.3" "$A/upper-lora=0.7" --name other --threads 1 -q
is "$OUT" "$ID" "…the same, with one thread as with all"

ok "truncated" lora merge upper-lora title-lora --name short --rank 4 --json
is "$(json "$OUT" .method)" linear "…without a method it is the sum"
is "$(json "$OUT" .rank)" 4 "…at that rank"
like "$(json "$OUT" .loss)" '^0\.[0-9]+$' "…and says what it lost"
ok "…as a table" lora merge upper-lora title-lora --name short --method svd --rank 4
like "$OUT" 'MODULE +RANK +LOST %' "…module by module"
like "$OUT" 'model.layers.0.self_attn.q_proj +4 +[0-9.]+ +exact' "…each with its loss"

for method in linear task_arithmetic svd slerp; do
    ok "method $method" lora merge upper-lora=0.5 title-lora=0.5 --name "m-$method" --method $method
done
for method in magnitude_prune ties dare_linear dare_ties della breadcrumbs; do
    ok "method $method" lora merge upper-lora title-lora --name "m-$method" --method $method --density 0.5 --rank 16
done
ok "a seed" lora merge upper-lora title-lora --name m-dare_linear:2 --method dare_linear --density 0.5 --rank 16 --seed 7 -q
isnt "$OUT" "$(lora inspect m-dare_linear --json | jsonq .id)" "…makes another adapter"
ok "…the same seed" lora merge title-lora upper-lora --name m-dare_linear:3 --method dare_linear --density 0.5 --rank 16 --seed 7 --threads 1 -q
is "$OUT" "$(lora inspect m-dare_linear:2 --json | jsonq .id)" "…the same one"
ok "--compat peft" lora merge upper-lora title-lora --name peft --method linear --compat peft
like "$ERR" 'cross terms' "…says in which way it differs"
ok "--compat mergekit" lora merge upper-lora title-lora --name mk --method ties --density 0.5 --compat mergekit --json
like "$(json "$OUT" .differs)" 'divided by its weights' "…in JSON too"

# Adapters of other kinds.
ok "ranks, scales and targets of all sorts" lora merge upper-lora=0.5 math-lora reverse-lora=-1 count-lora=2 --name mixed --json
is "$(json "$OUT" .rank)" "$(python3 - "$A" upper math reverse count <<'PY'
import json, struct, sys
ranks = {}
for name in sys.argv[2:]:
    data = open("%s/%s-lora/adapter_model.safetensors" % (sys.argv[1], name), "rb").read()
    head = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
    for k, v in head.items():
        if k.endswith("lora_A.weight"): ranks[k] = ranks.get(k, 0) + v["shape"][0]
print(max(ranks.values()))
PY
)" "…at the largest sum of ranks of a module, counted by others"
ok "…the store reads it back" lora inspect mixed --deep
ok "an adapter of the embedding" lora merge first-lora=0.5 upper-lora --name emb
ok "…reads back" lora inspect emb --deep
ok "modules_to_save at weight 1, alone in its place" lora merge last-lora upper-lora=0.5 --name saved
like "$OUT" '1 modules have whole weights' "…is taken over"
exits 4 "…at another weight" lora merge last-lora=0.5 upper-lora --name no
like "$ERR" 'last-lora:lm_head: modules_to_save at weight 0.5 needs the base' "…is refused by name"
exits 4 "…or where another adapter changes it" lora merge last-lora first-lora --name no
like "$ERR" 'lm_head.*changes the same module' "…too"
exits 4 "DoRA" lora merge sort-lora upper-lora --name no
like "$ERR" 'sort-lora:.*DoRA.*merge the adapters into the base instead' "…is refused with the way out"
exits 1 "nothing of it is in the store" lora inspect no

# Merged into the base, the combination is what its adapters are when they are merged at once: the same bytes but where
# float32 factors fall on the other side of a rounding of bf16, which is at most one step.
cat >"$TMP/steps.py" <<'PY'
import json, struct, sys
def read(p):
    d = open(p + "/model.safetensors", "rb").read()
    n = struct.unpack("<Q", d[:8])[0]
    return {k: d[8 + n + v["data_offsets"][0]:8 + n + v["data_offsets"][1]]
            for k, v in json.loads(d[8:8 + n]).items() if k != "__metadata__"}
a, b, base = map(read, sys.argv[1:4])
assert a.keys() == b.keys()
off = far = changed = 0
for k in a:
    n = len(a[k]) // 2
    for p, q in zip(struct.unpack("<%dH" % n, a[k]), struct.unpack("<%dH" % n, b[k])):
        off += p != q
        far += abs(p - q) > 1
    changed += a[k] != base[k]
print("right" if changed > 20 and off < 500 and far == 0 else (changed, off, far))
PY
both_ways() { # NAME ADAPTER…: combined then merged, and merged at once
    local name=$1
    shift
    lora merge "$name" --output "$TMP/$name-1" >/dev/null && lora merge "$@" --base tinytalk --output "$TMP/$name-2" >/dev/null &&
        python3 "$TMP/steps.py" "$TMP/$name-1" "$TMP/$name-2" "$TINYTALK/base"
    rm -rf "$TMP/$name-1" "$TMP/$name-2"
}
is "$(both_ways mixed upper-lora=0.5 math-lora reverse-lora=-1 count-lora=2)" right "the combination merged is its adapters merged"
is "$(both_ways saved last-lora upper-lora=0.5)" right "…with whole weights, too"

# It answers: the combination at weight 1 of one adapter is that adapter.
ok "one adapter at weight 1" lora merge upper-lora --name alone --method ties --density 1
is "$(lora run tinytalk --adapter alone "hot sheet gush")" "HOT SHEET GUSH" "…answers as it does"

# Words that are off.
exits 2 "an unknown method" lora merge upper-lora --name x --method tie
like "$ERR" 'there are cat, linear' "…is told which there are"
exits 2 "a method that wants a density" lora merge upper-lora title-lora --name x --method ties
like "$ERR" '--density is missing' "…says so"
exits 2 "a density that is none" lora merge upper-lora title-lora --name x --method ties --density 1.5
exits 2 "a rank for cat" lora merge upper-lora title-lora --name x --method cat --rank 4
exits 2 "a method without a name" lora merge upper-lora title-lora --method ties --output "$TMP/x"
exits 2 "--check with a name" lora merge upper-lora --name x --check
exits 4 "a name in use" lora merge upper-lora=0.1 --name both
like "$ERR" 'both' "…is not overwritten"
is "$(lora inspect both --json | jsonq .id)" "$ID" "…it stays"
ok "…but with --force" lora merge upper-lora=0.1 --name both --force
mkdir "$TMP/there"
exits 4 "a folder that is there" lora merge upper-lora --name y --output "$TMP/there"
is "$(ls -A "$TMP" | grep -c '\.tmp$')" 0 "no half folder is left"

# resize
ok "resize" lora resize math-lora --rank 4 --name math-r4 --json
is "$(json "$OUT" .rank)" 4 "…to that rank"
like "$(json "$OUT" .loss)" '^0\.[0-9]+$' "…and says what it lost"
is "$(lora inspect math-r4 --json | jsonq .lineage.command)" resize "…its lineage"
ok "resize by energy" lora resize upper-lora --energy 0.9 --name upper-small --output "$TMP/upper-small"
like "$OUT" 'lost [0-9.]+ % of the delta' "…prints the loss"
ok "at full rank" lora resize upper-lora --rank 8 --output "$TMP/upper-full"
is "$(python3 "$TMP/distance.py" "$TMP/upper-full" "$A/upper-lora" 0.5)" near "…" 2>/dev/null
exits 4 "resize of DoRA" lora resize sort-lora --rank 4 --name x
exits 2 "resize without a rank" lora resize upper-lora --name x
exits 2 "resize without a place" lora resize upper-lora --rank 2
done_testing
