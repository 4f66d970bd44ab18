/* Regression in context: what every prefix of a sequence of examples (x_i, y_i) predicts for the next one.
 *
 * Prefix p is the examples 0 … p − 1. All arrays are contiguous; x and tasks lie in slabs (products may read behind
 * them). Values are the caller's to check: finite, variances positive. A sequence is one row of the
 * batch; work is cut by shape, so results are the same bits for any number of threads. A result that is no finite
 * number ends the call with CLEW_ERROR_VALUE and says where. */
#ifndef CLEW_REGRESSION_H
#define CLEW_REGRESSION_H

#include "clew.h"
#include "pool.h"

/* Examples, and the prefixes first … last (0 ≤ first ≤ last ≤ n) that estimates are wanted of. */
typedef struct clew_examples {
  size_t batch, n, d;
  const void *x; /* [batch, n, d] */
  const void *y; /* [batch, n] */
  size_t first, last;
} clew_examples;

/* What a stream gives, rows = last − first + 1 of them for each sequence; NULL: not wanted. */
typedef struct clew_estimates {
  void *yhat;       /* [batch, rows]: x_p · w, for prefixes below n */
  void *w;          /* [batch, rows, d] */
  void *variance;   /* BAYES: of x_p · w, without noise, [batch, rows], for prefixes below n */
  void *covariance; /* BAYES: of w, [batch, rows, d, d] */
} clew_estimates;

/* d from which gradient descent of all prefixes goes by matrix products (op_reg_descent.c), not by lanes. */
#define CLEW_WIDE 96

/* Examples that are compared with queries. Query i of a sequence sees its examples 0 … min(first + i · step, n) − 1:
 * all prefixes are queries = x, first = 0, step = 1; a fit to all examples is first = n, step = 0. */
typedef struct clew_queries {
  size_t batch, n, m, d; /* examples and queries of a sequence */
  const void *x, *y;     /* [batch, n, d], [batch, n] */
  const void *queries;   /* [batch, m, d] */
  size_t first, step;
} clew_queries;

#define CLEW_DECLARE_REGRESSION(suffix)                                                                                \
  clew_status clew_stream_run##suffix(const clew_estimates *out, const clew_examples *examples,                        \
                                      const clew_stream_settings *settings, clew_cancel *cancel, clew_error *err);     \
  /* The same for GD, by matrix products. */                                                                           \
  clew_status clew_descent_run##suffix(const clew_estimates *out, const clew_examples *examples,                       \
                                       const clew_stream_settings *settings, clew_cancel *cancel, clew_error *err);    \
  /* The steps of a stream that goes on: state holds the groups of a batch. bytes: what it takes. */                   \
  size_t clew_stream_bytes##suffix(size_t batch, const clew_stream_settings *settings);                                \
  void clew_stream_begin##suffix(void *state, size_t batch, const clew_stream_settings *settings);                     \
  /* x [batch, d], y [batch] */                                                                                        \
  clew_status clew_stream_update##suffix(void *state, const void *x, const void *y, size_t batch,                      \
                                         const clew_stream_settings *settings, clew_error *err);                       \
  /* w [batch, d]; covariance [batch, d, d] or NULL */                                                                 \
  clew_status clew_stream_weights##suffix(void *w, void *covariance, void *state, size_t batch,                        \
                                          const clew_stream_settings *settings, clew_error *err);                      \
  /* Softmax of scale · q·x over the examples seen, as weights of their y; out [batch, m]; nothing seen gives 0. */  \
  clew_status clew_nadaraya_watson##suffix(void *out, const clew_queries *q, double scale, clew_cancel *cancel,        \
                                           clew_error *err);                                                           \
  /* Mean y of the k examples nearest to the query; of equal distances the earlier one. */                             \
  clew_status clew_knn##suffix(void *out, const clew_queries *q, size_t k, clew_cancel *cancel, clew_error *err);      \
  /* Kernel exp(−gamma ‖x − x'‖²), lam on the diagonal. All prefixes come from one Cholesky factor. */        \
  clew_status clew_kernel_ridge##suffix(void *out, const clew_queries *q, double gamma, double lam,                    \
                                        clew_cancel *cancel, clew_error *err);                                         \
  /* The posterior mean under w uniform over tasks [n_tasks, d] (or with log_prior [n_tasks], not NULL) and noise      \
   * noise_var. evidence [batch, rows], in nats, not NULL: log p(y_0 … y_{p−1}). */                                \
  clew_status clew_dmmse##suffix(const clew_estimates *out, double *evidence, const clew_examples *examples,           \
                                 const void *tasks, const void *log_prior, size_t n_tasks, double noise_var,           \
                                 clew_cancel *cancel, clew_error *err);

CLEW_DECLARE_REGRESSION(_f32)
CLEW_DECLARE_REGRESSION(_f64)

#endif
