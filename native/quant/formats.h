/* formats.h - every tensor type of GGUF, a row each: the only list of them, which the core, Python and the kernels of every
 * dialect read. What a row cannot say is its functions: a decoder in this folder, one in backends/cpu/decode.h, one in
 * kernels/blocks.prelude, and an encoder here where there is one.
 *
 *   FORMAT(NAME, name, number, elements of a block, bytes of a block, file type, encoders)
 *
 * The number is GGUF's; the file type is general.file_type of a file of such tensors, -1 where only mixes have one. Encoders:
 * NONE; PLAIN, which has no choice; FITTED, which weighs errors by importance where that is given; BOTH, as PLAIN without. */
#ifndef FB_FORMATS_H
#define FB_FORMATS_H

#define FB_PLAIN_FORMATS(FORMAT) \
    FORMAT(F32, f32, 0, 1, 4, 0, PLAIN) \
    FORMAT(F16, f16, 1, 1, 2, 1, PLAIN) \
    FORMAT(BF16, bf16, 30, 1, 2, 32, PLAIN)

/* In blocks of whole 32s, the unit of decoding: first those whose codes are numbers, or point into a table of 16. */
#define FB_CODE_FORMATS(FORMAT) \
    FORMAT(Q4_0, q4_0, 2, 32, 18, 2, BOTH) \
    FORMAT(Q4_1, q4_1, 3, 32, 20, 3, BOTH) \
    FORMAT(Q5_0, q5_0, 6, 32, 22, 8, BOTH) \
    FORMAT(Q5_1, q5_1, 7, 32, 24, 9, BOTH) \
    FORMAT(Q8_0, q8_0, 8, 32, 34, 7, PLAIN) \
    FORMAT(Q2_K, q2_k, 10, 256, 84, -1, NONE) \
    FORMAT(Q3_K, q3_k, 11, 256, 110, -1, NONE) \
    FORMAT(Q4_K, q4_k, 12, 256, 144, -1, FITTED) \
    FORMAT(Q5_K, q5_k, 13, 256, 176, -1, FITTED) \
    FORMAT(Q6_K, q6_k, 14, 256, 210, 18, FITTED) \
    FORMAT(IQ4_NL, iq4_nl, 20, 32, 18, 25, NONE) \
    FORMAT(TQ1_0, tq1_0, 34, 256, 54, 36, NONE) \
    FORMAT(TQ2_0, tq2_0, 35, 256, 66, 37, NONE) \
    FORMAT(MXFP4, mxfp4, 39, 32, 17, 38, NONE) \
    FORMAT(NVFP4, nvfp4, 40, 64, 36, 39, NONE) \
    FORMAT(Q1_0, q1_0, 41, 128, 18, 40, NONE) \
    FORMAT(IQ4_XS, iq4_xs, 23, 256, 136, 30, NONE)

/* Those whose codes point into fb_grids, an array of entries of 16 bits, and where the grid of each begins there. */
#define FB_GRID_FORMATS(FORMAT) \
    FORMAT(IQ2_XXS, iq2_xxs, 16, 256, 66, 19, NONE) \
    FORMAT(IQ2_XS, iq2_xs, 17, 256, 74, 20, NONE) \
    FORMAT(IQ2_S, iq2_s, 22, 256, 82, 28, NONE) \
    FORMAT(IQ3_XXS, iq3_xxs, 18, 256, 98, 23, NONE) \
    FORMAT(IQ3_S, iq3_s, 21, 256, 110, 26, NONE) \
    FORMAT(IQ1_S, iq1_s, 19, 256, 50, 24, NONE) \
    FORMAT(IQ1_M, iq1_m, 29, 256, 56, 31, NONE)
#define FB_GRID_IQ2_XXS 0u
#define FB_GRID_IQ2_XS 256u
#define FB_GRID_IQ2_S 768u
#define FB_GRID_IQ1 1792u
#define FB_GRID_IQ3_XXS 3840u
#define FB_GRID_IQ3_S 4096u
#define FB_GRID_ENTRIES 4608u

#define FB_BLOCK_FORMATS(FORMAT) FB_CODE_FORMATS(FORMAT) FB_GRID_FORMATS(FORMAT)
#define FB_FORMATS(FORMAT) FB_PLAIN_FORMATS(FORMAT) FB_BLOCK_FORMATS(FORMAT)

/* Those that no weights have: integers, F64, and blocks that stock llama.cpp rounds activations to.
 * TYPE(NAME, number, elements of a block, bytes of a block, file type) */
#define FB_OTHER_TYPES(TYPE) \
    TYPE(Q8_1, 9, 32, 40, -1) \
    TYPE(Q8_K, 15, 256, 292, -1) \
    TYPE(I8, 24, 1, 1, -1) \
    TYPE(I16, 25, 1, 2, -1) \
    TYPE(I32, 26, 1, 4, -1) \
    TYPE(I64, 27, 1, 8, -1) \
    TYPE(F64, 28, 1, 8, -1)

#endif
