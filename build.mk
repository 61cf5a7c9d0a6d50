# Rules behind the lists of the Makefile: objects, archives, the program, tests.

obj = $(patsubst %,$(B)/%.o,$(1))
A_LIBCORE := $(B)/libcore.a
A_KERNELS := $(B)/kernels.a
A_STORE   := $(B)/store.a
A_CMD     := $(B)/cmd.a
A_TEST    := $(B)/test.a

# V=1 shows the commands.
Q := $(if $(V),,@)
SAY = $(if $(V),@:,@echo " " $(1) $@)

.DEFAULT_GOAL := all
.PHONY: all
all: build/lora ## the program, build/lora (the default)

build/lora: $(B)/lora
	@ln -sf $(VARIANT)/lora $@

$(B)/lora: $(B)/cmd/main.o $(A_CMD) $(A_STORE) $(A_KERNELS) $(A_LIBCORE)
	$(call SAY,LINK)
	$(Q)$(CC) $(LDFLAGS) -rdynamic -o $@ $(filter-out $(A_LIBCORE),$^) $(WHOLE) $(LIBS_CMD) $(LIBS_STORE) $(LIBS_KERNELS) $(LIBS_LIBCORE)

# main.o stays outside the archive, so that tests of cmd link without a second main.
$(A_LIBCORE): $(call obj,$(LIBCORE))
$(A_KERNELS): $(call obj,$(KERNELS))
$(A_STORE):   $(call obj,$(STORE))
$(A_CMD):     $(call obj,$(filter-out cmd/main,$(CMD)))
$(A_TEST):    $(call obj,tests/lib/test $(addprefix tests/lib/fake_,backend model source))
$(B)/%.a:
	@rm -f $@
	$(Q)ar rcs $@ $^

# Other flags than last time (CURL=0, CFLAGS=…) compile everything again, so that no build is a mixture.
FLAGS_NOW := $(CPPFLAGS) $(ALL_CFLAGS)
.PHONY: force
force:
$(B)/.flags: force
	@mkdir -p $(@D)
	@[ "$$(cat $@ 2>/dev/null)" = '$(FLAGS_NOW)' ] || echo '$(FLAGS_NOW)' >$@

$(B)/%.o: %.c $(B)/.flags
	@mkdir -p $(@D)
	$(call SAY,CC)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -c -o $@ $<

# Arithmetic: fused multiply-add where the instruction set has it, no errno; every instruction set's
# file gets its own flags and is reached only after the processor was asked (isa_select).
$(B)/kernels/cpu/%.o: ALL_CFLAGS += $(if $(filter release,$(VARIANT)),-O3) -ffp-contract=fast \
  -fno-math-errno -fno-trapping-math
ifneq ($(filter x86_64%,$(shell $(CC) -dumpmachine)),)
$(B)/kernels/cpu/isa/isa_avx2.o: ALL_CFLAGS += -mavx2 -mfma
$(B)/kernels/cpu/isa/isa_avx512.o: ALL_CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma \
  -mprefer-vector-width=512
$(B)/kernels/cpu/isa/isa_amx.o: ALL_CFLAGS += -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma \
  -mprefer-vector-width=512 -mamx-tile -mamx-bf16
endif

$(B)/kernels/cpu/merge_delta.o: ALL_CFLAGS += -ffp-contract=off # says what every back end's bits are
# Merging says fused multiply-add where it means it: without contraction every instruction set gives the same bits.
$(addprefix $(B)/libcore/merge/,blend.o combine_module.o svd.o svd_subspace.o): ALL_CFLAGS += $(if $(filter release,$(VARIANT)),-O3)
$(B)/libcore/merge/values%.o: ALL_CFLAGS += $(if $(filter release,$(VARIANT)),-O3) -ffp-contract=off \
  -fno-math-errno -fno-trapping-math

-include $(patsubst %,$(B)/%.d,$(LIBCORE) $(KERNELS) $(STORE) $(CMD) tests/lib/test $(addprefix tests/lib/fake_,backend model source))

# ---- tests: a folder's tests link only the archives that it may use ----------------------------
TESTS_C := $(patsubst %.c,$(B)/%,$(wildcard tests/unit/*/test_*.c tests/unit/*/*/test_*.c \
             tests/ops/test_*.c tests/golden/test_*.c tests/sim/test_*.c))
-include $(addsuffix .d,$(TESTS_C))

define test_rule
$(B)/$(1)/%: $(1)/%.c $$(A_TEST) $(2)
	@mkdir -p $$(@D)
	$$(call SAY,TEST)
	$$(Q)$$(CC) $$(CPPFLAGS) $$(ALL_CFLAGS) $$(LDFLAGS) -rdynamic -o $$@ $$< $$(A_TEST) $(if $(4),$(subst $(A_LIBCORE),$(WHOLE),$(2)),$(2)) $(3)
endef
# Programs that open the plug-in hold all of libcore, as the program itself does: the plug-in takes it from there.
WHOLE := -Wl,--whole-archive $(A_LIBCORE) -Wl,--no-whole-archive
L0 := $(A_LIBCORE)
$(eval $(call test_rule,tests/unit/libcore,$(L0),$(LIBS_LIBCORE)))
$(eval $(call test_rule,tests/unit/kernels,$(A_KERNELS) $(L0),$(LIBS_KERNELS) $(LIBS_LIBCORE)))
$(eval $(call test_rule,tests/unit/store,$(A_STORE) $(L0),$(LIBS_STORE) $(LIBS_LIBCORE)))
$(eval $(call test_rule,tests/unit/cmd,$(A_CMD) $(A_STORE) $(A_KERNELS) $(L0),$(LIBS_CMD) $(LIBS_STORE) $(LIBS_KERNELS) $(LIBS_LIBCORE)))
$(eval $(call test_rule,tests/ops,$(A_KERNELS) $(L0),$(LIBS_KERNELS) $(LIBS_LIBCORE),whole))
$(eval $(call test_rule,tests/sim,$(L0),$(LIBS_LIBCORE)))
$(eval $(call test_rule,tests/golden,$(A_STORE) $(A_KERNELS) $(L0),$(LIBS_STORE) $(LIBS_KERNELS) $(LIBS_LIBCORE),whole))

.PHONY: tests
tests: $(TESTS_C)
