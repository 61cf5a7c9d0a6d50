/* emulate: fibers, blocks, cards, memory, graphs and the matrix product of the emulated runtime. */
#include <cublasLt.h>
#include <chrono>
#include <cuda_bf16.h>
#include <map>
#include <mutex>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <thread>
#include <time.h>
#include <vector>

#ifndef EMU_SMS
#define EMU_SMS 6
#endif

// ---- fibers

enum { MAX_THREADS = 1024, STACK = 256 << 10, SHARED = 232448 };

alignas(1024) uint8_t emu_shared[SHARED];
emu_thread *emu_self;
dim3 emu_block_idx, emu_block_dim, emu_grid_dim;

extern "C" void emu_switch(void **save, void *to);
asm(".text\n.globl emu_switch\n.hidden emu_switch\nemu_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n");

struct fiber {
    emu_thread t; // first
    void *sp;
    const unsigned *wait; // resumes when *wait != value
    unsigned value;
    bool done;
};
struct warp_state {
    unsigned generation, arrived, alive;
    unsigned mask;
    uint8_t slots[2][32 * EMU_SLOT];
};
static fiber fibers[MAX_THREADS];
static warp_state warps[MAX_THREADS / 32];
static unsigned n_threads, n_alive, block_generation, block_arrived, current;
static unsigned long long block_sum[2];
static void *main_sp;
static uint8_t *stacks;
static const std::function<void()> *body_now;

static bool ready(const fiber &f)
{
    return !f.done && (!f.wait || *f.wait != f.value);
}

/* The next fiber that can run: first of the same warp. */
static void yield()
{
    unsigned base = current / 32 * 32, n_warp = n_threads - base < 32 ? n_threads - base : 32;
    unsigned next = MAX_THREADS;
    for (unsigned i = 1; i <= n_warp && next == MAX_THREADS; i++) {
        unsigned k = base + (current - base + i) % n_warp;
        if (ready(fibers[k]))
            next = k;
    }
    for (unsigned i = 1; i <= n_threads && next == MAX_THREADS; i++) {
        unsigned k = (current + i) % n_threads;
        if (ready(fibers[k]))
            next = k;
    }
    if (next == MAX_THREADS) {
        if (n_alive == 0) {
            void *dummy;
            emu_switch(&dummy, main_sp);
        }
        fprintf(stderr, "emulate: block %u,%u,%u waits for ever\n", emu_block_idx.x, emu_block_idx.y,
                emu_block_idx.z);
        abort();
    }
    fiber &from = fibers[current], &to = fibers[next];
    if (&from == &to)
        return;
    current = next;
    emu_self = &to.t;
    emu_switch(&from.sp, to.sp);
}

static void wait_for(const unsigned *generation, unsigned value)
{
    fiber &f = fibers[current];
    f.wait = generation;
    f.value = value;
    while (*generation == value)
        yield();
    f.wait = NULL;
}

const uint8_t *emu_warp(const void *mine, size_t n)
{
    warp_state &w = warps[emu_self->warp];
    unsigned g = w.generation;
    uint8_t *slots = w.slots[g & 1];
    memcpy(slots + emu_self->lane * EMU_SLOT, mine, n);
    if (++w.arrived == w.alive) {
        w.arrived = 0;
        w.generation++;
    } else {
        wait_for(&w.generation, g);
    }
    return slots;
}

unsigned emu_alive_mask()
{
    return warps[emu_self->warp].mask;
}

static void pass_block()
{
    block_arrived = 0;
    block_generation++;
    block_sum[block_generation & 1] = 0;
}

unsigned long long emu_block(unsigned long long v)
{
    unsigned g = block_generation;
    block_sum[g & 1] += v;
    if (++block_arrived == n_alive)
        pass_block();
    else
        wait_for(&block_generation, g);
    return block_sum[g & 1];
}

static void fiber_main()
{
    (*body_now)();
    fiber &f = fibers[current];
    f.done = true;
    n_alive--;
    warp_state &w = warps[f.t.warp];
    w.alive--;
    w.mask &= ~(1u << f.t.lane);
    if (w.alive && w.arrived == w.alive) {
        w.arrived = 0;
        w.generation++;
    }
    if (n_alive && block_arrived == n_alive)
        pass_block();
    yield();
    abort();
}

static void run_block()
{
    n_threads = n_alive = emu_block_dim.x * emu_block_dim.y * emu_block_dim.z;
    block_arrived = 0;
    block_sum[0] = block_sum[1] = 0;
    memset(emu_shared, 0xff, sizeof emu_shared); // what was never written is not zero
    for (unsigned i = 0; i < n_threads; i++) {
        fiber &f = fibers[i];
        f.t.tid = {i % emu_block_dim.x, i / emu_block_dim.x % emu_block_dim.y,
                   i / (emu_block_dim.x * emu_block_dim.y)};
        f.t.warp = (int)(i / 32);
        f.t.lane = (int)(i % 32);
        f.wait = NULL;
        f.done = false;
        void **top = (void **)(stacks + (size_t)(i + 1) * STACK);
        *--top = NULL;
        *--top = (void *)fiber_main;
        for (int k = 0; k < 6; k++)
            *--top = NULL;
        f.sp = top;
        warp_state &w = warps[i / 32];
        if (i % 32 == 0)
            w.alive = w.mask = w.arrived = 0;
        w.alive++;
        w.mask |= 1u << i % 32;
    }
    current = 0;
    emu_self = &fibers[0].t;
    emu_switch(&main_sp, fibers[0].sp);
}

// ---- cards

enum { MAX_CARDS = 8, PAGE = 4096, HUGE_PAGE = 2 << 20, HOST = -1 };

/* What was allocated on a card, or pinned: card HOST. */
struct area {
    size_t n, protect; // bytes asked for, and those whose access is switched
    int card;
};
static std::map<uintptr_t, area> areas;
static std::mutex one; // of the areas and of whatever runs on a card: one thing at a time
static int open_card;  // whose memory can be accessed
static thread_local int current_card;
static thread_local cudaError_t last_error;

__attribute__((format(printf, 1, 2), noreturn)) static void refuse(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    fprintf(stderr, "emulate: ");
    vfprintf(stderr, format, list);
    fprintf(stderr, "\n");
    va_end(list);
    abort();
}

static cudaError_t failed(cudaError_t e) { return last_error = e; }

static int env_number(const char *name, int otherwise, int most)
{
    const char *set = getenv(name);
    int n = set && *set ? atoi(set) : otherwise;
    return n < most ? n : most;
}

static int n_cards()
{
    static const int n = env_number("EMU_CARDS", 1, MAX_CARDS);
    return n;
}

static int use(int card)
{
    static const int only = env_number("EMU_ONLY", -1, MAX_CARDS);
    if (only >= 0 && card != only)
        refuse("card %d is used, only %d may be", card, only);
    return card;
}

/* The calling thread's card. Every call makes a context there, whatever it is about. */
static int here() { return use(current_card); }

/* The area that holds p, or the end. */
static std::map<uintptr_t, area>::iterator find_area(const void *p)
{
    auto next = areas.upper_bound((uintptr_t)p);
    if (next == areas.begin())
        return areas.end();
    auto found = std::prev(next);
    size_t n = found->second.n ? found->second.n : 1;
    return (uintptr_t)p - found->first < n ? found : areas.end();
}

/* A fault in another card's memory gets its name; any other takes its course. */
static void name_fault(int number, siginfo_t *info, void *)
{
    auto found = find_area(info->si_addr);
    if (found != areas.end() && found->second.card != HOST && found->second.card != open_card)
        refuse("memory of card %d is accessed while card %d runs, or by the host",
               found->second.card, open_card);
    signal(number, SIG_DFL);
}

static void protect(uintptr_t p, const area &a, bool access)
{
    if (a.card != HOST && n_cards() > 1)
        mprotect((void *)p, a.protect, access ? PROT_READ | PROT_WRITE : PROT_NONE);
}

/* With `one` held: gives access to that card's memory and to no other's. That takes long, so where
 * threads use several cards, one that is busy keeps its turn for some time. */
static void turn_to(int card, std::unique_lock<std::mutex> &alone)
{
    using namespace std::chrono;
    static steady_clock::time_point turned, used;
    for (auto now = steady_clock::now(); open_card != card && now < turned + milliseconds(300) &&
                                         now < used + milliseconds(20);
         now = steady_clock::now()) {
        alone.unlock();
        std::this_thread::sleep_for(milliseconds(1));
        alone.lock();
    }
    if (n_cards() > 1)
        used = steady_clock::now();
    if (open_card == card)
        return;
    turned = used;
    for (auto &a : areas)
        protect(a.first, a.second, a.second.card == card);
    open_card = card;
}

static cudaError_t allocate(void **p, size_t n, int card)
{
    size_t grain = n_cards() == 1 || card == HOST ? 256 : n < HUGE_PAGE ? PAGE : HUGE_PAGE;
    size_t whole = (n + 255 + grain) / grain * grain;
    *p = n > (size_t)8 << 30 ? NULL : aligned_alloc(grain, whole);
    if (!*p)
        return failed(cudaErrorMemoryAllocation);
    if (grain == HUGE_PAGE)
        madvise(*p, whole, MADV_HUGEPAGE); // access is switched far faster
    memset(*p, 0xff, n < ((size_t)64 << 20) ? n : (size_t)64 << 20);
    std::lock_guard<std::mutex> alone(one);
    if (areas.empty() && n_cards() > 1) {
        struct sigaction action = {};
        action.sa_sigaction = name_fault;
        action.sa_flags = SA_SIGINFO;
        sigaction(SIGSEGV, &action, NULL);
    }
    area &a = areas[(uintptr_t)*p] = {n, whole / PAGE * PAGE, card};
    if (card != open_card)
        protect((uintptr_t)*p, a, false);
    return 0;
}

static cudaError_t release(void *p, bool pinned)
{
    std::lock_guard<std::mutex> alone(one);
    auto found = areas.find((uintptr_t)p);
    if (!p)
        return 0;
    if (found == areas.end() || (found->second.card == HOST) != pinned)
        refuse("%p is freed, which is not the start of %s memory", p, pinned ? "pinned" : "a card's");
    protect(found->first, found->second, true);
    areas.erase(found);
    free(p);
    return 0;
}

/* n bytes at p are all of that card's memory, or none of any card's (HOST). */
static void expect_memory(const void *p, size_t n, int card)
{
    std::lock_guard<std::mutex> alone(one);
    if (n == 0)
        return;
    auto found = find_area(p);
    int of = found == areas.end() ? HOST : found->second.card;
    if (of != card)
        refuse("%p is of card %d, want %d (%d: the host)", p, of, card, HOST);
    if (card != HOST && (uintptr_t)p + n > found->first + found->second.n)
        refuse("%zu bytes at %p go beyond what was allocated", n, p);
}

static void expect_copy(const void *to, const void *from, size_t n, cudaMemcpyKind kind, int card)
{
    bool from_card = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    bool to_card = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    expect_memory(to, n, to_card ? card : HOST);
    expect_memory(from, n, from_card ? card : HOST);
}

// ---- streams and graphs

struct emu_graph {
    int card;
    std::vector<std::function<void()>> calls;
};
struct emu_stream {
    int card;
    emu_graph *recording;
};
struct emu_event {
    int card;
    timespec at;
};

/* Stream NULL is the current card's. */
static int card_of(cudaStream_t s) { return s ? use(s->card) : here(); }

static void run_on(int card, const std::function<void()> &f)
{
    std::unique_lock<std::mutex> alone(one);
    turn_to(card, alone);
    f();
}

static void queue(cudaStream_t s, std::function<void()> f)
{
    int card = card_of(s);
    if (s && s->recording)
        s->recording->calls.push_back([=] { run_on(card, f); });
    else
        run_on(card, f);
}

void emu_run(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
             std::function<void()> body)
{
    if (card_of(stream) != here())
        refuse("a launch on a stream of card %d, the current one is %d", stream->card, current_card);
    if (block.x * block.y * block.z > MAX_THREADS || shared_bytes > SHARED || !grid.x || !grid.y ||
        !grid.z || grid.y > 65535 || grid.z > 65535) {
        fprintf(stderr, "emulate: a launch of %u,%u,%u x %u with %zu bytes\n", grid.x, grid.y, grid.z,
                block.x, shared_bytes);
        abort();
    }
    queue(stream, [=] {
        if (!stacks)
            stacks = (uint8_t *)mmap(NULL, (size_t)MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        body_now = &body;
        emu_block_dim = block;
        emu_grid_dim = grid;
        for (unsigned z = 0; z < grid.z; z++)
            for (unsigned y = 0; y < grid.y; y++)
                for (unsigned x = 0; x < grid.x; x++) {
                    emu_block_idx = dim3(x, y, z);
                    run_block();
                }
    });
}

extern "C" {

const char *cudaGetErrorString(cudaError_t e)
{
    return e ? "an emulated error" : "no error";
}
cudaError_t cudaGetLastError(void)
{
    cudaError_t e = last_error;
    last_error = 0;
    return e;
}
/* EMU_CARD: what is wrong with the machine: "no driver", "old driver", "no card"; "sm 75" and
 * "small" are cards that lack something, "sm 80" and "sm 89" have less shared memory than Hopper. */
static bool card_is(const char *what)
{
    const char *card = getenv("EMU_CARD");
    return card && strcmp(card, what) == 0;
}
cudaError_t cudaGetDeviceCount(int *n)
{
    *n = 0;
    if (card_is("no driver") || card_is("old driver"))
        return cudaErrorInsufficientDriver;
    if (card_is("no card"))
        return cudaErrorNoDevice;
    return *n = n_cards(), 0;
}
cudaError_t cudaGetDevice(int *d) { return *d = current_card, 0; }
cudaError_t cudaSetDevice(int d)
{
    if (d < 0 || d >= n_cards())
        return failed(cudaErrorInvalidDevice);
    current_card = use(d);
    return 0;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int)
{
    memset(p, 0, sizeof *p);
    snprintf(p->name, sizeof p->name, "emulated card");
    p->major = card_is("sm 75") ? 7 : 8; // no Hopper: its kernels are left out
    p->minor = card_is("sm 75") ? 5 : 9;
    p->multiProcessorCount = EMU_SMS;
    p->totalGlobalMem = (size_t)8 << 30;
    p->sharedMemPerMultiprocessor = 233472;
    p->sharedMemPerBlockOptin = card_is("sm 80") ? 166912 : card_is("sm 89") ? 101376 : SHARED;
    p->l2CacheSize = 50 << 20;
    return 0;
}
cudaError_t cudaDeviceGetAttribute(int *v, cudaDeviceAttr a, int d)
{
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, d);
    *v = a == cudaDevAttrComputeCapabilityMajor   ? p.major
         : a == cudaDevAttrComputeCapabilityMinor ? p.minor
                                                  : (int)p.sharedMemPerBlockOptin;
    return e;
}
cudaError_t cudaDeviceSetCacheConfig(int) { return here(), 0; }
cudaError_t cudaDeviceSynchronize(void) { return here(), 0; }
cudaError_t cudaDriverGetVersion(int *v)
{
    return *v = card_is("no driver") ? 0 : card_is("old driver") ? 12040 : 13000, 0;
}
cudaError_t cudaRuntimeGetVersion(int *v) { return *v = 13000, 0; }
cudaError_t cudaMemGetInfo(size_t *f, size_t *t)
{
    here();
    return *f = *t = card_is("small") ? (size_t)64 << 20 : (size_t)4 << 30, 0;
}
cudaError_t cudaMalloc(void **p, size_t n) { return allocate(p, n, here()); }
cudaError_t cudaFree(void *p) { return here(), release(p, false); }
cudaError_t cudaHostAlloc(void **p, size_t n, unsigned) { return here(), allocate(p, n, HOST); }
cudaError_t cudaFreeHost(void *p) { return here(), release(p, true); }
cudaError_t cudaHostRegister(void *, size_t, unsigned) { return here(), 0; }
cudaError_t cudaHostUnregister(void *) { return here(), 0; }
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind, cudaStream_t s)
{
    expect_copy(to, from, n, kind, card_of(s));
    queue(s, [=] { memmove(to, from, n); });
    return 0;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    return cudaMemcpyAsync(to, from, n, kind, NULL);
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t tp, const void *from, size_t fp, size_t w, size_t h,
                              cudaMemcpyKind kind, cudaStream_t s)
{
    for (size_t i = 0; i < h; i++)
        expect_copy((char *)to + i * tp, (const char *)from + i * fp, w, kind, card_of(s));
    queue(s, [=] {
        for (size_t i = 0; i < h; i++)
            memcpy((char *)to + i * tp, (const char *)from + i * fp, w);
    });
    return 0;
}
cudaError_t cudaMemsetAsync(void *p, int v, size_t n, cudaStream_t s)
{
    expect_memory(p, n, card_of(s));
    queue(s, [=] { memset(p, v, n); });
    return 0;
}
cudaError_t cudaMemset(void *p, int v, size_t n) { return cudaMemsetAsync(p, v, n, NULL); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned)
{
    return *s = new emu_stream{here(), NULL}, 0;
}
cudaError_t cudaStreamDestroy(cudaStream_t s) { return here(), delete s, 0; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return here(), 0; }
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return here(), 0; }
cudaError_t cudaEventCreate(cudaEvent_t *e) { return *e = new emu_event{here(), {}}, 0; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t e) { return here(), delete e, 0; }
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    here();
    if (e->card != card_of(s))
        refuse("an event of card %d is recorded on a stream of card %d", e->card, card_of(s));
    clock_gettime(CLOCK_MONOTONIC, &e->at);
    return 0;
}
cudaError_t cudaEventQuery(cudaEvent_t) { return here(), 0; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return here(), 0; }
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b)
{
    here();
    if (a->card != b->card)
        refuse("the time between events of cards %d and %d", a->card, b->card);
    *ms = (float)(b->at.tv_sec - a->at.tv_sec) * 1e3f + (float)(b->at.tv_nsec - a->at.tv_nsec) * 1e-6f;
    return 0;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t s, int)
{
    here();
    s->recording = new emu_graph{s->card, {}};
    return 0;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *g)
{
    here();
    *g = s->recording;
    s->recording = NULL;
    return 0;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    here();
    *e = new emu_graph(*g);
    return 0;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) { return here(), delete g, 0; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e) { return here(), delete e, 0; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    here();
    if (e->card != card_of(s))
        refuse("a graph of card %d on a stream of card %d", e->card, card_of(s));
    for (auto &f : e->calls)
        f();
    return 0;
}

// ---- cuBLASLt: D = op(A)^T B, column-major

/* A handle is its card's. */
cublasStatus_t cublasLtCreate(cublasLtHandle_t *h) { return *h = new int(here()), 0; }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return here(), delete (int *)h, 0; }
size_t cublasLtGetVersion(void) { return 130000; }
size_t cublasLtGetCudartVersion(void) { return 13000; }
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, int, int)
{
    *d = (cublasLtMatmulDesc_t)calloc(1, sizeof **d);
    return 0;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return free(d), 0; }
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, int a, const void *v, size_t)
{
    if (a == CUBLASLT_MATMUL_DESC_TRANSA)
        memcpy(&d->transposed_a, v, sizeof(int));
    return 0;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, int type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    *l = (cublasLtMatrixLayout_t)calloc(1, sizeof **l);
    (*l)->type = type;
    (*l)->rows = rows;
    (*l)->cols = cols;
    (*l)->ld = ld;
    return 0;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return free(l), 0; }
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p) { return *p = NULL, 0; }
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t) { return 0; }
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t, int, const void *, size_t)
{
    return 0;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t *out, int *n)
{
    memset(out, 0, sizeof *out);
    *n = 1;
    return 0;
}
cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                       cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                       const cublasLtMatmulAlgo_t *,
                                       cublasLtMatmulHeuristicResult_t *out)
{
    memset(out, 0, sizeof *out);
    return 0;
}
cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *,
                              cublasLtMatrixLayout_t, void *out, cublasLtMatrixLayout_t lo,
                              const cublasLtMatmulAlgo_t *, void *, size_t, cudaStream_t s)
{
    int card = *(const int *)h;
    if (card_of(s) != card || here() != card)
        refuse("a product of card %d's handle on a stream of card %d, the current one is %d", card,
               card_of(s), current_card);
    if (!d->transposed_a || *(const float *)alpha != 1 || *(const float *)beta != 0)
        abort();
    uint64_t k = la->rows, n = la->cols, t = lb->cols;
    int64_t lda = la->ld, ldb = lb->ld, ldo = lo->ld;
    int type = lo->type;
    queue(s, [=] {
        for (uint64_t i = 0; i < t; i++)
            for (uint64_t j = 0; j < n; j++) {
                const __nv_bfloat16 *x = (const __nv_bfloat16 *)b + i * ldb;
                const __nv_bfloat16 *w = (const __nv_bfloat16 *)a + j * lda;
                float sum = 0;
                for (uint64_t l = 0; l < k; l++)
                    sum += __bfloat162float(x[l]) * __bfloat162float(w[l]);
                if (type == CUDA_R_32F)
                    ((float *)out)[i * ldo + j] = sum;
                else
                    ((__nv_bfloat16 *)out)[i * ldo + j] = __float2bfloat16(sum);
            }
    });
    return 0;
}

} // extern "C"
