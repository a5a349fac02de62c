/* decode.cu - out (BF16) = the rows of w, in blocks of WTYPE; a thread eight neighbours. Nothing, where x is there without a row in
 * use. The decoders are the portable kernels'. */
#include "cuda.prelude"
#include "common.prelude"
#include "common.cu"

#undef OFF
#define OFF(name) 0u /* of GRIDS, which begins where its pointer points */
struct blocks {
    const uint *const W, *const GRIDS;
#include "blocks.prelude"
};

extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ cu_args args) {
    const cu_view &out = args.v[CU_OUT], &w = args.v[CU_W];
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    const int across = out.cols / 8, r = (int)(at / across), c = (int)(at % across) * 8;
    if (r >= out.rows || (args.v[CU_X].there && in_use(args, CU_X) == 0)) return;
    const word64 row = w.at + (word64)r * args.depth; /* bytes */
    blocks from = {(const uint *)(row & ~(word64)15), (const uint *)args.v[CU_GRIDS].at};
    const float4 a = from.decode4((uint)(row & 15), c, w.cols), b = from.decode4((uint)(row & 15), c + 4, w.cols);
    const float x[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    put8<CU_BF16>(out.at, r * out.ld + c, x);
}
