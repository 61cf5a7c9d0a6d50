/*
 * fuzz_main: drives a fuzz target without libFuzzer: every file of its corpus, then mutations of
 * them, the same ones at every run. A target is tests/fuzz/fuzz_NAME.c with int
 * LLVMFuzzerTestOneInput(const uint8_t *data, size_t size); and tests/fuzz/corpus/NAME/. It fails
 * by crashing or by what a sanitizer finds; the input in hand is then left in
 * build/tmp/fuzz_NAME.input.
 *   fuzz_NAME [FILE…]          only these files, as they are (to try a found one again)
 *   LORA_FUZZ_RUNS=N LORA_FUZZ_SEED=N   how many mutations (3000), and which
 */
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MAX_INPUT_BYTES = 1 << 20, MAX_FILES = 4096 };

struct input {
    uint8_t *data;
    size_t size;
};

static struct input corpus[MAX_FILES];
static size_t n_corpus;
static uint8_t *in_hand; // a mapped file, so that it outlives a crash
static uint64_t random_state;

/* xorshift64*: the same numbers everywhere. */
static uint64_t next_random(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * UINT64_C(2685821657736338717);
}

static size_t below(size_t n)
{
    return n ? (size_t)(next_random() % n) : 0;
}

static void load(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f || n_corpus == MAX_FILES) {
        printf("Bail out! cannot read %s\n", path);
        exit(1);
    }
    uint8_t *data = malloc(MAX_INPUT_BYTES);
    size_t size = fread(data, 1, MAX_INPUT_BYTES, f);
    fclose(f);
    data = realloc(data, size ? size : 1);
    corpus[n_corpus++] = (struct input){data, size};
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static void load_folder(const char *folder)
{
    struct dirent **names;
    int n = scandir(folder, &names, NULL, by_name);
    for (int i = 0; i < n; i++) {
        char path[PATH_MAX + 300];
        snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
        if (names[i]->d_name[0] != '.')
            load(path);
        free(names[i]);
    }
    if (n >= 0)
        free(names);
}

static void map_in_hand(const char *name)
{
    char path[PATH_MAX];
    const char *tmp = getenv("LORA_TEST_TMP");
    snprintf(path, sizeof path, "%s/%s.input", tmp ? tmp : "/tmp", name);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ftruncate(fd, MAX_INPUT_BYTES) != 0)
        return;
    void *p = mmap(NULL, MAX_INPUT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    in_hand = p == MAP_FAILED ? NULL : p;
    close(fd);
}

/* From a block of exactly its size, so that a sanitizer sees the first byte read beyond it. */
static void try_input(const uint8_t *data, size_t size)
{
    if (in_hand)
        memcpy(in_hand, data, size);
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    LLVMFuzzerTestOneInput(copy, size);
    free(copy);
}

static size_t mutate_once(uint8_t *buf, size_t size)
{
    static const char *const words[] = {
        "18446744073709551615", "-1", "{",  "}",  "[",  "]", "\"", "\\u0000", "0", "null", "\xFF",
        "\xED\xA0\x80",         "{%", "%}", "{{", "}}", ":", ",",  "1e999"};
    size_t at = below(size + 1), n;
    switch (below(7)) {
    case 0: // a bit
        if (size)
            buf[at % size] ^= (uint8_t)(1u << below(8));
        return size;
    case 1: // a byte
        if (size)
            buf[at % size] = (uint8_t)next_random();
        return size;
    case 2: // cut off
        return at;
    case 3: // a piece less
        n = below(size - at + 1);
        memmove(buf + at, buf + at + n, size - at - n);
        return size - n;
    case 4: // a piece twice
        n = below(size - at + 1) % 64;
        if (size + n > MAX_INPUT_BYTES)
            return size;
        memmove(buf + at + n, buf + at, size - at);
        return size + n;
    case 5: { // a word of one of the formats
        const char *word = words[below(sizeof words / sizeof *words)];
        n = strlen(word);
        if (size + n > MAX_INPUT_BYTES)
            return size;
        memmove(buf + at + n, buf + at, size - at);
        memcpy(buf + at, word, n);
        return size + n;
    }
    default: { // a piece of another input
        const struct input *other = &corpus[below(n_corpus)];
        size_t from = below(other->size + 1);
        n = below(other->size - from + 1) % 256;
        if (n > size - at)
            n = size - at;
        memcpy(buf + at, other->data + from, n);
        return size;
    }
    }
}

static void mutate(size_t runs)
{
    uint8_t *buf = malloc(MAX_INPUT_BYTES);
    for (size_t i = 0; i < runs; i++) {
        const struct input *from = &corpus[below(n_corpus)];
        size_t size = from->size;
        memcpy(buf, from->data, size);
        for (size_t n = 1 + below(4); n > 0; n--)
            size = mutate_once(buf, size);
        try_input(buf, size);
    }
    free(buf);
}

int main(int argc, char **argv)
{
    const char *root = getenv("LORA_ROOT"), *runs = getenv("LORA_FUZZ_RUNS"),
               *seed = getenv("LORA_FUZZ_SEED");
    const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];
    char folder[PATH_MAX];
    setvbuf(stdout, NULL, _IOLBF, 0);
    snprintf(folder, sizeof folder, "%s/tests/fuzz/corpus/%s", root ? root : ".",
             strncmp(name, "fuzz_", 5) == 0 ? name + 5 : name);
    random_state = (seed ? strtoull(seed, NULL, 10) : 1) * 2 + 1;
    map_in_hand(name);
    for (int i = 1; i < argc; i++)
        load(argv[i]);
    if (argc == 1)
        load_folder(folder);
    for (size_t i = 0; i < n_corpus; i++)
        try_input(corpus[i].data, corpus[i].size);
    printf("%sok 1 - %s: %zu inputs\n", n_corpus ? "" : "not ", name, n_corpus);
    if (argc == 1 && n_corpus) {
        size_t n = runs ? strtoull(runs, NULL, 10) : 3000;
        mutate(n);
        printf("ok 2 - %s: %zu mutations\n", name, n);
    }
    printf("1..%d\n", argc == 1 && n_corpus ? 2 : 1);
    for (size_t i = 0; i < n_corpus; i++)
        free(corpus[i].data);
    return n_corpus == 0;
}
