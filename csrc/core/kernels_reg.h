/* Streams: estimators that read one example after the other, several sequences side by side in the lanes of a register.
 *
 * A group is as many sequences as a register has lanes; its state is state_vectors(settings) registers, and what it
 * reads and gives is interleaved: x [d, lanes], y [lanes], w [d, lanes]. A step costs O(d²) unless said otherwise, and
 * the other lanes change a lane's last bits at most.
 *
 *   begin(state, s); for each example: weights(w, state, s) if they are wanted; update(state, x, y, s);
 *
 * A weight vector is the estimate from the examples read so far; before the first one it is the prior mean. */
#ifndef CLEW_KERNELS_REG_H
#define CLEW_KERNELS_REG_H

#include <stdbool.h>
#include <stddef.h>

#include "real.h"

#define BITS_PER_NAT 1.44269504088896340736 /* scores of posteriors and kernels are in bits */

typedef enum clew_stream {
  CLEW_STREAM_OLS,       /* minimum-norm least squares */
  CLEW_STREAM_RIDGE,     /* lam > 0 */
  CLEW_STREAM_BAYES,     /* prior N(mean, factor · factorᵀ), noise noise_var */
  CLEW_STREAM_AVERAGING, /* (1/k) Σ y x: O(d) */
  CLEW_STREAM_SGD,       /* w += rates[0] (y − x·w) x, one pass: O(d) */
  CLEW_STREAM_GD,        /* steps of gradient descent on (1/2k)‖Xw − y‖² from 0: weights cost O(steps d²) */
  CLEW_STREAM_GD_PP,     /* GD++: weights cost O(steps d³) */
  CLEW_STREAM_NEWTON,    /* Newton–Schulz for (XᵀX + lam I)⁻¹: weights cost O(steps d³) */
  CLEW_STREAM_LASSO,     /* from the last weights: an iteration costs O(d³) */
  CLEW_N_STREAMS
} clew_stream;

/* Arrays are borrowed. matrices and mean are of the precision of the computation. */
typedef struct clew_stream_settings {
  clew_stream kind;
  size_t d;
  double lam, noise_var, alpha, tol, momentum;
  size_t steps;
  const double *rates;   /* [steps]; SGD: [1] */
  const double *gammas;  /* [steps], GD++ */
  const void *matrices;  /* GD: preconditioners [n_matrices, d, d], NULL: none; BAYES: the lower factor [d, d] */
  size_t n_matrices;     /* 1: the same at every step; or steps */
  const void *mean;      /* BAYES: [d]; NULL: 0 */
  size_t max_iterations; /* LASSO */
} clew_stream_settings;

#define CLEW_DECLARE_STREAMS(suffix, real)                                                                                \
  typedef struct clew_stream_kernel##suffix {                                                                             \
    size_t (*state_vectors)(const clew_stream_settings *s);                                                               \
    void (*begin)(real * state, const clew_stream_settings *s);                                                           \
    void (*update)(real * state, const real *x, const real *y, const clew_stream_settings *s);                            \
    void (*weights)(real * w, real *state, const clew_stream_settings *s);                                                \
  } clew_stream_kernel##suffix;                                                                                           \
  /* One prefix of one sequence while tasks stream by: Σ 2^(score − shift + ½), and the same times predictions; shift \
   * is the highest score so far and ½. Scores are in bits: log2 of what they stand for. */                              \
  typedef struct clew_posterior##suffix {                                                                                 \
    double sum, weighted, correction;                                                                                     \
    real shift, block_maximum;                                                                                            \
  } clew_posterior##suffix;                                                                                               \
  typedef struct clew_reg_kernels##suffix {                                                                               \
    size_t lanes;                                                                                                         \
    clew_stream_kernel##suffix streams[CLEW_N_STREAMS];                                                                   \
    /* BAYES: the variance of x·w under the posterior [lanes], and the posterior's covariance of w [d, d, lanes]. */     \
    void (*variance)(real * variance, real *state, const real *x, const clew_stream_settings *s);                         \
    void (*covariance)(real * covariance, real *state, const clew_stream_settings *s);                                    \
    void (*dot)(real * out, const real *x, const real *w, size_t d); /* [lanes] = Σ x [d, lanes] w [d, lanes] */         \
    /* Rows, not lanes. out [n] = squared distances of q [d] from the columns of x [d, ld]. */                            \
    void (*distances)(real * out, const real *x, size_t ld, const real *q, size_t n, size_t d);                           \
    void (*scaled_exp)(real * out, real factor, size_t n); /* out = exp(factor · out) ≤ 1 */                           \
    /* Two queries' scores of n keys, in bits; shift (−inf at first), Σ e and Σ e y, [2], are brought up to date.     \
     * Fastest where n is a multiple of the lanes. */                                                                     \
    void (*attend)(real * shift, double *sum, double *weighted, const real *first, const real *second, const real *y,     \
                   size_t n);                                                                                             \
    /* a [m, nb] ← a L⁻ᵀ from Lᵀ [nb, nb] and 1 / L_ii. */                                                        \
    void (*solve_rows)(real * a, size_t ld, const real *transposed, const real *inverse, size_t m, size_t nb);            \
    /* out [rows, n] = x [rows, d] · tasks [d, n] for a short d; n is rounded up to a multiple of 32, within ld. */      \
    void (*predict_block)(real * out, const real *x, const real *tasks, size_t ld, size_t n, size_t rows, size_t d);      \
    /* Takes n tasks, whose scores are their log-weights after a prefix, into row[0] if `wanted`; `keep` leaves their     \
     * weights (times 2^(row->shift − ½)) in the predictions' place. Then the scores take (y, predictions) in, and     \
     * row[1].block_maximum is their maximum. row->correction is what earlier weights are multiplied by. */               \
    void (*posterior_block)(clew_posterior##suffix * row, real *score, real *prediction, bool wanted, bool keep,          \
                            real y, real half_precision, size_t n);                                                       \
  } clew_reg_kernels##suffix;

CLEW_DECLARE_STREAMS(_f32, float)
CLEW_DECLARE_STREAMS(_f64, double)

#endif
