/* Interventions: set, add or scale a part of a site's value; of a tangent too. */
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

/* x (op)= value over the selected part of the last axis. x: [width] */
static void R(edit_vector)(real *x, const real *value, const R(edit_job) * job) {
  const clew_edit *e = job->e;
  const ptrdiff_t step = job->s->edit.gradient && e->kind == CLEW_EDIT_SET ? 0 : e->strides[3];
  const bool add = e->kind == CLEW_EDIT_ADD || e->kind == CLEW_EDIT_TANGENT;
#define EDIT(at, with)                                                                                                 \
  for (size_t n = 0; n < job->n_neurons; n++) {                                                                        \
    real *to = x + (at);                                                                                               \
    const real v = value[(ptrdiff_t)n * step];                                                                         \
    *to = (with);                                                                                                      \
  }
  if (e->neurons == NULL && e->kind == CLEW_EDIT_SET) {
    EDIT(n, v)
  } else if (e->neurons == NULL && add) {
    EDIT(n, *to + v)
  } else if (e->neurons == NULL) {
    EDIT(n, *to * v)
  } else if (e->kind == CLEW_EDIT_SET) {
    EDIT(e->neurons[n], v)
  } else if (add) {
    EDIT(e->neurons[n], *to + v)
  } else {
    EDIT(e->neurons[n], *to * v)
  }
#undef EDIT
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

/* Where the last axis of a head begins. */
static size_t R(edit_at)(const R(edit_job) * job, size_t seq, ptrdiff_t row, size_t head) {
  const size_t queries = job->s->rowset == 0 ? (size_t)job->x->plan->longest : 1;
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
    if (job->s->edit.gradient && e->kind == CLEW_EDIT_SET) { /* what is set does not depend on what was there */
      static const real zero = 0;
      for (size_t h = 0; h < job->n_heads; h++) {
        R(edit_vector)(job->out + R(edit_at)(job, seq, row, e->heads != NULL ? (size_t)e->heads[h] : h), &zero, job);
      }
      continue;
    }
    const real *value = (const real *)e->value + (ptrdiff_t)b * e->strides[0] + (ptrdiff_t)p * e->strides[1];
    for (size_t h = 0; h < job->n_heads; h++) {
      const size_t head = e->heads != NULL ? (size_t)e->heads[h] : h;
      R(edit_vector)(job->out + R(edit_at)(job, seq, row, head), value + (ptrdiff_t)h * e->strides[2], job);
    }
  }
}

void R(clew_op_edit)(const clew_exec *x, const clew_step *s) {
  const clew_buffer *out = &x->plan->buffers[s->edit.out];
  R(edit_job) job = {.x = x, .s = s, .e = &x->plan->edits[s->edit.edit], .square = out->square};
  job.out = clew_buffer_data(x, s->edit.out);
  if (s->edit.in == CLEW_NONE) { /* all of it is set, but for padding and other row sets' rows */
    if (job.square) {
      memset(job.out, 0, out->bytes);
    }
  } else if (s->edit.out != s->edit.in) {
    memcpy(job.out, clew_buffer_data(x, s->edit.in), out->bytes);
  }
  if (job.e->kind == CLEW_EDIT_TANGENT && !s->edit.gradient) { /* the value itself stays */
    return;
  }
  clew_site_axes(&x->model->config, job.e->site, (size_t)x->plan->most_keys, &job.heads, &job.width);
  job.n_heads = job.e->heads != NULL ? job.e->n_heads : job.heads;
  job.n_neurons = job.e->neurons != NULL ? job.e->n_neurons : job.width;
  job.n_positions = job.e->positions != NULL ? job.e->n_positions : (size_t)x->plan->longest;
  job.n_items = (job.e->batch != NULL ? job.e->n_batch : (size_t)x->plan->n_seq) * job.n_positions;
  job.per_task = clew_rows_per_task(job.n_heads * job.n_neurons);
  clew_pool_for((job.n_items + job.per_task - 1) / job.per_task, R(edit_task), &job, x->n_slots, x->cancel);
}
