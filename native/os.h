/* os.h - all that differs between operating systems: threads, waiting, the clock, aligned memory, processor facts.
 * Nothing else under native/ asks which system it runs on. */
#ifndef FB_OS_H
#define FB_OS_H
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

double fb_os_seconds(void); /* monotonic */
void fb_os_sleep(double seconds);
void fb_os_rest(double seconds, const volatile int32_t *cancel); /* sleeps; ends early once *cancel is set, unless NULL */
int fb_os_arm_bf16(void);   /* whether 64-bit ARM has bf16 products */
int fb_os_cpu_count(void);  /* that this process may use, at least 1 */
uint64_t fb_os_memory_bytes(void);
uint64_t fb_os_page_bytes(void);
void fb_os_cpu_name(char *name, size_t size);

/* Zeroed, aligned to a cache line. NULL when there is none. */
void *fb_os_alloc(uint64_t bytes);
void fb_os_free(void *memory, uint64_t bytes);

/* The first library of these names (NULL ends them) that there is, or NULL; and a function of it, or NULL. */
void *fb_os_library(const char *const *names);
void (*fb_os_function(void *library, const char *name))(void);
void fb_os_library_close(void *library);

/* Paths are UTF-8 where the system's own are not bytes. */
FILE *fb_os_file(const char *path, int writes);     /* of bytes; NULL on failure */
int fb_os_rename(const char *from, const char *to); /* replaces `to`; 0: done */
void fb_os_remove(const char *path);

typedef struct fb_thread fb_thread;
fb_thread *fb_thread_start(void (*body)(void *), void *arg); /* NULL on failure */
void fb_thread_join(fb_thread *thread);
void fb_os_yield(void);

/* A place to sleep until a number changes. The one who changes it calls wake afterwards. */
typedef struct fb_gate fb_gate;
fb_gate *fb_gate_new(void);
void fb_gate_free(fb_gate *gate);
void fb_gate_wait(fb_gate *gate, atomic_uint *value, unsigned seen);
void fb_gate_wake(fb_gate *gate);

#endif
