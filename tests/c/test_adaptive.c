/* The constrained transformer and the programme: gradients against differences, thread counts that must not show,
 * refusals, and every allocation failing in turn. Both precisions. */
#include <math.h>
#include <stdlib.h>

#include "adaptive.h"
#include "memory.h"
#include "test.h"

#define DIM 3
#define POINTS 4
#define CONTEXTS 70 /* a chunk and a part of one */

/* The tree of two levels. */
static const double centres[POINTS * DIM] = {-1, -0.7, 0, -1, 0.7, 0, 1, 0, -0.7, 1, 0, 0.7};
static const float centres_f32[POINTS * DIM] = {-1, -0.7f, 0, -1, 0.7f, 0, 1, 0, -0.7f, 1, 0, 0.7f};
static const double spread[DIM] = {0.1, 0, 0.2};
static const float spread_f32[DIM] = {0.1f, 0, 0.2f};

static const clew_adaptive_shape policy = {.dim = DIM, .layers = 2, .heads = 1, .width = 5, .points = POINTS,
                                           .routing = true, .orthonormal = true};
static const clew_adaptive_shape transformer = {.dim = DIM, .layers = 2, .heads = 2, .width = 5, .readout = 6,
                                                .routing = true};

static void fill(double *x, size_t n, double phase) {
  for (size_t i = 0; i < n; i++)
    x[i] = sin(1.7 * (double)i + phase);
}

static double mean_loss(const clew_adaptive_shape *shape, clew_adaptive_batch_f64 batch) {
  double losses[CONTEXTS], sum = 0;
  clew_error err;
  batch.losses = losses, batch.gradient = NULL;
  CHECK(clew_adaptive_pass_f64(shape, &batch, NULL, &err) == CLEW_OK);
  for (size_t i = 0; i < CONTEXTS; i++)
    sum += losses[i];
  return sum / CONTEXTS;
}

static void test_gradient(const clew_adaptive_shape *shape) {
  const size_t n = clew_adaptive_parameters(shape);
  double w[CONTEXTS * DIM], estimate[CONTEXTS * DIM];
  double *parameters = calloc(n, sizeof *parameters), *gradient = calloc(n, sizeof *gradient);
  fill(w, CONTEXTS * DIM, 0.2), fill(estimate, CONTEXTS * DIM, 0.9), fill(parameters, n, 2);
  clew_adaptive_batch_f64 batch = {.parameters = parameters, .centres = centres, .spread = spread, .w = w,
                                   .estimate = estimate, .variance = 0.2, .n = CONTEXTS, .gradient = gradient};
  clew_error err;
  CHECK(clew_adaptive_pass_f64(shape, &batch, NULL, &err) == CLEW_OK);
  double worst = 0;
  for (size_t i = 0; i < n; i++) {
    const double held = parameters[i];
    parameters[i] = held + 1e-6;
    const double above = mean_loss(shape, batch);
    parameters[i] = held - 1e-6;
    const double below = mean_loss(shape, batch);
    parameters[i] = held;
    worst = fmax(worst, fabs((above - below) / 2e-6 - gradient[i]));
  }
  CHECK(worst < 1e-7);
  free(parameters), free(gradient);
}

/* Ten steps of two models; parameters of both in `out` [2, P]. */
static clew_status train(float *out, const clew_adaptive_shape *shape, clew_error *err) {
  const size_t n = 2 * clew_adaptive_parameters(shape);
  float *m = calloc(n, sizeof *m), *v = calloc(n, sizeof *v), both[2 * POINTS * DIM], spreads[2 * DIM];
  const double noise[2] = {0.3, 0.5};
  const uint64_t seeds[2] = {1, 2};
  double losses[20];
  for (size_t i = 0; i < n; i++)
    out[i] = sinf((float)i);
  for (size_t i = 0; i < 2 * POINTS * DIM; i++)
    both[i] = centres_f32[i % (POINTS * DIM)];
  for (size_t i = 0; i < 2 * DIM; i++)
    spreads[i] = spread_f32[i % DIM];
  const clew_adaptive_models_f32 models = {2, out, m, v, both, spreads, POINTS, noise, seeds};
  const clew_adaptive_course course = {.steps = 10, .batch = CONTEXTS, .horizon = 10, .rate = 1e-2, .last_rate = 1e-3};
  const clew_status status = clew_adaptive_train_f32(losses, &models, shape, &course, NULL, err);
  free(m), free(v);
  return status;
}

static clew_status values(double *out, clew_error *err) {
  static const double directions[DIM * DIM] = {1, 0, 0, 0, 1, 0, 0, 0, 1}, quarter[POINTS] = {.25, .25, .25, .25};
  static const int32_t heads[2] = {1, 1}, first[3] = {0, 1, 2};
  static const bool halved[3];
  const clew_programme p = {.dim = DIM, .points = POINTS, .actions = DIM, .layers = 2, .centres = centres,
                            .probabilities = quarter, .directions = directions, .heads = heads, .noise = 0.3,
                            .step = 0.5, .reach = 6};
  return clew_programme_values(out, first, halved, 3, &p, NULL, err);
}

static void test_threads(void) {
  const size_t n = 2 * clew_adaptive_parameters(&policy);
  float *one = calloc(n, sizeof *one), *other = calloc(n, sizeof *other);
  double v[3], u[3];
  clew_error err;
  clew_pool_resize(1);
  CHECK(train(one, &policy, &err) == CLEW_OK && values(v, &err) == CLEW_OK);
  for (unsigned threads = 2; threads <= 4; threads++) {
    clew_pool_resize(threads);
    CHECK(train(other, &policy, &err) == CLEW_OK && values(u, &err) == CLEW_OK);
    CHECK(memcmp(one, other, n * sizeof *one) == 0 && memcmp(u, v, sizeof u) == 0);
  }
  CHECK(v[0] > 0 && v[0] < 1.49 && fabs(v[1] - v[2]) < 1e-12); /* the two subtrees look the same */
  free(one), free(other);
}

static void test_refusals(void) {
  clew_error err;
  clew_adaptive_shape s = policy;
  s.layers = 4;
  CHECK(clew_adaptive_check(&s, &err) == CLEW_ERROR_SHAPE && strstr(err.message, "more than 3 directions"));
  s = policy, s.orthonormal = false;
  CHECK(clew_adaptive_check(&s, &err) == CLEW_ERROR_VALUE && strstr(err.message, "orthonormal directions"));
  s = policy, s.width = 0;
  CHECK(clew_adaptive_check(&s, &err) == CLEW_ERROR_SHAPE && strstr(err.message, "width 0"));
}

/* Each allocation fails in turn: a status, no leak (the sanitizers see), and success in the end. */
static void test_memory(void) {
  float *parameters = calloc(2 * clew_adaptive_parameters(&policy), sizeof *parameters);
  double v[3];
  for (int which = 0; which < 2; which++) {
    clew_status status = CLEW_ERROR_MEMORY;
    for (size_t at = 1; status != CLEW_OK && at < 200; at++) {
      clew_error err;
      clew_memory_fail_at(at);
      status = which == 0 ? train(parameters, &policy, &err) : values(v, &err);
      CHECK(status == CLEW_OK || (status == CLEW_ERROR_MEMORY && strstr(err.message, "out of memory")));
    }
    CHECK(status == CLEW_OK);
    clew_memory_fail_at(0);
  }
  free(parameters);
}

int main(void) {
  test_gradient(&policy);
  test_gradient(&transformer);
  test_threads();
  test_refusals();
  test_memory();
  return finish("test_adaptive");
}
