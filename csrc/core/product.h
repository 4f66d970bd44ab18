/* c [batch, m, n] = a [batch, m, k] · b [batch, k, n] on the pool, tiled as the engine tiles its own products. */
#ifndef CLEW_PRODUCT_H
#define CLEW_PRODUCT_H

#include <stdbool.h>
#include <stddef.h>

struct clew_cancel;

/* Strides in elements: of the batch, of rows, of columns. */
typedef struct clew_product_shape {
  size_t batch, m, n, k;
  ptrdiff_t c[3], a[3], b[3];
} clew_product_shape;

/* False when cancelled. Operands lie in slabs; the caller has checked shapes and strides. */
bool clew_product_f32(float *c, const float *a, const float *b, const clew_product_shape *shape,
                      struct clew_cancel *cancel);
bool clew_product_f64(double *c, const double *a, const double *b, const clew_product_shape *shape,
                      struct clew_cancel *cancel);

#endif
