/* Gradient descent of all prefixes as matrix products, where d is too large for the lanes of a stream.
 *
 * Prefixes are taken in chunks of rows W [rows, d]. What lies before a chunk is in S = XᵀX and b = Xᵀy; the examples of
 * the chunk itself are seen through a causal mask, as linear attention sees them: the gradient of row i is
 * W S − b + Σ_{j<i} (W x_j − y_j) x_j. So a prefix costs O(steps · d (d + chunk)), and nearly all of it is products. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "regression.h"

#define CHUNK 64

typedef struct R(descent_job) {
  const clew_estimates *out;
  const clew_examples *in;
  const clew_stream_settings *settings;
  real *scratch; /* [slots, slot_reals] */
  size_t slot_reals;
  size_t *failed; /* [batch]: 0, or 1 + the first prefix whose estimate is no number */
} R(descent_job);

typedef struct R(chunk) {
  real *w, *velocity, *gradient, *turned; /* [CHUNK, d] */
  real *error;                            /* [CHUNK, CHUNK] */
  real *gram, *moment;                    /* S [d, d], b [d] of the examples before */
} R(chunk);

/* error [rows, known] = W x − y below the diagonal, 0 elsewhere; error holds W x. */
static void R(mask)(real *error, const real *y, size_t rows, size_t known) {
  for (size_t i = 0; i < rows; i++)
    for (size_t j = 0; j < known; j++)
      error[i * CHUNK + j] = j < i ? error[i * CHUNK + j] - y[j] : (real)0;
}

/* The weights of prefixes begin … begin + rows − 1; x, y: the `known` examples of the chunk. */
static void R(descend)(const R(chunk) * c, const clew_stream_settings *s, const real *x, const real *y, size_t begin,
                       size_t rows, size_t known) {
  const size_t d = s->d;
  const ptrdiff_t ld = (ptrdiff_t)d;
  const real momentum = (real)s->momentum, *matrices = s->matrices;
  memset(c->w, 0, rows * d * sizeof(real));
  memset(c->velocity, 0, rows * d * sizeof(real));
  for (size_t step = 0; step < s->steps; step++) {
    if (step > 0)
      (void)R(clew_gemm)(c->error, CHUNK, 1, c->w, ld, 1, x, 1, ld, rows, known, d, 1, 0);
    else
      memset(c->error, 0, CHUNK * CHUNK * sizeof(real));
    R(mask)(c->error, y, rows, known);
    for (size_t i = 0; i < rows; i++)
      for (size_t j = 0; j < d; j++)
        c->gradient[i * d + j] = -c->moment[j];
    (void)R(clew_gemm)(c->gradient, ld, 1, c->error, CHUNK, 1, x, ld, 1, rows, d, known, 1, 1);
    if (step > 0 && begin > 0)
      (void)R(clew_gemm)(c->gradient, ld, 1, c->w, ld, 1, c->gram, ld, 1, rows, d, d, 1, 1);
    const real *move = c->gradient;
    if (matrices != NULL) {
      const real *m = matrices + (s->n_matrices > 1 ? step * d * d : 0);
      (void)R(clew_gemm)(c->turned, ld, 1, c->gradient, ld, 1, m, 1, ld, rows, d, d, 1, 0);
      move = c->turned;
    }
    for (size_t i = 0; i < rows; i++) {
      const real rate = begin + i > 0 ? (real)s->rates[step] / (real)(begin + i) : (real)0;
      real *v = c->velocity + i * d, *w = c->w + i * d;
      for (size_t j = 0; j < d; j++) {
        v[j] = momentum * v[j] - rate * move[i * d + j];
        w[j] += v[j];
      }
    }
  }
}

static void R(descent_task)(void *ctx, size_t b, unsigned slot) {
  const R(descent_job) *job = ctx;
  const clew_examples *in = job->in;
  const size_t d = in->d, n = in->n, all = in->last - in->first + 1;
  const real *x = (const real *)in->x + b * n * d, *y = (const real *)in->y + b * n;
  R(chunk) c;
  c.w = job->scratch + slot * job->slot_reals;
  c.velocity = c.w + CHUNK * d, c.gradient = c.velocity + CHUNK * d, c.turned = c.gradient + CHUNK * d;
  c.error = c.turned + CHUNK * d, c.gram = c.error + CHUNK * CHUNK, c.moment = c.gram + d * d;
  memset(c.gram, 0, (d * d + d) * sizeof(real));
  for (size_t begin = 0; begin <= in->last; begin += CHUNK) {
    const size_t rows = in->last + 1 - begin < CHUNK ? in->last + 1 - begin : CHUNK;
    const size_t known = begin + rows <= n ? rows : rows - 1;
    const real *here = x + begin * d;
    if (begin + rows > in->first)
      R(descend)(&c, job->settings, here, y + begin, begin, rows, known);
    for (size_t i = begin < in->first ? in->first - begin : 0; i < rows; i++) {
      const size_t row = b * all + begin + i - in->first;
      const real *w = c.w + i * d;
      real sum = 0, check = 0;
      for (size_t j = 0; j < d; j++)
        check += w[j] * 0; /* NaN where one is no number */
      if (job->out->yhat != NULL && begin + i < n) {
        for (size_t j = 0; j < d; j++)
          sum += here[i * d + j] * w[j];
        ((real *)job->out->yhat)[row] = sum;
      }
      if (job->out->w != NULL)
        memcpy((real *)job->out->w + row * d, w, d * sizeof(real));
      if (!isfinite(sum) || !isfinite(check)) {
        job->failed[b] = 1 + begin + i;
        return;
      }
    }
    if (begin + rows <= in->last) {
      (void)R(clew_gemm)(c.gram, (ptrdiff_t)d, 1, here, 1, (ptrdiff_t)d, here, (ptrdiff_t)d, 1, d, d, rows, 1, 1);
      (void)R(clew_gemm)(c.moment, (ptrdiff_t)d, 1, y + begin, (ptrdiff_t)rows, 1, here, (ptrdiff_t)d, 1, 1, d, rows, 1,
                         1);
    }
  }
}

clew_status R(clew_descent_run)(const clew_estimates *out, const clew_examples *examples,
                                const clew_stream_settings *settings, clew_cancel *cancel, clew_error *err) {
  R(descent_job) job = {.out = out, .in = examples, .settings = settings};
  const size_t d = examples->d;
  const unsigned slots = clew_pool_threads();
  clew_status status = CLEW_OK;
  job.slot_reals = 4 * CHUNK * d + CHUNK * CHUNK + d * d + d;
  job.failed = clew_alloc(examples->batch, sizeof *job.failed);
  clew_slab *slab = clew_slab_new(slots * job.slot_reals * sizeof(real));
  if (job.failed == NULL || slab == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu bytes for gradient descent",
                       slots * job.slot_reals * sizeof(real));
    goto done;
  }
  job.scratch = clew_slab_data(slab);
  if (!clew_pool_for(examples->batch, R(descent_task), &job, slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  for (size_t b = 0; b < examples->batch && status == CLEW_OK; b++)
    if (job.failed[b] != 0)
      status =
          clew_fail(err, CLEW_ERROR_VALUE,
                    "the estimate from the first %zu examples (sequence %zu) is beyond the range of float%zu: rescale "
                    "X and y, or make the step smaller",
                    job.failed[b] - 1, b, sizeof(real) * 8);

done:
  clew_slab_release(slab);
  clew_free(job.failed);
  return status;
}
