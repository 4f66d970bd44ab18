/* Attention over blocks of queries.
 *
 * Where neither scores nor pattern are captured, keys come in blocks too and the softmax streams over them, so that a
 * thread needs CLEW_QUERY_BLOCK · CLEW_KEY_BLOCK scores at most. Where they are, a block of queries is computed against
 * all keys it sees at once. Blocks above the diagonal and outside a sliding window are never computed. */
#include <math.h>
#include <string.h>

#include "blas.h"
#include "exec.h"

typedef struct R(attention_job) {
  const clew_exec *x;
  const clew_step *s;
  size_t blocks; /* of queries in the longest sequence */
} R(attention_job);

/* One head's block of queries. */
typedef struct R(block) {
  size_t seq, head;
  size_t n_queries, n_keys;    /* of the block; of the sequence */
  ptrdiff_t q0;                /* position of the first query */
  size_t low, high;            /* keys that some query of the block sees */
  const real *q, *k, *v;       /* q: [n_queries, e] of the block; k, v: [n_keys − n_past, e] own ones; strided rows */
  size_t n_past;               /* keys before them, which the cache holds */
  const real *past_k, *past_v; /* [n_past, e], strided as k and v */
  real *z;                     /* [n_queries, e], strided rows; or NULL */
  ptrdiff_t ld_q, ld_kv;
  real *scores; /* [n_queries, ld_scores] */
  ptrdiff_t ld_scores;
  real *maximum, *sum, *correction; /* [n_queries] */
} R(block);

static clew_mask R(mask)(const clew_exec *x, const clew_step *s, const R(block) * b, size_t k0) {
  const clew_config *c = &x->model->config;
  return (clew_mask){.q0 = b->q0,
                     .k0 = (ptrdiff_t)k0,
                     .window = s->attention.window,
                     .causal = c->causal,
                     .exclude_self = c->exclude_self,
                     .has_end = true,
                     .end = (ptrdiff_t)b->n_keys - (c->exclude_last ? 1 : 0)};
}

/* Rows of keys or values from `at` on, and how many of the next n lie together. */
static const real *R(key_rows)(size_t *count, const R(block) * b, const real *own, const real *past, size_t at,
                               size_t n) {
  if (at < b->n_past) {
    *count = clew_min(n, b->n_past - at);
    return past + (ptrdiff_t)at * b->ld_kv;
  }
  *count = n;
  return own + (ptrdiff_t)(at - b->n_past) * b->ld_kv;
}

/* scores [n_queries, n] = q · kᵀ for keys k0 … k0 + n */
static void R(query_key)(const R(block) * b, size_t k0, size_t n, size_t e) {
  for (size_t done = 0, count; done < n; done += count) {
    const real *k = R(key_rows)(&count, b, b->k, b->past_k, k0 + done, n - done);
    (void)R(clew_gemm_whole)(b->scores + done, b->ld_scores, 1, b->q, b->ld_q, 1, k, 1, b->ld_kv, b->n_queries, count,
                             e, 1, 0);
  }
}

/* z (+)= scores · v for keys k0 … k0 + n */
static void R(weigh_values)(const R(block) * b, size_t k0, size_t n, size_t e, bool add) {
  for (size_t done = 0, count; done < n; done += count) {
    const real *v = R(key_rows)(&count, b, b->v, b->past_v, k0 + done, n - done);
    (void)R(clew_gemm_whole)(b->z, b->ld_q, 1, b->scores + done, b->ld_scores, 1, v, b->ld_kv, 1, b->n_queries, e,
                             count, 1, add || done > 0 ? 1 : 0);
  }
}

/* factor [n_queries] = 1 / the number of keys each query sees */
static void R(linear_factor)(real *factor, const clew_exec *x, const clew_step *s, const R(block) * b) {
  const clew_config *c = &x->model->config;
  for (size_t i = 0; i < b->n_queries; i++) {
    ptrdiff_t n = c->linear_n;
    if (n == 0) {
      const ptrdiff_t pos = b->q0 + (ptrdiff_t)i, window = s->attention.window;
      const ptrdiff_t first = window > 0 && pos - window + 1 > 0 ? pos - window + 1 : 0;
      const ptrdiff_t end = (ptrdiff_t)b->n_keys - (c->exclude_last ? 1 : 0);
      n = (c->causal ? pos + 1 : end) - first - (c->exclude_self && pos < end ? 1 : 0);
    }
    factor[i] = n > 0 ? 1 / (real)n : 0;
  }
}

static void R(stream)(const clew_exec *x, const clew_step *s, const R(block) * b, size_t e) {
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  const clew_config *c = &x->model->config;
  const real scale = (real)s->attention.scale, cap = (real)c->score_softcap;
  if (c->linear_attention) {
    R(linear_factor)(b->sum, x, s, b);
  } else {
    for (size_t i = 0; i < b->n_queries; i++) {
      b->maximum[i] = -(real)INFINITY, b->sum[i] = 0;
    }
  }
  for (size_t k0 = b->low; k0 < b->high; k0 += CLEW_KEY_BLOCK) {
    const size_t n = clew_min(CLEW_KEY_BLOCK, b->high - k0);
    const clew_mask mask = R(mask)(x, s, b, k0);
    R(query_key)(b, k0, n, e);
    if (c->linear_attention) {
      kernels->score(b->scores, b->ld_scores, b->n_queries, n, scale, cap, &mask);
      kernels->score_linear(b->scores, b->ld_scores, b->n_queries, n, b->sum, &mask);
    } else {
      kernels->softmax_block(b->scores, b->ld_scores, b->maximum, b->sum, b->correction, b->n_queries, n, scale, cap,
                             &mask);
      if (k0 > b->low) {
        kernels->scale_rows(b->z, b->ld_q, b->correction, b->n_queries, e, false);
      }
    }
    R(weigh_values)(b, k0, n, e, k0 > b->low);
  }
  if (!c->linear_attention) {
    kernels->scale_rows(b->z, b->ld_q, b->sum, b->n_queries, e, true);
  }
}

/* Rows of the block to an output [n_seq, h, n_positions, most_keys]; keys that no query of it sees get `unseen`. */
static void R(keep)(const clew_exec *x, const clew_step *s, const R(block) * b, int32_t output, real unseen) {
  const clew_plan *plan = x->plan;
  const size_t longest = (size_t)plan->most_keys;
  real *out = (real *)clew_output_data(x, output, s->layer) +
              (b->seq * (size_t)x->model->config.n_heads + b->head) * plan->n_positions * longest;
  const bool all = plan->positions == NULL;
  const size_t first = (size_t)b->q0 - b->n_past; /* in the sequence's own rows */
  for (size_t j = all ? first : 0; j < (all ? first + b->n_queries : plan->n_positions); j++) {
    const ptrdiff_t row = clew_kept_position(plan, b->seq, j) - (ptrdiff_t)first;
    if (row < 0 || row >= (ptrdiff_t)b->n_queries) {
      continue;
    }
    real *to = out + j * longest;
    for (size_t k = 0; k < b->low; k++) {
      to[k] = unseen;
    }
    memcpy(to + b->low, b->scores + row * b->ld_scores, (b->high - b->low) * sizeof *to);
    for (size_t k = b->high; k < longest; k++) {
      to[k] = unseen;
    }
  }
}

/* Positions of the output that this sequence does not reach hold zeros. */
static void R(clear_padding)(const clew_exec *x, const clew_step *s, size_t seq, size_t head, int32_t output) {
  const clew_plan *plan = x->plan;
  const size_t longest = (size_t)plan->most_keys;
  real *out = (real *)clew_output_data(x, output, s->layer) +
              (seq * (size_t)x->model->config.n_heads + head) * plan->n_positions * longest;
  for (size_t j = 0; j < plan->n_positions; j++) {
    if (clew_kept_position(plan, seq, j) < 0) {
      memset(out + j * longest, 0, longest * sizeof *out);
    }
  }
}

static void R(materialise)(const clew_exec *x, const clew_step *s, const R(block) * b, size_t e) {
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  const clew_config *c = &x->model->config;
  const size_t n = b->high - b->low;
  const clew_mask mask = R(mask)(x, s, b, b->low);
  R(query_key)(b, b->low, n, e);
  kernels->score(b->scores, b->ld_scores, b->n_queries, n, (real)s->attention.scale, (real)c->score_softcap, &mask);
  if (s->attention.scores != CLEW_NONE) {
    R(keep)(x, s, b, s->attention.scores, -(real)INFINITY);
  }
  if (c->linear_attention) {
    R(linear_factor)(b->sum, x, s, b);
    kernels->score_linear(b->scores, b->ld_scores, b->n_queries, n, b->sum, &mask);
  } else {
    kernels->softmax(b->scores, b->ld_scores, b->n_queries, n);
  }
  if (s->attention.pattern != CLEW_NONE) {
    R(keep)(x, s, b, s->attention.pattern, 0);
  }
  if (b->z != NULL) {
    R(weigh_values)(b, b->low, n, e, false);
  }
}

/* The block of queries that a task is about; false when the sequence has no such block. Its scores are not placed. */
static bool R(find_block)(R(block) * b, const R(attention_job) * job, size_t index) {
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  const clew_rowset *queries = &x->plan->rows[s->rowset], *keys = &x->plan->rows[0];
  const size_t h = (size_t)c->n_heads, g = (size_t)c->n_kv_heads, e = (size_t)c->d_head;
  *b = (R(block)){.head = index % h, .seq = index / h / job->blocks};
  const size_t block = job->blocks - 1 - index / h % job->blocks; /* the long rows first */
  const size_t first = block * CLEW_QUERY_BLOCK;                  /* in the sequence's own queries */
  const size_t n_all = (size_t)(queries->row0[b->seq + 1] - queries->row0[b->seq]);
  if (first >= n_all) {
    return false;
  }
  const size_t row = (size_t)queries->row0[b->seq] + first, key_row = (size_t)keys->row0[b->seq];
  b->n_past = (size_t)clew_past(x->plan, b->seq);
  b->n_queries = clew_min(CLEW_QUERY_BLOCK, n_all - first);
  b->n_keys = b->n_past + (size_t)clew_length(x->plan, b->seq);
  b->q0 = queries->pos[row];
  b->high = c->causal ? (size_t)b->q0 + b->n_queries : b->n_keys;
  b->low =
      s->attention.window > 0 && b->q0 - s->attention.window + 1 > 0 ? (size_t)(b->q0 - s->attention.window + 1) : 0;
  b->ld_q = (ptrdiff_t)(h * e), b->ld_kv = (ptrdiff_t)(g * e);
  const size_t kv = key_row * g * e + b->head / (h / g) * e, query = row * h * e + b->head * e;
  if (b->n_past > 0) {
    const clew_cache *cache = x->input->cache;
    const size_t at = (size_t)x->plan->past_seq[b->seq] * cache->capacity * g * e + b->head / (h / g) * e;
    b->past_k = (const real *)cache->k[s->layer] + at, b->past_v = (const real *)cache->v[s->layer] + at;
  }
  if (s->attention.q != CLEW_NONE) {
    b->q = (const real *)clew_buffer_data(x, s->attention.q) + query;
    b->k = (const real *)clew_buffer_data(x, s->attention.k) + kv;
  }
  if (s->attention.z != CLEW_NONE) {
    b->v = (const real *)clew_buffer_data(x, s->attention.v) + kv;
    b->z = (real *)clew_buffer_data(x, s->attention.z) + query;
  }
  return true;
}

static void R(attention_task)(void *ctx, size_t index, unsigned slot) {
  const R(attention_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const size_t h = (size_t)x->model->config.n_heads, e = (size_t)x->model->config.d_head;
  if (index / h % job->blocks == job->blocks - 1) { /* the first block */
    for (int i = 0; i < 2; i++) {
      const int32_t output = i == 0 ? s->attention.scores : s->attention.pattern;
      if (output != CLEW_NONE) {
        R(clear_padding)(x, s, index / h / job->blocks, index % h, output);
      }
    }
  }
  R(block) b;
  if (!R(find_block)(&b, job, index)) {
    return;
  }
  real *own = (real *)(x->slots + slot * x->plan->slot_bytes);
  b.maximum = own, b.sum = own + CLEW_QUERY_BLOCK, b.correction = own + 2 * CLEW_QUERY_BLOCK;
  b.scores = own + 3 * CLEW_QUERY_BLOCK;
  const bool whole = s->attention.scores != CLEW_NONE || s->attention.pattern != CLEW_NONE;
  const size_t most = (size_t)x->plan->most_keys;
  b.ld_scores = (ptrdiff_t)(whole ? most : clew_min(most, CLEW_KEY_BLOCK));
  if (whole) {
    R(materialise)(x, s, &b, e);
  } else {
    R(stream)(x, s, &b, e);
  }
}

static void R(for_blocks)(const clew_exec *x, const clew_step *s, clew_task task) {
  R(attention_job) job = {.x = x, .s = s};
  const size_t longest = (size_t)x->plan->rows[s->rowset].longest;
  job.blocks = (longest + CLEW_QUERY_BLOCK - 1) / CLEW_QUERY_BLOCK;
  clew_pool_for((size_t)x->plan->n_seq * job.blocks * (size_t)x->model->config.n_heads, task, &job, x->n_slots,
                x->cancel);
}

void R(clew_op_attention)(const clew_exec *x, const clew_step *s) { R(for_blocks)(x, s, R(attention_task)); }

/* ---- In parts: scores, pattern and z where one of the first two is changed on the way ----------------------- */

/* Rows of a block in a square [n_seq, h, queries, most_keys]. */
static real *R(square_rows)(const clew_exec *x, const clew_step *s, int32_t square, const R(block) * b) {
  const size_t most = (size_t)x->plan->most_keys, queries = (size_t)x->plan->rows[s->rowset].longest;
  const size_t first = s->rowset == 0 ? (size_t)b->q0 - b->n_past : 0;
  const size_t heads = (size_t)x->model->config.n_heads;
  return (real *)clew_buffer_data(x, square) + ((b->seq * heads + b->head) * queries + first) * most;
}

static void R(scores_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(attention_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  R(block) b;
  if (!R(find_block)(&b, job, index)) {
    return;
  }
  const size_t most = (size_t)x->plan->most_keys, n = b.high - b.low;
  real *rows = R(square_rows)(x, s, s->attention.scores_out, &b);
  b.scores = rows + b.low, b.ld_scores = (ptrdiff_t)most;
  const clew_mask mask = R(mask)(x, s, &b, b.low);
  R(query_key)(&b, b.low, n, (size_t)c->d_head);
  R(clew_get_kernels)
  ()->score(b.scores, b.ld_scores, b.n_queries, n, (real)s->attention.scale, (real)c->score_softcap, &mask);
  for (size_t i = 0; i < b.n_queries; i++) {
    for (size_t k = 0; k < most; k++) {
      if (k < b.low || k >= b.high) {
        rows[i * most + k] = -(real)INFINITY;
      }
    }
  }
}

/* Squares start empty: rows behind a sequence's end hold zeros. */
static void R(clear_square)(const clew_exec *x, int32_t square) {
  if (x->plan->ragged) {
    memset(clew_buffer_data(x, square), 0, x->plan->buffers[square].bytes);
  }
}

void R(clew_op_scores)(const clew_exec *x, const clew_step *s) {
  R(clear_square)(x, s->attention.scores_out);
  R(for_blocks)(x, s, R(scores_task));
}

static void R(softmax_task)(void *ctx, size_t index, unsigned slot) {
  const R(attention_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  const clew_step as_attention = {.op = s->op, /* what a block is found by */
                                  .layer = s->layer,
                                  .rowset = s->rowset,
                                  .attention = {.q = CLEW_NONE, .z = CLEW_NONE, .window = s->softmax.window}};
  const R(attention_job) as_job = {x, &as_attention, job->blocks};
  R(block) b;
  if (!R(find_block)(&b, &as_job, index)) {
    return;
  }
  const size_t most = (size_t)x->plan->most_keys;
  const real *in = R(square_rows)(x, s, s->softmax.in, &b);
  real *out = R(square_rows)(x, s, s->softmax.out, &b);
  if (out != in) {
    memcpy(out, in, b.n_queries * most * sizeof *out);
  }
  if (x->model->config.linear_attention) {
    real *own = (real *)(x->slots + slot * x->plan->slot_bytes);
    const clew_mask mask = R(mask)(x, &as_attention, &b, 0);
    R(linear_factor)(own, x, &as_attention, &b);
    kernels->score_linear(out, (ptrdiff_t)most, b.n_queries, most, own, &mask);
  } else {
    kernels->softmax(out, (ptrdiff_t)most, b.n_queries, most);
  }
}

void R(clew_op_softmax)(const clew_exec *x, const clew_step *s) {
  if (s->softmax.out != s->softmax.in) {
    R(clear_square)(x, s->softmax.out);
  }
  R(for_blocks)(x, s, R(softmax_task));
}

static void R(weigh_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(attention_job) *job = ctx;
  const clew_exec *x = job->x;
  R(block) b;
  if (!R(find_block)(&b, job, index)) {
    return;
  }
  b.scores = R(square_rows)(x, job->s, job->s->attention.pattern_in, &b);
  b.ld_scores = (ptrdiff_t)x->plan->most_keys;
  R(weigh_values)(&b, 0, b.n_keys, (size_t)x->model->config.d_head, false); /* an edit may show any key */
}

void R(clew_op_weigh)(const clew_exec *x, const clew_step *s) { R(for_blocks)(x, s, R(weigh_task)); }

/* ---- Backward ------------------------------------------------------------------------------------------------- */

/* What the backward pass needs of one key-value head: all of its queries are one task's, so that sums over them are
 * nobody else's. */
typedef struct R(back_block) {
  R(block) b;
  real *dq, *dk, *dv; /* strided as q, k, v; NULL: not wanted */
  const real *dz;     /* [n_queries, e], as q */
  size_t e;
} R(back_block);

static clew_step R(as_attention)(const clew_step *s) {
  clew_step out = {.op = s->op, .layer = s->layer, .rowset = s->rowset};
  out.attention.q = s->attention_grad.q, out.attention.k = s->attention_grad.k, out.attention.v = s->attention_grad.v;
  out.attention.z = CLEW_NONE;
  out.attention.window = s->attention_grad.window, out.attention.scale = s->attention_grad.scale;
  return out;
}

/* dscores, where p holds the pattern and g its gradient, both [n_queries, n] from key `low` on. */
static void R(scores_from_pattern)(const clew_exec *x, const clew_step *as, const R(block) * b, real *g, const real *p,
                                   size_t low, size_t n, real *factor) {
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  if (x->model->config.linear_attention) {
    const clew_mask mask = R(mask)(x, as, b, low);
    R(linear_factor)(factor, x, as, b);
    kernels->score_linear(g, b->ld_scores, b->n_queries, n, factor, &mask);
  } else {
    kernels->softmax_grad(g, p, b->ld_scores, b->n_queries, n);
  }
}

/* Through scale and soft-cap: g [n_queries, n] becomes the gradient of q · k, given the scores as they were. */
static void R(through_cap)(const clew_exec *x, const R(block) * b, real *g, const real *scores, size_t n, real scale) {
  const real cap = (real)x->model->config.score_softcap;
  for (size_t i = 0; i < b->n_queries; i++) {
    real *row = g + (ptrdiff_t)i * b->ld_scores;
    const real *s = scores + (ptrdiff_t)i * b->ld_scores;
    for (size_t k = 0; k < n; k++) {
      const real t = cap > 0 ? s[k] / cap : 0;
      row[k] = s[k] == -(real)INFINITY ? 0 : row[k] * scale * (1 - t * t);
    }
  }
}

/* dq, dk of a block from g = gradient of q · k for keys low … low + n. */
static void R(query_key_back)(const R(back_block) * t, const real *g, size_t low, size_t n) {
  const R(block) *b = &t->b;
  const ptrdiff_t at = (ptrdiff_t)low * b->ld_kv;
  (void)R(clew_gemm_whole)(t->dq, b->ld_q, 1, g, b->ld_scores, 1, b->k + at, b->ld_kv, 1, b->n_queries, t->e, n, 1, 0);
  (void)R(clew_gemm_whole)(t->dk + at, b->ld_kv, 1, g, 1, b->ld_scores, b->q, b->ld_q, 1, n, t->e, b->n_queries, 1, 1);
}

/* g [n_queries, n] = dz · vᵀ, and dv += patternᵀ · dz */
static void R(values_back)(const R(back_block) * t, real *g, const real *p, size_t low, size_t n) {
  const R(block) *b = &t->b;
  const ptrdiff_t at = (ptrdiff_t)low * b->ld_kv;
  (void)R(clew_gemm_whole)(g, b->ld_scores, 1, t->dz, b->ld_q, 1, b->v + at, 1, b->ld_kv, b->n_queries, n, t->e, 1, 0);
  (void)R(clew_gemm_whole)(t->dv + at, b->ld_kv, 1, p, 1, b->ld_scores, t->dz, b->ld_q, 1, n, t->e, b->n_queries, 1, 1);
}

/* ---- Forward derivative: scores' tangent = scale (dq · k + q · dk), through the soft-cap ----------------------- */

static void R(scores_tangent_task)(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  const R(attention_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  const size_t e = (size_t)c->d_head, most = (size_t)x->plan->most_keys;
  const clew_step as = R(as_attention)(s);
  const R(attention_job) as_job = {x, &as, job->blocks};
  R(block) b;
  if (!R(find_block)(&b, &as_job, index)) {
    return;
  }
  const real *q = clew_buffer_data(x, as.attention.q), *k = clew_buffer_data(x, as.attention.k);
  const real *dq = clew_buffer_data(x, s->attention_grad.dq); /* [rows, h, e] or NULL */
  const real *dk = clew_buffer_data(x, s->attention_grad.dk); /* [rows, g, e] or NULL */
  real *out = R(square_rows)(x, s, s->attention_grad.dscores, &b);
  const size_t n = b.n_keys;
  if (dq != NULL) {
    (void)R(clew_gemm_whole)(out, (ptrdiff_t)most, 1, dq + (b.q - q), b.ld_q, 1, b.k, 1, b.ld_kv, b.n_queries, n, e, 1,
                             0);
  }
  if (dk != NULL) {
    (void)R(clew_gemm_whole)(out, (ptrdiff_t)most, 1, b.q, b.ld_q, 1, dk + (b.k - k), 1, b.ld_kv, b.n_queries, n, e, 1,
                             dq != NULL ? 1 : 0);
  }
  for (size_t i = 0; i < b.n_queries; i++) {
    memset(out + i * most + n, 0, (most - n) * sizeof *out);
  }
  b.ld_scores = (ptrdiff_t)most;
  R(through_cap)(x, &b, out, R(square_rows)(x, s, s->attention_grad.scores, &b), n, (real)s->attention_grad.scale);
}

void R(clew_op_scores_tangent)(const clew_exec *x, const clew_step *s) {
  R(clear_square)(x, s->attention_grad.dscores);
  R(for_blocks)(x, s, R(scores_tangent_task));
}

/* ---- Backward, block by block --------------------------------------------------------------------------------- */

/* One block of the fused step. */
static void R(attention_block_back)(const clew_exec *x, const clew_step *as, R(back_block) * t, real *own) {
  const R(clew_kernels) *kernels = R(clew_get_kernels)();
  const clew_config *c = &x->model->config;
  R(block) *b = &t->b;
  const size_t most = (size_t)x->plan->most_keys, n = b->high - b->low;
  const size_t queries = clew_min((size_t)x->plan->longest, CLEW_QUERY_BLOCK);
  b->ld_scores = (ptrdiff_t)n;
  real *scores = own, *p = own + queries * most, *g = p + queries * most, *factor = g + queries * most;
  const clew_mask mask = R(mask)(x, as, b, b->low);
  b->scores = p;
  R(query_key)(b, b->low, n, t->e);
  kernels->score(p, b->ld_scores, b->n_queries, n, (real)as->attention.scale, (real)c->score_softcap, &mask);
  memcpy(scores, p, b->n_queries * n * sizeof *p);
  if (c->linear_attention) {
    R(linear_factor)(factor, x, as, b);
    kernels->score_linear(p, b->ld_scores, b->n_queries, n, factor, &mask);
  } else {
    kernels->softmax(p, b->ld_scores, b->n_queries, n);
  }
  R(values_back)(t, g, p, b->low, n);
  R(scores_from_pattern)(x, as, b, g, p, b->low, n, factor);
  R(through_cap)(x, b, g, scores, n, (real)as->attention.scale);
  R(query_key_back)(t, g, b->low, n);
}

/* One block of the steps that stand apart; squares' rows belong to this head alone. */
static void R(apart_block_back)(const clew_exec *x, const clew_step *s, const clew_step *as, R(back_block) * t,
                                real *own) {
  R(block) *b = &t->b;
  const size_t most = (size_t)x->plan->most_keys;
  b->ld_scores = (ptrdiff_t)most;
  if (s->op == CLEW_OP_WEIGH_GRAD) {
    real *g = R(square_rows)(x, s, s->attention_grad.dpattern, b);
    R(values_back)(t, g, R(square_rows)(x, s, s->attention_grad.pattern, b), 0, b->n_keys);
    for (size_t i = 0; i < b->n_queries; i++) {
      for (size_t k = b->n_keys; k < most; k++) {
        g[i * most + k] = 0;
      }
    }
  } else if (s->op == CLEW_OP_SOFTMAX_GRAD) {
    real *g = R(square_rows)(x, s, s->attention_grad.dscores, b);
    memcpy(g, R(square_rows)(x, s, s->attention_grad.dpattern, b), b->n_queries * most * sizeof *g);
    R(scores_from_pattern)(x, as, b, g, R(square_rows)(x, s, s->attention_grad.pattern, b), 0, most, own);
  } else {
    real *g = R(square_rows)(x, s, s->attention_grad.dscores, b);
    const real *scores = R(square_rows)(x, s, s->attention_grad.scores, b);
    R(through_cap)(x, b, g, scores, most, (real)as->attention.scale);
    R(query_key_back)(t, g, 0, b->n_keys);
  }
}

static void R(attention_grad_task)(void *ctx, size_t index, unsigned slot) {
  const R(attention_job) *job = ctx;
  const clew_exec *x = job->x;
  const clew_step *s = job->s;
  const clew_config *c = &x->model->config;
  const size_t h = (size_t)c->n_heads, g = (size_t)c->n_kv_heads, e = (size_t)c->d_head;
  const size_t seq = index / g, kv = index % g, n_keys = (size_t)clew_length(x->plan, seq);
  const size_t first = ((size_t)x->plan->rows[0].row0[seq] * g + kv) * e;
  real *own = (real *)(x->slots + slot * x->plan->slot_bytes);
  real *dk = clew_buffer_data(x, s->attention_grad.dk), *dv = clew_buffer_data(x, s->attention_grad.dv);
  real *dq = clew_buffer_data(x, s->attention_grad.dq);
  const real *dz = clew_buffer_data(x, s->attention_grad.dz), *v = clew_buffer_data(x, s->attention_grad.v);
  for (size_t i = 0; i < n_keys; i++) {
    if (dk != NULL) {
      memset(dk + first + i * g * e, 0, e * sizeof *dk);
    }
    if (dv != NULL) {
      memset(dv + first + i * g * e, 0, e * sizeof *dv);
    }
  }
  const clew_step as = R(as_attention)(s);
  const R(attention_job) as_job = {x, &as, job->blocks};
  for (size_t head = kv * (h / g); head < (kv + 1) * (h / g); head++) {
    for (size_t block = 0; block < job->blocks; block++) {
      R(back_block) t = {.e = e};
      if (!R(find_block)(&t.b, &as_job, (seq * job->blocks + job->blocks - 1 - block) * h + head)) {
        continue;
      }
      const size_t row = (size_t)x->plan->rows[s->rowset].row0[seq] + block * CLEW_QUERY_BLOCK;
      const size_t query = (row * h + head) * e;
      t.dq = dq ? dq + query : NULL, t.dk = dk ? dk + first : NULL, t.dv = dv ? dv + first : NULL;
      t.dz = dz ? dz + query : NULL;
      t.b.v = v ? v + first : NULL;
      if (s->op == CLEW_OP_ATTENTION_GRAD) {
        R(attention_block_back)(x, &as, &t, own);
      } else {
        R(apart_block_back)(x, s, &as, &t, own);
      }
    }
  }
}

void R(clew_op_attention_grad)(const clew_exec *x, const clew_step *s) {
  R(attention_job) job = {.x = x, .s = s};
  const size_t longest = (size_t)x->plan->rows[s->rowset].longest;
  job.blocks = (longest + CLEW_QUERY_BLOCK - 1) / CLEW_QUERY_BLOCK;
  const int32_t square = s->op == CLEW_OP_WEIGH_GRAD     ? s->attention_grad.dpattern
                         : s->op == CLEW_OP_SOFTMAX_GRAD ? s->attention_grad.dscores
                                                         : CLEW_NONE;
  if (square != CLEW_NONE) {
    R(clear_square)(x, square);
  }
  clew_pool_for((size_t)x->plan->n_seq * (size_t)x->model->config.n_kv_heads, R(attention_grad_task), &job, x->n_slots,
                x->cancel);
}

void R(clew_op_weigh_grad)(const clew_exec *x, const clew_step *s) { R(clew_op_attention_grad)(x, s); }
void R(clew_op_softmax_grad)(const clew_exec *x, const clew_step *s) { R(clew_op_attention_grad)(x, s); }
void R(clew_op_scores_grad)(const clew_exec *x, const clew_step *s) { R(clew_op_attention_grad)(x, s); }
