/* Interventions: set, add or scale a part of a site's value; of a tangent too. */
#include <math.h>
#include <string.h>

#include "exec.h"

typedef struct R(edit_job) {
  const clew_exec *x;
  const clew_step *s;
  const clew_edit *e;
  real *out;
  bool square;
  size_t heads, width;                    /* axes of the site */
  size_t n_positions, n_heads, n_neurons; /* selected */
  size_t n_items, per_task;               /* (sequence, position) pairs */
} R(edit_job);

/* x (op)= value over the selected part of the last axis, up to `end`: of keys, those that the sequence has. x: [width]
 */
static void R(edit_vector)(real *x, const real *value, size_t end, const R(edit_job) * job) {
  const clew_edit *e = job->e;
  const ptrdiff_t step = job->s->edit.gradient && e->kind == CLEW_EDIT_SET ? 0 : e->strides[3];
  const bool add = e->kind == CLEW_EDIT_ADD || e->kind == CLEW_EDIT_TANGENT;
  const size_t whole = clew_min(job->n_neurons, end);
#define EDIT(with)                                                                                                     \
  for (size_t n = 0; n < whole; n++) {                                                                                 \
    real *to = x + n;                                                                                                  \
    const real v = value[(ptrdiff_t)n * step];                                                                         \
    *to = (with);                                                                                                      \
  }
#define EDIT_CHOSEN(with)                                                                                              \
  for (size_t n = 0; n < job->n_neurons; n++) {                                                                        \
    if ((size_t)e->neurons[n] < end) {                                                                                 \
      real *to = x + e->neurons[n];                                                                                    \
      const real v = value[(ptrdiff_t)n * step];                                                                       \
      *to = (with);                                                                                                    \
    }                                                                                                                  \
  }
  if (e->neurons == NULL && e->kind == CLEW_EDIT_SET) {
    EDIT(v)
  } else if (e->neurons == NULL && add) {
    EDIT(*to + v)
  } else if (e->neurons == NULL) {
    EDIT(*to * v)
  } else if (e->kind == CLEW_EDIT_SET) {
    EDIT_CHOSEN(v)
  } else if (add) {
    EDIT_CHOSEN(*to + v)
  } else {
    EDIT_CHOSEN(*to * v)
  }
#undef EDIT
#undef EDIT_CHOSEN
}

/* Row of the buffer that holds a position of a sequence, −1 where none does. Of a square: the query's number. */
static ptrdiff_t R(edit_row)(const R(edit_job) * job, size_t seq, int32_t pos) {
  const clew_plan *plan = job->x->plan;
  const clew_rowset *rows = &plan->rows[job->s->rowset];
  const int32_t row0 = rows->row0[seq], n = rows->row0[seq + 1] - row0, at = pos - rows->pos[row0];
  if (at < 0 || at >= n) {
    return -1;
  }
  if (job->square) {
    return at;
  }
  return plan->buffers[job->s->edit.out].scattered ? (ptrdiff_t)seq * plan->longest + at : row0 + at;
}

/* Where the last axis of a sequence ends: keys that it does not have are padding, and stay 0. */
static size_t R(edit_end)(const R(edit_job) * job, size_t seq) {
  if (!job->square) {
    return job->width;
  }
  const clew_rowset *rows = &job->x->plan->rows[job->s->rowset];
  return (size_t)rows->pos[rows->row0[seq + 1] - 1] + 1;
}

/* Where the last axis of a head begins. */
static size_t R(edit_at)(const R(edit_job) * job, size_t seq, ptrdiff_t row, size_t head) {
  const size_t queries = (size_t)job->x->plan->rows[job->s->rowset].longest;
  const size_t vector =
      job->square ? (seq * job->heads + head) * queries + (size_t)row : (size_t)row * job->heads + head;
  return vector * job->width;
}

static void R(edit_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(edit_job) *job = ctx;
  const clew_edit *e = job->e;
  const clew_plan *plan = job->x->plan;
  for (size_t i = index * job->per_task; i < clew_min((index + 1) * job->per_task, job->n_items); i++) {
    const size_t b = i / job->n_positions, p = i % job->n_positions;
    const size_t seq = e->batch != NULL ? (size_t)e->batch[b] : b;
    const int32_t pos = e->positions != NULL ? e->positions[i] : clew_past(plan, seq) + (int32_t)p;
    const ptrdiff_t row = R(edit_row)(job, seq, pos);
    if (row < 0) {
      continue;
    }
    const size_t end = R(edit_end)(job, seq);
    if (job->s->edit.gradient && e->kind == CLEW_EDIT_SET) { /* what is set does not depend on what was there */
      static const real zero = 0;
      for (size_t h = 0; h < job->n_heads; h++) {
        R(edit_vector)
        (job->out + R(edit_at)(job, seq, row, e->heads != NULL ? (size_t)e->heads[h] : h), &zero, end, job);
      }
      continue;
    }
    const real *value = (const real *)e->value + (ptrdiff_t)b * e->strides[0] + (ptrdiff_t)p * e->strides[1];
    for (size_t h = 0; h < job->n_heads; h++) {
      const size_t head = e->heads != NULL ? (size_t)e->heads[h] : h;
      R(edit_vector)(job->out + R(edit_at)(job, seq, row, head), value + (ptrdiff_t)h * e->strides[2], end, job);
    }
  }
}

/* Scores of keys that a sequence does not have, where all that it has are set: no query sees them. */
static void R(hide_padding)(const R(edit_job) * job) {
  const clew_plan *plan = job->x->plan;
  const clew_rowset *rows = &plan->rows[job->s->rowset];
  for (size_t seq = 0; seq < (size_t)plan->n_seq; seq++) {
    const size_t end = R(edit_end)(job, seq), n = (size_t)(rows->row0[seq + 1] - rows->row0[seq]);
    for (size_t i = 0; end < job->width && i < n * job->heads; i++) {
      real *scores = job->out + R(edit_at)(job, seq, (ptrdiff_t)(i % n), i / n);
      for (size_t k = end; k < job->width; k++) {
        scores[k] = -(real)INFINITY;
      }
    }
  }
}

void R(clew_op_edit)(const clew_exec *x, const clew_step *s) {
  const clew_buffer *out = &x->plan->buffers[s->edit.out];
  R(edit_job) job = {.x = x, .s = s, .e = &x->plan->edits[s->edit.edit], .square = out->square};
  job.out = clew_buffer_data(x, s->edit.out);
  clew_site_axes(&x->model->config, job.e->site, (size_t)x->plan->most_keys, &job.heads, &job.width);
  if (s->edit.in == CLEW_NONE) { /* all of it is set, but for padding and other row sets' rows */
    if (job.square) {
      memset(job.out, 0, out->bytes);
      if (job.e->site == CLEW_ATTN_SCORES && !s->edit.gradient) {
        R(hide_padding)(&job);
      }
    }
  } else if (s->edit.out != s->edit.in) {
    memcpy(job.out, clew_buffer_data(x, s->edit.in), out->bytes);
  }
  if (job.e->kind == CLEW_EDIT_TANGENT && !s->edit.gradient) { /* the value itself stays */
    return;
  }
  job.n_heads = job.e->heads != NULL ? job.e->n_heads : job.heads;
  job.n_neurons = job.e->neurons != NULL ? job.e->n_neurons : job.width;
  job.n_positions = job.e->positions != NULL ? job.e->n_positions : (size_t)x->plan->longest;
  job.n_items = (job.e->batch != NULL ? job.e->n_batch : (size_t)x->plan->n_seq) * job.n_positions;
  job.per_task = clew_rows_per_task(job.n_heads * job.n_neurons);
  clew_pool_for((job.n_items + job.per_task - 1) / job.per_task, R(edit_task), &job, x->n_slots, x->cancel);
}
