/* Estimators that need no more of the examples than S = XᵀX, b = Xᵀy, yᵀy and their number k: gradient descent, GD++,
 * Newton–Schulz iteration, lasso. An update costs O(d²); the cost of a weight vector is said at each of them. */
#include "kernels_reg_internal.h"

#if VEC_BYTES == 64
#define TILE_ROWS 4
#else
#define TILE_ROWS 2
#endif
#define TILE_COLS 4

typedef struct K(gram_state) {
  lanes *excess;         /* LASSO: the duality gap over what is asked for, of the last weights; first, for the driver */
  lanes *count, *square; /* k, yᵀy */
  lanes *gram;           /* S: [d, d], symmetric */
  lanes *moment, *w;     /* b, the last weights: [d] */
  lanes *a, *b, *c, *e;  /* [d]: scratch */
  lanes *m[4];           /* [d, d]: scratch; LASSO has the first, GD++ and Newton–Schulz have all */
} K(gram_state);

static K(gram_state) K(gram_of)(real *state, size_t d) {
  K(gram_state) s;
  lanes *at = (lanes *)state;
  s.excess = at++, s.count = at++, s.square = at++;
  s.gram = at, at += d * d;
  s.moment = at, at += d;
  s.w = at, at += d;
  s.a = at, at += d;
  s.b = at, at += d;
  s.c = at, at += d;
  s.e = at, at += d;
  for (int i = 0; i < 4; i++, at += d * d)
    s.m[i] = at;
  return s;
}

size_t K(gram_vectors)(const clew_stream_settings *s) {
  const size_t matrices = s->kind == CLEW_STREAM_GD ? 1 : s->kind == CLEW_STREAM_LASSO ? 2 : 5;
  return 3 + matrices * s->d * s->d + 6 * s->d;
}

void K(gram_begin)(real *state, const clew_stream_settings *s) {
  const size_t n = 3 + s->d * s->d + 2 * s->d;
  for (size_t i = 0; i < n; i++)
    ((lanes *)state)[i] = (lanes){0};
}

void K(gram_update)(real *state, const real *x_ /* [d, lanes] */, const real *y_,
                    const clew_stream_settings *settings) {
  const size_t d = settings->d;
  const K(gram_state) s = K(gram_of)(state, d);
  const lanes *x = (const lanes *)x_, y = *(const lanes *)y_;
  for (size_t i = 0; i < d; i++)
    add_lanes(s.gram + i * d, x[i], x, d);
  add_lanes(s.moment, y, x, d);
  *s.square += y * y;
  *s.count += all_lanes(1);
}

/* ---- Products of lanes ---------------------------------------------------------------------------------------- */

/* out = M v */
static void K(apply)(lanes *out /* [d] */, const lanes *m /* [d, d] */, const lanes *v /* [d] */, size_t d) {
  size_t i = 0;
  for (; i + 4 <= d; i += 4) {
    const lanes *row = m + i * d;
    lanes s0 = {0}, s1 = {0}, s2 = {0}, s3 = {0};
    for (size_t j = 0; j < d; j++) {
      s0 += row[j] * v[j];
      s1 += row[d + j] * v[j];
      s2 += row[2 * d + j] * v[j];
      s3 += row[3 * d + j] * v[j];
    }
    out[i] = s0, out[i + 1] = s1, out[i + 2] = s2, out[i + 3] = s3;
  }
  for (; i < d; i++)
    out[i] = dot_lanes(m + i * d, v, d);
}

LANE_INLINE void tile(lanes *c, const lanes *a, const lanes *b, size_t d, size_t rows, size_t cols) {
  lanes sum[TILE_ROWS][TILE_COLS] = {{{0}}};
  for (size_t k = 0; k < d; k++)
#pragma GCC unroll 4
    for (size_t i = 0; i < rows; i++)
#pragma GCC unroll 4
      for (size_t j = 0; j < cols; j++)
        sum[i][j] += a[i * d + k] * b[k * d + j];
#pragma GCC unroll 4
  for (size_t i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (size_t j = 0; j < cols; j++)
      c[i * d + j] = sum[i][j];
}

/* c = a b, not in place */
static void K(multiply)(lanes *c /* [d, d] */, const lanes *a /* [d, d] */, const lanes *b /* [d, d] */, size_t d) {
  size_t i = 0;
  for (; i + TILE_ROWS <= d; i += TILE_ROWS) {
    size_t j = 0;
    for (; j + TILE_COLS <= d; j += TILE_COLS)
      tile(c + i * d + j, a + i * d, b + j, d, TILE_ROWS, TILE_COLS);
    for (; j < d; j++)
      tile(c + i * d + j, a + i * d, b + j, d, TILE_ROWS, 1);
  }
  for (; i < d; i++)
    for (size_t j = 0; j < d; j++)
      tile(c + i * d + j, a + i * d, b + j, d, 1, 1);
}

/* ---- Gradient descent: O(steps d²) ---------------------------------------------------------------------------- */

/* w ← w + v, v ← momentum v − rate A (S w − b) / k, from w = v = 0. */
void K(gd_weights)(real *w_ /* [d, lanes] */, real *state, const clew_stream_settings *settings) {
  const size_t d = settings->d;
  const K(gram_state) s = K(gram_of)(state, d);
  const real *matrices = settings->matrices, count = (*s.count)[0], momentum = (real)settings->momentum;
  lanes *w = (lanes *)w_, *gradient = s.a, *velocity = s.b;
  for (size_t j = 0; j < d; j++)
    w[j] = velocity[j] = (lanes){0};
  if (count == (real)0)
    return;
  for (size_t step = 0; step < settings->steps; step++) {
    const real rate = (real)settings->rates[step] / count;
    if (step > 0)
      K(apply)(gradient, s.gram, w, d);
    else
      for (size_t j = 0; j < d; j++)
        gradient[j] = (lanes){0};
    for (size_t j = 0; j < d; j++) {
      gradient[j] -= s.moment[j];
      velocity[j] *= momentum;
    }
    if (matrices == NULL) {
      add_lanes(velocity, all_lanes(-rate), gradient, d);
    } else {
      const real *m = matrices + (settings->n_matrices > 1 ? step * d * d : 0);
      for (size_t i = 0; i < d; i++) {
        lanes sum = {0};
        for (size_t j = 0; j < d; j++)
          sum += m[i * d + j] * gradient[j];
        velocity[i] -= rate * sum;
      }
    }
    for (size_t j = 0; j < d; j++)
      w[j] += velocity[j];
  }
}

/* ---- GD++: O(steps d³) ---------------------------------------------------------------------------------------- */

/* A step of the transformer moves the inputs as well, x ← (I − γ XXᵀ) x with XXᵀ = Σ x xᵀ (von Oswald et al. 2022).
 * With T = I − γH that is H ← T H T, from H = S; the query's input is M x, M ← T M; and what is left of Xᵀy, c = X r,
 * becomes T (c − (rate / k) H c). So w = Σ (rate / k) M c over the steps. */
void K(gd_pp_weights)(real *w_ /* [d, lanes] */, real *state, const clew_stream_settings *settings) {
  const size_t d = settings->d;
  const K(gram_state) s = K(gram_of)(state, d);
  const real count = (*s.count)[0];
  lanes *w = (lanes *)w_, *left = s.w, *part = s.a;
  lanes *h = s.m[0], *query = s.m[1], *turn = s.m[2], *work = s.m[3];
  for (size_t j = 0; j < d; j++)
    w[j] = (lanes){0};
  if (count == (real)0)
    return;
  for (size_t i = 0; i < d * d; i++) {
    h[i] = s.gram[i];
    query[i] = all_lanes(i % (d + 1) == 0 ? (real)1 : (real)0);
  }
  for (size_t j = 0; j < d; j++)
    left[j] = s.moment[j];
  for (size_t step = 0; step < settings->steps; step++) {
    const real rate = (real)settings->rates[step] / count, gamma = (real)settings->gammas[step];
    K(apply)(part, query, left, d);
    add_lanes(w, all_lanes(rate), part, d);
    if (step + 1 == settings->steps)
      break;
    K(apply)(part, h, left, d);
    add_lanes(left, all_lanes(-rate), part, d);
    K(apply)(part, h, left, d);
    add_lanes(left, all_lanes(-gamma), part, d);
    for (size_t i = 0; i < d * d; i++)
      turn[i] = all_lanes(i % (d + 1) == 0 ? (real)1 : (real)0) - gamma * h[i];
    K(multiply)(work, turn, query, d);
    for (size_t i = 0; i < d * d; i++)
      query[i] = work[i];
    K(multiply)(work, turn, h, d);
    K(multiply)(h, work, turn, d);
  }
}

/* ---- Newton–Schulz: O(steps d³) ------------------------------------------------------------------------------- */

/* V ← V (2I − A V) for the inverse of A = S + lam I, of the pseudo-inverse where A is singular, from V = A / ‖A‖₁²
 * (Ben-Israel and Cohen 1966); here with A / ‖A‖₁ in A's place, so that nothing overflows. */
void K(newton_weights)(real *w_ /* [d, lanes] */, real *state, const clew_stream_settings *settings) {
  const size_t d = settings->d;
  const K(gram_state) s = K(gram_of)(state, d);
  lanes *w = (lanes *)w_, *a = s.m[0], *v = s.m[1], *product = s.m[2], *next = s.m[3], norm = {0};
  for (size_t i = 0; i < d; i++) {
    lanes sum = {0};
    for (size_t j = 0; j < d; j++) {
      const lanes x = s.gram[i * d + j] + all_lanes(i == j ? (real)settings->lam : (real)0);
      a[i * d + j] = x;
      sum += choose((lane_mask)(x < (lanes){0}), -x, x);
    }
    norm = choose((lane_mask)(sum > norm), sum, norm);
  }
  const lanes over = choose((lane_mask)(norm > (lanes){0}), all_lanes(1) / norm, (lanes){0});
  for (size_t i = 0; i < d * d; i++)
    a[i] = v[i] = a[i] * over;
  for (size_t step = 0; step < settings->steps; step++) {
    K(multiply)(product, a, v, d);
    K(multiply)(next, v, product, d);
    for (size_t i = 0; i < d * d; i++)
      v[i] = (v[i] - next[i]) + v[i];
  }
  K(apply)(w, v, s.moment, d);
  for (size_t j = 0; j < d; j++)
    w[j] *= over;
}

/* ---- Lasso: O(d³) an iteration -------------------------------------------------------------------------------- */

/* The duality gap of ½‖Xw − y‖² + bound ‖w‖₁ at w, with g = Xᵀ(y − Xw), over `limit`. The dual point is the residual,
 * shortened until no |Xᵀ θ| is above the bound. */
static lanes K(gap)(const K(gram_state) * s, const lanes *w, const lanes *g, real bound, lanes limit, size_t d) {
  lanes size = {0}, largest = {0}, inner = {0}, along = {0};
  for (size_t j = 0; j < d; j++) {
    const lanes a = choose((lane_mask)(w[j] < (lanes){0}), -w[j], w[j]);
    const lanes c = choose((lane_mask)(g[j] < (lanes){0}), -g[j], g[j]);
    size += a;
    largest = choose((lane_mask)(c > largest), c, largest);
    inner += w[j] * (s->moment[j] + g[j]);
    along += w[j] * s->moment[j];
  }
  const lanes zero = {0};
  lanes residual = *s->square - inner; /* ‖y − Xw‖² */
  residual = choose((lane_mask)(residual < zero), zero, residual);
  const lanes shorten = choose((lane_mask)(largest > all_lanes(bound)), all_lanes(bound) / largest, all_lanes(1));
  const lanes primal = (real)0.5 * residual + bound * size;
  const lanes dual = shorten * (*s->square - along) - (real)0.5 * shorten * shorten * residual;
  const lanes gap = primal - dual;
  return choose((lane_mask)(limit > zero), gap / limit, zero);
}

#if REAL_IS_FLOAT
#define DAMPING ((real)3e-4) /* of Newton's method, relative to S's diagonal */
#else
#define DAMPING ((real)1e-8)
#endif

/* w and g = b − S w after a step of Newton's method in the orthant of w's signs, over the coordinates that are not 0:
 * the minimum of the quadratic there, or as far towards it as the first coordinate that comes to 0 and then stays
 * there. Where S is singular on them the step is long and ends at such a coordinate. Lanes that are not active stay.
 * Returns the active lanes that went all the way. */
static lane_mask K(orthant_step)(const K(gram_state) * s, lane_mask active, real bound, size_t d) {
  lanes *w = s->w, *g = s->a, *inverse = s->c, *step = s->e, *factor = s->m[0];
  const lanes zero = {0}, one = all_lanes(1);
  for (size_t i = 0; i < d; i++) {
    const lane_mask here = active & (lane_mask)(w[i] != zero);
    lanes *row = factor + i * d;
    for (size_t j = 0; j < i; j++)
      row[j] = choose(here & (lane_mask)(w[j] != zero), s->gram[i * d + j], zero);
    for (size_t j = 0; j < i; j++)
      row[j] = (row[j] - dot_lanes(row, factor + j * d, j)) * inverse[j];
    const lanes square = choose(here, s->gram[i * d + i] * (1 + DAMPING), one), least = square * (DAMPING / 2);
    const lanes pivot = square - dot_lanes(row, row, i);
    row[i] = sqrt_lanes(choose((lane_mask)(pivot > least), pivot, least));
    inverse[i] = one / row[i];
    step[i] = choose(here, choose((lane_mask)(w[i] > zero), g[i] - bound, g[i] + bound), zero);
  }
  for (size_t i = 0; i < d; i++) /* L z = step, in place */
    step[i] = (step[i] - dot_lanes(factor + i * d, step, i)) * inverse[i];
  solve_upper(step, factor, inverse, d, d);
  lanes length = one;
  for (size_t i = 0; i < d; i++) {
    const lane_mask crosses = active & (lane_mask)(w[i] * (w[i] + step[i]) < zero);
    const lanes until = choose(crosses, -w[i] / step[i], one);
    length = choose((lane_mask)(until < length), until, length);
  }
  for (size_t i = 0; i < d; i++) {
    const lane_mask crosses = active & (lane_mask)(w[i] * (w[i] + step[i]) < zero);
    const lane_mask stops = crosses & (lane_mask)(-w[i] / step[i] <= length);
    w[i] = choose(stops, zero, choose(active, w[i] + length * step[i], w[i]));
  }
  K(apply)(step, s->gram, w, d);
  for (size_t i = 0; i < d; i++)
    g[i] = choose(active, s->moment[i] - step[i], g[i]);
  return active & (lane_mask)(length == one);
}

/* The minimum along one coordinate, where `chosen`; g follows. */
LANE_INLINE void coordinate_step(const K(gram_state) * s, lane_mask chosen, real bound, size_t j, size_t d) {
  const lanes zero = {0}, square = s->gram[j * d + j], goal = s->a[j] + square * s->w[j];
  const lanes low = goal + bound, high = goal - bound;
  lanes next = choose((lane_mask)(high > zero), high, choose((lane_mask)(low < zero), low, zero));
  next = choose((lane_mask)(square > zero), next / square, zero);
  const lanes step = choose(chosen, next - s->w[j], zero);
  s->w[j] = choose(chosen, next, s->w[j]);
  add_lanes(s->a, -step, s->gram + j * d, d);
}

/* Coordinate descent from the last weights. The coordinate whose gradient is furthest beyond the bound is moved; then
 * Newton's method finds the rest in the orthant of the signs. (Sweeps over all coordinates, the usual way, take
 * thousands where examples are fewer than coordinates; one is made now and then, for the case that Newton's steps go in
 * circles in rounding.) A lane stops where its gap is at most tol · ½ yᵀy. Coordinates whose column is zero stay 0. */
void K(lasso_weights)(real *w_ /* [d, lanes] */, real *state, const clew_stream_settings *settings) {
  const size_t d = settings->d;
  const K(gram_state) s = K(gram_of)(state, d);
  const real count = (*s.count)[0], bound = (real)settings->alpha * count;
  const real floor = 8 * REAL_EPSILON * (real)(d + 4), tol = (real)settings->tol > floor ? (real)settings->tol : floor;
  const lanes zero = {0}, limit = *s.square * (real)0.5 * tol;
  lanes *w = s.w, *g = s.a;
  K(apply)(g, s.gram, w, d);
  for (size_t j = 0; j < d; j++)
    g[j] = s.moment[j] - g[j];
  *s.excess = K(gap)(&s, w, g, bound, limit, d);
  for (size_t i = 0; i < settings->max_iterations; i++) {
    const lane_mask active = (lane_mask)(*s.excess > all_lanes(1));
    int any = 0;
    for (int l = 0; l < LANE_COUNT; l++)
      any |= active[l] != 0;
    if (!any)
      break;
    const lane_mask settled = K(orthant_step)(&s, active, bound, d);
    if (i % (8 * d) == 8 * d - 1) {
      for (size_t j = 0; j < d; j++)
        coordinate_step(&s, active, bound, j, d);
    } else {
      lanes furthest = all_lanes(bound), which = all_lanes((real)-1);
      for (size_t j = 0; j < d; j++) {
        const lanes size = choose((lane_mask)(g[j] < zero), -g[j], g[j]);
        const lane_mask better = (lane_mask)(size > furthest) & (lane_mask)(w[j] == zero);
        furthest = choose(better, size, furthest);
        which = choose(better, all_lanes((real)j), which);
      }
      for (int l = 0; l < LANE_COUNT; l++) {
        lane_mask alone = {0};
        alone[l] = settled[l];
        if (settled[l] != 0 && which[l] >= 0)
          coordinate_step(&s, alone, bound, (size_t)which[l], d);
      }
    }
    *s.excess = K(gap)(&s, w, g, bound, limit, d);
  }
  for (size_t j = 0; j < d; j++)
    ((lanes *)w_)[j] = w[j];
}
