/* The backward pass: the forward steps in reverse, each with its derivative.
 *
 * grad[b] is the buffer of the objective's gradient by buffer b, once something has contributed to it. A gradient that
 * is complete and of no further use becomes that of an earlier value without a copy (a residual's, a copy's). Only
 * buffers that depend on what is differentiated by are followed.
 *
 * With recomputation, a block's steps are emitted again before its derivatives, over buffers of their own, and what the
 * derivatives read of the block is read from these: its first values die in the forward pass. */
#include <string.h>

#include "builder.h"

typedef struct clew_backward {
  clew_builder *b;
  clew_plan *plan;
  int32_t *grad;   /* [n] of forward buffers */
  bool *wanted;    /* [n] does the value depend on what is differentiated by? */
  size_t n;        /* forward buffers */
  int32_t *again;  /* [n] the buffer in which a block's value is computed again, or CLEW_NONE */
  const char *why; /* why there is no gradient, or NULL */
} clew_backward;

/* ---- Gradients by weights -------------------------------------------------------------------------------------- */

static void add_grad(clew_plan *plan, clew_weight weight, int32_t layer, const void *key, size_t rows, size_t cols) {
  if (key != NULL) {
    plan->grads[plan->n_grads++] = (clew_grad){.info = {.weight = weight, .layer = layer, .rows = rows, .cols = cols},
                                               .key = key,
                                               .rs = (ptrdiff_t)cols,
                                               .cs = 1};
  }
}

static void add_matrix(clew_plan *plan, clew_weight weight, int32_t layer, const clew_matrix *m) {
  if (m->data != NULL) {
    add_grad(plan, weight, layer, m, m->k, m->n * m->groups);
  }
}

static bool is_tied(const clew_model *m) {
  return m->W_U.data == m->W_E.data && m->W_U.groups == 1 && m->W_U.rs == m->W_E.cs && m->W_U.cs == m->W_E.rs;
}

static void add_norm(clew_plan *plan, clew_weight weight, int32_t layer, const clew_norm_weights *norm, size_t d) {
  add_grad(plan, weight, layer, norm->w, 1, d);
  add_grad(plan, (clew_weight)(weight + 1), layer, norm->b, 1, d);
}

clew_status clew_make_grads(clew_builder *b, clew_error *err) {
  clew_plan *plan = b->plan;
  const clew_model *m = b->model;
  const clew_config *c = b->config;
  const size_t layers = (size_t)c->n_layers, d = (size_t)c->d_model, e = (size_t)c->d_head;
  plan->where = clew_alloc((size_t)CLEW_N_SITES * (layers + 1), sizeof *plan->where);
  plan->grads = clew_alloc((layers + 1) * CLEW_N_WEIGHTS, sizeof *plan->grads);
  if (plan->where == NULL || plan->grads == NULL) {
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning gradients");
  }
  for (size_t i = 0; i < (size_t)CLEW_N_SITES * (layers + 1); i++) {
    plan->where[i] = CLEW_NONE;
  }
  if (!plan->weight_gradients) {
    return CLEW_OK;
  }
  add_matrix(plan, CLEW_WEIGHT_W_E, 0, &m->W_E);
  add_matrix(plan, CLEW_WEIGHT_W_POS, 0, &m->W_pos);
  for (int32_t l = 0; l < c->n_layers; l++) {
    const clew_block *k = &m->blocks[l];
    add_norm(plan, CLEW_WEIGHT_LN1_W, l, &k->ln1, d);
    add_matrix(plan, CLEW_WEIGHT_W_Q, l, &k->W_Q);
    add_grad(plan, CLEW_WEIGHT_B_Q, l, k->b_Q, 1, (size_t)c->n_heads * e);
    add_matrix(plan, CLEW_WEIGHT_W_K, l, &k->W_K);
    add_grad(plan, CLEW_WEIGHT_B_K, l, k->b_K, 1, (size_t)c->n_kv_heads * e);
    add_matrix(plan, CLEW_WEIGHT_W_V, l, &k->W_V);
    add_grad(plan, CLEW_WEIGHT_B_V, l, k->b_V, 1, (size_t)c->n_kv_heads * e);
    add_grad(plan, CLEW_WEIGHT_Q_NORM_W, l, k->q_norm.w, 1, e);
    add_grad(plan, CLEW_WEIGHT_K_NORM_W, l, k->k_norm.w, 1, e);
    add_matrix(plan, CLEW_WEIGHT_W_O, l, &k->W_O);
    add_grad(plan, CLEW_WEIGHT_B_O, l, k->b_O, 1, d);
    add_norm(plan, CLEW_WEIGHT_LN1_POST_W, l, &k->ln1_post, d);
    add_norm(plan, CLEW_WEIGHT_LN2_W, l, &k->ln2, d);
    add_matrix(plan, CLEW_WEIGHT_W_GATE, l, &k->W_gate);
    add_grad(plan, CLEW_WEIGHT_B_GATE, l, k->b_gate, 1, (size_t)c->d_mlp);
    add_matrix(plan, CLEW_WEIGHT_W_IN, l, &k->W_in);
    add_grad(plan, CLEW_WEIGHT_B_IN, l, k->b_in, 1, (size_t)c->d_mlp);
    add_matrix(plan, CLEW_WEIGHT_W_OUT, l, &k->W_out);
    add_grad(plan, CLEW_WEIGHT_B_OUT, l, k->b_out, 1, d);
    add_norm(plan, CLEW_WEIGHT_LN2_POST_W, l, &k->ln2_post, d);
  }
  add_norm(plan, CLEW_WEIGHT_LN_FINAL_W, 0, &m->ln_final, d);
  if (!is_tied(m)) {
    add_matrix(plan, CLEW_WEIGHT_W_U, 0, &m->W_U);
  }
  add_grad(plan, CLEW_WEIGHT_B_U, 0, m->b_U, 1, (size_t)c->d_vocab_out);
  size_t bytes = 0;
  for (size_t i = 0; i < plan->n_grads; i++) {
    plan->grads[i].info.offset = bytes;
    bytes += (plan->grads[i].info.rows * plan->grads[i].info.cols * b->item + 63) / 64 * 64;
  }
  plan->grad_slab = plan->n_slabs; /* the outputs' slabs have room for one more */
  plan->slab_bytes[plan->n_slabs++] = bytes;
  return CLEW_OK;
}

/* Number of the gradient by a weight that a step multiplies by or adds, CLEW_NONE where none is asked for. */
static int32_t grad_of_weight(const clew_backward *w, const void *key) {
  if (key == &w->b->model->W_U && is_tied(w->b->model)) {
    key = &w->b->model->W_E;
  }
  for (size_t i = 0; i < w->plan->n_grads && key != NULL; i++) {
    if (w->plan->grads[i].key == key) {
      return (int32_t)i;
    }
  }
  return CLEW_NONE;
}

/* A step writes this gradient, the only one to do so but for those of the embedding. */
static int32_t written(const clew_backward *w, const void *key) {
  const int32_t i = grad_of_weight(w, key);
  if (i != CLEW_NONE) {
    w->plan->grads[i].written = true;
  }
  return i;
}

/* A norm that heads read one by one has the weights of the one beside it: the second adds to what the first wrote. */
static int32_t share(const clew_backward *w, const void *key, bool *add) {
  const int32_t i = grad_of_weight(w, key);
  if (i != CLEW_NONE) {
    *add = w->plan->grads[i].written;
    w->plan->grads[i].written = true;
  }
  return i;
}

/* ---- Gradients by buffers -------------------------------------------------------------------------------------- */

static bool is_wanted(const clew_backward *w, int32_t buffer) {
  return buffer != CLEW_NONE && (size_t)buffer < w->n && w->wanted[buffer];
}

static int32_t like(const clew_backward *w, int32_t buffer) { return clew_add_like(w->b, buffer); }

/* Where a step that can add writes the gradient of a buffer; *add tells whether something is there already. */
static int32_t target(clew_backward *w, int32_t buffer, bool *add) {
  *add = w->grad[buffer] != CLEW_NONE;
  if (!*add) {
    w->grad[buffer] = like(w, buffer);
  }
  return w->grad[buffer];
}

/* A gradient in a buffer of its own becomes that of `buffer`, or is added to it. */
static void deliver(clew_backward *w, int32_t buffer, int32_t gradient, int32_t layer) {
  if (!is_wanted(w, buffer)) {
    return;
  }
  if (w->grad[buffer] == CLEW_NONE) {
    w->grad[buffer] = gradient;
    return;
  }
  clew_step *s = clew_add_step(w->b, CLEW_OP_ADD_INTO, layer, w->plan->buffers[buffer].rowset);
  s->add_into.out = w->grad[buffer], s->add_into.in = gradient;
}

/* The same of a gradient that others go on reading. */
static void deliver_copy(clew_backward *w, int32_t buffer, int32_t gradient, int32_t layer) {
  if (!is_wanted(w, buffer)) {
    return;
  }
  if (w->grad[buffer] != CLEW_NONE) {
    deliver(w, buffer, gradient, layer);
    return;
  }
  const int32_t out = like(w, buffer);
  clew_step *s = clew_add_step(w->b, CLEW_OP_COPY, layer, w->plan->buffers[buffer].rowset);
  s->copy.out = out, s->copy.in = gradient;
  w->grad[buffer] = out;
}

/* ---- Steps ----------------------------------------------------------------------------------------------------- */

/* BLIS multiplies by a transposed matrix with dot products, by a tenth to a fifth slower than by rows, where tiles are
 * narrow: with many rows to multiply it is worth writing a small weight transposed first. */
static bool turned_is_faster(const clew_backward *w, int32_t rowset, const clew_matrix *matrix) {
  return matrix->cs == 1 && matrix->k <= 1024 && matrix->n * matrix->groups <= 8192 &&
         w->plan->rows[rowset].n_rows >= 512;
}

/* Products out = in · W + b of one step, whose gradients by out are g. */
static void products_back(clew_backward *w, const clew_step *s, const clew_part *const *parts, const int32_t *g,
                          const clew_matrix *const *matrices, const void *const *biases, int32_t n) {
  clew_step *dw = NULL;
  for (int32_t i = 0; i < n; i++) {
    if (g[i] == CLEW_NONE || !w->plan->weight_gradients) {
      continue;
    }
    if (dw == NULL) {
      dw = clew_add_step(w->b, CLEW_OP_LINEAR_DW, s->layer, s->rowset);
    }
    const int32_t k = dw->dw.n_parts++;
    dw->dw.in[k] = parts[i]->in, dw->dw.g[k] = g[i];
    dw->dw.w[k] = written(w, matrices[i]), dw->dw.b[k] = written(w, biases[i]);
    dw->dw.matrix[k] = matrices[i];
  }
  for (int32_t i = 0; i < n; i++) { /* parts that read one buffer together */
    bool done = g[i] == CLEW_NONE || !is_wanted(w, parts[i]->in);
    for (int32_t j = 0; j < i; j++) {
      done = done || (g[j] != CLEW_NONE && parts[j]->in == parts[i]->in);
    }
    if (done) {
      continue;
    }
    bool add;
    const int32_t out = target(w, parts[i]->in, &add);
    clew_step *dx = clew_add_step(w->b, CLEW_OP_LINEAR_DX, s->layer, s->rowset);
    dx->dx.out = out, dx->dx.add = add;
    for (int32_t j = i; j < n; j++) {
      if (g[j] != CLEW_NONE && parts[j]->in == parts[i]->in) {
        const bool turn = turned_is_faster(w, s->rowset, matrices[j]);
        const int32_t turned =
            turn ? clew_add_flat(w->b, matrices[j]->k * matrices[j]->n * matrices[j]->groups) : CLEW_NONE;
        dx->dx.g[dx->dx.n_parts] = g[j], dx->dx.turned[dx->dx.n_parts] = turned;
        dx->dx.w[dx->dx.n_parts++] = matrices[j];
      }
    }
  }
}

static void act_back(clew_backward *w, const clew_step *s, int32_t *dpre, int32_t *dlinear, int32_t post, int32_t pre,
                     int32_t linear) {
  *dpre = *dlinear = CLEW_NONE;
  const int32_t g = w->grad[post];
  if (g == CLEW_NONE) {
    return;
  }
  *dpre = like(w, pre);
  *dlinear = linear != CLEW_NONE ? like(w, linear) : CLEW_NONE;
  clew_step *a = clew_add_step(w->b, CLEW_OP_ACT_GRAD, s->layer, s->rowset);
  a->act_grad.dpre = *dpre, a->act_grad.dlinear = *dlinear, a->act_grad.dpost = g;
  a->act_grad.pre = pre, a->act_grad.linear = linear;
}

static void linear_back(clew_backward *w, const clew_step *s) {
  const clew_part *parts[6];
  const clew_matrix *matrices[6];
  const void *biases[6];
  int32_t g[6], n = 0;
  for (int32_t i = 0; i < s->linear.n_parts; i++) {
    const clew_part *p = &s->linear.part[i];
    parts[n] = p, matrices[n] = p->w, biases[n] = p->b, g[n] = CLEW_NONE;
    if (p->epilogue == CLEW_EPILOGUE_ACT || p->epilogue == CLEW_EPILOGUE_GATE) {
      int32_t dlinear;
      act_back(w, s, &g[n], &dlinear, p->post, p->out, p->epilogue == CLEW_EPILOGUE_GATE ? p->out2 : CLEW_NONE);
      n++;
      if (p->epilogue == CLEW_EPILOGUE_GATE) {
        parts[n] = p, matrices[n] = p->w2, biases[n] = p->b2, g[n] = dlinear;
        n++;
      }
      continue;
    }
    g[n] = w->grad[p->epilogue == CLEW_EPILOGUE_RESIDUAL ? p->sum : p->out];
    if (p->epilogue == CLEW_EPILOGUE_SOFTCAP && g[n] != CLEW_NONE) {
      clew_step *a = clew_add_step(w->b, CLEW_OP_SOFTCAP_GRAD, s->layer, s->rowset);
      a->act_grad.dpre = a->act_grad.dpost = g[n], a->act_grad.pre = p->out; /* in place: nobody else reads it */
      a->act_grad.dlinear = a->act_grad.linear = CLEW_NONE;
    }
    n++;
  }
  products_back(w, s, parts, g, matrices, biases, n);
  for (int32_t i = 0; i < s->linear.n_parts; i++) {
    const clew_part *p = &s->linear.part[i];
    if (p->epilogue == CLEW_EPILOGUE_RESIDUAL && w->grad[p->sum] != CLEW_NONE) {
      deliver(w, p->resid, w->grad[p->sum], s->layer);
    }
  }
}

static void norm_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->norm.out];
  const bool by_weights = w->plan->weight_gradients && (s->norm.weights->w || s->norm.weights->b);
  if (g == CLEW_NONE || (!by_weights && !is_wanted(w, s->norm.in))) {
    return;
  }
  const size_t cols = w->plan->buffers[s->norm.in].cols;
  bool add = false;
  const int32_t dx = is_wanted(w, s->norm.in) ? target(w, s->norm.in, &add) : like(w, s->norm.in);
  int32_t partial = CLEW_NONE;
  if (by_weights) {
    partial = clew_add_flat(w->b, CLEW_NORM_CHUNKS * 2 * (cols / s->norm.groups));
  }
  clew_step *n = clew_add_step(w->b, CLEW_OP_NORM_GRAD, s->layer, s->rowset);
  n->norm_grad.dx = dx, n->norm_grad.in = s->norm.in, n->norm_grad.g = g, n->norm_grad.partial = partial;
  n->norm_grad.w = share(w, s->norm.weights->w, &n->norm_grad.add_weights);
  n->norm_grad.b = share(w, s->norm.weights->b, &n->norm_grad.add_weights);
  n->norm_grad.weights = s->norm.weights, n->norm_grad.groups = s->norm.groups;
  n->norm_grad.centre = s->norm.centre, n->norm_grad.add = add;
}

static void rescale_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->rescale.out];
  const bool affine = s->op == CLEW_OP_AFFINE;
  if (g == CLEW_NONE) {
    return;
  }
  const int32_t in = s->rescale.in;
  int32_t dx = CLEW_NONE, dscale = CLEW_NONE;
  if (is_wanted(w, in)) {
    dx = like(w, in);
  }
  if (s->op == CLEW_OP_NORMALIZE && is_wanted(w, s->rescale.scale)) {
    dscale = like(w, s->rescale.scale);
  }
  const bool by_weights = affine && w->plan->weight_gradients;
  if (dx == CLEW_NONE && dscale == CLEW_NONE && !by_weights) {
    return;
  }
  clew_step *n = clew_add_step(w->b, CLEW_OP_RESCALE_GRAD, s->layer, s->rowset);
  n->rescale_grad.op = s->op;
  n->rescale_grad.dx = dx, n->rescale_grad.dscale = dscale, n->rescale_grad.in = in, n->rescale_grad.g = g;
  n->rescale_grad.scale = s->op == CLEW_OP_SCALE ? s->rescale.out : s->rescale.scale;
  n->rescale_grad.w = by_weights ? share(w, s->rescale.weights->w, &n->rescale_grad.add_weights) : CLEW_NONE;
  n->rescale_grad.b = by_weights ? share(w, s->rescale.weights->b, &n->rescale_grad.add_weights) : CLEW_NONE;
  n->rescale_grad.weights = s->rescale.weights, n->rescale_grad.centre = s->rescale.centre;
  if (dx != CLEW_NONE) {
    deliver(w, in, dx, s->layer);
  }
  if (dscale != CLEW_NONE) {
    deliver(w, s->rescale.scale, dscale, s->layer);
  }
}

clew_step *clew_add_attention_grad(clew_builder *b, clew_op op, const clew_step *s) {
  clew_step *a = clew_add_step(b, op, s->layer, s->rowset);
  a->attention_grad.dq = a->attention_grad.dk = a->attention_grad.dv = a->attention_grad.dz = CLEW_NONE;
  a->attention_grad.q = a->attention_grad.k = a->attention_grad.v = CLEW_NONE;
  a->attention_grad.dpattern = a->attention_grad.pattern = CLEW_NONE;
  a->attention_grad.dscores = a->attention_grad.scores = CLEW_NONE;
  return a;
}

static void attention_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->attention.z];
  const int32_t q = s->attention.q, k = s->attention.k, v = s->attention.v;
  if (g == CLEW_NONE || !(is_wanted(w, q) || is_wanted(w, k) || is_wanted(w, v))) {
    return;
  }
  const int32_t dq = like(w, q), dk = like(w, k), dv = like(w, v);
  clew_step *a = clew_add_attention_grad(w->b, CLEW_OP_ATTENTION_GRAD, s);
  a->attention_grad.dq = dq, a->attention_grad.dk = dk, a->attention_grad.dv = dv, a->attention_grad.dz = g;
  a->attention_grad.q = q, a->attention_grad.k = k, a->attention_grad.v = v;
  a->attention_grad.window = s->attention.window, a->attention_grad.scale = s->attention.scale;
  deliver(w, q, dq, s->layer);
  deliver(w, k, dk, s->layer);
  deliver(w, v, dv, s->layer);
}

static void weigh_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->attention.z];
  if (g == CLEW_NONE) {
    return;
  }
  const int32_t pattern = s->attention.pattern_in, v = s->attention.v;
  const int32_t dpattern = like(w, pattern), dv = like(w, v);
  clew_step *a = clew_add_attention_grad(w->b, CLEW_OP_WEIGH_GRAD, s);
  a->attention_grad.dz = g, a->attention_grad.dv = dv, a->attention_grad.v = v;
  a->attention_grad.dpattern = dpattern, a->attention_grad.pattern = pattern;
  deliver(w, pattern, dpattern, s->layer);
  deliver(w, v, dv, s->layer);
}

static void softmax_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->softmax.out];
  if (g == CLEW_NONE || !is_wanted(w, s->softmax.in)) {
    return;
  }
  const int32_t dscores = like(w, s->softmax.in);
  clew_step *a = clew_add_attention_grad(w->b, CLEW_OP_SOFTMAX_GRAD, s);
  a->attention_grad.dscores = dscores, a->attention_grad.scores = s->softmax.in;
  a->attention_grad.dpattern = g, a->attention_grad.pattern = s->softmax.out;
  a->attention_grad.window = s->softmax.window;
  deliver(w, s->softmax.in, dscores, s->layer);
}

static void scores_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->attention.scores_out], q = s->attention.q, k = s->attention.k;
  if (g == CLEW_NONE || !(is_wanted(w, q) || is_wanted(w, k))) {
    return;
  }
  const int32_t dq = like(w, q), dk = like(w, k);
  clew_step *a = clew_add_attention_grad(w->b, CLEW_OP_SCORES_GRAD, s);
  a->attention_grad.dq = dq, a->attention_grad.dk = dk, a->attention_grad.q = q, a->attention_grad.k = k;
  a->attention_grad.dscores = g, a->attention_grad.scores = s->attention.scores_out;
  a->attention_grad.window = s->attention.window, a->attention_grad.scale = s->attention.scale;
  deliver(w, q, dq, s->layer);
  deliver(w, k, dk, s->layer);
}

static void heads_back(clew_backward *w, const clew_step *s, bool result) {
  const int32_t out = result ? s->result.out : s->heads.out, in = result ? s->result.z : s->heads.in;
  const int32_t g = w->grad[out];
  const clew_matrix *matrix = result ? s->result.w : s->heads.w;
  if (g == CLEW_NONE || (!w->plan->weight_gradients && !is_wanted(w, in))) {
    return;
  }
  const int32_t dx = is_wanted(w, in) ? like(w, in) : CLEW_NONE;
  clew_step *h = clew_add_step(w->b, CLEW_OP_HEADS_GRAD, s->layer, s->rowset);
  h->heads_grad.dx = dx, h->heads_grad.in = in, h->heads_grad.g = g, h->heads_grad.result = result;
  h->heads_grad.w = written(w, matrix), h->heads_grad.b = result ? CLEW_NONE : written(w, s->heads.b);
  h->heads_grad.heads = result ? (size_t)w->b->config->n_heads : s->heads.heads;
  h->heads_grad.matrix = matrix;
  if (dx != CLEW_NONE) {
    deliver(w, in, dx, s->layer);
  }
}

static void sum_heads_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->heads.out];
  if (g == CLEW_NONE) {
    return;
  }
  const int32_t b = written(w, s->heads.b);
  if (b != CLEW_NONE) {
    clew_step *dw = clew_add_step(w->b, CLEW_OP_LINEAR_DW, s->layer, s->rowset);
    dw->dw.n_parts = 1, dw->dw.in[0] = g, dw->dw.g[0] = g, dw->dw.w[0] = CLEW_NONE, dw->dw.b[0] = b;
  }
  if (is_wanted(w, s->heads.in)) {
    const int32_t dx = like(w, s->heads.in);
    clew_step *h = clew_add_step(w->b, CLEW_OP_SPREAD, s->layer, s->rowset);
    h->spread.out = dx, h->spread.in = g, h->spread.heads = s->heads.heads;
    deliver(w, s->heads.in, dx, s->layer);
  }
}

static void spread_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->spread.out];
  if (g == CLEW_NONE || !is_wanted(w, s->spread.in)) {
    return;
  }
  const int32_t dx = like(w, s->spread.in);
  clew_step *h = clew_add_step(w->b, CLEW_OP_SUM_HEADS, s->layer, s->rowset);
  h->heads.out = dx, h->heads.in = g, h->heads.heads = s->spread.heads;
  deliver(w, s->spread.in, dx, s->layer);
}

static void edit_back(clew_backward *w, const clew_step *s) {
  const int32_t g = w->grad[s->edit.out];
  if (g == CLEW_NONE || s->edit.in == CLEW_NONE || !is_wanted(w, s->edit.in)) {
    return;
  }
  const clew_edit_kind kind = w->plan->edits[s->edit.edit].kind;
  if (kind == CLEW_EDIT_CALL) {
    w->why = "a gradient cannot go through a Python function: edit.call stands in its way";
    return;
  }
  if (kind != CLEW_EDIT_ADD) {
    clew_step *e = clew_add_step(w->b, CLEW_OP_EDIT, s->layer, s->rowset);
    e->edit.out = e->edit.in = g, e->edit.edit = s->edit.edit, e->edit.gradient = true;
  }
  deliver(w, s->edit.in, g, s->layer);
}

static void embed_back(clew_backward *w, const clew_step *s) {
  const int32_t sum = s->embed.sum == CLEW_NONE ? CLEW_NONE : w->grad[s->embed.sum];
  const bool apart = s->embed.sum == CLEW_NONE;
  const int32_t own = apart && s->embed.embed != CLEW_NONE ? w->grad[s->embed.embed] : CLEW_NONE;
  const int32_t of_embed = apart ? own : sum;
  const int32_t of_pos = apart && s->embed.pos != CLEW_NONE ? w->grad[s->embed.pos] : sum;
  const bool learned = w->b->config->position == CLEW_POSITION_LEARNED;
  for (int part = 0; part < 2; part++) {
    const int32_t g = part == 0 ? of_embed : of_pos;
    const void *key = part == 0 ? (const void *)&w->b->model->W_E : &w->b->model->W_pos;
    const int32_t weight = grad_of_weight(w, key);
    if (g == CLEW_NONE || weight == CLEW_NONE || (part == 0 ? w->plan->from_embeddings : !learned)) {
      continue;
    }
    clew_grad *grad = &w->plan->grads[weight];
    if (!grad->written) { /* the tied unembedding has written all of it; else rows are added to zeros */
      clew_step *z = clew_add_step(w->b, CLEW_OP_ZERO, 0, 0);
      z->zero.buffer = z->zero.output = CLEW_NONE, z->zero.grad = weight;
      grad->written = true;
    }
    clew_step *e = clew_add_step(w->b, CLEW_OP_EMBED_GRAD, 0, 0);
    e->embed_grad.g = g, e->embed_grad.w_e = part == 0 ? weight : CLEW_NONE;
    e->embed_grad.w_pos = part == 1 ? weight : CLEW_NONE;
  }
}

static void step_back(clew_backward *w, const clew_step *s) {
  switch (s->op) {
  case CLEW_OP_EMBED:
    embed_back(w, s);
    break;
  case CLEW_OP_NORM:
    norm_back(w, s);
    break;
  case CLEW_OP_LINEAR:
    linear_back(w, s);
    break;
  case CLEW_OP_ROTARY: {
    const bool query = s->rotary.q != CLEW_NONE;
    const int32_t out = query ? s->rotary.q_out : s->rotary.k_out, in = query ? s->rotary.q : s->rotary.k;
    if (w->grad[out] != CLEW_NONE && is_wanted(w, in)) {
      clew_step *r = clew_add_step(w->b, CLEW_OP_ROTARY_GRAD, s->layer, s->rowset);
      r->rotary_grad.g = w->grad[out], r->rotary_grad.base = s->rotary.base;
      deliver(w, in, w->grad[out], s->layer);
    }
    break;
  }
  case CLEW_OP_ATTENTION:
    attention_back(w, s);
    break;
  case CLEW_OP_WEIGH:
    weigh_back(w, s);
    break;
  case CLEW_OP_SOFTMAX:
    softmax_back(w, s);
    break;
  case CLEW_OP_SCORES:
    scores_back(w, s);
    break;
  case CLEW_OP_RESULT:
    heads_back(w, s, true);
    break;
  case CLEW_OP_HEADS:
    heads_back(w, s, false);
    break;
  case CLEW_OP_SUM_HEADS:
    sum_heads_back(w, s);
    break;
  case CLEW_OP_SPREAD:
    spread_back(w, s);
    break;
  case CLEW_OP_ADD: {
    const int32_t g = w->grad[s->add.out];
    if (g != CLEW_NONE) {
      deliver_copy(w, s->add.a, g, s->layer);
      deliver(w, s->add.b, g, s->layer);
    }
    break;
  }
  case CLEW_OP_COPY:
    if (w->grad[s->copy.out] != CLEW_NONE) {
      deliver(w, s->copy.in, w->grad[s->copy.out], s->layer);
    }
    break;
  case CLEW_OP_GATHER:
    if (w->grad[s->gather.out] != CLEW_NONE && is_wanted(w, s->gather.in)) {
      bool add;
      const int32_t out = target(w, s->gather.in, &add);
      if (!add) {
        clew_step *z = clew_add_step(w->b, CLEW_OP_ZERO, s->layer, 0);
        z->zero.buffer = out, z->zero.output = z->zero.grad = CLEW_NONE;
      }
      clew_step *r = clew_add_step(w->b, CLEW_OP_GATHER_GRAD, s->layer, 0);
      r->gather.out = out, r->gather.in = w->grad[s->gather.out];
    }
    break;
  case CLEW_OP_ACT: {
    int32_t dpre, dlinear;
    act_back(w, s, &dpre, &dlinear, s->act.post, s->act.pre, s->act.linear);
    if (dpre != CLEW_NONE) {
      deliver(w, s->act.pre, dpre, s->layer);
    }
    if (dlinear != CLEW_NONE) {
      deliver(w, s->act.linear, dlinear, s->layer);
    }
    break;
  }
  case CLEW_OP_SCALE:
  case CLEW_OP_NORMALIZE:
  case CLEW_OP_AFFINE:
    rescale_back(w, s);
    break;
  case CLEW_OP_EDIT:
  case CLEW_OP_CALL:
    edit_back(w, s);
    break;
  default:
    break; /* input, store, append: nothing goes back */
  }
}

/* ---- The whole ------------------------------------------------------------------------------------------------- */

typedef struct clew_reach {
  clew_backward *w;
  bool reads;
} clew_reach;

static void look_at_reads(void *ctx, int32_t *b, bool write) {
  clew_reach *r = ctx;
  r->reads = r->reads || (!write && is_wanted(r->w, *b));
}

static void mark_writes(void *ctx, int32_t *b, bool write) {
  clew_reach *r = ctx;
  if (write && *b != CLEW_NONE) {
    r->w->wanted[*b] = true;
  }
}

int32_t clew_site_value(const clew_plan *plan, clew_site_ref ref) {
  return plan->where[(size_t)ref.site * ((size_t)plan->model->config.n_layers + 1) + (size_t)ref.layer];
}

/* Which values depend on what is differentiated by. */
static void find_wanted(clew_backward *w, size_t n_steps) {
  for (size_t i = 0; i < w->plan->n_wrt; i++) {
    const int32_t buffer = clew_site_value(w->plan, w->plan->wrt[i]);
    if (buffer != CLEW_NONE) {
      w->wanted[buffer] = true;
    }
  }
  for (size_t i = 0; i < n_steps; i++) {
    clew_reach reach = {w, w->plan->weight_gradients};
    clew_step_visit(&w->plan->steps[i], look_at_reads, &reach);
    if (reach.reads) {
      clew_step_visit(&w->plan->steps[i], mark_writes, &reach);
    }
  }
}

void clew_store_derivatives(clew_builder *b, clew_step *s, const int32_t *of, bool *stored) {
  const clew_plan *plan = b->plan;
  for (size_t i = 0; i < plan->n_wrt; i++) {
    const clew_site_ref ref = plan->wrt[i];
    const int32_t value = clew_site_value(plan, ref);
    if (stored[i] || value == CLEW_NONE || !clew_step_writes(s, value)) {
      continue;
    }
    stored[i] = true;
    const int32_t output = clew_find_gradient(plan, ref.site, ref.layer), g = of[value];
    const clew_op op = g == CLEW_NONE ? CLEW_OP_ZERO : CLEW_OP_STORE;
    clew_step *t = clew_add_step(b, op, ref.layer, plan->buffers[value].rowset);
    if (g == CLEW_NONE) {
      t->zero.buffer = t->zero.grad = CLEW_NONE, t->zero.output = output;
    } else {
      t->store.output = output, t->store.in = g;
    }
  }
}

/* ---- Recomputation --------------------------------------------------------------------------------------------- */

static void read_again(void *ctx, int32_t *buffer, bool write) {
  const clew_backward *w = ctx;
  (void)write;
  if (*buffer != CLEW_NONE && (size_t)*buffer < w->n && w->again[*buffer] != CLEW_NONE) {
    *buffer = w->again[*buffer];
  }
}

static void make_again(void *ctx, int32_t *buffer, bool write) {
  clew_backward *w = ctx;
  if (write && *buffer != CLEW_NONE && w->again[*buffer] == CLEW_NONE) {
    w->again[*buffer] = like(w, *buffer);
  }
}

/* The block's forward steps once more. */
static void compute_again(clew_backward *w, int32_t layer) {
  for (size_t i = w->b->block_step[layer]; i < w->b->block_step[layer + 1] && !w->b->out_of_memory; i++) {
    clew_step s = w->plan->steps[i];
    if (s.op != CLEW_OP_STORE) {
      clew_step_visit(&s, make_again, w);
      clew_step_visit(&s, read_again, w);
      *clew_add_step(w->b, s.op, s.layer, s.rowset) = s;
    }
  }
}

/* The steps from `first` on read what was computed again. */
static void use_again(clew_backward *w, size_t first) {
  for (size_t i = first; i < w->plan->n_steps && !w->b->out_of_memory; i++) {
    clew_step_visit(&w->plan->steps[i], read_again, w);
  }
  for (size_t i = 0; i < w->n; i++) {
    w->again[i] = CLEW_NONE;
  }
}

/* ---- The whole, step by step ----------------------------------------------------------------------------------- */

static void steps_back(clew_backward *w, size_t n_steps, bool *stored) {
  clew_builder *b = w->b;
  int32_t layer = b->config->n_layers - 1; /* the next block on the way back; the last one has just run */
  size_t first = 0;
  for (size_t i = n_steps; i-- > 0 && !b->out_of_memory;) {
    const bool again = b->recompute && layer >= 0 && layer < b->config->n_layers - 1;
    if (again && i + 1 == b->block_step[layer + 1]) {
      compute_again(w, layer);
      first = w->plan->n_steps;
    }
    clew_step s = w->plan->steps[i];                /* a copy: the list moves as it grows */
    clew_store_derivatives(b, &s, w->grad, stored); /* complete now */
    step_back(w, &s);
    if (layer >= 0 && i == b->block_step[layer]) {
      if (again) {
        use_again(w, first);
      }
      layer--;
    }
  }
}

clew_status clew_emit_backward(clew_builder *b, int32_t logits, clew_error *err) {
  clew_plan *plan = b->plan;
  const size_t n_steps = plan->n_steps;
  clew_backward w = {.b = b, .plan = plan, .n = plan->n_buffers};
  clew_status status = CLEW_OK;
  w.grad = clew_alloc(w.n + 1, sizeof *w.grad);
  w.wanted = clew_alloc(w.n + 1, sizeof *w.wanted);
  bool *stored = clew_alloc(plan->n_wrt + 1, sizeof *stored);
  w.again = clew_alloc(w.n + 1, sizeof *w.again);
  if (w.grad == NULL || w.wanted == NULL || w.again == NULL || stored == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning gradients");
    goto done;
  }
  for (size_t i = 0; i < w.n; i++) {
    w.grad[i] = w.again[i] = CLEW_NONE;
  }
  find_wanted(&w, n_steps);
  const int32_t rowset = plan->buffers[logits].rowset;
  /* in place where nobody reads the logits any more */
  const bool over = plan->objective == CLEW_OBJECTIVE_CROSS_ENTROPY && b->config->logit_softcap <= 0;
  w.grad[logits] = over ? logits : like(&w, logits);
  clew_step *o =
      clew_add_step(b, plan->objective == CLEW_OBJECTIVE_CALL ? CLEW_OP_OBJECTIVE_CALL : CLEW_OP_OBJECTIVE, 0, rowset);
  o->objective.out = w.grad[logits], o->objective.in = logits, o->objective.kind = plan->objective;
  o->objective.partial = clew_add_flat(b, plan->rows[rowset].n_rows * (sizeof(double) / b->item));
  steps_back(&w, n_steps, stored);
  for (size_t i = 0; i < plan->n_wrt && !b->out_of_memory; i++) {
    if (!stored[i]) {
      clew_step *z = clew_add_step(b, CLEW_OP_ZERO, plan->wrt[i].layer, 0);
      z->zero.buffer = z->zero.grad = CLEW_NONE;
      z->zero.output = clew_find_gradient(plan, plan->wrt[i].site, plan->wrt[i].layer);
    }
  }
  for (size_t i = 0; i < plan->n_grads && !b->out_of_memory; i++) {
    if (!plan->grads[i].written) {
      clew_step *z = clew_add_step(b, CLEW_OP_ZERO, 0, 0);
      z->zero.buffer = z->zero.output = CLEW_NONE, z->zero.grad = (int32_t)i;
    }
  }
  if (w.why != NULL) {
    status = clew_fail(err, CLEW_ERROR_UNSUPPORTED, "%s", w.why);
  }
done:
  clew_free(w.grad);
  clew_free(w.wanted);
  clew_free(w.again);
  clew_free(stored);
  return status;
}
