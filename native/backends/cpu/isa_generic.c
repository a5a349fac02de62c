/* isa_generic.c - the kernels for any processor: vectors of four that the compiler maps to what it was told to expect. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#endif
#include "kernels.h"

FB_KERNELS(generic)
