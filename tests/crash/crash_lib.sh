# crash_lib.sh: kills a command at one of its file calls (ours and SQLite's) and looks at the store that is left.
# Sourced by tests/crash/test_*.sh after tap.sh.
#
#   crash_case NAME PREPARE… -- COMMAND…
# PREPARE makes the store before (a function, run once); COMMAND is killed with SIGKILL at its first file call, then in
# a fresh copy at its second, … until it ends by itself. After each kill:
#   - fsck finds no problem (what the command left behind are notes),
#   - every name that was there still names the same content, unless the command was about that name,
#   - the command, run again, ends as it does without a kill, and then fsck and gc leave nothing behind.
# BROKEN_BEFORE=1: the store is broken before, so nothing is asked of it between the kill and the second run.
# Calls: those that write, sync, make, rename or remove; CRASH_CLASS=file takes reads, too.
# CRASH_STEP=n tries every n-th call only; CRASH_OFFSET the first one.
STEP=${CRASH_STEP:-1}

# What each name stands for, one a line, sorted; ABOUT (a name) is left out.
names_of() {
    lora list --json --store "$1" 2>/dev/null | tr '{' '\n' | grep -o '^"name":"[^"]*","id":"[^"]*","tags":\[[^]]*\]' |
        grep -v "^\"name\":\"${ABOUT:- }\"" | sort
}
all_names_of() { ABOUT= names_of "$1"; }

crash_fail() {
    fail "$1"
    note "$2"
    [ -z "${3-}" ] || note "$3"
    BAD=1
}

# One kill, at call $2. Returns 1 when the command ended before it.
crash_once() {
    local name=$1 n=$2 status
    shift 2
    rm -rf "$TMP/victim"
    [ ! -e "$TMP/before" ] || cp -a "$TMP/before" "$TMP/victim"
    # The braces keep the shell's own "Killed" off the terminal.
    { LORA_STORE=$TMP/victim LORA_FAULT=kill:$n:${CRASH_CLASS:-change} "$@" >"$TMP/out" 2>&1 </dev/null; } 2>/dev/null
    status=$?
    [ "$status" -eq 137 ] || { [ "$status" -eq 0 ] || crash_fail "$name: call $n" "exit status $status without a kill" "$(tail -3 "$TMP/out")"; return 1; }
    if [ -e "$TMP/victim/lora-store.json" ] && [ -z "${BROKEN_BEFORE:-}" ]; then
        lora fsck --store "$TMP/victim" >"$TMP/out" 2>&1 || crash_fail "$name: killed at call $n" "fsck finds problems" "$(cat "$TMP/out")"
        [ ! -e "$TMP/before" ] || [ "$(names_of "$TMP/victim")" = "$NAMES_BEFORE" ] ||
            crash_fail "$name: killed at call $n" "names are lost or changed" "$(names_of "$TMP/victim")"
    fi
    LORA_STORE=$TMP/victim "$@" >"$TMP/out" 2>&1 </dev/null ||
        crash_again "$name" "$n" || crash_fail "$name: killed at call $n" "run again it fails" "$(cat "$TMP/out")"
    [ "$(all_names_of "$TMP/victim")" = "$NAMES_AFTER" ] ||
        crash_fail "$name: killed at call $n" "run again it ends otherwise" "$(all_names_of "$TMP/victim")"
    lora gc --grace 0 --store "$TMP/victim" >"$TMP/out" 2>&1 || crash_fail "$name: killed at call $n" "gc fails" "$(cat "$TMP/out")"
    lora fsck --repair --store "$TMP/victim" >"$TMP/out" 2>&1 || crash_fail "$name: killed at call $n" "repair fails" "$(cat "$TMP/out")"
    lora fsck --json --store "$TMP/victim" >"$TMP/out" 2>/dev/null
    [ "$(jsonq .clean <"$TMP/out")" = true ] && [ "$(jsonq -n .notes <"$TMP/out")" = 0 ] ||
        crash_fail "$name: killed at call $n" "after gc and repair something is left" "$(cat "$TMP/out")"
    return 0
}

# A command that did all before it was killed may refuse the second time (rm: the name is gone).
crash_again() { [ "${MAY_BE_DONE:-0}" = 1 ] && [ "$(all_names_of "$TMP/victim")" = "$NAMES_AFTER" ]; }

crash_case() {
    local name=$1 n=${CRASH_OFFSET:-1} kills=0
    shift
    rm -rf "$TMP/before"
    BAD=0
    "$1" || { fail "$name: preparation"; return; }
    shift 2
    NAMES_BEFORE=$([ ! -e "$TMP/before" ] || names_of "$TMP/before")
    rm -rf "$TMP/victim"
    [ ! -e "$TMP/before" ] || cp -a "$TMP/before" "$TMP/victim"
    LORA_STORE=$TMP/victim "$@" >"$TMP/out" 2>&1 </dev/null || { fail "$name: without a kill"; note "$(cat "$TMP/out")"; return; }
    NAMES_AFTER=$(all_names_of "$TMP/victim")
    while [ "$BAD" -eq 0 ] && crash_once "$name" "$n" "$@"; do
        kills=$((kills + 1))
        n=$((n + STEP))
    done
    [ "$BAD" -ne 0 ] && return
    if [ "$kills" -ge 1 ]; then pass "$name: $kills kills"; else fail "$name: no kill"; fi
}
