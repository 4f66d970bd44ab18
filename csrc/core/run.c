/* The executor: checks the input, gets the memory a plan asked for, and runs its steps one after the other. */
#include <stdatomic.h>
#include <string.h>

#include "blas.h"
#include "exec.h"

struct clew_run {
  clew_slab **slabs; /* [n_slabs] */
  size_t n_slabs;
  double objective;
};

#define OPS(suffix)                                                                                                    \
  {                                                                                                                    \
    [CLEW_OP_EMBED] = clew_op_embed##suffix, [CLEW_OP_INPUT] = clew_op_input##suffix,                                  \
    [CLEW_OP_NORM] = clew_op_norm##suffix, [CLEW_OP_LINEAR] = clew_op_linear##suffix,                                  \
    [CLEW_OP_ROTARY] = clew_op_rotary##suffix, [CLEW_OP_ATTENTION] = clew_op_attention##suffix,                        \
    [CLEW_OP_RESULT] = clew_op_result##suffix, [CLEW_OP_ADD] = clew_op_add##suffix,                                    \
    [CLEW_OP_SPREAD] = clew_op_spread##suffix, [CLEW_OP_GATHER] = clew_op_gather##suffix,                              \
    [CLEW_OP_STORE] = clew_op_store##suffix, [CLEW_OP_LOSS] = clew_op_loss##suffix,                                    \
    [CLEW_OP_METRIC] = clew_op_metric##suffix, [CLEW_OP_EDIT] = clew_op_edit##suffix,                                  \
    [CLEW_OP_COPY] = clew_op_copy##suffix, [CLEW_OP_SCALE] = clew_op_rescale##suffix,                                  \
    [CLEW_OP_NORMALIZE] = clew_op_rescale##suffix, [CLEW_OP_AFFINE] = clew_op_rescale##suffix,                         \
    [CLEW_OP_HEADS] = clew_op_heads##suffix, [CLEW_OP_SUM_HEADS] = clew_op_sum_heads##suffix,                          \
    [CLEW_OP_ACT] = clew_op_act##suffix, [CLEW_OP_SCORES] = clew_op_scores##suffix,                                    \
    [CLEW_OP_SOFTMAX] = clew_op_softmax##suffix, [CLEW_OP_WEIGH] = clew_op_weigh##suffix,                              \
    [CLEW_OP_APPEND] = clew_op_append##suffix, [CLEW_OP_OBJECTIVE] = clew_op_objective##suffix,                        \
    [CLEW_OP_ZERO] = clew_op_zero##suffix, [CLEW_OP_ADD_INTO] = clew_op_add_into##suffix,                              \
    [CLEW_OP_LINEAR_DX] = clew_op_linear_dx##suffix, [CLEW_OP_LINEAR_DW] = clew_op_linear_dw##suffix,                  \
    [CLEW_OP_ACT_GRAD] = clew_op_act_grad##suffix, [CLEW_OP_SOFTCAP_GRAD] = clew_op_act_grad##suffix,                  \
    [CLEW_OP_NORM_GRAD] = clew_op_norm_grad##suffix, [CLEW_OP_RESCALE_GRAD] = clew_op_rescale_grad##suffix,            \
    [CLEW_OP_ROTARY_GRAD] = clew_op_rotary_grad##suffix, [CLEW_OP_ATTENTION_GRAD] = clew_op_attention_grad##suffix,    \
    [CLEW_OP_WEIGH_GRAD] = clew_op_weigh_grad##suffix, [CLEW_OP_SOFTMAX_GRAD] = clew_op_softmax_grad##suffix,          \
    [CLEW_OP_SCORES_GRAD] = clew_op_scores_grad##suffix, [CLEW_OP_HEADS_GRAD] = clew_op_heads_grad##suffix,            \
    [CLEW_OP_GATHER_GRAD] = clew_op_gather_grad##suffix, [CLEW_OP_EMBED_GRAD] = clew_op_embed_grad##suffix,            \
    [CLEW_OP_NORM_TANGENT] = clew_op_norm_tangent##suffix,                                                             \
    [CLEW_OP_RESCALE_TANGENT] = clew_op_rescale_tangent##suffix, [CLEW_OP_ACT_TANGENT] = clew_op_act_tangent##suffix,  \
    [CLEW_OP_SCORES_TANGENT] = clew_op_scores_tangent##suffix                                                          \
  }

static const clew_op_function ops[2][CLEW_N_OPS] = {[CLEW_FLOAT32] = OPS(_f32), [CLEW_FLOAT64] = OPS(_f64)};

static clew_status check_objective(const clew_plan *plan, const clew_input *input, clew_error *err) {
  if (plan->objective == CLEW_OBJECTIVE_NONE || plan->objective == CLEW_OBJECTIVE_TANGENTS) {
    return CLEW_OK;
  }
  if (plan->objective == CLEW_OBJECTIVE_CALL) {
    return input->call != NULL ? CLEW_OK
                               : clew_fail(err, CLEW_ERROR_VALUE, "the objective calls a function: none is given");
  }
  if (input->targets == NULL) {
    return clew_fail(err, CLEW_ERROR_VALUE, "the objective needs targets");
  }
  const clew_config *c = &plan->model->config;
  const size_t n_rows = clew_plan_n_objective_rows(plan);
  const int32_t *targets = plan->objective == CLEW_OBJECTIVE_CROSS_ENTROPY ? input->targets : NULL;
  double total = 0;
  for (size_t r = 0; r < n_rows; r++) {
    if (targets != NULL && targets[r] >= c->d_vocab_out) {
      return clew_fail(err, CLEW_ERROR_TOKEN, "target %d in row %zu: there are logits 0 to %d", targets[r], r,
                       c->d_vocab_out - 1);
    }
    const double weight = input->weights == NULL     ? 1.0
                          : c->dtype == CLEW_FLOAT32 ? (double)((const float *)input->weights)[r]
                                                     : ((const double *)input->weights)[r];
    if (!(weight >= 0) || weight > 1e300) {
      return clew_fail(err, CLEW_ERROR_VALUE, "the weight of row %zu is %g: weights are finite and not negative", r,
                       weight);
    }
    total += targets != NULL && targets[r] < 0 ? 0.0 : weight;
  }
  return total > 0 ? CLEW_OK : clew_fail(err, CLEW_ERROR_VALUE, "no row has a target: their weights sum to 0");
}

static clew_status check_metric(const clew_plan *plan, const clew_input *input, clew_error *err) {
  if (!clew_is_metric(plan->logits)) {
    return CLEW_OK;
  }
  const bool kl = plan->logits == CLEW_LOGITS_KL;
  if (input->picks == NULL || (kl && input->reference == NULL)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a metric needs the tokens that it reads%s", kl ? " and a reference" : "");
  }
  const size_t n = kl ? input->n_reference : (size_t)plan->model->config.d_vocab_out;
  const int used = plan->logits == CLEW_LOGITS_DIFFERENCE ? 2 : 1;
  for (size_t i = 0; i < (size_t)plan->n_seq; i++) {
    for (int j = 0; j < used; j++) {
      const int32_t pick = input->picks[2 * i + (size_t)j];
      if (pick < 0 || (size_t)pick >= n) {
        return clew_fail(err, CLEW_ERROR_TOKEN, "%s %d of sequence %zu: there are %zu", kl ? "reference" : "logit",
                         pick, i, n);
      }
    }
  }
  return CLEW_OK;
}

static clew_status check_input(const clew_plan *plan, const clew_input *input, clew_error *err) {
  if (plan->from_embeddings && input->embeddings == NULL) {
    return clew_fail(err, CLEW_ERROR_SHAPE, "the run starts from embeddings, but none are given");
  }
  const bool vectors = plan->model->config.vector_input;
  if (vectors && !plan->from_embeddings && input->vectors == NULL) {
    return clew_fail(err, CLEW_ERROR_SHAPE, "the model reads vectors of %d values, but none are given",
                     plan->model->config.d_vocab);
  }
  if (!vectors && !plan->from_embeddings && input->tokens == NULL) {
    return clew_fail(err, CLEW_ERROR_TOKEN, "no tokens are given");
  }
  if (plan->logits == CLEW_LOGITS_LOSS && input->tokens == NULL) {
    return clew_fail(err, CLEW_ERROR_TOKEN, "a loss needs tokens: they are its targets");
  }
  bool past = plan->append;
  for (int32_t i = 0; i < plan->n_seq && plan->model->config.n_layers > 0 && (plan->past || plan->append); i++) {
    const int32_t seq = plan->past_seq != NULL ? plan->past_seq[i] : i;
    const size_t most = (size_t)clew_past(plan, (size_t)i) + (plan->append ? (size_t)clew_length(plan, (size_t)i) : 0);
    past = past || most > 0;
    if (past && (input->cache == NULL || (size_t)seq >= input->cache->n_seq || most > input->cache->capacity)) {
      return clew_fail(err, CLEW_ERROR_SHAPE,
                       "prompt %d needs %zu positions of sequence %d of a cache; it has %zu sequences of %zu", i, most,
                       seq, input->cache ? input->cache->n_seq : 0, input->cache ? input->cache->capacity : 0);
    }
  }
  clew_status status = check_objective(plan, input, err);
  status = status != CLEW_OK ? status : check_metric(plan, input, err);
  if (status != CLEW_OK) {
    return status;
  }
  for (size_t i = 0; i < plan->n_edits && input->call == NULL; i++) {
    if (plan->edits[i].kind == CLEW_EDIT_CALL) {
      return clew_fail(err, CLEW_ERROR_VALUE, "edit %zu calls a function, but none is given", i);
    }
  }
  if (input->tokens == NULL) {
    return CLEW_OK;
  }
  const clew_config *c = &plan->model->config;
  for (size_t seq = 0; seq < (size_t)plan->n_seq; seq++) {
    const int32_t *row0 = plan->rows[0].row0;
    for (int32_t r = row0[seq]; r < row0[seq + 1]; r++) {
      if (input->tokens[r] < 0 || input->tokens[r] >= c->d_vocab) {
        return clew_fail(err, CLEW_ERROR_TOKEN, "token %d at position %d of prompt %zu: the vocabulary has ids 0 to %d",
                         input->tokens[r], r - row0[seq], seq, c->d_vocab - 1);
      }
      if (plan->logits == CLEW_LOGITS_LOSS && r > row0[seq] && input->tokens[r] >= c->d_vocab_out) {
        return clew_fail(err, CLEW_ERROR_TOKEN, "token %d at position %d of prompt %zu has no logit: there are %d",
                         input->tokens[r], r - row0[seq], seq, c->d_vocab_out);
      }
    }
  }
  return CLEW_OK;
}

clew_status clew_run_new(clew_run **out, const clew_plan *plan, const clew_input *input, clew_cancel *cancel,
                         clew_error *err) {
  *out = NULL;
  clew_status status = check_input(plan, input, err);
  if (status != CLEW_OK) {
    return status;
  }
  clew_exec x = {.plan = plan, .model = plan->model, .input = input, .n_slots = clew_get_threads(), .cancel = cancel};
  const size_t slots_at = (plan->scratch_bytes + 4095) / 4096 * 4096;
  const size_t scratch_bytes = slots_at + plan->slot_bytes * x.n_slots;
  clew_slab *scratch = NULL;
  clew_run *run = clew_alloc(1, sizeof *run);
  x.slabs = clew_alloc(plan->n_slabs + 1, sizeof *x.slabs);
  if (run == NULL || x.slabs == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a run");
    goto done;
  }
  run->slabs = clew_alloc(plan->n_slabs + 1, sizeof *run->slabs);
  if (run->slabs == NULL) {
    status = clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for a run");
    goto done;
  }
  for (; run->n_slabs < plan->n_slabs; run->n_slabs++) {
    clew_slab *slab = clew_slab_new(plan->slab_bytes[run->n_slabs]);
    if (slab == NULL) {
      status =
          clew_fail(err, CLEW_ERROR_MEMORY,
                    "out of memory: the run keeps %zu bytes and needs %zu more while it runs; %zu could not be had",
                    clew_plan_keep_bytes(plan), scratch_bytes, plan->slab_bytes[run->n_slabs]);
      goto done;
    }
    run->slabs[run->n_slabs] = slab;
    x.slabs[run->n_slabs] = clew_slab_data(slab);
  }
  if (plan->weight_gradients) { /* whoever comes first takes it; the others get their own */
    scratch = atomic_exchange(&((clew_plan *)plan)->scratch, NULL);
    if (scratch != NULL && clew_slab_bytes(scratch) < scratch_bytes) { /* made for fewer threads */
      clew_slab_release(scratch);
      scratch = NULL;
    }
  }
  scratch = scratch != NULL ? scratch : clew_slab_new(scratch_bytes);
  if (scratch == NULL) {
    status =
        clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: the run needs %zu bytes of scratch memory", scratch_bytes);
    goto done;
  }
  x.scratch = clew_slab_data(scratch);
  x.objective = &run->objective;
  x.slots = x.scratch + slots_at;
  if (plan->table_positions > 0) {
    x.rotary = clew_model_rotary(plan->model, plan->table_positions);
    if (x.rotary == NULL) {
      status =
          clew_fail(err, CLEW_ERROR_MEMORY, "out of memory for rotary tables of %zu positions", plan->table_positions);
      goto done;
    }
  }
  for (size_t i = 0; i < plan->n_steps; i++) {
    const clew_step *s = &plan->steps[i];
    if (s->op == CLEW_OP_CALL || s->op == CLEW_OP_OBJECTIVE_CALL) {
      status = s->op == CLEW_OP_CALL ? clew_op_call(&x, s, err) : clew_op_objective_call(&x, s, err);
      if (status != CLEW_OK) {
        goto done;
      }
    } else {
      ops[plan->model->config.dtype][s->op](&x, s);
    }
    if (clew_cancel_check(cancel)) {
      status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled at step %zu of %zu", i + 1, plan->n_steps);
      goto done;
    }
  }

done:
  if (plan->weight_gradients && scratch != NULL) {
    scratch = atomic_exchange(&((clew_plan *)plan)->scratch, scratch);
  }
  clew_slab_release(scratch);
  clew_free(x.slabs);
  if (status != CLEW_OK) {
    clew_run_free(run);
    return status;
  }
  *out = run;
  return CLEW_OK;
}

void clew_run_free(clew_run *run) {
  if (run == NULL) {
    return;
  }
  for (size_t i = 0; i < run->n_slabs; i++) {
    clew_slab_release(run->slabs[i]);
  }
  clew_free(run->slabs);
  clew_free(run);
}

double clew_run_objective(const clew_run *run) { return run->objective; }
clew_slab *clew_run_slab(const clew_run *run, size_t index) { return run->slabs[index]; }

void clew_set_threads(unsigned n) { clew_pool_resize(n); }
unsigned clew_get_threads(void) { return clew_pool_threads(); }
const char *clew_kernel_isa(void) { return clew_get_kernels_f32()->isa; }
const char *clew_blas_family(void) { return clew_blas_kernel(); }
const char *clew_blas_release(void) { return clew_blas_version(); }
