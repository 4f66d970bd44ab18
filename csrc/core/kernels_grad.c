/* Kernels of the backward pass. */
#include "kernels_math.h"

/* ---- Activations ---------------------------------------------------------------------------------------------- */

static inline real gelu_slope(real x) {
  real bell;
  const real phi = normal_cdf(x, &bell);
  return fma_real(x * (real)0.39894228040143267794, bell, phi);
}

/* Of x σ(v), where v has the slope `steep`: σ(v) + x σ(v) σ(−v) steep. From exp(−|v|), as 1 − σ(v) would lose what is
 * small beside 1. */
static inline real gated_slope(real x, real v, real steep) {
  const real e = exp_flushed(-abs_real(v)), s = (real)1 / ((real)1 + e), rest = e * s;
  return fma_real(x * s * rest, steep, v > (real)0 ? s : rest);
}

/* v = x (c + a x²). Behind ±30 σ is 0 or 1 in both precisions; there x³ must not be infinite. */
static inline real gelu_tanh_slope(real x) {
  const real c = (real)1.59576912160573071176, a = (real)(1.59576912160573071176 * 0.044715);
  const real square = x * x > (real)900 ? (real)900 : x * x;
  return gated_slope(x, x * fma_real(square, a, c), fma_real(square, (real)3 * a, c));
}

static inline real silu_slope(real x) { return gated_slope(x, x, (real)1); }

static inline real quick_gelu_slope(real x) { return gated_slope(x, (real)1.702 * x, (real)1.702); }

static inline real sigmoid_slope(real x) {
  const real e = exp_flushed(-abs_real(x)), s = (real)1 / ((real)1 + e);
  return e * s * s;
}

/* 1 − tanh² = 4 σ(2x) σ(−2x) */
static inline real tanh_slope(real x) { return (real)4 * sigmoid_slope(x + x); }

void K(act_grad)(real *dpre /* [n] */, real *dlinear /* [n] or NULL */, const real *dpost /* [n] */,
                 const real *pre /* [n] */, const real *linear /* [n] or NULL */, size_t n, clew_act act) {
#define EACH(slope, value)                                                                                             \
  if (linear) {                                                                                                        \
    _Pragma("omp simd") for (size_t i = 0; i < n; i++) {                                                               \
      const real x = pre[i], g = dpost[i];                                                                             \
      dpre[i] = g * (slope)*linear[i];                                                                                 \
      dlinear[i] = g * (value);                                                                                        \
    }                                                                                                                  \
  } else {                                                                                                             \
    _Pragma("omp simd") for (size_t i = 0; i < n; i++) {                                                               \
      const real x = pre[i];                                                                                           \
      (void)x;                                                                                                         \
      dpre[i] = dpost[i] * (slope);                                                                                    \
    }                                                                                                                  \
  }                                                                                                                    \
  break;
  switch (act) {
  case CLEW_ACT_NONE:
    EACH((real)1, x)
  case CLEW_ACT_GELU:
    EACH(gelu_slope(x), gelu_real(x))
  case CLEW_ACT_GELU_TANH:
    EACH(gelu_tanh_slope(x), gelu_tanh_real(x))
  case CLEW_ACT_RELU:
    EACH((x > (real)0 ? (real)1 : (real)0), relu_real(x))
  case CLEW_ACT_SILU:
    EACH(silu_slope(x), silu_real(x))
  case CLEW_ACT_QUICK_GELU:
    EACH(quick_gelu_slope(x), quick_gelu_real(x))
  case CLEW_ACT_RELU2:
    EACH((real)2 * relu_real(x), relu2_real(x))
  case CLEW_ACT_TANH:
    EACH(tanh_slope(x), tanh_real(x))
  case CLEW_ACT_SIGMOID:
    EACH(sigmoid_slope(x), sigmoid_real(x))
  case CLEW_N_ACT:
    break;
  }
#undef EACH
}

void K(softcap_grad)(real *dx /* [n] */, const real *dy /* [n] */, const real *y /* [n] */, size_t n, real cap) {
  const real inverse = (real)1 / cap;
#pragma omp simd
  for (size_t i = 0; i < n; i++) {
    const real t = y[i] * inverse;
    dx[i] = dy[i] * ((real)1 - t * t);
  }
}

/* ---- Norms ---------------------------------------------------------------------------------------------------- */

void K(norm_grad)(real *dx /* [rows, d] */, real *dw /* [d] or NULL */, real *db /* [d] or NULL */,
                  const real *x /* [rows, d] */, const real *g /* [rows, d] */, const real *w /* [d] or NULL */,
                  size_t rows, size_t d, real eps, bool centre, bool add) {
  for (size_t r = 0; r < rows; r++) {
    const real *in = x + r * d, *gr = g + r * d;
    real *out = dx + r * d;
    real sum = 0, squares = 0, mean = 0;
    if (centre) {
#pragma omp simd reduction(+ : sum)
      for (size_t i = 0; i < d; i++)
        sum += in[i];
      mean = sum / (real)d;
    }
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < d; i++)
      squares += (in[i] - mean) * (in[i] - mean);
    const real inverse = (real)1 / sqrt_real(squares / (real)d + eps);
    real along = 0, total = 0; /* Σ g w x̂, Σ g w */
    if (w) {
#pragma omp simd reduction(+ : along, total)
      for (size_t i = 0; i < d; i++) {
        const real v = gr[i] * w[i];
        along += v * (in[i] - mean);
        total += v;
      }
    } else {
#pragma omp simd reduction(+ : along, total)
      for (size_t i = 0; i < d; i++) {
        along += gr[i] * (in[i] - mean);
        total += gr[i];
      }
    }
    if (dw) {
#pragma omp simd
      for (size_t i = 0; i < d; i++)
        dw[i] += gr[i] * ((in[i] - mean) * inverse);
    }
    if (db) {
#pragma omp simd
      for (size_t i = 0; i < d; i++)
        db[i] += gr[i];
    }
    const real a = along * inverse * inverse / (real)d, c = centre ? total / (real)d : (real)0;
    if (w && add) {
#pragma omp simd
      for (size_t i = 0; i < d; i++)
        out[i] += inverse * (gr[i] * w[i] - c - a * (in[i] - mean));
    } else if (w) {
#pragma omp simd
      for (size_t i = 0; i < d; i++)
        out[i] = inverse * (gr[i] * w[i] - c - a * (in[i] - mean));
    } else if (add) {
#pragma omp simd
      for (size_t i = 0; i < d; i++)
        out[i] += inverse * (gr[i] - c - a * (in[i] - mean));
    } else {
#pragma omp simd
      for (size_t i = 0; i < d; i++)
        out[i] = inverse * (gr[i] - c - a * (in[i] - mean));
    }
  }
}

/* ---- Attention ------------------------------------------------------------------------------------------------ */

void K(softmax_grad)(real *g /* [m, n] */, const real *p /* [m, n] */, ptrdiff_t ld, size_t m, size_t n) {
  for (size_t i = 0; i < m; i++) {
    real *row = g + (ptrdiff_t)i * ld;
    const real *pattern = p + (ptrdiff_t)i * ld;
    real sum = 0;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < n; j++)
      sum += row[j] * pattern[j];
#pragma omp simd
    for (size_t j = 0; j < n; j++)
      row[j] = pattern[j] * (row[j] - sum);
  }
}

void K(rotary_grad)(real *x, const int32_t *pos, const real *cosine, const real *sine, size_t rows, size_t heads,
                    size_t e, size_t n_rot, bool adjacent) {
  const size_t half = n_rot / 2, apart = adjacent ? 1 : half, step = adjacent ? 2 : 1;
  for (size_t r = 0; r < rows; r++) {
    const real *c = cosine + (size_t)pos[r] * half, *s = sine + (size_t)pos[r] * half;
    for (size_t h = 0; h < heads; h++) {
      real *v = x + (r * heads + h) * e;
      for (size_t i = 0; i < half; i++) {
        const real a = v[i * step], b = v[i * step + apart];
        v[i * step] = a * c[i] + b * s[i];
        v[i * step + apart] = b * c[i] - a * s[i];
      }
    }
  }
}

/* ---- Losses --------------------------------------------------------------------------------------------------- */

/* In place too. */
double K(cross_entropy)(real *dlogits /* [n] */, const real *logits /* [n] */, size_t target, size_t n, real weight) {
  const double picked = (double)logits[target];
  real most = logits[0], sum = 0;
  for (size_t j = 1; j < n; j++)
    most = logits[j] > most ? logits[j] : most;
#pragma omp simd reduction(+ : sum)
  for (size_t j = 0; j < n; j++) {
    const real v = exp_real(logits[j] - most);
    dlogits[j] = v;
    sum += v;
  }
  const real factor = weight / sum;
#pragma omp simd
  for (size_t j = 0; j < n; j++)
    dlogits[j] *= factor;
  dlogits[target] -= weight;
  return (double)most + __builtin_log((double)sum) - picked;
}

/* Rows are read from end to end, eight at a time. */
void K(column_sums)(real *out /* [n] */, const real *x /* [rows, n] */, ptrdiff_t ld, size_t rows, size_t n, bool add) {
  if (!add)
    memset(out, 0, n * sizeof(real));
  for (size_t r = 0; r < rows; r += 8, x += 8 * ld) {
    const size_t here = rows - r < 8 ? rows - r : 8;
    size_t j = 0;
    for (; here == 8 && j + LANES <= n; j += LANES) {
      vec sum[4];
#pragma GCC unroll 4
      for (size_t i = 0; i < 4; i++)
        sum[i] = load(x + (ptrdiff_t)i * ld + (ptrdiff_t)j) + load(x + (ptrdiff_t)(i + 4) * ld + (ptrdiff_t)j);
      store(out + j, load(out + j) + ((sum[0] + sum[1]) + (sum[2] + sum[3])));
    }
    for (; j < n; j++)
      for (size_t i = 0; i < here; i++)
        out[j] += x[(ptrdiff_t)i * ld + (ptrdiff_t)j];
  }
}
