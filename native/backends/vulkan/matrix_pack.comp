/* matrix_pack.comp - an operand of a product as rows of 16-bit floats, for the kernel that multiplies such rows only: rows of
 * blocks decoded, or activations rounded, and the low-rank factor over the product's scale behind them, as further columns
 * (forward) or further rows (gradient of the input). A thread owns eight neighbours. */
KERNEL(matrix_pack)
#include "blocks.prelude"

/* Elements c .. c + 3 of a row of B, over the scale; zeros past its end. */
f4 beside(uint row, uint c, uint cols) {
    f4 v = make_f4(0.0f, 0.0f, 0.0f, 0.0f);
    uint i = AT(B, row, c);
    if (c < cols) v.x = as_float(B[i]) * SCALE;
    if (c + 1u < cols) v.y = as_float(B[i + 1u]) * SCALE;
    if (c + 2u < cols) v.z = as_float(B[i + 2u]) * SCALE;
    if (c + 3u < cols) v.w = as_float(B[i + 3u]) * SCALE;
    return v;
}

f4 four(uint r, uint c) {
    f4 v = make_f4(0.0f, 0.0f, 0.0f, 0.0f);
    if (AS_ROWS == 0u) {
        if (c < COLS) return decode4(OFF(W) + r * LD(W), c, COLS);
        if (PRESENT(B)) return beside(r, c - COLS, R);
        return v;
    }
    if (r < ROWS) return decode4(OFF(W) + r * LD(W), c, COLS);
    if (PRESENT(B) && r - ROWS < R) return beside(r - ROWS, c, COLS);
    return v;
}

uint two(float a, float b) { return F16 != 0u ? packHalf2x16(vec2(a, b)) : bf16_out(a) | bf16_out(b) << 16; }

MAIN {
    uint wide = WIDE / 8u, i = GROUP * WG + TID, r = i / wide, c = i % wide * 8u;
    if (r >= OUT_ROWS || USED == 0u) return;
    f4 p = four(r, c), q = four(r, c + 4u);
    OUT[EIGHT(OUT, r, c)] = uvec4(two(p.x, p.y), two(p.z, p.w), two(q.x, q.y), two(q.z, q.w));
}
END(matrix_pack)
