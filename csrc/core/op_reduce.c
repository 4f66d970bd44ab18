/* Batches of rows reduced: bins found by arithmetic and set right, heaps of the greatest, means by pairs. */
#include "reduce.h"

#include <math.h>
#include <stdbool.h>

#include "pool.h"
#include "real.h"

#define BLOCK ((size_t)32)  /* columns of a task: one row of them is two or four cache lines */
#define STRIPE ((size_t)16) /* values that are passed over at once */
#define LEAF ((size_t)32)   /* rows that are summed one after the other */

typedef struct R(block) {
  size_t begin, width; /* columns */
} R(block);

static R(block) R(block_at)(size_t index, size_t d) {
  const size_t begin = index * BLOCK;
  return (R(block)){begin, d - begin < BLOCK ? d - begin : BLOCK};
}

static clew_status R(for_blocks)(clew_task task, void *job, size_t d, clew_cancel *cancel, clew_error *err) {
  if (!clew_pool_for((d + BLOCK - 1) / BLOCK, task, job, clew_pool_threads(), cancel)) {
    return clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
  }
  return CLEW_OK;
}

/* ---- Histogram ------------------------------------------------------------------------------------------------ */

typedef struct R(histogram_job) {
  int64_t *counts;     /* [d, bins + 3] */
  const real *rows;    /* [n, d] */
  const double *edges; /* [bins + 1] */
  size_t n, d, bins;
} R(histogram_job);

/* Arithmetic is one bin off at most where edges are; should they be unequal, the search goes as far as it has to. */
static inline size_t R(bin)(double x, const double *edges, size_t bins, double per) {
  if (!(x >= edges[0] && x <= edges[bins])) {
    return isnan(x) ? bins + 2 : x < edges[0] ? 0 : bins + 1;
  }
  const double guess = (x - edges[0]) * per;
  size_t bin = guess < (double)bins ? (size_t)(ptrdiff_t)guess : bins - 1;
  while (bin > 0 && x < edges[bin]) {
    bin--;
  }
  while (bin + 1 < bins && x >= edges[bin + 1]) {
    bin++;
  }
  return bin + 1;
}

static void R(histogram_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(histogram_job) *job = ctx;
  const R(block) block = R(block_at)(index, job->d);
  const size_t bins = job->bins;
  const double per = (double)bins / (job->edges[bins] - job->edges[0]);
  int64_t *counts = job->counts + block.begin * (bins + 3);
  for (size_t i = 0; i < job->n; i++) {
    const real *row = job->rows + i * job->d + block.begin;
    for (size_t j = 0; j < block.width; j++) {
      counts[j * (bins + 3) + R(bin)((double)row[j], job->edges, bins, per)]++;
    }
  }
}

clew_status R(clew_histogram)(int64_t *counts, const real *rows, const double *edges, size_t n, size_t d, size_t bins,
                              clew_cancel *cancel, clew_error *err) {
  if (bins < 1) {
    return clew_fail(err, CLEW_ERROR_VALUE, "histogram: %zu bins", bins);
  }
  R(histogram_job) job = {.counts = counts, .rows = rows, .edges = edges, .n = n, .d = d, .bins = bins};
  return R(for_blocks)(R(histogram_task), &job, d, cancel, err);
}

/* ---- The greatest --------------------------------------------------------------------------------------------- */

typedef struct R(item) {
  double value;
  int64_t at[2];
} R(item);

typedef struct R(top_job) {
  double *values;    /* [d, k] */
  int64_t *where;    /* [d, k, 2] */
  const real *rows;  /* [n, d] */
  const int64_t *at; /* [n, d, 2] */
  const clew_top_shape *shape;
} R(top_job);

/* Does a make way for b? */
static inline bool R(less)(R(item) a, R(item) b) {
  if (a.value != b.value) {
    return a.value < b.value;
  }
  return a.at[0] != b.at[0] ? a.at[0] > b.at[0] : a.at[1] > b.at[1];
}

static inline R(item) R(item_at)(const double *values, const int64_t *where, size_t i) {
  return (R(item)){values[i], {where[2 * i], where[2 * i + 1]}};
}

static inline void R(put)(double *values, int64_t *where, size_t i, R(item) item) {
  values[i] = item.value, where[2 * i] = item.at[0], where[2 * i + 1] = item.at[1];
}

/* The least goes out of the heap values [k], where [k, 2], and an item comes in. */
static void R(replace)(double *values, int64_t *where, size_t k, R(item) item) {
  size_t hole = 0;
  for (;;) {
    size_t child = 2 * hole + 1;
    if (child >= k) {
      break;
    }
    child += child + 1 < k && R(less)(R(item_at)(values, where, child + 1), R(item_at)(values, where, child));
    const R(item) least = R(item_at)(values, where, child);
    if (!R(less)(least, item)) {
      break;
    }
    R(put)(values, where, hole, least);
    hole = child;
  }
  R(put)(values, where, hole, item);
}

static void R(top_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(top_job) *job = ctx;
  const clew_top_shape *s = job->shape;
  const R(block) block = R(block_at)(index, s->d);
  double *values = job->values + block.begin * s->k;
  int64_t *where = job->where + block.begin * s->k * 2;
  real least[BLOCK]; /* rounded to `real`: what is greater than the least, or equal to it, is not below that */
  for (size_t j = 0; j < block.width; j++) {
    least[j] = (real)values[j * s->k];
  }
  for (size_t i = 0; i < s->n; i++) {
    const real *row = job->rows + i * s->d + block.begin;
    for (size_t begin = 0; begin < block.width; begin += STRIPE) {
      const size_t end = begin + STRIPE < block.width ? begin + STRIPE : block.width;
      if (end - begin == STRIPE) { /* most stripes hold nothing: one look at all of it */
        int any = 0;
        for (size_t j = begin; j < begin + STRIPE; j++) {
          any |= row[j] >= least[j];
        }
        if (!any) {
          continue;
        }
      }
      for (size_t j = begin; j < end; j++) {
        if (!(row[j] >= least[j])) { /* NaN never enters */
          continue;
        }
        const int64_t *at = job->at + (ptrdiff_t)i * s->at[0] + (ptrdiff_t)(block.begin + j) * s->at[1];
        const R(item) item = {(double)row[j], {at[0], at[1]}};
        double *column = values + j * s->k;
        int64_t *places = where + j * s->k * 2;
        if (R(less)(R(item_at)(column, places, 0), item)) {
          R(replace)(column, places, s->k, item);
          least[j] = (real)column[0];
        }
      }
    }
  }
}

clew_status R(clew_top_k)(double *values, int64_t *where, const real *rows, const int64_t *at,
                          const clew_top_shape *shape, clew_cancel *cancel, clew_error *err) {
  if (shape->k < 1) {
    return clew_fail(err, CLEW_ERROR_VALUE, "top_k: k = %zu", shape->k);
  }
  R(top_job) job = {.values = values, .where = where, .rows = rows, .at = at, .shape = shape};
  return R(for_blocks)(R(top_task), &job, shape->d, cancel, err);
}

/* ---- About the mean ------------------------------------------------------------------------------------------- */

typedef struct R(centre_job) {
  double *centred;  /* [n, d] */
  double *mean;     /* [2, d] */
  const real *rows; /* [n, d] */
  size_t n, d;
} R(centre_job);

/* sum: [width], of rows [n, width] that are d apart; by pairs, so that rounding grows with log n only. */
static void R(column_sum)(double *sum, const real *rows, size_t n, size_t d, size_t width) {
  if (n > LEAF) {
    double rest[BLOCK];
    R(column_sum)(sum, rows, n / 2, d, width);
    R(column_sum)(rest, rows + n / 2 * d, n - n / 2, d, width);
    for (size_t j = 0; j < width; j++) {
      sum[j] += rest[j];
    }
    return;
  }
  for (size_t j = 0; j < width; j++) {
    sum[j] = 0;
  }
  for (size_t i = 0; i < n; i++) {
    for (size_t j = 0; j < width; j++) {
      sum[j] += (double)rows[i * d + j];
    }
  }
}

static void R(centre_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(centre_job) *job = ctx;
  const size_t n = job->n, d = job->d;
  const R(block) block = R(block_at)(index, d);
  const real *rows = job->rows + block.begin;
  double *centred = job->centred + block.begin, *mean = job->mean + block.begin, *left = mean + d;
  R(column_sum)(mean, rows, n, d, block.width);
  for (size_t j = 0; j < block.width; j++) {
    mean[j] /= (double)n;
    left[j] = 0;
  }
  for (size_t begin = 0; begin < n; begin += LEAF) {
    const size_t end = begin + LEAF < n ? begin + LEAF : n;
    double part[BLOCK] = {0}; /* of few rows: the same last bits of all rows would round a long sum to one side */
    for (size_t i = begin; i < end; i++) {
#pragma omp simd
      for (size_t j = 0; j < block.width; j++) {
        const double x = (double)rows[i * d + j] - mean[j];
        centred[i * d + j] = x;
        part[j] += x;
      }
    }
    for (size_t j = 0; j < block.width; j++) {
      left[j] += part[j];
    }
  }
  for (size_t j = 0; j < block.width; j++) {
    left[j] = isfinite(left[j]) ? left[j] / (double)n : 0;
  }
}

clew_status R(clew_centre)(double *centred, double *mean, const real *rows, size_t n, size_t d, clew_cancel *cancel,
                           clew_error *err) {
  if (n < 1) {
    return clew_fail(err, CLEW_ERROR_VALUE, "centre: no rows");
  }
  R(centre_job) job = {.centred = centred, .mean = mean, .rows = rows, .n = n, .d = d};
  return R(for_blocks)(R(centre_task), &job, d, cancel, err);
}
