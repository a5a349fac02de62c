/* vulkan.h - what the files of this folder share.
 *   vulkan.c    the driver, its devices, opening one                       (fb_backend_vulkan)
 *   program.c   launches recorded into commands once, and their replay
 *   matrix.c    which extensions a device has, whether it has matrix units, and asking for them
 *   memory.c    sub-allocated buffers, copies in and out
 *   pipeline.c  kernels specialised into pipelines, and their cache on disk
 */
#ifndef FB_VULKAN_H
#define FB_VULKAN_H
#include "../../kernels/share.h"
#include "vk_matrix.h"

#define VK_POINTER(result, name, arguments) result(VKCALL *name) arguments;

typedef struct vk_driver {
    void *library;
    VkInstance instance;
    void *(VKCALL *GetInstanceProcAddr)(VkInstance, const char *);
    VkResult(VKCALL *CreateInstance)(const VkInstanceCreateInfo *, const void *, VkInstance *);
    VK_INSTANCE_FUNCTIONS(VK_POINTER)
} vk_driver;

typedef struct vk_functions {
    VK_DEVICE_FUNCTIONS(VK_POINTER)
} vk_functions;

/* What a device with matrix units is asked for. */
enum { VK_MATRIX_EXTENSIONS = 4 };
typedef struct vk_matrix_features {
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR matrix;
    VkPhysicalDeviceShaderBfloat16FeaturesKHR bfloat16; /* one of these two */
    VkPhysicalDeviceShaderFloat16Int8Features float16;
    VkPhysicalDeviceVulkanMemoryModelFeatures memory_model;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_size;
} vk_matrix_features;

/* One allocation of the driver, parted among many fb_mem. */
typedef struct vk_slice {
    struct vk_block *block;
    uint64_t offset, bytes;
    struct vk_slice *next; /* in order of offset */
} vk_slice;

typedef struct vk_block {
    VkDeviceMemory memory;
    VkBuffer buffer;
    uint64_t bytes;
    char *mapped; /* NULL where the host cannot see it */
    int imported; /* whole pages of the host's own, for one slice */
    vk_slice *slices;
    struct vk_block *next;
} vk_block;

/* What a dispatch reads or writes. */
typedef struct vk_use {
    VkBuffer buffer;
    uint64_t from, to;
    int written;
} vk_use;

/* A submission while it runs, and a command buffer for copies. */
enum { SLOTS = 6, STAMPS = 2, USES = 64 };
typedef struct vk_slot {
    VkCommandBuffer commands;
    VkFence fence;
    int running; /* submitted */
    fb_load load;
    double began; /* when it was submitted */
} vk_slot;

typedef struct vk_pipeline {
    fb_kernel_id kernel;
    uint32_t constants[FB_SPECS];
    VkPipeline handle;
} vk_pipeline;

typedef struct vulkan {
    vk_driver driver;
    vk_functions fn;
    VkPhysicalDevice physical;
    VkDevice device;
    VkQueue queue;
    uint32_t family;
    VkPhysicalDeviceProperties properties;
    VkPhysicalDeviceMemoryProperties memory;
    uint64_t most_allocation, max_binding_bytes, align;
    uint32_t most_groups; /* in one dimension of a dispatch */
    fb_kernel_limits limits;
    /* memory.c */
    vk_block *blocks;
    vk_block *staging; /* seen by the host; for devices whose memory is not */
    uint64_t import_align; /* of the host's memory that is used in place; 0: none is */
    VkResult(VKCALL *GetMemoryHostPointerProperties)(VkDevice, int32_t, const void *, VkMemoryHostPointerPropertiesEXT *);
    /* program.c */
    VkCommandPool pool;
    vk_slot slots[SLOTS];
    int slot; /* the one whose copies are being recorded, or next to be used */
    int recording;
    vk_use uses[USES]; /* since the last barrier of what is being recorded */
    int n_uses;
    fb_mem counts;           /* of the feed that is replayed, where kernels read them */
    int32_t told[FB_COUNTS]; /* what lies there */
    fb_pace pace;
    double ended; /* when a submission was seen to end */
    VkQueryPool stamps; /* STAMPS times that the device passes; 0 where its queue has no clock */
    /* pipeline.c */
    VkDescriptorSetLayout set_layout;
    VkPipelineLayout layout;
    VkPipelineCache cache;
    VkShaderModule modules[FB_KERNEL_COUNT];
    vk_pipeline *pipelines;
    int n_pipelines, room_pipelines;
    char *cache_path;
} vulkan;

extern const fb_backend fb_backend_vulkan;

/* FB_OK, or the code of a failed call after one sentence about `what`. */
int vk_check(VkResult result, const char *what);

/* program.c: copies go into one command buffer after another; those recorded after vk_begin see what all before wrote. */
enum { VK_COUNTS_BYTES = 16 };
int vk_slots_open(vulkan *vk);
void vk_slots_close(vulkan *vk);
int vk_begin(vulkan *vk, VkCommandBuffer *commands);
int vk_flush(vulkan *vk);
int vk_wait(void *self);
uint64_t vk_scratch(void *self, const fb_launch *launch);
int vk_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **program);
int vk_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run);
void vk_release(void *self, void *program);
int vk_peak(void *self, int kind, double seconds, double *per_second);

/* matrix.c: threads of the subgroups that share matrix units, 0: there are none, and whether those are for F16; what to add
 * when opening and to kernels */
int vk_has_extensions(const vk_driver *d, VkPhysicalDevice device, const char *const *names, int n);
uint32_t vk_matrix_subgroup(const vk_driver *d, VkPhysicalDevice device, int *f16);
void vk_matrix_ask(vk_matrix_features *f, VkDeviceCreateInfo *info, const char **names, int f16); /* adds to names */
void vk_matrix_stage(uint32_t subgroup, VkPipelineShaderStageRequiredSubgroupSizeCreateInfo *size,
                     VkPipelineShaderStageCreateInfo *stage);

/* memory.c */
int vk_alloc(void *self, uint64_t bytes, fb_mem *mem);
int vk_wrap(void *self, const void *host, uint64_t bytes, fb_mem *mem);
void vk_free(void *self, fb_mem *mem);
int vk_write(void *self, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes);
int vk_read(void *self, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes);
void vk_memory_close(vulkan *vk);

/* pipeline.c */
int vk_pipelines_open(vulkan *vk, const char *cache_path);
int vk_pipeline_get(vulkan *vk, const fb_dispatch *d, VkPipeline *out);
void vk_pipelines_close(vulkan *vk);
#endif
