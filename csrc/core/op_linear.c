/* Products with weights. An output tile is finished (bias, activation, residual) while it is in cache. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "exec.h"

typedef struct R(linear_job) {
  const clew_exec *x;
  const clew_step *s;
  bool join; /* the halves of k; before, they are multiplied, and whole products done */
  clew_tiling tiling[3];
  size_t first[4]; /* first task of each part, and the number of all */
} R(linear_job);

/* A tile's rows and columns; columns count through the groups side by side. */
typedef struct R(tile) {
  size_t row, rows, col, cols, group, group_col;
} R(tile);

static void R(multiply)(real *c, ptrdiff_t ld_c, const clew_exec *x, const clew_matrix *w, int32_t in,
                        const R(tile) * t) {
  const real *a = (const real *)clew_buffer_data(x, in) + t->row * w->k;
  const real *b = (const real *)w->data + (ptrdiff_t)t->group * w->gs + (ptrdiff_t)t->group_col * w->cs;
  (void)R(clew_gemm)(c, ld_c, 1, a, (ptrdiff_t)w->k, 1, b, w->rs, w->cs, t->rows, t->cols, w->k, 1, 0);
}

/* Rows of a tile to their padded places. out: [n_seq, longest, cols of the buffer] */
static void R(scatter)(const clew_exec *x, int32_t out, const real *tile, const R(tile) * t) {
  const clew_rowset *rows = &x->plan->rows[0];
  const size_t cols = clew_cols(x, out);
  size_t seq = 0;
  for (size_t i = 0; i < t->rows; i++) {
    const int32_t row = (int32_t)(t->row + i);
    while (rows->row0[seq + 1] <= row) {
      seq++;
    }
    const size_t to = seq * (size_t)x->plan->longest + (size_t)(row - rows->row0[seq]);
    memcpy((real *)clew_buffer_data(x, out) + to * cols + t->col, tile + i * t->cols, t->cols * sizeof *tile);
  }
}

/* out = the sums of both halves of k. out: [t.rows, t.cols], halves: [rows, 2, n] */
static void R(join)(real *out, ptrdiff_t ld, const clew_exec *x, const clew_part *p, const R(tile) * t) {
  const size_t n = p->w->n;
  for (size_t i = 0; i < t->rows; i++) {
    const real *first = (const real *)clew_buffer_data(x, p->halves) + (t->row + i) * 2 * n + t->col;
    for (size_t j = 0; j < t->cols; j++) {
      out[(ptrdiff_t)i * ld + (ptrdiff_t)j] = first[j] + first[n + j];
    }
  }
}

static void R(finish)(const clew_exec *x, const clew_part *p, real *out, ptrdiff_t ld, const R(tile) * t) {
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  const real *bias = p->b ? (const real *)p->b + t->col : NULL;
  switch (p->epilogue) {
  case CLEW_EPILOGUE_BIAS:
    if (bias != NULL) {
      kernels->bias_add(NULL, 0, out, ld, bias, NULL, 0, t->rows, t->cols);
    }
    break;
  case CLEW_EPILOGUE_ACT:
  case CLEW_EPILOGUE_GATE: {
    const size_t cols = clew_cols(x, p->post), at = t->row * cols + t->col;
    real *post = (real *)clew_buffer_data(x, p->post) + at;
    real *gate = NULL;
    if (p->epilogue == CLEW_EPILOGUE_GATE) {
      gate = (real *)clew_buffer_data(x, p->out2) + at;
      R(multiply)(gate, (ptrdiff_t)cols, x, p->w2, p->in, t);
      if (p->b2 != NULL) {
        kernels->bias_add(NULL, 0, gate, (ptrdiff_t)cols, (const real *)p->b2 + t->col, NULL, 0, t->rows, t->cols);
      }
    }
    kernels->bias_act(post, (ptrdiff_t)cols, out, ld, bias, gate, (ptrdiff_t)cols, t->rows, t->cols,
                      x->model->config.act);
    break;
  }
  case CLEW_EPILOGUE_RESIDUAL: {
    const size_t cols = clew_cols(x, p->sum), at = t->row * cols + t->col;
    kernels->bias_add((real *)clew_buffer_data(x, p->sum) + at, (ptrdiff_t)cols, out, ld, bias,
                      (const real *)clew_buffer_data(x, p->resid) + at, (ptrdiff_t)cols, t->rows, t->cols);
    break;
  }
  case CLEW_EPILOGUE_SOFTCAP:
    if (bias != NULL) {
      kernels->bias_add(NULL, 0, out, ld, bias, NULL, 0, t->rows, t->cols);
    }
    kernels->softcap(out, ld, t->rows, t->cols, (real)x->model->config.logit_softcap);
    break;
  }
}

/* Task `index` of those of one part: all groups' tiles. */
static R(tile) R(tile_at)(const R(linear_job) * job, int32_t part, size_t index) {
  const clew_matrix *w = job->s->linear.part[part].w;
  const clew_tiling *tiling = &job->tiling[part];
  R(tile) t = {.group = index / (tiling->n_rows * tiling->n_cols)};
  index %= tiling->n_rows * tiling->n_cols;
  t.row = index % tiling->n_rows * tiling->rows; /* neighbours share the weights' columns */
  t.group_col = index / tiling->n_rows * tiling->cols;
  t.rows = clew_min(tiling->rows, job->x->plan->rows[job->s->rowset].n_rows - t.row);
  t.cols = clew_min(tiling->cols, w->n - t.group_col);
  t.col = t.group * w->n + t.group_col;
  return t;
}

static int32_t R(part_of)(const R(linear_job) * job, size_t index) {
  int32_t part = 0;
  while (index >= job->first[part + 1]) {
    part++;
  }
  return part;
}

static void R(linear_task)(void *ctx, size_t index, unsigned slot) {
  const R(linear_job) *job = ctx;
  const clew_exec *x = job->x;
  const int32_t part = R(part_of)(job, index);
  const clew_part *p = &job->s->linear.part[part];
  index -= job->first[part];
  if (p->halves != CLEW_NONE && !job->join) { /* halves of one tile follow each other */
    const R(tile) t = R(tile_at)(job, part, index / 2);
    const size_t n = p->w->n, half = index % 2, k = p->w->k, from = half * (k / 2);
    real *out = (real *)clew_buffer_data(x, p->halves) + (t.row * 2 + half) * n + t.col;
    const real *a = (const real *)clew_buffer_data(x, p->in) + t.row * k + from;
    const real *b = (const real *)p->w->data + (ptrdiff_t)from * p->w->rs + (ptrdiff_t)t.col;
    (void)R(clew_gemm)(out, (ptrdiff_t)(2 * n), 1, a, (ptrdiff_t)k, 1, b, p->w->rs, 1, t.rows, t.cols,
                       half ? k - from : k / 2, 1, 0);
    return;
  }
  const R(tile) t = R(tile_at)(job, part, index);
  const bool scattered = x->plan->buffers[p->out].scattered;
  const size_t ld = scattered ? t.cols : clew_cols(x, p->out);
  real *out = scattered ? (real *)(x->slots + slot * x->plan->slot_bytes)
                        : (real *)clew_buffer_data(x, p->out) + t.row * ld + t.col;
  if (p->halves != CLEW_NONE) {
    R(join)(out, (ptrdiff_t)ld, x, p, &t);
  } else {
    R(multiply)(out, (ptrdiff_t)ld, x, p->w, p->in, &t);
  }
  R(finish)(x, p, out, (ptrdiff_t)ld, &t);
  if (scattered) {
    R(scatter)(x, p->out, out, &t);
  }
}

/* The places that no row reaches. */
static void R(clear_scattered)(const clew_exec *x, int32_t out) {
  const size_t cols = clew_cols(x, out), longest = (size_t)x->plan->longest;
  for (size_t seq = 0; seq < (size_t)x->plan->n_seq; seq++) {
    const size_t length = (size_t)clew_length(x->plan, seq);
    memset((real *)clew_buffer_data(x, out) + (seq * longest + length) * cols, 0,
           (longest - length) * cols * sizeof(real));
  }
}

void R(clew_op_linear)(const clew_exec *x, const clew_step *s) {
  R(linear_job) job = {.x = x, .s = s};
  const size_t n_rows = x->plan->rows[s->rowset].n_rows;
  for (int32_t i = 0; i < 3; i++) {
    job.first[i + 1] = job.first[i];
    if (i < s->linear.n_parts) {
      const clew_part *p = &s->linear.part[i];
      const bool halved = p->halves != CLEW_NONE;
      job.tiling[i] = clew_tile(n_rows, p->w->n, halved ? (x->n_slots + 1) / 2 : x->n_slots);
      job.first[i + 1] += (halved ? 2 : 1) * p->w->groups * job.tiling[i].n_rows * job.tiling[i].n_cols;
      if (x->plan->buffers[p->out].scattered) {
        R(clear_scattered)(x, p->out);
      }
    }
  }
  clew_pool_for(job.first[3], R(linear_task), &job, x->n_slots, x->cancel);

  job.join = true;
  for (int32_t i = 0; i < 3; i++) {
    job.first[i + 1] = job.first[i];
    if (i < s->linear.n_parts && s->linear.part[i].halves != CLEW_NONE) {
      const size_t n = s->linear.part[i].w->n;
      job.tiling[i] = (clew_tiling){.rows = n_rows, .cols = 256, .n_rows = 1, .n_cols = (n + 255) / 256};
      job.first[i + 1] += job.tiling[i].n_cols;
    }
  }
  if (job.first[3] > 0) {
    clew_pool_for(job.first[3], R(linear_task), &job, x->n_slots, x->cancel);
  }
}

/* ---- hook_result: every head's own share -------------------------------------------------------------------- */

static void R(result_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(linear_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_config *c = &x->model->config;
  const clew_matrix *w = job->s->result.w; /* [(h e), d] */
  const size_t heads = (size_t)c->n_heads, e = (size_t)c->d_head, d = (size_t)c->d_model;
  const clew_tiling *tiling = &job->tiling[0];
  const size_t head = index / tiling->n_rows, row = index % tiling->n_rows * tiling->rows;
  const size_t rows = clew_min(tiling->rows, x->plan->rows[job->s->rowset].n_rows - row);
  real *out = (real *)clew_buffer_data(x, job->s->result.out) + (row * heads + head) * d; /* [rows, h, d] */
  const real *z = (const real *)clew_buffer_data(x, job->s->result.z) + (row * heads + head) * e;
  const real *b = (const real *)w->data + (ptrdiff_t)(head * e) * w->rs;
  (void)R(clew_gemm)(out, (ptrdiff_t)(heads * d), 1, z, (ptrdiff_t)(heads * e), 1, b, w->rs, w->cs, rows, d, e, 1, 0);
}

void R(clew_op_result)(const clew_exec *x, const clew_step *s) {
  R(linear_job) job = {.x = x, .s = s};
  const size_t n_rows = x->plan->rows[s->rowset].n_rows;
  job.tiling[0] = (clew_tiling){.rows = 256, .n_rows = (n_rows + 255) / 256};
  clew_pool_for(job.tiling[0].n_rows * (size_t)x->model->config.n_heads, R(result_task), &job, x->n_slots, x->cancel);
}

/* ---- Loss: the unembedding a block at a time ---------------------------------------------------------------- */

typedef struct R(loss_job) {
  const clew_exec *x;
  const clew_step *s;
  size_t n_rows, row_blocks, col_blocks;
} R(loss_job);

/* Logits of some rows and of one block of the vocabulary. tile: [rows, cols] */
static R(tile) R(logits_tile)(real *tile, const R(loss_job) * job, size_t row, size_t block) {
  const clew_exec *x = job->x;
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  const clew_matrix *w = &x->model->W_U;
  const size_t col = block * CLEW_LOSS_COLS;
  const R(tile) t = {.row = row,
                     .rows = clew_min(CLEW_LOSS_ROWS, job->n_rows - row),
                     .col = col,
                     .cols = clew_min(CLEW_LOSS_COLS, w->n - col),
                     .group_col = col};
  R(multiply)(tile, (ptrdiff_t)t.cols, x, w, job->s->loss.in, &t);
  if (x->model->b_U != NULL) {
    kernels->bias_add(NULL, 0, tile, (ptrdiff_t)t.cols, (const real *)x->model->b_U + col, NULL, 0, t.rows, t.cols);
  }
  if (x->model->config.logit_softcap > 0) {
    kernels->softcap(tile, (ptrdiff_t)t.cols, t.rows, t.cols, (real)x->model->config.logit_softcap);
  }
  return t;
}

/* Maximum, sum of exponentials and the target's logit of one block of the vocabulary. */
static void R(loss_block_task)(void *ctx, size_t index, unsigned slot) {
  const R(loss_job) *job = ctx;
  const clew_exec *x = job->x;
  const size_t row = index % job->row_blocks * CLEW_LOSS_ROWS, block = index / job->row_blocks;
  real *tile = (real *)(x->slots + slot * x->plan->slot_bytes);
  real *maximum = tile + (size_t)CLEW_LOSS_ROWS * CLEW_LOSS_COLS, *sum = maximum + CLEW_LOSS_ROWS;
  const R(tile) t = R(logits_tile)(tile, job, row, block);
  R(clew_get_kernels)()->log_sum(maximum, sum, tile, (ptrdiff_t)t.cols, t.rows, t.cols);
  real *partial = clew_buffer_data(x, job->s->loss.partial); /* [rows, blocks, 3] */
  for (size_t i = 0; i < t.rows; i++) {
    real *p = partial + ((row + i) * job->col_blocks + block) * 3;
    p[0] = maximum[i], p[1] = sum[i], p[2] = 0;
    if (row + i + 1 < job->n_rows) {
      const size_t target = (size_t)x->input->tokens[row + i + 1]; /* of another sequence behind a last row: unused */
      if (target >= t.col && target < t.col + t.cols) {
        p[2] = tile[i * t.cols + target - t.col];
      }
    }
  }
}

static void R(loss_rows_task)(void *ctx, size_t seq, unsigned slot) {
  (void)slot;
  const R(loss_job) *job = ctx;
  const clew_plan *plan = job->x->plan;
  const real *partial = clew_buffer_data(job->x, job->s->loss.partial);
  const size_t columns = (size_t)plan->longest - 1, length = (size_t)clew_length(plan, seq);
  real *out = (real *)clew_output_data(job->x, job->s->loss.output, 0) + seq * columns;
  for (size_t i = 0; i < columns; i++) {
    if (i + 1 >= length) {
      out[i] = 0;
      continue;
    }
    const real *p = partial + ((size_t)plan->rows[0].row0[seq] + i) * job->col_blocks * 3;
    double most = -INFINITY, sum = 0, target = 0;
    for (size_t b = 0; b < job->col_blocks; b++) {
      most = (double)p[3 * b] > most ? (double)p[3 * b] : most;
      target += (double)p[3 * b + 2];
    }
    for (size_t b = 0; b < job->col_blocks; b++) {
      sum += (double)p[3 * b + 1] * exp((double)p[3 * b] - most);
    }
    out[i] = (real)(most + log(sum) - target);
  }
}

void R(clew_op_loss)(const clew_exec *x, const clew_step *s) {
  R(loss_job) job = {.x = x, .s = s, .n_rows = x->plan->rows[s->rowset].n_rows};
  job.row_blocks = (job.n_rows + CLEW_LOSS_ROWS - 1) / CLEW_LOSS_ROWS;
  job.col_blocks = (x->model->W_U.n + CLEW_LOSS_COLS - 1) / CLEW_LOSS_COLS;
  clew_pool_for(job.row_blocks * job.col_blocks, R(loss_block_task), &job, x->n_slots, x->cancel);
  clew_pool_for((size_t)x->plan->n_seq, R(loss_rows_task), &job, x->n_slots, x->cancel);
}

/* ---- Metrics: one number for each sequence, of its last logits -------------------------------------------------- */

/* A block's maximum, sum of exponentials, and the target's logit or Σ p (log p − logit). */
static void R(metric_block_task)(void *ctx, size_t index, unsigned slot) {
  const R(loss_job) *job = ctx;
  const clew_exec *x = job->x;
  const size_t block = index / job->row_blocks, row = index % job->row_blocks * CLEW_LOSS_ROWS;
  real *tile = (real *)(x->slots + slot * x->plan->slot_bytes);
  real *maximum = tile + (size_t)CLEW_LOSS_ROWS * CLEW_LOSS_COLS, *sum = maximum + CLEW_LOSS_ROWS;
  const R(tile) t = R(logits_tile)(tile, job, row, block);
  R(clew_get_kernels)()->log_sum(maximum, sum, tile, (ptrdiff_t)t.cols, t.rows, t.cols);
  double *partial = clew_buffer_data(x, job->s->loss.partial); /* [n_seq, blocks, 3] */
  const size_t vocab = x->model->W_U.n;
  for (size_t i = 0; i < t.rows; i++) {
    const real *logits = tile + i * t.cols; /* [t.cols] */
    double *p = partial + ((row + i) * job->col_blocks + block) * 3;
    p[0] = (double)maximum[i], p[1] = (double)sum[i], p[2] = 0;
    const size_t pick = (size_t)x->input->picks[2 * (row + i)];
    if (x->plan->logits == CLEW_LOGITS_KL) {
      const double *log_p = x->input->reference + pick * vocab + t.col;
      for (size_t j = 0; j < t.cols; j++) {
        p[2] += log_p[j] == -INFINITY ? 0 : exp(log_p[j]) * (log_p[j] - (double)logits[j]);
      }
    } else if (pick >= t.col && pick < t.col + t.cols) {
      p[2] = (double)logits[pick - t.col];
    }
  }
}

/* One logit. in: [d_model] */
static double R(one_logit)(const clew_model *model, const real *in, size_t token) {
  const clew_matrix *w = &model->W_U;
  const real *column = (const real *)w->data + (ptrdiff_t)token * w->cs;
  double sum = model->b_U != NULL ? (double)((const real *)model->b_U)[token] : 0;
  for (size_t i = 0; i < w->k; i++) {
    sum += (double)in[i] * (double)column[(ptrdiff_t)i * w->rs];
  }
  const double cap = model->config.logit_softcap;
  return cap > 0 ? cap * tanh(sum / cap) : sum;
}

void R(clew_op_metric)(const clew_exec *x, const clew_step *s) {
  const size_t n_seq = (size_t)x->plan->n_seq, d = clew_cols(x, s->loss.in);
  double *out = clew_output_data(x, s->loss.output, 0); /* [n_seq] */
  if (x->plan->logits == CLEW_LOGITS_DIFFERENCE) {
    const real *in = clew_buffer_data(x, s->loss.in); /* [n_seq, d_model] */
    for (size_t i = 0; i < n_seq; i++) {
      out[i] = R(one_logit)(x->model, in + i * d, (size_t)x->input->picks[2 * i]) -
               R(one_logit)(x->model, in + i * d, (size_t)x->input->picks[2 * i + 1]);
    }
    return;
  }
  R(loss_job) job = {.x = x, .s = s, .n_rows = n_seq};
  job.row_blocks = (n_seq + CLEW_LOSS_ROWS - 1) / CLEW_LOSS_ROWS;
  job.col_blocks = (x->model->W_U.n + CLEW_LOSS_COLS - 1) / CLEW_LOSS_COLS;
  clew_pool_for(job.row_blocks * job.col_blocks, R(metric_block_task), &job, x->n_slots, x->cancel);
  const double *partial = clew_buffer_data(x, s->loss.partial);
  for (size_t i = 0; i < n_seq; i++) {
    const double *p = partial + i * job.col_blocks * 3;
    double most = -INFINITY, sum = 0, third = 0;
    for (size_t b = 0; b < job.col_blocks; b++) {
      most = p[3 * b] > most ? p[3 * b] : most;
      third += p[3 * b + 2];
    }
    for (size_t b = 0; b < job.col_blocks; b++) {
      sum += p[3 * b + 1] * exp(p[3 * b] - most);
    }
    const double normaliser = most + log(sum);
    out[i] = x->plan->logits == CLEW_LOGITS_KL ? third + normaliser : third - normaliser;
  }
}
