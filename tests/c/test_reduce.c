/* Reducers' batches: against plain loops, values on edges, ties, NaN, threads, refusals, cancelling; no memory. */
#include "reduce.h"

#include <math.h>

#include "memory.h"
#include "pool.h"
#include "test.h"

enum { N = 150, D = 77, BINS = 9, K = 4 };

static double edges[BINS + 1];
static double rows[N * D];
static float narrow[N * D];
static int64_t at[N * 2];

static double value(uint32_t *state) {
  *state = *state * 1664525u + 1013904223u;
  return (double)(*state >> 8) / (1 << 24) - 0.5;
}

static int never(void *ctx) {
  (void)ctx;
  return 1;
}

/* Some values stand for many: on an edge, beside it, far away, no number. */
static void fill(void) {
  uint32_t state = 3;
  for (int i = 0; i <= BINS; i++) {
    edges[i] = -0.4 + 0.8 * i / BINS;
  }
  for (int i = 0; i < N * D; i++) {
    const double x = value(&state), edge = edges[(state >> 5) % (BINS + 1)];
    const double special[] = {
        x, edge, nextafter(edge, INFINITY), nextafter(edge, -INFINITY), INFINITY, -INFINITY, NAN, 0.25, (float)x, 0.25};
    rows[i] = special[(state >> 12) % 10];
    narrow[i] = (float)rows[i];
  }
  for (int i = 0; i < N; i++) { /* not in the order of the rows */
    at[2 * i] = (i * 7) % 10, at[2 * i + 1] = (i * 77) % N;
  }
}

static int64_t expected_counts[D * (BINS + 3)];

static void count(const double *x) {
  memset(expected_counts, 0, sizeof expected_counts);
  for (int i = 0; i < N * D; i++) {
    int bin = 0;
    while (bin <= BINS && x[i] >= edges[bin]) { /* edges that are not above the value */
      bin++;
    }
    bin = isnan(x[i]) ? BINS + 2 : x[i] == edges[BINS] ? BINS : bin;
    expected_counts[i % D * (BINS + 3) + bin]++;
  }
}

static void test_histogram(void) {
  int64_t counts[D * (BINS + 3)] = {0};
  double widened[N * D];
  clew_error err = {.message = ""};
  for (int i = 0; i < N * D; i++) {
    widened[i] = (double)narrow[i];
  }
  count(rows);
  CHECK(clew_histogram_f64(counts, rows, edges, N, D, BINS, NULL, &err) == CLEW_OK, "%s", err.message);
  CHECK(memcmp(counts, expected_counts, sizeof counts) == 0, "double");
  CHECK(clew_histogram_f64(counts, rows, edges, N, D, BINS, NULL, &err) == CLEW_OK);
  for (int i = 0; i < D * (BINS + 3); i++) {
    CHECK(counts[i] == 2 * expected_counts[i], "counts are added to");
  }
  memset(counts, 0, sizeof counts);
  count(widened);
  CHECK(clew_histogram_f32(counts, narrow, edges, N, D, BINS, NULL, &err) == CLEW_OK);
  CHECK(memcmp(counts, expected_counts, sizeof counts) == 0, "float");
  const double uneven[] = {0, 1e-3, 0.5, 0.75, 1}, x[] = {0, 5e-4, 1e-3, 0.4, 0.5, 0.74, 0.9, 1, 1.5};
  int64_t few[7] = {0};
  CHECK(clew_histogram_f64(few, x, uneven, 9, 1, 4, NULL, &err) == CLEW_OK);
  CHECK(memcmp(few, (int64_t[]){0, 2, 2, 2, 2, 1, 0}, sizeof few) == 0, "edges that arithmetic does not find");
  CHECK(clew_histogram_f64(counts, rows, edges, N, D, 0, NULL, &err) == CLEW_ERROR_VALUE);
  CHECK(strcmp(err.message, "histogram: 0 bins") == 0, "%s", err.message);
}

/* Is row i of a column before row j? */
static int before(const double *x, int column, int i, int j) {
  const double a = x[i * D + column], b = x[j * D + column];
  return a != b ? a > b : at[2 * i] != at[2 * j] ? at[2 * i] < at[2 * j] : at[2 * i + 1] < at[2 * j + 1];
}

/* Every item of a heap stands once, and as many rows are before it as items are. */
static void check_top(const double *values, const int64_t *where, const double *x, const char *what) {
  for (int column = 0; column < D; column++) {
    int ranks = 0;
    for (int j = 0; j < K; j++) {
      const int64_t *place = where + (column * K + j) * 2;
      int row = -1, rank = 0;
      for (int i = 0; i < N; i++) {
        if (at[2 * i] == place[0] && at[2 * i + 1] == place[1]) {
          row = i;
        }
      }
      CHECK(row >= 0 && values[column * K + j] == x[row * D + column], "%s: column %d, item %d", what, column, j);
      for (int i = 0; row >= 0 && i < N; i++) {
        rank += !isnan(x[i * D + column]) && before(x, column, i, row);
      }
      ranks |= 1 << rank;
    }
    CHECK(ranks == (1 << K) - 1, "%s: column %d holds ranks %x", what, column, (unsigned)ranks);
  }
}

static void nothing(double *values, int64_t *where) {
  for (int i = 0; i < D * K; i++) {
    values[i] = -INFINITY, where[2 * i] = where[2 * i + 1] = CLEW_NOWHERE;
  }
}

static void test_top_k(void) {
  static double values[D * K], other_values[D * K], turned[K * D], widened[N * D];
  static int64_t where[D * K * 2], other_where[D * K * 2], turned_where[K * D * 2];
  clew_top_shape shape = {.n = N, .d = D, .k = K, .at = {2, 0}};
  clew_error err = {.message = ""};
  nothing(values, where);
  CHECK(clew_top_k_f64(values, where, rows, at, &shape, NULL, &err) == CLEW_OK, "%s", err.message);
  check_top(values, where, rows, "double");

  /* The last rows in heaps of their own, which then come to those of the first: a place for every value. */
  const int half = 61;
  nothing(values, where);
  nothing(other_values, other_where);
  shape.n = half;
  CHECK(clew_top_k_f64(values, where, rows, at, &shape, NULL, &err) == CLEW_OK);
  shape.n = N - half;
  CHECK(clew_top_k_f64(other_values, other_where, rows + half * D, at + half * 2, &shape, NULL, &err) == CLEW_OK);
  for (int column = 0; column < D; column++) {
    for (int j = 0; j < K; j++) {
      turned[j * D + column] = other_values[column * K + j];
      memcpy(turned_where + (j * D + column) * 2, other_where + (column * K + j) * 2, 2 * sizeof *where);
    }
  }
  shape = (clew_top_shape){.n = K, .d = D, .k = K, .at = {2 * D, 2}};
  CHECK(clew_top_k_f64(values, where, turned, turned_where, &shape, NULL, &err) == CLEW_OK);
  check_top(values, where, rows, "two parts");

  for (int i = 0; i < N * D; i++) {
    widened[i] = (double)narrow[i];
  }
  nothing(values, where);
  shape = (clew_top_shape){.n = N, .d = D, .k = K, .at = {2, 0}};
  CHECK(clew_top_k_f32(values, where, narrow, at, &shape, NULL, &err) == CLEW_OK);
  check_top(values, where, widened, "float");

  /* Kept in double, between two floats: only what is really greater may take its place. */
  double kept = 1 + 1e-9;
  int64_t place[2] = {5, 5};
  shape = (clew_top_shape){.n = 2, .d = 1, .k = 1, .at = {2, 0}};
  CHECK(clew_top_k_f32(&kept, place, (const float[]){1, NAN}, at, &shape, NULL, &err) == CLEW_OK);
  CHECK(kept == 1 + 1e-9 && place[0] == 5, "%.17g stays", kept);
  CHECK(clew_top_k_f32(&kept, place, (const float[]){1, nextafterf(1, 2)}, at, &shape, NULL, &err) == CLEW_OK);
  CHECK(kept == (double)nextafterf(1, 2) && place[0] == at[2], "%.17g goes", kept);

  shape.k = 0;
  CHECK(clew_top_k_f64(values, where, rows, at, &shape, NULL, &err) == CLEW_ERROR_VALUE);
  CHECK(strcmp(err.message, "top_k: k = 0") == 0, "%s", err.message);
}

static void test_centre(void) {
  static double x[N * D], centred[N * D], mean[2 * D], again[N * D], again_mean[2 * D];
  static float single[N * D];
  uint32_t state = 11;
  clew_error err = {.message = ""};
  for (int i = 0; i < N * D; i++) {
    x[i] = 1e6 + value(&state);
    single[i] = (float)value(&state);
  }
  CHECK(clew_centre_f64(centred, mean, x, N, D, NULL, &err) == CLEW_OK, "%s", err.message);
  CHECK(clew_centre_f32(again, again_mean, single, N, D, NULL, &err) == CLEW_OK);
  for (int j = 0; j < D; j++) {
    long double sum = 0, sum_single = 0;
    for (int i = 0; i < N; i++) {
      sum += (long double)x[i * D + j];
      sum_single += (long double)single[i * D + j];
    }
    CHECK(fabs(mean[j] - (double)(sum / N)) < 4e-10, "column %d: %.17g", j, mean[j]);
    CHECK(fabs(again_mean[j] - (double)(sum_single / N)) < 1e-15, "column %d: %.17g", j, again_mean[j]);
    CHECK(fabsl((long double)mean[j] + (long double)mean[D + j] - sum / N) < 1e-12L, "column %d: the rest", j);
    for (int i = 0; i < N; i++) {
      CHECK(centred[i * D + j] == x[i * D + j] - mean[j]);
      CHECK(again[i * D + j] == (double)single[i * D + j] - again_mean[j]);
    }
  }
  CHECK(clew_centre_f64(centred, mean, x, 0, D, NULL, &err) == CLEW_ERROR_VALUE);
  CHECK(strcmp(err.message, "centre: no rows") == 0, "%s", err.message);
}

/* All three, one after the other. */
typedef struct results {
  double centred[N * D], mean[2 * D], values[D * K];
  int64_t counts[D * (BINS + 3)], where[D * K * 2];
} results;

static clew_status all(void *ctx, clew_error *err) {
  results *r = ctx;
  const clew_top_shape shape = {.n = N, .d = D, .k = K, .at = {2, 0}};
  memset(r, 0, sizeof *r);
  nothing(r->values, r->where);
  clew_status status = clew_centre_f64(r->centred, r->mean, rows, N, D, NULL, err);
  if (status == CLEW_OK) {
    status = clew_histogram_f64(r->counts, rows, edges, N, D, BINS, NULL, err);
  }
  return status == CLEW_OK ? clew_top_k_f64(r->values, r->where, rows, at, &shape, NULL, err) : status;
}

static void test_threads_memory_cancelling(void) {
  static results one, many;
  clew_error err = {.message = ""};
  clew_pool_resize(1);
  CHECK(all(&one, &err) == CLEW_OK);
  for (unsigned threads = 2; threads <= 5; threads++) {
    clew_pool_resize(threads);
    CHECK(all(&many, &err) == CLEW_OK);
    CHECK(memcmp(&one, &many, sizeof one) == 0, "%u threads", threads);
  }
  CHECK(sweep_memory(all, &many) == 0, "nothing is allocated");
  const clew_top_shape shape = {.n = N, .d = D, .k = K, .at = {2, 0}};
  clew_cancel cancel = {.poll = never, .last_poll = 1}; /* long ago */
  CHECK(clew_centre_f32((double *)many.centred, many.mean, narrow, N, D, &cancel, &err) == CLEW_ERROR_CANCELLED);
  CHECK(clew_histogram_f32(many.counts, narrow, edges, N, D, BINS, &cancel, &err) == CLEW_ERROR_CANCELLED);
  CHECK(clew_top_k_f32(many.values, many.where, narrow, at, &shape, &cancel, &err) == CLEW_ERROR_CANCELLED);
}

int main(void) {
  fill();
  test_histogram();
  test_top_k();
  test_centre();
  test_threads_memory_cancelling();
  return finish("test_reduce");
}
