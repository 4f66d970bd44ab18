/* Kernels that work along rows: norms, masked scores, softmax, rotary embedding. */
#include "kernels_math.h"

/* ---- Norm --------------------------------------------------------------------------------------------------- */

/* Four registers of partial sums: short chains for speed, and rounding that grows with d / (4 · lanes) only. */
static real row_sum(const real *x, size_t d) {
  vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
  size_t j = 0;
  for (; j + 4 * LANES <= d; j += 4 * LANES) {
    s0 += load(x + j);
    s1 += load(x + j + LANES);
    s2 += load(x + j + 2 * LANES);
    s3 += load(x + j + 3 * LANES);
  }
  for (; j + LANES <= d; j += LANES)
    s0 += load(x + j);
  real sum = lane_sum((s0 + s1) + (s2 + s3));
  for (; j < d; j++)
    sum += x[j];
  return sum;
}

static real row_squares(const real *x, real mean, size_t d) {
  const vec centre = splat(mean);
  vec s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
  size_t j = 0;
  for (; j + 4 * LANES <= d; j += 4 * LANES) {
    const vec a = load(x + j) - centre, b = load(x + j + LANES) - centre;
    const vec c = load(x + j + 2 * LANES) - centre, e = load(x + j + 3 * LANES) - centre;
    s0 += a * a;
    s1 += b * b;
    s2 += c * c;
    s3 += e * e;
  }
  for (; j + LANES <= d; j += LANES) {
    const vec a = load(x + j) - centre;
    s0 += a * a;
  }
  real sum = lane_sum((s0 + s1) + (s2 + s3));
  for (; j < d; j++)
    sum += (x[j] - mean) * (x[j] - mean);
  return sum;
}

void K(norm)(real *out /* [rows, d] */, real *normalized /* [rows, d] */, real *scale /* [rows] */,
             const real *x /* [rows, d] */, const real *w /* [d] */, const real *b /* [d] */, size_t rows, size_t d,
             real eps, bool centre) {
  for (size_t i = 0; i < rows; i++) {
    const real *row = x + i * d;
    real *o = out + i * d;
    const real mean = centre ? row_sum(row, d) / (real)d : (real)0;
    const real deviation = sqrt_real(row_squares(row, mean, d) / (real)d + eps);
    const real inverse = (real)1 / deviation;
    if (scale)
      scale[i] = deviation;
    if (normalized) {
      real *kept = normalized + i * d;
#pragma omp simd
      for (size_t j = 0; j < d; j++)
        kept[j] = (row[j] - mean) * inverse;
    }
    if (w && b) {
#pragma omp simd
      for (size_t j = 0; j < d; j++)
        o[j] = fma_real((row[j] - mean) * inverse, w[j], b[j]);
    } else if (w) {
#pragma omp simd
      for (size_t j = 0; j < d; j++)
        o[j] = (row[j] - mean) * inverse * w[j];
    } else if (b) {
#pragma omp simd
      for (size_t j = 0; j < d; j++)
        o[j] = (row[j] - mean) * inverse + b[j];
    } else {
#pragma omp simd
      for (size_t j = 0; j < d; j++)
        o[j] = (row[j] - mean) * inverse;
    }
  }
}

/* ---- Scores and softmax ------------------------------------------------------------------------------------- */

static void fill(real *x, real value, size_t n) {
  for (size_t j = 0; j < n; j++)
    x[j] = value;
}

static void scale_cap(real *x, size_t n, real scale, real cap) {
  if (cap > (real)0) {
    const real inverse = (real)1 / cap;
#pragma omp simd
    for (size_t j = 0; j < n; j++)
      x[j] = cap * tanh_real(x[j] * scale * inverse);
  } else {
#pragma omp simd
    for (size_t j = 0; j < n; j++)
      x[j] *= scale;
  }
}

/* Scales what the row sees; the hole, if there is one, becomes −inf. */
static void score_visible(real *row, visible v, real scale, real cap) {
  if (v.hole == SIZE_MAX) {
    scale_cap(row + v.lo, v.hi - v.lo, scale, cap);
    return;
  }
  scale_cap(row + v.lo, v.hole - v.lo, scale, cap);
  row[v.hole] = -REAL_INF;
  scale_cap(row + v.hole + 1, v.hi - v.hole - 1, scale, cap);
}

void K(score)(real *x /* [m, n] */, ptrdiff_t ld, size_t m, size_t n, real scale, real cap, const clew_mask *mask) {
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld;
    const visible v = visible_keys(mask, i, n);
    fill(row, -REAL_INF, v.lo);
    score_visible(row, v, scale, cap);
    fill(row + v.hi, -REAL_INF, n - v.hi);
  }
}

/* The highest entry, NaN ignored. */
static real row_max(const real *x, size_t n) {
  real highest = -REAL_INF;
  size_t j = 0;
#ifdef __clang__ /* does not vectorise the reduction below */
  real lanes[LANES];
  vec best = splat(highest);
  for (; j + LANES <= n; j += LANES)
    best = __builtin_elementwise_max(best, load(x + j));
  store(lanes, best);
  for (size_t l = 0; l < LANES; l++)
    highest = lanes[l] > highest ? lanes[l] : highest;
  for (; j < n; j++)
    highest = x[j] > highest ? x[j] : highest;
#else
#pragma omp simd reduction(max : highest)
  for (j = 0; j < n; j++)
    highest = x[j] > highest ? x[j] : highest;
#endif
  return highest;
}

/* x = exp(x − highest); the sum. highest is finite, +inf or NaN. */
static real row_exp(real *x, real highest, size_t n) {
  real sum = (real)0;
#pragma omp simd reduction(+ : sum)
  for (size_t j = 0; j < n; j++) {
    const real e = exp_flushed(x[j] - highest);
    x[j] = e;
    sum += e;
  }
  return sum;
}

/* A row that sees nothing: zeros, but NaN stays visible. */
static real row_nothing(real *x, size_t n) {
  real sum = (real)0;
  for (size_t j = 0; j < n; j++) {
    x[j] = x[j] == x[j] ? (real)0 : x[j];
    sum += x[j];
  }
  return sum;
}

void K(softmax)(real *x /* [m, n] */, ptrdiff_t ld, size_t m, size_t n) {
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld;
    const real highest = row_max(row, n);
    if (highest == -REAL_INF) {
      row_nothing(row, n);
      continue;
    }
    const real inverse = (real)1 / row_exp(row, highest, n);
#pragma omp simd
    for (size_t j = 0; j < n; j++)
      row[j] *= inverse;
  }
}

void K(softmax_block)(real *x /* [m, n] */, ptrdiff_t ld, real *maximum /* [m] */, real *sum /* [m] */,
                      real *correction /* [m] */, size_t m, size_t n, real scale, real cap, const clew_mask *mask) {
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld;
    const visible v = visible_keys(mask, i, n);
    const size_t width = v.hi - v.lo;
    fill(row, (real)0, v.lo);
    fill(row + v.hi, (real)0, n - v.hi);
    score_visible(row, v, scale, cap);
    const real old = maximum[i];
    const real here = row_max(row + v.lo, width);
    const real highest = here > old ? here : old;
    if (highest == -REAL_INF) {
      correction[i] = (real)1;
      sum[i] += row_nothing(row + v.lo, width);
      continue;
    }
    correction[i] = highest == old ? (real)1 : exp_flushed(old - highest);
    maximum[i] = highest;
    sum[i] = fma_real(sum[i], correction[i], row_exp(row + v.lo, highest, width));
  }
}

void K(score_linear)(real *x /* [m, n] */, ptrdiff_t ld, size_t m, size_t n, const real *scale /* [m] */,
                     const clew_mask *mask) {
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld;
    const visible v = visible_keys(mask, i, n);
    const real factor = scale[i];
    fill(row, (real)0, v.lo);
#pragma omp simd
    for (size_t j = v.lo; j < v.hi; j++)
      row[j] *= factor;
    fill(row + v.hi, (real)0, n - v.hi);
    if (v.hole != SIZE_MAX)
      row[v.hole] = (real)0;
  }
}

void K(scale_rows)(real *x /* [m, n] */, ptrdiff_t ld, const real *factor /* [m] */, size_t m, size_t n, bool inverse) {
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld;
    const real f = factor[i];
    if (!inverse) {
#pragma omp simd
      for (size_t j = 0; j < n; j++)
        row[j] *= f;
    } else {
      const bool zero = f == (real)0;
#pragma omp simd
      for (size_t j = 0; j < n; j++)
        row[j] = zero && row[j] == (real)0 ? (real)0 : row[j] / f;
    }
  }
}

void K(log_sum)(real *maximum /* [m] */, real *sum /* [m] */, const real *x /* [m, n] */, ptrdiff_t ld, size_t m,
                size_t n) {
  for (size_t i = 0; i < m; i++) {
    const real *row = x + (ptrdiff_t)i * ld;
    const real highest = row_max(row, n);
    real total = (real)0;
    if (highest == -REAL_INF) {
      for (size_t j = 0; j < n; j++)
        total += row[j] == row[j] ? (real)0 : row[j];
    } else {
#pragma omp simd reduction(+ : total)
      for (size_t j = 0; j < n; j++)
        total += exp_flushed(row[j] - highest);
    }
    maximum[i] = highest;
    sum[i] = total;
  }
}

/* ---- Rotary embedding --------------------------------------------------------------------------------------- */

void K(rotary)(real *out /* [rows, heads, e] */, const real *x /* [rows, heads, e] */, const int32_t *pos /* [rows] */,
               const real *cosine /* [positions, n_rot / 2] */, const real *sine /* [positions, n_rot / 2] */,
               size_t rows, size_t heads, size_t e, size_t n_rot, bool adjacent) {
  const size_t half = n_rot / 2;
  for (size_t i = 0; i < rows; i++) {
    const real *c = cosine + (size_t)pos[i] * half, *s = sine + (size_t)pos[i] * half;
    for (size_t h = 0; h < heads; h++) {
      const real *from = x + (i * heads + h) * e;
      real *to = out + (i * heads + h) * e;
      if (adjacent) {
#pragma omp simd
        for (size_t p = 0; p < half; p++) {
          const real u = from[2 * p], v = from[2 * p + 1];
          to[2 * p] = fma_real(u, c[p], -(v * s[p]));
          to[2 * p + 1] = fma_real(v, c[p], u * s[p]);
        }
      } else {
#pragma omp simd
        for (size_t p = 0; p < half; p++) {
          const real u = from[p], v = from[p + half];
          to[p] = fma_real(u, c[p], -(v * s[p]));
          to[p + half] = fma_real(v, c[p], u * s[p]);
        }
      }
      if (to != from)
        memcpy(to + 2 * half, from + 2 * half, (e - 2 * half) * sizeof *to);
    }
  }
}
