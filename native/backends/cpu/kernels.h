/* kernels.h - the table of an instruction set's kernels; the file that includes it has set FB_ISA (a name) and one of
 * the FB_SIMD macros of simd.h. */
#include "attention.h"
#include "cpu.h"
#include "products.h"
#include "rows.h"
#include "conv.h"
#include "delta.h"

static uint64_t scratch_of(const fb_launch *l, int threads) {
    switch (l->op) {
    case FB_OP_LINEAR: case FB_OP_LINEAR_DX: case FB_OP_LINEAR_DW: return product_scratch(l, threads);
    case FB_OP_ATTENTION: case FB_OP_ATTENTION_DQ: case FB_OP_ATTENTION_DKV: return attention_scratch(l, threads);
    case FB_OP_EXPERTS: case FB_OP_EXPERTS_DX: case FB_OP_EXPERTS_DW: return expert_scratch(l, threads);
    case FB_OP_ROUTE: return route_scratch(l, threads);
    case FB_OP_DELTA: case FB_OP_DELTA_GRAD: return delta_scratch(l, threads);
    case FB_OP_ROPE: return rope_scratch(l, threads);
    case FB_OP_RMS_NORM_DW: return rms_norm_dw_scratch(l);
    default: return 0;
    }
}

/* The register tile on operands that stay in L1. */
static double peak(int kind, int rounds) {
    enum { UNITS = 64 };
    float operands[UNITS * (MR + NR)] = {0}, sums[MR * NR] = {0};
    int pair = 1;
#ifdef FB_SIMD_DP
    if (kind == FB_PEAK_BF16) pair = 2;
#else
    (void)kind;
#endif
    for (int i = 0; i < rounds; i++) tile(pair == 2, NR, UNITS, operands, operands + UNITS * MR, sums, 1);
    return 2.0 * MR * NR * UNITS * pair * rounds + 0 * (double)sums[0]; /* used, so that it must be done */
}

static float read_all(const float *p, int64_t n) {
    vf s[4] = {v_set(0), v_set(0), v_set(0), v_set(0)};
    for (int64_t i = 0; i + 4 * VW <= n; i += 4 * VW)
        for (int j = 0; j < 4; j++) s[j] += v_load(p + i + j * VW);
    return v_sum(s[0] + s[1] + (s[2] + s[3]));
}

#define FB_KERNELS(ISA)                                          \
    const fb_kernels fb_kernels_##ISA = {                        \
        .isa = #ISA,                                             \
        .scratch = scratch_of,                                   \
        .peak = peak,                                            \
        .read = read_all,                                        \
        .run = {                                                 \
            [FB_OP_EMBED] = run_embed,                           \
            [FB_OP_DECODE] = run_decode,                         \
            [FB_OP_RMS_NORM] = run_rms_norm,                     \
            [FB_OP_RMS_NORM_DX] = run_rms_norm_dx,               \
            [FB_OP_RMS_NORM_DW] = run_rms_norm_dw,               \
            [FB_OP_LINEAR] = run_linear,                         \
            [FB_OP_LINEAR_DX] = run_linear,                      \
            [FB_OP_LINEAR_DW] = run_linear,                      \
            [FB_OP_BIAS_DB] = run_bias_db,                       \
            [FB_OP_EMBED_DW] = run_embed_dw,                     \
            [FB_OP_ROPE_TABLE] = run_rope_table,                 \
            [FB_OP_ROPE] = run_rope,                             \
            [FB_OP_ATTENTION] = run_attention,                   \
            [FB_OP_ATTENTION_DQ] = run_attention_dq,             \
            [FB_OP_ATTENTION_DKV] = run_attention_dkv,           \
            [FB_OP_CONV] = run_conv,                             \
            [FB_OP_CONV_DX] = run_conv_dx,                       \
            [FB_OP_CONV_DW] = run_conv_dw,                       \
            [FB_OP_DELTA_GATES] = run_delta_gates,               \
            [FB_OP_DELTA_GATES_GRAD] = run_delta_gates_grad,     \
            [FB_OP_DELTA] = run_delta,                           \
            [FB_OP_DELTA_GRAD] = run_delta_grad,                 \
            [FB_OP_PART] = run_part,                             \
            [FB_OP_GLU] = run_glu,                               \
            [FB_OP_GLU_GRAD] = run_glu_grad,                     \
            [FB_OP_ADD] = run_add,                               \
            [FB_OP_SCALE] = run_scale,                           \
            [FB_OP_SOFTCAP] = run_softcap,                       \
            [FB_OP_SOFTCAP_GRAD] = run_softcap_grad,             \
            [FB_OP_DROPOUT] = run_dropout,                       \
            [FB_OP_GATHER] = run_gather,                         \
            [FB_OP_SCATTER] = run_scatter,                       \
            [FB_OP_XENT] = run_xent,                             \
            [FB_OP_APPEND] = run_append,                         \
            [FB_OP_ZERO] = run_zero,                             \
            [FB_OP_ROUTE] = run_route,                           \
            [FB_OP_ROUTE_GRAD] = run_route_grad,                 \
            [FB_OP_ORDER] = run_order,                           \
            [FB_OP_EXPERTS] = run_experts,                       \
            [FB_OP_EXPERTS_DX] = run_experts,                    \
            [FB_OP_EXPERTS_DW] = run_experts,                    \
            [FB_OP_COMBINE] = run_combine,                       \
            [FB_OP_COMBINE_GRAD] = run_combine_grad,             \
            [FB_OP_TALLY] = run_tally,                           \
            [FB_OP_SUMSQ] = run_sumsq,                           \
            [FB_OP_NORM] = run_norm,                             \
            [FB_OP_ADAMW] = run_adamw,                           \
            [FB_OP_SGD] = run_sgd,                               \
        },                                                       \
    };
