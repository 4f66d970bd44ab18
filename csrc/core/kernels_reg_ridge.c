/* Ridge and Bayesian regression: the factor of XᵀX + λI is updated by rotations, row by row, so that XᵀX is never
 * formed and small λ keeps its digits. Here also what needs no factor: averaging and one pass of SGD. */
#include "kernels_reg_internal.h"

/* ---- Ridge: L ᵀL = XᵀX + λI, from which L w = t -------------------------------------------------------------- */

typedef struct K(ridge_state) {
  lanes *factor;             /* L: [d, d] */
  lanes *t, *inverse, *work; /* [d] */
} K(ridge_state);

static K(ridge_state) K(ridge_of)(real *state, size_t d) {
  lanes *at = (lanes *)state;
  return (K(ridge_state)){at, at + d * d, at + d * d + d, at + d * d + 2 * d};
}

static void K(factor_begin)(const K(ridge_state) * r, real diagonal, size_t d) {
  for (size_t i = 0; i < d * d + 3 * d; i++)
    r->factor[i] = (lanes){0};
  for (size_t i = 0; i < d; i++) {
    r->factor[i * d + i] = all_lanes(diagonal);
    r->inverse[i] = all_lanes((real)1 / diagonal);
  }
}

size_t K(ridge_vectors)(const clew_stream_settings *s) { return s->d * s->d + 3 * s->d; }

void K(ridge_begin)(real *state, const clew_stream_settings *s) {
  const K(ridge_state) r = K(ridge_of)(state, s->d);
  K(factor_begin)(&r, sqrt_real((real)s->lam), s->d);
}

void K(ridge_update)(real *state, const real *x /* [d, lanes] */, const real *y, const clew_stream_settings *s) {
  const K(ridge_state) r = K(ridge_of)(state, s->d);
  for (size_t j = 0; j < s->d; j++)
    r.work[j] = ((const lanes *)x)[j];
  rotate_in(r.factor, r.t, r.inverse, r.work, *(const lanes *)y, s->d, s->d);
}

void K(ridge_weights)(real *w /* [d, lanes] */, real *state, const clew_stream_settings *s) {
  const K(ridge_state) r = K(ridge_of)(state, s->d);
  solve_lower((lanes *)w, r.work, r.factor, r.t, r.inverse, s->d, s->d);
}

/* ---- Bayes: ridge with λ = 1 of v in w = mean + C v, on Cᵀx / σ ------------------------------------------------ */

size_t K(bayes_vectors)(const clew_stream_settings *s) { return s->d * s->d + 4 * s->d; }

void K(bayes_begin)(real *state, const clew_stream_settings *s) {
  const K(ridge_state) r = K(ridge_of)(state, s->d);
  K(factor_begin)(&r, (real)1, s->d);
}

/* out = scale · Cᵀ x */
static void K(whiten)(lanes *out /* [d] */, const lanes *x /* [d] */, const real *c /* [d, d] */, real scale,
                      size_t d) {
  for (size_t j = 0; j < d; j++)
    out[j] = (lanes){0};
  for (size_t i = 0; i < d; i++) {
    const lanes value = x[i] * scale;
    for (size_t j = 0; j <= i; j++)
      out[j] += value * c[i * d + j];
  }
}

void K(bayes_update)(real *state, const real *x /* [d, lanes] */, const real *y, const clew_stream_settings *s) {
  const K(ridge_state) r = K(ridge_of)(state, s->d);
  const lanes *from = (const lanes *)x;
  const real over = (real)1 / sqrt_real((real)s->noise_var), *mean = s->mean;
  lanes rest = *(const lanes *)y;
  for (size_t j = 0; mean != NULL && j < s->d; j++)
    rest -= mean[j] * from[j];
  K(whiten)(r.work, from, s->matrices, over, s->d);
  rotate_in(r.factor, r.t, r.inverse, r.work, rest * over, s->d, s->d);
}

void K(bayes_weights)(real *w /* [d, lanes] */, real *state, const clew_stream_settings *s) {
  const size_t d = s->d;
  const K(ridge_state) r = K(ridge_of)(state, d);
  const real *c = s->matrices, *mean = s->mean;
  lanes *out = (lanes *)w, *v = r.work + d;
  solve_lower(v, r.work, r.factor, r.t, r.inverse, d, d);
  for (size_t i = 0; i < d; i++) {
    lanes sum = all_lanes(mean == NULL ? (real)0 : mean[i]);
    for (size_t j = 0; j <= i; j++)
      sum += c[i * d + j] * v[j];
    out[i] = sum;
  }
}

void K(bayes_variance)(real *variance /* [lanes] */, real *state, const real *x /* [d, lanes] */,
                       const clew_stream_settings *s) {
  const K(ridge_state) r = K(ridge_of)(state, s->d);
  K(whiten)(r.work, (const lanes *)x, s->matrices, (real)1, s->d);
  solve_upper(r.work, r.factor, r.inverse, s->d, s->d);
  *(lanes *)variance = dot_lanes(r.work, r.work, s->d);
}

/* C L⁻¹ L⁻ᵀ Cᵀ: with the rows of G = L⁻ᵀ Cᵀ, whose column i is L⁻ᵀ times row i of C. */
void K(bayes_covariance)(real *covariance /* [d, d, lanes] */, real *state, const clew_stream_settings *s) {
  const size_t d = s->d;
  const K(ridge_state) r = K(ridge_of)(state, d);
  const real *c = s->matrices;
  lanes *out = (lanes *)covariance;
  for (size_t i = 0; i < d; i++) { /* row i of out: L⁻ᵀ cᵢ */
    for (size_t j = 0; j < d; j++)
      out[i * d + j] = j <= i ? all_lanes(c[i * d + j]) : (lanes){0};
    solve_upper(out + i * d, r.factor, r.inverse, d, d);
  }
  for (size_t i = d; i-- > 0;) { /* products with the rows before: those are still there, row i is used up last */
    for (size_t j = 0; j < i; j++)
      r.work[j] = dot_lanes(out + i * d, out + j * d, d);
    r.work[i] = dot_lanes(out + i * d, out + i * d, d);
    for (size_t j = 0; j <= i; j++)
      out[i * d + j] = r.work[j];
  }
  for (size_t i = 0; i < d; i++)
    for (size_t j = 0; j < i; j++)
      out[j * d + i] = out[i * d + j];
}

/* ---- Averaging, SGD ------------------------------------------------------------------------------------------- */

size_t K(averaging_vectors)(const clew_stream_settings *s) { return s->d + 1; }

void K(averaging_begin)(real *state, const clew_stream_settings *s) {
  for (size_t i = 0; i <= s->d; i++)
    ((lanes *)state)[i] = (lanes){0};
}

void K(averaging_update)(real *state, const real *x /* [d, lanes] */, const real *y, const clew_stream_settings *s) {
  lanes *sum = (lanes *)state;
  add_lanes(sum, *(const lanes *)y, (const lanes *)x, s->d);
  sum[s->d] += all_lanes(1);
}

void K(averaging_weights)(real *w /* [d, lanes] */, real *state, const clew_stream_settings *s) {
  const lanes *sum = (const lanes *)state, count = sum[s->d];
  for (size_t j = 0; j < s->d; j++)
    ((lanes *)w)[j] = choose((lane_mask)(count > (lanes){0}), sum[j] / count, (lanes){0});
}

size_t K(sgd_vectors)(const clew_stream_settings *s) { return s->d; }

void K(sgd_begin)(real *state, const clew_stream_settings *s) {
  for (size_t i = 0; i < s->d; i++)
    ((lanes *)state)[i] = (lanes){0};
}

void K(sgd_update)(real *state, const real *x /* [d, lanes] */, const real *y, const clew_stream_settings *s) {
  lanes *w = (lanes *)state;
  const lanes *from = (const lanes *)x;
  add_lanes(w, (real)s->rates[0] * (*(const lanes *)y - dot_lanes(from, w, s->d)), from, s->d);
}

void K(sgd_weights)(real *w /* [d, lanes] */, real *state, const clew_stream_settings *s) {
  for (size_t j = 0; j < s->d; j++)
    ((lanes *)w)[j] = ((const lanes *)state)[j];
}
