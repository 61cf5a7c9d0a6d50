#!/usr/bin/env bash
# extract: an adapter out of a base and a merged checkpoint.
. tests/lib/tap.sh

B=$TINYTALK/base
A=$TINYTALK/adapters
lora import "$B" --name tinytalk >/dev/null
lora import --recursive "$A" >/dev/null
lora merge upper-lora --output "$TMP/upper" >/dev/null
lora merge last-lora --output "$TMP/last" >/dev/null

ok "extract" lora extract --base tinytalk --tuned "$TMP/upper" --rank 8 --name upper-x --json
is "$(json "$OUT" -n .modules)" 12 "…the modules that differ"
is "$(json "$OUT" .rank)" 8 "…at that rank"
is "$(json "$OUT" -n .modules_to_save)" 0 "…nothing is kept whole"
like "$(json "$OUT" .unchanged)" '^[0-9]+$' "…and how many do not differ"
like "$(json "$OUT" .loss)" '^0\.0[0-9]+$' "…the loss is what bf16 spread over other directions"
J=$(lora inspect upper-x --json)
is "$(json "$J" .base.name)" tinytalk "…its base is recorded"
is "$(json "$J" .lineage.command)" extract "…its lineage"
is "$(lora run tinytalk --adapter upper-x "hot sheet gush")" "HOT SHEET GUSH" "…it answers as the adapter that was merged"
ok "…cosines" lora diff upper-lora upper-x --json
like "$(json "$OUT" .cosine)" '^(1\.0|0\.99)' "…its delta is that one"

ok "a model that has a weight of its own" lora extract --base tinytalk --tuned "$TMP/last" --energy 0.99 --output "$TMP/last-x"
like "$OUT" 'whole, in modules_to_save: lm_head|lm_head' "…lm_head differs"
like "$OUT" 'exact|iteration' "…each module says how it was found"
ok "…and is imported" lora import "$TMP/last-x" --base tinytalk --name last-x
WANT=$(lora run tinytalk --adapter last-lora "hot sheet gush")
is "$WANT" "gush" "…the adapter's answer"
is "$(lora run tinytalk --adapter last-x "hot sheet gush")" "$WANT" "…is what the extracted one gives"

ok "threads" lora extract --base "$B" --tuned "$TMP/upper" --rank 8 --name again --threads 1 -q
is "$OUT" "$(lora inspect upper-x --json | jsonq .id)" "…change no byte, nor does a base by path"

exits 4 "nothing differs" lora extract --base tinytalk --tuned "$B" --rank 4 --name x
like "$ERR" 'nothing to extract' "…is said"
exits 2 "no rank" lora extract --base tinytalk --tuned "$TMP/upper" --name x
exits 2 "no base" lora extract --tuned "$TMP/upper" --rank 4 --name x
exits 2 "no place" lora extract --base tinytalk --tuned "$TMP/upper" --rank 4
exits 1 "no such model" lora extract --base tinytalk --tuned "$TMP/none" --rank 4 --name x
exits 4 "a folder that is there" lora extract --base tinytalk --tuned "$TMP/upper" --rank 4 -o "$TMP/upper"
if [ -n "$FIXTURES" ]; then
    exits 4 "another architecture" lora extract --base "$FIXTURES/archs/qwen2" --tuned "$FIXTURES/archs/mistral" --rank 4 --name x
else
    skip "another architecture" "no fixtures"
fi
done_testing
