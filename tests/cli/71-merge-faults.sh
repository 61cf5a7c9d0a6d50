#!/usr/bin/env bash
# merge: killed at any call to the file system, a failing disk, a full one, broken inputs: no output folder, one line,
# and a second run or --resume gives the bytes of a run that nothing disturbed.
. tests/lib/tap.sh

B=$TINYTALK/base
A=$TINYTALK/adapters
FINE=${MERGE_FAULT_STEP:-7} # 1: every call
same() { cmp "$1/model.safetensors" "$TMP/good/model.safetensors" && cmp "$1/merge.json" "$TMP/good/merge.json"; }
merge() { lora merge "$A/upper-lora" "$A/count-lora=0.5" --base "$B" --output "$TMP/out" "$@"; }

ok "the undisturbed run" lora merge "$A/upper-lora" "$A/count-lora=0.5" --base "$B" --output "$TMP/good"

# Every kill leaves no output folder; the next run with --resume, or afresh, makes it.
# Reading the headers and the fingerprint comes first, in large steps; from the work folder on every FINE-th call.
bad=0 kills=0 resumed=0 step=50
for ((n = 1; n < 3000; n += step)); do
    LORA_FAULT=kill:$n:file merge --resume >"$TMP/.out" 2>&1
    status=$?
    if [ -z "${first-}" ] && { [ -e "$TMP/out.partial" ] || [ $status -ne 137 ]; }; then
        n=$((n - step)) step=$FINE first=$n
        rm -rf "$TMP/out" "$TMP/out.partial"
        continue
    fi
    [ $status -eq 137 ] || break
    kills=$((kills + 1))
    if [ -e "$TMP/out" ]; then
        same "$TMP/out" || { bad=$((bad + 1)); note "kill at $n: a wrong output folder"; } # after the rename
    else
        [ -s "$TMP/out.partial/journal" ] && resumed=$((resumed + 1))
        if [ $((kills % 2)) -eq 0 ]; then merge --resume >"$TMP/.out" 2>&1; else merge >"$TMP/.out" 2>&1; fi ||
            { bad=$((bad + 1)); note "kill at $n: the next run fails: $(cat "$TMP/.out")"; }
        same "$TMP/out" || { bad=$((bad + 1)); note "kill at $n: the next run's bytes differ"; }
        [ ! -e "$TMP/out.partial" ] || { bad=$((bad + 1)); note "kill at $n: something is left"; }
    fi
    rm -rf "$TMP/out" "$TMP/out.partial"
done
is "$bad" 0 "killed at $kills calls of the file system, $resumed with a journal: never a half folder, always the same bytes"
is "$status" 0 "…to the end of the run"
ok "…there were many" test "$kills" -gt 20
rm -rf "$TMP/out" "$TMP/out.partial"

# Every failing call is one line of error (or no harm at all), and leaves nothing.
bad=0 fails=0 harmless=0
for ((n = 1; n < 3000 && harmless < 6; n += n < first ? 100 : FINE)); do
    LORA_FAULT=fail:$n:file merge >"$TMP/.out" 2>"$TMP/.err"
    status=$?
    if [ $status -eq 0 ]; then
        same "$TMP/out" || { bad=$((bad + 1)); note "failure at $n: a wrong folder"; }
        [ "$n" -lt "$first" ] || harmless=$((harmless + 1)) # beyond the last call, or a hint that was not taken
    else
        harmless=0 fails=$((fails + 1))
        [ "$(grep -c '^error: ' "$TMP/.err")" -eq 1 ] || { bad=$((bad + 1)); note "failure at $n: $(cat "$TMP/.err")"; }
        [ $status -lt 128 ] || { bad=$((bad + 1)); note "failure at $n: status $status"; }
        [ ! -e "$TMP/out" ] || same "$TMP/out" || { bad=$((bad + 1)); note "failure at $n: a half folder"; }
    fi
    rm -rf "$TMP/out" "$TMP/out.partial"
done
is "$bad" 0 "$fails failing calls of the file system: one line each, no half folder"
ok "…there were many" test "$fails" -gt 20
rm -rf "$TMP/out" "$TMP/out.partial"

bad=0 fails=0
for ((n = 1; n < 4000; n += 1 + n / 4)); do
    LORA_FAULT=fail:$n:mem merge >"$TMP/.out" 2>"$TMP/.err"
    status=$?
    if [ $status -ne 0 ]; then
        fails=$((fails + 1))
        [ "$(grep -c '^error: ' "$TMP/.err")" -eq 1 ] || { bad=$((bad + 1)); note "memory at $n: $(cat "$TMP/.err")"; }
        [ $status -lt 128 ] || { bad=$((bad + 1)); note "memory at $n: status $status"; }
        [ ! -e "$TMP/out" ] || { bad=$((bad + 1)); note "memory at $n: a folder"; }
    fi
    rm -rf "$TMP/out" "$TMP/out.partial"
done
is "$bad" 0 "$fails failing allocations: one line each, no folder"

# A limit of the size of files stands for a full disk: writes fail in the middle.
(
    trap '' XFSZ
    ulimit -f 5000
    merge >"$TMP/.out" 2>"$TMP/.err"
)
is $? 1 "a write that the system refuses ends the merge"
like "$(cat "$TMP/.err")" '^error: .*model.safetensors' "…with the file's name"
not_ok "…no folder" test -e "$TMP/out"
not_ok "…and nothing beside it" test -e "$TMP/out.partial"

# With --resume what is done stays, and the next run goes on with it.
(
    trap '' XFSZ
    ulimit -f 5000
    merge --resume >"$TMP/.out" 2>"$TMP/.err"
)
is $? 1 "the same with --resume"
ok "…keeps what is done" test -s "$TMP/out.partial/journal"
ok "…and with room again it goes on" merge --resume
ok "…to the same bytes" same "$TMP/out"
rm -rf "$TMP/out"

# A disk that is really full.
full='mount -t tmpfs -o size=6m none "$1" && shift && exec "$@"'
mkdir "$TMP/disk"
if unshare -rm sh -c "$full" sh "$TMP/disk" true 2>/dev/null; then
    run unshare -rm sh -c "$full" sh "$TMP/disk" lora merge "$A/upper-lora" --base "$B" --output "$TMP/disk/out"
    is "$STATUS" 1 "a full disk ends the merge before it begins"
    like "$ERR" 'MB are to be written, .* MB are free' "…says what is missing"
else
    skip "a full disk" "no file system can be mounted here"
fi

# Another process is at it.
mkdir -p "$TMP/out.partial"
exec 9>"$TMP/out.partial/journal"
flock 9
exits 11 "a merge that another process is making" lora merge "$A/upper-lora" --base "$B" --output "$TMP/out"
exec 9>&-
ok "…and afterwards" merge
ok "…gives the bytes" same "$TMP/out"
rm -rf "$TMP/out"

# A journal of another merge is not gone on with.
LORA_FAULT=kill:120:file merge --resume >/dev/null 2>&1
if [ -s "$TMP/out.partial/journal" ]; then
    exits 4 "--resume on another merge's journal" lora merge "$A/title-lora" --base "$B" --output "$TMP/out" --resume
    like "$ERR" 'of another merge' "…is refused"
fi
rm -rf "$TMP/out" "$TMP/out.partial"

# Broken inputs.
mkdir "$TMP/cut"
cp "$B"/* "$TMP/cut/"
truncate -s -1000 "$TMP/cut/model.safetensors"
exits 5 "a base that is cut short" lora merge "$A/upper-lora" --base "$TMP/cut" --output "$TMP/out"
mkdir "$TMP/parts"
cp "$B"/*.json "$TMP/parts/"
python3 - "$B/model.safetensors" "$TMP/parts" <<'PY'
import json, struct, sys
d = open(sys.argv[1], "rb").read(); n = struct.unpack("<Q", d[:8])[0]; h = json.loads(d[8:8 + n]); h.pop("__metadata__", None)
names, index = sorted(h), {}
for i, part in enumerate((names[::2], names[1::2])):
    out, raw = {}, b""
    for k in part:
        b, e = h[k]["data_offsets"]
        out[k] = dict(h[k], data_offsets=[len(raw), len(raw) + e - b]); raw += d[8 + n + b:8 + n + e]
        index[k] = f"part-{i}.safetensors"
    t = json.dumps(out).encode(); t += b" " * (-len(t) % 8)
    open(f"{sys.argv[2]}/part-{i}.safetensors", "wb").write(struct.pack("<Q", len(t)) + t + raw)
json.dump({"metadata": {}, "weight_map": index}, open(sys.argv[2] + "/model.safetensors.index.json", "w"))
PY
ok "a base in two shards" lora merge "$A/upper-lora" --base "$TMP/parts" --output "$TMP/two-shards"
mv "$TMP/parts/part-1.safetensors" "$TMP/away"
exits 5 "a shard that is not there" lora merge "$A/upper-lora" --base "$TMP/parts" --output "$TMP/out"
like "$ERR" 'part-1.safetensors' "…is named"
mkdir "$TMP/parts/part-1.safetensors"
not_ok "a shard that cannot be read" lora merge "$A/upper-lora" --base "$TMP/parts" --output "$TMP/out"
like "$ERR" '^error: .*part-1.safetensors' "…is named, in one line"
rmdir "$TMP/parts/part-1.safetensors"
mv "$TMP/away" "$TMP/parts/part-1.safetensors"
ok "…and once it is back" lora merge "$A/upper-lora" --base "$TMP/parts" --output "$TMP/out"
ok "…the merge is the same" diff -r "$TMP/out" "$TMP/two-shards"
rm -rf "$TMP/out"
mkdir "$TMP/nan"
cp "$A/upper-lora"/* "$TMP/nan/"
python3 - "$TMP/nan/adapter_model.safetensors" <<'PY'
import struct, sys
f = open(sys.argv[1], "r+b"); f.seek(-4, 2); f.write(struct.pack("<f", float("nan")))
PY
exits 5 "an adapter with NaN" lora merge "$TMP/nan" --base "$B" --output "$TMP/out"
like "$ERR" 'NaN' "…says so"
cp -r "$B" "$TMP/inf"
python3 - "$TMP/inf/model.safetensors" <<'PY'
import json, struct, sys
f = open(sys.argv[1], "r+b"); n = struct.unpack("<Q", f.read(8))[0]; h = json.loads(f.read(n))
f.seek(8 + n + h["model.layers.3.self_attn.q_proj.weight"]["data_offsets"][0] + 20); f.write(b"\x80\x7f")
PY
exits 5 "a base with Inf where it changes" lora merge "$A/upper-lora" --base "$TMP/inf" --output "$TMP/out"
like "$ERR" 'model.layers.3.self_attn.q_proj.weight: \[0, 10\].*Inf' "…names tensor, row and column"
not_ok "no folder" test -e "$TMP/out"
not_ok "…nor a half one" test -e "$TMP/out.partial"

# Interrupted: a checkpoint large enough to be caught at it.
mkdir "$TMP/large"
python3 - "$TMP/large" "$B/config.json" <<'PY'
import json, struct, sys
c = json.load(open(sys.argv[2]))
c.update(num_hidden_layers=2, hidden_size=2048, intermediate_size=16384, num_attention_heads=16,
         num_key_value_heads=16, head_dim=128, vocab_size=2048)
json.dump(c, open(sys.argv[1] + "/config.json", "w"))
t, at = {}, 0
def add(name, *shape):
    global at
    n = 2
    for d in shape: n *= d
    t[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + n]}
    at += n
add("model.embed_tokens.weight", 2048, 2048); add("lm_head.weight", 2048, 2048); add("model.norm.weight", 2048)
for l in range(2):
    p = f"model.layers.{l}."
    for m in "qkvo": add(p + f"self_attn.{m}_proj.weight", 2048, 2048)
    add(p + "mlp.gate_proj.weight", 16384, 2048); add(p + "mlp.up_proj.weight", 16384, 2048)
    add(p + "mlp.down_proj.weight", 2048, 16384)
    add(p + "input_layernorm.weight", 2048); add(p + "post_attention_layernorm.weight", 2048)
h = json.dumps(t).encode(); h += b" " * (-len(h) % 8)
with open(sys.argv[1] + "/model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(h)) + h); f.truncate(8 + len(h) + at)
r, a, at2 = 8, {}, 0
for l in range(2):
    for x, shape in (("A", [r, 2048]), ("B", [16384, r])):
        n = 4 * shape[0] * shape[1]
        a[f"base_model.model.model.layers.{l}.mlp.up_proj.lora_{x}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [at2, at2 + n]}
        at2 += n
h = json.dumps(a).encode(); h += b" " * (-len(h) % 8)
import os
os.mkdir(sys.argv[1] + "/adapter")
with open(sys.argv[1] + "/adapter/adapter_model.safetensors", "wb") as f:
    f.write(struct.pack("<Q", len(h)) + h + struct.pack("<f", 0.01) * (at2 // 4))
json.dump({"peft_type": "LORA", "r": r, "lora_alpha": 16, "target_modules": ["up_proj"]}, open(sys.argv[1] + "/adapter/adapter_config.json", "w"))
PY
lora merge "$TMP/large/adapter" --base "$TMP/large" --output "$TMP/out" >"$TMP/.out" 2>"$TMP/.err" &
PID=$!
for ((i = 0; i < 2000; i++)); do
    [ -e "$TMP/out.partial/model/model.safetensors" ] && break
    sleep 0.001
done
kill -INT $PID 2>/dev/null
wait $PID
status=$?
if [ $status -eq 0 ]; then
    skip "an interrupted merge" "it was done before the signal came"
else
    is "$status" 130 "an interrupted merge"
    not_ok "…leaves no folder" test -e "$TMP/out"
    not_ok "…nor a half one" test -e "$TMP/out.partial"
fi
done_testing
