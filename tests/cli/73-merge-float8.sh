#!/usr/bin/env bash
# merge into a base in 8-bit floats: resumed after a kill, applied again, checked; a disk that fails; serve says no.
. tests/lib/tap.sh

F=$ROOT/tests/golden/float8
B=$F/deepseek/base
A=$F/deepseek/adapter
same() { cmp "$1/model.safetensors" "$TMP/good/model.safetensors" && cmp "$1/merge.json" "$TMP/good/merge.json"; }
merge() { lora merge "$A" --base "$B" --output "$TMP/out" "$@"; }

ok "8-bit floats are kept" lora merge "$A" --base "$B" --output "$TMP/good" --check --threads 1
like "$OUT" 'checked: 112640 values' "…every value checked by other code"
ok "…the configuration too" cmp "$B/config.json" "$TMP/good/config.json"
is "$(jsonq .options.float8 <"$TMP/good/merge.json")" keep "…the recipe says so"
ok "…with other threads" lora merge "$A" --base "$B" --output "$TMP/more" --threads 5
ok "…the same bytes" same "$TMP/more"
ok "…on whatever device there is" lora merge "$A" --base "$B" --output "$TMP/auto" --device auto
ok "…the same bytes" same "$TMP/auto"
ok "weight 0" lora merge "$A=0" --base "$B" --output "$TMP/zero"
ok "…is the base bit for bit" cmp "$B/model.safetensors" "$TMP/zero/model.safetensors"

ok "as BF16" lora merge "$A" --base "$B" --output "$TMP/bf16" --float8 bf16 --check
is "$(grep -c quantization_config "$TMP/bf16/config.json")" 0 "…without a quantization"
ok "--apply remembers" lora merge --apply "$TMP/bf16/merge.json" --output "$TMP/again"
ok "…the same bytes" cmp "$TMP/bf16/model.safetensors" "$TMP/again/model.safetensors"
exits 2 "another word" lora merge "$A" --base "$B" --output "$TMP/x" --float8 int8

bad=0 kills=0
for ((n = 40; n < 2000; n += 3)); do
    LORA_FAULT=kill:$n:file merge --resume >"$TMP/.out" 2>&1
    status=$?
    [ $status -eq 137 ] || break
    kills=$((kills + 1))
    if [ ! -e "$TMP/out" ]; then
        merge --resume >"$TMP/.out" 2>&1 || { bad=$((bad + 1)); note "kill at $n: $(cat "$TMP/.out")"; }
    fi
    same "$TMP/out" || { bad=$((bad + 1)); note "kill at $n: other bytes"; }
    rm -rf "$TMP/out" "$TMP/out.partial"
done
is "$bad" 0 "killed at $kills calls of the file system, resumed: always the same bytes"
ok "…there were many" test "$kills" -gt 10
is "$status" 0 "…to the end"
rm -rf "$TMP/out" "$TMP/out.partial"
bad=0
for kind in file mem; do
    for ((n = 1; n < 2000; n += n < 300 ? 3 : 25)); do
        LORA_FAULT=fail:$n:$kind merge >"$TMP/.out" 2>"$TMP/.err"
        status=$?
        if [ $status -ne 0 ]; then
            [ "$(grep -c '^error: ' "$TMP/.err")" -eq 1 ] && [ $status -lt 128 ] && [ ! -e "$TMP/out" ] ||
                { bad=$((bad + 1)); note "$kind $n: status $status: $(cat "$TMP/.err")"; }
        fi
        rm -rf "$TMP/out" "$TMP/out.partial"
    done
done
is "$bad" 0 "failing calls and allocations: one line each, no folder"

ok "such a base is imported" lora import "$B" --name eight
ok "…and adapters for it" lora import "$A" --base eight --name a
ok "…and merged by name" lora merge a --output "$TMP/out"
ok "…the same weights" cmp "$TMP/out/model.safetensors" "$TMP/good/model.safetensors"
exits 4 "serve does not compute with it" lora serve --model eight --check
like "$ERR" 'quant_method "fp8"' "…by name"
cp -r "$B" "$TMP/neg"
python3 - "$TMP/neg/model.safetensors" <<'PY'
import json, struct, sys
f = open(sys.argv[1], "r+b"); n = struct.unpack("<Q", f.read(8))[0]; h = json.loads(f.read(n))
f.seek(8 + n + h["model.layers.0.self_attn.q_proj.weight_scale_inv"]["data_offsets"][0]); f.write(struct.pack("<f", -1.0))
PY
exits 5 "a negative scale" lora merge "$A" --base "$TMP/neg" --output "$TMP/x"
like "$ERR" 'weight_scale_inv\[0\]: a scale of -1' "…is named"
not_ok "nothing is left" test -e "$TMP/x"
done_testing
