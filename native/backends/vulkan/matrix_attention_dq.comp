/* matrix_attention_dq.comp - attention_dq.kernel on matrix units: one side makes scores again, the other the gradients of
 * the weights. */
KERNEL(matrix_attention_dq)
#include "matrix.prelude"
#define PRODUCTS 2u
#define WEIGHTS 1u
#include "matrix_attention.prelude"

MAIN {
    uint h = GROUP % HEADS, t0 = GROUP / HEADS * 64u, col = h * HD, kv = h / (HEADS / KV_HEADS) * HD, t = t0 + OWN;
    if (t0 >= T) return;
    BLOCK_A mine[DEEP];
    BLOCK_SUMS sums[HALF];
    OWN_ROWS(mine, Q, DO, t0, T, col)
    UNROLL for (uint f = 0u; f < HALF; f++) CLEAR(sums[f]);
    float delta = 0.0f, lse = 0.0f, w[4];
    if (t < T) {
        lse = as_float(STATS[AT(STATS, t, h)]);
        for (uint d = TID % PER_ROW * 8u; d < HD; d += PER_ROW * 8u) {
            uvec4 eight = DO[EIGHT(DO, t, col + d)];
            UNROLL for (uint i = 0u; i < 8u; i++) delta += bf16_in(eight[i / 2u], i) * get_O(AT(O, t, col + d + i));
        }
    }
    delta = row_sum(delta);
    if (TID % PER_ROW == 0u && t < T) STATS[AT(STATS, t, HEADS + h)] = as_uint(delta);
    int a = seen_from(t), b = min(seen_to(t), int(S)), from = a < b ? max(a, 0) : int(S), to = a < b ? b : 0;
    range_of_all(from, to);
    for (uint s0 = uint(from) / BLOCK * BLOCK; int(s0) < to; s0 += BLOCK) {
        STAGE(0u, K, s0, S, kv)
        STAGE(1u, V, s0, S, kv)
        BARRIER;
        UNROLL for (uint f = 0u; f < BLOCK / 16u; f++) PRODUCT(mine, SIDE, SIDE, f)
        BARRIER;
        UNROLL for (uint c = TID % PER_ROW * EACH; c < (TID % PER_ROW + 1u) * EACH; c += 4u) {
            uvec4 dots = FOUR(PRODUCT_AT(0u), OWN, PRODUCT_STRIDE, c), grads = FOUR(PRODUCT_AT(1u), OWN, PRODUCT_STRIDE, c);
            UNROLL for (uint i = 0u; i < 4u; i++) {
                int s = int(s0 + c + i);
                float x = score_of(as_float(dots[i]));
                w[i] = s >= a && s < b ? exp(x - lse) * (as_float(grads[i]) - delta) * slope_of(x) : 0.0f;
            }
            PUT_FOUR(0u, c, w)
        }
        BARRIER;
        WEIGH(sums, 0u, 0u)
        BARRIER;
    }
    WRITE(sums, DQ, t0, T, col)
}
END(matrix_attention_dq)
