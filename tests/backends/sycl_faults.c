/* sycl_faults.c - stands before the shim of the SYCL backend, which it is linked to, and lets one call fail:
 * SHIM_FAIL="shim_run 40 2" makes each shim_run from the 40th on return 2. A failing shim_build gets a text that does not compile.
 * SHIM_LOG=FILE has a line for each build, with the number of its kernels, and whether products on matrix units are among them. SHIM_UNITS="8 16 16" lets the device have joint matrices
 * of these sizes, which SHIM_JOINT, a header, stands in for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "shim.h"

static int failed;

/* What the call is to return, or `otherwise`. */
static int fault(const char *name, int otherwise) {
    static int seen;
    const char *told = getenv("SHIM_FAIL");
    char which[32];
    int at, result;
    if (!told || sscanf(told, "%31s %d %d", which, &at, &result) != 3 || strcmp(which, name) || ++seen < at) return otherwise;
    failed = 1;
    return result;
}

#define PASS -1000
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define STAND_BEFORE(name, parameters, ...)                    \
    int name parameters {                                      \
        const int result = fault(#name, PASS);                 \
        return result != PASS ? result : REAL(name)(__VA_ARGS__); \
    }
STAND_BEFORE(shim_count, (void), )
STAND_BEFORE(shim_open, (int index, shim_device **device), index, device)
STAND_BEFORE(shim_alloc, (shim_device * device, uint64_t bytes, void **at), device, bytes, at)
STAND_BEFORE(shim_wait, (shim_device * device), device)
STAND_BEFORE(shim_read, (shim_device * device, const void *at, void *dst, uint64_t bytes), device, at, dst, bytes)
STAND_BEFORE(shim_run, (shim_device * device, int kernel, const shim_args *args, uint64_t groups, uint32_t threads), device,
             kernel, args, groups, threads)

int shim_describe(int index, shim_facts *facts) {
    const int result = REAL(shim_describe)(index, facts);
    if (getenv("SHIM_UNITS")) sscanf(getenv("SHIM_UNITS"), "%u %u %u", &facts->unit_m, &facts->unit_n, &facts->unit_k);
    return result;
}

int shim_build(shim_device *device, const char *text, const char *const *files, int n_files, const char *const *names, int n,
               int *first) {
    static char with[4 << 20];
    const int rejected = fault("shim_build", PASS) != PASS;
    FILE *header = getenv("SHIM_JOINT") ? fopen(getenv("SHIM_JOINT"), "r") : NULL;
    if (header) {
        with[fread(with, 1, sizeof with - 1, header)] = 0;
        fclose(header);
        text = strncat(with, text, sizeof with - strlen(with) - 1);
    }
    FILE *log = getenv("SHIM_LOG") ? fopen(getenv("SHIM_LOG"), "a") : NULL;
    if (log) fprintf(log, "build %d%s\n", n, strstr(text, "matrix_product") ? ", matrix units" : ""), fclose(log);
    failed = 0;
    return REAL(shim_build)(device, rejected ? "int answer = question;" : text, files, n_files, names, n, first);
}

const char *shim_error(void) { return failed ? "the device was lost" : REAL(shim_error)(); }
