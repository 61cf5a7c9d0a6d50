#!/bin/sh
# The demo: a base model and eight adapters into a fresh store, one server over all of them, the same words to all nine at
# once. Ends well only if every answer is the one that transformers and PEFT give (expected.json, made by make_expected.py).
#   make demo     or     examples/tinytalk/demo.sh, after make
# Needs nothing but the program and the small client of the tests; no Python, no network.
set -eu
HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
BUILD=${LORA_BUILD:-$ROOT/build/release}
WORK=$ROOT/build/demo
LORA="$BUILD/lora --store $WORK/store"
CLIENT=$BUILD/tests/lib/http_load
SERVER=
unset LORA_STORE LORA_PORT LORA_HOST LORA_API_KEY LORA_MODEL || true

stop() { [ -z "$SERVER" ] || { kill "$SERVER" 2>/dev/null && wait "$SERVER" || true; SERVER=; }; }
trap stop EXIT
trap 'exit 130' INT TERM
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] || say() { printf '\n%s\n' "$*"; }

[ ! -d "$WORK" ] || chmod -R u+w "$WORK"
rm -rf "$WORK"
mkdir -p "$WORK"

say "1. A base model of 5 million parameters and eight adapters into a store"
echo "   \$ lora import examples/tinytalk/base --name tinytalk"
$LORA import "$HERE/base" --name tinytalk -q >/dev/null
echo "   \$ lora import --recursive examples/tinytalk/adapters"
$LORA import --recursive "$HERE/adapters" -q >/dev/null
echo "   \$ lora list"
$LORA list

say "2. One server over all of them"
echo "   \$ lora serve --model tinytalk"
: >"$WORK/server.log"
$LORA serve --model tinytalk --port 0 --trace "$WORK/trace.jsonl" >"$WORK/server.log" 2>&1 &
SERVER=$!
tries=0
until grep -q ' ready ' "$WORK/server.log"; do
    tries=$((tries + 1))
    if [ $tries -gt 3000 ] || ! kill -0 "$SERVER" 2>/dev/null; then
        cat "$WORK/server.log"
        echo "the server did not start"
        exit 1
    fi
    sleep 0.1
done
PORT=$(sed -n 's/.* listening .*port=\([0-9]*\).*/\1/p' "$WORK/server.log" | head -1)
grep ' ready ' "$WORK/server.log" | sed 's/^/   /'

say "3. The same words to the base and all eight adapters, in one batch"
ALL=tinytalk,upper-lora,title-lora,reverse-lora,sort-lora,count-lora,first-lora,last-lora,math-lora
ask() { "$CLIENT" ask --port "$PORT" --expected "$HERE/expected.json" "$@"; }
status=0
ask --models $ALL --prompt "hot sheet gush" >/dev/null || status=1 # the adapters come up from the disk
ask --models $ALL --prompt "hot sheet gush" || status=1
ask --models tinytalk,math-lora --prompt "12 30" || status=1
stop
groups=$(sed 's/.*"adapters":{//; s/}.*//' "$WORK/trace.jsonl" | awk -F'":' '{ if (NF - 1 > n) n = NF - 1 } END { print n + 0 }')
echo "   The widest step of the engine held $groups of the nine at once (build/demo/trace.jsonl)."
if [ $status -eq 0 ]; then
    say "All answers are those of transformers and PEFT. Try it yourself:"
    echo "   build/lora --store build/demo/store serve --model tinytalk"
    echo "   build/lora --store build/demo/store run tinytalk --adapter upper-lora \"some words\""
else
    say "Some answers are WRONG: see build/demo/server.log"
fi
exit $status
