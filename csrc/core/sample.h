/* Choosing next tokens from logits. */
#ifndef CLEW_SAMPLE_H
#define CLEW_SAMPLE_H

#include "clew.h"

typedef struct clew_sampling {
  double temperature; /* 0: the likeliest token */
  size_t top_k;       /* only so many of the likeliest; 0: all */
  double top_p;       /* only the likeliest that together have this probability, at least one; 1: all */
  uint64_t seed;
} clew_sampling;

/* Uniform in [0, 1), the same for a seed, a stream (a sequence) and a step, whatever else is drawn. */
double clew_uniform(uint64_t seed, uint64_t stream, uint64_t step);

/* For each row of logits [n_rows, n]: a token, and its log-probability under the logits as they are, in nats. Ties go
 * to the lower id. streams, steps [n_rows] number the sequence and its new tokens. */
clew_status clew_sample(int32_t *ids, double *log_probs, const void *logits, clew_dtype dtype, size_t n_rows, size_t n,
                        const clew_sampling *how, const int64_t *streams, const int64_t *steps, clew_error *err);

#endif
