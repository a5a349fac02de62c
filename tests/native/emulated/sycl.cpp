// sycl.cpp - a backend that runs the portable kernels' SYCL text on whatever device SYCL has, the processor too: built from
// source at run time, one build for each kernel and set of tile sizes. SYCL_KERNELS names the folder of the texts.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <sycl/sycl.hpp>
#include <vector>
extern "C" {
#include "../../../native/kernels/kernels.h"
}
namespace syclex = sycl::ext::oneapi::experimental;

namespace {
constexpr size_t SHARED_FLOATS = 8192, ALIGN = 64;
const fb_kernel_limits LIMITS = {.threads = 256, .shared_bytes = SHARED_FLOATS * 4};

struct args {
    uint32_t *buffer[FB_BINDINGS], spec[FB_SPECS], words[FB_PUSH_WORDS];
};

struct device {
    sycl::queue queue{sycl::property::queue::in_order()};
    std::map<std::vector<uint32_t>, sycl::kernel> kernels;
};

// What sizes an array is compiled in; the texts read the rest from the arguments, so that few kernels have to be built.
sycl::kernel &kernel_of(device &d, const fb_dispatch &dispatch) {
    std::vector<uint32_t> key{dispatch.kernel};
    for (uint32_t i = 0; i < FB_SPECS; i++)
        if (fb_kernels[dispatch.kernel].tiles >> i & 1u) key.push_back(dispatch.constant.at[i]);
    auto found = d.kernels.find(key);
    if (found != d.kernels.end()) return found->second;
    std::ostringstream text;
    text << "#define CONSTANT(n, name) const uint name = args.spec[n];\n";
    for (int i = 0; i < FB_SPECS; i++) text << "#define SPEC_" << i << " " << dispatch.constant.at[i] << "u\n";
    std::ifstream file(std::string(std::getenv("SYCL_KERNELS")) + "/" + fb_kernels[dispatch.kernel].name + ".sycl");
    text << file.rdbuf();
    auto source = syclex::create_kernel_bundle_from_source(d.queue.get_context(), syclex::source_language::sycl, text.str());
    auto bundle = syclex::build(source);
    return d.kernels.emplace(key, bundle.ext_oneapi_get_kernel("run")).first->second;
}

void run(device &d, const fb_dispatch &dispatch) {
    auto *a = sycl::malloc_shared<args>(1, d.queue);
    std::memset(a, 0, sizeof *a);
    for (int k = 0; k < FB_BINDINGS; k++) {
        const fb_view &v = dispatch.operand.at[k];
        if (!v.mem) continue;
        const uint64_t aligned = v.offset / ALIGN * ALIGN;
        a->buffer[k] = reinterpret_cast<uint32_t *>(static_cast<char *>(v.mem->host) + aligned);
        fb_place(&dispatch, k, v.offset - aligned, a->words);
    }
    fb_arguments(&dispatch, 0, a->words);
    std::memcpy(a->spec, dispatch.constant.at, sizeof a->spec);
    sycl::kernel &kernel = kernel_of(d, dispatch);
    const size_t threads = dispatch.constant.at[0];
    d.queue.submit([&](sycl::handler &h) {
        sycl::local_accessor<float, 1> shared(SHARED_FLOATS, h);
        h.set_args(static_cast<const args *>(a), shared);
        h.parallel_for(sycl::nd_range<1>(dispatch.groups * threads, threads), kernel);
    });
    d.queue.wait_and_throw();
    sycl::free(a, d.queue);
}

int told(const std::exception &error) { return fb_fail(FB_E_DEVICE, "SYCL: %.400s", error.what()); }

int sycl_open(int, const fb_device_options *, void **self, fb_device_info *info) try {
    auto *d = new device;
    std::memset(info, 0, sizeof *info);
    std::snprintf(info->name, sizeof info->name, "%s", d->queue.get_device().get_info<sycl::info::device::name>().c_str());
    *self = d;
    return FB_OK;
} catch (const std::exception &error) { return told(error); }

void sycl_close(void *self) {
    std::printf("kernels built: %zu\n", static_cast<device *>(self)->kernels.size());
    delete static_cast<device *>(self);
}

int sycl_alloc(void *self, uint64_t bytes, fb_mem *mem) {
    *mem = {};
    mem->host = sycl::aligned_alloc_shared(ALIGN, (bytes + ALIGN - 1) / ALIGN * ALIGN, static_cast<device *>(self)->queue);
    mem->bytes = bytes;
    return mem->host ? FB_OK : fb_fail(FB_E_MEMORY, "out of memory");
}

void sycl_free(void *self, fb_mem *mem) { sycl::free(mem->host, static_cast<device *>(self)->queue); }

int sycl_write(void *, fb_mem *mem, uint64_t offset, const void *src, uint64_t bytes) {
    std::memcpy(static_cast<char *>(mem->host) + offset, src, bytes);
    return FB_OK;
}

int sycl_read(void *, const fb_mem *mem, uint64_t offset, void *dst, uint64_t bytes) {
    std::memcpy(dst, static_cast<const char *>(mem->host) + offset, bytes);
    return FB_OK;
}

uint64_t sycl_scratch(void *, const fb_launch *launch) { return fb_lower_scratch(launch, &LIMITS); }

/* A program is one launch here, which is all that the op test makes. */
struct program {
    fb_launch launch;
    const fb_mem *workspace;
};

int sycl_prepare(void *, const fb_launch *launches, int n, const fb_mem *workspace, void **out) {
    *out = new program{*launches, workspace};
    return n == 1 ? FB_OK : FB_E_ARGUMENT;
}

int sycl_replay(void *self, void *prepared, const int32_t *counts, const fb_run *) try {
    const auto *p = static_cast<const program *>(prepared);
    fb_dispatch parts[FB_MOST_DISPATCHES];
    fb_launch launch;
    const int count = fb_launch_in_use(&p->launch, counts, &launch) ? fb_lower(&launch, p->workspace, &LIMITS, parts) : 0;
    for (int k = 0; k < count; k++) run(*static_cast<device *>(self), parts[k]);
    return count ? FB_OK : FB_E_DEVICE;
} catch (const std::exception &error) { return told(error); }

void sycl_release(void *, void *prepared) { delete static_cast<program *>(prepared); }

int sycl_wait(void *) { return FB_OK; }

fb_backend filled() {
    fb_backend b = {};
    b.name = "sycl";
    b.open = sycl_open;
    b.close = sycl_close;
    b.alloc = sycl_alloc;
    b.free = sycl_free;
    b.write = sycl_write;
    b.read = sycl_read;
    b.scratch = sycl_scratch;
    b.prepare = sycl_prepare;
    b.replay = sycl_replay;
    b.release = sycl_release;
    b.wait = sycl_wait;
    return b;
}
} // namespace

extern "C" const fb_backend fb_backend_emulated = filled();
