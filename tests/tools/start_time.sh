#!/usr/bin/env bash
# The start of a model of the size of Llama-3.1-8B: seconds until the first token, in its parts, from a warm page
# cache. start_time.sh FOLDER [DEVICE [LAYERS HIDDEN FFN VOCAB]]; FOLDER gets (and keeps) a checkpoint of 16 GB.
# LORA_BIN: where lora and make_checkpoint lie.
set -eu
folder=$1 device=${2:-auto}
bin=${LORA_BIN:-build/release}
since() { awk "BEGIN { printf \"%.2f\", $(date +%s.%N) - $1 }"; }
maker=$bin/tests/tools/make_checkpoint
[ -x "$maker" ] || maker=$bin/make_checkpoint
if [ ! -e "$folder/base/config.json" ]; then
    begin=$(date +%s.%N)
    "$maker" "$folder" "${3:-32}" "${4:-4096}" "${5:-14336}" 16 4 "${6:-128256}" 1
    echo "wrote $(du -sh "$folder/base" | cut -f1) in $(since "$begin") s"
fi
cat "$folder"/base/*.safetensors >/dev/null # into the page cache
echo '[[1,2,3,4,5,6,7,8]]' >"$folder/ids.json"
for i in 1 2 3; do
    begin=$(date +%s.%N)
    "$bin/lora" run "$folder/base" --device "$device" --input-ids "$folder/ids.json" --max-tokens 1 --json
    echo "process from start to end: $(since "$begin") s"
done
