#!/usr/bin/env bash
# tiers: all
# Every failure of memory and of file calls, where tests/unit/store/test_store_faults takes a sample.
cd "${LORA_ROOT:-.}" || exit 1
[ ! -w /dev/shm ] || export LORA_TEST_TMP=/dev/shm
LORA_FAULT_STEP=1 exec "${LORA_BUILD:-build/release}/tests/unit/store/test_store_faults"
