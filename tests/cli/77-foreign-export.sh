#!/usr/bin/env bash
# export to kohya, MLX and GGUF: read back they are the same adapter; what a format cannot say is refused by name.
. tests/lib/tap.sh

lora import "$TINYTALK/base" --name tinytalk >/dev/null
lora import --recursive "$TINYTALK/adapters" >/dev/null
id_of() { lora inspect "$1" --json | jsonq .id; }
MATH=$(id_of math-lora)
PYTHON=$(for p in ${LORA_PYTHON:-} python3; do "$p" -c 'import numpy, gguf' 2>/dev/null && echo "$p" && break; done)
# check NAME FORMAT FOLDER ADAPTER [TOLERANCE]: every ΔW, by other people's readers.
check() {
    [ -n "$PYTHON" ] || { skip "$1" "no python with numpy and gguf (LORA_PYTHON)"; return; }
    ok "$1" "$PYTHON" "$ROOT/tests/golden/check_exports.py" "$TINYTALK/base" "$TINYTALK/adapters/$4" "$3" "$2" "${5:-0}"
}

for format in kohya mlx gguf; do
    ok "math-lora as $format" lora export math-lora --format $format --output "$TMP/math-$format"
    rm -rf "$TMP/again"
    LORA_STORE=$TMP/again lora import "$TINYTALK/base" --name tinytalk >/dev/null
    is "$(LORA_STORE=$TMP/again lora import "$TMP/math-$format" --base tinytalk --json | jsonq .adapters[0].id)" "$MATH" \
        "…read back it has the same content id"
    check "…and other readers find the same numbers" $format "$TMP/math-$format" math-lora
done
ok "DoRA on every module as MLX" lora export sort-lora --format mlx --output "$TMP/sort-mlx"
check "…other readers" mlx "$TMP/sort-mlx" sort-lora
ok "ranks and alphas by module as kohya" lora export count-lora --format kohya --output "$TMP/count-kohya"
check "…other readers" kohya "$TMP/count-kohya" count-lora

for format in mlx gguf; do
    exits 4 "patterns as $format" lora export count-lora --format $format --output "$TMP/no"
    like "$ERR" '\-\-bake-scale' "…with the way out"
    ok "…which works" lora export count-lora --format $format --bake-scale --output "$TMP/count-$format"
    check "…with the numbers" $format "$TMP/count-$format" count-lora 1e-7
done
for format in kohya gguf; do
    exits 4 "DoRA as $format" lora export sort-lora --format $format --output "$TMP/no"
    like "$ERR" 'down_proj: DoRA has no form' "…by the module's name"
done
for format in kohya mlx gguf; do
    exits 4 "modules_to_save as $format" lora export last-lora --format $format --output "$TMP/no"
    like "$ERR" 'lm_head: a full weight has no form' "…by the module's name"
done
not_ok "nothing of a refused export is left" test -e "$TMP/no"
is "$(ls "$TMP" | grep -c 'no\..*tmp')" 0 "…no work folder either"

# rsLoRA at rank 8: alpha / sqrt(8) is no float32 alpha / 8
cp -r "$TINYTALK/adapters/upper-lora" "$TMP/odd"
python3 -c "
import json; p = '$TMP/odd/adapter_config.json'; c = json.load(open(p)); c['use_rslora'] = True; json.dump(c, open(p, 'w'))"
ok "an irrational scale" lora import "$TMP/odd" --name odd
exits 4 "…as kohya" lora export odd --format kohya --output "$TMP/odd-kohya"
like "$ERR" 'no float32 alpha' "…says why"
ok "…baked" lora export odd --format kohya --bake-scale --output "$TMP/odd-kohya"
like "$OUT" '12 modules into B; 12 became float32, off by [0-9.]*e-08' "…says what it cost"
ok "…as PEFT for readers of r and alpha alone" lora export odd --bake-scale --output "$TMP/odd-peft"
is "$(python3 -c "
import json; c = json.load(open('$TMP/odd-peft/adapter_config.json'))
print(c['use_rslora'], c['lora_alpha'] == c['r'], c['rank_pattern'], c['alpha_pattern'])")" "False True {} {}" "…one rank, one alpha"
ok "ranks by module too" lora export count-lora --bake-scale --output "$TMP/count-peft"
is "$(python3 -c "
import json; c = json.load(open('$TMP/count-peft/adapter_config.json'))
print(c['r'], c['lora_alpha'], c['rank_pattern'], c['alpha_pattern'])")" "16 16 {} {}" "…brought to one"
ok "…and it is the same function" lora diff count-lora "$TMP/count-peft"

ok "a foreign adapter as PEFT" lora import "$TMP/math-mlx" --name from-mlx
is "$(id_of from-mlx)" "$MATH" "…the same content"
done_testing
