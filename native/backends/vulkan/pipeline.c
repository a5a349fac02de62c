/* pipeline.c - the portable kernels as pipelines: one for each set of constants, made when first needed, kept in the
 * driver's own cache on disk from run to run. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "../../os.h"
#include "vulkan.h"

static const size_t MOST_CACHE = (size_t)64 << 20;

/* The bytes of the cache file, or NULL: a file that is not there or not ours is as good as none, and the driver checks
 * that the cache is its own. */
static void *load(const char *path, size_t *size) {
    FILE *file = path ? fb_os_file(path, 0) : NULL;
    char *data = NULL;
    *size = 0;
    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0) {
        long length = ftell(file);
        data = length > 0 && (size_t)length <= MOST_CACHE ? malloc((size_t)length) : NULL;
        if (data && (fseek(file, 0, SEEK_SET) || fread(data, 1, (size_t)length, file) != (size_t)length)) {
            free(data);
            data = NULL;
        }
        if (data) *size = (size_t)length;
    }
    fclose(file);
    return data;
}

/* Best effort: a cache that cannot be written costs time at the next start and nothing else. */
static void save(vulkan *vk) {
    size_t size = 0;
    if (!vk->cache_path || !vk->cache || !vk->n_pipelines) return;
    if (vk->fn.GetPipelineCacheData(vk->device, vk->cache, &size, NULL) != VK_SUCCESS || size > MOST_CACHE) return;
    size_t length = strlen(vk->cache_path) + 32;
    char *data = malloc(size ? size : 1), *temporary = malloc(length);
    FILE *file = NULL;
    if (data && temporary && vk->fn.GetPipelineCacheData(vk->device, vk->cache, &size, data) == VK_SUCCESS) {
        snprintf(temporary, length, "%s.%p", vk->cache_path, (void *)vk); /* no other process's name, most likely */
        file = fb_os_file(temporary, 1);
    }
    if (file) {
        int whole = fwrite(data, 1, size, file) == size;
        if (fclose(file) || !whole || fb_os_rename(temporary, vk->cache_path)) fb_os_remove(temporary);
    }
    free(data);
    free(temporary);
}

int vk_pipelines_open(vulkan *vk, const char *cache_path) {
    VkDescriptorSetLayoutBinding bindings[FB_BINDINGS + 1];
    for (uint32_t i = 0; i < FB_BINDINGS + 1; i++)
        bindings[i] = (VkDescriptorSetLayoutBinding){.binding = i, .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                                     .descriptorCount = 1, .stageFlags = VK_SHADER_STAGE_COMPUTE_BIT};
    bindings[FB_BINDINGS].descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER; /* the counts of the feed */
    VkDescriptorSetLayoutCreateInfo set = {.sType = VK_STYPE_SET_LAYOUT, .bindingCount = FB_BINDINGS + 1, .pBindings = bindings};
    VkPushConstantRange push = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = 4 * FB_PUSH_WORDS};
    VkPipelineLayoutCreateInfo layout = {.sType = VK_STYPE_PIPELINE_LAYOUT, .setLayoutCount = 1,
                                         .pSetLayouts = &vk->set_layout, .pushConstantRangeCount = 1,
                                         .pPushConstantRanges = &push};
    int code = vk_check(vk->fn.CreateDescriptorSetLayout(vk->device, &set, NULL, &vk->set_layout), "describe its operands");
    if (code == FB_OK) code = vk_check(vk->fn.CreatePipelineLayout(vk->device, &layout, NULL, &vk->layout), "lay out kernels");
    if (code) return code;
    size_t length = cache_path ? strlen(cache_path) + 24 : 0, size;
    if (cache_path && !(vk->cache_path = malloc(length))) return fb_fail(FB_E_MEMORY, "out of memory");
    if (cache_path)
        snprintf(vk->cache_path, length, "%s-%04x-%04x.bin", cache_path, (unsigned)vk->properties.vendorID,
                 (unsigned)vk->properties.deviceID);
    void *data = load(vk->cache_path, &size);
    VkPipelineCacheCreateInfo cache = {.sType = VK_STYPE_PIPELINE_CACHE, .initialDataSize = size, .pInitialData = data};
    if (vk->fn.CreatePipelineCache(vk->device, &cache, NULL, &vk->cache) != VK_SUCCESS) {
        cache.initialDataSize = 0;
        if (vk->fn.CreatePipelineCache(vk->device, &cache, NULL, &vk->cache) != VK_SUCCESS) vk->cache = 0;
    }
    free(data);
    return FB_OK;
}

static int module_of(vulkan *vk, fb_kernel_id kernel) {
    if (vk->modules[kernel]) return FB_OK;
    const fb_spirv *code = &fb_spirv_kernels[kernel];
    VkShaderModuleCreateInfo info = {.sType = VK_STYPE_SHADER_MODULE, .codeSize = code->count * sizeof(uint32_t),
                                     .pCode = code->words};
    return vk_check(vk->fn.CreateShaderModule(vk->device, &info, NULL, &vk->modules[kernel]), "take a kernel");
}

int vk_pipeline_get(vulkan *vk, const fb_dispatch *d, VkPipeline *out) {
    for (int i = 0; i < vk->n_pipelines; i++) {
        const vk_pipeline *p = &vk->pipelines[i];
        if (p->kernel != d->kernel || memcmp(p->constants, d->constant.at, sizeof p->constants) != 0) continue;
        *out = p->handle;
        return FB_OK;
    }
    vk_pipeline *grown = fb_grown(vk->pipelines, vk->n_pipelines, &vk->room_pipelines, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    vk->pipelines = grown;
    int code = module_of(vk, d->kernel);
    if (code) return code;
    VkSpecializationMapEntry entries[FB_SPECS];
    for (uint32_t i = 0; i < FB_SPECS; i++) entries[i] = (VkSpecializationMapEntry){i, i * 4, 4};
    VkSpecializationInfo constants = {FB_SPECS, entries, sizeof d->constant.at, d->constant.at};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size;
    VkComputePipelineCreateInfo info = {
        .sType = VK_STYPE_COMPUTE_PIPELINE,
        .stage = {.sType = VK_STYPE_SHADER_STAGE, .stage = VK_SHADER_STAGE_COMPUTE_BIT, .module = vk->modules[d->kernel],
                  .pName = "main", .pSpecializationInfo = &constants},
        .layout = vk->layout, .basePipelineIndex = -1};
    if (d->kernel >= FB_FIRST_MATRIX_KERNEL) vk_matrix_stage(vk->limits.subgroup, &size, &info.stage);
    vk_pipeline *p = &vk->pipelines[vk->n_pipelines];
    p->kernel = d->kernel;
    memcpy(p->constants, d->constant.at, sizeof p->constants);
    code = vk_check(vk->fn.CreateComputePipelines(vk->device, vk->cache, 1, &info, NULL, &p->handle), "build a kernel");
    if (code) return code;
    vk->n_pipelines++;
    *out = p->handle;
    return FB_OK;
}

void vk_pipelines_close(vulkan *vk) {
    save(vk);
    for (int i = 0; i < vk->n_pipelines; i++) vk->fn.DestroyPipeline(vk->device, vk->pipelines[i].handle, NULL);
    for (int i = 0; i < FB_KERNEL_COUNT; i++)
        if (vk->modules[i]) vk->fn.DestroyShaderModule(vk->device, vk->modules[i], NULL);
    if (vk->cache) vk->fn.DestroyPipelineCache(vk->device, vk->cache, NULL);
    if (vk->layout) vk->fn.DestroyPipelineLayout(vk->device, vk->layout, NULL);
    if (vk->set_layout) vk->fn.DestroyDescriptorSetLayout(vk->device, vk->set_layout, NULL);
    free(vk->pipelines);
    free(vk->cache_path);
}
