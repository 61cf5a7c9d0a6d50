#!/usr/bin/env bash
# Every header compiles alone, so that whoever includes it need not know what it needs. One test a folder.
# A header that is a text with parameters says with which ones, in a line `alone with: -D…`.
. tests/lib/tap.sh

CC=${CC:-gcc}
for folder in $(find libcore kernels store cmd tests -name '*.h' -not -path 'kernels/cuda/*' -printf '%h\n' 2>/dev/null | sort -u); do
    bad=
    for header in "$folder"/*.h; do
        eval "parameters=($(sed -n '1,30s/.*alone with: *//p' "$header"))"
        run $CC "${parameters[@]}" -std=c11 -Wall -Wextra -Werror -I. -D_GNU_SOURCE -fsyntax-only -x c -include "$header" /dev/null
        [ "$STATUS" -eq 0 ] || { bad="$bad $header"; note "$ERR"; }
    done
    is "$bad" "" "headers of $folder compile alone"
done
done_testing
