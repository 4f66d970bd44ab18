/* Estimators without a weight vector: each query is compared with the examples it sees. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "regression.h"

#define QUERY_BLOCK 64
#define KEY_BLOCK 256
#define PADDING (64 / sizeof(real)) /* lanes of any register divide it, and it KEY_BLOCK */
#define TASK_QUERIES 256            /* queries that one task takes, after it has transposed the examples */
#define FACTOR_BLOCK 32             /* columns of a Cholesky factor at a time */

typedef struct R(compare_job) {
  real *out; /* [batch, m] */
  const clew_queries *q;
  double scale, gamma, lam;
  size_t k;
  const R(clew_reg_kernels) * kernels;
  char *scratch; /* [slots, slot_bytes] */
  size_t slot_bytes, parts;
  size_t *failed; /* [tasks]: 0, or 1 + a query */
} R(compare_job);

static size_t R(least)(size_t a, size_t b) { return a < b ? a : b; }

static size_t R(seen)(const clew_queries *q, size_t i) { return R(least)(q->first + i * q->step, q->n); }

static void R(transpose)(real *to /* [d, n] */, const real *from /* [n, d] */, size_t n, size_t d) {
  for (size_t begin = 0; begin < n; begin += 16)
    for (size_t c = 0; c < d; c++)
      for (size_t j = begin; j < n && j < begin + 16; j++)
        to[c * n + j] = from[j * d + c];
}

static clew_status R(run_compare)(R(compare_job) * job, clew_task task, size_t tasks, size_t slot_bytes,
                                  const char *what, clew_cancel *cancel, clew_error *err) {
  const unsigned slots = clew_pool_threads();
  clew_status status = CLEW_OK;
  job->kernels = R(clew_get_kernels)()->reg;
  job->slot_bytes = (slot_bytes + 63) / 64 * 64;
  job->failed = clew_alloc(tasks, sizeof *job->failed);
  clew_slab *slab = clew_slab_new(slots * job->slot_bytes);
  if (job->failed == NULL || slab == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu bytes of scratch memory for %s",
                       slots * job->slot_bytes, what);
    goto done;
  }
  job->scratch = clew_slab_data(slab);
  if (!clew_pool_for(tasks, task, job, slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  for (size_t t = 0; t < tasks && status == CLEW_OK; t++)
    if (job->failed[t] != 0 && job->k == SIZE_MAX)
      status = clew_fail(err, CLEW_ERROR_VALUE,
                         "kernel_ridge: the kernel matrix of sequence %zu is not positive definite from example %zu on "
                         "(equal or nearly equal inputs): a larger lam than %g",
                         t / job->parts, job->failed[t] - 1, job->lam);
    else if (job->failed[t] != 0)
      status = clew_fail(err, CLEW_ERROR_VALUE,
                         "%s: the prediction for query %zu of sequence %zu is beyond the range of float%zu: rescale X",
                         what, job->failed[t] - 1, t / job->parts, sizeof(real) * 8);

done:
  clew_slab_release(slab);
  clew_free(job->failed);
  return status;
}

/* ---- Nadaraya–Watson ------------------------------------------------------------------------------------------ */

static void R(watson_task)(void *ctx, size_t index, unsigned slot) {
  R(compare_job) *job = ctx;
  const clew_queries *q = job->q;
  const size_t b = index / job->parts, begin = index % job->parts * QUERY_BLOCK, d = q->d;
  const size_t rows = R(least)(QUERY_BLOCK, q->m - begin);
  const real *x = (const real *)q->x + b * q->n * d, *y = (const real *)q->y + b * q->n;
  const real *queries = (const real *)q->queries + (b * q->m + begin) * d;
  real *score = (real *)(job->scratch + slot * job->slot_bytes), *values = score + (QUERY_BLOCK + 1) * KEY_BLOCK,
       shift[QUERY_BLOCK + 1], *out = job->out + b * q->m + begin;
  double sum[QUERY_BLOCK + 1], weighted[QUERY_BLOCK + 1]; /* one more, for an odd row's company */
  for (size_t i = 0; i <= rows; i++)
    shift[i] = (real)-INFINITY, sum[i] = weighted[i] = 0;
  const size_t all = R(seen)(q, begin + rows - 1);
  for (size_t key = 0; key < all; key += KEY_BLOCK) {
    const size_t width = R(least)(KEY_BLOCK, all - key);
    size_t top = 0; /* rows before it see nothing of this block */
    while (R(seen)(q, begin + top) <= key)
      top++;
    (void)R(clew_gemm)(score + top * KEY_BLOCK, KEY_BLOCK, 1, queries + top * d, (ptrdiff_t)d, 1, x + key * d, 1,
                       (ptrdiff_t)d, rows - top, width, d, (real)(job->scale * BITS_PER_NAT), 0);
    memcpy(values, y + key, width * sizeof(real));
    memset(values + width, 0, (KEY_BLOCK - width) * sizeof(real));
    for (size_t i = top; i < rows; i += 2) { /* keys are made up to whole registers by some of no weight */
      real *both[2] = {score + i * KEY_BLOCK, score + (i + 1) * KEY_BLOCK};
      size_t whole = 0;
      for (size_t r = 0; r < 2 && i + r < rows; r++)
        whole = (R(least)(width, R(seen)(q, begin + i + r) - key) + PADDING - 1) / PADDING * PADDING;
      for (size_t r = 0; r < 2; r++)
        for (size_t j = i + r < rows ? R(least)(width, R(seen)(q, begin + i + r) - key) : 0; j < whole; j++)
          both[r][j] = (real)-INFINITY;
      job->kernels->attend(shift + i, sum + i, weighted + i, both[0], both[1], values, whole);
    }
  }
  for (size_t i = 0; i < rows; i++) {
    out[i] = R(seen)(q, begin + i) == 0 ? (real)0 : (real)(weighted[i] / sum[i]);
    if (!isfinite(out[i]) && job->failed[index] == 0)
      job->failed[index] = 1 + begin + i;
  }
}

clew_status R(clew_nadaraya_watson)(void *out, const clew_queries *q, double scale, clew_cancel *cancel,
                                    clew_error *err) {
  R(compare_job) job = {.out = out, .q = q, .scale = scale, .parts = (q->m + QUERY_BLOCK - 1) / QUERY_BLOCK};
  return R(run_compare)(&job, R(watson_task), q->batch * job.parts, (QUERY_BLOCK + 2) * KEY_BLOCK * sizeof(real),
                        "nadaraya_watson", cancel, err);
}

/* ---- Nearest neighbours --------------------------------------------------------------------------------------- */

static void R(knn_task)(void *ctx, size_t index, unsigned slot) {
  R(compare_job) *job = ctx;
  const clew_queries *q = job->q;
  const size_t b = index / job->parts, begin = index % job->parts * TASK_QUERIES, d = q->d, n = q->n;
  const real *y = (const real *)q->y + b * n;
  real *x = (real *)(job->scratch + slot * job->slot_bytes), *distance = x + n * d, *nearest = distance + n;
  size_t *which =
      (size_t *)(void *)(job->scratch + slot * job->slot_bytes + job->slot_bytes - (job->k * 8 + 63) / 64 * 64);
  R(transpose)(x, (const real *)q->x + b * n * d, n, d);
  for (size_t i = begin; i < q->m && i < begin + TASK_QUERIES; i++) {
    const size_t seen = R(seen)(q, i);
    size_t found = 0;
    job->kernels->distances(distance, x, n, (const real *)q->queries + (b * q->m + i) * d, seen, d);
    for (size_t j = 0; j < seen; j++) {
      const real here = distance[j];
      if (!isfinite(here) && job->failed[index] == 0)
        job->failed[index] = 1 + i;
      if (found == job->k && !(here < nearest[found - 1]))
        continue;
      size_t at = found < job->k ? found++ : found - 1;
      for (; at > 0 && here < nearest[at - 1]; at--)
        nearest[at] = nearest[at - 1], which[at] = which[at - 1];
      nearest[at] = here, which[at] = j;
    }
    double sum = 0;
    for (size_t j = 0; j < found; j++)
      sum += (double)y[which[j]];
    job->out[b * q->m + i] = found == 0 ? (real)0 : (real)(sum / (double)found);
  }
}

clew_status R(clew_knn)(void *out, const clew_queries *q, size_t k, clew_cancel *cancel, clew_error *err) {
  R(compare_job) job = {.out = out, .q = q, .parts = (q->m + TASK_QUERIES - 1) / TASK_QUERIES};
  job.k = k < q->n ? k : q->n;
  return R(run_compare)(&job, R(knn_task), q->batch * job.parts,
                        ((q->d + 1) * q->n + job.k) * sizeof(real) + (job.k * 8 + 63) / 64 * 64 + 64, "knn", cancel,
                        err);
}

/* ---- Kernel ridge --------------------------------------------------------------------------------------------- */

/* a ← its Cholesky factor, lower triangle; the first column whose pivot is lost in rounding, or n. */
static size_t R(cholesky)(real *a /* [n, n] */, real *work /* [FACTOR_BLOCK + 1, FACTOR_BLOCK] */,
                          const R(clew_reg_kernels) * kernels, size_t n) {
  const real rounding = (sizeof(real) == 4 ? (real)0x1p-23 : (real)0x1p-52) * (real)(n + 1);
  real *inverse = work + FACTOR_BLOCK * FACTOR_BLOCK;
  for (size_t begin = 0; begin < n; begin += FACTOR_BLOCK) {
    const size_t nb = R(least)(FACTOR_BLOCK, n - begin);
    real *corner = a + begin * n + begin;
    if (begin > 0) /* what the columns before take away */
      (void)R(clew_gemm)(corner, (ptrdiff_t)n, 1, a + begin * n, (ptrdiff_t)n, 1, a + begin * n, 1, (ptrdiff_t)n,
                         n - begin, nb, begin, -1, 1);
    for (size_t c = 0; c < nb; c++) {
      for (size_t i = c; i < nb; i++) {
        real sum = corner[i * n + c];
        for (size_t t = 0; t < c; t++)
          sum -= corner[i * n + t] * corner[c * n + t];
        if (i == c) {
          if (!(sum > rounding))
            return begin + c;
          corner[c * n + c] = (real)sqrt((double)sum);
          inverse[c] = 1 / corner[c * n + c];
        } else {
          corner[i * n + c] = sum * inverse[c];
        }
      }
    }
    for (size_t c = 0; c < nb; c++)
      for (size_t i = 0; i < nb; i++)
        work[c * nb + i] = i >= c ? corner[i * n + c] : (real)0;
    kernels->solve_rows(corner + nb * n, n, work, inverse, n - begin - nb, nb);
  }
  return n;
}

static void R(kernel_ridge_task)(void *ctx, size_t b, unsigned slot) {
  R(compare_job) *job = ctx;
  const clew_queries *q = job->q;
  const size_t d = q->d, n = q->n;
  const real *y = (const real *)q->y + b * n, *from = (const real *)q->x + b * n * d;
  real *a = (real *)(job->scratch + slot * job->slot_bytes), *x = a + n * n, *z = x + n * d, *row = z + n;
  real *work = row + n;
  R(transpose)(x, from, n, d);
  for (size_t i = 0; i < n; i++) {
    job->kernels->distances(a + i * n, x, n, from + i * d, i, d);
    job->kernels->scaled_exp(a + i * n, (real)-job->gamma, i);
    a[i * n + i] = (real)(1 + job->lam);
  }
  const size_t fine = R(cholesky)(a, work, job->kernels, n);
  if (fine < n) {
    job->failed[b] = 1 + fine;
    return;
  }
  /* z = L⁻¹ y; the row of L beside it is L⁻¹ k of that example, so their product predicts it from those before. */
  for (size_t i = 0; i < n; i++) {
    double sum = 0;
    for (size_t j = 0; j < i; j++)
      sum += (double)a[i * n + j] * (double)z[j];
    z[i] = (real)(((double)y[i] - sum) / (double)a[i * n + i]);
    if (q->step == 1)
      job->out[b * n + i] = (real)sum;
  }
  if (q->step == 1)
    return;
  for (size_t i = n; i-- > 0;) { /* z ← L⁻ᵀ z */
    z[i] /= a[i * n + i];
    for (size_t j = 0; j < i; j++)
      z[j] -= a[i * n + j] * z[i];
  }
  for (size_t i = 0; i < q->m; i++) {
    double sum = 0;
    job->kernels->distances(row, x, n, (const real *)q->queries + (b * q->m + i) * d, n, d);
    job->kernels->scaled_exp(row, (real)-job->gamma, n);
    for (size_t j = 0; j < n; j++)
      sum += (double)row[j] * (double)z[j];
    job->out[b * q->m + i] = (real)sum;
  }
}

clew_status R(clew_kernel_ridge)(void *out, const clew_queries *q, double gamma, double lam, clew_cancel *cancel,
                                 clew_error *err) {
  R(compare_job) job = {.out = out, .q = q, .gamma = gamma, .lam = lam, .parts = 1, .k = SIZE_MAX};
  const size_t reals = q->n * q->n + q->n * (q->d + 2) + (FACTOR_BLOCK + 1) * FACTOR_BLOCK;
  return R(run_compare)(&job, R(kernel_ridge_task), q->batch, reals * sizeof(real), "kernel_ridge", cancel, err);
}
