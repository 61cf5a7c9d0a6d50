#!/usr/bin/env bash
# Several lora processes on one store, and commands that are interrupted.
. tests/lib/tap.sh

# 24 adapters of different content: one number of each copy differs.
mkdir -p "$TMP/in"
python3 - "$TINYTALK/adapters/upper-lora" "$TMP/in" <<'PY'
import os, shutil, struct, sys
for i in range(24):
    to = "%s/a%02d" % (sys.argv[2], i)
    shutil.copytree(sys.argv[1], to)
    with open(to + "/adapter_model.safetensors", "r+b") as f:
        n = struct.unpack("<Q", f.read(8))[0]
        f.seek(8 + n + 64)
        f.write(struct.pack("<f", 0.001 * (i + 1)))
PY
for i in $(seq 0 23); do
    lora import "$TMP/in/a$(printf %02d "$i")" >"$TMP/log.$i" 2>&1 &
    PIDS[$i]=$!
done
(until [ -e "$TMP/done" ]; do lora list -q >/dev/null 2>>"$TMP/list.err" || [ $? -eq 10 ] || echo failed >>"$TMP/list.failed"; done) &
LISTER=$!
(until [ -e "$TMP/done" ]; do lora gc --grace 0 >/dev/null 2>>"$TMP/gc.err" || [ $? -eq 10 ] || echo failed >>"$TMP/gc.failed"; done) &
COLLECTOR=$!
FAILED=0
for i in $(seq 0 23); do wait "${PIDS[$i]}" || { FAILED=$((FAILED + 1)); note "$(cat "$TMP/log.$i")"; }; done
touch "$TMP/done"
wait $LISTER $COLLECTOR
is "$FAILED" 0 "24 imports at once, the first makes the store"
not_ok "list beside them never fails" test -e "$TMP/list.failed"
not_ok "gc beside them never fails" test -e "$TMP/gc.failed"
[ ! -s "$TMP/gc.err" ] || note "$(head -3 "$TMP/gc.err")"
is "$(lora list -q | wc -l)" 24 "nothing is lost"
ok "fsck is clean" lora fsck
unlike "$OUT" '^note' "…without notes"

# The same adapter from many processes: one adds it, the others find it.
for i in $(seq 1 8); do lora import "$TINYTALK/adapters/math-lora" --json >"$TMP/same.$i" 2>&1 & done
wait
is "$(cat "$TMP"/same.* | grep -o '"state":"[a-z]*"' | sort | uniq -c | sed 's/^ *//' | tr '\n' ' ')" \
    '1 "state":"added" 7 "state":"same" ' "eight imports of one adapter: one adds, seven find"

# SIGINT: nothing half is left.
python3 - "$TMP/large" <<'PY'
import json, os, struct, sys
os.makedirs(sys.argv[1])
rows = 40000
header = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": {"dtype": "F32", "shape": [8, rows], "data_offsets": [0, 32 * rows]},
          "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": {"dtype": "F32", "shape": [rows * 40, 8], "data_offsets": [32 * rows, 32 * rows * 41]}}
text = json.dumps(header).encode(); text += b" " * (-len(text) % 8)
with open(sys.argv[1] + "/adapter_model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(text)) + text)
    f.truncate(8 + len(text) + 32 * rows * 41)
json.dump({"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj"]}, open(sys.argv[1] + "/adapter_config.json", "w"))
PY
lora import "$TMP/large" --name large >"$TMP/int.out" 2>"$TMP/int.err" &
PID=$!
until [ -n "$(find "$LORA_STORE/tmp" -mindepth 2 -name 'adapter_model*' 2>/dev/null)" ] || ! kill -0 $PID 2>/dev/null; do :; done
kill -INT $PID 2>/dev/null
wait $PID
STATUS=$?
if [ "$STATUS" -eq 0 ]; then
    skip "an interrupted import" "it was too quick to be met"
else
    is "$STATUS" 130 "an interrupted import"
    exits 1 "…left no name" lora inspect large
fi
is "$(find "$LORA_STORE/tmp" -mindepth 1 | wc -l)" 0 "…and nothing in tmp/"
ok "…and a store that is whole" lora fsck
done_testing
