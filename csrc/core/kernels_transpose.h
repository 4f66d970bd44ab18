/* A square of LANES × LANES values turned in registers. */
#ifndef CLEW_KERNELS_TRANSPOSE_H
#define CLEW_KERNELS_TRANSPOSE_H

#include "kernels_internal.h"

#if CLEW_SHUFFLES
#if LANE_COUNT == 16
#define EACH_LANE(f, d)                                                                                                \
  f(0, d), f(1, d), f(2, d), f(3, d), f(4, d), f(5, d), f(6, d), f(7, d), f(8, d), f(9, d), f(10, d), f(11, d),        \
      f(12, d), f(13, d), f(14, d), f(15, d)
#elif LANE_COUNT == 8
#define EACH_LANE(f, d) f(0, d), f(1, d), f(2, d), f(3, d), f(4, d), f(5, d), f(6, d), f(7, d)
#elif LANE_COUNT == 4
#define EACH_LANE(f, d) f(0, d), f(1, d), f(2, d), f(3, d)
#else
#define EACH_LANE(f, d) f(0, d), f(1, d)
#endif
/* Of the blocks of 2d × 2d along the diagonal, the two off-diagonal quarters change places. */
#define UPPER_LANE(l, d) ((l) & (d) ? LANE_COUNT + (l) - (d) : (l))
#define LOWER_LANE(l, d) ((l) & (d) ? LANE_COUNT + (l) : (l) + (d))
#define SWAP_QUARTERS(d)                                                                                               \
  _Pragma("GCC unroll 16") for (size_t r = 0; r < LANES; r++) {                                                        \
    if (r & (d))                                                                                                       \
      continue;                                                                                                        \
    const vec upper = x[r], lower = x[r + (d)];                                                                        \
    x[r] = __builtin_shufflevector(upper, lower, EACH_LANE(UPPER_LANE, d));                                            \
    x[r + (d)] = __builtin_shufflevector(upper, lower, EACH_LANE(LOWER_LANE, d));                                      \
  }
#endif

/* out [LANES, LANES], rows ld_out apart: the transpose of in [rows, LANES]; zeros behind. rows ≤ LANES */
static inline void transpose(real *out, size_t ld_out, const real *in, ptrdiff_t ld_in, size_t rows) {
#if CLEW_SHUFFLES
  vec x[LANE_COUNT];
#pragma GCC unroll 16
  for (size_t j = 0; j < LANES; j++)
    x[j] = j < rows ? load(in + (ptrdiff_t)j * ld_in) : (vec){0};
#if LANE_COUNT > 8
  SWAP_QUARTERS(8)
#endif
#if LANE_COUNT > 4
  SWAP_QUARTERS(4)
#endif
#if LANE_COUNT > 2
  SWAP_QUARTERS(2)
#endif
  SWAP_QUARTERS(1)
#pragma GCC unroll 16
  for (size_t t = 0; t < LANES; t++)
    store(out + t * ld_out, x[t]);
#else
  for (size_t t = 0; t < LANES; t++)
    for (size_t j = 0; j < LANES; j++)
      out[t * ld_out + j] = j < rows ? in[(ptrdiff_t)j * ld_in + (ptrdiff_t)t] : (real)0;
#endif
}

#endif
