/* metal_standin.c - stands in for libobjc and Metal.framework where there are none. Objects are counted, messages to what is not
 * there end the process, and so does a selector that the backend's table (native/backends/metal/objc.h) does not have; each
 * method is a function of the very type that the table gives it. What is committed runs once it is waited for.
 *     STANDIN_FAMILY=1007               of the GPU, and all before it; 1006: it has no simdgroup matrices
 *     STANDIN_MEMORY=BYTES              its working set
 *     STANDIN_FAIL="commit 5 7"         the 5th call of a selector, and all later ones, fail: nil, or a command buffer with error 7
 *     STANDIN_CACHE=FOLDER              of kernels compiled for the processor; without it they are not compiled and do nothing
 *     STANDIN_CXX="g++ ... -IFOLDER"    compiles them, with tests/native/emulated/metal among its includes
 *     STANDIN_LOG=FILE                  "pipeline" for each that is made, and at the end "alive N": objects that were not released, and pools that were not drained */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include "../../native/backends/metal/objc.h"

int standin_alive, standin_calls; /* objects and pools; calls of the selector of STANDIN_FAIL */
const char *standin_fail;         /* takes the place of STANDIN_FAIL */

static long number(const char *name, long otherwise) { return getenv(name) ? atol(getenv(name)) : otherwise; }

static void broken(const char *format, ...) {
    va_list values;
    va_start(values, format);
    fprintf(stderr, "stand-in for Metal: ");
    vfprintf(stderr, format, values);
    fprintf(stderr, "\n");
    abort();
}

static void tell(const char *format, ...) {
    const char *path = getenv("STANDIN_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    va_list values;
    if (!file) return;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fclose(file);
}

/* The code that this call must fail with; 0: it may go on. */
static int fails(const char *name) {
    char which[96];
    int first, code;
    const char *what = standin_fail ? standin_fail : getenv("STANDIN_FAIL");
    if (!what || sscanf(what, "%95s %d %d", which, &first, &code) != 3 || strcmp(which, name) != 0) return 0;
    return ++standin_calls >= first ? code : 0;
}

/* ---- objects ---- */

enum { CLASS, STRING, ARRAY, ERROR, OPTIONS, CONSTANTS, DEVICE, QUEUE, BUFFER, LIBRARY, FUNCTION, PIPELINE, COMMANDS, ENCODER, BLIT, KINDS };
static const char *const KIND_NAMES[] = {"class", "NSString", "NSArray", "NSError", "MTLCompileOptions", "MTLFunctionConstantValues", "MTLDevice",
                                         "MTLCommandQueue", "MTLBuffer", "MTLLibrary", "MTLFunction", "MTLComputePipelineState", "MTLCommandBuffer",
                                         "MTLComputeCommandEncoder", "MTLBlitCommandEncoder"};
enum { BUFFERS = 12 };

typedef void entry(void *place, void **at);
typedef struct command { /* a dispatch, or (without a pipeline) a copy */
    mtl_id pipeline, buffer[BUFFERS];
    mtl_uint offset[BUFFERS], bytes;
    mtl_size groups, threads;
    char arguments[2][512]; /* of the kernel, and the counts of the feed */
} command;

struct objc_object {
    int kind, references;
    char *text;        /* of strings and errors */
    long code;         /* of errors; status of command buffers; which class makes objects of which kind */
    char *memory;      /* of buffers */
    mtl_uint bytes;
    int borrowed;
    unsigned constants[10];
    entry *enter;      /* of kernels */
    unsigned *constants_of;
    mtl_id parent;     /* a command buffer of an encoder, a library of a function */
    command *commands, now;
    int n_commands, fail, open;
    double began, ended;
    struct objc_object *next; /* among those committed */
};

static mtl_id made(int kind) {
    mtl_id object = calloc(1, sizeof *object);
    object->kind = kind;
    object->references = 1;
    standin_alive++;
    return object;
}

static mtl_id kept(mtl_id object) {
    if (object) object->references++;
    if (object && object->kind == DEVICE) standin_alive++; /* it lives for ever, but each reference is to be released */
    return object;
}

static size_t in_use;
static void dropped(mtl_id object) {
    if (!object) return;
    if (object->references <= 0) broken("a %s is released once too often", KIND_NAMES[object->kind]);
    if (object->kind == DEVICE) standin_alive--;
    if (--object->references > 0 || object->kind == CLASS || object->kind == DEVICE) return;
    if (object->open) broken("a %s ends before endEncoding", KIND_NAMES[object->kind]);
    for (int i = 0; i < object->n_commands; i++) {
        dropped(object->commands[i].pipeline);
        for (int k = 0; k < BUFFERS; k++) dropped(object->commands[i].buffer[k]);
    }
    if (object->kind == BUFFER) in_use -= object->bytes;
    if (object->kind == BUFFER && !object->borrowed) free(object->memory);
    free(object->commands);
    free(object->text);
    dropped(object->parent);
    standin_alive--;
    memset(object, 0, sizeof *object);
    object->kind = KINDS; /* what is sent to it now is an error */
    free(object);
}

static mtl_id the_device(void) {
    static struct objc_object device = {.kind = DEVICE};
    return &device;
}

/* ---- pools ---- */

enum { MOST_POOLS = 16, MOST_POOLED = 1 << 16 };
static mtl_id pooled[MOST_POOLED];
static int n_pooled, pools[MOST_POOLS], n_pools;

void *objc_autoreleasePoolPush(void) {
    if (n_pools == MOST_POOLS) broken("too many pools");
    pools[n_pools] = n_pooled;
    standin_alive++;
    return &pools[n_pools++];
}
void objc_autoreleasePoolPop(void *pool) {
    if (n_pools == 0 || pool != &pools[n_pools - 1]) broken("pools are not drained in order");
    while (n_pooled > pools[n_pools - 1]) dropped(pooled[--n_pooled]);
    n_pools--;
    standin_alive--;
}
static mtl_id pooling(mtl_id object) {
    if (!object) return NULL;
    if (n_pools == 0) broken("a %s is autoreleased without a pool", KIND_NAMES[object->kind]);
    if (n_pooled == MOST_POOLED) broken("a pool is full");
    return pooled[n_pooled++] = object;
}

static mtl_id text_of(int kind, const char *text, long code) {
    mtl_id object = made(kind);
    object->text = strdup(text);
    object->code = code;
    return pooling(object);
}

/* ---- fibers: the threads of a workgroup, which change at barriers ---- */

typedef struct three { unsigned x, y, z; } three;
static struct { three group, groups, thread; void (*barrier)(void); } place;
enum { MOST_THREADS = 1024, STACK = 1 << 17 };
static ucontext_t made_at, fibers[MOST_THREADS];
static jmp_buf scheduler, at[MOST_THREADS];
static char *stacks, started[MOST_THREADS], ended[MOST_THREADS];
static entry *entered;
static void **buffers_now;

static void change(void) {
    const unsigned me = place.thread.x;
    if (!_setjmp(at[me])) _longjmp(scheduler, 1);
}

static void body(void) {
    for (;;) {
        entered(&place, buffers_now);
        ended[place.thread.x] = 1;
        change();
    }
}

static void go_on(unsigned t) {
    place.thread.x = t;
    if (_setjmp(scheduler)) return;
    if (started[t]) _longjmp(at[t], 1);
    started[t] = 1;
    getcontext(&fibers[t]);
    fibers[t].uc_stack.ss_sp = stacks + (size_t)t * STACK;
    fibers[t].uc_stack.ss_size = STACK;
    makecontext(&fibers[t], body, 0);
    swapcontext(&made_at, &fibers[t]);
}

static void run_group(unsigned threads) {
    memset(ended, 0, threads);
    for (;;) { /* from barrier to barrier */
        unsigned at_end = 0;
        for (unsigned t = 0; t < threads; t++) {
            go_on(t);
            at_end += (unsigned)ended[t];
        }
        if (at_end == threads) return;
        if (at_end) broken("a barrier that %u of %u threads do not reach", at_end, threads);
    }
}

static void run(const command *c) {
    void *memory[BUFFERS];
    for (int k = 0; k < BUFFERS; k++) memory[k] = c->buffer[k] ? c->buffer[k]->memory + c->offset[k] : NULL;
    if (!c->pipeline) {
        memcpy(memory[1], memory[0], c->bytes);
        return;
    }
    if (!c->pipeline->enter) return;
    if (!stacks) stacks = malloc((size_t)MOST_THREADS * STACK);
    for (int k = 0; k < 2; k++) memory[10 + k] = (void *)(uintptr_t)c->arguments[k];
    memcpy(c->pipeline->constants_of, c->pipeline->constants, sizeof c->pipeline->constants);
    entered = c->pipeline->enter;
    buffers_now = memory;
    place.barrier = change;
    place.groups = (three){(unsigned)c->groups.width, (unsigned)c->groups.height, 1};
    for (place.group.y = 0; place.group.y < place.groups.y; place.group.y++)
        for (place.group.x = 0; place.group.x < place.groups.x; place.group.x++) run_group((unsigned)c->threads.width);
}

/* ---- methods ---- */

#define SELF (void)s

static mtl_id m_new(mtl_id self, mtl_sel s) { SELF; return fails("new") ? NULL : made((int)self->code); }
static mtl_id m_retain(mtl_id self, mtl_sel s) { SELF; return kept(self); }
static void m_release(mtl_id self, mtl_sel s) { SELF; dropped(self); }
static mtl_id m_string(mtl_id self, mtl_sel s, const char *text) {
    SELF, (void)self;
    return fails("stringWithUTF8String:") ? NULL : text_of(STRING, text, 0);
}
static const char *m_utf8(mtl_id self, mtl_sel s) { SELF; return self->text; }
static mtl_uint m_count(mtl_id self, mtl_sel s) { SELF, (void)self; return (mtl_uint)number("STANDIN_DEVICES", 1); }
static mtl_id m_at(mtl_id self, mtl_sel s, mtl_uint i) { SELF, (void)self, (void)i; return the_device(); }
static mtl_int m_code(mtl_id self, mtl_sel s) { SELF; return self->code; }
static mtl_id m_description(mtl_id self, mtl_sel s) { SELF; return text_of(STRING, self->text, 0); }

static mtl_id m_name(mtl_id self, mtl_sel s) { SELF, (void)self; return text_of(STRING, "Apple Stand-in", 0); }
static mtl_bool m_unified(mtl_id self, mtl_sel s) { SELF, (void)self; return 1; }
static mtl_bool m_family(mtl_id self, mtl_sel s, mtl_int family) { SELF, (void)self; return family <= number("STANDIN_FAMILY", 1007); }
static long memory_bytes(void) { return number("STANDIN_MEMORY", 4l << 30); }
static uint64_t m_working_set(mtl_id self, mtl_sel s) { SELF, (void)self; return (uint64_t)memory_bytes(); }
static mtl_uint m_longest(mtl_id self, mtl_sel s) { SELF, (void)self; return (mtl_uint)number("STANDIN_LONGEST", memory_bytes()); }
static mtl_uint m_group_memory(mtl_id self, mtl_sel s) { SELF, (void)self; return 32 << 10; }
static mtl_id m_queue(mtl_id self, mtl_sel s) { SELF, (void)self; return fails("newCommandQueue") ? NULL : made(QUEUE); }

static mtl_id buffer_of(char *memory, mtl_uint bytes, int borrowed) {
    mtl_id buffer = made(BUFFER);
    buffer->memory = memory;
    in_use += buffer->bytes = bytes;
    buffer->borrowed = borrowed;
    return buffer;
}
static mtl_id m_buffer(mtl_id self, mtl_sel s, mtl_uint bytes, mtl_uint options) {
    SELF, (void)self, (void)options;
    if (fails("newBufferWithLength:options:") || in_use + bytes > 2 * (size_t)memory_bytes()) return NULL;
    char *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return buffer_of(memset(memory, 0, bytes), bytes, 0);
}
static mtl_id m_copy_of(mtl_id self, mtl_sel s, const void *from, mtl_uint bytes, mtl_uint options) {
    SELF, (void)self, (void)options;
    if (fails("newBufferWithBytes:length:options:")) return NULL;
    char *memory = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return buffer_of(memcpy(memory, from, bytes), bytes, 0);
}
static mtl_id m_view(mtl_id self, mtl_sel s, void *memory, mtl_uint bytes, mtl_uint options, mtl_block deallocator) {
    SELF, (void)self, (void)options, (void)deallocator;
    const mtl_uint page = (mtl_uint)sysconf(_SC_PAGESIZE);
    if (fails("newBufferWithBytesNoCopy:length:options:deallocator:")) return NULL;
    if ((uintptr_t)memory % page || bytes % page || !bytes) broken("%lu bytes at %p are not whole pages", bytes, memory);
    return buffer_of(memory, bytes, 1);
}
static void *m_contents(mtl_id self, mtl_sel s) { SELF; return self->memory; }

static void m_fast_math(mtl_id self, mtl_sel s, mtl_bool on) { SELF; self->code = on; }

/* A library of a text: its machine code lies in the cache, under a hash of the text. */
static entry *compiled(const char *text, unsigned **constants, char reason[256]) {
    const char *folder = getenv("STANDIN_CACHE"), *compiler = getenv("STANDIN_CXX");
    char base[400], command_[8192], line[200] = "";
    uint64_t hash = 0xcbf29ce484222325u;
    for (const char *c = text; *c; c++) hash = (hash ^ (unsigned char)*c) * 0x100000001b3u;
    snprintf(base, sizeof base, "%s/%016llx", folder, (unsigned long long)hash);
    snprintf(command_, sizeof command_, "%s.so", base);
    if (access(command_, R_OK)) {
        snprintf(command_, sizeof command_, "%s.metal", base);
        FILE *file = fopen(command_, "w");
        if (!file) broken("%s cannot be written", command_);
        fprintf(file, "%s\nEMULATED_ENTRY\n", text);
        fclose(file);
        snprintf(command_, sizeof command_, "%s -x c++ %s.metal -o %s.%d 2>%s.log && mv %s.%d %s.so", compiler, base, base, (int)getpid(), base, base,
                 (int)getpid(), base);
        if (system(command_)) {
            snprintf(command_, sizeof command_, "%s.log", base);
            file = fopen(command_, "r");
            while (file && fgets(line, sizeof line, file) && !strstr(line, "error")) {}
            if (file) fclose(file);
            snprintf(reason, 256, "%s", line);
            return NULL;
        }
        snprintf(command_, sizeof command_, "%s.so", base);
    }
    void *library = dlopen(command_, RTLD_NOW | RTLD_LOCAL);
    unsigned *(*constants_of)(void) = library ? (unsigned *(*)(void))dlsym(library, "emulated_constants_of") : NULL;
    if (!constants_of) broken("%s", dlerror());
    *constants = constants_of();
    return (entry *)dlsym(library, "emulated_enter");
}

static mtl_id m_library(mtl_id self, mtl_sel s, mtl_id text, mtl_id options, mtl_id *error) {
    SELF, (void)self;
    char reason[256] = "";
    unsigned *constants = NULL;
    entry *enter = NULL;
    if (text->kind != STRING || options->kind != OPTIONS || options->code) broken("a library of no text, or with fast mathematics");
    const int refused = fails("newLibraryWithSource:options:error:");
    if (refused) snprintf(reason, sizeof reason, "program_source:1:1: error: the %dth kind of mistake\nin two lines", refused);
    else if (getenv("STANDIN_CACHE")) enter = compiled(text->text, &constants, reason);
    if (*reason) {
        *error = text_of(ERROR, reason, refused);
        return NULL;
    }
    mtl_id library = made(LIBRARY);
    library->enter = enter;
    library->constants_of = constants;
    const char *threads = strstr(text->text, "#define SPEC_0 ");
    if (!threads) broken("a text without the threads of a workgroup");
    library->bytes = strtoul(threads + 15, NULL, 10);
    return library;
}
static void m_constant(mtl_id self, mtl_sel s, const void *value, mtl_uint type, mtl_uint i) {
    SELF;
    if (type != MTLDataTypeUInt || i >= 10) broken("a constant of type %lu at %lu", type, i);
    memcpy(&self->constants[i], value, 4);
}
static mtl_id m_function(mtl_id self, mtl_sel s, mtl_id name, mtl_id constants, mtl_id *error) {
    SELF;
    if (strcmp(name->text, "run") != 0 || constants->kind != CONSTANTS) broken("there is no function %s", name->text);
    if (fails("newFunctionWithName:constantValues:error:")) {
        *error = text_of(ERROR, "no such function", 3);
        return NULL;
    }
    mtl_id function = made(FUNCTION);
    function->parent = kept(self);
    memcpy(function->constants, constants->constants, sizeof function->constants);
    return function;
}
static mtl_id m_pipeline(mtl_id self, mtl_sel s, mtl_id function, mtl_id *error) {
    SELF, (void)self;
    if (function->kind != FUNCTION) broken("a pipeline of no function");
    if (fails("newComputePipelineStateWithFunction:error:")) {
        *error = text_of(ERROR, "Compiler encountered an internal error", 2);
        return NULL;
    }
    mtl_id pipeline = made(PIPELINE), library = function->parent;
    tell("pipeline\n");
    pipeline->enter = library->enter;
    pipeline->constants_of = library->constants_of;
    pipeline->bytes = library->bytes;
    memcpy(pipeline->constants, function->constants, sizeof pipeline->constants);
    return pipeline;
}
static mtl_uint m_most_threads(mtl_id self, mtl_sel s) { SELF; return fails("maxTotalThreadsPerThreadgroup") ? 32 : self->bytes; }

enum { COMMITTED = 2, COMPLETED = 4 };
static mtl_id committed; /* the oldest of those that have not run */

static mtl_id m_commands(mtl_id self, mtl_sel s) {
    SELF;
    if (fails("commandBuffer")) return NULL;
    mtl_id commands = made(COMMANDS);
    commands->parent = kept(self);
    return pooling(commands);
}
static mtl_id encoder_of(mtl_id commands, int kind) {
    if (commands->open) broken("two encoders of a command buffer at once");
    if (commands->code) broken("an encoder of a command buffer that was committed");
    mtl_id encoder = made(kind);
    encoder->parent = kept(commands);
    encoder->open = commands->open = 1;
    return pooling(encoder);
}
static mtl_id m_compute(mtl_id self, mtl_sel s) { SELF; return fails("computeCommandEncoder") ? NULL : encoder_of(self, ENCODER); }
static mtl_id m_blit(mtl_id self, mtl_sel s) { SELF; return fails("blitCommandEncoder") ? NULL : encoder_of(self, BLIT); }
static void m_end(mtl_id self, mtl_sel s) { SELF; self->open = self->parent->open = 0; }

static void m_commit(mtl_id self, mtl_sel s) {
    SELF;
    if (self->code || self->open) broken("a commit out of order");
    self->code = COMMITTED;
    self->fail = fails("commit");
    mtl_id *last = &committed;
    while (*last) last = &(*last)->next;
    *last = kept(self);
}
static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
static void m_wait(mtl_id self, mtl_sel s) {
    SELF;
    if (!self->code) broken("a wait for what was not committed");
    while (self->code == COMMITTED) {
        mtl_id first = committed;
        committed = first->next;
        first->began = seconds();
        for (int i = 0; i < first->n_commands && !first->fail; i++) run(&first->commands[i]);
        first->ended = seconds() + 1e-9;
        first->code = first->fail ? MTLCommandBufferStatusError : COMPLETED;
        dropped(first);
    }
}
static mtl_uint m_status(mtl_id self, mtl_sel s) { SELF; return (mtl_uint)self->code; }
static mtl_id m_error(mtl_id self, mtl_sel s) { SELF; return self->fail ? text_of(ERROR, "Caused GPU Hang Error", self->fail) : NULL; }
static double m_began(mtl_id self, mtl_sel s) { SELF; return self->began; }
static double m_ended(mtl_id self, mtl_sel s) { SELF; return self->ended; }

static void is_open(mtl_id encoder) {
    if (!encoder->open) broken("a %s is used after endEncoding", KIND_NAMES[encoder->kind]);
}
static void add(mtl_id commands, const command *c) {
    commands->commands = realloc(commands->commands, sizeof *c * (size_t)(commands->n_commands + 1));
    commands->commands[commands->n_commands++] = *c;
    kept(c->pipeline);
    for (int k = 0; k < BUFFERS; k++) kept(c->buffer[k]);
}
static void m_set_pipeline(mtl_id self, mtl_sel s, mtl_id pipeline) {
    SELF;
    is_open(self);
    if (pipeline->kind != PIPELINE) broken("no pipeline");
    self->now.pipeline = pipeline;
}
static void m_set_buffer(mtl_id self, mtl_sel s, mtl_id buffer, mtl_uint offset, mtl_uint i) {
    SELF;
    is_open(self);
    if (buffer->kind != BUFFER || i >= BUFFERS || offset % 4 || offset >= buffer->bytes) broken("buffer %lu at %lu", i, offset);
    self->now.buffer[i] = buffer;
    self->now.offset[i] = offset;
}
static void m_set_bytes(mtl_id self, mtl_sel s, const void *bytes, mtl_uint n, mtl_uint i) {
    SELF;
    is_open(self);
    if (i < 10 || i > 11 || n > sizeof *self->now.arguments) broken("%lu bytes at %lu", n, i);
    memcpy(self->now.arguments[i - 10], bytes, n);
}
static void m_dispatch(mtl_id self, mtl_sel s, mtl_size groups, mtl_size threads) {
    SELF;
    is_open(self);
    if (!self->now.pipeline || !self->now.buffer[0] || !groups.width || !groups.height || groups.depth != 1 || !threads.width ||
        threads.width > self->now.pipeline->bytes || threads.height != 1 || threads.depth != 1)
        broken("a dispatch of %lu x %lu groups of %lu threads", groups.width, groups.height, threads.width);
    self->now.groups = groups;
    self->now.threads = threads;
    add(self->parent, &self->now);
}
static void m_copy(mtl_id self, mtl_sel s, mtl_id from, mtl_uint from_at, mtl_id to, mtl_uint to_at, mtl_uint bytes) {
    SELF;
    is_open(self);
    if (from->kind != BUFFER || to->kind != BUFFER || (from_at | to_at | bytes) % 4 || from_at + bytes > from->bytes || to_at + bytes > to->bytes)
        broken("a copy of %lu bytes", bytes);
    add(self->parent, &(command){.buffer = {from, to}, .offset = {from_at, to_at}, .bytes = bytes});
}

/* ---- the runtime ---- */

/* X(kind of object, method, function): the types of both are the same, or this does not compile. */
#define IMPLEMENTED(X)                                                                                                       \
    X(CLASS, create, m_new) X(CLASS, string, m_string) X(STRING, utf8, m_utf8) X(ARRAY, count, m_count) X(ARRAY, object_at, m_at) \
    X(ERROR, code, m_code) X(ERROR, description, m_description) X(DEVICE, name, m_name) X(DEVICE, is_unified, m_unified)      \
    X(DEVICE, is_of_family, m_family) X(DEVICE, working_set, m_working_set) X(DEVICE, longest_buffer, m_longest)             \
    X(DEVICE, group_memory, m_group_memory) X(DEVICE, new_queue, m_queue) X(DEVICE, new_buffer, m_buffer)                    \
    X(DEVICE, new_copy, m_copy_of) X(DEVICE, new_view, m_view) X(BUFFER, contents, m_contents)                               \
    X(OPTIONS, set_fast_math, m_fast_math) X(DEVICE, new_library, m_library) X(CONSTANTS, set_constant, m_constant)          \
    X(LIBRARY, new_function, m_function) X(DEVICE, new_pipeline, m_pipeline) X(PIPELINE, most_threads, m_most_threads)       \
    X(QUEUE, command_buffer, m_commands) X(COMMANDS, compute, m_compute) X(COMMANDS, blit, m_blit)                           \
    X(COMMANDS, commit, m_commit) X(COMMANDS, wait, m_wait) X(COMMANDS, status, m_status) X(COMMANDS, error, m_error)        \
    X(COMMANDS, began, m_began) X(COMMANDS, ended, m_ended) X(ENCODER, end, m_end) X(BLIT, end, m_end)                       \
    X(ENCODER, set_pipeline, m_set_pipeline) X(ENCODER, set_buffer, m_set_buffer) X(ENCODER, set_bytes, m_set_bytes)         \
    X(ENCODER, dispatch, m_dispatch) X(BLIT, copy, m_copy)

struct objc_selector { const char *name; int method; };
#define SELECTOR(name, selector, type, parameters, encoding, page) {selector, mtl_has_##name},
static struct objc_selector SELECTORS[] = {MTL_METHODS(SELECTOR)};

mtl_sel sel_registerName(const char *name) {
    for (int i = 0; i < MTL_METHOD_COUNT; i++)
        if (!strcmp(SELECTORS[i].name, name)) return &SELECTORS[i];
    broken("there is no selector %s", name);
    return NULL;
}

#define METHOD(kind, method, function) {kind, mtl_has_##method, (void (*)(void))(1 ? function : (mtl_as_##method)0)},
static const struct { int kind, method; void (*function)(void); } METHODS[] = {
    IMPLEMENTED(METHOD){-1, mtl_has_retain, (void (*)(void))(1 ? m_retain : (mtl_as_retain)0)},
    {-1, mtl_has_release, (void (*)(void))(1 ? m_release : (mtl_as_release)0)}};

__attribute__((visibility("hidden"), used)) void (*standin_lookup(mtl_id self, mtl_sel selector))(void) {
    if (!self) broken("%s is sent to nil", selector->name);
    if (self->kind < 0 || self->kind >= KINDS) broken("%s is sent to an object that is gone", selector->name);
    for (size_t i = 0; i < sizeof METHODS / sizeof *METHODS; i++)
        if (METHODS[i].method == selector->method && (METHODS[i].kind == self->kind || METHODS[i].kind < 0)) return METHODS[i].function;
    broken("a %s has no method %s", KIND_NAMES[self->kind], selector->name);
    return NULL;
}

/* Finds the function and goes on in it, with all registers that hold arguments as they were. */
#if defined(__x86_64__)
__asm__(".text\n.globl objc_msgSend\n.type objc_msgSend, @function\nobjc_msgSend:\n"
        "push %rbp\nmov %rsp, %rbp\nsub $192, %rsp\n"
        "mov %rdi, (%rsp)\nmov %rsi, 8(%rsp)\nmov %rdx, 16(%rsp)\nmov %rcx, 24(%rsp)\nmov %r8, 32(%rsp)\nmov %r9, 40(%rsp)\nmov %rax, 48(%rsp)\n"
        "movups %xmm0, 64(%rsp)\nmovups %xmm1, 80(%rsp)\nmovups %xmm2, 96(%rsp)\nmovups %xmm3, 112(%rsp)\n"
        "call standin_lookup\nmov %rax, %r11\n"
        "mov (%rsp), %rdi\nmov 8(%rsp), %rsi\nmov 16(%rsp), %rdx\nmov 24(%rsp), %rcx\nmov 32(%rsp), %r8\nmov 40(%rsp), %r9\nmov 48(%rsp), %rax\n"
        "movups 64(%rsp), %xmm0\nmovups 80(%rsp), %xmm1\nmovups 96(%rsp), %xmm2\nmovups 112(%rsp), %xmm3\n"
        "leave\njmp *%r11\n");
#elif defined(__aarch64__)
__asm__(".text\n.globl objc_msgSend\n.type objc_msgSend, %function\nobjc_msgSend:\n"
        "stp x29, x30, [sp, #-160]!\nmov x29, sp\n"
        "stp x0, x1, [sp, #16]\nstp x2, x3, [sp, #32]\nstp x4, x5, [sp, #48]\nstp x6, x7, [sp, #64]\nstr x8, [sp, #80]\n"
        "stp d0, d1, [sp, #96]\nstp d2, d3, [sp, #112]\n"
        "bl standin_lookup\nmov x16, x0\n"
        "ldp x0, x1, [sp, #16]\nldp x2, x3, [sp, #32]\nldp x4, x5, [sp, #48]\nldp x6, x7, [sp, #64]\nldr x8, [sp, #80]\n"
        "ldp d0, d1, [sp, #96]\nldp d2, d3, [sp, #112]\n"
        "ldp x29, x30, [sp], #160\nbr x16\n");
#endif

mtl_id objc_getClass(const char *name) {
    static struct objc_object classes[KINDS];
    for (int i = STRING; i < KINDS; i++)
        if (!strcmp(KIND_NAMES[i], name)) {
            classes[i] = (struct objc_object){.kind = CLASS, .references = 1, .code = i};
            return &classes[i];
        }
    broken("there is no class %s", name);
    return NULL;
}

mtl_id MTLCreateSystemDefaultDevice(void) {
    if (number("STANDIN_DEVICES", 1) == 0 || fails("MTLCreateSystemDefaultDevice")) return NULL;
    return kept(the_device());
}
mtl_id MTLCopyAllDevices(void) { return fails("MTLCopyAllDevices") ? NULL : made(ARRAY); }

__attribute__((destructor)) static void at_end(void) { tell("alive %d\n", standin_alive); }
