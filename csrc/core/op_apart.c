/* Steps that stand apart where an intervention or a gradient comes between: parts of norms, heads one by one,
 * activations; and keys and values for later. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "exec.h"

typedef struct R(apart_job) {
  const clew_exec *x;
  const clew_step *s;
  size_t n_rows, per_task;
  clew_tiling tiling;
} R(apart_job);

static void R(for_parts)(const clew_exec *x, const clew_step *s, size_t cols, clew_task task) {
  R(apart_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows, .per_task = clew_rows_per_task(cols)};
  clew_pool_for((job.n_rows + job.per_task - 1) / job.per_task, task, &job, x->n_slots, x->cancel);
}

/* ---- Copies --------------------------------------------------------------------------------------------------- */

static void R(copy_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(apart_job) *job = ctx;
  const size_t cols = clew_cols(job->x, job->s->copy.in), begin = index * job->per_task;
  const size_t end = clew_min(begin + job->per_task, job->n_rows);
  memcpy((real *)clew_buffer_data(job->x, job->s->copy.out) + begin * cols,
         (const real *)clew_buffer_data(job->x, job->s->copy.in) + begin * cols, (end - begin) * cols * sizeof(real));
}

void R(clew_op_copy)(const clew_exec *x, const clew_step *s) {
  R(for_parts)(x, s, clew_cols(x, s->copy.in), R(copy_task));
}

void R(clew_op_append)(const clew_exec *x, const clew_step *s) {
  const clew_plan *plan = x->plan;
  const clew_cache *cache = x->input->cache;
  const size_t cols = clew_cols(x, s->append.k);
  const real *k = clew_buffer_data(x, s->append.k), *v = clew_buffer_data(x, s->append.v); /* [rows, g e] */
  for (size_t i = 0; i < (size_t)plan->n_seq; i++) {
    const size_t seq = plan->past_seq != NULL ? (size_t)plan->past_seq[i] : i, row = (size_t)plan->rows[0].row0[i];
    const size_t to = (seq * cache->capacity + (size_t)clew_past(plan, i)) * cols;
    const size_t bytes = (size_t)clew_length(plan, i) * cols * sizeof *k;
    memcpy((real *)cache->k[s->layer] + to, k + row * cols, bytes);
    memcpy((real *)cache->v[s->layer] + to, v + row * cols, bytes);
  }
}

/* ---- Norms in parts ------------------------------------------------------------------------------------------- */

/* x: [d] */
static real R(mean)(const real *x, size_t d) {
  real sum = 0;
  for (size_t i = 0; i < d; i++) {
    sum += x[i];
  }
  return sum / (real)d;
}

static void R(rescale_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(apart_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t d = clew_cols(x, s->rescale.in), begin = index * job->per_task;
  const real eps = (real)x->model->config.eps;
  const real *scale = clew_buffer_data(x, s->rescale.scale);         /* [rows] */
  const real *w = s->rescale.weights->w, *b = s->rescale.weights->b; /* [d] */
  for (size_t r = begin; r < clew_min(begin + job->per_task, job->n_rows); r++) {
    const real *in = (const real *)clew_buffer_data(x, s->rescale.in) + r * d; /* [d] */
    real *out = (real *)clew_buffer_data(x, s->rescale.out) + r * (s->op == CLEW_OP_SCALE ? 1 : d);
    const real centre = s->rescale.centre && s->op != CLEW_OP_AFFINE ? R(mean)(in, d) : 0;
    if (s->op == CLEW_OP_SCALE) {
      real sum = 0;
      for (size_t i = 0; i < d; i++) {
        sum += (in[i] - centre) * (in[i] - centre);
      }
      *out = (real)sqrt((double)(sum / (real)d + eps));
    } else if (s->op == CLEW_OP_NORMALIZE) {
      for (size_t i = 0; i < d; i++) {
        out[i] = (in[i] - centre) / scale[r];
      }
    } else {
      for (size_t i = 0; i < d; i++) {
        out[i] = in[i] * (w ? w[i] : 1) + (b ? b[i] : 0);
      }
    }
  }
}

void R(clew_op_rescale)(const clew_exec *x, const clew_step *s) {
  R(for_parts)(x, s, clew_cols(x, s->rescale.in), R(rescale_task));
}

/* ---- Heads one by one ----------------------------------------------------------------------------------------- */

static void R(heads_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(apart_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_matrix *w = job->s->heads.w;
  const size_t heads = job->s->heads.heads, d = w->k, e = w->n * w->groups / heads;
  const size_t head = index / job->tiling.n_rows, row = index % job->tiling.n_rows * job->tiling.rows;
  const size_t rows = clew_min(job->tiling.rows, job->n_rows - row), col = head * e;
  real *out = (real *)clew_buffer_data(x, job->s->heads.out) + (row * heads + head) * e;           /* [rows, h, e] */
  const real *in = (const real *)clew_buffer_data(x, job->s->heads.in) + (row * heads + head) * d; /* [rows, h, d] */
  const real *b = (const real *)w->data + (ptrdiff_t)(col / w->n) * w->gs + (ptrdiff_t)(col % w->n) * w->cs;
  (void)R(clew_gemm)(out, (ptrdiff_t)(heads * e), 1, in, (ptrdiff_t)(heads * d), 1, b, w->rs, w->cs, rows, e, d, 1, 0);
  if (job->s->heads.b != NULL) {
    R(clew_get_kernels)
    ()->bias_add(NULL, 0, out, (ptrdiff_t)(heads * e), (const real *)job->s->heads.b + col, NULL, 0, rows, e);
  }
}

void R(clew_op_heads)(const clew_exec *x, const clew_step *s) {
  R(apart_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  job.tiling = clew_tile(job.n_rows, s->heads.w->n * s->heads.w->groups / s->heads.heads, x->n_slots);
  clew_pool_for(s->heads.heads * job.tiling.n_rows, R(heads_task), &job, x->n_slots, x->cancel);
}

static void R(sum_heads_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(apart_job) *job = ctx;
  const clew_exec *x = job->x;
  const size_t heads = job->s->heads.heads, d = clew_cols(x, job->s->heads.out), begin = index * job->per_task;
  const real *bias = job->s->heads.b; /* [d] */
  for (size_t r = begin; r < clew_min(begin + job->per_task, job->n_rows); r++) {
    real *out = (real *)clew_buffer_data(x, job->s->heads.out) + r * d;                   /* [d] */
    const real *in = (const real *)clew_buffer_data(x, job->s->heads.in) + r * heads * d; /* [h, d] */
    for (size_t i = 0; i < d; i++) {
      out[i] = bias ? bias[i] : 0;
    }
    for (size_t h = 0; h < heads; h++) {
      for (size_t i = 0; i < d; i++) {
        out[i] += in[h * d + i];
      }
    }
  }
}

void R(clew_op_sum_heads)(const clew_exec *x, const clew_step *s) {
  R(for_parts)(x, s, clew_cols(x, s->heads.in), R(sum_heads_task));
}

/* ---- Activations ---------------------------------------------------------------------------------------------- */

static void R(act_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(apart_job) *job = ctx;
  const clew_exec *x = job->x;
  const size_t f = clew_cols(x, job->s->act.pre), begin = index * job->per_task;
  const size_t rows = clew_min(begin + job->per_task, job->n_rows) - begin;
  real *pre = (real *)clew_buffer_data(x, job->s->act.pre) + begin * f; /* [rows, f]; read only: no bias is added */
  real *post = (real *)clew_buffer_data(x, job->s->act.post) + begin * f;
  const real *linear = clew_buffer_data(x, job->s->act.linear);
  R(clew_get_kernels)
  ()->bias_act(post, (ptrdiff_t)f, pre, (ptrdiff_t)f, NULL, linear ? linear + begin * f : NULL, (ptrdiff_t)f, rows, f,
               x->model->config.act);
}

void R(clew_op_act)(const clew_exec *x, const clew_step *s) {
  R(for_parts)(x, s, clew_cols(x, s->act.pre), R(act_task));
}
