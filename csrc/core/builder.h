/* What plan.c (the request), emit.c (the model as steps), emit_backward.c and emit_tangents.c (its derivatives) share
 * while a plan is made. */
#ifndef CLEW_BUILDER_H
#define CLEW_BUILDER_H

#include "plan.h"

/* A builder that ran out of memory keeps taking calls and says so at the end: emission reads like the model. */
typedef struct clew_builder {
  clew_plan *plan;
  const clew_model *model;
  const clew_config *config;
  size_t item; /* bytes of a value */
  bool out_of_memory;
  bool in_place;      /* outputs are laid out like buffers: no padding, no chosen positions */
  int32_t logits;     /* buffer of an objective's logits */
  bool recompute;     /* blocks run again before their backward pass */
  size_t *block_step; /* [n_layers + 1] first step of each block; the end */
  bool ssa;           /* no buffer is written over: the backward pass reads them */
  clew_step no_step;
} clew_builder;

clew_step *clew_add_step(clew_builder *b, clew_op op, int32_t layer, int32_t rowset);
int32_t clew_add_buffer(clew_builder *b, int32_t rowset, size_t cols);
/* So many values that belong to no rows. */
int32_t clew_add_flat(clew_builder *b, size_t values);
/* [n_seq, h, queries of the row set, keys] */
int32_t clew_add_square(clew_builder *b, int32_t rowset);

/* A buffer of the same shape. */
int32_t clew_add_like(clew_builder *b, int32_t buffer);
/* A product of a LINEAR step: out = in w + bias, to which the caller may add an epilogue. */
clew_part *clew_add_part(clew_step *s, const char *name, const clew_matrix *w, const void *bias, int32_t in,
                         int32_t out);
/* A derivative of attention or its parts, none of its buffers set. */
clew_step *clew_add_attention_grad(clew_builder *b, clew_op op, const clew_step *s);
/* The derivatives of the sites of wrt that step s makes go to their outputs; of: derivative of each buffer. */
void clew_store_derivatives(clew_builder *b, clew_step *s, const int32_t *of, bool *stored);

/* The output that keeps this site, or CLEW_NONE. */
int32_t clew_find_output(const clew_plan *plan, clew_site site, int32_t layer);
size_t clew_output_offset(const clew_kept *output, int32_t layer);

/* Is the site a value of its own: edited, or differentiated by? */
bool clew_is_split(const clew_plan *plan, clew_site site, int32_t layer);
/* Is it one of wrt? */
bool clew_is_asked(const clew_plan *plan, clew_site site, int32_t layer);

/* Steps of blocks first … last and, where the request goes on to the end, the final norm and the logits. */
void clew_emit_forward(clew_builder *b, const clew_request *r, int32_t first, int32_t last);

/* Gradient outputs' number, and the steps from the objective (whose logits these are) back. emit_backward.c */
int32_t clew_find_gradient(const clew_plan *plan, clew_site site, int32_t layer);
clew_status clew_make_grads(clew_builder *b, clew_error *err);
clew_status clew_emit_backward(clew_builder *b, int32_t logits, clew_error *err);
/* Derivatives of the sites in wrt along the edits TANGENT, in the order of the forward steps. emit_tangents.c */
clew_status clew_emit_tangents(clew_builder *b, clew_error *err);
/* The buffer of a site's value, or CLEW_NONE; once clew_make_grads was called. */
int32_t clew_site_value(const clew_plan *plan, clew_site_ref ref);

#endif
