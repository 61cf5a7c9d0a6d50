# lora: `make help` lists the targets. Knobs first, object lists by hand (one line a folder, an archive
# a layer), link order = layer order: cmd -> store, kernels -> libcore.

# ---- knobs ------------------------------------------------------------------------------------
# release, debug, asan, tsan: each in a folder of its own. SANITIZE=address|thread is another way to say it.
VARIANT  ?= $(if $(filter address,$(SANITIZE)),asan,$(if $(filter thread,$(SANITIZE)),tsan,release))
ifeq ($(origin CC),default)
CC       := gcc
endif
PREFIX   ?= /usr/local
DESTDIR  ?=
CURL     ?= $(shell pkg-config --exists libcurl 2>/dev/null && echo 1 || echo 0)
B        := build/$(VARIANT)

CFLAGS_release := -O2 -g
CFLAGS_debug   := -O0 -g
CFLAGS_asan    := -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined
CFLAGS_tsan    := -O1 -g -fno-omit-frame-pointer -fsanitize=thread
CFLAGS   ?= $(CFLAGS_$(VARIANT))
WARN     := -Wall -Wextra -Wmissing-prototypes -Wvla -Werror
CPPFLAGS += -I. -D_GNU_SOURCE
ALL_CFLAGS := -std=c11 $(WARN) $(CFLAGS) -fPIC -MMD -MP
LDFLAGS  += $(filter -fsanitize%,$(CFLAGS)) -Wl,--as-needed

# ---- what is built ------------------------------------------------------------------------------
LIBCORE := \
  $(addprefix libcore/base/,arena digest digest_pair err file log philox strbuf sys thread) \
  $(addprefix libcore/tensor/,dtype tensor) \
  $(addprefix libcore/adapter/,adapter bake builder capability content_id eigen stats) \
  $(addprefix libcore/format/,adapter_file checkpoint foreign foreign_names foreign_write generation_config gguf \
    gguf_lora gguf_write hub image kohya mlx peft peft_config peft_experts peft_files peft_match peft_modules \
    peft_names peft_write pickle pickle_tensors pickle_torch safetensors safetensors_header safetensors_stream \
    safetensors_writer zip_stored) \
  $(addprefix libcore/text/,added bpe bpe_merge cp_set decode decode_read json_fields json_pull \
    normalize post_process pre_read pre_tokenize regex regex_parse token_stream tokenizer \
    tokenizer_config tokenizer_open unicode unicode_late unicode_table vocab vocab_build \
    vocab_merges word_cache) \
  libcore/text/chat_template \
  $(addprefix libcore/text/jinja_,attr call case compare dict eval exec filters_lazy filters_misc \
    filters_seq filters_text format globals iter json lex loop methods methods_find methods_make \
    methods_split ops parse parse_expr parse_ops render repr scope strformat tests text value) \
  $(addprefix libcore/model/,float8 arch_gemma arch_llama arch_mixtral arch_phi arch_qwen bind bind_coverage \
    bind_variants config config_rope fingerprint load weight_file \
    module) \
  $(addprefix libcore/merge/,blend check combine combine_methods combine_module combine_rest companions each estimate explain \
    explain_pair extract extract_side factors initial into_base plan plan_float8 plan_layout plan_tensors random recipe resize stream \
    stream_block stream_float8 stream_list svd svd_subspace values values_avx2 values_avx512 values_device values_exact values_float8 values_narrow values_plain \
    values_wide work) \
  $(addprefix libcore/engine/,adapter_load adapter_place adapter_pool adapter_view admission batch device_pool engine engine_worker \
    fair kv_cache prefix_cache scheduler sequence trace) \
  libcore/backend
KERNELS := \
  $(addprefix kernels/,choices image loaded registry segment_order sites) \
  $(addprefix kernels/cpu/,access activation adapter attention backend_cpu bandwidth embed gain_bias gemm math matrix \
    merge_delta model moe norm rope sample scratch sgmv_expand sgmv_shrink step) \
  $(addprefix kernels/cpu/isa/,isa isa_amx isa_avx2 isa_avx512 isa_plain)
STORE := \
  $(addprefix store/,archive_ahead archive_in archive_name archive_out archive_tar archive_unpack archive_zip arrive base_model blob \
    block_pipe \
    cache fsck fsck_repair gc id_set import import_adapter import_base import_land import_layer import_made import_overlay import_pack \
    import_sign \
    index index_query index_vfs lease lock manifest manifest_adapter names object oci oci_parse overlay overlay_apply pack pack_write \
    bundle publish refs registry_ref schema sign signed signed_folder source store) \
  $(if $(filter 1,$(CURL)),store/registry $(addprefix store/registry_,auth login many pull push refer),store/registry_none)
CMD := \
  $(addprefix cmd/,main cmd model_ref options options_sources options_value help help_man pack_overlay progress table) \
  $(addprefix cmd/,inspect_info inspect_map inspect_print report) \
  $(addprefix cmd/cmd_,import inspect merge diff serve list run bench tag rm gc fsck export extract resize prompt tokenize env completion version help) \
  $(addprefix cmd/,base_ref cache_folder import_initial merge_base made_adapter output_folder merge_combine merge_explain merge_inputs run_answer run_logits run_prompt) \
  $(addprefix cmd/cmd_,pack pull push sign verify) cmd/signing \
  $(addprefix cmd/bench/,bench_adapters bench_layer bench_mix bench_model bench_steps bench_traffic report_layer report_steps \
    report_traffic) \
  $(addprefix cmd/serve/,answer api api_admin api_chat_render api_openai api_sglang api_vllm auth check \
    fields format format_openai format_sglang generation http http_exchange metrics metrics_render \
    names names_load options output params plan router runtime server text_kit)

LIBS_LIBCORE := -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm -lpthread
LIBS_STORE   := -lsqlite3 -larchive -lzstd -lz $(if $(filter 1,$(CURL)),-lcurl)
LIBS_KERNELS := -ldl
LIBS_CMD     := -lmicrohttpd
ifeq ($(CURL),1)
CPPFLAGS += -DLORA_WITH_CURL
endif

include build.mk
include make/check.mk make/install.mk
