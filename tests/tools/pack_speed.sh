#!/usr/bin/env bash
# pack_speed: `lora pack` and `lora import` against the tool that does the least of it, on the same data and the same disk,
# in interleaved pairs.
#   make build/release/tests/tools/make_checkpoint && build/release/tests/tools/make_checkpoint FOLDER 8 2048 8192 256 2
#   [QUIET_S=60] [RUN_WITH='chrt -r 1'] tests/tools/pack_speed.sh FOLDER [PAIRS]
# Yardsticks: `cp --reflink=never` + sync for a tar, `zstd -3` for a tar.zst, `openssl dgst -sha256` of the same weights for
# each import. QUIET_S: seconds to wait at most for idle processors before each run; RUN_WITH: before both commands of a
# pair, as chrt for a machine on which others are at work. Prints for each row the medians of both in seconds of wall and
# CPU (user and system), the medians of the pairs' ratios yardstick/lora, and lora's peak resident memory. What is read is in
# the page cache; a scratch file of the data's size is written and removed before each run, so that both find memory that
# the machine has touched already.
set -eu
FOLDER=$1 PAIRS=${2:-5}
LORA=${LORA:-build/lora}
WORK=$FOLDER/pack-speed
export LORA_STORE=$WORK/store
WEIGHTS=$FOLDER/adapter/adapter_model.safetensors
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
fresh() {
    chmod -R u+w "$WORK/out" 2>/dev/null || true
    rm -rf "$WORK/out"*
    cat "$@" >"$WORK/scratch"
    sync -f "$WORK"
    rm "$WORK/scratch"
    cat "$@" >/dev/null
}
# Waits, QUIET_S seconds at most (0), until the processors were four fifths idle for half a second: others are at work.
busy() { awk '/^cpu / { print $2 + $3 + $4 + $7 + $8 + $9, $5 + $6 }' /proc/stat; }
quiet() {
    local end=$((SECONDS + ${QUIET_S:-0})) b1 i1 b2 i2
    while [ $SECONDS -lt $end ]; do
        read -r b1 i1 < <(busy)
        sleep 0.5
        read -r b2 i2 < <(busy)
        [ $(((i2 - i1) * 5)) -lt $(((b2 - b1 + i2 - i1) * 4)) ] || return 0
    done
}
timed() { /usr/bin/time -a -o "$1" -f '%e %U %S %M' ${RUN_WITH:-} "${@:2}" >/dev/null; }

# row NAME YARDSTICK COMMAND FILES…: both are bash texts; FILES are read before each.
row() {
    local name=$1 yard=$2 ours=$3
    shift 3
    : >"$WORK/yard.txt"
    : >"$WORK/ours.txt"
    for ((i = 0; i < PAIRS; i++)); do
        fresh "$@"
        quiet
        timed "$WORK/yard.txt" bash -c "$yard"
        fresh "$@"
        quiet
        timed "$WORK/ours.txt" bash -c "exec $ours"
    done
    paste -d' ' "$WORK/yard.txt" "$WORK/ours.txt" >"$WORK/pairs.txt"
    printf '%-22s %7.2f %7.2f %8.2f %8.2f %6.0f%% %7.0f%% %7.1f  %s\n' "$name" \
        "$(awk '{ print $1 }' "$WORK/pairs.txt" | median)" "$(awk '{ print $5 }' "$WORK/pairs.txt" | median)" \
        "$(awk '{ print $2 + $3 }' "$WORK/pairs.txt" | median)" "$(awk '{ print $6 + $7 }' "$WORK/pairs.txt" | median)" \
        "$(awk '{ print 100 * $1 / $5 }' "$WORK/pairs.txt" | median)" \
        "$(awk '{ print 100 * ($2 + $3) / ($6 + $7) }' "$WORK/pairs.txt" | median)" \
        "$(awk '{ print $8 / 1024 }' "$WORK/pairs.txt" | median)" "$(cut -d' ' -f1 /proc/loadavg)"
}

mkdir -p "$WORK"
rm -rf "$LORA_STORE" "$WORK/in"
mkdir "$WORK/in"
"$LORA" import "$FOLDER/adapter" --name big -q >/dev/null
for form in tar tar.zst; do "$LORA" pack big --output "$WORK/in/big.$form" -q >/dev/null; done
"$LORA" pack big --format oci --output "$WORK/in/layout" -q >/dev/null
export OUT=$WORK/out W=$WEIGHTS L=$LORA IN=$WORK/in FOLDER
HASH='openssl dgst -sha256 $W'
printf '%-22s %7s %7s %8s %8s %7s %8s %7s  %s\n' "$PAIRS pairs" yard,s lora,s cpu,s cpu,s ratio by\ cpu rss,MB load
row "pack tar" 'cp --reflink=never $W $OUT && sync -f $OUT' '$L pack big --output $OUT.tar -q' "$WEIGHTS"
row "pack tar.zst" 'zstd -q -3 $W -o $OUT' '$L pack big --output $OUT.tar.zst -q' "$WEIGHTS"
row "import adapter" "$HASH" '$L import $FOLDER/adapter --store $OUT -q' "$WEIGHTS"
row "import tar" "$HASH" '$L import $IN/big.tar --store $OUT -q' "$WEIGHTS" "$WORK/in/big.tar"
row "import tar.zst" "$HASH" '$L import $IN/big.tar.zst --store $OUT -q' "$WEIGHTS" "$WORK/in/big.tar.zst"
row "import OCI layout" "$HASH" '$L import $IN/layout --store $OUT -q' "$WEIGHTS" "$WORK"/in/layout/blobs/sha256/*
row "import base --copy" 'openssl dgst -sha256 $FOLDER/base/*.safetensors' '$L import $FOLDER/base --copy --store $OUT -q' \
    "$FOLDER"/base/*.safetensors
row "import base --deep" 'openssl dgst -sha256 $FOLDER/base/*.safetensors' '$L import $FOLDER/base --deep --store $OUT -q' \
    "$FOLDER"/base/*.safetensors
chmod -R u+w "$WORK"
rm -rf "$WORK"
