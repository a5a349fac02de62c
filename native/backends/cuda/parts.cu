/* parts.cu - a product from the sums of the parts of its reduction, added in order: out = sums + bias + acc. A thread an element.
 * Constants: OUT, ACC: types; BIAS: 1 where there is one. */
#include "common.cu"

extern "C" __global__ void __launch_bounds__(256) run(const __grid_constant__ cu_args args) {
    const cu_view &out = args.v[CU_OUT], &sums = args.v[CU_X], &acc = args.v[CU_ACC];
    const long long at = (long long)blockIdx.x * 256 + threadIdx.x;
    const int r = (int)(at / out.cols), c = (int)(at % out.cols);
    if (r >= in_use(args, CU_OUT)) return;
    float y = 0.0f;
    for (int i = 0; i < args.parts; i++) y += get<CU_F32>(sums.at, ((long long)i * out.rows + r) * sums.ld + c);
    if (BIAS) y += get<CU_F32>(args.v[CU_BIAS].at, c);
    if (ACC) y += get<ACC>(acc.at, r * acc.ld + c);
    put<OUT>(out.at, r * out.ld + c, y);
}
