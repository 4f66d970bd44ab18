/* Products of few rows with a large unpacked matrix: the matrix is streamed from memory once, a and c stay in cache.
 *
 * Three ways. Rows of b contiguous: a block of K_BLOCK rows of b at a time is added to c. Columns of b contiguous:
 * tiles of dot products where k is long, else (a dot product of k = 64 spends half of its time on adding lanes) small
 * panels of b are transposed in cache and go the first way. Each way computes an element of c from its own row and
 * column by one fixed sequence of operations, wherever the tile edges fall, and the way is chosen by m, k and b's
 * layout: cutting n among threads does not change a bit. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* vectors have no fma builtin */
#else
#pragma STDC FP_CONTRACT ON
#endif

#include <string.h>

#include "kernels_internal.h"
#include "kernels_transpose.h"

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
#define ONE_ROW_BLOCK 8
#define ONE_ROW_COLUMNS 2048
#define ROWS_AT_ONCE 32
#define PANEL_ROWS 64
#define PANEL_K (256 / REAL_BYTES)
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

/* tile += a [m, kb] · b [kb, n]; a is packed. The tile is of our own: rows of c may lie a power of two apart, where the
 * first-level cache holds eight of them only. Where the last columns fill no register, the last LANES columns are
 * computed once more, and lie in the tile behind those that fill one. */
INLINE void add_rows(real *tile, size_t ld, const real *a, const real *b, ptrdiff_t rs_b, stream next, size_t m,
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
    real *at = tile + j;
    for (size_t i = 0; i < m; i++, at += ld) {
      vec c0 = load(at), c1 = load(at + LANES);
#pragma GCC unroll 16
      for (size_t t = 0; t < kb; t++) {
        const vec factor = splat(a[i * kb + t]);
        c0 = fma_vec(factor, b0[t], c0);
        c1 = fma_vec(factor, b1[t], c1);
      }
      store(at, c0);
      store(at + LANES, c1);
    }
  }
  for (; j < n && n >= LANES; j += LANES) {
    const real *column = b + (n - j < LANES ? n - LANES : j);
    vec b0[K_BLOCK];
#pragma GCC unroll 16
    for (size_t t = 0; t < kb; t++)
      b0[t] = load(column + (ptrdiff_t)t * rs_b);
    for (size_t i = 0; i < m; i++) {
      real *at = tile + i * ld + j;
      vec c0 = load(at);
#pragma GCC unroll 16
      for (size_t t = 0; t < kb; t++)
        c0 = fma_vec(splat(a[i * kb + t]), b0[t], c0);
      store(at, c0);
    }
  }
  for (; j < n; j++) {
    for (size_t i = 0; i < m; i++) {
      real sum = tile[i * ld + j];
      for (size_t t = 0; t < kb; t++)
        sum = fma_real(a[i * kb + t], b[(ptrdiff_t)t * rs_b + (ptrdiff_t)j], sum);
      tile[i * ld + j] = sum;
    }
  }
}

INLINE void pack(real *packed, const real *a, ptrdiff_t ld_a, size_t m, const size_t kb, real alpha) {
  for (size_t i = 0; i < m; i++)
    for (size_t t = 0; t < kb; t++)
      packed[i * kb + t] = alpha * a[(ptrdiff_t)i * ld_a + (ptrdiff_t)t];
}

INLINE void take_row(real *tile, const real *c, size_t n, real beta) {
  if (beta == (real)0) {
    for (size_t j = 0; j < n; j++)
      tile[j] = (real)0;
  } else {
    for (size_t j = 0; j < n; j++)
      tile[j] = beta * c[j];
  }
}

/* tile = beta · c [m, n], laid out as add_rows has it. */
INLINE void take_tile(real *tile, size_t ld, const real *c, ptrdiff_t ld_c, size_t m, const size_t n, real beta) {
  const size_t rest = n >= LANES ? n % LANES : 0;
  for (size_t i = 0; i < m; i++) {
    const real *row = c + (ptrdiff_t)i * ld_c;
    take_row(tile + i * ld, row, n - rest, beta);
    if (rest)
      take_row(tile + i * ld + n - rest, row + n - LANES, LANES, beta);
  }
}

INLINE void give_tile(real *c, ptrdiff_t ld_c, const real *tile, size_t ld, size_t m, const size_t n) {
  const size_t rest = n >= LANES ? n % LANES : 0;
  for (size_t i = 0; i < m; i++) {
    real *row = c + (ptrdiff_t)i * ld_c;
    memcpy(row, tile + i * ld, (n - rest) * sizeof *c);
    if (rest)
      store(row + n - LANES, load(tile + i * ld + n - rest));
  }
}

/* One row of c: ONE_ROW_BLOCK rows of b at a time, side by side, while the next ones are prefetched. c and a: [n], [k]
 */
static void row_by_rows(real *c, const real *a, const real *b, ptrdiff_t rs_b, size_t n, size_t k, real alpha,
                        real beta) {
  real tile[ONE_ROW_COLUMNS] __attribute__((aligned(64)));
  for (size_t first = 0; first < n; first += ONE_ROW_COLUMNS) {
    const size_t here = n - first < ONE_ROW_COLUMNS ? n - first : ONE_ROW_COLUMNS, whole = here / LANES * LANES;
    const real *columns = b + first;
    take_row(tile, c + first, here, beta);
    size_t p = 0;
    for (; p + ONE_ROW_BLOCK <= k; p += ONE_ROW_BLOCK) {
      const real *rows = columns + (ptrdiff_t)p * rs_b;
      const ptrdiff_t ahead = p + 2 * ONE_ROW_BLOCK <= k ? ONE_ROW_BLOCK * rs_b : 0;
      vec factor[ONE_ROW_BLOCK];
#pragma GCC unroll 8
      for (size_t t = 0; t < ONE_ROW_BLOCK; t++)
        factor[t] = splat(alpha * a[p + t]);
      for (size_t j = 0; j < whole; j += LANES) {
        vec sum = load(tile + j);
#pragma GCC unroll 8
        for (size_t t = 0; t < ONE_ROW_BLOCK; t++) {
          const real *at = rows + (ptrdiff_t)t * rs_b + j;
          PREFETCH(at + ahead);
          sum = fma_vec(factor[t], load(at), sum);
        }
        store(tile + j, sum);
      }
      for (size_t j = whole; j < here; j++)
        for (size_t t = 0; t < ONE_ROW_BLOCK; t++)
          tile[j] = fma_real(alpha * a[p + t], rows[(ptrdiff_t)t * rs_b + (ptrdiff_t)j], tile[j]);
    }
    for (; p < k; p++)
      for (size_t j = 0; j < here; j++)
        tile[j] = fma_real(alpha * a[p], columns[(ptrdiff_t)p * rs_b + (ptrdiff_t)j], tile[j]);
    memcpy(c + first, tile, here * sizeof *c);
  }
}

static void rows_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b,
                            size_t m, size_t n, size_t k, real alpha, real beta) {
  if (m == 1) {
    row_by_rows(c, a, b, rs_b, n, k, alpha, beta);
    return;
  }
  real packed[ROWS_AT_ONCE * K_BLOCK] __attribute__((aligned(64)));
  real tile[(C_BYTES + ROWS_AT_ONCE * LINE) / REAL_BYTES] __attribute__((aligned(64)));
  const size_t width = C_BYTES / REAL_BYTES / m / (2 * LANES) * (2 * LANES);
  for (size_t j = 0; j < n; j += width) {
    const size_t here = n - j < width ? n - j : width;
    const size_t ld = (here + LANES - 1) / LANES * LANES + LINE / REAL_BYTES; /* no power of two */
    take_tile(tile, ld, c + j, ld_c, m, here, beta);
    size_t p = 0;
    for (; p + K_BLOCK <= k; p += K_BLOCK) {
      const real *block = b + (ptrdiff_t)p * rs_b + (ptrdiff_t)j;
      const size_t left = k - p - K_BLOCK;
      stream next = stream_of(block + K_BLOCK * rs_b, here, rs_b, left < K_BLOCK ? left : K_BLOCK);
      if (left == 0 && n - j > width)
        next = stream_of(b + j + width, n - j - width < width ? n - j - width : width, rs_b, K_BLOCK);
      pack(packed, a + p, ld_a, m, K_BLOCK, alpha);
      add_rows(tile, ld, packed, block, rs_b, next, m, here, K_BLOCK);
    }
    for (; p < k; p++) {
      const real *row = b + (ptrdiff_t)p * rs_b + (ptrdiff_t)j;
      pack(packed, a + p, ld_a, m, 1, alpha);
      add_rows(tile, ld, packed, row, rs_b, (stream){0}, m, here, 1);
    }
    give_tile(c + j, ld_c, tile, ld, m, here);
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

/* One row of c: columns one after the other, as they lie in memory; side by side they take a quarter longer. */
static void row_by_columns(real *c, const real *a, const real *b, ptrdiff_t cs_b, size_t n, size_t k, real alpha,
                           real beta) {
  for (size_t j = 0; j < n; j++) {
    const real *column = b + (ptrdiff_t)j * cs_b;
    vec sum[4] = {{0}};
    size_t p = 0;
    for (; p + 4 * LANES <= k; p += 4 * LANES)
#pragma GCC unroll 4
      for (size_t t = 0; t < 4; t++)
        sum[t] = fma_vec(load(a + p + t * LANES), load(column + p + t * LANES), sum[t]);
    real total = lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; p < k; p++)
      total = fma_real(a[p], column[p], total);
    total *= alpha;
    c[j] = beta == (real)0 ? total : fma_real(beta, c[j], total);
  }
}

static void columns_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b,
                               size_t m, size_t n, size_t k, real alpha, real beta) {
  if (m == 1) {
    row_by_columns(c, a, b, cs_b, n, k, alpha, beta);
    return;
  }
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

/* ---- Panels of b, copied: short contiguous columns are transposed, the last few of contiguous rows filled up --- */

/* panel [k, 2 · LANES] from b [k, n]; zeros to its right. */
static void fill_panel(real *panel, const real *b, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t k, size_t n) {
  if (cs_b == 1) {
    for (size_t t = 0; t < k; t++) {
      memcpy(panel + t * 2 * LANES, b + (ptrdiff_t)t * rs_b, n * sizeof *panel);
      memset(panel + t * 2 * LANES + n, 0, (2 * LANES - n) * sizeof *panel);
    }
    return;
  }
  size_t j = 0;
  for (; j + LANES <= n; j += LANES) {
    size_t t = 0;
    for (; t + LANES <= k; t += LANES)
      transpose(panel + t * 2 * LANES + j, 2 * LANES, b + (ptrdiff_t)j * cs_b + (ptrdiff_t)t, cs_b, LANES);
    for (; t < k; t++)
      for (size_t l = j; l < j + LANES; l++)
        panel[t * 2 * LANES + l] = b[(ptrdiff_t)l * cs_b + (ptrdiff_t)t];
  }
  for (; j < 2 * LANES; j++)
    for (size_t t = 0; t < k; t++)
      panel[t * 2 * LANES + j] = j < n ? b[(ptrdiff_t)j * cs_b + (ptrdiff_t)t] : (real)0;
}

static void by_panels(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b,
                      ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha, real beta) {
  real packed[PANEL_ROWS * PANEL_K] __attribute__((aligned(64)));
  real panel[PANEL_K * 2 * LANE_COUNT] __attribute__((aligned(64)));
  real tile[PANEL_ROWS * 2 * LANE_COUNT] __attribute__((aligned(64)));
  const size_t ld = 2 * LANES;
  for (size_t first = 0; first < k; first += PANEL_K) {
    const size_t depth = k - first < PANEL_K ? k - first : PANEL_K;
    size_t p = 0;
    for (; p + K_BLOCK <= depth; p += K_BLOCK)
      pack(packed + p * m, a + first + p, ld_a, m, K_BLOCK, alpha);
    for (; p < depth; p++)
      pack(packed + p * m, a + first + p, ld_a, m, 1, alpha);
    for (size_t j = 0; j < n; j += ld) {
      const size_t width = n - j < ld ? n - j : ld;
      fill_panel(panel, b + (ptrdiff_t)j * cs_b + (ptrdiff_t)first * rs_b, rs_b, cs_b, depth, width);
      const real old = first == 0 ? beta : (real)1;
      for (size_t i = 0; i < m; i++)
        if (width == ld) /* the constant makes it register moves */
          take_row(tile + i * ld, c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, 2 * LANES, old);
        else
          take_row(tile + i * ld, c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, width, old);
      for (p = 0; p + K_BLOCK <= depth; p += K_BLOCK)
        add_rows(tile, ld, packed + p * m, panel + p * ld, (ptrdiff_t)ld, (stream){0}, m, ld, K_BLOCK);
      for (; p < depth; p++)
        add_rows(tile, ld, packed + p * m, panel + p * ld, (ptrdiff_t)ld, (stream){0}, m, ld, 1);
      for (size_t i = 0; i < m; i++)
        if (width == ld)
          memcpy(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, tile + i * ld, 2 * LANES * sizeof *c);
        else
          memcpy(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, tile + i * ld, width * sizeof *c);
    }
  }
}

void K(gemm_few)(real *c /* [m, n] */, ptrdiff_t ld_c, const real *a /* [m, k] */, ptrdiff_t ld_a,
                 const real *b /* [k, n] */, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha,
                 real beta) {
  const bool columns = cs_b != 1 || (n == 1 && rs_b == 1), short_columns = columns && k <= 256 && 12 * m >= k;
  /* Columns that fill no register: worth a copy when it serves enough rows. */
  const bool narrow = !columns && n < LANES && m >= 8;
  const size_t step = short_columns || narrow ? PANEL_ROWS : ROWS_AT_ONCE;
  for (size_t i = 0; i < m; i += step) {
    const size_t rows = m - i < step ? m - i : step;
    real *part = c + (ptrdiff_t)i * ld_c;
    const real *from = a + (ptrdiff_t)i * ld_a;
    if (short_columns || narrow)
      by_panels(part, ld_c, from, ld_a, b, rs_b, cs_b, rows, n, k, alpha, beta);
    else if (columns)
      columns_contiguous(part, ld_c, from, ld_a, b, cs_b, rows, n, k, alpha, beta);
    else
      rows_contiguous(part, ld_c, from, ld_a, b, rs_b, rows, n, k, alpha, beta);
  }
}
