/* spirv.c - the kernels as SPIR-V: numbers that native/spirv.py makes when the core is built; none without a compiler. */
#include "kernels.h"
#include "spirv.inc"
