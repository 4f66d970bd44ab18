/* Nearest rows: against a search through all scores, ties, refusals, memory that is not there, cancelling. */
#include "nearest.h"

#include <math.h>

#include "memory.h"
#include "pool.h"
#include "test.h"

enum { N = 70, ROWS = 1100, D = 9, K = 5 };
static const clew_metric ALL[] = {CLEW_METRIC_DOT, CLEW_METRIC_COSINE, CLEW_METRIC_L2};

static double value(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return (double)(*state >> 8) / (1 << 24) - 0.5;
}

static double score(const double *x, const double *w, clew_metric metric) {
  double dot = 0, xx = 0, ww = 0, square = 0;
  for (int i = 0; i < D; i++) {
    dot += x[i] * w[i], xx += x[i] * x[i], ww += w[i] * w[i], square += (x[i] - w[i]) * (x[i] - w[i]);
  }
  return metric == CLEW_METRIC_DOT ? dot : metric == CLEW_METRIC_L2 ? sqrt(square) : dot / sqrt(xx * ww);
}

static int never(void *ctx) {
  (void)ctx;
  return 1;
}

typedef struct search {
  int32_t *ids;
  double *scores;
  const double *x, *w;
  const clew_nearest_shape *shape;
} search;

static clew_status search_once(void *ctx, clew_error *err) {
  const search *s = ctx;
  return clew_nearest_f64(s->ids, s->scores, s->x, s->w, s->shape, ALL, CLEW_N_METRICS, NULL, err);
}

int main(void) {
  uint32_t state = 7;
  clew_slab *x_slab = clew_slab_new(N * D * sizeof(double)), *w_slab = clew_slab_new(ROWS * D * sizeof(double));
  double *x = clew_slab_data(x_slab), *w = clew_slab_data(w_slab);
  for (int i = 0; i < N * D; i++) {
    x[i] = value(&state);
  }
  for (int i = 0; i < ROWS * D; i++) {
    w[i] = value(&state);
  }
  memcpy(w + 900 * D, w + 3 * D, D * sizeof *w); /* equal rows: the first comes first */
  clew_nearest_shape shape = {.n = N, .n_rows = ROWS, .d = D, .k = K, .x = {D, 1}, .w = {D, 1}};
  int32_t ids[CLEW_N_METRICS * N * K], shared[CLEW_N_METRICS * N * K];
  double scores[CLEW_N_METRICS * N * K], shared_scores[CLEW_N_METRICS * N * K];
  clew_error err = {.message = ""};

  CHECK(clew_nearest_f64(shared, shared_scores, x, w, &shape, ALL, CLEW_N_METRICS, NULL, &err) == CLEW_OK);
  for (int metric = 0; metric < CLEW_N_METRICS; metric++) {
    const double sign = metric == CLEW_METRIC_L2 ? 1 : -1;
    CHECK(clew_nearest_f64(ids, scores, x, w, &shape, &ALL[metric], 1, NULL, &err) == CLEW_OK, "%s", err.message);
    CHECK(memcmp(ids, shared + metric * N * K, N * K * sizeof *ids) == 0, "metric %d beside the others", metric);
    CHECK(memcmp(scores, shared_scores + metric * N * K, N * K * sizeof *scores) == 0, "metric %d", metric);
    for (int i = 0; i < N; i++) {
      for (int j = 0; j < K; j++) {
        const int32_t id = ids[i * K + j];
        const double got = scores[i * K + j];
        int better = 0, before = 0;
        for (int r = 0; r < ROWS; r++) {
          const double other = score(x + i * D, w + r * D, (clew_metric)metric);
          better += sign * other < sign * got - 1e-13;
          before += r < id && memcmp(w + r * D, w + id * D, D * sizeof *w) == 0;
        }
        CHECK(fabs(got - score(x + i * D, w + id * D, (clew_metric)metric)) < 1e-13);
        CHECK(better <= j, "metric %d, vector %d: %d rows are better than number %d", metric, i, better, j);
        CHECK(before == 0 || (j > 0 && ids[i * K + j - 1] == 3), "equal rows: the first comes first");
      }
    }
  }

  shape.k = 0;
  CHECK(clew_nearest_f64(ids, scores, x, w, &shape, ALL, 1, NULL, &err) == CLEW_ERROR_VALUE);
  shape.k = K;
  CHECK(clew_nearest_f64(ids, scores, x, w, &shape, &(clew_metric){(clew_metric)7}, 1, NULL, &err) == CLEW_ERROR_VALUE);
  CHECK(clew_nearest_f64(ids, scores, x, w, &shape, ALL, 0, NULL, &err) == CLEW_ERROR_VALUE);
  clew_cancel cancel = {.poll = never, .last_poll = 1}; /* long ago */
  CHECK(clew_nearest_f64(ids, scores, x, w, &shape, &ALL[2], 1, &cancel, &err) == CLEW_ERROR_CANCELLED);
  search all = {ids, scores, x, w, &shape};
  CHECK(sweep_memory(search_once, &all) >= 5);
  w[5 * D] = NAN;
  CHECK(clew_nearest_f64(ids, scores, x, w, &shape, ALL, 1, NULL, &err) == CLEW_OK);
  for (int i = 0; i < N * K; i++) {
    CHECK(ids[i] != 5, "a row that is no number is near to nothing");
  }
  x[0] = NAN;
  CHECK(clew_nearest_f64(ids, scores, x, w, &shape, ALL, 1, NULL, &err) == CLEW_ERROR_VALUE);
  CHECK(strstr(err.message, "vector 0") != NULL, "%s", err.message);
  clew_slab_release(x_slab);
  clew_slab_release(w_slab);
  return finish("test_nearest");
}
