#!/usr/bin/env bash
# tiers: check
# `lora bench` on the CPU with a small shape: every word measures, adds up and says its floor. No time is judged.
. tests/lib/tap.sh

bench() { run lora bench "$@" --shape small --device cpu --adapters 8 --rounds 1 --steps 1 --json; }
positive='^[0-9.]*[1-9][0-9.]*(e[-+][0-9]+)?$'

bench table --sequences 8 --context 32 --prompt 16 --new 4 --requests 1
is "$STATUS" 0 "table"
is "$(json "$OUT" .table[0].case) $(json "$OUT" .table[1].case) $(json "$OUT" .table[6].case)" "none unused switching" \
    "with the classic cases"
is "$(json "$OUT" .table[7].reason) $(json "$OUT" .table[7].tokens_per_s)" "not built null" "premerging has no number"
like "$(json "$OUT" .table[6].tokens_per_s)" "$positive" "switching has one"
like "$(json "$OUT" .read_gb_per_s)" "$positive" "and the read bandwidth of the run"
run lora bench table --shape small --device cpu --adapters 8 --rounds 1 --steps 1 --sequences 4 --prompt 8 --new 2
like "$OUT" "without LoRA +[0-9.]+ +100[.]0 %" "as a table"
like "$OUT" "not built" "that says what is not there"

bench decode --sequences 8 --context 32 --mix identical,uniform:4,distinct,zipf --ranks 8,16,64
is "$STATUS $(json "$OUT" .steps[0].mix) $(json "$OUT" .steps[2].adapters) $(json "$OUT" .steps[3].adapters)" \
    "0 none 4 8" "decode with mixes"
is "$(json "$OUT" .ranks[2])" 64 "of mixed ranks"
like "$(json "$OUT" .steps[3].adapters_floor_ms)" "$positive" "with the adapters' floor"
# Ranks 8 + 16 + 64 + 8 of four adapters against 8 + 16 + 64 + 8 + 16 + 64 + 8 + 16 of eight, all by the same shape.
four=$(json "$OUT" .steps[2].adapters_floor_ms) eight=$(json "$OUT" .steps[3].adapters_floor_ms)
like "$(awk "BEGIN { printf \"%.3f\", $eight / $four }")" '^2[.]083$' "which counts each adapter's own rank"

bench prefill --sequences 64 --context 32
is "$STATUS $(json "$OUT" .steps[0].n) $(json "$OUT" .steps[1].mix)" "0 64 identical" "prefill"
bench layer --sequences 1,8 --mix identical,distinct
is "$STATUS $(json "$OUT" .layers[0].n) $(json "$OUT" .layers[5].adapters)" "0 1 8" "layer"
for field in layer_us base_us alone_us floor_us base_floor_us; do
    like "$(json "$OUT" .layers[5].$field)" "$positive" "layer: $field"
done
bench sgmv --sequences 1,8,16
is "$STATUS $(json "$OUT" .sgmv[0].n) $(json "$OUT" .sgmv[1].mix) $(json "$OUT" .sgmv[2].adapters) $(json "$OUT" .sgmv[3].n)" \
    "0 1 identical 8 16" "sgmv: the cases of a size, or the usual ones"
for field in layer_us base_us alone_us floor_us ab_floor_us; do
    like "$(json "$OUT" .sgmv[2].$field)" "$positive" "sgmv: $field"
done
bench load
like "$STATUS $(json "$OUT" .mb)" '^0 2[.]' "load"
bench switch --prompt 16 --new 4 --requests 2
is "$STATUS" 0 "switch"
for field in none resident loaded resident_ratio loaded_ratio; do
    like "$(json "$OUT" .switch.$field)" "$positive" "switch: $field"
done
bench offline --sequences 8 --prompt 16 --new 4 --counts 1,4,8
is "$STATUS $(json "$OUT" .offline[0].adapters) $(json "$OUT" .offline[3].adapters)" "0 0 8" "offline"
for field in tokens_per_s seconds prefill_seconds predicted_tokens_per_s; do
    like "$(json "$OUT" .offline[3].$field)" "$positive" "offline: $field"
done

exits 2 "a word that is none" lora bench nothing
exits 2 "a mix that is none" lora bench decode --mix some
like "$ERR" "uniform:N" "says which there are"
exits 2 "a shape that is none" lora bench load --shape none
exits 2 "sizes that are none" lora bench decode --sequences 1,x
exits 2 "a rank that is too large" lora bench decode --ranks 8,2000
done_testing
