#!/usr/bin/env bash
# The runner sees what goes wrong: a test that fails, crashes, hangs, is empty, lies about its plan, or is skipped.
# And the helpers of tap.sh, on which every other shell test leans, pass and fail when they should.
. tests/lib/tap.sh

RUN=$ROOT/tests/run.sh
# Its own logs and counts, so that the run that this is part of is not disturbed.
unset LORA_COUNTS
runner() { LORA_BUILD=$TMP/b LORA_TEST_TMP=$TMP "$RUN" --timeout 2 "$@"; }
script() { printf '%s\n' "$2" >"$TMP/$1.sh"; echo "$TMP/$1.sh"; }
last_line() { printf '%s\n' "$OUT" | tail -n 1; }

# expect NAME STATUS "N passed, N failed, N skipped" FILE…
expect() {
    local name=$1 status=$2 line=$3
    shift 3
    run runner "$@"
    is "$STATUS: $(last_line)" "$status: $line" "$name"
}

good=$(script good 'echo "ok 1 - a"; echo "ok 2 - b"; echo "1..2"')
bad=$(script bad 'echo "ok 1 - a"; echo "# the reason"; echo "not ok 2 - b"; echo "1..2"; exit 1')
skipping=$(script skipping 'echo "ok 1 - a # SKIP no reason"; echo "ok 2 - b"; echo "1..2"')
whole=$(script whole 'echo "1..0 # SKIP nothing here"')
crash=$(script crash 'echo "ok 1 - a"; kill -SEGV $$')
late=$(script late 'echo "ok 1 - a"; echo "1..1"; exit 3')
hang=$(script hang 'echo "ok 1 - a"; sleep 60')
empty=$(script empty ':')
planless=$(script planless 'echo "ok 1 - a"')
short=$(script short 'echo "ok 1 - a"; echo "1..3"')
none=$(script none 'echo "1..0"')
stdin=$(script stdin 'read -r line; echo "ok 1 - stdin is empty"; echo "1..1"')

expect "a good file passes" 0 "2 passed, 0 failed, 0 skipped" "$good"
expect "a failing test is counted" 1 "1 passed, 1 failed, 0 skipped" "$bad"
like "$OUT" "the reason" "what a failing file printed is shown"
expect "a skipped test is no passed one" 0 "1 passed, 0 failed, 1 skipped" "$skipping"
like "$OUT" "no reason" "the reason of a skip is shown"
expect "a skipped file counts as skipped" 0 "0 passed, 0 failed, 1 skipped" "$whole"
expect "a crash is a failure" 1 "1 passed, 1 failed, 0 skipped" "$crash"
expect "a bad exit status after good tests is a failure" 1 "1 passed, 1 failed, 0 skipped" "$late"
expect "a hanging file is ended and is a failure" 1 "1 passed, 1 failed, 0 skipped" "$hang"
expect "an empty file is a failure" 1 "0 passed, 1 failed, 0 skipped" "$empty"
expect "a missing plan is a failure" 1 "1 passed, 1 failed, 0 skipped" "$planless"
expect "fewer tests than planned is a failure" 1 "1 passed, 1 failed, 0 skipped" "$short"
expect "a plan of no tests without a reason is a failure" 1 "0 passed, 1 failed, 0 skipped" "$none"
expect "a file that is not there is a failure" 1 "0 passed, 1 failed, 0 skipped" "$TMP/missing.sh"
expect "nothing to run is a failure" 1 "0 passed, 0 failed, 0 skipped"
expect "stdin is empty" 0 "1 passed, 0 failed, 0 skipped" "$stdin"
expect "counts of files add up" 1 "6 passed, 3 failed, 1 skipped" "$good" "$bad" "$skipping" "$crash" "$planless"

# The helpers, in a shell of their own.
helper() { bash -c ". tests/lib/tap.sh; $1; done_testing"; }
helpers() {
    run helper "$1"
    is "$(printf '%s\n' "$OUT" | grep -oE '^(ok|not ok)' | paste -sd ,)" "$2" "$3"
}
helpers 'ok a true; ok b false; ok c sh -c "kill -SEGV \$\$"' "ok,not ok,not ok" "ok"
helpers 'not_ok a false; not_ok b true; not_ok c sh -c "kill -SEGV \$\$"' "ok,not ok,not ok" "not_ok"
helpers 'exits 3 a sh -c "exit 3"; exits 3 b sh -c "exit 4"' "ok,not ok" "exits"
helpers 'is x x a; is x y b; isnt x y c; isnt x x d' "ok,not ok,ok,not ok" "is and isnt"
helpers 'like abc b a; like abc x b; unlike abc x c; unlike abc b d' "ok,not ok,ok,not ok" "like and unlike"
helpers 'is "$(json "{\"a\":[{\"b\":\"c\"}]}" .a[0].b)" c a' "ok" "json takes a value out"
helpers 'json "{}" .a >/dev/null && fail a || pass a' "ok" "json says when there is none"
helpers 'run sh -c "echo out; echo err >&2; exit 7"; is "$STATUS $OUT $ERR" "7 out err" a' "ok" "run"
run helper 'echo $TMP'
not_ok "the folder of a test is gone afterwards" test -e "$(printf '%s\n' "$OUT" | head -n 1)"

# The C frame.
cat >"$TMP/t.c" <<'C'
#include "tests/lib/test.h"
#include <stdlib.h>
TEST(passes) { CHECK(1); }
TEST(fails) { CHECK_INT(1, 2); }
TEST(skips) { test_skip("no need"); }
TEST(crashes) { abort(); }
C
ok "a C test compiles" ${CC:-gcc} -std=c11 -D_GNU_SOURCE -I. -o "$TMP/t" "$TMP/t.c" tests/lib/test.c -lm
expect "a C program that crashes is a failure" 1 "1 passed, 2 failed, 1 skipped" "$TMP/t"
run "$TMP/t" passes
is "$STATUS" 0 "a word chooses tests"
run "$TMP/t" nothing
is "$STATUS" 1 "no test chosen is a failure"
done_testing
