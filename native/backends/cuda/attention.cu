/* attention.cu - attention and its gradients on matrix units; no score is ever written to memory.
 *     KIND 0  o, and in stats the log-sum-exp of the scores, with a running softmax
 *     KIND 1  dq, and in the other half of stats delta = rowsum(dout o), from scores made again
 *     KIND 2  dk and dv, summed over the heads that share a key head and the queries that see a key, in order
 * A workgroup of four warps owns 64 rows of a head (queries; keys in KIND 2), a warp 16 of them, and walks over the other side
 * in blocks of BLOCK rows, of which the next is copied while one is computed. In KIND 2 it owns 1/SPLIT of the columns, so that
 * the sums fit the registers. Operands are BF16 at whole chunks of 16 bytes; weights are rounded to BF16 to multiply.
 * Constants: KIND, HD, BLOCK, SPLIT; WARPGROUP: 1 on the units of Hopper's warpgroups, 0 on those of warps; OUT: type of o, dq,
 * or dk and dv; CAP: 1 where scores are capped. */
#include "common.cu"
#include "operands.h"
#define NAMED(name) at_##name, /* at_q: the number of operand q of the op */
#if KIND == 0
enum { fb_attention_views(NAMED) };
#elif KIND == 1
enum { fb_attention_dq_views(NAMED) };
#else
enum { fb_attention_dkv_views(NAMED) };
#endif
#define OWN 64
#if WARPGROUP
#include "warpgroup.cu"
#define ROW (HD * 2) /* bytes of a row in shared memory: boxes of 64 columns, swizzled */
#define TILES(shared) (shared_at(shared) + 1023 & ~1023u) /* where the first one is */
#else
#define ROW ((HD + 8) * 2) /* rows start at different banks */
#define TILES(shared) shared_at(shared)
#endif
#define LOG2_E 1.4426950408889634f
#define NONE __int_as_float(0xff800000) /* -inf */

/* Where a chunk of 8 of a row is in a tile of n rows in shared memory. */
__device__ uint place(int n, int row, int chunk) {
#if WARPGROUP
    return chunk / 8 * n * 128 + row * 128 + ((chunk % 8 ^ row % 8) << 4);
#else
    return row * ROW + chunk * 16;
#endif
}

/* Rows r0 .. r0 + n of a head into shared memory; zeros from `rows` on. */
__device__ void load_rows(uint to, const cu_view &v, int n, int r0, int rows, int col) {
    for (int i = threadIdx.x; i < n * (HD / 8); i += 128) {
        const int row = i / (HD / 8), chunk = i % (HD / 8);
        const bool there = r0 + row < rows;
        copy16(to + place(n, row, chunk), (const void *)(v.at + (there ? ((r0 + row) * v.ld + col + chunk * 8) * 2 : 0)), there);
    }
}
/* All that was asked for has arrived, for every thread. */
__device__ void arrived() {
    copy_wait<0>();
#if WARPGROUP
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); /* for the units */
#endif
    __syncthreads();
}

/* What query t sees, numbered from the first key; nothing from row `rows` on. */
__device__ int2 seen_by(const cu_args &args, int t, int rows, int keys) {
    if (t >= rows) return make_int2(0, 0);
    const int *range = (const int *)args.v[at_range].at + t * args.v[at_range].ld;
    int from = range[0], to = range[1];
    if (args.window && to - from > args.window) from = to - args.window;
    return make_int2(max(from - args.first, 0), min(to - args.first, keys));
}

/* Of a warp's 16 rows, d (16, N) = rows of `left` (OWN, HD) times rows of `right` (N, HD), and sums (16, COLS) += weights (16, N)
 * times columns c0 .. c0 + COLS of `right`. */
#if WARPGROUP
template <int N> __device__ void dots(float (&d)[N / 8][4], uint left, uint right) {
    units_begin();
#pragma unroll
    for (int k = 0; k < HD / 16; k++)
        multiply_stage<0, 0>(reinterpret_cast<float(&)[N / 2]>(d), tile_at(left + k / 4 * OWN * 128) + k % 4 * STEP(0),
                             tile_at(right + k / 4 * N * 128) + k % 4 * STEP(0), k > 0);
    units_commit();
}
template <int N, int COLS> __device__ void add(float (&sums)[COLS / 8][4], const float (&w)[N / 8][4], uint right, int c0) {
    uint a[N / 16][4];
#pragma unroll
    for (int i = 0; i < N / 4; i++) a[i / 4][i % 4] = bf16_pair(w[i / 2][i % 2 * 2], w[i / 2][i % 2 * 2 + 1]);
    units_begin();
#pragma unroll
    for (int k = 0; k < N / 16; k++)
        multiply_rows<1>(reinterpret_cast<float(&)[COLS / 2]>(sums), a[k],
                         tile_at(right + c0 / 64 * N * 128, N * 128) + k * STEP(1));
    units_commit();
}
#else
template <int LEFT> __device__ void units_wait() {}
template <int N> __device__ void dots(float (&d)[N / 8][4], uint left, uint right) {
    const int lane = threadIdx.x % 32, half = lane / 8 % 2, other = lane / 16, r = lane % 8, own = threadIdx.x / 32 * 16;
    for (int j = 0; j < N / 8; j++)
        for (int k = 0; k < 4; k++) d[j][k] = 0.0f;
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        uint a[4], b[4];
        load_matrices(a, left + place(OWN, own + half * 8 + r, k * 2 + other));
#pragma unroll
        for (int j = 0; j < N / 16; j++) {
            load_matrices(b, right + place(N, j * 16 + other * 8 + r, k * 2 + half));
            multiply(d[2 * j], a, b[0], b[1]);
            multiply(d[2 * j + 1], a, b[2], b[3]);
        }
    }
}
template <int N, int COLS> __device__ void add(float (&sums)[COLS / 8][4], const float (&w)[N / 8][4], uint right, int c0) {
    const int lane = threadIdx.x % 32, half = lane / 8 % 2, other = lane / 16, r = lane % 8;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const uint a[4] = {bf16_pair(w[2 * k][0], w[2 * k][1]), bf16_pair(w[2 * k][2], w[2 * k][3]),
                           bf16_pair(w[2 * k + 1][0], w[2 * k + 1][1]), bf16_pair(w[2 * k + 1][2], w[2 * k + 1][3])};
#pragma unroll
        for (int j = 0; j < COLS / 16; j++) {
            uint b[4];
            load_matrices_across(b, right + place(N, k * 16 + half * 8 + r, c0 / 8 + j * 2 + other));
            multiply(sums[2 * j], a, b[0], b[1]);
            multiply(sums[2 * j + 1], a, b[2], b[3]);
        }
    }
}
#endif

/* A score in units of log2(e) of a dot product; its derivative by that. */
__device__ float score_of(const cu_args &args, float dot) {
    if (!CAP) return dot * (args.attention_scale * LOG2_E);
    return args.softcap * LOG2_E * tanhf(dot * args.attention_scale / args.softcap);
}
__device__ float slope_of(const cu_args &args, float score) {
    if (!CAP) return args.attention_scale;
    const float t = score / (args.softcap * LOG2_E);
    return args.attention_scale * (1.0f - t * t);
}
__device__ float power(float x) { /* 2^x */
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ float of_quad(float x, bool top) { /* the sum, or largest, of four neighbouring threads */
    for (int i = 1; i < 4; i *= 2) {
        const float y = __shfl_xor_sync(0xffffffffu, x, i);
        x = top ? fmaxf(x, y) : x + y;
    }
    return x;
}

/* Two rows of a warp's 16 that a thread has its share of. */
template <int COLS>
__device__ void store_rows(const cu_view &out, const float (&sums)[COLS / 8][4], int r0, int rows, int col,
                           const float (&by)[2]) {
    const int lane = threadIdx.x % 32;
    for (int i = 0; i < 2; i++) {
        const int r = r0 + lane / 4 + i * 8;
        if (r >= rows) continue;
#pragma unroll
        for (int j = 0; j < COLS / 8; j++)
            put2<OUT>(out.at, r * out.ld + col + j * 8 + lane % 4 * 2, sums[j][2 * i] * by[i], sums[j][2 * i + 1] * by[i]);
    }
}

#if KIND < 2
extern "C" __global__ void __launch_bounds__(128) run(const __grid_constant__ cu_args args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ int2 seen[OWN];
    __shared__ int bounds[2];
    float *const stats = (float *)args.v[at_stats].at;
    const int rows = in_use(args, at_q), keys = in_use(args, at_k), h = blockIdx.x % args.n_head,
              t0 = blockIdx.x / args.n_head * OWN;
    const int kv = h / (args.n_head / args.n_kv_head) * HD, warp = threadIdx.x / 32, lane = threadIdx.x % 32,
              r0 = t0 + warp * 16;
    if (t0 >= rows) return;
    const uint q = TILES(shared), ring = q + (KIND == 0 ? 1 : 2) * OWN * ROW;
    load_rows(q, args.v[at_q], OWN, t0, rows, h * HD);
#if KIND == 1
    const uint grad = q + OWN * ROW;
    load_rows(grad, args.v[at_dout], OWN, t0, rows, h * HD);
#endif
    if (threadIdx.x == 0) bounds[0] = keys, bounds[1] = 0;
    __syncthreads();
    if (threadIdx.x < OWN) {
        const int2 s = seen[threadIdx.x] = seen_by(args, t0 + threadIdx.x, rows, keys);
        if (s.x < s.y) {
            atomicMin(&bounds[0], s.x);
            atomicMax(&bounds[1], s.y);
        }
    }
    __syncthreads();
    const int first = bounds[0] / BLOCK * BLOCK, end = bounds[1];
    const int2 mine[2] = {seen[warp * 16 + lane / 4], seen[warp * 16 + lane / 4 + 8]};
    auto load = [&](int s0, int slot) {
        if (s0 < end) {
            load_rows(ring + slot * 2 * BLOCK * ROW, args.v[at_k], BLOCK, s0, keys, kv);
            load_rows(ring + (slot * 2 + 1) * BLOCK * ROW, args.v[at_v], BLOCK, s0, keys, kv);
        }
        copy_commit();
    };
    load(first, 0);
    float sums[HD / 8][4];
    for (int j = 0; j < HD / 8; j++)
        for (int k = 0; k < 4; k++) sums[j][k] = 0.0f;
#if KIND == 0
    float top[2] = {NONE, NONE}, sum[2] = {0.0f, 0.0f};
#else
    float lse[2], delta[2];
    arrived();
    for (int i = 0; i < 2; i++) { /* a quad shares the columns of a row */
        const int row = lane / 4 + i * 8, t = r0 + row;
        float x[8], y[8], part = 0.0f;
        for (int c = lane % 4; c < HD / 8 && t < rows; c += 4) {
            get8<CU_BF16>(args.v[at_o].at, t * args.v[at_o].ld + h * HD + c * 8, x);
            get8<CU_BF16>((word64)(shared + (grad - shared_at(shared)) + place(OWN, warp * 16 + row, c)), 0, y);
            for (int k = 0; k < 8; k++) part += x[k] * y[k];
        }
        delta[i] = of_quad(part, false);
        lse[i] = t < rows ? stats[t * args.v[at_stats].ld + h] * LOG2_E : 0.0f;
        if (t < rows && lane % 4 == 0) stats[t * args.v[at_stats].ld + args.n_head + h] = delta[i];
    }
#endif
    for (int s0 = first, slot = 0; s0 < end; s0 += BLOCK, slot ^= 1) {
        arrived();
        load(s0 + BLOCK, slot ^ 1);
        const bool touched = (mine[0].x < s0 + BLOCK && mine[0].y > s0) || (mine[1].x < s0 + BLOCK && mine[1].y > s0);
        if (!WARPGROUP && !__any_sync(0xffffffffu, touched)) continue;
        const uint key = ring + slot * 2 * BLOCK * ROW, value = key + BLOCK * ROW;
        float p[BLOCK / 8][4];
        dots<BLOCK>(p, q, key);
#if KIND == 0
        units_wait<0>();
        float now[2] = {top[0], top[1]};
#pragma unroll
        for (int i = 0; i < BLOCK / 8 * 4; i++) {
            const int s = s0 + i / 4 * 8 + lane % 4 * 2 + i % 2, row = i / 2 % 2;
            p[i / 4][i % 4] = s >= mine[row].x && s < mine[row].y ? score_of(args, p[i / 4][i % 4]) : NONE;
            now[row] = fmaxf(now[row], p[i / 4][i % 4]);
        }
        float base[2], fade[2];
        for (int i = 0; i < 2; i++) {
            now[i] = of_quad(now[i], true);
            base[i] = now[i] == NONE ? 0.0f : now[i]; /* of a row that has seen nothing yet */
            fade[i] = power(top[i] - base[i]);
            top[i] = now[i];
            sum[i] *= fade[i];
        }
#pragma unroll
        for (int i = 0; i < BLOCK / 8 * 4; i++) {
            float &w = p[i / 4][i % 4];
            w = power(w - base[i / 2 % 2]);
            sum[i / 2 % 2] += w;
        }
#pragma unroll
        for (int i = 0; i < HD / 8 * 4; i++) sums[i / 4][i % 4] *= fade[i / 2 % 2];
        add<BLOCK, HD>(sums, p, value, 0);
#else
        float g[BLOCK / 8][4];
        dots<BLOCK>(g, grad, value);
        units_wait<0>();
#pragma unroll
        for (int i = 0; i < BLOCK / 8 * 4; i++) {
            const int s = s0 + i / 4 * 8 + lane % 4 * 2 + i % 2, row = i / 2 % 2;
            const float x = score_of(args, p[i / 4][i % 4]);
            const bool sees = s >= mine[row].x && s < mine[row].y;
            p[i / 4][i % 4] = sees ? power(x - lse[row]) * (g[i / 4][i % 4] - delta[row]) * slope_of(args, x) : 0.0f;
        }
        add<BLOCK, HD>(sums, p, key, 0);
#endif
        units_wait<0>();
    }
#if KIND == 0
    float by[2];
    for (int i = 0; i < 2; i++) {
        const int t = r0 + lane / 4 + i * 8;
        sum[i] = of_quad(sum[i], false);
        by[i] = sum[i] > 0.0f ? 1.0f / sum[i] : 0.0f;
        if (t < rows && lane % 4 == 0)
            stats[t * args.v[at_stats].ld + h] = sum[i] > 0.0f ? (top[i] + log2f(sum[i])) / LOG2_E : NONE;
    }
    store_rows<HD>(args.v[at_o], sums, r0, rows, h * HD, by);
#else
    const float by[2] = {1.0f, 1.0f};
    store_rows<HD>(args.v[at_dq], sums, r0, rows, h * HD, by);
#endif
}
#else
extern "C" __global__ void __launch_bounds__(128) run(const __grid_constant__ cu_args args) {
    extern __shared__ __align__(128) char shared[];
    __shared__ int bounds[2];
    __shared__ int2 seen[2][BLOCK];
    __shared__ float lse[2][BLOCK], delta[2][BLOCK];
    constexpr int COLS = HD / SPLIT;
    const float *const stats = (const float *)args.v[at_stats].at;
    const int rows = in_use(args, at_q), keys = in_use(args, at_k), group = args.n_head / args.n_kv_head;
    const int kv = blockIdx.x % args.n_kv_head, c0 = blockIdx.x / args.n_kv_head % SPLIT * COLS,
              s0 = blockIdx.x / args.n_kv_head / SPLIT * OWN;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (s0 >= keys) return;
    const uint key = TILES(shared), value = key + OWN * ROW, ring = value + OWN * ROW;
    load_rows(key, args.v[at_k], OWN, s0, keys, kv * HD);
    load_rows(value, args.v[at_v], OWN, s0, keys, kv * HD);
    if (threadIdx.x == 0) bounds[0] = rows, bounds[1] = 0;
    __syncthreads();
    int low = rows, high = 0; /* the queries that see any of these keys */
    for (int t = threadIdx.x; t < rows; t += 128) {
        const int2 s = seen_by(args, t, rows, keys);
        if (s.x >= s.y || s.y <= s0 || s.x >= s0 + OWN) continue;
        low = min(low, t);
        high = t + 1;
    }
    atomicMin(&bounds[0], low);
    atomicMax(&bounds[1], high);
    __syncthreads();
    const int first = bounds[0] / BLOCK * BLOCK, blocks = bounds[1] > first ? (bounds[1] - first + BLOCK - 1) / BLOCK : 0;
    auto load = [&](int i, int slot) { /* block i of those of all heads */
        if (i < group * blocks) {
            const int h = kv * group + i / blocks, t0 = first + i % blocks * BLOCK;
            load_rows(ring + slot * 2 * BLOCK * ROW, args.v[at_q], BLOCK, t0, rows, h * HD);
            load_rows(ring + (slot * 2 + 1) * BLOCK * ROW, args.v[at_dout], BLOCK, t0, rows, h * HD);
            if (threadIdx.x < BLOCK) {
                const int t = t0 + threadIdx.x;
                seen[slot][threadIdx.x] = seen_by(args, t, rows, keys);
                lse[slot][threadIdx.x] = t < rows ? stats[t * args.v[at_stats].ld + h] * LOG2_E : 0.0f;
                delta[slot][threadIdx.x] = t < rows ? stats[t * args.v[at_stats].ld + args.n_head + h] : 0.0f;
            }
        }
        copy_commit();
    };
    float dk[COLS / 8][4], dv[COLS / 8][4];
    for (int j = 0; j < COLS / 8; j++)
        for (int k = 0; k < 4; k++) dk[j][k] = dv[j][k] = 0.0f;
    load(0, 0);
    for (int i = 0, slot = 0; i < group * blocks; i++, slot ^= 1) {
        arrived();
        load(i + 1, slot ^ 1);
        const uint q = ring + slot * 2 * BLOCK * ROW, grad = q + BLOCK * ROW;
        float p[BLOCK / 8][4], g[BLOCK / 8][4];
        dots<BLOCK>(p, key, q);
        dots<BLOCK>(g, value, grad);
        units_wait<0>();
#pragma unroll
        for (int j = 0; j < BLOCK / 8 * 4; j++) {
            const int t = j / 4 * 8 + lane % 4 * 2 + j % 2, s = s0 + warp * 16 + lane / 4 + j / 2 % 2 * 8;
            const float x = score_of(args, p[j / 4][j % 4]);
            const bool sees = s >= seen[slot][t].x && s < seen[slot][t].y;
            const float w = sees ? power(x - lse[slot][t]) : 0.0f;
            p[j / 4][j % 4] = w;
            g[j / 4][j % 4] = sees ? w * (g[j / 4][j % 4] - delta[slot][t]) * slope_of(args, x) : 0.0f;
        }
        add<BLOCK, COLS>(dv, p, grad, c0);
        add<BLOCK, COLS>(dk, g, q, c0);
        units_wait<0>();
    }
    const float by[2] = {1.0f, 1.0f};
    store_rows<COLS>(args.v[at_dk], dk, s0 + warp * 16, keys, kv * HD + c0, by);
    store_rows<COLS>(args.v[at_dv], dv, s0 + warp * 16, keys, kv * HD + c0, by);
}
#endif
