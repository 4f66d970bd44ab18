/* Sizes of the constrained transformer, and what they must be. */
#include "adaptive.h"

size_t clew_adaptive_parameters(const clew_adaptive_shape *s) {
  const size_t messages = s->layers * s->heads, out = s->heads * s->dim;
  size_t n = 0;
  for (size_t layer = 0; layer < s->layers; layer++)
    n += s->width * (layer * s->heads) + s->width + out * s->width + out;
  if (s->readout > 0)
    n += s->readout * messages + s->readout + s->dim * s->readout + s->dim;
  return n;
}

size_t clew_adaptive_scratch(const clew_adaptive_shape *s) {
  const size_t n = s->layers * s->heads, largest = s->width > s->readout ? s->width : s->readout;
  const size_t rows = s->layers * s->width /* hidden units of the networks */
                      + s->readout         /* and of the readout */
                      + n * s->dim         /* directions as the networks gave them */
                      + n                  /* their lengths after projection */
                      + n * n + n * s->dim /* exact posterior: Cholesky factor, S⁻¹ Q */
                      + n + s->points      /* S⁻¹ m, probabilities */
                      + 2 * n * s->dim     /* gradients by directions, sums over points */
                      + n * n + 5 * n      /* by S, by messages, and vectors of messages */
                      + 5 * s->dim + 4     /* vectors of w */
                      + largest            /* gradients by hidden units */
                      + s->heads * s->dim; /* and by raw directions */
  return rows * CLEW_ADAPTIVE_LANES;
}

clew_status clew_adaptive_check(const clew_adaptive_shape *s, clew_error *err) {
  const size_t most = 4096, n = s->layers * s->heads;
  if (s->dim - 1 >= most || s->layers - 1 >= most || s->heads - 1 >= most || s->width - 1 >= most ||
      s->readout > most || s->points > (size_t)1 << 20)
    return clew_fail(err, CLEW_ERROR_SHAPE,
                     "dim %zu, layers %zu, heads %zu, width %zu must be 1 to %zu, readout %zu at most that", s->dim,
                     s->layers, s->heads, s->width, most, s->readout);
  if (s->readout == 0 && (!s->orthonormal || s->points == 0))
    return clew_fail(err, CLEW_ERROR_VALUE, "an exact posterior needs orthonormal directions and a prior's centres");
  if (s->orthonormal && n > s->dim)
    return clew_fail(err, CLEW_ERROR_SHAPE, "%zu layers of %zu heads: more than %zu directions cannot be orthonormal",
                     s->layers, s->heads, s->dim);
  return CLEW_OK;
}
