# Tests: which, in which tier, and the targets that run them. The runner is tests/run.sh; a file's tiers are chosen by
# tests/select.sh ("tiers: …" near its top).

TEST_TOOLS := $(B)/tests/lib/jsonq $(B)/tests/lib/http_load $(B)/tests/lib/golden_run
SHELL_TESTS := $(sort $(filter-out %_lib.sh,$(wildcard tests/cli/[0-9]*.sh tests/*_test.sh tests/check_headers.sh \
                 tests/check_format.sh tests/crash/*.sh tests/web/*.sh)))
CLIENT_TESTS := $(sort $(wildcard tests/clients/test_*.py))
C_TESTS := $(sort $(patsubst $(B)/%,%.c,$(TESTS_C)))
FUZZ := $(patsubst %.c,$(B)/%,$(sort $(wildcard tests/fuzz/fuzz_*.c)))

# $(call c_tests,TIER) $(call shell_tests,TIER): asked only by the recipes that need it.
c_tests = $(patsubst %.c,$(B)/%,$(shell tests/select.sh $(1) $(C_TESTS)))
shell_tests = $(shell tests/select.sh $(1) $(SHELL_TESTS))
RUN = LORA_BUILD=$(B) VARIANT=$(VARIANT) tests/run.sh

# Where no -j was given, all processors are used.
NPROC := $(shell nproc 2>/dev/null || echo 2)
PARALLEL = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(NPROC))

$(B)/tests/lib/jsonq $(B)/tests/lib/golden_run: $(B)/tests/lib/%: tests/lib/%.c
	@mkdir -p $(@D)
	$(call SAY,TEST)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $< -ljansson -lm

HTTP_LOAD := $(call obj,$(addprefix tests/lib/,http_load http_client load_ask load_golden load_leave load_soak))
$(B)/tests/lib/http_load: $(HTTP_LOAD) $(A_LIBCORE)
	$(call SAY,TEST)
	$(Q)$(CC) $(LDFLAGS) -o $@ $^ $(LIBS_LIBCORE)
-include $(HTTP_LOAD:.o=.d)

# Programs that make inputs for measuring; not part of any tier.
$(B)/tests/tools/%: tests/tools/%.c $(A_LIBCORE)
	@mkdir -p $(@D)
	$(call SAY,TEST)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(LDFLAGS) -o $@ $< $(A_LIBCORE) $(LIBS_LIBCORE)

$(B)/tests/fuzz/%: tests/fuzz/%.c $(B)/tests/lib/fuzz_main.o $(A_CMD) $(A_STORE) $(A_KERNELS) $(A_LIBCORE)
	@mkdir -p $(@D)
	$(call SAY,TEST)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) $(LDFLAGS) -rdynamic -o $@ $< $(B)/tests/lib/fuzz_main.o $(A_CMD) $(A_STORE) \
	  $(A_KERNELS) $(A_LIBCORE) $(LIBS_CMD) $(LIBS_STORE) $(LIBS_KERNELS) $(LIBS_LIBCORE)

.SECONDARY: $(B)/tests/lib/fuzz_main.o
-include $(B)/tests/lib/jsonq.d $(B)/tests/lib/golden_run.d $(FUZZ:=.d)

.PHONY: check-emulated
.PHONY: check check-all check-headers check-layers check-format check-gpu check-install tier tier-build fuzz

check: ## the quick tests: CPU, a few minutes, the last line counts them
	@make/deps.sh check
	@+$(MAKE) --no-print-directory tier TIER=check

# One tier of this VARIANT: build, then run. TIER: check, asan, tsan, all, gpu.
tier:
	@+$(MAKE) --no-print-directory $(PARALLEL) tier-build TIER=$(TIER)
	@$(RUN) $(TEST_FLAGS) $(call shell_tests,$(TIER)) $(call c_tests,$(TIER)) $(if $(filter all asan,$(TIER)),$(FUZZ))

# build/lora stays the release program while other variants are tested.
tier-build: $(if $(filter tier-build,$(MAKECMDGOALS)),$(TEST_TOOLS) $(call c_tests,$(TIER)) \
  $(if $(filter all asan,$(TIER)),$(FUZZ))) $(if $(filter release,$(VARIANT)),all,$(B)/lora)
	@:

check-all: ## check, then sanitizers, faults, fuzz corpus, clients, installation, CUDA compiles and links
	@make/deps.sh all
	@+MAKE="$(MAKE)" tests/check_all.sh

check-headers: ## every header compiles alone
	@$(RUN) tests/check_headers.sh

check-layers: ## every #include goes the way the architecture says
	@tests/check_layers.sh

check-format: ## clang-format has nothing to say (needs clang-format 14)
	@$(RUN) tests/check_format.sh

check-gpu: ## tests that need a GPU; without one they count as skipped
	@+$(MAKE) --no-print-directory tier TIER=gpu

check-emulated: ## the CUDA kernels on this machine's processor, against the goldens (no GPU; needs g++, perl)
	@$(RUN) --timeout 1200 tests/cuda_emulated_test.sh

check-install: ## installs into a scratch folder and tries what is there
	@make/deps.sh check
	@+$(MAKE) --no-print-directory $(PARALLEL) all $(TEST_TOOLS)
	@$(RUN) tests/install_test.sh

.PHONY: crash
crash: ## kill -9 at every file call of the commands that write to the store
	@+$(MAKE) --no-print-directory $(PARALLEL) all $(TEST_TOOLS)
	@$(RUN) --timeout 3600 tests/crash/test_store_all.sh

fuzz: $(FUZZ) ## the fuzz targets over their corpus and some mutations
	@$(RUN) $(FUZZ)

# Real clients, pinned, in a virtual environment of their own.
VENV := build/venv
$(VENV)/.done: tests/clients/requirements.txt tests/clients/requirements-exports.txt
	@rm -rf $(VENV)
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r $<
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --only-binary :all: \
	  -r tests/clients/requirements-exports.txt || echo "check-clients: test_exports.py will be skipped"
	$(if $(CLIENTS_TORCH),$(VENV)/bin/python -m pip install -q --disable-pip-version-check -r tests/clients/requirements-torch.txt)
	@touch $@

.PHONY: check-clients
check-clients: ## real clients against the server (Python; needs the package index once)
	@+$(MAKE) --no-print-directory $(PARALLEL) all $(TEST_TOOLS) $(VENV)/.done
	@LORA_PYTHON=$(VENV)/bin/python $(RUN) $(TEST_FLAGS) $(CLIENT_TESTS)
