/* The posterior mean over a finite set of tasks (dMMSE, Raventós et al. 2023), tasks streaming by in blocks.
 *
 * One product a block gives every task's prediction of every example; a running score per task and a streaming
 * log-sum-exp per prefix need no more than the block. A unit of work is a group of sequences and a chunk of the tasks;
 * chunks are put together in order afterwards. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "regression.h"

#define TASK_BLOCK 1024 /* tasks at a time */
#define ROW_BLOCK 32    /* examples at a time */
#define SHORT 64        /* d up to which the product is a kernel of its own */
#define SEQUENCES 16    /* of a group: they share a block of tasks, transposed */
#define LN_2 0.69314718055994530942
#define LEAST_UNITS 64 /* units of work, where tasks are enough */

typedef struct R(dmmse_job) {
  const clew_estimates *out;
  double *evidence;
  const clew_examples *in;
  const real *tasks, *log_prior;
  size_t n_tasks, groups, chunks, chunk, rows;
  double noise_var;
  const R(clew_reg_kernels) * kernels;
  R(clew_posterior) * posterior; /* [chunks, batch, rows + 1] */
  real *mean;                    /* [chunks, batch, rows, d], where w is wanted */
  real *scratch;                 /* [slots, slot_reals] */
  size_t slot_reals;
  bool *bad; /* [batch] */
} R(dmmse_job);

static size_t R(smaller)(size_t a, size_t b) { return a < b ? a : b; }

/* One block of tasks for one sequence. prior_maximum: of the block's scores before the first example. */
static void R(one_sequence)(const R(dmmse_job) * job, size_t b, R(clew_posterior) * posterior, real *mean,
                            const real *block /* [d, width] */, const real *tasks /* [width, d] */, real *score,
                            real *prediction, real prior_maximum, size_t width) {
  const clew_examples *in = job->in;
  const size_t d = in->d, n = in->n;
  const real *x = (const real *)in->x + b * n * d, *y = (const real *)in->y + b * n;
  const real half_precision = (real)(0.5 * BITS_PER_NAT / job->noise_var);
  R(clew_posterior) unwanted[2];
  real maximum = prior_maximum;
  for (size_t begin = 0; begin <= in->last; begin += ROW_BLOCK) {
    const size_t end = R(smaller)(begin + ROW_BLOCK, in->last + 1), known = R(smaller)(end, n);
    if (begin < known && d <= SHORT)
      job->kernels->predict_block(prediction, x + begin * d, block, TASK_BLOCK, width, known - begin, d);
    else if (begin < known)
      (void)R(clew_gemm)(prediction, TASK_BLOCK, 1, x + begin * d, (ptrdiff_t)d, 1, block, TASK_BLOCK, 1, known - begin,
                         width, d, 1, 0);
    for (size_t p = begin; p < end; p++) {
      real *here = prediction + (p - begin) * TASK_BLOCK;
      const bool wanted = p >= in->first;
      R(clew_posterior) *row = wanted ? posterior + (p - in->first) : unwanted;
      if (p == n)
        memset(here, 0, width * sizeof(real)); /* nothing to predict */
      row->block_maximum = maximum;
      job->kernels->posterior_block(row, score, here, wanted, mean != NULL, p < n ? y[p] : 0, half_precision, width);
      maximum = row[1].block_maximum;
    }
    if (mean != NULL && end > in->first) {
      const size_t from = begin > in->first ? begin : in->first;
      for (size_t p = from; p < end; p++)
        for (size_t j = 0; j < d; j++)
          mean[(p - in->first) * d + j] *= (real)posterior[p - in->first].correction;
      (void)R(clew_gemm)(mean + (from - in->first) * d, (ptrdiff_t)d, 1, prediction + (from - begin) * TASK_BLOCK,
                         TASK_BLOCK, 1, tasks, (ptrdiff_t)d, 1, end - from, d, width, 1, 1);
    }
  }
}

static void R(dmmse_task)(void *ctx, size_t index, unsigned slot) {
  const R(dmmse_job) *job = ctx;
  const clew_examples *in = job->in;
  const size_t d = in->d, chunk = index / job->groups, first = index % job->groups * SEQUENCES;
  const size_t last = R(smaller)(first + SEQUENCES, in->batch), rows = job->rows;
  const size_t begin = chunk * job->chunk, end = R(smaller)(begin + job->chunk, job->n_tasks);
  real *block = job->scratch + slot * job->slot_reals, *score = block + d * TASK_BLOCK, *prior = score + TASK_BLOCK,
       *prediction = prior + TASK_BLOCK;
  for (size_t b = first; b < last; b++) {
    for (size_t p = 0; p <= rows; p++)
      job->posterior[(chunk * in->batch + b) * (rows + 1) + p] = (R(clew_posterior)){.shift = (real)-INFINITY};
    if (job->mean != NULL)
      memset(job->mean + (chunk * in->batch + b) * rows * d, 0, rows * d * sizeof(real));
  }
  for (size_t at = begin; at < end; at += TASK_BLOCK) {
    const size_t width = R(smaller)(TASK_BLOCK, end - at);
    const real *tasks = job->tasks + at * d;
    if (width < TASK_BLOCK)
      memset(block, 0, d * TASK_BLOCK * sizeof(real)); /* behind the last task */
    real highest = job->log_prior == NULL ? 0 : (real)-INFINITY;
    for (size_t j = 0; j < width; j++) {
      for (size_t c = 0; c < d; c++)
        block[c * TASK_BLOCK + j] = tasks[j * d + c];
      if (job->log_prior != NULL) {
        prior[j] = (real)BITS_PER_NAT * job->log_prior[at + j];
        highest = prior[j] > highest ? prior[j] : highest;
      }
    }
    for (size_t b = first; b < last; b++) {
      if (job->log_prior != NULL)
        memcpy(score, prior, width * sizeof(real));
      else
        memset(score, 0, width * sizeof(real));
      R(one_sequence)
      (job, b, job->posterior + (chunk * in->batch + b) * (rows + 1),
       job->mean == NULL ? NULL : job->mean + (chunk * in->batch + b) * rows * d, block, tasks, score, prediction,
       highest, width);
    }
  }
}

/* Puts the chunks of a sequence together. */
static void R(join_task)(void *ctx, size_t b, unsigned slot) {
  (void)slot;
  const R(dmmse_job) *job = ctx;
  const clew_examples *in = job->in;
  const size_t rows = job->rows, d = in->d;
  double total_prior = log((double)job->n_tasks);
  if (job->log_prior != NULL) {
    double highest = -INFINITY, sum = 0;
    for (size_t j = 0; j < job->n_tasks; j++)
      highest = fmax(highest, (double)job->log_prior[j]);
    for (size_t j = 0; j < job->n_tasks; j++)
      sum += exp((double)job->log_prior[j] - highest);
    total_prior = highest + log(sum);
  }
  for (size_t p = 0; p < rows; p++) {
    double shift = -INFINITY, sum = 0, weighted = 0;
    for (size_t c = 0; c < job->chunks; c++)
      shift = fmax(shift, (double)job->posterior[(c * in->batch + b) * (rows + 1) + p].shift);
    for (size_t c = 0; c < job->chunks; c++) {
      const R(clew_posterior) *part = &job->posterior[(c * in->batch + b) * (rows + 1) + p];
      const double factor = exp2((double)part->shift - shift);
      sum += factor * part->sum;
      weighted += factor * part->weighted;
    }
    const double count = (double)(in->first + p);
    if (job->out->yhat != NULL)
      ((real *)job->out->yhat)[b * rows + p] = (real)(weighted / sum);
    if (job->evidence != NULL)
      job->evidence[b * rows + p] = LN_2 * (shift - 0.5) + log(sum) - total_prior -
                                    0.5 * count * log(2 * 3.14159265358979323846 * job->noise_var);
    job->bad[b] = job->bad[b] || !isfinite(weighted / sum);
    for (size_t j = 0; job->out->w != NULL && j < d; j++) {
      double value = 0;
      for (size_t c = 0; c < job->chunks; c++)
        value += exp2((double)job->posterior[(c * in->batch + b) * (rows + 1) + p].shift - shift) *
                 (double)job->mean[((c * in->batch + b) * rows + p) * d + j];
      ((real *)job->out->w)[(b * rows + p) * d + j] = (real)(value / sum);
    }
  }
}

clew_status R(clew_dmmse)(const clew_estimates *out, double *evidence, const clew_examples *examples, const void *tasks,
                          const void *log_prior, size_t n_tasks, double noise_var, clew_cancel *cancel,
                          clew_error *err) {
  const size_t batch = examples->batch, d = examples->d, rows = examples->last - examples->first + 1;
  R(dmmse_job)
  job = {.out = out,
         .evidence = evidence,
         .in = examples,
         .tasks = tasks,
         .log_prior = log_prior,
         .n_tasks = n_tasks,
         .rows = rows,
         .noise_var = noise_var};
  const unsigned slots = clew_pool_threads();
  clew_status status = CLEW_OK;
  job.kernels = R(clew_get_kernels)()->reg;
  job.groups = (batch + SEQUENCES - 1) / SEQUENCES;
  job.chunks = (LEAST_UNITS + job.groups - 1) / job.groups;
  job.chunk = ((n_tasks + job.chunks - 1) / job.chunks + TASK_BLOCK - 1) / TASK_BLOCK * TASK_BLOCK;
  job.chunks = (n_tasks + job.chunk - 1) / job.chunk;
  job.slot_reals = TASK_BLOCK * (d + 2 + ROW_BLOCK);
  const size_t n_mean = out->w == NULL ? 0 : job.chunks * batch * rows * d;
  job.bad = clew_alloc(batch, sizeof *job.bad);
  job.posterior = clew_alloc(job.chunks * batch * (rows + 1), sizeof *job.posterior);
  clew_slab *slab = clew_slab_new((slots * job.slot_reals + n_mean) * sizeof(real));
  if (job.bad == NULL || job.posterior == NULL || slab == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu bytes for the posteriors of %zu sequences",
                       (slots * job.slot_reals + n_mean) * sizeof(real), batch);
    goto done;
  }
  job.scratch = clew_slab_data(slab);
  job.mean = out->w == NULL ? NULL : job.scratch + slots * job.slot_reals;
  if (!clew_pool_for(job.groups * job.chunks, R(dmmse_task), &job, slots, cancel) ||
      !clew_pool_for(batch, R(join_task), &job, slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  for (size_t b = 0; b < batch && status == CLEW_OK; b++)
    if (job.bad[b])
      status =
          clew_fail(err, CLEW_ERROR_VALUE,
                    "dmmse: the scores of sequence %zu are beyond the range of float%zu: rescale X and y, or a larger "
                    "noise_var than %g",
                    b, sizeof(real) * 8, noise_var);

done:
  clew_slab_release(slab);
  clew_free(job.posterior);
  clew_free(job.bad);
  return status;
}
