#!/usr/bin/env bash
# Looks for what the build (and, with `check` or `all`, the tests) need; silent and fast when all is there.
#   make/deps.sh [build|check|all]
# What is missing is installed with apt where that is allowed (root, or sudo without a password); else one line says
# what to install, and the exit status is 1.
set -u
what=${1:-build}
packages=() # without these nothing is built
wanted=()   # installed along, but nothing stops without them (push and pull are left out without libcurl)

library() { pkg-config --exists "$1" 2>/dev/null || packages+=("$2"); }
library_wanted() { pkg-config --exists "$1" 2>/dev/null || wanted+=("$2"); }
program() { command -v "$1" >/dev/null 2>&1 || packages+=("$2"); }

program "${CC_PROGRAM:-gcc}" gcc
program ar binutils
program make make
program pkg-config pkg-config
if command -v pkg-config >/dev/null 2>&1; then
    library jansson libjansson-dev
    library libpcre2-8 libpcre2-dev
    library libutf8proc libutf8proc-dev
    library libcrypto libssl-dev
    library sqlite3 libsqlite3-dev
    library libarchive libarchive-dev
    library libzstd libzstd-dev
    library zlib zlib1g-dev
    library libmicrohttpd libmicrohttpd-dev
    library_wanted libcurl libcurl4-openssl-dev
else
    packages+=(libc6-dev libjansson-dev libpcre2-dev libutf8proc-dev libssl-dev libsqlite3-dev libarchive-dev
        libzstd-dev zlib1g-dev libmicrohttpd-dev)
    wanted+=(libcurl4-openssl-dev)
fi
[ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
case $what in
check | all)
    program curl curl
    program timeout coreutils
    program flock util-linux
    program xargs findutils
    program xz xz-utils
    program awk mawk
    ;;
esac
if [ "$what" = all ]; then
    program python3 python3
    # Peers for packs and images; their tests are skipped without them.
    command -v docker-registry >/dev/null 2>&1 || wanted+=(docker-registry)
    command -v skopeo >/dev/null 2>&1 || wanted+=(skopeo)
    command -v bsdtar >/dev/null 2>&1 || wanted+=(libarchive-tools)
    command -v unzip >/dev/null 2>&1 || wanted+=(unzip)
    { command -v python3 >/dev/null 2>&1 && python3 -c 'import ensurepip, venv' 2>/dev/null; } || packages+=(python3-venv)
fi
[ ${#packages[@]} -eq 0 ] && [ ${#wanted[@]} -eq 0 ] && exit 0

apt=
if command -v apt-get >/dev/null 2>&1; then
    if [ "$(id -u)" -eq 0 ]; then
        apt=apt-get
    elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
        apt="sudo -n apt-get"
    fi
fi
if [ -z "$apt" ]; then
    [ ${#packages[@]} -gt 0 ] || exit 0
    echo "packages are missing; please install them: sudo apt-get install ${packages[*]} ${wanted[*]-}" >&2
    exit 1
fi
echo "installing ${packages[*]-} ${wanted[*]-}"
log=$(mktemp)
install() {
    DEBIAN_FRONTEND=noninteractive $apt -o DPkg::Lock::Timeout=120 install -y --no-install-recommends "$@" >>"$log" 2>&1 </dev/null
}
# The lists on a bare machine are empty or old: then fetch them and try again.
install_or_update() { install "$@" || { $apt update >>"$log" 2>&1 </dev/null && install "$@"; }; }
if [ ${#packages[@]} -gt 0 ] && ! install_or_update "${packages[@]}"; then
    tail -n 15 "$log" >&2
    echo "could not install ${packages[*]}" >&2
    rm -f "$log"
    exit 1
fi
if [ ${#wanted[@]} -gt 0 ] && ! install_or_update "${wanted[@]}"; then
    echo "could not install ${wanted[*]}; going on without"
fi
rm -f "$log"
exit 0
