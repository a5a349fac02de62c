/* matrix_rows.comp - rows of activations as F16, whose range is small: each row of X, and of U behind it, over a power of
 * two that is that row's own, so that gradients of any size keep their digits. A workgroup owns a row. */
KERNEL(matrix_rows)
SHARED(256u)
#include "sums.prelude"

float value(uint r, uint c) {
    if (c < K) return get_X(AT(X, r, c));
    return PRESENT(U) && c - K < RANK ? get_U(AT(U, r, c - K)) : 0.0f;
}

MAIN {
    uint r = GROUP;
    if (r >= ROWS) return;
    float part = 0.0f;
    for (uint c = TID; c < K + RANK; c += WG) part = max(part, abs(value(r, c)));
    /* The largest comes to 4096 .. 8191, which leaves room above it and 29 powers of two below. */
    uint power = max(as_uint(top_of(part, 0u)) & 0x7f800000u, 0x0d800000u);
    float over = 4096.0f / as_float(power);
    for (uint c = TID * 8u; c < K + R; c += WG * 8u) {
        uint two[4];
        for (uint i = 0u; i < 4u; i++)
            two[i] = packHalf2x16(vec2(value(r, c + 2u * i) * over, value(r, c + 2u * i + 1u) * over));
        OUT[EIGHT(OUT, r, c)] = uvec4(two[0], two[1], two[2], two[3]);
    }
    if (TID == 0u) ROW_SCALE[AT(ROW_SCALE, r, 0u)] = as_uint(as_float(power) / 4096.0f);
}
END(matrix_rows)
