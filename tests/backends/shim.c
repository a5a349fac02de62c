/* shim.c - stands before the real libvulkan (LD_PRELOAD, with its soname) and does what drivers do on bad days, or tells
 * what passes through:
 *     SHIM_FAIL="vkQueueSubmit 5 -4"   its 5th call and all later ones fail with -4 (a lost device)
 *     SHIM_HIDE="vkName"               the function is not there
 *     SHIM_LARGEST=BYTES               allocations larger than this run out of device memory
 *     SHIM_BUFFERS=4                   storage buffers that a kernel may have
 *     SHIM_NAME="Adreno (TM) 740"      what the first device is called
 *     SHIM_DEDICATED=1                 it has memory of its own
 *     SHIM_UNITS="bf16 f16"            it says that it has such matrix units
 *     SHIM_LOG=FILE                    a line an event: record FLAGS (of a command buffer), submit, dispatch X Y Z,
 *                                      pipeline CONSTANTS, sleep SECONDS, instance + or -, allocate BYTES */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include "../../native/backends/vulkan/vk_matrix.h"

typedef void *(*lookup)(void *, const char *);
static lookup from_instance, from_device;

static void tell(const char *format, ...) {
    const char *path = getenv("SHIM_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    va_list values;
    if (!file) return;
    va_start(values, format);
    vfprintf(file, format, values);
    va_end(values);
    fclose(file);
}

/* The result that a call of this name must have; 0: it may go on. */
static int fails(const char *name) {
    static int calls;
    char which[64];
    int first, code;
    const char *told = getenv("SHIM_FAIL");
    if (!told || sscanf(told, "%63s %d %d", which, &first, &code) != 3 || strcmp(which, name) != 0) return 0;
    return ++calls >= first ? code : 0;
}

typedef struct call { const char *name; void *mine; void **real; } call;

static VkResult (*real_submit)(VkQueue, uint32_t, const VkSubmitInfo *, VkFence);
static VkResult submit(VkQueue queue, uint32_t n, const VkSubmitInfo *info, VkFence fence) {
    tell("submit\n");
    int code = fails("vkQueueSubmit");
    return code ? code : real_submit(queue, n, info, fence);
}

static VkResult (*real_wait)(VkDevice, uint32_t, const VkFence *, uint32_t, uint64_t);
static VkResult wait(VkDevice device, uint32_t n, const VkFence *fences, uint32_t all, uint64_t timeout) {
    int code = fails("vkWaitForFences"); /* after the work has ended: nothing runs on a device that is lost */
    VkResult real = real_wait(device, n, fences, all, timeout);
    return code ? code : real;
}

static VkResult (*real_allocate)(VkDevice, const VkMemoryAllocateInfo *, const void *, VkDeviceMemory *);
static VkResult allocate(VkDevice device, const VkMemoryAllocateInfo *info, const void *host, VkDeviceMemory *memory) {
    tell("allocate %llu\n", (unsigned long long)info->allocationSize);
    int code = fails("vkAllocateMemory");
    if (getenv("SHIM_LARGEST") && info->allocationSize > strtoull(getenv("SHIM_LARGEST"), NULL, 10)) code = -2;
    return code ? code : real_allocate(device, info, host, memory);
}

static VkResult (*real_pipelines)(VkDevice, VkPipelineCache, uint32_t, const VkComputePipelineCreateInfo *, const void *,
                                  VkPipeline *);
static VkResult pipelines(VkDevice device, VkPipelineCache cache, uint32_t n, const VkComputePipelineCreateInfo *info,
                          const void *host, VkPipeline *out) {
    const VkSpecializationInfo *constants = info->stage.pSpecializationInfo;
    const uint32_t *value = constants->pData;
    char line[256] = "";
    for (size_t i = 0; i < constants->dataSize / 4; i++) sprintf(line + strlen(line), " %u", value[i]);
    tell("pipeline%s\n", line);
    return real_pipelines(device, cache, n, info, host, out);
}

static VkResult (*real_begin)(VkCommandBuffer, const VkCommandBufferBeginInfo *);
static VkResult begin(VkCommandBuffer commands, const VkCommandBufferBeginInfo *info) {
    tell("record %u\n", info->flags);
    return real_begin(commands, info);
}

static void (*real_dispatch)(VkCommandBuffer, uint32_t, uint32_t, uint32_t);
static void dispatch(VkCommandBuffer commands, uint32_t x, uint32_t y, uint32_t z) {
    tell("dispatch %u %u %u\n", x, y, z);
    real_dispatch(commands, x, y, z);
}

static void (*real_properties)(VkPhysicalDevice, VkPhysicalDeviceProperties *);
static void properties(VkPhysicalDevice device, VkPhysicalDeviceProperties *out) {
    real_properties(device, out);
    if (getenv("SHIM_BUFFERS")) out->limits.maxPerStageDescriptorStorageBuffers = (uint32_t)atoi(getenv("SHIM_BUFFERS"));
    if (getenv("SHIM_NAME")) snprintf(out->deviceName, sizeof out->deviceName, "%s", getenv("SHIM_NAME"));
    if (getenv("SHIM_DEDICATED")) out->deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
}

static void (*real_properties2)(VkPhysicalDevice, VkPhysicalDeviceProperties2 *);
static void properties2(VkPhysicalDevice device, VkPhysicalDeviceProperties2 *out) {
    real_properties2(device, out);
    if (getenv("SHIM_DEDICATED")) out->properties.deviceType = VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU;
    if (!getenv("SHIM_NAME")) return;
    snprintf(out->properties.deviceName, sizeof out->properties.deviceName, "%s", getenv("SHIM_NAME"));
    for (VkPhysicalDeviceDriverProperties *more = out->pNext; more; more = more->pNext)
        if (more->sType == VK_STYPE_DRIVER) more->driverName[0] = 0;
}

static int units(const char *type) { /* a word of SHIM_UNITS; "bf16" is not "f16" */
    const char *told = getenv("SHIM_UNITS"), *at = told ? strstr(told, type) : NULL;
    return at && (at == told || at[-1] == ' ');
}

static VkResult (*real_extensions)(VkPhysicalDevice, const char *, uint32_t *, VkExtensionProperties *);
static VkResult extensions(VkPhysicalDevice device, const char *layer, uint32_t *n, VkExtensionProperties *out) {
    const char *const names[] = {"VK_KHR_cooperative_matrix", units("bf16") ? "VK_KHR_shader_bfloat16" : "",
                                 units("f16") ? "VK_KHR_shader_float16_int8" : "", "VK_KHR_vulkan_memory_model",
                                 "VK_EXT_subgroup_size_control"};
    if (!getenv("SHIM_UNITS") || !out) return real_extensions(device, layer, n, out);
    *n = sizeof names / sizeof *names;
    for (uint32_t i = 0; i < *n; i++) snprintf(out[i].extensionName, sizeof out[i].extensionName, "%s", names[i]);
    return VK_SUCCESS;
}

static VkResult matrices(VkPhysicalDevice device, uint32_t *n, VkCooperativeMatrixPropertiesKHR *out) {
    (void)device;
    *n = 0;
    for (int bf16 = 0; bf16 < 2; bf16++) {
        if (!units(bf16 ? "bf16" : "f16")) continue;
        VkCooperativeMatrixPropertiesKHR *m = &out[(*n)++];
        m->MSize = m->NSize = m->KSize = 16, m->scope = VK_SCOPE_SUBGROUP_KHR;
        m->AType = m->BType = bf16 ? VK_COMPONENT_TYPE_BFLOAT16_KHR : VK_COMPONENT_TYPE_FLOAT16_KHR;
        m->CType = m->ResultType = VK_COMPONENT_TYPE_FLOAT32_KHR;
    }
    return VK_SUCCESS;
}

static void (*real_features)(VkPhysicalDevice, VkPhysicalDeviceFeatures2 *);
static void features(VkPhysicalDevice device, VkPhysicalDeviceFeatures2 *out) {
    if (!getenv("SHIM_UNITS")) {
        real_features(device, out);
        return;
    }
    for (VkPhysicalDeviceFeatures2 *more = out->pNext; more; more = more->pNext) more->features[0] = more->features[1] = 1;
    for (VkPhysicalDeviceShaderBfloat16FeaturesKHR *more = out->pNext; more; more = more->pNext)
        if (more->sType == VK_STYPE_BFLOAT16_FEATURES) more->shaderBFloat16CooperativeMatrix = 1;
}

static VkResult (*real_create)(const VkInstanceCreateInfo *, const void *, VkInstance *);
static VkResult create(const VkInstanceCreateInfo *info, const void *host, VkInstance *instance) {
    VkResult code = real_create(info, host, instance);
    if (code == VK_SUCCESS) tell("instance +\n");
    return code;
}

static void (*real_destroy)(VkInstance, const void *);
static void destroy(VkInstance instance, const void *host) {
    tell("instance -\n");
    real_destroy(instance, host);
}

static void *device_function(void *device, const char *name);

static const call CALLS[] = {
    {"vkQueueSubmit", submit, (void **)&real_submit},
    {"vkWaitForFences", wait, (void **)&real_wait},
    {"vkAllocateMemory", allocate, (void **)&real_allocate},
    {"vkCreateComputePipelines", pipelines, (void **)&real_pipelines},
    {"vkBeginCommandBuffer", begin, (void **)&real_begin},
    {"vkCmdDispatch", dispatch, (void **)&real_dispatch},
    {"vkGetPhysicalDeviceProperties", properties, (void **)&real_properties},
    {"vkGetPhysicalDeviceProperties2", properties2, (void **)&real_properties2},
    {"vkEnumerateDeviceExtensionProperties", extensions, (void **)&real_extensions},
    {"vkGetPhysicalDeviceFeatures2", features, (void **)&real_features},
    {"vkCreateInstance", create, (void **)&real_create},
    {"vkDestroyInstance", destroy, (void **)&real_destroy},
    {"vkGetDeviceProcAddr", device_function, (void **)&from_device},
};

static void *passed(void *found, const char *name) {
    const char *hidden = getenv("SHIM_HIDE");
    if (hidden && !strcmp(hidden, name)) return NULL;
    if (getenv("SHIM_UNITS") && !strcmp(name, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR")) return matrices;
    for (size_t i = 0; found && i < sizeof CALLS / sizeof *CALLS; i++)
        if (!strcmp(CALLS[i].name, name)) {
            *CALLS[i].real = found;
            return CALLS[i].mine;
        }
    return found;
}

static void *device_function(void *device, const char *name) { return passed(from_device(device, name), name); }

void *vkGetInstanceProcAddr(void *instance, const char *name) {
    if (!from_instance) {
        void *library = dlopen(REAL, RTLD_NOW | RTLD_LOCAL);
        if (!library) return NULL;
        from_instance = (lookup)dlsym(library, "vkGetInstanceProcAddr");
    }
    return passed(from_instance(instance, name), name);
}

int nanosleep(const struct timespec *span, struct timespec *left) {
    tell("sleep %.6f\n", (double)span->tv_sec + 1e-9 * (double)span->tv_nsec);
    return (int)syscall(SYS_nanosleep, span, left);
}
