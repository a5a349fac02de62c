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
