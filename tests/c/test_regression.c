/* The estimators of regression.h in both precisions and every instruction set: optimality conditions and plain loops in
 * long double, streams against runs, thread counts that must not show, allocations that fail, and cancelling.
 *
 * The file includes itself twice, with T as float and as double. */
#ifndef T

#include <float.h>
#include <math.h>

#include "regression.h"
#include "test.h"

#define BATCH 19 /* whole groups of lanes and a part of one, whatever the register */
#define N 14
#define D 5
#define TASKS 700

typedef long double exact;

static uint64_t random_state = 1;

static double normal(void) { /* about: the sum of 12 uniform numbers */
  double sum = -6;
  for (int i = 0; i < 12; i++) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    sum += (double)(random_state >> 11) * 0x1p-53;
  }
  return sum;
}

static int always(void *ctx) {
  (void)ctx;
  return 1;
}

static const double rates[3] = {0.2, 0.1, 0.3}, gammas[3] = {0.01, 0.02, 0.03};

static const struct stream_case {
  clew_stream_settings settings;
  const char *name;
} cases[] = {
    {{.kind = CLEW_STREAM_OLS, .d = D}, "ols"},
    {{.kind = CLEW_STREAM_RIDGE, .d = D, .lam = 0.3}, "ridge"},
    {{.kind = CLEW_STREAM_BAYES, .d = D, .noise_var = 0.5}, "bayes"},
    {{.kind = CLEW_STREAM_AVERAGING, .d = D}, "averaging"},
    {{.kind = CLEW_STREAM_SGD, .d = D, .rates = rates}, "sgd"},
    {{.kind = CLEW_STREAM_GD, .d = D, .steps = 3, .rates = rates}, "gd"},
    {{.kind = CLEW_STREAM_GD_PP, .d = D, .steps = 3, .rates = rates, .gammas = gammas}, "gd_pp"},
    {{.kind = CLEW_STREAM_NEWTON, .d = D, .steps = 30, .lam = 0.3}, "newton_schulz"},
    {{.kind = CLEW_STREAM_LASSO, .d = D, .alpha = 0.2, .max_iterations = 1000}, "lasso"},
};
#define N_CASES (sizeof cases / sizeof *cases)

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#define T float
#define SUFFIX _f32
#define EPSILON ((exact)FLT_EPSILON)
#include "test_regression.c"
#undef T
#undef SUFFIX
#undef EPSILON

#define T double
#define SUFFIX _f64
#define EPSILON ((exact)DBL_EPSILON)
#include "test_regression.c"

static void child(void *isa) {
  setenv("CLEW_ISA", isa, 1);
  all_f32();
  all_f64();
}

int main(void) {
  static char *const isas[] = {"base", "v3"};
  for (size_t i = 0; i < 2; i++)
    check_in_child(child, isas[i], isas[i]);
  all_f32();
  all_f64();
  return finish("test_regression");
}

#else

#define F(name) PASTE(name, SUFFIX)

typedef struct F(problem) {
  clew_slab *slab;
  T *x, *y, *factor, *tasks, *yhat, *w, *other; /* [batch, n, d], [batch, n], [d, d], [tasks, d], results */
} F(problem);

static clew_examples F(examples)(const F(problem) * p) {
  return (clew_examples){.batch = BATCH, .n = N, .d = D, .x = p->x, .y = p->y, .first = 0, .last = N - 1};
}

static F(problem) F(make)(void) {
  F(problem) p;
  p.slab = clew_slab_new((2 * BATCH * N * (2 * D + 2) + D * D + TASKS * D) * sizeof(T));
  p.x = clew_slab_data(p.slab);
  p.y = p.x + BATCH * N * D;
  p.factor = p.y + BATCH * N;
  p.tasks = p.factor + D * D;
  p.yhat = p.tasks + TASKS * D;
  p.w = p.yhat + BATCH * (N + 1);
  p.other = p.w + BATCH * N * D;
  for (size_t i = 0; i < BATCH * N * D; i++)
    p.x[i] = (T)normal();
  for (size_t i = 0; i < TASKS * D; i++)
    p.tasks[i] = (T)normal();
  for (size_t b = 0; b < BATCH; b++)
    for (size_t i = 0; i < N; i++) {
      double sum = 0.3 * normal();
      for (size_t j = 0; j < D; j++)
        sum += (double)p.x[(b * N + i) * D + j] * (double)(j + 1) / D;
      p.y[b * N + i] = (T)sum;
    }
  /* repeated and empty rows in some sequences */
  for (size_t b = 0; b < BATCH; b += 3)
    memcpy(p.x + (b * N + 2) * D, p.x + b * N * D, D * sizeof(T));
  memset(p.x + (4 * N + 3) * D, 0, D * sizeof(T));
  for (size_t i = 0; i < D; i++)
    for (size_t j = 0; j < D; j++)
      p.factor[i * D + j] = j > i ? 0 : j == i ? (T)(1 + 0.2 * (double)i) : (T)0.1;
  return p;
}

static clew_stream_settings F(settings)(const F(problem) * p, size_t i) {
  clew_stream_settings s = cases[i].settings;
  if (s.kind == CLEW_STREAM_BAYES)
    s.matrices = p->factor;
  return s;
}

/* Xᵀ(Xw − y) of a prefix, coordinate j; scale: of the sizes that were added. */
static exact F(gradient)(const F(problem) * p, size_t b, size_t k, const T *w, size_t j, exact *scale) {
  exact sum = 0;
  *scale = 1;
  for (size_t i = 0; i < k; i++) {
    const T *row = p->x + (b * N + i) * D;
    exact error = -(exact)p->y[b * N + i];
    for (size_t c = 0; c < D; c++)
      error += (exact)row[c] * (exact)w[c];
    sum += (exact)row[j] * error;
    *scale += fabsl((exact)row[j]) * (1 + fabsl((exact)p->y[b * N + i]));
  }
  return sum;
}

/* The weights are where the gradient of what they minimise is zero. */
static void F(test_optimal)(const F(problem) * p) {
  for (size_t i = 0; i < N_CASES; i++) {
    const clew_stream_settings s = F(settings)(p, i);
    const clew_examples in = F(examples)(p);
    const clew_estimates out = {.yhat = p->yhat, .w = p->w};
    clew_error err = {0};
    CHECK(F(clew_stream_run)(&out, &in, &s, NULL, &err) == CLEW_OK, "%s: %s", cases[i].name, err.message);
    exact worst = 0;
    for (size_t b = 0; b < BATCH; b++)
      for (size_t k = 0; k < N; k++) {
        const T *w = p->w + (b * N + k) * D;
        exact dot = 0, size = 1;
        for (size_t j = 0; j < D; j++) {
          dot += (exact)w[j] * (exact)p->x[(b * N + k) * D + j];
          size += fabsl((exact)w[j]);
          exact scale;
          const exact g = F(gradient)(p, b, k, w, j, &scale);
          exact off = 0;
          if (s.kind == CLEW_STREAM_OLS)
            off = fabsl(g);
          else if (s.kind == CLEW_STREAM_RIDGE || s.kind == CLEW_STREAM_NEWTON)
            off = fabsl(g + (exact)s.lam * (exact)w[j]);
          else if (s.kind == CLEW_STREAM_LASSO) /* the subgradient; the gap's root */
            off = (w[j] != 0 ? fabsl(g + (w[j] > 0 ? 1 : -1) * (exact)(s.alpha * (double)k))
                             : fmaxl(0, fabsl(g) - (exact)(s.alpha * (double)k))) *
                  sqrtl(EPSILON) / 100;
          scale *= s.kind == CLEW_STREAM_NEWTON ? 100 : 1;
          worst = fmaxl(worst, off / (scale * EPSILON * 300));
        }
        CHECK(fabsl(dot - (exact)p->yhat[b * N + k]) <= 50 * EPSILON * size * 4, "%s: prediction", cases[i].name);
      }
    CHECK(worst <= 1, "%s: %Lg of what rounding allows", cases[i].name, worst);
  }
}

/* One example at a time, and any number of threads: the same bits. */
static void F(test_streams)(const F(problem) * p) {
  for (size_t i = 0; i < N_CASES; i++) {
    const clew_stream_settings s = F(settings)(p, i);
    clew_examples in = F(examples)(p);
    clew_estimates out = {.w = p->w};
    clew_error err;
    clew_set_threads(1);
    CHECK(F(clew_stream_run)(&out, &in, &s, NULL, &err) == CLEW_OK);
    out.w = p->other;
    clew_set_threads(3);
    CHECK(F(clew_stream_run)(&out, &in, &s, NULL, &err) == CLEW_OK);
    CHECK(memcmp(p->w, p->other, BATCH * N * D * sizeof(T)) == 0, "%s: threads", cases[i].name);

    clew_slab *state = clew_slab_new(F(clew_stream_bytes)(BATCH, &s));
    F(clew_stream_begin)(clew_slab_data(state), BATCH, &s);
    T x[BATCH * D], y[BATCH], w[BATCH * D];
    for (size_t k = 0; k < N; k++) {
      CHECK(F(clew_stream_weights)(w, NULL, clew_slab_data(state), BATCH, &s, &err) == CLEW_OK);
      bool same = true;
      for (size_t b = 0; b < BATCH; b++) {
        same = same && memcmp(w + b * D, p->w + (b * N + k) * D, sizeof(T) * D) == 0;
        memcpy(x + b * D, p->x + (b * N + k) * D, D * sizeof(T));
        y[b] = p->y[b * N + k];
      }
      CHECK(same, "%s: step %zu of a stream", cases[i].name, k);
      CHECK(F(clew_stream_update)(clew_slab_data(state), x, y, BATCH, &s, &err) == CLEW_OK);
    }
    clew_slab_release(state);

    /* the last prefix alone is the fit to all examples */
    in.first = in.last = N;
    T last[BATCH * D];
    out.w = last;
    CHECK(F(clew_stream_run)(&out, &in, &s, NULL, &err) == CLEW_OK);
    bool finite = true;
    for (size_t j = 0; j < BATCH * D; j++)
      finite = finite && isfinite(last[j]);
    CHECK(finite, "%s: fit", cases[i].name);
  }
}

static exact F(square_distance)(const T *a, const T *b) {
  exact sum = 0;
  for (size_t j = 0; j < D; j++)
    sum += ((exact)a[j] - (exact)b[j]) * ((exact)a[j] - (exact)b[j]);
  return sum;
}

static void F(test_comparisons)(const F(problem) * p) {
  const clew_queries q = {
      .batch = BATCH, .n = N, .m = N, .d = D, .x = p->x, .y = p->y, .queries = p->x, .first = 0, .step = 1};
  clew_error err = {0};
  CHECK(F(clew_nadaraya_watson)(p->yhat, &q, 0.7, NULL, &err) == CLEW_OK);
  CHECK(F(clew_knn)(p->other, &q, 1, NULL, &err) == CLEW_OK);
  for (size_t b = 0; b < BATCH; b++)
    for (size_t i = 0; i < N; i++) {
      const T *row = p->x + (b * N + i) * D, *y = p->y + b * N;
      exact sum = 0, along = 0, nearest = INFINITY;
      size_t which = 0;
      for (size_t j = 0; j < i; j++) {
        const T *key = p->x + (b * N + j) * D;
        exact score = 0;
        for (size_t c = 0; c < D; c++)
          score += (exact)row[c] * (exact)key[c];
        sum += expl(0.7L * score);
        along += expl(0.7L * score) * (exact)y[j];
        const exact distance = F(square_distance)(row, key);
        which = distance < nearest ? j : which;
        nearest = distance < nearest ? distance : nearest;
      }
      const exact expected = i == 0 ? 0 : along / sum;
      CHECK(fabsl((exact)p->yhat[b * N + i] - expected) <= 300 * EPSILON * (1 + fabsl(expected)), "row %zu", i);
      CHECK(p->other[b * N + i] == (i == 0 ? 0 : y[which]), "nearest of row %zu", i);
    }

  /* Kernel ridge: with much on the diagonal it is k·y / (1 + lam) up to terms of order 1 / lam². */
  CHECK(F(clew_kernel_ridge)(p->yhat, &q, 0.2, 1000, NULL, &err) == CLEW_OK);
  for (size_t b = 0; b < BATCH; b++)
    for (size_t i = 0; i < N; i++) {
      exact sum = 0;
      for (size_t j = 0; j < i; j++)
        sum +=
            expl(-0.2L * F(square_distance)(p->x + (b * N + i) * D, p->x + (b * N + j) * D)) * (exact)p->y[b * N + j];
      CHECK(fabsl((exact)p->yhat[b * N + i] - sum / 1001) < 1e-4L, "row %zu", i);
    }
  CHECK(F(clew_kernel_ridge)(p->yhat, &q, 0.2, 0, NULL, &err) == CLEW_ERROR_VALUE &&
            strstr(err.message, "sequence 0 is not positive definite from example 2 on"),
        "%s", err.message);
}

/* Weights of a softmax, 2^x, by a query with two keys: one of score 0 and value 0, one of score x and value 1. */
static void F(test_weights)(void) {
  const F(clew_reg_kernels) *k = F(clew_get_kernels)()->reg;
  const T first[2] = {0, 0}, values[2] = {0, 1}, lowest = sizeof(T) == 4 ? -125 : -1021;
  exact worst = 0;
  for (int i = 0; i <= 100000; i++) {
    const T x = lowest * (T)i / 100000, second[2] = {0, x};
    T shift[2] = {(T)-INFINITY, (T)-INFINITY};
    double sum[2] = {0, 0}, weighted[2] = {0, 0};
    k->attend(shift, sum, weighted, first, second, values, 2);
    /* x − ½ is rounded where that is more than x itself */
    const exact rounding = (fabsl((exact)x) + 1) * EPSILON / 2;
    worst = fmaxl(worst, (fabsl((exact)weighted[1] / exp2l((exact)x) - 1) - rounding) / EPSILON);
    CHECK(shift[1] == (T)0.5 && weighted[0] == 1 && sum[0] == 2, "equal keys weigh the same");
  }
  CHECK(worst < 1.25L, "weights: %.3Lf ulp beside the rounding of scores", worst);
  const T far[2] = {0, lowest - 3}, nowhere[2] = {0, (T)-INFINITY};
  T shift[2] = {(T)-INFINITY, (T)-INFINITY};
  double sum[2] = {0, 0}, weighted[2] = {0, 0};
  k->attend(shift, sum, weighted, far, nowhere, values, 2);
  CHECK(weighted[0] == 0 && weighted[1] == 0 && sum[0] == 1, "what would be denormal is 0");
}

static void F(test_dmmse)(const F(problem) * p) {
  const clew_examples in = F(examples)(p);
  clew_estimates out = {.yhat = p->yhat, .w = p->w};
  double evidence[BATCH * N];
  clew_error err = {0};
  clew_set_threads(1);
  CHECK(F(clew_dmmse)(&out, evidence, &in, p->tasks, NULL, TASKS, 0.4, NULL, &err) == CLEW_OK);
  out.w = p->other;
  clew_set_threads(3);
  CHECK(F(clew_dmmse)(&out, NULL, &in, p->tasks, NULL, TASKS, 0.4, NULL, &err) == CLEW_OK);
  CHECK(memcmp(p->w, p->other, BATCH * N * D * sizeof(T)) == 0, "threads");
  for (size_t b = 0; b < BATCH; b++) {
    static exact score[TASKS];
    memset(score, 0, sizeof score);
    for (size_t i = 0; i < N; i++) {
      exact top = -INFINITY, sum = 0, mean[D] = {0};
      for (size_t m = 0; m < TASKS; m++)
        top = fmaxl(top, score[m]);
      for (size_t m = 0; m < TASKS; m++) {
        exact error = (exact)p->y[b * N + i];
        const exact weight = expl(score[m] - top);
        sum += weight;
        for (size_t j = 0; j < D; j++) {
          mean[j] += weight * (exact)p->tasks[m * D + j];
          error -= (exact)p->tasks[m * D + j] * (exact)p->x[(b * N + i) * D + j];
        }
        score[m] -= error * error / 0.8L;
      }
      for (size_t j = 0; j < D; j++)
        CHECK(fabsl((exact)p->w[(b * N + i) * D + j] - mean[j] / sum) <= 3000 * EPSILON, "prefix %zu", i);
      const exact truth = top + logl(sum / TASKS) - 0.5L * (exact)i * logl(2 * 3.14159265358979323846L * 0.4L);
      CHECK(fabsl((exact)evidence[b * N + i] - truth) <= 3000 * EPSILON * (1 + fabsl(truth)), "evidence %zu", i);
    }
  }
}

static clew_status F(everything)(void *ctx, clew_error *err) {
  const F(problem) *p = ctx;
  const clew_examples in = F(examples)(p);
  const clew_estimates out = {.yhat = p->yhat, .w = p->w};
  const clew_queries q = {
      .batch = BATCH, .n = N, .m = N, .d = D, .x = p->x, .y = p->y, .queries = p->x, .first = 0, .step = 1};
  const clew_stream_settings s = F(settings)(p, 0);
  clew_slab *state = clew_slab_new(F(clew_stream_bytes)(BATCH, &s));
  if (state == NULL)
    return clew_fail(err, CLEW_ERROR_MEMORY, "no state");
  F(clew_stream_begin)(clew_slab_data(state), BATCH, &s);
  clew_status status = F(clew_stream_run)(&out, &in, &s, NULL, err);
  status = status ? status : F(clew_stream_update)(clew_slab_data(state), p->x, p->y, BATCH, &s, err);
  status = status ? status : F(clew_stream_weights)(p->w, NULL, clew_slab_data(state), BATCH, &s, err);
  status = status ? status : F(clew_nadaraya_watson)(p->yhat, &q, 1, NULL, err);
  status = status ? status : F(clew_dmmse)(&out, NULL, &in, p->tasks, NULL, TASKS, 1, NULL, err);
  clew_slab_release(state);
  return status;
}

static void F(test_failures)(F(problem) * p) {
  CHECK(sweep_memory(F(everything), p) >= 10, "few allocations");
  const clew_stream_settings s = F(settings)(p, 1);
  const clew_examples in = F(examples)(p);
  const clew_estimates out = {.yhat = p->yhat};
  clew_error err = {0};
  clew_cancel cancel = {.poll = always, .last_poll = 1};
  CHECK(F(clew_stream_run)(&out, &in, &s, &cancel, &err) == CLEW_ERROR_CANCELLED && err.message[0]);
  const T before = p->y[3 * N + 6];
  p->y[3 * N + 6] = (T)INFINITY;
  CHECK(F(clew_stream_run)(&out, &in, &s, NULL, &err) == CLEW_ERROR_VALUE &&
            strstr(err.message, "the estimate from the first 7 examples"),
        "%s", err.message);
  p->y[3 * N + 6] = before;
}

static void F(all)(void) {
  F(problem) p = F(make)();
  F(test_optimal)(&p);
  F(test_streams)(&p);
  F(test_comparisons)(&p);
  F(test_dmmse)(&p);
  F(test_weights)();
  F(test_failures)(&p);
  clew_slab_release(p.slab);
}

#undef F

#endif
