// shim.cpp - SYCL behind the plain functions of shim.h. No part of the extension, but a library of its own: it comes with a wheel,
// or fabric compiles it where it runs, with the user's C++ compiler, against the SYCL that is installed (fabric/core/sycl.py).
#include <dlfcn.h>
#include <sycl/sycl.hpp>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
extern "C" {
#include "shim.h"
#define DECLARE(result, name, arguments) __attribute__((visibility("default"))) result name arguments;
SHIM_FUNCTIONS(DECLARE)
}
namespace syclex = sycl::ext::oneapi::experimental;

struct shim_device {
    static constexpr size_t STAGED = size_t(8) << 20; // bytes that a write puts on its way at once
    sycl::queue queue;
    std::vector<sycl::kernel> kernels;
    sycl::event marks[2], staged[2];
    char *staging[2] = {nullptr, nullptr}; // through which writes go: one is filled while the other is copied
    size_t used = 0;
    int turn = 0;
    std::string lost; // what the device said between two calls

    explicit shim_device(const sycl::device &device)
        : queue(device, [this](sycl::exception_list all) {
              for (auto &one : all)
                  try { std::rethrow_exception(one); } catch (const std::exception &error) { lost = error.what(); }
          }, sycl::property::queue::in_order()) {}
    ~shim_device() {
        for (char *memory : staging)
            if (memory) sycl::free(memory, queue);
    }
};

namespace {
thread_local std::string said;

// One line of what SYCL says: where a compiler has found an error, from there on.
int fail(const char *what) {
    said = what;
    const size_t error = said.find("error:");
    if (error != std::string::npos) said.erase(0, said.rfind('\n', error) + 1);
    said = said.substr(0, said.find('\n')).substr(0, 300);
    while (!said.empty() && (said.back() == ' ' || said.back() == '.')) said.pop_back();
    return SHIM_FAILED;
}

template <typename F> int guarded(F body) {
    try {
        return body();
    } catch (const std::bad_alloc &) {
        return fail("out of memory"), SHIM_MEMORY;
    } catch (const sycl::exception &error) {
        return fail(error.what()), error.code() == sycl::errc::memory_allocation ? SHIM_MEMORY : SHIM_FAILED;
    } catch (const std::exception &error) {
        return fail(error.what());
    }
}

int kind_of(const sycl::device &d) { return d.is_gpu() ? SHIM_GPU : d.is_cpu() ? SHIM_PROCESSOR : SHIM_OTHER; }

// The folder of the library that a function is in, and a file there.
template <typename F> std::string beside(F *function, const char *file) {
    Dl_info info = {};
    const std::string library = dladdr(reinterpret_cast<void *>(function), &info) && info.dli_fname ? info.dli_fname : "";
    return library.substr(0, library.rfind('/') + 1) + file;
}

// Cards first and processors last. A card that is there through Level Zero is there through OpenCL too, and taken once.
std::vector<sycl::device> all_devices() {
    static const bool set = [] {
        setenv("SYCL_CACHE_PERSISTENT", "1", 0);
        setenv("SYCL_CACHE_DIR", beside(shim_count, "kernels").c_str(), 0);
        const std::string opencl = beside(&sycl::device::get_devices, "libintelocl.so"); // Intel's driver for processors
        if (access(opencl.c_str(), R_OK) == 0) setenv("OCL_ICD_FILENAMES", opencl.c_str(), 0);
        return true;
    }();
    (void)set;
    std::vector<sycl::device> found;
    bool level_zero = false;
    for (auto &d : sycl::device::get_devices()) {
        if (!d.has(sycl::aspect::usm_device_allocations) || !d.ext_oneapi_can_compile(syclex::source_language::sycl)) continue;
        level_zero |= d.get_backend() == sycl::backend::ext_oneapi_level_zero;
        found.push_back(d);
    }
    const auto twice = [&](const sycl::device &d) { return level_zero && d.is_gpu() && d.get_backend() == sycl::backend::opencl; };
    found.erase(std::remove_if(found.begin(), found.end(), twice), found.end());
    std::stable_sort(found.begin(), found.end(), [](auto &a, auto &b) { return kind_of(a) < kind_of(b); });
    return found;
}

// The first combination of joint matrices that kernels can use: whole ones make up a block of 16 x 16 x 16. Where a device has any
// size up to a largest one, that is the largest up to 16.
void find_units(const sycl::device &d, shim_facts *facts) {
    using type = syclex::matrix::matrix_type;
    if (!d.has(sycl::aspect::ext_intel_matrix)) return;
    const auto teams = d.get_info<sycl::info::device::sub_group_sizes>();
    for (const auto &c : d.get_info<syclex::info::device::matrix_combinations>()) {
        const auto of = [](size_t exact, size_t most) { return uint32_t(exact ? exact : std::min<size_t>(most, 16)); };
        const uint32_t m = of(c.msize, c.max_msize), n = of(c.nsize, c.max_nsize), k = of(c.ksize, c.max_ksize);
        if (c.atype != type::bf16 || c.btype != type::bf16 || c.ctype != type::fp32 || c.dtype != type::fp32) continue;
        if (!m || !n || k < 2 || 16 % m || 16 % n || 16 % k || std::find(teams.begin(), teams.end(), n) == teams.end()) continue;
        facts->unit_m = m, facts->unit_n = n, facts->unit_k = k;
        return;
    }
}

// Room of the host's for n bytes on their way to the device.
char *stage(shim_device *d, size_t n) {
    if (d->used + n > shim_device::STAGED) {
        d->staged[d->turn] = d->queue.ext_oneapi_submit_barrier();
        d->turn ^= 1;
        d->used = 0;
        if (d->staging[d->turn]) d->staged[d->turn].wait_and_throw();
    }
    char *&memory = d->staging[d->turn];
    if (!memory && !(memory = sycl::malloc_host<char>(shim_device::STAGED, d->queue))) throw std::bad_alloc();
    char *at = memory + d->used;
    d->used += (n + 255) / 256 * 256;
    return at;
}
} // namespace

const char *shim_error() { return said.c_str(); }

int shim_count() {
    int n = -1;
    guarded([&] { return n = int(all_devices().size()), SHIM_OK; });
    return n;
}

int shim_describe(int index, shim_facts *facts) {
    return guarded([&] {
        const sycl::device d = all_devices().at(size_t(index));
        *facts = {};
        std::snprintf(facts->name, sizeof facts->name, "%s", d.get_info<sycl::info::device::name>().c_str());
        std::snprintf(facts->driver, sizeof facts->driver, "%s", d.get_info<sycl::info::device::driver_version>().c_str());
        const bool opencl = d.get_backend() == sycl::backend::opencl;
        std::snprintf(facts->api, sizeof facts->api, "%s", opencl ? "OpenCL" : "Level Zero");
        facts->kind = kind_of(d);
        facts->cores = int32_t(d.get_info<sycl::info::device::max_compute_units>());
        facts->own_memory = facts->kind == SHIM_GPU && !d.has(sycl::aspect::usm_system_allocations) &&
                            !d.get_info<sycl::info::device::host_unified_memory>();
        facts->memory_bytes = d.get_info<sycl::info::device::global_mem_size>();
        facts->allocation_bytes = d.get_info<sycl::info::device::max_mem_alloc_size>();
        facts->workgroup_bytes = uint32_t(d.get_info<sycl::info::device::local_mem_size>());
        facts->workgroup_threads = uint32_t(d.get_info<sycl::info::device::max_work_group_size>());
        find_units(d, facts);
        return SHIM_OK;
    });
}

int shim_open(int index, shim_device **device) {
    return guarded([&] { return *device = new shim_device(all_devices().at(size_t(index))), SHIM_OK; });
}

void shim_close(shim_device *device) {
    guarded([&] { return device->queue.wait(), SHIM_OK; });
    guarded([&] { return delete device, SHIM_OK; });
}

int shim_alloc(shim_device *device, uint64_t bytes, void **at) {
    return guarded([&] { return (*at = sycl::malloc_device(bytes, device->queue)) ? SHIM_OK : SHIM_MEMORY; });
}

void shim_free(shim_device *device, void *at) {
    guarded([&] { return device->queue.wait(), SHIM_OK; }); // nothing that runs may still use it
    guarded([&] { return sycl::free(at, device->queue), SHIM_OK; });
}

int shim_zero(shim_device *device, void *at, uint64_t bytes) {
    return guarded([&] { return device->queue.memset(at, 0, bytes), SHIM_OK; });
}

int shim_write(shim_device *device, void *at, const void *src, uint64_t bytes) {
    return guarded([&] {
        for (uint64_t done = 0; done < bytes; done += shim_device::STAGED) {
            const size_t n = size_t(std::min<uint64_t>(bytes - done, shim_device::STAGED));
            char *host = stage(device, n);
            std::memcpy(host, static_cast<const char *>(src) + done, n);
            device->queue.memcpy(static_cast<char *>(at) + done, host, n);
        }
        return SHIM_OK;
    });
}

int shim_read(shim_device *device, const void *at, void *dst, uint64_t bytes) {
    return guarded([&] { return device->queue.memcpy(dst, at, bytes), shim_wait(device); });
}

int shim_build(shim_device *device, const char *text, const char *const *files, int n_files, const char *const *names, int n,
               int *first) {
    return guarded([&] {
        syclex::include_files include;
        for (int i = 0; i < n_files; i++) include.add(files[2 * i], files[2 * i + 1]);
        auto source = syclex::create_kernel_bundle_from_source(device->queue.get_context(), syclex::source_language::sycl,
                                                               std::string(text), syclex::properties{include});
        auto bundle = syclex::build(source, {device->queue.get_device()});
        *first = int(device->kernels.size());
        for (int i = 0; i < n; i++) device->kernels.push_back(bundle.ext_oneapi_get_kernel(names[i]));
        return SHIM_OK;
    });
}

int shim_run(shim_device *device, int kernel, const shim_args *args, uint64_t groups, uint32_t threads) {
    return guarded([&] {
        device->queue.submit([&](sycl::handler &h) {
            h.set_arg(0, *args);
            h.parallel_for(sycl::nd_range<1>(groups * threads, threads), device->kernels[size_t(kernel)]);
        });
        return SHIM_OK;
    });
}

int shim_mark(shim_device *device, int mark) {
    return guarded([&] { return device->marks[mark] = device->queue.ext_oneapi_submit_barrier(), SHIM_OK; });
}

int shim_passed(shim_device *device, int mark) {
    return guarded([&] {
        const auto status = device->marks[mark].get_info<sycl::info::event::command_execution_status>();
        return status == sycl::info::event_command_status::complete ? SHIM_OK : SHIM_BUSY;
    });
}

int shim_wait(shim_device *device) {
    return guarded([&] {
        device->queue.wait_and_throw();
        if (device->lost.empty()) return int(SHIM_OK);
        const std::string lost = device->lost;
        device->lost.clear();
        return fail(lost.c_str());
    });
}
