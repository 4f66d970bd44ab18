/* The optimiser: all tensors of a model in one round of tasks. */
#include <math.h>

#include "adamw.h"
#include "pool.h"

typedef struct R(adamw_job) {
  const clew_parameter *parameters;
  size_t *first; /* [n + 1] first task of each tensor, and the number of all */
  size_t n;
  R(clew_adamw_factors) factors[2]; /* without and with decay */
  double *sums;                     /* [tasks] */
  real factor;
} R(adamw_job);

/* The values that a task takes. */
typedef struct R(slice) {
  const clew_parameter *parameter;
  size_t begin, length;
} R(slice);

static R(slice) R(slice_of)(const R(adamw_job) * job, size_t index) {
  size_t low = 0, high = job->n;
  while (high - low > 1) { /* the last tensor whose first task is not behind index */
    const size_t middle = low + (high - low) / 2;
    if (job->first[middle] <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  const clew_parameter *p = &job->parameters[low];
  const size_t begin = (index - job->first[low]) * CLEW_ADAMW_TASK, left = p->n - begin;
  return (R(slice)){p, begin, left < CLEW_ADAMW_TASK ? left : CLEW_ADAMW_TASK};
}

static void R(adamw_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(adamw_job) *job = ctx;
  const R(slice) s = R(slice_of)(job, index);
  R(clew_get_kernels)
  ()->adamw((real *)s.parameter->value + s.begin, (real *)s.parameter->m + s.begin, (real *)s.parameter->v + s.begin,
            (const real *)s.parameter->gradient + s.begin, s.length, &job->factors[s.parameter->decay]);
}

static void R(squares_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(adamw_job) *job = ctx;
  const R(slice) s = R(slice_of)(job, index);
  job->sums[index] = R(clew_get_kernels)()->sum_squares((const real *)s.parameter->gradient + s.begin, s.length);
}

static void R(accumulate_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(adamw_job) *job = ctx;
  const R(slice) s = R(slice_of)(job, index);
  R(clew_get_kernels)
  ()->add_scaled((real *)s.parameter->value + s.begin, (const real *)s.parameter->gradient + s.begin, job->factor,
                 s.length);
}

/* Cuts the tensors into tasks; job->first is the caller's to free, also after a failure. */
static clew_status R(cut)(R(adamw_job) * job, const clew_parameter *parameters, size_t n, clew_error *err) {
  job->parameters = parameters;
  job->n = n;
  job->first = clew_alloc(n + 1, sizeof *job->first);
  if (job->first == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for the tasks of %zu tensors", n);
  }
  for (size_t i = 0; i < n; i++) {
    job->first[i + 1] = job->first[i] + (parameters[i].n + CLEW_ADAMW_TASK - 1) / CLEW_ADAMW_TASK;
  }
  return CLEW_OK;
}

clew_status R(clew_adamw)(const clew_parameter *parameters, size_t n, const clew_adamw_settings *settings,
                          clew_error *err) {
  R(adamw_job) job = {0};
  const clew_status status = R(cut)(&job, parameters, n, err);
  if (status != CLEW_OK) {
    return status;
  }
  const double correction1 = 1 - pow(settings->beta1, (double)settings->step);
  const double correction2 = 1 - pow(settings->beta2, (double)settings->step);
  for (int decay = 0; decay < 2; decay++) {
    job.factors[decay] =
        (R(clew_adamw_factors)){.keep = (real)(1 - (decay ? settings->rate * settings->weight_decay : 0)),
                                .step = (real)(settings->rate / correction1),
                                .scale = (real)settings->scale,
                                .eps = (real)settings->eps,
                                .root = (real)sqrt(correction2),
                                .new1 = (real)(1 - settings->beta1),
                                .old2 = (real)settings->beta2,
                                .new2 = (real)(1 - settings->beta2)};
  }
  clew_pool_for(job.first[n], R(adamw_task), &job, clew_pool_threads(), NULL);
  clew_free(job.first);
  return CLEW_OK;
}

clew_status R(clew_global_norm)(double *norm, const clew_parameter *parameters, size_t n, clew_error *err) {
  R(adamw_job) job = {0};
  clew_status status = R(cut)(&job, parameters, n, err);
  if (status != CLEW_OK) {
    return status;
  }
  job.sums = clew_alloc(job.first[n] + 1, sizeof *job.sums);
  if (job.sums == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for %zu sums", job.first[n]);
    goto done;
  }
  clew_pool_for(job.first[n], R(squares_task), &job, clew_pool_threads(), NULL);
  double total = 0;
  for (size_t i = 0; i < job.first[n]; i++) {
    total += job.sums[i];
  }
  *norm = sqrt(total);

done:
  clew_free(job.sums);
  clew_free(job.first);
  return status;
}

clew_status R(clew_accumulate)(const clew_parameter *parameters, size_t n, double factor, clew_error *err) {
  R(adamw_job) job = {.factor = (real)factor};
  const clew_status status = R(cut)(&job, parameters, n, err);
  if (status != CLEW_OK) {
    return status;
  }
  clew_pool_for(job.first[n], R(accumulate_task), &job, clew_pool_threads(), NULL);
  clew_free(job.first);
  return CLEW_OK;
}
