/* Kernels of estimators that compare a query with every example, or a sequence with every task. */
#include "kernels_reg_rows.h"
#include "kernels_contract.h"

#include "kernels_math.h"
#include "kernels_reg.h"

/* out[j] = ‖x_j − q‖², from x transposed; the differences themselves, so that near points keep their digits. */
void K(distances)(real *restrict out /* [n] */, const real *restrict x /* [d, ld] */, size_t ld,
                  const real *restrict q /* [d] */, size_t n, size_t d) {
  for (size_t j = 0; j < n; j++)
    out[j] = 0;
  for (size_t c = 0; c < d; c++) {
    const real centre = q[c], *row = x + c * ld;
#pragma omp simd
    for (size_t j = 0; j < n; j++) {
      const real difference = row[j] - centre;
      out[j] = fma_real(difference, difference, out[j]);
    }
  }
}

/* out = exp(factor · out), nothing denormal */
void K(scaled_exp)(real *restrict out /* [n] */, real factor, size_t n) {
#pragma omp simd
  for (size_t j = 0; j < n; j++)
    out[j] = exp_flushed(factor * out[j]);
}

/* Two rows of a softmax with values, over a block of keys: brings shift, Σ e and Σ e y of each up to date, e = 2^(score
 * − shift + ½). Two, because the sums of one wait for each other. */
void K(attend)(real *shift /* [2] */, double *sum /* [2] */, double *weighted /* [2] */,
               const real *restrict first /* [n] */, const real *restrict second /* [n] */,
               const real *restrict y /* [n] */, size_t n) {
  real highest0 = shift[0] - (real)0.5, highest1 = shift[1] - (real)0.5;
#pragma omp simd reduction(max : highest0, highest1)
  for (size_t j = 0; j < n; j++) {
    highest0 = first[j] > highest0 ? first[j] : highest0;
    highest1 = second[j] > highest1 ? second[j] : highest1;
  }
  const real next0 = highest0 + (real)0.5, next1 = highest1 + (real)0.5;
  real total0 = 0, total1 = 0, along0 = 0, along1 = 0;
#pragma omp simd reduction(+ : total0, total1, along0, along1)
  for (size_t j = 0; j < n; j++) {
    const real e0 = exp2_above(first[j] - next0), e1 = exp2_above(second[j] - next1);
    total0 += e0;
    total1 += e1;
    along0 = fma_real(e0, y[j], along0);
    along1 = fma_real(e1, y[j], along1);
  }
  const real next[2] = {next0, next1}, total[2] = {total0, total1}, along[2] = {along0, along1};
  for (int i = 0; i < 2; i++) {
    const double correction = shift[i] < next[i] ? (double)exp2_above(shift[i] - next[i] - (real)0.5) : 1;
    sum[i] = sum[i] * correction + (double)total[i];
    weighted[i] = weighted[i] * correction + (double)along[i];
    shift[i] = next[i];
  }
}

/* Rows of a [m, nb] ← a · L⁻ᵀ, with L's transpose and the inverses of its diagonal. */
void K(solve_rows)(real *restrict a, size_t ld, const real *restrict transposed /* Lᵀ: [nb, nb] */,
                   const real *restrict inverse /* [nb] */, size_t m, size_t nb) {
  for (size_t i = 0; i < m; i++) {
    real *row = a + i * ld;
    for (size_t c = 0; c < nb; c++) {
      const real value = row[c] * inverse[c], *below = transposed + c * nb;
      row[c] = value;
#pragma omp simd
      for (size_t j = c + 1; j < nb; j++)
        row[j] = fma_real(-value, below[j], row[j]);
    }
  }
}

/* out [rows, n] = x [rows, d] · tasks [d, n]: short sums, kept in registers; n is rounded up to two registers. */
static inline void K(predict_rows)(real *out, const real *x, const real *tasks, size_t ld, size_t n, size_t d,
                                   const size_t rows) {
  for (size_t j = 0; j < n; j += 2 * LANES) {
    vec sum[4][2] = {{{0}}};
    for (size_t k = 0; k < d; k++) {
      const vec a = load(tasks + k * ld + j), b = load(tasks + k * ld + j + LANES);
#pragma GCC unroll 4
      for (size_t i = 0; i < rows; i++) {
        const vec factor = splat(x[i * d + k]);
        sum[i][0] = factor * a + sum[i][0];
        sum[i][1] = factor * b + sum[i][1];
      }
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < rows; i++) {
      store(out + i * ld + j, sum[i][0]);
      store(out + i * ld + j + LANES, sum[i][1]);
    }
  }
}

void K(predict_block)(real *out, const real *x, const real *tasks, size_t ld, size_t n, size_t rows, size_t d) {
  size_t i = 0;
  for (; i + 4 <= rows; i += 4)
    K(predict_rows)(out + i * ld, x + i * d, tasks, ld, n, d, 4);
  for (; i < rows; i++)
    K(predict_rows)(out + i * ld, x + i * d, tasks, ld, n, d, 1);
}

/* A prefix's posterior over a block of tasks and its prediction; then the tasks' scores take the next example in. */
void K(posterior_block)(R(clew_posterior) * row, real *restrict score /* [n] */, real *restrict prediction /* [n] */,
                        bool wanted, bool keep, real y, real half_precision, size_t n) {
  const real highest = row->block_maximum + (real)0.5;
  real next = -REAL_INF;
  const bool counts = wanted && highest > row->shift - (real)EXPONENT_BIAS;
  row->correction = 1;
  if (counts) {
    if (highest > row->shift) {
      row->correction = row->sum > 0 ? (double)exp2_above(row->shift - highest - (real)0.5) : 0;
      row->sum *= row->correction;
      row->weighted *= row->correction;
      row->shift = highest;
    }
    const real shift = row->shift;
    real total = 0, along = 0;
    if (!keep) {
#pragma omp simd reduction(+ : total, along) reduction(max : next)
      for (size_t j = 0; j < n; j++) {
        const real e = exp2_above(score[j] - shift), error = y - prediction[j];
        const real s = fma_real(-half_precision * error, error, score[j]);
        total += e;
        along = fma_real(e, prediction[j], along);
        score[j] = s;
        next = s > next ? s : next;
      }
    } else {
#pragma omp simd reduction(+ : total, along) reduction(max : next)
      for (size_t j = 0; j < n; j++) {
        const real e = exp2_above(score[j] - shift), p = prediction[j], error = y - p;
        const real s = fma_real(-half_precision * error, error, score[j]);
        total += e;
        along = fma_real(e, p, along);
        prediction[j] = e;
        score[j] = s;
        next = s > next ? s : next;
      }
    }
    row->sum += (double)total;
    row->weighted += (double)along;
  } else {
#pragma omp simd reduction(max : next)
    for (size_t j = 0; j < n; j++) {
      const real error = y - prediction[j], s = fma_real(-half_precision * error, error, score[j]);
      score[j] = s;
      next = s > next ? s : next;
    }
    for (size_t j = 0; keep && j < n; j++)
      prediction[j] = 0;
  }
  row[1].block_maximum = next;
}
