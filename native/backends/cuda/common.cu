/* common.cu - what the kernels of this folder share: rows in use, floats of 32 and 16 bits, sums in parts. A kernel's constants are
 * macros; its entry is `run`, which takes cu_args. */
#include "args.h"
typedef unsigned int uint;
typedef unsigned long long word64;
#include "instructions.cu"

/* ---- operands ---- */

__device__ int in_use(const cu_args &args, int k) {
    const cu_view &v = args.v[k];
    if (v.count == 0) return v.rows;
    int n = ((const int *)args.counts)[v.count] * v.factor - v.first;
    return n < 0 ? 0 : n < v.rows ? n : v.rows;
}

__device__ float low_of(uint pair) { return __uint_as_float(pair << 16); }
__device__ float high_of(uint pair) { return __uint_as_float(pair & 0xffff0000u); }

/* Element i from `at`, of a type. */
template <int TYPE> __device__ float get(word64 at, long long i) {
    if (TYPE == CU_F32) return ((const float *)at)[i];
    return __uint_as_float((uint)((const unsigned short *)at)[i] << 16);
}
template <int TYPE> __device__ void put(word64 at, long long i, float x) {
    if (TYPE == CU_F32) ((float *)at)[i] = x;
    else ((unsigned short *)at)[i] = (unsigned short)(bf16_pair(x, 0.0f) & 0xffffu);
}
/* Two neighbours from an even i on. */
template <int TYPE> __device__ float2 get2(word64 at, long long i) {
    if (TYPE == CU_F32) return *(const float2 *)(at + i * 4);
    uint pair = *(const uint *)(at + i * 2);
    return make_float2(low_of(pair), high_of(pair));
}
template <int TYPE> __device__ void put2(word64 at, long long i, float x, float y) {
    if (TYPE == CU_F32) *(float2 *)(at + i * 4) = make_float2(x, y);
    else *(uint *)(at + i * 2) = bf16_pair(x, y);
}
/* Eight from an i that is a multiple of 8 on, at addresses of 16 bytes. */
template <int TYPE> __device__ void get8(word64 at, long long i, float (&x)[8]) {
    if (TYPE == CU_F32) {
        float4 a = *(const float4 *)(at + i * 4), b = *(const float4 *)(at + i * 4 + 16);
        x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
    } else {
        uint4 a = *(const uint4 *)(at + i * 2);
        x[0] = low_of(a.x), x[1] = high_of(a.x), x[2] = low_of(a.y), x[3] = high_of(a.y);
        x[4] = low_of(a.z), x[5] = high_of(a.z), x[6] = low_of(a.w), x[7] = high_of(a.w);
    }
}
__device__ uint4 packed8(const float (&x)[8]) {
    return make_uint4(bf16_pair(x[0], x[1]), bf16_pair(x[2], x[3]), bf16_pair(x[4], x[5]), bf16_pair(x[6], x[7]));
}
template <int TYPE> __device__ void put8(word64 at, long long i, const float (&x)[8]) {
    if (TYPE == CU_F32) {
        *(float4 *)(at + i * 4) = make_float4(x[0], x[1], x[2], x[3]);
        *(float4 *)(at + i * 4 + 16) = make_float4(x[4], x[5], x[6], x[7]);
    } else *(uint4 *)(at + i * 2) = packed8(x);
}

/* ---- reductions in parts ---- */

/* Of a tile whose reduction is parted, puts down what each of THREADS has of a part. For the last workgroup that comes, d becomes
 * the sum of all parts, in their order. `meet` is a barrier of the threads, and `flag` a word of shared memory. */
template <int THREADS, int N, typename F>
__device__ bool add_parts(const cu_args &args, float (&d)[N], int tile, int part, uint flag, F meet) {
    float2 *sums = (float2 *)args.v[CU_SUMS].at + (long long)tile * args.parts * (N / 2 * THREADS) + threadIdx.x;
#pragma unroll
    for (int i = 0; i < N / 2; i++) sums[(part * (N / 2) + i) * THREADS] = make_float2(d[2 * i], d[2 * i + 1]);
    __threadfence();
    meet();
    if (threadIdx.x == 0) {
        uint *arrivals = (uint *)args.arrivals + tile;
        const bool all = atomicAdd(arrivals, 1u) + 1 == (uint)args.parts;
        if (all) *arrivals = 0; /* for the next kernel */
        store_word(flag, all);
    }
    meet();
    const bool last = load_word(flag);
    meet(); /* before the flag is another tile's */
    if (!last) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < N / 2; i++) {
        d[2 * i] = d[2 * i + 1] = 0.0f;
        for (int p = 0; p < args.parts; p++) {
            const float2 more = __ldcg(&sums[(p * (N / 2) + i) * THREADS]);
            d[2 * i] += more.x, d[2 * i + 1] += more.y;
        }
    }
    return true;
}
