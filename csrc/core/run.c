/* The executor: checks the input, gets the memory a plan asked for, and runs its steps one after the other. */
#include <string.h>

#include "blas.h"
#include "exec.h"

struct clew_run {
  clew_slab **slabs; /* [n_slabs] */
  size_t n_slabs;
};

#define OPS(suffix)                                                                                                    \
  {                                                                                                                    \
    [CLEW_OP_EMBED] = clew_op_embed##suffix, [CLEW_OP_INPUT] = clew_op_input##suffix,                                  \
    [CLEW_OP_NORM] = clew_op_norm##suffix, [CLEW_OP_LINEAR] = clew_op_linear##suffix,                                  \
    [CLEW_OP_ROTARY] = clew_op_rotary##suffix, [CLEW_OP_ATTENTION] = clew_op_attention##suffix,                        \
    [CLEW_OP_RESULT] = clew_op_result##suffix, [CLEW_OP_ADD] = clew_op_add##suffix,                                    \
    [CLEW_OP_SPREAD] = clew_op_spread##suffix, [CLEW_OP_GATHER] = clew_op_gather##suffix,                              \
    [CLEW_OP_STORE] = clew_op_store##suffix, [CLEW_OP_LOSS] = clew_op_loss##suffix                                     \
  }

static const clew_op_function ops[2][CLEW_N_OPS] = {[CLEW_FLOAT32] = OPS(_f32), [CLEW_FLOAT64] = OPS(_f64)};

static clew_status check_input(const clew_plan *plan, const clew_input *input, clew_error *err) {
  if (plan->from_embeddings && input->embeddings == NULL) {
    return clew_fail(err, CLEW_ERROR_SHAPE, "the run starts from embeddings, but none are given");
  }
  if (!plan->from_embeddings && input->tokens == NULL) {
    return clew_fail(err, CLEW_ERROR_TOKEN, "no tokens are given");
  }
  if (plan->logits == CLEW_LOGITS_LOSS && input->tokens == NULL) {
    return clew_fail(err, CLEW_ERROR_TOKEN, "a loss needs tokens: they are its targets");
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
  scratch = clew_slab_new(scratch_bytes);
  if (scratch == NULL) {
    status =
        clew_fail(err, CLEW_ERROR_MEMORY, "out of memory: the run needs %zu bytes of scratch memory", scratch_bytes);
    goto done;
  }
  x.scratch = clew_slab_data(scratch);
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
    ops[plan->model->config.dtype][s->op](&x, s);
    if (clew_cancel_check(cancel)) {
      status = clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled at step %zu of %zu", i + 1, plan->n_steps);
      goto done;
    }
  }

done:
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

clew_slab *clew_run_slab(const clew_run *run, size_t index) { return run->slabs[index]; }

void clew_set_threads(unsigned n) { clew_pool_resize(n); }
unsigned clew_get_threads(void) { return clew_pool_threads(); }
const char *clew_kernel_isa(void) { return clew_get_kernels_f32()->isa; }
const char *clew_blas_family(void) { return clew_blas_kernel(); }
const char *clew_blas_release(void) { return clew_blas_version(); }
