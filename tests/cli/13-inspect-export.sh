#!/usr/bin/env bash
# inspect: what is said of adapters and bases; export: the files come back.
. tests/lib/tap.sh

lora import "$TINYTALK/base" --name tinytalk >/dev/null
lora import --recursive "$TINYTALK/adapters" >/dev/null

ok "inspect an adapter" lora inspect sort-lora --json
is "$(json "$OUT" .kind)" adapter "…it is one"
is "$(json "$OUT" .names[0])" sort-lora:latest "…its name"
is "$(json "$OUT" .base.name)" tinytalk "…its base"
is "$(json "$OUT" .kinds)" '["lora","dora"]' "…its kinds"
is "$(json "$OUT" .rank)" '[8,8]' "…its ranks"
is "$(json "$OUT" -n .modules)" 42 "…every module"
is "$(json "$OUT" .modules[0].scale)" 2.0 "…with its scale"
is "$(json "$OUT" -n .files)" 2 "…its files"
is "$(json "$OUT" .capability.serve.ok)" true "…it will be served"
is "$(json "$OUT" .capability.scale.ok)" false "…but not at another scale, being DoRA"
like "$(json "$OUT" .share)" '^0\.04' "…its share of the base"
PARAMETERS=$(json "$OUT" .parameters)
is "$(python3 -c "
import json, struct
d = open('$TINYTALK/adapters/sort-lora/adapter_model.safetensors', 'rb').read()
h = json.loads(d[8:8 + struct.unpack('<Q', d[:8])[0]]); n = 0
for k, v in h.items():
    if k != '__metadata__':
        p = 1
        for x in v['shape']: p *= x
        n += p
print(n)")" "$PARAMETERS" "…its parameters, counted by others"
like "$(lora inspect reverse-lora --json | jsonq .modules[0].scale)" '^4\.0' "rsLoRA: alpha over the root of the rank"
is "$(lora inspect count-lora --json | jsonq .rank)" '[2,16]' "a rank pattern"

ok "inspect --deep" lora inspect upper-lora --deep --json
is "$(python3 - "$OUT" "$TINYTALK/adapters/upper-lora/adapter_model.safetensors" <<'PY'
import json, math, struct, sys
info, data = json.loads(sys.argv[1]), open(sys.argv[2], "rb").read()
n = struct.unpack("<Q", data[:8])[0]
head = json.loads(data[8:8 + n])
def matrix(name):
    e = head["base_model.model." + name]
    a, b = e["data_offsets"]
    assert e["dtype"] == "F32"
    v = struct.unpack("<%df" % ((b - a) // 4), data[8 + n + a:8 + n + b])
    rows, cols = e["shape"]
    return [v[i * cols:(i + 1) * cols] for i in range(rows)]
bad = []
for m in info["modules"][:2]:
    A, B = matrix(m["name"] + ".lora_A.weight"), matrix(m["name"] + ".lora_B.weight")
    r = len(A)
    gram_a = [[sum(x * y for x, y in zip(A[i], A[j])) for j in range(r)] for i in range(r)]
    gram_b = [[sum(row[i] * row[j] for row in B) for j in range(r)] for i in range(r)]
    f = m["scale"] * math.sqrt(sum(gram_a[i][j] * gram_b[i][j] for i in range(r) for j in range(r)))
    if abs(f - m["frobenius"]) > 1e-6 * f: bad.append((m["name"], f, m["frobenius"]))
    if not 0 < m["spectral"] <= m["frobenius"] * (1 + 1e-9): bad.append(m["name"])
    if abs(m["stable_rank"] - (m["frobenius"] / m["spectral"]) ** 2) > 1e-6: bad.append(m["name"])
print(bad or "right")
PY
)" right "…norms agree with a count by hand"
ok "the terminal's page" lora inspect last-lora --deep
like "$OUT" '^[qv]_proj +[▁▂▃▄▅▆▇█·]+$' "…has a heat map"
like "$OUT" 'serve +yes' "…and says what serve will say"

ok "inspect a base" lora inspect tinytalk
like "$OUT" 'base +sampled, by reference' "…how it is verified"
ok "…as JSON" lora inspect tinytalk --json
is "$(json "$OUT" .adapters)" 8 "…how many adapters are recorded for it"
is "$(json "$OUT" .config.layers)" 6 "…its architecture"

ok "a path needs no import" lora inspect "$TINYTALK/adapters/math-lora" --store "$TMP/none" --json
is "$(json "$OUT" .id)" "$(lora inspect math-lora -q)" "…and has the same id"
PREFIX=$(lora inspect math-lora -q | cut -c1-8)
ok "a prefix of an id" lora inspect "$PREFIX" -q
exits 1 "an unknown name" lora inspect nobody
like "$ERR" 'hint: .*lora list' "…says what to do"

ok "the HTML report" lora inspect first-lora --html "$TMP/report.html" -q
ok "…is there" grep -q '<svg' "$TMP/report.html"
not_ok "…needs nothing from elsewhere" grep -Eq '(src|href)=|https?://' "$TMP/report.html"
exits 4 "…and is not overwritten" lora inspect first-lora --html "$TMP/report.html"
ok "…unless forced" lora inspect first-lora --html "$TMP/report.html" --force -q

ok "export" lora export sort-lora --output "$TMP/out"
for f in adapter_config.json adapter_model.safetensors; do
    ok "…$f comes back exactly" cmp "$TMP/out/$f" "$TINYTALK/adapters/sort-lora/$f"
done
exits 4 "export does not overwrite" lora export sort-lora --output "$TMP/out"
ok "…unless forced" lora export sort-lora --output "$TMP/out" --force
exits 2 "export without --output" lora export sort-lora
exits 1 "a base is not exported" lora export tinytalk --output "$TMP/base"
not_ok "…and leaves nothing" test -e "$TMP/base"
ok "what was exported imports as the same" lora import "$TMP/out" --name again --json
is "$(json "$OUT" .adapters[0].id)" "$(lora inspect sort-lora -q)" "…content"

# Spoiled bytes are met at the door.
BLOB=$(find "$LORA_STORE/blobs" -type f -size +100k | head -1)
NAME=$(lora list --json | python3 -c "
import json, sys, os
d = json.load(sys.stdin)
for a in d['adapters']:
    m = json.load(open('$LORA_STORE/manifests/' + a['id'] + '.json'))
    if any(f['sha256'] == os.path.basename('$BLOB') for f in m['files']): print(a['name']); break")
chmod u+w "$BLOB"
printf 'x' | dd of="$BLOB" bs=1 seek=90000 conv=notrunc 2>/dev/null
exits 5 "inspect sees spoiled bytes" lora inspect "$NAME"
exits 5 "export sees spoiled bytes" lora export "$NAME" --output "$TMP/spoiled"
not_ok "…and leaves nothing" test -e "$TMP/spoiled"
exits 5 "fsck sees them" lora fsck
like "$OUT" "$(basename "$BLOB" | cut -c1-12)" "…by the blob's name"
ok "…--quick looks at sizes only" lora fsck --quick
ok "the next import heals them" lora import "$TINYTALK/adapters/$NAME"
ok "…and fsck is clean" lora fsck
done_testing
