/*
 * limits: every bound in the program, each with its reason. Options may lower them, never raise
 * them beyond what is said here.
 */
#ifndef LIBCORE_BASE_LIMITS_H
#define LIBCORE_BASE_LIMITS_H

enum {
    // safetensors: the reference reader's own bound on a header.
    LIMIT_SAFETENSORS_HEADER_BYTES = 100000000,
    // config.json, adapter_config.json, an index: the largest seen is a 2 MB shard index.
    LIMIT_CONFIG_BYTES = 32 << 20,
    // tokenizer.json: gemma3's is 33 MB.
    LIMIT_TOKENIZER_BYTES = 256 << 20,
    // ids and merges of a vocabulary: the largest known has 262,145; ids index plain arrays.
    LIMIT_VOCABULARY = 8 << 20,
    // text for one encode: offsets in it are 32 bits, and normalizers may make it grow.
    LIMIT_TEXT_BYTES = 256 << 20,
    // a regular expression of a tokenizer; the longest published one has 700 bytes.
    LIMIT_PATTERN_BYTES = 64 << 10,
    LIMIT_JSON_DEPTH = 64,
    LIMIT_TENSOR_DIMS = 8,
    // SPEC: ranks 1…1024.
    LIMIT_RANK = 1024,
    // a name of an adapter or base; fits a path component and a label of a metric.
    LIMIT_NAME_BYTES = 200,
    // request bodies: 1M tokens as JSON ids are 8 MB.
    LIMIT_BODY_BYTES = 64 << 20,
    LIMIT_CONNECTIONS = 8192,
    LIMIT_QUEUED_REQUESTS = 16384,
    LIMIT_CHOICES = 128, // `n`, and prompts in one request
    LIMIT_STOP_STRINGS = 16,
    LIMIT_LOGPROBS = 20, // top_logprobs, OpenAI's own bound
    LIMIT_LOGIT_BIAS = 1024,
    LIMIT_ADAPTERS_PER_REQUEST = 8,
    LIMIT_SEQUENCES = 4096, // running at once
    // embedding and head rows that an adapter may have beyond the base: trainers add a handful of
    // special tokens; every logit row is this much longer.
    LIMIT_ADDED_TOKENS = 1024,
    LIMIT_STEP_TOKENS = 65536,
    // Jinja: a template is somebody else's program.
    LIMIT_TEMPLATE_BYTES = 4 << 20,
    LIMIT_TEMPLATE_OUTPUT_BYTES = 64 << 20,
    LIMIT_TEMPLATE_STEPS = 20000000,
    LIMIT_TEMPLATE_DEPTH = 200,
    // a text that grows by doubling to the output's bound takes four times that, with its leftovers
    LIMIT_TEMPLATE_MEMORY_BYTES = 256 << 20,
    // packs: an archive is somebody else's file. 500 adapters with ten files each are 5000 entries.
    LIMIT_PACK_ENTRIES = 100000,
    LIMIT_PACK_NAME_BYTES = 1024,
    LIMIT_PACK_MIB = 4 << 20, // 4 TiB of entries; the disk is fuller long before
    // unpacked bytes for each packed one: weights shrink by 1.1 to 4, zeros by more; below the free
    // amount nobody is hurt, and a small text may shrink well.
    LIMIT_PACK_RATIO = 100,
    LIMIT_PACK_FREE_MIB = 64,
    // registries: the manifest of an image; the distribution protocol's own bound is 4 MiB.
    LIMIT_OCI_MANIFEST_BYTES = 4 << 20,
    // signatures: about 130 bytes a file; a checkpoint has some hundred files. Beyond so many
    // signatures of one adapter somebody is filling a disk.
    LIMIT_SIGNATURE_BYTES = 4 << 20,
    LIMIT_SIGNED_FILES = 10000,
    LIMIT_SIGNATURES = 64,
};

#endif
