/* Nearest rows: products in tiles, the best of each vector and metric in a heap, exact scores of what is left. */
#include "nearest.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>

#include "blas.h"
#include "memory.h"
#include "pool.h"
#include "real.h"

#define BLOCK_VECTORS ((size_t)512)
#define BLOCK_ROWS ((size_t)512) /* a tile of floats is 1 MiB: it stays in cache until it has been searched */
#define MANY_TASKS ((size_t)32)  /* so many tasks keep any machine's threads busy */
#define STRIPE ((size_t)16)      /* scores that are passed over at once */
#define RANK_VECTORS ((size_t)32)

typedef struct R(found) {
  real score;
  int32_t id;
} R(found);

/* A find with its exact score, larger is better. */
typedef struct R(exact) {
  double score;
  int32_t id;
} R(exact);

typedef struct R(nearest_job) {
  int32_t *ids;      /* [n_metrics, n, k] */
  double *scores;    /* [n_metrics, n, k] */
  const real *x, *w; /* [n, d], [n_rows, d] */
  const clew_nearest_shape *shape;
  const clew_metric *metrics; /* [n_metrics] */
  size_t n_metrics;
  real *inverse;     /* [n_rows]: 1 / ‖w‖, for cosine */
  real *half_square; /* [n_rows]: ‖w‖² / 2, for L2 */
  real *tiles;       /* [slots, tile] */
  size_t tile;       /* BLOCK_VECTORS · BLOCK_ROWS products, or as many as there are, and one row of scores */
  R(found) * heaps;  /* [n_metrics, n, n_segments, kept] */
  size_t *counts;    /* [n_metrics, n, n_segments] */
  size_t kept;       /* pairs of a heap */
  size_t n_segments; /* parts of the rows that are searched apart */
  size_t segment;    /* rows of one */
  R(exact) * exact;  /* [slots, kept] */
} R(nearest_job);

/* ---- The best so far ------------------------------------------------------------------------------------------ */

/* Is a the worse of the two? */
static inline bool R(worse)(R(found) a, R(found) b) { return a.score < b.score || (a.score == b.score && a.id > b.id); }

/* The worst is at the root; room at `hole` is filled with `item`. */
static void R(sink)(R(found) * heap, size_t n, size_t hole, R(found) item) {
  for (;;) {
    size_t child = 2 * hole + 1;
    if (child >= n) {
      break;
    }
    child += child + 1 < n && R(worse)(heap[child + 1], heap[child]);
    if (!R(worse)(heap[child], item)) {
      break;
    }
    heap[hole] = heap[child];
    hole = child;
  }
  heap[hole] = item;
}

static void R(offer)(R(found) * heap, size_t *count, size_t kept, R(found) item) {
  if (*count == kept) {
    if (R(worse)(heap[0], item)) {
      R(sink)(heap, kept, 0, item);
    }
    return;
  }
  size_t hole = (*count)++;
  while (hole > 0 && R(worse)(item, heap[(hole - 1) / 2])) {
    heap[hole] = heap[(hole - 1) / 2];
    hole = (hole - 1) / 2;
  }
  heap[hole] = item;
}

/* scores: [n] of the rows first, first + 1, … */
static void R(search)(R(found) * heap, size_t *count, size_t kept, const real *scores, size_t first, size_t n) {
  size_t j = 0;
  for (; j < n; j++) { /* until the heap is full; NaN never enters */
    if (*count == kept) {
      break;
    }
    if (!isnan(scores[j])) {
      R(offer)(heap, count, kept, (R(found)){scores[j], (int32_t)(first + j)});
    }
  }
  while (j < n) {
    const real worst = heap[0].score;
    if (j + STRIPE <= n) { /* most stripes hold nothing: one look at all of it */
      int any = 0;
      for (size_t i = 0; i < STRIPE; i++) {
        any |= scores[j + i] > worst;
      }
      if (!any) {
        j += STRIPE;
        continue;
      }
    }
    const size_t end = j + STRIPE < n ? j + STRIPE : n;
    for (; j < end; j++) {
      if (scores[j] > heap[0].score) {
        R(offer)(heap, count, kept, (R(found)){scores[j], (int32_t)(first + j)});
      }
    }
  }
}

/* ---- Rounds of tasks ------------------------------------------------------------------------------------------ */

static double R(dot)(const real *a, ptrdiff_t step_a, const real *b, ptrdiff_t step_b, size_t n) {
  double sum = 0;
  if (step_a == 1 && step_b == 1) {
#pragma omp simd reduction(+ : sum)
    for (size_t i = 0; i < n; i++) {
      sum += (double)a[i] * (double)b[i];
    }
    return sum;
  }
  for (size_t i = 0; i < n; i++) {
    sum += (double)a[(ptrdiff_t)i * step_a] * (double)b[(ptrdiff_t)i * step_b];
  }
  return sum;
}

static double R(distance)(const real *a, ptrdiff_t step_a, const real *b, ptrdiff_t step_b, size_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (size_t i = 0; i < n; i++) {
    const double difference = (double)a[(ptrdiff_t)i * step_a] - (double)b[(ptrdiff_t)i * step_b];
    sum += difference * difference;
  }
  return sqrt(sum);
}

static inline const real *R(row)(const R(nearest_job) * job, size_t id) {
  return job->w + (ptrdiff_t)id * job->shape->w[0];
}

static void R(adjust_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(nearest_job) *job = ctx;
  const clew_nearest_shape *s = job->shape;
  const size_t begin = index * BLOCK_ROWS, end = begin + BLOCK_ROWS < s->n_rows ? begin + BLOCK_ROWS : s->n_rows;
  for (size_t j = begin; j < end; j++) {
    const real *w = R(row)(job, j);
    const double square = R(dot)(w, s->w[1], w, s->w[1], s->d);
    job->inverse[j] = (real)(square > 0 ? 1 / sqrt(square) : 0);
    job->half_square[j] = (real)(square / 2);
  }
}

/* What puts the rows begin, begin + 1, … in order for a vector; out: [n], used where that is not the products [n]. */
static const real *R(score)(real *out, const real *products, const R(nearest_job) * job, clew_metric metric,
                            size_t begin, size_t n) {
  const real *inverse = job->inverse + begin, *half_square = job->half_square + begin;
  switch (metric) {
  case CLEW_METRIC_COSINE:
    for (size_t j = 0; j < n; j++) {
      out[j] = products[j] * inverse[j];
    }
    return out;
  case CLEW_METRIC_L2:
    for (size_t j = 0; j < n; j++) {
      out[j] = products[j] - half_square[j];
    }
    return out;
  default:
    return products;
  }
}

static void R(search_task)(void *ctx, size_t index, unsigned slot) {
  const R(nearest_job) *job = ctx;
  const clew_nearest_shape *s = job->shape;
  const size_t block = index / job->n_segments, part = index % job->n_segments;
  const size_t first = block * BLOCK_VECTORS, last = part * job->segment;
  const size_t m = first + BLOCK_VECTORS < s->n ? BLOCK_VECTORS : s->n - first;
  const size_t end = last + job->segment < s->n_rows ? last + job->segment : s->n_rows;
  real *tile = job->tiles + (size_t)slot * job->tile,
       *row = tile + m * (BLOCK_ROWS < s->n_rows ? BLOCK_ROWS : s->n_rows);
  for (size_t begin = last; begin < end; begin += BLOCK_ROWS) {
    const size_t n = begin + BLOCK_ROWS < end ? BLOCK_ROWS : end - begin;
    (void)R(clew_gemm)(tile, (ptrdiff_t)n, 1, job->x + (ptrdiff_t)first * s->x[0], s->x[0], s->x[1], R(row)(job, begin),
                       s->w[1], s->w[0], m, n, s->d, 1, 0);
    for (size_t i = 0; i < m; i++) {
      for (size_t which = 0; which < job->n_metrics; which++) {
        const size_t heap = (which * s->n + first + i) * job->n_segments + part;
        const real *scores = R(score)(row, tile + i * n, job, job->metrics[which], begin, n);
        R(search)(job->heaps + heap * job->kept, &job->counts[heap], job->kept, scores, begin, n);
      }
    }
  }
}

/* Best first. */
static int R(compare)(const void *a, const void *b) {
  const R(found) x = *(const R(found) *)a, y = *(const R(found) *)b;
  return R(worse)(x, y) ? 1 : R(worse)(y, x) ? -1 : 0;
}

static int R(compare_exact)(const void *a, const void *b) {
  const R(exact) *x = a, *y = b;
  if (x->score != y->score) {
    return x->score < y->score ? 1 : -1;
  }
  return (x->id > y->id) - (x->id < y->id);
}

/* Brings the finds of all segments together at the front of the heaps of one vector and metric, i; how many there are,
 * kept at most. */
static size_t R(gather)(const R(nearest_job) * job, size_t i) {
  R(found) *all = job->heaps + i * job->n_segments * job->kept;
  size_t n = 0;
  for (size_t part = 0; part < job->n_segments; part++) {
    const R(found) *from = all + part * job->kept;
    for (size_t j = 0; j < job->counts[i * job->n_segments + part]; j++) {
      all[n++] = from[j];
    }
  }
  qsort(all, n, sizeof *all, R(compare));
  return n < job->kept ? n : job->kept;
}

/* Larger is better; size: ‖x‖ */
static double R(exact_score)(const R(nearest_job) * job, const real *x, double size, size_t id, clew_metric metric) {
  const clew_nearest_shape *s = job->shape;
  const real *w = R(row)(job, id);
  if (metric == CLEW_METRIC_L2) {
    return -R(distance)(x, s->x[1], w, s->w[1], s->d);
  }
  const double score = R(dot)(x, s->x[1], w, s->w[1], s->d);
  if (metric == CLEW_METRIC_DOT) {
    return score;
  }
  const double sizes = size * sqrt(R(dot)(w, s->w[1], w, s->w[1], s->d));
  return sizes > 0 ? score / sizes : 0;
}

/* Vectors of a block: their finds scored in double and put in order. */
static void R(rank_task)(void *ctx, size_t index, unsigned slot) {
  const R(nearest_job) *job = ctx;
  const clew_nearest_shape *s = job->shape;
  R(exact) *exact = job->exact + (size_t)slot * job->kept;
  const size_t begin = index * RANK_VECTORS, end = begin + RANK_VECTORS < s->n ? begin + RANK_VECTORS : s->n;
  for (size_t i = begin; i < end; i++) {
    const real *x = job->x + (ptrdiff_t)i * s->x[0];
    const double size = sqrt(R(dot)(x, s->x[1], x, s->x[1], s->d));
    for (size_t which = 0; which < job->n_metrics; which++) {
      const clew_metric metric = job->metrics[which];
      const size_t at = which * s->n + i;
      const R(found) *found = job->heaps + at * job->n_segments * job->kept;
      const size_t n = R(gather)(job, at);
      for (size_t j = 0; j < n; j++) {
        exact[j] = (R(exact)){R(exact_score)(job, x, size, (size_t)found[j].id, metric), found[j].id};
      }
      qsort(exact, n, sizeof *exact, R(compare_exact));
      for (size_t j = 0; j < s->k; j++) {
        job->ids[at * s->k + j] = j < n ? exact[j].id : -1;
        job->scores[at * s->k + j] = j >= n ? 0 : metric == CLEW_METRIC_L2 ? -exact[j].score : exact[j].score;
      }
    }
  }
}

clew_status R(clew_nearest)(int32_t *ids, double *scores, const real *x, const real *w, const clew_nearest_shape *shape,
                            const clew_metric *metrics, size_t n_metrics, clew_cancel *cancel, clew_error *err) {
  clew_status status = CLEW_OK;
  R(nearest_job) job = {.ids = ids, .scores = scores, .x = x, .w = w, .shape = shape, .metrics = metrics};
  clew_slab *tiles = NULL;
  const size_t n = shape->n, n_rows = shape->n_rows, k = shape->k;
  if (k < 1 || k > n_rows || n_rows > INT32_MAX || shape->d < 1 || n_metrics < 1 || n_metrics > CLEW_N_METRICS) {
    return clew_fail(err, CLEW_ERROR_VALUE, "nearest: k = %zu of %zu rows of %zu values, %zu metrics", k, n_rows,
                     shape->d, n_metrics);
  }
  bool needs_sizes = false;
  for (size_t which = 0; which < n_metrics; which++) {
    if ((unsigned)metrics[which] >= CLEW_N_METRICS) {
      return clew_fail(err, CLEW_ERROR_VALUE, "nearest: metric %d", (int)metrics[which]);
    }
    needs_sizes |= metrics[which] != CLEW_METRIC_DOT;
  }
  job.n_metrics = n_metrics;
  if (n == 0) {
    return CLEW_OK;
  }
  const size_t n_blocks = (n + BLOCK_VECTORS - 1) / BLOCK_VECTORS, row_blocks = (n_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
  const size_t wanted = (MANY_TASKS + n_blocks - 1) / n_blocks, parts = wanted < row_blocks ? wanted : row_blocks;
  job.segment = (row_blocks + parts - 1) / parts * BLOCK_ROWS;
  job.n_segments = (n_rows + job.segment - 1) / job.segment;
  job.kept = k + CLEW_NEAREST_MORE < n_rows ? k + CLEW_NEAREST_MORE : n_rows;

  const unsigned slots = clew_pool_threads();
  const size_t height = n < BLOCK_VECTORS ? n : BLOCK_VECTORS, width = n_rows < BLOCK_ROWS ? n_rows : BLOCK_ROWS;
  size_t n_finds;
  const size_t n_heaps = n_metrics * n * job.n_segments;
  const bool fits = !__builtin_mul_overflow(n_heaps, job.kept, &n_finds);
  job.tile = (height + 1) * width;
  tiles = clew_slab_new(slots * job.tile * sizeof(real));
  job.heaps = fits ? clew_alloc(n_finds, sizeof *job.heaps) : NULL;
  job.counts = clew_alloc(n_heaps, sizeof *job.counts);
  job.exact = clew_alloc(slots * job.kept, sizeof *job.exact);
  job.inverse = clew_alloc(needs_sizes ? n_rows : 1, sizeof *job.inverse);
  job.half_square = clew_alloc(needs_sizes ? n_rows : 1, sizeof *job.half_square);
  if (tiles == NULL || job.heaps == NULL || job.counts == NULL || job.exact == NULL || job.inverse == NULL ||
      job.half_square == NULL) {
    status =
        clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for the %zu nearest of %zu rows to %zu vectors", k, n_rows, n);
    goto done;
  }
  job.tiles = clew_slab_data(tiles);

  if ((needs_sizes && !clew_pool_for(row_blocks, R(adjust_task), &job, slots, cancel)) ||
      !clew_pool_for(n_blocks * job.n_segments, R(search_task), &job, slots, cancel) ||
      !clew_pool_for((n + RANK_VECTORS - 1) / RANK_VECTORS, R(rank_task), &job, slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  for (size_t at = 0; at < n_metrics * n; at++) {
    if (ids[at * k + k - 1] < 0) {
      status =
          clew_fail(err, CLEW_ERROR_VALUE, "nearest: vector %zu has fewer than %zu scores that are numbers", at % n, k);
      break;
    }
  }

done:
  clew_free(job.half_square);
  clew_free(job.inverse);
  clew_free(job.exact);
  clew_free(job.counts);
  clew_free(job.heaps);
  clew_slab_release(tiles);
  return status;
}
