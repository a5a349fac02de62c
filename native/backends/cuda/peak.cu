/* peak.cu - products on matrix units as fast as they go: args.depth times the same 64 deep ones, of 128 x 256 a warpgroup and
 * stage of shared memory on Hopper (BN 256), of fragments in registers elsewhere (BN 0: 256 x 64 a workgroup of 8 warps). Operands
 * are not zeros, on which units take less power than on data. */
#include "common.cu"
#if BN
#include "warpgroup.cu"
#endif

__device__ uint noise(uint i) { /* two floats in 1 .. 2 */
    i = i * 0x9e3779b9u ^ i >> 13;
    return i * 0x85ebca6bu & 0x807f807fu | 0x3f803f80u;
}

extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ cu_args args) {
    float total = 0.0f;
#if BN
    extern __shared__ __align__(1024) uint shared[];
    float d[BN / 2];
    for (uint i = threadIdx.x; i < 12288; i += 256) shared[i] = noise(i);
    for (int i = 0; i < BN / 2; i++) d[i] = 0.0f;
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    const word64 x = tile_at(shared_at(shared) + threadIdx.x / 128 * 8192), w = tile_at(shared_at(shared) + 16384);
    for (int i = 0; i < args.depth; i++) {
        units_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) multiply_stage<0, 0>(d, x + k * 2, w + k * 2, 1);
        units_commit();
        units_wait<0>();
    }
    for (int i = 0; i < BN / 2; i++) total += d[i];
#else
    float d[16][4];
    uint a[2][4], b[8][2];
    for (int i = 0; i < 64; i++) d[i / 4][i % 4] = 0.0f;
    for (int i = 0; i < 8; i++) a[i / 4][i % 4] = noise(threadIdx.x * 8 + i);
    for (int i = 0; i < 16; i++) b[i / 2][i % 2] = noise(threadIdx.x * 16 + i + 4096);
    for (int i = 0; i < args.depth * 4; i++)
#pragma unroll
        for (int j = 0; j < 16; j++) multiply(d[j], a[j / 8], b[j % 8][0], b[j % 8][1]);
    for (int i = 0; i < 64; i++) total += d[i / 4][i % 4];
#endif
    if (total == 0.125f) ((float *)args.v[0].at)[threadIdx.x] = total; /* so that nothing is left out */
}
