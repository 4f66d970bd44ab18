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
#define C_BYTES 65536 /* of c at a time: in the second-level cache, beside two blocks of b */

#define INLINE static inline __attribute__((always_inline))

INLINE vec fma_vec(vec a, vec b, vec c) { return a * b + c; }

/* A tile reads several rows (or columns) of b side by side, but memory is fastest when it is asked for in the order of
 * its addresses. So the next block of b is prefetched row after row, a few lines for each step of the present one, into
 * the second-level cache: the first has no room for two blocks and c. */
#define LINE 64 /* bytes */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)

/* Rows that will be read next. */
typedef struct stream {
  const char *at;
  size_t lines; /* of this row, not asked for yet */
  size_t rows;  /* still to come, this one included */
  size_t lines_in_row;
  ptrdiff_t gap; /* from the last line of a row to the next row, bytes */
} stream;

INLINE stream stream_of(const real *from, size_t length, ptrdiff_t apart, size_t rows) {
  const size_t lines = (length * sizeof(real) + LINE - 1) / LINE;
  return (stream){(const char *)from, lines, lines ? rows : 0, lines,
                  apart * (ptrdiff_t)sizeof(real) - (ptrdiff_t)lines * LINE};
}

INLINE void prefetch_lines(stream *s, size_t lines) {
  while (s->rows > 0) {
    const size_t here = lines < s->lines ? lines : s->lines;
    for (size_t l = 0; l < here; l++)
      PREFETCH(s->at + l * LINE);
    s->at += here * LINE;
    s->lines -= here;
    if (s->lines > 0)
      return;
    s->at += s->gap;
    s->lines = s->lines_in_row;
    s->rows--;
    lines -= here;
  }
}

/* ---- Rows of b contiguous ----------------------------------------------------------------------------------- */

/* c [m, n] += a [m, kb] · b [kb, n]; a is packed. */
INLINE void add_rows(real *c, ptrdiff_t ld_c, const real *a, const real *b, ptrdiff_t rs_b, stream next, size_t m,
                     size_t n, const size_t kb) {
  size_t j = 0;
  for (; j + 2 * LANES <= n; j += 2 * LANES) {
    vec b0[K_BLOCK], b1[K_BLOCK];
#pragma GCC unroll 16
    for (size_t t = 0; t < kb; t++) {
      const real *row = b + (ptrdiff_t)t * rs_b + j;
      b0[t] = load(row);
      b1[t] = load(row + LANES);
    }
    prefetch_lines(&next, kb * 2 * VEC_BYTES / LINE);
#pragma GCC unroll 16
    for (size_t t = 0; t < kb; t++) {
      __builtin_prefetch(b + (ptrdiff_t)t * rs_b + j + 2 * LANES);
      __builtin_prefetch(b + (ptrdiff_t)t * rs_b + j + 3 * LANES);
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
      stream next = stream_of(block + K_BLOCK * rs_b, here, rs_b, k - p - K_BLOCK < K_BLOCK ? k - p - K_BLOCK : K_BLOCK);
      if (p + K_BLOCK == k && n - j > width)
        next = stream_of(b + j + width, n - j - width < width ? n - j - width : width, rs_b, K_BLOCK);
      pack(packed, a + p, ld_a, m, K_BLOCK, alpha);
      add_rows(panel, ld_c, packed, block, rs_b, next, m, here, K_BLOCK);
    }
    for (; p < k; p++) {
      const real *row = b + (ptrdiff_t)p * rs_b + (ptrdiff_t)j;
      pack(packed, a + p, ld_a, m, 1, alpha);
      add_rows(panel, ld_c, packed, row, rs_b, (stream){0}, m, here, 1);
    }
  }
}

/* ---- Columns of b contiguous -------------------------------------------------------------------------------- */

/* c [mi, nj] = alpha · a [mi, k] · b [k, nj] + beta · c, b's columns cs_b apart. Meanwhile the `ahead` columns that
 * begin at next are prefetched. */
INLINE void dot_tile(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b, size_t k,
                     real alpha, real beta, const real *next, const size_t ahead, const size_t mi, const size_t nj) {
  vec sum[DOT_ROWS][DOT_COLS];
#pragma GCC unroll 8
  for (size_t i = 0; i < mi; i++)
#pragma GCC unroll 8
    for (size_t j = 0; j < nj; j++)
      sum[i][j] = (vec){0};
  const size_t steps = k / LANES, parts = ahead ? ahead : 1;
  size_t p = 0;
  for (size_t part = 0; part < parts; part++) { /* while one is prefetched */
    const char *line = (const char *)(next + (ptrdiff_t)part * cs_b);
    for (const size_t end = steps * (part + 1) / parts * LANES; p < end; p += LANES) {
      vec column[DOT_COLS];
#pragma GCC unroll 8
      for (size_t j = 0; j < nj; j++)
        column[j] = load(b + (ptrdiff_t)j * cs_b + (ptrdiff_t)p);
      for (size_t l = 0; l < ahead * VEC_BYTES; l += LINE)
        PREFETCH(line + l);
      line += ahead * VEC_BYTES;
#pragma GCC unroll 8
      for (size_t i = 0; i < mi; i++) {
        const vec row = load(a + (ptrdiff_t)i * ld_a + (ptrdiff_t)p);
#pragma GCC unroll 8
        for (size_t j = 0; j < nj; j++)
          sum[i][j] = fma_vec(row, column[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < mi; i++) {
    real total[DOT_COLS];
    if (nj == DOT_COLS)
      lane_sums(total, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    else
      total[0] = lane_sum(sum[i][0]);
    real *out = c + (ptrdiff_t)i * ld_c;
    for (size_t j = 0; j < nj; j++) {
      for (size_t t = p; t < k; t++)
        total[j] = fma_real(a[(ptrdiff_t)i * ld_a + (ptrdiff_t)t], b[(ptrdiff_t)j * cs_b + (ptrdiff_t)t], total[j]);
      total[j] *= alpha;
      out[j] = beta == (real)0 ? total[j] : fma_real(beta, out[j], total[j]);
    }
  }
}

/* The same for mi rows, whose number becomes a constant. */
INLINE void dot_rows(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b, size_t k,
                     real alpha, real beta, const real *next, const size_t ahead, size_t mi) {
#define ROWS(count)                                                                                                    \
  case count:                                                                                                          \
    dot_tile(c, ld_c, a, ld_a, b, cs_b, k, alpha, beta, next, ahead, count, DOT_COLS);                                 \
    break
  switch (mi) {
    ROWS(1);
    ROWS(2);
#if DOT_ROWS > 2
    ROWS(3);
#endif
#if DOT_ROWS > 3
    ROWS(4);
    ROWS(5);
    ROWS(6);
#endif
  default:
    break;
  }
#undef ROWS
}

static void columns_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b,
                               size_t m, size_t n, size_t k, real alpha, real beta) {
  const size_t passes = (m + DOT_ROWS - 1) / DOT_ROWS;
  const size_t share = passes < 4 ? DOT_COLS / 2 : 1; /* of the next columns, in each pass */
  size_t j = 0;
  for (; j + DOT_COLS <= n; j += DOT_COLS) {
    const real *columns = b + (ptrdiff_t)j * cs_b;
    const real *next = j + 2 * DOT_COLS <= n ? columns + DOT_COLS * cs_b : columns;
    if (passes == 1) {
      dot_rows(c + j, ld_c, a, ld_a, columns, cs_b, k, alpha, beta, next, DOT_COLS, m);
      continue;
    }
    for (size_t pass = 0; pass < passes; pass++) {
      const size_t i = m * pass / passes, first = pass * share;
      dot_rows(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, columns, cs_b, k, alpha,
               beta, first < DOT_COLS ? next + (ptrdiff_t)first * cs_b : next, first < DOT_COLS ? share : 0,
               m * (pass + 1) / passes - i);
    }
  }
  for (; j < n; j++)
    for (size_t i = 0; i < m; i++)
      dot_tile(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, b + (ptrdiff_t)j * cs_b,
               cs_b, k, alpha, beta, b, 0, 1, 1);
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
