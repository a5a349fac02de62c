/* format.c - the table of formats.h as the core sees it: a row's public face, its decoder and its encoders. */
#include "quant.h"
#include "../graph/backend.h"

typedef struct format_row {
    fb_format format;
    fb_decoder *decode;         /* NULL: not decoded */
    fb_encoder *encode;         /* without importance; NULL: read only, or `weigh` does that too */
    fb_weighing_encoder *weigh; /* NULL: importance means nothing to it */
} format_row;

#define NONE_ENCODERS(name) NULL, NULL
#define PLAIN_ENCODERS(name) fb_encode_##name, NULL
#define FITTED_ENCODERS(name) NULL, fb_encode_##name
#define BOTH_ENCODERS(name) fb_encode_##name, fb_weigh_##name
enum { NONE_ENCODES = 0, PLAIN_ENCODES = 1, FITTED_ENCODES = 1, BOTH_ENCODES = 1 };
#define FORMAT(NAME, name, number, block, bytes, file_type, encoders) \
    {{#NAME, number, block, bytes, file_type, 1, encoders##_ENCODES}, fb_decode_##name, encoders##_ENCODERS(name)},
#define TYPE(NAME, number, block, bytes, file_type) {{#NAME, number, block, bytes, file_type, 0, 0}, NULL, NULL, NULL},
static const format_row rows_of_table[] = {FB_FORMATS(FORMAT) FB_OTHER_TYPES(TYPE)};
enum { N_ROWS = sizeof rows_of_table / sizeof *rows_of_table };

const fb_format *fb_format_at(int32_t i) { return i >= 0 && i < N_ROWS ? &rows_of_table[i].format : NULL; }

static const format_row *find(int32_t type) {
    for (int i = 0; i < N_ROWS; i++) {
        if (rows_of_table[i].format.type == type) {
            return &rows_of_table[i];
        }
    }
    return NULL;
}

const fb_format *fb_format_get(int32_t type) {
    const format_row *row = find(type);
    return row && row->decode ? &row->format : NULL;
}

uint64_t fb_type_bytes(int32_t type, int64_t n) {
    const format_row *row = find(type);
    return row ? (uint64_t)(n / row->format.block) * (uint64_t)row->format.block_bytes : 0;
}

int fb_decode(int32_t type, const void *src, uint64_t src_bytes, float *dst, int64_t n) {
    const format_row *row = find(type);
    if (!row || !row->decode) {
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
