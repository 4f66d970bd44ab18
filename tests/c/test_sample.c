/* Choosing tokens: the likeliest, ties, what k and p leave, random numbers, and what is refused. */
#include <math.h>

#include "sample.h"
#include "test.h"

static void test_uniform(void) {
  double sum = 0, squares = 0;
  const int n = 20000;
  for (int i = 0; i < n; i++) {
    const double u = clew_uniform(7, (uint64_t)(i % 50), (uint64_t)(i / 50));
    CHECK(u >= 0 && u < 1);
    sum += u, squares += u * u;
  }
  CHECK(fabs(sum / n - 0.5) < 0.01 && fabs(squares / n - 1.0 / 3) < 0.01, "%g %g", sum / n, squares / n);
  CHECK(clew_uniform(1, 2, 3) == clew_uniform(1, 2, 3));
  CHECK(clew_uniform(1, 2, 3) != clew_uniform(1, 3, 2) && clew_uniform(1, 2, 3) != clew_uniform(2, 2, 3));
}

/* How often each of n tokens comes in 2000 draws. */
static void count(int *counts, const double *logits, size_t n, clew_sampling how) {
  memset(counts, 0, n * sizeof *counts);
  for (int64_t i = 0; i < 2000; i++) {
    int32_t id = -1;
    double log_prob = 1;
    const int64_t step = 0;
    clew_error err = {.message = ""};
    CHECK(clew_sample(&id, &log_prob, logits, CLEW_FLOAT64, 1, n, &how, &i, &step, &err) == CLEW_OK, "%s", err.message);
    CHECK(id >= 0 && (size_t)id < n && log_prob <= 0);
    counts[id >= 0 && (size_t)id < n ? id : 0]++;
  }
}

static void test_choices(void) {
  const double logits[6] = {0, 3, -INFINITY, 3, 1, 2};
  int c[6];
  count(c, logits, 6, (clew_sampling){.temperature = 0, .top_p = 1});
  CHECK(c[1] == 2000, "the lower of two equal ones");
  count(c, logits, 6, (clew_sampling){.temperature = 1, .top_p = 1});
  CHECK(c[2] == 0 && c[0] > 10 && abs(c[1] - c[3]) < 150 && c[1] > c[5] && c[5] > c[4]);
  count(c, logits, 6, (clew_sampling){.temperature = 1, .top_k = 3, .top_p = 1});
  CHECK(c[0] + c[2] + c[4] == 0 && c[5] > 100);
  count(c, logits, 6, (clew_sampling){.temperature = 1, .top_p = 0.3});
  CHECK(c[1] == 2000, "one is always left");
  count(c, logits, 6, (clew_sampling){.temperature = 1, .top_p = 0.5});
  CHECK(c[1] + c[3] == 2000 && c[3] > 100);
  count(c, logits, 6, (clew_sampling){.temperature = 1, .top_k = 3, .top_p = 0.5});
  CHECK(c[1] + c[3] == 2000 && c[3] > 100);
  count(c, logits, 6, (clew_sampling){.temperature = 1, .top_k = 100, .top_p = 1});
  CHECK(c[0] > 10 && c[2] == 0);
  count(c, logits, 1, (clew_sampling){.temperature = 1, .top_p = 0.5});
  CHECK(c[0] == 2000);
}

static clew_status sample_once(void *ctx, clew_error *err) {
  const float logits[4] = {1, 2, 3, 4};
  int32_t ids[2];
  double log_probs[2];
  const int64_t streams[2] = {0, 1}, steps[2] = {0, 0};
  return clew_sample(ids, log_probs, logits, CLEW_FLOAT32, 2, 2, ctx, streams, steps, err);
}

static void test_refusals(void) {
  clew_sampling how = {.temperature = 1, .top_p = 0.9};
  CHECK(sweep_memory(sample_once, &how) >= 1);
  const double bad[2][2] = {{0, NAN}, {INFINITY, 0}}, none[2] = {-INFINITY, -INFINITY};
  const int64_t stream = 5, step = 0;
  int32_t id;
  double log_prob;
  clew_error err;
  for (int i = 0; i < 3; i++) {
    const double *logits = i < 2 ? bad[i] : none;
    CHECK(clew_sample(&id, &log_prob, logits, CLEW_FLOAT64, 1, 2, &how, &stream, &step, &err) == CLEW_ERROR_VALUE &&
              strstr(err.message, "sequence 5"),
          "%s", err.message);
  }
  how.top_p = 0;
  CHECK(sample_once(&how, &err) == CLEW_ERROR_VALUE && strstr(err.message, "top_p 0"), "%s", err.message);
  how.top_p = 1, how.temperature = -1;
  CHECK(sample_once(&how, &err) == CLEW_ERROR_VALUE && strstr(err.message, "temperature -1"), "%s", err.message);
}

int main(void) {
  test_uniform();
  test_choices();
  test_refusals();
  return finish("test_sample");
}
