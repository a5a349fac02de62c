/* os.c - see os.h. One section a system: Windows, then everything POSIX (Linux, Android, macOS, the BSDs). */
#if !defined(_WIN32) && !defined(__APPLE__)
#define _GNU_SOURCE
#endif
#include "os.h"
#include "graph/backend.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LINE_BYTES 64
#define LARGE_BYTES ((uint64_t)1 << 20)

/* Large memory is mapped: the system gives it zeroed, page by page, to the thread that touches it first. Huge pages are
 * not asked for: they change no step's time beyond what steps differ by anyway. */
static int is_large(uint64_t bytes) { return bytes >= LARGE_BYTES; }
static uint64_t padded(uint64_t bytes) { return bytes ? (bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES : LINE_BYTES; }

#if defined(__x86_64__)
#include <cpuid.h>
#endif

static void answer_fault(uintptr_t at);

#ifdef _WIN32
#include <io.h>
#include <malloc.h>
#include <windows.h>
#include <psapi.h>

double fb_os_seconds(void) {
    LARGE_INTEGER now, rate;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&rate);
    return (double)now.QuadPart / (double)rate.QuadPart;
}

void fb_os_sleep(double seconds) { Sleep((DWORD)(seconds * 1000)); }

int fb_os_cpu_count(void) {
    DWORD_PTR mine = 0, all = 0;
    DWORD n = 0;
    if (GetActiveProcessorGroupCount() == 1 && GetProcessAffinityMask(GetCurrentProcess(), &mine, &all))
        for (; mine; mine &= mine - 1) n++;
    if (!n) n = GetActiveProcessorCount(ALL_PROCESSOR_GROUPS);
    return n ? (int)n : 1;
}

uint64_t fb_os_memory_bytes(void) {
    MEMORYSTATUSEX status = {.dwLength = sizeof status};
    return GlobalMemoryStatusEx(&status) ? status.ullTotalPhys : 0;
}

uint64_t fb_os_page_bytes(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

uint64_t fb_peak_bytes(void) {
    PROCESS_MEMORY_COUNTERS counted;
    return K32GetProcessMemoryInfo(GetCurrentProcess(), &counted, sizeof counted) ? counted.PeakWorkingSetSize : 0;
}

static void *alloc_zeroed(uint64_t bytes) {
    if (is_large(bytes)) return VirtualAlloc(NULL, (size_t)bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    void *memory = _aligned_malloc((size_t)bytes, LINE_BYTES);
    return memory ? memset(memory, 0, (size_t)bytes) : NULL;
}

void fb_os_free(void *memory, uint64_t bytes) {
    if (!is_large(padded(bytes))) _aligned_free(memory);
    else if (memory) VirtualFree(memory, 0, MEM_RELEASE);
}

/* Text as the system takes it, which the caller frees; NULL where there is no memory. */
static wchar_t *wide(const char *text) {
    int n = MultiByteToWideChar(CP_UTF8, 0, text, -1, NULL, 0);
    wchar_t *made = n > 0 ? malloc((size_t)n * sizeof *made) : NULL;
    if (made) MultiByteToWideChar(CP_UTF8, 0, text, -1, made, n);
    return made;
}

/* A name alone is looked for where the system and the program have their libraries, never in the current directory. What
 * a library that has a path loads later, by a name alone, lies beside it. */
static void *library_open(const char *name) {
    wchar_t *path = wide(name), *folder = wide(name);
    HMODULE library = NULL;
    size_t end = folder ? wcslen(folder) : 0;
    while (end && folder[end - 1] != L'\\' && folder[end - 1] != L'/') end--;
    if (end) folder[end] = 0, SetDllDirectoryW(folder);
    if (path) library = LoadLibraryExW(path, NULL, end ? LOAD_WITH_ALTERED_SEARCH_PATH : LOAD_LIBRARY_SEARCH_DEFAULT_DIRS);
    free(path);
    free(folder);
    return (void *)library;
}
void fb_os_library_close(void *library) { FreeLibrary((HMODULE)library); }
void (*fb_os_function(void *library, const char *name))(void) {
    return (void (*)(void))GetProcAddress((HMODULE)library, name);
}

FILE *fb_os_file(const char *path, int writes) {
    wchar_t *name = wide(path);
    FILE *file = name ? _wfopen(name, writes ? L"wb" : L"rb") : NULL;
    free(name);
    return file;
}

int fb_os_rename(const char *from, const char *to) {
    wchar_t *old = wide(from), *new = wide(to);
    int failed = !old || !new || !MoveFileExW(old, new, MOVEFILE_REPLACE_EXISTING);
    free(old);
    free(new);
    return failed;
}

void fb_os_remove(const char *path) {
    wchar_t *name = wide(path);
    if (name) _wremove(name);
    free(name);
}

struct fb_thread {
    HANDLE handle;
    void (*body)(void *);
    void *arg;
};

static DWORD WINAPI thread_main(void *p) {
    fb_thread *thread = p;
    thread->body(thread->arg);
    return 0;
}

static int thread_create(fb_thread *thread) {
    thread->handle = CreateThread(NULL, 0, thread_main, thread, 0, NULL);
    return thread->handle != NULL;
}

void fb_thread_join(fb_thread *thread) {
    WaitForSingleObject(thread->handle, INFINITE);
    CloseHandle(thread->handle);
    free(thread);
}

void fb_os_yield(void) { SwitchToThread(); }

struct fb_gate {
    SRWLOCK lock;
    CONDITION_VARIABLE change;
};
#define GATE {SRWLOCK_INIT, CONDITION_VARIABLE_INIT}

static void gate_init(fb_gate *gate) {
    InitializeSRWLock(&gate->lock);
    InitializeConditionVariable(&gate->change);
}
static void gate_destroy(fb_gate *gate) { (void)gate; }
static void gate_lock(fb_gate *gate) { AcquireSRWLockExclusive(&gate->lock); }
static void gate_unlock(fb_gate *gate) { ReleaseSRWLockExclusive(&gate->lock); }
static void gate_sleep(fb_gate *gate) { SleepConditionVariableSRW(&gate->change, &gate->lock, INFINITE, 0); }
static void gate_broadcast(fb_gate *gate) { WakeAllConditionVariable(&gate->change); }

/* A file that is mapped cannot be cut here, but its drive may go. */
static LONG CALLBACK on_page_error(EXCEPTION_POINTERS *found) {
    const EXCEPTION_RECORD *record = found->ExceptionRecord;
    if (record->ExceptionCode == EXCEPTION_IN_PAGE_ERROR && record->NumberParameters > 1)
        answer_fault((uintptr_t)record->ExceptionInformation[1]);
    return EXCEPTION_CONTINUE_SEARCH;
}
static int faults_heard(void) { return AddVectoredExceptionHandler(1, on_page_error) != NULL; }
static void say(const char *text, size_t length) { (void)_write(2, text, (unsigned)length); }
static void stand_still(void) { Sleep(INFINITE); }

#else
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#ifdef __APPLE__
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif

double fb_os_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void fb_os_sleep(double seconds) {
    struct timespec span = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&span, NULL);
}

int fb_os_cpu_count(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

uint64_t fb_os_memory_bytes(void) {
#ifdef __APPLE__
    uint64_t bytes = 0;
    size_t size = sizeof bytes;
    return sysctlbyname("hw.memsize", &bytes, &size, NULL, 0) == 0 ? bytes : 0;
#else
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
#endif
}

uint64_t fb_os_page_bytes(void) { return (uint64_t)sysconf(_SC_PAGESIZE); }

uint64_t fb_peak_bytes(void) {
    struct rusage usage;
#ifdef __APPLE__
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss : 0;
#else
    unsigned long long kib = 0;
    char line[256];
    FILE *file = fopen("/proc/self/status", "r"); /* ru_maxrss has what the process that started this one had, too */
    while (file && !kib && fgets(line, sizeof line, file)) sscanf(line, "VmHWM: %llu", &kib);
    if (file) fclose(file);
    if (!kib && getrusage(RUSAGE_SELF, &usage) == 0) kib = (unsigned long long)usage.ru_maxrss;
    return (uint64_t)kib << 10;
#endif
}

static void *alloc_zeroed(uint64_t bytes) {
    void *memory = NULL;
    if (!is_large(bytes)) {
        if (posix_memalign(&memory, LINE_BYTES, (size_t)bytes)) return NULL;
        return memset(memory, 0, (size_t)bytes);
    }
    memory = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void fb_os_free(void *memory, uint64_t bytes) {
    bytes = padded(bytes);
    if (is_large(bytes)) munmap(memory, (size_t)bytes);
    else free(memory);
}

static void *library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }
void fb_os_library_close(void *library) { dlclose(library); }
void (*fb_os_function(void *library, const char *name))(void) {
    union { void *object; void (*function)(void); } found = {dlsym(library, name)}; /* as POSIX wants it, C does not */
    return found.function;
}
FILE *fb_os_file(const char *path, int writes) { return fopen(path, writes ? "wb" : "rb"); }
int fb_os_rename(const char *from, const char *to) { return rename(from, to); }
void fb_os_remove(const char *path) { remove(path); }

struct fb_thread {
    pthread_t handle;
    void (*body)(void *);
    void *arg;
};

static void *thread_main(void *p) {
    fb_thread *thread = p;
    thread->body(thread->arg);
    return NULL;
}

static int thread_create(fb_thread *thread) {
    return pthread_create(&thread->handle, NULL, thread_main, thread) == 0;
}

void fb_thread_join(fb_thread *thread) {
    pthread_join(thread->handle, NULL);
    free(thread);
}

void fb_os_yield(void) { sched_yield(); }

struct fb_gate {
    pthread_mutex_t lock;
    pthread_cond_t change;
};
#define GATE {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER}

static void gate_init(fb_gate *gate) {
    pthread_mutex_init(&gate->lock, NULL);
    pthread_cond_init(&gate->change, NULL);
}
static void gate_destroy(fb_gate *gate) {
    pthread_cond_destroy(&gate->change);
    pthread_mutex_destroy(&gate->lock);
}
static void gate_lock(fb_gate *gate) { pthread_mutex_lock(&gate->lock); }
static void gate_unlock(fb_gate *gate) { pthread_mutex_unlock(&gate->lock); }
static void gate_sleep(fb_gate *gate) { pthread_cond_wait(&gate->change, &gate->lock); }
static void gate_broadcast(fb_gate *gate) { pthread_cond_broadcast(&gate->change); }

static struct sigaction bus_before;

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int fault = info->si_code > 0; /* not sent by a process */
    if (fault) answer_fault((uintptr_t)info->si_addr);
    if (bus_before.sa_flags & SA_SIGINFO) bus_before.sa_sigaction(number, info, context);
    else if (bus_before.sa_handler != SIG_DFL && bus_before.sa_handler != SIG_IGN) bus_before.sa_handler(number);
    else if (fault || bus_before.sa_handler == SIG_DFL) { /* as if there were no handler: once this one returns */
        signal(number, SIG_DFL);
        if (!fault) raise(number);
    }
}

static int faults_heard(void) {
    struct sigaction action = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    action.sa_sigaction = on_bus_error;
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, &bus_before) == 0;
}
static void say(const char *text, size_t length) {
    ssize_t ignored = write(STDERR_FILENO, text, length);
    (void)ignored;
}
static void stand_still(void) { pause(); }
#endif

/* ---- the same everywhere ---- */

void *fb_os_alloc(uint64_t bytes) {
    if (bytes > SIZE_MAX - LARGE_BYTES) return NULL;
    return alloc_zeroed(padded(bytes));
}

void *fb_os_library(const char *const *names) {
    void *library = NULL;
    for (int i = 0; names[i] && !library; i++) library = library_open(names[i]);
    return library;
}

fb_thread *fb_thread_start(void (*body)(void *), void *arg) {
    fb_thread *thread = malloc(sizeof *thread);
    if (!thread) return NULL;
    thread->body = body;
    thread->arg = arg;
    if (thread_create(thread)) return thread;
    free(thread);
    return NULL;
}

fb_gate *fb_gate_new(void) {
    fb_gate *gate = malloc(sizeof *gate);
    if (gate) gate_init(gate);
    return gate;
}

void fb_gate_free(fb_gate *gate) {
    if (!gate) return;
    gate_destroy(gate);
    free(gate);
}

void fb_gate_wait(fb_gate *gate, atomic_uint *value, unsigned seen) {
    gate_lock(gate);
    while (atomic_load(value) == seen) gate_sleep(gate);
    gate_unlock(gate);
}

void fb_gate_wake(fb_gate *gate) {
    gate_lock(gate);
    gate_broadcast(gate);
    gate_unlock(gate);
}

void fb_os_rest(double seconds, const volatile int32_t *cancel) {
    double end = fb_os_seconds() + seconds;
    for (double left; (left = end - fb_os_seconds()) > 0 && !(cancel && *cancel);) fb_os_sleep(left < 0.05 ? left : 0.05);
}

int fb_os_arm_bf16(void) {
#if defined(__aarch64__) && defined(__linux__)
    enum { CAPABILITIES_2 = 26, BF16 = 1 << 14 }; /* AT_HWCAP2, HWCAP2_BF16: older headers have no names for them */
    return (getauxval(CAPABILITIES_2) & BF16) != 0;
#elif defined(__aarch64__) && defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &has, &size, NULL, 0) == 0 && has;
#else
    return 0;
#endif
}

void fb_os_cpu_name(char *name, size_t size) {
    char found[256] = "";
#if defined(__x86_64__)
    unsigned regs[12] = {0}, top = __get_cpuid_max(0x80000000u, NULL);
    for (unsigned i = 0; i < 3 && top >= 0x80000004u; i++)
        __get_cpuid(0x80000002u + i, &regs[4 * i], &regs[4 * i + 1], &regs[4 * i + 2], &regs[4 * i + 3]);
    memcpy(found, regs, sizeof regs);
#elif defined(__APPLE__)
    size_t length = sizeof found - 1;
    sysctlbyname("machdep.cpu.brand_string", found, &length, NULL, 0);
#elif defined(__linux__)
    FILE *file = fopen("/proc/cpuinfo", "r");
    char line[256];
    while (file && fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        if (colon && (!strncmp(line, "Hardware", 8) || !strncmp(line, "model name", 10))) {
            memcpy(found, colon + 1, strlen(colon + 1) + 1);
            break;
        }
    }
    if (file) fclose(file);
#endif
    char *start = found + strspn(found, " \t");
    for (size_t end = strlen(start); end && strchr(" \t\r\n", start[end - 1]); end--) start[end - 1] = 0;
    snprintf(name, size, "%s", *start ? start : "CPU");
}

/* ---- mapped files: what is global here, the handler of a fault has to find ---- */

typedef struct guard {
    _Atomic(uintptr_t) start, end; /* equal: free for the next one */
    struct guard *next;
    int code;
    size_t length;
    char sentence[1024];
} guard;

static _Atomic(guard *) guards; /* none is ever freed, for a handler may be looking at it */
static fb_gate guarding = GATE;
static atomic_flag fault_said = ATOMIC_FLAG_INIT;

/* Ends the process where the address is guarded. */
static void answer_fault(uintptr_t at) {
    for (const guard *g = atomic_load(&guards); g; g = g->next)
        if (atomic_load(&g->start) <= at && at < atomic_load(&g->end)) {
            while (atomic_flag_test_and_set(&fault_said)) stand_still(); /* another thread's sentence ends the process */
            say(g->sentence, g->length);
            _exit(g->code);
        }
}

/* Forgets what overlaps; returns a guard that is free, or NULL. */
static guard *free_guard(uintptr_t start, uintptr_t end) {
    guard *found = NULL;
    for (guard *g = atomic_load(&guards); g; g = g->next) {
        if (atomic_load(&g->start) < end && start < atomic_load(&g->end)) atomic_store(&g->end, atomic_load(&g->start));
        if (atomic_load(&g->start) == atomic_load(&g->end)) found = g;
    }
    return found;
}

int fb_guard(const void *mapped, uint64_t bytes, const char *sentence, int code) {
    const uintptr_t start = (uintptr_t)mapped, end = start + (uintptr_t)bytes;
    if (!mapped || !sentence || end < start || strlen(sentence) >= sizeof ((guard *)0)->sentence)
        return fb_fail(FB_E_ARGUMENT, "a guard needs memory and a sentence of less than 1024 bytes");
    gate_lock(&guarding);
    int first = !atomic_load(&guards), failed = 0;
    guard *g = free_guard(start, end), *new = g ? NULL : calloc(1, sizeof *g);
    if (new) g = new;
    if (g) {
        g->code = code;
        g->length = strlen(sentence);
        memcpy(g->sentence, sentence, g->length + 1);
        atomic_store(&g->end, 0); /* empty while it moves */
        atomic_store(&g->start, start);
        atomic_store(&g->end, end);
        if (new) {
            new->next = atomic_load(&guards);
            atomic_store(&guards, new);
        }
        failed = first && !faults_heard();
    }
    gate_unlock(&guarding);
    return g && !failed ? FB_OK : fb_fail(FB_E_MEMORY, "a mapped file could not be guarded");
}

void fb_unguard(const void *mapped) {
    gate_lock(&guarding);
    free_guard((uintptr_t)mapped, (uintptr_t)mapped + 1);
    gate_unlock(&guarding);
}
