/* A plan is a flat list of steps over buffers; one executor runs it (run.c).
 *
 * Rows are (sequence, position) pairs, packed without padding; a row set is a list of them. Row set 0 holds every row
 * of the input, row set 1 the last row of each sequence. Every buffer belongs to a row set and holds `cols` values a
 * row. A buffer lies in scratch memory, recycled once its last reader is done, or in a keep slab: then the step that
 * computes it writes what the caller gets, in place. */
#ifndef CLEW_PLAN_H
#define CLEW_PLAN_H

#include "model.h"

#define CLEW_NONE (-1) /* no buffer, no output */

typedef struct clew_rowset {
  size_t n_rows;
  int32_t longest; /* rows of a sequence */
  int32_t *pos;    /* [n_rows] position of each row in its sequence */
  int32_t *row0;   /* [n_seq + 1] first row of each sequence */
} clew_rowset;

typedef struct clew_buffer {
  size_t cols, bytes;
  int32_t rowset;
  int32_t slab;   /* keep slab, or CLEW_NONE: scratch */
  size_t offset;  /* bytes into scratch or slab */
  int32_t born;   /* first step that writes it */
  int32_t dies;   /* last step that reads or writes it */
  bool scattered; /* in the slab as [n_seq, longest, cols], padded: rows are not contiguous */
  bool square;    /* [n_seq, h, most queries of the row set, most keys]: cols is the number of keys */
  bool needed;    /* some step reads it, or the caller gets it */
} clew_buffer;

typedef enum clew_op {
  CLEW_OP_EMBED,     /* hook_embed, hook_pos_embed and their sum from tokens or embeddings */
  CLEW_OP_INPUT,     /* the residual stream that start_layer begins with */
  CLEW_OP_NORM,      /* layer or RMS norm */
  CLEW_OP_LINEAR,    /* products with weights; the epilogue says what their tiles become */
  CLEW_OP_ROTARY,    /* rotary embedding of queries and keys */
  CLEW_OP_ATTENTION, /* scores, pattern, z */
  CLEW_OP_RESULT,    /* z W_O of every head apart */
  CLEW_OP_ADD,       /* a + b */
  CLEW_OP_SPREAD,    /* the residual once for each head */
  CLEW_OP_GATHER,    /* rows of set 0 into set 1 */
  CLEW_OP_STORE,     /* rows to an output that is not laid out like the buffer: padding, chosen positions */
  CLEW_OP_METRIC,    /* a number for each sequence from its last logits, without keeping them */
  CLEW_OP_LOSS,      /* unembedding and negative log-likelihood without keeping logits */
  /* What an intervention needs where steps above do several things at once */
  CLEW_OP_EDIT,      /* set, add or scale a part of a site's value */
  CLEW_OP_CALL,      /* a function of the caller's changes a site's value */
  CLEW_OP_COPY,      /* a branch's own copy of a value */
  CLEW_OP_SCALE,     /* a norm's scale */
  CLEW_OP_NORMALIZE, /* centred input / scale */
  CLEW_OP_AFFINE,    /* normalized · w + b */
  CLEW_OP_HEADS,     /* each head's own row times its columns of a weight */
  CLEW_OP_SUM_HEADS, /* Σ over heads, plus bias */
  CLEW_OP_ACT,       /* post = act(pre) · linear */
  CLEW_OP_SCORES,    /* scores of queries and keys */
  CLEW_OP_SOFTMAX,   /* pattern from scores */
  CLEW_OP_WEIGH,     /* Σ pattern · v */
  CLEW_OP_APPEND,    /* keys and values behind those of earlier positions */
  /* The backward pass: X_GRAD is the derivative of X */
  CLEW_OP_OBJECTIVE,      /* the objective's value and its gradient by the logits */
  CLEW_OP_OBJECTIVE_CALL, /* the same by a function of the caller's */
  CLEW_OP_ZERO,           /* a buffer, an output or a weight's gradient that nothing reaches */
  CLEW_OP_ADD_INTO,       /* out += in */
  CLEW_OP_LINEAR_DX,      /* dx (+)= Σ g Wᵀ */
  CLEW_OP_LINEAR_DW,      /* dW = xᵀ g, db = Σ g */
  CLEW_OP_ACT_GRAD,
  CLEW_OP_SOFTCAP_GRAD,
  CLEW_OP_NORM_GRAD,
  CLEW_OP_RESCALE_GRAD, /* of SCALE, NORMALIZE, AFFINE */
  CLEW_OP_ROTARY_GRAD,
  CLEW_OP_ATTENTION_GRAD,
  CLEW_OP_WEIGH_GRAD,
  CLEW_OP_SOFTMAX_GRAD,
  CLEW_OP_SCORES_GRAD,
  CLEW_OP_HEADS_GRAD, /* of HEADS and RESULT */
  CLEW_OP_GATHER_GRAD,
  CLEW_OP_EMBED_GRAD,
  /* Derivatives forward; those that are linear, and the softmax's, are steps above */
  CLEW_OP_NORM_TANGENT,
  CLEW_OP_RESCALE_TANGENT, /* of SCALE, NORMALIZE, AFFINE */
  CLEW_OP_ACT_TANGENT,
  CLEW_OP_SCORES_TANGENT,
  CLEW_N_OPS
} clew_op;

typedef enum clew_epilogue {
  CLEW_EPILOGUE_BIAS,     /* out = x W + b */
  CLEW_EPILOGUE_ACT,      /* out as above, post = act(out) */
  CLEW_EPILOGUE_GATE,     /* out, out2 with W2: post = act(out) · out2 */
  CLEW_EPILOGUE_RESIDUAL, /* out as above, sum = resid + out */
  CLEW_EPILOGUE_SOFTCAP   /* out = cap tanh((x W + b) / cap) */
} clew_epilogue;

/* One product of a linear step. Buffers may coincide: post or sum is out where out itself is not wanted. */
typedef struct clew_part {
  const char *name;
  const clew_matrix *w, *w2;
  const void *b, *b2;
  clew_epilogue epilogue;
  int32_t in, out, out2, post, resid, sum;
  int32_t halves; /* [rows, 2, n]: what each half of k gives; CLEW_NONE: all of k at once */
} clew_part;

typedef struct clew_step {
  clew_op op;
  int32_t layer, rowset;
  union {
    struct {
      int32_t embed, pos, sum; /* CLEW_NONE: not wanted; sum may be embed */
    } embed;
    struct {
      int32_t out;
    } input;
    struct {
      const char *name;
      int32_t out, normalized, scale, in;
      const clew_norm_weights *weights;
      size_t groups; /* norms in a row: heads for query and key norms, else 1 */
      bool centre;
    } norm;
    struct {
      clew_part part[3];
      int32_t n_parts;
    } linear;
    struct {
      int32_t q_out, k_out, q, k; /* q or k may be CLEW_NONE */
      int32_t base;
    } rotary;
    struct {
      int32_t z, scores, pattern; /* scores, pattern: outputs */
      int32_t q, k, v;
      int32_t pattern_in, scores_out; /* WEIGH reads, SCORES writes these squares; z, q, k, v as they need */
      int32_t window;
      double scale;
    } attention; /* also SCORES, WEIGH */
    struct {
      int32_t out, z;
      const clew_matrix *w;
    } result;
    struct {
      int32_t out, a, b;
    } add;
    struct {
      int32_t out, in;
      size_t heads;
    } spread;
    struct {
      int32_t out, in;
    } gather;
    struct {
      int32_t output, in;
    } store;
    struct {
      int32_t output, in, partial; /* partial: [rows, blocks, 3] maximum, sum, target's logit; of METRIC doubles */
    } loss;                        /* also METRIC */
    struct {
      int32_t out, in; /* may be one */
      int32_t edit;    /* index into the plan's edits */
      bool gradient;   /* of what was there before: what is set has none */
    } edit;            /* also CALL */
    struct {
      int32_t out, in;
    } copy;
    struct {
      int32_t out, in, scale; /* scale: of NORMALIZE */
      const clew_norm_weights *weights;
      bool centre;
    } rescale; /* SCALE, NORMALIZE, AFFINE */
    struct {
      int32_t out, in;
      size_t heads;
      const clew_matrix *w; /* HEADS: n · groups = heads · d_head columns */
      const void *b;
    } heads; /* HEADS, SUM_HEADS */
    struct {
      int32_t post, pre, linear;
    } act;
    struct {
      int32_t out, in; /* SOFTMAX: pattern, scores */
      int32_t window;
    } softmax;
    struct {
      int32_t k, v;
    } append;
    struct {
      int32_t out, in, partial; /* partial: [rows] doubles */
      clew_objective kind;
    } objective;
    struct {
      int32_t buffer, output, grad; /* one of them; the others CLEW_NONE */
    } zero;
    struct {
      int32_t out, in;
    } add_into;
    struct {
      int32_t out, n_parts;
      bool add;
      int32_t g[3], turned[3]; /* turned: [n, k] the weight transposed, where that is faster; or CLEW_NONE */
      const clew_matrix *w[3];
    } dx;
    struct {
      int32_t n_parts;
      int32_t in[3], g[3], w[3], b[3]; /* w, b: numbers of weight gradients, or CLEW_NONE */
      const clew_matrix *matrix[3];
    } dw;
    struct {
      int32_t dpre, dlinear, dpost, pre, linear; /* SOFTCAP_GRAD: dpre, dpost, pre = the capped value */
    } act_grad;                                  /* of ACT_TANGENT, dpost is what is written */
    struct {
      int32_t dx, in, g, partial; /* partial: [CLEW_NORM_CHUNKS, 2 d] sums for dw and db */
      int32_t w, b;               /* weight gradients */
      const clew_norm_weights *weights;
      size_t groups;
      bool centre, add, add_weights;
    } norm_grad; /* of NORM_TANGENT, dx is the tangent of what comes out, g of what goes in */
    struct {
      clew_op op; /* SCALE, NORMALIZE or AFFINE */
      int32_t dx, dscale, in, g, scale, w, b;
      const clew_norm_weights *weights;
      bool centre, add_weights;
    } rescale_grad; /* of RESCALE_TANGENT, g is written; dx, dscale are the tangents that go in */
    struct {
      int32_t g; /* in place */
      int32_t base;
    } rotary_grad;
    struct {
      int32_t dq, dk, dv, dz, q, k, v;
      int32_t dpattern, pattern, dscores, scores; /* squares, of the steps that stand apart */
      int32_t window;
      double scale;
    } attention_grad; /* of SCORES_TANGENT, dscores is written; dq, dk are tangents */
    struct {
      int32_t dx, in, g, w, b;
      size_t heads;
      bool result; /* of RESULT: W's rows belong to heads; of HEADS: its columns */
      const clew_matrix *matrix;
    } heads_grad;
    struct {
      int32_t g, w_e, w_pos; /* weight gradients or CLEW_NONE */
    } embed_grad;
  };
} clew_step;

/* The gradient by a weight, and what its steps know it by. */
typedef struct clew_grad {
  clew_weight_gradient info;
  const void *key;  /* the model's matrix or vector */
  ptrdiff_t rs, cs; /* of the gradient, in values */
  bool written;     /* a step writes all of it; the next ones add */
} clew_grad;

/* Output i as the plan keeps it. */
typedef struct clew_kept {
  clew_output info;   /* what the caller sees */
  size_t cols;        /* values of one (sequence, position) */
  size_t layer_bytes; /* bytes of one layer's array */
  int32_t *at;        /* [n_layers of the model or 1] index of a layer in it, or CLEW_NONE */
} clew_kept;

struct clew_plan {
  const clew_model *model;
  int32_t n_seq, longest;
  int32_t most_keys; /* of a sequence, those before its first row included */
  int32_t *past;     /* [n_seq] positions before a sequence's first row, whose keys and values are given; NULL: none */
  int32_t *past_seq; /* [n_seq] the sequence of the cache that holds them */
  bool append;       /* new keys and values go into the cache */
  clew_edit *edits;  /* [n_edits]; values are the caller's */
  size_t n_edits;
  clew_site_ref *wrt; /* [n_wrt] sites that are differentiated by */
  size_t n_wrt;
  clew_objective objective;
  bool weight_gradients;
  clew_grad *grads; /* [n_grads] */
  size_t n_grads, grad_slab;
  int32_t *where; /* [CLEW_N_SITES, n_layers + 1] buffer of each site's value, or CLEW_NONE */
  bool ragged;
  bool from_embeddings;
  int32_t start_layer;
  clew_logits logits;
  clew_rowset rows[2];
  int32_t *positions; /* [n_positions], or NULL: all */
  size_t n_positions; /* positions an output has */
  clew_step *steps;
  size_t n_steps, step_room;
  clew_buffer *buffers;
  size_t n_buffers, buffer_room;
  clew_kept *outputs;
  size_t n_outputs;
  size_t *slab_bytes; /* [n_slabs] */
  size_t n_slabs;
  size_t scratch_bytes;   /* buffers */
  size_t slot_bytes;      /* each thread's own */
  size_t table_positions; /* rotary tables reach this far */
  double flops;
  clew_slab *_Atomic scratch; /* of weight gradients: kept from one step of training to the next */
};

static inline bool clew_is_metric(clew_logits logits) { return logits >= CLEW_LOGITS_DIFFERENCE; }
/* Are only the last positions' logits looked at? */
static inline bool clew_last_only(clew_logits logits) { return logits == CLEW_LOGITS_LAST || clew_is_metric(logits); }

/* Attention works on blocks of so many queries and keys, losses on so many logits at a time. */
#define CLEW_NORM_CHUNKS 16

#define CLEW_QUERY_BLOCK 64
#define CLEW_KEY_BLOCK 512

/* Products of few rows (CLEW_FEW_ROWS) are halved when the rows of the weights are at most this long, but this many. */
#define CLEW_SHORT_ROW ((size_t)1024)
#define CLEW_LEAST_HALVED ((size_t)512)
#define CLEW_LOSS_ROWS 256
#define CLEW_LOSS_COLS 1024

/* The longest side of a tile of a weight's gradient. */
#define CLEW_DW_TILE 256

/* How a product of m rows and n columns is cut into tiles for so many threads; for 0, as large as for any number of
 * them. Which kernel multiplies a tile does not depend on the threads. */
typedef struct clew_tiling {
  size_t rows, cols;     /* of a tile */
  size_t n_rows, n_cols; /* tiles */
} clew_tiling;
clew_tiling clew_tile(size_t m, size_t n, size_t threads);

/* Lengths of a site's head axis (1 where it has none) and last axis. */
void clew_site_axes(const clew_config *c, clew_site site, size_t most_keys, size_t *heads, size_t *last);

/* Memory of a plan: buffers into scratch, liveness, dead steps. plan_memory.c */
void clew_plan_prune(clew_plan *plan);
clew_status clew_plan_place(clew_plan *plan, clew_error *err);
/* Calls visit(ctx, buffer index, is_write) for every buffer of a step. */
void clew_step_visit(clew_step *step, void (*visit)(void *ctx, int32_t *buffer, bool write), void *ctx);
bool clew_step_writes(clew_step *step, int32_t buffer);
double clew_step_flops(const clew_plan *plan, const clew_step *step);

#endif
