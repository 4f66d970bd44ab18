/* Operations on rows: embedding, norms, rotary positions, sums, and moving rows to where they are wanted. */
#include <string.h>

#include "exec.h"

/* Every operation here does the same for each row: a job is its buffers and the rows a task takes. */
typedef struct R(row_job) {
  const clew_exec *x;
  const clew_step *s;
  size_t n_rows, per_task;
} R(row_job);

static void R(for_rows)(const clew_exec *x, const clew_step *s, size_t n_rows, size_t cols, clew_task task) {
  R(row_job) job = {x, s, n_rows, clew_rows_per_task(cols)};
  clew_pool_for((n_rows + job.per_task - 1) / job.per_task, task, &job, x->n_slots, x->cancel);
}

#define ROWS_OF_TASK(job, index, begin, end)                                                                           \
  const size_t begin = (index) * (job)->per_task, end = clew_min(begin + (job)->per_task, (job)->n_rows)

/* ---- Embedding ---------------------------------------------------------------------------------------------- */

/* out: [d]; w: [rows, d] any layout */
static void R(matrix_row)(real *out, const clew_matrix *w, size_t row, real scale) {
  const real *from = (const real *)w->data + (ptrdiff_t)row * w->rs;
  for (size_t i = 0; i < w->n; i++) {
    out[i] = scale * from[(ptrdiff_t)i * w->cs];
  }
}

static void R(embed_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(row_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_config *c = &x->model->config;
  const size_t d = (size_t)c->d_model;
  real *embed = clew_buffer_data(x, job->s->embed.embed);
  real *pos = clew_buffer_data(x, job->s->embed.pos);
  real *sum = clew_buffer_data(x, job->s->embed.sum);
  ROWS_OF_TASK(job, index, begin, end);
  for (size_t r = begin; r < end; r++) {
    real *to = embed || sum ? (embed ? embed : sum) + r * d : NULL; /* NULL: positions alone */
    if (to != NULL && x->plan->from_embeddings) {
      memcpy(to, (const real *)x->input->embeddings + r * d, d * sizeof *to);
    } else if (to != NULL) {
      R(matrix_row)(to, &x->model->W_E, (size_t)x->input->tokens[r], (real)c->embed_scale);
    }
    if (c->position == CLEW_POSITION_LEARNED) {
      const size_t row = (size_t)(x->plan->rows[0].pos[r] + c->pos_offset);
      const real *p = (const real *)x->model->W_pos.data + (ptrdiff_t)row * x->model->W_pos.rs;
      const ptrdiff_t step = x->model->W_pos.cs;
      for (size_t i = 0; i < d; i++) {
        const real value = p[(ptrdiff_t)i * step];
        if (pos != NULL) {
          pos[r * d + i] = value;
        }
        if (sum != NULL) {
          sum[r * d + i] = to[i] + value;
        }
      }
    } else if (sum != NULL && to != sum + r * d) {
      memcpy(sum + r * d, to, d * sizeof *to);
    }
  }
}

void R(clew_op_embed)(const clew_exec *x, const clew_step *s) {
  R(for_rows)(x, s, x->plan->rows[0].n_rows, (size_t)x->model->config.d_model, R(embed_task));
}

void R(clew_op_input)(const clew_exec *x, const clew_step *s) {
  memcpy(clew_buffer_data(x, s->input.out), x->plan->from_embeddings ? x->input->embeddings : x->input->vectors,
         x->plan->rows[0].n_rows * clew_cols(x, s->input.out) * sizeof(real));
}

/* ---- Norms -------------------------------------------------------------------------------------------------- */

static void R(norm_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(row_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t groups = s->norm.groups, d = clew_cols(x, s->norm.in) / groups;
  ROWS_OF_TASK(job, index, begin, end);
  real *normalized = clew_buffer_data(x, s->norm.normalized), *scale = clew_buffer_data(x, s->norm.scale);
  const size_t at = begin * groups * d;
  R(clew_get_kernels)
  ()->norm((real *)clew_buffer_data(x, s->norm.out) + at, normalized ? normalized + at : NULL,
           scale ? scale + begin : NULL, (const real *)clew_buffer_data(x, s->norm.in) + at, s->norm.weights->w,
           s->norm.weights->b, (end - begin) * groups, d, (real)x->model->config.eps, s->norm.centre);
}

void R(clew_op_norm)(const clew_exec *x, const clew_step *s) {
  R(for_rows)(x, s, x->plan->rows[s->rowset].n_rows, clew_cols(x, s->norm.in), R(norm_task));
}

/* ---- Rotary positions --------------------------------------------------------------------------------------- */

static void R(rotary_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(row_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  const bool query = s->rotary.q != CLEW_NONE;
  const int32_t in = query ? s->rotary.q : s->rotary.k, out = query ? s->rotary.q_out : s->rotary.k_out;
  const size_t cols = clew_cols(x, in), e = (size_t)c->d_head, n_rot = (size_t)c->n_rot;
  const size_t table = (size_t)s->rotary.base * x->rotary->n_pos * (n_rot / 2);
  ROWS_OF_TASK(job, index, begin, end);
  R(clew_get_kernels)
  ()->rotary((real *)clew_buffer_data(x, out) + begin * cols, (const real *)clew_buffer_data(x, in) + begin * cols,
             x->plan->rows[s->rowset].pos + begin, (const real *)x->rotary->cosine + table,
             (const real *)x->rotary->sine + table, end - begin, cols / e, e, n_rot, c->rotary_adjacent);
}

void R(clew_op_rotary)(const clew_exec *x, const clew_step *s) {
  const int32_t in = s->rotary.q != CLEW_NONE ? s->rotary.q : s->rotary.k;
  R(for_rows)(x, s, x->plan->rows[s->rowset].n_rows, clew_cols(x, in), R(rotary_task));
}

/* ---- Sums and copies ---------------------------------------------------------------------------------------- */

static void R(add_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(row_job) *job = ctx;
  const size_t cols = clew_cols(job->x, job->s->add.out);
  real *out = clew_buffer_data(job->x, job->s->add.out);
  const real *a = clew_buffer_data(job->x, job->s->add.a), *b = clew_buffer_data(job->x, job->s->add.b);
  ROWS_OF_TASK(job, index, begin, end);
  for (size_t i = begin * cols; i < end * cols; i++) {
    out[i] = a[i] + b[i];
  }
}

void R(clew_op_add)(const clew_exec *x, const clew_step *s) {
  R(for_rows)(x, s, x->plan->rows[s->rowset].n_rows, clew_cols(x, s->add.out), R(add_task));
}

static void R(spread_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(row_job) *job = ctx;
  const size_t heads = job->s->spread.heads, d = clew_cols(job->x, job->s->spread.in);
  real *out = clew_buffer_data(job->x, job->s->spread.out);     /* [rows, heads, d] */
  const real *in = clew_buffer_data(job->x, job->s->spread.in); /* [rows, d] */
  ROWS_OF_TASK(job, index, begin, end);
  for (size_t r = begin; r < end; r++) {
    for (size_t h = 0; h < heads; h++) {
      memcpy(out + (r * heads + h) * d, in + r * d, d * sizeof *out);
    }
  }
}

void R(clew_op_spread)(const clew_exec *x, const clew_step *s) {
  R(for_rows)(x, s, x->plan->rows[s->rowset].n_rows, clew_cols(x, s->spread.out), R(spread_task));
}

void R(clew_op_gather)(const clew_exec *x, const clew_step *s) {
  const size_t cols = clew_cols(x, s->gather.in);
  real *out = clew_buffer_data(x, s->gather.out);
  const real *in = clew_buffer_data(x, s->gather.in);
  const int32_t *all = x->plan->rows[0].row0, *last = x->plan->rows[1].row0;
  for (int32_t i = 0; i < x->plan->n_seq; i++) { /* the last rows of each sequence */
    const size_t n = (size_t)(last[i + 1] - last[i]);
    memcpy(out + (size_t)last[i] * cols, in + ((size_t)all[i + 1] - n) * cols, n * cols * sizeof *out);
  }
}

/* Chosen queries of a square to an output [n_seq, h, n_positions, most_keys]. */
static void R(store_square)(const clew_exec *x, const clew_step *s) {
  const clew_plan *plan = x->plan;
  const size_t heads = (size_t)x->model->config.n_heads, most = (size_t)plan->most_keys;
  real *out = clew_output_data(x, s->store.output, s->layer);
  const real *in = clew_buffer_data(x, s->store.in); /* [n_seq, h, longest, most_keys] */
  for (size_t i = 0; i < (size_t)plan->n_seq * heads * plan->n_positions; i++) {
    const size_t seq = i / plan->n_positions / heads;
    const int32_t pos = clew_kept_position(plan, seq, i % plan->n_positions);
    if (pos < 0) {
      memset(out + i * most, 0, most * sizeof *out);
    } else {
      memcpy(out + i * most, in + (i / plan->n_positions * (size_t)plan->longest + (size_t)pos) * most,
             most * sizeof *out);
    }
  }
}

static void R(store_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(row_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_plan *plan = x->plan;
  const size_t cols = plan->outputs[s->store.output].cols;
  real *out = clew_output_data(x, s->store.output, s->layer); /* [n_seq, n_positions, cols] */
  const real *in = clew_buffer_data(x, s->store.in);          /* [rows, cols] */
  ROWS_OF_TASK(job, index, begin, end);
  for (size_t i = begin; i < end; i++) {
    const size_t seq = i / plan->n_positions;
    const int32_t pos = clew_kept_position(plan, seq, i % plan->n_positions);
    if (pos < 0) {
      memset(out + i * cols, 0, cols * sizeof *out);
    } else {
      memcpy(out + i * cols, in + (size_t)(plan->rows[0].row0[seq] + pos) * cols, cols * sizeof *out);
    }
  }
}

void R(clew_op_store)(const clew_exec *x, const clew_step *s) {
  if (x->plan->buffers[s->store.in].square) {
    R(store_square)(x, s);
    return;
  }
  if (x->plan->buffers[s->store.in].rowset == 1) { /* [n_seq, 1, cols] */
    memcpy(clew_output_data(x, s->store.output, s->layer), clew_buffer_data(x, s->store.in),
           x->plan->buffers[s->store.in].cols * (size_t)x->plan->n_seq * sizeof(real));
    return;
  }
  const size_t n_rows = (size_t)x->plan->n_seq * x->plan->n_positions;
  R(for_rows)(x, s, n_rows, x->plan->outputs[s->store.output].cols, R(store_task));
}
