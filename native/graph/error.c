/* error.c - one sentence a thread about the last failure. */
#include <stdarg.h>
#include <stdio.h>
#include "backend.h"

static _Thread_local char message[512];

const char *fb_error(void) { return message; }

int fb_fail(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    return code;
}

int fb_inside(const fb_mem *mem, uint64_t offset, uint64_t bytes) {
    if (offset <= mem->bytes && bytes <= mem->bytes - offset) return FB_OK;
    return fb_fail(FB_E_ARGUMENT, "%llu bytes at offset %llu do not lie in a buffer of %llu bytes.",
                   (unsigned long long)bytes, (unsigned long long)offset, (unsigned long long)mem->bytes);
}
