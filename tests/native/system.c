/* system.c - what os.c says of each system, on that system: build it with native/os.c and native/graph/error.c.
 *
 *     system all FOLDER      clock, memory, processors, threads, and files under FOLDER, which is there
 *     system library PATH    loads the library by its path, and not by its name alone
 *     system fault FILE      reads what is gone of a mapped file: ends with exit code 74 and a sentence */
#if !defined(_WIN32) && !defined(__APPLE__)
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../native/include/fabric.h"
#include "../../native/os.h"
#ifdef _WIN32
#include <windows.h>
#include <shellapi.h>
#else
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <sched.h>
#endif
#endif

#define CHECK(what) do { if (!(what)) { fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what); return 1; } } while (0)

static int clock_and_processors(void) {
    double before = fb_os_seconds();
    int32_t cancel = 1;
    char name[64];
    fb_os_sleep(0.05);
    CHECK(fb_os_seconds() - before > 0.03);
    before = fb_os_seconds();
    fb_os_rest(60, &cancel);
    CHECK(fb_os_seconds() - before < 30);
    fb_os_cpu_name(name, sizeof name);
    CHECK(*name && fb_os_page_bytes() >= 4096 && fb_os_memory_bytes() > (uint64_t)256 << 20);
    CHECK(fb_os_cpu_count() >= 1);
#ifdef _WIN32
    CHECK(SetProcessAffinityMask(GetCurrentProcess(), 1) && fb_os_cpu_count() == 1);
#elif defined(__linux__)
    cpu_set_t mine, one;
    CHECK(sched_getaffinity(0, sizeof mine, &mine) == 0);
    CPU_ZERO(&one);
    for (int i = 0; !CPU_COUNT(&one); i++)
        if (CPU_ISSET(i, &mine)) CPU_SET(i, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0 && fb_os_cpu_count() == 1);
    CHECK(sched_setaffinity(0, sizeof mine, &mine) == 0);
#endif
    return 0;
}

static int memory(void) {
    const uint64_t sizes[] = {1, 100, 1 << 20, (64 << 20) + 1};
    for (int k = 0; k < 4; k++) {
        char *held = fb_os_alloc(sizes[k]);
        CHECK(held && (uintptr_t)held % 64 == 0);
        for (uint64_t i = 0; i < sizes[k]; i++) CHECK(!held[i]);
        memset(held, 1, (size_t)sizes[k]);
        if (k == 3) CHECK(fb_peak_bytes() > (uint64_t)64 << 20 && fb_peak_bytes() < (uint64_t)4 << 30);
        fb_os_free(held, sizes[k]);
    }
    CHECK(!fb_os_alloc(UINT64_MAX));
    fb_os_free(NULL, 1), fb_os_free(NULL, 64 << 20);
    return 0;
}

enum { THREADS = 8, ROUNDS = 2000 };
static atomic_uint turn, arrived;
static fb_gate *gate;

static void take_part(void *sum) {
    for (unsigned round = 0; round < ROUNDS; round++) {
        fb_gate_wait(gate, &turn, round);
        ++*(int *)sum;
        atomic_fetch_add(&arrived, 1);
    }
}

static int threads(void) {
    fb_thread *started[THREADS];
    int sums[THREADS * 64] = {0};
    gate = fb_gate_new();
    CHECK(gate);
    for (int i = 0; i < THREADS; i++) CHECK((started[i] = fb_thread_start(take_part, &sums[i * 64])));
    for (unsigned round = 0; round < ROUNDS; round++) {
        atomic_store(&turn, round + 1);
        fb_gate_wake(gate);
        while (atomic_load(&arrived) < (round + 1) * THREADS) fb_os_yield();
    }
    for (int i = 0; i < THREADS; i++) {
        fb_thread_join(started[i]);
        CHECK(sums[i * 64] == ROUNDS);
    }
    fb_gate_free(gate);
    fb_gate_free(NULL);
    return 0;
}

static int put(const char *path, const char *text) {
    FILE *file = fb_os_file(path, 1);
    return file && fwrite(text, 1, strlen(text), file) == strlen(text) && fclose(file) == 0;
}

static int files(const char *folder) {
    char old[1024], new[1024], text[16] = "";
    snprintf(old, sizeof old, "%s/%s", folder, "\xc3\xa4 \xe6\x97\xa5.part");
    snprintf(new, sizeof new, "%s/%s", folder, "\xc3\xa4 \xe6\x97\xa5.bin");
    CHECK(!fb_os_file(new, 0) && fb_os_rename(old, new));
    CHECK(put(new, "before") && put(old, "a\r\nb\nc\x1a""d"));
    CHECK(fb_os_rename(old, new) == 0 && !fb_os_file(old, 0));
    FILE *file = fb_os_file(new, 0);
    CHECK(file && fread(text, 1, sizeof text, file) == 8 && !memcmp(text, "a\r\nb\nc\x1a""d", 8) && fclose(file) == 0);
    CHECK(put(old, "x"));
    fb_os_remove(old);
    CHECK(!fb_os_file(old, 0));
    return 0; /* the new one stays, for who started this */
}

static int library(const char *path) {
    const char *name = strrchr(path, '/') + 1;
    const char *const alone[] = {name, NULL}, *const named[] = {"not-there", path, NULL};
    CHECK(!fb_os_library(alone));
    void *found = fb_os_library(named);
    CHECK(found);
    int (*answer)(void) = (int (*)(void))fb_os_function(found, "answer");
    CHECK(answer && answer() == 42 && !fb_os_function(found, "question"));
    fb_os_library_close(found);
    return 0;
}

static int fault(const char *path) {
    static const char sentence[] = "the file is gone\n";
#ifdef _WIN32
    static char mapped[8192];
    const ULONG_PTR gone[] = {0, (ULONG_PTR)mapped + 5000, 0}, other[] = {0, 4096, 0};
    (void)path;
    CHECK(fb_guard(mapped, sizeof mapped, sentence, 74) == FB_OK && fb_guard(mapped, sizeof mapped, sentence, 74) == FB_OK);
    fb_unguard(mapped);
    CHECK(fb_guard(mapped, sizeof mapped, sentence, 74) == FB_OK);
    RaiseException(EXCEPTION_IN_PAGE_ERROR, 0, 3, getenv("OTHER") ? other : gone);
#else
    char bytes[10000] = "";
    CHECK(put(path, "x"));
    int file = open(path, O_RDWR);
    CHECK(file >= 0 && write(file, bytes, sizeof bytes) == sizeof bytes);
    volatile char *mapped = mmap(NULL, sizeof bytes, PROT_READ, MAP_SHARED, file, 0);
    CHECK(mapped != MAP_FAILED && fb_guard((const void *)mapped, sizeof bytes, sentence, 74) == FB_OK && ftruncate(file, 100) == 0);
    if (getenv("OTHER")) fb_unguard((const void *)mapped);
    (void)mapped[5000];
#endif
    return 3; /* nothing happened */
}

static int chosen(int n, char **words) {
    CHECK(n == 3);
    if (!strcmp(words[1], "library")) return library(words[2]);
    if (!strcmp(words[1], "fault")) return fault(words[2]);
    return clock_and_processors() || memory() || threads() || files(words[2]);
}

#ifdef _WIN32
int main(void) { /* arguments are UTF-16 there */
    int n;
    wchar_t **given = CommandLineToArgvW(GetCommandLineW(), &n);
    char *words[8] = {0};
    for (int i = 0; given && i < n && i < 8; i++) {
        words[i] = calloc(1, 4096);
        WideCharToMultiByte(CP_UTF8, 0, given[i], -1, words[i], 4096, NULL, NULL);
    }
    return chosen(n, words);
}
#else
int main(int n, char **words) { return chosen(n, words); }
#endif
