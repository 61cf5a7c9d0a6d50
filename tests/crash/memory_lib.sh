# memory_lib.sh: the tests' folders lie in memory where there is room (containers often have 64 MB): what a kill or a
# failure leaves does not depend on the disk. Sourced from the checkout's root, before tap.sh.
if [ -w /dev/shm ] && [ "$(df -Pk /dev/shm | awk 'NR == 2 { print $4 }')" -gt 1000000 ]; then
    export LORA_TEST_TMP=/dev/shm
fi
