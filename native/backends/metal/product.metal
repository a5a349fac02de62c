/* product.metal - product.kernel on simdgroup matrices: the same operands, constants and walk, but each of four simdgroups owns a
 * quarter of the BM x BN outputs as matrices of 8 x 8. F32 all the way, so it serves every precision. */
KERNEL(product)
#include "product.prelude"
#define DOWN (BM / 16u) /* matrices of a simdgroup */
#define ACROSS (BN / 16u)

MAIN {
    uint across = (N + BN - 1u) / BN, tiles = max(across * ((M + BM - 1u) / BM), 1u), part = GROUP / tiles;
    if (part >= PARTS || M == 0u) return;
    uint m0 = GROUP % tiles / across * BM, n0 = GROUP % across * BN;
    uint y = SIMDGROUP / 2u * (BM / 2u), x = SIMDGROUP % 2u * (BN / 2u);
    MATRIX total[DOWN * ACROSS], sum[DOWN * ACROSS], a[DOWN], b;
    MATRIX scale = MATRIX(SCALE), one = MATRIX(1.0f); /* on the diagonal */
    for (uint i = 0u; i < DOWN * ACROSS; i++) total[i] = sum[i] = ZEROS;
    for (uint pass = 0u; pass < 2u; pass++) {
        uint depth = pass == 0u ? min(K, (part + 1u) * DEPTH) : PRESENT(U) && part == 0u ? R : 0u;
        for (uint k0 = pass == 0u ? part * DEPTH : 0u; k0 < depth; k0 += 32u) {
            stage(pass == 1u, m0, n0, k0, depth);
            BARRIER;
            for (uint k = 0u; k < 32u; k += 8u) {
                for (uint i = 0u; i < DOWN; i++) simdgroup_load(a[i], sh + k * LDA + y + i * 8u, LDA, ulong2(0, 0), true);
                for (uint j = 0u; j < ACROSS; j++) {
                    simdgroup_load(b, sh + 32u * LDA + k * LDB + x + j * 8u, LDB);
                    for (uint i = 0u; i < DOWN; i++)
                        simdgroup_multiply_accumulate(sum[i * ACROSS + j], a[i], b, sum[i * ACROSS + j]);
                }
            }
            if ((k0 + 32u) % STRETCH == 0u || k0 + 32u >= depth)
                for (uint i = 0u; i < DOWN * ACROSS; i++) {
                    if (pass == 0u) simdgroup_multiply_accumulate(total[i], sum[i], scale, total[i]);
                    else simdgroup_multiply_accumulate(total[i], sum[i], one, total[i]);
                    sum[i] = ZEROS;
                }
            BARRIER;
        }
    }
    for (uint i = 0u; i < DOWN; i++)
        for (uint j = 0u; j < ACROSS; j++) simdgroup_store(total[i * ACROSS + j], sh + (y + i * 8u) * BN + x + j * 8u, BN);
    BARRIER;
    for (uint i = TID; i < BM * BN / 2u; i += WG) {
        uint r = i / (BN / 2u), c = i % (BN / 2u) * 2u, m = m0 + r, n = n0 + c;
        if (m >= M || n >= N) continue;
        bool both = n + 1u < N;
        float p = sh[r * BN + c], q = sh[r * BN + c + 1u];
        if (PRESENT(BIAS)) {
            p += as_float(BIAS[OFF(BIAS) + n]);
            if (both) q += as_float(BIAS[OFF(BIAS) + n + 1u]);
        }
        if (PRESENT(ACC)) {
            p += get_ACC(AT(ACC, m, n));
            if (both) q += get_ACC(AT(ACC, m, n + 1u));
        }
        put2_OUT(AT(OUT, part * CAPACITY(M) + m, n), p, q, both);
    }
}
END(product)
