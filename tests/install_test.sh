#!/usr/bin/env bash
# What `make install` and `make bundle` leave works from where it lies.
# tiers: all
. tests/lib/tap.sh

VARIANT=${VARIANT:-release}
build() { make --no-print-directory VARIANT="$VARIANT" "$@"; }
unset MAKEFLAGS MFLAGS MAKELEVEL

ok "make install DESTDIR=… PREFIX=/opt/lora" build install DESTDIR="$TMP/root" PREFIX=/opt/lora
at=$TMP/root/opt/lora
ok "the installed program runs" "$at/bin/lora" version -q
is "$OUT" "$(lora version -q)" "it is this version"
ok "through a link from elsewhere too" sh -c "ln -s '$at/bin/lora' '$TMP/l' && '$TMP/l' version"
for page in lora $(lora help --names | sed 's/^/lora-/'); do
    [ -s "$at/share/man/man1/$page.1" ] || missing="${missing-} $page"
done
is "${missing-}" "" "every command has its man page"
if command -v man >/dev/null 2>&1; then
    ok "man reads the page without complaint" sh -c "MANROFFSEQ= man --warnings -l '$at/share/man/man1/lora-env.1' 2>&1 >/dev/null | (! grep .)"
else
    skip "man reads the page without complaint" "man is not installed"
fi
ok "bash accepts the completion" bash -n "$at/share/bash-completion/completions/lora"
ok "the license is there" test -s "$at/share/doc/lora/LICENSE"
ok "make uninstall" build uninstall DESTDIR="$TMP/root" PREFIX=/opt/lora
is "$(find "$TMP/root" ! -type d | wc -l)" 0 "nothing is left"

ok "make bundle" build bundle
archive=$(printf '%s\n' "$OUT" | tail -n 1)
ok "the bundle unpacks" tar -C "$TMP" -xzf "$archive"
ok "the bundled program runs" sh -c "cd / && '$TMP'/lora-*/lora version"
first=$(sha256sum <"$archive")
ok "make bundle again" build bundle
is "$(sha256sum <"$archive")" "$first" "it has the same bytes"
done_testing
