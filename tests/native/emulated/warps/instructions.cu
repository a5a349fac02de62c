/* CUDA C++ on a processor, for kernels that use the matrix units of warps: a thread of the card is a thread of the host, a workgroup
 * runs at a time, and what a warp does together meets at a barrier. Stands in for native/backends/cuda/instructions.cu. */
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>
#define __device__
#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

using std::max;
using std::min;
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { uint x, y, z, w; };
float2 make_float2(float x, float y) { return {x, y}; }
uint4 make_uint4(uint x, uint y, uint z, uint w) { return {x, y, z, w}; }
float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
float __uint_as_float(uint u) { float f; return std::memcpy(&f, &u, 4), f; }
uint __float_as_uint(float f) { uint u; return std::memcpy(&u, &f, 4), u; }

/* ---- threads ---- */

struct place { int x; };
thread_local place threadIdx;
place blockIdx;
__align__(128) char shared[192 << 10];
std::unique_ptr<std::barrier<>> group;

struct warp {
    std::barrier<> meet{32};
    uint from[32], a[32][4], b[32][2];
};
warp warps[8];
warp &own() { return warps[threadIdx.x / 32]; }

void __syncthreads() { group->arrive_and_wait(); }
void __threadfence() {}
uint atomicAdd(uint *p, uint v) { return *p += v, *p - v; } /* one thread of a workgroup calls it, and workgroups take turns */
float2 __ldcg(const float2 *p) { return *p; }

/* Runs a workgroup of so many threads. */
template <typename F> void run_group(int number, int threads, F body) {
    std::vector<std::thread> all;
    blockIdx.x = number;
    group.reset(new std::barrier<>(threads));
    for (int i = 0; i < threads; i++)
        all.emplace_back([i, &body] {
            threadIdx.x = i;
            body();
        });
    for (auto &thread : all) thread.join();
}

/* ---- instructions ---- */

uint rounded(float f) { uint u = __float_as_uint(f); return (u + 0x7fff + (u >> 16 & 1)) >> 16; }
uint bf16_pair(float low, float high) { return rounded(low) | rounded(high) << 16; }

void check(uint at, uint bytes) {
    if (at % bytes == 0 && at + bytes <= sizeof shared) return;
    std::fprintf(stderr, "shared memory at %u: outside, or not aligned to %u\n", at, bytes);
    std::abort();
}
uint shared_at(const void *p) { return uint(static_cast<const char *>(p) - shared); }
void store16(uint to, uint4 v) { check(to, 16), std::memcpy(shared + to, &v, 16); }
uint load_word(uint from) { uint x; return check(from, 4), std::memcpy(&x, shared + from, 4), x; }
void store_word(uint to, uint x) { check(to, 4), std::memcpy(shared + to, &x, 4); }
void copy16(uint to, const void *from, bool there) {
    check(to, 16);
    if (there && uintptr_t(from) % 16) std::abort();
    if (there) std::memcpy(shared + to, from, 16);
    else std::memset(shared + to, 0, 16);
}
void copy_commit() {}
template <int N> void copy_wait() {}

/* Thread t gets elements (t/4, 2 (t%4)) and the next of each matrix; across: of its transpose. */
void load(uint (&r)[4], uint from, bool across) {
    warp &w = own();
    const int t = threadIdx.x % 32;
    check(from, 16);
    w.from[t] = from;
    w.meet.arrive_and_wait();
    for (int m = 0; m < 4; m++) {
        uint16_t pair[2];
        for (int i = 0; i < 2; i++) {
            const int near = t / 4, far = t % 4 * 2 + i;
            std::memcpy(&pair[i], shared + w.from[m * 8 + (across ? far : near)] + (across ? near : far) * 2, 2);
        }
        r[m] = pair[0] | uint(pair[1]) << 16;
    }
    w.meet.arrive_and_wait();
}
void load_matrices(uint (&r)[4], uint from) { load(r, from, false); }
void load_matrices_across(uint (&r)[4], uint from) { load(r, from, true); }

float half_of(uint pair, int which) { return __uint_as_float(which ? pair & 0xffff0000u : pair << 16); }
void multiply(float *d, const uint (&a)[4], uint b0, uint b1) {
    warp &w = own();
    const int t = threadIdx.x % 32;
    std::memcpy(w.a[t], a, sizeof a);
    w.b[t][0] = b0, w.b[t][1] = b1;
    w.meet.arrive_and_wait();
    for (int i = 0; i < 4; i++) {
        const int row = t / 4, column = t % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++)
            d[i] += half_of(w.a[row * 4 + k % 8 / 2][i / 2 + k / 8 * 2], k % 2) *
                    half_of(w.b[column * 4 + k % 8 / 2][k / 8], k % 2);
    }
    w.meet.arrive_and_wait();
}
