/* What the kernels of streams share: registers of lanes, one sequence a lane, and the update of a triangular factor. */
#ifndef CLEW_KERNELS_REG_INTERNAL_H
#define CLEW_KERNELS_REG_INTERNAL_H

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* vectors have no fma builtin */
#else
#pragma STDC FP_CONTRACT ON
#endif

#include "kernels_internal.h"
#include "kernels_reg.h"

typedef real lanes __attribute__((vector_size(VEC_BYTES), may_alias)); /* in memory at a register's boundary */
#if REAL_IS_FLOAT
typedef int32_t lane_mask __attribute__((vector_size(VEC_BYTES), may_alias));
#define REAL_EPSILON ((real)0x1p-23)
#define REAL_TINY ((real)0x1p-100) /* squares of less are left out of sums */
#else
typedef int64_t lane_mask __attribute__((vector_size(VEC_BYTES), may_alias));
#define REAL_EPSILON ((real)0x1p-52)
#define REAL_TINY ((real)0x1p-900)
#endif

#define LANE_INLINE static inline __attribute__((always_inline))

LANE_INLINE lanes all_lanes(real x) { return x - (lanes){0}; }
LANE_INLINE lanes choose(lane_mask mask, lanes a, lanes b) {
  return (lanes)(((lane_mask)a & mask) | ((lane_mask)b & ~mask));
}

LANE_INLINE lanes sqrt_lanes(lanes x) {
  lanes root;
  for (int l = 0; l < LANE_COUNT; l++)
    root[l] = sqrt_real(x[l]);
  return root;
}

LANE_INLINE lanes dot_lanes(const lanes *a /* [n] */, const lanes *b /* [n] */, size_t n) {
  lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    s0 += a[i] * b[i];
    s1 += a[i + 1] * b[i + 1];
    s2 += a[i + 2] * b[i + 2];
    s3 += a[i + 3] * b[i + 3];
  }
  for (; i < n; i++)
    s0 += a[i] * b[i];
  return (s0 + s1) + (s2 + s3);
}

LANE_INLINE void add_lanes(lanes *y /* [n] */, lanes factor, const lanes *x /* [n] */, size_t n) {
  for (size_t i = 0; i < n; i++)
    y[i] += factor * x[i];
}

/* Takes a row into the lower triangular system L z = t by Givens rotations, from the last column to the first: what is
 * left of (row, y) is orthogonal to everything kept. inverse [r] keeps 1 / L_ii. The row is used up. A rotation by
 * numbers whose squares underflow is left out: they are below the rounding of anything that matters. */
LANE_INLINE void rotate_in(lanes *factor /* L: [r, ld] */, lanes *t /* [r] */, lanes *inverse /* [r] */,
                           lanes *row /* [r] */, lanes y, size_t ld, size_t r) {
  for (size_t i = r; i-- > 0;) {
    lanes *kept = factor + i * ld;
    const lanes a = kept[i], b = row[i], square = a * a + b * b;
    const lane_mask real_one = (lane_mask)(square > all_lanes(REAL_TINY)) & (lane_mask)(b != (lanes){0});
    const lanes length = sqrt_lanes(square), over = all_lanes(1) / length;
    const lanes c = choose(real_one, a * over, all_lanes(1)), s = choose(real_one, b * over, (lanes){0});
    for (size_t j = 0; j < i; j++) {
      const lanes above = kept[j], below = row[j];
      kept[j] = c * above + s * below;
      row[j] = c * below - s * above;
    }
    kept[i] = choose(real_one, length, a);
    inverse[i] = choose(real_one, over, inverse[i]);
    const lanes above = t[i];
    t[i] = c * above + s * y;
    y = c * y - s * above;
  }
}

/* z = L⁻¹ t; rest [r] is overwritten. */
LANE_INLINE void solve_lower(lanes *z /* [r] */, lanes *rest /* [r] */, const lanes *factor /* [r, ld] */,
                             const lanes *t /* [r] */, const lanes *inverse /* [r] */, size_t ld, size_t r) {
  for (size_t i = 0; i < r; i++)
    rest[i] = t[i];
  for (size_t j = 0; j < r; j++) {
    const lanes value = rest[j] * inverse[j];
    z[j] = value;
    for (size_t i = j + 1; i < r; i++)
      rest[i] -= factor[i * ld + j] * value;
  }
}

/* u = L⁻ᵀ u in place. */
LANE_INLINE void solve_upper(lanes *u /* [r] */, const lanes *factor /* [r, ld] */, const lanes *inverse /* [r] */,
                             size_t ld, size_t r) {
  for (size_t i = r; i-- > 0;) {
    u[i] *= inverse[i];
    add_lanes(u, -u[i], factor + i * ld, i);
  }
}

#define DECLARE_STREAM(name)                                                                                           \
  size_t K(name##_vectors)(const clew_stream_settings *s);                                                             \
  void K(name##_begin)(real * state, const clew_stream_settings *s);                                                   \
  void K(name##_update)(real * state, const real *x, const real *y, const clew_stream_settings *s);                    \
  void K(name##_weights)(real * w, real * state, const clew_stream_settings *s);

DECLARE_STREAM(ols)
DECLARE_STREAM(ridge)
DECLARE_STREAM(bayes)
DECLARE_STREAM(averaging)
DECLARE_STREAM(sgd)
DECLARE_STREAM(gram)
void K(gd_weights)(real *w, real *state, const clew_stream_settings *s);
void K(gd_pp_weights)(real *w, real *state, const clew_stream_settings *s);
void K(newton_weights)(real *w, real *state, const clew_stream_settings *s);
void K(lasso_weights)(real *w, real *state, const clew_stream_settings *s);
void K(bayes_variance)(real *variance, real *state, const real *x, const clew_stream_settings *s);
void K(bayes_covariance)(real *covariance, real *state, const clew_stream_settings *s);

extern const R(clew_reg_kernels) K(clew_reg_table);

#endif
