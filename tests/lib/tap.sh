# tap.sh: the frame of every shell test. Sourced from the checkout's root: `. tests/lib/tap.sh`.
#
#   run COMMAND…              runs it; leaves STATUS, OUT (stdout) and ERR (stderr)
#   ok "name" COMMAND…        passes when the command succeeds
#   not_ok "name" COMMAND…    passes when it fails
#   is GOT WANT "name"        equal texts          isnt GOT OTHER "name"
#   like TEXT REGEX "name"    grep -E finds it     unlike TEXT REGEX "name"
#   exits STATUS "name" COMMAND…   runs it and compares the exit status (OUT and ERR are left)
#   json "$OUT" .path         a value out of a JSON text (tests/lib/jsonq.c)
#   skip "name" "why"         counts as skipped      skip_all "why"   the whole file; exits
#   done_testing              prints the plan; the last line of every test
#
#   serve_start ARGS…         starts `lora serve ARGS` on a free port, waits for /health; sets URL, SERVER_PID,
#                             SERVER_LOG; fails the test and returns 1 when it does not come up
#   serve_stop                SIGTERM, waits; sets STATUS to its exit status
#   eventually COMMAND…       tries the command until it succeeds, for WAIT_S (120) seconds; a busy machine is slow
#   http METHOD PATH [BODY] [curl options…]   sets STATUS (the HTTP status), OUT (body) and HEADERS
#
# A test runs with its own HOME, XDG folders, HF_HOME and LORA_STORE under TMP, which is removed at its end.
# ROOT: the checkout. LORA_BUILD: the variant's folder (build/release); its programs come first on PATH.
# FIXTURES: ../shared/fixtures or LORA_FIXTURES; empty when it is not there. TINYTALK: examples/tinytalk.
set -u
export LC_ALL=C.UTF-8
ROOT=${LORA_ROOT:-$PWD}
LORA_BUILD=${LORA_BUILD:-$ROOT/build/release}
case $LORA_BUILD in /*) ;; *) LORA_BUILD=$ROOT/$LORA_BUILD ;; esac
PATH=$LORA_BUILD:$LORA_BUILD/tests/lib:$PATH
FIXTURES=${LORA_FIXTURES:-$ROOT/../shared/fixtures}
[ -d "$FIXTURES" ] || FIXTURES=
TINYTALK=$ROOT/examples/tinytalk

mkdir -p "${LORA_TEST_TMP:-$ROOT/build/tmp}"
TMP=$(mktemp -d "${LORA_TEST_TMP:-$ROOT/build/tmp}/cli.XXXXXX")
mkdir -p "$TMP/home"
unset NO_COLOR LORA_PROGRESS LORA_LOG_LEVEL LORA_LOG_FORMAT LORA_FAULT
export HOME=$TMP/home XDG_CONFIG_HOME=$TMP/config XDG_DATA_HOME=$TMP/data XDG_CACHE_HOME=$TMP/cache HF_HOME=$TMP/hf \
    LORA_STORE=$TMP/store TMP ROOT LORA_BUILD PATH
SERVER_PID=
N_TESTS=0

tap_cleanup() {
    [ -z "$SERVER_PID" ] || kill -KILL "$SERVER_PID" 2>/dev/null
    chmod -R u+w "$TMP" 2>/dev/null
    rm -rf "$TMP"
}
trap tap_cleanup EXIT

note() { printf '%s\n' "$*" | sed 's/^/# /'; }
pass() { N_TESTS=$((N_TESTS + 1)); printf 'ok %d - %s\n' "$N_TESTS" "$1"; }
fail() { N_TESTS=$((N_TESTS + 1)); printf 'not ok %d - %s\n' "$N_TESTS" "$1"; }
skip() { N_TESTS=$((N_TESTS + 1)); printf 'ok %d - %s # SKIP %s\n' "$N_TESTS" "$1" "$2"; }
skip_all() { printf '1..0 # SKIP %s\n' "$1"; exit 0; }
done_testing() { printf '1..%d\n' "$N_TESTS"; }

run() {
    "$@" >"$TMP/.out" 2>"$TMP/.err" </dev/null
    STATUS=$?
    OUT=$(cat "$TMP/.out")
    ERR=$(cat "$TMP/.err")
}

show_run() {
    note "exit status $STATUS"
    [ -z "$OUT" ] || note "stdout: $(printf '%s' "$OUT" | head -c 2000)"
    [ -z "$ERR" ] || note "stderr: $(printf '%s' "$ERR" | head -c 2000)"
}

ok() {
    local name=$1
    shift
    run "$@"
    if [ "$STATUS" -eq 0 ]; then pass "$name"; else fail "$name"; note "command: $*"; show_run; fi
}

not_ok() {
    local name=$1
    shift
    run "$@"
    # A crash is no polite refusal.
    if [ "$STATUS" -ne 0 ] && [ "$STATUS" -lt 128 ]; then pass "$name"; else fail "$name"; note "command: $*"; show_run; fi
}

exits() {
    local want=$1 name=$2
    shift 2
    run "$@"
    if [ "$STATUS" -eq "$want" ]; then pass "$name"; else fail "$name"; note "wanted exit status $want: $*"; show_run; fi
}

is() {
    if [ "$1" = "$2" ]; then pass "$3"; else fail "$3"; note "got:  $1"; note "want: $2"; fi
}

isnt() {
    if [ "$1" != "$2" ]; then pass "$3"; else fail "$3"; note "got: $1"; fi
}

like() {
    if printf '%s\n' "$1" | grep -Eq -- "$2"; then pass "$3"; else fail "$3"; note "got: $1"; note "want: $2"; fi
}

unlike() {
    if printf '%s\n' "$1" | grep -Eq -- "$2"; then fail "$3"; note "got: $1"; note "unwanted: $2"; else pass "$3"; fi
}

json() { printf '%s' "$1" | jsonq "${@:2}"; }

# A port that nobody listens on now. Two tests in parallel look in different places.
free_port() {
    local port
    while :; do
        port=$((20000 + (RANDOM * 32768 + RANDOM + $$ * 37) % 12000))
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

eventually() {
    local end=$((SECONDS + ${WAIT_S:-120}))
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.02
    done
}

serve_start() {
    local end=$((SECONDS + ${SERVE_WAIT_S:-300})) tries=0
    PORT=$(free_port)
    URL=http://127.0.0.1:$PORT
    SERVER_LOG=$TMP/server.log
    lora serve --port "$PORT" "$@" >"$SERVER_LOG" 2>&1 </dev/null &
    SERVER_PID=$!
    while [ $SECONDS -lt $end ]; do
        if ! kill -0 "$SERVER_PID" 2>/dev/null; then
            # Another test may have taken the port since it was looked for.
            grep -q 'in use' "$SERVER_LOG" && [ $((tries += 1)) -le 3 ] || break
            wait "$SERVER_PID"
            PORT=$(free_port)
            URL=http://127.0.0.1:$PORT
            lora serve --port "$PORT" "$@" >"$SERVER_LOG" 2>&1 </dev/null &
            SERVER_PID=$!
        fi
        [ "$(curl -s -o /dev/null -w '%{http_code}' "$URL/health" 2>/dev/null)" = 200 ] && return 0
        sleep 0.1
    done
    fail "server starts: lora serve $*"
    note "$(tail -20 "$SERVER_LOG")"
    serve_stop
    return 1
}

serve_stop() {
    [ -n "$SERVER_PID" ] || return 0
    kill -TERM "$SERVER_PID" 2>/dev/null
    wait "$SERVER_PID"
    STATUS=$?
    SERVER_PID=
}

http() {
    local method=$1 path=$2 body=${3-}
    shift 2
    [ $# -eq 0 ] || shift
    local data=()
    [ -z "$body" ] || data=(-H 'Content-Type: application/json' --data-binary "$body")
    STATUS=$(curl -s -X "$method" -D "$TMP/.headers" -o "$TMP/.body" -w '%{http_code}' "${data[@]}" "$@" "$URL$path")
    OUT=$(cat "$TMP/.body" 2>/dev/null)
    HEADERS=$(cat "$TMP/.headers" 2>/dev/null)
    ERR=
}
