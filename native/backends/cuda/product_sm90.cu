/* product_sm90.cu - the matrix products on Hopper's warpgroup units, whose operands the copy engine brings to shared memory:
 *     OP 0  y (M, N) = x (M, K) w (N, K)^T      OP 1  dx (M, N) = dy (M, K) w (K, N)      OP 2  dw (M, N) = dy (K, M)^T x (K, N)
 * x and w are BF16, through their maps; out = scale (x w + low rank) + bias + acc.
 *
 * Clusters of CLUSTER workgroups walk over the tiles of the output, of 128 rows and BN columns a workgroup. Those of a cluster
 * own rows below each other and share the tile of w, of which each brings its part to all. A workgroup is two warpgroups that
 * multiply, 64 rows each, and one that fills the stages: a warp by the copy engine, and the others, by hand, with the low-rank
 * term, from u (M, R) and b ((N, R), or (R, N) in OP 1), as further steps of the reduction. Several products of the same output
 * are summed as one, whose reduction goes through their operands in turn. Of a reduction in parts each tile sums one. Outputs leave through shared memory by the copy engine while the next tile is multiplied, or by threads where not
 * all of a warpgroup's rows are in use.
 * Constants: OP, BN, CLUSTER, STAGES; TERMS: products that are summed; OUT, ACC, U: types; BIAS, SCALED: 1 where there is one; STORE: 0 by threads, 1 by the copy
 * engine, 2 by the copy engine that adds to what is there. */
#include "common.cu"
#include "warpgroup.cu"

#define DEEP 64 /* columns of a stage: 128 bytes, the width of a swizzle */
#define X_BYTES 16384u
#define W_BYTES (BN * 128u)
#define STAGE (X_BYTES + W_BYTES)
#define FILLER 256u /* the first thread that does not multiply */
/* An operand, CU_X, CU_U or CU_B, of one of the products that are summed. */
#define TERM(term, operand) ((term) == 0 ? (operand) : CU_MORE + 3 * ((term) - 1) + ((operand) == CU_X ? 0 : (operand) - CU_U + 1))
#define OUT_BYTES (STORE ? 32768u : 0u) /* where outputs wait for the copy engine */

/* ---- barriers in shared memory, and copies that arrive at them ---- */

__device__ void barrier_init(uint at, uint arrivals) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(arrivals) : "memory");
}
__device__ void barrier_arrive(uint at) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at) : "memory"); }
__device__ void barrier_arrive_at(uint at,
                                  uint rank) { /* in a workgroup of the cluster; only the units' reads stand before it */
    asm volatile(
        "{ .reg .b32 there; mapa.shared::cluster.u32 there, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(
            at),
        "r"(rank)
        : "memory");
}
__device__ void barrier_expect(uint at, uint bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}
__device__ void barrier_wait(uint at, uint parity) {
    asm volatile("{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }"
                 ::"r"(at), "r"(parity) : "memory");
}
/* A box of a map from column c, row r on; to the workgroups of `mask`, or here. */
__device__ void copy_box(uint to, const cu_map &map, int c, int r, uint arrive_at, unsigned short mask) {
    if (CLUSTER == 1 || mask == 0)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                     ::"r"(to), "l"(&map), "r"(c), "r"(r), "r"(arrive_at) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
                     " [%0], [%1, {%2, %3}], [%4], %5;"
                     ::"r"(to), "l"(&map), "r"(c), "r"(r), "r"(arrive_at), "h"(mask) : "memory");
}
/* A box of shared memory to the output from column c, row r on. */
__device__ void store_box(const cu_map &map, int c, int r, uint from) {
    if (STORE == 2)
        asm volatile("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%0, {%1, %2}], [%3];"
                     ::"l"(&map), "r"(c), "r"(r), "r"(from) : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];"
                     ::"l"(&map), "r"(c), "r"(r), "r"(from) : "memory");
}
__device__ void cluster_meet() {
    if (CLUSTER == 1) __syncthreads();
    else asm volatile("barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;" ::: "memory");
}

/* ---- the kernel ---- */

struct tile { int m, n, part, from, to; };

/* Tile number `at`: within bands of 2048 rows, rows first, so that what runs at once shares its operands in the cache. */
__device__ tile tile_of(const cu_args &args, int at, int m_tiles, int n_tiles, int depth) {
    const int band = 16 / CLUSTER, each = band * n_tiles, all = m_tiles * n_tiles;
    tile t;
    t.part = at / all, at %= all;
    int first = at / each * band, high = min(m_tiles - first, band);
    t.m = first + at % each % high, t.n = at % each / high;
    t.from = t.part * args.depth, t.to = args.parts > 1 ? min(depth, t.from + args.depth) : depth;
    return t;
}

/* Eight neighbours of a row of u, or of b^T, from column r on; zeros outside. */
__device__ uint4 low_rank_at(const cu_args &args, int term, bool is_u, int row, int r, int rows) {
    const cu_view &v = args.v[TERM(term, is_u ? CU_U : CU_B)];
    const int rank = args.v[TERM(term, CU_U)].cols;
    const bool whole = r + 8 <= rank && v.at % 16 == 0 && v.ld % 8 == 0;
    float x[8] = {};
    if (row >= rows) return make_uint4(0, 0, 0, 0);
    if (whole && is_u) get8<U>(v.at, row * v.ld + r, x);
    else if (whole && OP == 0) get8<CU_F32>(v.at, row * v.ld + r, x);
    else
#pragma unroll
        for (int k = 0; k < 8; k++) {
            if (r + k >= rank) continue;
            if (is_u) x[k] = get<U>(v.at, row * v.ld + r + k);
            else x[k] = get<CU_F32>(v.at, OP == 0 ? row * v.ld + r + k : (r + k) * v.ld + row);
        }
    for (int k = 0; k < 8 && SCALED && !is_u; k++) x[k] /= args.scale;
    return packed8(x);
}

/* The low-rank operands of 64 columns of u from r0 on, as a stage: rows of u, then rows of b^T. By 96 threads, each of which has
 * its first eight chunks before the stage is free. */
__device__ void fill_low_rank(const cu_args &args, int term, uint stage, int m0, int n0, int r0, int m, int n) {
    const int left = args.v[TERM(term, CU_U)].cols - r0, chunks = ((left < DEEP ? left : DEEP) + 15) / 16 * 2, all = (128 + BN) * chunks;
    for (int first = threadIdx.x - FILLER - 32; first < all || first < 96; first += 8 * 96) {
        uint4 x[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int at = first + i * 96, row = at % (128 + BN), chunk = at / (128 + BN);
            const bool is_u = row < 128;
            if (at < all) x[i] = low_rank_at(args, term, is_u, is_u ? m0 + row : n0 + row - 128, r0 + chunk * 8, is_u ? m : n);
        }
        if (first < 96) asm volatile("bar.sync 1, 128;" ::: "memory");
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int at = first + i * 96, row = at % (128 + BN), chunk = at / (128 + BN);
            if (at < all) store16(stage + row * 128 + ((chunk ^ row & 7) << 4), x[i]); /* rows of w follow those of x */
        }
    }
    asm volatile("fence.proxy.async.shared::cta; bar.sync 3, 96;" ::: "memory");
}

/* Stage `use` is free again, once all warps of the cluster have said so. */
__device__ void release(uint empty, uint use) {
    const uint lane = threadIdx.x % 32, at = empty + use % STAGES * 8;
    if (CLUSTER == 1 && lane == 0) barrier_arrive(at);
    if (CLUSTER > 1 && lane < CLUSTER) barrier_arrive_at(at, lane);
}

/* A warpgroup's 64 rows and BN columns, in what its threads hold: by threads, two neighbours each. */
__device__ void put_tile(const cu_args &args, const float (&d)[BN / 2], long long base, int row, int n0, int m, int n) {
    const cu_view &out = args.v[CU_OUT], &acc = args.v[CU_ACC];
    const int lane = threadIdx.x % 32;
    row += threadIdx.x % 128 / 32 * 16 + lane / 4;
#pragma unroll
    for (int from = 0; from < BN / 2; from += 32) {
        float2 more[16]; /* all on their way before the first is needed; acc may be out */
#pragma unroll
        for (int i = from; i < from + 32; i += 2) {
            const int r = row + i / 2 % 2 * 8, c = n0 + i / 4 * 8 + lane % 4 * 2;
            more[(i - from) / 2] = make_float2(0.0f, 0.0f);
            if (ACC && r < m && c < n) more[(i - from) / 2] = get2<ACC>(acc.at, r * acc.ld + c);
            if (STORE == 2 && r < m && c < n) more[(i - from) / 2] = get2<OUT>(out.at, r * out.ld + c);
        }
#pragma unroll
        for (int i = from; i < from + 32; i += 2) {
            const int r = row + i / 2 % 2 * 8, c = n0 + i / 4 * 8 + lane % 4 * 2;
            if (r < m && c < n)
                put2<OUT>(out.at, (base + r) * out.ld + c, d[i] + more[(i - from) / 2].x, d[i + 1] + more[(i - from) / 2].y);
        }
    }
}

/* A warpgroup's rows through 16 KiB of shared memory: two boxes of 64 rows and 128 bytes at a time. */
__device__ void send_tile(const cu_args &args, const float (&d)[BN / 2], uint room, int row, int n0, int n) {
    const uint lane = threadIdx.x % 32, first = threadIdx.x % 128 == 0, group = threadIdx.x / 128;
    constexpr int WIDE = OUT == CU_F32 ? 32 : 64, ROUND = 2 * WIDE < BN ? 2 * WIDE : BN; /* columns of a box, and at a time */
#pragma unroll
    for (int c0 = 0; c0 < BN; c0 += ROUND) {
        if (first) asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
        asm volatile("bar.sync %0, 128;" ::"r"(4 + group) : "memory");
#pragma unroll
        for (int i = 0; i < ROUND / 2; i += 2) {
            const int at = c0 / 2 + i; /* eight columns are four numbers of a thread */
            const uint r = threadIdx.x % 128 / 32 * 16 + lane / 4 + i / 2 % 2 * 8, c = i / 4 * 8 + lane % 4 * 2,
                       byte = c * (OUT == CU_F32 ? 4 : 2);
            const uint to = room + byte / 128 * 8192 + r * 128 + ((byte % 128 / 16 ^ r & 7) << 4) + byte % 16;
            if (OUT == CU_F32)
                asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(to), "f"(d[at]), "f"(d[at + 1]) : "memory");
            else asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(bf16_pair(d[at], d[at + 1])) : "memory");
        }
        asm volatile("fence.proxy.async.shared::cta; bar.sync %0, 128;" ::"r"(4 + group) : "memory");
        if (!first) continue;
        for (int box = 0; box < ROUND / WIDE; box++)
            if (n0 + c0 + box * WIDE < n) store_box(args.out_map, n0 + c0 + box * WIDE, row, room + box * 8192);
        asm volatile("cp.async.bulk.commit_group;" ::: "memory");
    }
}

extern "C" __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(384, 1)
    run(const __grid_constant__ cu_args args) {
    extern __shared__ __align__(1024) char shared[];
    const uint stages = shared_at(shared), room = stages + STAGES * STAGE, full = room + OUT_BYTES, empty = full + 8 * STAGES;
    const uint rank = CLUSTER == 1 ? 0 : blockIdx.x % CLUSTER;
    const int m = OP == 2 ? args.v[CU_X].cols : in_use(args, CU_X), n = args.v[CU_OUT].cols;
    const int depth = OP == 2 ? in_use(args, CU_X) : args.v[CU_X].cols;
    const int m_tiles = (m + 128 * CLUSTER - 1) / (128 * CLUSTER), n_tiles = (n + BN - 1) / BN,
              all = m_tiles * n_tiles * args.parts;
    if (threadIdx.x == 0)
        for (uint i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, 1);
            barrier_init(empty + 8 * i, 8 * CLUSTER);
        }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    cluster_meet();
    uint use = 0; /* of a stage, counted on through all tiles */
    if (threadIdx.x >= FILLER) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 72;");
        const bool engine = threadIdx.x < FILLER + 32;
        for (int at = blockIdx.x / CLUSTER; at < all; at += gridDim.x / CLUSTER) {
            const tile t = tile_of(args, at, m_tiles, n_tiles, depth);
            const int m0 = (t.m * CLUSTER + rank) * 128, n0 = t.n * BN;
            for (int term = 0; term < TERMS && U && t.part == 0; term++) /* first, as it can be fetched long before */
                for (int r = 0; r < args.v[TERM(term, CU_U)].cols; r += DEEP, use++) {
                    if (engine && threadIdx.x == FILLER) barrier_wait(empty + use % STAGES * 8, use / STAGES & 1 ^ 1);
                    if (engine) asm volatile("bar.sync 1, 128;" ::: "memory"); /* the stage is free */
                    else fill_low_rank(args, term, stages + use % STAGES * STAGE, m0, n0, r, m, n);
                    if (threadIdx.x == FILLER + 32) barrier_arrive(full + use % STAGES * 8);
                }
            for (int term = 0; term < TERMS; term++) {
                const int end = term ? args.v[TERM(term, CU_X)].cols : t.to;
                for (int k = term ? 0 : t.from; k < end; k += DEEP, use++) {
                    if (threadIdx.x != FILLER) continue;
                    const uint stage = stages + use % STAGES * STAGE, arrive = full + use % STAGES * 8;
                    barrier_wait(empty + use % STAGES * 8, use / STAGES & 1 ^ 1);
                    barrier_expect(arrive, STAGE);
                    if (OP == 2) {
                        copy_box(stage, args.x_map[term], m0, k, arrive, 0);
                        copy_box(stage + 8192, args.x_map[term], m0 + 64, k, arrive, 0);
                    } else copy_box(stage, args.x_map[term], k, m0, arrive, 0);
                    if (OP == 0)
                        copy_box(stage + X_BYTES + rank * (W_BYTES / CLUSTER), args.w_map[term], k, n0 + rank * (BN / CLUSTER),
                                 arrive, (1 << CLUSTER) - 1);
                    else
                        for (uint box = rank; box < BN / 64; box += CLUSTER)
                            copy_box(stage + X_BYTES + box * 8192, args.w_map[term], n0 + box * 64, k, arrive,
                                     (1 << CLUSTER) - 1);
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 216;");
        const uint group = threadIdx.x / 128;
        for (int at = blockIdx.x / CLUSTER; at < all; at += gridDim.x / CLUSTER) {
            const tile t = tile_of(args, at, m_tiles, n_tiles, depth);
            const int row = (t.m * CLUSTER + rank) * 128 + group * 64;
            int steps = (t.to - t.from + DEEP - 1) / DEEP;
            for (int term = 1; term < TERMS; term++) steps += (args.v[TERM(term, CU_X)].cols + DEEP - 1) / DEEP;
            float d[BN / 2];
            for (int i = 0; i < BN / 2; i++) d[i] = 0.0f;
            for (int term = 0; term < TERMS && U && t.part == 0; term++) {
                const int low = args.v[TERM(term, CU_U)].cols;
                for (int r = 0; r < low; r += DEEP, use++) {
                    const uint stage = stages + use % STAGES * STAGE;
                    barrier_wait(full + use % STAGES * 8, use / STAGES & 1);
                    for (int k = 0; k < 4 && r + k * 16 < low; k++) {
                        units_begin();
                        multiply_stage<0, 0>(d, tile_at(stage + group * 8192) + k * 2, tile_at(stage + X_BYTES) + k * 2, 1);
                        units_commit();
                    }
                    units_wait<0>();
                    release(empty, use);
                }
            }
            for (int i = 0; i < steps; i++, use++) {
                const uint stage = stages + use % STAGES * STAGE;
                const word64 x = tile_at(stage + group * 8192), w = tile_at(stage + X_BYTES);
                barrier_wait(full + use % STAGES * 8, use / STAGES & 1);
                if (OP == 2 && t.to - t.from < (i + 1) * DEEP) { /* rows beyond those in use hold anything */
                    const int left = t.to - t.from - i * DEEP;
                    for (uint j = threadIdx.x; j < (2 + BN / 64) * 512; j += 256)
                        if (j / 8 % 64 >= left) store16(stage + j * 16, make_uint4(0, 0, 0, 0));
                    asm volatile("fence.proxy.async.shared::cta; bar.sync 2, 256;" ::: "memory");
                }
                units_begin();
#pragma unroll
                for (int k = 0; k < 4; k++)
                    multiply_stage<OP == 2, OP != 0>(d, x + k * STEP(OP == 2), w + k * STEP(OP != 0), 1);
                units_commit();
                units_wait<1>();
                if (i > 0) release(empty, use - 1);
            }
            units_wait<0>();
            if (steps > 0) release(empty, use - 1);
#pragma unroll
            for (int i = 0; i < BN / 2 && (SCALED || BIAS); i++) {
                const int c = t.n * BN + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2;
                d[i] = (SCALED ? d[i] * args.scale : d[i]) + (BIAS && c < n ? get<CU_F32>(args.v[CU_BIAS].at, c) : 0.0f);
            }
            if (STORE && row + 64 <= m) send_tile(args, d, room + group * 16384, row, t.n * BN, n);
            else
                put_tile(args, d, args.parts > 1 ? (long long)t.part * (args.v[CU_OUT].rows / args.parts) : 0, row, t.n * BN,
                         m, n);
        }
        if (STORE) asm volatile("cp.async.bulk.wait_group 0;" ::: "memory");
    }
    cluster_meet(); /* none ends while another may still write into it */
}
