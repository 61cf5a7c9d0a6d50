#!/usr/bin/env bash
# merge_speed: `lora merge` against `cp --reflink=never` + sync on the same disk, in interleaved pairs.
#   make build/release/tests/tools/make_checkpoint && build/release/tests/tools/make_checkpoint FOLDER
#   tests/tools/merge_speed.sh FOLDER [PAIRS]
# VERIFY=1: the base is copied into a store with its digests, so that the merge hashes it as it reads.
# Prints seconds, the merge's peak RSS and the ratio cp/merge of each pair, and the medians. The base is read once before
# each run, so both find it in the page cache as far as memory allows.
set -eu
FOLDER=$1 PAIRS=${2:-5}
LORA=${LORA:-build/lora}
export LORA_STORE=$FOLDER/no-store TIMEFORMAT=%R
BASE=$FOLDER/base
if [ "${VERIFY:-0}" != 0 ]; then
    LORA_STORE=$FOLDER/store
    "$LORA" import "$FOLDER/base" --copy --name base --force >/dev/null
    BASE=base
fi
median() { sort -n | awk '{ v[NR] = $1 } END { print (NR % 2) ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2 }'; }
fresh() { rm -rf "$FOLDER/out" "$FOLDER/out.partial" "$FOLDER/copy"; sync; cat "$FOLDER"/base/*.safetensors $(find "$LORA_STORE/blobs" -type f 2>/dev/null) >/dev/null; }
: >"$FOLDER/cp.txt"; : >"$FOLDER/merge.txt"; : >"$FOLDER/ratio.txt"
for ((i = 0; i < PAIRS; i++)); do
    fresh
    c=$({ time { cp -r --reflink=never "$FOLDER/base" "$FOLDER/copy" && sync -f "$FOLDER/copy"; }; } 2>&1)
    fresh
    /usr/bin/time -o "$FOLDER/time.txt" -f '%e %M %U %S' "$LORA" merge "$FOLDER/adapter" --base "$BASE" \
        --output "$FOLDER/out" ${MERGE_FLAGS:-} >/dev/null
    read -r m rss user system <"$FOLDER/time.txt"
    echo "$c" >>"$FOLDER/cp.txt"; echo "$m" >>"$FOLDER/merge.txt"
    awk -v c="$c" -v m="$m" 'BEGIN { print c / m }' >>"$FOLDER/ratio.txt"
    echo "cp $c s  merge $m s (user $user, system $system)  rss $rss KB  cp/merge $(tail -1 "$FOLDER/ratio.txt")  load $(cut -d' ' -f1 /proc/loadavg)"
done
echo "median: cp $(median <"$FOLDER/cp.txt") s, merge $(median <"$FOLDER/merge.txt") s, cp/merge $(median <"$FOLDER/ratio.txt")"
rm -rf "$FOLDER/out" "$FOLDER/copy"
