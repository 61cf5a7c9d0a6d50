#!/usr/bin/env bash
# Every header compiles alone, so that whoever includes it need not know what it needs. One test a folder.
. tests/lib/tap.sh

CC=${CC:-gcc}
for folder in $(find libcore kernels store cmd tests -name '*.h' -not -path 'kernels/cuda/*' -printf '%h\n' 2>/dev/null | sort -u); do
    bad=
    for header in "$folder"/*.h; do
        run $CC -std=c11 -Wall -Wextra -Werror -I. -D_GNU_SOURCE -fsyntax-only -x c -include "$header" /dev/null
        [ "$STATUS" -eq 0 ] || { bad="$bad $header"; note "$ERR"; }
    done
    is "$bad" "" "headers of $folder compile alone"
done
done_testing
