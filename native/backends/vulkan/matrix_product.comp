/* matrix_product.comp - the products of product.kernel on matrix units, of operands that are 16-bit floats already.
 *
 * A workgroup owns BM x BN of the output, each of its subgroups WM x WN, and walks the reduction in steps of 32: while one
 * is multiplied out of shared memory the next is on its way in registers. A second buffer would save a barrier a step, and
 * costs more by leaving room for fewer workgroups. The low-rank term is R more of the reduction, whose right factor lies
 * behind W. Of a reduction in parts, each workgroup sums one. */
KERNEL(matrix_product)
#include "matrix.prelude"
/* Staged rows are 16 bytes longer than what they hold, so that eight of them lie in all banks. */
#define A_STRIDE (OP == 2u ? BM / 8u + 1u : 5u)
#define B_STRIDE (OP == 0u ? 5u : BN / 8u + 1u)
#define A_SIZE (OP == 2u ? 32u * (BM / 8u + 1u) : BM * 5u)
#define B_SIZE (OP == 0u ? BN * 5u : 32u * (BN / 8u + 1u))
#define STEP_SIZE (A_SIZE + B_SIZE)
#define FM (WM / 16u)
#define FN (WN / 16u)
#define A_EACH ((BM * 4u + WG - 1u) / WG)
#define B_EACH ((BN * 4u + WG - 1u) / WG)
#define OUT_STRIDE (WN / 4u + 1u)
#define OUT_SIZE (BM / WM * (BN / WN) * 16u * OUT_STRIDE)
shared uvec4 sh[STEP_SIZE > OUT_SIZE ? STEP_SIZE : OUT_SIZE];

/* Rows and columns outside of the output read their neighbours': what comes of them is not written. */
uvec4 left(uint i, uint m0, uint k0) {
    if (OP == 2u) {
        uint k = k0 + i / (BM / 8u), m = min(m0 + i % (BM / 8u) * 8u, M - 8u);
        return k < K ? X[EIGHT(X, k, m)] : uvec4(0u);
    }
    uint m = min(m0 + i / 4u, M - 1u), c = i % 4u * 8u;
    return k0 < K ? X[EIGHT(X, m, k0 + c)] : U[EIGHT(U, m, k0 - K + c)];
}

uvec4 right(uint i, uint n0, uint k0) {
    if (OP == 0u) return W[EIGHT(W, min(n0 + i / 4u, N - 1u), k0 + i % 4u * 8u)];
    uint k = k0 + i / (BN / 8u), n = min(n0 + i % (BN / 8u) * 8u, N - 8u);
    return OP == 1u || k < K ? W[EIGHT(W, k, n)] : uvec4(0u);
}

uint left_at(uint i) { return OP == 2u ? i / (BM / 8u) * A_STRIDE + i % (BM / 8u) : i / 4u * 5u + i % 4u; }
uint right_at(uint i) { return A_SIZE + (OP == 0u ? i / 4u * 5u + i % 4u : i / (BN / 8u) * B_STRIDE + i % (BN / 8u)); }

MAIN {
    uint across = (N + BN - 1u) / BN, tiles = max(across * ((M + BM - 1u) / BM), 1u), part = GROUP / tiles;
    if (part >= PARTS || M == 0u) return;
    uint m0 = GROUP % tiles / across * BM, n0 = GROUP % across * BN;
    uint from = part * DEPTH, to = min(from + DEPTH, K + R);
    uint wm = SUBGROUP / (BN / WN) * WM, wn = SUBGROUP % (BN / WN) * WN;
    uvec4 a_next[A_EACH], b_next[B_EACH];
    SUMS sums[FM * FN];
    BLOCK_A a[FM];
    BLOCK_B b;
    UNROLL for (uint i = 0u; i < FM * FN; i++) CLEAR(sums[i]);
    for (uint k0 = from; k0 < to + 32u; k0 += 32u) {
        if (k0 < to) {
            UNROLL for (uint i = 0u; i < A_EACH; i++)
                if (TID + i * WG < BM * 4u) a_next[i] = left(TID + i * WG, m0, k0);
            UNROLL for (uint i = 0u; i < B_EACH; i++)
                if (TID + i * WG < BN * 4u) b_next[i] = right(TID + i * WG, n0, k0);
        }
        if (k0 > from) UNROLL for (uint k = 0u; k < 2u; k++) {
            UNROLL for (uint i = 0u; i < FM; i++) {
                if (OP == 2u) LOAD_A_BY_COLUMNS(a[i], k * 16u * A_STRIDE + wm / 8u + i * 2u, A_STRIDE);
                else LOAD_A(a[i], (wm + i * 16u) * A_STRIDE + k * 2u, A_STRIDE);
            }
            UNROLL for (uint j = 0u; j < FN; j++) {
                if (OP == 0u) LOAD_B_BY_COLUMNS(b, A_SIZE + (wn + j * 16u) * B_STRIDE + k * 2u, B_STRIDE);
                else LOAD_B(b, A_SIZE + k * 16u * B_STRIDE + wn / 8u + j * 2u, B_STRIDE);
                UNROLL for (uint i = 0u; i < FM; i++) MULTIPLY_ADD(sums[i * FN + j], a[i], b);
            }
        }
        BARRIER;
        if (k0 < to) {
            UNROLL for (uint i = 0u; i < A_EACH; i++)
                if (TID + i * WG < BM * 4u) sh[left_at(TID + i * WG)] = a_next[i];
            UNROLL for (uint i = 0u; i < B_EACH; i++)
                if (TID + i * WG < BN * 4u) sh[right_at(TID + i * WG)] = b_next[i];
            BARRIER;
        }
    }
    uint mine = SUBGROUP * 16u * OUT_STRIDE;
    UNROLL for (uint i = 0u; i < FM; i++) {
        UNROLL for (uint j = 0u; j < FN; j++) STORE(sums[i * FN + j], mine + j * 4u, OUT_STRIDE);
        TOGETHER;
        for (uint e = LANE; e < 8u * WN; e += LANES) {
            uint r = e / (WN / 2u), c = e % (WN / 2u) * 2u, m = m0 + wm + i * 16u + r, n = n0 + wn + c;
            if (m >= M || n >= N) continue;
            bool both = n + 1u < N;
            uvec4 four = sh[mine + r * OUT_STRIDE + c / 4u];
            float scale = SCALE;
            if (PRESENT(ROW_SCALE)) scale *= as_float(ROW_SCALE[AT(ROW_SCALE, m, 0u)]);
            float p = as_float((c & 2u) == 0u ? four.x : four.z) * scale;
            float q = as_float((c & 2u) == 0u ? four.y : four.w) * scale;
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
        TOGETHER;
    }
}
END(matrix_product)
