#!/usr/bin/env bash
# clang-format has nothing to change. Only version 14 is asked: others see some lines differently.
. tests/lib/tap.sh

tool=$(command -v clang-format-14 || command -v clang-format) || skip_all "clang-format 14 is not installed"
"$tool" --version | grep -q 'version 14\.' || skip_all "$tool is not version 14"
find libcore kernels store cmd tests examples -name '*.[ch]' -print0 2>/dev/null | sort -z >"$TMP/files"
xargs -0 -r "$tool" --dry-run --Werror <"$TMP/files" >"$TMP/diff" 2>&1
status=$?
bad=$(sed -n 's/^\([^:]*\):[0-9]*:[0-9]*: error:.*/\1/p' "$TMP/diff" | sort -u | paste -sd ' ')
[ -z "$bad" ] || note "$(head -n 12 "$TMP/diff")"
is "$status:$bad" "0:" "every file is formatted (make format)"
done_testing
