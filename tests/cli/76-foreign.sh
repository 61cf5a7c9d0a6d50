#!/usr/bin/env bash
# kohya, diffusers, MLX, GGUF and .bin: imported, kept byte for byte, and used like any other adapter.
. tests/lib/tap.sh
G=$ROOT/tests/golden/foreign

ok "the base" lora import "$TINYTALK/base" --name tinytalk
ok "the PEFT form" lora import "$G/plain/peft" --name plain-peft --json
ID=$(json "$OUT" .adapters[0].id)

for form in kohya.safetensors diffusers.safetensors mlx bin bin-old bin-views llama.gguf; do
    export LORA_STORE=$TMP/store-$form
    lora import "$TINYTALK/base" --name tinytalk >/dev/null
    ok "import $form" lora import "$G/plain/$form" --base tinytalk --name it --json
    is "$(json "$OUT" .adapters[0].id)" "$ID" "…it has the content id of the PEFT form"
    ok "…it is read from the store" lora inspect it --deep --json
    is "$(json "$OUT" .modules[0].scale)" 2.0 "…with its scale"
    is "$(json "$OUT" .capability.serve.ok)" true "…and may be served"
    file=$(ls -d "$G/plain/$form")
    [ -d "$file" ] && file=$(ls "$file"/*.bin "$file"/*.safetensors 2>/dev/null)
    sum=$(sha256sum "$file" | cut -d' ' -f1)
    ok "…its file is in the store byte for byte" cmp "$file" "$LORA_STORE/blobs/sha256/${sum:0:2}/$sum"
    ok "…fsck finds nothing" lora fsck
    ok "…it merges into the base" lora merge it --base tinytalk --output "$TMP/merged-$form"
    rm -rf "$LORA_STORE"
done
for form in diffusers.safetensors mlx bin llama.gguf; do
    ok "the merge of $form is that of kohya" cmp "$TMP/merged-$form/model.safetensors" "$TMP/merged-kohya.safetensors/model.safetensors"
done
not_ok "…and not the base" cmp "$TMP/merged-mlx/model.safetensors" "$TINYTALK/base/model.safetensors"

export LORA_STORE=$TMP/store
ok "the same content in another form" lora import "$G/plain/mlx" --name as-mlx
exits 4 "GGUF of llama without its base" lora import "$G/plain/llama.gguf"
like "$ERR" '--base REF' "…says what it needs"
exits 4 "a part of an image model" lora import "$G/refuse/unet.safetensors"
like "$ERR" 'no module of a causal language model' "…by name"

rm -f /tmp/lora-hostile-was-here
for name in system-0 system-2 system-4 eval exec-bare popen nested-loads bad-crc truncated expanded; do
    exits 5 "hostile: $name" lora import "$G/hostile/$name.bin" --name bad
done
like "$(lora import "$G/hostile/system-2.bin" 2>&1)" 'posix\.system' "…the name it would have called is said"
not_ok "…and nothing was run" test -e /tmp/lora-hostile-was-here

# ---- begun with PiSSA or OLoRA ---------------------------------------------------------------------
I=$ROOT/tests/golden/initial
export TMPDIR=$TMP/scratch
mkdir "$TMPDIR"
for init in pissa olora pissa-rslora pissa-bf16; do
    exits 4 "$init, unconverted" lora import "$I/$init/raw" --name "$init"
    ok "$init, with the base it began from" lora import "$I/$init/raw" --name "$init" --initial-base tinytalk --json
    like "$ERR" 'converted to plain LoRA of twice the rank, 2 modules.*at most' "…the bound is said"
    is "$(lora inspect "$init" --json | jsonq .rank)" '[6,6]' "…twice the rank"
    is "$(lora inspect "$init" --json | jsonq .base.name)" tinytalk "…recorded for that base"
done
like "$(lora diff pissa "$I/pissa/converted" --json | jsonq .cosine)" '^(1\.0|0\.99999)' "…it is what PEFT converts it to"
exits 4 "what is no such adapter" lora import "$TINYTALK/adapters/upper-lora" --name no --initial-base tinytalk
like "$ERR" 'pissa and olora can' "…says so"
is "$(ls "$TMPDIR")" "" "no folder is left"
done_testing
