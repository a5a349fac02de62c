/* spirv.c - the portable kernels as SPIR-V: numbers made by tools/spirv.py, so that building needs no shader compiler. */
#include "kernels.h"
#include "spirv.inc"
