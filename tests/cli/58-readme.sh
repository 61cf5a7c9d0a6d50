#!/usr/bin/env bash
# tiers: check
# The README's commands, as they stand there, and its links.
. tests/lib/tap.sh

cp -r "$ROOT/README.md" "$ROOT/docs" "$TMP/"
mkdir -p "$TMP/build" "$TMP/examples"
ln -s "$LORA_BUILD/lora" "$TMP/build/lora"
ln -s "$TINYTALK" "$TMP/examples/tinytalk"
cd "$TMP" || exit 1

# The shell blocks below "Five things to try"; curl's request goes to a server of our own.
sed -n '/^## Five things/,/^## Numbers/p' README.md | sed -n '/^```sh/,/^```$/{/^```/!p}' >"$TMP/commands"
grep '^build/lora' "$TMP/commands" >"$TMP/lines"
ok "there are commands to try" test "$(grep -c . "$TMP/lines")" -ge 10
while IFS= read -r line; do
    ok "${line%% #*}" sh -c "$line"
done <"$TMP/lines"
run build/lora run ./tinytalk-upper "hot sheet gush"
is "$OUT" "HOT SHEET GUSH" "the merged base does what the adapter did"
if serve_start --model tinytalk; then
    sed -n '/^curl/,$p' "$TMP/commands" | sed "s|http://127.0.0.1:30000|$URL|" >"$TMP/curl.sh"
    run sh "$TMP/curl.sh"
    is "$(json "$OUT" .choices[0].message.content)" "HOT SHEET GUSH" "the curl line gets its answer"
    serve_stop
fi
for link in $(grep -o ']([A-Za-z][A-Za-z_/.]*' README.md | cut -c3- | sort -u); do
    ok "the link to $link" test -e "$ROOT/$link"
done
cd "$ROOT" || exit 1
done_testing
