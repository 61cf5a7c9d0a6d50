# What leaves the build folder: installation, man pages, the bundle; and the CUDA plug-in.

VERSION := $(shell sed -n 's/.*LORA_VERSION "\(.*\)".*/\1/p' cmd/cmd_impl.h)
BINDIR  ?= $(PREFIX)/bin
LIBDIR  ?= $(PREFIX)/lib/lora
DATADIR ?= $(PREFIX)/share
DOCS    := README.md LICENSE $(wildcard docs/*.md)

.PHONY: man install uninstall bundle cuda demo deps clean format help

man: $(B)/lora ## writes docs/man/*.1 from the option tables
	@mkdir -p docs/man
	@$(B)/lora help --man >docs/man/lora.1
	@for c in $$($(B)/lora help --names); do $(B)/lora help --man $$c >docs/man/lora-$$c.1 || exit 1; done

# The plug-in lies where the program looks for it: beside itself, so both go to LIBDIR, with a link in BINDIR.
install: all ## installs below PREFIX (/usr/local), or DESTDIR/PREFIX
	install -d "$(DESTDIR)$(LIBDIR)" "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(DATADIR)/man/man1" "$(DESTDIR)$(DATADIR)/doc/lora" \
	  "$(DESTDIR)$(DATADIR)/bash-completion/completions" "$(DESTDIR)$(DATADIR)/zsh/site-functions" \
	  "$(DESTDIR)$(DATADIR)/fish/vendor_completions.d"
	install -m 755 $(B)/lora "$(DESTDIR)$(LIBDIR)/lora"
	@if [ -e $(B)/lora_cuda.so ]; then install -m 755 $(B)/lora_cuda.so "$(DESTDIR)$(LIBDIR)/lora_cuda.so"; fi
	ln -sf "$(shell realpath -m --relative-to="$(BINDIR)" "$(LIBDIR)")/lora" "$(DESTDIR)$(BINDIR)/lora"
	@$(B)/lora help --man >"$(DESTDIR)$(DATADIR)/man/man1/lora.1"
	@for c in $$($(B)/lora help --names); do \
	  $(B)/lora help --man $$c >"$(DESTDIR)$(DATADIR)/man/man1/lora-$$c.1" || exit 1; done
	@$(B)/lora completion bash >"$(DESTDIR)$(DATADIR)/bash-completion/completions/lora"
	@$(B)/lora completion zsh >"$(DESTDIR)$(DATADIR)/zsh/site-functions/_lora"
	@$(B)/lora completion fish >"$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/lora.fish"
	install -m 644 $(DOCS) "$(DESTDIR)$(DATADIR)/doc/lora/"

uninstall: ## removes what install put there
	rm -rf "$(DESTDIR)$(LIBDIR)" "$(DESTDIR)$(DATADIR)/doc/lora"
	rm -f "$(DESTDIR)$(BINDIR)/lora" "$(DESTDIR)$(DATADIR)"/man/man1/lora.1 "$(DESTDIR)$(DATADIR)"/man/man1/lora-*.1 \
	  "$(DESTDIR)$(DATADIR)/bash-completion/completions/lora" "$(DESTDIR)$(DATADIR)/zsh/site-functions/_lora" \
	  "$(DESTDIR)$(DATADIR)/fish/vendor_completions.d/lora.fish"

bundle: all ## build/lora-VERSION-MACHINE.tar.gz: the program with its libraries, for a machine that has none of them
	@make/bundle.sh $(B) $(VERSION)

# ---- the CUDA plug-in ---------------------------------------------------------------------------
# lora_cuda.so beside the program, which opens it when it is there (and a link beside build/lora). CUDA's libraries are found by the toolkit's own folder.
NVCC      ?= $(shell command -v nvcc 2>/dev/null || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
CUDA_ARCH ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_89,code=sm_89 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90
# Files of instructions that only sm_90a has; reached after the card was asked.
CUDA_90A  := $(addprefix kernels/cuda/,attention_hopper.cu gemm_prefill.cu)
ARCH_90A  := -gencode arch=compute_90a,code=sm_90a
CUDA_HOME  = $(patsubst %/bin/,%,$(dir $(NVCC)))
CUDA_SRC  := $(sort $(wildcard kernels/cuda/*.cu))
CUDA_C    := $(sort $(wildcard kernels/cuda/*.c)) kernels/choices.c kernels/image.c kernels/loaded.c kernels/segment_order.c
CUDA_OBJ  := $(CUDA_SRC:%.cu=$(B)/%.cu.o) $(CUDA_C:%.c=$(B)/%.cuda.o)

cuda: ## the CUDA back end: build/lora_cuda.so (needs nvcc)
	@[ -n "$(CUDA_SRC)" ] || { echo "cuda: kernels/cuda holds no kernels yet" >&2; exit 1; }
	@[ -n "$(NVCC)" ] || { echo "cuda: nvcc was not found; install the CUDA toolkit or set NVCC" >&2; exit 1; }
	@+$(MAKE) --no-print-directory $(PARALLEL) $(B)/lora_cuda.so
	@ln -sf $(VARIANT)/lora_cuda.so build/lora_cuda.so

# libcore comes from the program that opens the plug-in (-rdynamic); nothing of it is linked twice.
$(B)/lora_cuda.so: $(CUDA_OBJ)
	$(call SAY,LINK)
	$(Q)$(CC) -shared -Wl,-Bsymbolic -o $@ $^ -L$(CUDA_HOME)/lib64 -Wl,-rpath,$(CUDA_HOME)/lib64 -lcudart -lcublasLt -lstdc++ -lm

$(B)/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(call SAY,NVCC)
	$(Q)$(NVCC) -std=c++17 -O3 -lineinfo $(if $(filter $<,$(CUDA_90A)),$(ARCH_90A),$(CUDA_ARCH)) -I. -Xcompiler -fPIC,-Wall,-Wextra -MMD -MF $(@:.o=.d) -c -o $@ $<

$(B)/%.cuda.o: %.c
	@mkdir -p $(@D)
	$(call SAY,CC)
	$(Q)$(CC) $(CPPFLAGS) $(ALL_CFLAGS) -I$(CUDA_HOME)/include -c -o $@ $<

-include $(CUDA_OBJ:.o=.d)

# ---- the rest -----------------------------------------------------------------------------------

demo: ## eight adapters answer the same words differently, from one batch
	@make/deps.sh build
	@+$(MAKE) --no-print-directory --silent $(PARALLEL) all $(B)/tests/lib/http_load
	@examples/tinytalk/demo.sh

deps: ## installs missing packages with apt, or says which are missing
	@make/deps.sh all

SOURCES = $(shell git ls-files '*.c' '*.h' 2>/dev/null)
CLANG_FORMAT ?= $(shell command -v clang-format-14 || echo clang-format)
format: ## clang-format over every source file
	$(CLANG_FORMAT) -i $(SOURCES)

clean: ## removes build/
	rm -rf build

help: ## this list
	@echo "make targets (VARIANT=release|debug|asan|tsan, PREFIX, DESTDIR, CURL=0):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
