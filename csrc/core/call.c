/* Showing a site's live value to a function of the caller's, as the padded array that a capture of it would be.
 *
 * The function gets memory of its own: what it keeps stays as it was, whatever the run does afterwards. */
#include <string.h>

#include "exec.h"

/* Rows of a buffer to or from [n_seq, longest, cols]; the array gets zeros where a sequence has ended. */
static void copy_rows(const clew_exec *x, const clew_step *s, int32_t id, char *array, bool to_array) {
  const clew_plan *plan = x->plan;
  const clew_buffer *b = &plan->buffers[id];
  char *buffer = clew_buffer_data(x, id);
  const clew_rowset *rows = &plan->rows[s->rowset];
  const size_t item = clew_dtype_size(plan->model->config.dtype), row = b->cols * item;
  const size_t longest = (size_t)plan->rows[s->rowset].longest;
  if (b->square || b->scattered) {
    memcpy(to_array ? array : buffer, to_array ? buffer : array,
           (size_t)plan->n_seq * longest * row * (b->square ? (size_t)plan->model->config.n_heads : 1));
    return;
  }
  for (size_t seq = 0; seq < (size_t)plan->n_seq; seq++) {
    const size_t n = (size_t)(rows->row0[seq + 1] - rows->row0[seq]);
    char *padded = array + seq * longest * row, *packed = buffer + (size_t)rows->row0[seq] * row;
    if (to_array) {
      memcpy(padded, packed, n * row);
      memset(padded + n * row, 0, (longest - n) * row);
    } else {
      memcpy(packed, padded, n * row);
    }
  }
}

/* What a function left, into the buffer: what it wrote behind a sequence's end stays outside. */
static void take_rows(const clew_exec *x, const clew_step *s, char *array) {
  const clew_plan *plan = x->plan;
  const clew_buffer *b = &plan->buffers[s->edit.out];
  if (!b->square && !b->scattered) {
    copy_rows(x, s, s->edit.out, array, false);
    return;
  }
  char *buffer = clew_buffer_data(x, s->edit.out);
  if (s->edit.out != s->edit.in) { /* the padding */
    memcpy(buffer, clew_buffer_data(x, s->edit.in), b->bytes);
  }
  const clew_rowset *rows = &plan->rows[s->rowset];
  const size_t row = b->cols * clew_dtype_size(plan->model->config.dtype);
  const size_t heads = b->square ? (size_t)plan->model->config.n_heads : 1;
  const size_t longest = (size_t)plan->rows[s->rowset].longest;
  for (size_t seq = 0; seq < (size_t)plan->n_seq; seq++) {
    const size_t n = (size_t)(rows->row0[seq + 1] - rows->row0[seq]);
    const size_t keys = (size_t)rows->pos[rows->row0[seq + 1] - 1] + 1;
    const size_t kept = b->square ? keys * clew_dtype_size(plan->model->config.dtype) : row;
    for (size_t i = 0; i < heads * n; i++) {
      const size_t at = ((seq * heads + i / n) * longest + i % n) * row;
      memcpy(buffer + at, array + at, kept);
    }
  }
}

clew_status clew_op_call(const clew_exec *x, const clew_step *s, clew_error *err) {
  const clew_plan *plan = x->plan;
  const clew_config *c = &plan->model->config;
  const clew_edit *e = &plan->edits[s->edit.edit];
  const char *axes = clew_sites[e->site].axes;
  size_t shape[4], bytes = clew_dtype_size(c->dtype);
  const int32_t n_dims = (int32_t)strlen(axes);
  for (int32_t d = 0; d < n_dims; d++) {
    shape[d] = axes[d] == 'b'   ? (size_t)plan->n_seq
               : axes[d] == 'p' ? (size_t)plan->rows[s->rowset].longest
               : axes[d] == 'k' ? (size_t)plan->most_keys
               : axes[d] == 'v' ? (size_t)c->d_vocab_out
                                : clew_axis_length(c, axes[d]);
    bytes *= shape[d];
  }
  clew_slab *value = clew_slab_new(bytes);
  if (value == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu bytes to show %s to a function", bytes,
                     clew_sites[e->site].name);
  }
  copy_rows(x, s, s->edit.in, clew_slab_data(value), true);
  const void *result = NULL;
  const clew_site_ref ref = {e->site, e->layer};
  const int failed = x->input->call(x->input->call_ctx, &result, value, e->call, ref, n_dims, shape);
  if (!failed) { /* the cast: it is only read */
    take_rows(x, s, result != NULL ? (char *)(uintptr_t)result : clew_slab_data(value));
  }
  clew_slab_release(value);
  return failed ? clew_fail(err, CLEW_ERROR_CANCELLED, "a function that edits %s failed", clew_sites[e->site].name)
                : CLEW_OK;
}

clew_status clew_op_objective_call(const clew_exec *x, const clew_step *s, clew_error *err) {
  const clew_plan *plan = x->plan;
  const clew_config *c = &plan->model->config;
  const size_t shape[3] = {(size_t)plan->n_seq, (size_t)plan->rows[s->rowset].longest, (size_t)c->d_vocab_out};
  const size_t bytes = shape[0] * shape[1] * shape[2] * clew_dtype_size(c->dtype);
  clew_slab *logits = clew_slab_new(bytes);
  if (logits == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: %zu bytes to show logits to a metric", bytes);
  }
  copy_rows(x, s, s->objective.in, clew_slab_data(logits), true);
  const void *result = NULL;
  const clew_site_ref ref = {CLEW_LOGITS, 0};
  const int failed = x->input->call(x->input->call_ctx, &result, logits, -1, ref, 3, shape);
  if (!failed && result != NULL) { /* the cast: it is only read */
    copy_rows(x, s, s->objective.out, (char *)(uintptr_t)result, false);
  }
  clew_slab_release(logits);
  if (failed) {
    return clew_fail(err, CLEW_ERROR_CANCELLED, "the metric's function failed");
  }
  return result != NULL ? CLEW_OK : clew_fail(err, CLEW_ERROR_VALUE, "the metric gave no gradient by the logits");
}
