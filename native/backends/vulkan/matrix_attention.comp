/* matrix_attention.comp - attention.kernel on matrix units. Sums in matrix units cannot be scaled by rows on the way, so a
 * first walk over the keys finds the log-sum-exp and a second adds the values by their final weights. */
KERNEL(matrix_attention)
#include "matrix.prelude"
#define PRODUCTS 1u
#define WEIGHTS 1u
#include "matrix_attention.prelude"

MAIN {
    uint h = GROUP % HEADS, t0 = GROUP / HEADS * 64u, col = h * HD, kv = h / (HEADS / KV_HEADS) * HD, t = t0 + OWN;
    if (t0 >= T) return;
    BLOCK_A mine[DEEP];
    BLOCK_SUMS sums[HALF];
    OWN_ROWS(mine, Q, Q, t0, T, col)
    UNROLL for (uint f = 0u; f < HALF; f++) CLEAR(sums[f]);
    int a = seen_from(t), b = min(seen_to(t), int(S)), from = a < b ? max(a, 0) : int(S), to = a < b ? b : 0;
    range_of_all(from, to);
    float top = NONE, sum = 0.0f, lse = 0.0f, w[4];
    for (uint walk = 0u; walk < 2u; walk++) {
        for (uint s0 = uint(from) / BLOCK * BLOCK; int(s0) < to; s0 += BLOCK) {
            STAGE(0u, K, s0, S, kv)
            if (walk == 1u) STAGE(1u, V, s0, S, kv)
            BARRIER;
            for (uint f = SIDE; f < BLOCK / 16u; f += 2u) PRODUCT(mine, 0u, 0u, f)
            BARRIER;
            UNROLL for (uint c = TID % PER_ROW * EACH; c < (TID % PER_ROW + 1u) * EACH; c += 4u) {
                uvec4 four = FOUR(PRODUCT_AT(0u), OWN, PRODUCT_STRIDE, c);
                float now = top;
                UNROLL for (uint i = 0u; i < 4u; i++) {
                    int s = int(s0 + c + i);
                    w[i] = s >= a && s < b ? score_of(as_float(four[i])) : NONE;
                    now = max(now, w[i]);
                }
                if (walk == 0u) {
                    sum *= exp(top - now);
                    UNROLL for (uint i = 0u; i < 4u; i++) sum += w[i] > NONE ? exp(w[i] - now) : 0.0f;
                    top = now;
                } else {
                    UNROLL for (uint i = 0u; i < 4u; i++) w[i] = w[i] > NONE ? exp(w[i] - lse) : 0.0f;
                    PUT_FOUR(0u, c, w)
                }
            }
            if (walk == 0u) continue;
            BARRIER;
            WEIGH(sums, 0u, 1u)
            BARRIER;
        }
        if (walk == 1u) break;
        BARRIER;
        float all = row_top(top);
        sum = row_sum(sum * exp(top - all));
        lse = all + log(sum);
        if (TID % PER_ROW == 0u && t < T) STATS[AT(STATS, t, h)] = sum > 0.0f ? as_uint(lse) : 0xff800000u;
    }
    WRITE(sums, O, t0, T, col)
}
END(matrix_attention)
