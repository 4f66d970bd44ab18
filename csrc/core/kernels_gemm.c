/* Products of few rows with a large unpacked matrix: the matrix is streamed from memory once, a and c stay in cache.
 *
 * Two layouts of b, two ways. Rows contiguous (n-contiguous): a block of K_BLOCK rows of b at a time is added to c, which
 * lies in the first-level cache. Columns contiguous (k-contiguous): tiles of dot products.
 * Either way an element of c is computed from its own row and column by one fixed sequence of operations, whatever
 * m and n are and wherever the tile edges fall: cutting n or m among threads does not change a bit. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* vectors have no fma builtin */
#else
#pragma STDC FP_CONTRACT ON
#endif

#include "kernels_internal.h"

#if VEC_BYTES == 64
#define K_BLOCK 8
#define DOT_ROWS 6
#elif VEC_BYTES == 32
#define K_BLOCK 4
#define DOT_ROWS 3
#else
#define K_BLOCK 4
#define DOT_ROWS 2
#endif
#define DOT_COLS 4
#define ROWS_AT_ONCE 32
#define C_BYTES 16384 /* of c that stay in the first-level cache beside b */

#define INLINE static inline __attribute__((always_inline))

INLINE vec fma_vec(vec a, vec b, vec c) { return a * b + c; }

/* ---- Rows of b contiguous ----------------------------------------------------------------------------------- */

/* c [m, n] += a [m, kb] · b [kb, n]; a is packed. next: where the following block of b begins. */
INLINE void add_rows(real *c, ptrdiff_t ld_c, const real *a, const real *b, ptrdiff_t rs_b, const real *next, size_t m,
                     size_t n, const size_t kb) {
  size_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) {
    vec b0[K_BLOCK], b1[K_BLOCK];
#pragma GCC unroll 16
    for (size_t t = 0; t < kb; t++) {
      const real *row = b + (ptrdiff_t)t * rs_b + j;
      b0[t] = load(row);
      b1[t] = load(row + LANES);
      __builtin_prefetch(next + (ptrdiff_t)t * rs_b + j);
      __builtin_prefetch(next + (ptrdiff_t)t * rs_b + j + LANES);
    }
    real *tile = c + j;
    for (size_t i = 0; i < m; i++, tile += ld_c) {
      vec c0 = load(tile), c1 = load(tile + LANES);
#pragma GCC unroll 16
      for (size_t t = 0; t < kb; t++) {
        const vec factor = splat(a[i * kb + t]);
        c0 = fma_vec(factor, b0[t], c0);
        c1 = fma_vec(factor, b1[t], c1);
      }
      store(tile, c0);
      store(tile + LANES, c1);
    }
  }
  for (; j + LANES <= n; j += LANES) {
    vec b0[K_BLOCK];
#pragma GCC unroll 16
    for (size_t t = 0; t < kb; t++)
      b0[t] = load(b + (ptrdiff_t)t * rs_b + j);
    for (size_t i = 0; i < m; i++) {
      vec c0 = load(c + (ptrdiff_t)i * ld_c + j);
#pragma GCC unroll 16
      for (size_t t = 0; t < kb; t++)
        c0 = fma_vec(splat(a[i * kb + t]), b0[t], c0);
      store(c + (ptrdiff_t)i * ld_c + j, c0);
    }
  }
  for (; j < n; j++) {
    for (size_t i = 0; i < m; i++) {
      real sum = c[(ptrdiff_t)i * ld_c + (ptrdiff_t)j];
      for (size_t t = 0; t < kb; t++)
        sum = fma_real(a[i * kb + t], b[(ptrdiff_t)t * rs_b + (ptrdiff_t)j], sum);
      c[(ptrdiff_t)i * ld_c + (ptrdiff_t)j] = sum;
    }
  }
}

static void pack(real *packed, const real *a, ptrdiff_t ld_a, size_t m, size_t kb, real alpha) {
  for (size_t i = 0; i < m; i++)
    for (size_t t = 0; t < kb; t++)
      packed[i * kb + t] = alpha * a[(ptrdiff_t)i * ld_a + (ptrdiff_t)t];
}

static void scale_c(real *c, ptrdiff_t ld_c, size_t m, size_t n, real beta) {
  for (size_t i = 0; i < m; i++) {
    real *row = c + (ptrdiff_t)i * ld_c;
    if (beta == (real)0)
      for (size_t j = 0; j < n; j++)
        row[j] = (real)0;
    else if (beta != (real)1)
      for (size_t j = 0; j < n; j++)
        row[j] *= beta;
  }
}

static void rows_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b,
                            size_t m, size_t n, size_t k, real alpha, real beta) {
  real packed[ROWS_AT_ONCE * K_BLOCK] __attribute__((aligned(64)));
  size_t width = C_BYTES / sizeof(real) / m / (2 * LANES) * (2 * LANES);
  if (width < 4 * LANES)
    width = 4 * LANES;
  for (size_t j = 0; j < n; j += width) {
    const size_t here = n - j < width ? n - j : width;
    real *panel = c + j;
    scale_c(panel, ld_c, m, here, beta);
    size_t p = 0;
    for (; p + K_BLOCK <= k; p += K_BLOCK) {
      const real *block = b + (ptrdiff_t)p * rs_b + (ptrdiff_t)j;
      const real *next = p + 2 * K_BLOCK <= k ? block + K_BLOCK * rs_b : b + j + width;
      if (p + 2 * K_BLOCK > k && j + width >= n)
        next = block;
      pack(packed, a + p, ld_a, m, K_BLOCK, alpha);
      add_rows(panel, ld_c, packed, block, rs_b, next, m, here, K_BLOCK);
    }
    for (; p < k; p++) {
      const real *row = b + (ptrdiff_t)p * rs_b + (ptrdiff_t)j;
      pack(packed, a + p, ld_a, m, 1, alpha);
      add_rows(panel, ld_c, packed, row, rs_b, row, m, here, 1);
    }
  }
}

/* ---- Columns of b contiguous -------------------------------------------------------------------------------- */

/* c [mi, nj] = alpha · a [mi, k] · b [k, nj] + beta · c, b's columns cs_b apart. */
INLINE void dot_tile(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b, size_t k,
                     real alpha, real beta, const size_t mi, const size_t nj) {
  vec sum[DOT_ROWS][DOT_COLS];
#pragma GCC unroll 8
  for (size_t i = 0; i < mi; i++)
#pragma GCC unroll 8
    for (size_t j = 0; j < nj; j++)
      sum[i][j] = (vec){0};
  size_t p = 0;
  for (; p + LANES <= k; p += LANES) {
    vec column[DOT_COLS];
#pragma GCC unroll 8
    for (size_t j = 0; j < nj; j++)
      column[j] = load(b + (ptrdiff_t)j * cs_b + (ptrdiff_t)p);
#pragma GCC unroll 8
    for (size_t i = 0; i < mi; i++) {
      const vec row = load(a + (ptrdiff_t)i * ld_a + (ptrdiff_t)p);
#pragma GCC unroll 8
      for (size_t j = 0; j < nj; j++)
        sum[i][j] = fma_vec(row, column[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < mi; i++)
#pragma GCC unroll 8
    for (size_t j = 0; j < nj; j++) {
      real total = lane_sum(sum[i][j]);
      for (size_t t = p; t < k; t++)
        total = fma_real(a[(ptrdiff_t)i * ld_a + (ptrdiff_t)t], b[(ptrdiff_t)j * cs_b + (ptrdiff_t)t], total);
      real *out = c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j;
      total *= alpha;
      *out = beta == (real)0 ? total : fma_real(beta, *out, total);
    }
}

static void columns_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b,
                               size_t m, size_t n, size_t k, real alpha, real beta) {
  size_t j = 0;
  for (; j + DOT_COLS <= n; j += DOT_COLS) {
    size_t i = 0;
    for (; i + DOT_ROWS <= m; i += DOT_ROWS)
      dot_tile(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, b + (ptrdiff_t)j * cs_b,
               cs_b, k, alpha, beta, DOT_ROWS, DOT_COLS);
    for (; i < m; i++)
      dot_tile(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, b + (ptrdiff_t)j * cs_b,
               cs_b, k, alpha, beta, 1, DOT_COLS);
  }
  for (; j < n; j++)
    for (size_t i = 0; i < m; i++)
      dot_tile(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, b + (ptrdiff_t)j * cs_b,
               cs_b, k, alpha, beta, 1, 1);
}

void K(gemm_few)(real *c /* [m, n] */, ptrdiff_t ld_c, const real *a /* [m, k] */, ptrdiff_t ld_a,
                 const real *b /* [k, n] */, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha,
                 real beta) {
  const bool columns = cs_b != 1 || (n == 1 && rs_b == 1);
  for (size_t i = 0; i < m; i += ROWS_AT_ONCE) {
    const size_t rows = m - i < ROWS_AT_ONCE ? m - i : ROWS_AT_ONCE;
    real *part = c + (ptrdiff_t)i * ld_c;
    const real *from = a + (ptrdiff_t)i * ld_a;
    if (columns)
      columns_contiguous(part, ld_c, from, ld_a, b, cs_b, rows, n, k, alpha, beta);
    else
      rows_contiguous(part, ld_c, from, ld_a, b, rs_b, rows, n, k, alpha, beta);
  }
}
