/* matrix.c - whether a device has matrix units that our kernels can use: cooperative matrices of 16 x 16 x 16, BF16 summed
 * in F32, with a subgroup of a size that can be asked for. Where anything is missing the portable kernels do all the work. */
#include <string.h>
#include "vulkan.h"

static const char *const EXTENSIONS[VK_MATRIX_EXTENSIONS] = {"VK_KHR_cooperative_matrix", "VK_KHR_shader_bfloat16",
                                                             "VK_KHR_vulkan_memory_model", "VK_EXT_subgroup_size_control"};

static int has_extensions(const vk_driver *d, VkPhysicalDevice device) {
    VkExtensionProperties all[512];
    uint32_t n = 512;
    int found = 0;
    VkResult result = d->EnumerateDeviceExtensionProperties(device, NULL, &n, all);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) return 0;
    for (uint32_t i = 0; i < n; i++)
        for (int k = 0; k < VK_MATRIX_EXTENSIONS; k++) found += !strcmp(all[i].extensionName, EXTENSIONS[k]);
    return found == VK_MATRIX_EXTENSIONS;
}

static int has_shape(const vk_driver *d, VkPhysicalDevice device) {
    VkCooperativeMatrixPropertiesKHR all[64];
    uint32_t n = 64;
    VkResult (VKCALL *get)(VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *) =
        (VkResult(VKCALL *)(VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *))d->GetInstanceProcAddr(
            d->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    for (int i = 0; i < 64; i++) all[i] = (VkCooperativeMatrixPropertiesKHR){.sType = VK_STYPE_MATRIX_PROPERTIES};
    if (!get || get(device, &n, all) < VK_SUCCESS) return 0;
    for (uint32_t i = 0; i < n; i++)
        if (all[i].MSize == 16 && all[i].NSize == 16 && all[i].KSize == 16 && all[i].AType == VK_COMPONENT_TYPE_BFLOAT16_KHR &&
            all[i].BType == VK_COMPONENT_TYPE_BFLOAT16_KHR && all[i].CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            all[i].ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR && all[i].scope == VK_SCOPE_SUBGROUP_KHR)
            return 1;
    return 0;
}

static void chain(vk_matrix_features *f) {
    memset(f, 0, sizeof *f);
    f->matrix.sType = VK_STYPE_MATRIX_FEATURES;
    f->bfloat16.sType = VK_STYPE_BFLOAT16_FEATURES;
    f->memory_model.sType = VK_STYPE_MEMORY_MODEL_FEATURES;
    f->subgroup_size.sType = VK_STYPE_SUBGROUP_SIZE_FEATURES;
    f->matrix.pNext = &f->bfloat16;
    f->bfloat16.pNext = &f->memory_model;
    f->memory_model.pNext = &f->subgroup_size;
}

uint32_t vk_matrix_subgroup(const vk_driver *d, VkPhysicalDevice device) {
    vk_matrix_features f;
    VkPhysicalDeviceSubgroupProperties subgroups = {.sType = VK_STYPE_SUBGROUPS};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STYPE_PROPERTIES_2, .pNext = &subgroups};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STYPE_FEATURES_2, .pNext = &f.matrix};
    chain(&f);
#ifdef FB_MATRIX_EMULATED
    return 32;
#endif
    if (!has_extensions(d, device) || !has_shape(d, device)) return 0;
    d->GetPhysicalDeviceFeatures2(device, &features);
    d->GetPhysicalDeviceProperties2(device, &properties);
    if (!f.matrix.cooperativeMatrix || !f.bfloat16.shaderBFloat16Type || !f.bfloat16.shaderBFloat16CooperativeMatrix) return 0;
    if (!f.memory_model.vulkanMemoryModel || !f.subgroup_size.subgroupSizeControl) return 0;
    if (!f.subgroup_size.computeFullSubgroups || !(subgroups.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT)) return 0;
    return subgroups.supportedOperations & VK_SUBGROUP_FEATURE_BASIC_BIT ? subgroups.subgroupSize : 0;
}

void vk_matrix_ask(vk_matrix_features *f, VkDeviceCreateInfo *info) {
#ifdef FB_MATRIX_EMULATED
    return;
#endif
    chain(f);
    f->matrix.cooperativeMatrix = f->bfloat16.shaderBFloat16Type = f->bfloat16.shaderBFloat16CooperativeMatrix = 1;
    f->memory_model.vulkanMemoryModel = f->subgroup_size.subgroupSizeControl = f->subgroup_size.computeFullSubgroups = 1;
    info->pNext = &f->matrix;
    info->enabledExtensionCount = VK_MATRIX_EXTENSIONS;
    info->ppEnabledExtensionNames = EXTENSIONS;
}

/* Subgroups of that size, with no thread missing. */
void vk_matrix_stage(uint32_t subgroup, VkPipelineShaderStageRequiredSubgroupSizeCreateInfo *size,
                     VkPipelineShaderStageCreateInfo *stage) {
#ifdef FB_MATRIX_EMULATED
    return;
#endif
    *size = (VkPipelineShaderStageRequiredSubgroupSizeCreateInfo){.sType = VK_STYPE_REQUIRED_SUBGROUP_SIZE,
                                                                  .requiredSubgroupSize = subgroup};
    stage->pNext = size;
    stage->flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
}
