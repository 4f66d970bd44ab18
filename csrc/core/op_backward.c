/* The backward pass, but for attention: derivatives of products, norms, activations, embedding; the objective. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "exec.h"

typedef struct R(back_job) {
  const clew_exec *x;
  const clew_step *s;
  size_t n_rows, per_task;
  clew_tiling tiling[3];
  size_t first[7]; /* first task of each part */
  double total;    /* of weights */
} R(back_job);

static void R(for_back_rows)(const clew_exec *x, const clew_step *s, size_t cols, clew_task task) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows, .per_task = clew_rows_per_task(cols)};
  clew_pool_for((job.n_rows + job.per_task - 1) / job.per_task, task, &job, x->n_slots, x->cancel);
}

/* ---- Objectives ----------------------------------------------------------------------------------------------- */

static double R(row_weight)(const clew_exec *x, const clew_step *s, size_t row) {
  if (s->objective.kind == CLEW_OBJECTIVE_CROSS_ENTROPY && ((const int32_t *)x->input->targets)[row] < 0) {
    return 0;
  }
  return x->input->weights != NULL ? (double)((const real *)x->input->weights)[row] : 1.0;
}

static void R(objective_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const size_t n = clew_cols(x, job->s->objective.in), begin = index * job->per_task;
  double *partial = clew_buffer_data(x, job->s->objective.partial); /* [rows] */
  for (size_t r = begin; r < clew_min(begin + job->per_task, job->n_rows); r++) {
    const real *logits = (const real *)clew_buffer_data(x, job->s->objective.in) + r * n; /* [n] */
    real *d = (real *)clew_buffer_data(x, job->s->objective.out) + r * n;                 /* [n] */
    const double weight = R(row_weight)(x, job->s, r) / job->total;
    partial[r] = 0;
    if (weight == 0) {
      memset(d, 0, n * sizeof *d);
    } else if (job->s->objective.kind == CLEW_OBJECTIVE_CROSS_ENTROPY) {
      const size_t target = (size_t)((const int32_t *)x->input->targets)[r];
      partial[r] = weight * R(clew_get_kernels)()->cross_entropy(d, logits, target, n, (real)weight);
    } else {
      const real *target = (const real *)x->input->targets + r * n;
      double sum = 0;
      for (size_t i = 0; i < n; i++) {
        const real difference = logits[i] - target[i];
        sum += (double)difference * (double)difference;
        d[i] = (real)(2 * weight / (double)n) * difference;
      }
      partial[r] = weight * sum / (double)n;
    }
  }
}

void R(clew_op_objective)(const clew_exec *x, const clew_step *s) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  job.per_task = clew_rows_per_task(clew_cols(x, s->objective.in));
  for (size_t r = 0; r < job.n_rows; r++) {
    job.total += R(row_weight)(x, s, r);
  }
  clew_pool_for((job.n_rows + job.per_task - 1) / job.per_task, R(objective_task), &job, x->n_slots, x->cancel);
  const double *partial = clew_buffer_data(x, s->objective.partial);
  *x->objective = 0;
  for (size_t r = 0; r < job.n_rows; r++) {
    *x->objective += partial[r];
  }
}

/* ---- Sums ----------------------------------------------------------------------------------------------------- */

void R(clew_op_zero)(const clew_exec *x, const clew_step *s) {
  if (s->zero.buffer != CLEW_NONE) {
    memset(clew_buffer_data(x, s->zero.buffer), 0, x->plan->buffers[s->zero.buffer].bytes);
  } else if (s->zero.output != CLEW_NONE) {
    memset(clew_output_data(x, s->zero.output, s->layer), 0, x->plan->outputs[s->zero.output].layer_bytes);
  } else {
    const clew_weight_gradient *info = &x->plan->grads[s->zero.grad].info;
    memset(clew_grad_data(x, s->zero.grad), 0, info->rows * info->cols * sizeof(real));
  }
}

static void R(add_into_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const size_t begin = index * job->per_task, n = clew_min(job->per_task, job->n_rows - begin);
  real *out = (real *)clew_buffer_data(x, job->s->add_into.out) + begin;
  real *in = (real *)clew_buffer_data(x, job->s->add_into.in) + begin; /* read only: there is no bias */
  R(clew_get_kernels)()->bias_add(out, (ptrdiff_t)n, in, (ptrdiff_t)n, NULL, out, (ptrdiff_t)n, 1, n);
}

void R(clew_op_add_into)(const clew_exec *x, const clew_step *s) {
  const clew_buffer *b = &x->plan->buffers[s->add_into.out];
  size_t values = b->cols * x->plan->rows[b->rowset].n_rows;
  if (b->square) {
    values =
        b->cols * (size_t)x->plan->n_seq * (size_t)x->model->config.n_heads * (size_t)x->plan->rows[b->rowset].longest;
  }
  R(back_job) job = {.x = x, .s = s, .n_rows = values, .per_task = (size_t)1 << 14};
  clew_pool_for((values + job.per_task - 1) / job.per_task, R(add_into_task), &job, x->n_slots, x->cancel);
}

void R(clew_op_gather_grad)(const clew_exec *x, const clew_step *s) {
  const size_t cols = clew_cols(x, s->gather.in);
  real *out = clew_buffer_data(x, s->gather.out);     /* [rows, cols] */
  const real *in = clew_buffer_data(x, s->gather.in); /* [n_seq, cols] */
  for (size_t i = 0; i < (size_t)x->plan->n_seq; i++) {
    real *row = out + (size_t)(x->plan->rows[0].row0[i + 1] - 1) * cols;
    for (size_t j = 0; j < cols; j++) {
      row[j] += in[i * cols + j];
    }
  }
}

/* ---- Products --------------------------------------------------------------------------------------------------- */

/* out [cols, rows] = the transpose of in [rows, cols], square by square. */
static void R(turn)(real *out, size_t ld_out, const real *in, size_t ld_in, size_t cols, size_t rows) {
  for (size_t r = 0; r < rows; r += 16) {
    for (size_t c = 0; c < cols; c += 16) {
      if (r + 16 <= rows && c + 16 <= cols) {
        for (size_t j = 0; j < 16; j++) {
          for (size_t i = 0; i < 16; i++) {
            out[(c + j) * ld_out + r + i] = in[(r + i) * ld_in + c + j];
          }
        }
        continue;
      }
      for (size_t j = c; j < clew_min(c + 16, cols); j++) {
        for (size_t i = r; i < clew_min(r + 16, rows); i++) {
          out[j * ld_out + i] = in[i * ld_in + j];
        }
      }
    }
  }
}

#define CLEW_TURN_ROWS 32

/* Some rows of a weight to columns of its transpose. */
static void R(turn_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  int32_t part = 0;
  while (index >= job->first[part + 1]) {
    part++;
  }
  const clew_matrix *w = job->s->dx.w[part];
  const size_t begin = (index - job->first[part]) * CLEW_TURN_ROWS, end = clew_min(begin + CLEW_TURN_ROWS, w->k);
  real *out = clew_buffer_data(job->x, job->s->dx.turned[part]); /* [groups · n, k] */
  for (size_t group = 0; group < w->groups; group++) {
    const real *in = (const real *)w->data + (ptrdiff_t)group * w->gs; /* [k, n], rows of stride rs */
    R(turn)(out + group * w->n * w->k + begin, w->k, in + (ptrdiff_t)begin * w->rs, (size_t)w->rs, w->n, end - begin);
  }
}

/* A tile of dx (+)= Σ g Wᵀ over parts and groups. */
static void R(dx_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_tiling *t = &job->tiling[0];
  const size_t cols = clew_cols(x, s->dx.out);
  const size_t row = index % t->n_rows * t->rows, col = index / t->n_rows * t->cols;
  const size_t rows = clew_min(t->rows, job->n_rows - row), width = clew_min(t->cols, cols - col);
  real *out = (real *)clew_buffer_data(x, s->dx.out) + row * cols + col;
  real beta = s->dx.add ? 1 : 0;
  for (int32_t i = 0; i < s->dx.n_parts; i++) {
    const clew_matrix *w = s->dx.w[i];
    const size_t n = w->n * w->groups;
    const real *g = (const real *)clew_buffer_data(x, s->dx.g[i]) + row * n;
    if (s->dx.turned[i] != CLEW_NONE) {
      const real *b = (const real *)clew_buffer_data(x, s->dx.turned[i]) + col;
      (void)R(clew_gemm)(out, (ptrdiff_t)cols, 1, g, (ptrdiff_t)n, 1, b, (ptrdiff_t)w->k, 1, rows, width, n, 1, beta);
      beta = 1;
      continue;
    }
    for (size_t group = 0; group < w->groups; group++) {
      const real *b = (const real *)w->data + (ptrdiff_t)group * w->gs + (ptrdiff_t)col * w->rs;
      (void)R(clew_gemm)(out, (ptrdiff_t)cols, 1, g + group * w->n, (ptrdiff_t)n, 1, b, w->cs, w->rs, rows, width, w->n,
                         1, beta);
      beta = 1;
    }
  }
}

void R(clew_op_linear_dx)(const clew_exec *x, const clew_step *s) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  for (int32_t i = 0; i < s->dx.n_parts; i++) {
    const bool turn = s->dx.turned[i] != CLEW_NONE;
    job.first[i + 1] = job.first[i] + (turn ? (s->dx.w[i]->k + CLEW_TURN_ROWS - 1) / CLEW_TURN_ROWS : 0);
  }
  if (job.first[s->dx.n_parts] > 0) {
    clew_pool_for(job.first[s->dx.n_parts], R(turn_task), &job, x->n_slots, x->cancel);
  }
  job.tiling[0] = clew_tile(job.n_rows, clew_cols(x, s->dx.out), x->n_slots);
  clew_pool_for(job.tiling[0].n_rows * job.tiling[0].n_cols, R(dx_task), &job, x->n_slots, x->cancel);
}

/* Tiles of a weight's gradient: near to squares, as both operands are copied for each, and two or more. Each sums over
 * all rows. */
static clew_tiling R(dw_tiling)(size_t k, size_t n) {
  clew_tiling t = {.n_rows = (k + CLEW_DW_TILE - 1) / CLEW_DW_TILE, .n_cols = (n + CLEW_DW_TILE - 1) / CLEW_DW_TILE};
  if (t.n_rows * t.n_cols == 1) {
    *(k >= n ? &t.n_rows : &t.n_cols) = 2;
  }
  t.rows = (k + t.n_rows - 1) / t.n_rows, t.cols = (n + t.n_cols - 1) / t.n_cols;
  return t;
}

/* A tile of dW = inᵀ g and, beside its first rows, of db = Σ g, while g is in cache. */
static void R(dw_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  int32_t i = 0;
  while (index >= job->first[i + 1]) {
    i++;
  }
  index -= job->first[i];
  const clew_tiling *t = &job->tiling[i];
  const size_t k = clew_cols(x, s->dw.in[i]), n = clew_cols(x, s->dw.g[i]);
  const size_t row = index % t->n_rows * t->rows, col = index / t->n_rows * t->cols;
  const size_t rows = row < k ? clew_min(t->rows, k - row) : 0, cols = col < n ? clew_min(t->cols, n - col) : 0;
  const real *in = (const real *)clew_buffer_data(x, s->dw.in[i]) + row; /* [all rows, k] */
  const real *g = (const real *)clew_buffer_data(x, s->dw.g[i]) + col;   /* [all rows, n] */
  real *dw = NULL, *db = NULL;
  ptrdiff_t rs = (ptrdiff_t)n, cs = 1;
  if (s->dw.w[i] != CLEW_NONE) {
    const clew_grad *grad = &x->plan->grads[s->dw.w[i]];
    rs = (ptrdiff_t)grad->info.cols;
    if (s->dw.matrix[i] == &x->model->W_U && grad->info.weight == CLEW_WEIGHT_W_E) { /* tied: that of W_E, transposed */
      cs = rs, rs = 1;
    }
    dw = (real *)clew_grad_data(x, s->dw.w[i]) + (ptrdiff_t)row * rs + (ptrdiff_t)col * cs;
  }
  if (s->dw.b[i] != CLEW_NONE && row == 0) {
    db = (real *)clew_grad_data(x, s->dw.b[i]) + col;
  }
  const size_t n_rows = dw != NULL ? rows : 0; /* the bias alone: no row of a product */
  (void)R(clew_gemm_sums)(dw, rs, cs, db, in, 1, (ptrdiff_t)k, g, (ptrdiff_t)n, n_rows, cols, job->n_rows);
}

void R(clew_op_linear_dw)(const clew_exec *x, const clew_step *s) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  for (int32_t i = 0; i < s->dw.n_parts; i++) {
    job.tiling[i] = R(dw_tiling)(clew_cols(x, s->dw.in[i]), clew_cols(x, s->dw.g[i]));
    job.first[i + 1] = job.first[i] + job.tiling[i].n_rows * job.tiling[i].n_cols;
  }
  clew_pool_for(job.first[s->dw.n_parts], R(dw_task), &job, x->n_slots, x->cancel);
}

/* Products of heads apart: of RESULT (rows of W belong to heads) and HEADS (its columns). */
static void R(heads_grad_task)(void *ctx, size_t head, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_matrix *w = s->heads_grad.matrix;
  const bool result = s->heads_grad.result;
  const size_t heads = s->heads_grad.heads, n_all = w->n * w->groups;
  const size_t k = result ? w->k / heads : w->k, n = result ? n_all : n_all / heads; /* of one head */
  const size_t row = result ? head * k : 0, col = result ? 0 : head * n;
  const real *g = (const real *)clew_buffer_data(x, s->heads_grad.g) + head * n;   /* [rows, heads, n] */
  const real *in = (const real *)clew_buffer_data(x, s->heads_grad.in) + head * k; /* [rows, heads, k] */
  const ptrdiff_t ld_g = (ptrdiff_t)(heads * n), ld_in = (ptrdiff_t)(heads * k);
  if (s->heads_grad.dx != CLEW_NONE) {
    real *dx = (real *)clew_buffer_data(x, s->heads_grad.dx) + head * k;
    const real *b = (const real *)w->data + (ptrdiff_t)(col / w->n) * w->gs + (ptrdiff_t)(col % w->n) * w->cs +
                    (ptrdiff_t)row * w->rs;
    (void)R(clew_gemm)(dx, ld_in, 1, g, ld_g, 1, b, w->cs, w->rs, job->n_rows, k, n, 1, 0);
  }
  real *dw = s->heads_grad.w != CLEW_NONE ? (real *)clew_grad_data(x, s->heads_grad.w) + row * n_all + col : NULL;
  real *db = s->heads_grad.b != CLEW_NONE ? (real *)clew_grad_data(x, s->heads_grad.b) + col : NULL;
  (void)R(clew_gemm_sums)(dw, (ptrdiff_t)n_all, 1, db, in, 1, ld_in, g, ld_g, dw != NULL ? k : 0, n, job->n_rows);
}

void R(clew_op_heads_grad)(const clew_exec *x, const clew_step *s) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  clew_pool_for(s->heads_grad.heads, R(heads_grad_task), &job, x->n_slots, x->cancel);
}

/* ---- Elementwise --------------------------------------------------------------------------------------------------
 */

static void R(act_grad_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t cols = clew_cols(x, s->act_grad.pre), at = index * job->per_task * cols;
  const size_t n = clew_min(job->per_task, job->n_rows - index * job->per_task) * cols;
  real *dpre = (real *)clew_buffer_data(x, s->act_grad.dpre) + at;
  real *dlinear = clew_buffer_data(x, s->act_grad.dlinear);
  const real *dpost = (const real *)clew_buffer_data(x, s->act_grad.dpost) + at;
  const real *pre = (const real *)clew_buffer_data(x, s->act_grad.pre) + at;
  const real *linear = clew_buffer_data(x, s->act_grad.linear);
  if (s->op == CLEW_OP_SOFTCAP_GRAD) {
    R(clew_get_kernels)()->softcap_grad(dpre, dpost, pre, n, (real)x->model->config.logit_softcap);
  } else {
    R(clew_get_kernels)
    ()->act_grad(dpre, dlinear ? dlinear + at : NULL, dpost, pre, linear ? linear + at : NULL, n, x->model->config.act);
  }
}

void R(clew_op_act_grad)(const clew_exec *x, const clew_step *s) {
  R(for_back_rows)(x, s, clew_cols(x, s->act_grad.pre), R(act_grad_task));
}

static void R(rotary_grad_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  const size_t cols = clew_cols(x, s->rotary_grad.g), e = (size_t)c->d_head, n_rot = (size_t)c->n_rot;
  const size_t table = (size_t)s->rotary_grad.base * x->rotary->n_pos * (n_rot / 2), begin = index * job->per_task;
  R(clew_get_kernels)
  ()->rotary_grad((real *)clew_buffer_data(x, s->rotary_grad.g) + begin * cols, x->plan->rows[s->rowset].pos + begin,
                  (const real *)x->rotary->cosine + table, (const real *)x->rotary->sine + table,
                  clew_min(job->per_task, job->n_rows - begin), cols / e, e, n_rot, c->rotary_adjacent);
}

void R(clew_op_rotary_grad)(const clew_exec *x, const clew_step *s) {
  R(for_back_rows)(x, s, clew_cols(x, s->rotary_grad.g), R(rotary_grad_task));
}

/* ---- Norms --------------------------------------------------------------------------------------------------------
 */

/* Sums of CLEW_NORM_CHUNKS partial gradients [2 d] of a norm's weights. */
static void R(reduce_norm)(const clew_exec *x, int32_t w, int32_t b, const real *partial, size_t d, bool add) {
  for (int which = 0; which < 2; which++) {
    real *out = clew_grad_data(x, which == 0 ? w : b);
    for (size_t i = 0; out != NULL && i < d; i++) {
      real sum = add ? out[i] : 0;
      for (size_t chunk = 0; chunk < CLEW_NORM_CHUNKS; chunk++) {
        sum += partial[(2 * chunk + (size_t)which) * d + i];
      }
      out[i] = sum;
    }
  }
}

static void R(norm_grad_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t groups = s->norm_grad.groups, d = clew_cols(x, s->norm_grad.in) / groups;
  const size_t begin = clew_min(index * job->per_task, job->n_rows);
  const size_t rows = clew_min(job->per_task, job->n_rows - begin), at = begin * groups * d;
  real *partial = clew_buffer_data(x, s->norm_grad.partial);
  real *dw = partial ? partial + 2 * index * d : NULL, *db = partial ? dw + d : NULL;
  if (partial != NULL) {
    memset(dw, 0, 2 * d * sizeof *dw);
  }
  R(clew_get_kernels)
  ()->norm_grad((real *)clew_buffer_data(x, s->norm_grad.dx) + at, dw, db,
                (const real *)clew_buffer_data(x, s->norm_grad.in) + at,
                (const real *)clew_buffer_data(x, s->norm_grad.g) + at, s->norm_grad.weights->w, rows * groups, d,
                (real)x->model->config.eps, s->norm_grad.centre, s->norm_grad.add);
}

void R(clew_op_norm_grad)(const clew_exec *x, const clew_step *s) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  job.per_task = (job.n_rows + CLEW_NORM_CHUNKS - 1) / CLEW_NORM_CHUNKS;
  clew_pool_for(CLEW_NORM_CHUNKS, R(norm_grad_task), &job, x->n_slots, x->cancel);
  if (s->norm_grad.partial != CLEW_NONE) {
    R(reduce_norm)
    (x, s->norm_grad.w, s->norm_grad.b, clew_buffer_data(x, s->norm_grad.partial),
     clew_cols(x, s->norm_grad.in) / s->norm_grad.groups, s->norm_grad.add_weights);
  }
}

/* Derivatives of a norm's parts; serial, as only interventions ask for them. */
void R(clew_op_rescale_grad)(const clew_exec *x, const clew_step *s) {
  const size_t n_rows = x->plan->rows[s->rowset].n_rows, d = clew_cols(x, s->rescale_grad.in);
  const clew_op op = s->rescale_grad.op;
  real *dx = clew_buffer_data(x, s->rescale_grad.dx);             /* [rows, d] */
  real *dscale = clew_buffer_data(x, s->rescale_grad.dscale);     /* [rows] */
  const real *in = clew_buffer_data(x, s->rescale_grad.in);       /* [rows, d] */
  const real *g = clew_buffer_data(x, s->rescale_grad.g);         /* [rows, d] or, of SCALE, [rows] */
  const real *scale = clew_buffer_data(x, s->rescale_grad.scale); /* [rows] */
  const real *w = s->rescale_grad.weights->w;
  real *dw = clew_grad_data(x, s->rescale_grad.w), *db = clew_grad_data(x, s->rescale_grad.b); /* [d] */
  for (size_t i = 0; i < d && !s->rescale_grad.add_weights; i++) {
    if (dw != NULL) {
      dw[i] = 0;
    }
    if (db != NULL) {
      db[i] = 0;
    }
  }
  for (size_t r = 0; r < n_rows; r++, in += d) {
    real mean = 0, total = 0, along = 0;
    if (op == CLEW_OP_AFFINE) {
      for (size_t i = 0; i < d; i++) {
        if (dx != NULL) {
          dx[r * d + i] = g[r * d + i] * (w ? w[i] : 1);
        }
        if (dw != NULL) {
          dw[i] += g[r * d + i] * in[i];
        }
        if (db != NULL) {
          db[i] += g[r * d + i];
        }
      }
      continue;
    }
    for (size_t i = 0; i < d && s->rescale_grad.centre; i++) {
      mean += in[i] / (real)d;
    }
    if (op == CLEW_OP_SCALE) {
      for (size_t i = 0; i < d; i++) {
        dx[r * d + i] = g[r] * (in[i] - mean) / ((real)d * scale[r]);
      }
      continue;
    }
    for (size_t i = 0; i < d; i++) {
      total += g[r * d + i] / scale[r];
      along += g[r * d + i] * (in[i] - mean);
    }
    for (size_t i = 0; i < d && dx != NULL; i++) {
      dx[r * d + i] = g[r * d + i] / scale[r] - (s->rescale_grad.centre ? total / (real)d : 0);
    }
    if (dscale != NULL) {
      dscale[r] = -along / (scale[r] * scale[r]);
    }
  }
}

/* ---- Embedding ------------------------------------------------------------------------------------------------------
 */

#define CLEW_EMBED_COLS 16

/* Columns of the embedding's gradient: every row of the batch adds to its token's, in order. */
static void R(embed_grad_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(back_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  const size_t d = (size_t)c->d_model, col = index * CLEW_EMBED_COLS, n = clew_min(CLEW_EMBED_COLS, d - col);
  const real *g = (const real *)clew_buffer_data(x, s->embed_grad.g) + col; /* [rows, d] */
  const bool by_token = s->embed_grad.w_e != CLEW_NONE;
  real *out = (real *)clew_grad_data(x, by_token ? s->embed_grad.w_e : s->embed_grad.w_pos) + col;
  const real scale = by_token ? (real)c->embed_scale : 1;
  for (size_t r = 0; r < job->n_rows; r++) {
    const int32_t row = by_token ? x->input->tokens[r] : x->plan->rows[0].pos[r] + c->pos_offset;
    for (size_t i = 0; i < n; i++) {
      out[(size_t)row * d + i] += scale * g[r * d + i];
    }
  }
}

void R(clew_op_embed_grad)(const clew_exec *x, const clew_step *s) {
  R(back_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[0].n_rows};
  const size_t d = (size_t)x->model->config.d_model;
  clew_pool_for((d + CLEW_EMBED_COLS - 1) / CLEW_EMBED_COLS, R(embed_grad_task), &job, x->n_slots, x->cancel);
}
