#!/usr/bin/env bash
# tiers: check
# Prompts of 2,000 and 3,000 tokens: logits and ids of transformers and PEFT (tests/golden/long/make_long.py), in one
# step, in chunks and over a server. llama3 frequencies, longrope's long regime, a sliding window that they overrun.
. tests/lib/tap.sh

LONG=$ROOT/tests/golden/long
for base in llama mistral phi3; do
    ok "$base: as the reference" golden_run "$LONG/$base" "$TMP"
    note "$OUT"
done

# The engine in chunks of 256: the ids of one step of 4,096.
printf '[%s,%s]' "$(jsonq '.dora[0].prompt' <"$LONG/phi3/reference.json")" \
    "$(jsonq '.dora[1].prompt' <"$LONG/phi3/reference.json")" >"$TMP/ids.json"
for base in llama mistral phi3; do
    args=("$LONG/$base" -a "$LONG/$base/adapters/dora" --input-ids "$TMP/ids.json" --max-tokens 4 --json)
    run lora run "${args[@]}" --max-num-batched-tokens 4096
    whole=$(json "$OUT" .ids)
    run lora run "${args[@]}" --max-num-batched-tokens 256 --trace "$TMP/trace"
    is "$(json "$OUT" .ids)" "$whole" "$base: chunks of 256 tokens give the same"
    ok "$base: and they were chunks" test "$(grep -c . "$TMP/trace")" -gt 19
done

want=$(jsonq '.dora[1].greedy' <"$LONG/phi3/reference.json")
if serve_start --model "$LONG/phi3" --skip-tokenizer-init --lora-paths "dora=$LONG/phi3/adapters/dora" \
    --max-num-batched-tokens 512; then
    http POST /generate "{\"input_ids\":$(jsonq '.dora[1].prompt' <"$LONG/phi3/reference.json"),\"lora_path\":\"dora\",
        \"sampling_params\":{\"max_new_tokens\":4,\"temperature\":0,\"ignore_eos\":true}}"
    is "$STATUS $(json "$OUT" .output_ids)" "200 $want" "3,000 tokens over HTTP: the ids of PEFT"
    is "$(json "$OUT" .meta_info.prompt_tokens)" 3000 "and they were counted"
    serve_stop
fi
done_testing
