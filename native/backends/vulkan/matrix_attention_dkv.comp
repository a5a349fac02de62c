/* matrix_attention_dkv.comp - attention_dkv.kernel on matrix units: the own rows are keys and values, the blocks are queries
 * and gradients of the output, so that products come out by keys. */
KERNEL(matrix_attention_dkv)
#include "matrix.prelude"
#define PRODUCTS 2u
#define WEIGHTS 2u
#include "matrix_attention.prelude"
/* Of a block's queries: log-sum-exp, delta, first and last key. */
shared vec2 numbers[BLOCK];
shared ivec2 keys[BLOCK];

MAIN {
    uint kv = GROUP % KV_HEADS, s0 = GROUP / KV_HEADS * 64u, group = HEADS / KV_HEADS;
    if (s0 >= S) return;
    BLOCK_A mine[DEEP];
    BLOCK_SUMS dk[HALF];
    BLOCK_SUMS dv[HALF];
    OWN_ROWS(mine, K, V, s0, S, kv * HD)
    UNROLL for (uint f = 0u; f < HALF; f++) {
        CLEAR(dk[f]);
        CLEAR(dv[f]);
    }
    int from = int(T), to = 0;
    for (uint t = TID; t < T; t += WG) {
        int a = seen_from(t), b = seen_to(t);
        if (a >= b || b <= int(s0) || a >= int(s0) + 64) continue;
        from = min(from, int(t));
        to = int(t) + 1;
    }
    range_of_all(from, to);
    int s = int(s0 + OWN);
    float w[4], ds[4];
    for (uint h = kv * group; h < (kv + 1u) * group; h++)
        for (uint t0 = uint(from) / BLOCK * BLOCK; int(t0) < to; t0 += BLOCK) {
            STAGE(0u, Q, t0, T, h * HD)
            STAGE(1u, DO, t0, T, h * HD)
            if (TID < BLOCK) {
                uint t = t0 + TID;
                keys[TID] = ivec2(seen_from(t), seen_to(t));
                numbers[TID] = t < T ? vec2(as_float(STATS[AT(STATS, t, h)]), as_float(STATS[AT(STATS, t, HEADS + h)])) : vec2(0.0f);
            }
            BARRIER;
            UNROLL for (uint f = 0u; f < BLOCK / 16u; f++) PRODUCT(mine, SIDE, SIDE, f)
            BARRIER;
            UNROLL for (uint c = TID % PER_ROW * EACH; c < (TID % PER_ROW + 1u) * EACH; c += 4u) {
                uvec4 dots = FOUR(PRODUCT_AT(0u), OWN, PRODUCT_STRIDE, c), grads = FOUR(PRODUCT_AT(1u), OWN, PRODUCT_STRIDE, c);
                UNROLL for (uint i = 0u; i < 4u; i++) {
                    float x = score_of(as_float(dots[i]));
                    w[i] = s >= keys[c + i].x && s < keys[c + i].y ? exp(x - numbers[c + i].x) : 0.0f;
                    ds[i] = w[i] * (as_float(grads[i]) - numbers[c + i].y) * slope_of(x);
                }
                PUT_FOUR(0u, c, w)
                PUT_FOUR(1u, c, ds)
            }
            BARRIER;
            WEIGH(dv, 0u, 1u)
            WEIGH(dk, 1u, 0u)
            BARRIER;
        }
    WRITE(dk, DK, s0, S, kv * HD)
    WRITE(dv, DV, s0, S, kv * HD)
}
END(matrix_attention_dkv)
