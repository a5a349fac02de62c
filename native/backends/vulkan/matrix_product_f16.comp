/* matrix_product_f16.comp - the same for units that multiply F16; native/spirv.py leaves the type as it is written. */
#include "matrix_product.kernel"
