/* Minimum-norm least squares of every prefix, exactly through rank deficiency.
 *
 * The rows read so far are kept as X = P L Qᵀ: Q's rows are an orthonormal basis of the row space (Gram–Schmidt, each
 * row projected until nothing more falls off), L is lower triangular [rank, rank], P is not kept but has been applied
 * to y, which gives t. So w = Qᵀ L⁻¹ t is the minimum-norm solution. A row with a new direction adds a row to L and
 * fits exactly: w moves along that direction alone. A row without one is rotated in (Givens).
 *
 * Rank is numpy.linalg.lstsq's: the singular values above eps · max(k, d) times the largest, k rows. Each sequence
 * keeps ‖L⁻¹‖_F, so that 1 / ‖L⁻¹‖_F ≤ σ_min, and ‖X‖_F ≥ σ_max: while the first is well above the tolerance times the
 * second, the rank is the number of directions. Rows that are rotated in can only raise σ_min, so the bound holds until
 * the next direction comes. Where it does not decide, the singular values of L do (one-sided Jacobi), and the truncated
 * solution is lstsq's.
 *
 * Rows are scaled by a power of two of each sequence's own, so that no square overflows. */
#include "kernels_reg_internal.h"

#if REAL_IS_FLOAT
#define SCALED_HIGHEST ((real)0x1p40) /* a scaled row beyond this makes the sequence choose its scale anew */
#else
#define SCALED_HIGHEST ((real)0x1p300)
#endif
#define MOST_PASSES 5    /* of projection */
#define MOST_SWEEPS 60   /* of Jacobi rotations */
#define SAFETY ((real)8) /* bound against tolerance: below this, singular values decide */

/* What is kept of a group. Columns of L and of its inverse beyond a lane's rank are zero, and so are rows of Q. */
typedef struct K(ols_state) {
  lanes *q;                        /* [d, d]: rows are directions */
  lanes *factor;                   /* L: [d, d] */
  lanes *inverse;                  /* L⁻¹: [d, d]; of some use only where not stale */
  lanes *t, *over, *w;             /* [d]; over = 1 / L_ii; w of the scaled rows */
  lanes *row, *part, *rest, *cell; /* [d]: scratch */
  lanes *norm2, *inverse_norm2;    /* ‖X‖_F², ‖L⁻¹‖_F² */
  lanes *scale, *rank, *stale;     /* numbers, one a lane */
  lanes *count;                    /* rows */
  real *scratch;                   /* one lane's: [2 d² + 3 d] */
} K(ols_state);

static size_t K(scratch_vectors)(size_t d) { return (2 * d * d + 3 * d + LANES - 1) / LANES; }

static K(ols_state) K(ols_of)(real *state, size_t d) {
  K(ols_state) s;
  lanes *at = (lanes *)state;
  s.q = at, at += d * d;
  s.factor = at, at += d * d;
  s.inverse = at, at += d * d;
  s.t = at, at += d;
  s.over = at, at += d;
  s.w = at, at += d;
  s.row = at, at += d;
  s.part = at, at += d;
  s.rest = at, at += d;
  s.cell = at, at += d;
  s.norm2 = at++, s.inverse_norm2 = at++, s.scale = at++, s.rank = at++, s.stale = at++, s.count = at++;
  s.scratch = (real *)at;
  return s;
}

size_t K(ols_vectors)(const clew_stream_settings *s) {
  return 3 * s->d * s->d + 7 * s->d + 6 + K(scratch_vectors)(s->d);
}

void K(ols_begin)(real *state, const clew_stream_settings *s) {
  const size_t n = K(ols_vectors)(s);
  for (size_t i = 0; i < n; i++)
    ((lanes *)state)[i] = (lanes){0};
}

/* ---- One lane ------------------------------------------------------------------------------------------------- */

/* Largest power of two not above x > 0, or the smallest normal number; its inverse is finite. */
static real K(power_below)(real x) {
#if REAL_IS_FLOAT
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits &= 0x7f800000u;
  bits = bits < 0x00800000u ? 0x00800000u : bits > 0x7e000000u ? 0x7e000000u : bits;
#else
  uint64_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits &= 0x7ff0000000000000u;
  bits = bits < 0x0010000000000000u ? 0x0010000000000000u : bits > 0x7fd0000000000000u ? 0x7fd0000000000000u : bits;
#endif
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

/* Chooses a lane's scale by the first row that is not zero, and again when a row is beyond all measure. */
static void K(choose_scale)(const K(ols_state) * s, size_t lane, real highest, size_t d) {
  const real before = (*s->scale)[lane], now = (real)1 / K(power_below)(highest);
  (*s->scale)[lane] = now;
  if (before == (real)0)
    return;
  const real factor = now / before, back = before / now;
  for (size_t i = 0; i < d * d; i++) {
    s->factor[i][lane] *= factor;
    s->inverse[i][lane] *= back;
  }
  for (size_t i = 0; i < d; i++) {
    s->over[i][lane] *= back;
    s->w[i][lane] *= back;
  }
  (*s->norm2)[lane] *= factor * factor;
  (*s->inverse_norm2)[lane] *= back * back;
}

/* L⁻¹ of a lane and its norm, after rotations. */
static void K(renew_inverse)(const K(ols_state) * s, size_t lane, size_t d) {
  const size_t r = (size_t)(*s->rank)[lane];
  real norm2 = 0;
  for (size_t j = 0; j < r; j++)
    for (size_t i = j; i < r; i++) {
      real sum = i == j ? (real)1 : (real)0;
      for (size_t c = j; c < i; c++)
        sum -= s->factor[i * d + c][lane] * s->inverse[c * d + j][lane];
      sum *= s->over[i][lane];
      s->inverse[i * d + j][lane] = sum;
      norm2 += sum * sum;
    }
  (*s->inverse_norm2)[lane] = norm2;
  (*s->stale)[lane] = 0;
}

/* A lane's row has a new direction: s->rest, of length rho; s->part are its coefficients along the others. */
static void K(border_lane)(const K(ols_state) * s, size_t lane, real rho, real y, const lanes *x, size_t d) {
  if ((*s->stale)[lane] != (real)0)
    K(renew_inverse)(s, lane, d);
  const size_t r = (size_t)(*s->rank)[lane];
  const real over = (real)1 / rho;
  real error = y, norm2 = over * over;
  for (size_t j = 0; j < d; j++)
    error -= x[j][lane] * s->w[j][lane];
  for (size_t j = 0; j < d; j++) {
    s->q[r * d + j][lane] = s->rest[j][lane] * over;
    s->w[j][lane] += error * over * s->q[r * d + j][lane];
  }
  for (size_t j = 0; j < r; j++) {
    real sum = 0;
    for (size_t c = j; c < r; c++)
      sum += s->part[c][lane] * s->inverse[c * d + j][lane];
    s->inverse[r * d + j][lane] = -sum * over;
    norm2 += sum * over * sum * over;
    s->factor[r * d + j][lane] = s->part[j][lane];
  }
  s->inverse[r * d + r][lane] = over;
  s->factor[r * d + r][lane] = rho;
  s->over[r][lane] = over;
  s->t[r][lane] = y;
  (*s->inverse_norm2)[lane] += norm2;
  (*s->rank)[lane] += (real)1;
}

/* Makes the columns of a [r, r] (stored as rows) orthogonal by rotations, which v [r, r] collects: a = L V. */
static void K(jacobi)(real *a, real *v, size_t r) {
  int turned = 1;
  for (int sweep = 0; sweep < MOST_SWEEPS && turned; sweep++) {
    turned = 0;
    for (size_t p = 0; p + 1 < r; p++)
      for (size_t q = p + 1; q < r; q++) {
        real *ap = a + p * r, *aq = a + q * r, *vp = v + p * r, *vq = v + q * r;
        real pp = 0, qq = 0, pq = 0;
        for (size_t i = 0; i < r; i++) {
          pp += ap[i] * ap[i];
          qq += aq[i] * aq[i];
          pq += ap[i] * aq[i];
        }
        const real size = sqrt_real(pp) * sqrt_real(qq), off = pq < 0 ? -pq : pq;
        if (!(off > REAL_EPSILON * size) || off == (real)0)
          continue;
        turned = 1;
        const real zeta = (qq - pp) / (2 * pq), magnitude = zeta < 0 ? -zeta : zeta;
        /* zeta² may overflow: then the root is zeta itself */
        const real root = magnitude > (real)1 / REAL_EPSILON ? magnitude : sqrt_real(1 + zeta * zeta);
        const real tangent = (zeta < 0 ? (real)-1 : (real)1) / (magnitude + root);
        const real c = (real)1 / sqrt_real(1 + tangent * tangent), sine = c * tangent;
        for (size_t i = 0; i < r; i++) {
          const real x = ap[i], y = vp[i];
          ap[i] = c * x - sine * aq[i];
          aq[i] = sine * x + c * aq[i];
          vp[i] = c * y - sine * vq[i];
          vq[i] = sine * y + c * vq[i];
        }
      }
  }
}

/* The solution that keeps the singular values above tolerance times the largest; also the exact bound. */
static void K(truncated)(const K(ols_state) * s, size_t lane, real tolerance, size_t d) {
  const size_t r = (size_t)(*s->rank)[lane];
  real *a = s->scratch, *v = a + r * r, *sigma = v + r * r, *z = sigma + r;
  for (size_t j = 0; j < r; j++)
    for (size_t i = 0; i < r; i++) {
      a[j * r + i] = i >= j ? s->factor[i * d + j][lane] : (real)0;
      v[j * r + i] = i == j ? (real)1 : (real)0;
    }
  K(jacobi)(a, v, r);
  real largest = 0, inverse_norm2 = 0;
  for (size_t j = 0; j < r; j++) {
    real sum = 0;
    for (size_t i = 0; i < r; i++)
      sum += a[j * r + i] * a[j * r + i];
    sigma[j] = sqrt_real(sum);
    largest = sigma[j] > largest ? sigma[j] : largest;
    inverse_norm2 += (real)1 / sum;
    z[j] = 0;
  }
  for (size_t j = 0; j < r; j++) {
    if (!(sigma[j] > tolerance * largest))
      continue;
    real along = 0;
    for (size_t i = 0; i < r; i++)
      along += a[j * r + i] / sigma[j] * s->t[i][lane];
    for (size_t i = 0; i < r; i++)
      z[i] += along / sigma[j] * v[j * r + i];
  }
  for (size_t j = 0; j < d; j++) {
    real sum = 0;
    for (size_t c = 0; c < r; c++)
      sum += z[c] * s->q[c * d + j][lane];
    s->w[j][lane] = sum;
  }
  /* An inverse that is renewed gives the bound again; this one is the same norm, from the singular values. */
  (*s->inverse_norm2)[lane] = inverse_norm2;
}

/* ---- All lanes ------------------------------------------------------------------------------------------------ */

/* rest = x − Qᵀ part with part = Q x, until another pass would take nothing more away. */
static lanes K(project)(const K(ols_state) * s, const lanes *x /* [d] */, size_t r, size_t d) {
  lanes before, after = dot_lanes(x, x, d);
  for (size_t j = 0; j < d; j++)
    s->rest[j] = x[j];
  for (size_t c = 0; c < r; c++)
    s->part[c] = (lanes){0};
  for (int pass = 0; pass < MOST_PASSES; pass++) {
    for (size_t c = 0; c < r; c++)
      s->cell[c] = dot_lanes(s->q + c * d, s->rest, d);
    for (size_t c = 0; c < r; c++) {
      add_lanes(s->rest, -s->cell[c], s->q + c * d, d);
      s->part[c] += s->cell[c];
    }
    before = after;
    after = dot_lanes(s->rest, s->rest, d);
    int again = 0;
    for (int l = 0; l < LANE_COUNT; l++)
      again |= after[l] < (real)0.5 * before[l];
    if (!again)
      break;
  }
  return after;
}

/* As border_lane, where every lane has a new direction and the same rank r. */
static void K(border)(const K(ols_state) * s, lanes rho, lanes y, const lanes *x, size_t r, size_t d) {
  const lanes over = all_lanes(1) / rho, step = (y - dot_lanes(x, s->w, d)) * over;
  lanes *direction = s->q + r * d, *row = s->inverse + r * d, norm2 = over * over;
  for (size_t j = 0; j < d; j++) {
    direction[j] = s->rest[j] * over;
    s->w[j] += step * direction[j];
  }
  for (size_t j = 0; j < r; j++) {
    row[j] = (lanes){0};
    s->factor[r * d + j] = s->part[j];
  }
  for (size_t c = 0; c < r; c++)
    add_lanes(row, -s->part[c] * over, s->inverse + c * d, c + 1);
  row[r] = over;
  for (size_t j = 0; j < r; j++)
    norm2 += row[j] * row[j];
  s->factor[r * d + r] = rho;
  s->over[r] = over;
  s->t[r] = y;
  *s->inverse_norm2 += norm2;
  *s->rank += all_lanes(1);
}

/* Rotates the row of the chosen lanes in and solves again. */
static void K(rotate)(const K(ols_state) * s, lane_mask chosen, lanes y, size_t r, size_t d) {
  const lanes zero = {0};
  for (size_t c = 0; c < r; c++)
    s->row[c] = choose(chosen, s->part[c], zero);
  rotate_in(s->factor, s->t, s->over, s->row, choose(chosen, y, zero), d, r);
  *s->stale = choose(chosen, all_lanes(1), *s->stale);
  solve_lower(s->part, s->cell, s->factor, s->t, s->over, d, r);
  for (size_t j = 0; j < d; j++)
    s->rest[j] = zero;
  for (size_t c = 0; c < r; c++)
    add_lanes(s->rest, s->part[c], s->q + c * d, d);
  for (size_t j = 0; j < d; j++)
    s->w[j] = choose(chosen, s->rest[j], s->w[j]);
}

void K(ols_update)(real *state, const real *x_ /* [d, lanes] */, const real *y_, const clew_stream_settings *settings) {
  const size_t d = settings->d;
  const K(ols_state) s = K(ols_of)(state, d);
  const lanes y = *(const lanes *)y_;
  lanes highest = {0}, *x = s.row;
  for (size_t j = 0; j < d; j++) {
    const lanes value = ((const lanes *)x_)[j], size = choose((lane_mask)(value < (lanes){0}), -value, value);
    highest = choose((lane_mask)(size > highest), size, highest);
  }
  for (int l = 0; l < LANE_COUNT; l++)
    if (highest[l] > (real)0 && ((*s.scale)[l] == (real)0 || highest[l] * (*s.scale)[l] > SCALED_HIGHEST))
      K(choose_scale)(&s, (size_t)l, highest[l], d);
  for (size_t j = 0; j < d; j++)
    x[j] = ((const lanes *)x_)[j] * *s.scale;
  const lanes square = dot_lanes(x, x, d);
  *s.norm2 += square;
  *s.count += all_lanes(1);

  real most = 0, least = (real)d;
  for (int l = 0; l < LANE_COUNT; l++) {
    const real rank = (*s.rank)[l];
    most = rank > most ? rank : most;
    least = rank < least ? rank : least;
  }
  const size_t r = (size_t)most;
  lane_mask fresh = {0};
  int n_fresh = 0;
  if (least < (real)d) {
    const lanes left = K(project)(&s, x, r, d);
    const real noise = (real)0.5 * REAL_EPSILON * (real)(d + 3);
    fresh = (lane_mask)(left > square * (noise * noise)) & (lane_mask)(*s.rank < all_lanes((real)d)) &
            (lane_mask)(left > (lanes){0});
    for (int l = 0; l < LANE_COUNT; l++)
      n_fresh += fresh[l] != 0;
    if (n_fresh == LANE_COUNT && most == least) {
      for (int l = 0; l < LANE_COUNT; l++)
        if ((*s.stale)[l] != (real)0)
          K(renew_inverse)(&s, (size_t)l, d);
      K(border)(&s, sqrt_lanes(left), y, x, r, d);
    } else if (n_fresh > 0) {
      for (int l = 0; l < LANE_COUNT; l++)
        if (fresh[l] != 0)
          K(border_lane)(&s, (size_t)l, sqrt_real(left[l]), y[l], x, d);
    }
  } else {
    for (size_t c = 0; c < r; c++)
      s.part[c] = dot_lanes(s.q + c * d, x, d);
  }
  if (n_fresh < LANE_COUNT)
    K(rotate)(&s, ~fresh, y, r, d);

  const real rows = (*s.count)[0];
  const real tolerance = REAL_EPSILON * (rows > (real)d ? rows : (real)d);
  for (int l = 0; l < LANE_COUNT; l++) {
    const real product = sqrt_real((*s.inverse_norm2)[l]) * sqrt_real((*s.norm2)[l]);
    if ((*s.rank)[l] > (real)0 && !(product * (SAFETY * tolerance) < (real)1))
      K(truncated)(&s, (size_t)l, tolerance, d);
  }
}

void K(ols_weights)(real *w /* [d, lanes] */, real *state, const clew_stream_settings *settings) {
  const K(ols_state) s = K(ols_of)(state, settings->d);
  for (size_t j = 0; j < settings->d; j++)
    ((lanes *)w)[j] = s.w[j] * *s.scale;
}
