/* The constrained transformer over batches, and its training: contexts in chunks, chunks as tasks. */
#include <math.h>
#include <string.h>

#include "adaptive.h"

#define LANES CLEW_ADAPTIVE_LANES

typedef struct R(clew_adaptive_chunk) R(chunk);

static size_t chunks_of(size_t n) { return (n + LANES - 1) / LANES; }

/* What a slot needs: the lanes of a chunk's arrays, then the kernel's scratch. */
static size_t slot_values(const clew_adaptive_shape *s) {
  const size_t n = s->layers * s->heads;
  return (3 * s->dim + n + n * s->dim) * LANES + clew_adaptive_scratch(s);
}

/* Lays a chunk's arrays into a slot's memory. */
static void R(lay)(R(chunk) * k, real *at) {
  const size_t d = k->shape.dim, n = k->shape.layers * k->shape.heads;
  k->w = at, at += d * LANES;
  k->estimate = at, at += d * LANES;
  k->prediction = at, at += d * LANES;
  k->messages = at, at += n * LANES;
  k->directions = at, at += n * d * LANES;
  k->scratch = at;
}

/* lanes [width, LANES] = rows [n, width] turned, zeros beyond */
static void R(turn_in)(real *lanes, const real *rows, size_t n, size_t width) {
  for (size_t j = 0; j < width; j++)
    for (size_t c = 0; c < LANES; c++)
      lanes[j * LANES + c] = c < n ? rows[c * width + j] : 0;
}

static void R(turn_out)(real *rows, const real *lanes, size_t n, size_t width) {
  for (size_t c = 0; c < n; c++)
    for (size_t j = 0; j < width; j++)
      rows[c * width + j] = lanes[j * LANES + c];
}

/* ---- Batches ---------------------------------------------------------------------------------------------------- */

typedef struct R(pass_job) {
  const clew_adaptive_shape *shape;
  const R(clew_adaptive_batch) * batch;
  size_t n_values, n_parameters;
  real *slots;    /* [slots, n_values] */
  real *partials; /* [chunks, P]; NULL without a gradient */
} R(pass_job);

static void R(pass_task)(void *ctx, size_t index, unsigned slot) {
  const R(pass_job) *job = ctx;
  const R(clew_adaptive_batch) *b = job->batch;
  const size_t first = index * LANES, n = b->n - first < LANES ? b->n - first : LANES;
  const size_t d = job->shape->dim, messages = job->shape->layers * job->shape->heads;
  double losses[LANES];
  R(chunk)
  k = {.shape = *job->shape,
       .parameters = b->parameters,
       .centres = b->centres,
       .spread = b->spread,
       .variance = (real)b->variance,
       .tokens = b->tokens,
       .n = n,
       .start = b->start,
       .losses = losses,
       .weight = (real)(1.0 / (double)b->n)};
  R(lay)(&k, job->slots + slot * job->n_values);
  if (b->w != NULL)
    R(turn_in)((real *)k.w, b->w + first * d, n, d);
  else
    k.w = NULL;
  if (b->x != NULL)
    k.x = b->x + first * b->tokens * d, k.y = b->y + first * b->tokens;
  else
    R(turn_in)((real *)k.estimate, b->estimate + first * d, n, d);
  if (b->start > 0)
    R(turn_in)(k.messages, b->messages + first * messages, n, messages);
  if (job->partials != NULL) {
    k.gradient = job->partials + index * job->n_parameters;
    memset(k.gradient, 0, job->n_parameters * sizeof(real));
  }
  R(clew_get_kernels)()->adaptive(&k);
  if (b->prediction != NULL)
    R(turn_out)(b->prediction + first * d, k.prediction, n, d);
  if (b->messages != NULL)
    R(turn_out)(b->messages + first * messages, k.messages, n, messages);
  if (b->directions != NULL)
    R(turn_out)(b->directions + first * messages * d, k.directions, n, messages * d);
  if (b->losses != NULL && b->w != NULL)
    memcpy(b->losses + first, losses, n * sizeof *losses);
}

clew_status R(clew_adaptive_pass)(const clew_adaptive_shape *shape, const R(clew_adaptive_batch) * batch,
                                  clew_cancel *cancel, clew_error *err) {
  clew_status status = clew_adaptive_check(shape, err);
  if (status != CLEW_OK)
    return status;
  const unsigned slots = clew_pool_threads();
  const size_t chunks = chunks_of(batch->n);
  R(pass_job)
  job = {
      .shape = shape, .batch = batch, .n_values = slot_values(shape), .n_parameters = clew_adaptive_parameters(shape)};
  job.slots = clew_alloc(slots, job.n_values * sizeof(real));
  if (batch->gradient != NULL)
    job.partials = clew_alloc(chunks + 1, job.n_parameters * sizeof(real));
  if (job.slots == NULL || (batch->gradient != NULL && job.partials == NULL)) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu contexts in chunks of %zu values", batch->n,
                       job.n_values);
    goto done;
  }
  if (!clew_pool_for(chunks, R(pass_task), &job, slots, cancel)) {
    status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
    goto done;
  }
  if (batch->gradient != NULL) {
    memset(batch->gradient, 0, job.n_parameters * sizeof(real));
    for (size_t i = 0; i < chunks; i++)
      for (size_t p = 0; p < job.n_parameters; p++)
        batch->gradient[p] += job.partials[i * job.n_parameters + p];
  }
done:
  clew_free(job.slots);
  clew_free(job.partials);
  return status;
}

/* ---- Contexts --------------------------------------------------------------------------------------------------- */

/* SplitMix64 (Steele, Lea & Flood 2014). */
static uint64_t next_random(uint64_t *state) {
  uint64_t z = (*state += 0x9E3779B97F4A7C15u);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/* Two independent normal variates (Box & Muller 1958), in float. */
static void two_normals(float *pair, uint64_t *state) {
  const uint64_t bits = next_random(state);
  const float u = ((float)(uint32_t)(bits >> 32) + 1.0f) * 0x1p-32f, v = (float)(uint32_t)bits * 0x1p-32f;
  const float length = sqrtf(-2 * logf(u < 1 ? u : 1)), angle = 6.2831853f * v;
  pair[0] = length * cosf(angle);
  pair[1] = length * sinf(angle);
}

typedef struct R(train_job) {
  const clew_adaptive_shape *shape;
  const R(clew_adaptive_models) * models;
  size_t batch, chunks, n_values, n_parameters;
  int64_t step;
  bool spread;    /* has any prior a Gaussian part? */
  real *slots;    /* [slots, n_values] */
  real *partials; /* [models, chunks, P] */
  double *sums;   /* [models, chunks] of squared errors */
  double *losses; /* [models] of this step */
  R(clew_adamw_factors) factors;
} R(train_job);

/* w and ŵ [dim, LANES] of a chunk's contexts. */
static void R(draw)(real *w, real *estimate, const R(train_job) * job, size_t model, size_t chunk, size_t n) {
  const R(clew_adaptive_models) *m = job->models;
  const size_t d = job->shape->dim;
  const real *centres = m->centres + model * m->draws * d, *spread = m->spread + model * d;
  const float noise = (float)m->noise[model];
  for (size_t c = 0; c < LANES; c++) {
    if (c >= n) {
      for (size_t j = 0; j < d; j++)
        w[j * LANES + c] = estimate[j * LANES + c] = 0;
      continue;
    }
    uint64_t state = m->seeds[model];
    state = next_random(&state) ^ (uint64_t)job->step;
    state = next_random(&state) ^ (uint64_t)(chunk * LANES + c);
    state = next_random(&state);
    const size_t centre = (size_t)(((next_random(&state) >> 32) * (uint64_t)m->draws) >> 32);
    float pair[2];
    for (size_t j = 0; j < d; j++) {
      real value = centres[centre * d + j];
      if (job->spread) {
        if (j % 2 == 0)
          two_normals(pair, &state);
        value += (real)sqrt((double)spread[j]) * (real)pair[j % 2];
      }
      w[j * LANES + c] = value;
    }
    for (size_t j = 0; j < d; j++) {
      if (j % 2 == 0)
        two_normals(pair, &state);
      estimate[j * LANES + c] = w[j * LANES + c] + (real)(noise * pair[j % 2]);
    }
  }
}

/* ---- Training --------------------------------------------------------------------------------------------------- */

static void R(train_task)(void *ctx, size_t index, unsigned slot) {
  const R(train_job) *job = ctx;
  const size_t model = index / job->chunks, chunk = index % job->chunks, first = chunk * LANES;
  const size_t n = job->batch - first < LANES ? job->batch - first : LANES, d = job->shape->dim;
  const R(clew_adaptive_models) *m = job->models;
  double losses[LANES];
  R(chunk)
  k = {.shape = *job->shape,
       .parameters = m->parameters + model * job->n_parameters,
       .centres = m->centres + model * m->draws * d,
       .spread = m->spread + model * d,
       .variance = (real)(m->noise[model] * m->noise[model]),
       .n = n,
       .losses = losses,
       .gradient = job->partials + index * job->n_parameters,
       .weight = (real)(1.0 / (double)job->batch)};
  R(lay)(&k, job->slots + slot * job->n_values);
  R(draw)((real *)k.w, (real *)k.estimate, job, model, chunk, n);
  memset(k.gradient, 0, job->n_parameters * sizeof(real));
  R(clew_get_kernels)()->adaptive(&k);
  double sum = 0;
  for (size_t c = 0; c < n; c++)
    sum += losses[c];
  job->sums[index] = sum;
}

/* One model's step of Adam. Its chunks' gradients are added up in order. */
static void R(update_task)(void *ctx, size_t model, unsigned slot) {
  (void)slot;
  const R(train_job) *job = ctx;
  const R(clew_adaptive_models) *m = job->models;
  const size_t size = job->n_parameters;
  real *gradient = job->partials + model * job->chunks * size;
  double sum = job->sums[model * job->chunks];
  for (size_t i = 1; i < job->chunks; i++) {
    R(clew_get_kernels)()->add_scaled(gradient, gradient + i * size, 1, size);
    sum += job->sums[model * job->chunks + i];
  }
  job->losses[model] = sum / (double)job->batch;
  R(clew_get_kernels)
  ()->adamw(m->parameters + model * size, m->m + model * size, m->v + model * size, gradient, size, &job->factors);
}

static R(clew_adamw_factors) R(factors_at)(const clew_adaptive_course *course, int64_t step) {
  const double beta1 = 0.9, beta2 = 0.999, t = (double)(step + 1);
  const double part = course->horizon > 0 ? fmin((double)step / (double)course->horizon, 1) : 0;
  const double rate = course->last_rate + (course->rate - course->last_rate) * 0.5 * (1 + cos(M_PI * part));
  return (R(clew_adamw_factors)){.keep = 1,
                                 .step = (real)(rate / (1 - pow(beta1, t))),
                                 .scale = 1,
                                 .eps = (real)1e-8,
                                 .root = (real)sqrt(1 - pow(beta2, t)),
                                 .new1 = (real)(1 - beta1),
                                 .old2 = (real)beta2,
                                 .new2 = (real)(1 - beta2)};
}

clew_status R(clew_adaptive_train)(double *losses, const R(clew_adaptive_models) * models,
                                   const clew_adaptive_shape *shape, const clew_adaptive_course *course,
                                   clew_cancel *cancel, clew_error *err) {
  clew_status status = clew_adaptive_check(shape, err);
  if (status != CLEW_OK)
    return status;
  if (models->draws == 0 || course->batch == 0)
    return clew_fail(err, CLEW_ERROR_VALUE, "training needs a batch and a prior, not %zu contexts from %zu centres",
                     course->batch, models->draws);
  const unsigned slots = clew_pool_threads();
  R(train_job)
  job = {.shape = shape,
         .models = models,
         .batch = course->batch,
         .chunks = chunks_of(course->batch),
         .n_values = slot_values(shape),
         .n_parameters = clew_adaptive_parameters(shape)};
  const size_t tasks = models->n * job.chunks;
  for (size_t j = 0; j < models->n * shape->dim; j++)
    job.spread = job.spread || models->spread[j] > 0;
  job.slots = clew_alloc(slots, job.n_values * sizeof(real));
  job.partials = clew_alloc(tasks + 1, job.n_parameters * sizeof(real));
  job.sums = clew_alloc(tasks + 1, sizeof *job.sums);
  if (job.slots == NULL || job.partials == NULL || job.sums == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: gradients of %zu chunks with %zu parameters", tasks,
                       job.n_parameters);
    goto done;
  }
  for (size_t i = 0; i < course->steps; i++) {
    job.step = course->first_step + (int64_t)i;
    job.losses = losses + i * models->n;
    job.factors = R(factors_at)(course, job.step);
    if (!clew_pool_for(tasks, R(train_task), &job, slots, cancel)) {
      status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
      goto done;
    }
    clew_pool_for(models->n, R(update_task), &job, slots, NULL);
    for (size_t model = 0; model < models->n; model++) {
      if (!isfinite(job.losses[model])) {
        status = clew_fail(err, CLEW_ERROR_VALUE, "the loss of model %zu is %g in step %lld: lower the learning rate",
                           model, job.losses[model], (long long)job.step);
        goto done;
      }
    }
  }
done:
  clew_free(job.slots);
  clew_free(job.partials);
  clew_free(job.sums);
  return status;
}
