#!/usr/bin/env bash
# clang-format has nothing to change. Only version 14 is asked: others see some lines differently.
. tests/lib/tap.sh

tool=$(command -v clang-format-14 || command -v clang-format) || skip_all "clang-format 14 is not installed"
"$tool" --version | grep -q 'version 14\.' || skip_all "$tool is not version 14"
bad=
while IFS= read -r file; do
    "$tool" --dry-run --Werror "$file" >"$TMP/diff" 2>&1 || { bad="$bad $file"; note "$(head -n 3 "$TMP/diff")"; }
done < <(find libcore kernels store cmd tests examples -name '*.[ch]' 2>/dev/null | sort)
is "$bad" "" "every file is formatted (make format)"
done_testing
