/* Derivatives forward of norms and activations. */
#include <string.h>

#include "exec.h"

typedef struct R(tangent_job) {
  const clew_exec *x;
  const clew_step *s;
  size_t n_rows, per_task;
} R(tangent_job);

static void R(for_tangents)(const clew_exec *x, const clew_step *s, size_t cols, clew_task task) {
  R(tangent_job)
  job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows, .per_task = clew_rows_per_task(cols)};
  clew_pool_for((job.n_rows + job.per_task - 1) / job.per_task, task, &job, x->n_slots, x->cancel);
}

/* Without its weights, a norm's Jacobian is symmetric: the backward kernel's product is the forward one. */
static void R(norm_tangent_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(tangent_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t groups = s->norm_grad.groups, d = clew_cols(x, s->norm_grad.in) / groups, begin = index * job->per_task;
  const size_t n = clew_min(job->per_task, job->n_rows - begin) * groups, at = begin * groups * d;
  real *out = (real *)clew_buffer_data(x, s->norm_grad.dx) + at;            /* [n, d] */
  const real *in = (const real *)clew_buffer_data(x, s->norm_grad.in) + at; /* [n, d] */
  const real *t = (const real *)clew_buffer_data(x, s->norm_grad.g) + at;   /* [n, d] */
  const real *w = s->norm_grad.weights->w;                                  /* [d] or NULL */
  R(clew_get_kernels)
  ()->norm_grad(out, NULL, NULL, in, t, NULL, n, d, (real)x->model->config.eps, s->norm_grad.centre, false);
  for (size_t r = 0; r < n && w != NULL; r++) {
    for (size_t i = 0; i < d; i++) {
      out[r * d + i] *= w[i];
    }
  }
}

void R(clew_op_norm_tangent)(const clew_exec *x, const clew_step *s) {
  R(for_tangents)(x, s, clew_cols(x, s->norm_grad.in), R(norm_tangent_task));
}

static void R(rescale_tangent_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(tangent_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_op op = s->rescale_grad.op;
  const size_t d = clew_cols(x, s->rescale_grad.in), begin = index * job->per_task;
  const real *scale = clew_buffer_data(x, s->rescale_grad.scale);    /* [rows] */
  const real *t_scale = clew_buffer_data(x, s->rescale_grad.dscale); /* [rows] or NULL */
  const real *tangents = clew_buffer_data(x, s->rescale_grad.dx);    /* [rows, d] or NULL */
  const real *w = s->rescale_grad.weights->w;                        /* [d] or NULL */
  for (size_t r = begin; r < clew_min(begin + job->per_task, job->n_rows); r++) {
    const real *in = (const real *)clew_buffer_data(x, s->rescale_grad.in) + r * d; /* [d] */
    real *out = (real *)clew_buffer_data(x, s->rescale_grad.g) + r * (op == CLEW_OP_SCALE ? 1 : d);
    const real *t = tangents ? tangents + r * d : NULL; /* [d] */
    real mean = 0, t_mean = 0, along = 0;
    for (size_t i = 0; i < d && op != CLEW_OP_AFFINE && s->rescale_grad.centre; i++) {
      mean += in[i] / (real)d;
      t_mean += t ? t[i] / (real)d : 0;
    }
    if (op == CLEW_OP_SCALE) {
      for (size_t i = 0; i < d; i++) {
        along += t[i] * (in[i] - mean);
      }
      *out = along / ((real)d * scale[r]);
      continue;
    }
    for (size_t i = 0; i < d; i++) {
      if (op == CLEW_OP_AFFINE) {
        out[i] = t[i] * (w ? w[i] : 1);
      } else {
        out[i] = ((t ? t[i] - t_mean : 0) - (t_scale ? t_scale[r] * (in[i] - mean) / scale[r] : 0)) / scale[r];
      }
    }
  }
}

void R(clew_op_rescale_tangent)(const clew_exec *x, const clew_step *s) {
  R(for_tangents)(x, s, clew_cols(x, s->rescale_grad.in), R(rescale_tangent_task));
}

#define CLEW_ACT_BLOCK 256

/* post = act(pre) · linear: slope(pre) · linear · dpre + act(pre) · dlinear. */
static void R(act_tangent_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(tangent_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t cols = clew_cols(x, s->act_grad.pre), begin = index * job->per_task * cols;
  const size_t end = begin + clew_min(job->per_task, job->n_rows - index * job->per_task) * cols;
  real *out = clew_buffer_data(x, s->act_grad.dpost);             /* [rows, f] */
  const real *dpre = clew_buffer_data(x, s->act_grad.dpre);       /* [rows, f] or NULL */
  const real *dlinear = clew_buffer_data(x, s->act_grad.dlinear); /* [rows, f] or NULL */
  const real *pre = clew_buffer_data(x, s->act_grad.pre);         /* [rows, f] */
  const real *linear = clew_buffer_data(x, s->act_grad.linear);   /* [rows, f] or NULL */
  real one[CLEW_ACT_BLOCK], by_pre[CLEW_ACT_BLOCK], by_linear[CLEW_ACT_BLOCK];
  for (size_t i = 0; i < CLEW_ACT_BLOCK; i++) {
    one[i] = 1;
  }
  for (size_t at = begin; at < end; at += CLEW_ACT_BLOCK) {
    const size_t n = clew_min(CLEW_ACT_BLOCK, end - at);
    R(clew_get_kernels)
    ()->act_grad(by_pre, linear ? by_linear : NULL, one, pre + at, linear ? linear + at : NULL, n,
                 x->model->config.act);
    for (size_t i = 0; i < n; i++) {
      out[at + i] = (dpre ? by_pre[i] * dpre[at + i] : 0) + (dlinear ? by_linear[i] * dlinear[at + i] : 0);
    }
  }
}

void R(clew_op_act_tangent)(const clew_exec *x, const clew_step *s) {
  R(for_tangents)(x, s, clew_cols(x, s->act_grad.pre), R(act_tangent_task));
}
