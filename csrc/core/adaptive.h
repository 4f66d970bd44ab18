/* The constrained linear-attention transformer of clew.adaptive, and the dynamic programme it is held against.
 *
 * A context is a vector w [dim]; its examples reduce to one estimate, ŵ = (1/N) Σ y_i x_i. Layer l asks `heads`
 * questions: directions u = W2 · tanh(W1 · p + b1) + b2, where p holds the answers so far, and gets the answers
 * m = u · ŵ, which are appended to p. A readout turns all answers into an estimate of w: a network of one hidden layer,
 * or the exact posterior mean of a prior that is a mixture of Gaussians of one common diagonal covariance.
 *
 * Parameters of one model lie in one array: for each layer W1 [width, layer · heads], b1 [width],
 * W2 [heads · dim, width], b2 [heads · dim]; with a readout network V1 [readout, layers · heads], c1 [readout],
 * V2 [dim, readout], c2 [dim].
 *
 * Contexts are cut into chunks of CLEW_ADAPTIVE_LANES, whatever the number of threads, and sums over chunks are made in
 * order: results are the same bits for any number of threads. */
#ifndef CLEW_ADAPTIVE_H
#define CLEW_ADAPTIVE_H

#include "clew.h"
#include "pool.h"

#define CLEW_ADAPTIVE_LANES ((size_t)64) /* contexts side by side in a kernel */

typedef struct clew_adaptive_shape {
  size_t dim, layers, heads;
  size_t width;     /* hidden units of each layer's network */
  size_t readout;   /* hidden units of the readout; 0: the exact posterior mean */
  size_t points;    /* centres of the prior's mixture; 0 with a readout network */
  bool routing;     /* false: networks see zeros instead of p */
  bool orthonormal; /* directions are made orthonormal to all earlier ones of their context */
} clew_adaptive_shape;

size_t clew_adaptive_parameters(const clew_adaptive_shape *shape); /* of one model */
size_t clew_adaptive_scratch(const clew_adaptive_shape *shape);    /* values that a chunk needs */

clew_status clew_adaptive_check(const clew_adaptive_shape *shape, clew_error *err);

/* Adam with a rate that falls along half a cosine from `rate` at step 0 to `last_rate` at step `horizon`. */
typedef struct clew_adaptive_course {
  size_t steps, batch;
  int64_t first_step, horizon;
  double rate, last_rate;
} clew_adaptive_course;

#define CLEW_DECLARE_ADAPTIVE(suffix, type)                                                                            \
  /* What a kernel is given: up to CLEW_ADAPTIVE_LANES contexts side by side, [.., lanes] each. */                     \
  struct clew_adaptive_chunk##suffix {                                                                                 \
    clew_adaptive_shape shape;                                                                                         \
    const type *parameters, *centres, *spread; /* [P], [points, dim], [dim] */                                         \
    type variance;                             /* of ŵ around w, in each direction */                                 \
    const type *w, *estimate;                  /* [dim, lanes]; w NULL: no loss */                                     \
    const type *x, *y;                         /* [n, tokens, dim], [n, tokens]: examples instead of an estimate */    \
    size_t tokens, n, start;                   /* layers before start keep the messages that are there */              \
    type *messages, *directions, *prediction; /* [layers · heads, lanes], [layers · heads, dim, lanes], [dim, lanes] \
                                               */                                                                      \
    double *losses;                           /* [lanes] squared errors */                                             \
    type *gradient;                           /* [P], added to; NULL: forward only */                                  \
    type weight;                              /* of each context's squared error in the gradient */                    \
    type *scratch;                            /* [clew_adaptive_scratch] */                                            \
  };                                                                                                                   \
  /* Contexts in rows. Each output may be NULL; messages are read as well when start > 0. With x and y, estimate is    \
   * NULL and every message is the mean of y_i (u · x_i) over tokens. gradient [P] is that of the mean loss. */       \
  typedef struct clew_adaptive_batch##suffix {                                                                         \
    const type *parameters, *centres, *spread, *w, *estimate, *x, *y;                                                  \
    double variance;                                                                                                   \
    size_t n, tokens, start;                                                                                           \
    type *prediction, *messages, *directions; /* [n, dim], [n, layers · heads], [n, layers · heads, dim] */          \
    double *losses;                           /* [n] */                                                                \
    type *gradient;                           /* [P] */                                                                \
  } clew_adaptive_batch##suffix;                                                                                       \
  clew_status clew_adaptive_pass##suffix(const clew_adaptive_shape *shape, const clew_adaptive_batch##suffix *batch,   \
                                         clew_cancel *cancel, clew_error *err);                                        \
  /* Trains models side by side, each on contexts of its own prior and seed. Contexts of a step depend on the seed and \
   * the step alone, and their normal variates have float's precision at either precision. */                          \
  typedef struct clew_adaptive_models##suffix {                                                                        \
    size_t n;                                                                                                          \
    type *parameters, *m, *v;     /* [n, P]; m, v: Adam's means, 0 at first */                                         \
    const type *centres, *spread; /* [n, draws, dim], [n, dim] */                                                      \
    size_t draws;                 /* centres that contexts are drawn around, equally likely */                         \
    const double *noise;          /* [n] standard deviation of ŵ around w */                                          \
    const uint64_t *seeds;        /* [n] */                                                                            \
  } clew_adaptive_models##suffix;                                                                                      \
  clew_status clew_adaptive_train##suffix(double *losses /* [steps, n] */, const clew_adaptive_models##suffix *models, \
                                          const clew_adaptive_shape *shape, const clew_adaptive_course *course,        \
                                          clew_cancel *cancel, clew_error *err);

CLEW_DECLARE_ADAPTIVE(_f32, float)
CLEW_DECLARE_ADAPTIVE(_f64, double)

/* ---- The programme -------------------------------------------------------------------------------------------- */

/* The least expected posterior variance of w over policies that choose among given directions.
 *
 * The prior: centres, each with its probability, and `spread`, the variance of a Gaussian around each of them in every
 * direction. A layer chooses heads[l] different actions at once; what it sees of them is the part orthogonal to all
 * earlier ones, of unit length, with noise of standard deviation `noise`. Expectations over a message are sums over a
 * grid of `step` standard deviations that reaches `reach` of them beyond the outermost centres. */
typedef struct clew_programme {
  size_t dim, points, actions, layers;
  const double *centres, *probabilities, *directions; /* [points, dim], [points], [actions, dim] of unit length */
  const int32_t *heads;                               /* [layers] */
  double spread, noise, step, reach;
} clew_programme;

/* values [n] = that variance when the first layer's actions are first [n, heads[0]]; halved [n]: the prior and every
 * later choice look the same when that layer's first message changes its sign, so one half of its grid will do. */
clew_status clew_programme_values(double *values, const int32_t *first, const bool *halved, size_t n,
                                  const clew_programme *programme, clew_cancel *cancel, clew_error *err);

#endif
