#!/usr/bin/env bash
# tiers: check
# From the start to the first token: times that are said, and digests that are compared while weights are read.
. tests/lib/tap.sh

BASE=$TINYTALK/base
echo '[[1,2,3,4,5]]' >"$TMP/ids.json"
run lora run "$BASE" --input-ids "$TMP/ids.json" --max-tokens 2 --json
is "$STATUS" 0 "a start from a folder"
for part in base device memory weights engine first_token; do
    like "$(json "$OUT" .seconds.$part)" '^[0-9]+[.][0-9]|^[0-9.]+e-' "seconds of $part"
done
like "$(json "$OUT" .seconds.weights_gb)" '^0[.]0' "gigabytes of weights"
answer=$(json "$OUT" .ids)

run lora import "$BASE" --copy --name held
is "$STATUS" 0 "a copy of the base, with digests"
run lora serve held --check --json
like "$(json "$OUT" .recorded_digests)" '^[1-9][0-9]*$' "--check counts recorded digests"
run lora serve held --check
like "$OUT" "digests of [0-9]+ tensors were recorded" "and says so"
like "$OUT" "opened in [0-9.]+ s" "with the time of the start"
run lora run held --input-ids "$TMP/ids.json" --max-tokens 2 --json
is "$(json "$OUT" .ids)" "$answer" "the copy answers as the folder does"

serve_start held
like "$(cat "$SERVER_LOG")" "weights gb=[0-9.]+ seconds=[0-9.]+ gb_per_s=[0-9.]+ threads=[0-9]+ digests=([1-9][0-9]*)/\1" \
    "serve says that every digest was compared"
like "$(cat "$SERVER_LOG")" "times read=.* device=.* weights=.* engine=" "and where the time went"
serve_stop

# One bit of the largest blob: its size and the fingerprint's samples stay.
blob=$(find "$LORA_STORE/blobs" -type f -size +1M | head -1)
size=$(stat -c %s "$blob")
chmod u+w "$blob"
at=$((size - 5000))
byte=$(dd if="$blob" bs=1 skip=$at count=1 2>/dev/null | od -An -tu1)
printf "\\$(printf '%03o' $((byte ^ 1)))" | dd of="$blob" bs=1 seek=$at conv=notrunc 2>/dev/null
exits 5 "a weight with a turned bit" lora run held --input-ids "$TMP/ids.json" --max-tokens 2
like "$ERR" "model[.].*weight: .*digest" "is named"
done_testing
