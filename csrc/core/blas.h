/* Matrix products with general strides. blas.c is the only file that knows BLIS.
 *
 * c [m, n] = alpha · a [m, k] · b [k, n] + beta · c. rs and cs are the row and column strides in elements, positive
 * or, for a dimension of length 1, anything. With beta 0, c is not read. Serial, callable from several threads at once.
 * clew_gemm_whole is the same for products that no number of threads cuts, such as a head's: it may choose by their
 * size. clew_gemm_sums is c = a · b, with the sums [n] of b's contiguous rows, or NULL. Few rows (m ≤ CLEW_FEW_ROWS),
 * small products and, with AVX2 or AVX-512, all others go to our own kernels, the rest to BLIS. Operands of BLIS need
 * CLEW_SLACK readable bytes behind them: give it memory from slabs only. */
#ifndef CLEW_BLAS_H
#define CLEW_BLAS_H

#include <stddef.h>

#include "clew.h"

#define CLEW_FEW_ROWS 32

#define CLEW_DECLARE_GEMM(suffix, type)                                                                                \
  clew_status clew_gemm##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, const type *a, ptrdiff_t rs_a,                \
                                ptrdiff_t cs_a, const type *b, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n,     \
                                size_t k, type alpha, type beta);                                                      \
  clew_status clew_gemm_whole##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, const type *a, ptrdiff_t rs_a,          \
                                      ptrdiff_t cs_a, const type *b, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m,         \
                                      size_t n, size_t k, type alpha, type beta);                                      \
  clew_status clew_gemm_sums##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, type *sums, const type *a,               \
                                     ptrdiff_t rs_a, ptrdiff_t cs_a, const type *b, ptrdiff_t rs_b, size_t m,          \
                                     size_t n, size_t k);

CLEW_DECLARE_GEMM(_f32, float)
CLEW_DECLARE_GEMM(_f64, double)

/* Are products of many rows ours, whose bits do not depend on how they are cut? BLIS chooses a kernel by the shape. */
bool clew_gemm_cuts_alike(void);

const char *clew_blas_kernel(void); /* BLIS's kernel family on this machine: "zen3", "haswell", "skx", ... */
const char *clew_blas_version(void);

#endif
