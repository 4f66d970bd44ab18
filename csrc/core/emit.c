/* The model as a list of steps.
 *
 * Wherever a site's value stands, finish_site applies its edits and hands it to the caller. A site that is edited or
 * differentiated by is "split": steps that would make it and use it at once (a product and its activation, attention)
 * are emitted apart, and sites that are one value until then (resid_pre and attn_in) become copies. */
#include "builder.h"

static size_t d_model(const clew_builder *b) { return (size_t)b->config->d_model; }
static int32_t rowset_of(const clew_builder *b, int32_t buffer) { return b->plan->buffers[buffer].rowset; }

/* ---- Sites -------------------------------------------------------------------------------------------------- */

static bool is_captured(const clew_builder *b, clew_site site, int32_t layer) {
  return clew_find_output(b->plan, site, layer) != CLEW_NONE;
}

static bool is_split(const clew_builder *b, clew_site site, int32_t layer) {
  return clew_is_split(b->plan, site, layer);
}

static bool is_wanted(const clew_builder *b, clew_site site, int32_t layer) {
  return is_captured(b, site, layer) || is_split(b, site, layer) || clew_is_asked(b->plan, site, layer);
}

static bool is_edited(const clew_builder *b, clew_site site, int32_t layer) {
  for (size_t i = 0; i < b->plan->n_edits; i++) {
    if (b->plan->edits[i].site == site && b->plan->edits[i].layer == layer) {
      return true;
    }
  }
  return false;
}

/* Puts a buffer where the caller wants the site, if that is laid out alike. */
static int32_t place(clew_builder *b, clew_site site, int32_t layer, int32_t buffer) {
  const int32_t output = clew_find_output(b->plan, site, layer);
  if (output != CLEW_NONE && buffer != CLEW_NONE && b->in_place && rowset_of(b, buffer) == 0) {
    b->plan->buffers[buffer].slab = (int32_t)b->plan->outputs[output].info.slab;
    b->plan->buffers[buffer].offset = clew_output_offset(&b->plan->outputs[output], layer);
  }
  return buffer;
}

/* The buffer in which a site's value is computed. One that is edited without being written over lies elsewhere. */
static int32_t site_buffer(clew_builder *b, clew_site site, int32_t layer, int32_t rowset, size_t cols) {
  const int32_t buffer = clew_add_buffer(b, rowset, cols);
  return b->ssa && is_edited(b, site, layer) ? buffer : place(b, site, layer, buffer);
}

static int32_t square_buffer(clew_builder *b, clew_site site, int32_t layer, int32_t rowset) {
  const int32_t buffer = clew_add_square(b, rowset);
  return b->ssa && is_edited(b, site, layer) ? buffer : place(b, site, layer, buffer);
}

static bool in_slab(const clew_builder *b, int32_t buffer) {
  return buffer != CLEW_NONE && b->plan->buffers[buffer].slab != CLEW_NONE;
}

/* The site has this value: stores it where the caller wants it, unless it was computed there. */
static void captured(clew_builder *b, clew_site site, int32_t layer, int32_t buffer) {
  if (b->plan->where != NULL) {
    b->plan->where[(size_t)site * ((size_t)b->config->n_layers + 1) + (size_t)layer] = buffer;
  }
  const int32_t output = clew_find_output(b->plan, site, layer);
  if (output == CLEW_NONE || buffer == CLEW_NONE) {
    return;
  }
  const clew_buffer *from = &b->plan->buffers[buffer];
  const clew_kept *to = &b->plan->outputs[output];
  if (from->slab == (int32_t)to->info.slab && from->offset == clew_output_offset(to, layer)) {
    return;
  }
  clew_step *s = clew_add_step(b, CLEW_OP_STORE, layer, from->rowset);
  s->store.output = output;
  s->store.in = buffer;
}

/* Does the edit leave nothing of what was there? Then nobody needs to compute it. */
static bool replaces_all(const clew_edit *e) {
  return e->kind == CLEW_EDIT_SET && !e->batch && !e->positions && !e->heads && !e->neurons;
}

/* The site has this value: edits it, hands it to the caller. Gives the buffer that holds it from here on. */
static int32_t finish_site(clew_builder *b, clew_site site, int32_t layer, int32_t buffer) {
  for (size_t i = 0; i < b->plan->n_edits && buffer != CLEW_NONE; i++) {
    if (b->plan->edits[i].site != site || b->plan->edits[i].layer != layer) {
      continue;
    }
    int32_t out = buffer;
    const bool fresh = b->ssa || replaces_all(&b->plan->edits[i]);
    if (fresh) {
      b->plan->buffers[buffer].slab = CLEW_NONE; /* what the caller gets is what comes after the edit */
      const clew_buffer from = b->plan->buffers[buffer];
      out = from.square ? clew_add_square(b, from.rowset) : clew_add_buffer(b, from.rowset, from.cols);
      bool last = true;
      for (size_t j = i + 1; j < b->plan->n_edits; j++) {
        last = last && (b->plan->edits[j].site != site || b->plan->edits[j].layer != layer);
      }
      if (last || !b->ssa) {
        place(b, site, layer, out);
      }
    }
    const bool call = b->plan->edits[i].kind == CLEW_EDIT_CALL;
    clew_step *s = clew_add_step(b, call ? CLEW_OP_CALL : CLEW_OP_EDIT, layer, rowset_of(b, buffer));
    s->edit.out = out, s->edit.in = replaces_all(&b->plan->edits[i]) ? CLEW_NONE : buffer, s->edit.edit = (int32_t)i;
    buffer = out;
  }
  captured(b, site, layer, buffer);
  return buffer;
}

/* A site that so far is the same value as another: a copy where the two part. */
static int32_t alias_site(clew_builder *b, clew_site site, int32_t layer, int32_t buffer) {
  if (!is_split(b, site, layer)) {
    captured(b, site, layer, buffer);
    return buffer;
  }
  const int32_t out = site_buffer(b, site, layer, rowset_of(b, buffer), b->plan->buffers[buffer].cols);
  clew_step *s = clew_add_step(b, CLEW_OP_COPY, layer, rowset_of(b, buffer));
  s->copy.out = out, s->copy.in = buffer;
  return finish_site(b, site, layer, out);
}

/* ---- Norms -------------------------------------------------------------------------------------------------- */

static clew_step *rescale_step(clew_builder *b, clew_op op, int32_t layer, int32_t out, int32_t in,
                               const clew_norm_weights *weights) {
  clew_step *s = clew_add_step(b, op, layer, rowset_of(b, in));
  s->rescale.out = out, s->rescale.in = in, s->rescale.scale = CLEW_NONE, s->rescale.weights = weights;
  s->rescale.centre = b->config->norm == CLEW_NORM_LAYER;
  return s;
}

/* A norm whose scale or normalised value is split: each of its parts is a step. */
static int32_t emit_norm_apart(clew_builder *b, clew_site scale_site, const clew_norm_weights *weights, int32_t layer,
                               int32_t in) {
  const int32_t rowset = rowset_of(b, in);
  const clew_site normalized_site = (clew_site)(scale_site + 1), out_site = (clew_site)(scale_site + 2);
  int32_t scale = site_buffer(b, scale_site, layer, rowset, 1);
  rescale_step(b, CLEW_OP_SCALE, layer, scale, in, weights);
  scale = finish_site(b, scale_site, layer, scale);
  int32_t normalized = site_buffer(b, normalized_site, layer, rowset, d_model(b));
  rescale_step(b, CLEW_OP_NORMALIZE, layer, normalized, in, weights)->rescale.scale = scale;
  normalized = finish_site(b, normalized_site, layer, normalized);
  const int32_t out = site_buffer(b, out_site, layer, rowset, d_model(b));
  rescale_step(b, CLEW_OP_AFFINE, layer, out, normalized, weights);
  return finish_site(b, out_site, layer, out);
}

static clew_step *norm_step(clew_builder *b, const char *name, const clew_norm_weights *weights, int32_t layer,
                            int32_t out, int32_t in, size_t groups) {
  clew_step *s = clew_add_step(b, CLEW_OP_NORM, layer, rowset_of(b, in));
  s->norm.name = name;
  s->norm.out = out, s->norm.normalized = CLEW_NONE, s->norm.scale = CLEW_NONE, s->norm.in = in;
  s->norm.weights = weights, s->norm.groups = groups, s->norm.centre = b->config->norm == CLEW_NORM_LAYER;
  return s;
}

/* out = norm(in). The value itself when the model has no norms. */
static int32_t emit_norm(clew_builder *b, const char *name, clew_site scale_site, const clew_norm_weights *weights,
                         int32_t layer, int32_t in, clew_site fused_site) {
  if (b->config->norm == CLEW_NORM_NONE) {
    return in;
  }
  const int32_t rowset = rowset_of(b, in);
  const clew_site normalized_site = (clew_site)(scale_site + 1), out_site = (clew_site)(scale_site + 2);
  if (is_split(b, scale_site, layer) || is_split(b, normalized_site, layer)) {
    return emit_norm_apart(b, scale_site, weights, layer, in);
  }
  int32_t scale = CLEW_NONE, normalized = CLEW_NONE;
  if (is_captured(b, scale_site, layer)) {
    scale = site_buffer(b, scale_site, layer, rowset, 1);
  }
  if (is_captured(b, normalized_site, layer)) {
    normalized = site_buffer(b, normalized_site, layer, rowset, d_model(b));
  }
  const int32_t out = site_buffer(b, is_wanted(b, out_site, layer) ? out_site : fused_site, layer, rowset, d_model(b));
  clew_step *s = norm_step(b, name, weights, layer, out, in, 1);
  s->norm.normalized = normalized, s->norm.scale = scale;
  captured(b, scale_site, layer, scale);
  captured(b, normalized_site, layer, normalized);
  return finish_site(b, out_site, layer, out);
}

/* A step between a value that may be captured and the next: in place unless one of the two is the caller's. */
static int32_t next_buffer(clew_builder *b, clew_site site, int32_t layer, int32_t in, size_t cols) {
  const int32_t rowset = rowset_of(b, in);
  if (b->ssa || in_slab(b, in) || (b->in_place && rowset == 0 && is_captured(b, site, layer))) {
    return site_buffer(b, site, layer, rowset, cols);
  }
  return in;
}

static int32_t emit_head_norm(clew_builder *b, clew_site site, const clew_norm_weights *weights, int32_t layer,
                              int32_t in, size_t heads) {
  const int32_t out = next_buffer(b, site, layer, in, heads * (size_t)b->config->d_head);
  norm_step(b, site == CLEW_Q_NORMED ? "q_norm" : "k_norm", weights, layer, out, in, heads)->norm.centre = false;
  return finish_site(b, site, layer, out);
}

/* ---- Products ----------------------------------------------------------------------------------------------- */

clew_part *clew_add_part(clew_step *s, const char *name, const clew_matrix *w, const void *bias, int32_t in,
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
                   .sum = CLEW_NONE,
                   .halves = CLEW_NONE};
  return p;
}

static int32_t gather(clew_builder *b, int32_t layer, int32_t in) {
  const int32_t out = clew_add_buffer(b, 1, b->plan->buffers[in].cols);
  clew_step *s = clew_add_step(b, CLEW_OP_GATHER, layer, 1);
  s->gather.out = out, s->gather.in = in;
  return out;
}

static int32_t emit_add(clew_builder *b, clew_site site, int32_t layer, int32_t at, int32_t x, int32_t y) {
  const int32_t sum = site_buffer(b, site, at, rowset_of(b, x), d_model(b));
  clew_step *s = clew_add_step(b, CLEW_OP_ADD, layer, rowset_of(b, x));
  s->add.out = sum, s->add.a = x, s->add.b = y;
  return sum;
}

/* ---- Attention ---------------------------------------------------------------------------------------------- */

/* Each head's own residual, where somebody wants it; CLEW_NONE where it is but the residual that is there. */
static int32_t emit_head_input(clew_builder *b, clew_site site, int32_t layer, int32_t in, size_t heads) {
  if (!is_wanted(b, site, layer)) {
    return CLEW_NONE;
  }
  const int32_t out = site_buffer(b, site, layer, 0, heads * d_model(b));
  clew_step *s = clew_add_step(b, CLEW_OP_SPREAD, layer, 0);
  s->spread.out = out, s->spread.in = in, s->spread.heads = heads;
  const int32_t edited = finish_site(b, site, layer, out);
  return is_split(b, site, layer) ? edited : CLEW_NONE;
}

/* Queries, keys or values whose heads read residuals of their own. in: [rows, heads, d] */
static int32_t emit_heads(clew_builder *b, clew_site site, int32_t layer, int32_t in, bool last_rows_only, size_t heads,
                          const clew_matrix *w, const void *bias) {
  const clew_block *block = &b->model->blocks[layer];
  if (last_rows_only) {
    in = gather(b, layer, in);
  }
  if (b->config->norm != CLEW_NORM_NONE) {
    const int32_t normed = clew_add_buffer(b, rowset_of(b, in), heads * d_model(b));
    norm_step(b, "ln1 by head", &block->ln1, layer, normed, in, heads);
    in = normed;
  }
  const int32_t out = site_buffer(b, site, layer, rowset_of(b, in), heads * (size_t)b->config->d_head);
  clew_step *s = clew_add_step(b, CLEW_OP_HEADS, layer, rowset_of(b, in));
  s->heads.out = out, s->heads.in = in, s->heads.heads = heads, s->heads.w = w, s->heads.b = bias;
  return out;
}

typedef struct clew_head_inputs {
  int32_t q, k, v; /* CLEW_NONE: what the norm gives to all heads */
} clew_head_inputs;

/* Attention whose scores or pattern are split. */
static void emit_attention_apart(clew_builder *b, int32_t layer, int32_t z, int32_t q, int32_t k, int32_t v) {
  const clew_config *c = b->config;
  const int32_t rowset = rowset_of(b, q);
  int32_t scores = square_buffer(b, CLEW_ATTN_SCORES, layer, rowset);
  clew_step *s = clew_add_step(b, CLEW_OP_SCORES, layer, rowset);
  s->attention.z = s->attention.v = s->attention.scores = s->attention.pattern = s->attention.pattern_in = CLEW_NONE;
  s->attention.q = q, s->attention.k = k, s->attention.scores_out = scores;
  s->attention.window = c->layers[layer].window, s->attention.scale = c->layers[layer].score_scale;
  scores = finish_site(b, CLEW_ATTN_SCORES, layer, scores);
  int32_t pattern = scores;
  if (b->ssa || in_slab(b, scores) || is_captured(b, CLEW_PATTERN, layer)) {
    pattern = square_buffer(b, CLEW_PATTERN, layer, rowset);
  }
  s = clew_add_step(b, CLEW_OP_SOFTMAX, layer, rowset);
  s->softmax.out = pattern, s->softmax.in = scores, s->softmax.window = c->layers[layer].window;
  pattern = finish_site(b, CLEW_PATTERN, layer, pattern);
  s = clew_add_step(b, CLEW_OP_WEIGH, layer, rowset);
  s->attention.q = s->attention.k = s->attention.scores = s->attention.pattern = s->attention.scores_out = CLEW_NONE;
  s->attention.z = z, s->attention.v = v, s->attention.pattern_in = pattern;
  s->attention.window = c->layers[layer].window, s->attention.scale = c->layers[layer].score_scale;
}

/* z of one block's attention. normed: what keys and values read; q_rows: what queries read */
static int32_t emit_attention(clew_builder *b, int32_t layer, int32_t normed, int32_t q_rows, clew_head_inputs inputs) {
  const clew_config *c = b->config;
  const clew_block *block = &b->model->blocks[layer];
  const size_t h = (size_t)c->n_heads, g = (size_t)c->n_kv_heads, e = (size_t)c->d_head;
  const int32_t rowset = rowset_of(b, q_rows);
  int32_t q = inputs.q == CLEW_NONE ? site_buffer(b, CLEW_Q, layer, rowset, h * e)
                                    : emit_heads(b, CLEW_Q, layer, inputs.q, rowset != 0, h, &block->W_Q, block->b_Q);
  int32_t k = inputs.k == CLEW_NONE ? site_buffer(b, CLEW_K, layer, 0, g * e)
                                    : emit_heads(b, CLEW_K, layer, inputs.k, false, g, &block->W_K, block->b_K);
  int32_t v = inputs.v == CLEW_NONE ? site_buffer(b, CLEW_V, layer, 0, g * e)
                                    : emit_heads(b, CLEW_V, layer, inputs.v, false, g, &block->W_V, block->b_V);
  clew_step *s = NULL;
  if (inputs.q == CLEW_NONE) {
    s = clew_add_step(b, CLEW_OP_LINEAR, layer, rowset);
    clew_add_part(s, "q", &block->W_Q, block->b_Q, q_rows, q);
  }
  if ((inputs.k == CLEW_NONE || inputs.v == CLEW_NONE) && (s == NULL || rowset != 0)) { /* other rows: other step */
    s = clew_add_step(b, CLEW_OP_LINEAR, layer, 0);
  }
  if (inputs.k == CLEW_NONE) {
    clew_add_part(s, "k", &block->W_K, block->b_K, normed, k);
  }
  if (inputs.v == CLEW_NONE) {
    clew_add_part(s, "v", &block->W_V, block->b_V, normed, v);
  }
  q = finish_site(b, CLEW_Q, layer, q);
  k = finish_site(b, CLEW_K, layer, k);
  v = finish_site(b, CLEW_V, layer, v);
  if (c->qk_norm) {
    q = emit_head_norm(b, CLEW_Q_NORMED, &block->q_norm, layer, q, h);
    k = emit_head_norm(b, CLEW_K_NORMED, &block->k_norm, layer, k, g);
  }
  if (c->position == CLEW_POSITION_ROTARY) {
    if (c->layers[layer].rotary) {
      const int32_t q_out = next_buffer(b, CLEW_ROT_Q, layer, q, h * e);
      const int32_t k_out = next_buffer(b, CLEW_ROT_K, layer, k, g * e);
      for (int part = 0; part < 2; part++) {
        s = clew_add_step(b, CLEW_OP_ROTARY, layer, part == 0 ? rowset : 0);
        s->rotary.q = part == 0 ? q : CLEW_NONE, s->rotary.q_out = part == 0 ? q_out : CLEW_NONE;
        s->rotary.k = part == 1 ? k : CLEW_NONE, s->rotary.k_out = part == 1 ? k_out : CLEW_NONE;
        s->rotary.base = c->layers[layer].rotary_base;
      }
      q = finish_site(b, CLEW_ROT_Q, layer, q_out);
      k = finish_site(b, CLEW_ROT_K, layer, k_out);
    } else { /* a layer without positions: the sites hold q and k as they are */
      q = alias_site(b, CLEW_ROT_Q, layer, q);
      k = alias_site(b, CLEW_ROT_K, layer, k);
    }
  }
  if (b->plan->append) {
    s = clew_add_step(b, CLEW_OP_APPEND, layer, 0);
    s->append.k = k, s->append.v = v;
  }
  int32_t z = site_buffer(b, CLEW_Z, layer, rowset, h * e);
  const bool tangents = b->plan->objective == CLEW_OBJECTIVE_TANGENTS; /* which follow the parts */
  if (tangents || is_split(b, CLEW_ATTN_SCORES, layer) || is_split(b, CLEW_PATTERN, layer)) {
    emit_attention_apart(b, layer, z, q, k, v);
  } else {
    s = clew_add_step(b, CLEW_OP_ATTENTION, layer, rowset);
    s->attention.z = z, s->attention.q = q, s->attention.k = k, s->attention.v = v;
    s->attention.scores = clew_find_output(b->plan, CLEW_ATTN_SCORES, layer);
    s->attention.pattern = clew_find_output(b->plan, CLEW_PATTERN, layer);
    s->attention.scores_out = s->attention.pattern_in = CLEW_NONE;
    s->attention.window = c->layers[layer].window;
    s->attention.scale = c->layers[layer].score_scale;
  }
  return finish_site(b, CLEW_Z, layer, z);
}

/* Each head's share of attention's output; CLEW_NONE unless the output is to be made from the shares. */
static int32_t emit_result(clew_builder *b, int32_t layer, int32_t z) {
  if (!is_wanted(b, CLEW_RESULT, layer)) {
    return CLEW_NONE;
  }
  const clew_block *block = &b->model->blocks[layer];
  const int32_t rowset = rowset_of(b, z);
  const size_t h = (size_t)b->config->n_heads;
  int32_t result = site_buffer(b, CLEW_RESULT, layer, rowset, h * d_model(b));
  clew_step *s = clew_add_step(b, CLEW_OP_RESULT, layer, rowset);
  s->result.out = result, s->result.z = z, s->result.w = &block->W_O;
  result = finish_site(b, CLEW_RESULT, layer, result);
  if (!is_split(b, CLEW_RESULT, layer)) {
    return CLEW_NONE;
  }
  const int32_t out = clew_add_buffer(b, rowset, d_model(b));
  s = clew_add_step(b, CLEW_OP_SUM_HEADS, layer, rowset);
  s->heads.out = out, s->heads.in = result, s->heads.heads = h, s->heads.b = block->b_O;
  return out;
}

/* ---- Blocks ------------------------------------------------------------------------------------------------- */

/* Where a branch ends: its product, its post-norm, its sum with the residual. */
typedef struct clew_branch {
  const char *name, *norm_name;
  const clew_matrix *w;
  const void *bias;
  clew_site site, scale_site; /* what it adds to the stream; its post-norm's scale */
  const clew_norm_weights *post_norm;
  clew_site sum_site;
  int32_t sum_layer;
} clew_branch;

/* resid + branch. in: what the matrix multiplies; ready: the product where it is made already, or CLEW_NONE */
static int32_t emit_branch_end(clew_builder *b, int32_t layer, const clew_branch *branch, int32_t in, int32_t ready,
                               int32_t resid) {
  const int32_t rowset = rowset_of(b, in);
  const size_t d = d_model(b);
  clew_step *s;
  if (b->config->post_norms && b->config->norm != CLEW_NORM_NONE) {
    if (ready == CLEW_NONE) {
      ready = clew_add_buffer(b, rowset, d);
      s = clew_add_step(b, CLEW_OP_LINEAR, layer, rowset);
      clew_add_part(s, branch->name, branch->w, branch->bias, in, ready);
    }
    /* the norm's output is what the branch adds: one value under two names */
    int32_t out = emit_norm(b, branch->norm_name, branch->scale_site, branch->post_norm, layer, ready, branch->site);
    out = alias_site(b, branch->site, layer, out);
    return emit_add(b, branch->sum_site, layer, branch->sum_layer, resid, out);
  }
  if (ready != CLEW_NONE) {
    const int32_t out = alias_site(b, branch->site, layer, ready);
    return emit_add(b, branch->sum_site, layer, branch->sum_layer, resid, out);
  }
  const bool own = is_wanted(b, branch->site, layer);
  int32_t out = own ? site_buffer(b, branch->site, layer, rowset, d) : CLEW_NONE;
  if (is_split(b, branch->site, layer)) {
    s = clew_add_step(b, CLEW_OP_LINEAR, layer, rowset);
    clew_add_part(s, branch->name, branch->w, branch->bias, in, out);
    out = finish_site(b, branch->site, layer, out);
    return emit_add(b, branch->sum_site, layer, branch->sum_layer, resid, out);
  }
  const int32_t sum = site_buffer(b, branch->sum_site, branch->sum_layer, rowset, d);
  s = clew_add_step(b, CLEW_OP_LINEAR, layer, rowset);
  clew_part *p = clew_add_part(s, branch->name, branch->w, branch->bias, in, own ? out : sum);
  p->epilogue = CLEW_EPILOGUE_RESIDUAL, p->resid = resid, p->sum = sum;
  captured(b, branch->site, layer, out);
  return sum;
}

/* Activations of the MLP: what W_out multiplies. */
static int32_t emit_mlp(clew_builder *b, int32_t layer, int32_t in) {
  const clew_config *c = b->config;
  const clew_block *block = &b->model->blocks[layer];
  const int32_t rowset = rowset_of(b, in);
  const size_t f = (size_t)c->d_mlp;
  const clew_matrix *w = c->gated ? &block->W_gate : &block->W_in;
  const void *bias = c->gated ? block->b_gate : block->b_in;
  const bool apart = is_split(b, CLEW_MLP_PRE, layer) || is_split(b, CLEW_MLP_PRE_LINEAR, layer);
  const bool own = apart || b->ssa || is_captured(b, CLEW_MLP_PRE, layer);
  int32_t pre = own ? site_buffer(b, CLEW_MLP_PRE, layer, rowset, f) : CLEW_NONE;
  int32_t linear = CLEW_NONE;
  if (c->gated) { /* the other factor always needs room of its own */
    linear = site_buffer(b, CLEW_MLP_PRE_LINEAR, layer, rowset, f);
  }
  int32_t post;
  if (apart) {
    clew_step *s = clew_add_step(b, CLEW_OP_LINEAR, layer, rowset);
    clew_add_part(s, "mlp", w, bias, in, pre);
    if (c->gated) {
      clew_add_part(s, "mlp linear", &block->W_in, block->b_in, in, linear);
      linear = finish_site(b, CLEW_MLP_PRE_LINEAR, layer, linear);
    }
    pre = finish_site(b, CLEW_MLP_PRE, layer, pre);
    post = site_buffer(b, CLEW_MLP_POST, layer, rowset, f);
    s = clew_add_step(b, CLEW_OP_ACT, layer, rowset);
    s->act.post = post, s->act.pre = pre, s->act.linear = linear;
  } else {
    post = site_buffer(b, CLEW_MLP_POST, layer, rowset, f);
    clew_step *s = clew_add_step(b, CLEW_OP_LINEAR, layer, rowset);
    clew_part *p = clew_add_part(s, "mlp", w, bias, in, own ? pre : post);
    p->epilogue = c->gated ? CLEW_EPILOGUE_GATE : CLEW_EPILOGUE_ACT;
    p->post = post;
    if (c->gated) {
      p->w2 = &block->W_in, p->b2 = block->b_in, p->out2 = linear;
    }
    captured(b, CLEW_MLP_PRE, layer, pre);
    captured(b, CLEW_MLP_PRE_LINEAR, layer, linear);
  }
  return finish_site(b, CLEW_MLP_POST, layer, post);
}

/* Does someone want rows of this layer, behind its keys and values, that the last position's logits do not need? */
static bool tail_is_wanted(const clew_builder *b, int32_t layer) {
  const clew_plan *plan = b->plan;
  for (size_t i = 0; i < plan->n_outputs; i++) {
    const clew_site site = plan->outputs[i].info.site;
    const bool keys = site == CLEW_K || site == CLEW_V || site == CLEW_K_NORMED || site == CLEW_ROT_K;
    if (site >= CLEW_Q && site <= CLEW_RESID_POST && !keys && plan->outputs[i].at[layer] != CLEW_NONE) {
      return true;
    }
    if (site >= CLEW_LN_FINAL_SCALE && site <= CLEW_LN_FINAL_OUT) {
      return true;
    }
  }
  if (plan->n_wrt > 0) {
    return true;
  }
  for (size_t i = 0; i < plan->n_edits; i++) { /* a function is shown every row */
    const bool here = !clew_sites[plan->edits[i].site].layered || plan->edits[i].layer == layer;
    if (here && plan->edits[i].kind == CLEW_EDIT_CALL && plan->edits[i].site != CLEW_LOGITS) {
      return true;
    }
  }
  return false;
}

/* The same of the final norm. */
static bool final_is_wanted(const clew_builder *b) {
  for (int site = CLEW_LN_FINAL_SCALE; site <= CLEW_LN_FINAL_OUT; site++) {
    if (is_captured(b, (clew_site)site, 0)) {
      return true;
    }
    for (size_t i = 0; i < b->plan->n_edits; i++) {
      if ((int)b->plan->edits[i].site == site && b->plan->edits[i].kind == CLEW_EDIT_CALL) {
        return true;
      }
    }
  }
  return b->plan->n_wrt > 0;
}

/* Where the stream behind a block is computed: as this block's resid_post, or as the next one's resid_pre. */
static clew_site stream_site(const clew_builder *b, int32_t layer, int32_t *at) {
  *at = layer;
  if (!is_wanted(b, CLEW_RESID_POST, layer) && layer + 1 < b->config->n_layers &&
      is_captured(b, CLEW_RESID_PRE, layer + 1) && !is_split(b, CLEW_RESID_PRE, layer + 1)) {
    *at = layer + 1;
    return CLEW_RESID_PRE;
  }
  return CLEW_RESID_POST;
}

static int32_t emit_block(clew_builder *b, int32_t layer, int32_t resid, bool last_rows_only) {
  const clew_config *c = b->config;
  const clew_block *block = &b->model->blocks[layer];
  const bool split_in = c->parallel && c->shared_norm && !c->attn_only &&
                        (is_split(b, CLEW_ATTN_IN, layer) || is_split(b, CLEW_MLP_IN, layer));
  const int32_t attn_in = alias_site(b, CLEW_ATTN_IN, layer, resid);
  clew_head_inputs inputs;
  inputs.q = emit_head_input(b, CLEW_Q_INPUT, layer, attn_in, (size_t)c->n_heads);
  inputs.k = emit_head_input(b, CLEW_K_INPUT, layer, attn_in, (size_t)c->n_kv_heads);
  inputs.v = emit_head_input(b, CLEW_V_INPUT, layer, attn_in, (size_t)c->n_kv_heads);
  int32_t mlp_in = resid;
  if (c->parallel && !c->attn_only) {
    mlp_in = alias_site(b, CLEW_MLP_IN, layer, resid);
  }
  const int32_t normed = emit_norm(b, "ln1", CLEW_LN1_SCALE, &block->ln1, layer, attn_in, CLEW_LN1_OUT);
  int32_t q_rows = normed, mlp_normed = normed;
  if (last_rows_only) {
    q_rows = mlp_normed = gather(b, layer, normed);
    const int32_t all = resid;
    resid = normed == resid ? q_rows : gather(b, layer, resid);
    mlp_in = mlp_in == all ? resid : gather(b, layer, mlp_in);
  }
  const int32_t z = emit_attention(b, layer, normed, q_rows, inputs);
  int32_t at;
  const clew_site stream = stream_site(b, layer, &at);
  clew_site after_attention = CLEW_RESID_MID;
  if (c->attn_only) {
    after_attention = stream;
  } else if (c->parallel) {
    after_attention = CLEW_N_SITES; /* nobody's site */
  } else if (!is_wanted(b, CLEW_RESID_MID, layer) && is_captured(b, CLEW_MLP_IN, layer) &&
             !is_split(b, CLEW_MLP_IN, layer)) {
    after_attention = CLEW_MLP_IN;
  }
  const clew_branch attention = {.name = "attn_out",
                                 .norm_name = "ln1_post",
                                 .w = &block->W_O,
                                 .bias = block->b_O,
                                 .site = CLEW_ATTN_OUT,
                                 .scale_site = CLEW_LN1_POST_SCALE,
                                 .post_norm = &block->ln1_post,
                                 .sum_site = after_attention,
                                 .sum_layer = c->attn_only ? at : layer};
  int32_t mid = emit_branch_end(b, layer, &attention, z, emit_result(b, layer, z), resid);
  if (c->attn_only) {
    return finish_site(b, CLEW_RESID_POST, layer, mid);
  }
  if (!c->parallel) {
    mid = finish_site(b, CLEW_RESID_MID, layer, mid);
    mlp_in = alias_site(b, CLEW_MLP_IN, layer, mid);
    mlp_normed = emit_norm(b, "ln2", CLEW_LN2_SCALE, &block->ln2, layer, mlp_in, CLEW_LN2_OUT);
  } else if (!c->shared_norm) { /* reads resid_pre, not mid */
    mlp_normed = emit_norm(b, "ln2", CLEW_LN2_SCALE, &block->ln2, layer, mlp_in, CLEW_LN2_OUT);
  } else if (split_in && c->norm != CLEW_NORM_NONE) { /* one norm, but each branch reads its own residual */
    mlp_normed = clew_add_buffer(b, rowset_of(b, mlp_in), d_model(b));
    norm_step(b, "ln1 of the MLP", &block->ln1, layer, mlp_normed, mlp_in, 1);
  } else if (split_in) {
    mlp_normed = mlp_in;
  }
  const int32_t post = emit_mlp(b, layer, mlp_normed);
  const clew_branch mlp = {.name = "mlp_out",
                           .norm_name = "ln2_post",
                           .w = &block->W_out,
                           .bias = block->b_out,
                           .site = CLEW_MLP_OUT,
                           .scale_site = CLEW_LN2_POST_SCALE,
                           .post_norm = &block->ln2_post,
                           .sum_site = stream,
                           .sum_layer = at};
  return finish_site(b, CLEW_RESID_POST, layer, emit_branch_end(b, layer, &mlp, post, CLEW_NONE, mid));
}

/* ---- Ends --------------------------------------------------------------------------------------------------- */

/* Vectors instead of tokens: x W_E, to which positions are added. */
static int32_t emit_vectors(clew_builder *b) {
  const size_t d = d_model(b);
  const bool learned = b->config->position == CLEW_POSITION_LEARNED;
  const bool own = learned || is_wanted(b, CLEW_EMBED, 0);
  const int32_t in = clew_add_buffer(b, 0, (size_t)b->config->d_vocab);
  clew_step *s = clew_add_step(b, CLEW_OP_INPUT, 0, 0);
  s->input.out = in;
  int32_t embed = site_buffer(b, own ? CLEW_EMBED : CLEW_RESID_PRE, 0, 0, d);
  s = clew_add_step(b, CLEW_OP_LINEAR, 0, 0);
  clew_add_part(s, "embed", &b->model->W_E, NULL, in, embed);
  embed = finish_site(b, CLEW_EMBED, 0, embed);
  if (learned) {
    int32_t pos = site_buffer(b, CLEW_POS_EMBED, 0, 0, d);
    s = clew_add_step(b, CLEW_OP_EMBED, 0, 0);
    s->embed.embed = s->embed.sum = CLEW_NONE, s->embed.pos = pos;
    pos = finish_site(b, CLEW_POS_EMBED, 0, pos);
    return emit_add(b, CLEW_RESID_PRE, 0, 0, embed, pos);
  }
  if (own) {
    const int32_t sum = site_buffer(b, CLEW_RESID_PRE, 0, 0, d);
    s = clew_add_step(b, CLEW_OP_COPY, 0, 0);
    s->copy.out = sum, s->copy.in = embed;
    return sum;
  }
  return embed;
}

static int32_t emit_embedding(clew_builder *b) {
  if (b->config->vector_input && !b->plan->from_embeddings) {
    return emit_vectors(b);
  }
  const bool learned = b->config->position == CLEW_POSITION_LEARNED;
  const bool apart = is_split(b, CLEW_EMBED, 0) || is_split(b, CLEW_POS_EMBED, 0);
  const size_t d = d_model(b);
  int32_t sum = apart && learned ? CLEW_NONE : site_buffer(b, CLEW_RESID_PRE, 0, 0, d);
  const bool own = learned || is_wanted(b, CLEW_EMBED, 0);
  int32_t embed = own ? site_buffer(b, CLEW_EMBED, 0, 0, d) : sum;
  int32_t pos = learned ? site_buffer(b, CLEW_POS_EMBED, 0, 0, d) : CLEW_NONE;
  clew_step *s = clew_add_step(b, CLEW_OP_EMBED, 0, 0);
  s->embed.embed = embed, s->embed.pos = pos, s->embed.sum = apart ? CLEW_NONE : sum;
  embed = finish_site(b, CLEW_EMBED, 0, embed);
  pos = finish_site(b, CLEW_POS_EMBED, 0, pos);
  if (apart && learned) {
    sum = emit_add(b, CLEW_RESID_PRE, 0, 0, embed, pos);
  } else if (apart) {
    s = clew_add_step(b, CLEW_OP_COPY, 0, 0);
    s->copy.out = sum, s->copy.in = embed;
  }
  return sum;
}

static void emit_head(clew_builder *b, int32_t resid) {
  clew_plan *plan = b->plan;
  const clew_config *c = b->config;
  if (clew_last_only(plan->logits) && rowset_of(b, resid) == 0 && !final_is_wanted(b)) {
    resid = gather(b, 0, resid);
  }
  int32_t normed = resid;
  if (c->final_norm) {
    normed = emit_norm(b, "ln_final", CLEW_LN_FINAL_SCALE, &b->model->ln_final, 0, resid, CLEW_LN_FINAL_OUT);
  }
  if (plan->logits == CLEW_LOGITS_NONE) {
    return;
  }
  if (clew_last_only(plan->logits) && rowset_of(b, normed) == 0) {
    normed = gather(b, 0, normed);
  }
  const int32_t rowset = rowset_of(b, normed);
  const int32_t output = clew_find_output(plan, CLEW_LOGITS, 0);
  if (plan->objective != CLEW_OBJECTIVE_NONE) {
    b->logits = clew_add_buffer(b, rowset, (size_t)c->d_vocab_out);
    clew_step *s = clew_add_step(b, CLEW_OP_LINEAR, 0, rowset);
    clew_add_part(s, "logits", &b->model->W_U, b->model->b_U, normed, b->logits)->epilogue =
        c->logit_softcap > 0 ? CLEW_EPILOGUE_SOFTCAP : CLEW_EPILOGUE_BIAS;
    b->logits = finish_site(b, CLEW_LOGITS, 0, b->logits);
    return;
  }
  if (clew_is_metric(plan->logits)) {
    const size_t blocks = ((size_t)c->d_vocab_out + CLEW_LOSS_COLS - 1) / CLEW_LOSS_COLS;
    clew_step *s = clew_add_step(b, CLEW_OP_METRIC, 0, rowset);
    s->loss.output = output, s->loss.in = normed;
    s->loss.partial = clew_add_flat(b, (size_t)plan->n_seq * blocks * 3 * (sizeof(double) / b->item));
    return;
  }
  if (plan->logits == CLEW_LOGITS_LOSS) {
    const size_t blocks = ((size_t)c->d_vocab_out + CLEW_LOSS_COLS - 1) / CLEW_LOSS_COLS;
    const int32_t partial = clew_add_buffer(b, rowset, 3 * blocks);
    clew_step *s = clew_add_step(b, CLEW_OP_LOSS, 0, rowset);
    s->loss.output = output, s->loss.in = normed, s->loss.partial = partial;
    return;
  }
  const int32_t logits = clew_add_buffer(b, rowset, (size_t)c->d_vocab_out);
  if (logits == CLEW_NONE || output == CLEW_NONE) {
    return;
  }
  plan->buffers[logits].slab = (int32_t)plan->outputs[output].info.slab;
  plan->buffers[logits].offset = plan->outputs[output].info.offset;
  plan->buffers[logits].scattered = plan->ragged && rowset == 0;
  clew_step *s = clew_add_step(b, CLEW_OP_LINEAR, 0, rowset);
  clew_part *p = clew_add_part(s, "logits", &b->model->W_U, b->model->b_U, normed, logits);
  p->epilogue = c->logit_softcap > 0 ? CLEW_EPILOGUE_SOFTCAP : CLEW_EPILOGUE_BIAS;
  for (size_t i = 0; i < plan->n_edits; i++) { /* where they are: no other value is made of them */
    if (plan->edits[i].site == CLEW_LOGITS) {
      s = clew_add_step(b, plan->edits[i].kind == CLEW_EDIT_CALL ? CLEW_OP_CALL : CLEW_OP_EDIT, 0, rowset);
      s->edit.out = s->edit.in = logits, s->edit.edit = (int32_t)i;
    }
  }
}

void clew_emit_forward(clew_builder *b, const clew_request *r, int32_t first, int32_t last) {
  int32_t resid;
  if (r->start_layer >= 0) {
    resid = site_buffer(b, first < b->config->n_layers ? CLEW_RESID_PRE : CLEW_N_SITES, first, 0, d_model(b));
    clew_step *s = clew_add_step(b, CLEW_OP_INPUT, first, 0);
    s->input.out = resid;
  } else {
    resid = emit_embedding(b);
  }
  for (int32_t l = first; l <= last && !b->out_of_memory; l++) {
    const bool narrow = l == b->config->n_layers - 1 && clew_last_only(r->logits) && !tail_is_wanted(b, l);
    resid = l == first ? finish_site(b, CLEW_RESID_PRE, l, resid) : alias_site(b, CLEW_RESID_PRE, l, resid);
    b->block_step[l] = b->plan->n_steps;
    resid = emit_block(b, l, resid, narrow);
    b->block_step[l + 1] = b->plan->n_steps;
  }
  if (r->stop_layer < 0 && !b->out_of_memory) {
    emit_head(b, resid);
  }
}
