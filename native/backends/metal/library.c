/* library.c - kernels from their texts: a library for each kernel and the sizes of its arrays, which are macros, and of that
 * a pipeline for each set of constants. Metal keeps what it has compiled on disk by itself. */
#include "metal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int mtl_on_simdgroups(const metal *m, fb_kernel_id kernel) {
    return m->simdgroups && (kernel == FB_KERNEL_product || kernel == FB_KERNEL_attention || kernel == FB_KERNEL_attention_dq ||
                             kernel == FB_KERNEL_attention_dkv);
}

void mtl_reason(mtl_id error, const char *otherwise, char *out, size_t bytes) {
    const mtl_id text = error ? SEND(description, error) : NULL;
    const char *words = text ? SEND(utf8, text) : NULL;
    snprintf(out, bytes, "%s", words ? words : otherwise);
    for (char *at = out; *at; at++)
        if (*at == '\n') *at = ' ';
}

/* ---- texts: Metal's compiler takes one, so what it includes is put into it ---- */

typedef struct writing {
    char *text; /* NULL: only its length is wanted */
    size_t length;
} writing;

static void put(writing *w, const char *text, size_t n) {
    if (w->text) memcpy(w->text + w->length, text, n);
    w->length += n;
}

static void expand(writing *w, const char *text) {
    static const char include[] = "#include \"";
    for (const char *at; (at = strstr(text, include)) != NULL;) {
        const char *from = at + sizeof include - 1, *end = strchr(from, '"');
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(end - from), from);
        const char *included = fb_text(name);
        put(w, text, (size_t)(at - text));
        expand(w, included ? included : "#error a text is missing\n");
        text = end + 1;
    }
    put(w, text, strlen(text));
}

/* The text of a kernel, for the caller to free; NULL: out of memory. */
static char *text_for(const mtl_library *l) {
    const fb_kernel *kernel = &fb_kernels[l->key[0]];
    char ahead[FB_SPECS * 32 + 256] = "";
    size_t at = 0;
    for (int i = 0; i < FB_SPECS; i++)
        if (i == 0 || (kernel->tiles >> i & 1u))
            at += (size_t)snprintf(ahead + at, sizeof ahead - at, "#define SPEC_%d %uu\n", i, l->key[2 + i]);
    snprintf(ahead + at, sizeof ahead - at, "#include \"metal.prelude\"\n#include \"common.prelude\"\n%s#include \"%s.%s\"\n",
             l->key[1] ? "#include \"simdgroup.prelude\"\n" : "", kernel->name,
             l->key[1] && l->key[0] == FB_KERNEL_product ? "metal" : "kernel");
    writing w = {0};
    expand(&w, ahead);
    char *text = malloc(w.length + 1);
    w = (writing){.text = text};
    if (!text) return NULL;
    expand(&w, ahead);
    text[w.length] = 0;
    return text;
}

/* ---- compiling ---- */

static int compile(metal *m, mtl_library *l) {
    char *text = text_for(l), reason[512];
    const mtl_id options = SEND(create, mtl.objc_getClass("MTLCompileOptions"));
    const mtl_id source = text ? SEND(string, mtl.objc_getClass("NSString"), text) : NULL;
    mtl_id error = NULL;
    int code = options && source ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
    free(text);
    if (code == FB_OK) {
        SEND(set_fast_math, options, 0); /* infinities, NaN and rounding are what the op table says */
        l->library = SEND(new_library, m->device, source, options, &error);
    }
    if (code == FB_OK && !l->library) {
        mtl_reason(error, "it does not say why", reason, sizeof reason);
        code = fb_fail(FB_E_DEVICE, "Metal's compiler refused the kernel %s: %.300s", fb_kernels[l->key[0]].name, reason);
    }
    if (options) SEND(release, options);
    return code;
}

static int library_of(metal *m, const fb_dispatch *d, mtl_library **out) {
    const fb_kernel *kernel = &fb_kernels[d->kernel];
    mtl_library l = {.key = {d->kernel, (uint32_t)mtl_on_simdgroups(m, d->kernel)}};
    for (int i = 0; i < FB_SPECS; i++)
        if (i == 0 || (kernel->tiles >> i & 1u)) l.key[2 + i] = d->constant.at[i];
    for (int i = 0; i < m->n_libraries; i++)
        if (!memcmp(m->libraries[i].key, l.key, sizeof l.key)) return *out = &m->libraries[i], FB_OK;
    mtl_library *grown = fb_grown(m->libraries, m->n_libraries, &m->room_libraries, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    m->libraries = grown;
    int code = compile(m, &l);
    if (code == FB_OK) m->libraries[m->n_libraries++] = l, *out = &m->libraries[m->n_libraries - 1];
    return code;
}

static int make(metal *m, const fb_dispatch *d, mtl_pipeline *p) {
    mtl_library *library = NULL;
    mtl_id error = NULL, function = NULL;
    char reason[512];
    int code = library_of(m, d, &library);
    if (code) return code;
    const mtl_id constants = SEND(create, mtl.objc_getClass("MTLFunctionConstantValues"));
    const mtl_id name = SEND(string, mtl.objc_getClass("NSString"), "run");
    for (mtl_uint i = 1; constants && i < FB_SPECS; i++)
        if (!(fb_kernels[d->kernel].tiles >> i & 1u)) SEND(set_constant, constants, &d->constant.at[i], MTLDataTypeUInt, i);
    if (constants && name) function = SEND(new_function, library->library, name, constants, &error);
    if (function) p->state = SEND(new_pipeline, m->device, function, &error);
    if (function) SEND(release, function);
    if (constants) SEND(release, constants);
    if (!p->state) {
        mtl_reason(error, "out of memory", reason, sizeof reason);
        return fb_fail(FB_E_DEVICE, "Metal made no pipeline of the kernel %s: %.300s", fb_kernels[d->kernel].name, reason);
    }
    const mtl_uint most = SEND(most_threads, p->state);
    if (most >= d->constant.at[0]) return FB_OK;
    SEND(release, p->state);
    return fb_fail(FB_E_LIMIT, "The kernel %s needs %u threads, and this device runs %lu of it; lower workgroup_threads in a profile.",
                   fb_kernels[d->kernel].name, d->constant.at[0], most);
}

int mtl_pipeline_of(metal *m, const fb_dispatch *d, mtl_id *state) {
    mtl_pipeline p = {.key = {d->kernel, (uint32_t)mtl_on_simdgroups(m, d->kernel)}};
    memcpy(p.key + 2, d->constant.at, sizeof d->constant.at);
    for (int i = 0; i < m->n_pipelines; i++)
        if (!memcmp(m->pipelines[i].key, p.key, sizeof p.key)) return *state = m->pipelines[i].state, FB_OK;
    mtl_pipeline *grown = fb_grown(m->pipelines, m->n_pipelines, &m->room_pipelines, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    m->pipelines = grown;
    int code = make(m, d, &p);
    if (code == FB_OK) m->pipelines[m->n_pipelines++] = p, *state = p.state;
    return code;
}

void mtl_pipelines_close(metal *m) {
    for (int i = 0; i < m->n_pipelines; i++) SEND(release, m->pipelines[i].state);
    for (int i = 0; i < m->n_libraries; i++) SEND(release, m->libraries[i].library);
    free(m->pipelines);
    free(m->libraries);
}
