/* AdamW over all tensors of a model at once, the norm of all gradients, and gradients added up over micro-batches.
 *
 * Tensors are contiguous. Work is cut by shape into tasks of CLEW_ADAMW_TASK values, so results are the same bits for
 * any number of threads. None of this can be cancelled half-way. */
#ifndef CLEW_ADAMW_H
#define CLEW_ADAMW_H

#include "clew.h"

#define CLEW_ADAMW_TASK ((size_t)1 << 15)

/* One tensor's memory: [n] values of each. */
typedef struct clew_parameter {
  void *value, *m, *v; /* m, v: running means of the gradient and of its square, 0 before the first step */
  const void *gradient;
  size_t n;
  bool decay; /* does weight decay reach it? */
} clew_parameter;

typedef struct clew_adamw_settings {
  double rate, beta1, beta2, eps, weight_decay;
  double scale; /* gradients are multiplied by this first */
  int64_t step; /* 1 at the first */
} clew_adamw_settings;

#define CLEW_DECLARE_ADAMW(suffix)                                                                                     \
  clew_status clew_adamw##suffix(const clew_parameter *parameters, size_t n, const clew_adamw_settings *settings,      \
                                 clew_error *err);                                                                     \
  /* *norm = √ Σ gradient², added up in double. */                                                                 \
  clew_status clew_global_norm##suffix(double *norm, const clew_parameter *parameters, size_t n, clew_error *err);     \
  /* value += factor · gradient */                                                                                    \
  clew_status clew_accumulate##suffix(const clew_parameter *parameters, size_t n, double factor, clew_error *err);

CLEW_DECLARE_ADAMW(_f32)
CLEW_DECLARE_ADAMW(_f64)

#endif
