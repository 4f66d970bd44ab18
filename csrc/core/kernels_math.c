/* Elementwise kernels: functions, activations with bias and gate, residual additions. */
#include "kernels_math.h"

void K(vexp)(real *out /* [n] */, const real *x /* [n] */, size_t n) {
#pragma omp simd
  for (size_t i = 0; i < n; i++)
    out[i] = exp_real(x[i]);
}

void K(vtanh)(real *out /* [n] */, const real *x /* [n] */, size_t n) {
#pragma omp simd
  for (size_t i = 0; i < n; i++)
    out[i] = tanh_real(x[i]);
}

void K(verf)(real *out /* [n] */, const real *x /* [n] */, size_t n) {
#pragma omp simd
  for (size_t i = 0; i < n; i++)
    out[i] = erf_real(x[i]);
}

void K(softcap)(real *x /* [m, n] */, ptrdiff_t ld, size_t m, size_t n, real cap) {
  const real inverse = (real)1 / cap;
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld;
#pragma omp simd
    for (size_t j = 0; j < n; j++)
      row[j] = cap * tanh_real(row[j] * inverse);
  }
}

#define ACTIVATION_ROW(name)                                                                                           \
  static void name##_row(real *out, const real *x, size_t n) {                                                         \
    _Pragma("omp simd") for (size_t j = 0; j < n; j++) out[j] = name##_real(x[j]);                                     \
  }

ACTIVATION_ROW(gelu)
ACTIVATION_ROW(gelu_tanh)
ACTIVATION_ROW(relu)
ACTIVATION_ROW(silu)
ACTIVATION_ROW(quick_gelu)
ACTIVATION_ROW(relu2)
ACTIVATION_ROW(tanh)
ACTIVATION_ROW(sigmoid)

static void copy_row(real *out, const real *x, size_t n) {
  if (out != x)
    memcpy(out, x, n * sizeof *out);
}

typedef void row_function(real *out, const real *x, size_t n);

static row_function *activation(clew_act act) {
  switch (act) {
  case CLEW_ACT_GELU:
    return gelu_row;
  case CLEW_ACT_GELU_TANH:
    return gelu_tanh_row;
  case CLEW_ACT_RELU:
    return relu_row;
  case CLEW_ACT_SILU:
    return silu_row;
  case CLEW_ACT_QUICK_GELU:
    return quick_gelu_row;
  case CLEW_ACT_RELU2:
    return relu2_row;
  case CLEW_ACT_TANH:
    return tanh_row;
  case CLEW_ACT_SIGMOID:
    return sigmoid_row;
  case CLEW_ACT_NONE:
  case CLEW_N_ACT:
  default:
    return copy_row;
  }
}

void K(bias_act)(real *post /* [m, n] */, ptrdiff_t ld_post, real *pre /* [m, n] */, ptrdiff_t ld_pre,
                 const real *bias /* [n] */, const real *gate /* [m, n] */, ptrdiff_t ld_gate, size_t m, size_t n,
                 clew_act act) {
  row_function *act_row = activation(act);
  for (size_t i = 0; i < m; i++) {
    real *x = pre + (ptrdiff_t)i * ld_pre;
    real *y = post + (ptrdiff_t)i * ld_post;
    if (bias) {
#pragma omp simd
      for (size_t j = 0; j < n; j++)
        x[j] += bias[j];
    }
    act_row(y, x, n);
    if (gate) {
      const real *factor = gate + (ptrdiff_t)i * ld_gate;
#pragma omp simd
      for (size_t j = 0; j < n; j++)
        y[j] *= factor[j];
    }
  }
}

void K(bias_add)(real *sum /* [m, n] */, ptrdiff_t ld_sum, real *x /* [m, n] */, ptrdiff_t ld_x,
                 const real *bias /* [n] */, const real *resid /* [m, n] */, ptrdiff_t ld_resid, size_t m, size_t n) {
  for (size_t i = 0; i < m; i++) {
    real *row = x + (ptrdiff_t)i * ld_x;
    if (bias) {
#pragma omp simd
      for (size_t j = 0; j < n; j++)
        row[j] += bias[j];
    }
    if (!sum)
      continue;
    real *total = sum + (ptrdiff_t)i * ld_sum;
    if (!resid) {
      copy_row(total, row, n);
      continue;
    }
    const real *carried = resid + (ptrdiff_t)i * ld_resid;
#pragma omp simd
    for (size_t j = 0; j < n; j++)
      total[j] = row[j] + carried[j];
  }
}
