/* program.c - launches made into commands that every feed replays. A program is lowered when it is prepared, for as many rows as
 * there is room for, and recorded when it is first replayed; what changes with a feed are its counts, which kernels read from
 * memory. Commands lie in pieces, each of which should take no longer than submit_s: progress, cancel and rest act between two.
 * They are recorded anew only where the paces that were seen since would have them parted otherwise. */
#include "vulkan.h"
#include <stdlib.h>
#include <string.h>
#include "../../os.h"

/* A dispatch, bound. */
typedef struct vk_step {
    fb_kernel_id kernel;
    int launch; /* of the program */
    VkPipeline pipeline;
    VkDescriptorSet set;
    VkDescriptorBufferInfo bound[FB_BINDINGS];
    uint32_t there, n_words, words[FB_PUSH_WORDS]; /* there: a bit an operand; the last word is the first workgroup */
    uint64_t groups;
    double work;     /* operations, roughly, of all rows */
    fb_view counted; /* by whose rows in use they go down */
} vk_step;

/* Before workgroup `group` of step number `step`. */
typedef struct vk_place {
    int step;
    uint64_t group;
} vk_place;

typedef struct vk_piece {
    VkCommandBuffer commands;
    vk_place from, to;
} vk_piece;

typedef struct vk_program {
    vk_step *steps;
    vk_piece *pieces;
    int n, room, launches, n_pieces, room_pieces;
    int counted, timed; /* some rows are counted; each launch is in pieces of its own, which note the time */
    VkDescriptorPool sets;
    VkCommandPool pool;
} vk_program;

/* ---- submissions ---- */

static int slot_open(vulkan *vk, vk_slot *slot) {
    VkCommandBufferAllocateInfo commands = {.sType = VK_STYPE_COMMAND_ALLOCATE, .commandPool = vk->pool, .commandBufferCount = 1};
    VkFenceCreateInfo fence = {.sType = VK_STYPE_FENCE};
    int code = vk_check(vk->fn.AllocateCommandBuffers(vk->device, &commands, &slot->commands), "make a command buffer");
    return code ? code : vk_check(vk->fn.CreateFence(vk->device, &fence, NULL, &slot->fence), "make a fence");
}

static int make_pool(vulkan *vk, VkCommandPool *pool) {
    VkCommandPoolCreateInfo info = {.sType = VK_STYPE_COMMAND_POOL, .queueFamilyIndex = vk->family,
                                    .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT};
    return vk_check(vk->fn.CreateCommandPool(vk->device, &info, NULL, pool), "make a command pool");
}

/* A clock is no need: without one the host's is read. */
static void open_stamps(vulkan *vk) {
    VkQueueFamilyProperties families[16];
    uint32_t n = 16;
    VkQueryPoolCreateInfo info = {.sType = VK_STYPE_QUERY_POOL, .queryType = VK_QUERY_TYPE_TIMESTAMP, .queryCount = STAMPS};
    vk->driver.GetPhysicalDeviceQueueFamilyProperties(vk->physical, &n, families);
    if (!families[vk->family].timestampValidBits || vk->properties.limits.timestampPeriod <= 0) return;
    if (vk->fn.CreateQueryPool(vk->device, &info, NULL, &vk->stamps) != VK_SUCCESS) vk->stamps = 0;
}

int vk_slots_open(vulkan *vk) {
    int code = make_pool(vk, &vk->pool);
    for (int i = 0; i < SLOTS && code == FB_OK; i++) code = slot_open(vk, &vk->slots[i]);
    if (code == FB_OK) open_stamps(vk);
    return code;
}

void vk_slots_close(vulkan *vk) {
    for (int i = 0; i < SLOTS; i++)
        if (vk->slots[i].fence) vk->fn.DestroyFence(vk->device, vk->slots[i].fence, NULL);
    if (vk->stamps) vk->fn.DestroyQueryPool(vk->device, vk->stamps, NULL);
    if (vk->pool) vk->fn.DestroyCommandPool(vk->device, vk->pool, NULL);
}

/* Makes everything before visible to everything after. */
static void barrier(vulkan *vk, VkCommandBuffer commands) {
    vk->n_uses = 0;
    const VkFlags stages = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkFlags reads = VK_ACCESS_UNIFORM_READ_BIT | VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;
    const VkFlags writes = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    VkMemoryBarrier all = {.sType = VK_STYPE_MEMORY_BARRIER, .srcAccessMask = writes, .dstAccessMask = reads | writes};
    vk->fn.CmdPipelineBarrier(commands, stages, stages, 0, 1, &all, 0, NULL, 0, NULL);
}

/* Where the host only knows that a submission has ended, it may have been quicker but not slower. */
static int retire(vulkan *vk, vk_slot *slot) {
    if (!slot->running) return FB_OK;
    double asked = fb_os_seconds();
    int code = vk_check(vk->fn.WaitForFences(vk->device, 1, &slot->fence, 1, ~(uint64_t)0), "finish its work");
    double now = fb_os_seconds();
    int seen = now - asked > 5e-5;
    slot->running = 0;
    if (code == FB_OK)
        fb_pace_learn(&vk->pace, &slot->load, now - (slot->began > vk->ended ? slot->began : vk->ended), seen);
    vk->ended = seen ? now : 0;
    if (code == FB_OK) code = vk_check(vk->fn.ResetFences(vk->device, 1, &slot->fence), "reset a fence");
    return code;
}

/* The next slot, whose last submission has ended. */
static int next_slot(vulkan *vk, vk_slot **slot) {
    vk_slot *s = *slot = &vk->slots[vk->slot];
    int code = retire(vk, s);
    s->load = (fb_load){.expected = 0};
    return code;
}

static int begin(vulkan *vk, VkCommandBuffer commands, VkFlags use) {
    VkCommandBufferBeginInfo info = {.sType = VK_STYPE_COMMAND_BEGIN, .flags = use};
    int code = vk_check(vk->fn.BeginCommandBuffer(commands, &info), "record commands");
    if (code == FB_OK) barrier(vk, commands);
    return code;
}

static int end(vulkan *vk, VkCommandBuffer commands) {
    VkMemoryBarrier host = {.sType = VK_STYPE_MEMORY_BARRIER,
                            .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
                            .dstAccessMask = VK_ACCESS_HOST_READ_BIT | VK_ACCESS_HOST_WRITE_BIT};
    vk->fn.CmdPipelineBarrier(commands, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
                              VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &host, 0, NULL, 0, NULL);
    return vk_check(vk->fn.EndCommandBuffer(commands), "end a command buffer");
}

static int submit(vulkan *vk, vk_slot *slot, const VkCommandBuffer *commands) {
    VkSubmitInfo info = {.sType = VK_STYPE_SUBMIT, .commandBufferCount = 1, .pCommandBuffers = commands};
    int code = vk_check(vk->fn.QueueSubmit(vk->queue, 1, &info, slot->fence), "run commands");
    if (code) return code;
    slot->running = 1;
    slot->began = fb_os_seconds();
    vk->slot = (vk->slot + 1) % SLOTS;
    return FB_OK;
}

int vk_begin(vulkan *vk, VkCommandBuffer *commands) {
    vk_slot *slot = &vk->slots[vk->slot];
    int code = vk->recording ? FB_OK : next_slot(vk, &slot);
    *commands = slot->commands;
    if (code || vk->recording) return code ? code : (barrier(vk, *commands), FB_OK);
    code = begin(vk, slot->commands, VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT);
    vk->recording = code == FB_OK;
    return code;
}

int vk_flush(vulkan *vk) {
    vk_slot *slot = &vk->slots[vk->slot];
    if (!vk->recording) return FB_OK;
    vk->recording = 0;
    int code = end(vk, slot->commands);
    return code ? code : submit(vk, slot, &slot->commands);
}

int vk_wait(void *self) {
    vulkan *vk = self;
    int code = vk_flush(vk);
    for (int i = 0; i < SLOTS; i++) {
        int failed = retire(vk, &vk->slots[(vk->slot + i) % SLOTS]);
        if (code == FB_OK) code = failed;
    }
    return code;
}

/* ---- preparing ---- */

/* Bytes from the first element of a view to its last. */
static uint64_t span(const fb_view *v) {
    return fb_type_bytes(v->type, (int64_t)(v->rows - 1) * v->ld) + fb_type_bytes(v->type, v->cols);
}

/* Where a view's binding starts and ends, and what the kernel must add to get to its first element. */
static int bind(const vulkan *vk, const fb_dispatch *d, int k, VkDescriptorBufferInfo *info, uint32_t words[FB_PUSH_WORDS]) {
    const fb_view *v = &d->operand.at[k];
    const vk_slice *slice = v->mem->handle;
    const uint64_t bytes = span(v), start = slice->offset + v->offset, aligned = start / vk->align * vk->align;
    if (v->offset > v->mem->bytes || bytes > v->mem->bytes - v->offset)
        return fb_fail(FB_E_INTERNAL, "operand %d of a launch reaches beyond its buffer", k);
    if (bytes > vk->max_binding_bytes)
        return fb_fail(FB_E_LIMIT, "operand %d of a launch spans %llu bytes, and this device binds %llu", k,
                       (unsigned long long)bytes, (unsigned long long)vk->max_binding_bytes);
    fb_place(d, k, start - aligned, words);
    *info = (VkDescriptorBufferInfo){slice->block->buffer, aligned, (start - aligned + bytes + 3) / 4 * 4};
    return FB_OK;
}

static int add(void *self, void *program, fb_dispatch *d, int launch, const fb_view *counted) {
    vulkan *vk = self;
    vk_program *p = program;
    vk_step *grown = fb_grown(p->steps, p->n, &p->room, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    p->steps = grown;
    vk_step *t = &p->steps[p->n];
    *t = (vk_step){.kernel = d->kernel, .launch = launch, .groups = d->groups, .work = d->work};
    int code = vk_pipeline_get(vk, d, &t->pipeline);
    for (int k = 0; k < FB_BINDINGS && code == FB_OK; k++)
        if (d->operand.at[k].mem) code = bind(vk, d, k, &t->bound[k], t->words), t->there |= 1u << k;
    t->n_words = fb_arguments(d, 0, t->words);
    if (counted) t->counted = *counted, p->counted = 1;
    p->n += code == FB_OK;
    return code;
}

static int make_set(vulkan *vk, const vk_program *p, vk_step *t) {
    const vk_slice *slice = vk->counts.handle;
    const VkDescriptorBufferInfo counts = {slice->block->buffer, slice->offset, VK_COUNTS_BYTES};
    VkWriteDescriptorSet writes[FB_BINDINGS + 1];
    VkDescriptorSetAllocateInfo allocate = {.sType = VK_STYPE_SET_ALLOCATE, .descriptorPool = p->sets, .descriptorSetCount = 1,
                                            .pSetLayouts = &vk->set_layout};
    int code = vk_check(vk->fn.AllocateDescriptorSets(vk->device, &allocate, &t->set), "make a descriptor set");
    uint32_t first = 0; /* what is absent is never read, but something must be there: the first that is */
    while (!(t->there >> first & 1u)) first++;
    for (uint32_t k = 0; k < FB_BINDINGS + 1; k++)
        writes[k] = (VkWriteDescriptorSet){.sType = VK_STYPE_WRITE_SET, .dstSet = t->set, .dstBinding = k, .descriptorCount = 1,
                                           .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
                                           .pBufferInfo = &t->bound[k < FB_BINDINGS && t->there >> k & 1u ? k : first]};
    writes[FB_BINDINGS].descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
    writes[FB_BINDINGS].pBufferInfo = &counts;
    if (code == FB_OK) vk->fn.UpdateDescriptorSets(vk->device, FB_BINDINGS + 1, writes, 0, NULL);
    return code;
}

/* What all steps need to be recorded. */
static int make_ready(vulkan *vk, vk_program *p) {
    const uint32_t n = p->n ? (uint32_t)p->n : 1;
    const VkDescriptorPoolSize sizes[] = {{VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, n * FB_BINDINGS}, {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, n}};
    VkDescriptorPoolCreateInfo sets = {.sType = VK_STYPE_DESCRIPTOR_POOL, .maxSets = n, .poolSizeCount = 2, .pPoolSizes = sizes};
    int code = vk_check(vk->fn.CreateDescriptorPool(vk->device, &sets, NULL, &p->sets), "make a descriptor pool");
    for (int i = 0; i < p->n && code == FB_OK; i++) code = make_set(vk, p, &p->steps[i]);
    return code ? code : make_pool(vk, &p->pool);
}

/* What was recorded is not used any more. */
static int forget(vulkan *vk, vk_program *p) {
    int code = p->n_pieces ? vk_wait(vk) : FB_OK;
    if (p->n_pieces) vk->fn.DestroyCommandPool(vk->device, p->pool, NULL), p->pool = 0;
    if (p->n_pieces && code == FB_OK) code = make_pool(vk, &p->pool);
    p->n_pieces = 0;
    return code;
}

static void drop(vulkan *vk, vk_program *p) {
    vk_wait(vk);
    if (p->pool) vk->fn.DestroyCommandPool(vk->device, p->pool, NULL);
    if (p->sets) vk->fn.DestroyDescriptorPool(vk->device, p->sets, NULL);
    free(p->steps);
    free(p->pieces);
}

void vk_release(void *self, void *program) {
    if (program) drop(self, program);
    free(program);
}

int vk_prepare(void *self, const fb_launch *launches, int n, const fb_mem *workspace, void **out) {
    vulkan *vk = self;
    vk_program *p = calloc(1, sizeof *p);
    int code = p ? fb_lower_all(launches, n, workspace, &vk->limits, add, vk, p) : fb_fail(FB_E_MEMORY, "out of memory");
    if (code == FB_OK) code = make_ready(vk, p);
    if (code) vk_release(vk, p);
    else p->launches = n, *out = p;
    return code;
}

uint64_t vk_scratch(void *self, const fb_launch *launch) {
    const vulkan *vk = self;
    return fb_lower_scratch(launch, &vk->limits);
}

/* ---- recording ---- */

/* A barrier, unless a step neither reads nor writes what one since the last barrier wrote, nor writes what one read. */
static void order(vulkan *vk, VkCommandBuffer commands, const vk_step *t) {
    const uint32_t written = fb_kernels[t->kernel].written;
    int apart = vk->n_uses + FB_BINDINGS > USES;
    for (int k = 0; k < FB_BINDINGS && !apart; k++)
        for (int i = 0; (t->there >> k & 1u) && i < vk->n_uses && !apart; i++) {
            const vk_use *u = &vk->uses[i];
            apart = u->buffer == t->bound[k].buffer && u->from < t->bound[k].offset + t->bound[k].range &&
                    t->bound[k].offset < u->to && (u->written || (written >> k & 1u));
        }
    if (apart) barrier(vk, commands);
    for (int k = 0; k < FB_BINDINGS; k++)
        if (t->there >> k & 1u)
            vk->uses[vk->n_uses++] = (vk_use){t->bound[k].buffer, t->bound[k].offset, t->bound[k].offset + t->bound[k].range,
                                              (int)(written >> k & 1u)};
}

/* Workgroups [first, end) of a step, in grids that the device takes; their rest does nothing. */
static void put(vulkan *vk, VkCommandBuffer commands, const vk_step *t, uint64_t first, uint64_t end) {
    const uint64_t widest = vk->most_groups, most = widest * (widest < 32768 ? widest : 32768);
    uint32_t words[FB_PUSH_WORDS];
    memcpy(words, t->words, sizeof words);
    order(vk, commands, t);
    vk->fn.CmdBindPipeline(commands, VK_PIPELINE_BIND_POINT_COMPUTE, t->pipeline);
    vk->fn.CmdBindDescriptorSets(commands, VK_PIPELINE_BIND_POINT_COMPUTE, vk->layout, 0, 1, &t->set, 0, NULL);
    for (; first < end; first += most) {
        const uint32_t n = (uint32_t)(end - first < most ? end - first : most), wide = n < widest ? n : (uint32_t)widest;
        words[t->n_words - 1] = (uint32_t)first;
        vk->fn.CmdPushConstants(commands, vk->layout, VK_SHADER_STAGE_COMPUTE_BIT, 0, 4 * t->n_words, words);
        vk->fn.CmdDispatch(commands, wide, (n + wide - 1) / wide, 1);
    }
}

/* Workgroups of step number i that are in a piece. */
static uint64_t first_in(const vk_piece *piece, int i) { return i == piece->from.step ? piece->from.group : 0; }
static uint64_t end_in(const vk_program *p, const vk_piece *piece, int i) {
    return i == piece->to.step ? piece->to.group : p->steps[i].groups;
}

/* Where a piece that begins there should end: steps as they are, but for one that takes longer than submit_s by itself. */
static vk_place cut(const vulkan *vk, const vk_program *p, vk_place at) {
    const int launch = p->steps[at.step].launch;
    for (double left = vk->pace.submit_s; at.step < p->n && !(p->timed && p->steps[at.step].launch != launch); at = (vk_place){at.step + 1, 0}) {
        const vk_step *t = &p->steps[at.step];
        const double each = t->work / (double)t->groups * vk->pace.each[t->kernel], takes = each * (double)(t->groups - at.group);
        if (takes > left && left < vk->pace.submit_s) break;
        left -= takes;
        if (left > 0) continue;
        const double groups = vk->pace.submit_s / each;
        at.group += groups < 1 ? 1 : (uint64_t)groups;
        if (takes > vk->pace.submit_s && at.group < t->groups) return at;
    }
    return at;
}

static int record(vulkan *vk, const vk_program *p, const vk_piece *piece) {
    int code = begin(vk, piece->commands, VK_COMMAND_BUFFER_USAGE_SIMULTANEOUS_USE_BIT);
    if (code) return code;
    if (p->timed && vk->stamps) {
        vk->fn.CmdResetQueryPool(piece->commands, vk->stamps, 0, STAMPS);
        vk->fn.CmdWriteTimestamp(piece->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, vk->stamps, 0);
    }
    for (int i = piece->from.step; i <= piece->to.step && i < p->n; i++)
        if (first_in(piece, i) < end_in(p, piece, i))
            put(vk, piece->commands, &p->steps[i], first_in(piece, i), end_in(p, piece, i));
    if (p->timed && vk->stamps)
        vk->fn.CmdWriteTimestamp(piece->commands, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, vk->stamps, 1);
    return end(vk, piece->commands);
}

/* One more piece, which begins where the last one ends. */
static int extend(vulkan *vk, vk_program *p) {
    vk_piece *grown = fb_grown(p->pieces, p->n_pieces, &p->room_pieces, sizeof *grown);
    if (!grown) return FB_E_MEMORY;
    p->pieces = grown;
    VkCommandBufferAllocateInfo commands = {.sType = VK_STYPE_COMMAND_ALLOCATE, .commandPool = p->pool, .commandBufferCount = 1};
    vk_piece *piece = &p->pieces[p->n_pieces];
    piece->from = p->n_pieces ? piece[-1].to : (vk_place){0, 0};
    piece->to = cut(vk, p, piece->from);
    int code = vk_check(vk->fn.AllocateCommandBuffers(vk->device, &commands, &piece->commands), "make a command buffer");
    if (code == FB_OK) code = record(vk, p, piece);
    p->n_pieces += code == FB_OK;
    return code;
}

/* ---- replaying ---- */

/* What a piece holds; with `counts`, of the rows in use. */
static fb_load load_of(const vulkan *vk, const vk_program *p, const vk_piece *piece, const int32_t *counts) {
    fb_load load = {.expected = 0};
    for (int i = piece->from.step; i <= piece->to.step && i < p->n; i++) {
        const vk_step *t = &p->steps[i];
        const double first = (double)first_in(piece, i), last = (double)end_in(p, piece, i);
        const double used = counts ? fb_groups_in_use(&t->counted, t->groups, counts) : last, end = used < last ? used : last;
        if (end > first) fb_load_add(&vk->pace, &load, t->kernel, t->work / (double)t->groups * (end - first));
    }
    return load;
}

/* Whether pieces are too long by now, or far more than they need to be. */
static int is_stale(const vulkan *vk, const vk_program *p) {
    double all = 0, longest = 0;
    for (int i = 0; i < p->n_pieces; i++) {
        const vk_piece *piece = &p->pieces[i];
        const double expected = load_of(vk, p, piece, NULL).expected;
        all += expected;
        const int whole = piece->from.step == piece->to.step && piece->to.group - piece->from.group == 1; /* workgroup */
        if (!whole && expected > longest) longest = expected;
    }
    return longest > 2 * vk->pace.submit_s || (!p->timed && p->n_pieces > 2 + 2 * all / vk->pace.submit_s);
}

/* Whether a launch of a piece has rows in use. */
static int is_used(const vk_program *p, const vk_piece *piece, const int32_t counts[FB_COUNTS]) {
    for (int i = piece->from.step; i <= piece->to.step && i < p->n; i++)
        if (first_in(piece, i) < end_in(p, piece, i) && fb_is_used(&p->steps[i].counted, counts))
            return 1;
    return 0;
}

static int run_piece(vulkan *vk, const vk_program *p, const vk_piece *piece, const int32_t counts[FB_COUNTS]) {
    vk_slot *slot;
    int code = vk_flush(vk);
    if (code == FB_OK) code = next_slot(vk, &slot);
    if (code) return code;
    slot->load = load_of(vk, p, piece, counts);
    return submit(vk, slot, &piece->commands);
}

static int write_counts(vulkan *vk, const int32_t counts[FB_COUNTS]) {
    const int32_t all[VK_COUNTS_BYTES / 4] = {0, counts[FB_COUNT_TOKENS], counts[FB_COUNT_TRAINED]};
    if (!memcmp(counts, vk->told, sizeof vk->told)) return FB_OK;
    int code = vk_write(vk, &vk->counts, 0, all, sizeof all);
    if (code == FB_OK) memcpy(vk->told, counts, sizeof vk->told);
    return code;
}

/* Waits for a piece, and adds its time by the device's clock, or by the host's where that is missing. */
static int take_time(vulkan *vk, double before, double *seconds) {
    uint64_t at[STAMPS];
    int code = vk_wait(vk);
    double took = fb_os_seconds() - before;
    if (code == FB_OK && vk->stamps) {
        code = vk_check(vk->fn.GetQueryPoolResults(vk->device, vk->stamps, 0, STAMPS, sizeof at, at, 8,
                                                   VK_QUERY_RESULT_64_BIT | VK_QUERY_RESULT_WAIT_BIT), "tell the time");
        if (code == FB_OK) took = (double)(at[1] - at[0]) * vk->properties.limits.timestampPeriod * 1e-9;
    }
    if (code == FB_OK) *seconds += took;
    return code;
}

static int launch_at(const vk_program *p, vk_place at) { return at.step < p->n ? p->steps[at.step].launch : p->launches; }

int vk_replay(void *self, void *program, const int32_t counts[FB_COUNTS], const fb_run *run) {
    vulkan *vk = self;
    vk_program *p = program;
    int code = p->counted ? write_counts(vk, counts) : FB_OK;
    if (code == FB_OK && (p->timed != (run->seconds != NULL) || is_stale(vk, p))) code = forget(vk, p);
    p->timed = run->seconds != NULL;
    for (int i = 0; p->timed && i < p->launches; i++) run->seconds[i] = 0;
    vk_place at = {0, 0};
    for (int i = 0; at.step < p->n && code == FB_OK; i++) {
        const double before = fb_os_seconds();
        if (run->cancel && *run->cancel) return fb_fail(FB_E_CANCELLED, "cancelled");
        if (i == p->n_pieces) code = extend(vk, p);
        if (code) return code;
        const vk_piece *piece = &p->pieces[i];
        const int used = is_used(p, piece, counts);
        if (used) code = run_piece(vk, p, piece, counts);
        at = piece->to;
        if (run->done) *run->done += launch_at(p, at) - launch_at(p, piece->from);
        if (code || !used || !(p->timed || run->duty < 1)) continue;
        code = p->timed ? take_time(vk, before, &run->seconds[launch_at(p, piece->from)]) : vk_wait(vk);
        if (run->duty < 1) fb_os_rest((fb_os_seconds() - before) * (1 / run->duty - 1), run->cancel);
    }
    return code;
}

/* ---- peaks ---- */

static int timed(void *self, fb_dispatch *d, uint32_t times, double *seconds) {
    static const int32_t counts[FB_COUNTS];
    const fb_run run = {.duty = 1};
    vk_program p = {.launches = 1};
    int code = add(self, &p, d, 0, NULL);
    if (code == FB_OK) code = make_ready(self, &p);
    if (code == FB_OK) code = vk_wait(self);
    const double before = fb_os_seconds();
    for (uint32_t i = 0; i < times && code == FB_OK; i++) code = vk_replay(self, &p, counts, &run);
    if (code == FB_OK) code = vk_wait(self);
    *seconds = fb_os_seconds() - before;
    drop(self, &p);
    return code;
}

int vk_peak(void *self, int kind, double seconds, double *per_second) {
    const vulkan *vk = self;
    const uint64_t most = (uint64_t)256 << 20, bytes = vk->max_binding_bytes < most ? vk->max_binding_bytes : most;
    return fb_measure(&fb_backend_vulkan, self, &vk->limits, bytes, timed, kind, seconds, per_second);
}
