/* Streams over batches: sequences are dealt to the lanes of groups, one task a group; the last group's free lanes
 * repeat its first sequence. */
#include <math.h>
#include <string.h>

#include "regression.h"

typedef struct R(stream_job) {
  const clew_estimates *out;
  const clew_examples *in;
  const clew_stream_settings *settings;
  const R(clew_reg_kernels) * kernels;
  real *scratch;      /* [slots, slot_reals] */
  size_t slot_reals;  /* state, x, w, y, a result; and a covariance */
  size_t state_reals; /* of a group */
  size_t *failed;     /* [groups]: 0, or 1 + the first prefix of which an estimate was no number or not found */
  bool *unconverged;  /* [groups] */
} R(stream_job);

static size_t R(groups)(size_t batch, size_t lanes) { return (batch + lanes - 1) / lanes; }

/* The sequence of a lane. */
static size_t R(sequence)(size_t group, size_t lane, size_t lanes, size_t batch) {
  const size_t b = group * lanes + lane;
  return b < batch ? b : group * lanes;
}

/* to [d, lanes] = row p of from [batch, n, d], for the group's sequences */
static void R(deal)(real *to, const real *from, size_t group, size_t lanes, size_t batch, size_t n, size_t p,
                    size_t d) {
  for (size_t l = 0; l < lanes; l++) {
    const real *row = from + (R(sequence)(group, l, lanes, batch) * n + p) * d;
    for (size_t j = 0; j < d; j++)
      to[j * lanes + l] = row[j];
  }
}

/* The other way; true where every number is finite. */
static bool R(collect)(real *to, const real *from, size_t group, size_t lanes, size_t batch, size_t n, size_t p,
                       size_t d) {
  bool finite = true;
  for (size_t l = 0; l < lanes && group * lanes + l < batch; l++) {
    real *row = to + ((group * lanes + l) * n + p) * d;
    for (size_t j = 0; j < d; j++) {
      row[j] = from[j * lanes + l];
      finite = finite && isfinite(row[j]);
    }
  }
  return finite;
}

static void R(stream_task)(void *ctx, size_t group, unsigned slot) {
  const R(stream_job) *job = ctx;
  const clew_examples *in = job->in;
  const clew_estimates *out = job->out;
  const clew_stream_settings *s = job->settings;
  const R(clew_stream_kernel) *k = &job->kernels->streams[s->kind];
  const size_t lanes = job->kernels->lanes, d = in->d, n = in->n, batch = in->batch, rows = in->last - in->first + 1;
  real *state = job->scratch + slot * job->slot_reals, *x = state + job->state_reals, *w = x + d * lanes;
  real *y = w + d * lanes, *result = y + lanes, *covariance = result + lanes;
  k->begin(state, s);
  for (size_t p = 0; p <= in->last; p++) {
    const bool wanted = p >= in->first;
    if (p < n) {
      R(deal)(x, in->x, group, lanes, batch, n, p, d);
      R(deal)(y, in->y, group, lanes, batch, n, p, 1);
    }
    bool fine = true;
    if (wanted || s->kind == CLEW_STREAM_LASSO) /* each starts from the last */
      k->weights(w, state, s);
    if (wanted) {
      const size_t row = p - in->first;
      if (out->yhat != NULL && p < n) {
        job->kernels->dot(result, x, w, d);
        fine = R(collect)(out->yhat, result, group, lanes, batch, rows, row, 1) && fine;
      }
      if (out->w != NULL)
        fine = R(collect)(out->w, w, group, lanes, batch, rows, row, d) && fine;
      if (out->variance != NULL && p < n) {
        job->kernels->variance(result, state, x, s);
        fine = R(collect)(out->variance, result, group, lanes, batch, rows, row, 1) && fine;
      }
      if (out->covariance != NULL) {
        job->kernels->covariance(covariance, state, s);
        fine = R(collect)(out->covariance, covariance, group, lanes, batch, rows, row, d * d) && fine;
      }
    }
    if (s->kind == CLEW_STREAM_LASSO)
      for (size_t l = 0; l < lanes; l++)
        if (!(state[l] <= (real)1)) {
          fine = false;
          job->unconverged[group] = isfinite(state[l]);
        }
    if (!fine) {
      job->failed[group] = 1 + p;
      return;
    }
    if (p < in->last)
      k->update(state, x, y, s);
  }
}

static clew_status R(bad_estimate)(clew_error *err, const R(stream_job) * job, size_t group) {
  const size_t lanes = job->kernels->lanes, begin = group * lanes, p = job->failed[group] - 1;
  const size_t end = begin + lanes < job->in->batch ? begin + lanes : job->in->batch;
  if (job->unconverged[group])
    return clew_fail(
        err, CLEW_ERROR_VALUE,
        "lasso: %zu iterations did not bring the duality gap of %zu examples (a sequence of %zu to %zu) to tol = "
        "%g times half of their sum of y²: a larger max_iter, tol or alpha",
        job->settings->max_iterations, p, begin, end - 1, job->settings->tol);
  return clew_fail(
      err, CLEW_ERROR_VALUE,
      "the estimate from the first %zu examples (a sequence of %zu to %zu) is beyond the range of float%zu: "
      "rescale X and y, or make the step smaller",
      p, begin, end - 1, sizeof(real) * 8);
}

clew_status R(clew_stream_run)(const clew_estimates *out, const clew_examples *examples,
                               const clew_stream_settings *settings, clew_cancel *cancel, clew_error *err) {
  if (settings->kind == CLEW_STREAM_GD && examples->d >= CLEW_WIDE)
    return R(clew_descent_run)(out, examples, settings, cancel, err);
  R(stream_job) job = {.out = out, .in = examples, .settings = settings, .kernels = R(clew_get_kernels)()->reg};
  const size_t lanes = job.kernels->lanes, d = examples->d, groups = R(groups)(examples->batch, lanes);
  const unsigned slots = clew_pool_threads();
  clew_status status = CLEW_OK;
  job.state_reals = job.kernels->streams[settings->kind].state_vectors(settings) * lanes;
  job.slot_reals = job.state_reals + (2 * d + 2 + (out->covariance == NULL ? 0 : d * d)) * lanes;
  job.failed = clew_alloc(groups, sizeof *job.failed);
  job.unconverged = clew_alloc(groups, sizeof *job.unconverged);
  clew_slab *slab = clew_slab_new(slots * job.slot_reals * sizeof(real));
  if (job.failed == NULL || job.unconverged == NULL || slab == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu bytes for the states of %zu sequences at a time",
                       slots * job.slot_reals * sizeof(real), slots * lanes);
    goto done;
  }
  job.scratch = clew_slab_data(slab);
  if (!clew_pool_for(groups, R(stream_task), &job, slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  for (size_t group = 0; group < groups && status == CLEW_OK; group++)
    if (job.failed[group] != 0)
      status = R(bad_estimate)(err, &job, group);

done:
  clew_slab_release(slab);
  clew_free(job.unconverged);
  clew_free(job.failed);
  return status;
}

/* ---- Step by step --------------------------------------------------------------------------------------------- */

size_t R(clew_stream_bytes)(size_t batch, const clew_stream_settings *settings) {
  const R(clew_reg_kernels) *k = R(clew_get_kernels)()->reg;
  return R(groups)(batch, k->lanes) * k->streams[settings->kind].state_vectors(settings) * k->lanes * sizeof(real);
}

typedef struct R(step_job) {
  real *state;
  const real *x, *y; /* [batch, d], [batch]; NULL: no update */
  real *w, *covariance;
  size_t batch;
  const clew_stream_settings *settings;
  const R(clew_reg_kernels) * kernels;
  size_t state_reals;
  real *scratch;
  size_t slot_reals;
  bool *bad; /* [groups] */
} R(step_job);

static void R(step_task)(void *ctx, size_t group, unsigned slot) {
  const R(step_job) *job = ctx;
  const clew_stream_settings *s = job->settings;
  const R(clew_stream_kernel) *k = &job->kernels->streams[s->kind];
  const size_t lanes = job->kernels->lanes, d = s->d;
  real *state = job->state + group * job->state_reals, *x = job->scratch + slot * job->slot_reals, *y = x + d * lanes;
  if (job->x != NULL) {
    R(deal)(x, job->x, group, lanes, job->batch, 1, 0, d);
    R(deal)(y, job->y, group, lanes, job->batch, 1, 0, 1);
    k->update(state, x, y, s);
  }
  if (job->w != NULL) {
    k->weights(x, state, s);
    job->bad[group] = !R(collect)(job->w, x, group, lanes, job->batch, 1, 0, d);
    for (size_t l = 0; l < lanes && s->kind == CLEW_STREAM_LASSO; l++)
      job->bad[group] = job->bad[group] || !(state[l] <= (real)1);
  }
  if (job->covariance != NULL) {
    job->kernels->covariance(x, state, s);
    job->bad[group] = !R(collect)(job->covariance, x, group, lanes, job->batch, 1, 0, d * d) || job->bad[group];
  }
}

static clew_status R(run_steps)(R(step_job) * job, clew_error *err) {
  job->kernels = R(clew_get_kernels)()->reg;
  const size_t lanes = job->kernels->lanes, d = job->settings->d, groups = R(groups)(job->batch, lanes);
  const unsigned slots = clew_pool_threads();
  clew_status status = CLEW_OK;
  job->state_reals = job->kernels->streams[job->settings->kind].state_vectors(job->settings) * lanes;
  job->slot_reals = ((job->covariance == NULL ? d : d * d) + 1) * lanes;
  job->bad = clew_alloc(groups, sizeof *job->bad);
  clew_slab *slab = clew_slab_new(slots * job->slot_reals * sizeof(real));
  if (job->bad == NULL || slab == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a step of %zu sequences", job->batch);
    goto done;
  }
  job->scratch = clew_slab_data(slab);
  clew_pool_for(groups, R(step_task), job, slots, NULL);
  for (size_t group = 0; group < groups && status == CLEW_OK; group++)
    if (job->bad[group])
      status =
          clew_fail(err, CLEW_ERROR_VALUE,
                    "the estimate of a sequence of %zu to %zu is beyond the range of float%zu, or not found in the "
                    "iterations allowed",
                    group * lanes, group * lanes + lanes - 1, sizeof(real) * 8);

done:
  clew_slab_release(slab);
  clew_free(job->bad);
  return status;
}

void R(clew_stream_begin)(void *state, size_t batch, const clew_stream_settings *settings) {
  const R(clew_reg_kernels) *k = R(clew_get_kernels)()->reg;
  const size_t reals = k->streams[settings->kind].state_vectors(settings) * k->lanes;
  for (size_t group = 0; group < R(groups)(batch, k->lanes); group++)
    k->streams[settings->kind].begin((real *)state + group * reals, settings);
}

clew_status R(clew_stream_update)(void *state, const void *x, const void *y, size_t batch,
                                  const clew_stream_settings *settings, clew_error *err) {
  R(step_job) job = {.state = state, .x = x, .y = y, .batch = batch, .settings = settings};
  return R(run_steps)(&job, err);
}

clew_status R(clew_stream_weights)(void *w, void *covariance, void *state, size_t batch,
                                   const clew_stream_settings *settings, clew_error *err) {
  R(step_job) job = {.state = state, .w = w, .covariance = covariance, .batch = batch, .settings = settings};
  return R(run_steps)(&job, err);
}
