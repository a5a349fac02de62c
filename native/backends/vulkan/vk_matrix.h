/* vk_matrix.h - the part of Vulkan's extensions that matrix units are found and used by; newer than the headers that
 * distributions carry, and so apart from vk.h. Names, values and layouts are the interface's own. */
#ifndef FB_VK_MATRIX_H
#define FB_VK_MATRIX_H
#include "vk.h"

enum {
    VK_COMPONENT_TYPE_FLOAT16_KHR = 0, VK_COMPONENT_TYPE_FLOAT32_KHR = 1, VK_COMPONENT_TYPE_BFLOAT16_KHR = 1000141000, VK_SCOPE_SUBGROUP_KHR = 3,
    VK_SUBGROUP_FEATURE_BASIC_BIT = 1, VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT = 2
};

enum { /* VkStructureType */
    VK_STYPE_FEATURES_2 = 1000059000, VK_STYPE_FLOAT16_FEATURES = 1000082000, VK_STYPE_SUBGROUPS = 1000094000, VK_STYPE_BFLOAT16_FEATURES = 1000141000,
    VK_STYPE_MEMORY_MODEL_FEATURES = 1000211000, VK_STYPE_SUBGROUP_SIZES = 1000225000,
    VK_STYPE_REQUIRED_SUBGROUP_SIZE = 1000225001, VK_STYPE_SUBGROUP_SIZE_FEATURES = 1000225002,
    VK_STYPE_MATRIX_FEATURES = 1000506000, VK_STYPE_MATRIX_PROPERTIES = 1000506001
};

typedef struct VkExtensionProperties {
    char extensionName[256];
    uint32_t specVersion;
} VkExtensionProperties;

typedef struct VkPhysicalDeviceFeatures2 {
    int32_t sType;
    void *pNext;
    uint32_t features[55];
} VkPhysicalDeviceFeatures2;

typedef struct VkPhysicalDeviceSubgroupProperties {
    int32_t sType;
    void *pNext;
    uint32_t subgroupSize;
    VkFlags supportedStages, supportedOperations;
    uint32_t quadOperationsInAllStages;
} VkPhysicalDeviceSubgroupProperties;

typedef struct VkPhysicalDeviceShaderBfloat16FeaturesKHR {
    int32_t sType;
    void *pNext;
    uint32_t shaderBFloat16Type, shaderBFloat16DotProduct, shaderBFloat16CooperativeMatrix;
} VkPhysicalDeviceShaderBfloat16FeaturesKHR;

typedef struct VkPhysicalDeviceShaderFloat16Int8Features {
    int32_t sType;
    void *pNext;
    uint32_t shaderFloat16, shaderInt8;
} VkPhysicalDeviceShaderFloat16Int8Features;

typedef struct VkPhysicalDeviceVulkanMemoryModelFeatures {
    int32_t sType;
    void *pNext;
    uint32_t vulkanMemoryModel, vulkanMemoryModelDeviceScope, vulkanMemoryModelAvailabilityVisibilityChains;
} VkPhysicalDeviceVulkanMemoryModelFeatures;

typedef struct VkPhysicalDeviceSubgroupSizeControlFeatures {
    int32_t sType;
    void *pNext;
    uint32_t subgroupSizeControl, computeFullSubgroups;
} VkPhysicalDeviceSubgroupSizeControlFeatures;

typedef struct VkPipelineShaderStageRequiredSubgroupSizeCreateInfo {
    int32_t sType;
    void *pNext;
    uint32_t requiredSubgroupSize;
} VkPipelineShaderStageRequiredSubgroupSizeCreateInfo;

typedef struct VkPhysicalDeviceCooperativeMatrixFeaturesKHR {
    int32_t sType;
    void *pNext;
    uint32_t cooperativeMatrix, cooperativeMatrixRobustBufferAccess;
} VkPhysicalDeviceCooperativeMatrixFeaturesKHR;

typedef struct VkCooperativeMatrixPropertiesKHR {
    int32_t sType;
    void *pNext;
    uint32_t MSize, NSize, KSize;
    int32_t AType, BType, CType, ResultType;
    uint32_t saturatingAccumulation;
    int32_t scope;
} VkCooperativeMatrixPropertiesKHR;
#endif
