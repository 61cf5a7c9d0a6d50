#!/usr/bin/env bash
# Prints the test sources of a tier: files whose first 20 lines say `tiers: … TIER …`, and, where a file says nothing,
# by default: C tests are in `check` and `asan`, shell tests in `check`.
#   tests/select.sh TIER FILE…
set -u
tier=$1
shift
for file in "$@"; do
    [ -e "$file" ] || continue
    tiers=$(sed -n '1,20s/.*[#*/ ]tiers: *//p' "$file" | head -n 1)
    if [ -z "$tiers" ]; then
        case $file in
        *.c) tiers="check asan" ;;
        *) tiers=check ;;
        esac
    fi
    for t in $tiers; do
        [ "$t" != "$tier" ] || echo "$file"
    done
done
