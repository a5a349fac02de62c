/* product_mma.cu - the matrix products on the matrix units of sm_80 and newer, for every shape:
 *     OP 0  y (M, N) = x (M, K) w (N, K)^T      OP 1  dx (M, N) = dy (M, K) w (K, N)      OP 2  dw (M, N) = dy (K, M)^T x (K, N)
 * out = scale (x w + low rank) + bias + acc; operands are F32 or BF16 and multiply as BF16.
 *
 * A workgroup owns BM x BN of the output, a warp WM x WN of that, and walks the reduction in steps of 64 through a ring of
 * STAGES. Whole chunks of 16 bytes are copied there by themselves, as BF16 or (RAW) as F32, which is rounded where it is
 * multiplied; the rest passes through registers, on its way while the step before is multiplied. The low-rank term, u (M, R) and
 * b ((N, R), or (R, N) in OP 1), is further steps. Of a reduction in PARTS each workgroup sums one, and the last of a tile that
 * has its sum adds all of them up, in order.
 * Constants: OP, BM, BN, WM, WN, STAGES; X, W, U, OUT, ACC: types; BIAS, SCALED: 1 where there is one; X_WHOLE, W_WHOLE: 1 for
 * rows of whole aligned chunks; X_RAW, W_RAW; PAIRS: 1 where two neighbours of out and acc are one aligned access; PARTS: 1. */
#include "common.cu"

#define DEEP 64
#define THREADS (BM / WM * (BN / WN) * 32)
#define X_BYTES CU_SIDE_BYTES(X_RAW, OP == 2, BM)
#define STAGE (X_BYTES + CU_SIDE_BYTES(W_RAW, OP != 0, BN))

/* One operand of a step: SIZE rows of 64 in the reduction, or (ACROSS) 64 rows of SIZE; in shared memory by chunks of 8 BF16,
 * whose places in a row are swapped by row, or of 4 F32 in rows that are longer, either so that a read meets all banks. */
template <int TYPE, int WHOLE, int ACROSS, int SIZE, int RAW> struct side {
    static constexpr int WIDE = ACROSS ? SIZE : 64, EACH = RAW ? 4 : 8, CHUNKS = WIDE / EACH, ALL = SIZE * 64 / EACH,
                         LINE = CU_RAW_LINE(ACROSS, SIZE), OWN = (ALL + THREADS - 1) / THREADS;
    static constexpr bool DIRECT = RAW || (TYPE == CU_BF16 && WHOLE);
    float x[DIRECT ? 1 : OWN][8];

    static __device__ uint place(int row, int chunk) {
        if (RAW) return row * LINE * 4 + chunk * 16;
        return (row * CHUNKS + (chunk ^ row & (CHUNKS < 8 ? CHUNKS - 1 : 7))) * 16;
    }

    /* Rows from r0 and columns from c0 on; zeros from `rows` and `cols` on. */
    __device__ void load(uint to, const cu_view &v, int r0, int c0, int rows, int cols) {
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int at = threadIdx.x + i * THREADS, row = at / CHUNKS, chunk = at % CHUNKS, r = r0 + row,
                      c = c0 + chunk * EACH;
            if (ALL % THREADS != 0 && at >= ALL) continue;
            const long long e = (long long)r * v.ld + c;
            if (DIRECT) {
                const bool there = r < rows && c < cols;
                copy16(to + place(row, chunk), (const void *)(v.at + (there ? e * (RAW ? 4 : 2) : 0)), there);
            } else if (WHOLE && r < rows && c < cols) get8<TYPE>(v.at, e, x[i]);
            else
                for (int k = 0; k < 8; k++) x[i][k] = r < rows && c + k < cols ? get<TYPE>(v.at, e + k) : 0.0f;
        }
    }
    __device__ void keep(uint to, float by) {
        if (DIRECT) return;
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int at = threadIdx.x + i * THREADS;
            if (ALL % THREADS != 0 && at >= ALL) continue;
            for (int k = 0; k < 8; k++) x[i][k] *= by;
            store16(to + place(at / CHUNKS, at % CHUNKS), packed8(x[i]));
        }
    }

    /* Of 16 rows (columns where ACROSS) from `first` and 16 steps of the reduction from k on, the four quarters of 8 x 8, rows
     * before steps, as `multiply` takes them. */
    static __device__ void quarters(uint (&q)[4], uint from, int first, int k) {
        const int lane = threadIdx.x % 32, half = lane / 8 % 2, other = lane / 16, r = lane % 8;
        if (!RAW && ACROSS) load_matrices_across(q, from + place(k + other * 8 + r, first / 8 + half));
        else if (!RAW) load_matrices(q, from + place(first + half * 8 + r, k / 8 + other));
        else
            for (int i = 0; i < 4; i++) {
                const int at = first + i % 2 * 8 + lane / 4, step = k + i / 2 * 8 + lane % 4 * 2;
                const uint place = from + (ACROSS ? step * LINE + at : at * LINE + step) * 4;
                q[i] = bf16_pair(__uint_as_float(load_word(place)), __uint_as_float(load_word(place + (ACROSS ? LINE * 4 : 4))));
            }
    }
};

struct operands {
    side<X, X_WHOLE, OP == 2, BM, X_RAW> x;
    side<W, W_WHOLE, OP != 0, BN, W_RAW> w;
    side<U ? U : CU_F32, 0, 0, BM, 0> u;
    side<CU_F32, 0, OP != 0, BN, 0> b;
};

extern "C" __global__ void __launch_bounds__(THREADS) run(const __grid_constant__ cu_args args) {
    extern __shared__ __align__(128) char shared[];
    const uint stages = shared_at(shared);
    const int m = OP == 2 ? args.v[CU_X].cols : in_use(args, CU_X), n = args.v[CU_OUT].cols;
    const int depth = OP == 2 ? in_use(args, CU_X) : args.v[CU_X].cols;
    const int m_tiles = (m + BM - 1) / BM, n_tiles = (n + BN - 1) / BN, each = 16 * n_tiles;
    const int part = m_tiles ? blockIdx.x / (m_tiles * n_tiles) : args.parts,
              at = m_tiles ? blockIdx.x % (m_tiles * n_tiles) : 0;
    if (part >= args.parts) return;
    /* Within bands of 16 tiles, rows first. */
    const int first = at / each * 16, high = min(m_tiles - first, 16);
    const int m0 = (first + at % each % high) * BM, n0 = at % each / high * BN;
    const int from = part * args.depth, to = args.parts > 1 ? min(depth, from + args.depth) : depth;
    const int low = U && part == 0 ? args.v[CU_U].cols : 0, steps = max(0, (to - from + DEEP - 1) / DEEP),
              end = steps + (low + DEEP - 1) / DEEP;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wm = warp / (BN / WN) * WM, wn = warp % (BN / WN) * WN;
    operands o;
    float d[WM / 16][WN / 8][4];
    for (int i = 0; i < WM / 16; i++)
        for (int j = 0; j < WN / 8; j++)
            for (int k = 0; k < 4; k++) d[i][j][k] = 0.0f;

    auto load = [&](int i) {
        const uint x = stages + i % STAGES * STAGE, w = x + X_BYTES;
        if (i < steps) {
            const int k = from + i * DEEP;
            if (OP == 2) o.x.load(x, args.v[CU_X], k, m0, to, m);
            else o.x.load(x, args.v[CU_X], m0, k, m, to);
            if (OP == 0) o.w.load(w, args.v[CU_W], n0, k, n, to);
            else o.w.load(w, args.v[CU_W], k, n0, to, n);
        } else if (U && i < end) {
            const int r = (i - steps) * DEEP;
            o.u.load(x, args.v[CU_U], m0, r, m, low);
            if (OP == 0) o.b.load(w, args.v[CU_B], n0, r, n, low);
            else o.b.load(w, args.v[CU_B], r, n0, low, n);
        }
    };
    auto keep = [&](int i) {
        const uint x = stages + i % STAGES * STAGE, w = x + X_BYTES;
        if (i < steps) {
            o.x.keep(x, 1.0f);
            o.w.keep(w, 1.0f);
        } else if (U && i < end) {
            o.u.keep(x, 1.0f);
            o.b.keep(w, SCALED ? 1.0f / args.scale : 1.0f);
        }
        copy_commit();
    };
    for (int i = 0; i < STAGES - 1; i++) {
        load(i);
        keep(i);
    }
    for (int i = 0; i < end; i++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load(i + STAGES - 1);
        const uint x = stages + i % STAGES * STAGE, w = x + X_BYTES;
#pragma unroll
        for (int k = 0; k < DEEP / 16; k++) {
            uint a[WM / 16][4];
#pragma unroll
            for (int j = 0; j < WM / 16; j++) o.x.quarters(a[j], x, wm + j * 16, k * 16);
#pragma unroll
            for (int j = 0; j < WN / 16; j++) {
                uint b[4];
                o.w.quarters(b, w, wn + j * 16, k * 16);
#pragma unroll
                for (int l = 0; l < WM / 16; l++) {
                    multiply(d[l][2 * j], a[l], b[0], b[2]);
                    multiply(d[l][2 * j + 1], a[l], b[1], b[3]);
                }
            }
        }
        keep(i + STAGES - 1);
    }
    copy_wait<0>();

    const cu_view &out = args.v[CU_OUT], &acc = args.v[CU_ACC];
    constexpr int PLACES = WM / 16 * (WN / 8) * 2; /* of two neighbours each, in what a thread holds */
    if (PARTS && !add_parts<THREADS>(args, reinterpret_cast<float(&)[2 * PLACES]>(d), at, part, stages + STAGES * STAGE,
                                     [] { __syncthreads(); }))
        return;
#pragma unroll
    for (int i = 0; i < PLACES; i++) {
        const float *y = &d[i / 2 / (WN / 8)][i / 2 % (WN / 8)][i % 2 * 2];
        const int r = m0 + wm + i / 2 / (WN / 8) * 16 + i % 2 * 8 + lane / 4,
                  c = n0 + wn + i / 2 % (WN / 8) * 8 + lane % 4 * 2;
        if (r >= m || c >= n) continue;
        float v[2] = {y[0], y[1]};
        if (PAIRS) {
            float2 more = ACC ? get2<ACC>(acc.at, r * acc.ld + c) : make_float2(0.0f, 0.0f);
            if (BIAS) more.x += get<CU_F32>(args.v[CU_BIAS].at, c), more.y += get<CU_F32>(args.v[CU_BIAS].at, c + 1);
            if (SCALED) v[0] *= args.scale, v[1] *= args.scale;
            put2<OUT>(out.at, r * out.ld + c, v[0] + more.x, v[1] + more.y);
        } else
            for (int k = 0; k < 2 && c + k < n; k++) {
                float more = ACC ? get<ACC>(acc.at, r * acc.ld + c + k) : 0.0f;
                if (BIAS) more += get<CU_F32>(args.v[CU_BIAS].at, c + k);
                put<OUT>(out.at, r * out.ld + c + k, (SCALED ? v[k] * args.scale : v[k]) + more);
            }
    }
}
