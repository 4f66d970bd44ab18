/* Which steps and buffers a plan needs, where its buffers lie, and what it costs. */
#include <stdlib.h>
#include <string.h>

#include "blas.h"
#include "plan.h"

#define ALIGNMENT ((size_t)64)

/* ---- What a step touches ------------------------------------------------------------------------------------ */

void clew_step_visit(clew_step *s, void (*visit)(void *ctx, int32_t *buffer, bool write), void *ctx) {
#define READ(b) visit(ctx, &(b), false)
#define WRITE(b) visit(ctx, &(b), true)
  switch (s->op) {
  case CLEW_OP_EMBED:
    WRITE(s->embed.embed), WRITE(s->embed.pos), WRITE(s->embed.sum);
    break;
  case CLEW_OP_INPUT:
    WRITE(s->input.out);
    break;
  case CLEW_OP_NORM:
    WRITE(s->norm.out), WRITE(s->norm.normalized), WRITE(s->norm.scale), READ(s->norm.in);
    break;
  case CLEW_OP_LINEAR:
    for (int32_t i = 0; i < s->linear.n_parts; i++) {
      clew_part *p = &s->linear.part[i];
      WRITE(p->out), WRITE(p->out2), WRITE(p->post), WRITE(p->sum), WRITE(p->halves), READ(p->in), READ(p->resid);
    }
    break;
  case CLEW_OP_ROTARY:
    WRITE(s->rotary.q_out), WRITE(s->rotary.k_out), READ(s->rotary.q), READ(s->rotary.k);
    break;
  case CLEW_OP_ATTENTION:
    WRITE(s->attention.z), READ(s->attention.q), READ(s->attention.k), READ(s->attention.v);
    break;
  case CLEW_OP_RESULT:
    WRITE(s->result.out), READ(s->result.z);
    break;
  case CLEW_OP_ADD:
    WRITE(s->add.out), READ(s->add.a), READ(s->add.b);
    break;
  case CLEW_OP_SPREAD:
    WRITE(s->spread.out), READ(s->spread.in);
    break;
  case CLEW_OP_GATHER:
    WRITE(s->gather.out), READ(s->gather.in);
    break;
  case CLEW_OP_STORE:
    READ(s->store.in);
    break;
  case CLEW_OP_METRIC:
  case CLEW_OP_LOSS:
    WRITE(s->loss.partial), READ(s->loss.in);
    break;
  case CLEW_OP_EDIT:
  case CLEW_OP_CALL:
    WRITE(s->edit.out), READ(s->edit.in);
    break;
  case CLEW_OP_COPY:
    WRITE(s->copy.out), READ(s->copy.in);
    break;
  case CLEW_OP_SCALE:
  case CLEW_OP_NORMALIZE:
  case CLEW_OP_AFFINE:
    WRITE(s->rescale.out), READ(s->rescale.in), READ(s->rescale.scale);
    break;
  case CLEW_OP_HEADS:
  case CLEW_OP_SUM_HEADS:
    WRITE(s->heads.out), READ(s->heads.in);
    break;
  case CLEW_OP_ACT:
    WRITE(s->act.post), READ(s->act.pre), READ(s->act.linear);
    break;
  case CLEW_OP_SCORES:
    WRITE(s->attention.scores_out), READ(s->attention.q), READ(s->attention.k);
    break;
  case CLEW_OP_SOFTMAX:
    WRITE(s->softmax.out), READ(s->softmax.in);
    break;
  case CLEW_OP_WEIGH:
    WRITE(s->attention.z), READ(s->attention.pattern_in), READ(s->attention.v);
    break;
  case CLEW_OP_APPEND:
    READ(s->append.k), READ(s->append.v);
    break;
  case CLEW_OP_OBJECTIVE:
  case CLEW_OP_OBJECTIVE_CALL:
    WRITE(s->objective.out), WRITE(s->objective.partial), READ(s->objective.in);
    break;
  case CLEW_OP_ZERO:
    WRITE(s->zero.buffer);
    break;
  case CLEW_OP_ADD_INTO:
    WRITE(s->add_into.out), READ(s->add_into.out), READ(s->add_into.in);
    break;
  case CLEW_OP_LINEAR_DX:
    WRITE(s->dx.out);
    if (s->dx.add) {
      READ(s->dx.out);
    }
    for (int32_t i = 0; i < s->dx.n_parts; i++) {
      READ(s->dx.g[i]), WRITE(s->dx.turned[i]);
    }
    break;
  case CLEW_OP_LINEAR_DW:
    for (int32_t i = 0; i < s->dw.n_parts; i++) {
      READ(s->dw.g[i]);
      if (s->dw.w[i] != CLEW_NONE) {
        READ(s->dw.in[i]);
      }
    }
    break;
  case CLEW_OP_ACT_GRAD:
  case CLEW_OP_SOFTCAP_GRAD:
    WRITE(s->act_grad.dpre), WRITE(s->act_grad.dlinear);
    READ(s->act_grad.dpost), READ(s->act_grad.pre), READ(s->act_grad.linear);
    break;
  case CLEW_OP_NORM_GRAD:
    WRITE(s->norm_grad.dx), WRITE(s->norm_grad.partial), READ(s->norm_grad.in), READ(s->norm_grad.g);
    if (s->norm_grad.add) {
      READ(s->norm_grad.dx);
    }
    break;
  case CLEW_OP_RESCALE_GRAD:
    WRITE(s->rescale_grad.dx), WRITE(s->rescale_grad.dscale);
    READ(s->rescale_grad.in), READ(s->rescale_grad.g), READ(s->rescale_grad.scale);
    break;
  case CLEW_OP_ROTARY_GRAD:
    WRITE(s->rotary_grad.g), READ(s->rotary_grad.g);
    break;
  case CLEW_OP_ATTENTION_GRAD:
    WRITE(s->attention_grad.dq), WRITE(s->attention_grad.dk), WRITE(s->attention_grad.dv);
    READ(s->attention_grad.dz), READ(s->attention_grad.q), READ(s->attention_grad.k), READ(s->attention_grad.v);
    break;
  case CLEW_OP_WEIGH_GRAD:
    WRITE(s->attention_grad.dpattern), WRITE(s->attention_grad.dv);
    READ(s->attention_grad.dz), READ(s->attention_grad.v), READ(s->attention_grad.pattern);
    break;
  case CLEW_OP_SOFTMAX_GRAD:
    WRITE(s->attention_grad.dscores), READ(s->attention_grad.dpattern), READ(s->attention_grad.pattern);
    break;
  case CLEW_OP_SCORES_GRAD:
    WRITE(s->attention_grad.dq), WRITE(s->attention_grad.dk), READ(s->attention_grad.dscores);
    READ(s->attention_grad.scores), READ(s->attention_grad.q), READ(s->attention_grad.k);
    break;
  case CLEW_OP_HEADS_GRAD:
    WRITE(s->heads_grad.dx), READ(s->heads_grad.in), READ(s->heads_grad.g);
    break;
  case CLEW_OP_GATHER_GRAD:
    WRITE(s->gather.out), READ(s->gather.out), READ(s->gather.in);
    break;
  case CLEW_OP_EMBED_GRAD:
    READ(s->embed_grad.g);
    break;
  case CLEW_OP_NORM_TANGENT:
    WRITE(s->norm_grad.dx), READ(s->norm_grad.in), READ(s->norm_grad.g);
    break;
  case CLEW_OP_RESCALE_TANGENT:
    WRITE(s->rescale_grad.g), READ(s->rescale_grad.dx), READ(s->rescale_grad.dscale);
    READ(s->rescale_grad.in), READ(s->rescale_grad.scale);
    break;
  case CLEW_OP_ACT_TANGENT:
    WRITE(s->act_grad.dpost), READ(s->act_grad.dpre), READ(s->act_grad.dlinear);
    READ(s->act_grad.pre), READ(s->act_grad.linear);
    break;
  case CLEW_OP_SCORES_TANGENT:
    WRITE(s->attention_grad.dscores), READ(s->attention_grad.dq), READ(s->attention_grad.dk);
    READ(s->attention_grad.scores), READ(s->attention_grad.q), READ(s->attention_grad.k);
    break;
  case CLEW_N_OPS:
    break;
  }
#undef READ
#undef WRITE
}

typedef struct clew_writer {
  int32_t buffer;
  bool writes;
} clew_writer;

static void look_at_writes(void *ctx, int32_t *b, bool write) {
  clew_writer *w = ctx;
  w->writes = w->writes || (write && *b == w->buffer);
}

bool clew_step_writes(clew_step *step, int32_t buffer) {
  clew_writer w = {.buffer = buffer};
  clew_step_visit(step, look_at_writes, &w);
  return w.writes;
}

/* ---- Dead steps --------------------------------------------------------------------------------------------- */

static bool is_needed(const clew_plan *plan, int32_t b) { return b != CLEW_NONE && plan->buffers[b].needed; }

static bool part_is_needed(const clew_plan *plan, const clew_part *p) {
  return is_needed(plan, p->out) || is_needed(plan, p->out2) || is_needed(plan, p->post) || is_needed(plan, p->sum);
}

/* Drops what nobody reads from a step; false when nothing is left of it. */
static bool keep_step(const clew_plan *plan, clew_step *s) {
  switch (s->op) {
  case CLEW_OP_EMBED:
    if (!is_needed(plan, s->embed.pos)) {
      s->embed.pos = CLEW_NONE;
    }
    if (!is_needed(plan, s->embed.embed) && s->embed.embed != s->embed.sum) {
      s->embed.embed = CLEW_NONE;
    }
    return s->embed.pos != CLEW_NONE || s->embed.embed != CLEW_NONE || is_needed(plan, s->embed.sum);
  case CLEW_OP_INPUT:
    return is_needed(plan, s->input.out);
  case CLEW_OP_NORM:
    return is_needed(plan, s->norm.out) || is_needed(plan, s->norm.normalized) || is_needed(plan, s->norm.scale);
  case CLEW_OP_LINEAR: {
    int32_t n = 0;
    for (int32_t i = 0; i < s->linear.n_parts; i++) {
      if (part_is_needed(plan, &s->linear.part[i])) {
        s->linear.part[n++] = s->linear.part[i];
      }
    }
    s->linear.n_parts = n;
    return n > 0;
  }
  case CLEW_OP_ROTARY:
    if (!is_needed(plan, s->rotary.q_out)) {
      s->rotary.q_out = s->rotary.q = CLEW_NONE;
    }
    if (!is_needed(plan, s->rotary.k_out)) {
      s->rotary.k_out = s->rotary.k = CLEW_NONE;
    }
    return s->rotary.q != CLEW_NONE || s->rotary.k != CLEW_NONE;
  case CLEW_OP_ATTENTION:
    if (!is_needed(plan, s->attention.z)) {
      s->attention.z = s->attention.v = CLEW_NONE;
    }
    return s->attention.z != CLEW_NONE || s->attention.scores != CLEW_NONE || s->attention.pattern != CLEW_NONE;
  case CLEW_OP_RESULT:
    return is_needed(plan, s->result.out);
  case CLEW_OP_ADD:
    return is_needed(plan, s->add.out);
  case CLEW_OP_SPREAD:
    return is_needed(plan, s->spread.out);
  case CLEW_OP_GATHER:
    return is_needed(plan, s->gather.out);
  case CLEW_OP_EDIT:
  case CLEW_OP_CALL: /* what nobody reads may still be shown to a function */
    return is_needed(plan, s->edit.out) || s->op == CLEW_OP_CALL;
  case CLEW_OP_COPY:
    return is_needed(plan, s->copy.out);
  case CLEW_OP_SCALE:
  case CLEW_OP_NORMALIZE:
  case CLEW_OP_AFFINE:
    return is_needed(plan, s->rescale.out);
  case CLEW_OP_HEADS:
  case CLEW_OP_SUM_HEADS:
    return is_needed(plan, s->heads.out);
  case CLEW_OP_ACT:
    return is_needed(plan, s->act.post);
  case CLEW_OP_SCORES:
    return is_needed(plan, s->attention.scores_out);
  case CLEW_OP_SOFTMAX:
    return is_needed(plan, s->softmax.out);
  case CLEW_OP_WEIGH:
    return is_needed(plan, s->attention.z);
  case CLEW_OP_ZERO:
    return s->zero.buffer == CLEW_NONE || is_needed(plan, s->zero.buffer);
  case CLEW_OP_ADD_INTO:
    return is_needed(plan, s->add_into.out);
  case CLEW_OP_LINEAR_DX:
    return is_needed(plan, s->dx.out);
  case CLEW_OP_ACT_GRAD:
  case CLEW_OP_SOFTCAP_GRAD:
    return is_needed(plan, s->act_grad.dpre) || is_needed(plan, s->act_grad.dlinear);
  case CLEW_OP_NORM_GRAD:
    return is_needed(plan, s->norm_grad.dx) || s->norm_grad.w != CLEW_NONE || s->norm_grad.b != CLEW_NONE;
  case CLEW_OP_ROTARY_GRAD:
    return is_needed(plan, s->rotary_grad.g);
  case CLEW_OP_ATTENTION_GRAD:
  case CLEW_OP_WEIGH_GRAD:
  case CLEW_OP_SOFTMAX_GRAD:
  case CLEW_OP_SCORES_GRAD:
    return is_needed(plan, s->attention_grad.dq) || is_needed(plan, s->attention_grad.dk) ||
           is_needed(plan, s->attention_grad.dv) || is_needed(plan, s->attention_grad.dpattern) ||
           is_needed(plan, s->attention_grad.dscores);
  case CLEW_OP_GATHER_GRAD:
    return is_needed(plan, s->gather.out);
  case CLEW_OP_NORM_TANGENT:
    return is_needed(plan, s->norm_grad.dx);
  case CLEW_OP_RESCALE_TANGENT:
    return is_needed(plan, s->rescale_grad.g);
  case CLEW_OP_ACT_TANGENT:
    return is_needed(plan, s->act_grad.dpost);
  case CLEW_OP_SCORES_TANGENT:
    return is_needed(plan, s->attention_grad.dscores);
  case CLEW_OP_RESCALE_GRAD:
  case CLEW_OP_HEADS_GRAD: /* gradients by weights, or something that is needed */
  case CLEW_OP_OBJECTIVE:
  case CLEW_OP_OBJECTIVE_CALL:
  case CLEW_OP_LINEAR_DW:
  case CLEW_OP_EMBED_GRAD:
  case CLEW_OP_STORE:
  case CLEW_OP_METRIC:
  case CLEW_OP_LOSS:
  case CLEW_OP_APPEND:
  case CLEW_N_OPS:
    break;
  }
  return true;
}

static void mark_read(void *ctx, int32_t *b, bool write) {
  clew_plan *plan = ctx;
  if (*b != CLEW_NONE && !write) {
    plan->buffers[*b].needed = true;
  }
}

void clew_plan_prune(clew_plan *plan) {
  for (size_t i = 0; i < plan->n_buffers; i++) {
    plan->buffers[i].needed = plan->buffers[i].slab != CLEW_NONE;
  }
  for (size_t i = plan->n_steps; i-- > 0;) {
    if (keep_step(plan, &plan->steps[i])) {
      clew_step_visit(&plan->steps[i], mark_read, plan);
    } else {
      plan->steps[i].op = CLEW_N_OPS;
    }
  }
  size_t n = 0;
  for (size_t i = 0; i < plan->n_steps; i++) {
    if (plan->steps[i].op != CLEW_N_OPS) {
      plan->steps[n++] = plan->steps[i];
    }
  }
  plan->n_steps = n;
}

/* ---- Where buffers lie -------------------------------------------------------------------------------------- */

typedef struct clew_life {
  clew_plan *plan;
  int32_t step;
} clew_life;

static void mark_life(void *ctx, int32_t *b, bool write) {
  (void)write;
  clew_life *life = ctx;
  if (*b != CLEW_NONE) {
    clew_buffer *buffer = &life->plan->buffers[*b];
    if (buffer->born == CLEW_NONE) {
      buffer->born = life->step;
    }
    buffer->dies = life->step;
  }
}

/* Lowest offset at which `bytes` fit between the placed buffers that live at the same time. */
static size_t find_offset(const clew_plan *plan, const int32_t *placed, size_t n_placed, const clew_buffer *b) {
  size_t offset = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t i = 0; i < n_placed; i++) {
      const clew_buffer *other = &plan->buffers[placed[i]];
      const bool together = other->born <= b->dies && b->born <= other->dies;
      if (together && offset < other->offset + other->bytes && other->offset < offset + b->bytes) {
        offset = other->offset + other->bytes;
        moved = true;
      }
    }
  }
  return offset;
}

typedef struct clew_birth {
  int32_t step, buffer;
} clew_birth;

static int by_birth(const void *a, const void *b) {
  const clew_birth *x = a, *y = b;
  return x->step != y->step ? (x->step < y->step ? -1 : 1) : (x->buffer > y->buffer) - (x->buffer < y->buffer);
}

clew_status clew_plan_place(clew_plan *plan, clew_error *err) {
  for (size_t i = 0; i < plan->n_buffers; i++) {
    plan->buffers[i].born = plan->buffers[i].dies = CLEW_NONE;
  }
  for (size_t i = 0; i < plan->n_steps; i++) {
    clew_life life = {plan, (int32_t)i};
    clew_step_visit(&plan->steps[i], mark_life, &life);
  }
  /* Alive buffers only: placed ones whose life is over stay in the list no longer than a layer. */
  int32_t *placed = clew_alloc(plan->n_buffers + 1, sizeof *placed);
  clew_birth *order = clew_alloc(plan->n_buffers + 1, sizeof *order);
  if (placed == NULL || order == NULL) {
    clew_free(placed);
    clew_free(order);
    return clew_fail(err, CLEW_ERROR_MEMORY, "out of memory while planning %zu buffers", plan->n_buffers);
  }
  size_t n_order = 0, n_placed = 0;
  for (size_t i = 0; i < plan->n_buffers; i++) {
    if (plan->buffers[i].slab == CLEW_NONE && plan->buffers[i].born != CLEW_NONE) {
      order[n_order++] = (clew_birth){plan->buffers[i].born, (int32_t)i};
    }
  }
  qsort(order, n_order, sizeof *order, by_birth);
  for (size_t i = 0; i < n_order; i++) {
    clew_buffer *b = &plan->buffers[order[i].buffer];
    size_t n = 0;
    for (size_t j = 0; j < n_placed; j++) {
      if (plan->buffers[placed[j]].dies >= b->born) {
        placed[n++] = placed[j];
      }
    }
    n_placed = n;
    b->bytes = (b->bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    b->offset = find_offset(plan, placed, n_placed, b);
    if (b->offset + b->bytes > plan->scratch_bytes) {
      plan->scratch_bytes = b->offset + b->bytes;
    }
    placed[n_placed++] = order[i].buffer;
  }
  clew_free(placed);
  clew_free(order);
  return CLEW_OK;
}

/* ---- Cost --------------------------------------------------------------------------------------------------- */

static size_t larger(size_t a, size_t b) { return a > b ? a : b; }
static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

/* The most tiles along a side whose number depends on the threads: the last of more could be a narrow rest, which
 * another kernel multiplies. */
#define FEW_TILES 8

static size_t most_tiles(size_t length, size_t least, size_t threads) {
  return threads > 0 && least < FEW_TILES ? larger(least, smaller(FEW_TILES, length / 256)) : least;
}

/* A product of many columns: what the slowest thread computes is least. Counted with each tile's own work are 40 rows
 * for copying its columns' weights and 8 columns for reading its rows. */
static void tile_evenly(clew_tiling *t, size_t m, size_t n, size_t threads) {
  const size_t least_rows = m <= 1024 ? 1 : (m + 511) / 512, least_cols = (n + 511) / 512;
  const size_t most_rows = most_tiles(m, least_rows, threads), most_cols = most_tiles(n, least_cols, threads);
  size_t best = SIZE_MAX;
  for (size_t n_rows = least_rows; n_rows <= most_rows; n_rows++) {
    for (size_t n_cols = least_cols; n_cols <= most_cols; n_cols++) {
      const size_t rows = (m + n_rows - 1) / n_rows, cols = ((n + n_cols - 1) / n_cols + 15) / 16 * 16;
      const size_t turns = (n_rows * n_cols + larger(threads, 1) - 1) / larger(threads, 1);
      const size_t cost = turns * (rows + 40) * (cols + 8);
      if (cost < best) {
        best = cost;
        t->rows = rows, t->cols = cols;
      }
    }
  }
}

clew_tiling clew_tile(size_t m, size_t n, size_t threads) {
  clew_tiling t;
  if (threads > 0 && !clew_gemm_cuts_alike()) {
    threads = 2;
  }
  if (m <= CLEW_FEW_ROWS) {
    /* Reads the weights' rows from end to end: as long as they can be, as many parts for each thread. */
    const size_t share = larger(threads, 1);
    const size_t parts = ((n + CLEW_STREAM_COLUMNS - 1) / CLEW_STREAM_COLUMNS + share - 1) / share * share;
    t.rows = m;
    t.cols = larger(((n + parts - 1) / parts + 63) / 64 * 64, 384);
  } else if (n > 512) {
    tile_evenly(&t, m, n, threads);
  } else {
    /* Rows are copied once for each tile beside them: narrow products are cut by rows alone, where there are enough. */
    t.rows = m <= 640 ? m : n <= 256 ? 256 : 512;
    t.cols = m <= 640 ? (n + 1) / 2 : n;
    t.cols = t.cols < 16 ? 16 : t.cols;
  }
  t.n_rows = (m + t.rows - 1) / t.rows;
  t.n_cols = (n + t.cols - 1) / t.cols;
  return t;
}

static double matrix_flops(const clew_plan *plan, int32_t rowset, const clew_matrix *w) {
  return w == NULL ? 0.0 : 2.0 * (double)plan->rows[rowset].n_rows * (double)w->k * (double)(w->n * w->groups);
}

/* Pairs of query and key that attention must look at. */
static double visible_pairs(const clew_plan *plan, const clew_step *s) {
  const clew_rowset *queries = &plan->rows[s->rowset];
  double pairs = 0;
  for (int32_t b = 0; b < plan->n_seq; b++) {
    const int32_t n_keys = plan->rows[0].row0[b + 1] - plan->rows[0].row0[b]; /* not causal: nothing in the past */
    for (int32_t r = queries->row0[b]; r < queries->row0[b + 1]; r++) {
      const int32_t end = plan->model->config.causal ? queries->pos[r] + 1 : n_keys;
      const int32_t first = s->attention.window > 0 ? queries->pos[r] + 1 - s->attention.window : 0;
      pairs += end - (first > 0 ? first : 0);
    }
  }
  return pairs;
}

double clew_step_flops(const clew_plan *plan, const clew_step *s) {
  const clew_config *c = &plan->model->config;
  double flops = 0;
  switch (s->op) {
  case CLEW_OP_LINEAR:
    for (int32_t i = 0; i < s->linear.n_parts; i++) {
      flops += matrix_flops(plan, s->rowset, s->linear.part[i].w) + matrix_flops(plan, s->rowset, s->linear.part[i].w2);
    }
    return flops;
  case CLEW_OP_ATTENTION:
    return visible_pairs(plan, s) * 2.0 * c->n_heads * c->d_head * (s->attention.z == CLEW_NONE ? 1.0 : 2.0);
  case CLEW_OP_SCORES:
  case CLEW_OP_WEIGH:
    return visible_pairs(plan, s) * 2.0 * c->n_heads * c->d_head;
  case CLEW_OP_HEADS:
    return matrix_flops(plan, s->rowset, s->heads.w);
  case CLEW_OP_RESULT:
    return matrix_flops(plan, s->rowset, s->result.w);
  case CLEW_OP_METRIC:
    return plan->logits == CLEW_LOGITS_DIFFERENCE ? 4.0 * plan->n_seq * c->d_model
                                                  : matrix_flops(plan, s->rowset, &plan->model->W_U);
  case CLEW_OP_LOSS:
    return matrix_flops(plan, s->rowset, &plan->model->W_U);
  case CLEW_OP_LINEAR_DX:
    for (int32_t i = 0; i < s->dx.n_parts; i++) {
      flops += matrix_flops(plan, s->rowset, s->dx.w[i]);
    }
    return flops;
  case CLEW_OP_LINEAR_DW:
    for (int32_t i = 0; i < s->dw.n_parts; i++) {
      flops += s->dw.w[i] == CLEW_NONE ? 0 : matrix_flops(plan, s->rowset, s->dw.matrix[i]);
    }
    return flops;
  case CLEW_OP_ATTENTION_GRAD: {
    clew_step as_attention = {.rowset = s->rowset};
    as_attention.attention.window = s->attention_grad.window;
    return visible_pairs(plan, &as_attention) * 10.0 * c->n_heads * c->d_head;
  }
  case CLEW_OP_SCORES_TANGENT: {
    clew_step as_attention = {.rowset = s->rowset};
    as_attention.attention.window = s->attention_grad.window;
    return visible_pairs(plan, &as_attention) * 4.0 * c->n_heads * c->d_head;
  }
  default:
    return 0;
  }
}
