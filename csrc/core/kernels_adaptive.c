/* The constrained transformer on up to N contexts at once, forward and backward, and the inner sum of its programme.
 *
 * Every quantity of a context is a row of N lanes, one for each context: all loops over lanes are vector code, and
 * weights are broadcast. Lanes beyond the contexts hold zeros and weigh nothing. */
#include <string.h>

#include "adaptive.h"
#include "kernels_internal.h"

#define N CLEW_ADAPTIVE_LANES
#define BLOCK (4 * LANES) /* lanes that are kept in registers */
#define EACH(c) for (size_t c = 0; c < N; c++)

typedef struct R(clew_adaptive_chunk) chunk_t;

/* Where everything lies in the scratch; [.., N] each. */
typedef struct work {
  real *hidden, *readout;                      /* [layers, width], [readout] */
  real *raw, *norm;                            /* [n, dim], [n] */
  real *factor, *solved, *answer;              /* [n, n] lower Cholesky factor of S, [n, dim] S⁻¹ Q, [n] S⁻¹ m */
  real *probability;                           /* [points] */
  real *residual;                              /* [n] S⁻¹ (m − Q mean) */
  real *centre;                                /* [dim] posterior mean of the centres */
  real *d_directions, *sums;                   /* [n, dim]: gradient, Σ_i dr_i α_i μ_iᵀ */
  real *d_s, *d_messages;                      /* [n, n], [n] */
  real *dots, *alpha, *beta;                   /* [n]: Σ_i dr_i α_i, α_i, S⁻¹ of a gradient */
  real *d_centre, *d_out, *scaled, *d_raw_one; /* [dim] */
  real *highest, *total, *rest, *one;          /* [1] */
  real *d_hidden, *d_raw;                      /* [width or readout], [heads · dim] */
} work;

static real *take(real **at, size_t rows) {
  real *p = *at;
  *at += rows * N;
  return p;
}

static work lay_out(const chunk_t *k) {
  const clew_adaptive_shape *s = &k->shape;
  const size_t n = s->layers * s->heads, d = s->dim;
  real *at = k->scratch;
  work w;
  w.hidden = take(&at, s->layers * s->width), w.readout = take(&at, s->readout);
  w.raw = take(&at, n * d), w.norm = take(&at, n);
  w.factor = take(&at, n * n), w.solved = take(&at, n * d), w.answer = take(&at, n);
  w.probability = take(&at, s->points);
  w.d_directions = take(&at, n * d), w.sums = take(&at, n * d);
  w.d_s = take(&at, n * n), w.d_messages = take(&at, n);
  w.dots = take(&at, n), w.alpha = take(&at, n), w.beta = take(&at, n), w.residual = take(&at, n);
  w.centre = take(&at, d), w.d_centre = take(&at, d), w.d_out = take(&at, d), w.scaled = take(&at, d);
  w.d_raw_one = take(&at, d);
  w.highest = take(&at, 1), w.total = take(&at, 1), w.rest = take(&at, 1), w.one = take(&at, 1);
  w.d_hidden = take(&at, s->width > s->readout ? s->width : s->readout);
  w.d_raw = take(&at, s->heads * d);
  return w;
}

/* ---- Rows of lanes -------------------------------------------------------------------------------------------- */

static void set_row(real *out /* [N] */, real value) {
#pragma omp simd
  EACH(c) out[c] = value;
}

/* out += x · y */
static void add_product(real *restrict out, const real *restrict x, const real *restrict y) {
#pragma omp simd
  EACH(c) out[c] = fma_real(x[c], y[c], out[c]);
}

/* out −= x · y */
static void sub_product(real *restrict out, const real *restrict x, const real *restrict y) {
#pragma omp simd
  EACH(c) out[c] = fma_real(-x[c], y[c], out[c]);
}

/* out += factor · x */
static void add_scaled(real *restrict out, const real *restrict x, real factor) {
#pragma omp simd
  EACH(c) out[c] = fma_real(factor, x[c], out[c]);
}

/* out [n_out, N] = bias + W [n_out, n_in] · in [n_in, N] */
static void dense(real *out, const real *W, const real *bias, const real *in, size_t n_out, size_t n_in) {
  for (size_t o = 0; o < n_out; o++) {
    for (size_t c = 0; c < N; c += BLOCK) {
      vec a[4] = {splat(bias[o]), splat(bias[o]), splat(bias[o]), splat(bias[o])};
      for (size_t i = 0; i < n_in; i++) {
        const vec w = splat(W[o * n_in + i]);
        for (size_t v = 0; v < 4; v++)
          a[v] += w * load(in + i * N + c + v * LANES);
      }
      for (size_t v = 0; v < 4; v++)
        store(out + o * N + c + v * LANES, a[v]);
    }
  }
}

/* d_in [n_in, N] (+)= Wᵀ · d_out [n_out, N] */
static void dense_inputs(real *d_in, const real *W, const real *d_out, size_t n_out, size_t n_in, bool add) {
  for (size_t i = 0; i < n_in; i++) {
    for (size_t c = 0; c < N; c += BLOCK) {
      vec a[4];
      for (size_t v = 0; v < 4; v++)
        a[v] = add ? load(d_in + i * N + c + v * LANES) : splat(0);
      for (size_t o = 0; o < n_out; o++) {
        const vec w = splat(W[o * n_in + i]);
        for (size_t v = 0; v < 4; v++)
          a[v] += w * load(d_out + o * N + c + v * LANES);
      }
      for (size_t v = 0; v < 4; v++)
        store(d_in + i * N + c + v * LANES, a[v]);
    }
  }
}

static vec product_sum(const real *x /* [N] */, const real *y /* [N] */) {
  vec sum = load(x) * load(y);
  for (size_t c = LANES; c < N; c += LANES)
    sum += load(x + c) * load(y + c);
  return sum;
}

/* dW [n_out, n_in] += d_out · inᵀ, d_bias [n_out] += sums over lanes */
static void dense_weights(real *dW, real *d_bias, const real *d_out, const real *in, size_t n_out, size_t n_in) {
  for (size_t o = 0; o < n_out; o++) {
    const real *d = d_out + o * N;
    real sums[4];
    size_t i = 0;
    for (; i + 4 <= n_in; i += 4) {
      lane_sums(sums, product_sum(d, in + i * N), product_sum(d, in + (i + 1) * N), product_sum(d, in + (i + 2) * N),
                product_sum(d, in + (i + 3) * N));
      for (size_t j = 0; j < 4; j++)
        dW[o * n_in + i + j] += sums[j];
    }
    for (; i < n_in; i++)
      dW[o * n_in + i] += lane_sum(product_sum(d, in + i * N));
    vec sum = load(d);
    for (size_t c = LANES; c < N; c += LANES)
      sum += load(d + c);
    d_bias[o] += lane_sum(sum);
  }
}

/* ---- Messages ------------------------------------------------------------------------------------------------- */

/* message [N] = u · ŵ, or the mean over tokens of y_i (u · x_i). u: [dim, N] */
static void message_forward(real *message, const real *u, const chunk_t *k) {
  const size_t d = k->shape.dim;
  set_row(message, 0);
  if (k->x == NULL) {
    for (size_t j = 0; j < d; j++)
      add_product(message, u + j * N, k->estimate + j * N);
    return;
  }
  for (size_t c = 0; c < k->n; c++) {
    real sum = 0;
    for (size_t t = 0; t < k->tokens; t++) {
      const real *x = k->x + (c * k->tokens + t) * d;
      real h = 0;
      for (size_t j = 0; j < d; j++)
        h += u[j * N + c] * x[j];
      sum += k->y[c * k->tokens + t] * h;
    }
    message[c] = sum / (real)k->tokens;
  }
}

/* d_u [dim, N] += d_message [N] · ŵ */
static void message_backward(real *d_u, const real *d_message, const chunk_t *k) {
  const size_t d = k->shape.dim;
  if (k->x == NULL) {
    for (size_t j = 0; j < d; j++)
      add_product(d_u + j * N, d_message, k->estimate + j * N);
    return;
  }
  for (size_t c = 0; c < k->n; c++) {
    for (size_t t = 0; t < k->tokens; t++) {
      const real *x = k->x + (c * k->tokens + t) * d;
      const real g = d_message[c] * k->y[c * k->tokens + t] / (real)k->tokens;
      for (size_t j = 0; j < d; j++)
        d_u[j * N + c] += g * x[j];
    }
  }
}

/* q = the part of raw orthogonal to the directions before it, of unit length. q, raw: [dim, N] of direction i */
static void orthonormal_forward(real *q, real *norm, const real *raw, const real *directions, size_t i, size_t d,
                                real *one) {
  memcpy(q, raw, d * N * sizeof *q);
  for (size_t b = 0; b < i; b++) {
    const real *before = directions + b * d * N;
    set_row(one, 0);
    for (size_t j = 0; j < d; j++)
      add_product(one, before + j * N, raw + j * N);
    for (size_t j = 0; j < d; j++)
      sub_product(q + j * N, one, before + j * N);
  }
  set_row(norm, (real)1e-30);
  for (size_t j = 0; j < d; j++)
    add_product(norm, q + j * N, q + j * N);
#pragma omp simd
  EACH(c) norm[c] = sqrt_real(norm[c]);
  for (size_t j = 0; j < d; j++) {
#pragma omp simd
    EACH(c) q[j * N + c] /= norm[c];
  }
}

/* d_raw [dim, N] from d_q of direction i; the gradients of the directions before it are added to. */
static void orthonormal_backward(real *d_raw, const work *w, const real *directions, size_t i, size_t d) {
  const real *q = directions + i * d * N, *raw = w->raw + i * d * N, *d_q = w->d_directions + i * d * N;
  real *r = w->d_raw_one; /* gradient of the projected vector */
  set_row(w->one, 0);
  for (size_t j = 0; j < d; j++)
    add_product(w->one, q + j * N, d_q + j * N);
  for (size_t j = 0; j < d; j++) {
#pragma omp simd
    EACH(c) r[j * N + c] = (d_q[j * N + c] - q[j * N + c] * w->one[c]) / w->norm[i * N + c];
  }
  memcpy(d_raw, r, d * N * sizeof *r);
  for (size_t b = 0; b < i; b++) {
    const real *before = directions + b * d * N;
    real *d_before = w->d_directions + b * d * N;
    set_row(w->one, 0);  /* before · raw */
    set_row(w->rest, 0); /* before · r */
    for (size_t j = 0; j < d; j++) {
      add_product(w->one, before + j * N, raw + j * N);
      add_product(w->rest, before + j * N, r + j * N);
    }
    for (size_t j = 0; j < d; j++) {
      sub_product(d_before + j * N, w->one, r + j * N);
      sub_product(d_before + j * N, w->rest, raw + j * N);
      sub_product(d_raw + j * N, w->rest, before + j * N);
    }
  }
}

/* ---- The exact posterior ---------------------------------------------------------------------------------------- */

/* x [n, columns, N] = S⁻¹ x from the lower Cholesky factor. */
static void solve(real *x, const real *factor, size_t n, size_t columns) {
  for (size_t j = 0; j < columns; j++) {
    for (size_t i = 0; i < n; i++) {
      real *row = x + (i * columns + j) * N;
      for (size_t b = 0; b < i; b++)
        sub_product(row, factor + (i * n + b) * N, x + (b * columns + j) * N);
#pragma omp simd
      EACH(c) row[c] /= factor[(i * n + i) * N + c];
    }
    for (size_t i = n; i-- > 0;) {
      real *row = x + (i * columns + j) * N;
      for (size_t b = i + 1; b < n; b++)
        sub_product(row, factor + (b * n + i) * N, x + (b * columns + j) * N);
#pragma omp simd
      EACH(c) row[c] /= factor[(i * n + i) * N + c];
    }
  }
}

/* factor [n, n, N] = Cholesky factor of S = Q (spread + variance) Qᵀ */
static void factorise(real *factor, const chunk_t *k, size_t n) {
  const size_t d = k->shape.dim;
  const real *q = k->directions;
  for (size_t i = 0; i < n; i++) {
    for (size_t b = 0; b <= i; b++) {
      real *s = factor + (i * n + b) * N;
      set_row(s, 0);
      for (size_t j = 0; j < d; j++) {
        const real e = k->spread[j] + k->variance;
        const real *x = q + (i * d + j) * N, *y = q + (b * d + j) * N;
#pragma omp simd
        EACH(c) s[c] += e * x[c] * y[c];
      }
      for (size_t l = 0; l < b; l++)
        sub_product(s, factor + (i * n + l) * N, factor + (b * n + l) * N);
      if (b == i) {
#pragma omp simd
        EACH(c) s[c] = sqrt_real(s[c]);
      } else {
        const real *diagonal = factor + (b * n + b) * N;
#pragma omp simd
        EACH(c) s[c] /= diagonal[c];
      }
    }
  }
}

/* α_i = S⁻¹ (m − Q μ_i), as answer − solved μ_i */
static void alpha_of(real *alpha, const work *w, const real *mu /* [dim] */, size_t n, size_t d) {
  for (size_t a = 0; a < n; a++) {
    memcpy(alpha + a * N, w->answer + a * N, N * sizeof *alpha);
    for (size_t j = 0; j < d; j++)
      add_scaled(alpha + a * N, w->solved + (a * d + j) * N, -mu[j]);
  }
}

/* prediction = E[w | messages, directions]: probabilities of the centres, then the mean of a Gaussian around theirs. */
static void posterior_forward(const chunk_t *k, const work *w) {
  const size_t d = k->shape.dim, n = k->shape.layers * k->shape.heads, points = k->shape.points;
  const real *q = k->directions;
  factorise(w->factor, k, n);
  memcpy(w->solved, q, n * d * N * sizeof *q);
  memcpy(w->answer, k->messages, n * N * sizeof *q);
  solve(w->solved, w->factor, n, d);
  solve(w->answer, w->factor, n, 1);
  set_row(w->highest, -REAL_INF);
  for (size_t i = 0; i < points; i++) {
    const real *mu = k->centres + i * d;
    real *r = w->probability + i * N;
    alpha_of(w->alpha, w, mu, n, d);
    set_row(r, 0);
    for (size_t a = 0; a < n; a++) {
      memcpy(w->one, k->messages + a * N, N * sizeof *q);
      for (size_t j = 0; j < d; j++)
        add_scaled(w->one, q + (a * d + j) * N, -mu[j]);
      add_product(r, w->alpha + a * N, w->one);
    }
#pragma omp simd
    EACH(c) {
      r[c] *= (real)-0.5;
      w->highest[c] = r[c] > w->highest[c] ? r[c] : w->highest[c];
    }
  }
  for (size_t i = 0; i < points; i++) {
    real *r = w->probability + i * N;
#pragma omp simd
    EACH(c) r[c] -= w->highest[c];
  }
  K(vexp)(w->probability, w->probability, points * N);
  set_row(w->total, 0);
  for (size_t i = 0; i < points; i++) {
    const real *r = w->probability + i * N;
#pragma omp simd
    EACH(c) w->total[c] += r[c];
  }
  memset(w->centre, 0, d * N * sizeof(real));
  for (size_t i = 0; i < points; i++) {
    real *r = w->probability + i * N;
#pragma omp simd
    EACH(c) r[c] /= w->total[c];
    for (size_t j = 0; j < d; j++)
      add_scaled(w->centre + j * N, r, k->centres[i * d + j]);
  }
  for (size_t a = 0; a < n; a++) {
    memcpy(w->residual + a * N, w->answer + a * N, N * sizeof(real));
    for (size_t j = 0; j < d; j++)
      sub_product(w->residual + a * N, w->solved + (a * d + j) * N, w->centre + j * N);
  }
  for (size_t j = 0; j < d; j++) {
    set_row(w->one, 0);
    for (size_t a = 0; a < n; a++)
      add_product(w->one, q + (a * d + j) * N, w->residual + a * N);
    const real spread = k->spread[j];
    const real *centre = w->centre + j * N;
    real *out = k->prediction + j * N;
#pragma omp simd
    EACH(c) out[c] = centre[c] + spread * w->one[c];
  }
}

/* From w->d_out, the gradient by the prediction: those by messages and directions. */
static void posterior_backward(const chunk_t *k, const work *w) {
  const size_t d = k->shape.dim, n = k->shape.layers * k->shape.heads, points = k->shape.points;
  const real *q = k->directions;
  for (size_t j = 0; j < d; j++) {
    const real spread = k->spread[j];
#pragma omp simd
    EACH(c) w->scaled[j * N + c] = spread * w->d_out[j * N + c];
  }
  for (size_t a = 0; a < n; a++) {
    real *beta = w->beta + a * N;
    set_row(beta, 0);
    for (size_t j = 0; j < d; j++) {
      add_product(beta, q + (a * d + j) * N, w->scaled + j * N);
      add_product(w->d_directions + (a * d + j) * N, w->residual + a * N, w->scaled + j * N);
    }
  }
  solve(w->beta, w->factor, n, 1);
  memcpy(w->d_centre, w->d_out, d * N * sizeof(real));
  for (size_t a = 0; a < n; a++) {
    const real *beta = w->beta + a * N;
#pragma omp simd
    EACH(c) w->d_messages[a * N + c] += beta[c];
    for (size_t j = 0; j < d; j++) {
      sub_product(w->d_directions + (a * d + j) * N, beta, w->centre + j * N);
      sub_product(w->d_centre + j * N, q + (a * d + j) * N, beta);
    }
    for (size_t b = 0; b < n; b++) {
      real *d_s = w->d_s + (a * n + b) * N;
      set_row(d_s, 0);
      sub_product(d_s, beta, w->residual + b * N);
    }
  }
  set_row(w->total, 0); /* gradient by the centre · centre */
  for (size_t j = 0; j < d; j++)
    add_product(w->total, w->d_centre + j * N, w->centre + j * N);
  memset(w->dots, 0, n * N * sizeof(real));
  memset(w->sums, 0, n * d * N * sizeof(real));
  for (size_t i = 0; i < points; i++) {
    const real *mu = k->centres + i * d, *probability = w->probability + i * N;
    set_row(w->one, 0);
    for (size_t j = 0; j < d; j++)
      add_scaled(w->one, w->d_centre + j * N, mu[j]);
#pragma omp simd
    EACH(c) w->one[c] = probability[c] * (w->one[c] - w->total[c]);
    alpha_of(w->alpha, w, mu, n, d);
    for (size_t a = 0; a < n; a++) {
      real *alpha = w->alpha + a * N, *dot = w->dots + a * N;
#pragma omp simd
      EACH(c) {
        alpha[c] *= w->one[c];
        dot[c] += alpha[c];
      }
      for (size_t j = 0; j < d; j++)
        add_scaled(w->sums + (a * d + j) * N, alpha, mu[j]);
    }
  }
  for (size_t a = 0; a < n; a++) {
#pragma omp simd
    EACH(c) w->d_messages[a * N + c] -= w->dots[a * N + c];
    for (size_t j = 0; j < d; j++) {
      real *d_q = w->d_directions + (a * d + j) * N;
      const real *sum = w->sums + (a * d + j) * N;
#pragma omp simd
      EACH(c) d_q[c] += sum[c];
    }
    for (size_t b = 0; b < n; b++) { /* ½ Σ dr_i α_i α_iᵀ, where α_i = answer − solved μ_i */
      real *d_s = w->d_s + (a * n + b) * N;
      set_row(w->one, 0);
      add_product(w->one, w->dots + a * N, w->answer + b * N);
      for (size_t j = 0; j < d; j++)
        sub_product(w->one, w->sums + (a * d + j) * N, w->solved + (b * d + j) * N);
      add_scaled(d_s, w->one, (real)0.5);
    }
  }
  for (size_t a = 0; a < n; a++) { /* S = Q E Qᵀ */
    for (size_t b = 0; b < n; b++) {
      const real *x = w->d_s + (a * n + b) * N, *y = w->d_s + (b * n + a) * N;
#pragma omp simd
      EACH(c) w->one[c] = x[c] + y[c];
      for (size_t j = 0; j < d; j++) {
        const real e = k->spread[j] + k->variance;
        real *d_q = w->d_directions + (a * d + j) * N;
        const real *other = q + (b * d + j) * N;
#pragma omp simd
        EACH(c) d_q[c] += e * w->one[c] * other[c];
      }
    }
  }
}

/* ---- The whole chunk ------------------------------------------------------------------------------------------ */

/* Where a layer's parameters begin. */
static size_t layer_offset(const clew_adaptive_shape *s, size_t layer) {
  const clew_adaptive_shape before = {.dim = s->dim, .layers = layer, .heads = s->heads, .width = s->width};
  return clew_adaptive_parameters(&before);
}

static void adaptive_forward(const chunk_t *k, const work *w) {
  const clew_adaptive_shape *s = &k->shape;
  const size_t d = s->dim, n = s->layers * s->heads;
  for (size_t layer = 0; layer < s->layers; layer++) {
    const size_t n_in = layer * s->heads, first = n_in;
    const real *W1 = k->parameters + layer_offset(s, layer), *b1 = W1 + s->width * n_in, *W2 = b1 + s->width;
    const real *b2 = W2 + s->heads * d * s->width;
    real *hidden = w->hidden + layer * s->width * N, *raw = w->raw + first * d * N;
    dense(hidden, W1, b1, k->messages, s->width, s->routing ? n_in : 0);
    K(vtanh)(hidden, hidden, s->width * N);
    dense(raw, W2, b2, hidden, s->heads * d, s->width);
    for (size_t i = first; i < first + s->heads; i++) {
      real *q = k->directions + i * d * N;
      if (s->orthonormal)
        orthonormal_forward(q, w->norm + i * N, w->raw + i * d * N, k->directions, i, d, w->one);
      else
        memcpy(q, w->raw + i * d * N, d * N * sizeof *q);
      if (layer >= k->start)
        message_forward(k->messages + i * N, q, k);
    }
  }
  if (s->readout == 0) {
    posterior_forward(k, w);
    return;
  }
  const real *V1 = k->parameters + layer_offset(s, s->layers), *c1 = V1 + s->readout * n, *V2 = c1 + s->readout;
  dense(w->readout, V1, c1, k->messages, s->readout, n);
  K(vtanh)(w->readout, w->readout, s->readout * N);
  dense(k->prediction, V2, V2 + d * s->readout, w->readout, d, s->readout);
}

/* d_hidden · (1 − hidden²), in place: through tanh */
static void through_tanh(real *restrict d_hidden, const real *restrict hidden, size_t rows) {
#pragma omp simd
  for (size_t i = 0; i < rows * N; i++)
    d_hidden[i] *= (real)1 - hidden[i] * hidden[i];
}

static void adaptive_backward(const chunk_t *k, const work *w) {
  const clew_adaptive_shape *s = &k->shape;
  const size_t d = s->dim, n = s->layers * s->heads;
  memset(w->d_directions, 0, n * d * N * sizeof(real));
  memset(w->d_messages, 0, n * N * sizeof(real));
  if (s->readout == 0) {
    posterior_backward(k, w);
  } else {
    const size_t at = layer_offset(s, s->layers), first = s->readout * n, second = first + s->readout;
    const real *V1 = k->parameters + at, *V2 = V1 + second;
    real *g = k->gradient + at;
    dense_weights(g + second, g + second + d * s->readout, w->d_out, w->readout, d, s->readout);
    dense_inputs(w->d_hidden, V2, w->d_out, d, s->readout, false);
    through_tanh(w->d_hidden, w->readout, s->readout);
    dense_weights(g, g + first, w->d_hidden, k->messages, s->readout, n);
    dense_inputs(w->d_messages, V1, w->d_hidden, s->readout, n, true);
  }
  for (size_t layer = s->layers; layer-- > 0;) {
    const size_t n_in = layer * s->heads, out = s->heads * d, at = layer_offset(s, layer);
    const size_t bias = s->width * n_in, second = bias + s->width;
    const real *W1 = k->parameters + at, *W2 = W1 + second, *hidden = w->hidden + layer * s->width * N;
    real *g = k->gradient + at;
    for (size_t a = s->heads; a-- > 0;) {
      const size_t i = n_in + a;
      message_backward(w->d_directions + i * d * N, w->d_messages + i * N, k);
      if (s->orthonormal)
        orthonormal_backward(w->d_raw + a * d * N, w, k->directions, i, d);
      else
        memcpy(w->d_raw + a * d * N, w->d_directions + i * d * N, d * N * sizeof(real));
    }
    dense_weights(g + second, g + second + out * s->width, w->d_raw, hidden, out, s->width);
    dense_inputs(w->d_hidden, W2, w->d_raw, out, s->width, false);
    through_tanh(w->d_hidden, hidden, s->width);
    dense_weights(g, g + bias, w->d_hidden, k->messages, s->width, s->routing ? n_in : 0);
    dense_inputs(w->d_messages, W1, w->d_hidden, s->width, s->routing ? n_in : 0, true);
  }
}

void K(adaptive)(const chunk_t *k) {
  const work w = lay_out(k);
  const size_t d = k->shape.dim;
  if (k->x != NULL && k->start == 0)
    memset(k->messages, 0, k->shape.layers * k->shape.heads * N * sizeof(real));
  adaptive_forward(k, &w);
  if (k->w == NULL)
    return;
  for (size_t c = 0; c < N; c++)
    k->losses[c] = 0;
  for (size_t j = 0; j < d; j++) {
    const real *out = k->prediction + j * N, *truth = k->w + j * N;
    real *g = w.d_out + j * N;
    for (size_t c = 0; c < N; c++) {
      const real error = out[c] - truth[c];
      k->losses[c] += (double)error * (double)error;
      g[c] = c < k->n ? 2 * k->weight * error : 0;
    }
  }
  if (k->gradient != NULL)
    adaptive_backward(k, &w);
}

/* ---- The programme's inner sum -------------------------------------------------------------------------------- */

/* Σ_j Σ_{i<l} squares_il joint_ij joint_lj / Σ_i joint_ij over n grid points: the expected variance of a posterior. */
double K(expected_variance)(const real *joint /* [points, ld] */, size_t ld,
                            const real *squares /* [points, points] squared distances, the lower half is read */,
                            size_t points, size_t n) {
  double total = 0;
  size_t j = 0;
  for (; j + LANES <= n; j += LANES) {
    vec mass = load(joint + j), pairs = splat(0);
    for (size_t i = 1; i < points; i++) {
      const vec own = load(joint + i * ld + j);
      vec others = splat(0);
      for (size_t l = 0; l < i; l++)
        others += splat(squares[i * points + l]) * load(joint + l * ld + j);
      pairs += own * others;
      mass += own;
    }
    real masses[LANES], sums[LANES];
    store(masses, mass);
    store(sums, pairs);
    for (size_t l = 0; l < LANES; l++)
      total += masses[l] > (real)1e-30 ? (double)sums[l] / (double)masses[l] : 0;
  }
  for (; j < n; j++) {
    real mass = joint[j], pairs = 0;
    for (size_t i = 1; i < points; i++) {
      real others = 0;
      for (size_t l = 0; l < i; l++)
        others += squares[i * points + l] * joint[l * ld + j];
      pairs += joint[i * ld + j] * others;
      mass += joint[i * ld + j];
    }
    total += mass > (real)1e-30 ? (double)pairs / (double)mass : 0;
  }
  return total;
}
