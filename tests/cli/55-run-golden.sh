#!/usr/bin/env bash
# tiers: check
# `lora run`: answers of tinytalk, and logits and ids of every fixture against transformers and PEFT.
. tests/lib/tap.sh

BASE=$TINYTALK/base
run lora run "$BASE" "upper: tilled wired bulls"
is "$OUT" "TILLED WIRED BULLS" "the base does a task when told"
run lora run "$BASE" --adapter "$TINYTALK/adapters/reverse-lora" "hot sheet gush"
is "$OUT" "gush sheet hot" "an adapter does it without being told"
run lora run "$BASE" -a "$TINYTALK/adapters/upper-lora=1" "hot sheet gush" --json
is "$(json "$OUT" .text) $(json "$OUT" .finish_reason) $(json "$OUT" .schema)" "HOT SHEET GUSH stop 1" "REF=scale, --json"
run lora run "$BASE" "hot sheet gush" --max-tokens 2
is "$OUT" "hot" "--max-tokens"
run lora run "$BASE" "hot sheet gush" --stop " gu"
is "$OUT" "hot sheet" "--stop"
run lora run "$BASE" --raw "hot sheet" --max-tokens 1
isnt "$OUT" "hot" "--raw sends no template"
run lora run "$BASE" --temperature 1.5 --seed 7 "sparse odds defies penis unfair"
first=$OUT
run lora run "$BASE" --temperature 1.5 --seed 7 "sparse odds defies penis unfair"
is "$OUT" "$first" "the same seed, the same answer"

exits 4 "a scale on DoRA is refused" lora run "$BASE" -a "$TINYTALK/adapters/sort-lora=0.5" "a b"
like "$ERR" "scale" "and says why"
exits 1 "an adapter that is not there" lora run "$BASE" -a nothing "a b"
exits 1 "a model that is not there" lora run ./nothing "a b"
exits 2 "no prompt" lora run "$BASE"
exits 2 "--logits alone" lora run "$BASE" "a" --logits "$TMP/x.npy"
echo '[[1,2],[3,4000]]' >"$TMP/ids.json"
exits 2 "an id outside the vocabulary" lora run "$BASE" --input-ids "$TMP/ids.json" --json
echo '[[1,2],[3]]' >"$TMP/ids.json"
ok "--logits writes" lora run "$BASE" --input-ids "$TMP/ids.json" --logits "$TMP/x.npy"
exits 4 "and overwrites nothing" lora run "$BASE" --input-ids "$TMP/ids.json" --logits "$TMP/x.npy"
is "$(wc -c <"$TMP/x.npy")" $((128 + 2 * 2048 * 4)) "float32 [2, vocab]"

if [ -z "$FIXTURES" ]; then
    skip "every kind and architecture" "no fixtures"
else
    for folder in "$FIXTURES"/kinds/* "$FIXTURES"/archs/*; do
        [ -d "$folder" ] || continue
        ok "$(basename "$(dirname "$folder")")/$(basename "$folder")" golden_run "$folder" "$TMP"
        note "$OUT"
    done
fi
done_testing
