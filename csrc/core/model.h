/* A model as the engine sees it: checked configuration, weights as matrices and vectors, rotary tables. */
#ifndef CLEW_MODEL_H
#define CLEW_MODEL_H

#include <pthread.h>

#include "clew.h"

/* A weight as it multiplies: `groups` matrices [k, n], whose products stand side by side. Heads that lie at a regular
 * distance are one group of n = heads · d_head columns; fused layouts (GPT-NeoX) are one group a head. */
typedef struct clew_matrix {
  const void *data; /* [groups, k, n]; NULL: absent */
  size_t k, n, groups;
  ptrdiff_t rs, cs, gs; /* elements between rows, columns, groups */
} clew_matrix;

/* Vectors are contiguous; NULL: absent. */
typedef struct clew_norm_weights {
  const void *w, *b; /* [d] */
} clew_norm_weights;

typedef struct clew_block {
  clew_norm_weights ln1, ln1_post, ln2, ln2_post, q_norm, k_norm;
  clew_matrix W_Q, W_K, W_V, W_O, W_gate, W_in, W_out;
  const void *b_Q, *b_K, *b_V, *b_O, *b_gate, *b_in, *b_out;
} clew_block;

/* cosine, sine: [n_pos, n_rot / 2] for each kind of inverse frequencies, in the model's dtype. */
typedef struct clew_rotary_table {
  struct clew_rotary_table *older; /* runs may still read it */
  size_t n_pos;
  void *cosine, *sine; /* [n_inv_freq, n_pos, n_rot / 2] */
} clew_rotary_table;

struct clew_model {
  clew_config config;
  clew_block *blocks; /* [n_layers] */
  clew_matrix W_E;    /* [d_vocab, d_model] */
  clew_matrix W_pos;  /* [positions + pos_offset, d_model] */
  clew_norm_weights ln_final;
  clew_matrix W_U;
  const void *b_U;
  clew_slab **owned; /* packed copies of weights whose layout cannot be used in place */
  size_t n_owned, owned_room;
  pthread_mutex_t rotary_lock;
  clew_rotary_table *rotary;
};

static inline size_t clew_dtype_size(clew_dtype dtype) {
  return dtype == CLEW_FLOAT32 ? sizeof(float) : sizeof(double);
}

/* Length of a weight's axis, by its letter in weights.def; 1 for a letter that is none. */
size_t clew_axis_length(const clew_config *c, char axis);

/* Tables for at least n_pos positions; NULL when memory is short. Any thread. */
const clew_rotary_table *clew_model_rotary(const clew_model *model, size_t n_pos);

#endif
