#!/usr/bin/env bash
# tiers: all
# Every failure of memory and of file calls, where tests/unit/store/test_store_faults takes a sample.
cd "${LORA_ROOT:-.}" || exit 1
. tests/crash/memory_lib.sh
LORA_FAULT_STEP=1 exec "${LORA_BUILD:-build/release}/tests/unit/store/test_store_faults"
