/* clew.h: the engine's one public header.
 *
 *   clew_error err;
 *   clew_model *model = NULL;
 *   clew_plan *plan = NULL;
 *   clew_run *run = NULL;
 *   if (clew_model_new(&model, &config, tensors, n_tensors, &err) != CLEW_OK) goto failed;
 *
 *   int32_t lengths[1] = {5};
 *   clew_site_ref capture[1] = {{CLEW_RESID_POST, 3}};
 *   clew_request request = {.n_seq = 1, .lengths = lengths, .capture = capture, .n_capture = 1,
 *                           .start_layer = -1, .stop_layer = -1, .logits = CLEW_LOGITS_ALL};
 *   if (clew_plan_new(&plan, model, &request, &err) != CLEW_OK) goto failed;   // bytes and FLOPs are known now
 *   if (clew_run_new(&run, plan, &input, NULL, &err) != CLEW_OK) goto failed;  // computes
 *   clew_slab *slab = clew_run_slab(run, 0);                                   // the first output's memory
 *
 * Ownership: clew_X_new gives one reference, clew_X_free drops it. A model borrows its tensors: their memory must
 * outlive it, and lie in slabs (memory.h) because matrix products may read past an operand's end. A plan keeps no
 * pointer to the request. A run holds its slabs; clew_slab_retain keeps one alive beyond it. Models and plans are
 * immutable: any number of threads may run them at once. A run belongs to one thread. Nothing here prints, aborts or
 * exits. Every failure is a status and, in the error, a sentence that names the cause. */
#ifndef CLEW_H
#define CLEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "memory.h"

#define CLEW_VERSION "0.1.0"

typedef enum clew_status {
  CLEW_OK,
  CLEW_ERROR_MEMORY,
  CLEW_ERROR_SHAPE,
  CLEW_ERROR_SITE,
  CLEW_ERROR_TOKEN,
  CLEW_ERROR_UNSUPPORTED,
  CLEW_ERROR_VALUE,
  CLEW_ERROR_CANCELLED
} clew_status;

typedef struct clew_error {
  clew_status status;
  char message[1024];
} clew_error;

/* Fills err (may be NULL) and returns status, so that it can stand behind `return`. */
clew_status clew_fail(clew_error *err, clew_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* ---- Sites and weights -------------------------------------------------------------------------------------- */

#define SITE(id, name, axes, meaning) CLEW_##id,
#define LAYER_SITE(id, name, axes, meaning) CLEW_##id,
typedef enum clew_site {
#include "sites.def"
  CLEW_N_SITES
} clew_site;
#undef SITE
#undef LAYER_SITE

typedef struct clew_site_info {
  const char *id, *name, *axes, *meaning;
  bool layered;
} clew_site_info;
extern const clew_site_info clew_sites[CLEW_N_SITES];

typedef struct clew_site_ref {
  clew_site site;
  int32_t layer; /* 0 for sites that belong to no layer */
} clew_site_ref;

#define WEIGHT(id, name, axes) CLEW_WEIGHT_##id,
#define LAYER_WEIGHT(id, name, axes) CLEW_WEIGHT_##id,
typedef enum clew_weight {
#include "weights.def"
  CLEW_N_WEIGHTS
} clew_weight;
#undef WEIGHT
#undef LAYER_WEIGHT

typedef struct clew_weight_info {
  const char *name, *axes;
  bool layered;
} clew_weight_info;
extern const clew_weight_info clew_weights[CLEW_N_WEIGHTS];

/* A weight in classic layout as a view; strides in elements. Absent biases and norms are simply not given. */
typedef struct clew_tensor {
  clew_weight weight;
  int32_t layer;
  int32_t n_dims;
  const void *data; /* float or double, as the config's dtype */
  size_t shape[3];
  ptrdiff_t strides[3];
} clew_tensor;

/* ---- Configuration ------------------------------------------------------------------------------------------ */

typedef enum clew_dtype { CLEW_FLOAT32, CLEW_FLOAT64 } clew_dtype;
typedef enum clew_norm { CLEW_NORM_NONE, CLEW_NORM_LAYER, CLEW_NORM_RMS } clew_norm;
typedef enum clew_position { CLEW_POSITION_NONE, CLEW_POSITION_LEARNED, CLEW_POSITION_ROTARY } clew_position;

/* What differs between blocks. */
typedef struct clew_layer_config {
  int32_t window;      /* sliding window, 0: none */
  int32_t rotary_base; /* index into inv_freq */
  bool rotary;         /* rotary positions on this layer */
  double score_scale;  /* scores are multiplied by this */
} clew_layer_config;

typedef struct clew_config {
  clew_dtype dtype;
  int32_t n_layers, d_model, n_heads, n_kv_heads, d_head, d_mlp, n_ctx;
  int32_t d_vocab, d_vocab_out; /* tokens read, logits written */
  bool vector_input;            /* no tokens: vectors of d_vocab values, which W_E multiplies */
  clew_norm norm;               /* of ln1, ln2, ln_final and the post-norms */
  bool final_norm;              /* is there an ln_final */
  bool post_norms;              /* ln1_post, ln2_post (Gemma 2 and 3) */
  bool qk_norm;                 /* RMS norm of every head's query and key */
  double eps;
  clew_position position;
  int32_t pos_offset;     /* OPT: row of W_pos that position 0 reads */
  int32_t n_rot;          /* rotary dimensions of a head */
  bool rotary_adjacent;   /* pairs (0,1), (2,3) … */
  int32_t n_inv_freq;     /* kinds of rotary tables: 0, 1 or 2 */
  const double *inv_freq; /* [n_inv_freq, n_rot / 2] */
  double embed_scale;     /* 1, or √d (Gemma) */
  bool attn_only;         /* no MLP */
  bool parallel;          /* attention and MLP both read resid_pre */
  bool shared_norm;       /* parallel: ln1 feeds both */
  bool gated;
  clew_act act;
  bool causal;
  bool linear_attention;               /* pattern = scores / n instead of softmax */
  int32_t linear_n;                    /* n; 0: the number of visible keys */
  bool exclude_self;                   /* linear attention: a position does not see itself */
  bool exclude_last;                   /* linear attention, not causal: nobody sees the last position */
  double score_softcap, logit_softcap; /* 0: none */
  const clew_layer_config *layers;     /* [n_layers] */
} clew_config;

/* ---- Model -------------------------------------------------------------------------------------------------- */

typedef struct clew_model clew_model;
/* Copies the configuration; borrows the tensors. Lists every missing weight and every wrong shape. */
clew_status clew_model_new(clew_model **out, const clew_config *config, const clew_tensor *tensors, size_t n_tensors,
                           clew_error *err);
void clew_model_free(clew_model *model);
const clew_config *clew_model_config(const clew_model *model);
/* Weights that it holds copies of, because their layout cannot be multiplied in place: 0 where weights may change. */
size_t clew_model_n_packed(const clew_model *model);
bool clew_model_has_site(const clew_model *model, clew_site site);

/* First value of a tensor that is NaN or infinite: its flat index in classic order, or −1. */
ptrdiff_t clew_tensor_check(const clew_tensor *tensor, clew_dtype dtype);
/* The same for n values that it copies to out; behind a bad one not all are copied. */
ptrdiff_t clew_copy_check(void *out, const void *values, size_t n, clew_dtype dtype);

/* ---- Plan --------------------------------------------------------------------------------------------------- */

typedef enum clew_logits {
  CLEW_LOGITS_NONE,
  CLEW_LOGITS_LAST,
  CLEW_LOGITS_ALL,
  CLEW_LOGITS_LOSS, /* next-token losses instead */
  /* Metrics: one number for each sequence, read off its last position, without keeping its logits (input.picks) */
  CLEW_LOGITS_DIFFERENCE, /* logit[a] − logit[b] */
  CLEW_LOGITS_LOG_PROB,   /* logit[a] − log Σ exp */
  CLEW_LOGITS_KL          /* KL(reference[a] ‖ prediction) */
} clew_logits;

/* An intervention. It reaches the selected part of a site's value [batch, position, head, last], where a site without
 * heads has one, and scores and patterns count query positions and have keys as the last axis. Indices are absolute. */
typedef enum clew_edit_kind {
  CLEW_EDIT_SET,
  CLEW_EDIT_ADD,
  CLEW_EDIT_SCALE,
  CLEW_EDIT_CALL,
  CLEW_EDIT_TANGENT /* the direction of a derivative: as ADD, by an infinitesimal step */
} clew_edit_kind;
typedef struct clew_edit {
  clew_site site;
  int32_t layer;
  clew_edit_kind kind;
  const int32_t *batch, *heads, *neurons; /* [n_…]; NULL: all */
  const int32_t *positions;               /* [n_batch or n_seq, n_positions]; NULL: all */
  size_t n_batch, n_positions, n_heads, n_neurons;
  const void *value;    /* the model's dtype; borrowed until the plan is freed */
  size_t n_values;      /* numbers behind it, which strides and selection must stay within; 0: the caller has checked */
  ptrdiff_t strides[4]; /* elements of value from one selected index to the next, by axis; 0: the same for all */
  int32_t call;         /* what input.call is told */
} clew_edit;

/* What is differentiated: what a backward pass begins with, or sites by the directions of edits (forward). */
typedef enum clew_objective {
  CLEW_OBJECTIVE_NONE,
  CLEW_OBJECTIVE_CROSS_ENTROPY, /* Σ weight · (log Σ exp − target's logit) / Σ weight, over rows that have a target */
  CLEW_OBJECTIVE_SQUARED,       /* Σ weight · |output − target|² / (d_out · Σ weight) */
  CLEW_OBJECTIVE_CALL,          /* input.call is shown the logits (index −1) and leaves their gradient in *result */
  CLEW_OBJECTIVE_TANGENTS       /* none: each site of wrt is differentiated by the edits TANGENT */
} clew_objective;

typedef struct clew_request {
  int32_t n_seq;
  const int32_t *lengths;  /* [n_seq], each ≥ 1: positions to compute */
  const int32_t *past;     /* [n_seq] positions before them, whose keys and values input.cache holds; NULL: none */
  const int32_t *past_seq; /* [n_seq] sequence of the cache; NULL: the same number */
  bool append;             /* put the new keys and values behind them */
  const int32_t *last;     /* [n_seq] with logits LAST and nothing captured, edited or differentiated: they are those of
                            * so many last positions, one after the other [Σ last, 1, d_vocab_out]; NULL: of one */
  const clew_edit *edits;  /* [n_edits], in the order in which edits of one site apply */
  size_t n_edits;
  const clew_site_ref
      *wrt; /* [n_wrt] sites that gradients are taken by; with TANGENTS, sites that are differentiated */
  size_t n_wrt;
  bool weight_gradients;
  bool recompute; /* with weight gradients alone: blocks keep their input only and run again on the way back */
  clew_objective objective;     /* with logits ALL (every row) or LAST (each sequence's last) */
  const clew_site_ref *capture; /* [n_capture]; repeats are allowed */
  size_t n_capture;
  const int32_t *positions; /* [n_positions]: capture these only; negative: from each sequence's end. NULL: all */
  size_t n_positions;
  int32_t start_layer;  /* −1: begin with the embedding; else the input is the residual entering this block */
  int32_t stop_layer;   /* −1: go to the end; else the last block to compute (no logits) */
  bool from_embeddings; /* the input replaces hook_embed */
  clew_logits logits;
} clew_request;

/* One array that a run gives: a site, stacked over its captured layers. */
typedef struct clew_output {
  clew_site site;
  int32_t n_layers;      /* 1 for sites that belong to no layer */
  const int32_t *layers; /* [n_layers], ascending */
  int32_t n_dims;        /* of one layer's array */
  size_t shape[4];
  bool is_double; /* whatever the model's dtype: metrics */
  bool gradient;  /* of the objective by the site, or the site's tangent, instead of its value */
  size_t slab;    /* index of the slab it lies in; sites that are one value share theirs */
  size_t offset;  /* bytes into the slab of the first layer; the layers follow each other */
} clew_output;

/* The gradient by one weight, in a slab with all others: [rows, cols] as the core multiplies it (queries, keys, values
 * [d, heads · e], W_O [heads · e, d]); vectors have one row. A tied unembedding's gradient is part of the embedding's.
 */
typedef struct clew_weight_gradient {
  clew_weight weight;
  int32_t layer;
  size_t rows, cols;
  size_t offset; /* bytes into the slab */
} clew_weight_gradient;

typedef struct clew_plan clew_plan;
clew_status clew_plan_new(clew_plan **out, const clew_model *model, const clew_request *request, clew_error *err);
void clew_plan_free(clew_plan *plan);
size_t clew_plan_keep_bytes(const clew_plan *plan); /* what the caller gets */
void clew_plan_trim(clew_plan *plan); /* releases the memory that a plan of weight gradients keeps between runs */
size_t clew_plan_scratch_bytes(const clew_plan *plan); /* what the run needs besides, recycled */
double clew_plan_flops(const clew_plan *plan);
size_t clew_plan_n_outputs(const clew_plan *plan);
const clew_output *clew_plan_output(const clew_plan *plan, size_t index);
size_t clew_plan_n_slabs(const clew_plan *plan);
size_t clew_plan_slab_bytes(const clew_plan *plan, size_t index);
size_t clew_plan_n_steps(const clew_plan *plan);
size_t clew_plan_n_weight_gradients(const clew_plan *plan);
const clew_weight_gradient *clew_plan_weight_gradient(const clew_plan *plan, size_t index);
size_t clew_plan_gradient_slab(const clew_plan *plan); /* index of the slab they lie in */
size_t clew_plan_n_objective_rows(const clew_plan *plan);
/* One line about step i into text ("12 linear blocks.0 q k v [8, 768] x [768, 2304]"); for people and for tests. */
void clew_plan_describe(const clew_plan *plan, size_t index, char *text, size_t size);

/* ---- Run ---------------------------------------------------------------------------------------------------- */

/* Keys (as scores use them) and values of earlier positions. */
typedef struct clew_cache {
  void *const *k, *const *v; /* [n_layers] of [n_seq, capacity, g, e] */
  size_t n_seq, capacity;
} clew_cache;

/* The live value of a site, padded, in the axes of sites.def. The function may change `value` or leave an array of the
 * same layout in *result, valid until it is called again. Non-zero: it failed, the run ends. */
typedef int (*clew_call)(void *ctx, const void **result, clew_slab *value, int32_t index, clew_site_ref site,
                         int32_t n_dims, const size_t *shape);

typedef struct clew_input {
  const int32_t *tokens;   /* [Σ lengths], sequences one after the other; or NULL with embeddings */
  const void *embeddings;  /* [Σ lengths, d_model], the model's dtype; a request with from_embeddings or start_layer */
  const void *vectors;     /* [Σ lengths, d_vocab], the model's dtype; a model with vector_input */
  const clew_cache *cache; /* a request with past or append */
  clew_call call;          /* a request with edits that call, or an objective that does */
  const void *targets;     /* objectives: int32 [rows], negative: none; or the dtype [rows, d_vocab_out] */
  const void *weights;     /* [rows] of the dtype; NULL: all 1 */
  void *call_ctx;
  const int32_t *picks;    /* [n_seq, 2] of a metric: a, b */
  const double *reference; /* [n_reference, d_vocab_out] log-probabilities, of KL */
  size_t n_reference;
} clew_input;

typedef struct clew_run clew_run;
struct clew_cancel; /* pool.h */
/* Checks the input, allocates, computes. CLEW_LOGITS_LOSS makes the output `logits` hold the next token's negative
 * log-likelihood [n_seq, longest − 1] in nats, 0 behind a sequence's end; a metric makes it [n_seq] doubles. */
clew_status clew_run_new(clew_run **out, const clew_plan *plan, const clew_input *input, struct clew_cancel *cancel,
                         clew_error *err);
void clew_run_free(clew_run *run);
clew_slab *clew_run_slab(const clew_run *run, size_t index);
double clew_run_objective(const clew_run *run); /* its value; 0 for CALL */

/* ---- Process ------------------------------------------------------------------------------------------------ */

void clew_set_threads(unsigned n);
unsigned clew_get_threads(void);
const char *clew_kernel_isa(void);   /* "base", "v3", "v4" */
const char *clew_blas_family(void);  /* BLIS's kernel family: "zen3", ... */
const char *clew_blas_release(void); /* BLIS's version */

#endif
