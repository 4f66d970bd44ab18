/* AdamW, the norm of gradients and their accumulation: closed forms, a plain loop as the reference, cuts and thread
 * counts that must not show, and every allocation failing in turn. Both precisions. */
#include <math.h>

#include "adamw.h"
#include "test.h"

#define N_TENSORS 5
static const size_t sizes[N_TENSORS] = {1, CLEW_ADAMW_TASK, 0, CLEW_ADAMW_TASK + 1, 1000};

typedef struct tensors {
  clew_parameter list[N_TENSORS];
  void *gradients[N_TENSORS];
  bool is_double;
} tensors;

static double get(const void *data, size_t i, bool is_double) {
  return is_double ? ((const double *)data)[i] : (double)((const float *)data)[i];
}

static void put(void *data, size_t i, double value, bool is_double) {
  if (is_double)
    ((double *)data)[i] = value;
  else
    ((float *)data)[i] = (float)value;
}

static double value_of(size_t tensor, size_t i) { return sin((double)(i * 7 + tensor * 1000 + 1)); }
static double gradient_of(size_t tensor, size_t i) { return 3 * cos((double)(i * 5 + tensor * 77)); }

static void begin(tensors *t, bool is_double) {
  memset(t, 0, sizeof *t);
  t->is_double = is_double;
  for (size_t k = 0; k < N_TENSORS; k++) {
    clew_parameter *p = &t->list[k];
    const size_t item = is_double ? sizeof(double) : sizeof(float);
    *p = (clew_parameter){.value = calloc(sizes[k] + 1, item),
                          .m = calloc(sizes[k] + 1, item),
                          .v = calloc(sizes[k] + 1, item),
                          .n = sizes[k],
                          .decay = k % 2 == 0};
    t->gradients[k] = calloc(sizes[k] + 1, item);
    p->gradient = t->gradients[k];
    for (size_t i = 0; i < sizes[k]; i++) {
      put(p->value, i, value_of(k, i), is_double);
      put(t->gradients[k], i, gradient_of(k, i), is_double);
    }
  }
}

static void end(tensors *t) {
  for (size_t k = 0; k < N_TENSORS; k++) {
    free(t->list[k].value);
    free(t->list[k].m);
    free(t->list[k].v);
    free(t->gradients[k]);
  }
}

static clew_status step(tensors *t, const clew_adamw_settings *settings, clew_error *err) {
  return t->is_double ? clew_adamw_f64(t->list, N_TENSORS, settings, err)
                      : clew_adamw_f32(t->list, N_TENSORS, settings, err);
}

/* Three steps against a loop over single values in double. */
static void test_steps(bool is_double) {
  const double tolerance = is_double ? 1e-14 : 2e-6;
  tensors t;
  begin(&t, is_double);
  clew_adamw_settings s = {.rate = 0.02, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-3, .weight_decay = 0.3, .scale = 0.5};
  for (s.step = 1; s.step <= 3; s.step++) {
    clew_error err;
    CHECK(step(&t, &s, &err) == CLEW_OK);
  }
  double worst = 0;
  for (size_t k = 0; k < N_TENSORS; k++) {
    for (size_t i = 0; i < sizes[k]; i++) {
      double p = value_of(k, i), m = 0, v = 0;
      const double g = 0.5 * gradient_of(k, i);
      for (int n = 1; n <= 3; n++) {
        m = 0.9 * m + 0.1 * g;
        v = 0.95 * v + 0.05 * g * g;
        p = p * (k % 2 == 0 ? 1 - 0.02 * 0.3 : 1) -
            0.02 * (m / (1 - pow(0.9, n))) / (sqrt(v / (1 - pow(0.95, n))) + 1e-3);
      }
      worst = fmax(worst, fabs(p - get(t.list[k].value, i, is_double)));
      worst = fmax(worst, fabs(m - get(t.list[k].m, i, is_double)));
      worst = fmax(worst, fabs(v - get(t.list[k].v, i, is_double)) / 3);
    }
  }
  CHECK(worst < tolerance, "worst difference %g", worst);
  end(&t);
}

/* The first step moves by rate · sign of the gradient, whatever its size. */
static void test_first_step_is_the_sign(void) {
  double p[4] = {1, 1, 1, 1}, m[4] = {0}, v[4] = {0};
  const double g[4] = {1e-9, -1e6, 3, 0};
  const clew_parameter list = {.value = p, .m = m, .v = v, .gradient = g, .n = 4};
  const clew_adamw_settings s = {.rate = 0.25, .beta1 = 0.9, .beta2 = 0.999, .eps = 1e-30, .scale = 1, .step = 1};
  clew_error err;
  CHECK(clew_adamw_f64(&list, 1, &s, &err) == CLEW_OK);
  CHECK(fabs(p[0] - 0.75) < 1e-12 && fabs(p[1] - 1.25) < 1e-12 && fabs(p[2] - 0.75) < 1e-12, "%g %g %g", p[0], p[1],
        p[2]);
  CHECK(p[3] == 1, "no gradient, no step: %g", p[3]);
}

static void test_norm_and_sum(bool is_double) {
  tensors t;
  begin(&t, is_double);
  double squares = 0;
  for (size_t k = 0; k < N_TENSORS; k++)
    for (size_t i = 0; i < sizes[k]; i++)
      squares += pow(get(t.gradients[k], i, is_double), 2);
  double norm = 0;
  clew_error err;
  CHECK((is_double ? clew_global_norm_f64(&norm, t.list, N_TENSORS, &err)
                   : clew_global_norm_f32(&norm, t.list, N_TENSORS, &err)) == CLEW_OK);
  CHECK(fabs(norm - sqrt(squares)) < 1e-12 * norm, "norm %.17g, not %.17g", norm, sqrt(squares));
  CHECK((is_double ? clew_accumulate_f64(t.list, N_TENSORS, 2.5, &err)
                   : clew_accumulate_f32(t.list, N_TENSORS, 2.5, &err)) == CLEW_OK);
  double worst = 0;
  for (size_t k = 0; k < N_TENSORS; k++)
    for (size_t i = 0; i < sizes[k]; i++)
      worst = fmax(worst, fabs(get(t.list[k].value, i, is_double) - value_of(k, i) - 2.5 * gradient_of(k, i)));
  CHECK(worst < (is_double ? 1e-14 : 2e-6), "worst difference %g", worst);
  /* floats whose squares are beyond float */
  float big[2] = {3e30f, 4e30f};
  const clew_parameter two = {.gradient = big, .n = 2};
  CHECK(clew_global_norm_f32(&norm, &two, 1, &err) == CLEW_OK && fabs(norm / 5e30 - 1) < 1e-6, "norm %g", norm);
  end(&t);
}

static void test_threads(bool is_double) {
  tensors one, three;
  begin(&one, is_double);
  begin(&three, is_double);
  const clew_adamw_settings s = {
      .rate = 1e-3, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .weight_decay = 0.1, .scale = 0.7, .step = 4};
  clew_error err;
  double norm[2];
  clew_set_threads(1);
  CHECK(step(&one, &s, &err) == CLEW_OK);
  (void)(is_double ? clew_global_norm_f64(&norm[0], one.list, N_TENSORS, &err)
                   : clew_global_norm_f32(&norm[0], one.list, N_TENSORS, &err));
  clew_set_threads(3);
  CHECK(step(&three, &s, &err) == CLEW_OK);
  (void)(is_double ? clew_global_norm_f64(&norm[1], three.list, N_TENSORS, &err)
                   : clew_global_norm_f32(&norm[1], three.list, N_TENSORS, &err));
  CHECK(memcmp(&norm[0], &norm[1], sizeof norm[0]) == 0, "%.17g, %.17g", norm[0], norm[1]);
  for (size_t k = 0; k < N_TENSORS; k++)
    CHECK(memcmp(one.list[k].value, three.list[k].value, sizes[k] * (is_double ? 8 : 4)) == 0, "tensor %zu", k);
  end(&one);
  end(&three);
}

static clew_status every_function(void *ctx, clew_error *err) {
  tensors *t = ctx;
  double norm;
  const clew_adamw_settings s = {.rate = 1e-3, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-8, .scale = 1, .step = 1};
  clew_status status = clew_global_norm_f64(&norm, t->list, N_TENSORS, err);
  status = status != CLEW_OK ? status : clew_accumulate_f64(t->list, N_TENSORS, 1, err);
  return status != CLEW_OK ? status : clew_adamw_f64(t->list, N_TENSORS, &s, err);
}

int main(void) {
  for (int is_double = 0; is_double < 2; is_double++) {
    test_steps(is_double);
    test_norm_and_sum(is_double);
    test_threads(is_double);
  }
  test_first_step_is_the_sign();
  tensors t;
  begin(&t, true);
  CHECK(sweep_memory(every_function, &t) == 4);
  end(&t);
  return finish("test_adamw");
}
