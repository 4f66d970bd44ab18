/* Compiling a request into steps: shapes, rows, outputs, buffers. Nothing is computed here. */
#include "blas.h"
#include "builder.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/* ---- Growing lists ------------------------------------------------------------------------------------------ */

clew_step *clew_add_step(clew_builder *b, clew_op op, int32_t layer, int32_t rowset) {
  clew_plan *plan = b->plan;
  if (plan->n_steps == plan->step_room) {
    const size_t room = plan->step_room ? 2 * plan->step_room : 64;
    clew_step *grown = clew_resize(plan->steps, room, sizeof *grown);
    if (grown == NULL) {
      b->out_of_memory = true;
      memset(&b->no_step, 0, sizeof b->no_step);
      return &b->no_step;
    }
    plan->steps = grown;
    plan->step_room = room;
  }
  clew_step *s = &plan->steps[plan->n_steps++];
  memset(s, 0, sizeof *s);
  s->op = op, s->layer = layer, s->rowset = rowset;
  return s;
}

int32_t clew_add_buffer(clew_builder *b, int32_t rowset, size_t cols) {
  clew_plan *plan = b->plan;
  if (plan->n_buffers == plan->buffer_room) {
    const size_t room = plan->buffer_room ? 2 * plan->buffer_room : 128;
    clew_buffer *grown = clew_resize(plan->buffers, room, sizeof *grown);
    if (grown == NULL) {
      b->out_of_memory = true;
      return plan->n_buffers > 0 ? 0 : CLEW_NONE;
    }
    plan->buffers = grown;
    plan->buffer_room = room;
  }
  size_t bytes;
  if (__builtin_mul_overflow(plan->rows[rowset].n_rows, cols, &bytes) ||
      __builtin_mul_overflow(bytes, b->item, &bytes)) {
    b->out_of_memory = true;
    bytes = 0;
  }
  plan->buffers[plan->n_buffers] =
      (clew_buffer){.cols = cols, .bytes = bytes, .rowset = rowset, .slab = CLEW_NONE, .born = CLEW_NONE};
  return (int32_t)plan->n_buffers++;
}

int32_t clew_add_flat(clew_builder *b, size_t values) {
  const int32_t id = clew_add_buffer(b, 1, values);
  if (id != CLEW_NONE) {
    b->plan->buffers[id].bytes = values * b->item;
  }
  return id;
}

int32_t clew_add_square(clew_builder *b, int32_t rowset) {
  clew_plan *plan = b->plan;
  const int32_t id = clew_add_buffer(b, rowset, (size_t)plan->most_keys);
  if (id == CLEW_NONE) {
    return id;
  }
  clew_buffer *buffer = &plan->buffers[id];
  buffer->square = true;
  const size_t queries = (size_t)plan->rows[rowset].longest;
  if (__builtin_mul_overflow(queries * (size_t)plan->most_keys, (size_t)plan->n_seq, &buffer->bytes) ||
      __builtin_mul_overflow(buffer->bytes, (size_t)b->config->n_heads * b->item, &buffer->bytes)) {
    b->out_of_memory = true;
    buffer->bytes = 0;
  }
  return id;
}

int32_t clew_add_like(clew_builder *b, int32_t buffer) {
  const clew_buffer from = b->plan->buffers[buffer];
  return from.square ? clew_add_square(b, from.rowset) : clew_add_buffer(b, from.rowset, from.cols);
}

bool clew_is_split(const clew_plan *plan, clew_site site, int32_t layer) {
  for (size_t i = 0; i < plan->n_edits; i++) {
    if (plan->edits[i].site == site && plan->edits[i].layer == layer) {
      return true;
    }
  }
  const bool own = site >= CLEW_ATTN_IN && site <= CLEW_V_INPUT; /* a branch's or a head's own residual: looking */
  const bool looked_at = own || site == CLEW_MLP_IN;             /* at it does not make it one */
  return clew_is_asked(plan, site, layer) && !(looked_at && plan->objective == CLEW_OBJECTIVE_TANGENTS);
}

bool clew_is_asked(const clew_plan *plan, clew_site site, int32_t layer) {
  for (size_t i = 0; i < plan->n_wrt; i++) {
    if (plan->wrt[i].site == site && plan->wrt[i].layer == layer) {
      return true;
    }
  }
  return false;
}

/* ---- Outputs ------------------------------------------------------------------------------------------------ */

int32_t clew_find_output(const clew_plan *plan, clew_site site, int32_t layer) {
  for (size_t i = 0; i < plan->n_outputs; i++) {
    if (plan->outputs[i].info.site == site && !plan->outputs[i].info.gradient) {
      return plan->outputs[i].at[layer] == CLEW_NONE ? CLEW_NONE : (int32_t)i;
    }
  }
  return CLEW_NONE;
}

int32_t clew_find_gradient(const clew_plan *plan, clew_site site, int32_t layer) {
  for (size_t i = 0; i < plan->n_outputs; i++) {
    if (plan->outputs[i].info.site == site && plan->outputs[i].info.gradient) {
      return plan->outputs[i].at[layer] == CLEW_NONE ? CLEW_NONE : (int32_t)i;
    }
  }
  return CLEW_NONE;
}

size_t clew_output_offset(const clew_kept *output, int32_t layer) {
  return output->info.offset + (size_t)output->at[layer] * output->layer_bytes;
}

static size_t site_axis(const clew_builder *b, char axis) {
  const clew_config *c = b->config;
  switch (axis) {
  case 'b':
    return (size_t)b->plan->n_seq;
  case 'p':
    return b->plan->n_positions;
  case 'k':
    return (size_t)b->plan->most_keys;
  case 'v':
    return (size_t)c->d_vocab_out;
  default:
    return clew_axis_length(c, axis);
  }
}

static size_t site_cols(const clew_builder *b, clew_site site) {
  size_t cols = 1;
  for (const char *axis = clew_sites[site].axes; *axis; axis++) {
    cols *= strchr("bp", *axis) ? 1 : site_axis(b, *axis);
  }
  return cols;
}

/* Declares the output of one site with the layers that at[] marks; its slab is decided later. */
static clew_status add_output(clew_builder *b, clew_site site, const int32_t *at, bool gradient, clew_error *err) {
  clew_plan *plan = b->plan;
  clew_kept *o = &plan->outputs[plan->n_outputs];
  const int32_t n = clew_sites[site].layered ? b->config->n_layers : 1;
  int32_t *layers = clew_alloc((size_t)n, sizeof *layers);
  o->at = clew_alloc((size_t)n, sizeof *o->at);
  o->info.layers = layers;
  plan->n_outputs++; /* from here the plan frees it */
  if (o->at == NULL || layers == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning the capture of %s", clew_sites[site].name);
  }
  o->info.site = site;
  o->info.gradient = gradient;
  for (int32_t l = 0; l < n; l++) {
    o->at[l] = CLEW_NONE;
    if (at[l]) {
      layers[o->info.n_layers] = l;
      o->at[l] = o->info.n_layers++;
    }
  }
  const char *axes = clew_sites[site].axes;
  o->info.n_dims = (int32_t)strlen(axes);
  size_t values = b->item;
  bool overflow = false;
  for (int32_t d = 0; d < o->info.n_dims; d++) {
    size_t length = site_axis(b, axes[d]);
    if (site == CLEW_LOGITS && axes[d] == 'p') {
      length = clew_last_only(plan->logits) ? 1 : (size_t)plan->longest;
    } else if (site == CLEW_LOGITS && axes[d] == 'b' && clew_last_only(plan->logits)) {
      length = plan->rows[1].n_rows; /* of one last position each as many as sequences */
    }
    o->info.shape[d] = length;
    overflow = __builtin_mul_overflow(values, length, &values) || overflow;
  }
  o->cols = site_cols(b, site);
  if (site == CLEW_LOGITS && plan->logits == CLEW_LOGITS_LOSS) {
    o->info.n_dims = 2, o->info.shape[1] = (size_t)plan->longest - 1, o->cols = 1;
    values = b->item * o->info.shape[0] * o->info.shape[1];
  }
  if (site == CLEW_LOGITS && clew_is_metric(plan->logits)) {
    o->info.n_dims = 1, o->info.is_double = true, o->cols = 1;
    values = sizeof(double) * o->info.shape[0];
  }
  o->layer_bytes = values;
  overflow = __builtin_mul_overflow(values, (size_t)o->info.n_layers, &values) || overflow;
  if (overflow || values > PTRDIFF_MAX / 2) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "capturing %s needs more bytes than can be addressed",
                     clew_sites[site].name);
  }
  return CLEW_OK;
}

static clew_kept *site_output(clew_plan *plan, clew_site site) {
  for (size_t i = 0; i < plan->n_outputs; i++) {
    if (plan->outputs[i].info.site == site && !plan->outputs[i].info.gradient) {
      return &plan->outputs[i];
    }
  }
  return NULL;
}

static bool same_layers(const clew_kept *a, const clew_kept *b) {
  return a->info.n_layers == b->info.n_layers &&
         memcmp(a->info.layers, b->info.layers, (size_t)a->info.n_layers * sizeof(int32_t)) == 0;
}

static bool split_anywhere(const clew_builder *b, clew_site site) {
  for (int32_t l = 0; l < b->config->n_layers; l++) {
    if (clew_is_split(b->plan, site, l)) {
      return true;
    }
  }
  return false;
}

/* Gives every output a slab. Sites that are one value (resid_post of a block and resid_pre of the next; a branch's own
 * copy of the residual) share theirs, as nothing can tell them apart. */
static clew_status assign_slabs(clew_builder *b, int32_t n_run, clew_error *err) {
  clew_plan *plan = b->plan;
  plan->slab_bytes = clew_alloc(plan->n_outputs + 1, sizeof *plan->slab_bytes);
  if (plan->slab_bytes == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning %zu outputs", plan->n_outputs);
  }
  const clew_site twin[][2] = {{CLEW_ATTN_IN, CLEW_RESID_PRE},
                               {CLEW_MLP_IN, b->config->parallel ? CLEW_RESID_PRE : CLEW_RESID_MID},
                               {CLEW_RESID_POST, CLEW_RESID_PRE}};
  for (size_t i = 0; i < plan->n_outputs; i++) { /* order of sites.def: the older twin comes first */
    clew_kept *o = &plan->outputs[i];
    const clew_kept *older = NULL;
    for (size_t t = 0; t < sizeof twin / sizeof *twin && b->in_place && !o->info.gradient; t++) {
      const clew_kept *other = twin[t][0] == o->info.site ? site_output(plan, twin[t][1]) : NULL;
      const bool all = o->info.site != CLEW_RESID_POST || o->info.n_layers == n_run;
      const clew_site parts = o->info.site == CLEW_RESID_POST ? CLEW_RESID_PRE : o->info.site;
      if (other != NULL && all && same_layers(o, other) && !split_anywhere(b, parts)) {
        older = other;
      }
    }
    if (older != NULL) {
      o->info.slab = older->info.slab;
      if (o->info.site == CLEW_RESID_POST) {
        o->info.offset = o->layer_bytes;
        plan->slab_bytes[o->info.slab] += o->layer_bytes;
      }
    } else {
      o->info.slab = plan->n_slabs++;
      plan->slab_bytes[o->info.slab] = o->layer_bytes * (size_t)o->info.n_layers;
    }
  }
  return CLEW_OK;
}

/* ---- The request -------------------------------------------------------------------------------------------- */

static void site_name(char *name, size_t size, clew_site_ref ref) {
  if (clew_sites[ref.site].layered) {
    snprintf(name, size, "blocks.%d.%s", ref.layer, clew_sites[ref.site].name);
  } else {
    snprintf(name, size, "%s", clew_sites[ref.site].name);
  }
}

static clew_status check_lengths(const clew_model *model, const clew_request *r, clew_error *err) {
  const clew_config *c = &model->config;
  if (r->n_seq < 1) {
    return clew_fail(err, CLEW_ERROR_TOKEN, "empty batch: there is no prompt to run");
  }
  size_t total = 0;
  for (int32_t i = 0; i < r->n_seq; i++) {
    if (r->lengths[i] < 1) {
      return clew_fail(err, CLEW_ERROR_TOKEN, "prompt %d is empty", i);
    }
    const int64_t past = r->past != NULL ? r->past[i] : 0;
    if (past < 0 || past + r->lengths[i] > INT32_MAX || (r->past_seq != NULL && r->past_seq[i] < 0)) {
      return clew_fail(err, CLEW_ERROR_VALUE, "prompt %d has %d tokens behind %lld earlier ones", i, r->lengths[i],
                       (long long)past);
    }
    if (past > 0 && !c->causal) {
      return clew_fail(err, CLEW_ERROR_UNSUPPORTED,
                       "earlier positions cannot be reused: this model's attention is not causal");
    }
    if (c->position == CLEW_POSITION_LEARNED && r->start_layer < 0 &&
        (size_t)past + (size_t)r->lengths[i] + (size_t)c->pos_offset > model->W_pos.k) {
      return clew_fail(err, CLEW_ERROR_TOKEN, "prompt %d has %zu tokens, but the model has %zu learned positions", i,
                       (size_t)past + (size_t)r->lengths[i], model->W_pos.k - (size_t)c->pos_offset);
    }
    if (r->last != NULL && (r->last[i] < 1 || r->last[i] > r->lengths[i])) {
      return clew_fail(err, CLEW_ERROR_VALUE, "logits of the last %d positions of prompt %d, which has %d", r->last[i],
                       i, r->lengths[i]);
    }
    total += (size_t)r->lengths[i];
  }
  if (total > INT32_MAX) {
    return clew_fail(err, CLEW_ERROR_TOKEN, "%zu tokens in one run; at most %d", total, INT32_MAX);
  }
  return CLEW_OK;
}

static clew_status make_rows(clew_plan *plan, const clew_request *r, clew_error *err) {
  const size_t n_seq = (size_t)r->n_seq;
  plan->n_seq = r->n_seq;
  size_t total = 0, total_last = 0;
  for (size_t i = 0; i < n_seq; i++) {
    total += (size_t)r->lengths[i];
    total_last += r->last != NULL ? (size_t)r->last[i] : 1;
    const int32_t past = r->past != NULL ? r->past[i] : 0;
    plan->longest = r->lengths[i] > plan->longest ? r->lengths[i] : plan->longest;
    plan->most_keys = past + r->lengths[i] > plan->most_keys ? past + r->lengths[i] : plan->most_keys;
    plan->ragged = plan->ragged || r->lengths[i] != r->lengths[0];
  }
  for (int set = 0; set < 2; set++) {
    clew_rowset *rows = &plan->rows[set];
    rows->n_rows = set == 0 ? total : total_last;
    rows->pos = clew_alloc(rows->n_rows, sizeof *rows->pos);
    rows->row0 = clew_alloc(n_seq + 1, sizeof *rows->row0);
    if (rows->pos == NULL || rows->row0 == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a plan of %zu tokens", total);
    }
    int32_t row = 0;
    for (size_t i = 0; i < n_seq; i++) {
      rows->row0[i] = row;
      const int32_t past = r->past != NULL ? r->past[i] : 0, last = r->last != NULL ? r->last[i] : 1;
      const int32_t count = set == 0 ? r->lengths[i] : last;
      rows->longest = count > rows->longest ? count : rows->longest;
      for (int32_t p = r->lengths[i] - count; p < r->lengths[i]; p++) {
        rows->pos[row++] = past + p;
      }
    }
    rows->row0[n_seq] = row;
  }
  if (r->past != NULL) {
    plan->past = clew_alloc(n_seq, sizeof *plan->past);
    plan->past_seq = clew_alloc(n_seq, sizeof *plan->past_seq);
    if (plan->past == NULL || plan->past_seq == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a plan of %zu tokens", total);
    }
    for (size_t i = 0; i < n_seq; i++) {
      plan->past[i] = r->past[i];
      plan->past_seq[i] = r->past_seq != NULL ? r->past_seq[i] : (int32_t)i;
    }
  }
  plan->append = r->append;
  plan->n_positions = (size_t)plan->longest;
  if (r->positions != NULL) {
    plan->n_positions = r->n_positions;
    plan->positions = clew_alloc(r->n_positions + 1, sizeof *plan->positions);
    if (plan->positions == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for %zu positions", r->n_positions);
    }
    for (size_t i = 0; i < r->n_positions; i++) {
      if (r->positions[i] >= plan->longest || r->positions[i] < -plan->longest) {
        return clew_fail(err, CLEW_ERROR_SHAPE, "position %d of a prompt of %d tokens", r->positions[i], plan->longest);
      }
      plan->positions[i] = r->positions[i];
    }
  }
  return CLEW_OK;
}

static clew_status make_outputs(clew_builder *b, const clew_request *r, int32_t first, int32_t last, clew_error *err) {
  const size_t n_layers = (size_t)b->config->n_layers, stride = n_layers + 1;
  int32_t *marks = clew_alloc((size_t)CLEW_N_SITES * stride, sizeof *marks);
  bool used[CLEW_N_SITES] = {false};
  clew_status status = CLEW_OK;
  b->plan->outputs = clew_alloc(2 * CLEW_N_SITES, sizeof *b->plan->outputs);
  if (marks == NULL || b->plan->outputs == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning the capture");
    goto done;
  }
  for (size_t i = 0; i < r->n_capture; i++) {
    const clew_site_ref ref = r->capture[i];
    char name[96];
    if ((unsigned)ref.site >= CLEW_N_SITES) {
      status = clew_fail(err, CLEW_ERROR_SITE, "capture %zu is no site: %d", i, (int)ref.site);
      goto done;
    }
    site_name(name, sizeof name, ref);
    if (!clew_model_has_site(b->model, ref.site)) {
      status = clew_fail(err, CLEW_ERROR_SITE, "%s: this model has no such site", name);
      goto done;
    }
    if (ref.layer < 0 || ref.layer >= (clew_sites[ref.site].layered ? (int32_t)n_layers : 1)) {
      status = clew_fail(err, CLEW_ERROR_SITE, "%s: the model has %zu layers", name, n_layers);
      goto done;
    }
    const bool embedding = ref.site == CLEW_EMBED || ref.site == CLEW_POS_EMBED;
    const bool computed = clew_sites[ref.site].layered ? ref.layer >= first && ref.layer <= last
                          : embedding                  ? r->start_layer < 0
                                                       : r->stop_layer < 0;
    if (!computed) {
      status = clew_fail(err, CLEW_ERROR_SITE, "%s is not computed: the run covers blocks %d to %d%s", name, first,
                         last, embedding ? " and starts behind the embedding" : "");
      goto done;
    }
    if (ref.site == CLEW_LOGITS && r->logits == CLEW_LOGITS_NONE) {
      status = clew_fail(err, CLEW_ERROR_SITE, "logits are captured, but the run is asked for none");
      goto done;
    }
    marks[(size_t)ref.site * stride + (size_t)ref.layer] = 1;
    used[ref.site] = true;
  }
  if (r->logits != CLEW_LOGITS_NONE && r->objective == CLEW_OBJECTIVE_NONE) {
    used[CLEW_LOGITS] = true;
    marks[(size_t)CLEW_LOGITS * stride] = 1;
  }
  for (int site = 0; site < CLEW_N_SITES && status == CLEW_OK; site++) {
    if (used[site]) {
      status = add_output(b, (clew_site)site, marks + (size_t)site * stride, false, err);
    }
  }
  memset(marks, 0, (size_t)CLEW_N_SITES * stride * sizeof *marks);
  for (size_t i = 0; i < b->plan->n_wrt; i++) {
    marks[(size_t)b->plan->wrt[i].site * stride + (size_t)b->plan->wrt[i].layer] = 1;
  }
  for (int site = 0; site < CLEW_N_SITES && status == CLEW_OK; site++) {
    bool wanted = false;
    for (size_t l = 0; l < stride; l++) {
      wanted = wanted || marks[(size_t)site * stride + l];
    }
    if (wanted) {
      status = add_output(b, (clew_site)site, marks + (size_t)site * stride, true, err);
    }
  }
  if (status == CLEW_OK) {
    status = assign_slabs(b, last - first + 1, err);
  }
done:
  clew_free(marks);
  return status;
}

/* ---- Edits -------------------------------------------------------------------------------------------------- */

/* The plan's own copy of indices, all below n. */
static clew_status copy_indices(const int32_t **out, const int32_t *from, size_t count, size_t n, const char *what,
                                const char *name, clew_error *err) {
  *out = NULL;
  if (from == NULL) {
    return CLEW_OK;
  }
  int32_t *copy = clew_alloc(count + 1, sizeof *copy);
  if (copy == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for an edit of %s", name);
  }
  *out = copy;
  for (size_t i = 0; i < count; i++) {
    copy[i] = from[i];
    if (from[i] < 0 || (size_t)from[i] >= n) {
      return clew_fail(err, CLEW_ERROR_SHAPE, "edit of %s: %s %d, but there are %zu", name, what, from[i], n);
    }
  }
  return CLEW_OK;
}

void clew_site_axes(const clew_config *c, clew_site site, size_t most_keys, size_t *heads, size_t *last) {
  const char *axes = clew_sites[site].axes;
  *heads = strchr(axes, 'h') ? (size_t)c->n_heads : strchr(axes, 'g') ? (size_t)c->n_kv_heads : 1;
  const char end = axes[strlen(axes) - 1];
  *last = end == 'k' ? most_keys : end == 'v' ? (size_t)c->d_vocab_out : clew_axis_length(c, end);
}

/* Does what an edit reads lie within its value? */
static clew_status check_value(const clew_plan *plan, const clew_edit *e, size_t heads, size_t width, const char *name,
                               clew_error *err) {
  const size_t n[4] = {e->batch != NULL ? e->n_batch : (size_t)plan->n_seq,
                       e->positions != NULL ? e->n_positions : (size_t)plan->longest,
                       e->heads != NULL ? e->n_heads : heads, e->neurons != NULL ? e->n_neurons : width};
  if (e->n_values == 0 || n[0] * n[1] * n[2] * n[3] == 0) {
    return CLEW_OK;
  }
  size_t last = 0;
  bool outside = false;
  for (int d = 0; d < 4; d++) {
    size_t step;
    outside = outside || e->strides[d] < 0 || __builtin_mul_overflow(n[d] - 1, (size_t)e->strides[d], &step) ||
              __builtin_add_overflow(last, step, &last);
  }
  return !outside && last < e->n_values
             ? CLEW_OK
             : clew_fail(err, CLEW_ERROR_SHAPE,
                         "edit of %s: a value of %zu numbers with strides [%td, %td, %td, %td] does not reach the "
                         "selected part [%zu, %zu, %zu, %zu]",
                         name, e->n_values, e->strides[0], e->strides[1], e->strides[2], e->strides[3], n[0], n[1],
                         n[2], n[3]);
}

static clew_status copy_edit(clew_plan *plan, const clew_edit *from, const clew_request *r, int32_t first, int32_t last,
                             clew_error *err) {
  clew_edit *e = &plan->edits[plan->n_edits++]; /* from here the plan frees what it points to */
  *e = *from;
  e->batch = e->heads = e->neurons = e->positions = NULL;
  const clew_config *c = &plan->model->config;
  if ((unsigned)e->site >= CLEW_N_SITES || (unsigned)e->kind > CLEW_EDIT_TANGENT) {
    return clew_fail(err, CLEW_ERROR_SITE, "an edit of kind %d at site %d", (int)e->kind, (int)e->site);
  }
  char name[96];
  site_name(name, sizeof name, (clew_site_ref){e->site, e->layer});
  const bool layered = clew_sites[e->site].layered;
  if (!clew_model_has_site(plan->model, e->site)) {
    return clew_fail(err, CLEW_ERROR_SITE, "edit of %s: this model has no such site", name);
  }
  const bool embedding = e->site == CLEW_EMBED || e->site == CLEW_POS_EMBED;
  const bool computed = layered ? e->layer >= first && e->layer <= last
                                : e->layer == 0 && (embedding ? r->start_layer < 0 : r->stop_layer < 0);
  if (!computed) {
    return clew_fail(err, CLEW_ERROR_SITE, "edit of %s: it is not computed, the run covers blocks %d to %d%s", name,
                     first, last, embedding ? " and starts behind the embedding" : "");
  }
  if (e->site == CLEW_LOGITS && (r->logits == CLEW_LOGITS_NONE || r->logits >= CLEW_LOGITS_LOSS)) {
    return clew_fail(err, CLEW_ERROR_SITE, "edit of logits: the run keeps none");
  }
  if (e->kind == CLEW_EDIT_TANGENT && r->objective != CLEW_OBJECTIVE_TANGENTS) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a tangent at %s: the run takes no derivatives forward", name);
  }
  if (e->kind != CLEW_EDIT_CALL && e->value == NULL) {
    return clew_fail(err, CLEW_ERROR_VALUE, "edit of %s: no value", name);
  }
  size_t heads, width;
  clew_site_axes(c, e->site, (size_t)plan->most_keys, &heads, &width);
  const size_t n_batch = from->batch != NULL ? from->n_batch : (size_t)plan->n_seq;
  clew_status status = check_value(plan, from, heads, width, name, err);
  status = status != CLEW_OK
               ? status
               : copy_indices(&e->batch, from->batch, from->n_batch, (size_t)plan->n_seq, "sequence", name, err);
  status = status != CLEW_OK ? status : copy_indices(&e->heads, from->heads, from->n_heads, heads, "head", name, err);
  status = status != CLEW_OK
               ? status
               : copy_indices(&e->neurons, from->neurons, from->n_neurons, width, "index of the last axis", name, err);
  status = status != CLEW_OK ? status
                             : copy_indices(&e->positions, from->positions, n_batch * from->n_positions, INT32_MAX,
                                            "position", name, err); /* those that are not computed are passed over */
  return status;
}

static clew_status check_wrt(const clew_plan *plan, clew_site_ref ref, const clew_request *r, int32_t first,
                             int32_t last, clew_error *err) {
  char name[96];
  if ((unsigned)ref.site >= CLEW_N_SITES) {
    return clew_fail(err, CLEW_ERROR_SITE, "a gradient by site %d: there is none", (int)ref.site);
  }
  site_name(name, sizeof name, ref);
  if (!clew_model_has_site(plan->model, ref.site)) {
    return clew_fail(err, CLEW_ERROR_SITE, "gradient by %s: this model has no such site", name);
  }
  const bool embedding = ref.site == CLEW_EMBED || ref.site == CLEW_POS_EMBED;
  if (clew_sites[ref.site].layered ? ref.layer < first || ref.layer > last
                                   : ref.layer != 0 || (embedding && r->start_layer >= 0)) {
    return clew_fail(err, CLEW_ERROR_SITE, "gradient by %s: it is not computed, the run covers blocks %d to %d", name,
                     first, last);
  }
  return CLEW_OK;
}

static clew_status copy_edits(clew_plan *plan, const clew_request *r, int32_t first, int32_t last, clew_error *err) {
  if (r->n_edits > 0) {
    plan->edits = clew_alloc(r->n_edits, sizeof *plan->edits);
    if (plan->edits == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for %zu edits", r->n_edits);
    }
  }
  for (size_t i = 0; i < r->n_edits; i++) {
    const clew_status status = copy_edit(plan, &r->edits[i], r, first, last, err);
    if (status != CLEW_OK) {
      return status;
    }
  }
  if (r->n_wrt > 0) {
    plan->wrt = clew_alloc(r->n_wrt, sizeof *plan->wrt);
    if (plan->wrt == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for %zu sites", r->n_wrt);
    }
    for (size_t i = 0; i < r->n_wrt; i++) {
      const clew_status status = check_wrt(plan, r->wrt[i], r, first, last, err);
      if (status != CLEW_OK) {
        return status;
      }
    }
    memcpy(plan->wrt, r->wrt, r->n_wrt * sizeof *plan->wrt);
    plan->n_wrt = r->n_wrt;
  }
  return CLEW_OK;
}

/* Few rows are done when the weights are read, and memory likes to be read in long rows. Those that are short are not
 * cut for the threads: each takes half of the rows. The sums are added the same way for any number of threads. */
static void halve_products(clew_builder *b) {
  clew_plan *plan = b->plan;
  for (size_t i = 0; i < plan->n_steps; i++) {
    clew_step *s = &plan->steps[i];
    for (int32_t j = 0; s->op == CLEW_OP_LINEAR && j < s->linear.n_parts; j++) {
      clew_part *p = &s->linear.part[j];
      if (plan->rows[s->rowset].n_rows <= CLEW_FEW_ROWS && p->w2 == NULL && p->w->groups == 1 && p->w->cs == 1 &&
          p->w->n <= CLEW_SHORT_ROW && p->w->k >= CLEW_LEAST_HALVED) {
        p->halves = clew_add_buffer(b, s->rowset, 2 * p->w->n);
      }
    }
  }
}

/* What each thread needs for itself: a block of scores, or a tile that cannot be computed where it goes. */
static size_t slot_bytes(const clew_builder *b) {
  const clew_plan *plan = b->plan;
  size_t most = 0;
  for (size_t i = 0; i < plan->n_steps; i++) {
    const clew_step *s = &plan->steps[i];
    size_t values = 0;
    if (s->op == CLEW_OP_ATTENTION || s->op == CLEW_OP_SCORES || s->op == CLEW_OP_WEIGH) {
      const bool whole =
          s->op == CLEW_OP_ATTENTION && (s->attention.scores != CLEW_NONE || s->attention.pattern != CLEW_NONE);
      const size_t longest = (size_t)plan->longest, all = (size_t)plan->most_keys;
      const size_t keys = whole || all < CLEW_KEY_BLOCK ? all : CLEW_KEY_BLOCK;
      const size_t queries = longest < CLEW_QUERY_BLOCK ? longest : CLEW_QUERY_BLOCK;
      values = queries * keys + 3 * CLEW_QUERY_BLOCK;
    } else if (s->op == CLEW_OP_ATTENTION_GRAD || s->op == CLEW_OP_SOFTMAX_GRAD) {
      const size_t queries = (size_t)plan->longest < CLEW_QUERY_BLOCK ? (size_t)plan->longest : CLEW_QUERY_BLOCK;
      values = 3 * queries * (size_t)plan->most_keys + 3 * CLEW_QUERY_BLOCK;
    } else if (s->op == CLEW_OP_LOSS || s->op == CLEW_OP_METRIC) {
      values = (size_t)CLEW_LOSS_ROWS * CLEW_LOSS_COLS + 2 * CLEW_LOSS_ROWS;
    } else if (s->op == CLEW_OP_LINEAR && s->linear.part[0].out != CLEW_NONE &&
               plan->buffers[s->linear.part[0].out].scattered) {
      const clew_tiling t = clew_tile(plan->rows[s->rowset].n_rows, s->linear.part[0].w->n, 0);
      values = t.rows * t.cols;
    }
    most = values > most ? values : most;
  }
  return (most * b->item + 4095) / 4096 * 4096;
}

clew_status clew_plan_new(clew_plan **out, const clew_model *model, const clew_request *r, clew_error *err) {
  *out = NULL;
  const clew_config *c = &model->config;
  if (r->start_layer >= c->n_layers + (c->n_layers == 0) || r->stop_layer >= c->n_layers ||
      (r->stop_layer >= 0 && r->stop_layer < r->start_layer)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "start_layer %d, stop_layer %d: the model has blocks 0 to %d",
                     r->start_layer, r->stop_layer, c->n_layers - 1);
  }
  if (r->stop_layer >= 0 && r->logits != CLEW_LOGITS_NONE) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a run that stops after block %d has no logits", r->stop_layer);
  }
  const bool tangents = r->objective == CLEW_OBJECTIVE_TANGENTS;
  if (tangents && (r->positions != NULL || (r->logits != CLEW_LOGITS_ALL && r->logits != CLEW_LOGITS_NONE))) {
    return clew_fail(err, CLEW_ERROR_VALUE, "derivatives forward are taken at all positions");
  }
  if (r->recompute && (!r->weight_gradients || r->n_wrt > 0 || r->n_edits > 0)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "recomputation is for gradients by weights alone, without edits");
  }
  if (tangents && r->weight_gradients) {
    return clew_fail(err, CLEW_ERROR_VALUE, "derivatives forward follow edits; there are none by weights");
  }
  if (r->objective != CLEW_OBJECTIVE_NONE && !tangents &&
      (r->stop_layer >= 0 || r->positions != NULL || (r->logits != CLEW_LOGITS_ALL && r->logits != CLEW_LOGITS_LAST))) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a gradient needs all positions and the logits of all or the last");
  }
  if (r->objective != CLEW_OBJECTIVE_NONE && (r->past != NULL || r->append)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a gradient cannot go behind cached keys and values");
  }
  if (r->objective == CLEW_OBJECTIVE_NONE && (r->n_wrt > 0 || r->weight_gradients)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a gradient needs an objective");
  }
  if (r->last != NULL && (r->logits != CLEW_LOGITS_LAST || r->n_capture > 0 || r->n_edits > 0 || r->n_wrt > 0 ||
                          r->objective != CLEW_OBJECTIVE_NONE)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "logits of several last positions are for plain runs that want the last");
  }
  clew_status status = check_lengths(model, r, err);
  if (status != CLEW_OK) {
    return status;
  }
  clew_plan *plan = clew_alloc(1, sizeof *plan);
  if (plan == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a plan");
  }
  const int32_t first = r->start_layer < 0 ? 0 : r->start_layer;
  const int32_t last = r->stop_layer < 0 ? c->n_layers - 1 : r->stop_layer;
  plan->model = model;
  plan->start_layer = r->start_layer;
  plan->from_embeddings = r->from_embeddings || r->start_layer >= 0;
  plan->logits = r->logits;
  plan->objective = r->objective;
  plan->weight_gradients = r->weight_gradients;
  status = make_rows(plan, r, err);
  status = status != CLEW_OK ? status : copy_edits(plan, r, first, last, err);
  clew_builder b = {.plan = plan, .model = model, .config = c, .item = clew_dtype_size(c->dtype)};
  b.in_place = !plan->ragged && plan->positions == NULL;
  b.ssa = r->objective != CLEW_OBJECTIVE_NONE;
  b.recompute = r->recompute;
  b.block_step = clew_alloc((size_t)c->n_layers + 1, sizeof *b.block_step);
  if (status == CLEW_OK && b.block_step == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a plan");
  }
  if (status == CLEW_OK) {
    status = make_outputs(&b, r, first, last, err);
  }
  if (status == CLEW_OK) {
    if (b.ssa) {
      status = clew_make_grads(&b, err);
    }
    clew_emit_forward(&b, r, first, last);
    if (b.ssa && status == CLEW_OK && !b.out_of_memory) {
      status = tangents ? clew_emit_tangents(&b, err) : clew_emit_backward(&b, b.logits, err);
    }
    if (status == CLEW_OK && !b.out_of_memory) {
      halve_products(&b);
    }
    if (b.out_of_memory && status == CLEW_OK) {
      status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning %zu tokens", plan->rows[0].n_rows);
    }
  }
  clew_free(b.block_step);
  if (status == CLEW_OK) {
    clew_plan_prune(plan);
    status = clew_plan_place(plan, err);
  }
  if (status != CLEW_OK) {
    clew_plan_free(plan);
    return status;
  }
  plan->slot_bytes = slot_bytes(&b);
  plan->table_positions = c->position == CLEW_POSITION_ROTARY ? (size_t)plan->most_keys : 0;
  for (size_t i = 0; i < plan->n_steps; i++) {
    plan->flops += clew_step_flops(plan, &plan->steps[i]);
  }
  *out = plan;
  return CLEW_OK;
}

void clew_plan_free(clew_plan *plan) {
  if (plan == NULL) {
    return;
  }
  for (size_t i = 0; i < plan->n_outputs; i++) {
    clew_free(plan->outputs[i].at);
    clew_free((void *)plan->outputs[i].info.layers);
  }
  for (int set = 0; set < 2; set++) {
    clew_free(plan->rows[set].pos);
    clew_free(plan->rows[set].row0);
  }
  for (size_t i = 0; i < plan->n_edits; i++) {
    clew_free((void *)plan->edits[i].batch);
    clew_free((void *)plan->edits[i].heads);
    clew_free((void *)plan->edits[i].neurons);
    clew_free((void *)plan->edits[i].positions);
  }
  clew_free(plan->edits);
  clew_free(plan->grads);
  clew_free(plan->wrt);
  clew_free(plan->where);
  clew_free(plan->past);
  clew_free(plan->past_seq);
  clew_free(plan->positions);
  clew_free(plan->outputs);
  clew_free(plan->slab_bytes);
  clew_slab_release(plan->scratch);
  clew_free(plan->steps);
  clew_free(plan->buffers);
  clew_free(plan);
}

/* ---- Questions ---------------------------------------------------------------------------------------------- */

size_t clew_plan_keep_bytes(const clew_plan *plan) {
  size_t bytes = 0;
  for (size_t i = 0; i < plan->n_slabs; i++) {
    bytes += plan->slab_bytes[i];
  }
  return bytes;
}

void clew_plan_trim(clew_plan *plan) {
  clew_slab_release(atomic_exchange(&plan->scratch, NULL)); /* a run under way has it in hand */
}

size_t clew_plan_scratch_bytes(const clew_plan *plan) {
  return plan->scratch_bytes + plan->slot_bytes * clew_get_threads();
}

double clew_plan_flops(const clew_plan *plan) { return plan->flops; }
size_t clew_plan_n_outputs(const clew_plan *plan) { return plan->n_outputs; }
const clew_output *clew_plan_output(const clew_plan *plan, size_t index) { return &plan->outputs[index].info; }
size_t clew_plan_n_slabs(const clew_plan *plan) { return plan->n_slabs; }
size_t clew_plan_slab_bytes(const clew_plan *plan, size_t index) { return plan->slab_bytes[index]; }
size_t clew_plan_n_steps(const clew_plan *plan) { return plan->n_steps; }

size_t clew_plan_n_weight_gradients(const clew_plan *plan) { return plan->n_grads; }
const clew_weight_gradient *clew_plan_weight_gradient(const clew_plan *plan, size_t index) {
  return &plan->grads[index].info;
}
size_t clew_plan_gradient_slab(const clew_plan *plan) { return plan->grad_slab; }
size_t clew_plan_n_objective_rows(const clew_plan *plan) {
  return plan->rows[plan->logits == CLEW_LOGITS_LAST ? 1 : 0].n_rows;
}

void clew_plan_describe(const clew_plan *plan, size_t index, char *text, size_t size) {
  static const char *const names[CLEW_N_OPS] = {"embed",        "input",
                                                "norm",         "linear",
                                                "rotary",       "attention",
                                                "result",       "add",
                                                "spread",       "gather",
                                                "store",        "metric",
                                                "loss",         "edit",
                                                "call",         "copy",
                                                "scale",        "normalize",
                                                "affine",       "heads",
                                                "sum_heads",    "act",
                                                "scores",       "softmax",
                                                "weigh",        "append",
                                                "objective",    "objective_call",
                                                "zero",         "add_into",
                                                "linear_dx",    "linear_dw",
                                                "act_grad",     "softcap_grad",
                                                "norm_grad",    "rescale_grad",
                                                "rotary_grad",  "attention_grad",
                                                "weigh_grad",   "softmax_grad",
                                                "scores_grad",  "heads_grad",
                                                "gather_grad",  "embed_grad",
                                                "norm_tangent", "rescale_tangent",
                                                "act_tangent",  "scores_tangent"};
  const clew_step *s = &plan->steps[index];
  const size_t rows = plan->rows[s->rowset].n_rows;
  int n = snprintf(text, size, "%4zu %-9s layer %d, %zu rows", index, names[s->op], s->layer, rows);
  size_t at = n < 0 ? 0 : (size_t)n;
  if (s->op == CLEW_OP_LINEAR) {
    for (int32_t i = 0; i < s->linear.n_parts && at < size; i++) {
      const clew_part *p = &s->linear.part[i];
      n = snprintf(text + at, size - at, ", %s [%zu, %zu]%s", p->name, p->w->k, p->w->n * p->w->groups,
                   p->w2 ? " twice" : "");
      at += n < 0 ? 0 : (size_t)n;
    }
  } else if ((s->op == CLEW_OP_EDIT || s->op == CLEW_OP_CALL) && at < size) {
    snprintf(text + at, size - at, ", %s", clew_sites[plan->edits[s->edit.edit].site].name);
  } else if (s->op == CLEW_OP_NORM && at < size) {
    snprintf(text + at, size - at, ", %s", s->norm.name);
  } else if (s->op == CLEW_OP_STORE && at < size) {
    snprintf(text + at, size - at, ", %s", clew_sites[plan->outputs[s->store.output].info.site].name);
  }
}
