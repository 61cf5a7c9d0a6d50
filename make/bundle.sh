#!/usr/bin/env bash
# make/bundle.sh BUILD VERSION: build/lora-VERSION-MACHINE.tar.gz with the program and the shared libraries it needs,
# for a machine that has none of them. The C library and CUDA's libraries are the machine's own.
set -eu
build=$1 version=$2
name=lora-$version-linux-$(uname -m)
dir=build/bundle/$name
rm -rf "$dir"
mkdir -p "$dir/lib" "$dir/share/man/man1" "$dir/share/completions"
cp "$build/lora" "$dir/lib/lora"
[ ! -e "$build/lora_cuda.so" ] || cp "$build/lora_cuda.so" "$dir/lib/"
ldd "$build/lora" | awk '$2 == "=>" && $3 ~ /^\// { print $1, $3 }' | while read -r soname path; do
    case $soname in
    libc.so* | libm.so* | libdl.so* | libpthread.so* | librt.so* | ld-linux*) ;;
    *) cp -L "$path" "$dir/lib/$soname" ;;
    esac
done
# The libraries lie beside the program; no tool that rewrites ELF files is needed for that.
cat >"$dir/lora" <<'SH'
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$here/lib/lora" "$@"
SH
chmod 755 "$dir/lora"
cp LICENSE README.md "$dir/"
"$build/lora" help --man >"$dir/share/man/man1/lora.1"
for c in $("$build/lora" help --names); do
    "$build/lora" help --man "$c" >"$dir/share/man/man1/lora-$c.1"
done
for shell in bash zsh fish; do
    "$build/lora" completion $shell >"$dir/share/completions/lora.$shell"
done
# The same tree gives the same bytes.
tar -C build/bundle --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -cf - "$name" |
    gzip -9n >"build/$name.tar.gz"
echo "build/$name.tar.gz"
