#!/usr/bin/env bash
# Runs test files and adds up what they say.
#   tests/run.sh [--jobs N] [--timeout SECONDS] FILE…
# FILE: a test program, a *.sh (bash) or a *.py ($LORA_PYTHON); each prints TAP. Started from the checkout's root.
# A file that crashes, hangs, prints no plan or another number of tests than its plan counts as a failure, besides
# what it printed. Output of failing files is shown; every file's output stays in $LORA_BUILD/test-logs.
# The last line is `N passed, N failed, N skipped`. Exit 1 when anything failed or nothing was counted.
# LORA_COUNTS=FILE: the three numbers are appended there too, for a sum over several runs.
set -u
jobs=2 timeout=300
one=
while [ $# -gt 0 ]; do
    case $1 in
    --jobs) jobs=$2; shift 2 ;;
    --timeout) timeout=$2; shift 2 ;;
    --one) one=1; shift ;;
    *) break ;;
    esac
done
export LORA_BUILD=${LORA_BUILD:-build/release}
logs=$LORA_BUILD/test-logs

# Reads TAP; prints "passed failed skipped complaint…".
count() {
    awk '
        /^ok /            { if (toupper($0) ~ /# *SKIP/) skipped++; else passed++; next }
        /^not ok/         { failed++; next }
        /^1\.\.[0-9]+/    { plans++; split($1, p, /\.\./); plan = p[2]
                            if (plan == 0 && toupper($0) ~ /SKIP/) { skipped++; whole = 1 } }
        /^Bail out!/      { failed++; complaint = "bailed out" }
        END {
            seen = passed + failed + skipped - whole
            if (complaint == "" && plans == 0) complaint = "no plan was printed"
            else if (complaint == "" && plans > 1) complaint = "more than one plan"
            else if (complaint == "" && plan != seen) complaint = "plan of " plan ", but " seen " tests"
            else if (complaint == "" && seen == 0 && !whole) complaint = "no tests"
            if (complaint != "" && complaint != "bailed out") failed++
            print passed + 0, failed + 0, skipped + 0, complaint
        }' "$1"
}

# One file: leaves its counts in a file beside its log and prints its line (and its log when it failed) in one piece.
run_one() {
    local file=$1 name log status passed failed skipped complaint seconds
    name=${file#"$LORA_BUILD"/}
    log=$logs/${name//\//-}.log
    local command=("$file")
    case $file in
    *.sh) command=(bash "$file") ;;
    *.py) command=("${LORA_PYTHON:-python3}" "$file") ;;
    */*) ;;
    *) command=("./$file") ;;
    esac
    SECONDS=0
    # In a process group of its own (set -m), which is ended when the person at the terminal has had enough.
    set -m
    timeout -k 10 "$timeout" "${command[@]}" >"$log" 2>&1 </dev/null &
    local child=$!
    set +m
    trap 'kill -TERM "$child"; exit 130' INT TERM
    { wait "$child"; } 2>/dev/null
    status=$?
    seconds=$SECONDS
    read -r passed failed skipped complaint < <(count "$log")
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        complaint="no end within $timeout s" failed=$((failed > 0 ? failed : 1))
    elif [ "$status" -gt 128 ]; then
        complaint="killed by signal $((status - 128))" failed=$((failed > 0 ? failed : 1))
    elif [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
        complaint="exit status $status" failed=1
    fi
    echo "$passed $failed $skipped" >"$log.count"
    {
        flock 9
        if [ "$failed" -gt 0 ]; then
            printf 'FAILED  %s: %s passed, %s failed, %s skipped (%s s)%s\n' "$name" "$passed" "$failed" "$skipped" \
                "$seconds" "${complaint:+: $complaint}"
            grep -v '^ok ' "$log" | head -n 120 | sed 's/^/    /'
        elif [ "$skipped" -gt 0 ]; then
            printf 'ok      %s: %s passed, %s skipped (%s s): %s\n' "$name" "$passed" "$skipped" "$seconds" \
                "$(grep -ioE '# *skip.*' "$log" | sed 's/# *[Ss][Kk][Ii][Pp] *//' | sort -u | head -n 2 | paste -sd '|' | sed 's/|/ | /')"
        else
            printf 'ok      %s: %s passed (%s s)\n' "$name" "$passed" "$seconds"
        fi
    } 9>>"$logs/.lock"
}

if [ -n "$one" ]; then
    run_one "$1"
    exit 0
fi

rm -rf "$logs"
mkdir -p "$logs"
export LORA_ROOT=${LORA_ROOT:-$PWD}
export LORA_TEST_TMP=${LORA_TEST_TMP:-$PWD/build/tmp}
mkdir -p "$LORA_TEST_TMP"
# A sanitizer's finding ends the program with a status of its own; memory that is not there is NULL, as without it.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:exitcode=99:allocator_may_return_null=1}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
export TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=1:exitcode=99:allocator_may_return_null=1}
[ $# -eq 0 ] || printf '%s\0' "$@" | xargs -0 -n 1 -P "$jobs" "$0" --jobs 1 --timeout "$timeout" --one

read -r passed failed skipped < <(cat "$logs"/*.count 2>/dev/null |
    awk '{ p += $1; f += $2; s += $3 } END { print p + 0, f + 0, s + 0 }')
n_counted=$(find "$logs" -name '*.count' | wc -l)
[ "$n_counted" -eq $# ] || { echo "FAILED  $(($# - n_counted)) of $# files left no count"; failed=$((failed + $# - n_counted)); }
[ -z "${LORA_COUNTS:-}" ] || echo "$passed $failed $skipped" >>"$LORA_COUNTS"
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ $((passed + skipped)) -gt 0 ]
