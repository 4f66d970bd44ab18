/* The optimiser's arithmetic on contiguous values. Every element is computed by itself, without fused operations, so
 * the result does not depend on how a tensor is cut. */
#include "kernels_internal.h"

/* As torch.optim.AdamW defines it: decay · p first, then the step along m / (√(v / correction2) + eps). */
void K(adamw)(real *restrict p /* [n] */, real *restrict m /* [n] */, real *restrict v /* [n] */,
              const real *restrict g /* [n] */, size_t n, const R(clew_adamw_factors) * f) {
  const real keep = f->keep, step = f->step, scale = f->scale, eps = f->eps, root = f->root;
  const real new1 = f->new1, old2 = f->old2, new2 = f->new2;
#pragma omp simd
  for (size_t i = 0; i < n; i++) {
    const real gradient = scale * g[i];
    const real first = m[i] + new1 * (gradient - m[i]);
    const real second = old2 * v[i] + new2 * (gradient * gradient);
    m[i] = first;
    v[i] = second;
    p[i] = keep * p[i] - step * (first / (sqrt_real(second) / root + eps));
  }
}

double K(sum_squares)(const real *x /* [n] */, size_t n) {
  double total = 0;
#pragma omp simd reduction(+ : total)
  for (size_t i = 0; i < n; i++)
    total += (double)x[i] * (double)x[i];
  return total;
}

void K(add_scaled)(real *restrict y /* [n] */, const real *restrict x /* [n] */, real factor, size_t n) {
#pragma omp simd
  for (size_t i = 0; i < n; i++)
    y[i] += factor * x[i];
}
