/* Compiling a request into steps: shapes, rows, outputs, buffers. Nothing is computed here. */
#include "plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* ---- Growing lists ------------------------------------------------------------------------------------------ */

/* A builder that ran out of memory keeps taking calls and says so at the end: emission reads like the model. */
typedef struct clew_builder {
  clew_plan *plan;
  const clew_model *model;
  const clew_config *config;
  size_t item; /* bytes of a value */
  bool out_of_memory;
  bool in_place; /* outputs are laid out like buffers: no padding, no chosen positions */
  clew_step no_step;
} clew_builder;

static clew_step *add_step(clew_builder *b, clew_op op, int32_t layer, int32_t rowset) {
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

static int32_t add_buffer(clew_builder *b, int32_t rowset, size_t cols) {
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

/* ---- Outputs ------------------------------------------------------------------------------------------------ */

static int32_t find_output(const clew_plan *plan, clew_site site, int32_t layer) {
  for (size_t i = 0; i < plan->n_outputs; i++) {
    if (plan->outputs[i].info.site == site) {
      return plan->outputs[i].at[layer] == CLEW_NONE ? CLEW_NONE : (int32_t)i;
    }
  }
  return CLEW_NONE;
}

static bool is_captured(const clew_builder *b, clew_site site, int32_t layer) {
  return find_output(b->plan, site, layer) != CLEW_NONE;
}

static size_t output_offset(const clew_kept *output, int32_t layer) {
  return output->info.offset + (size_t)output->at[layer] * output->layer_bytes;
}

/* The buffer in which a site's value is computed: in the caller's memory where it is captured and laid out alike. */
static int32_t site_buffer(clew_builder *b, clew_site site, int32_t layer, int32_t rowset, size_t cols) {
  const int32_t buffer = add_buffer(b, rowset, cols);
  const int32_t output = find_output(b->plan, site, layer);
  if (output != CLEW_NONE && buffer != CLEW_NONE && b->in_place && rowset == 0) {
    b->plan->buffers[buffer].slab = (int32_t)b->plan->outputs[output].info.slab;
    b->plan->buffers[buffer].offset = output_offset(&b->plan->outputs[output], layer);
  }
  return buffer;
}

static bool in_slab(const clew_builder *b, int32_t buffer) {
  return buffer != CLEW_NONE && b->plan->buffers[buffer].slab != CLEW_NONE;
}

/* The site has this value: stores it where the caller wants it, unless it was computed there. */
static void captured(clew_builder *b, clew_site site, int32_t layer, int32_t buffer) {
  const int32_t output = find_output(b->plan, site, layer);
  if (output == CLEW_NONE || buffer == CLEW_NONE) {
    return;
  }
  const clew_buffer *from = &b->plan->buffers[buffer];
  const clew_kept *to = &b->plan->outputs[output];
  if (from->slab == (int32_t)to->info.slab && from->offset == output_offset(to, layer)) {
    return;
  }
  clew_step *s = add_step(b, CLEW_OP_STORE, layer, from->rowset);
  s->store.output = output;
  s->store.in = buffer;
}

static size_t site_axis(const clew_builder *b, char axis) {
  const clew_config *c = b->config;
  switch (axis) {
  case 'b':
    return (size_t)b->plan->n_seq;
  case 'p':
    return b->plan->n_positions;
  case 'k':
    return (size_t)b->plan->longest;
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
static clew_status add_output(clew_builder *b, clew_site site, const int32_t *at, clew_error *err) {
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
      length = plan->logits == CLEW_LOGITS_LAST ? 1 : (size_t)plan->longest;
    }
    o->info.shape[d] = length;
    overflow = __builtin_mul_overflow(values, length, &values) || overflow;
  }
  o->cols = site_cols(b, site);
  if (site == CLEW_LOGITS && plan->logits == CLEW_LOGITS_LOSS) {
    o->info.n_dims = 2, o->info.shape[1] = (size_t)plan->longest - 1, o->cols = 1;
    values = b->item * o->info.shape[0] * o->info.shape[1];
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
    if (plan->outputs[i].info.site == site) {
      return &plan->outputs[i];
    }
  }
  return NULL;
}

static bool same_layers(const clew_kept *a, const clew_kept *b) {
  return a->info.n_layers == b->info.n_layers &&
         memcmp(a->info.layers, b->info.layers, (size_t)a->info.n_layers * sizeof(int32_t)) == 0;
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
    for (size_t t = 0; t < sizeof twin / sizeof *twin && b->in_place; t++) {
      const clew_kept *other = twin[t][0] == o->info.site ? site_output(plan, twin[t][1]) : NULL;
      const bool all = o->info.site != CLEW_RESID_POST || o->info.n_layers == n_run;
      if (other != NULL && all && same_layers(o, other)) {
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

/* ---- Emission: the model as a list of steps ----------------------------------------------------------------- */

static size_t d_model(const clew_builder *b) { return (size_t)b->config->d_model; }

/* out = norm(in). The value itself when the model has no norms. */
static int32_t emit_norm(clew_builder *b, const char *name, clew_site scale_site, const clew_norm_weights *weights,
                         int32_t layer, int32_t in, clew_site fused_site) {
  if (b->config->norm == CLEW_NORM_NONE) {
    return in;
  }
  const int32_t rowset = b->plan->buffers[in].rowset;
  const clew_site normalized_site = (clew_site)(scale_site + 1), out_site = (clew_site)(scale_site + 2);
  int32_t scale = CLEW_NONE, normalized = CLEW_NONE;
  if (is_captured(b, scale_site, layer)) {
    scale = site_buffer(b, scale_site, layer, rowset, 1);
  }
  if (is_captured(b, normalized_site, layer)) {
    normalized = site_buffer(b, normalized_site, layer, rowset, d_model(b));
  }
  const bool own = is_captured(b, out_site, layer);
  const int32_t out = site_buffer(b, own ? out_site : fused_site, layer, rowset, d_model(b));
  clew_step *s = add_step(b, CLEW_OP_NORM, layer, rowset);
  s->norm.name = name;
  s->norm.out = out, s->norm.normalized = normalized, s->norm.scale = scale, s->norm.in = in;
  s->norm.weights = weights, s->norm.groups = 1, s->norm.centre = b->config->norm == CLEW_NORM_LAYER;
  captured(b, scale_site, layer, scale);
  captured(b, normalized_site, layer, normalized);
  captured(b, out_site, layer, out);
  return out;
}

/* A step between a value that may be captured and the next: in place unless one of the two is the caller's. */
static int32_t next_buffer(clew_builder *b, clew_site site, int32_t layer, int32_t in, size_t cols) {
  const int32_t rowset = b->plan->buffers[in].rowset;
  if (in_slab(b, in) || (b->in_place && rowset == 0 && is_captured(b, site, layer))) {
    return site_buffer(b, site, layer, rowset, cols);
  }
  return in;
}

static int32_t emit_head_norm(clew_builder *b, clew_site site, const clew_norm_weights *weights, int32_t layer,
                              int32_t in, size_t heads) {
  const int32_t out = next_buffer(b, site, layer, in, heads * (size_t)b->config->d_head);
  clew_step *s = add_step(b, CLEW_OP_NORM, layer, b->plan->buffers[in].rowset);
  s->norm.name = site == CLEW_Q_NORMED ? "q_norm" : "k_norm";
  s->norm.out = out, s->norm.normalized = CLEW_NONE, s->norm.scale = CLEW_NONE, s->norm.in = in;
  s->norm.weights = weights, s->norm.groups = heads, s->norm.centre = false;
  captured(b, site, layer, out);
  return out;
}

static clew_part *add_part(clew_step *s, const char *name, const clew_matrix *w, const void *bias, int32_t in,
                           int32_t out) {
  clew_part *p = &s->linear.part[s->linear.n_parts++];
  *p = (clew_part){.name = name,
                   .w = w,
                   .b = bias,
                   .epilogue = CLEW_EPILOGUE_BIAS,
                   .in = in,
                   .out = out,
                   .out2 = CLEW_NONE,
                   .post = CLEW_NONE,
                   .resid = CLEW_NONE,
                   .sum = CLEW_NONE};
  return p;
}

static int32_t gather(clew_builder *b, int32_t layer, int32_t in) {
  const size_t cols = b->plan->buffers[in].cols;
  const int32_t out = add_buffer(b, 1, cols);
  clew_step *s = add_step(b, CLEW_OP_GATHER, layer, 1);
  s->gather.out = out, s->gather.in = in;
  return out;
}

/* Does someone want rows of this layer, behind its keys and values, that the last position's logits do not need? */
static bool tail_is_captured(const clew_builder *b, int32_t layer) {
  for (int site = CLEW_Q; site <= CLEW_RESID_POST; site++) {
    const bool keys = site == CLEW_K || site == CLEW_V || site == CLEW_K_NORMED || site == CLEW_ROT_K;
    if (!keys && is_captured(b, (clew_site)site, layer)) {
      return true;
    }
  }
  return is_captured(b, CLEW_LN_FINAL_SCALE, 0) || is_captured(b, CLEW_LN_FINAL_NORMALIZED, 0) ||
         is_captured(b, CLEW_LN_FINAL_OUT, 0);
}

static void emit_spread(clew_builder *b, clew_site site, int32_t layer, int32_t in, size_t heads) {
  if (is_captured(b, site, layer)) {
    const int32_t out = site_buffer(b, site, layer, 0, heads * d_model(b));
    clew_step *s = add_step(b, CLEW_OP_SPREAD, layer, 0);
    s->spread.out = out, s->spread.in = in, s->spread.heads = heads;
    captured(b, site, layer, out);
  }
}

/* A branch ends: resid + (linear(in), then its post-norm). Gives the sum; the branch's own value is captured as `site`.
 */
static int32_t emit_branch_end(clew_builder *b, int32_t layer, const char *name, const clew_matrix *w, const void *bias,
                               int32_t in, int32_t resid, clew_site site, clew_site post_scale_site,
                               const clew_norm_weights *post_norm, clew_site sum_site, int32_t sum_layer) {
  const int32_t rowset = b->plan->buffers[in].rowset;
  const size_t d = d_model(b);
  const bool own = is_captured(b, site, layer);
  const bool normed = b->config->post_norms && b->config->norm != CLEW_NORM_NONE;
  if (normed) {
    const int32_t raw = add_buffer(b, rowset, d);
    clew_step *s = add_step(b, CLEW_OP_LINEAR, layer, rowset);
    add_part(s, name, w, bias, in, raw);
    /* the norm's output is what the branch adds: one value under two names */
    const int32_t out =
        emit_norm(b, site == CLEW_ATTN_OUT ? "ln1_post" : "ln2_post", post_scale_site, post_norm, layer, raw, site);
    captured(b, site, layer, out);
    const int32_t sum = site_buffer(b, sum_site, sum_layer, rowset, d);
    s = add_step(b, CLEW_OP_ADD, layer, rowset);
    s->add.out = sum, s->add.a = resid, s->add.b = out;
    return sum;
  }
  const int32_t out = own ? site_buffer(b, site, layer, rowset, d) : CLEW_NONE;
  const int32_t sum = site_buffer(b, sum_site, sum_layer, rowset, d);
  clew_step *s = add_step(b, CLEW_OP_LINEAR, layer, rowset);
  clew_part *p = add_part(s, name, w, bias, in, own ? out : sum);
  p->epilogue = CLEW_EPILOGUE_RESIDUAL, p->resid = resid, p->sum = sum;
  captured(b, site, layer, out);
  return sum;
}

/* z of one block's attention, and the residual's rows that go on with it. */
static int32_t emit_attention(clew_builder *b, int32_t layer, int32_t normed, int32_t q_rows) {
  const clew_config *c = b->config;
  const clew_block *block = &b->model->blocks[layer];
  const size_t h = (size_t)c->n_heads, g = (size_t)c->n_kv_heads, e = (size_t)c->d_head;
  const int32_t rowset = b->plan->buffers[q_rows].rowset;
  int32_t q = site_buffer(b, CLEW_Q, layer, rowset, h * e), k = site_buffer(b, CLEW_K, layer, 0, g * e);
  const int32_t v = site_buffer(b, CLEW_V, layer, 0, g * e);
  clew_step *s = add_step(b, CLEW_OP_LINEAR, layer, rowset);
  add_part(s, "q", &block->W_Q, block->b_Q, q_rows, q);
  if (rowset != 0) { /* other rows: a step of its own */
    s = add_step(b, CLEW_OP_LINEAR, layer, 0);
  }
  add_part(s, "k", &block->W_K, block->b_K, normed, k);
  add_part(s, "v", &block->W_V, block->b_V, normed, v);
  captured(b, CLEW_Q, layer, q);
  captured(b, CLEW_K, layer, k);
  captured(b, CLEW_V, layer, v);
  if (c->qk_norm) {
    q = emit_head_norm(b, CLEW_Q_NORMED, &block->q_norm, layer, q, h);
    k = emit_head_norm(b, CLEW_K_NORMED, &block->k_norm, layer, k, g);
  }
  if (c->position == CLEW_POSITION_ROTARY) {
    const bool turned = c->layers[layer].rotary; /* a layer without positions: the sites hold q and k as they are */
    const int32_t q_out = turned ? next_buffer(b, CLEW_ROT_Q, layer, q, h * e) : q;
    const int32_t k_out = turned ? next_buffer(b, CLEW_ROT_K, layer, k, g * e) : k;
    for (int part = 0; part < 2 && turned; part++) {
      s = add_step(b, CLEW_OP_ROTARY, layer, part == 0 ? rowset : 0);
      s->rotary.q = part == 0 ? q : CLEW_NONE, s->rotary.q_out = part == 0 ? q_out : CLEW_NONE;
      s->rotary.k = part == 1 ? k : CLEW_NONE, s->rotary.k_out = part == 1 ? k_out : CLEW_NONE;
      s->rotary.base = c->layers[layer].rotary_base;
    }
    q = q_out, k = k_out;
    captured(b, CLEW_ROT_Q, layer, q);
    captured(b, CLEW_ROT_K, layer, k);
  }
  const int32_t z = site_buffer(b, CLEW_Z, layer, rowset, h * e);
  s = add_step(b, CLEW_OP_ATTENTION, layer, rowset);
  s->attention.z = z, s->attention.q = q, s->attention.k = k, s->attention.v = v;
  s->attention.scores = find_output(b->plan, CLEW_ATTN_SCORES, layer);
  s->attention.pattern = find_output(b->plan, CLEW_PATTERN, layer);
  s->attention.window = c->layers[layer].window;
  s->attention.scale = c->layers[layer].score_scale;
  captured(b, CLEW_Z, layer, z);
  if (is_captured(b, CLEW_RESULT, layer)) {
    const int32_t result = site_buffer(b, CLEW_RESULT, layer, rowset, h * d_model(b));
    s = add_step(b, CLEW_OP_RESULT, layer, rowset);
    s->result.out = result, s->result.z = z, s->result.w = &block->W_O;
    captured(b, CLEW_RESULT, layer, result);
  }
  return z;
}

/* Activations of the MLP: what W_out multiplies. */
static int32_t emit_mlp(clew_builder *b, int32_t layer, int32_t in) {
  const clew_config *c = b->config;
  const clew_block *block = &b->model->blocks[layer];
  const int32_t rowset = b->plan->buffers[in].rowset;
  const size_t f = (size_t)c->d_mlp;
  int32_t pre = is_captured(b, CLEW_MLP_PRE, layer) ? site_buffer(b, CLEW_MLP_PRE, layer, rowset, f) : CLEW_NONE;
  int32_t linear = CLEW_NONE;
  if (c->gated) { /* the other factor always needs room of its own */
    linear = site_buffer(b, CLEW_MLP_PRE_LINEAR, layer, rowset, f);
  }
  const int32_t post = site_buffer(b, CLEW_MLP_POST, layer, rowset, f);
  clew_step *s = add_step(b, CLEW_OP_LINEAR, layer, rowset);
  clew_part *p = add_part(s, "mlp", c->gated ? &block->W_gate : &block->W_in, c->gated ? block->b_gate : block->b_in,
                          in, pre == CLEW_NONE ? post : pre);
  p->epilogue = c->gated ? CLEW_EPILOGUE_GATE : CLEW_EPILOGUE_ACT;
  p->post = post;
  if (c->gated) {
    p->w2 = &block->W_in, p->b2 = block->b_in, p->out2 = linear;
  }
  captured(b, CLEW_MLP_PRE, layer, pre);
  captured(b, CLEW_MLP_PRE_LINEAR, layer, linear);
  captured(b, CLEW_MLP_POST, layer, post);
  return post;
}

/* Where the stream behind a block is computed: as this block's resid_post, or as the next one's resid_pre. */
static clew_site stream_site(const clew_builder *b, int32_t layer, int32_t *at) {
  *at = layer;
  if (!is_captured(b, CLEW_RESID_POST, layer) && layer + 1 < b->config->n_layers &&
      is_captured(b, CLEW_RESID_PRE, layer + 1)) {
    *at = layer + 1;
    return CLEW_RESID_PRE;
  }
  return CLEW_RESID_POST;
}

static int32_t emit_block(clew_builder *b, int32_t layer, int32_t resid, bool last_rows_only) {
  const clew_config *c = b->config;
  const clew_block *block = &b->model->blocks[layer];
  captured(b, CLEW_RESID_PRE, layer, resid);
  captured(b, CLEW_ATTN_IN, layer, resid);
  emit_spread(b, CLEW_Q_INPUT, layer, resid, (size_t)c->n_heads);
  emit_spread(b, CLEW_K_INPUT, layer, resid, (size_t)c->n_kv_heads);
  emit_spread(b, CLEW_V_INPUT, layer, resid, (size_t)c->n_kv_heads);
  if (c->parallel && !c->attn_only) {
    captured(b, CLEW_MLP_IN, layer, resid);
  }
  const int32_t normed = emit_norm(b, "ln1", CLEW_LN1_SCALE, &block->ln1, layer, resid, CLEW_LN1_OUT);
  int32_t q_rows = normed, mlp_normed = normed;
  if (last_rows_only) {
    q_rows = mlp_normed = gather(b, layer, normed);
    resid = normed == resid ? q_rows : gather(b, layer, resid);
  }
  const int32_t z = emit_attention(b, layer, normed, q_rows);
  int32_t at;
  const clew_site stream = stream_site(b, layer, &at);
  clew_site after_attention = CLEW_RESID_MID;
  if (c->attn_only) {
    after_attention = stream;
  } else if (c->parallel) {
    after_attention = CLEW_N_SITES; /* nobody's site */
  } else if (!is_captured(b, CLEW_RESID_MID, layer) && is_captured(b, CLEW_MLP_IN, layer)) {
    after_attention = CLEW_MLP_IN;
  }
  const int32_t mid =
      emit_branch_end(b, layer, "attn_out", &block->W_O, block->b_O, z, resid, CLEW_ATTN_OUT, CLEW_LN1_POST_SCALE,
                      &block->ln1_post, after_attention, c->attn_only ? at : layer);
  if (c->attn_only) {
    captured(b, CLEW_RESID_POST, layer, mid);
    return mid;
  }
  if (!c->parallel) {
    captured(b, CLEW_RESID_MID, layer, mid);
    captured(b, CLEW_MLP_IN, layer, mid);
    mlp_normed = emit_norm(b, "ln2", CLEW_LN2_SCALE, &block->ln2, layer, mid, CLEW_LN2_OUT);
  } else if (!c->shared_norm) { /* reads resid_pre, not mid */
    mlp_normed = emit_norm(b, "ln2", CLEW_LN2_SCALE, &block->ln2, layer, resid, CLEW_LN2_OUT);
  }
  const int32_t post = emit_mlp(b, layer, mlp_normed);
  const int32_t sum = emit_branch_end(b, layer, "mlp_out", &block->W_out, block->b_out, post, mid, CLEW_MLP_OUT,
                                      CLEW_LN2_POST_SCALE, &block->ln2_post, stream, at);
  captured(b, CLEW_RESID_POST, layer, sum);
  return sum;
}

static int32_t emit_embedding(clew_builder *b) {
  const bool learned = b->config->position == CLEW_POSITION_LEARNED;
  const size_t d = d_model(b);
  const int32_t sum = site_buffer(b, CLEW_RESID_PRE, 0, 0, d);
  const bool own = learned || is_captured(b, CLEW_EMBED, 0);
  const int32_t embed = own ? site_buffer(b, CLEW_EMBED, 0, 0, d) : sum;
  const int32_t pos = learned ? site_buffer(b, CLEW_POS_EMBED, 0, 0, d) : CLEW_NONE;
  clew_step *s = add_step(b, CLEW_OP_EMBED, 0, 0);
  s->embed.embed = embed, s->embed.pos = pos, s->embed.sum = sum;
  captured(b, CLEW_EMBED, 0, embed);
  captured(b, CLEW_POS_EMBED, 0, pos);
  return sum;
}

static void emit_head(clew_builder *b, int32_t resid) {
  clew_plan *plan = b->plan;
  const clew_config *c = b->config;
  if (plan->logits == CLEW_LOGITS_LAST && plan->buffers[resid].rowset == 0 && !is_captured(b, CLEW_LN_FINAL_SCALE, 0) &&
      !is_captured(b, CLEW_LN_FINAL_NORMALIZED, 0) && !is_captured(b, CLEW_LN_FINAL_OUT, 0)) {
    resid = gather(b, 0, resid);
  }
  int32_t normed = resid;
  if (c->final_norm) {
    normed = emit_norm(b, "ln_final", CLEW_LN_FINAL_SCALE, &b->model->ln_final, 0, resid, CLEW_LN_FINAL_OUT);
  }
  if (plan->logits == CLEW_LOGITS_NONE) {
    return;
  }
  if (plan->logits == CLEW_LOGITS_LAST && plan->buffers[normed].rowset == 0) {
    normed = gather(b, 0, normed);
  }
  const int32_t rowset = plan->buffers[normed].rowset;
  const int32_t output = find_output(plan, CLEW_LOGITS, 0);
  if (plan->logits == CLEW_LOGITS_LOSS) {
    const size_t blocks = ((size_t)c->d_vocab_out + CLEW_LOSS_COLS - 1) / CLEW_LOSS_COLS;
    const int32_t partial = add_buffer(b, rowset, 3 * blocks);
    clew_step *s = add_step(b, CLEW_OP_LOSS, 0, rowset);
    s->loss.output = output, s->loss.in = normed, s->loss.partial = partial;
    return;
  }
  const int32_t logits = add_buffer(b, rowset, (size_t)c->d_vocab_out);
  if (logits == CLEW_NONE || output == CLEW_NONE) {
    return;
  }
  plan->buffers[logits].slab = (int32_t)plan->outputs[output].info.slab;
  plan->buffers[logits].offset = plan->outputs[output].info.offset;
  plan->buffers[logits].scattered = plan->ragged && rowset == 0;
  clew_step *s = add_step(b, CLEW_OP_LINEAR, 0, rowset);
  clew_part *p = add_part(s, "logits", &b->model->W_U, b->model->b_U, normed, logits);
  p->epilogue = c->logit_softcap > 0 ? CLEW_EPILOGUE_SOFTCAP : CLEW_EPILOGUE_BIAS;
}

static void emit(clew_builder *b, const clew_request *r, int32_t first, int32_t last) {
  int32_t resid;
  if (r->start_layer >= 0) {
    resid = site_buffer(b, first < b->config->n_layers ? CLEW_RESID_PRE : CLEW_N_SITES, first, 0, d_model(b));
    clew_step *s = add_step(b, CLEW_OP_INPUT, first, 0);
    s->input.out = resid;
  } else {
    resid = emit_embedding(b);
  }
  for (int32_t l = first; l <= last && !b->out_of_memory; l++) {
    const bool narrow = l == b->config->n_layers - 1 && r->logits == CLEW_LOGITS_LAST && !tail_is_captured(b, l);
    resid = emit_block(b, l, resid, narrow);
  }
  if (r->stop_layer < 0 && !b->out_of_memory) {
    emit_head(b, resid);
  }
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
    if (c->position == CLEW_POSITION_LEARNED && r->start_layer < 0 &&
        (size_t)r->lengths[i] + (size_t)c->pos_offset > model->W_pos.k) {
      return clew_fail(err, CLEW_ERROR_TOKEN, "prompt %d has %d tokens, but the model has %zu learned positions", i,
                       r->lengths[i], model->W_pos.k - (size_t)c->pos_offset);
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
  size_t total = 0;
  for (size_t i = 0; i < n_seq; i++) {
    total += (size_t)r->lengths[i];
    plan->longest = r->lengths[i] > plan->longest ? r->lengths[i] : plan->longest;
    plan->ragged = plan->ragged || r->lengths[i] != r->lengths[0];
  }
  for (int set = 0; set < 2; set++) {
    clew_rowset *rows = &plan->rows[set];
    rows->n_rows = set == 0 ? total : n_seq;
    rows->pos = clew_alloc(rows->n_rows, sizeof *rows->pos);
    rows->row0 = clew_alloc(n_seq + 1, sizeof *rows->row0);
    if (rows->pos == NULL || rows->row0 == NULL) {
      return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a plan of %zu tokens", total);
    }
    int32_t row = 0;
    for (size_t i = 0; i < n_seq; i++) {
      rows->row0[i] = row;
      for (int32_t p = set == 0 ? 0 : r->lengths[i] - 1; p < r->lengths[i]; p++) {
        rows->pos[row++] = p;
      }
    }
    rows->row0[n_seq] = row;
  }
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
  b->plan->outputs = clew_alloc(CLEW_N_SITES, sizeof *b->plan->outputs);
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
  if (r->logits != CLEW_LOGITS_NONE) {
    used[CLEW_LOGITS] = true;
    marks[(size_t)CLEW_LOGITS * stride] = 1;
  }
  for (int site = 0; site < CLEW_N_SITES && status == CLEW_OK; site++) {
    if (used[site]) {
      status = add_output(b, (clew_site)site, marks + (size_t)site * stride, err);
    }
  }
  if (status == CLEW_OK) {
    status = assign_slabs(b, last - first + 1, err);
  }
done:
  clew_free(marks);
  return status;
}

/* What each thread needs for itself: a block of scores, or a tile that cannot be computed where it goes. */
static size_t slot_bytes(const clew_builder *b) {
  const clew_plan *plan = b->plan;
  size_t most = 0;
  for (size_t i = 0; i < plan->n_steps; i++) {
    const clew_step *s = &plan->steps[i];
    size_t values = 0;
    if (s->op == CLEW_OP_ATTENTION) {
      const bool whole = s->attention.scores != CLEW_NONE || s->attention.pattern != CLEW_NONE;
      const size_t longest = (size_t)plan->longest;
      const size_t keys = whole || longest < CLEW_KEY_BLOCK ? longest : CLEW_KEY_BLOCK;
      const size_t queries = longest < CLEW_QUERY_BLOCK ? longest : CLEW_QUERY_BLOCK;
      values = queries * keys + 3 * CLEW_QUERY_BLOCK;
    } else if (s->op == CLEW_OP_LOSS) {
      values = (size_t)CLEW_LOSS_ROWS * CLEW_LOSS_COLS + 2 * CLEW_LOSS_ROWS;
    } else if (s->op == CLEW_OP_LINEAR && s->linear.part[0].out != CLEW_NONE &&
               plan->buffers[s->linear.part[0].out].scattered) {
      const clew_tiling t = clew_tile(plan->rows[s->rowset].n_rows, s->linear.part[0].w->n);
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
  status = make_rows(plan, r, err);
  clew_builder b = {.plan = plan, .model = model, .config = c, .item = clew_dtype_size(c->dtype)};
  b.in_place = !plan->ragged && plan->positions == NULL;
  if (status == CLEW_OK) {
    status = make_outputs(&b, r, first, last, err);
  }
  if (status == CLEW_OK) {
    emit(&b, r, first, last);
    if (b.out_of_memory) {
      status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning %zu tokens", plan->rows[0].n_rows);
    }
  }
  if (status == CLEW_OK) {
    clew_plan_prune(plan);
    status = clew_plan_place(plan, err);
  }
  if (status != CLEW_OK) {
    clew_plan_free(plan);
    return status;
  }
  plan->slot_bytes = slot_bytes(&b);
  plan->table_positions = c->position == CLEW_POSITION_ROTARY ? (size_t)plan->longest : 0;
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
  clew_free(plan->positions);
  clew_free(plan->outputs);
  clew_free(plan->slab_bytes);
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

size_t clew_plan_scratch_bytes(const clew_plan *plan) {
  return plan->scratch_bytes + plan->slot_bytes * clew_get_threads();
}

double clew_plan_flops(const clew_plan *plan) { return plan->flops; }
size_t clew_plan_n_outputs(const clew_plan *plan) { return plan->n_outputs; }
const clew_output *clew_plan_output(const clew_plan *plan, size_t index) { return &plan->outputs[index].info; }
size_t clew_plan_n_slabs(const clew_plan *plan) { return plan->n_slabs; }
size_t clew_plan_slab_bytes(const clew_plan *plan, size_t index) { return plan->slab_bytes[index]; }
size_t clew_plan_n_steps(const clew_plan *plan) { return plan->n_steps; }

void clew_plan_describe(const clew_plan *plan, size_t index, char *text, size_t size) {
  static const char *const names[CLEW_N_OPS] = {"embed",  "input", "norm",   "linear", "rotary", "attention",
                                                "result", "add",   "spread", "gather", "store",  "loss"};
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
  } else if (s->op == CLEW_OP_NORM && at < size) {
    snprintf(text + at, size - at, ", %s", s->norm.name);
  } else if (s->op == CLEW_OP_STORE && at < size) {
    snprintf(text + at, size - at, ", %s", clew_sites[plan->outputs[s->store.output].info.site].name);
  }
}
