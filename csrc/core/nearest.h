/* The k rows of a matrix that are nearest to each of some vectors, without the matrix of all scores.
 *
 * A task multiplies a block of vectors by a block of rows into a tile of scratch and keeps, for each vector and each
 * metric, the best k and a few more: several metrics share the products, and each finds the same bits as alone. Those
 * are scored again in double at the end, so that what is returned does not depend on how the products were cut, and a
 * distance loses nothing by cancellation. Blocks are cut by shape: the same bits for any number of threads. Memory: a
 * tile a thread, and (k + CLEW_NEAREST_MORE) pairs a vector, segment and metric. */
#ifndef CLEW_NEAREST_H
#define CLEW_NEAREST_H

#include <stddef.h>
#include <stdint.h>

#include "clew.h"

#define CLEW_NEAREST_MORE ((size_t)8)

typedef enum clew_metric {
  CLEW_METRIC_DOT,    /* x · w, the largest first */
  CLEW_METRIC_COSINE, /* x · w / (‖x‖ ‖w‖), the largest first; 0 where either is 0 */
  CLEW_METRIC_L2,     /* ‖x − w‖, the smallest first */
  CLEW_N_METRICS
} clew_metric;

/* Strides in elements, of rows and of columns: positive; one of w's is 1. */
typedef struct clew_nearest_shape {
  size_t n, n_rows, d, k; /* 1 ≤ k ≤ n_rows ≤ INT32_MAX */
  ptrdiff_t x[2], w[2];
} clew_nearest_shape;

struct clew_cancel;

/* ids, scores: [n_metrics, n, k], best first, of equal scores the smaller id; x: [n, d]; w: [n_rows, d]; x and w lie in
 * slabs; metrics: [n_metrics], 1 to CLEW_N_METRICS of them.
 * CLEW_ERROR_VALUE where a vector has fewer than k scores that are numbers. */
#define CLEW_DECLARE_NEAREST(suffix, real)                                                                             \
  clew_status clew_nearest##suffix(int32_t *ids, double *scores, const real *x, const real *w,                         \
                                   const clew_nearest_shape *shape, const clew_metric *metrics, size_t n_metrics,      \
                                   struct clew_cancel *cancel, clew_error *err);

CLEW_DECLARE_NEAREST(_f32, float)
CLEW_DECLARE_NEAREST(_f64, double)

#endif
