/* matrix_peak.comp - products of matrix units in registers, as many as a device can do: ROUNDS rounds of 8 chains a subgroup. */
KERNEL(matrix_peak)
#include "matrix.prelude"
shared uvec4 sh[4u * 64u];

MAIN {
    BLOCK_A a[2];
    BLOCK_B b[4];
    SUMS sums[8];
    for (uint i = TID; i < 256u; i += WG) sh[i] = uvec4(0x3c003c00u + i); /* small numbers of either type */
    BARRIER;
    UNROLL for (uint i = 0u; i < 2u; i++) LOAD_A(a[i], i * 2u, 4u);
    UNROLL for (uint i = 0u; i < 4u; i++) LOAD_B(b[i], i * 64u, 4u);
    UNROLL for (uint i = 0u; i < 8u; i++) CLEAR(sums[i]);
    for (uint k = 0u; k < ROUNDS; k++) UNROLL for (uint i = 0u; i < 8u; i++) MULTIPLY_ADD(sums[i], a[i % 2u], b[i / 2u]);
    BARRIER;
    UNROLL for (uint i = 0u; i < 8u; i++) {
        if (SUBGROUP == 0u) STORE(sums[i], 0u, 4u);
        BARRIER;
        OUT[OFF(OUT) + TID] = sh[TID % 64u].x; /* every workgroup writes the same */
        BARRIER;
    }
}
END(matrix_peak)
