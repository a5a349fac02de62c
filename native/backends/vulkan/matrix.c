/* matrix.c - whether a device has matrix units that our kernels can use: cooperative matrices of 16 x 16 x 16, BF16 or else
 * F16 summed in F32, with a subgroup of a size that can be asked for. Where anything is missing the portable kernels do all
 * the work. */
#include <string.h>
#include "vulkan.h"

#ifndef FB_MATRIX_FIRST
#define FB_MATRIX_FIRST 0 /* 1: never those for BF16, for tests on cards that have both */
#endif
#ifdef FB_MATRIX_EMULATED
enum { EMULATED = 1 };
#else
enum { EMULATED = 0 };
#endif
static const int32_t TYPES[] = {VK_COMPONENT_TYPE_BFLOAT16_KHR, VK_COMPONENT_TYPE_FLOAT16_KHR};
static const char *const EXTENSIONS[2][VK_MATRIX_EXTENSIONS] = {
    {"VK_KHR_cooperative_matrix", "VK_KHR_shader_bfloat16", "VK_KHR_vulkan_memory_model", "VK_EXT_subgroup_size_control"},
    {"VK_KHR_cooperative_matrix", "VK_KHR_shader_float16_int8", "VK_KHR_vulkan_memory_model", "VK_EXT_subgroup_size_control"}};

int vk_has_extensions(const vk_driver *d, VkPhysicalDevice device, const char *const *names, int count) {
    VkExtensionProperties all[512];
    uint32_t n = 512;
    int found = 0;
    VkResult result = d->EnumerateDeviceExtensionProperties(device, NULL, &n, all);
    if (result != VK_SUCCESS && result != VK_INCOMPLETE) return 0;
    for (uint32_t i = 0; i < n; i++)
        for (int k = 0; k < count; k++) found += !strcmp(all[i].extensionName, names[k]);
    return found == count;
}

static int has_shape(const vk_driver *d, VkPhysicalDevice device, int f16) {
    VkCooperativeMatrixPropertiesKHR all[64];
    uint32_t n = 64;
    VkResult (VKCALL *get)(VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *) =
        (VkResult(VKCALL *)(VkPhysicalDevice, uint32_t *, VkCooperativeMatrixPropertiesKHR *))d->GetInstanceProcAddr(
            d->instance, "vkGetPhysicalDeviceCooperativeMatrixPropertiesKHR");
    for (int i = 0; i < 64; i++) all[i] = (VkCooperativeMatrixPropertiesKHR){.sType = VK_STYPE_MATRIX_PROPERTIES};
    if (!get || get(device, &n, all) < VK_SUCCESS) return 0;
    for (uint32_t i = 0; i < n; i++)
        if (all[i].MSize == 16 && all[i].NSize == 16 && all[i].KSize == 16 && all[i].AType == TYPES[f16] &&
            all[i].BType == TYPES[f16] && all[i].CType == VK_COMPONENT_TYPE_FLOAT32_KHR &&
            all[i].ResultType == VK_COMPONENT_TYPE_FLOAT32_KHR && all[i].scope == VK_SCOPE_SUBGROUP_KHR)
            return 1;
    return 0;
}

static void chain(vk_matrix_features *f, int f16) {
    memset(f, 0, sizeof *f);
    f->matrix.sType = VK_STYPE_MATRIX_FEATURES;
    f->bfloat16.sType = VK_STYPE_BFLOAT16_FEATURES;
    f->float16.sType = VK_STYPE_FLOAT16_FEATURES;
    f->memory_model.sType = VK_STYPE_MEMORY_MODEL_FEATURES;
    f->subgroup_size.sType = VK_STYPE_SUBGROUP_SIZE_FEATURES;
    f->matrix.pNext = f16 ? (void *)&f->float16 : (void *)&f->bfloat16;
    f->bfloat16.pNext = f->float16.pNext = &f->memory_model;
    f->memory_model.pNext = &f->subgroup_size;
}

static uint32_t subgroup_of(const vk_driver *d, VkPhysicalDevice device, int f16) {
    vk_matrix_features f;
    VkPhysicalDeviceSubgroupProperties subgroups = {.sType = VK_STYPE_SUBGROUPS};
    VkPhysicalDeviceProperties2 properties = {.sType = VK_STYPE_PROPERTIES_2, .pNext = &subgroups};
    VkPhysicalDeviceFeatures2 features = {.sType = VK_STYPE_FEATURES_2, .pNext = &f.matrix};
    if (!vk_has_extensions(d, device, EXTENSIONS[f16], VK_MATRIX_EXTENSIONS) || !has_shape(d, device, f16)) return 0;
    chain(&f, f16);
    d->GetPhysicalDeviceFeatures2(device, &features);
    d->GetPhysicalDeviceProperties2(device, &properties);
    if (!f16 && (!f.bfloat16.shaderBFloat16Type || !f.bfloat16.shaderBFloat16CooperativeMatrix)) return 0;
    if (!f.matrix.cooperativeMatrix || (f16 && !f.float16.shaderFloat16)) return 0;
    if (!f.memory_model.vulkanMemoryModel || !f.subgroup_size.subgroupSizeControl) return 0;
    if (!f.subgroup_size.computeFullSubgroups || !(subgroups.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT)) return 0;
    return subgroups.supportedOperations & VK_SUBGROUP_FEATURE_BASIC_BIT ? subgroups.subgroupSize : 0;
}

uint32_t vk_matrix_subgroup(const vk_driver *d, VkPhysicalDevice device, int *f16) {
    uint32_t threads = 0;
    if (!fb_spirv_kernels[FB_FIRST_MATRIX_KERNEL].count) return 0;
    if (EMULATED) return *f16 = FB_MATRIX_FIRST, 32;
    for (int type = FB_MATRIX_FIRST; type < 2 && !threads; type++) threads = subgroup_of(d, device, *f16 = type);
    *f16 &= threads > 0;
    return threads;
}

void vk_matrix_ask(vk_matrix_features *f, VkDeviceCreateInfo *info, const char **names, int f16) {
    if (EMULATED) return;
    chain(f, f16);
    f->matrix.cooperativeMatrix = f->bfloat16.shaderBFloat16Type = f->bfloat16.shaderBFloat16CooperativeMatrix = 1;
    f->float16.shaderFloat16 = 1;
    f->memory_model.vulkanMemoryModel = f->subgroup_size.subgroupSizeControl = f->subgroup_size.computeFullSubgroups = 1;
    info->pNext = &f->matrix;
    memcpy((void *)(names + info->enabledExtensionCount), EXTENSIONS[f16], sizeof EXTENSIONS[f16]);
    info->enabledExtensionCount += VK_MATRIX_EXTENSIONS;
}

/* Subgroups of that size, with no thread missing. */
void vk_matrix_stage(uint32_t subgroup, VkPipelineShaderStageRequiredSubgroupSizeCreateInfo *size,
                     VkPipelineShaderStageCreateInfo *stage) {
    if (EMULATED) return;
    *size = (VkPipelineShaderStageRequiredSubgroupSizeCreateInfo){.sType = VK_STYPE_REQUIRED_SUBGROUP_SIZE,
                                                                  .requiredSubgroupSize = subgroup};
    stage->pNext = size;
    stage->flags = VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT;
}
