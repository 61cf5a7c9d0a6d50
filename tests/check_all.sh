#!/usr/bin/env bash
# Everything that can be checked on a machine without a GPU, in stages; a stage that fails does not hide the next ones.
# The last line is the sum over all stages: `N passed, N failed, N skipped`. Called by `make check-all`.
set -u
make=${MAKE:-make}
counts=$PWD/build/counts
mkdir -p build
: >"$counts"
export LORA_COUNTS=$counts CI=${CI:-}
failed_stages=()
times=() # a line a stage
began=$SECONDS

count() { echo "$1 $2 $3" >>"$counts"; }
n_lines() { wc -l <"$counts"; }

# stage NAME COMMAND…: a stage that breaks before it could count anything is one failure.
stage() {
    local name=$1 before status start=$SECONDS
    shift
    before=$(n_lines)
    printf '\n==== %s\n' "$name"
    "$@" </dev/null
    status=$?
    if [ "$status" -ne 0 ]; then
        failed_stages+=("$name")
        [ "$(n_lines)" -gt "$before" ] || count 0 1 0
    fi
    times+=("$(printf '%6d s  %s' $((SECONDS - start)) "$name")")
    printf -- '---- %s: %s s\n' "$name" $((SECONDS - start))
}

skip_stage() {
    printf '\n==== %s\nskipped: %s\n' "$1" "$2"
    count 0 0 1
}

# Two of the architectures of `make cuda`: the code before Hopper and Hopper's. All of them take twice as long.
cuda_compiles() {
    $make --no-print-directory cuda \
        CUDA_ARCH="-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90" && count 1 0 0
}

# A variant's tests take longer than the release's; the limit is for hanging ones.
stage "check (release)" $make --no-print-directory tier TIER=check TEST_FLAGS="--timeout 900"
stage "slow tests (release): faults, crashes, fuzz corpus, installation" \
    env LORA_SIM_SEEDS=1000 LORA_SOAK_SECONDS=60 $make --no-print-directory tier TIER=all TEST_FLAGS="--timeout 900"
stage "address and undefined behaviour sanitizers" \
    $make --no-print-directory VARIANT=asan tier TIER=asan TEST_FLAGS="--timeout 900"
stage "thread sanitizer" $make --no-print-directory VARIANT=tsan tier TIER=tsan TEST_FLAGS="--timeout 900"

if ! ls tests/clients/test_*.py >/dev/null 2>&1; then
    skip_stage "clients" "there are none"
elif ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    skip_stage "clients" "python3 with venv is not installed"
elif ! $make --no-print-directory build/venv/.done </dev/null; then
    skip_stage "clients" "the packages of tests/clients/requirements.txt could not be installed"
else
    stage "clients" $make --no-print-directory check-clients TEST_FLAGS="--timeout 900"
fi

nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
if [ -z "$nvcc" ]; then
    skip_stage "CUDA compiles and links" "nvcc is not installed"
elif ! ls kernels/cuda/*.cu >/dev/null 2>&1; then
    skip_stage "CUDA compiles and links" "kernels/cuda holds no kernels yet"
else
    stage "CUDA compiles and links" cuda_compiles
fi

printf '\n'
printf '%s\n' "${times[@]}" "$(printf '%6d s  in all' $((SECONDS - began)))"
[ ${#failed_stages[@]} -eq 0 ] || printf 'failed: %s\n' "${failed_stages[@]}"
awk '{ p += $1; f += $2; s += $3 }
     END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || p == 0 }' "$counts" || exit 1
[ ${#failed_stages[@]} -eq 0 ]
