#!/usr/bin/env bash
# tiers: check
# `make demo` without its build: it ends well with the golden answers, and badly with any other.
. tests/lib/tap.sh

mkdir -p "$TMP/x/examples"
cp -r "$TINYTALK" "$TMP/x/examples/tinytalk"
# All nine meet in one step, unless a busy machine lets them come one after another: then again.
for ((i = 0; i < 10; i++)); do
    run "$TMP/x/examples/tinytalk/demo.sh"
    grep -q 'engine held 9' <<<"$OUT" && break
done
is "$STATUS" 0 "the demo ends well"
is "$(grep -c '= transformers and PEFT' <<<"$OUT")" 11 "eleven golden answers"
like "$OUT" "widest step of the engine held 9 of the nine" "from one batch"
like "$OUT" "upper-lora +HOT SHEET GUSH" "upper answers in capitals"
sed 's/HOT SHEET GUSH/HOT SHEET GUST/' "$TINYTALK/expected.json" >"$TMP/x/examples/tinytalk/expected.json"
run "$TMP/x/examples/tinytalk/demo.sh"
is "$STATUS" 1 "an answer that is not the golden one fails it"
like "$OUT" "WRONG" "and is pointed out"
done_testing
