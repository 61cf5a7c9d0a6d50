#!/usr/bin/env bash
# What every command shares: help, errors, exit codes, JSON, settings, completion, man pages.
. tests/lib/tap.sh

run lora
is "$STATUS" 2 "without a command: usage"
like "$ERR" "usage: lora <command>" "the overview is shown"
is "$OUT" "" "stdout stays empty"
exits 0 "lora --help" lora --help
like "$OUT" "usage: lora <command>" "the overview is on stdout"
exits 0 "lora help" lora help
exits 0 "lora --version" lora --version
exits 0 "help of a command" lora help env
like "$OUT" "^usage: lora env" "it is the command's page"
page=$OUT
exits 0 "--help after a command" lora env --help
is "$OUT" "$page" "it is the same page"

exits 2 "an unknown command" lora verson
is "$ERR" "error: lora has no command 'verson'
hint: did you mean \`lora version\`?" "it is named, and the nearest one too"
exits 2 "an unknown option" lora env --jsno
like "$ERR" "^error: unknown option --jsno; did you mean --json\?" "the nearest option is named"
exits 2 "an argument too many" lora version now
exits 2 "an argument too few" lora completion
exits 2 "an option without its value" lora env --store
exits 2 "no command after options" lora --json
run lora env --jsno --json
is "$OUT" "" "a JSON error leaves stdout empty"
is "$(json "$ERR" .schema)" 1 "a JSON error is JSON"
is "$(json "$ERR" .error.code)" usage "with a code"
like "$(json "$ERR" .error.message)" "unknown option" "a message"
like "$(json "$ERR" .error.hint)" "lora env --help" "and the next command"
not_ok "standard output that is full is an error" sh -c 'lora version >/dev/full'
like "$ERR" "cannot write to standard output: No space left" "it says so"

run lora env
like "$OUT" "^store +$TMP/store +environment +LORA_STORE" "env: the store and where it comes from"
run lora --store /x env --json
is "$(json "$OUT" .settings[1].value) $(json "$OUT" .settings[1].from)" "/x flag" "options may come before the command"
mkdir -p "$XDG_CONFIG_HOME/lora"
echo '{"store": "/from/file", "progress": "none"}' >"$XDG_CONFIG_HOME/lora/config.json"
run env -u LORA_STORE lora env
like "$OUT" "^store +/from/file +config file" "env: from the config file"
like "$OUT" "^config +$XDG_CONFIG_HOME/lora/config.json +read" "env: the file itself"
echo '{"stroe": "/x"}' >"$XDG_CONFIG_HOME/lora/config.json"
exits 2 "a key that no option has" lora env
like "$ERR" "config.json: stroe: no option has this name" "it is named"
rm "$XDG_CONFIG_HOME/lora/config.json"
exits 0 "no HOME at all" env -u HOME -u XDG_DATA_HOME -u XDG_CONFIG_HOME lora env

# Every command has --json; these two need no store.
run lora help --json
is "$(json "$OUT" .schema) $(json "$OUT" .commands[0].name)" "1 import" "help --json lists the commands"
run lora help list --json
is "$(json "$OUT" .commands[0].name) $(json "$OUT" .commands[0].alias)" "list ls" "…and one with its options"
run lora completion bash --json
is "$(json "$OUT" .script)" "$(lora completion bash)" "completion --json holds the script"
exits 2 "completion --json of no shell" lora completion nosh --json
exits 0 "version --json" lora version --json
is "$(json "$OUT" .version)" "$(lora version -q)" "the version"
isnt "$(json "$OUT" .libraries.jansson)" null "the libraries' versions"
is "$(json "$OUT" .back_ends[0].device) $(json "$OUT" .back_ends[0].usable)" "cpu true" "the CPU back end is found"

exits 0 "completion bash" lora completion bash
lora completion bash >"$TMP/c.bash"
ok "bash reads it" bash -n "$TMP/c.bash"
run bash -c ". '$TMP/c.bash'; COMP_WORDS=(lora env --lo); COMP_CWORD=2; _lora; echo \${COMPREPLY[*]}"
is "$OUT" "--log-level --log-format" "it completes options"
run bash -c ". '$TMP/c.bash'; COMP_WORDS=(lora env --progress p); COMP_CWORD=3; _lora; echo \${COMPREPLY[*]}"
is "$OUT" "plain" "it completes choices"
run bash -c ". '$TMP/c.bash'; COMP_WORDS=(lora comp); COMP_CWORD=1; _lora; echo \${COMPREPLY[*]}"
is "$OUT" "completion" "it completes commands"
for shell in zsh fish; do
    lora completion $shell >"$TMP/c.$shell"
    if command -v $shell >/dev/null 2>&1; then
        ok "$shell reads its completion" $shell -n "$TMP/c.$shell"
    else
        skip "$shell reads its completion" "$shell is not installed"
    fi
done
exits 2 "completion for an unknown shell" lora completion tcsh

bad=
for command in $(lora help --names); do
    run lora "$command" --help
    [ "$STATUS" -eq 0 ] || bad="$bad $command"
    printf '%s\n' "$OUT" | awk -v c="$command" 'length > 100 { print c ": " $0; bad = 1 } END { exit bad }' >"$TMP/long" ||
        bad="$bad $(cat "$TMP/long")"
    run lora help --man "$command"
    [ "$STATUS" -eq 0 ] || bad="$bad $command(man)"
done
is "$bad" "" "every command has a page within 100 columns and a man page"
done_testing
