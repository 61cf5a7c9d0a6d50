#!/usr/bin/env bash
# import: what is not taken, with one clear line and the right exit status; and nothing is left.
. tests/lib/tap.sh

A=$TINYTALK/adapters/upper-lora
fresh() { rm -rf "$TMP/a"; mkdir "$TMP/a"; cp "$A/"* "$TMP/a/"; }
# edit FILE PYTHON: changes config (c) in place
config() { python3 -c "
import json, sys
p = '$TMP/a/adapter_config.json'; c = json.load(open(p)); $1; json.dump(c, open(p, 'w'))"; }
one_line() { is "$(printf '%s\n' "$ERR" | grep -c '^error: ')" 1 "…one line of error"; }

lora import "$TINYTALK/base" --name tinytalk >/dev/null

exits 2 "a wrong flag" lora import --nmae x "$A"
like "$ERR" "did you mean --name" "…with the nearest spelling"
exits 2 "no path" lora import
exits 2 "a name that cannot be one" lora import "$A" --name 'a b'
like "$ERR" 'not allowed in a name' "…says which character"
exits 2 "a tag given twice" lora import "$A" --name x:v1 --tag v2
exits 2 "one name for two paths" lora import "$A" "$TINYTALK/adapters/math-lora" --name x

exits 1 "a missing path" lora import "$TMP/missing"
like "$ERR" "$TMP/missing: no such file" "…by its path"
mkdir "$TMP/empty"
exits 1 "an empty folder" lora import "$TMP/empty"
like "$ERR" 'adapter_config.json' "…says what was wanted"
touch "$TMP/x.tar.zst"
exits 5 "an empty pack" lora import "$TMP/x.tar.zst"

fresh; rm "$TMP/a/adapter_model.safetensors"
exits 1 "a folder without weights" lora import "$TMP/a"

fresh; truncate -s -1000 "$TMP/a/adapter_model.safetensors"
exits 5 "a truncated safetensors file" lora import "$TMP/a"
like "$ERR" "$TMP/a/adapter_model.safetensors" "…by its path"
one_line
fresh; echo junk >>"$TMP/a/adapter_model.safetensors"
exits 5 "bytes behind the last tensor" lora import "$TMP/a"

fresh; python3 - "$TMP/a/adapter_model.safetensors" <<'PY'
import struct, sys
f = open(sys.argv[1], "r+b")
n = struct.unpack("<Q", f.read(8))[0]
f.seek(8 + n + 4000)
f.write(struct.pack("<f", float("nan")))
PY
exits 5 "a NaN among the weights" lora import "$TMP/a" --json
like "$ERR" '"code":"corrupt"' "…as JSON"
like "$ERR" "$TMP/a/adapter_model.safetensors" "…by the path that the user knows"
unlike "$ERR" "$LORA_STORE/tmp" "…not by the store's own copy"

fresh; rm "$TMP/a/adapter_model.safetensors"
python3 -c "
import pickle, zipfile
z = zipfile.ZipFile('$TMP/a/adapter_model.bin', 'w'); z.writestr('archive/data.pkl', pickle.dumps({'x': 1})); z.close()"
run lora import "$TMP/a"
ok "a pickle file is refused" test "$STATUS" -eq 4 -o "$STATUS" -eq 5
run lora import "$TMP/a"
like "$ERR" 'pickle|\.bin' "…by what it is"
fresh; python3 -c "
import pickle; open('$TMP/a/adapter_model.safetensors', 'wb').write(pickle.dumps({'x': 1}))"
exits 5 "a pickle under the name of a safetensors file" lora import "$TMP/a"
like "$ERR" 'pickle' "…is recognised"

fresh; echo '{' >"$TMP/a/adapter_config.json"
exits 5 "broken JSON" lora import "$TMP/a"
fresh; config "c['new_idea'] = 3"
exits 4 "an unknown field with a value" lora import "$TMP/a"
like "$ERR" 'new_idea' "…by name"
ok "…unless it is ignored" lora import "$TMP/a" --ignore-field new_idea --name ignoring --json
ID=$(json "$OUT" .adapters[0].id)
is "$(jsonq .ignored_fields[0] <"$LORA_STORE/manifests/$ID.json")" new_idea "…which is recorded"
fresh; config "c['init_lora_weights'] = 'pissa'"
exits 4 "PiSSA, unconverted" lora import "$TMP/a"
fresh; config "c['r'] = 0"
run lora import "$TMP/a"
ok "rank 0" test "$STATUS" -eq 4
fresh; config "c['r'] = 4"
exits 4 "a rank that differs from the shapes" lora import "$TMP/a"
fresh; config "c['peft_type'] = 'LOHA'"
exits 4 "another PEFT type" lora import "$TMP/a"

# Another base. Same module names, other widths.
python3 - "$TINYTALK/base" "$TMP/other" <<'PY'
import json, os, struct, sys
src, dst = sys.argv[1], sys.argv[2]
os.makedirs(dst)
config = json.load(open(src + "/config.json"))
config["hidden_size"], config["num_hidden_layers"], config["vocab_size"] = 128, 1, 512
config["intermediate_size"], config["num_attention_heads"], config["num_key_value_heads"] = 64, 4, 2
config["head_dim"] = 32
json.dump(config, open(dst + "/config.json", "w"))
p = "model.layers.0."
shapes = {"model.embed_tokens.weight": [512, 128], "lm_head.weight": [512, 128], "model.norm.weight": [128],
          p + "input_layernorm.weight": [128], p + "post_attention_layernorm.weight": [128],
          p + "self_attn.q_proj.weight": [128, 128], p + "self_attn.k_proj.weight": [64, 128],
          p + "self_attn.v_proj.weight": [64, 128], p + "self_attn.o_proj.weight": [128, 128],
          p + "mlp.gate_proj.weight": [64, 128], p + "mlp.up_proj.weight": [64, 128], p + "mlp.down_proj.weight": [128, 64]}
header, at = {}, 0
for name, shape in shapes.items():
    n = 2
    for d in shape: n *= d
    header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + n]}
    at += n
text = json.dumps(header).encode(); text += b" " * (-len(text) % 8)
open(dst + "/model.safetensors", "wb").write(struct.pack("<Q", len(text)) + text + bytes(at))
PY
ok "another base is imported" lora import "$TMP/other" --name other
exits 4 "an adapter for another base" lora import "$A" --base other
like "$ERR" 'does not fit base other' "…names the base"
like "$ERR" 'hint: .*--base' "…and the way out"
exits 4 "…given as a folder" lora import "$A" --base "$TMP/other"
ok "the right base is taken" lora import "$A" --base tinytalk --name right
exits 4 "an adapter recorded for one base is not recorded for another" lora import "$A" --base other --name right
exits 1 "an unknown base" lora import "$A" --base nobody
fresh; config "c['base_model_name_or_path'] = 'someone/else'"
ok "another name for the base only warns" lora import "$TMP/a" --base tinytalk --name renamed
like "$ERR" '^warning: .*someone/else' "…with both names"

# A store that somebody holds.
exec 9>>"$LORA_STORE/leases/store.lock"
flock -x 9
printf 'gc %d nowhere 1\n' $$ >"$LORA_STORE/leases/store.lock"
exits 11 "a locked store" lora import "$TINYTALK/adapters/math-lora" --lock-timeout 0
like "$ERR" "locked by .gc., pid $$" "…says who holds it"
ok "reading goes on meanwhile" lora list
exec 9>&-
ok "…and the import when it is free" lora import "$TINYTALK/adapters/math-lora" --lock-timeout 0

is "$(find "$LORA_STORE/tmp" -mindepth 1 | wc -l)" 0 "nothing is left in tmp/"
is "$(find "$LORA_STORE/leases" -mindepth 1 ! -name store.lock | wc -l)" 0 "no lease is left"
ok "fsck is clean" lora fsck
unlike "$OUT" '^note' "…without notes"
done_testing
