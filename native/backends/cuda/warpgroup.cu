/* warpgroup.cu - a product on Hopper's warpgroup units: four warps multiply 64 rows and BN columns of a stage of shared memory,
 * 16 deep. */

#define REGISTERS_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define REGISTERS_64 REGISTERS_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
    "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define REGISTERS_128 REGISTERS_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, " \
    "%83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, " \
    "%102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, " \
    "%118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define FOUR(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
#define SIXTY_FOUR(i) SIXTEEN(i), SIXTEEN(i + 16), SIXTEEN(i + 32), SIXTEEN(i + 48)
#if BN == 256
#define SHAPE "m64n256k16"
#define REGISTERS REGISTERS_128
#define SUMS SIXTY_FOUR(0), SIXTY_FOUR(64)
#define INPUTS "%128, %129, more, 1, 1, %131, %132", "%130"
#elif BN == 128
#define SHAPE "m64n128k16"
#define REGISTERS REGISTERS_64
#define SUMS SIXTY_FOUR(0)
#define INPUTS "%64, %65, more, 1, 1, %67, %68", "%66"
#else
#define SHAPE "m64n64k16"
#define REGISTERS REGISTERS_32
#define SUMS SIXTEEN(0), SIXTEEN(16)
#define INPUTS "%32, %33, more, 1, 1, %35, %36", "%34"
#endif
#define INSTRUCTION_(inputs, flag) \
    "{ .reg .pred more; setp.ne.b32 more, " flag ", 0; wgmma.mma_async.sync.aligned." SHAPE ".f32.bf16.bf16 {" REGISTERS "}, " inputs "; }"
#define INSTRUCTION(inputs) INSTRUCTION_(inputs)

/* d (64, BN) = x w, + d where `more`; ACROSS: an operand whose rows are the steps of the reduction. */
template <int X_ACROSS, int W_ACROSS> __device__ void multiply_stage(float (&d)[BN / 2], word64 x, word64 w, int more) {
    asm volatile(INSTRUCTION(INPUTS) : SUMS : "l"(x), "l"(w), "r"(more), "n"(X_ACROSS), "n"(W_ACROSS));
}

/* What says where an operand's tile lies: rows of 128 bytes, swizzled in groups of 8; boxes of 64 columns are 8 KiB apart. */
__device__ word64 tile_at(uint at) { return (word64)(at >> 4 & 0x3fff) | 512ull << 16 | 64ull << 32 | 1ull << 62; }
#define STEP(across) ((across) ? 128u : 2u) /* of 16 in the reduction, in units of 16 bytes */
