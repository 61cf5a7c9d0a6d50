#!/usr/bin/env bash
# tiers: all
# Every call, where test_store.sh takes a sample.
CRASH_STEP=1 exec bash tests/crash/test_store.sh
