/* format.c - the table of block formats, a row each: its public face, its decoder and its encoder. A new format is one
 * row here and its functions in the file of its family. */
#include "quant.h"
#include "../graph/backend.h"

typedef struct format_row {
    fb_format format;
    fb_decoder *decode;
    fb_encoder *encode;         /* without importance; NULL: read only, or `weigh` does that too */
    fb_weighing_encoder *weigh; /* NULL: importance means nothing to it */
} format_row;

static const format_row rows_of_table[] = {
    {{"F32", FB_F32, 1, 4}, fb_decode_f32, fb_encode_f32, NULL},
    {{"F16", FB_F16, 1, 2}, fb_decode_f16, fb_encode_f16, NULL},
    {{"BF16", FB_BF16, 1, 2}, fb_decode_bf16, fb_encode_bf16, NULL},
    {{"Q4_0", FB_Q4_0, 32, 18}, fb_decode_q4_0, fb_encode_q4_0, fb_weigh_q4_0},
    {{"Q4_1", FB_Q4_1, 32, 20}, fb_decode_q4_1, fb_encode_q4_1, fb_weigh_q4_1},
    {{"Q5_0", FB_Q5_0, 32, 22}, fb_decode_q5_0, fb_encode_q5_0, fb_weigh_q5_0},
    {{"Q5_1", FB_Q5_1, 32, 24}, fb_decode_q5_1, fb_encode_q5_1, fb_weigh_q5_1},
    {{"Q8_0", FB_Q8_0, 32, 34}, fb_decode_q8_0, fb_encode_q8_0, NULL},
    {{"Q2_K", FB_Q2_K, 256, 84}, fb_decode_q2_k, NULL, NULL},
    {{"Q3_K", FB_Q3_K, 256, 110}, fb_decode_q3_k, NULL, NULL},
    {{"Q4_K", FB_Q4_K, 256, 144}, fb_decode_q4_k, NULL, fb_encode_q4_k},
    {{"Q5_K", FB_Q5_K, 256, 176}, fb_decode_q5_k, NULL, fb_encode_q5_k},
    {{"Q6_K", FB_Q6_K, 256, 210}, fb_decode_q6_k, NULL, fb_encode_q6_k},
    {{"IQ4_NL", FB_IQ4_NL, 32, 18}, fb_decode_iq4_nl, NULL, NULL},
    {{"TQ1_0", FB_TQ1_0, 256, 54}, fb_decode_tq1_0, NULL, NULL},
    {{"TQ2_0", FB_TQ2_0, 256, 66}, fb_decode_tq2_0, NULL, NULL},
    {{"MXFP4", FB_MXFP4, 32, 17}, fb_decode_mxfp4, NULL, NULL},
};

static const format_row *find(int32_t type) {
    for (size_t i = 0; i < sizeof rows_of_table / sizeof *rows_of_table; i++) {
        if (rows_of_table[i].format.type == type) {
            return &rows_of_table[i];
        }
    }
    return NULL;
}

const fb_format *fb_format_get(int32_t type) {
    const format_row *row = find(type);
    return row ? &row->format : NULL;
}

uint64_t fb_type_bytes(int32_t type, int64_t n) {
    if (type == FB_I32) {
        return (uint64_t)n * 4;
    }
    const format_row *row = find(type);
    return row ? (uint64_t)(n / row->format.block) * (uint64_t)row->format.block_bytes : 0;
}

int fb_decode(int32_t type, const void *src, uint64_t src_bytes, float *dst, int64_t n) {
    const format_row *row = find(type);
    if (!row) {
        return fb_fail(FB_E_ARGUMENT, "tensor type %d cannot be decoded", (int)type);
    }
    if (n < 0 || n > INT64_MAX / 4 || n % row->format.block != 0) {
        return fb_fail(FB_E_ARGUMENT, "%lld elements are not whole %s blocks of %d", (long long)n, row->format.name,
                       (int)row->format.block);
    }
    if (src_bytes != fb_type_bytes(type, n) || (n && (!src || !dst))) {
        return fb_fail(FB_E_ARGUMENT, "%lld elements of %s are not %llu bytes", (long long)n, row->format.name,
                       (unsigned long long)src_bytes);
    }
    row->decode(src, dst, n / row->format.block);
    return FB_OK;
}

int fb_encode(int32_t type, const float *src, void *dst, uint64_t dst_bytes, int64_t rows, int64_t cols,
              const float *importance) {
    const format_row *row = find(type);
    if (!row || (!row->encode && !row->weigh)) {
        return fb_fail(FB_E_ARGUMENT, "tensor type %d cannot be encoded", (int)type);
    }
    if (rows < 0 || cols < 0 || cols % row->format.block != 0 || (cols > 0 && rows > INT64_MAX / 4 / cols)) {
        return fb_fail(FB_E_ARGUMENT, "a matrix of %lld x %lld is not rows of whole %s blocks of %d", (long long)rows,
                       (long long)cols, row->format.name, (int)row->format.block);
    }
    const int64_t blocks = cols / row->format.block;
    if (dst_bytes != (uint64_t)(rows * blocks) * (uint64_t)row->format.block_bytes || (dst_bytes && (!src || !dst))) {
        return fb_fail(FB_E_ARGUMENT, "a %s matrix of %lld x %lld does not take %llu bytes", row->format.name,
                       (long long)rows, (long long)cols, (unsigned long long)dst_bytes);
    }
    const int plain = row->encode && !(importance && row->weigh);
    if (plain) {
        row->encode(src, dst, rows * blocks);
    }
    for (int64_t r = 0; !plain && r < rows; r++) {
        row->weigh(src + r * cols, (uint8_t *)dst + r * blocks * row->format.block_bytes, blocks, importance);
    }
    return FB_OK;
}
