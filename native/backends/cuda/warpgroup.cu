/* warpgroup.cu - products on Hopper's warpgroup units: four warps multiply 64 rows and N columns, 16 deep. */

#define REGISTERS_16 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGISTERS_32 REGISTERS_16 ", " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 REGISTERS_32 ", " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, " \
    "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128 REGISTERS_64 ", " \
    "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, " \
    "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, " \
    "%103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118, " \
    "%119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_16(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)
#define SUMS_64(i) SUMS_32(i), SUMS_32(i + 32)
#define SUMS_128(i) SUMS_64(i), SUMS_64(i + 64)

/* For N columns, in n registers of a thread, the further operands being the p-th to the u-th:
 *     multiply_stage  d (64, N) = x w, + d where `more`, both in shared memory; ACROSS: an operand whose rows are the steps of the
 *                     reduction
 *     multiply_rows   d += a w, the rows of a in registers */
#define PRODUCTS(N, n, p, q, r, s, t, u)                                                                                       \
    template <int X_ACROSS, int W_ACROSS>                                                                                      \
    __device__ void multiply_stage(float (&d)[n], word64 x, word64 w, int more) {                                              \
        asm volatile("{ .reg .pred more; setp.ne.b32 more, %" #r ", 0; wgmma.mma_async.sync.aligned.m64n" #N                   \
                     "k16.f32.bf16.bf16 {" REGISTERS_##n "}, %" #p ", %" #q ", more, 1, 1, %" #s ", %" #t "; }"                \
                     : SUMS_##n(0) : "l"(x), "l"(w), "r"(more), "n"(X_ACROSS), "n"(W_ACROSS));                                 \
    }                                                                                                                          \
    template <int W_ACROSS> __device__ void multiply_rows(float (&d)[n], const uint (&a)[4], word64 w) {                       \
        asm volatile("{ .reg .pred more; setp.eq.b32 more, 0, 0; wgmma.mma_async.sync.aligned.m64n" #N                         \
                     "k16.f32.bf16.bf16 {" REGISTERS_##n "}, {%" #p ", %" #q ", %" #r ", %" #s "}, %" #t ", more, 1, 1, %" #u "; }" \
                     : SUMS_##n(0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(w), "n"(W_ACROSS));                       \
    }
PRODUCTS(32, 16, 16, 17, 18, 19, 20, 21)
PRODUCTS(64, 32, 32, 33, 34, 35, 36, 37)
PRODUCTS(128, 64, 64, 65, 66, 67, 68, 69)
PRODUCTS(256, 128, 128, 129, 130, 131, 132, 133)

/* What is in flight: none may touch its sums before it is waited for. */
__device__ void units_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ void units_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> __device__ void units_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory"); }

/* What says where an operand's tile lies: rows of 128 bytes, swizzled in groups of 8; boxes of 64 columns are `apart` bytes apart. */
__device__ word64 tile_at(uint at, uint apart = 8192) {
    return (word64)(at >> 4 & 0x3fff) | (word64)(apart >> 4) << 16 | 64ull << 32 | 1ull << 62;
}
#define STEP(across) ((across) ? 128u : 2u) /* of 16 in the reduction, in units of 16 bytes */
