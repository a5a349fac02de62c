/* cuda.h - enough of CUDA for cuda.prelude to run on the host, a thread a fiber. */
#include "words.h"
#define __global__
#define __shared__
#define threadIdx emulated_thread
#define blockIdx emulated_group
#define blockDim emulated_threads
#define gridDim emulated_groups
#define __syncthreads emulated_barrier
#define __uint_as_float(u) emulated_bits<float>(unsigned(u))
#define __float_as_uint(f) emulated_bits<unsigned>(float(f))
#define make_float4(a_, b_, c_, d_) float4(a_, b_, c_, d_)
#define __fmul_rn(a_, b_) ((a_) * (b_))
static inline void atomicAnd(unsigned *at, unsigned bits) { *at &= bits; }
static inline void atomicOr(unsigned *at, unsigned bits) { *at |= bits; }
