/* common.cu - what the kernels of this folder share: rows in use, floats of 32 and 16 bits, copies into shared memory, and
 * products of fragments. A kernel's constants are macros; its entry is `run`, which takes cu_args. */
#include "args.h"
typedef unsigned int uint;
typedef unsigned long long word64;

/* ---- operands ---- */

__device__ int in_use(const cu_args &args, int k) {
    const cu_view &v = args.v[k];
    if (v.count == 0) return v.rows;
    int n = ((const int *)args.counts)[v.count] * v.factor - v.first;
    return n < 0 ? 0 : n < v.rows ? n : v.rows;
}

__device__ uint bf16_pair(float low, float high) {
    uint pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
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

/* ---- shared memory ---- */

__device__ uint shared_at(const void *p) { return (uint)__cvta_generic_to_shared(p); }
__device__ void store16(uint to, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ float load_float(uint from) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory");
    return x;
}

#if __CUDA_ARCH__ >= 800
/* Sixteen bytes, or zeros; copy_wait(n): all but the last n groups have arrived. */
__device__ void copy16(uint to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}
__device__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int N> __device__ void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

/* Four 8 x 8 matrices, a row of each at the address of a thread; `across`: transposed. */
__device__ void load_matrices(uint (&r)[4], uint from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}
__device__ void load_matrices_across(uint (&r)[4], uint from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

/* d (16, 8) += a (16, 16) b (16, 8): thread t has rows t/4 and t/4 + 8 of d, columns 2 (t%4) and the next. */
__device__ void multiply(float *d, const uint (&a)[4], uint b0, uint b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
