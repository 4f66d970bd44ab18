/* What the reducers of a stream do with a batch of rows: counts in bins, the greatest values, rows about their means.
 *
 * A task takes a block of columns and goes down all rows, so that what it keeps of its columns stays in the nearest
 * cache, no two tasks write to one place, and results are the same bits for any number of threads. Nothing is
 * allocated. CLEW_ERROR_CANCELLED leaves what is written half done: a caller that wants to go on keeps a copy. */
#ifndef CLEW_REDUCE_H
#define CLEW_REDUCE_H

#include <stddef.h>
#include <stdint.h>

#include "clew.h"

/* Where a place of the greatest values that holds none is: behind every other. Its value is −∞. */
#define CLEW_NOWHERE INT64_MAX

typedef struct clew_top_shape {
  size_t n, d, k;
  ptrdiff_t at[2]; /* strides of `at` in elements, of rows and of columns */
} clew_top_shape;

struct clew_cancel;

/* histogram: counts [d, bins + 3] of each column go up by one for each row: 0 below the first edge, 1 … bins the bins,
 * bins + 1 above the last edge, bins + 2 NaN. A bin holds its lower edge, the last one both. rows: [n, d];
 * edges: [bins + 1], ascending, about equally far apart.
 *
 * top_k: values [d, k] and where [d, k, 2] take the rows that are greater than the least they hold, or equal and
 * earlier (in the first of the two numbers, then in the second); NaN is passed over. A column's items are a heap, the
 * least first; ascending order is one. rows: [n, d]; at: [n, d, 2], where each is.
 *
 * centre: centred [n, d] = rows − mean [0]; mean: [2, d], of sums by pairs in double, and what its rounding left over:
 * the sum of both is the mean of the rows in more digits than one number has; rows: [n, d]. */
#define CLEW_DECLARE_REDUCE(suffix, real)                                                                              \
  clew_status clew_histogram##suffix(int64_t *counts, const real *rows, const double *edges, size_t n, size_t d,       \
                                     size_t bins, struct clew_cancel *cancel, clew_error *err);                        \
  clew_status clew_top_k##suffix(double *values, int64_t *where, const real *rows, const int64_t *at,                  \
                                 const clew_top_shape *shape, struct clew_cancel *cancel, clew_error *err);            \
  clew_status clew_centre##suffix(double *centred, double *mean, const real *rows, size_t n, size_t d,                 \
                                  struct clew_cancel *cancel, clew_error *err);

CLEW_DECLARE_REDUCE(_f32, float)
CLEW_DECLARE_REDUCE(_f64, double)

#endif
