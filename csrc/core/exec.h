/* What a step sees while it runs. The op_*.c files, compiled for float and for double, each hold some operations. */
#ifndef CLEW_EXEC_H
#define CLEW_EXEC_H

#include "plan.h"
#include "pool.h"

typedef struct clew_exec {
  const clew_plan *plan;
  const clew_model *model;
  const clew_input *input;
  char *scratch;    /* [plan->scratch_bytes] */
  char **slabs;     /* [plan->n_slabs] */
  char *slots;      /* [n_slots, plan->slot_bytes] */
  unsigned n_slots; /* threads that may take part */
  clew_cancel *cancel;
  const clew_rotary_table *rotary;
  double *objective; /* its value goes here */
} clew_exec;

/* Shows a site's value to the caller's function. call.c */
clew_status clew_op_call(const clew_exec *x, const clew_step *s, clew_error *err);
clew_status clew_op_objective_call(const clew_exec *x, const clew_step *s, clew_error *err);

typedef void (*clew_op_function)(const clew_exec *x, const clew_step *s);

#define CLEW_DECLARE_OPS(suffix)                                                                                       \
  void clew_op_embed##suffix(const clew_exec *x, const clew_step *s);                                                  \
  void clew_op_input##suffix(const clew_exec *x, const clew_step *s);                                                  \
  void clew_op_norm##suffix(const clew_exec *x, const clew_step *s);                                                   \
  void clew_op_linear##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_rotary##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_attention##suffix(const clew_exec *x, const clew_step *s);                                              \
  void clew_op_result##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_add##suffix(const clew_exec *x, const clew_step *s);                                                    \
  void clew_op_spread##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_gather##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_store##suffix(const clew_exec *x, const clew_step *s);                                                  \
  void clew_op_metric##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_loss##suffix(const clew_exec *x, const clew_step *s);                                                   \
  void clew_op_edit##suffix(const clew_exec *x, const clew_step *s);                                                   \
  void clew_op_copy##suffix(const clew_exec *x, const clew_step *s);                                                   \
  void clew_op_rescale##suffix(const clew_exec *x, const clew_step *s);                                                \
  void clew_op_heads##suffix(const clew_exec *x, const clew_step *s);                                                  \
  void clew_op_sum_heads##suffix(const clew_exec *x, const clew_step *s);                                              \
  void clew_op_act##suffix(const clew_exec *x, const clew_step *s);                                                    \
  void clew_op_scores##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_softmax##suffix(const clew_exec *x, const clew_step *s);                                                \
  void clew_op_weigh##suffix(const clew_exec *x, const clew_step *s);                                                  \
  void clew_op_append##suffix(const clew_exec *x, const clew_step *s);                                                 \
  void clew_op_objective##suffix(const clew_exec *x, const clew_step *s);                                              \
  void clew_op_zero##suffix(const clew_exec *x, const clew_step *s);                                                   \
  void clew_op_add_into##suffix(const clew_exec *x, const clew_step *s);                                               \
  void clew_op_linear_dx##suffix(const clew_exec *x, const clew_step *s);                                              \
  void clew_op_linear_dw##suffix(const clew_exec *x, const clew_step *s);                                              \
  void clew_op_act_grad##suffix(const clew_exec *x, const clew_step *s);                                               \
  void clew_op_norm_grad##suffix(const clew_exec *x, const clew_step *s);                                              \
  void clew_op_rescale_grad##suffix(const clew_exec *x, const clew_step *s);                                           \
  void clew_op_rotary_grad##suffix(const clew_exec *x, const clew_step *s);                                            \
  void clew_op_attention_grad##suffix(const clew_exec *x, const clew_step *s);                                         \
  void clew_op_weigh_grad##suffix(const clew_exec *x, const clew_step *s);                                             \
  void clew_op_softmax_grad##suffix(const clew_exec *x, const clew_step *s);                                           \
  void clew_op_scores_grad##suffix(const clew_exec *x, const clew_step *s);                                            \
  void clew_op_heads_grad##suffix(const clew_exec *x, const clew_step *s);                                             \
  void clew_op_gather_grad##suffix(const clew_exec *x, const clew_step *s);                                            \
  void clew_op_embed_grad##suffix(const clew_exec *x, const clew_step *s);                                             \
  void clew_op_norm_tangent##suffix(const clew_exec *x, const clew_step *s);                                           \
  void clew_op_rescale_tangent##suffix(const clew_exec *x, const clew_step *s);                                        \
  void clew_op_act_tangent##suffix(const clew_exec *x, const clew_step *s);                                            \
  void clew_op_scores_tangent##suffix(const clew_exec *x, const clew_step *s);

CLEW_DECLARE_OPS(_f32)
CLEW_DECLARE_OPS(_f64)

static inline void *clew_buffer_data(const clew_exec *x, int32_t id) {
  if (id == CLEW_NONE) {
    return NULL;
  }
  const clew_buffer *b = &x->plan->buffers[id];
  return (b->slab == CLEW_NONE ? x->scratch : x->slabs[b->slab]) + b->offset;
}

/* One layer's array of an output. */
static inline void *clew_output_data(const clew_exec *x, int32_t output, int32_t layer) {
  const clew_kept *o = &x->plan->outputs[output];
  return x->slabs[o->info.slab] + o->info.offset + (size_t)o->at[layer] * o->layer_bytes;
}

/* The gradient by a weight; NULL where none is asked for. */
static inline void *clew_grad_data(const clew_exec *x, int32_t grad) {
  return grad == CLEW_NONE ? NULL : x->slabs[x->plan->grad_slab] + x->plan->grads[grad].info.offset;
}

static inline size_t clew_cols(const clew_exec *x, int32_t id) { return x->plan->buffers[id].cols; }

static inline int32_t clew_length(const clew_plan *plan, size_t seq) {
  return plan->rows[0].row0[seq + 1] - plan->rows[0].row0[seq];
}

/* Number of positions before a sequence's first row. */
static inline int32_t clew_past(const clew_plan *plan, size_t seq) { return plan->past != NULL ? plan->past[seq] : 0; }

/* Position that index j of an output's position axis stands for in a sequence; −1 when it lies in the padding. */
static inline int32_t clew_kept_position(const clew_plan *plan, size_t seq, size_t j) {
  const int32_t length = clew_length(plan, seq);
  int32_t pos = plan->positions ? plan->positions[j] : (int32_t)j;
  pos += pos < 0 ? length : 0;
  return pos >= 0 && pos < length ? pos : -1;
}

/* Rows that one task takes: enough values to be worth a hand-over, by shape only. */
static inline size_t clew_rows_per_task(size_t cols) {
  const size_t rows = ((size_t)1 << 14) / (cols ? cols : 1);
  return rows ? rows : 1;
}

static inline size_t clew_min(size_t a, size_t b) { return a < b ? a : b; }

#endif
