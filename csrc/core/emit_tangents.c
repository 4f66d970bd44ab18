/* Derivatives forward: after the forward steps, in their order, the derivative of each along the tangents of what it
 * reads. A linear step is its own derivative, without its bias; the softmax's is that of the backward pass, whose
 * Jacobian is symmetric. Only values that a tangent reaches get one; none is ever written over. */
#include "builder.h"

typedef struct clew_tangents {
  clew_builder *b;
  clew_plan *plan;
  int32_t *of;     /* [n] tangent of a forward buffer, or CLEW_NONE: zero */
  const char *why; /* why there is none, or NULL */
} clew_tangents;

static int32_t tangent(const clew_tangents *t, int32_t buffer) {
  return buffer == CLEW_NONE ? CLEW_NONE : t->of[buffer];
}

static int32_t like(const clew_tangents *t, int32_t buffer) { return clew_add_like(t->b, buffer); }

/* x + y, either of which may be zero. */
static int32_t sum(const clew_tangents *t, const clew_step *s, int32_t x, int32_t y) {
  if (x == CLEW_NONE || y == CLEW_NONE) {
    return x == CLEW_NONE ? y : x;
  }
  const int32_t out = like(t, x);
  clew_step *a = clew_add_step(t->b, CLEW_OP_ADD, s->layer, s->rowset);
  a->add.out = out, a->add.a = x, a->add.b = y;
  return out;
}

static int32_t product(const clew_tangents *t, const clew_step *s, const clew_part *from, const clew_matrix *w,
                       int32_t value) {
  const int32_t in = tangent(t, from->in);
  if (in == CLEW_NONE) {
    return CLEW_NONE;
  }
  const int32_t out = like(t, value);
  clew_step *l = clew_add_step(t->b, CLEW_OP_LINEAR, s->layer, s->rowset);
  clew_add_part(l, from->name, w, NULL, in, out);
  return out;
}

static int32_t activation(const clew_tangents *t, const clew_step *s, int32_t dpre, int32_t dlinear, int32_t pre,
                          int32_t linear) {
  if (dpre == CLEW_NONE && dlinear == CLEW_NONE) {
    return CLEW_NONE;
  }
  const int32_t out = like(t, pre);
  clew_step *a = clew_add_step(t->b, CLEW_OP_ACT_TANGENT, s->layer, s->rowset);
  a->act_grad.dpost = out, a->act_grad.dpre = dpre, a->act_grad.dlinear = dlinear;
  a->act_grad.pre = pre, a->act_grad.linear = linear;
  return out;
}

static void linear_forward(clew_tangents *t, const clew_step *s) {
  for (int32_t i = 0; i < s->linear.n_parts; i++) {
    const clew_part *p = &s->linear.part[i];
    const int32_t width = p->out != CLEW_NONE ? p->out : p->sum;
    int32_t y = product(t, s, p, p->w, width);
    switch (p->epilogue) {
    case CLEW_EPILOGUE_BIAS:
      t->of[p->out] = y;
      break;
    case CLEW_EPILOGUE_ACT:
      t->of[p->out] = y;
      t->of[p->post] = activation(t, s, y, CLEW_NONE, p->out, CLEW_NONE);
      break;
    case CLEW_EPILOGUE_GATE:
      t->of[p->out] = y;
      t->of[p->out2] = product(t, s, p, p->w2, p->out2);
      t->of[p->post] = activation(t, s, y, t->of[p->out2], p->out, p->out2);
      break;
    case CLEW_EPILOGUE_RESIDUAL:
      t->of[p->out] = y;
      t->of[p->sum] = sum(t, s, tangent(t, p->resid), y);
      break;
    case CLEW_EPILOGUE_SOFTCAP:
      t->of[p->out] = y;
      if (y != CLEW_NONE) {
        const int32_t out = like(t, p->out);
        clew_step *a = clew_add_step(t->b, CLEW_OP_SOFTCAP_GRAD, s->layer, s->rowset);
        a->act_grad.dpre = out, a->act_grad.dpost = y, a->act_grad.pre = p->out;
        a->act_grad.dlinear = a->act_grad.linear = CLEW_NONE;
        t->of[p->out] = out;
      }
      break;
    }
  }
}

static void norm_forward(clew_tangents *t, const clew_step *s) {
  const int32_t in = tangent(t, s->norm.in);
  if (in == CLEW_NONE) {
    return;
  }
  const int32_t out = like(t, s->norm.out);
  clew_step *n = clew_add_step(t->b, CLEW_OP_NORM_TANGENT, s->layer, s->rowset);
  n->norm_grad.dx = out, n->norm_grad.in = s->norm.in, n->norm_grad.g = in, n->norm_grad.partial = CLEW_NONE;
  n->norm_grad.w = n->norm_grad.b = CLEW_NONE;
  n->norm_grad.weights = s->norm.weights, n->norm_grad.groups = s->norm.groups, n->norm_grad.centre = s->norm.centre;
  t->of[s->norm.out] = out;
}

static void rescale_forward(clew_tangents *t, const clew_step *s) {
  const int32_t in = tangent(t, s->rescale.in);
  const int32_t scale = s->op == CLEW_OP_NORMALIZE ? tangent(t, s->rescale.scale) : CLEW_NONE;
  if (in == CLEW_NONE && scale == CLEW_NONE) {
    return;
  }
  const int32_t out = like(t, s->rescale.out);
  clew_step *n = clew_add_step(t->b, CLEW_OP_RESCALE_TANGENT, s->layer, s->rowset);
  n->rescale_grad.op = s->op, n->rescale_grad.g = out, n->rescale_grad.dx = in, n->rescale_grad.dscale = scale;
  n->rescale_grad.in = s->rescale.in, n->rescale_grad.weights = s->rescale.weights;
  n->rescale_grad.scale = s->op == CLEW_OP_SCALE ? s->rescale.out : s->rescale.scale;
  n->rescale_grad.w = n->rescale_grad.b = CLEW_NONE, n->rescale_grad.centre = s->rescale.centre;
  t->of[s->rescale.out] = out;
}

static void rotary_forward(clew_tangents *t, const clew_step *s) {
  const bool query = s->rotary.q != CLEW_NONE;
  const int32_t in = tangent(t, query ? s->rotary.q : s->rotary.k), to = query ? s->rotary.q_out : s->rotary.k_out;
  if (in == CLEW_NONE) {
    return;
  }
  const int32_t out = like(t, to);
  clew_step *r = clew_add_step(t->b, CLEW_OP_ROTARY, s->layer, s->rowset);
  r->rotary = s->rotary;
  *(query ? &r->rotary.q : &r->rotary.k) = in;
  *(query ? &r->rotary.q_out : &r->rotary.k_out) = out;
  t->of[to] = out;
}

static void scores_forward(clew_tangents *t, const clew_step *s) {
  const int32_t dq = tangent(t, s->attention.q), dk = tangent(t, s->attention.k), to = s->attention.scores_out;
  if (dq == CLEW_NONE && dk == CLEW_NONE) {
    return;
  }
  const int32_t out = like(t, to);
  clew_step *a = clew_add_attention_grad(t->b, CLEW_OP_SCORES_TANGENT, s);
  a->attention_grad.dscores = out, a->attention_grad.scores = to;
  a->attention_grad.q = s->attention.q, a->attention_grad.k = s->attention.k;
  a->attention_grad.dq = dq, a->attention_grad.dk = dk;
  a->attention_grad.window = s->attention.window, a->attention_grad.scale = s->attention.scale;
  t->of[to] = out;
}

static void softmax_forward(clew_tangents *t, const clew_step *s) {
  const int32_t in = tangent(t, s->softmax.in);
  if (in == CLEW_NONE) {
    return;
  }
  const int32_t out = like(t, s->softmax.out);
  clew_step *a = clew_add_attention_grad(t->b, CLEW_OP_SOFTMAX_GRAD, s);
  a->attention_grad.dscores = out, a->attention_grad.scores = s->softmax.in;
  a->attention_grad.dpattern = in, a->attention_grad.pattern = s->softmax.out;
  a->attention_grad.window = s->softmax.window;
  t->of[s->softmax.out] = out;
}

static int32_t weighed(clew_tangents *t, const clew_step *s, int32_t pattern, int32_t v) {
  if (pattern == CLEW_NONE || v == CLEW_NONE) {
    return CLEW_NONE;
  }
  const int32_t out = like(t, s->attention.z);
  clew_step *a = clew_add_step(t->b, CLEW_OP_WEIGH, s->layer, s->rowset);
  a->attention = s->attention;
  a->attention.z = out, a->attention.pattern_in = pattern, a->attention.v = v;
  return out;
}

static void weigh_forward(clew_tangents *t, const clew_step *s) {
  const int32_t pattern = s->attention.pattern_in, v = s->attention.v;
  const int32_t by_pattern = weighed(t, s, tangent(t, pattern), v);
  t->of[s->attention.z] = sum(t, s, by_pattern, weighed(t, s, pattern, tangent(t, v)));
}

static void edit_forward(clew_tangents *t, const clew_step *s) {
  const clew_edit_kind kind = t->plan->edits[s->edit.edit].kind;
  int32_t in = tangent(t, s->edit.in);
  if (kind == CLEW_EDIT_CALL && in != CLEW_NONE) {
    t->why = "a derivative cannot go through a Python function: edit.call stands in its way";
  }
  if ((in == CLEW_NONE && kind != CLEW_EDIT_TANGENT) || kind == CLEW_EDIT_ADD || kind == CLEW_EDIT_CALL) {
    t->of[s->edit.out] = in;
    return;
  }
  const int32_t out = like(t, s->edit.out);
  if (in == CLEW_NONE) {
    clew_step *z = clew_add_step(t->b, CLEW_OP_ZERO, s->layer, s->rowset);
    z->zero.buffer = in = out, z->zero.output = z->zero.grad = CLEW_NONE;
  }
  clew_step *e = clew_add_step(t->b, CLEW_OP_EDIT, s->layer, s->rowset);
  e->edit.out = out, e->edit.in = in, e->edit.edit = s->edit.edit, e->edit.gradient = true;
  t->of[s->edit.out] = out;
}

/* The same step on tangents: out = step(in). */
#define SAME(field, from, to)                                                                                          \
  do {                                                                                                                 \
    const int32_t in = tangent(t, s->field.from);                                                                      \
    if (in != CLEW_NONE) {                                                                                             \
      const int32_t out = like(t, s->field.to);                                                                        \
      clew_step *a = clew_add_step(t->b, s->op, s->layer, s->rowset);                                                  \
      a->field = s->field, a->field.from = in, a->field.to = out;                                                      \
      t->of[s->field.to] = out;                                                                                        \
      step = a;                                                                                                        \
    }                                                                                                                  \
  } while (0)

static void step_forward(clew_tangents *t, const clew_step *s) {
  clew_step *step = NULL;
  switch (s->op) {
  case CLEW_OP_NORM:
    norm_forward(t, s);
    break;
  case CLEW_OP_LINEAR:
    linear_forward(t, s);
    break;
  case CLEW_OP_ROTARY:
    rotary_forward(t, s);
    break;
  case CLEW_OP_SCORES:
    scores_forward(t, s);
    break;
  case CLEW_OP_SOFTMAX:
    softmax_forward(t, s);
    break;
  case CLEW_OP_WEIGH:
    weigh_forward(t, s);
    break;
  case CLEW_OP_RESULT:
    SAME(result, z, out);
    break;
  case CLEW_OP_HEADS:
  case CLEW_OP_SUM_HEADS:
    SAME(heads, in, out);
    if (step != NULL) {
      step->heads.b = NULL;
    }
    break;
  case CLEW_OP_SPREAD:
    SAME(spread, in, out);
    break;
  case CLEW_OP_ADD:
    t->of[s->add.out] = sum(t, s, tangent(t, s->add.a), tangent(t, s->add.b));
    break;
  case CLEW_OP_COPY:
    t->of[s->copy.out] = tangent(t, s->copy.in);
    break;
  case CLEW_OP_ACT:
    t->of[s->act.post] = activation(t, s, tangent(t, s->act.pre), tangent(t, s->act.linear), s->act.pre, s->act.linear);
    break;
  case CLEW_OP_SCALE:
  case CLEW_OP_NORMALIZE:
  case CLEW_OP_AFFINE:
    rescale_forward(t, s);
    break;
  case CLEW_OP_EDIT:
  case CLEW_OP_CALL:
    edit_forward(t, s);
    break;
  default:
    break; /* what begins a run depends on nothing; all rows are computed, so none are gathered */
  }
}

clew_status clew_emit_tangents(clew_builder *b, clew_error *err) {
  clew_plan *plan = b->plan;
  const size_t n_steps = plan->n_steps, n = plan->n_buffers;
  clew_tangents t = {.b = b, .plan = plan};
  clew_status status = CLEW_OK;
  t.of = clew_alloc(n + 1, sizeof *t.of);
  bool *stored = clew_alloc(plan->n_wrt + 1, sizeof *stored);
  if (t.of == NULL || stored == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning tangents");
    goto done;
  }
  for (size_t i = 0; i < n; i++) {
    t.of[i] = CLEW_NONE;
  }
  for (size_t i = 0; i < n_steps && !b->out_of_memory; i++) {
    clew_step s = plan->steps[i]; /* a copy: the list moves as it grows */
    step_forward(&t, &s);
    clew_store_derivatives(b, &s, t.of, stored);
  }
  if (t.why != NULL) {
    status = clew_fail(err, CLEW_ERROR_UNSUPPORTED, "%s", t.why);
  }
done:
  clew_free(t.of);
  clew_free(stored);
  return status;
}
