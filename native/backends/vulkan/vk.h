/* vk.h - the part of the Vulkan 1.1 interface that this backend calls, declared here so that building needs no SDK.
 * Names, values and layouts are the interface's own; a test holds them against the Khronos header where that is installed. */
#ifndef FB_VK_H
#define FB_VK_H
#include <stddef.h>
#include <stdint.h>

#ifdef _WIN32
#define VKCALL __stdcall
#else
#define VKCALL
#endif

typedef struct VkInstance_T *VkInstance;
typedef struct VkPhysicalDevice_T *VkPhysicalDevice;
typedef struct VkDevice_T *VkDevice;
typedef struct VkQueue_T *VkQueue;
typedef struct VkCommandBuffer_T *VkCommandBuffer;
typedef uint64_t VkBuffer, VkDeviceMemory, VkShaderModule, VkPipeline, VkPipelineLayout, VkPipelineCache, VkCommandPool,
    VkDescriptorSetLayout, VkDescriptorPool, VkDescriptorSet, VkFence, VkQueryPool, VkDeviceSize;
typedef uint32_t VkFlags;
typedef int32_t VkResult;

enum {
    VK_SUCCESS = 0, VK_INCOMPLETE = 5, VK_ERROR_OUT_OF_HOST_MEMORY = -1, VK_ERROR_OUT_OF_DEVICE_MEMORY = -2,
    VK_ERROR_DEVICE_LOST = -4,
    VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU = 1, VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU = 2, VK_PHYSICAL_DEVICE_TYPE_CPU = 4,
    VK_QUEUE_COMPUTE_BIT = 2,
    VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT = 1, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT = 2,
    VK_MEMORY_PROPERTY_HOST_COHERENT_BIT = 4, VK_MEMORY_PROPERTY_HOST_CACHED_BIT = 8,
    VK_BUFFER_USAGE_TRANSFER_SRC_BIT = 1, VK_BUFFER_USAGE_TRANSFER_DST_BIT = 2, VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT = 16,
    VK_BUFFER_USAGE_STORAGE_BUFFER_BIT = 32, VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER = 6, VK_DESCRIPTOR_TYPE_STORAGE_BUFFER = 7,
    VK_SHADER_STAGE_COMPUTE_BIT = 32, VK_PIPELINE_BIND_POINT_COMPUTE = 1,
    VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT = 2, VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT = 1,
    VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT = 4,
    VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT = 0x800, VK_PIPELINE_STAGE_TRANSFER_BIT = 0x1000,
    VK_PIPELINE_STAGE_HOST_BIT = 0x4000,
    VK_ACCESS_UNIFORM_READ_BIT = 8, VK_ACCESS_SHADER_READ_BIT = 0x20, VK_ACCESS_SHADER_WRITE_BIT = 0x40,
    VK_ACCESS_TRANSFER_READ_BIT = 0x800, VK_ACCESS_TRANSFER_WRITE_BIT = 0x1000, VK_ACCESS_HOST_READ_BIT = 0x2000, VK_ACCESS_HOST_WRITE_BIT = 0x4000,
    VK_FENCE_CREATE_SIGNALED_BIT = 1, VK_QUERY_TYPE_TIMESTAMP = 2, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT = 0x2000,
    VK_QUERY_RESULT_64_BIT = 1, VK_QUERY_RESULT_WAIT_BIT = 2,
    VK_EXTERNAL_MEMORY_HANDLE_TYPE_HOST_ALLOCATION_BIT_EXT = 0x80
};

enum { /* VkStructureType */
    VK_STYPE_APPLICATION_INFO = 0, VK_STYPE_INSTANCE = 1, VK_STYPE_QUEUE = 2, VK_STYPE_DEVICE = 3, VK_STYPE_SUBMIT = 4,
    VK_STYPE_ALLOCATE = 5, VK_STYPE_FENCE = 8, VK_STYPE_QUERY_POOL = 11, VK_STYPE_BUFFER = 12, VK_STYPE_SHADER_MODULE = 16,
    VK_STYPE_PIPELINE_CACHE = 17, VK_STYPE_SHADER_STAGE = 18, VK_STYPE_COMPUTE_PIPELINE = 29, VK_STYPE_PIPELINE_LAYOUT = 30,
    VK_STYPE_SET_LAYOUT = 32, VK_STYPE_DESCRIPTOR_POOL = 33, VK_STYPE_SET_ALLOCATE = 34, VK_STYPE_WRITE_SET = 35,
    VK_STYPE_COMMAND_POOL = 39, VK_STYPE_COMMAND_ALLOCATE = 40, VK_STYPE_COMMAND_BEGIN = 42, VK_STYPE_MEMORY_BARRIER = 46,
    VK_STYPE_PROPERTIES_2 = 1000059001, VK_STYPE_MAINTENANCE_3 = 1000168000,
    VK_STYPE_DRIVER = 1000196000, VK_STYPE_EXTERNAL_BUFFER = 1000072000, VK_STYPE_IMPORT_HOST = 1000178000,
    VK_STYPE_HOST_POINTER = 1000178001, VK_STYPE_HOST_MEMORY = 1000178002
};

#define VK_INFO int32_t sType; const void *pNext /* how every structure of arguments begins */

typedef struct VkApplicationInfo {
    VK_INFO;
    const char *pApplicationName;
    uint32_t applicationVersion;
    const char *pEngineName;
    uint32_t engineVersion, apiVersion;
} VkApplicationInfo;

typedef struct VkInstanceCreateInfo {
    VK_INFO;
    VkFlags flags;
    const VkApplicationInfo *pApplicationInfo;
    uint32_t enabledLayerCount;
    const char *const *ppEnabledLayerNames;
    uint32_t enabledExtensionCount;
    const char *const *ppEnabledExtensionNames;
} VkInstanceCreateInfo;

/* Only the limits that are read have names. */
typedef struct VkPhysicalDeviceLimits {
    uint32_t before0[7], maxStorageBufferRange, maxPushConstantsSize, maxMemoryAllocationCount, before1[9],
        maxPerStageDescriptorStorageBuffers, before2[34], maxComputeSharedMemorySize, maxComputeWorkGroupCount[3],
        maxComputeWorkGroupInvocations, maxComputeWorkGroupSize[3], before3[20];
    VkDeviceSize minStorageBufferOffsetAlignment;
    uint32_t before4[22];
    float timestampPeriod; /* nanoseconds */
    uint32_t after[19];
} VkPhysicalDeviceLimits;

typedef struct VkPhysicalDeviceProperties {
    uint32_t apiVersion, driverVersion, vendorID, deviceID;
    int32_t deviceType;
    char deviceName[256];
    uint8_t pipelineCacheUUID[16];
    VkPhysicalDeviceLimits limits;
    uint32_t sparseProperties[5];
} VkPhysicalDeviceProperties;

typedef struct VkPhysicalDeviceProperties2 {
    int32_t sType;
    void *pNext;
    VkPhysicalDeviceProperties properties;
} VkPhysicalDeviceProperties2;

typedef struct VkPhysicalDeviceMaintenance3Properties {
    int32_t sType;
    void *pNext;
    uint32_t maxPerSetDescriptors;
    VkDeviceSize maxMemoryAllocationSize;
} VkPhysicalDeviceMaintenance3Properties;

typedef struct VkPhysicalDeviceDriverProperties {
    int32_t sType;
    void *pNext;
    int32_t driverID;
    char driverName[256], driverInfo[256];
    uint8_t conformanceVersion[4];
} VkPhysicalDeviceDriverProperties;

typedef struct VkQueueFamilyProperties {
    VkFlags queueFlags;
    uint32_t queueCount, timestampValidBits, minImageTransferGranularity[3];
} VkQueueFamilyProperties;

typedef struct VkPhysicalDeviceMemoryProperties {
    uint32_t memoryTypeCount;
    struct { VkFlags propertyFlags; uint32_t heapIndex; } memoryTypes[32];
    uint32_t memoryHeapCount;
    struct { VkDeviceSize size; VkFlags flags; } memoryHeaps[16];
} VkPhysicalDeviceMemoryProperties;

typedef struct VkDeviceQueueCreateInfo {
    VK_INFO;
    VkFlags flags;
    uint32_t queueFamilyIndex, queueCount;
    const float *pQueuePriorities;
} VkDeviceQueueCreateInfo;

typedef struct VkDeviceCreateInfo {
    VK_INFO;
    VkFlags flags;
    uint32_t queueCreateInfoCount;
    const VkDeviceQueueCreateInfo *pQueueCreateInfos;
    uint32_t enabledLayerCount;
    const char *const *ppEnabledLayerNames;
    uint32_t enabledExtensionCount;
    const char *const *ppEnabledExtensionNames;
    const void *pEnabledFeatures;
} VkDeviceCreateInfo;

typedef struct VkBufferCreateInfo {
    VK_INFO;
    VkFlags flags;
    VkDeviceSize size;
    VkFlags usage;
    int32_t sharingMode;
    uint32_t queueFamilyIndexCount;
    const uint32_t *pQueueFamilyIndices;
} VkBufferCreateInfo;

typedef struct VkMemoryRequirements {
    VkDeviceSize size, alignment;
    uint32_t memoryTypeBits;
} VkMemoryRequirements;

typedef struct VkMemoryAllocateInfo {
    VK_INFO;
    VkDeviceSize allocationSize;
    uint32_t memoryTypeIndex;
} VkMemoryAllocateInfo;

/* VK_EXT_external_memory_host: memory of the host as a device's own. */
typedef struct VkExternalMemoryBufferCreateInfo {
    VK_INFO;
    VkFlags handleTypes;
} VkExternalMemoryBufferCreateInfo;

typedef struct VkImportMemoryHostPointerInfoEXT {
    VK_INFO;
    int32_t handleType;
    void *pHostPointer;
} VkImportMemoryHostPointerInfoEXT;

typedef struct VkMemoryHostPointerPropertiesEXT {
    int32_t sType;
    void *pNext;
    uint32_t memoryTypeBits;
} VkMemoryHostPointerPropertiesEXT;

typedef struct VkPhysicalDeviceExternalMemoryHostPropertiesEXT {
    int32_t sType;
    void *pNext;
    VkDeviceSize minImportedHostPointerAlignment;
} VkPhysicalDeviceExternalMemoryHostPropertiesEXT;

typedef struct VkShaderModuleCreateInfo {
    VK_INFO;
    VkFlags flags;
    size_t codeSize;
    const uint32_t *pCode;
} VkShaderModuleCreateInfo;

typedef struct VkPipelineCacheCreateInfo {
    VK_INFO;
    VkFlags flags;
    size_t initialDataSize;
    const void *pInitialData;
} VkPipelineCacheCreateInfo;

typedef struct VkSpecializationMapEntry {
    uint32_t constantID, offset;
    size_t size;
} VkSpecializationMapEntry;

typedef struct VkSpecializationInfo {
    uint32_t mapEntryCount;
    const VkSpecializationMapEntry *pMapEntries;
    size_t dataSize;
    const void *pData;
} VkSpecializationInfo;

typedef struct VkPipelineShaderStageCreateInfo {
    VK_INFO;
    VkFlags flags, stage;
    VkShaderModule module;
    const char *pName;
    const VkSpecializationInfo *pSpecializationInfo;
} VkPipelineShaderStageCreateInfo;

typedef struct VkComputePipelineCreateInfo {
    VK_INFO;
    VkFlags flags;
    VkPipelineShaderStageCreateInfo stage;
    VkPipelineLayout layout;
    VkPipeline basePipelineHandle;
    int32_t basePipelineIndex;
} VkComputePipelineCreateInfo;

typedef struct VkPushConstantRange {
    VkFlags stageFlags;
    uint32_t offset, size;
} VkPushConstantRange;

typedef struct VkPipelineLayoutCreateInfo {
    VK_INFO;
    VkFlags flags;
    uint32_t setLayoutCount;
    const VkDescriptorSetLayout *pSetLayouts;
    uint32_t pushConstantRangeCount;
    const VkPushConstantRange *pPushConstantRanges;
} VkPipelineLayoutCreateInfo;

typedef struct VkDescriptorSetLayoutBinding {
    uint32_t binding;
    int32_t descriptorType;
    uint32_t descriptorCount;
    VkFlags stageFlags;
    const void *pImmutableSamplers;
} VkDescriptorSetLayoutBinding;

typedef struct VkDescriptorSetLayoutCreateInfo {
    VK_INFO;
    VkFlags flags;
    uint32_t bindingCount;
    const VkDescriptorSetLayoutBinding *pBindings;
} VkDescriptorSetLayoutCreateInfo;

typedef struct VkDescriptorPoolSize {
    int32_t type;
    uint32_t descriptorCount;
} VkDescriptorPoolSize;

typedef struct VkDescriptorPoolCreateInfo {
    VK_INFO;
    VkFlags flags;
    uint32_t maxSets, poolSizeCount;
    const VkDescriptorPoolSize *pPoolSizes;
} VkDescriptorPoolCreateInfo;

typedef struct VkDescriptorSetAllocateInfo {
    VK_INFO;
    VkDescriptorPool descriptorPool;
    uint32_t descriptorSetCount;
    const VkDescriptorSetLayout *pSetLayouts;
} VkDescriptorSetAllocateInfo;

typedef struct VkDescriptorBufferInfo {
    VkBuffer buffer;
    VkDeviceSize offset, range;
} VkDescriptorBufferInfo;

typedef struct VkWriteDescriptorSet {
    VK_INFO;
    VkDescriptorSet dstSet;
    uint32_t dstBinding, dstArrayElement, descriptorCount;
    int32_t descriptorType;
    const void *pImageInfo;
    const VkDescriptorBufferInfo *pBufferInfo;
    const void *pTexelBufferView;
} VkWriteDescriptorSet;

typedef struct VkCommandPoolCreateInfo {
    VK_INFO;
    VkFlags flags;
    uint32_t queueFamilyIndex;
} VkCommandPoolCreateInfo;

typedef struct VkCommandBufferAllocateInfo {
    VK_INFO;
    VkCommandPool commandPool;
    int32_t level;
    uint32_t commandBufferCount;
} VkCommandBufferAllocateInfo;

typedef struct VkCommandBufferBeginInfo {
    VK_INFO;
    VkFlags flags;
    const void *pInheritanceInfo;
} VkCommandBufferBeginInfo;

typedef struct VkMemoryBarrier {
    VK_INFO;
    VkFlags srcAccessMask, dstAccessMask;
} VkMemoryBarrier;

typedef struct VkBufferCopy {
    VkDeviceSize srcOffset, dstOffset, size;
} VkBufferCopy;

typedef struct VkSubmitInfo {
    VK_INFO;
    uint32_t waitSemaphoreCount;
    const uint64_t *pWaitSemaphores;
    const VkFlags *pWaitDstStageMask;
    uint32_t commandBufferCount;
    const VkCommandBuffer *pCommandBuffers;
    uint32_t signalSemaphoreCount;
    const uint64_t *pSignalSemaphores;
} VkSubmitInfo;

typedef struct VkFenceCreateInfo {
    VK_INFO;
    VkFlags flags;
} VkFenceCreateInfo;

typedef struct VkQueryPoolCreateInfo {
    VK_INFO;
    VkFlags flags;
    int32_t queryType;
    uint32_t queryCount;
    VkFlags pipelineStatistics;
} VkQueryPoolCreateInfo;

struct VkPhysicalDeviceFeatures2;
struct VkExtensionProperties;

/* Functions: name, result, arguments. The first group is had from an instance, the second from a device. */
#define VK_INSTANCE_FUNCTIONS(X)                                                                                         \
    X(void, DestroyInstance, (VkInstance, const void *))                                                                 \
    X(VkResult, EnumeratePhysicalDevices, (VkInstance, uint32_t *, VkPhysicalDevice *))                                  \
    X(void, GetPhysicalDeviceProperties, (VkPhysicalDevice, VkPhysicalDeviceProperties *))                               \
    X(void, GetPhysicalDeviceProperties2, (VkPhysicalDevice, VkPhysicalDeviceProperties2 *))                             \
    X(void, GetPhysicalDeviceQueueFamilyProperties, (VkPhysicalDevice, uint32_t *, VkQueueFamilyProperties *))           \
    X(void, GetPhysicalDeviceMemoryProperties, (VkPhysicalDevice, VkPhysicalDeviceMemoryProperties *))                   \
    X(void, GetPhysicalDeviceFeatures2, (VkPhysicalDevice, struct VkPhysicalDeviceFeatures2 *))                          \
    X(VkResult, EnumerateDeviceExtensionProperties,                                                                      \
      (VkPhysicalDevice, const char *, uint32_t *, struct VkExtensionProperties *))                                      \
    X(VkResult, CreateDevice, (VkPhysicalDevice, const VkDeviceCreateInfo *, const void *, VkDevice *))                  \
    X(void *, GetDeviceProcAddr, (VkDevice, const char *))
#define VK_DEVICE_FUNCTIONS(X)                                                                                           \
    X(void, DestroyDevice, (VkDevice, const void *))                                                                     \
    X(void, GetDeviceQueue, (VkDevice, uint32_t, uint32_t, VkQueue *))                                                   \
    X(VkResult, DeviceWaitIdle, (VkDevice))                                                                              \
    X(VkResult, CreateBuffer, (VkDevice, const VkBufferCreateInfo *, const void *, VkBuffer *))                          \
    X(void, DestroyBuffer, (VkDevice, VkBuffer, const void *))                                                           \
    X(void, GetBufferMemoryRequirements, (VkDevice, VkBuffer, VkMemoryRequirements *))                                   \
    X(VkResult, AllocateMemory, (VkDevice, const VkMemoryAllocateInfo *, const void *, VkDeviceMemory *))                \
    X(void, FreeMemory, (VkDevice, VkDeviceMemory, const void *))                                                        \
    X(VkResult, BindBufferMemory, (VkDevice, VkBuffer, VkDeviceMemory, VkDeviceSize))                                    \
    X(VkResult, MapMemory, (VkDevice, VkDeviceMemory, VkDeviceSize, VkDeviceSize, VkFlags, void **))                     \
    X(VkResult, CreateShaderModule, (VkDevice, const VkShaderModuleCreateInfo *, const void *, VkShaderModule *))        \
    X(void, DestroyShaderModule, (VkDevice, VkShaderModule, const void *))                                               \
    X(VkResult, CreatePipelineCache, (VkDevice, const VkPipelineCacheCreateInfo *, const void *, VkPipelineCache *))     \
    X(VkResult, GetPipelineCacheData, (VkDevice, VkPipelineCache, size_t *, void *))                                     \
    X(void, DestroyPipelineCache, (VkDevice, VkPipelineCache, const void *))                                             \
    X(VkResult, CreateComputePipelines,                                                                                  \
      (VkDevice, VkPipelineCache, uint32_t, const VkComputePipelineCreateInfo *, const void *, VkPipeline *))            \
    X(void, DestroyPipeline, (VkDevice, VkPipeline, const void *))                                                       \
    X(VkResult, CreatePipelineLayout, (VkDevice, const VkPipelineLayoutCreateInfo *, const void *, VkPipelineLayout *))  \
    X(void, DestroyPipelineLayout, (VkDevice, VkPipelineLayout, const void *))                                           \
    X(VkResult, CreateDescriptorSetLayout,                                                                               \
      (VkDevice, const VkDescriptorSetLayoutCreateInfo *, const void *, VkDescriptorSetLayout *))                        \
    X(void, DestroyDescriptorSetLayout, (VkDevice, VkDescriptorSetLayout, const void *))                                 \
    X(VkResult, CreateDescriptorPool, (VkDevice, const VkDescriptorPoolCreateInfo *, const void *, VkDescriptorPool *))  \
    X(void, DestroyDescriptorPool, (VkDevice, VkDescriptorPool, const void *))                                           \
    X(VkResult, AllocateDescriptorSets, (VkDevice, const VkDescriptorSetAllocateInfo *, VkDescriptorSet *))              \
    X(void, UpdateDescriptorSets, (VkDevice, uint32_t, const VkWriteDescriptorSet *, uint32_t, const void *))            \
    X(VkResult, CreateCommandPool, (VkDevice, const VkCommandPoolCreateInfo *, const void *, VkCommandPool *))           \
    X(void, DestroyCommandPool, (VkDevice, VkCommandPool, const void *))                                                 \
    X(VkResult, AllocateCommandBuffers, (VkDevice, const VkCommandBufferAllocateInfo *, VkCommandBuffer *))              \
    X(VkResult, BeginCommandBuffer, (VkCommandBuffer, const VkCommandBufferBeginInfo *))                                 \
    X(VkResult, EndCommandBuffer, (VkCommandBuffer))                                                                     \
    X(void, CmdBindPipeline, (VkCommandBuffer, int32_t, VkPipeline))                                                     \
    X(void, CmdBindDescriptorSets, (VkCommandBuffer, int32_t, VkPipelineLayout, uint32_t, uint32_t,                      \
                                    const VkDescriptorSet *, uint32_t, const uint32_t *))                                \
    X(void, CmdPushConstants, (VkCommandBuffer, VkPipelineLayout, VkFlags, uint32_t, uint32_t, const void *))            \
    X(void, CmdDispatch, (VkCommandBuffer, uint32_t, uint32_t, uint32_t))                                                \
    X(void, CmdPipelineBarrier, (VkCommandBuffer, VkFlags, VkFlags, VkFlags, uint32_t, const VkMemoryBarrier *,          \
                                 uint32_t, const void *, uint32_t, const void *))                                        \
    X(void, CmdCopyBuffer, (VkCommandBuffer, VkBuffer, VkBuffer, uint32_t, const VkBufferCopy *))                        \
    X(void, CmdFillBuffer, (VkCommandBuffer, VkBuffer, VkDeviceSize, VkDeviceSize, uint32_t))                            \
    X(void, CmdUpdateBuffer, (VkCommandBuffer, VkBuffer, VkDeviceSize, VkDeviceSize, const void *))                      \
    X(VkResult, CreateFence, (VkDevice, const VkFenceCreateInfo *, const void *, VkFence *))                             \
    X(void, DestroyFence, (VkDevice, VkFence, const void *))                                                             \
    X(VkResult, ResetFences, (VkDevice, uint32_t, const VkFence *))                                                      \
    X(VkResult, WaitForFences, (VkDevice, uint32_t, const VkFence *, uint32_t, uint64_t))                                \
    X(VkResult, CreateQueryPool, (VkDevice, const VkQueryPoolCreateInfo *, const void *, VkQueryPool *))                 \
    X(void, DestroyQueryPool, (VkDevice, VkQueryPool, const void *))                                                     \
    X(void, CmdResetQueryPool, (VkCommandBuffer, VkQueryPool, uint32_t, uint32_t))                                       \
    X(void, CmdWriteTimestamp, (VkCommandBuffer, VkFlags, VkQueryPool, uint32_t))                                        \
    X(VkResult, GetQueryPoolResults,                                                                                     \
      (VkDevice, VkQueryPool, uint32_t, uint32_t, size_t, void *, VkDeviceSize, VkFlags))                                \
    X(VkResult, QueueSubmit, (VkQueue, uint32_t, const VkSubmitInfo *, VkFence))
#endif
