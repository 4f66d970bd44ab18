/* Products of whole arrays through the pool: the engine's GEMM with nothing around it. */
#include "blas.h"
#include "plan.h"
#include "pool.h"
#include "product.h"

typedef struct R(product_job) {
  real *c;           /* [batch, m, n] */
  const real *a, *b; /* [batch, m, k], [batch, k, n] */
  const clew_product_shape *shape;
  clew_tiling tiling;
} R(product_job);

static void R(product_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(product_job) *job = ctx;
  const clew_product_shape *s = job->shape;
  const clew_tiling *t = &job->tiling;
  const ptrdiff_t item = (ptrdiff_t)(index / (t->n_rows * t->n_cols));
  index %= t->n_rows * t->n_cols;
  const size_t row = index % t->n_rows * t->rows, col = index / t->n_rows * t->cols;
  const size_t rows = row + t->rows < s->m ? t->rows : s->m - row, cols = col + t->cols < s->n ? t->cols : s->n - col;
  const ptrdiff_t r = (ptrdiff_t)row, j = (ptrdiff_t)col;
  (void)R(clew_gemm)(job->c + item * s->c[0] + r * s->c[1] + j * s->c[2], s->c[1], s->c[2],
                     job->a + item * s->a[0] + r * s->a[1], s->a[1], s->a[2], job->b + item * s->b[0] + j * s->b[2],
                     s->b[1], s->b[2], rows, cols, s->k, 1, 0);
}

bool R(clew_product)(real *c, const real *a, const real *b, const clew_product_shape *shape, clew_cancel *cancel) {
  if (shape->m == 0 || shape->n == 0) {
    return true; /* no tiles to cut */
  }
  R(product_job) job = {c, a, b, shape, clew_tile(shape->m, shape->n, clew_get_threads())};
  return clew_pool_for(shape->batch * job.tiling.n_rows * job.tiling.n_cols, R(product_task), &job, clew_pool_threads(),
                       cancel);
}
