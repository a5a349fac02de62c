/* products.h - LINEAR, LINEAR_DX and LINEAR_DW as one product out (m, n) = a (m, k) b (k, n), in which the weight stays
 * in its blocks and is decoded panel by panel.
 *
 * The reduction is cut into stretches of about KC steps; those of the low-rank term are a few stretches more. a is packed once,
 * by all threads, into tiles of MR rows: [stretch][tile][k][MR]. Then each item of work is a block of rows times a panel
 * of columns: for every stretch the panel is decoded to [column/NR][k][NR], small enough to stay in L2, and a register
 * tile of MR x NR sums runs over all rows. Sums of an item live in its thread's scratch until the reduction is through.
 * With 16-bit products a packed element is a pair of bf16 along k, so "unit" below is what fills 32 bits: one k in f32,
 * two in bf16. */
#ifndef FB_CPU_PRODUCTS_H
#define FB_CPU_PRODUCTS_H
#include "rows.h"

enum {
    WIDE = 128,                 /* most columns of a panel, which are whole blocks of 32 */
    KC = 256, MOST_KC = 320,    /* steps of a stretch: whole blocks of 32 */
    BLOCK_TILES = 48,           /* most row tiles of an item */
    DECODED_ROWS = 30,          /* decoding a panel takes as long as multiplying so many rows by it */
    FEW = 8,                    /* rows up to which weights are streamed once instead */
    OUTPUTS = 64,               /* that are then an item */
    BUF_FLOATS = VW * MOST_KC     /* decoded stretches of the rows that are packed crosswise together */
};

typedef struct product {
    int64_t m, n, k, rank;
    const fb_view *a, *b; /* the operands */
    int a_rows;           /* 1: a is (m, k); 0: a is (k, m), rows along the reduction */
    int b_rows;           /* 1: b is (n, k); 0: b is (k, n) */
    const fb_view *u, *low, *bias, *acc, *out; /* u (m, rank) and low, laid out as b */
    const int32_t *order; /* of experts: the slots that are the rows of a, out, acc and u, or those along the reduction; else NULL */
    int32_t slots, token;
    float scale;
    int bf16;
    int64_t stretch;
    int64_t tiles, stretches, low_stretches, tile_floats; /* of packed a; packing may spill a vector past a tile's end */
    int64_t panel, panels, blocks, block_tiles;
} product;

static inline int is_16bit(const fb_view *v) { return fb_has(v) && v->type == FB_BF16; }
static inline int64_t units_of(int bf16, int64_t n) { return bf16 ? (n + 1) / 2 : n; }

/* Panels and blocks of rows that keep so many threads busy alike. Sums do not depend on them. */
static void part_product(product *p, int threads) {
    int64_t best = INT64_MAX;
    for (int64_t panel = p->bf16 ? WIDE : WIDE / 2; panel >= 32; panel -= 32) {
        if (panel % NR) continue;
        const int64_t panels = (p->n + panel - 1) / panel, least = (p->tiles + BLOCK_TILES - 1) / BLOCK_TILES;
        for (int64_t blocks = least; blocks <= at_most(least + threads, p->tiles); blocks++) {
            const int64_t tiles = (p->tiles + blocks - 1) / blocks, turns = (panels * blocks + threads - 1) / threads;
            const int64_t time = turns * panel * (tiles * MR + DECODED_ROWS);
            if (time >= best) continue;
            best = time;
            p->panel = panel, p->panels = panels, p->blocks = blocks, p->block_tiles = tiles;
        }
    }
}

/* What follows from the operands and sizes. */
static void shape_product(product *p) {
    if (p->bias && !fb_has(p->bias)) p->bias = NULL;
    if (p->acc && !fb_has(p->acc)) p->acc = NULL;
    if (p->u && !fb_has(p->u)) p->u = NULL;
#ifdef FB_SIMD_DP
    p->bf16 = is_16bit(p->a) || is_16bit(p->out) || (!p->a_rows && is_16bit(p->b));
#endif
    p->tiles = (p->m + MR - 1) / MR;
    if (!p->a_rows) p->stretch = at_most(round_up(p->k, 32), KC); /* rows of a feed: fewer take no more scratch */
    else {
        p->stretches = p->k % KC ? (p->k + MOST_KC - 1) / MOST_KC : p->k / KC;
        p->stretch = round_up((p->k + p->stretches - 1) / p->stretches, 32);
    }
    p->stretches = (p->k + p->stretch - 1) / p->stretch;
    p->low_stretches = (p->rank + KC - 1) / KC;
    p->tile_floats = round_up(units_of(p->bf16, p->rank > p->stretch ? MOST_KC : p->stretch) * MR + VW, 16);
}

static product product_of(const fb_launch *l, int threads) {
    const fb_view *v = l->v;
    product p = {.a = &v[1], .b = &v[2], .out = &v[0], .scale = l->attr.scale, .m = v[0].rows, .n = v[0].cols};
    if (l->op == FB_OP_LINEAR) {
        p.a_rows = p.b_rows = 1;
        p.k = v[1].cols;
        p.bias = &v[3], p.u = &v[4], p.low = &v[5], p.acc = &v[6];
    } else if (l->op == FB_OP_LINEAR_DX) {
        p.a_rows = 1;
        p.k = v[1].cols;
        p.u = &v[3], p.low = &v[4], p.acc = &v[5];
    } else {
        p.k = v[1].rows;
        p.acc = &v[0];
    }
    if (p.u && fb_has(p.u)) p.rank = p.u->cols;
    shape_product(&p);
    part_product(&p, threads);
    return p;
}

/* Which rows of an operand are meant: those of a list of slots, `cols` columns for each, or for all that a row has. */
typedef struct listed {
    const int32_t *order; /* NULL: the operand's own rows */
    int32_t slots, token;
    int64_t cols;
} listed;

static inline listed listed_of(const product *p, int64_t cols) { return (listed){p->order, p->slots, p->token, cols}; }

static inline char *listed_row(const fb_view *v, const listed *l, int64_t r) {
    if (!l->order) return fb_row(v, r);
    const int32_t slot = l->order[r];
    return fb_row(v, slot / l->slots - l->token) + fb_type_bytes(v->type, v->cols == l->cols ? 0 : slot % l->slots * l->cols);
}

/* ---- packing ---- */

/* to[unit * stride + lane] from n elements of VW rows; a last odd one is paired with 0. */
static inline __attribute__((always_inline)) void across(float *to, int stride, const char *const *src, int32_t type,
                                                         int64_t n, int bf16) {
    const int step = bf16 ? 2 * VW : VW, size = type == FB_F32 ? 4 : 2;
    for (int64_t k = 0; k < n; k += step, to += VW * stride) {
        const int64_t left = units_of(bf16, at_most(n - k, step));
        char rest[VW][2 * VW * 4];
        vf x[VW];
        if (k + step > n) {
            memset(rest, 0, sizeof rest);
            for (int i = 0; i < VW; i++) memcpy(rest[i], src[i] + k * size, (size_t)((n - k) * size));
        }
        _Pragma("GCC unroll 16") for (int i = 0; i < VW; i++) {
            const char *row = k + step > n ? rest[i] : src[i] + k * size;
            if (bf16 && type == FB_BF16) memcpy(&x[i], row, sizeof x[i]);
            else if (bf16) x[i] = v_pairs(a_load(row, type, 0, VW), a_load(row, type, VW, VW));
            else x[i] = a_load(row, type, 0, VW);
        }
        v_transpose(x);
        _Pragma("GCC unroll 16") for (int i = 0; i < VW; i++)
            if (i < left) v_store(to + i * stride, x[i]);
    }
}

/* dst[unit * stride + lane] from `rows` rows, elements k0 .. k0 + n of each; lanes beyond the rows hold what nobody reads.
 * A vector may spill past `lanes` into the next unit, which is written later: the last group of lanes goes first. */
static void pack_across(float *dst, int stride, int lanes, const fb_view *v, int64_t r0, int64_t rows, int64_t k0,
                        int64_t n, int bf16, float *buf, listed l) {
    const int plain = v->type == FB_F32 || v->type == FB_BF16;
    const int64_t bytes = (int64_t)fb_type_bytes(v->type, v->ld), skip = (int64_t)fb_type_bytes(v->type, k0);
    const char *first = fb_row(v, l.order ? 0 : r0);
    for (int g = (lanes - 1) / VW * VW; g >= 0; g -= VW) {
        const char *src[VW];
        for (int i = 0; i < VW; i++) {
            const int64_t r = at_most(g + i, rows - 1);
            const char *row = l.order ? listed_row(v, &l, r0 + r) : first + r * bytes;
            src[i] = plain ? row + skip : (const char *)(buf + i * MOST_KC);
            if (plain || g + i >= rows) continue;
            for (int64_t b = 0; b < n; b += 64) __builtin_prefetch(row + VW * bytes + skip + b);
            decode(v->type, row, k0, n, buf + i * MOST_KC);
        }
        if (v->type == FB_BF16) {
            if (bf16) across(dst + g, stride, src, FB_BF16, n, 1);
            else across(dst + g, stride, src, FB_BF16, n, 0);
        } else if (bf16) across(dst + g, stride, src, FB_F32, n, 1);
        else across(dst + g, stride, src, FB_F32, n, 0);
    }
}

/* One unit a lane out of two rows of the reduction, columns c .. of `left`. */
static inline __attribute__((always_inline)) vf weave(const char *even, const char *odd, int32_t type, int64_t c,
                                                      int64_t left, int bf16) {
    if (!bf16) return a_load(even, type, c, left);
    if (type == FB_BF16 && left >= VW) return v_weave_bf16(even + 2 * c, odd + 2 * c);
    return v_weave(a_load(even, type, c, left), a_load(odd, type, c, left));
}

static inline __attribute__((always_inline)) void along(float *dst, int width, int64_t apart, int lanes, const char *even,
                                                        const char *odd, int32_t type, int64_t cols, int bf16) {
    for (int g = 0, c = 0; g < lanes; g += width, dst += apart)
        for (int i = 0; i < width; i += VW, c += VW)
            v_store(dst + i, c < cols ? weave(even, odd, type, c, cols - c, bf16) : v_set(0));
}

/* The same from rows that lie along the reduction: unit u is row k0 + u (or rows k0 + 2u, k0 + 2u + 1), columns c0 .. ;
 * lanes are parted into groups of `width`, each `apart` floats from the one before. `cols` may go on past the lanes, so
 * that vectors are whole: what is beyond is written over, as above. */
static void pack_along(float *dst, int width, int64_t apart, int lanes, const fb_view *v, int64_t k0, int64_t n,
                       int64_t c0, int64_t cols, int bf16, listed l) {
    static const char zeros[(WIDE + VW) * 4];
    float buf[2][WIDE + VW];
    const int64_t bytes = (int64_t)fb_type_bytes(v->type, v->ld);
    const int plain = v->type == FB_F32 || v->type == FB_BF16, pair = bf16 ? 2 : 1;
    const char *row = fb_row(v, l.order ? 0 : k0), *end;
    cols = at_most(cols, round_up(lanes, VW));
    row += fb_type_bytes(v->type, plain && !l.order ? c0 : 0);
    const int64_t skip = (int64_t)fb_type_bytes(v->type, c0), size = (int64_t)fb_type_bytes(v->type, cols);
    for (end = row + n * bytes; row < end; row += pair * bytes, dst += width) {
        const char *even = row, *odd = row + bytes < end ? row + bytes : zeros;
        if (l.order) {
            const int64_t k = k0 + n - (end - row) / bytes;
            even = listed_row(v, &l, k) + skip;
            if (odd != zeros) odd = listed_row(v, &l, k + 1) + skip;
        }
        if (!plain) {
            for (int i = 0; i < pair; i++)
                for (int64_t b = 0; b < size; b += 64) __builtin_prefetch(row + (16 + i) * bytes + skip + b);
            decode(v->type, row, c0, cols, buf[0]);
            even = (const char *)buf[0];
            if (bf16 && odd != zeros) {
                decode(v->type, odd, c0, cols, buf[1]);
                odd = (const char *)buf[1];
            }
        }
        if (v->type == FB_BF16) {
            if (bf16) along(dst, width, apart, lanes, even, odd, FB_BF16, cols, 1);
            else along(dst, width, apart, lanes, even, odd, FB_BF16, cols, 0);
        } else if (bf16) along(dst, width, apart, lanes, even, odd, FB_F32, cols, 1);
        else along(dst, width, apart, lanes, even, odd, FB_F32, cols, 0);
    }
}

static inline float *packed_tile(const product *p, float *packed, int64_t stretch, int64_t tile) {
    return packed + (stretch * p->tiles + tile) * p->tile_floats;
}

/* A stretch of a tile's rows; those of u come after those of a. */
static void pack_a(const product *p, float *dst, int64_t s, int64_t tile, float *buf) {
    const int64_t r0 = tile * MR, rows = at_most(p->m - r0, MR), k = s * p->stretch, low = (s - p->stretches) * KC;
    if (s >= p->stretches) pack_across(dst, MR, MR, p->u, r0, rows, low, at_most(p->rank - low, KC), p->bf16, buf, listed_of(p, p->rank));
    else if (p->a_rows) pack_across(dst, MR, MR, p->a, r0, rows, k, at_most(p->k - k, p->stretch), p->bf16, buf, listed_of(p, p->k));
    else pack_along(dst, MR, 0, MR, p->a, k, at_most(p->k - k, p->stretch), r0, p->m - r0, p->bf16, listed_of(p, p->m));
}

static void pack_b(const product *p, float *panel, const fb_view *v, int64_t k, int64_t n, int64_t c0, float *buf) {
    const int64_t units = units_of(p->bf16, n), cols = at_most(p->n - c0, p->panel);
    const listed own = {0}, slots = listed_of(p, p->n);
    if (!p->b_rows) pack_along(panel, NR, units * NR, (int)round_up(cols, NR), v, k, n, c0, cols, p->bf16, p->a_rows ? own : slots);
    else
        for (int64_t g = 0; g < cols; g += NR, panel += units * NR)
            pack_across(panel, NR, NR, v, c0 + g, at_most(cols - g, NR), k, n, p->bf16, buf, own);
}

/* ---- the register tile ---- */

/* gcc's scheduler on ARM hoists the broadcasts until sums spill. */
#if defined(__aarch64__) && !defined(__clang__)
#define TILE_ATTRIBUTES __attribute__((noinline, optimize("no-schedule-insns")))
#else
#define TILE_ATTRIBUTES __attribute__((noinline))
#endif

/* c[MR][NR] (+)= sum over units of a[unit][MR] b[unit][NR], of which the first `VECTORS` vectors of columns. */
#define REGISTER_TILE(NAME, VECTORS, MULTIPLY_ADD)                                                                \
    static TILE_ATTRIBUTES void NAME(int64_t units, const float *restrict a, const float *restrict b,             \
                                     float *restrict c, int add) {                                                \
        vf s[MR][VECTORS];                                                                                        \
        _Pragma("GCC unroll 16") for (int i = 0; i < MR; i++)                                                     \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++)                                             \
                s[i][j] = v_set(0);                                                                               \
        for (int64_t k = 0; k < units; k++, a += MR, b += NR) {                                                   \
            vf y[VECTORS];                                                                                        \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++) y[j] = v_load(b + j * VW);                  \
            _Pragma("GCC unroll 16") for (int i = 0; i < MR; i++) {                                               \
                vf x = v_set(a[i]);                                                                               \
                _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++) s[i][j] = MULTIPLY_ADD(x, y[j], s[i][j]); \
            }                                                                                                     \
        }                                                                                                         \
        _Pragma("GCC unroll 16") for (int i = 0; i < MR; i++)                                                     \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++)                                             \
                v_store(c + i * NR + j * VW, add ? v_load(c + i * NR + j * VW) + s[i][j] : s[i][j]);              \
    }

REGISTER_TILE(tile_f32, NV, v_fma)
REGISTER_TILE(narrow_f32, 1, v_fma)
#if defined(FB_SIMD_DP) && defined(FB_SIMD_NEON)
/* The same by products of 2 x 4 and 4 x 2 matrices: two units of a pair of rows, which zipping the units brings together. */
#define MATRIX_TILE(NAME, VECTORS)                                                                                \
    static TILE_ATTRIBUTES void NAME(int64_t units, const float *restrict a, const float *restrict b,             \
                                     float *restrict c, int add) {                                                \
        static const float zeros[MR] = {0};                                                                       \
        vf s[MR][VECTORS]; /* of rows 2i, 2i + 1: columns 4j and 4j + 1 of both, then 4j + 2 and 4j + 3 */        \
        _Pragma("GCC unroll 16") for (int i = 0; i < MR; i++)                                                     \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++)                                             \
                s[i][j] = v_set(0);                                                                               \
        for (int64_t k = 0; k < units; k += 2, a += 2 * MR, b += 2 * NR) {                                        \
            const float *a2 = k + 1 < units ? a + MR : zeros, *b2 = k + 1 < units ? b + NR : zeros;               \
            vf y[VECTORS][2];                                                                                     \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++)                                             \
                v_zip(v_load(b + j * VW), v_load(b2 + j * VW), y[j]);                                             \
            _Pragma("GCC unroll 4") for (int i = 0; i < MR; i += 4) {                                             \
                vf x[2];                                                                                          \
                v_zip(v_load(a + i), v_load(a2 + i), x);                                                          \
                _Pragma("GCC unroll 2") for (int h = 0; h < 2; h++)                                               \
                    _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++) {                                   \
                        s[i + 2 * h][j] = v_matrix(x[h], y[j][0], s[i + 2 * h][j]);                               \
                        s[i + 2 * h + 1][j] = v_matrix(x[h], y[j][1], s[i + 2 * h + 1][j]);                       \
                    }                                                                                             \
            }                                                                                                     \
        }                                                                                                         \
        _Pragma("GCC unroll 16") for (int i = 0; i < MR; i += 2)                                                  \
            _Pragma("GCC unroll 4") for (int j = 0; j < VECTORS; j++) {                                           \
                float *c0 = c + i * NR + j * VW, *c1 = c0 + NR;                                                   \
                vf row[2];                                                                                        \
                v_zip_pairs(s[i][j], s[i + 1][j], row);                                                           \
                v_store(c0, add ? v_load(c0) + row[0] : row[0]);                                                  \
                v_store(c1, add ? v_load(c1) + row[1] : row[1]);                                                  \
            }                                                                                                     \
    }
MATRIX_TILE(tile_bf16, NV)
MATRIX_TILE(narrow_bf16, 1)
#elif defined(FB_SIMD_DP)
REGISTER_TILE(tile_bf16, NV, v_dot2)
REGISTER_TILE(narrow_bf16, 1, v_dot2)
#else
#define tile_bf16 tile_f32
#define narrow_bf16 narrow_f32
#endif

/* `cols` columns matter: of a pair of low rank, often no more than one vector. */
static inline void tile(int bf16, int64_t cols, int64_t units, const float *a, const float *b, float *c, int add) {
    if (cols <= VW) (bf16 ? narrow_bf16 : narrow_f32)(units, a, b, c, add);
    else (bf16 ? tile_bf16 : tile_f32)(units, a, b, c, add);
}

/* ---- many rows ---- */

static uint64_t item_floats(const product *p) { return (uint64_t)at_most(p->tiles, BLOCK_TILES) * MR * WIDE; }

static uint64_t thread_floats(const product *p) { return item_floats(p) + (uint64_t)MOST_KC * WIDE + BUF_FLOATS; }

/* Writes what an item has summed: row by row, + bias + acc, as the output's type. */
static void product_store(const product *p, const float *sums, int64_t t0, int64_t t1, int64_t c0) {
    const int64_t cols = at_most(p->n - c0, p->panel), apart = (t1 - t0) * MR * NR;
    const float *bias = p->bias ? (const float *)fb_row(p->bias, 0) : NULL;
    const listed own = {0}, l = p->a_rows ? listed_of(p, p->n) : own;
    const uint64_t apart_bytes = fb_type_bytes(p->out->type, p->out->ld) | (p->order ? fb_type_bytes(p->out->type, p->n) : 0);
    const int lines = ((uintptr_t)fb_row(p->out, 0) | apart_bytes) % LINE == 0;
    for (int64_t r = t0 * MR; r < at_most(t1 * MR, p->m); r++) {
        char *y = listed_row(p->out, &l, r);
        const char *acc = p->acc ? listed_row(p->acc, &l, r) : NULL;
        const float *row = sums + (r - t0 * MR) * NR;
        for (int64_t g = 0; g < cols; g += NR, row += apart) {
            vf x[NV];
            for (int j = 0; j < NR && g + j < cols; j += VW) {
                int64_t c = c0 + g + j, left = cols - g - j;
                x[j / VW] = v_load(row + j);
                if (bias) x[j / VW] += a_load(bias, FB_F32, c, left);
                if (acc) x[j / VW] += a_load(acc, p->acc->type, c, left);
            }
            if (lines && g + NR <= cols) a_stream(y, p->out->type, c0 + g, x);
            else
                for (int j = 0; j < NR && g + j < cols; j += VW)
                    a_store(y, p->out->type, c0 + g + j, cols - g - j, x[j / VW]);
        }
    }
    v_fence();
}

/* The pieces of rows that the next stretch will decode: fetched little by little while this one is multiplied. */
typedef struct ahead {
    const char *first;
    int64_t rows, apart, bytes;
} ahead;

static ahead look_ahead(const product *p, int64_t stretch, int64_t c0) {
    if (stretch >= p->stretches) return (ahead){0};
    const int64_t k = stretch * p->stretch, steps = at_most(p->k - k, p->stretch), cols = at_most(p->n - c0, p->panel);
    const int64_t row = p->b_rows ? c0 : k, from = p->b_rows ? k : c0;
    return (ahead){.first = fb_row(p->b, row) + fb_type_bytes(p->b->type, from), .rows = p->b_rows ? cols : steps,
                   .apart = (int64_t)fb_type_bytes(p->b->type, p->b->ld),
                   .bytes = (int64_t)fb_type_bytes(p->b->type, p->b_rows ? steps : cols)};
}

static inline void fetch(const ahead *next, int64_t part, int64_t parts) {
    for (int64_t r = next->rows * part / parts; r < next->rows * (part + 1) / parts; r++)
        for (int64_t b = 0; b < next->bytes; b += 64) __builtin_prefetch(next->first + r * next->apart + b, 0, 2);
}

/* Adds a stretch of n steps to an item's sums, which lie as [column/NR][row][NR]; packed are its tiles from t0 on. */
static void product_stretch(const product *p, const float *packed, int64_t stretch, int64_t n, const float *panel, float *sums,
                            int64_t t0, int64_t t1, int64_t c0, int64_t cols) {
    const int64_t units = units_of(p->bf16, n), parts = (cols + NR - 1) / NR * (t1 - t0);
    const ahead next = look_ahead(p, stretch + 1, c0);
    for (int64_t c = 0, part = 0; c < cols; c += NR, panel += units * NR)
        for (int64_t t = t0; t < t1; t++, part++, sums += MR * NR) {
            fetch(&next, part, parts);
            tile(p->bf16, cols - c, units, packed + (t - t0) * p->tile_floats, panel, sums, stretch > 0);
        }
}

static void product_item(const product *p, float *packed, int64_t item, float *mine) {
    float *sums = mine, *panel = sums + item_floats(p), *buf = panel + MOST_KC * WIDE;
    const int64_t c0 = item % p->panels * p->panel, t0 = item / p->panels * p->block_tiles;
    const int64_t t1 = at_most(t0 + p->block_tiles, p->tiles), cols = at_most(p->n - c0, p->panel);
    const int64_t floats = (t1 - t0) * MR * round_up(cols, NR);
    if (t0 >= t1) return;
    for (int64_t s = 0; s < p->stretches + p->low_stretches; s++) {
        const int64_t low = s - p->stretches, k = low < 0 ? s * p->stretch : low * KC;
        const int64_t n = low < 0 ? at_most(p->k - k, p->stretch) : at_most(p->rank - k, KC);
        if (low == 0 && p->scale != 1.0f)
            for (int64_t i = 0; i < floats; i += VW) v_store(sums + i, p->scale * v_load(sums + i));
        for (int64_t t = t0; t < t1 && p->order; t++) pack_a(p, packed + (t - t0) * p->tile_floats, s, t, buf);
        pack_b(p, panel, low < 0 ? p->b : p->low, k, n, c0, buf);
        product_stretch(p, p->order ? packed : packed_tile(p, packed, s, t0), s, n, panel, sums, t0, t1, c0, cols);
    }
    if (!p->low_stretches && p->scale != 1.0f)
        for (int64_t i = 0; i < floats; i += VW) v_store(sums + i, p->scale * v_load(sums + i));
    product_store(p, sums, t0, t1, c0);
}

static uint64_t packed_floats(const product *p) {
    return (uint64_t)(p->stretches + p->low_stretches) * (uint64_t)(p->tiles * p->tile_floats);
}

static void run_product(fb_worker *w, const product *p, char *scratch) {
    float *packed = (float *)scratch, *mine = packed + packed_floats(p) + (uint64_t)w->index * thread_floats(p);
    for (int64_t i; (i = fb_next(w)) < p->tiles;)
        for (int64_t s = 0; s < p->stretches + p->low_stretches; s++) pack_a(p, packed_tile(p, packed, s, i), s, i, mine);
    fb_sync(w);
    for (int64_t i; (i = fb_next(w)) < p->blocks * p->panels;) product_item(p, packed, i, mine);
}

/* ---- few rows: decoding, where reading the weights is all the time there is ---- */

/* sum[0..nt) += x[t] . w over n elements, x rows `ld` apart; nt is a constant where this is inlined. */
static inline __attribute__((always_inline)) void dots(const float *w, const float *x, int64_t ld, int64_t n, int nt,
                                                       vf *sum) {
    for (int64_t k = 0; k + VW <= n; k += VW) {
        vf a = v_load(w + k);
        for (int t = 0; t < nt; t++) sum[t] = v_fma(a, v_load(x + t * ld + k), sum[t]);
    }
    if (n % VW) {
        int64_t k = n / VW * VW;
        vf a = a_load(w, FB_F32, k, n - k);
        for (int t = 0; t < nt; t++) sum[t] = v_fma(a, a_load(x + t * ld, FB_F32, k, n - k), sum[t]);
    }
}

/* y[t * OUTPUTS] = x[t] . row of a weight, for as many rows of x as are few: x has FEW of them. */
typedef void row_dots(const uint8_t *row, int32_t type, int64_t n, const float *x, int64_t rows, float *y);

static void dots_plain(const uint8_t *row, int32_t type, int64_t n, const float *x, int64_t rows, float *y) {
    float buf[KC];
    vf sum[FEW];
    for (int t = 0; t < FEW; t++) sum[t] = v_set(0);
    for (int64_t k = 0; k < n; k += KC) {
        const int64_t some = at_most(n - k, KC);
        decode(type, (const char *)row, k, some, buf);
        if (rows == 1) dots(buf, x + k, n, some, 1, sum);
        else if (rows <= 2) dots(buf, x + k, n, some, 2, sum);
        else if (rows <= 4) dots(buf, x + k, n, some, 4, sum);
        else dots(buf, x + k, n, some, FEW, sum);
    }
    for (int t = 0; t < rows; t++) y[t * OUTPUTS] = v_sum(sum[t]);
}

/* The same without a buffer between, for formats that look up no grids. Rows are read one after the other, which is what
 * memory is quickest at; for one row of x, shifts by constants pay. */
#define BLOCK_DOTS(NAME, name, number, block, bytes, file_type, encoders)                                             \
    static inline __attribute__((always_inline)) void unit_dots_##name(const uint8_t *row, int g, const float *x,     \
                                                                       int64_t n, const int nt, vf sum[][2]) {        \
        unit u = unit_##name(row, g);                                                                                 \
        for (int t = 0; t < nt; t++)                                                                                  \
            EACH(j) sum[t][j / VW % 2] = v_fma(u.w[j / VW], v_load(x + t * n + j), sum[t][j / VW % 2]);               \
    }                                                                                                                 \
    static inline __attribute__((always_inline)) void some_##name(const uint8_t *row, int64_t n, const float *x,      \
                                                                  int64_t rows, const int nt, float *y) {             \
        vf sum[FEW][2];                                                                                               \
        for (int t = 0; t < nt; t++) sum[t][0] = sum[t][1] = v_set(0);                                                \
        for (int64_t b = n / block; b; b--, row += bytes)                                                             \
            if (nt > 1)                                                                                               \
                _Pragma("GCC unroll 1") for (int g = 0; g < block / 32; g++, x += 32)                                 \
                    unit_dots_##name(row, g, x, n, nt, sum);                                                          \
            else                                                                                                      \
                _Pragma("GCC unroll 8") for (int g = 0; g < block / 32; g++, x += 32)                                 \
                    unit_dots_##name(row, g, x, n, nt, sum);                                                          \
        for (int t = 0; t < nt && t < rows; t++) y[t * OUTPUTS] = v_sum(sum[t][0] + sum[t][1]);                       \
    }                                                                                                                 \
    static void dots_##name(const uint8_t *row, int32_t type, int64_t n, const float *x, int64_t rows, float *y) {    \
        (void)type;                                                                                                   \
        if (rows == 1) some_##name(row, n, x, rows, 1, y);                                                            \
        else if (rows <= 4) some_##name(row, n, x, rows, 4, y);                                                       \
        else some_##name(row, n, x, rows, FEW, y);                                                                    \
    }
FB_CODE_FORMATS(BLOCK_DOTS)
#undef BLOCK_DOTS

static row_dots *row_dots_of(int32_t type) {
    switch (type) {
#define CASE(NAME, name, number, block, bytes, file_type, encoders) \
    case FB_##NAME: return dots_##name;
        FB_CODE_FORMATS(CASE)
#undef CASE
    default: return dots_plain;
    }
}

/* Every thread decodes the rows for itself: they are few, and meeting would take longer. */
static void few_rows(const product *p, float *x) {
    const listed l = listed_of(p, p->k), low = listed_of(p, p->rank);
    float *u = x + FEW * p->k;
    memset(x, 0, sizeof *x * (size_t)(FEW * (p->k + p->rank)));
    for (int64_t t = 0; t < p->m; t++) {
        decode(p->a->type, listed_row(p->a, &l, t), 0, p->k, x + t * p->k);
        if (p->u) decode(p->u->type, listed_row(p->u, &low, t), 0, p->rank, u + t * p->rank);
    }
}

static void few_item(const product *p, const float *x, int64_t c0) {
    const float *u = x + FEW * p->k;
    const int64_t cols = at_most(OUTPUTS, p->n - c0);
    float y[FEW][OUTPUTS], low[FEW][OUTPUTS];
    row_dots *const dots_of_row = row_dots_of(p->b->type);
    const listed l = listed_of(p, p->n);
    for (int64_t c = 0; c < cols; c++) {
        dots_of_row((const uint8_t *)fb_row(p->b, c0 + c), p->b->type, p->k, x, p->m, y[0] + c);
        if (p->u) dots_plain((const uint8_t *)fb_row(p->low, c0 + c), p->low->type, p->rank, u, p->m, low[0] + c);
    }
    for (int64_t t = 0; t < p->m; t++) {
        char *to = listed_row(p->out, &l, t);
        const char *acc = p->acc ? listed_row(p->acc, &l, t) : NULL;
        for (int64_t c = 0; c < cols; c += VW) {
            vf sum = p->scale * a_load(y[t], FB_F32, c, cols - c);
            if (p->u) sum += a_load(low[t], FB_F32, c, cols - c);
            if (p->bias) sum += a_load(fb_row(p->bias, 0), FB_F32, c0 + c, cols - c);
            if (acc) sum += a_load(acc, p->acc->type, c0 + c, cols - c);
            a_store(to, p->out->type, c0 + c, cols - c, sum);
        }
    }
}

static void run_few(fb_worker *w, const product *p, char *scratch) {
    float *x = (float *)scratch + (int64_t)w->index * FEW * (p->k + p->rank);
    few_rows(p, x);
    for (int64_t c0; (c0 = fb_next(w) * OUTPUTS) < p->n;) few_item(p, x, c0);
}

static inline int is_few(const product *p) { return p->b_rows && p->m <= FEW; }

static uint64_t product_scratch(const fb_launch *l, int threads) {
    product p = product_of(l, threads);
    uint64_t few = (uint64_t)threads * FEW * (uint64_t)(p.k + p.rank) * 4; /* a feed may have fewer rows than it was planned for */
    uint64_t most = 0;
    if (!is_few(&p)) most = (packed_floats(&p) + (uint64_t)threads * thread_floats(&p)) * 4;
    return most > few ? most : few;
}

static void run_linear(fb_worker *w, const fb_launch *l, char *scratch) {
    product p = product_of(l, w->count);
    if (is_few(&p)) run_few(w, &p, scratch);
    else run_product(w, &p, scratch);
}

/* ---- experts: a product each, of the rows that chose it ---- */

/* That of the e-th one here; `own` holds what is its own of w, of the pair and of the bias. No rows: m or k is 0. */
static product expert_of(const fb_launch *l, int64_t e, fb_view own[3]) {
    const fb_view *v = l->v, none = {0};
    const int forward = l->op == FB_OP_EXPERTS, dw = l->op == FB_OP_EXPERTS_DW;
    const int32_t slots = l->attr.slots, token = l->attr.token, *order = (const int32_t *)fb_row(&v[3], 0);
    const int64_t each = v[!forward].cols / slots, at = l->attr.first + e;
    int32_t from = order[at], to = order[at + 1];
    while (from < to && order[from] / slots < token) from++;
    while (from < to && order[to - 1] / slots >= token + v[1].rows) to--;
    product p = {.a = &v[1], .scale = l->attr.scale, .a_rows = !dw, .b_rows = forward, .order = order + from, .slots = slots, .token = token};
    own[0] = dw ? v[0] : v[2], own[1] = own[2] = none;
    own[0].offset += fb_type_bytes(own[0].type, e * each * own[0].ld);
    own[0].rows = (int32_t)each;
    if (dw) p.m = each, p.n = v[0].cols, p.k = to - from, p.b = &v[2], p.out = p.acc = &own[0];
    else {
        const fb_view *low = forward ? &v[6] : &v[5];
        p.m = to - from, p.n = forward ? each : own[0].cols, p.k = forward ? own[0].cols : each;
        p.b = &own[0], p.out = &v[0], p.u = forward ? &v[5] : &v[4], p.acc = forward ? NULL : &v[6];
        if (fb_has(p.u)) {
            p.rank = p.u->cols / slots;
            own[1] = *low, own[1].rows = (int32_t)(forward ? each : p.rank);
            own[1].offset += fb_type_bytes(low->type, at * own[1].rows * low->ld);
        }
        if (forward && fb_has(&v[4])) own[2] = v[4], own[2].rows = 1, own[2].offset += fb_type_bytes(FB_F32, at * v[4].ld);
        p.low = &own[1], p.bias = &own[2];
    }
    if (!p.m || !p.k) return p;
    shape_product(&p);
    for (p.panel = p.bf16 ? WIDE : WIDE / 2; p.panel % NR;) p.panel -= 32;
    p.panels = (p.n + p.panel - 1) / p.panel;
    p.blocks = (p.tiles + BLOCK_TILES - 1) / BLOCK_TILES;
    p.block_tiles = (p.tiles + p.blocks - 1) / p.blocks;
    return p;
}

/* Of a thread: sums of an item, panels, packed rows; or few whole ones. */
static int64_t expert_floats(const fb_launch *l) {
    const fb_view *v = l->v;
    const int64_t items = (int64_t)BLOCK_TILES * MR * WIDE + (int64_t)MOST_KC * WIDE + BUF_FLOATS + BLOCK_TILES * round_up(MOST_KC * MR + VW, 16);
    const int64_t few = l->op == FB_OP_EXPERTS ? round_up(FEW * (v[2].cols + (fb_has(&v[5]) ? v[5].cols / l->attr.slots : 0)), 16) : 0;
    return items > few ? items : few;
}
static uint64_t expert_scratch(const fb_launch *l, int threads) { return (uint64_t)threads * (uint64_t)expert_floats(l) * 4; }

static void run_experts(fb_worker *w, const fb_launch *l, char *scratch) {
    const int dw = l->op == FB_OP_EXPERTS_DW, forward = l->op == FB_OP_EXPERTS;
    const int64_t experts = (dw ? l->v[0] : l->v[2]).rows / (l->v[!forward].cols / l->attr.slots);
    float *mine = (float *)scratch + w->index * expert_floats(l);
    fb_view own[3];
    for (int64_t e = 0, before = 0, i = fb_next(w); e < experts; e++) {
        const product p = expert_of(l, e, own);
        if (!p.m || !p.k) continue;
        const int64_t items = is_few(&p) ? (p.n + OUTPUTS - 1) / OUTPUTS : p.panels * p.blocks;
        if (is_few(&p) && i < before + items) few_rows(&p, mine);
        for (; i < before + items; i = fb_next(w)) {
            if (is_few(&p)) few_item(&p, mine, (i - before) * OUTPUTS);
            else product_item(&p, mine + thread_floats(&p), i - before, mine);
        }
        before += items;
    }
}
#endif
